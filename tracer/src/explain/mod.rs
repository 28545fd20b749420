//! Why a packet passed a rule without matching: which of the rule's simple conditions it did not meet, and what it had
//! instead.
//!
//! Works on the text of rules, in the words of iptables-save and of nft. What is not understood, or not known of the
//! packet, is answered with [`Answer::Unknown`]; nothing is guessed.
#![forbid(unsafe_code)]

mod condition;
mod nft;
mod save;
#[cfg(test)]
mod tests;
mod values;

use crate::owner::{Word, words};
use crate::packet::PacketView;
use condition::Condition;

/// What the packet says to one condition of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It meets it.
    Holds,
    /// It does not.
    Fails {
        /// What it has instead.
        value: String,
    },
    /// That is not known.
    Unknown,
}

/// One condition of a rule, and what a packet says to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// As the rule has it: `--dport 80`, `ip saddr 10.0.0.0/8`.
    pub text: String,
    /// What the packet says.
    pub answer: Answer,
}

/// How far a packet is known as it was when a rule was asked about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// All that is in the view.
    All,
    /// Its devices. Something may have changed the rest of it since.
    Devices,
}

/// Asks a packet about every condition of a rule, whose text is as iptables-save or nft prints it.
pub fn explain(text: &str, view: &PacketView<'_>, known: Known) -> Vec<Checked> {
    conditions(text).into_iter().map(|condition| condition.check(view, known)).collect()
}

fn conditions(text: &str) -> Vec<Condition> {
    let words = words(text);
    if text.starts_with("-A ") { save::conditions(&words) } else { nft::conditions(&words) }
}

/// Where a rule sends packets that match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leads {
    /// They are accepted.
    Accept,
    /// They are thrown away.
    Drop,
    /// They are thrown away, and their sender is told.
    Reject,
    /// To a chain, or to a target that is none of these.
    To(String),
    /// Nowhere: they go on.
    On,
}

/// Where a rule sends packets that match, by its text.
pub fn leads(text: &str) -> Leads {
    let words = words(text);
    let after = |names: &[&str]| {
        let pair = |pair: &&[_]| names.iter().any(|name| pair_is(pair, name));
        words.windows(2).rfind(pair).map(|pair| pair[1].text.as_str())
    };
    if text.starts_with("-A ") {
        return match after(&["-j", "-g"]) {
            Some("ACCEPT") => Leads::Accept,
            Some("DROP") => Leads::Drop,
            Some("REJECT") => Leads::Reject,
            Some(target) => Leads::To(target.to_owned()),
            None => Leads::On,
        };
    }
    let says = |name: &str| words.iter().any(|word| word.is(name));
    match after(&["jump", "goto"]) {
        Some(chain) => Leads::To(chain.to_owned()),
        None if says("vmap") => Leads::On,
        None if says("reject") => Leads::Reject,
        None if says("drop") => Leads::Drop,
        None if says("accept") => Leads::Accept,
        None => Leads::On,
    }
}

fn pair_is(pair: &[Word], name: &str) -> bool {
    pair.first().is_some_and(|word| word.is(name))
}

/// Whether a rule of nftables, in the words of nft or of iptables-nft, may change a packet, or its mark, even where it does
/// not hold to its end.
pub fn may_change(text: &str) -> bool {
    const HARMLESS: [&str; 8] = ["RETURN", "LOG", "NFLOG", "QUEUE", "NFQUEUE", "CT", "NOTRACK", "CLASSIFY"];
    if text.starts_with("-A ") {
        // Chains of users have such names, too; then less is known.
        let is_target = |name: &str| name.bytes().all(|byte| byte.is_ascii_uppercase());
        return matches!(leads(text), Leads::To(to) if is_target(&to) && !HARMLESS.contains(&to.as_str()));
    }
    words(text).iter().any(|word| word.is("set"))
}

/// A rule without what its counters say, which changes all the time.
pub fn without_counters(text: &str) -> String {
    let (words, mut said) = (words(text), String::new());
    for (at, word) in words.iter().enumerate() {
        let is_after = |name: &str| at > 0 && words[at - 1].is(name);
        if !is_after("packets") && !is_after("bytes") {
            said.push_str(&word.text);
            said.push(' ');
        }
    }
    said
}
