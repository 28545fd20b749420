//! Which program made a rule, and for which of its objects: told from the names of tables and chains and from comments.
//!
//! What cannot be told is not guessed: a name that a user would choose tells nothing, and of a chain that a program
//! leaves to its users nothing is said.

#![forbid(unsafe_code)]

mod pattern;
mod systems;
#[cfg(test)]
mod tests;

use pattern::{captures, fill};
use systems::{SYSTEMS, System, Wording};

/// What is known of a rule.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The table's name.
    pub table: &'a str,
    /// The chain's name.
    pub chain: &'a str,
    /// The rule, as iptables-save or nft prints it; `None` for policies and ends of chains.
    pub text: Option<&'a str>,
}

/// Who made a rule: `firewalld zone public`; `None` where that cannot be told.
pub fn of(place: Place<'_>) -> Option<String> {
    let words = place.text.map(words).unwrap_or_default();
    SYSTEMS.iter().find_map(|system| system.made(&place, target(&words), comment(&words)))
}

impl System {
    fn made(&self, place: &Place<'_>, target: Option<&str>, comment: Option<&str>) -> Option<String> {
        if self.users.contains(&place.chain) {
            return None;
        }
        let objects = [
            self.chain(place.chain),
            read(self.tables, place.table),
            target.and_then(|target| self.chain(target)),
            comment.and_then(|comment| read(self.signatures, comment)),
        ];
        let own =
            objects.into_iter().flatten().reduce(|one, other| if one.is_empty() { other } else { one })?;
        let object = match own.is_empty() {
            true => comment.and_then(|comment| read(self.comments, comment)).unwrap_or_default(),
            false => own,
        };
        Some(format!("{} {object}", self.name).trim_end().to_owned())
    }

    /// The object of a chain that this program made; empty where the name does not tell.
    fn chain(&self, name: &str) -> Option<String> {
        read(self.chains, name)
    }
}

/// What the first wording that fits a text tells of it.
fn read(wordings: &[Wording], text: &str) -> Option<String> {
    wordings.iter().find_map(|wording| {
        let found = captures(wording.pattern, text)?;
        found.iter().all(|part| !part.is_empty() && !part.contains(' ')).then(|| fill(wording.object, &found))
    })
}

/// What stands behind `comment` or `--comment`.
fn comment(words: &[Word]) -> Option<&str> {
    let said = |pair: &&[Word]| pair[0].is("--comment") || pair[0].is("comment") && pair[1].quoted;
    words.windows(2).find(said).map(|pair| pair[1].text.as_str())
}

/// The chain that a rule leads to.
fn target(words: &[Word]) -> Option<&str> {
    let leads = |pair: &&[Word]| ["-j", "-g", "jump", "goto"].iter().any(|word| pair[0].is(word));
    words.windows(2).find(leads).map(|pair| pair[1].text.as_str())
}

/// A word of a rule, without its quotes.
pub(crate) struct Word {
    pub(crate) text: String,
    pub(crate) quoted: bool,
}

impl Word {
    /// Whether it is this word of the language, not something that a user has quoted.
    pub(crate) fn is(&self, word: &str) -> bool {
        !self.quoted && self.text == word
    }
}

/// The words of a rule as iptables-save and nft write them.
pub(crate) fn words(rule: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut letters = rule.chars().peekable();
    while let Some(first) = letters.next() {
        let quoted = first == '"';
        let mut text = String::new();
        let mut next = if quoted { letters.next() } else { Some(first) };
        while let Some(letter) = next.filter(|&letter| letter != if quoted { '"' } else { ' ' }) {
            let escaped = if quoted && letter == '\\' { letters.next() } else { None };
            text.push(escaped.unwrap_or(letter));
            next = letters.next();
        }
        if quoted || !text.is_empty() {
            words.push(Word { text, quoted });
        }
    }
    words
}
