//! The netlink backend against `nft monitor trace` and `xtables-monitor --trace`, base chain by base chain.

use nftracer_tests::monitored;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    Test { name: "nft_handwritten", run: monitored::handwritten },
    Test { name: "nft_generated", run: || monitored::generated(rulesets(), false) },
];

/// Generated rulesets, unless `NFTRACER_RULESETS` says otherwise.
const RULESETS: u64 = 24;

fn rulesets() -> u64 {
    let wanted = std::env::var("NFTRACER_RULESETS").ok().and_then(|count| count.parse().ok());
    wanted.unwrap_or(RULESETS)
}
