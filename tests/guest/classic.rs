//! The ways of tracing that need no probes: what they leave behind on this kernel, and that they do with what CentOS 7
//! has.

use std::net::UdpSocket;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result};
use nftracer_tests::lab::{Lab, Spread};
use nftracer_tests::netns::{self, Netns};
use nftracer_tests::paths::{self, Way};
use nftracer_tests::state::{State, is_quiet};
use nftracer_tests::tracer::{self, Totals, Tracer};
use nftracer_tests::traffic::{Senders, Server};
use nftracer_tests::wait;
use rustix::process::Signal;

use crate::footprint::End;
use crate::kernel::Kernel;
use crate::old_tools::OldTools;
use crate::{Options, Outcome, Test, check};

/// In a guest that has loaded no logger yet, so that modules come and go.
pub(crate) const FIRST: &[Test] = &[Test { name: "marks_leave_no_trace", run: marks_leave_no_trace }];

pub(crate) const TESTS: &[Test] = &[Test { name: "as_on_centos_7", run: as_on_centos_7 }];

/// The guard undoes what a killed run changed within a second, where a machine is not emulated.
const GONE_WITHIN: Duration = Duration::from_secs(20);

/// Runs with each mark end in every way or, as starting one takes its time, in some; every way of tracing is killed.
fn runs() -> Vec<(Way, End)> {
    let mut runs = Vec::new();
    for (mark, step) in [("nft", 1), ("rule", 2)] {
        for (number, end) in End::ALL.into_iter().step_by(step).enumerate() {
            let backend = if number % 2 == 0 { "netlink" } else { "log" };
            runs.push(((backend, mark), end));
        }
    }
    for way in [("log", "nft"), ("netlink", "rule"), ("netlink", "none"), ("log", "none")] {
        runs.push((way, End::Signal(Signal::KILL)));
    }
    runs
}

fn marks_leave_no_trace(_: &Options) -> Result<Outcome> {
    // What a host with rules of its own has loaded; what nf_tables would ask for besides is there on most.
    for module in ["nf_conntrack", "crc32c_generic"] {
        let _ = netns::run("modprobe", &["-q", module], "");
    }
    let netns = Netns::create("nftmarks")?;
    netns.clear_rules()?;
    for (table, chain, rule) in [("raw", "OUTPUT", "CT"), ("filter", "INPUT", "DROP")] {
        let rule = ["-t", table, "-A", chain, "-p", "udp", "--dport", "9", "-j", rule];
        let no_track: &[&str] = if table == "raw" { &["--notrack"] } else { &[] };
        for tool in ["iptables-legacy", "ip6tables-legacy"] {
            netns.command(tool, &[&rule, no_track].concat(), "")?;
        }
    }
    let socket = netns.enter(|| Ok(UdpSocket::bind("127.0.0.1:0")?))?;
    let mut fire = || (0..5).for_each(|_| drop(socket.send_to(b"packet", "127.0.0.1:4000")));
    let before = State::of(&netns)?;
    let runs = runs();
    for ((backend, mark), end) in &runs {
        let mut run = || -> Result<()> {
            let way = ["--backend", backend, "--mark", mark];
            let changed = end.run(&netns, &way, &before, &mut fire)?;
            check(changed.is_none_or(|changed| !changed.is_empty()), "nothing was changed")?;
            // To look at the tables of nftables keeps its module busy.
            wait::until(GONE_WITHIN, || is_quiet().then_some(())).context("a guard goes on")?;
            let mut differences = Vec::new();
            wait::until(GONE_WITHIN, || {
                differences = before.differences(&State::of(&netns).ok()?);
                differences.is_empty().then_some(())
            });
            check(differences.is_empty(), format!("left:\n{}", differences.join("\n")))
        };
        run().with_context(|| format!("{backend}, mark {mark}, {end:?}"))?;
    }
    Ok(Outcome::Passed(format!("{} runs", runs.len())))
}

/// The word with which this program runs another one on the kernel of CentOS 7, so to speak.
pub(crate) const ON_CENTOS_7: &str = "on-centos-7";

/// Runs a program on a kernel that says that it is that of CentOS 7, and has no newer system call. This process has
/// threads, whose libc knows the real one.
pub(crate) fn on_centos_7(program: &str, arguments: &[String]) -> ExitCode {
    let ran = Kernel::CENTOS_7.run(|| Command::new(program).args(arguments).status());
    let code = |code: i32| u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from);
    match ran {
        Ok((Ok(_), unknown)) if unknown.contains(&(libc::SYS_bpf as i32)) => {
            eprintln!("bpf(2) is for the ebpf backend alone");
            ExitCode::FAILURE
        }
        Ok((Ok(status), _)) => status.code().map_or(ExitCode::FAILURE, code),
        Ok((Err(error), _)) | Err(error) => {
            eprintln!("{program}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// With the tools of CentOS 7, on a kernel that says that it is its, and has no newer system call.
fn as_on_centos_7(_: &Options) -> Result<Outcome> {
    crate::load_modules();
    let lab = Lab::build("nft7", Spread::SameCpu)?;
    let _servers = Server::everywhere(&lab)?;
    let senders = Senders::open(&lab)?;
    paths::load(&lab)?;
    let mut sport = 20_000;
    let mut total = Totals::default();
    // Each backend and each mark once: what stands in for an old kernel is slow.
    for (backend, mark) in [("netlink", "nft"), ("log", "rule")] {
        let _old = OldTools::install()?;
        let start = |arguments: &[&str]| {
            let mut command = Command::new("/proc/self/exe");
            command.args([ON_CENTOS_7, &tracer::program(), "trace"]).args(arguments);
            Tracer::start_command(command)
        };
        let totals = paths::trace(&lab, &senders, (backend, mark), &mut sport, &start)
            .with_context(|| format!("{backend}, mark {mark}"))?;
        total.packets += totals.packets;
        total.steps += totals.steps;
    }
    Ok(Outcome::Passed(format!("{} packets, {} steps", total.packets, total.steps)))
}
