//! What a run changes on the host: TRACE rules or a table that marks packets, the logger that TRACE goes to, modules.
//!
//! Every change is written down before it is made ([`record`]), and is undone ([`undo`]) by the run at its end, by its
//! guard when it is killed, or later by [`clean`]. Several runs at once know of each other by their records: what two
//! of them need is put back by the last.
#![forbid(unsafe_code)]

mod change;
mod clean;
mod key;
mod record;
mod rule;
mod select;
mod table;
mod undo;

pub use clean::{clean, leftovers};
pub use key::Key;

use crate::filter::Filter;
use crate::netfilter::Family;
use crate::nftables;
use crate::sys::guard::Guard;
use crate::sys::process::Process;
use crate::sys::{module, netlink, netns, sysctl};
use crate::text;
use change::{Change, Sysctl};
use jiff::{Timestamp, ToSpan as _};
use record::{Folder, Setting};
use select::{Selection, selections};
use std::fs::File;
use std::io;
use std::time::Instant;
use table::Table;
use undo::Namespaces;

/// How long TRACE rules have an effect when nobody removes or renews them.
const RULES_SECONDS: i64 = 24 * 3600;

/// What is said of a raw table that did not exist.
const MADE: &str = " (there was none before; stays)";

/// What brings the raw tables. The kernel loads it when somebody asks for its table, and would unload it although a
/// table of it has rules: it stays.
pub const RAW_MODULES: [&str; 2] = ["iptable_raw", "ip6table_raw"];

/// What is said of such a module.
pub fn raw_module_loaded(name: &str) -> String {
    format!("module {name} loaded (stays)")
}

