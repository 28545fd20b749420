//! The tests that run inside a guest kernel, as root.

mod agree;
mod bad_input;
mod bench;
mod classic;
mod counts;
mod doctor;
mod endings;
mod filters;
mod flows;
mod follow;
mod footprint;
#[path = "../old_kernel/kernel.rs"]
mod kernel;
mod kprobe_session;
mod last_rule;
mod latency;
mod lines;
mod nft_footprint;
mod nft_oracle;
mod old_tools;
mod oracle;
mod predicates;
mod session;
mod usage;
mod who;
mod why;

use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use nftracer_tests::{check, netns};

/// Runs functional tests; one line of result for each.
#[derive(Clone, Debug, Parser)]
pub(crate) struct Options {
    /// Names of tests, or the beginnings of names; `all`; `kernel`, those that have to hold on each; `list`
    #[arg(required = true)]
    tests: Vec<String>,
    /// Of these only one part of so many, as in 1/2; each takes turns with the others
    #[arg(long, value_parser = part)]
    part: Option<(usize, usize)>,
    /// Goes on after this test
    #[arg(long)]
    after: Option<String>,
    /// How many rulesets to make up
    #[arg(long, default_value_t = 200)]
    rulesets: usize,
    /// How many packets a test sends at least
    #[arg(long, default_value_t = 8_000)]
    packets: usize,
    /// Where randomness begins
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long tests under load go on
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// How many of the faults to put to `why`, spread evenly, beside those that are no rule's; the native tests take them all
    #[arg(long, default_value_t = 4)]
    faults: usize,
    /// How long to make a faulty ruleset smaller
    #[arg(long, default_value_t = 60)]
    shrink_seconds: u64,
    /// Prints every ruleset and what each comparison found
    #[arg(long)]
    verbose: bool,
}

/// Reads `1/2`.
fn part(text: &str) -> Result<(usize, usize), String> {
    let numbers =
        text.split_once('/').and_then(|(part, parts)| Some((part.parse().ok()?, parts.parse().ok()?)));
    numbers
        .filter(|(part, parts)| (1..=*parts).contains(part))
        .ok_or_else(|| "a part is written as 1/2, the first of two".to_owned())
}

/// How a test ended that did not fail.
pub(crate) enum Outcome {
    /// Well, with these figures.
    Passed(String),
    /// Not at all, for this reason.
    Skipped(String),
}

pub(crate) struct Test {
    name: &'static str,
    run: fn(&Options) -> Result<Outcome>,
}

/// The first need a guest that has loaded no module yet.
const TESTS: &[&[Test]] = &[
    bad_input::FIRST,
    doctor::FIRST,
    classic::FIRST,
    agree::TESTS,
    doctor::TESTS,
    classic::TESTS,
    oracle::TESTS,
    nft_oracle::TESTS,
    nft_footprint::TESTS,
    lines::TESTS,
    footprint::TESTS,
    filters::TESTS,
    predicates::TESTS,
    follow::TESTS,
    usage::TESTS,
    counts::TESTS,
    endings::TESTS,
    last_rule::TESTS,
    latency::TESTS,
    who::TESTS,
    why::TESTS,
    bad_input::TESTS,
    bench::TESTS,
];

/// Those that have to hold on each kernel.
const OF_THE_KERNEL: &[&str] = &[
    "endings",
    "follow_cluster",
    "follow_cluster_nft",
    "lines_byte_exact_ipv4",
    "lines_byte_exact_ipv6",
    "missing_modules",
    "nft_oracle_arp",
    "nft_oracle_bridge",
    "nft_oracle_devices",
    "nft_oracle_edited",
    "nft_oracle_generated",
    "nft_oracle_handwritten",
    "nft_oracle_iptables",
    "nft_oracle_nat",
    "nft_oracle_netlink",
    "nft_oracle_netlink_devices",
    "nft_oracle_statements",
    "nft_reloaded",
    "no_privileges",
    "oracle_edited",
    "oracle_generated",
    "oracle_handwritten_ipv4",
    "oracle_handwritten_ipv6",
    "oracle_loaded",
    "senders_are_told",
];

