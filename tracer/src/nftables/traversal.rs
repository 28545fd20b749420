//! From the trace messages of one packet to its steps.
//!
//! A packet's messages come in order, and each says which chain it is about. So every jump and return can be checked:
//! a message that is missing, or is about another packet with the same id, shows as a chain that could not be next.

use super::trace::{TraceEvent, TraceKind, TracedPacket};
use super::{Located, RuleVerdict};
use crate::netfilter::{Engine, Family, Hook, StepKind, TableFamily, Verdict};
use crate::packet::ip::is_extension;
use crate::packet::{Link, PacketView};
use crate::path::{Certainty, Path, Step};
use crate::ruleset;
use std::collections::HashMap;
use std::rc::Rc;

/// A packet in a queue for user space is waited for so much longer.
const WAITS_NS: u64 = 9_500_000_000;

/// Finds the name of a device by its index in the namespace.
pub type DeviceName<'a> = &'a mut dyn FnMut(u32) -> Option<Rc<[u8]>>;

/// Packets of one network namespace whose paths are not complete yet.
#[derive(Debug, Default)]
pub struct Assembler {
    /// By the kernel's id.
    open: HashMap<u32, Open>,
    packets: u64,
}

/// What a message adds.
#[derive(Debug)]
pub struct Added<'a> {
    /// The packet's number, from 1.
    pub packet: u64,
    /// The packet, in the first message of each base chain; `None` for what is no IP packet.
    pub view: Option<PacketView<'a>>,
    /// The step; `None` for the end of a base chain, because its policy follows.
    pub step: Option<Step<'a>>,
    /// What the base chain decided, if this is its end.
    pub verdict: Option<Verdict>,
}

#[derive(Debug)]
struct Open {
    path: Path,
    seen_ns: u64,
    packet: Packet,
    /// The base chains that the packet has been in.
    met: Vec<BaseName>,
    /// Where in a base chain it is.
    inside: Option<Inside>,
}

type BaseName = (TableFamily, Box<str>, Box<str>);

/// A packet in a base chain.
#[derive(Debug)]
struct Inside {
    family: TableFamily,
    table: Box<str>,
    /// The base chain, if its messages began there.
    base: Option<Box<str>>,
    hook: Option<Hook>,
    /// The chain that it is in, and those that it will go back to.
    stack: Vec<Frame>,
}

#[derive(Debug)]
struct Frame {
    chain: Box<str>,
    /// The last rule that was met.
    number: u32,
}

/// The packet as the base chain got it.
#[derive(Debug, Default)]
struct Packet {
    family: Option<Family>,
    indev: Option<Rc<[u8]>>,
    outdev: Option<Rc<[u8]>>,
    dev_type: u16,
    link: Option<Vec<u8>>,
    bytes: Vec<u8>,
    length: u32,
}

