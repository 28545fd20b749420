//! What cannot be done is said, with the reason and the remedy, and changes nothing.

use std::env;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use nftracer_tests::nflog;
use nftracer_tests::tracer::{self, Ended, Tracer};

use crate::crash::state;
use crate::{Test, check};

pub(crate) const TESTS: &[Test] = &[
    Test { name: "bad_input", run: bad_input },
    Test { name: "group_is_taken", run: group_is_taken },
    Test { name: "no_privileges", run: no_privileges },
];

const ENDS_WITHIN: Duration = Duration::from_secs(20);

fn bad_input() -> Result<String> {
    let netns = crate::netns("b")?;
    let name = netns.name();
    let cases: &[(&[&str], i32, &str)] = &[
        (&["--backend", "netlink", "--netns", "nosuchspace"], 1, "nosuchspace"),
        (&["--backend", "log", "--netns", "/etc/hostname"], 1, "/etc/hostname"),
        (&["--backend", "log", "--log-file", "/no/such/log", "--netns", name], 3, "/no/such/log"),
        (&["--backend", "log", "--log-file", "/", "--netns", name, "--for", "1s"], 1, "cannot read /"),
        (&["--backend", "netlink", "--all-netns"], 3, "--netns"),
        (&["--backend", "ebpf", "--mark", "nft"], 2, "--mark"),
        (&["--backend", "netlink", "--log-file", "x"], 2, "--log-file"),
        (&["--backend", "netlink", "--netns", name, "tcp", "and"], 2, "expect"),
    ];
    let before = state(&netns)?;
    for (arguments, status, word) in cases {
        let arguments: Vec<&str> = std::iter::once("trace").chain(arguments.iter().copied()).collect();
        let ended = tracer::run(&arguments, &[])?;
        expect(&ended, *status, word)?;
        check(state(&netns)? == before, format!("{arguments:?} left something"))?;
    }
    Ok(format!("{} wrong wishes", cases.len()))
}

/// Group 0 belongs to somebody else.
fn group_is_taken() -> Result<String> {
    let netns = crate::netns("g")?;
    let listener = nflog::listen(&netns)?;
    let before = state(&netns)?;
    let ended = tracer::run(&["trace", "--backend", "netlink", "--netns", netns.name()], &[])?;
    expect(&ended, 3, "group 0")?;
    expect(&ended, 3, &format!("process {} ", std::process::id()))?;
    check(state(&netns)? == before, "it left something")?;
    drop(listener);
    Ok(ended.errors.join(" / "))
}

fn no_privileges() -> Result<String> {
    // Somewhere anybody may start it.
    let program = env::temp_dir().join(format!("nftracer-native-{}", std::process::id()));
    fs::copy(tracer::program(), &program)?;
    let run = |backend: &str| -> Result<Ended> {
        let mut command = Command::new(&program);
        command.args(["trace", "--backend", backend, "--for", "100ms"]).uid(65534).gid(65534);
        Tracer::spawn_command(command)?.finish(ENDS_WITHIN)
    };
    let ended = ["netlink", "log", "auto"].map(run);
    fs::remove_file(&program)?;
    let mut said = Vec::new();
    for ended in ended {
        let ended = ended?;
        expect(&ended, 3, "root")?;
        said.extend(ended.errors);
    }
    Ok(said.join(" / "))
}

fn expect(ended: &Ended, status: i32, word: &str) -> Result<()> {
    let said = ended.errors.join("\n");
    check(ended.status.code() == Some(status), format!("{}, expected {status}: {said}", ended.status))?;
    check(!said.contains("panicked"), format!("panicked: {said}"))?;
    check(said.contains(word), format!("does not name {word}: {said}"))
}
