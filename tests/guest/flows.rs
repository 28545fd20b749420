//! Many flows at once, as fast as they go: no packet's story has a step of another packet.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nftracer_tests::lab::{Family, Lab, Place, Spread, addresses};
use nftracer_tests::netns::Netns;
use nftracer_tests::packet::{Identity, Packet, Transport};
use nftracer_tests::ruleset;
use nftracer_tests::tracer::{self, Certainty, Ended, Step, Trace, Tracer};
use nftracer_tests::traffic::{OPEN, Senders, Server, Shot};
use nftracer_tests::wait;
use rustix::process::Signal;

use crate::{Options, Outcome, Test, check};

pub(crate) const TESTS: &[Test] = &[Test { name: "flows_keep_apart", run: keep_apart }];

const FLOWS: u16 = 64;
/// What goes over loopback, of each four.
const LOOPED: u16 = 15;
/// The first one's port, or identifier.
const FIRST: u16 = 20_000;
/// Payloads are so long: nothing and what the number says.
const LENGTHS: u16 = 400;
const SETTLES_WITHIN: Duration = Duration::from_secs(60);
const SILENCE: u32 = 30;
/// Rows that are shown before a step of another packet, and after it if the packet does not end before.
const AROUND: usize = 60;
/// So many reasons for doubt are shown, the most frequent ones.
const REASONS: usize = 8;
/// Packets of each flow that come alone, and show which ways there are.
const ALONE: u16 = 3;

/// Packets end in many places, so that their memory is used again at once; each flow always in the same one, by its DSCP.
const RULES: &str = "\
*raw\n-A PREROUTING -m dscp --dscp 1 -j DROP\n-A OUTPUT -m dscp --dscp 10 -j DROP\nCOMMIT\n\
*mangle\n-A PREROUTING -m dscp --dscp 2 -j DROP\n-A FORWARD -m dscp --dscp 3 -j DROP\n\
-A POSTROUTING -m dscp --dscp 4 -j DROP\n-A INPUT -m dscp --dscp 8 -j DROP\nCOMMIT\n\
*filter\n:SOME - [0:0]\n:OTHER - [0:0]\n-A FORWARD -j SOME\n-A FORWARD -m dscp --dscp 6 -j REJECT\n\
-A SOME -m dscp --dscp 5 -j DROP\n-A SOME -m dscp ! --dscp 0 -g OTHER\n-A OTHER -m dscp --dscp 12\n\
-A INPUT -m dscp --dscp 9 -j DROP\n-A OUTPUT -m dscp --dscp 11 -j DROP\nCOMMIT\n";
const NFT: &str = "\
table inet here {
  chain pass {
    type filter hook forward priority 10;
    ip dscp 13 drop
    ip6 dscp 13 drop
    ip dscp 14 counter
  }
}
";

/// The packet with this number of a flow. Its number is in its header and in what follows, and its length tells it, too.
fn shot(flow: u16, number: u16) -> Shot {
    let class = flow / 4;
    // An answer on loopback looks like what it answers.
    let kind = if class == LOOPED { 0 } else { flow % 4 };
    let at = addresses(if kind == 2 { Family::Ipv6 } else { Family::Ipv4 });
    let transport = match kind {
        0 | 3 => Transport::Udp { sport: FIRST + flow, dport: OPEN },
        _ => Transport::Echo { id: FIRST + flow, sequence: number },
    };
    let (from, src, dst) = match class {
        7..=9 => (Place::A, at.a, at.r),
        10 | 11 => (Place::R, at.r_far, at.b),
        LOOPED => (Place::R, at.lo, at.lo),
        _ => (Place::A, at.a, at.b),
    };
    let tos = class.to_le_bytes()[0] << 2;
    Shot {
        from,
        packet: Packet { src, dst, transport, payload: number % LENGTHS, id: number, tos, fragment: None },
    }
}

/// The flow of a packet, or of its answer; `None` for what has no number.
fn flow_of(identity: &Identity) -> Option<u16> {
    let name = identity.echo.map_or(identity.ports[0], |[id, _]| id);
    name.checked_sub(FIRST).filter(|flow| *flow < FLOWS)
}

