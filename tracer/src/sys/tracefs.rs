//! Probe events in tracefs. Unlike a perf event, such an event outlives the process that made it.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Where it is mounted; the second place mounts itself when it is looked at.
const ROOTS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
/// How the groups of our events are named: this, and the process that made them.
const GROUP: &str = "nftracer_";
/// The most slots that a return probe can have: `KRETPROBE_MAXACTIVE_MAX`.
const MOST_SLOTS: usize = 4096;

/// The mounted file system.
#[derive(Clone, Debug)]
pub struct Tracefs {
    root: PathBuf,
}

/// A probe event that an nftracer made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The process that made it.
    pub pid: u32,
    name: String,
}

/// As tracefs names it.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", group(self.pid), self.name)
    }
}

/// The group of all events of a process.
pub fn group(pid: u32) -> String {
    format!("{GROUP}{pid}")
}

impl Tracefs {
    /// Finds it, if this kernel has probe events.
    pub fn find() -> Option<Self> {
        let root = ROOTS.into_iter().map(PathBuf::from).find(|root| root.join("kprobe_events").exists())?;
        Some(Self { root })
    }

    /// The events that any nftracer made.
    pub fn events(&self) -> io::Result<Vec<Event>> {
        Ok(fs::read_to_string(self.list())?.lines().filter_map(Event::parse).collect())
    }

    /// Those whose maker is gone.
    pub fn leftovers(&self) -> io::Result<Vec<Event>> {
        let gone = |event: &Event| !Path::new("/proc").join(event.pid.to_string()).exists();
        Ok(self.events()?.into_iter().filter(gone).collect())
    }

    /// Makes an event at the return of a kernel function. It does nothing until a program is attached to it. Of the
    /// calls that are under way at one time, as many can be seen as there are slots.
    pub fn add_return(&self, pid: u32, symbol: &str, slots: usize) -> io::Result<Event> {
        let event = Event { pid, name: format!("leave_{symbol}") };
        self.write(&format!("r{}:{event} {symbol}\n", slots.min(MOST_SLOTS)))?;
        Ok(event)
    }

    /// The number by which perf knows an event.
    pub fn id(&self, event: &Event) -> io::Result<u64> {
        let path = self.root.join("events").join(event.to_string()).join("id");
        fs::read_to_string(path)?.trim().parse().map_err(io::Error::other)
    }

    /// Removes an event; the kernel refuses it while a program is attached.
    pub fn remove(&self, event: &Event) -> io::Result<()> {
        self.write(&format!("-:{event}\n"))
    }

    fn list(&self) -> PathBuf {
        self.root.join("kprobe_events")
    }

    /// Opened for appending: to truncate this file is to remove everybody's events.
    fn write(&self, line: &str) -> io::Result<()> {
        OpenOptions::new().append(true).open(self.list())?.write_all(line.as_bytes())
    }
}

impl Event {
    /// From a line like `r64:nftracer_1234/leave_ipt_do_table ipt_do_table`.
    fn parse(line: &str) -> Option<Self> {
        let (_, rest) = line.split_once(':')?;
        let (group, name) = rest.split_ascii_whitespace().next()?.split_once('/')?;
        let pid = group.strip_prefix(GROUP)?.parse().ok()?;
        Some(Self { pid, name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = "p:kprobes/other ipt_do_table\n\
                         r64:nftracer_1/leave_ipt_do_table ipt_do_table\n\
                         p:nftracer_x/leave_ipt_do_table ipt_do_table\n\
                         r64:nftracer_4294967294/leave_ip6t_do_table ip6t_do_table\n";

    fn tracefs() -> (tempfile::TempDir, Tracefs) {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let tracefs = Tracefs { root: folder.path().to_owned() };
        fs::write(tracefs.list(), LINES).expect("a file can be written");
        (folder, tracefs)
    }

    fn names(events: &[Event]) -> Vec<String> {
        events.iter().map(Event::to_string).collect()
    }

    #[test]
    fn only_our_events_are_found() {
        let (_folder, tracefs) = tracefs();
        let events = tracefs.events().expect("the file can be read");
        assert_eq!(
            names(&events),
            ["nftracer_1/leave_ipt_do_table", "nftracer_4294967294/leave_ip6t_do_table"]
        );
        let left = tracefs.leftovers().expect("the file can be read");
        assert_eq!(names(&left), ["nftracer_4294967294/leave_ip6t_do_table"]);
    }

    #[test]
    fn what_is_there_stays() {
        let (_folder, tracefs) = tracefs();
        let event = tracefs.add_return(7, "arpt_do_table", 9999).expect("the file can be written");
        tracefs.remove(&event).expect("the file can be written");
        let text = fs::read_to_string(tracefs.list()).expect("the file can be read");
        let added = "r4096:nftracer_7/leave_arpt_do_table arpt_do_table\n-:nftracer_7/leave_arpt_do_table\n";
        assert_eq!(text.strip_prefix(LINES), Some(added));
    }
}
