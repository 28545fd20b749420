//! What user space spends on a record, from the ring's bytes to lines.
//!
//! `replay-cost FORM PACKETS` replays the eight traversals of a UDP packet over loopback that often and writes them in
//! FORM (`trace`, `json`, `pretty` or `recording`) to nowhere, or to standard output with a third argument. Run it under
//! `valgrind --tool=callgrind`, with two numbers of packets, and divide the difference in instructions by the
//! difference in records.

use anyhow::{Context as _, bail};
use nftracer::backend::ebpf::decode::decode;
use nftracer::command::trace::interpreter::{Interpreter, NotRead, Reading};
use nftracer::command::trace::runs::Heard;
use nftracer::fetch::Fetched;
use nftracer::netfilter::{Family, Hook, StepKind, Verdict};
use nftracer::recording::Recorder;
use nftracer::ruleset::{Chain, Entry, Table, Target};
use nftracer::sink::{self, Output, Sink, Start};
use nftracer::xtables::{Form, RawTable};
use std::io::{self, Write};
use tracer_common::legacy::{Match, SkbState, TABLE_SLOTS, Traversal, fact, kind};
use zerocopy::{FromZeros as _, IntoBytes as _};

const NETNS: u32 = 4_026_531_840;
const PACKET_BYTES: usize = 92;
/// Packets between two looks at the ring.
const LOOK: u64 = 500;
/// How far apart packets are.
const GAP_NS: u64 = 1_000;

/// Where the packet goes, with the rules of each chain that it meets.
const WAY: [(&str, Hook); 8] = [
    ("raw", Hook::Output),
    ("mangle", Hook::Output),
    ("filter", Hook::Output),
    ("mangle", Hook::Postrouting),
    ("raw", Hook::Prerouting),
    ("mangle", Hook::Prerouting),
    ("mangle", Hook::Input),
    ("filter", Hook::Input),
];

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [form, packets, rest @ ..] = arguments.as_slice() else {
        bail!("usage: replay-cost trace|json|pretty|recording PACKETS [show]");
    };
    let writer: Box<dyn Write> = if rest.is_empty() { Box::new(io::sink()) } else { Box::new(io::stdout()) };
    let sink: Box<dyn Sink> = match form.as_str() {
        "trace" => sink::choose(Output::Trace, false, writer),
        "json" => sink::choose(Output::Json, false, writer),
        "pretty" => sink::choose(Output::Pretty, false, writer),
        "recording" => Box::new(Recorder::new(writer)?),
        other => bail!("{other} is not a form"),
    };
    replay(sink, packets.parse().context("PACKETS")?)
}

fn replay(sink: Box<dyn Sink>, packets: u64) -> anyhow::Result<()> {
    let never = Box::new(|_: &_, _, _: &str| Err(NotRead::Failed));
    let mut interpreter = Interpreter::new(
        sink,
        None,
        0,
        never,
        Box::new(|_| None),
        Box::new(|_| None),
        Box::new(|_, _| Heard::Nothing),
    );
    for name in ["raw", "mangle", "filter"] {
        let none = [0; TABLE_SLOTS as usize];
        let reading = Reading { fetched: fetched(name), before: none, after: none, read_ns: 0 };
        interpreter.fetched(NETNS, reading);
    }
    interpreter.begin(&start())?;
    let mut records = WAY.map(|(table, hook)| traversal(table, hook));
    for packet in 1..=packets {
        for record in &mut records {
            set_packet(record, packet);
            let record = decode(record.as_bytes()).context("the record is not understood")?;
            interpreter.record(record);
        }
        if packet % LOOK == 0 {
            interpreter.expire(packet * GAP_NS);
            interpreter.flush()?;
        }
    }
    Ok(interpreter.flush()?)
}

fn start() -> Start {
    Start {
        filter: String::new(),
        choice: String::new(),
        netns: "all".to_owned(),
        backend: "ebpf",
        footprint: "none".to_owned(),
        kernel: "6.12.0".to_owned(),
        log_style: nftracer::trace_line::LogStyle::default(),
    }
}

