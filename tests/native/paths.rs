//! Packets whose ways are known beforehand, seen in every way of tracing.

use anyhow::{Context, Result};
use nftracer_tests::lab::{Lab, Spread};
use nftracer_tests::paths::{self, WAYS};
use nftracer_tests::tracer::{Totals, Tracer};
use nftracer_tests::traffic::{Senders, Server};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[Test { name: "known_paths", run: known_paths }];

fn known_paths() -> Result<String> {
    let lab = Lab::build(&format!("nftn{}", std::process::id()), Spread::SameCpu)?;
    let _servers = Server::everywhere(&lab)?;
    let senders = Senders::open(&lab)?;
    paths::load(&lab)?;
    let start = |arguments: &[&str]| Tracer::start(arguments, &[]);
    let mut sport = 20_000;
    let mut total = Totals::default();
    for (backend, mark) in WAYS {
        let trace = || paths::trace(&lab, &senders, (backend, mark), &mut sport, &start);
        let totals = paths::with_rules(&lab, mark == "none", trace)
            .with_context(|| format!("{backend}, mark {mark}"))?;
        total.packets += totals.packets;
        total.steps += totals.steps;
    }
    Ok(format!("{} ways, {} packets, {} steps", WAYS.len(), total.packets, total.steps))
}
