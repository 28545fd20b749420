//! Captures what the kernel says about nftables in this network namespace, for tests/data/nftables.
//!
//! `capture-nftables dump FILE` writes all objects; `capture-nftables trace FILE COMMAND…` runs a command and writes
//! the trace messages that it led to. A file holds netlink messages one after the other.

use anyhow::{Context as _, Result, bail};
use nftracer::netlink::{Builder, messages};
use nftracer::nftables::{decode, trace};
use nftracer::sys::netlink::{NETFILTER, Received, Socket};
use rustix::event::{PollFd, PollFlags, poll};
use std::env;
use std::fs;
use std::process::Command;

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["dump", file] => dump(file),
        ["trace", file, program, ref rest @ ..] => trace(file, program, rest),
        _ => bail!("usage: capture-nftables dump FILE | trace FILE COMMAND…"),
    }
}

fn dump(file: &str) -> Result<()> {
    let socket = Socket::open(None, NETFILTER)?;
    let (mut captured, mut buffer) = (Vec::new(), Vec::new());
    for (kind, sequence) in decode::DUMPS.into_iter().zip(1..) {
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
        let request = Builder::new().netfilter((decode::SUBSYSTEM, kind), flags, sequence, (0, 0), |_| ());
        socket.send(request.as_bytes())?;
        let mut done = false;
        while !done {
            poll(&mut [PollFd::new(&socket, PollFlags::IN)], None)?;
            let Received::Datagram(bytes) = socket.recv(&mut buffer)? else { continue };
            done = messages(bytes).any(|message| i32::from(message.kind) == libc::NLMSG_DONE);
            if !done {
                captured.extend_from_slice(bytes);
            }
        }
    }
    fs::write(file, captured).with_context(|| format!("cannot write {file}"))
}

fn trace(file: &str, program: &str, arguments: &[&str]) -> Result<()> {
    let socket = Socket::open(None, NETFILTER)?;
    socket.join_group(trace::GROUP)?;
    // Whether it succeeds is the packets' affair.
    Command::new(program).args(arguments).status().with_context(|| format!("cannot run {program}"))?;
    let (mut captured, mut buffer) = (Vec::new(), Vec::new());
    loop {
        match socket.recv(&mut buffer)? {
            Received::Datagram(bytes) => captured.extend_from_slice(bytes),
            Received::Empty => break,
            Received::Overrun => bail!("messages were lost"),
        }
    }
    fs::write(file, captured).with_context(|| format!("cannot write {file}"))
}
