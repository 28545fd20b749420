//! Tracing by listening: the kernel's own TRACE, over netlink or in its log, of packets that are marked for it.

use super::known::Known;
use super::nft::Live;
use super::plan::{Marking, Plan};
use super::rows::Rows;
use super::{Next, Session, Wish, say};
use crate::backend::ebpf;
use crate::backend::log::{self, Log};
use crate::backend::netlink::{self, Netlink};
use crate::cli::netns::Netns;
use crate::command;
use crate::error::Failure;
use crate::fetch;
use crate::fetch::nft::Nftables;
use crate::filter::{self, Filter};
use crate::footprint::{self, Footprint};
use crate::netfilter::Family;
use crate::nftables::stands::Stands;
use crate::sink::{Output, Start};
use crate::sys::kernel::{LOAD_TABLES, has_nftables};
use crate::sys::privilege::{Capability, Privileges};
use crate::sys::{clock, module, netns, pcap, ready, sysctl};
use crate::trace_line::LogStyle;
use anyhow::{Context as _, anyhow};
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Rows taken before signals and time are looked at again.
const BATCH: usize = 4096;

/// Room for rows that wait to be taken.
const BUFFER_BYTES: u32 = 64 << 20;

/// What is in doubt where nftables is not listened to.
const UNSEEN: &str = "packets meet rules of nftables as well, which this trace does not show";
/// What is said where the kernel cannot ask a filter itself.
const MARKS_MORE: &str = "rules cannot ask all of this filter here (no match bpf in iptables or the kernel, or a filter that it \
                          does not take): more packets are marked than are shown";

enum Source {
    Netlink(Netlink),
    Log(Log),
}

/// A trace that listens. The fields are dropped in this order: a source that is still open keeps modules busy that were
/// loaded for it.
pub(super) struct Listening {
    waiter: Option<AsyncFd<OwnedFd>>,
    source: Source,
    footprint: Footprint,
    rows: Rows,
}

impl Listening {
    /// Has the kernel's TRACE come here, and packets marked for it.
    pub(super) fn start(wish: &Wish<'_>, plan: Plan) -> Result<(Self, Start), Failure> {
        let namespaces = namespaces(&wish.config.netns, plan)?;
        namespaces.iter().try_for_each(|namespace| check_namespace(namespace, plan))?;
        // What keeps doctor from trying is said as it says it.
        absent_modules(plan, &namespaces)?;
        let sink = wish.sink()?;
        let initial = initial_namespace(&namespaces, plan)?;
        let touched: Vec<&File> = namespaces.iter().chain(&initial).collect();
        let mut footprint = Footprint::new(&touched).map_err(|error| refused(plan, error))?;
        let mut chains = false;
        for namespace in &namespaces {
            chains |= base_chains(namespace)?;
        }
        let (source, backend) = match (plan, namespaces.as_slice()) {
            (Plan::Netlink(_), [namespace]) => {
                (netlink_source(namespace, &mut footprint, plan, (chains, wish.config.buffer))?, "netlink")
            }
            _ => {
                let file = wish.config.log_file.as_deref();
                (log_source(file, &namespaces, initial.as_ref(), &mut footprint, plan)?, "log")
            }
        };
        let mut more = false;
        for namespace in &namespaces {
            more |= mark(&mut footprint, namespace, plan.marking(), wish.filter)
                .map_err(|error| unmarked(plan, error))?;
        }
        if more && wish.config.verbose {
            say(MARKS_MORE);
        }
        let known_netns = match namespaces.as_slice() {
            [only] if source.namespace(only, initial.is_none()) => {
                Some(netns::inode(only).map_err(Failure::running)?)
            }
            _ => None,
        };
        let style = log_style(wish.config.output);
        let start = wish.start(backend, footprint.describe(), style);
        let waiter = source.waiter()?;
        // After the rules of our own are there.
        let known = match <[File; 1]>::try_from(namespaces) {
            Ok([namespace]) => Known::read(namespace).map_err(Failure::running)?,
            Err(_) => Known::nothing(),
        };
        known
            .complaints()
            .for_each(|(table, reason)| say(&format!("{} table {}: {reason}", table.family, table.name)));
        if wish.predicates.uid.is_some() && !known.tells_owners() {
            let reason = "--uid: only the rows of legacy tables tell who sent a packet, and none stands where packets go out";
            return Err(Failure::unusable(anyhow!(reason)).with_remedy("trace with --backend ebpf"));
        }
        let live = if source.hears_nftables() { live(&known, plan)? } else { None };
        let unseen = chains && live.is_none();
        let mut rows =
            Rows::new((sink, wish.config.output), wish.config, wish.filter, (known, live), known_netns);
        rows.choose(wish.predicates, wish.config.limit_per_rule);
        if unseen {
            rows.doubt_all(UNSEEN);
        }
        Ok((Self { waiter, source, footprint, rows }, start))
    }
}

