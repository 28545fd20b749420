//! Packets chosen by more than a filter, with probes.

use anyhow::Result;
use nftracer_tests::lab::{Lab, Spread};
use nftracer_tests::netns::Netns;
use nftracer_tests::predicates::{self, FEW};
use nftracer_tests::traffic::{Senders, Server};

use crate::{Options, Outcome, Test};

pub(crate) const TESTS: &[Test] = &[Test { name: "predicates", run: chosen }];

fn chosen(_: &Options) -> Result<Outcome> {
    crate::load_modules();
    let lab = Lab::build("nft", Spread::SameCpu)?;
    let _servers = Server::everywhere(&lab)?;
    let senders = Senders::open(&lab)?;
    lab.all().into_iter().try_for_each(Netns::clear_rules)?;
    predicates::load(&lab, true)?;
    for (choice, sport) in FEW.iter().zip(20_000..) {
        choice.examine(&lab, &senders, &["--backend", "ebpf"], sport)?;
    }
    Ok(Outcome::Passed(format!("{} choices", FEW.len())))
}
