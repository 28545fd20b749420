//! `nftracer doctor`

use crate::backend::ebpf;
use crate::backend::ebpf::kernel::{self, Kernel};
use crate::backend::ebpf::offsets::{Reason, Unresolved};
use crate::cli::doctor::DoctorConfig;
use crate::command::trace::listen;
use crate::command::trace::plan::{Marking, Plan};
use crate::doctor::{Diagnosis, Obstacle, Usability, diagnose};
use crate::error::Failure;
use crate::fetch;
use crate::filter;
use crate::footprint;
use crate::sys::kernel::{Host, Tried};
use crate::sys::tracefs::Tracefs;
use crate::sys::{module, netns, nftables, pcap};
use crate::text;
use anyhow::{Context as _, anyhow};
use std::io::{self, Write as _};

/// Says what works on this host. Fails when no backend does.
pub fn run(config: DoctorConfig) -> Result<(), Failure> {
    match config {
        DoctorConfig::List => {
            let diagnosis = diagnosis();
            print(&diagnosis.to_string())?;
            verdict(&diagnosis)
        }
        DoctorConfig::Json => {
            let diagnosis = diagnosis();
            print(&format!("{}\n", diagnosis.to_json()))?;
            verdict(&diagnosis)
        }
        DoctorConfig::Clean => Ok(print(&clean()?)?),
    }
}

/// All that is known, with the ways of tracing without probes tried.
fn diagnosis() -> Diagnosis {
    let mut host = host();
    (host.fentry, host.session) = tried(&host);
    // Who may not look has left nothing.
    host.leftovers.extend(footprint::leftovers().unwrap_or_default());
    if let Ok(namespace) = netns::current() {
        host.legacy_rules = fetch::tables_with_rules(&namespace).unwrap_or_default();
        // To ask would load the module.
        if module::is_there("nf_tables") {
            host.nft_rules = nftables::tables_with_rules(&namespace).unwrap_or_default();
        }
    }
    let others =
        [Plan::Netlink, Plan::Log].into_iter().flat_map(|way| [Marking::Nft, Marking::Rule].map(way));
    let has_nft_rules = !host.nft_rules.is_empty();
    diagnose(&host, others.map(|plan| usability(plan, has_nft_rules)).collect())
}

fn usability(plan: Plan, has_nft_rules: bool) -> Usability {
    let (obstacle, footprint) = match listen::attempt(plan) {
        Ok(footprint) => (None, footprint),
        Err(failure) => {
            let remedy = failure.remedy().map(str::to_owned);
            (Some(Obstacle { reason: failure.reason(), remedy }), None)
        }
    };
    let in_log = matches!(plan, Plan::Log(_)).then_some(
        "every step is a line in the kernel's log, which costs ten times what netlink costs, and names no namespace",
    );
    // The kernel tells of nftables over netlink alone, and only where a rule of nftables marks.
    let shows_nft = plan == Plan::Netlink(Marking::Nft);
    let legacy_only = (has_nft_rules && !shows_nft).then_some("rules of nftables are not shown");
    let reasons: Vec<&str> = in_log.into_iter().chain(legacy_only).collect();
    let degraded = (!reasons.is_empty()).then(|| reasons.join("; "));
    Usability { backend: plan.backend(), mark: Some(plan.marking().name()), obstacle, degraded, footprint }
}

/// What concerns probes, with what only this program can know about itself.
pub(super) fn host() -> Host {
    Host { programs: ebpf::object_embedded(), layout: layout(), ..Host::gather() }
}

/// Why this kernel's structures are not known, without what other checks say.
fn layout() -> Vec<String> {
    let said = |reason: &Reason| {
        matches!(reason, Reason::NotLoaded | Reason::HiddenAddresses | Reason::NoSymbol { .. })
    };
    match Kernel::ask() {
        Err(kernel::Error::Layout(Unresolved(reasons))) => {
            reasons.iter().filter(|reason| !said(reason)).map(ToString::to_string).collect()
        }
        Err(error @ kernel::Error::Btf { .. }) => vec![error.to_string()],
        Ok(_) | Err(_) => Vec::new(),
    }
}

/// Has the kernel look at the programs that need no kprobes, and where it does not take them at those of a
/// kprobe.session. None of them is placed.
fn tried(host: &Host) -> (Tried, Tried) {
    if diagnose(host, Vec::new()).obstacle("ebpf").is_some() {
        return (Tried::NotTried, Tried::NotTried);
    }
    let refused = |error: &dyn std::error::Error| Tried::Refused(error.to_string());
    let everything = match filter::compile("", &pcap::compile) {
        Ok(everything) => everything,
        Err(error) => return (refused(&error), Tried::NotTried),
    };
    match (ebpf::try_fentry(&everything), || ebpf::try_session(&everything)) {
        (Ok(()), _) => (Tried::Works, Tried::NotTried),
        (Err(error), session) => {
            (refused(&error), session().map_or_else(|error| refused(&error), |()| Tried::Works))
        }
    }
}

/// Removes what killed runs left, and says what that was.
fn clean() -> anyhow::Result<String> {
    let mut said = footprint::clean().context("cannot remove all that killed runs left")?;
    if let Some(tracefs) = Tracefs::find() {
        for event in tracefs.leftovers().context("cannot look for leftovers in tracefs")? {
            tracefs.remove(&event).with_context(|| format!("cannot remove {event} from tracefs"))?;
            said.push(format!("removed the probe event {event} from tracefs"));
        }
    }
    let lines = said.iter().map(|line| format!("{}\n", text::escape(line)));
    Ok(if said.is_empty() { NOTHING.to_owned() } else { lines.collect() })
}

const NOTHING: &str = "nothing to clean\n";

fn print(text: &str) -> anyhow::Result<()> {
    io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}

fn verdict(diagnosis: &Diagnosis) -> Result<(), Failure> {
    match diagnosis.best() {
        Some(_) => Ok(()),
        None => Err(with_remedy(
            Failure::unusable(anyhow!("no backend is usable on this host")),
            diagnosis,
            "ebpf",
        )),
    }
}

/// Adds what can be done to make a backend usable.
pub(super) fn with_remedy(failure: Failure, diagnosis: &Diagnosis, backend: &str) -> Failure {
    match diagnosis.obstacle(backend).and_then(|obstacle| obstacle.remedy.as_deref()) {
        Some(remedy) => failure.with_remedy(remedy),
        None => failure,
    }
}
