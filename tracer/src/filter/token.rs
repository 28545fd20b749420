//! Text to words and signs, each with its place.

use std::ops::Range;

/// What stands at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// A keyword, number, address, range or name.
    Word,
    /// `and`, `&&`
    And,
    /// `or`, `||`
    Or,
    /// `not`, `!`
    Not,
    /// `(`
    Open,
    /// `)`
    Close,
    /// `/`
    Slash,
    /// A sign of pcap's arithmetic, such as `[` or `!=`.
    Arithmetic,
    /// A character that no filter has.
    Unknown,
    /// Behind the last.
    End,
}

/// A word or sign.
#[derive(Clone, Debug)]
pub(super) struct Token<'a> {
    pub(super) kind: TokenKind,
    pub(super) text: &'a str,
    pub(super) span: Range<usize>,
}

/// Always ends with a token of the kind [`TokenKind::End`].
pub(super) fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut start = 0;
    while let Some(first) = text[start..].chars().next() {
        let length =
            if first.is_whitespace() { first.len_utf8() } else { token_length(&text[start..], first) };
        let span = start..start + length;
        if !first.is_whitespace() {
            tokens.push(Token { kind: kind(&text[span.clone()]), text: &text[span.clone()], span });
        }
        start += length;
    }
    tokens.push(Token { kind: TokenKind::End, text: "", span: text.len()..text.len() });
    tokens
}

fn token_length(rest: &str, first: char) -> usize {
    const PAIRS: [&str; 8] = ["&&", "||", "!=", "==", "<=", ">=", "<<", ">>"];
    if is_word(first) {
        rest.find(|c| !is_word(c) && c != '-').unwrap_or(rest.len())
    } else if PAIRS.iter().any(|pair| rest.starts_with(pair)) {
        2
    } else {
        first.len_utf8()
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '.' | ':' | '\\')
}

fn kind(text: &str) -> TokenKind {
    match text {
        "and" | "&&" => TokenKind::And,
        "or" | "||" => TokenKind::Or,
        "not" | "!" => TokenKind::Not,
        "(" => TokenKind::Open,
        ")" => TokenKind::Close,
        "/" => TokenKind::Slash,
        "[" | "]" | "<" | ">" | "=" | "!=" | "==" | "<=" | ">=" | "<<" | ">>" | "+" | "-" | "*" | "%"
        | "&" | "|" | "^" => TokenKind::Arithmetic,
        _ if text.starts_with(is_word) => TokenKind::Word,
        _ => TokenKind::Unknown,
    }
}
