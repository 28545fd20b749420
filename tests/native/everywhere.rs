//! All namespaces at once, from the kernel's log.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use nftracer_tests::netns::Netns;
use nftracer_tests::tracer::{self, Tracer};

use crate::{Test, check};

pub(crate) const TESTS: &[Test] = &[Test { name: "all_namespaces", run: all_namespaces }];

const ENDS_WITHIN: Duration = Duration::from_secs(20);
const PORTS: [u16; 2] = [4001, 4002];

/// Runs a command where nothing is to be seen of other processes and names than its own, so that all namespaces are two
/// and the one that the command is in.
const ALONE: &str = r#"
nsenter --net="/run/netns/$1" sleep 60 &
nsenter --net="/run/netns/$2" sleep 60 &
until [ "$(readlink /proc/[0-9]*/ns/net | sort -u | wc -l)" -ge 3 ]; do :; done
mount -t tmpfs none /run
shift 2
exec "$@"
"#;

fn all_namespaces() -> Result<String> {
    let both = [crate::netns("x")?, crate::netns("y")?];
    for netns in &both {
        netns.command("iptables-legacy", &["-t", "raw", "-A", "OUTPUT", "-p", "udp", "-j", "TRACE"], "")?;
    }
    let mut command = Command::new("unshare");
    command.args(["--fork", "--kill-child", "--pid", "--mount", "--mount-proc", "sh", "-c", ALONE, "sh"]);
    command.args(both.iter().map(Netns::name)).arg(tracer::program());
    command.args([
        "trace",
        "--backend",
        "log",
        "--mark",
        "none",
        "--all-netns",
        "-o",
        "json",
        "-c",
        "2",
        "udp",
    ]);
    let mut tracer = Tracer::spawn_command(command)?;
    tracer.ready()?;
    for (netns, port) in both.iter().zip(PORTS) {
        netns.enter(|| Ok(UdpSocket::bind("127.0.0.1:0")?.send_to(b"here", ("127.0.0.1", port))?))?;
    }
    let ended = tracer.finish(ENDS_WITHIN)?;
    let said = ended.errors.join("\n");
    check(ended.status.code() == Some(0), format!("{}: {said}", ended.status))?;
    check(said.contains("nf_log_all_netns"), format!("not said: {said}"))?;
    for port in PORTS {
        let of_port = ended.trace.steps.iter().any(|step| step.identity.ports[1] == port);
        check(of_port, format!("nothing of port {port}: {said}"))?;
    }
    Ok(said)
}
