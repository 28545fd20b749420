//! The conditions of a rule in the words of iptables-save.

use super::condition::{Condition, End, Test};
use super::values::{Addresses, Device, IcmpType, Ports, all, mark, protocol};
use crate::netfilter::Family;
use crate::owner::Word;

/// Matches whose options are read here; of others, all that belongs to them is one condition. Those two ask for nothing
/// but what their options say.
const READ: [&str; 8] = ["tcp", "udp", "icmp", "icmp6", "multiport", "mark", "iprange", "comment"];

/// The conditions of a rule.
pub(super) fn conditions(words: &[Word]) -> Vec<Condition> {
    let mut found: Vec<Condition> = Vec::new();
    let (mut negated, mut module) = (false, "");
    // Whether the last condition is a match that is not read here, which goes on.
    let mut open = false;
    let mut at = 0;
    while let Some(word) = words.get(at) {
        let value = words.get(at + 1).map_or("", |word| word.text.as_str());
        match word.text.as_str() {
            _ if word.quoted => {}
            "-j" | "-g" => break,
            "!" => negated = true,
            "-A" | "-c" => at += 1,
            "-m" => {
                (module, open) = (value, !READ.contains(&value));
                if open {
                    found.push(Condition::other(format!("-m {value}")));
                }
                at += 1;
            }
            option if option.starts_with('-') => {
                let arguments = arguments(&words[at + 1..]);
                let said: Vec<&str> = arguments.iter().map(|word| word.text.as_str()).collect();
                let said = said.join(" ");
                let text = [if negated { "! " } else { "" }, option, " ", &said].concat();
                let text = text.trim_end().to_owned();
                let of_packet = OF_PACKET.contains(&option);
                open &= !of_packet;
                match found.last_mut().filter(|_| open) {
                    Some(last) => last.text = format!("{} {text}", last.text),
                    None if module == "comment" && !of_packet => {}
                    None => {
                        let module = if of_packet { "" } else { module };
                        found.push(match test(module, option, &said) {
                            Some(test) => Condition { text, test, negated },
                            None => Condition::other(text),
                        });
                    }
                }
                negated = false;
                at += arguments.len();
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// Options that belong to no match.
const OF_PACKET: [&str; 6] = ["-s", "-d", "-p", "-i", "-o", "-f"];

/// What stands behind an option, up to the next.
fn arguments(words: &[Word]) -> &[Word] {
    let is_next = |word: &Word| !word.quoted && (word.text == "!" || word.text.starts_with('-'));
    let end = words.iter().position(is_next).unwrap_or(words.len());
    &words[..end]
}

/// What an option asks; `None` where that is not known.
fn test(module: &str, option: &str, said: &str) -> Option<Test> {
    let ports = |end| all(said.split(','), |text| Ports::read(text, ':')).map(|ports| Test::Port(end, ports));
    let address = |end| Some(Test::Address(end, vec![Addresses::read(said)?]));
    match (module, option) {
        ("", "-s") | ("iprange", "--src-range") => address(End::Source),
        ("", "-d") | ("iprange", "--dst-range") => address(End::Destination),
        ("", "-p") => Some(Test::Protocol(vec![protocol(said).filter(|number| *number != 0)?])),
        ("", "-i") => Some(Test::In(vec![Device::read(said, '+')])),
        ("", "-o") => Some(Test::Out(vec![Device::read(said, '+')])),
        ("", "-f") => Some(Test::LaterFragment),
        ("tcp" | "udp", "--sport") | ("multiport", "--sports") => ports(End::Source),
        ("tcp" | "udp", "--dport") | ("multiport", "--dports") => ports(End::Destination),
        ("multiport", "--ports") => ports(End::Either),
        ("tcp", "--tcp-flags") => flags(said),
        ("mark", "--mark") => {
            let (value, mask) = said.split_once('/').unwrap_or((said, "0xffffffff"));
            Some(Test::Mark { value: mark(value)?, mask: mark(mask)? })
        }
        // Any type.
        ("icmp" | "icmp6", _) if said.starts_with("255") => None,
        ("icmp", "--icmp-type") => Some(Test::Icmp(Family::Ipv4, vec![IcmpType::read(said, Family::Ipv4)?])),
        ("icmp6", "--icmpv6-type") => {
            Some(Test::Icmp(Family::Ipv6, vec![IcmpType::read(said, Family::Ipv6)?]))
        }
        _ => None,
    }
}

/// `FIN,SYN,RST,ACK SYN`
fn flags(said: &str) -> Option<Test> {
    const ALL: [&str; 6] = ["fin", "syn", "rst", "psh", "ack", "urg"];
    let list = |text: &str| -> Option<Vec<String>> {
        match text {
            "ALL" => Some(ALL.map(str::to_owned).to_vec()),
            "NONE" => Some(Vec::new()),
            names => {
                let known = |name: &str| ALL.contains(&name).then(|| name.to_owned());
                names.split(',').map(|name| known(&name.to_lowercase())).collect()
            }
        }
    };
    let (among, set) = said.split_once(' ')?;
    Some(Test::Flags { among: list(among)?, set: list(set)? })
}