/// The namespaces to trace. In all of them there is one log, and no telling of which a row is: where rules of our own
/// stand before others, these would be counted wrong.
fn namespaces(wanted: &Netns, plan: Plan) -> Result<Vec<File>, Failure> {
    match (wanted, plan) {
        (Netns::All, Plan::Log(Marking::None | Marking::Nft)) => {
            Ok(netns::list().iter().filter_map(|found| found.open().ok()).collect())
        }
        (Netns::All, _) => {
            let failure = Failure::unusable(anyhow!("cannot trace all namespaces with {}", plan.words()));
            let remedy =
                "name one with --netns, or trace with --backend ebpf, or with --backend log and --mark nft";
            Err(failure.with_remedy(remedy))
        }
        (one, _) => Ok(vec![command::open_namespace(one)?]),
    }
}

/// Tries a way of tracing in a namespace that is thrown away, without loading a module. Says what it would change, where
/// that is known.
pub(in crate::command) fn attempt(plan: Plan) -> Result<Option<String>, Failure> {
    let here = netns::current().map_err(Failure::running)?;
    check_namespace(&here, plan)?;
    let absent = absent_modules(plan, std::slice::from_ref(&here))?;
    if !absent.is_empty() {
        // Who may read the kernel's log does not depend on them.
        if matches!(plan, Plan::Log(_)) {
            open_log(None, plan)?;
        }
        return Ok(Some(absent.join(", ")));
    }
    // Who may not make one can be asked for its source only.
    let Ok(scratch) = netns::scratch() else { return source_alone(&here, plan).map(|()| None) };
    let everything = filter::compile("", &pcap::compile).map_err(Failure::running)?;
    let mut footprint = Footprint::new(&[&scratch]).map_err(|error| refused(plan, error))?;
    let _source = match plan {
        Plan::Log(_) => {
            let outside = initial_namespace(std::slice::from_ref(&here), plan)?;
            let source = log_source(None, std::slice::from_ref(&scratch), None, &mut footprint, plan)?;
            outside.iter().for_each(|_| footprint.would_set(log::ALL_NETNS, "1"));
            source
        }
        _ => netlink_source(&scratch, &mut footprint, plan, (false, None))?,
    };
    let _ =
        mark(&mut footprint, &scratch, plan.marking(), &everything).map_err(|error| unmarked(plan, error))?;
    Ok(Some(footprint.preview()))
}

/// Tries whether rows can be had here, without having any sent: nothing is changed.
fn source_alone(here: &File, plan: Plan) -> Result<(), Failure> {
    match plan {
        Plan::Log(_) => {
            open_log(None, plan).and_then(|_| initial_namespace(std::slice::from_ref(here), plan)).map(drop)
        }
        _ => open_netlink(here, plan, BUFFER_BYTES as usize).map(drop),
    }
}

/// What keeps a namespace from being traced, whatever marks its packets.
fn check_namespace(namespace: &File, plan: Plan) -> Result<(), Failure> {
    if !Privileges::gather().has(Capability::NetAdmin) {
        let reason = format!("cannot trace with {}: {} is missing", plan.backend(), Capability::NetAdmin);
        return Err(Failure::unusable(anyhow!(reason)).with_remedy("run it as root"));
    }
    let has_legacy = fetch::has_legacy(namespace).map_err(Failure::running)?;
    match plan {
        Plan::Netlink(_) if has_legacy => Netlink::check(namespace).map_err(|error| taken(plan, error)),
        Plan::Netlink(Marking::Nft | Marking::None) if has_nftables() => Ok(()),
        _ if has_legacy => Ok(()),
        _ => {
            let reason = format!("cannot trace with {}: the kernel has no legacy tables yet", plan.backend());
            Err(Failure::unusable(anyhow!(reason)).with_remedy(LOAD_TABLES))
        }
    }
}