/// Whether all that a packet says of itself is of one packet.
fn is_whole(identity: &Identity) -> bool {
    let Some(flow) = flow_of(identity) else { return true };
    let number = identity.echo.map(|[_, sequence]| sequence).or(identity.id).unwrap_or(0);
    let Packet { src, payload, .. } = shot(flow, number).packet;
    let headers = if src.is_ipv4() { 28 } else { 48 };
    // The kernel numbers its answers itself.
    let own = identity.src == src && identity.id.is_none_or(|id| id == number);
    identity.length == headers + u32::from(payload) && (own || identity.echo.is_some())
}

/// A packet with a step of another one.
struct Mixed {
    packet: u64,
    /// All rows around that step.
    rows: Vec<Step>,
}

impl Mixed {
    /// What can be told of it, when it has ended or enough has come after.
    fn story(&self, ended: Option<&tracer::Packet>) -> String {
        let mut story = format!("packet {} has a step of another one; it ended as {ended:?}", self.packet);
        // Whatever its address was in the meantime, a packet has its number in it.
        let theirs: HashSet<_> =
            self.rows.iter().filter(|row| row.packet == self.packet).map(|row| &row.identity).collect();
        for row in &self.rows {
            let Step { packet, time, netns, hook, step, identity, doubt, devices, .. } = row;
            let mark = match (*packet == self.packet, theirs.contains(identity)) {
                (true, _) => "=>",
                (false, true) => "->",
                (false, false) => "  ",
            };
            let Identity { src, dst, ports, length, id, echo, .. } = identity;
            let doubt = if *doubt { " in doubt" } else { "" };
            let [from, to] = devices.each_ref().map(|device| device.as_deref().unwrap_or("-"));
            story += &format!(
                "\n{mark} {time} {packet} {netns} hook {hook} {from}>{to} {step} {src}:{}>{dst}:{} id {id:?} echo {echo:?} length {length}{doubt}",
                ports[0], ports[1],
            );
        }
        story
    }
}

/// What has been told so far.
#[derive(Default)]
struct Told {
    /// Packets of which steps were shown and that have not ended, with the number of their steps.
    open: HashMap<u64, (Identity, usize)>,
    /// The last steps of all packets.
    recent: VecDeque<Step>,
    mixed: Option<Mixed>,
    /// The ways of those that came alone, by flow and direction.
    ways: HashMap<(u16, IpAddr), HashSet<Vec<String>>>,
    /// Those that were told whole.
    complete: HashSet<Identity>,
    flows: HashSet<u16>,
    /// Those in doubt, by the reason.
    doubtful: HashMap<String, usize>,
    /// What came in by loopback after so long that it was told as a packet of its own, or before that.
    halves: usize,
}

impl Told {
    fn add(&mut self, trace: Trace, alone: bool) -> Result<()> {
        check(trace.odd.is_empty(), format!("rows that cannot be read: {:?}", trace.odd))?;
        for step in trace.steps {
            let (first, count) = self.open.entry(step.packet).or_insert_with(|| (step.identity.clone(), 0));
            *count += 1;
            let fits = (step.doubt || *first == step.identity) && is_whole(&step.identity);
            if !fits && self.mixed.is_none() {
                let rows = self.recent.drain(..).collect();
                self.mixed = Some(Mixed { packet: step.packet, rows });
            }
            match &mut self.mixed {
                Some(mixed) if step.packet == mixed.packet || mixed.rows.len() < 2 * AROUND => {
                    mixed.rows.push(step);
                }
                Some(_) => {}
                None => {
                    if self.recent.len() == AROUND {
                        self.recent.pop_front();
                    }
                    self.recent.push_back(step);
                }
            }
        }
        if let Some(mixed) = &self.mixed {
            let ended = trace.packets.get(&mixed.packet);
            check(
                ended.is_none() && mixed.rows.len() < 2 * AROUND && trace.end.is_none(),
                mixed.story(ended),
            )?;
        }
        for (number, packet) in trace.packets {
            let Some((identity, count)) = self.open.remove(&number) else { continue };
            let told = || format!("packet {number} {identity:?}: {:?}", packet.path);
            check(packet.path.len() == count, format!("{count} steps of {}", told()))?;
            if packet.certainty != Certainty::Complete {
                *self.doubtful.entry(packet.why).or_default() += 1;
                continue;
            }
            let Some(flow) = flow_of(&identity) else { continue };
            let ways = self.ways.entry((flow, identity.src)).or_default();
            if alone {
                ways.insert(packet.path);
                continue;
            }
            self.flows.insert(flow);
            let half = |way: &Vec<String>| way.starts_with(&packet.path) || way.ends_with(&packet.path);
            if flow / 4 == LOOPED && !ways.contains(&packet.path) && ways.iter().any(half) {
                self.halves += 1;
                continue;
            }
            check(
                ways.contains(&packet.path),
                format!("no way of its flow: {}, {packet:?}, but {ways:?}", told()),
            )?;
            check(self.complete.insert(identity.clone()), format!("told twice: {}", told()))?;
        }
        Ok(())
    }
}