impl Assembler {
    /// Takes a message, in the order in which the kernel sent them. A packet that was done with the same id is handed
    /// to `done`.
    ///
    /// `located` is what the message is about, as far as that is certain. `time_ns` is when the message came, in nanoseconds since the epoch: the kernel
    /// does not tell.
    pub fn add<'a>(
        &'a mut self,
        event: &'a TraceEvent<'a>,
        located: Option<Located<'a>>,
        (time_ns, netns): (u64, Option<u32>),
        device: DeviceName<'_>,
        done: &mut dyn FnMut(Path),
    ) -> Added<'a> {
        if self.open.get(&event.id).is_some_and(|open| open.is_over(event)) {
            self.open.remove(&event.id).into_iter().for_each(|open| done(open.path));
        }
        let packets = &mut self.packets;
        let open = self.open.entry(event.id).or_insert_with(|| {
            *packets += 1;
            Open::new(*packets, netns)
        });
        open.seen_ns = time_ns;
        open.enter(event, located.as_ref());
        if let Some(packet) = &event.packet {
            // Not every message tells the family, and it does not change on the way.
            let family =
                event.packet_family.or_else(|| open.packet.family.filter(|family| is_of(*family, packet)));
            open.packet = Packet::of(family, packet, device);
            open.path.family = open.packet.family.unwrap_or(open.path.family);
        }
        open.follow(event, located.as_ref());
        let inside = open.inside.as_ref();
        let hook = inside.and_then(|inside| inside.hook);
        let end_of_base = event.kind == TraceKind::Return
            && inside.is_some_and(|inside| inside.base.as_deref() == Some(&*event.chain));
        let verdict = open.leave(event);
        let rule = located.map_or_else(|| unlocated(event), |located| located.rule());
        if !end_of_base {
            open.name(&rule);
        }
        let open: &'a Open = open;
        let (packet, family) = (&open.packet, open.packet.family.filter(|_| event.packet.is_some()));
        Added {
            packet: open.path.packet,
            view: family.map(|family| packet.view(family, event.mark)),
            step: (!end_of_base).then(|| open.step(event, rule, hook, netns)),
            verdict,
        }
    }

    /// Gives out the packets of which nothing was heard since a time; those that wait for a program later.
    pub fn expire(&mut self, before_ns: u64, done: &mut dyn FnMut(Path)) {
        let mut silent: Vec<Path> = self
            .open
            .extract_if(|_, open| {
                let waits_ns = if open.path.verdict == Some(Verdict::Queue) { WAITS_NS } else { 0 };
                open.seen_ns.saturating_add(waits_ns) < before_ns
            })
            .map(|(_, mut open)| {
                open.cut_short();
                open.path
            })
            .collect();
        silent.sort_by_key(|path| path.packet);
        silent.into_iter().for_each(done);
    }

    /// Messages were lost: any packet that is not done may lack steps.
    pub fn lost(&mut self) {
        self.open.values_mut().for_each(|open| open.doubt("trace messages were lost".to_owned()));
    }
}

impl Open {
    fn new(packet: u64, netns: Option<u32>) -> Self {
        let path = Path::new(packet, Family::Ipv4, netns);
        Self { path, seen_ns: 0, packet: Packet::default(), met: Vec::new(), inside: None }
    }

    fn doubt(&mut self, why: String) {
        self.path.certainty = Certainty::Inexact;
        if !self.path.why.contains(&why) {
            self.path.why.push(why);
        }
    }

    /// Nothing more comes.
    fn cut_short(&mut self) {
        if let Some(inside) = &self.inside {
            let why = format!("nothing says how {} {} ended", inside.family.name(), inside.table);
            self.doubt(why);
        }
    }

    /// Whether a message with the same id is about another packet: this one is gone, or has been in that base chain.
    fn is_over(&self, event: &TraceEvent<'_>) -> bool {
        let gone = matches!(self.path.verdict, Some(Verdict::Drop | Verdict::Stolen));
        let again = |(family, table, chain): &BaseName| {
            *family == event.family && **table == *event.table && **chain == *event.chain
        };
        self.inside.is_none() && (gone || self.met.iter().any(again))
    }

    /// Begins a base chain, unless the packet is in one.
    fn enter(&mut self, event: &TraceEvent<'_>, located: Option<&Located<'_>>) {
        let stolen = event.verdict == Some(RuleVerdict::Final(Verdict::Stolen));
        match (&self.inside, &event.packet) {
            (Some(_), None) => return,
            // The first message of a base chain has the headers.
            (Some(_), Some(_)) => self.cut_short(),
            (None, None) if !stolen => self.doubt("the first message of a chain is missing".to_owned()),
            (None, _) => {}
        }
        let base = located.and_then(Located::base);
        let chain: Box<str> = (&*event.chain).into();
        self.inside = Some(Inside {
            family: event.family,
            table: (&*event.table).into(),
            base: base.map(|_| chain.clone()),
            hook: base.and_then(|base| base.hook),
            stack: vec![Frame { chain: chain.clone(), number: 0 }],
        });
        // Where the rules are not known, it most likely began there: headers come in the first message.
        if base.is_some() || located.is_none() && event.packet.is_some() {
            self.met.push((event.family, (&*event.table).into(), chain));
        }
    }

