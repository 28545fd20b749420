//! Packets chosen by more than a filter: which of a known few each choice leaves.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::check;
use crate::lab::{Family, Lab, Place, addresses};
use crate::packet::{Packet, Transport};
use crate::tracer::{self, Ended, Trace, Tracer};
use crate::traffic::{OPEN, Senders, Shot};
use crate::wait;

const ENDS_WITHIN: Duration = Duration::from_secs(120);

/// Forwarded, with a mark from mangle.
const FORWARDED: u16 = OPEN;
/// Forwarded as far as the first rule of filter:FORWARD, which drops it.
const DROPPED: u16 = 443;
/// Taken in by the router, through filter:CH.
const TAKEN: u16 = 53;
/// Sent by the router.
const SENT: u16 = 80;
/// Dropped by nftables, where it has rules.
const DROPPED_BY_NFT: u16 = 7001;
const ALL: [u16; 5] = [FORWARDED, DROPPED, TAKEN, SENT, DROPPED_BY_NFT];

/// Options, and the ports to which the packets go that they leave.
pub struct Choice {
    words: &'static [&'static str],
    left: &'static [u16],
    /// The rules of nftables have to be there and seen.
    nft: bool,
}

const fn choice(words: &'static [&'static str], left: &'static [u16]) -> Choice {
    Choice { words, left, nft: false }
}

const fn by_nft(words: &'static [&'static str], left: &'static [u16]) -> Choice {
    Choice { words, left, nft: true }
}

/// A few that ask for everything.
pub const FEW: &[Choice] = &[
    by_nft(&["--in", "ra", "--verdict", "drop"], &[DROPPED, DROPPED_BY_NFT]),
    choice(&["--out", "rb", "--mark", "0x12/0xff"], &[FORWARDED]),
    choice(&["--uid", "0"], &[SENT]),
    choice(&["--table", "filter", "--chain", "CH"], &[TAKEN]),
    by_nft(&["--rule", "here:pass:1", "--verdict", "drop,queue"], &[DROPPED_BY_NFT]),
];

/// All.
pub const CHOICES: &[Choice] = &[
    by_nft(&["--in", "ra"], &[FORWARDED, DROPPED, TAKEN, DROPPED_BY_NFT]),
    choice(&["--in", "r+", "--chain", "INPUT"], &[TAKEN]),
    choice(&["--out", "rb", "--chain", "POSTROUTING", "--in", "ra"], &[FORWARDED]),
    choice(&["--out", "rb", "--chain", "OUTPUT"], &[SENT]),
    choice(&["--mark", "0x12"], &[FORWARDED]),
    choice(&["--mark", "2/2"], &[FORWARDED]),
    choice(&["--uid", "root"], &[SENT]),
    choice(&["--chain", "CH"], &[TAKEN]),
    choice(&["--rule", "filter:FORWARD:1"], &[DROPPED]),
    choice(&["--rule", "filter:CH:return:2"], &[TAKEN]),
    by_nft(&["--table", "here"], &[FORWARDED, DROPPED_BY_NFT]),
    by_nft(&["--verdict", "drop"], &[DROPPED, DROPPED_BY_NFT]),
    by_nft(&["--verdict", "accept"], &[FORWARDED, TAKEN, SENT]),
    choice(&["--chain", "FORWARD", "--rule", "filter:FORWARD:1", "--verdict", "drop"], &[DROPPED]),
];

/// Gives the router its rules.
pub fn load(lab: &Lab, nft: bool) -> Result<()> {
    for family in Family::ALL {
        let rules = "*raw\nCOMMIT\n\
                     *mangle\n-A PREROUTING -p udp -m udp --dport 4000 -j MARK --set-xmark 0x12/0xffffffff\nCOMMIT\n\
                     *filter\n:CH - [0:0]\n-A INPUT -p udp -m udp --dport 53 -j CH\n-A CH -m length --length 0:65535\n\
                     -A FORWARD -p udp -m udp --dport 443 -j DROP\nCOMMIT\n";
        crate::ruleset::load(&lab.r, family, rules)?;
    }
    if nft {
        let rules = "table inet here { chain pass { type filter hook forward priority 10; policy accept; \
                     udp dport 7001 drop; }; }";
        lab.r.command("nft", &["-f", "-"], rules)?;
    }
    Ok(())
}

