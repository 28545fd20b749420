//! What packets are chosen by beside the filter: what is known of a packet at its steps, and of its end.
//!
//! Pure. Most of it is known only when a packet is done, so that its steps have to be held until then.
#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;

use crate::netfilter::{Hook, StepKind, Verdict};
use crate::packet::PacketView;
use crate::path::Step;
use crate::path::ending::Ending;
use std::fmt;
use std::str::FromStr;

/// What is asked for. Each question is about the packet as a whole: it is enough that one of its steps meets it, and no
/// two of them need meet at the same step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Predicates {
    /// It came in by this device.
    pub indev: Option<Device>,
    /// It left by this device.
    pub outdev: Option<Device>,
    /// It had this mark.
    pub mark: Option<Masked>,
    /// A socket of this user sent it.
    pub uid: Option<User>,
    /// It met a table of this name, or with [`Self::chain`] that chain in it.
    pub table: Option<String>,
    /// It met a chain of this name.
    pub chain: Option<String>,
    /// It met this rule.
    pub rule: Option<Place>,
    /// It ended in one of these ways; empty for any.
    pub verdicts: Vec<Verdict>,
}

/// The name of a device, or how its name begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    name: String,
    /// Whether more may follow.
    begins: bool,
}

/// A number, and the bits of it that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Masked {
    /// No bits outside the mask.
    value: u32,
    mask: u32,
}

/// A user by name or number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// The number.
    Number(u32),
    /// The name, not looked up yet.
    Name(String),
}

/// A rule, return or policy by its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    table: String,
    chain: String,
    /// Any, where it was not said.
    kind: Option<StepKind>,
    number: Option<u32>,
}

/// Longest name of a device (`IFNAMSIZ` without the zero at its end).
const DEVICE_BYTES: usize = 15;

/// `eth0`, or `eth+` for all whose names begin so.
impl FromStr for Device {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "not the name of a device: 1 to 15 bytes without blanks and slashes; a + at the end stands \
                             for whatever follows";
        let (name, begins) = text.strip_suffix('+').map_or((text, false), |name| (name, true));
        let is_wrong = |byte: u8| byte.is_ascii_whitespace() || byte == b'/';
        let fits = name.len() <= DEVICE_BYTES && (begins || !name.is_empty());
        if !fits || name.bytes().any(is_wrong) || matches!(name, "." | "..") {
            return Err(WRONG);
        }
        Ok(Self { name: name.to_owned(), begins })
    }
}

impl Device {
    /// Its bytes as the kernel keeps them, and those of them that count.
    pub fn words(&self) -> ([u64; 2], [u64; 2]) {
        let (mut name, mut mask) = ([0; 16], [0; 16]);
        name[..self.name.len()].copy_from_slice(self.name.as_bytes());
        // The zero at its end as well, if there is nothing else behind it.
        mask[..self.name.len() + usize::from(!self.begins)].fill(0xff);
        let words = |bytes: [u8; 16]| {
            let (words, _) = bytes.as_chunks();
            [u64::from_ne_bytes(words[0]), u64::from_ne_bytes(words[1])]
        };
        (words(name), words(mask))
    }

    /// Whether it is meant by a name.
    pub fn is(&self, name: &[u8]) -> bool {
        if self.begins { name.starts_with(self.name.as_bytes()) } else { name == self.name.as_bytes() }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if self.begins { f.write_str("+") } else { Ok(()) }
    }
}

/// `0x10/0xff`, as iptables writes it; without a mask all bits count.
impl FromStr for Masked {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "not a mark; write it as 0x10 or 0x10/0xff";
        let number = |text: &str| match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(digits) if !digits.starts_with('+') => u32::from_str_radix(digits, 16).ok(),
            Some(_) => None,
            None => text.parse().ok().filter(|_| !text.starts_with('+')),
        };
        let (value, mask) = text.split_once('/').map_or((text, None), |(value, mask)| (value, Some(mask)));
        let value = number(value).ok_or(WRONG)?;
        let mask = mask.map_or(Some(u32::MAX), number).ok_or(WRONG)?;
        if value & !mask != 0 {
            return Err("a mark that no packet can have: it has bits outside its mask");
        }
        Ok(Self { value, mask })
    }
}

