//! The conditions of a rule in the words of nft.

use super::condition::{Condition, End, Test};
use super::values::{Addresses, Device, IcmpType, Ports, all, mark, protocol};
use crate::netfilter::Family;
use crate::owner::Word;

/// The conditions of a rule. What comes behind something that is not understood is one condition, which is not known.
pub(super) fn conditions(words: &[Word]) -> Vec<Condition> {
    let mut rest = Rest { words, at: 0 };
    let mut found = Vec::new();
    while let Some(word) = rest.peek(0) {
        let start = rest.at;
        match word {
            "counter" => rest.counter(),
            "comment" => rest.at += 2,
            "log" => rest.log(),
            word if ENDS.contains(&word) => break,
            // What is said of the chain or the rule, not of packets.
            "#" => break,
            _ => match rest.condition() {
                Some(read) => {
                    let text = rest.text(start, rest.at);
                    found.extend(read.implied.map(|(test, name)| Condition {
                        text: name.to_owned(),
                        test,
                        negated: false,
                    }));
                    found.push(Condition { text, test: read.test, negated: read.negated });
                }
                None => {
                    let changes = words[start..].iter().take(3).any(|word| word.is("set"));
                    let text = rest.text(start, words.len());
                    found.extend((!changes || asks_more(&words[start..])).then(|| Condition::other(text)));
                    break;
                }
            },
        }
    }
    found
}

/// What a rule does with packets that met all that stands before it.
const ENDS: [&str; 14] = [
    "accept",
    "drop",
    "reject",
    "jump",
    "goto",
    "return",
    "continue",
    "queue",
    "masquerade",
    "snat",
    "dnat",
    "redirect",
    "tproxy",
    "notrack",
];

/// Whether something behind the first words may still ask about a packet: more than a value and what ends a rule.
fn asks_more(words: &[Word]) -> bool {
    words.iter().skip(4).any(|word| !word.quoted && !ENDS.contains(&word.text.as_str()))
}

/// What a condition asks.
struct Read {
    /// What it takes for granted, which does not turn round with it; and the word for that.
    implied: Option<(Test, &'static str)>,
    test: Test,
    negated: bool,
}

impl Read {
    fn plain(test: Test, negated: bool) -> Self {
        Self { implied: None, test, negated }
    }
}

/// The words that have not been read yet.
struct Rest<'a> {
    words: &'a [Word],
    at: usize,
}

