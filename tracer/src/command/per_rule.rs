//! At most so many packets in a second of those that one rule decided about.

use super::kept::Kept;
use crate::netfilter::{Engine, StepKind, TableFamily, Verdict};
use crate::path::{Action, Step};
use std::collections::HashMap;
use std::num::NonZeroU32;

const NS_PER_S: u64 = 1_000_000_000;
/// Paths come in the order in which packets were done: one that is older by no more than this is late, beyond it the clock
/// was set back.
const LATE_SECONDS: u64 = 60;
/// Rules that are remembered; beyond that all begin their second anew.
const RULES: usize = 1 << 16;

/// Counts the packets that were shown, by the rule that decided about them.
pub(super) struct PerRule {
    most: u32,
    rules: HashMap<Place, Second>,
}

/// A rule by its namespace and name.
type Place = (Option<u32>, Engine, TableFamily, Box<str>);

/// The last second in which a rule decided, and the packets of it that were shown.
struct Second {
    number: u64,
    shown: u32,
}

impl PerRule {
    /// At most so many.
    pub(super) fn new(most: NonZeroU32) -> Self {
        Self { most: most.get(), rules: HashMap::new() }
    }

    /// Whether a packet with these steps is shown. Where nothing tells when it came, it is: nothing is left out by guess.
    pub(super) fn admits<'a>(&mut self, steps: impl DoubleEndedIterator<Item = &'a Kept> + Clone) -> bool {
        let mut newest_first = steps.rev().map(|kept| kept.step(0, kept.netns()));
        let last = newest_first.clone().next();
        newest_first.find(decides).or(last).is_none_or(|step| self.admits_at(&step))
    }

    fn admits_at(&mut self, step: &Step<'_>) -> bool {
        let Some(time_ns) = step.time_ns else { return true };
        let number = time_ns / NS_PER_S;
        if self.rules.len() >= RULES {
            self.rules.clear();
        }
        let place = (step.netns, step.rule.engine, step.rule.family, step.name.into());
        let second = self.rules.entry(place).or_insert(Second { number, shown: 0 });
        if number > second.number || second.number - number > LATE_SECONDS {
            *second = Second { number, shown: 0 };
        }
        let has_room = second.shown < self.most;
        second.shown += u32::from(has_room);
        has_room
    }
}

/// Whether a step decides about its packet: a policy that lets it pass only leaves it to what comes next.
fn decides(step: &Step<'_>) -> bool {
    let is_rule = step.rule.kind == StepKind::Rule || step.rule.text.is_some();
    matches!(step.action, Some(Action::Verdict(verdict)) if is_rule || verdict != Verdict::Accept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::{Family, Hook};
    use crate::packet::{Link, PacketView};
    use crate::ruleset::Rule;

    const ACCEPT: Option<Action<'static>> = Some(Action::Verdict(Verdict::Accept));
    const DROP: Option<Action<'static>> = Some(Action::Verdict(Verdict::Drop));

    fn kept(name: &str, action: Option<Action<'_>>, time_ns: Option<u64>) -> Kept {
        let kind = if name.contains(":policy:") { StepKind::Policy } else { StepKind::Rule };
        Kept::of(&Step {
            packet: 1,
            time_ns,
            hook: Some(Hook::Input),
            rule: Rule {
                engine: Engine::Legacy,
                family: TableFamily::Ip,
                table: "filter",
                chain: "INPUT",
                kind,
                number: Some(1),
                handle: None,
                text: None,
                nft: None,
                owner: None,
            },
            name,
            action,
            view: PacketView {
                family: Family::Ipv4,
                indev: None,
                outdev: None,
                link: Link::default(),
                len: 0,
                bytes: &[],
                mark: 0,
                owner: None,
            },
            view_doubt: None,
            tracked: None,
            netns: None,
        })
    }

    /// How many of the packets are shown that come at these tenths of a second.
    fn shown(limit: &mut PerRule, steps: &[(&str, Option<Action<'_>>)], tenths: &[u64]) -> usize {
        let admits = |tenth: &&u64| {
            let step = |(name, action): &(&str, Option<Action<'_>>)| {
                kept(name, action.clone(), Some(**tenth * NS_PER_S / 10))
            };
            limit.admits(steps.iter().map(step).collect::<Vec<_>>().iter())
        };
        tenths.iter().filter(admits).count()
    }

    fn limit(most: u32) -> PerRule {
        PerRule::new(NonZeroU32::new(most).unwrap())
    }

    #[test]
    fn each_rule_has_room_for_so_many_in_a_second() {
        let mut limit = limit(2);
        let (first, second) = ([("a:A:rule:1", DROP)], [("a:A:rule:2", DROP)]);
        assert_eq!(shown(&mut limit, &first, &[10, 11, 12]), 2);
        assert_eq!(shown(&mut limit, &second, &[12, 13, 14]), 2);
        // One that is late takes room in the second that has begun.
        assert_eq!(shown(&mut limit, &first, &[20, 19, 21, 22]), 2);
        // A clock that is set back begins anew.
        assert_eq!(shown(&mut limit, &first, &[10_000, 10_001, 10, 11, 12]), 4);
    }

    #[test]
    fn the_last_rule_decides_unless_a_policy_drops() {
        let policies = [("raw:P:policy:1", ACCEPT), ("mangle:P:policy:1", ACCEPT)];
        let by_rule = [("filter:F:rule:3", ACCEPT), ("mangle:P:policy:1", ACCEPT)];
        let by_policy = [("filter:F:rule:3", ACCEPT), ("filter:F:policy:9", DROP)];
        let not_known = [("filter:F:rule:3", None), ("mangle:P:policy:1", None)];
        let mut limit = limit(1);
        for (steps, expected) in [
            (&policies, 1),
            (&by_rule, 1),
            (&by_policy, 1),
            // Their last step is that of those that only policies met.
            (&not_known, 0),
            (&policies, 0),
            (&by_rule, 0),
            (&by_policy, 0),
        ] {
            assert_eq!(shown(&mut limit, steps, &[5]), expected, "{steps:?}");
        }
    }

    #[test]
    fn what_is_not_known_is_shown() {
        let mut limit = limit(1);
        let timeless = [kept("filter:F:rule:3", DROP, None)];
        assert!((0..3).all(|_| limit.admits(timeless.iter())));
        assert!((0..3).all(|_| limit.admits([].iter())));
    }
}
