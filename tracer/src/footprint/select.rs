//! What of a filter can be said in rules. Rules may select more than the filter, never less: the rest of it is asked
//! in user space.

use crate::filter::{Filter, Question, ways};
use crate::netfilter::Family;
use tracer_common::filter::word;

/// More rules than these are not made for a family; every packet is marked then.
const MOST_RULES: usize = 16;

/// The packets of one family that one rule is to mark: those for which all of this holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Selection {
    pub(super) family: Family,
    pub(super) tests: Vec<Test>,
}

/// A field of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    /// The protocol of IPv4; that after the extension headers of IPv6.
    Protocol,
    /// The source port; only of packets that have ports.
    SourcePort,
    /// The destination port.
    DestinationPort,
    /// Four bytes of the source address.
    Source(u8),
    /// Four bytes of the destination address.
    Destination(u8),
}

/// Whether a field, masked, is within a range, or outside of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Test {
    pub(super) field: Field,
    pub(super) mask: u32,
    pub(super) low: u32,
    pub(super) high: u32,
    pub(super) inside: bool,
}

impl Test {
    /// Whether it asks for one value.
    pub(super) fn is_one(&self) -> bool {
        self.low == self.high
    }
}

/// The rules for a filter.
pub(super) fn selections(filter: &Filter) -> Vec<Selection> {
    let families = [Family::Ipv4, Family::Ipv6];
    let simple = filter.simple.as_ref();
    let Some(ways) = simple.and_then(|program| ways(program, 4 * MOST_RULES)) else {
        return families.map(everything).into();
    };
    let mut selections = Vec::new();
    for family in families {
        let mut ours: Vec<Selection> = Vec::new();
        for selection in ways.iter().filter_map(|way| select(family, way)) {
            if !ours.contains(&selection) {
                ours.push(selection);
            }
        }
        let all = ours.len() > MOST_RULES || ours.iter().any(|selection| selection.tests.is_empty());
        if all {
            ours = vec![everything(family)];
        }
        selections.extend(ours);
    }
    selections
}

fn everything(family: Family) -> Selection {
    Selection { family, tests: Vec::new() }
}

/// `None` when no packet of the family can match in this way.
fn select(family: Family, way: &[Question]) -> Option<Selection> {
    let answer = |question: &Question, value: u32| {
        (question.low..=question.high).contains(&(value & question.mask)) == question.wanted
    };
    let version = if family == Family::Ipv4 { 4 } else { 6 };
    let mut tests = Vec::new();
    let mut has_ports = false;
    for question in way {
        match question.word {
            word::VERSION if !answer(question, version) => return None,
            word::HAS_PORTS if answer(question, 1) && !answer(question, 0) => has_ports = true,
            // IPv4 has no such header.
            word::FRAGMENT if family == Family::Ipv4 && !answer(question, 0) => return None,
            _ => {}
        }
        let Some(field) = field(family, question.word) else { continue };
        let Question { mask, low, high, wanted, .. } = *question;
        tests.push(Test { field, mask, low, high, inside: wanted });
    }
    let is_port = |test: &Test| matches!(test.field, Field::SourcePort | Field::DestinationPort);
    tests.retain(|test| sayable(family, test) && (has_ports || !is_port(test)));
    Some(Selection { family, tests })
}

fn field(family: Family, at: u8) -> Option<Field> {
    let words = if family == Family::Ipv4 { 1 } else { 4 };
    match at {
        word::PROTOCOL => Some(Field::Protocol),
        word::SPORT => Some(Field::SourcePort),
        word::DPORT => Some(Field::DestinationPort),
        _ if (word::SRC..word::SRC + words).contains(&at) => Some(Field::Source(at - word::SRC)),
        _ if (word::DST..word::DST + words).contains(&at) => Some(Field::Destination(at - word::DST)),
        _ => None,
    }
}

/// The filter looks at IPv6's first next header, rules at the one that ends the extension headers.
fn sayable(family: Family, test: &Test) -> bool {
    const EXTENSIONS: [u32; 5] = [0, 43, 44, 51, 60];
    match test.inside {
        _ if family == Family::Ipv4 || test.field != Field::Protocol => test.inside || test.is_one(),
        true => test.is_one() && !EXTENSIONS.contains(&test.low),
        // That it is another one there does not say that it is another one here.
        false => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::{LibpcapError, compile};
    use expect_test::expect;
    use std::fmt::Write as _;

    fn shown(filter: &str) -> String {
        let mut text = String::new();
        for Selection { family, tests } in
            selections(&compile(filter, &|_, _| Err(LibpcapError::Absent)).unwrap())
        {
            let _ = write!(text, "{family}");
            for Test { field, mask, low, high, inside } in tests {
                let not = if inside { "" } else { "not " };
                let _ = write!(text, ", {not}{field:?} & {mask:x} in {low:x}..={high:x}");
            }
            text.push('\n');
        }
        text
    }

    #[test]
    fn filters_become_rules() {
        let mut text = shown("");
        for filter in
            ["icmp", "ip6 proto 0", "port 443", "udp dst portrange 1-9", "not tcp", "dst net fd00::/64"]
        {
            text.push_str(&format!("# {filter}\n"));
            text.push_str(&shown(filter));
        }
        expect![[r#"
            ip
            ip6
            # icmp
            ip, Protocol & ffffffff in 1..=1
            # ip6 proto 0
            ip6
            # port 443
            ip, SourcePort & ffffffff in 1bb..=1bb
            ip, not SourcePort & ffffffff in 1bb..=1bb, DestinationPort & ffffffff in 1bb..=1bb
            ip6, SourcePort & ffffffff in 1bb..=1bb
            ip6, not SourcePort & ffffffff in 1bb..=1bb, DestinationPort & ffffffff in 1bb..=1bb
            # udp dst portrange 1-9
            ip, Protocol & ffffffff in 11..=11, DestinationPort & ffffffff in 1..=9
            ip6, Protocol & ffffffff in 11..=11, DestinationPort & ffffffff in 1..=9
            # not tcp
            ip, not Protocol & ffffffff in 6..=6
            ip6
            # dst net fd00::/64
            ip6, Destination(0) & ffffffff in fd000000..=fd000000, Destination(1) & ffffffff in 0..=0
        "#]]
        .assert_eq(&text);
    }

    /// More ways than rules: every packet.
    #[test]
    fn a_long_filter_marks_everything() {
        let hosts: Vec<String> = (1..30).map(|host| format!("host 10.0.0.{host}")).collect();
        assert_eq!(shown(&hosts.join(" or ")), "ip\n");
    }
}
