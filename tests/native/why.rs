//! What is said of packets that do not get through.

use anyhow::Result;
use nftracer_tests::faults::FAULTS;
use nftracer_tests::lab::{Lab, Spread};
use nftracer_tests::traffic::Senders;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[Test { name: "why_netlink", run: netlink }];

fn netlink() -> Result<String> {
    let lab = Lab::build(&format!("nftn{}w", std::process::id()), Spread::SameCpu)?;
    let senders = Senders::open(&lab)?;
    for (fault, number) in FAULTS.iter().zip(0..) {
        fault.examine(&lab, &senders, number, &["--backend", "netlink", "--mark", "nft"])?;
    }
    Ok(format!("{} faults", FAULTS.len()))
}
