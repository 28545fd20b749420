//! Packets chosen by more than a filter, in the ways of tracing that need no probes, and in recordings.

use std::env;
use std::fs;

use anyhow::{Context, Result};
use nftracer_tests::lab::{Lab, Spread};
use nftracer_tests::netns::Netns;
use nftracer_tests::predicates::{self, CHOICES};
use nftracer_tests::traffic::{Senders, Server};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[Test { name: "predicates", run: chosen }];

fn chosen() -> Result<String> {
    let lab = Lab::build(&format!("nftn{}c", std::process::id()), Spread::SameCpu)?;
    let _servers = Server::everywhere(&lab)?;
    let senders = Senders::open(&lab)?;
    let mut sport = 20_000;
    let mut examined = 0;
    // The log does not show nftables.
    for (way, nft) in [
        (["--backend", "netlink", "--mark", "nft"], true),
        (["--backend", "netlink", "--mark", "rule"], false),
        (["--backend", "log", "--mark", "nft"], false),
    ] {
        lab.all().into_iter().try_for_each(Netns::clear_rules)?;
        predicates::load(&lab, nft)?;
        for choice in CHOICES.iter().filter(|choice| nft || !choice.needs_nft()) {
            sport += 1;
            choice.examine(&lab, &senders, &way, sport)?;
            examined += 1;
        }
        if nft {
            let file = env::temp_dir().join(format!("nftracer-native-{}.rec", std::process::id()));
            let name = file.to_str().context("a name")?;
            predicates::record(&lab, &senders, &way, name)?;
            let result = CHOICES.iter().try_for_each(|choice| choice.examine_recording(name));
            fs::remove_file(&file)?;
            result?;
            examined += CHOICES.len();
        }
    }
    Ok(format!("{examined} choices"))
}
