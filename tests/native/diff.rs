//! Where the packets of two filters part, while they are traced.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nftracer_tests::lab::Family;
use nftracer_tests::ruleset;
use nftracer_tests::tracer::{self, Tracer};

use crate::{Test, check};

pub(crate) const TESTS: &[Test] = &[Test { name: "diff_of_filters", run: diff_of_filters }];

const ENDS_WITHIN: Duration = Duration::from_secs(20);
const RULE: &str = "-A OUTPUT -p udp -m udp --dport 9 -j DROP";

fn diff_of_filters() -> Result<String> {
    let netns = crate::netns("f")?;
    ruleset::load(&netns, Family::Ipv4, &format!("*filter\n{RULE}\nCOMMIT\n"))?;
    let mut command = Command::new(tracer::program());
    command.args(["diff", "--backend", "netlink", "--netns", netns.name()]);
    command.args(["udp dst port 9", "udp dst port 40001"]);
    let mut tracer = Tracer::spawn_command(command)?;
    tracer.ready()?;
    netns.enter(|| {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        for port in [40_001, 9, 7] {
            // What is dropped on its way out is an error to the sender.
            let _ = socket.send_to(b"differs", ("127.0.0.1", port));
        }
        Ok(())
    })?;
    let ended = tracer.finish(ENDS_WITHIN)?;
    let said = ended.lines.join("\n");
    check(ended.status.code() == Some(0), format!("{}: {said}: {:?}", ended.status, ended.errors))?;
    for words in [
        format!("  A output       filter:OUTPUT:rule:1  drop  {RULE}"),
        "  B output       filter:OUTPUT:policy:2  accept".to_owned(),
    ] {
        check(ended.lines.contains(&words), format!("does not say \"{words}\":\n{said}"))?;
    }
    for end in ["A = drop", "B = accept"] {
        let mut lines = ended.lines.iter();
        let ended = lines.any(|line| line.starts_with(end) && line.ends_with(", complete"));
        check(ended, format!("no \"{end}\":\n{said}"))?;
    }
    let mixed = tracer::run(&["diff", "/dev/null", "udp"], &[])?;
    check(mixed.status.code() == Some(2), format!("a file and a filter: {:?}", mixed.errors))?;
    let recordings = tracer::run(&["diff", "-c", "2", "/dev/null", "/dev/null"], &[])?;
    check(recordings.status.code() == Some(2), format!("options for files: {:?}", recordings.errors))?;
    let neither = tracer::run(&["diff", "no such file", "udp"], &[])?;
    let errors = neither.errors.join(" ");
    check(neither.status.code() == Some(2) && errors.contains("no file"), errors)?;
    ended.lines.first().cloned().context("nothing is said")
}