impl Masked {
    /// Whether a mark is one that is meant.
    pub fn is(self, mark: u32) -> bool {
        mark & self.mask == self.value
    }
}

impl fmt::Display for Masked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.value)?;
        if self.mask == u32::MAX { Ok(()) } else { write!(f, "/{:#x}", self.mask) }
    }
}

impl FromStr for User {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "neither the number of a user nor a name";
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse().map(Self::Number).map_err(|_| WRONG);
        }
        let is_wrong = |letter: char| letter.is_whitespace() || letter.is_control() || letter == ':';
        if text.is_empty() || text.starts_with('-') || text.contains(is_wrong) {
            return Err(WRONG);
        }
        Ok(Self::Name(text.to_owned()))
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// `filter:INPUT:3`, or as steps have it `filter:INPUT:rule:3`; `filter:INPUT:policy` for a step without a number.
impl FromStr for Place {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str =
            "not a rule; write it as filter:FORWARD:3, or as steps are named, filter:FORWARD:policy:4";
        const KINDS: [StepKind; 3] = [StepKind::Rule, StepKind::Return, StepKind::Policy];
        let kind_of = |place: &str| {
            KINDS.into_iter().find_map(|kind| {
                let place = place.strip_suffix(kind.name())?.strip_suffix(':')?;
                Some((place.to_owned(), kind))
            })
        };
        let (place, last) = text.rsplit_once(':').ok_or(WRONG)?;
        let number: Option<u32> = last.parse().ok().filter(|number| *number > 0);
        let (place, kind) = match (number, kind_of(if number.is_some() { place } else { text })) {
            (_, Some((place, kind))) => (place, Some(kind)),
            (Some(_), None) => (place.to_owned(), None),
            (None, None) => return Err(WRONG),
        };
        let (table, chain) = place.split_once(':').ok_or(WRONG)?;
        let named = !table.is_empty() && !chain.is_empty();
        let place = || Self { table: table.to_owned(), chain: chain.to_owned(), kind, number };
        named.then(place).ok_or(WRONG)
    }
}

impl Place {
    fn is_of(&self, step: &Step<'_>) -> bool {
        let rule = &step.rule;
        self.table == rule.table
            && self.chain == rule.chain
            && self.kind.is_none_or(|kind| kind == rule.kind)
            && (self.number.is_none() || self.number == rule.number)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.table, self.chain)?;
        if let Some(kind) = self.kind {
            write!(f, ":{kind}")?;
        }
        self.number.map_or(Ok(()), |number| write!(f, ":{number}"))
    }
}

/// A verdict by its name.
pub fn verdict(text: &str) -> Result<Verdict, &'static str> {
    let known = [Verdict::Drop, Verdict::Accept, Verdict::Stolen, Verdict::Queue];
    let found = known.into_iter().find(|verdict| verdict.to_string() == text);
    found.ok_or("not a verdict: drop, accept, stolen or queue; several are separated by commas")
}

/// Which of the questions about steps a packet has met so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Met(u8);

impl Met {
    const INDEV: u8 = 1 << 0;
    const OUTDEV: u8 = 1 << 1;
    const MARK: u8 = 1 << 2;
    const UID: u8 = 1 << 3;
    const CHAIN: u8 = 1 << 4;
    const RULE: u8 = 1 << 5;

    /// Adds what another step met.
    pub fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// Whether a packet is one that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// It is.
    Wanted,
    /// It is not.
    Unwanted,
    /// It would be, if its verdict, which is not known, were one that was asked for.
    Unknown,
}

impl Predicates {
    /// Packets that are dropped, and nothing else is asked of them.
    pub fn dropped() -> Self {
        Self { verdicts: vec![Verdict::Drop], ..Self::default() }
    }