/// How long TRACE rules last; the environment variable is for tests of what happens then.
fn rules_seconds() -> i64 {
    let wanted = std::env::var("NFTRACER_RULES_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    wanted.map_or(RULES_SECONDS, |seconds: i64| seconds.clamp(1, RULES_SECONDS))
}

/// Why the host was not changed, or not changed back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Records cannot be kept.
    #[error("cannot write down in /run/nftracer what is changed on this host")]
    Record(#[source] io::Error),
    /// This process cannot be named.
    #[error("cannot read /proc/self/stat")]
    Process(#[source] io::Error),
    /// No guard, so that nothing would be undone if this process were killed.
    #[error("cannot start the process that clears up after this one")]
    Guard(#[source] io::Error),
    /// A namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// A module did not come.
    #[error("cannot load the module {name}: {reason}")]
    Module {
        /// Its name.
        name: &'static str,
        /// What `modprobe` said.
        reason: String,
    },
    /// A setting cannot be read or written.
    #[error("cannot set {name}")]
    Sysctl {
        /// Which.
        name: String,
        /// The system's reason.
        source: io::Error,
    },
    /// Another run needs a setting otherwise.
    #[error("{name} is needed otherwise by the nftracer with process id {}", owner.pid)]
    Taken {
        /// Which.
        name: String,
        /// Who.
        owner: Process,
    },
    /// The table of nftables could not be made or removed.
    #[error("cannot make or remove a table of nftables")]
    Table(#[source] netlink::Error),
    /// The kernel made no table, and gave no reason.
    #[error("the kernel made no table of nftables")]
    Unmade,
    /// TRACE rules could not be added or removed.
    #[error("cannot change the {family} table raw: {}", text::escape(reason))]
    Rules {
        /// Which.
        family: Family,
        /// What the program said.
        reason: String,
    },
}

impl Error {
    /// Whether the kernel said that this process may not.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Table(error) if error.raw_os_error() == Some(libc::EPERM))
    }

    /// What can be done about it.
    pub fn remedy(&self) -> Option<String> {
        let denied = |source: &io::Error| source.kind() == io::ErrorKind::PermissionDenied;
        Some(match self {
            Self::Record(source) if denied(source) => "run it as root".to_owned(),
            Self::Sysctl { source, .. } if denied(source) => {
                "run it as root, or with CAP_NET_ADMIN in the namespace".to_owned()
            }
            Self::Sysctl { name, source } if source.kind() == io::ErrorKind::NotFound => {
                format!(
                    "use a kernel that has it; `cat /proc/net/nf_log` shows what can be written to {name}"
                )
            }
            Self::Taken { owner, .. } => {
                format!("end it, or trace with the same backend; `kill {}`", owner.pid)
            }
            Self::Module { name, .. } => format!("`modprobe {name}` as root, or a kernel that has it"),
            Self::Table(error) if error.raw_os_error() == Some(libc::EPERM) => {
                "run it as root, or with CAP_NET_ADMIN in the namespace".to_owned()
            }
            Self::Table(_) => "trace with --mark rule, or with eBPF and --mark none".to_owned(),
            Self::Rules { .. } => "trace with --mark nft".to_owned(),
            _ => return None,
        })
    }
}

/// What this run has changed. Dropping it undoes all of it.
#[derive(Debug)]
pub struct Footprint {
    owner: Process,
    folder: Folder,
    namespaces: Vec<File>,
    tables: Vec<Table>,
    /// The raw tables that TRACE rules are in, and when these were made or renewed.
    rules: Vec<(u32, Family)>,
    renewed: Instant,
    /// In words, for the line that says that tracing has begun.
    said: Vec<String>,
    guard: Guard,
}

impl Footprint {
    /// Nothing is changed yet. Changes are made in these namespaces only.
    pub fn new(namespaces: &[&File]) -> Result<Self, Error> {
        let kept = namespaces.iter().map(|file| file.try_clone()).collect::<io::Result<Vec<File>>>();
        let owner = Process::own().map_err(Error::Process)?;
        Ok(Self {
            owner,
            folder: Folder::of_host(),
            namespaces: kept.map_err(Error::Record)?,
            tables: Vec::new(),
            rules: Vec::new(),
            renewed: Instant::now(),
            said: Vec::new(),
            guard: Guard::start(owner, namespaces).map_err(Error::Guard)?,
        })
    }

    /// Loads the first of these modules that there is, unless one is there already that no run has loaded.
    pub fn module(&mut self, names: &[&'static str]) -> Result<(), Error> {
        let of_runs = self.loaded_by_runs()?;
        let is_there = |name: &&'static str| module::is_there(name);
        let first = names.iter().find(|name| is_there(name));
        if names.is_empty() || first.is_some_and(|name| !of_runs.iter().any(|other| other == name)) {
            return Ok(());
        }
        let mut failed = None;
        for name in first.map_or(names, std::slice::from_ref) {
            match self.load(name, &of_runs) {
                Ok(()) => return Ok(()),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Loads a module, and those that it needs. What another run has loaded is written down for this one as well: the
    /// last one unloads it.
    fn load(&mut self, name: &'static str, of_runs: &[String]) -> Result<(), Error> {
        let failed = |reason| Error::Module { name, reason };
        let mut needed = module::with_dependencies(name).map_err(failed)?;
        needed.retain(|name| !module::is_there(name) || of_runs.contains(name));
        needed.iter().try_for_each(|name| self.write_down(&Change::Module { name: name.clone() }))?;
        module::load(name).map_err(failed)?;
        self.said.extend(needed.iter().map(|name| format!("module {name} loaded")));
        Ok(())
    }

    /// What other runs have loaded.
    fn loaded_by_runs(&self) -> Result<Vec<String>, Error> {
        let locked = self.folder.lock().map_err(Error::Record)?;
        let mut others = locked.records().map_err(Error::Record)?;
        others.retain(|record| record.owner != self.owner);
        Ok(others
            .into_iter()
            .flat_map(|record| record.changes)
            .filter_map(|change| match change {
                Change::Module { name } => Some(name),
                _ => None,
            })
            .collect())
    }

    /// Gives a setting of a namespace a value, such as `net/netfilter/nf_log/2`; it needs one of these modules. Loading
    /// a logger's module may bind it at once, where nothing was bound.
    pub fn set(
        &mut self,
        namespace: &File,
        name: &str,
        value: &str,
        modules: &[&'static str],
    ) -> Result<(), Error> {
        let failed = |source| Error::Sysctl { name: name.to_owned(), source };
        let netns = netns::inode(namespace)?;
        let now = sysctl::read(namespace, name).map_err(failed)?;
        self.module(modules)?;
        let locked = self.folder.lock().map_err(Error::Record)?;
        let mut others = locked.records().map_err(Error::Record)?;
        others.retain(|record| record.owner != self.owner);
        let before = match Setting::decide((netns, name), (&now, value), &others, Process::is_alive) {
            Setting::IsSo => return Ok(()),
            Setting::TakenBy(owner) => return Err(Error::Taken { name: name.to_owned(), owner }),
            Setting::Change { before } => before,
        };
        let sysctl = Sysctl { netns, name: name.to_owned(), before, ours: value.to_owned() };
        locked.add(self.owner, &Change::Sysctl(sysctl)).map_err(Error::Record)?;
        sysctl::write(namespace, name, value).map_err(failed)?;
        drop(locked);
        self.would_set(name, value);
        Ok(())
    }

    /// Says that a setting gets a value, without doing it.
    pub fn would_set(&mut self, name: &str, value: &str) {
        let short = name.rsplit_once("net/netfilter/").map_or(name, |(_, short)| short);
        self.said.push(format!("{} set to {value}", short.replace('/', ".")));
    }

    /// Has packets marked by a table of nftables: all that the filter matches, and maybe more.
    pub fn mark_by_table(&mut self, namespace: &File, filter: &Filter) -> Result<(), Error> {
        let (netns, name) = (netns::inode(namespace)?, table::name(self.owner));
        self.write_down(&Change::Table { netns, name: name.clone() })?;
        let table = Table::make(namespace, &name, &selections(filter)).map_err(Error::Table)?;
        let owned = if table.owned { " (owned)" } else { "" };
        self.said.push(format!("table inet {name}{owned}"));
        self.tables.push(table);
        Ok(())
    }

    /// Has packets marked by TRACE rules in the raw tables: all that the filter matches, and maybe more. Says whether it
    /// may be more because rules cannot ask all of this filter here.
    pub fn mark_by_rules(&mut self, namespace: &File, filter: &Filter) -> Result<bool, Error> {
        let netns = netns::inode(namespace)?;
        let until = self.rules_end();
        let all = selections(filter);
        let bytecode = rule::bytecode(filter);
        let mut more = false;
        if bytecode.is_some() {
            // The kernel may have it, or load it by itself, where this cannot be seen.
            let _ = self.module(&["xt_bpf"]);
        }
        for (family, module) in [(Family::Ipv4, RAW_MODULES[0]), (Family::Ipv6, RAW_MODULES[1])] {
            let ours: Vec<&Selection> = all.iter().filter(|selection| selection.family == family).collect();
            if ours.is_empty() {
                continue;
            }
            self.write_down(&Change::Rules { netns, family })?;
            let bytecode = bytecode.as_deref();
            let wanted = rule::Wanted { family, selections: &ours, bytecode, until: &until };
            if !module::is_there(module) {
                self.said.push(raw_module_loaded(module));
            }
            let insert = || {
                let made = !rule::table_exists(family);
                rule::insert(self.owner, &wanted, self.guard.witness()).map(|inserted| (inserted, made))
            };
            let inserted = netns::inside(namespace, insert)?;
            let (inserted, made) = inserted.map_err(|reason| Error::Rules { family, reason })?;
            more |= !filter.text.trim().is_empty() && !inserted.by_bytecode;
            let (count, made) = (inserted.count, if made { MADE } else { "" });
            self.said.push(format!("{count} TRACE rules first in the {family} table raw{made}"));
            self.rules.push((netns, family));
        }
        Ok(more)
    }

    /// Gives TRACE rules another end when half of their time is over.
    pub fn renew(&mut self) -> Result<(), Error> {
        if self.rules.is_empty() || self.renewed.elapsed().as_secs() < rules_seconds().unsigned_abs() / 2 {
            return Ok(());
        }
        self.renewed = Instant::now();
        let until = self.rules_end();
        for (netns, family) in &self.rules {
            let namespace = self.namespaces.iter().find(|file| netns::inode(file).ok() == Some(*netns));
            let Some(namespace) = namespace else { continue };
            let renew = || rule::renew(self.owner, *family, &until, self.guard.witness());
            netns::inside(namespace, renew)?.map_err(|reason| Error::Rules { family: *family, reason })?;
        }
        Ok(())
    }

    fn rules_end(&self) -> String {
        let end = Timestamp::now().checked_add(rules_seconds().seconds()).unwrap_or(Timestamp::MAX);
        end.strftime("%Y-%m-%dT%H:%M:%S").to_string()
    }

    /// What has been changed so far, in words; `none`.
    pub fn describe(&self) -> String {
        let mut words: Vec<String> = Vec::new();
        for (at, said) in self.said.iter().enumerate() {
            if self.said[..at].contains(said) {
                continue;
            }
            words.push(match self.said.iter().filter(|other| *other == said).count() {
                1 => said.clone(),
                times => format!("{said} in {times} namespaces"),
            });
        }
        if words.is_empty() { "none".to_owned() } else { words.join(", ") }
    }

    /// The same for another run, whose names are not known.
    pub fn preview(&self) -> String {
        let described = self.describe().replace(&table::name(self.owner), "nftracer_PID_START");
        described.replace(MADE, " (made where there is none; stays)")
    }

    /// Undoes all.
    pub fn end(mut self) -> Result<(), Error> {
        self.undo()
    }

    /// Marks go first, so that nothing is logged to where it was before.
    fn undo(&mut self) -> Result<(), Error> {
        self.tables.clear();
        let namespaces = Namespaces(&self.namespaces);
        undo::undo(&self.folder, self.owner, namespaces, self.guard.witness()).map(drop)
    }

    fn write_down(&self, change: &Change) -> Result<(), Error> {
        let locked = self.folder.lock().map_err(Error::Record)?;
        locked.add(self.owner, change).map_err(Error::Record)
    }
}

impl Drop for Footprint {
    fn drop(&mut self) {
        // What stays is the guard's: it ends after this.
        let _ = self.undo();
    }
}

/// Whether a rule, as `iptables-save` prints it, is one that marks packets for a run.
pub fn is_rule_of_ours(text: &str) -> bool {
    rule::owner(text).is_some()
}

/// Whether a table of nftables is one that marks packets for a run: it is called so, and does nothing else. A user's own
/// may have any name.
pub fn is_table_of_ours(table: &nftables::Table) -> bool {
    table::owner(&table.name).is_some() && table::only_marks(table)
}

/// Whether a table of nftables that cannot be looked at is called as those that mark packets for a run.
pub fn is_named_like_ours(name: &str) -> bool {
    table::owner(name).is_some()
}

/// Undoes what a run changed that has just ended: the guard's work.
pub fn undo_after(owner: Process, namespaces: &[File]) -> Result<(), Error> {
    undo::undo(&Folder::of_host(), owner, Namespaces(namespaces), None).map(drop)
}
