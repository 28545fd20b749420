//! `--last-rule`: which rule dropped a packet, where the rules before it were not looked for.

use crate::netfilter::{Hook, Verdict};
use crate::ruleset::{Table, Target};
use tracer_common::legacy::Match;

/// What is said of each path.
pub const WHY: &str = "only the rule that dropped it was looked for, not those before";

/// The same, where it was no rule.
pub const NO_RULE: &str = "no rule that is watched dropped it, and those that it met were not looked for";
/// The same, where a rule may have been missed.
pub const SOME_MISSED: &str =
    "what dropped it is not known: some traversals were missed; the rules that it met were not looked for";

/// The entry that dropped a packet at a hook, if the kernel program found one.
pub fn dropper(table: &Table, hook: Hook, matches: &[Match]) -> Option<usize> {
    let [Match { index, count: 1 }] = *matches else { return None };
    let index = usize::try_from(index).ok()?;
    let in_reach = match table.chain_of(index)?.hook {
        Some(of) => of == hook,
        None => true,
    };
    let drops = match &table.entries.get(index)?.target {
        Target::Verdict(verdict) => *verdict == Verdict::Drop,
        Target::Extension(extension) => extension.name.as_deref() == Some("REJECT"),
        _ => false,
    };
    (in_reach && drops).then_some(index)
}

/// Why the rule is not known, where nothing is in doubt, or what is.
pub fn unknown(doubts: Option<String>) -> String {
    let reason = doubts.unwrap_or_else(|| {
        "no rule with DROP or REJECT and no policy did it, but another target, or the header is malformed"
            .to_owned()
    });
    format!("the rule that dropped it is not known: {reason}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::tests::scenario::parse;

    const RULES: &str = "*filter\n:INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:USER - [0:0]\n\
                         -A INPUT -j ACCEPT\n-A FORWARD -j DROP\n-A USER -j REJECT 0 00000000\n-A USER -j MARK 2 00\n\
                         COMMIT\n";

    fn found(hook: Hook, index: u32, count: u32) -> Option<usize> {
        dropper(&parse(RULES), hook, &[Match { index, count }])
    }

    #[test]
    fn only_what_drops_and_can_be_met_is_taken() {
        // INPUT: 0 accept, 1 policy; FORWARD: 2 drop, 3 policy; OUTPUT: 4 policy; USER: 5 head, 6 reject, 7 mark.
        assert_eq!(found(Hook::Input, 1, 1), Some(1), "a policy");
        assert_eq!(found(Hook::Forward, 2, 1), Some(2), "a rule");
        assert_eq!(found(Hook::Input, 6, 1), Some(6), "REJECT in a user chain");
        assert_eq!(found(Hook::Input, 0, 1), None, "it accepts");
        assert_eq!(found(Hook::Forward, 1, 1), None, "the policy of another chain");
        assert_eq!(found(Hook::Forward, 3, 1), None, "a policy that accepts");
        assert_eq!(found(Hook::Input, 7, 1), None, "a target that goes on");
        assert_eq!(found(Hook::Input, 1, 2), None, "moved twice");
        assert_eq!(found(Hook::Input, 100, 1), None, "no such entry");
    }

    #[test]
    fn not_one_match_is_none() {
        let table = parse(RULES);
        assert_eq!(dropper(&table, Hook::Input, &[]), None);
        let both = [Match { index: 1, count: 1 }, Match { index: 2, count: 1 }];
        assert_eq!(dropper(&table, Hook::Input, &both), None);
    }

    #[test]
    fn what_is_in_doubt_is_said() {
        assert_eq!(
            unknown(Some("the table was replaced meanwhile".to_owned())),
            "the rule that dropped it is not known: the table was replaced meanwhile"
        );
        assert!(unknown(None).contains("malformed"));
    }
}