    /// Whether every packet is wanted.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What a step says to the questions.
    pub fn met(&self, step: &Step<'_>) -> Met {
        let view = &step.view;
        let is = |device: &Device, names: [Option<&[u8]>; 2]| {
            names.into_iter().flatten().any(|name| device.is(name))
        };
        let in_chain = || {
            self.table.as_ref().is_none_or(|table| table == step.rule.table)
                && self.chain.as_ref().is_none_or(|chain| chain == step.rule.chain)
        };
        let answers = [
            (Met::INDEV, self.indev.as_ref().is_none_or(|device| is(device, [view.indev, view.link.physin]))),
            (
                Met::OUTDEV,
                self.outdev.as_ref().is_none_or(|device| is(device, [view.outdev, view.link.physout])),
            ),
            (Met::MARK, self.mark.is_none_or(|mark| mark.is(view.mark))),
            (Met::UID, self.uid.as_ref().is_none_or(|user| sender(step.hook, view).as_ref() == Some(user))),
            (Met::CHAIN, in_chain()),
            (Met::RULE, self.rule.as_ref().is_none_or(|place| place.is_of(step))),
        ];
        Met(answers.iter().filter(|(_, holds)| *holds).fold(0, |met, (bit, _)| met | bit))
    }

    /// What a packet meets without any step.
    fn unasked(&self) -> Met {
        let asked = [
            (Met::INDEV, self.indev.is_some()),
            (Met::OUTDEV, self.outdev.is_some()),
            (Met::MARK, self.mark.is_some()),
            (Met::UID, self.uid.is_some()),
            (Met::CHAIN, self.table.is_some() || self.chain.is_some()),
            (Met::RULE, self.rule.is_some()),
        ];
        Met(asked.iter().filter(|(_, asked)| !asked).fold(0, |met, (bit, _)| met | bit))
    }

    /// Whether a packet is wanted whose steps met this, whose last table decided so, and which ended so, where that is known.
    /// What another function of a hook dropped, or user space, was dropped, whatever the table said; what the kernel freed
    /// elsewhere may have come to its end.
    pub fn choose(&self, met: Met, verdict: Option<Verdict>, ending: Option<&Ending>) -> Choice {
        const ALL: u8 = Met::INDEV | Met::OUTDEV | Met::MARK | Met::UID | Met::CHAIN | Met::RULE;
        let verdict = match ending {
            Some(Ending::ByFunction { .. }) => Some(Verdict::Drop),
            Some(Ending::ByUser { .. }) if self.verdicts.contains(&Verdict::Drop) => Some(Verdict::Drop),
            _ => verdict,
        };
        let met = match verdict {
            // The rule may not be known, and there is no step then.
            Some(Verdict::Drop) if self.verdicts.contains(&Verdict::Drop) => Met(met.0 | self.unasked().0),
            _ => met,
        };
        match verdict {
            _ if met.0 != ALL => Choice::Unwanted,
            _ if self.verdicts.is_empty() => Choice::Wanted,
            None => Choice::Unknown,
            Some(verdict) if self.verdicts.contains(&verdict) => Choice::Wanted,
            Some(_) => Choice::Unwanted,
        }
    }
}

/// Who sent a packet. One that comes in may have the socket already that takes it.
fn sender(hook: Option<Hook>, view: &PacketView<'_>) -> Option<User> {
    let goes_out = match hook {
        Some(hook) => matches!(hook, Hook::Output | Hook::Postrouting | Hook::Egress),
        None => view.indev.is_none(),
    };
    view.owner.filter(|_| goes_out).map(|owner| User::Number(owner.uid))
}

/// As it is typed.
impl fmt::Display for Predicates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words: Vec<(&str, String)> = Vec::new();
        let mut add = |option, value: Option<String>| words.extend(value.map(|value| (option, value)));
        add("--in", self.indev.as_ref().map(Device::to_string));
        add("--out", self.outdev.as_ref().map(Device::to_string));
        add("--mark", self.mark.map(|mark| mark.to_string()));
        add("--uid", self.uid.as_ref().map(User::to_string));
        add("--table", self.table.clone());
        add("--chain", self.chain.clone());
        add("--rule", self.rule.as_ref().map(Place::to_string));
        let verdicts: Vec<String> = self.verdicts.iter().map(Verdict::to_string).collect();
        add("--verdict", (!verdicts.is_empty()).then(|| verdicts.join(",")));
        for (index, (option, value)) in words.iter().enumerate() {
            write!(f, "{}{option} {value}", if index == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}
