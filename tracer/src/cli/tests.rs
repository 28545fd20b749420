//! Command lines and what they mean; the help as it is shown.

use super::netns::Netns;
use super::trace::{Backend, Counting, Extent, Latency, Mark, RuleName, TraceConfig};
use super::{Cli, Request, UsageError};
use crate::backend::ebpf::attach::Method;
use crate::cli::bench::BenchConfig;
use crate::cli::doctor::DoctorConfig;
use crate::cli::read::ReadConfig;
use crate::cli::rules::RulesConfig;
use crate::netfilter::Verdict;
use crate::predicate::Predicates;
use crate::sink::Output;
use crate::tally::By;
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use expect_test::{Expect, expect, expect_file};
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

fn request(line: &str) -> Result<Request, UsageError> {
    parse(line).unwrap_or_else(|error| panic!("{line}: {error}")).request()
}

#[track_caller]
fn check_trace(line: &str, expected: TraceConfig) {
    assert_eq!(request(line), Ok(Request::Trace(expected)), "{line}");
}

#[track_caller]
fn check_refused(line: &str, kind: ErrorKind) {
    let error = parse(line).expect_err(line);
    assert_eq!((error.kind(), error.exit_code()), (kind, 2), "{line}");
}

#[track_caller]
fn check_usage_error(line: &str, expected: Expect) {
    expected.assert_eq(&request(line).expect_err(line).to_string());
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn help() {
    for (name, expected) in [
        ("nftracer", expect_file!["snapshots/help.txt"]),
        ("trace", expect_file!["snapshots/trace.txt"]),
        ("why", expect_file!["snapshots/why.txt"]),
        ("read", expect_file!["snapshots/read.txt"]),
        ("rules", expect_file!["snapshots/rules.txt"]),
        ("doctor", expect_file!["snapshots/doctor.txt"]),
        ("diff", expect_file!["snapshots/diff.txt"]),
        ("bench", expect_file!["snapshots/bench.txt"]),
    ] {
        let line = if name == "nftracer" { vec![name, "--help"] } else { vec!["nftracer", name, "--help"] };
        let help = Cli::try_parse_from(line).expect_err("help is shown");
        assert_eq!((help.kind(), help.exit_code()), (ErrorKind::DisplayHelp, 0));
        expected.assert_eq(&help.to_string());
    }
}

#[test]
fn version_has_name_and_number() {
    let version = parse("nftracer --version").expect_err("the version is shown");
    assert_eq!(version.exit_code(), 0);
    assert_eq!(version.to_string(), format!("nftracer {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn filter_words_are_joined() {
    let filter = |text: &str| TraceConfig { filter: text.to_owned(), ..TraceConfig::default() };
    let five = NonZeroU64::new(5);
    check_trace("nftracer trace", filter(""));
    check_trace("nftracer trace icmp and host 1.2.3.4", filter("icmp and host 1.2.3.4"));
    check_trace("nftracer trace -c 5 -- not tcp", TraceConfig { count: five, ..filter("not tcp") });
    check_trace("nftracer trace -c5 not tcp", TraceConfig { count: five, ..filter("not tcp") });
    check_trace("nftracer trace icmp -c 5", TraceConfig { count: five, ..filter("icmp") });
    check_trace("nftracer trace -- len > -1", filter("len > -1"));
}

#[test]
fn options() {
    check_trace(
        "nftracer trace --backend ebpf --mark none --netns blue --count 1 --for 2m30s --buffer 8M -o json -w FILE -v \
         udp",
        TraceConfig {
            filter: "udp".to_owned(),
            predicates: Predicates::default(),
            cgroup: None,
            follow: false,
            conntrack: false,
            extent: Extent::Usual,
            mark: Mark::None,
            backend: Backend::Ebpf,
            attach: Method::Auto,
            log_file: None,
            netns: Netns::Name("blue".to_owned()),
            count: NonZeroU64::new(1),
            duration: Some(Duration::from_secs(150)),
            buffer: Some(8 << 20),
            sample: None,
            limit: None,
            limit_per_rule: None,
            counting: None,
            latency: Latency::default(),
            max_cost_ppm: None,
            who: false,
            explain: None,
            output: Output::Json,
            write: Some("FILE".into()),
            verbose: true,
        },
    );
    let output = |output| TraceConfig { output, ..TraceConfig::default() };
    check_trace("nftracer trace --output=trace", output(Output::Trace));
    check_trace("nftracer trace -o pretty", output(Output::Pretty));
}

#[test]
fn backends_and_marks() {
    let config = |backend, mark| TraceConfig { backend, mark, ..TraceConfig::default() };
    check_trace("nftracer trace --backend netlink --mark nft", config(Backend::Netlink, Mark::Nft));
    check_trace("nftracer trace --backend log --mark rule", config(Backend::Log, Mark::Rule));
    check_trace("nftracer trace --mark nft", config(Backend::Auto, Mark::Nft));
    let file = Some("/var/log/kern.log".into());
    check_trace(
        "nftracer trace --log-file /var/log/kern.log",
        TraceConfig { log_file: file, ..config(Backend::Log, Mark::Auto) },
    );
    let attach = Method::Session;
    check_trace(
        "nftracer trace --attach session",
        TraceConfig { attach, ..config(Backend::Ebpf, Mark::Auto) },
    );
    for other in ["--backend log", "--backend netlink", "--log-file x"] {
        check_usage_error(
            &format!("nftracer trace --attach session {other}"),
            expect!["--attach session: only --backend ebpf probes functions"],
        );
    }
    check_usage_error(
        "nftracer trace --attach kprobe --mark nft",
        expect!["--mark nft: the ebpf backend needs no mark; --backend netlink and log do"],
    );
    check_usage_error(
        "nftracer trace --backend ebpf --mark rule",
        expect!["--mark rule: the ebpf backend needs no mark; --backend netlink and log do"],
    );
    check_usage_error(
        "nftracer trace --backend netlink --log-file x",
        expect!["--log-file x: only --backend log reads a file"],
    );
}

#[test]
fn predicates() {
    let all = Predicates {
        indev: "eth0".parse().ok(),
        outdev: "eth+".parse().ok(),
        mark: "0x10/0xff".parse().ok(),
        uid: "www-data".parse().ok(),
        table: Some("filter".to_owned()),
        chain: Some("FORWARD".to_owned()),
        rule: "nat:PREROUTING:2".parse().ok(),
        verdicts: vec![Verdict::Drop, Verdict::Queue],
    };
    let words = "--in eth0 --out eth+ --uid www-data --table filter --chain FORWARD --rule nat:PREROUTING:2 --mark \
                 0x10/0xff";
    let config = |mark, predicates| TraceConfig { mark, predicates, ..TraceConfig::default() };
    check_trace(
        &format!("nftracer trace {words} --verdict drop,queue --mark nft"),
        config(Mark::Nft, all.clone()),
    );
    let number = Predicates { mark: "7".parse().ok(), ..Predicates::default() };
    check_trace("nftracer trace --backend ebpf --mark 7", {
        TraceConfig { backend: Backend::Ebpf, ..config(Mark::Auto, number) }
    });
    assert_eq!(
        request(&format!("nftracer why {words}")),
        Ok(Request::Why(TraceConfig {
            who: true,
            ..config(Mark::Auto, Predicates { verdicts: Vec::new(), ..all.clone() })
        }))
    );
    check_trace(
        "nftracer trace --follow --cgroup system.slice --in eth0 --verdict drop",
        TraceConfig {
            follow: true,
            cgroup: Some("system.slice".into()),
            backend: Backend::Ebpf,
            predicates: Predicates {
                indev: all.indev.clone(),
                verdicts: vec![Verdict::Drop],
                ..Predicates::default()
            },
            ..TraceConfig::default()
        },
    );
    let dropped = Predicates::dropped();
    check_trace(
        "nftracer trace --verdict drop --last-rule",
        TraceConfig {
            extent: Extent::LastRule,
            backend: Backend::Ebpf,
            ..config(Mark::Auto, dropped.clone())
        },
    );
    check_trace("nftracer trace --verdict drop", config(Mark::Auto, dropped.clone()));
    check_trace(
        "nftracer trace --verdict drop --whole-path",
        TraceConfig { extent: Extent::WholePath, ..config(Mark::Auto, dropped) },
    );
    let read = ReadConfig { file: Some("log".into()), predicates: all, ..ReadConfig::default() };
    assert_eq!(
        request(&format!("nftracer read {words} --verdict drop --verdict queue log")),
        Ok(Request::Read(read))
    );
}

#[test]
fn wrong_predicates_are_refused() {
    for words in [
        "--in a/b",
        "--out sixteen-bytes-16",
        "--mark 0x1g",
        "--mark 0x110/0xff",
        "--mark anything",
        "--uid a:b",
        "--rule INPUT:3",
        "--rule filter:INPUT:0",
        "--verdict reject",
        "--verdict drop,",
    ] {
        check_refused(&format!("nftracer trace {words}"), ErrorKind::ValueValidation);
    }
    check_refused("nftracer why --verdict drop", ErrorKind::UnknownArgument);
    for words in ["--last-rule", "--whole-path"] {
        check_refused(&format!("nftracer trace {words}"), ErrorKind::MissingRequiredArgument);
    }
    let both = "nftracer trace --verdict drop --last-rule --whole-path";
    check_refused(both, ErrorKind::ArgumentConflict);
    check_refused("nftracer trace --last-rule --verdict drop --in eth0", ErrorKind::ArgumentConflict);
    check_refused("nftracer trace --last-rule --verdict drop --count-by rule", ErrorKind::ArgumentConflict);
    check_refused("nftracer read --mark nft log", ErrorKind::ValueValidation);
    for (words, expected) in [
        (
            "--follow --backend netlink",
            expect![
                "--follow with --backend netlink: only the ebpf backend can do it, and that needs no mark"
            ],
        ),
        (
            "--cgroup a --log-file x",
            expect!["--cgroup with --backend log: only the ebpf backend can do it, and that needs no mark"],
        ),
        (
            "--verdict drop --last-rule --backend log",
            expect![
                "--last-rule with --backend log: only the ebpf backend can do it, and that needs no mark"
            ],
        ),
        (
            "--verdict drop,queue --last-rule",
            expect![
                "--last-rule with --verdict drop,queue: it shows what is dropped, as far as that is known: --verdict drop \
                 goes with it, and nothing else"
            ],
        ),
        (
            "--follow --mark nft",
            expect!["--follow with --mark: only the ebpf backend can do it, and that needs no mark"],
        ),
        (
            "--follow --out eth0 --in eth1",
            expect![
                "--follow with --out eth0: that is known too late to follow a connection; --in, --uid, --cgroup and \
                 --verdict can be asked with it"
            ],
        ),
    ] {
        check_usage_error(&format!("nftracer trace {words}"), expected);
    }
    check_usage_error(
        "nftracer trace --mark 1 --mark 2",
        expect!["--mark 0x2: given twice; once for a way of marking and once for a number is all"],
    );
}

#[test]
fn sizes() {
    for (text, expected) in [
        ("4096", 4096),
        ("5000", 8192),
        ("64k", 1 << 16),
        ("3M", 4 << 20),
        ("512M", 1 << 29),
        ("1G", 1 << 30),
    ] {
        check_trace(
            &format!("nftracer trace --buffer {text}"),
            TraceConfig { buffer: Some(expected), ..TraceConfig::default() },
        );
    }
    for text in ["", "K", "0", "1K", "2G", "4097G", "-4M", "1.5M", "4MB", "4µ"] {
        check_refused(&format!("nftracer trace --buffer={text}"), ErrorKind::ValueValidation);
    }
}

#[test]
fn parts() {
    let config = |sample, limit| TraceConfig {
        sample: NonZeroU32::new(sample),
        limit: NonZeroU32::new(limit),
        ..TraceConfig::default()
    };
    check_trace("nftracer trace --sample 1/100", config(100, 0));
    check_trace("nftracer trace --sample 1/1 --limit 5/s", config(1, 5));
    check_trace("nftracer trace --limit 4294967295", config(0, u32::MAX));
    let per_rule = |limit| TraceConfig { limit_per_rule: NonZeroU32::new(3), ..config(0, limit) };
    check_trace("nftracer trace --limit 3/s/rule", per_rule(0));
    check_trace("nftracer trace --limit 3/s/rule --limit 50", per_rule(50));
    for option in ["sample=100", "sample=1/0", "sample=2/3", "sample=1/", "limit=0", "limit=5/m", "limit=-1"]
    {
        check_refused(&format!("nftracer trace --{option}"), ErrorKind::ValueValidation);
    }
    for value in ["0/s/rule", "3/rule", "3/s/", "3/s/chain", "/s/rule"] {
        check_refused(&format!("nftracer trace --limit={value}"), ErrorKind::ValueValidation);
    }
    check_refused("nftracer read --limit 3/s", ErrorKind::ValueValidation);
    check_usage_error(
        "nftracer trace --limit 3 --limit 5/s/rule --limit 4/s",
        expect!["--limit 4/s: given twice; once for all packets and once for each rule is all"],
    );
}

#[test]
fn latency() {
    let config = |latency| TraceConfig { backend: Backend::Ebpf, latency, ..TraceConfig::default() };
    let nothing = Latency::default();
    check_trace("nftracer trace --latency", config(Latency { shown: true, ..nothing }));
    check_trace(
        "nftracer trace --summary -o json",
        TraceConfig { output: Output::Json, ..config(Latency { summary: true, ..nothing }) },
    );
    let slow = Some(Duration::from_micros(50));
    check_trace("nftracer trace --slow 50us", config(Latency { slow, ..nothing }));
    check_usage_error(
        "nftracer trace --latency --backend log",
        expect!["--backend log: only ebpf knows how long packets take"],
    );
    check_usage_error(
        "nftracer trace --slow 1ms -o trace",
        expect!["--output trace: lines of TRACE do not say how long packets take"],
    );
    check_refused("nftracer trace --summary --count-by rule", ErrorKind::ArgumentConflict);
    check_trace("nftracer trace --who", TraceConfig { who: true, ..config(nothing) });
    for (share, ppm) in [("1%", 10_000), ("0.25", 2_500), ("100%", 1_000_000)] {
        let expected = TraceConfig { max_cost_ppm: NonZeroU32::new(ppm), ..config(nothing) };
        check_trace(&format!("nftracer trace --max-cost {share}"), expected);
    }
    for share in ["0", "101%", "-1%", "nan", "much"] {
        check_refused(&format!("nftracer trace --max-cost={share}"), ErrorKind::ValueValidation);
    }
    check_usage_error(
        "nftracer trace --max-cost 1% --backend log",
        expect!["--backend log: only of ebpf it is known what it costs"],
    );
    check_usage_error(
        "nftracer trace --who --backend netlink",
        expect!["--backend netlink: only ebpf knows who sends packets"],
    );
}

#[test]
fn counts() {
    let counting = |by, interval_ms, top| TraceConfig {
        counting: Some(Counting { by, interval: Duration::from_millis(interval_ms), top }),
        ..TraceConfig::default()
    };
    check_trace("nftracer trace --count-by rule", counting(By::Rule, 1000, 20));
    check_trace("nftracer trace --count-by flow --interval 500ms --top 3", counting(By::Flow, 500, 3));
    check_trace("nftracer trace --count-by owner --interval 0", counting(By::Owner, 10, 20));
    for others in ["--sample 1/2", "--limit 3", "-c 3", "-w x", "--explain a:b:1"] {
        check_refused(&format!("nftracer trace --count-by src {others}"), ErrorKind::ArgumentConflict);
    }
    check_usage_error(
        "nftracer trace --count-by rule -o trace",
        expect!["--count-by rule: counts are no lines of TRACE; use -o pretty or json"],
    );
    check_usage_error(
        "nftracer trace --count-by verdict --backend netlink",
        expect!["--count-by verdict: only --backend ebpf counts in the kernel"],
    );
}

#[test]
fn explain() {
    let rule = |table: &str, chain: &str, number| {
        let (table, chain) = (table.to_owned(), chain.to_owned());
        TraceConfig { explain: Some(RuleName { table, chain, number }), ..TraceConfig::default() }
    };
    check_trace("nftracer trace --explain filter:FORWARD:3", rule("filter", "FORWARD", 3));
    check_trace("nftracer trace --explain filter:FORWARD:rule:3", rule("filter", "FORWARD", 3));
    check_trace("nftracer trace --explain fw:a:b:12", rule("fw", "a:b", 12));
    for name in
        ["filter", "filter:FORWARD", "filter:FORWARD:x", "filter:FORWARD:0", ":FORWARD:1", "filter::1"]
    {
        check_refused(&format!("nftracer trace --explain {name}"), ErrorKind::ValueValidation);
    }
    check_usage_error(
        "nftracer trace --explain filter:FORWARD:3 -o trace",
        expect![[
            "--explain filter:FORWARD:rule:3: it needs one namespace, and an output that has room for it: pretty or json"
        ]],
    );
}

#[test]
fn why() {
    let config = TraceConfig {
        filter: "tcp port 80".to_owned(),
        backend: Backend::Netlink,
        netns: Netns::Name("blue".to_owned()),
        duration: Some(Duration::from_secs(5)),
        output: Output::Json,
        who: true,
        ..TraceConfig::default()
    };
    let line = "nftracer why --backend netlink --netns blue --for 5s -o json tcp port 80";
    assert_eq!(request(line), Ok(Request::Why(config)));
    check_refused("nftracer why -o trace", ErrorKind::InvalidValue);
    check_refused("nftracer why -c 5", ErrorKind::UnknownArgument);
    check_usage_error(
        "nftracer why --backend ebpf --mark rule",
        expect!["--mark rule: the ebpf backend needs no mark; --backend netlink and log do"],
    );
}

#[test]
fn durations() {
    for (text, expected) in
        [("30s", 30_000), ("500ms", 500), ("2m30s", 150_000), ("7", 7_000), ("1.5", 1_500), ("1h", 3_600_000)]
    {
        let duration = Some(Duration::from_millis(expected));
        check_trace(
            &format!("nftracer trace --for {text}"),
            TraceConfig { duration, ..TraceConfig::default() },
        );
    }
    for text in ["soon", "=-1", "5parsecs", "nan", "1e400"] {
        check_refused(
            &format!("nftracer trace --for={}", text.trim_start_matches('=')),
            ErrorKind::ValueValidation,
        );
    }
}

#[test]
fn namespaces() {
    let netns = |netns| TraceConfig { netns, ..TraceConfig::default() };
    check_trace("nftracer trace --netns 42", netns(Netns::Pid(42)));
    check_trace("nftracer trace --netns /proc/1/ns/net", netns(Netns::Path("/proc/1/ns/net".into())));
    check_trace("nftracer trace --netns 4red", netns(Netns::Name("4red".to_owned())));
    check_trace("nftracer trace --all-netns", netns(Netns::All));
    check_refused("nftracer trace --all-netns --netns blue", ErrorKind::ArgumentConflict);
    check_usage_error("nftracer trace --netns 0", expect!["--netns 0: no such process"]);
    check_usage_error(
        "nftracer trace --netns ..",
        expect!["--netns ..: neither a name nor a process nor a path"],
    );
    assert_eq!(Netns::Name("blue".to_owned()).path(), Some("/run/netns/blue".into()));
}

#[test]
fn other_commands() {
    let rules = |table: Option<&str>, netns| RulesConfig { table: table.map(str::to_owned), netns };
    assert_eq!(request("nftracer rules"), Ok(Request::Rules(RulesConfig::default())));
    assert_eq!(
        request("nftracer rules --table nat --netns 7"),
        Ok(Request::Rules(rules(Some("nat"), Netns::Pid(7))))
    );
    assert_eq!(request("nftracer doctor"), Ok(Request::Doctor(DoctorConfig::List)));
    assert_eq!(request("nftracer doctor --json"), Ok(Request::Doctor(DoctorConfig::Json)));
    assert_eq!(request("nftracer doctor --clean"), Ok(Request::Doctor(DoctorConfig::Clean)));
}

#[test]
fn measuring() {
    let usual = BenchConfig {
        duration: Duration::from_secs(40),
        rounds: 15,
        rows: Vec::new(),
        fill_log: true,
        json: false,
    };
    assert_eq!(request("nftracer bench"), Ok(Request::Bench(usual)));
    let rows = ["log", "netlink"].map(str::to_owned).to_vec();
    assert_eq!(
        request("nftracer bench --for 1m --rounds 2 --row log --row netlink --no-kernel-log -o json"),
        Ok(Request::Bench(BenchConfig {
            duration: Duration::from_secs(60),
            rounds: 2,
            rows,
            fill_log: false,
            json: true,
        }))
    );
    check_usage_error("nftracer bench --rounds 0", expect!["--rounds 0: at least one round"]);
    check_usage_error("nftracer bench --for 2h", expect!["--for 7200s: an hour at most"]);
}

#[test]
fn reading() {
    let read = |file: Option<&str>, filter: &str| ReadConfig {
        file: file.map(Into::into),
        filter: filter.to_owned(),
        ..ReadConfig::default()
    };
    for (line, expected) in [
        ("nftracer read", read(None, "")),
        ("nftracer read -", read(None, "")),
        ("nftracer read a.log", read(Some("a.log"), "")),
        ("nftracer read - tcp port 22", read(None, "tcp port 22")),
        (
            "nftracer read -v a.log -o json --limit 10/s/rule",
            ReadConfig {
                output: Output::Json,
                verbose: true,
                limit_per_rule: NonZeroU32::new(10),
                ..read(Some("a.log"), "")
            },
        ),
    ] {
        assert_eq!(request(line), Ok(Request::Read(expected)), "{line}");
    }
}

#[test]
fn wrong_usage() {
    check_refused("nftracer", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand);
    check_refused("nftracer jump", ErrorKind::InvalidSubcommand);
    check_refused("nftracer trace -n", ErrorKind::UnknownArgument);
    check_refused("nftracer trace -c many", ErrorKind::ValueValidation);
    check_refused("nftracer trace -o xml", ErrorKind::InvalidValue);
    check_usage_error(
        "nftracer trace -c 0",
        expect!["--count 0: at least one packet; leave it out to trace without end"],
    );
}
