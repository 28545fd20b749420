//! What is said of packets that do not get through.

use anyhow::Result;
use nftracer_tests::faults::{FAULTS, Fault};
use nftracer_tests::lab::{Lab, Spread};
use nftracer_tests::netns::Netns;
use nftracer_tests::traffic::Senders;

use crate::{Options, Outcome, Test};

pub(crate) const TESTS: &[Test] = &[Test { name: "why_ebpf", run: ebpf }];

fn ebpf(options: &Options) -> Result<Outcome> {
    crate::load_modules();
    let lab = Lab::build("nft", Spread::SameCpu)?;
    let senders = Senders::open(&lab)?;
    lab.all().into_iter().try_for_each(Netns::clear_rules)?;
    // Each needs a tracer of its own, which takes a while to start here.
    let step = FAULTS.len().div_ceil(options.faults.max(1)).max(1);
    // Those of which the kernel has to say why, in any case.
    let wanted = |(at, fault): &(usize, &Fault)| at % step == 0 || fault.is_last_seen();
    let faults: Vec<_> = FAULTS.iter().enumerate().filter(wanted).collect();
    for &(number, fault) in &faults {
        fault.examine(&lab, &senders, u16::try_from(number)?, &["--backend", "ebpf"])?;
        if options.verbose {
            println!("  {}", fault.name);
        }
    }
    Ok(Outcome::Passed(format!("{} of {} faults", faults.len(), FAULTS.len())))
}
