//! What is measured: THE table.

use std::path::Path;

use anyhow::{Result, ensure};
use aya::Ebpf;

use crate::consumer::{self, Consumer};
use crate::probes;
use crate::rules::{self, Undo};

/// A ruleset, and the rows that have it in common.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum World {
    /// The legacy tables with seven rules
    Seven,
    /// The legacy tables with 20 000 rules
    Many,
    /// The seven rules in nftables
    Nft,
}

impl World {
    pub(crate) fn load(self) -> Result<()> {
        match self {
            Self::Seven => rules::legacy(),
            Self::Many => rules::legacy_with(20_000),
            Self::Nft => rules::nft(),
        }
    }

    /// The row that the others of this ruleset compare with.
    pub(crate) fn base(self) -> &'static str {
        match self {
            Self::Seven => "baseline",
            Self::Many => "many-baseline",
            Self::Nft => "nft-baseline",
        }
    }

    /// A batch.
    pub(crate) fn packets(self) -> u32 {
        match self {
            Self::Seven | Self::Nft => 2000,
            Self::Many => 400,
        }
    }
}

/// What the rows need from outside.
pub(crate) struct Means<'a> {
    pub(crate) probes: &'a Path,
}

/// Something that traces as long as it is there.
pub(crate) enum Tracer {
    /// Nobody reads.
    Silent(Kept),
    /// A process reads.
    Read(Consumer, Option<Undo>),
    /// A process would read but is stopped meanwhile.
    Stopped(Consumer),
}

/// What a silent tracer consists of.
#[expect(dead_code, reason = "kept only to be dropped")]
pub(crate) enum Kept {
    Nothing,
    Rules(Undo),
    Probes(Box<Ebpf>),
}

/// One line of the table.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) world: World,
    pub(crate) start: fn(&Means<'_>) -> Result<Tracer>,
}

/// No two of them can be asked at once, and all have to be.
const TEN_TERMS: &str = "src host 192.0.2.1 or dst net 198.51.100.0/24 or udp port 9 or tcp port 80 or udp portrange 6000-6100 \
                         or icmp or ip proto 47 or ip[8] < 3 or len > 4000 or udp[8:4] = 0x12345678";

