//! The command that shows more of where a packet ended.

use crate::cli::netns::Netns;
use crate::netfilter::{Engine, Hook, TableFamily};
use crate::packet::headers;
use crate::path::ending::Ending;
use crate::text::lossy;
use crate::why::{Fate, Met, Why};

/// What to type. `is_of_iptables` says whether iptables-nft made the table.
pub(super) fn command(why: &Why, netns: &Netns, is_of_iptables: bool) -> Option<String> {
    let at = why.at.as_ref()?;
    let words = match why.fate {
        Fate::LastSeen | Fate::Elsewhere if is_by_function(why) => {
            ["nft", "list", "hooks"].map(str::to_owned).to_vec()
        }
        Fate::LastSeen | Fate::Elsewhere if at.hook == Some(Hook::Prerouting) => route(at)?,
        // No rule is at fault.
        Fate::Elsewhere => return None,
        _ => list(at, is_of_iptables),
    };
    Some(inside(netns)?.into_iter().chain(words).map(|word| quoted(&word)).collect::<Vec<_>>().join(" "))
}

fn is_by_function(why: &Why) -> bool {
    matches!(why.path.ending, Some(Ending::ByFunction { .. }))
}

/// What runs a command in a namespace; `None` where that cannot be said.
fn inside(netns: &Netns) -> Option<Vec<String>> {
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    Some(match netns {
        Netns::Current => Vec::new(),
        Netns::Name(name) => owned(&["ip", "netns", "exec", name]),
        Netns::Pid(pid) => owned(&["nsenter", "-t", &pid.to_string(), "-n"]),
        Netns::Path(path) => owned(&["nsenter", &format!("--net={}", path.display())]),
        Netns::All => return None,
    })
}

/// Lists the chain.
fn list(at: &Met, is_of_iptables: bool) -> Vec<String> {
    let iptables = |tool: &str| {
        let words = [tool, "-t", &at.table, "-nvL", &at.chain, "--line-numbers"];
        words.map(str::to_owned).to_vec()
    };
    match (at.engine, at.family) {
        (Engine::Legacy, TableFamily::Ip6) => iptables("ip6tables-legacy"),
        (Engine::Legacy, _) => iptables("iptables-legacy"),
        (Engine::Nft, TableFamily::Ip) if is_of_iptables => iptables("iptables-nft"),
        (Engine::Nft, TableFamily::Ip6) if is_of_iptables => iptables("ip6tables-nft"),
        (Engine::Nft, family) => {
            ["nft", "-a", "list", "chain", family.name(), &at.table, &at.chain].map(str::to_owned).to_vec()
        }
    }
}

/// Asks the kernel where it would route the packet.
fn route(at: &Met) -> Option<Vec<String>> {
    let view = at.packet.view();
    let (packet, device) = (headers(&view), lossy(view.indev?).into_owned());
    let (src, dst) = (packet.src?.to_string(), packet.dst?.to_string());
    Some(["ip", "route", "get", &dst, "from", &src, "iif", &device].map(str::to_owned).to_vec())
}

/// As a shell takes it for one word.
fn quoted(word: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./=:,%@+".contains(letter);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn odd_names_are_quoted() {
        for (word, expected) in [
            ("INPUT", "INPUT"),
            ("--net=/run/netns/a b", "'--net=/run/netns/a b'"),
            ("it's", r"'it'\''s'"),
            ("$(x)", "'$(x)'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(word), expected);
        }
    }
}