/// Those that are run by their names alone, because they take long.
const LONG: &[&[Test]] = &[flows::TESTS];

fn main() -> ExitCode {
    // A child of one of the tests: sends a datagram as whoever it is.
    if let [_, word, to] = &std::env::args().collect::<Vec<_>>()[..]
        && word == "send-datagram"
    {
        return lines::send_datagram(to);
    }
    if let [_, word, program, arguments @ ..] = &std::env::args().collect::<Vec<_>>()[..]
        && word == classic::ON_CENTOS_7
    {
        return classic::on_centos_7(program, arguments);
    }
    let options = Options::parse();
    let tests = || TESTS.iter().flat_map(|tests| tests.iter());
    let long = || LONG.iter().flat_map(|tests| tests.iter());
    if options.tests.iter().any(|name| name == "list") {
        tests().chain(long()).for_each(|test| println!("{}", test.name));
        return ExitCode::SUCCESS;
    }
    let asks_for = |group: &str| options.tests.iter().any(|name| name == group);
    let (all, kernel) = (asks_for("all"), asks_for("kernel"));
    let of_kernel = |test: &&Test| OF_THE_KERNEL.contains(&test.name);
    let named = |test: &&Test| options.tests.iter().any(|name| test.name.starts_with(&**name));
    let mut tests: Vec<&Test> = tests()
        .filter(|test| all || (kernel && of_kernel(test)) || named(test))
        .chain(long().filter(named))
        .collect();
    if let Some((part, parts)) = options.part {
        tests = tests.into_iter().skip(part - 1).step_by(parts).collect();
    }
    if let Some(last) = &options.after
        && let Some(at) = tests.iter().position(|test| test.name == last)
    {
        tests.drain(..=at);
    }
    if tests.is_empty() && options.after.is_none() {
        eprintln!("there is no such test");
        return ExitCode::from(2);
    }
    let failed = tests.iter().filter(|test| !passes(test, &options)).count();
    println!("{} tests, {failed} failed", tests.len());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn passes(test: &Test, options: &Options) -> bool {
    let started = Instant::now();
    let result = panic::catch_unwind(AssertUnwindSafe(|| (test.run)(options)));
    let seconds = started.elapsed().as_secs_f32();
    match result {
        Ok(Ok(Outcome::Passed(figures))) => {
            println!("{}: {figures} ({seconds:.1} s)", test.name);
            println!("test {} ... ok", test.name);
            true
        }
        Ok(Ok(Outcome::Skipped(reason))) => {
            println!("test {} ... skipped ({reason})", test.name);
            true
        }
        Ok(Err(error)) => {
            println!("{}: {error:#} ({seconds:.1} s)", test.name);
            println!("test {} ... FAILED", test.name);
            false
        }
        Err(_) => {
            println!("test {} ... FAILED", test.name);
            false
        }
    }
}

/// Loads what the tests need: a distribution's kernel has it as modules.
pub(crate) fn load_modules() {
    const MODULES: &[&str] = &[
        "veth",
        "nfnetlink_log",
        "nf_log_syslog",
        "nf_log_ipv4",
        "nf_log_ipv6",
        "xt_TRACE",
        "xt_LOG",
        "iptable_raw",
        "iptable_mangle",
        "iptable_nat",
        "iptable_filter",
        "iptable_security",
        "ip6table_raw",
        "ip6table_mangle",
        "ip6table_nat",
        "ip6table_filter",
        "ip6table_security",
        "nf_conntrack",
        "ip_set",
        // What `nft list ruleset` would load.
        "nf_tables",
        "crc32c_generic",
    ];
    // Older kernels have other names for some, newer ones have some built in: the rest are loaded all the same. One process
    // for all of them, because starting one takes an emulated machine longer than what it does.
    let _ = netns::run("modprobe", &[&["-a", "-q"], MODULES].concat(), "");
}
