//! Tracing by listening: the kernel's own TRACE, over netlink or in its log, of packets that are marked for it.

use super::known::Known;
use super::plan::{Marking, Plan};
use super::rows::Rows;
use super::{Next, Session, Wish, buffer_bytes, say};
use crate::backend::ebpf;
use crate::backend::log::{self, Log};
use crate::backend::netlink::{self, Netlink};
use crate::cli::netns::Netns;
use crate::command;
use crate::error::Failure;
use crate::fetch;
use crate::filter::{self, Filter};
use crate::footprint::{self, Footprint};
use crate::netfilter::Family;
use crate::sink::{Output, Start};
use crate::sys::kernel::LOAD_TABLES;
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

enum Source {
    Netlink(Netlink),
    Log(Log),
}

/// A trace that listens. The fields are dropped in this order: what was changed is undone while the source still has
/// its group.
pub(super) struct Listening {
    footprint: Option<Footprint>,
    source: Source,
    waiter: Option<AsyncFd<OwnedFd>>,
    rows: Rows,
}

impl Listening {
    /// Has the kernel's TRACE come here, and packets marked for it.
    pub(super) fn start(wish: &Wish<'_>, plan: Plan) -> Result<(Self, Start), Failure> {
        if wish.config.netns == Netns::All {
            let failure = Failure::unusable(anyhow!("cannot trace all namespaces with {}", plan.backend()));
            return Err(failure.with_remedy("name one with --netns, or trace with --backend ebpf"));
        }
        let namespace = command::open_namespace(&wish.config.netns)?;
        let netns = netns::inode(&namespace).map_err(Failure::running)?;
        check_namespace(&namespace, plan)?;
        let sink = wish.sink()?;
        let initial = initial_namespace(&namespace, plan)?;
        let namespaces: Vec<&File> = std::iter::once(&namespace).chain(&initial).collect();
        let mut footprint = Footprint::new(&namespaces).map_err(|error| refused(plan, error))?;
        let (source, backend) = match plan {
            Plan::Log(_) => (
                {
                    let file = wish.config.log_file.as_deref();
                    log_source(file, &namespace, initial.as_ref(), &mut footprint, plan)?
                },
                "log",
            ),
            _ => (netlink_source(&namespace, &mut footprint, plan)?, "netlink"),
        };
        mark(&mut footprint, &namespace, plan.marking(), wish.filter)
            .map_err(|error| unmarked(plan, error))?;
        let known_netns = source.namespace(&namespace, initial.is_none()).then_some(netns);
        let style = log_style(wish.config.output);
        let start = wish.start(backend, footprint.describe(), style);
        let waiter = source.waiter()?;
        // After the rules of our own are there.
        let known = Known::read(namespace).map_err(Failure::running)?;
        known
            .complaints()
            .for_each(|(table, reason)| say(&format!("{} table {}: {reason}", table.family, table.name)));
        let rows = Rows::new((sink, wish.config.output), wish.config.count, wish.filter, known, known_netns);
        Ok((Self { footprint: Some(footprint), source, waiter, rows }, start))
    }
}

/// Tries a way of tracing in a namespace that is thrown away, without loading a module. Says what it would change.
pub(in crate::command) fn attempt(plan: Plan) -> Result<String, Failure> {
    let here = netns::current().map_err(Failure::running)?;
    check_namespace(&here, plan)?;
    let absent = absent_modules(plan)?;
    if !absent.is_empty() {
        return Ok(absent.iter().map(|name| format!("module {name} loaded")).collect::<Vec<_>>().join(", "));
    }
    let scratch = netns::scratch().map_err(|error| {
        let context = format!("cannot trace with {}", plan.backend());
        Failure::unusable(anyhow::Error::from(error).context(context)).with_remedy("run it as root")
    })?;
    let everything = filter::compile("", &pcap::compile).map_err(Failure::running)?;
    let mut footprint = Footprint::new(&[&scratch]).map_err(|error| refused(plan, error))?;
    let _source = match plan {
        Plan::Log(_) => {
            let outside = initial_namespace(&here, plan)?;
            let source = log_source(None, &scratch, None, &mut footprint, plan)?;
            outside.iter().for_each(|_| footprint.would_set(log::ALL_NETNS, "1"));
            source
        }
        _ => netlink_source(&scratch, &mut footprint, plan)?,
    };
    mark(&mut footprint, &scratch, plan.marking(), &everything).map_err(|error| unmarked(plan, error))?;
    Ok(footprint.preview())
}

/// What keeps a namespace from being traced, whatever marks its packets.
fn check_namespace(namespace: &File, plan: Plan) -> Result<(), Failure> {
    if !fetch::has_legacy(namespace).map_err(Failure::running)? {
        let reason = format!("cannot trace with {}: the kernel has no legacy tables yet", plan.backend());
        return Err(Failure::unusable(anyhow!(reason)).with_remedy(LOAD_TABLES));
    }
    match plan {
        Plan::Netlink(_) => Netlink::check(namespace).map_err(|error| taken(plan, error)),
        _ => Ok(()),
    }
}

