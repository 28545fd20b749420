//! What doctor says of this kernel holds: whoever asks, from wherever, and whatever is loaded.

use std::fs;
use std::thread;

use anyhow::{Context, Result};
use nftracer_tests::doctor;
use nftracer_tests::netns::{self, Netns};
use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, remove_capability_from_bounding_set, set_thread_res_gid, set_thread_res_uid,
};

use crate::{Options, Outcome, Test};

/// In a guest that has loaded no module of legacy tables yet.
pub(crate) const FIRST: &[Test] = &[Test { name: "doctor_is_right_early", run: early }];

pub(crate) const TESTS: &[Test] = &[Test { name: "doctor_is_right", run: late }];

const MODULES: &str = "/lib/modules";
const HIDDEN: &str = "/lib/modules.hidden";

/// Asks and tries from a thread of its own, which is made what it is to be before. To try probes takes its time.
fn ask(place: &str, probes: bool, enter: impl FnOnce() -> Result<()> + Send) -> Result<String> {
    let work = || -> Result<String> {
        enter()?;
        doctor::holds(None, |backend| probes || backend != "ebpf")
    };
    let asked = thread::scope(|scope| scope.spawn(work).join()).map_err(|_| anyhow::anyhow!("a panic"))?;
    let said = asked.with_context(|| place.to_owned())?;
    Ok(format!("{place}: {said}"))
}

/// The modules that there are to be loaded, or none of them.
fn with_modules_hidden<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    fs::rename(MODULES, HIDDEN)?;
    let result = work();
    fs::rename(HIDDEN, MODULES)?;
    result
}

fn early(_: &Options) -> Result<Outcome> {
    let mut said = ask("nothing loaded", true, || Ok(()))?;
    netns::run("modprobe", &["nf_tables"], "")?;
    said += &ask("nftables alone", true, || Ok(()))?;
    netns::run("modprobe", &["-r", "nf_tables"], "")?;
    for module in ["iptable_filter", "ip6table_filter"] {
        netns::run("modprobe", &[module], "")?;
    }
    said += &with_modules_hidden(|| ask("no modules to load", false, || Ok(())))?;
    said += &ask("tables loaded", false, || Ok(()))?;
    Ok(Outcome::Passed(said))
}

fn late(_: &Options) -> Result<Outcome> {
    crate::load_modules();
    let fresh = Netns::create("nftdoctor")?;
    let mut said = ask("a new namespace", true, || netns::move_here(fresh.name()))?;
    said += &ask("nobody", true, || {
        let (gid, uid) = (Gid::from_raw(65534), Uid::from_raw(65534));
        set_thread_res_gid(gid, gid, gid)?;
        Ok(set_thread_res_uid(uid, uid, uid)?)
    })?;
    use CapabilitySet as Set;
    for (place, without) in [
        ("no CAP_NET_ADMIN", &[Set::NET_ADMIN][..]),
        ("only some", &[Set::SYS_ADMIN, Set::BPF, Set::PERFMON, Set::SYSLOG]),
    ] {
        said += &ask(place, true, || {
            Ok(without.iter().try_for_each(|one| remove_capability_from_bounding_set(*one))?)
        })?;
    }
    Ok(Outcome::Passed(said))
}