    /// Checks that the message is the next one, and goes where it leads.
    fn follow(&mut self, event: &TraceEvent<'_>, located: Option<&Located<'_>>) {
        let Some(inside) = &mut self.inside else { return };
        if let Some(doubt) = inside.follow(event, located) {
            self.doubt(doubt);
        }
        let (family, table, chain) = (event.family.name(), &event.table, &event.chain);
        match (located, event.handle) {
            (Some(located), _) => {
                let mark: Rc<str> = format!("{table}@{}", located.generation).into();
                if !self.path.generation.contains(&mark) {
                    self.path.generation.push(mark);
                }
            }
            (None, Some(handle)) => {
                self.doubt(format!(
                    "rule {handle} of {family} {table} {chain} is not known, the rules changed"
                ));
            }
            (None, None) => self.doubt(format!("{family} {table} {chain} is not known, the rules changed")),
        }
    }

    /// What the base chain decided, if the message is its end.
    fn leave(&mut self, event: &TraceEvent<'_>) -> Option<Verdict> {
        let Some(RuleVerdict::Final(verdict)) = event.verdict else { return None };
        self.inside = None;
        self.path.verdict = Some(verdict);
        Some(verdict)
    }

    /// Adds `table:chain:kind:number` to the path.
    fn name(&mut self, rule: &ruleset::Rule<'_>) {
        let number = rule.number.map_or_else(|| "?".to_owned(), |number| number.to_string());
        let name: Rc<str> = format!("{}:{}:{}:{number}", rule.table, rule.chain, rule.kind).into();
        self.path.steps.push(name);
    }

    /// What the last name is about.
    fn step<'a>(
        &'a self,
        event: &'a TraceEvent<'a>,
        rule: ruleset::Rule<'a>,
        hook: Option<Hook>,
        netns: Option<u32>,
    ) -> Step<'a> {
        Step {
            packet: self.path.packet,
            time_ns: Some(self.seen_ns),
            hook,
            rule,
            name: self.path.steps.last().map_or("", |name| name),
            action: event.verdict.as_ref().map(RuleVerdict::action),
            view: self.packet.view(self.path.family, event.mark),
            view_doubt: None,
            tracked: None,
            netns,
        }
    }
}

/// A rule of which only the message is known.
fn unlocated<'a>(event: &'a TraceEvent<'a>) -> ruleset::Rule<'a> {
    ruleset::Rule {
        engine: Engine::Nft,
        family: event.family,
        table: &event.table,
        chain: &event.chain,
        kind: match event.kind {
            TraceKind::Rule => StepKind::Rule,
            TraceKind::Return => StepKind::Return,
            TraceKind::Policy => StepKind::Policy,
        },
        number: None,
        handle: event.handle,
        text: None,
        nft: None,
        owner: None,
    }
}