/// Whether packets of a namespace come to base chains of nftables that are not ours.
fn base_chains(namespace: &File) -> Result<bool, Failure> {
    let Some(mut nftables) = Nftables::open(namespace).map_err(Failure::running)? else { return Ok(false) };
    let ruleset = nftables.structure().map_err(Failure::running)?;
    Ok(!Stands::of(&ruleset, footprint::is_table_of_ours).is_empty())
}

/// The rules of nftables, from now on.
fn live(known: &Known, plan: Plan) -> Result<Option<Live>, Failure> {
    let Some(namespace) = known.namespace() else { return Ok(None) };
    let Some((live, complaints)) =
        Live::read(namespace, plan.marking() == Marking::Nft).map_err(Failure::running)?
    else {
        return Ok(None);
    };
    complaints.iter().for_each(|reason| say(reason));
    Ok(Some(live))
}

/// Modules that this way of tracing would load for these namespaces. Those of which there is nothing to load make it
/// unusable.
fn absent_modules(plan: Plan, namespaces: &[File]) -> Result<Vec<String>, Failure> {
    let mut has_legacy = false;
    for namespace in namespaces {
        has_legacy |= fetch::has_legacy(namespace).map_err(Failure::running)?;
    }
    let of_source = match plan {
        Plan::Log(_) => loggers(),
        // Of nftables the kernel tells without it.
        _ if !has_legacy => Vec::new(),
        _ => vec![netlink::MODULES.to_vec()],
    };
    let of_tables = match plan.marking() {
        Marking::Rule => footprint::RAW_MODULES.map(|name| vec![name]).to_vec(),
        _ => Vec::new(),
    };
    let mut absent = Vec::new();
    for alternatives in [of_source, of_marking(plan.marking()), of_tables].concat() {
        if alternatives.iter().any(|name| module::is_there(name)) {
            continue;
        }
        match alternatives.iter().find_map(|name| module::with_dependencies(name).ok()) {
            Some(names) => absent.extend(names.into_iter().filter(|name| !module::is_there(name))),
            None => {
                let names = alternatives.join(" nor ");
                let reason = format!("cannot trace with {}: this kernel has no {names}", plan.backend());
                let failure = Failure::unusable(anyhow!(reason));
                return Err(failure.with_remedy("install the kernel's modules, or use one that has it"));
            }
        }
    }
    absent.sort();
    absent.dedup();
    let said = |name: &String| match footprint::RAW_MODULES.contains(&name.as_str()) {
        true => footprint::raw_module_loaded(name),
        false => format!("module {name} loaded"),
    };
    Ok(absent.iter().map(said).collect())
}

/// The modules of the kernel's log, of both families.
fn loggers() -> Vec<Vec<&'static str>> {
    [Family::Ipv4, Family::Ipv6].map(|family| log::modules(family).to_vec()).to_vec()
}

/// What has to be there before packets can be marked. A TRACE rule is accepted only where it could be logged.
fn of_marking(marking: Marking) -> Vec<Vec<&'static str>> {
    match marking {
        Marking::None => Vec::new(),
        Marking::Nft => vec![vec!["nf_tables"]],
        Marking::Rule => [vec![vec!["xt_comment"], vec!["xt_TRACE"]], loggers()].concat(),
    }
}

impl Source {
    /// What tells that there is more, if anything does.
    fn waiter(&self) -> Result<Option<AsyncFd<OwnedFd>>, Failure> {
        let descriptor = match self {
            Self::Netlink(netlink) => Some(netlink.as_fd()),
            Self::Log(log) => log.descriptor(),
        };
        let Some(descriptor) = descriptor else { return Ok(None) };
        let register = |owned: OwnedFd| ready::register(owned, Interest::READABLE);
        let waiter = descriptor.try_clone_to_owned().and_then(register);
        Ok(Some(waiter.context("cannot wait for rows")?))
    }

    /// Whether all that comes is of one namespace: the log does not say of which.
    fn namespace(&self, namespace: &File, is_initial: bool) -> bool {
        match self {
            Self::Netlink(_) => true,
            Self::Log(_) => {
                is_initial && sysctl::read(namespace, log::ALL_NETNS).is_ok_and(|value| value == "0")
            }
        }
    }

