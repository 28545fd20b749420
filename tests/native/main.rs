//! The tests that run on this machine's own kernel, as root, in network namespaces of their own: those ways of tracing
//! that need no probes.

mod bench;
mod crash;
mod diff;
mod everywhere;
mod flood;
mod marks;
mod nft_changes;
mod nft_corpus;
mod nft_oracle;
mod paths;
mod predicates;
mod refused;
mod several;
mod why;
mod wireshark;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use nftracer_tests::netns::Netns;
use nftracer_tests::{check, doctor};

/// Runs functional tests; one line of result for each.
#[derive(Debug, Parser)]
struct Options {
    /// Names of tests, or the beginnings of names; `all`
    #[arg(required = true)]
    tests: Vec<String>,
}

struct Test {
    name: &'static str,
    run: fn() -> Result<String>,
}

const TESTS: &[&[Test]] = &[
    refused::TESTS,
    paths::TESTS,
    predicates::TESTS,
    nft_oracle::TESTS,
    nft_changes::TESTS,
    nft_corpus::TESTS,
    several::TESTS,
    why::TESTS,
    wireshark::TESTS,
    diff::TESTS,
    DOCTOR,
    everywhere::TESTS,
    marks::TESTS,
    flood::TESTS,
    crash::TESTS,
    bench::TESTS,
];

const DOCTOR: &[Test] =
    &[Test { name: "doctor_is_right", run: || doctor::holds(Some(&netns("h")?), |_| true) }];

fn main() -> ExitCode {
    let options = Options::parse();
    let wanted =
        |test: &&Test| options.tests.iter().any(|name| name == "all" || test.name.starts_with(name.as_str()));
    let tests: Vec<&Test> = TESTS.iter().flat_map(|tests| tests.iter()).filter(wanted).collect();
    if tests.is_empty() {
        eprintln!("there is no such test");
        return ExitCode::from(2);
    }
    let failed = tests.iter().filter(|test| !passes(test)).count();
    println!("{} tests, {failed} failed", tests.len());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn passes(test: &Test) -> bool {
    let started = Instant::now();
    let result = (test.run)();
    let seconds = started.elapsed().as_secs_f32();
    let (said, end) = match &result {
        Ok(figures) => (figures.clone(), "ok"),
        Err(error) => (format!("{error:#}"), "FAILED"),
    };
    println!("{}: {said} ({seconds:.1} s)\ntest {} ... {end}", test.name, test.name);
    result.is_ok()
}

/// A namespace that no other run of these tests has.
fn netns(name: &str) -> Result<Netns> {
    Netns::create(&format!("nftn{}{name}", std::process::id()))
}