/// A table with one rule and a policy in each chain.
fn fetched(name: &str) -> Fetched {
    let hooks = WAY.iter().filter(|(table, _)| *table == name).map(|(_, hook)| *hook);
    let mut table = Table {
        family: Family::Ipv4,
        name: name.to_owned(),
        entries: Vec::new(),
        chains: Vec::new(),
        hook_entry: [None; 5],
        underflow: [None; 5],
        size: 1000,
    };
    for hook in hooks {
        let first = table.entries.len();
        let (rule, policy) = (first, first + 1);
        table.hook_entry[hook as usize] = Some(rule);
        table.underflow[hook as usize] = Some(policy);
        let chain = table.chains.len();
        let text = format!("-A {} -p tcp -m tcp --dport 80 -j ACCEPT", hook.chain());
        table.entries.push(entry(chain, 1, StepKind::Rule, Some(&text)));
        table.entries.push(entry(chain, 2, StepKind::Policy, None));
        table.chains.push(Chain {
            name: hook.chain().to_owned(),
            hook: Some(hook),
            entries: rule..policy + 1,
        });
    }
    let raw = RawTable {
        family: Family::Ipv4,
        name: name.to_owned(),
        valid_hooks: 0,
        hook_entry: [0; 5],
        underflow: [0; 5],
        number: table.entries.len() as u32,
        form: Form::User,
        bytes: Vec::new(),
    };
    Fetched { table, raw, text_reason: None }
}

fn entry(chain: usize, number: u32, kind: StepKind, text: Option<&str>) -> Entry {
    let tail = kind == StepKind::Policy;
    let target = Target::Verdict(Verdict::Accept);
    Entry { chain: Some(chain), number, kind, tail, unconditional: tail, target, text: text.map(Into::into) }
}

/// The record of a traversal that ended in the policy.
fn traversal(name: &str, hook: Hook) -> Traversal {
    let table = fetched(name).table;
    let outgoing = matches!(hook, Hook::Output | Hook::Postrouting);
    let state = SkbState { len: PACKET_BYTES as u32, copied: PACKET_BYTES as u32, ..SkbState::default() };
    let mut traversal = Traversal {
        kind: kind::TRAVERSAL,
        skb: 0xffff_8880_1234_5600,
        table: 0xffff_8880_0000_0000 + u64::from(name.as_bytes()[0]) * 0x80,
        private: 0xffff_c900_0000_0000 + u64::from(name.as_bytes()[0]) * 0x1000,
        verdict: 1,
        facts: fact::EXIT
            | fact::SAME_BYTES
            | if outgoing { fact::OUT | fact::OWNER } else { fact::IN | fact::MAC },
        netns: NETNS,
        uid: 1000,
        gid: 1000,
        number: table.entries.len() as u32,
        size: table.size,
        match_count: 1,
        hook: hook as u8,
        family: 2,
        mac_len: 14,
        dev_type: 772,
        hard_header_len: 14,
        entry: state,
        exit: SkbState { copied: 0, ..state },
        ..Traversal::new_zeroed()
    };
    traversal.table_name[..name.len()].copy_from_slice(name.as_bytes());
    let device = if outgoing { &mut traversal.outdev } else { &mut traversal.indev };
    device[..2].copy_from_slice(b"lo");
    traversal.mac[12] = 8;
    let policy = table.underflow[hook as usize].unwrap_or_default();
    traversal.matches[0] = Match { index: policy as u32, count: 1 };
    let headers = [
        [0x45, 0, 0, 92, 0, 0, 0x40, 0, 64, 17, 0, 0, 127, 0],
        [0, 1, 127, 0, 0, 1, 0x10, 0x92, 0x13, 0x89, 0, 72, 0, 0],
    ];
    traversal.entry_bytes[..28].copy_from_slice(&headers.concat());
    traversal
}

/// Makes the record that of another packet.
fn set_packet(record: &mut Traversal, packet: u64) {
    record.packet = packet;
    record.entry_ns = packet * GAP_NS;
    let first = (record.hook, &record.table_name[..4]) == (Hook::Output as u8, b"raw\0");
    record.facts = if first { record.facts | fact::FIRST } else { record.facts & !fact::FIRST };
    record.entry_bytes[4..6].copy_from_slice(&(packet as u16).to_be_bytes());
}