impl Inside {
    /// `Some` is a reason why the message cannot be the next one.
    fn follow(&mut self, event: &TraceEvent<'_>, located: Option<&Located<'_>>) -> Option<String> {
        let mut doubt = None;
        let mut expected =
            || doubt = Some(format!("messages before {}:{} are missing", event.table, event.chain));
        if self.family != event.family || *self.table != *event.table {
            expected();
        }
        if event.kind == TraceKind::Policy {
            // Who began in the middle does not know where it came from.
            let known = self.base.as_deref().is_none_or(|base| *base == *event.chain);
            if !known || !self.stack.is_empty() {
                expected();
            }
            return doubt;
        }
        match self.stack.last() {
            Some(frame) if *frame.chain == *event.chain => {}
            // It began in a chain that others jump to, and now comes back to one of these.
            None if self.base.is_none() => {
                self.stack.push(Frame { chain: (&*event.chain).into(), number: 0 })
            }
            _ => {
                expected();
                self.stack = vec![Frame { chain: (&*event.chain).into(), number: 0 }];
            }
        }
        if let (Some(frame), Some(located)) = (self.stack.last_mut(), located) {
            if located.number <= frame.number {
                expected();
            }
            frame.number = located.number;
        }
        if let Some(base) = located.and_then(Located::base) {
            self.base.get_or_insert_with(|| (&*event.chain).into());
            self.hook = self.hook.or(base.hook);
        }
        match &event.verdict {
            Some(RuleVerdict::Jump(chain)) => self.stack.push(Frame { chain: (&**chain).into(), number: 0 }),
            Some(RuleVerdict::Goto(chain)) => {
                self.stack.pop();
                self.stack.push(Frame { chain: (&**chain).into(), number: 0 });
            }
            Some(RuleVerdict::Return) => {
                self.stack.pop();
            }
            Some(RuleVerdict::Final(_) | RuleVerdict::Continue) | None => {}
        }
        doubt
    }
}

impl Packet {
    fn of(family: Option<Family>, packet: &TracedPacket<'_>, name: DeviceName<'_>) -> Self {
        let network = packet.network.unwrap_or_default();
        let (whole, length) = match family {
            Some(Family::Ipv4) => ipv4(network),
            Some(Family::Ipv6) => ipv6(network),
            Some(Family::Arp) => (true, network.len() as u32),
            None => (false, 0),
        };
        let transport = packet.transport.filter(|_| whole).unwrap_or_default();
        Self {
            family,
            indev: packet.indev.and_then(|device| name(device.index)),
            outdev: packet.outdev.and_then(|device| name(device.index)),
            dev_type: packet.indev.or(packet.outdev).map_or(0, |device| device.dev_type),
            link: packet.link.map(<[u8]>::to_vec),
            bytes: if family.is_some() { [network, transport].concat() } else { Vec::new() },
            length,
        }
    }

    fn view(&self, family: Family, mark: u32) -> PacketView<'_> {
        let header = self.link.as_deref();
        PacketView {
            family,
            indev: self.indev.as_deref(),
            outdev: self.outdev.as_deref(),
            link: Link {
                dev_type: self.dev_type,
                hard_header_len: header.map_or(0, |header| header.len() as u16),
                header,
                ..Link::default()
            },
            len: self.length,
            bytes: &self.bytes,
            mark,
            owner: None,
        }
    }
}

/// Whether the network header begins as those of a family do.
fn is_of(family: Family, packet: &TracedPacket<'_>) -> bool {
    /// Ethernet, IPv4, and the lengths of their addresses.
    const ARP: [u8; 6] = [0, 1, 8, 0, 6, 4];
    match (family, packet.network.unwrap_or_default()) {
        (Family::Ipv4, [first, ..]) => first >> 4 == 4,
        (Family::Ipv6, [first, ..]) => first >> 4 == 6,
        (Family::Arp, header) => header.starts_with(&ARP),
        _ => false,
    }
}

/// Whether the whole header is there, so that the transport header follows it; and the packet's length.
fn ipv4(header: &[u8]) -> (bool, u32) {
    let [first, _, length @ ..] = header else { return (false, 0) };
    let length = length.first_chunk().map_or(0, |length| u16::from_be_bytes(*length));
    (header.len() == usize::from(first & 0xf) * 4, u32::from(length))
}

fn ipv6(header: &[u8]) -> (bool, u32) {
    let Some([_, _, _, _, high, low, next, ..]) = header.first_chunk::<40>() else { return (false, 0) };
    let length = u32::from(u16::from_be_bytes([*high, *low])) + 40;
    (header.len() == 40 && !is_extension(*next), length)
}
