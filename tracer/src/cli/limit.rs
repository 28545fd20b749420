//! How many packets are taken in a second.

use super::UsageError;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

/// A value of `--limit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LimitArg {
    /// Of all packets.
    All(NonZeroU32),
    /// Of those that the same rule decides about.
    PerRule(NonZeroU32),
}

/// `100/s`, and a plain number is the same; or `10/s/rule`.
impl FromStr for LimitArg {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str =
            "not a number of packets in a second; write it as 100/s, or 10/s/rule for each rule";
        match text.strip_suffix("/s/rule") {
            Some(number) => number.parse().map(Self::PerRule),
            None => text.strip_suffix("/s").unwrap_or(text).parse().map(Self::All),
        }
        .map_err(|_| WRONG)
    }
}

impl fmt::Display for LimitArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All(number) => write!(f, "{number}/s"),
            Self::PerRule(number) => write!(f, "{number}/s/rule"),
        }
    }
}

/// What the values of `--limit` say: the limit of all packets, and that of each rule.
pub(super) fn limits(typed: &[LimitArg]) -> Result<(Option<NonZeroU32>, Option<NonZeroU32>), UsageError> {
    let (mut all, mut per_rule) = (None, None);
    for limit in typed {
        let twice = match *limit {
            LimitArg::All(number) => all.replace(number).is_some(),
            LimitArg::PerRule(number) => per_rule.replace(number).is_some(),
        };
        if twice {
            let reason = "given twice; once for all packets and once for each rule is all";
            return Err(UsageError::Value { option: "--limit", value: limit.to_string(), reason });
        }
    }
    Ok((all, per_rule))
}

/// Where packets are not taken but read.
pub(super) fn parse_per_rule(text: &str) -> Result<NonZeroU32, &'static str> {
    match text.parse() {
        Ok(LimitArg::PerRule(number)) => Ok(number),
        _ => Err("not a number of packets in a second for each rule; write it as 10/s/rule"),
    }
}
