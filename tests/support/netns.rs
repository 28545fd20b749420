//! Network namespaces with a name, removed when dropped.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace below `/run/netns`.
#[derive(Debug)]
pub struct Netns {
    name: String,
    /// Inode number: what the kernel and the tracer call it.
    inode: u64,
}

impl Netns {
    /// Makes a namespace with its loopback up. One of that name left by an earlier run goes first.
    pub fn create(name: &str) -> Result<Self> {
        let path = PathBuf::from("/run/netns").join(name);
        if path.exists() {
            run("ip", &["netns", "del", name], "")?;
        }
        run("ip", &["netns", "add", name], "")?;
        let inode = fs::metadata(&path)?.ino();
        let netns = Self { name: name.to_owned(), inode };
        netns.command("ip", &["link", "set", "lo", "up"], "")?;
        Ok(netns)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its inode number.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Runs a function in the namespace, on a thread of its own.
    pub fn enter<T: Send>(&self, what: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let inside = || -> Result<T> {
            move_here(&self.name)?;
            what()
        };
        thread::scope(|scope| scope.spawn(inside).join())
            .map_err(|panic| anyhow::anyhow!("panic in namespace {}: {panic:?}", self.name))?
    }

    /// Runs a program in the namespace and returns what it printed.
    pub fn command(&self, program: &str, arguments: &[&str], input: &str) -> Result<String> {
        self.enter(|| run(program, arguments, input))
    }

    /// Runs a shell script with the namespace's own `/sys`.
    pub fn script(&self, script: &str) -> Result<String> {
        run("ip", &["netns", "exec", &self.name, "sh", "-c", script], "")
    }

    /// Writes a sysctl, such as `net/ipv4/ip_forward`.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{name}");
        self.enter(|| fs::write(&path, value).with_context(|| format!("cannot write {path}")))
    }

    /// Makes it the legacy tables' own again: no rule, policies ACCEPT.
    pub fn clear_rules(&self) -> Result<()> {
        for program in ["iptables-legacy", "ip6tables-legacy"] {
            let text: String =
                crate::ruleset::TABLES.iter().map(|(table, chains)| empty(table, chains)).collect();
            self.command(&format!("{program}-restore"), &[], &text)?;
        }
        Ok(())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = run("ip", &["netns", "del", &self.name], "");
    }
}

fn empty(table: &str, chains: &[&str]) -> String {
    let chains: String = chains.iter().map(|chain| format!(":{chain} ACCEPT [0:0]\n")).collect();
    format!("*{table}\n{chains}COMMIT\n")
}

/// Moves this thread into a namespace.
pub fn move_here(name: &str) -> Result<()> {
    let file = File::open(format!("/run/netns/{name}")).with_context(|| format!("no namespace {name}"))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("cannot enter namespace {name}"))
}

/// Runs a program; what it printed, or what it complained about.
pub fn run(program: &str, arguments: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    // A program that does not want all of it says so by its status.
    let _ = child.stdin.take().context("its input is piped")?.write_all(input.as_bytes());
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}: {}", arguments.join(" "), output.status, complaint.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
