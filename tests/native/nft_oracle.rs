//! The netlink backend against `nft monitor trace` and `xtables-monitor --trace`, base chain by base chain.

use nftracer_tests::monitored;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    Test { name: "nft_handwritten", run: monitored::handwritten },
    Test { name: "nft_generated", run: || monitored::generated(rulesets(), false) },
    Test { name: "nft_devices", run: || monitored::devices(rulesets() / 4) },
    Test { name: "nft_bridge", run: || monitored::bridge(rulesets() / 4) },
    Test { name: "nft_arp", run: monitored::arp },
];

/// Generated rulesets, unless `NFTRACER_RULESETS` says otherwise.
const RULESETS: u64 = 24;

fn rulesets() -> u64 {
    let wanted = std::env::var("NFTRACER_RULESETS").ok().and_then(|count| count.parse().ok());
    wanted.unwrap_or(RULESETS)
}