/// Sends one packet to each port, for each family.
fn send(senders: &Senders, sport: u16) {
    for family in Family::ALL {
        let at = addresses(family);
        for dport in ALL {
            let (from, src, dst) = match dport {
                TAKEN => (Place::A, at.a, at.r),
                SENT => (Place::R, at.r_far, at.b),
                _ => (Place::A, at.a, at.b),
            };
            let transport = Transport::Udp { sport, dport };
            let packet = Packet { src, dst, transport, payload: 8, id: sport, tos: 0, fragment: None };
            senders.fire(&Shot { from, packet });
        }
    }
}

impl Choice {
    /// Whether it needs rules of nftables.
    pub fn needs_nft(&self) -> bool {
        self.nft
    }

    /// Traces with it, and holds what is shown against what has to be. Packets of other source ports are not looked at.
    pub fn examine(&self, lab: &Lab, senders: &Senders, way: &[&str], sport: u16) -> Result<()> {
        let fixed = ["--netns", lab.r.name(), "-o", "json"];
        let words = [&fixed, way, self.words, &["udp"]].concat();
        let tracer = Tracer::start(&words, &[])?;
        send(senders, sport);
        let expected = self.expected();
        wait::until(ENDS_WITHIN, || {
            (tracer.look(|trace| trace.packets.len()) >= expected.len()).then_some(())
        });
        let Ended { trace, errors, .. } = tracer.stop(rustix::process::Signal::INT)?;
        self.holds(&trace).with_context(|| format!("{}: {}", words.join(" "), errors.join("\n")))
    }

    /// The same of a recording of all packets.
    pub fn examine_recording(&self, file: &str) -> Result<()> {
        let words = [&["read", "-o", "json"], self.words, &[file, "udp"]].concat();
        let Ended { trace, errors, .. } = tracer::run(&words, &[])?;
        self.holds(&trace).with_context(|| format!("{}: {}", words.join(" "), errors.join("\n")))
    }

    fn expected(&self) -> BTreeSet<(bool, u16)> {
        self.left.iter().flat_map(|dport| [(true, *dport), (false, *dport)]).collect()
    }

    fn holds(&self, trace: &Trace) -> Result<()> {
        check(trace.odd.is_empty(), format!("rows that cannot be read: {:?}", trace.odd))?;
        let shown = trace.steps.iter().map(|step| (step.identity.src.is_ipv4(), step.identity.ports[1]));
        let (shown, expected) = (shown.collect::<BTreeSet<_>>(), self.expected());
        check(shown == expected, format!("shown are {shown:?}, expected {expected:?}"))?;
        check(trace.packets.len() == expected.len(), format!("{} packets", trace.packets.len()))?;
        for (number, packet) in &trace.packets {
            let steps = trace.steps.iter().filter(|step| step.packet == *number).map(|step| &step.step);
            check(steps.eq(&packet.path), format!("the steps of {:?} are not all there", packet.path))?;
        }
        let totals = trace.end.context("no totals")?;
        check(usize::try_from(totals.packets)? == expected.len(), format!("{totals:?}"))
    }
}

/// Records all packets.
pub fn record(lab: &Lab, senders: &Senders, way: &[&str], file: &str) -> Result<()> {
    let fixed = ["--netns", lab.r.name(), "-o", "json", "-w", file, "-c", "10", "udp"];
    let tracer = Tracer::start(&[way, &fixed].concat(), &[])?;
    send(senders, 20_000);
    tracer.finish(ENDS_WITHIN).map(drop)
}