    /// Whether nftables tells of packets as well.
    fn hears_nftables(&self) -> bool {
        matches!(self, Self::Netlink(netlink) if netlink.hears_nftables())
    }

    fn lost(&self) -> u64 {
        match self {
            Self::Netlink(netlink) => netlink.lost(),
            Self::Log(log) => log.lost(),
        }
    }
}

impl Session for Listening {
    fn begin(&mut self, start: &Start) -> Result<(), Failure> {
        Ok(self.rows.begin(start).context("cannot write")?)
    }

    async fn ready(&mut self) {
        match &mut self.waiter {
            Some(waiter) => {
                if let Ok(mut guard) = waiter.readable_mut().await {
                    guard.clear_ready();
                }
            }
            None => std::future::pending().await,
        }
    }

    fn look(&mut self) -> Result<Next, Failure> {
        self.footprint.renew().map_err(Failure::running)?;
        let rows = &mut self.rows;
        let lost = self.source.lost();
        let taken = match &mut self.source {
            Source::Netlink(netlink) => {
                let taken = netlink.drain(BATCH, |arrival| rows.arrival(&arrival));
                if netlink.lost() != lost {
                    rows.lost();
                }
                rows.settle(&mut |index| netlink.device(index));
                taken
            }
            Source::Log(log) => {
                let taken = log.drain(BATCH, |record| rows.record(&record)).map_err(Failure::running)?;
                if log.lost() != lost {
                    rows.lost();
                }
                Ok(taken)
            }
        };
        let taken = taken.map_err(Failure::running)?;
        if let Some(namespace) = rows.nft_changed()
            && base_chains(namespace)?
        {
            rows.doubt_all(UNSEEN);
        }
        rows.expire(clock::monotonic_ns());
        rows.flush().context("cannot write")?;
        Ok(match taken {
            _ if self.rows.enough() => Next::End,
            BATCH.. => Next::LookAgain,
            _ => Next::Wait,
        })
    }

    fn end(self) -> Result<(), Failure> {
        let Self { waiter, mut source, footprint, mut rows } = self;
        if let Source::Netlink(netlink) = &mut source {
            let lost = netlink.lost();
            netlink.close(|arrival| rows.arrival(&arrival)).map_err(Failure::running)?;
            if netlink.lost() != lost {
                rows.lost();
            }
            rows.settle(&mut |index| netlink.device(index));
        }
        rows.give_out_rest();
        let lost = source.lost();
        drop((waiter, source));
        let undone = footprint.end();
        let totals = rows.finish(lost).context("cannot write")?;
        eprintln!("{totals}");
        undone.map_err(|error| Failure::running(error).with_remedy("`nftracer doctor --clean`"))
    }
}

/// How this kernel would write lines; only those who read lines want to know.
fn log_style(output: Output) -> LogStyle {
    match output {
        Output::Trace => ebpf::kernel::log_style().unwrap_or(LogStyle::of_tcp_header(false)),
        _ => LogStyle::default(),
    }
}

/// The initial namespace, where the log of another one has to be allowed.
pub(in crate::command) fn initial_namespace(
    namespaces: &[File],
    plan: Plan,
) -> Result<Option<File>, Failure> {
    if !matches!(plan, Plan::Log(_)) || namespaces.iter().all(log::is_initial) {
        return Ok(None);
    }
    let here = netns::current().map_err(Failure::running)?;
    if log::is_initial(&here) {
        return Ok(Some(here));
    }
    let first = netns::list().iter().filter_map(|found| found.open().ok()).find(log::is_initial);
    let unusable = || {
        let reason = "the kernel writes to its log what happens in other namespaces only when the initial one allows \
                      it, and that is out of reach";
        Failure::unusable(anyhow!("cannot trace with log: {reason}")).with_remedy("run it on the host")
    };
    first.map(Some).ok_or_else(unusable)
}