const ROWS: &[Row] = &[
    Row { name: "baseline", title: "baseline", world: World::Seven, start: |_| nothing() },
    Row {
        name: "empty-pair",
        title: "empty kprobe + kretprobe on `ipt_do_table` (the floor)",
        world: World::Seven,
        start: |means| {
            Ok(Tracer::Silent(Kept::Probes(Box::new(probes::empty_pair(means.probes, "ipt_do_table")?))))
        },
    },
    Row {
        name: "no-match",
        title: "nftracer, filter does not match",
        world: World::Seven,
        start: |_| nftracer("trace", &["udp port 9"]),
    },
    Row {
        name: "no-match-ten",
        title: "nftracer, filter of ten terms does not match",
        world: World::Seven,
        start: |_| nftracer("trace", &[TEN_TERMS]),
    },
    Row {
        name: "match-stopped",
        title: "nftracer, filter matches, the probes alone",
        world: World::Seven,
        start: |_| stopped(&["udp"]),
    },
    Row {
        name: "match-trace",
        title: "nftracer, filter matches, `-o trace`",
        world: World::Seven,
        start: |_| nftracer("trace", &["udp"]),
    },
    Row {
        name: "count-rule",
        title: "nftracer, filter matches, `--count-by rule`",
        world: World::Seven,
        start: |_| nftracer("json", &["--count-by", "rule", "udp"]),
    },
    Row {
        name: "count-verdict",
        title: "nftracer, filter matches, `--count-by verdict`",
        world: World::Seven,
        start: |_| nftracer("json", &["--count-by", "verdict", "udp"]),
    },
    Row {
        name: "count-flow",
        title: "nftracer, filter matches, `--count-by flow`",
        world: World::Seven,
        start: |_| nftracer("json", &["--count-by", "flow", "udp"]),
    },
    Row {
        name: "accepted",
        title: "nftracer, filter matches, `--verdict drop --whole-path`, accepted",
        world: World::Seven,
        start: |_| nftracer("trace", &["--verdict", "drop", "--whole-path", "udp"]),
    },
    Row {
        name: "accepted-last-rule",
        title: "nftracer, filter matches, `--verdict drop`, accepted",
        world: World::Seven,
        start: |_| nftracer("trace", &["--verdict", "drop", "udp"]),
    },
    Row {
        name: "match-json",
        title: "nftracer, filter matches, `-o json`",
        world: World::Seven,
        start: |_| nftracer("json", &["udp"]),
    },
    Row {
        name: "no-match-session",
        title: "the same with kprobe.session: filter does not match",
        world: World::Seven,
        start: |_| nftracer("trace", &["--attach", "session", "udp port 9"]),
    },
    Row {
        name: "match-stopped-session",
        title: "kprobe.session: filter matches, the probes alone",
        world: World::Seven,
        start: |_| stopped(&["--attach", "session", "udp"]),
    },
    Row {
        name: "no-match-kprobe",
        title: "the same with kprobes: filter does not match",
        world: World::Seven,
        start: |_| nftracer("trace", &["--attach", "kprobe", "udp port 9"]),
    },
    Row {
        name: "accepted-last-rule-kprobe",
        title: "kprobes: filter matches, `--verdict drop`, accepted",
        world: World::Seven,
        start: |_| nftracer("trace", &["--attach", "kprobe", "--verdict", "drop", "udp"]),
    },
    Row {
        name: "match-stopped-kprobe",
        title: "kprobes: filter matches, the probes alone",
        world: World::Seven,
        start: |_| stopped(&["--attach", "kprobe", "udp"]),
    },
    Row {
        name: "match-trace-kprobe",
        title: "kprobes: filter matches, `-o trace`",
        world: World::Seven,
        start: |_| nftracer("trace", &["--attach", "kprobe", "udp"]),
    },
    Row {
        name: "trace-nflog",
        title: "TRACE, bound to nfnetlink_log, nobody listening",
        world: World::Seven,
        start: |_| trace("nfnetlink_log"),
    },
    Row {
        name: "trace-kmsg",
        title: "TRACE to the kernel log, console quiet",
        world: World::Seven,
        start: |_| trace("nf_log_ipv4"),
    },
    Row {
        name: "pwru-no-match",
        title: "pwru, all its functions, filter does not match",
        world: World::Seven,
        start: |_| pwru("udp port 9"),
    },
    Row {
        name: "pwru-match",
        title: "pwru, all its functions, filter matches",
        world: World::Seven,
        start: |_| pwru("udp port 5005"),
    },
    Row {
        name: "bpftrace-count",
        title: "bpftrace, counts the calls of `ipt_do_table`",
        world: World::Seven,
        start: |_| bpftrace("kprobe:ipt_do_table { @ = count(); }"),
    },
    Row {
        name: "bpftrace-print",
        title: "bpftrace, prints what `ipt_do_table` returns",
        world: World::Seven,
        start: |_| bpftrace("kretprobe:ipt_do_table { printf(\"%d\\n\", retval); }"),
    },
    Row {
        name: "many-baseline",
        title: "20 000 rules in INPUT: baseline",
        world: World::Many,
        start: |_| nothing(),
    },
    Row {
        name: "many-no-match",
        title: "20 000 rules: nftracer, filter does not match",
        world: World::Many,
        start: |_| nftracer("trace", &["udp port 9"]),
    },
    Row {
        name: "many-match-stopped",
        title: "20 000 rules: nftracer, filter matches, the probes alone",
        world: World::Many,
        start: |_| stopped(&["udp"]),
    },
    Row {
        name: "many-match",
        title: "20 000 rules: nftracer, filter matches, `-o trace`",
        world: World::Many,
        start: |_| nftracer("trace", &["udp"]),
    },
    Row {
        name: "many-trace-nflog",
        title: "20 000 rules: TRACE, bound to nfnetlink_log, nobody listening",
        world: World::Many,
        start: |_| trace("nfnetlink_log"),
    },
    Row { name: "nft-baseline", title: "nftables: baseline", world: World::Nft, start: |_| nothing() },
    Row {
        name: "nft-empty-pair",
        title: "nftables: empty kprobe + kretprobe on `nft_do_chain`",
        world: World::Nft,
        start: |means| {
            Ok(Tracer::Silent(Kept::Probes(Box::new(probes::empty_pair(means.probes, "nft_do_chain")?))))
        },
    },
    Row {
        name: "nft-key",
        title: "nftables: the kernel tells of verdicts, and nobody looks",
        world: World::Nft,
        start: |_| Ok(Tracer::Silent(Kept::Rules(rules::key()?))),
    },
    Row {
        name: "nft-no-match",
        title: "nftables: nftracer, filter does not match",
        world: World::Nft,
        start: |_| nftracer("trace", &["udp port 9"]),
    },
    Row {
        name: "nft-no-match-kprobe",
        title: "nftables: the same with kprobes",
        world: World::Nft,
        start: |_| nftracer("trace", &["--attach", "kprobe", "udp port 9"]),
    },
    Row {
        name: "nft-accepted-last-rule",
        title: "nftables: nftracer, filter matches, `--verdict drop`, accepted",
        world: World::Nft,
        start: |_| nftracer("trace", &["--verdict", "drop", "udp"]),
    },
    Row {
        name: "nft-match-stopped",
        title: "nftables: nftracer, filter matches, the probes alone",
        world: World::Nft,
        start: |_| stopped(&["udp"]),
    },
    Row {
        name: "nft-match-trace",
        title: "nftables: nftracer, filter matches, `-o trace`",
        world: World::Nft,
        start: |_| nftracer("trace", &["udp"]),
    },
    Row {
        name: "nft-count-rule",
        title: "nftables: nftracer, filter matches, `--count-by rule`",
        world: World::Nft,
        start: |_| nftracer("json", &["--count-by", "rule", "udp"]),
    },
    Row {
        name: "nft-count-flow",
        title: "nftables: nftracer, filter matches, `--count-by flow`",
        world: World::Nft,
        start: |_| nftracer("json", &["--count-by", "flow", "udp"]),
    },
    Row {
        name: "nft-monitor",
        title: "nftables: `nft monitor trace` reading",
        world: World::Nft,
        start: |_| {
            let rules = rules::nftrace()?;
            Ok(Tracer::Read(Consumer::start(&["nft", "monitor", "trace"], None)?, Some(rules)))
        },
    },
];

