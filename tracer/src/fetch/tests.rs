//! Against live tables, in a network namespace of their own. Where that cannot be had, the tests say so and pass.

use super::*;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A new network namespace, which lives as long as this.
pub(super) struct Throwaway {
    holder: Child,
    pub(super) namespace: File,
}

impl Drop for Throwaway {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

impl Throwaway {
    /// `None` after printing why not.
    pub(super) fn new() -> Option<Self> {
        let mut command = Command::new("unshare");
        command.args(["-n", "sh", "-c", "echo ready; exec cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = match command.spawn() {
            Ok(holder) => holder,
            Err(error) => {
                println!("skipped: cannot run unshare: {error}");
                return None;
            }
        };
        let mut line = String::new();
        BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        if line != "ready\n" {
            println!("skipped: cannot make a network namespace: {}", holder.wait().unwrap());
            return None;
        }
        let namespace = netns::open(&holder.id().to_string()).unwrap();
        Some(Self { holder, namespace })
    }

    /// Runs a shell command inside; `None` after printing that it failed.
    pub(super) fn run(&self, command: &str) -> Option<()> {
        let output = netns::inside(&self.namespace, || Command::new("sh").args(["-c", command]).output());
        let output = output.unwrap().unwrap();
        if !output.status.success() {
            println!("skipped: {command}: {}", String::from_utf8_lossy(&output.stderr));
        }
        output.status.success().then_some(())
    }
}

#[test]
fn reading_creates_no_table() {
    let Some(throwaway) = Throwaway::new() else { return };
    assert!(fetch_tables(&throwaway.namespace).unwrap().is_empty());
    assert!(fetch_table(&throwaway.namespace, Family::Ipv4, "filter").unwrap().is_none());
    let names = netns::inside(&throwaway.namespace, || table_names(Family::Ipv4)).unwrap().unwrap();
    assert!(names.is_empty());
}

#[test]
fn live_tables_have_structure_and_text() {
    let Some(throwaway) = Throwaway::new() else { return };
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/xtables/rules.sh");
    let Some(()) = throwaway.run(&format!("PATH=$PATH:/usr/sbin:/sbin; . {}", rules.display())) else {
        return;
    };

    let fetched = fetch_tables(&throwaway.namespace).unwrap();
    let names: Vec<String> =
        fetched.iter().map(|fetched| format!("{} {}", fetched.table.family, fetched.table.name)).collect();
    let expected =
        ["ip raw", "ip mangle", "ip nat", "ip filter", "ip security", "ip6 mangle", "ip6 nat", "ip6 filter"];
    assert_eq!(names, expected);
    for Fetched { table, text_reason, .. } in &fetched {
        assert_eq!(*text_reason, None);
        for entry in table.entries.iter().filter(|entry| entry.chain.is_some()) {
            assert_eq!(entry.text.is_some(), !entry.tail, "{entry:?}");
        }
    }

    let one = fetch_table(&throwaway.namespace, Family::Ipv6, "nat").unwrap().unwrap();
    assert_eq!(one.table, fetched[6].table);
    assert!(one.raw.same_rules(&fetched[6].raw));
    let none = Err("not installed".to_owned());
    let bare = netns::inside(&throwaway.namespace, || fetch_here(Family::Ipv4, "filter", &none)).unwrap();
    let bare = bare.unwrap().unwrap();
    assert_eq!(bare.text_reason.as_deref(), Some("not installed"));
    assert!(bare.table.entries.iter().all(|entry| entry.text.is_none()));
    assert!(bare.raw.same_rules(&fetched[3].raw));
}

#[test]
fn a_change_in_between_is_noticed() {
    let Some(throwaway) = Throwaway::new() else { return };
    let Some(()) = throwaway.run("PATH=$PATH:/usr/sbin:/sbin; iptables-legacy -A INPUT -i lo -j ACCEPT")
    else {
        return;
    };
    let before = fetch_table(&throwaway.namespace, Family::Ipv4, "filter").unwrap().unwrap();
    throwaway.run("PATH=$PATH:/usr/sbin:/sbin; iptables-legacy -R INPUT 1 -i l0 -j ACCEPT").unwrap();
    let after = fetch_table(&throwaway.namespace, Family::Ipv4, "filter").unwrap().unwrap();
    assert_eq!(before.raw.bytes.len(), after.raw.bytes.len());
    assert!(!before.raw.same_rules(&after.raw));
    assert_eq!(after.table.entries[0].text.as_deref(), Some("-A INPUT -i l0 -j ACCEPT"));
}