fn keep_apart(options: &Options) -> Result<Outcome> {
    crate::load_modules();
    let lab = Lab::build("nft", Spread::TwoCpus)?;
    let _servers = Server::everywhere(&lab)?;
    let senders = Senders::open(&lab)?;
    lab.all().into_iter().try_for_each(Netns::clear_rules)?;
    for family in Family::ALL {
        ruleset::load(&lab.r, family, RULES)?;
    }
    lab.r.command("nft", &["-f", "-"], NFT)?;
    let words = ["--netns", lab.r.name(), "--backend", "ebpf", "-o", "json", "--buffer", "64M"];
    let tracer = Tracer::start(&words, &[])?;
    let mut told = Told::default();
    for number in 1..=ALONE {
        for flow in 0..FLOWS {
            senders.fire(&shot(flow, number));
        }
        wait::until_steady(SETTLES_WITHIN, SILENCE, || tracer.seen());
    }
    told.add(tracer.take(), true)?;
    let end = Instant::now() + Duration::from_secs(options.seconds);
    let (sent, wrong) = thread::scope(|scope| {
        let senders = &senders;
        let send = |half: u16| {
            move || {
                let mut sent = 0_u32;
                // No number comes twice.
                for number in ALONE + 1..u16::MAX {
                    for flow in (half..FLOWS).step_by(2) {
                        senders.fire(&shot(flow, number));
                        sent += 1;
                    }
                    if Instant::now() >= end {
                        break;
                    }
                }
                sent
            }
        };
        let halves = [scope.spawn(send(0)), scope.spawn(send(1))];
        let wrong =
            wait::until(Duration::from_secs(options.seconds), || told.add(tracer.take(), false).err());
        let sent = halves.map(|half| half.join().unwrap_or(0));
        (sent.iter().sum::<u32>(), wrong)
    });
    let Ended { trace, errors, status, .. } = tracer.stop(Signal::INT)?;
    let totals = trace.end.context("no totals")?;
    let wrong = wrong.or_else(|| told.add(trace, false).err());
    wrong.map_or(Ok(()), |wrong| Err(wrong.context(errors.join("\n"))))?;
    let mut doubtful: Vec<_> = told.doubtful.iter().collect();
    doubtful.sort_by_key(|(_, count)| Reverse(**count));
    let reasons: Vec<_> =
        doubtful.iter().take(REASONS).map(|(why, count)| format!("{count} {why}")).collect();
    let says = format!(
        "{sent} sent, {} told whole, {} as halves, {} in doubt ({}): {}",
        told.complete.len(),
        told.halves,
        told.doubtful.values().sum::<usize>(),
        reasons.join("; "),
        errors.last().cloned().unwrap_or_default()
    );
    check(
        status.success() && told.flows.len() == usize::from(FLOWS),
        format!("{} flows: {says}", told.flows.len()),
    )?;
    check(totals.packets > 0, says.clone())?;
    Ok(Outcome::Passed(says))
}