/// The rows of a ruleset that were asked for, all if none were; with the one they compare with.
pub(crate) fn of(world: World, names: &[String]) -> Vec<&'static Row> {
    let wanted =
        |row: &&Row| row.world == world && (names.is_empty() || names.iter().any(|name| name == row.name));
    if !ROWS.iter().any(|row| wanted(&row)) {
        return Vec::new();
    }
    ROWS.iter().filter(|row| row.name == world.base() || wanted(row)).collect()
}

fn nothing() -> Result<Tracer> {
    Ok(Tracer::Silent(Kept::Nothing))
}

fn trace(logger: &str) -> Result<Tracer> {
    Ok(Tracer::Silent(Kept::Rules(rules::trace(logger)?)))
}

fn nftracer(output: &str, arguments: &[&str]) -> Result<Tracer> {
    Ok(Tracer::Read(probes(output, arguments)?, None))
}

fn stopped(arguments: &[&str]) -> Result<Tracer> {
    Ok(Tracer::Stopped(probes("trace", arguments)?))
}

/// By itself nftracer would go on without probes where the kernel refuses them, and be measured as if it had them.
fn probes(output: &str, arguments: &[&str]) -> Result<Consumer> {
    let command = [&["nftracer", "trace", "--backend", "ebpf", "-o", output], arguments].concat();
    Consumer::start(&command, Some("tracing "))
}

fn pwru(filter: &str) -> Result<Tracer> {
    peer("pwru", &[filter], Some("Listening for events"))
}

/// What it says before it is ready goes where nobody looks; then it has nothing to do.
fn bpftrace(program: &str) -> Result<Tracer> {
    peer("bpftrace", &["-e", program], None)
}

/// Another tracer, from a folder that has its libraries, too.
fn peer(name: &str, arguments: &[&str], ready: Option<&str>) -> Result<Tracer> {
    let folder = format!("/{name}/usr");
    ensure!(
        consumer::exists(&folder),
        "left out: takes long to attach; `--row` with the name of this row asks for it"
    );
    let (loader, libraries) =
        (format!("{folder}/lib64/ld-linux-x86-64.so.2"), format!("{folder}/lib/x86_64-linux-gnu"));
    let program = format!("{folder}/bin/{name}");
    let command = [&[&loader, "--library-path", &libraries, &program], arguments].concat();
    Ok(Tracer::Read(Consumer::start(&command, ready)?, None))
}
