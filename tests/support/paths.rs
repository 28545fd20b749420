//! Packets whose ways are known beforehand, for the ways of tracing that need no probes.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::check;
use crate::lab::{Family, Lab, Place, addresses};
use crate::packet::{Packet, Transport};
use crate::tracer::{Certainty, Totals, Trace, Tracer};
use crate::traffic::{OPEN, Senders, Shot};

/// A backend and what marks packets for it.
pub type Way = (&'static str, &'static str);

/// All that need no probes.
pub const WAYS: [Way; 6] = [
    ("netlink", "nft"),
    ("netlink", "rule"),
    ("netlink", "none"),
    ("log", "nft"),
    ("log", "rule"),
    ("log", "none"),
];
/// Emulated machines are slow.
const ENDS_WITHIN: Duration = Duration::from_secs(120);

/// A datagram and the steps that it meets in the router.
struct Known {
    from: Place,
    src: fn(Family) -> std::net::IpAddr,
    dst: fn(Family) -> std::net::IpAddr,
    dport: u16,
    path: &'static [&'static str],
    verdict: &'static str,
}

/// Datagrams that are forwarded, dropped, translated, taken in, and sent by the router.
const KNOWN: &[Known] = &[
    Known {
        from: Place::A,
        src: |family| addresses(family).a,
        dst: |family| addresses(family).b,
        dport: OPEN,
        path: &[
            "raw:PREROUTING:policy:2",
            "mangle:PREROUTING:policy:1",
            "nat:PREROUTING:policy:2",
            "mangle:FORWARD:policy:1",
            "filter:FORWARD:policy:2",
            "mangle:POSTROUTING:policy:1",
            "nat:POSTROUTING:policy:1",
        ],
        verdict: "accept",
    },
    Known {
        from: Place::A,
        src: |family| addresses(family).a,
        dst: |family| addresses(family).b,
        dport: 443,
        path: &[
            "raw:PREROUTING:policy:2",
            "mangle:PREROUTING:policy:1",
            "nat:PREROUTING:policy:2",
            "mangle:FORWARD:policy:1",
            "filter:FORWARD:rule:1",
        ],
        verdict: "drop",
    },
    Known {
        from: Place::A,
        src: |family| addresses(family).a,
        dst: |family| addresses(family).r,
        dport: 53,
        path: &[
            "raw:PREROUTING:policy:2",
            "mangle:PREROUTING:policy:1",
            "nat:PREROUTING:policy:2",
            "mangle:INPUT:policy:1",
            "filter:INPUT:rule:1",
            "filter:CH:rule:1",
            "filter:CH:return:2",
            "filter:INPUT:policy:2",
            "nat:INPUT:policy:1",
        ],
        verdict: "accept",
    },
    Known {
        from: Place::A,
        src: |family| addresses(family).a,
        dst: |family| addresses(family).r_dnat,
        dport: 80,
        path: &[
            "raw:PREROUTING:policy:2",
            "mangle:PREROUTING:policy:1",
            "nat:PREROUTING:rule:1",
            "mangle:FORWARD:policy:1",
            "filter:FORWARD:policy:2",
            "mangle:POSTROUTING:policy:1",
            "nat:POSTROUTING:policy:1",
        ],
        verdict: "accept",
    },
    Known {
        from: Place::A,
        src: |family| addresses(family).a,
        dst: |family| addresses(family).r,
        dport: 5001,
        path: &["raw:PREROUTING:rule:1"],
        verdict: "drop",
    },
    Known {
        from: Place::R,
        src: |family| addresses(family).r_far,
        dst: |family| addresses(family).b,
        dport: OPEN,
        path: &[
            "raw:OUTPUT:policy:1",
            "mangle:OUTPUT:policy:1",
            "nat:OUTPUT:policy:1",
            "filter:OUTPUT:policy:1",
            "mangle:POSTROUTING:policy:1",
            "nat:POSTROUTING:policy:1",
        ],
        verdict: "accept",
    },
];

fn ruleset(family: Family) -> String {
    let at = addresses(family);
    let to = match family {
        Family::Ipv4 => format!("{}:{OPEN}", at.b),
        Family::Ipv6 => format!("[{}]:{OPEN}", at.b),
    };
    format!(
        "*raw\n-A PREROUTING -p udp -m udp --dport 5001 -j DROP\nCOMMIT\n\
         *mangle\nCOMMIT\n\
         *nat\n-A PREROUTING -d {} -p udp -m udp --dport 80 -j DNAT --to-destination {to}\nCOMMIT\n\
         *filter\n:CH - [0:0]\n-A INPUT -p udp -m udp --dport 53 -j CH\n-A CH -m length --length 0:65535\n\
         -A FORWARD -p udp -m udp --dport 443 -m comment --comment \"no\\\"quic\" -j DROP\nCOMMIT\n",
        at.r_dnat
    )
}