/// Modules that this way of tracing would load. Those of which there is nothing to load make it unusable.
fn absent_modules(plan: Plan) -> Result<Vec<&'static str>, Failure> {
    let of_source: &[&[&'static str]] = match plan {
        Plan::Log(_) => &[&log::modules(Family::Ipv4), &log::modules(Family::Ipv6)],
        _ => &[&netlink::MODULES],
    };
    let of_marking: &[&[&'static str]] = match plan.marking() {
        Marking::None => &[],
        Marking::Nft => &[&["nf_tables"]],
        Marking::Rule => &[&["iptable_raw"], &["ip6table_raw"], &["xt_TRACE"]],
    };
    let mut absent = Vec::new();
    for alternatives in of_source.iter().chain(of_marking) {
        if alternatives.iter().any(|name| module::is_there(name)) {
            continue;
        }
        match alternatives.iter().find(|name| module::can_be_loaded(name)) {
            Some(name) => absent.push(*name),
            None => {
                let names = alternatives.join(" nor ");
                let reason = format!("cannot trace with {}: this kernel has no {names}", plan.backend());
                let failure = Failure::unusable(anyhow!(reason));
                return Err(failure.with_remedy("install the kernel's modules, or use one that has it"));
            }
        }
    }
    absent.dedup();
    Ok(absent)
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
        if let Some(footprint) = &mut self.footprint {
            footprint.renew().map_err(Failure::running)?;
        }
        let rows = &mut self.rows;
        let lost = self.source.lost();
        let taken = match &mut self.source {
            Source::Netlink(netlink) => netlink.drain(BATCH, |row| rows.row(&row)),
            Source::Log(log) => {
                Ok(log.drain(BATCH, |record| rows.record(&record)).map_err(Failure::running)?)
            }
        };
        let taken = taken.map_err(Failure::running)?;
        if self.source.lost() != lost {
            rows.lost();
        }
        rows.expire(clock::monotonic_ns());
        rows.flush().context("cannot write")?;
        Ok(match taken {
            _ if self.rows.enough() => Next::End,
            BATCH => Next::LookAgain,
            _ => Next::Wait,
        })
    }

    fn end(mut self) -> Result<(), Failure> {
        self.rows.give_out_rest();
        let undone = self.footprint.take().map_or(Ok(()), Footprint::end);
        let totals = self.rows.finish(self.source.lost()).context("cannot write")?;
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
fn initial_namespace(namespace: &File, plan: Plan) -> Result<Option<File>, Failure> {
    if !matches!(plan, Plan::Log(_)) || log::is_initial(namespace) {
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

fn netlink_source(namespace: &File, footprint: &mut Footprint, plan: Plan) -> Result<Source, Failure> {
    footprint.module(&netlink::MODULES).map_err(|error| refused(plan, error))?;
    let netlink =
        Netlink::open(namespace, buffer_bytes(BUFFER_BYTES) as usize).map_err(|error| taken(plan, error))?;
    for number in [2, 10] {
        let name = format!("net/netfilter/nf_log/{number}");
        footprint.set(namespace, &name, netlink::LOGGER, &[]).map_err(|error| refused(plan, error))?;
    }
    Ok(Source::Netlink(netlink))
}

/// The group cannot be had.
fn taken(plan: Plan, error: netlink::Error) -> Failure {
    let (remedy, unusable) = (error.remedy(), error.unusable());
    let error = anyhow::Error::from(error).context(format!("cannot trace with {}", plan.backend()));
    let failure = if unusable { Failure::unusable(error) } else { Failure::running(error) };
    remedy.into_iter().fold(failure, Failure::with_remedy)
}

fn log_source(
    file: Option<&Path>,
    namespace: &File,
    initial: Option<&File>,
    footprint: &mut Footprint,
    plan: Plan,
) -> Result<Source, Failure> {
    let log = Log::open(file).map_err(|error| {
        let remedy = error.remedy();
        let failure = Failure::unusable(
            anyhow::Error::from(error).context(format!("cannot trace with {}", plan.backend())),
        );
        remedy.into_iter().fold(failure, Failure::with_remedy)
    })?;
    for (family, number) in [(Family::Ipv4, 2), (Family::Ipv6, 10)] {
        let name = format!("net/netfilter/nf_log/{number}");
        let set = footprint.set(namespace, &name, log::logger(family), &log::modules(family));
        set.map_err(|error| refused(plan, error))?;
    }
    if let Some(initial) = initial {
        footprint.set(initial, log::ALL_NETNS, "1", &[]).map_err(|error| refused(plan, error))?;
    }
    Ok(Source::Log(log))
}

fn mark(
    footprint: &mut Footprint,
    namespace: &File,
    marking: Marking,
    filter: &Filter,
) -> Result<(), footprint::Error> {
    match marking {
        Marking::None => Ok(()),
        Marking::Nft => footprint.mark_by_table(namespace, filter),
        Marking::Rule => footprint.mark_by_rules(namespace, filter),
    }
}

/// What cannot be changed makes a way of tracing unusable here; another may do.
fn refused(plan: Plan, error: footprint::Error) -> Failure {
    unusable(format!("cannot trace with {}", plan.backend()), error)
}

fn unmarked(plan: Plan, error: footprint::Error) -> Failure {
    unusable(format!("cannot trace with {} and mark {}", plan.backend(), plan.marking().name()), error)
}

fn unusable(context: String, error: footprint::Error) -> Failure {
    let remedy = error.remedy();
    let failure = Failure::unusable(anyhow::Error::from(error).context(context));
    remedy.into_iter().fold(failure, Failure::with_remedy)
}
