//! The ways in which a packet can match, for those who can only ask one question after the other.

use tracer_common::filter::{ACCEPT, Node, Program, REJECT, word};

/// One question about a packet and the answer that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Index into the words of a key.
    pub word: u8,
    /// Applied before the comparison.
    pub mask: u32,
    /// The smallest value that is a yes.
    pub low: u32,
    /// The largest value that is a yes.
    pub high: u32,
    /// Whether it has to be a yes.
    pub wanted: bool,
}

/// All ways through a program that accept; a packet matches when all answers of one of them are as wanted. `None` when
/// there are more than `most`.
pub fn ways(program: &Program, most: usize) -> Option<Vec<Vec<Question>>> {
    let mut found = Vec::new();
    let start = if program.len == 0 { ACCEPT } else { 0 };
    follow(program, start, &mut Vec::new(), &mut found, most)?;
    Some(found)
}

/// `None` when there are too many. Nodes lead only to later ones, so this ends.
fn follow(
    program: &Program,
    next: u8,
    questions: &mut Vec<Question>,
    found: &mut Vec<Vec<Question>>,
    most: usize,
) -> Option<()> {
    if next == ACCEPT {
        found.push(questions.clone());
        return (found.len() <= most).then_some(());
    }
    let node = program.nodes.get(usize::from(next)).filter(|_| next != REJECT);
    let Some(&Node { word, yes, no, mask, low, high, .. }) = node else { return Some(()) };
    for (next, wanted) in [(yes, true), (no, false)] {
        questions.push(Question { word, mask, low, high, wanted });
        let followed =
            if contradicts(questions) { Some(()) } else { follow(program, next, questions, found, most) };
        questions.pop();
        followed?;
    }
    Some(())
}

/// Whether the last question about the IP version leaves none.
fn contradicts(questions: &[Question]) -> bool {
    let is_possible = |version: u32| {
        questions.iter().filter(|question| question.word == word::VERSION).all(|question| {
            (question.low..=question.high).contains(&(version & question.mask)) == question.wanted
        })
    };
    !is_possible(4) && !is_possible(6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::first_form;
    use tracer_common::filter::Key;

    fn agree(question: &Question, key: &Key) -> bool {
        let value = key.words[usize::from(question.word)] & question.mask;
        (question.low..=question.high).contains(&value) == question.wanted
    }

    fn packet(bytes: [u8; 64], version: bool) -> Key {
        let mut bytes = bytes;
        bytes[0] = if version { 0x45 } else { 0x60 };
        Key::from_packet(&bytes)
    }

    proptest::proptest! {
        #[test]
        fn a_packet_matches_when_one_way_fits(bytes in proptest::array::uniform32(0u8..3), version: bool) {
            let mut header = [0; 64];
            header[..32].copy_from_slice(&bytes);
            let key = packet(header, version);
            for text in ["", "ip", "ip6", "not tcp", "udp or host 0.0.0.1", "proto 1 and not src net 0.0.0.0/31",
                         "port 1 or portrange 2-9", "not (ip6 or dst host 1.2.0.1)"] {
                let program = first_form(text).unwrap();
                let ways = ways(&program, 64).unwrap();
                let fits = ways.iter().any(|way| way.iter().all(|question| agree(question, &key)));
                proptest::prop_assert_eq!(fits, program.matches(&key), "{}", text);
            }
        }
    }

    #[test]
    fn too_many_are_refused() {
        let any = ways(&Program::ANY, 1).unwrap();
        assert_eq!(any, [Vec::new()]);
        let many = first_form("port 1 or port 2 or port 3").unwrap();
        assert_eq!(ways(&many, 2), None);
    }
}