impl<'a> Rest<'a> {
    /// A word of the language or of a user, without its quotes.
    fn peek(&self, further: usize) -> Option<&'a str> {
        self.words.get(self.at + further).map(|word| word.text.as_str())
    }

    fn text(&self, from: usize, to: usize) -> String {
        let words = &self.words[from..to.min(self.words.len())];
        let mut text = String::new();
        for word in words {
            // The comma behind a quoted name.
            text.push_str(if text.is_empty() || word.is(",") { "" } else { " " });
            text.push_str(&if word.quoted { format!("\"{}\"", word.text) } else { word.text.clone() });
        }
        text
    }

    /// `counter packets 1 bytes 2`, `counter name "x"`
    fn counter(&mut self) {
        self.at += match (self.peek(1), self.peek(3)) {
            (Some("packets"), Some("bytes")) => 5,
            (Some("name"), _) => 3,
            _ => 1,
        };
    }

    /// `log prefix "x" level info`
    fn log(&mut self) {
        const OPTIONS: [&str; 6] = ["prefix", "level", "group", "snaplen", "queue-threshold", "flags"];
        self.at += 1;
        while self.peek(0).is_some_and(|word| OPTIONS.contains(&word)) {
            let value = self.peek(1).unwrap_or_default();
            // `flags tcp sequence,options`, `flags all`
            let two = self.peek(0) == Some("flags") && matches!(value, "tcp" | "ip");
            self.at += if two { 3 } else { 2 };
        }
    }

    /// Reads one condition; `None`, wherever it then is, when it is not understood.
    fn condition(&mut self) -> Option<Read> {
        let (subject, key) = (self.peek(0)?, self.peek(1).unwrap_or_default());
        let subject = match (subject, key) {
            ("iifname" | "iif" | "oifname" | "oif", _) => {
                self.at += 1;
                (subject, "")
            }
            _ => {
                self.at += 2;
                (subject, key)
            }
        };
        if let ("meta", "mark") = subject
            && self.peek(0) == Some("&")
        {
            return self.masked_mark();
        }
        if let ("tcp", "flags") = subject {
            return self.flags();
        }
        let negated = self.peek(0) == Some("!=");
        self.at += usize::from(negated || self.peek(0) == Some("=="));
        let words = self.values()?;
        let quoted = words.iter().all(|word| word.quoted);
        let values = || words.iter().map(|word| word.text.trim_end_matches(','));
        let family = |name: &str| if matches!(name, "ip" | "icmp") { Family::Ipv4 } else { Family::Ipv6 };
        let ports = |end| Some(Test::Port(end, all(values(), |text| Ports::read(text, '-'))?));
        let addresses = |end, name| {
            let among = all(values(), Addresses::read)?;
            let same = among.iter().all(|some| some.is_ipv4() == (family(name) == Family::Ipv4));
            same.then_some(Test::Address(end, among))
        };
        // A name that is not quoted is no name.
        let devices = || all(values(), |name| Some(Device::read(name, '*'))).filter(|_| quoted);
        let mut implied = None;
        let test = match subject {
            (name @ ("ip" | "ip6"), "saddr") => addresses(End::Source, name)?,
            (name @ ("ip" | "ip6"), "daddr") => addresses(End::Destination, name)?,
            ("ip", "protocol") => {
                implied = Some((Test::Family(Family::Ipv4), "ip"));
                Test::Protocol(all(values(), protocol)?)
            }
            ("meta", "l4proto") => Test::Protocol(all(values(), protocol)?),
            ("meta", "nfproto") => match values().collect::<Vec<_>>().as_slice() {
                ["ipv4"] => Test::Family(Family::Ipv4),
                ["ipv6"] => Test::Family(Family::Ipv6),
                _ => return None,
            },
            ("meta", "mark") => match all(values(), mark)?.as_slice() {
                [value] => Test::Mark { value: *value, mask: u32::MAX },
                _ => return None,
            },
            (name @ ("tcp" | "udp"), key @ ("sport" | "dport")) => {
                let (number, name) = if name == "tcp" { (6, "tcp") } else { (17, "udp") };
                implied = Some((Test::Protocol(vec![number]), name));
                ports(if key == "sport" { End::Source } else { End::Destination })?
            }
            ("th", "sport") => ports(End::Source)?,
            ("th", "dport") => ports(End::Destination)?,
            (name @ ("icmp" | "icmpv6"), "type") => {
                let types = all(values(), |text| IcmpType::read(text, family(name)))?;
                Test::Icmp(family(name), types)
            }
            ("iifname" | "iif", _) => Test::In(devices()?),
            ("oifname" | "oif", _) => Test::Out(devices()?),
            // Nothing of conntrack is known.
            ("ct", "state" | "status" | "mark" | "direction") => Test::Other,
            _ => return None,
        };
        Some(Read { implied, test, negated })
    }

    /// `& 0x000000ff == 0x00000001`
    fn masked_mark(&mut self) -> Option<Read> {
        let (mask, value) = (mark(self.peek(1)?)?, mark(self.peek(3)?)?);
        let negated = match self.peek(2)? {
            "==" => false,
            "!=" => true,
            _ => return None,
        };
        self.at += 4;
        Some(Read::plain(Test::Mark { value, mask }, negated))
    }

    /// `& (fin | syn | rst | ack) == syn`, `syn / fin,syn,rst,ack`
    fn flags(&mut self) -> Option<Read> {
        let list = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
        let (among, set) = match (self.peek(0)?, self.peek(1)?) {
            (set, "/") => {
                let among = list(self.peek(2)?);
                self.at += 3;
                (among, list(set))
            }
            ("&", _) => {
                let close = (1..12).find(|at| self.peek(*at).is_some_and(|word| word.ends_with(')')))?;
                let word = |at| self.peek(at).map(|word| word.trim_matches(['(', ')']).to_owned());
                let among = (1..=close).filter_map(word).filter(|word| word != "|").collect();
                if self.peek(close + 1)? != "==" || self.peek(close + 3).is_some_and(|word| word == "|") {
                    return None;
                }
                let set = self.peek(close + 2)?.to_owned();
                self.at += close + 3;
                (among, vec![set])
            }
            _ => return None,
        };
        const KNOWN: [&str; 8] = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"];
        let known = |names: &[String]| names.iter().all(|name| KNOWN.contains(&name.as_str()));
        (known(&among) && known(&set)).then(|| Read::plain(Test::Flags { among, set }, false))
    }

    /// One value, or those between braces; `None` for a set with a name, and for values of several parts.
    fn values(&mut self) -> Option<Vec<&'a Word>> {
        const NO_VALUES: [&str; 6] = [".", ":", "timeout", "expires", "comment", "counter"];
        let first = self.words.get(self.at)?;
        if !first.is("{") {
            self.at += 1;
            let is_value = first.quoted || !first.text.starts_with(['@', '&', '.', '$', '<', '>']);
            return (is_value && self.peek(0) != Some(".")).then(|| vec![first]);
        }
        let count = self.words[self.at..].iter().position(|word| word.is("}"))?;
        let inside = &self.words[self.at + 1..self.at + count];
        self.at += count + 1;
        // Behind a quoted name, its comma is a word.
        let values: Vec<&Word> = inside.iter().filter(|word| word.quoted || word.text != ",").collect();
        let odd = |word: &&Word| !word.quoted && NO_VALUES.contains(&word.text.as_str());
        (!values.iter().any(odd)).then_some(values)
    }
}