/// `chains` says whether packets come to base chains of nftables. Those that the kernel tells of are heard, before packets
/// are marked.
fn netlink_source(
    namespace: &File,
    footprint: &mut Footprint,
    plan: Plan,
    (chains, buffer): (bool, Option<u32>),
) -> Result<Source, Failure> {
    let bytes = buffer.unwrap_or(BUFFER_BYTES) as usize;
    let has_legacy = fetch::has_legacy(namespace).map_err(Failure::running)?;
    let mut netlink = if has_legacy {
        logged(namespace, footprint, plan, bytes)?
    } else {
        Netlink::deaf(namespace, bytes).map_err(|error| taken(plan, error))?
    };
    // A TRACE rule does not have the kernel tell of nftables.
    if (chains || !has_legacy) && plan.marking() != Marking::Rule {
        netlink.hear_nftables().map_err(|error| taken(plan, error))?;
    } else if has_nftables() {
        netlink.hear_changes().map_err(|error| taken(plan, error))?;
    }
    Ok(Source::Netlink(netlink))
}

/// The kernel's TRACE of legacy tables.
fn logged(namespace: &File, footprint: &mut Footprint, plan: Plan, bytes: usize) -> Result<Netlink, Failure> {
    footprint.module(&netlink::MODULES).map_err(|error| refused(plan, error))?;
    let netlink = open_netlink(namespace, plan, bytes)?;
    for number in [2, 10] {
        let name = format!("net/netfilter/nf_log/{number}");
        footprint.set(namespace, &name, netlink::LOGGER, &[]).map_err(|error| refused(plan, error))?;
    }
    Ok(netlink)
}

fn open_netlink(namespace: &File, plan: Plan, bytes: usize) -> Result<Netlink, Failure> {
    Netlink::open(namespace, bytes).map_err(|error| taken(plan, error))
}

/// The group cannot be had.
fn taken(plan: Plan, error: netlink::Error) -> Failure {
    let (remedy, unusable) = (error.remedy(), error.unusable());
    let error = anyhow::Error::from(error).context(format!("cannot trace with {}", plan.backend()));
    let failure = if unusable { Failure::unusable(error) } else { Failure::running(error) };
    remedy.into_iter().fold(failure, Failure::with_remedy)
}

fn open_log(file: Option<&Path>, plan: Plan) -> Result<Log, Failure> {
    Log::open(file).map_err(|error| {
        let remedy = error.remedy();
        let context = format!("cannot trace with {}", plan.backend());
        let failure = Failure::unusable(anyhow::Error::from(error).context(context));
        remedy.into_iter().fold(failure, Failure::with_remedy)
    })
}

fn log_source(
    file: Option<&Path>,
    namespaces: &[File],
    initial: Option<&File>,
    footprint: &mut Footprint,
    plan: Plan,
) -> Result<Source, Failure> {
    let log = open_log(file, plan)?;
    for namespace in namespaces {
        for (family, number) in [(Family::Ipv4, 2), (Family::Ipv6, 10)] {
            let name = format!("net/netfilter/nf_log/{number}");
            let set = footprint.set(namespace, &name, log::logger(family), &log::modules(family));
            set.map_err(|error| refused(plan, error))?;
        }
    }
    if let Some(initial) = initial {
        footprint.set(initial, log::ALL_NETNS, "1", &[]).map_err(|error| refused(plan, error))?;
    }
    Ok(Source::Log(log))
}

/// Whether more packets may be marked than match because rules cannot ask the filter here.
fn mark(
    footprint: &mut Footprint,
    namespace: &File,
    marking: Marking,
    filter: &Filter,
) -> Result<bool, footprint::Error> {
    of_marking(marking).iter().try_for_each(|names| footprint.module(names))?;
    match marking {
        Marking::None => Ok(false),
        Marking::Nft => footprint.mark_by_table(namespace, filter).map(|()| false),
        Marking::Rule => {
            // Without it they have no end of their own.
            let _ = footprint.module(&["xt_time"]);
            footprint.mark_by_rules(namespace, filter)
        }
    }
}

/// What cannot be changed makes a way of tracing unusable here; another may do.
fn refused(plan: Plan, error: footprint::Error) -> Failure {
    unusable(format!("cannot trace with {}", plan.backend()), error)
}

fn unmarked(plan: Plan, error: footprint::Error) -> Failure {
    unusable(format!("cannot trace with {}", plan.words()), error)
}

fn unusable(context: String, error: footprint::Error) -> Failure {
    let remedy = error.remedy();
    let failure = Failure::unusable(anyhow::Error::from(error).context(context));
    remedy.into_iter().fold(failure, Failure::with_remedy)
}