/// Gives the router its rules.
pub fn load(lab: &Lab) -> Result<()> {
    Family::ALL.into_iter().try_for_each(|family| crate::ruleset::load(&lab.r, family, &ruleset(family)))
}

/// Marks as a user would, where the tracer does not.
pub fn with_rules<T>(lab: &Lab, wanted: bool, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let change = |how: &str| -> Result<()> {
        for family in Family::ALL.iter().filter(|_| wanted) {
            for chain in ["PREROUTING", "OUTPUT"] {
                lab.r.command(family.tool(), &["-t", "raw", how, chain, "-p", "udp", "-j", "TRACE"], "")?;
            }
        }
        Ok(())
    };
    change("-I")?;
    let result = work();
    change("-D")?;
    result
}

/// Sends the packets and holds what one way of tracing says against what is known. Source ports are counted on from
/// `sport`; `start` starts a tracer with these arguments, as [`Tracer::start`] does.
pub fn trace(
    lab: &Lab,
    senders: &Senders,
    (backend, mark): Way,
    sport: &mut u16,
    start: &dyn Fn(&[&str]) -> Result<Tracer>,
) -> Result<Totals> {
    let count = KNOWN.len() * Family::ALL.len();
    let count_text = count.to_string();
    let filter = "udp and not dst port 9";
    let arguments =
        ["--backend", backend, "--mark", mark, "--netns", lab.r.name(), "-o", "json", "-c", &count_text];
    let words: Vec<&str> = arguments.into_iter().chain(filter.split(' ')).collect();
    let tracer = start(&words)?;
    let mut expected = HashMap::new();
    for family in Family::ALL {
        for known in KNOWN {
            *sport += 1;
            let shot = |dport| {
                let transport = Transport::Udp { sport: *sport, dport };
                let (src, dst) = ((known.src)(family), (known.dst)(family));
                let packet = Packet { src, dst, transport, payload: 8, id: *sport, tos: 0, fragment: None };
                Shot { from: known.from, packet }
            };
            // The filter leaves this one out, and none of its steps may be shown.
            senders.fire(&shot(9));
            senders.fire(&shot(known.dport));
            expected.insert((family, *sport), known);
        }
    }
    let ended = tracer.finish(ENDS_WITHIN)?;
    let said = ended.errors.join("\n");
    check(ended.status.code() == Some(0), format!("{}: {said}", ended.status))?;
    let shift = u32::from(mark == "none");
    compare(&ended.trace, &expected, shift).with_context(|| said.clone())?;
    check(
        backend == "log" || ended.trace.steps.iter().all(|step| step.netns == lab.r.inode()),
        "the namespace",
    )?;
    ended.trace.end.context("no totals")
}

/// Every packet has its path, in the order of the steps, with nothing in doubt.
fn compare(trace: &Trace, expected: &HashMap<(Family, u16), &Known>, shift: u32) -> Result<()> {
    check(trace.odd.is_empty(), format!("rows that cannot be read: {:?}", trace.odd))?;
    check(trace.packets.len() == expected.len(), format!("{} packets", trace.packets.len()))?;
    for (number, packet) in &trace.packets {
        let first = trace.steps.iter().find(|step| step.packet == *number).context("a path without steps")?;
        let family = if first.identity.src.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
        let known = expected.get(&(family, first.identity.ports[0])).context("an unexpected packet")?;
        let path: Vec<String> = known.path.iter().map(|step| shifted(step, shift)).collect();
        check(packet.path == path, format!("expected {path:?}, got {:?}: {}", packet.path, packet.why))?;
        let steps = trace.steps.iter().filter(|step| step.packet == *number).map(|step| &step.step);
        check(steps.eq(&path), format!("the steps of {path:?} are not in this order"))?;
        check(packet.certainty == Certainty::Complete, format!("{path:?}: {}", packet.why))?;
        check(packet.verdict == known.verdict, format!("{path:?} ends with {}", packet.verdict))?;
    }
    Ok(())
}

/// A user's own TRACE rule is the first of its chain.
fn shifted(step: &str, shift: u32) -> String {
    match step.strip_prefix("raw:").and_then(|rest| rest.rsplit_once(':')) {
        Some((rest, number)) => format!("raw:{rest}:{}", number.parse::<u32>().unwrap_or(0) + shift),
        None => step.to_owned(),
    }
}
