//! Placing the probes.
//!
//! At the functions that packets pass the probes are fentry and fexit programs where the kernel describes these functions and takes
//! such programs, and kprobes elsewhere; at the table functions a kprobe.session where the kernel has that and takes no fentry.
//! Typed programs and kprobes are never mixed there: kprobes, sessions among them, exclude each other by means of their own.
//!
//! Entry and return probes are perf events of the kprobe PMU: they belong to this process's file descriptors, so the
//! kernel takes them away when the process ends, however it ends. One case is different: a kernel without rethook and
//! without preemption has as many return slots as CPUs for such a probe, too few for nested traversals. Only tracefs
//! can ask for more, and a tracefs event outlives its maker: there a guard process waits for our end.

use super::kernel::{self, Kernel};
use super::offsets::Symbols;
use super::probes::{
    Begins, LAST_RULE_PROBES, LAST_RULE_SESSIONS, Need, PROBES, Point, Probe, SESSIONS, Session,
};
use super::{PRIVILEGES, not_permitted, session, system_code, typed};
use crate::sys::bpf;
use crate::sys::guard::Guard;
use crate::sys::kernel::LOAD_RULES;
use crate::sys::perf;
use crate::sys::process::Process;
use crate::sys::tracefs::{self, Event, Tracefs};
use aya::programs::{KProbe, ProgramError, RawTracePoint};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use thiserror::Error;
use tracer_common::nft::Witness;
use tracer_common::offsets::ABSENT;

/// Why a probe could not be placed.
#[derive(Debug, Error)]
pub enum Error {
    /// The object lacks a program: it was built from other sources.
    #[error("the embedded object has no program `{0}`")]
    NoProgram(&'static str),
    /// The kernel refused a program.
    #[error("the kernel refuses program `{program}`: {source}")]
    Load {
        /// Which.
        program: &'static str,
        /// Why; the verifier's words at the end.
        source: ProgramError,
    },
    /// The kernel refused a probe.
    #[error("cannot attach to `{symbol}`: {source}")]
    Attach {
        /// The kernel function.
        symbol: &'static str,
        /// Why.
        source: ProgramError,
    },
    /// A function that every trace needs is not there.
    #[error("the kernel has no function `{0}`")]
    NoFunction(&'static str),
    /// Nothing that could have rules is there.
    #[error("the kernel has neither legacy tables nor nftables that could be traced")]
    NoTables,
    /// Return probes with enough slots need tracefs.
    #[error("tracefs is not mounted, and without it this kernel loses returns of probed functions")]
    NoTracefs,
    /// tracefs refused an event.
    #[error("cannot use the tracefs event for returns of `{symbol}`: {source}")]
    Event {
        /// The kernel function.
        symbol: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Something of an earlier process cannot be removed.
    #[error("cannot remove what an earlier process of the same number left in tracefs: {0}")]
    Leftover(io::Error),
    /// Programs without kprobes were asked for, and do not work here.
    #[error("fentry does not work here: {0}")]
    Typed(#[from] typed::Error),
    /// Programs at entry and return in one were asked for, and do not work here.
    #[error("kprobe.session does not work here: {0}")]
    Session(session::Error),
    /// Nobody would remove the events of tracefs if this process were killed.
    #[error("cannot start the process that clears up after this one: {0}")]
    Guard(io::Error),
}

impl Error {
    /// Whether this host can do nothing about it while it is as it is.
    pub fn unusable(&self) -> bool {
        match self {
            Self::Load { .. }
            | Self::Typed(_)
            | Self::Session(_)
            | Self::NoFunction(_)
            | Self::NoTables
            | Self::NoTracefs => true,
            Self::Attach { source, .. } => not_permitted(source),
            Self::Event { source, .. } | Self::Leftover(source) => not_permitted(source),
            Self::NoProgram(_) | Self::Guard(_) => false,
        }
    }

    /// What can be done about it.
    pub fn remedy(&self) -> Option<String> {
        let remedy = match self {
            Self::NoTables => LOAD_RULES,
            Self::Session(error) => error.remedy(),
            Self::NoTracefs => "`mount -t tracefs tracefs /sys/kernel/tracing`",
            // EACCES is the verifier's.
            Self::Load { source, .. } if system_code(source) == Some(libc::EPERM) => PRIVILEGES,
            Self::Attach { source, .. } if not_permitted(source) => PRIVILEGES,
            Self::Event { source, .. } | Self::Leftover(source) if not_permitted(source) => PRIVILEGES,
            _ => return None,
        };
        Some(remedy.to_owned())
    }
}

/// How probes are placed at the functions that packets pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// The cheapest that works.
    #[default]
    Auto,
    /// As fentry and fexit programs.
    Fentry,
    /// As one program at entry and return, at the table functions; as kprobes at those of nftables.
    Session,
    /// As kprobes.
    Kprobe,
}

/// What is to be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// All that packets meet, also in nftables in the way that a [`Witness`] names, unless it is not to be traced.
    Whole(Option<u32>),
    /// The last rule of packets that are dropped, also in nftables likewise.
    LastRule(Option<u32>),
}

impl Sight {
    fn witness(self) -> Option<u32> {
        match self {
            Self::Whole(witness) | Self::LastRule(witness) => witness,
        }
    }

    fn probes(self) -> &'static [Probe] {
        match self {
            Self::Whole(_) => PROBES,
            Self::LastRule(_) => LAST_RULE_PROBES,
        }
    }

    fn sessions(self) -> &'static [Session] {
        match self {
            Self::Whole(_) => SESSIONS,
            Self::LastRule(_) => LAST_RULE_SESSIONS,
        }
    }
}

/// Placed probes.
#[derive(Debug)]
pub struct Probes {
    without: Vec<String>,
    returns: Option<Returns>,
    /// Programs that are not kprobes.
    typed: Vec<typed::Running>,
    /// Programs at entry and return in one.
    sessions: Vec<typed::Running>,
    /// Why it is not the cheapest that could be, in words.
    reason: Option<String>,
    /// The programs that see something begin.
    entries: Vec<(Begins, OwnedFd)>,
}

impl Probes {
    /// Places all probes whose functions exist. No map may have been taken out of `programs` before.
    pub fn place(
        object: &[u8],
        programs: &mut aya::Ebpf,
        kernel: &Kernel,
        method: Method,
        sight: Sight,
    ) -> Result<Self, Error> {
        let symbols = &kernel.symbols;
        let (mut present, without) = wanted(symbols, sight)?;
        let mut returns = Slots::new(symbols);
        // Replacements are counted before any traversal is watched.
        for probe in present.iter().filter(|probe| probe.typed.is_none()) {
            place(programs, probe, &mut returns)?;
        }
        present.retain(|probe| probe.typed.is_some());
        let mut reason = None;
        let (mut placed, mut sessions) = (Vec::new(), Vec::new());
        if matches!(method, Method::Auto | Method::Fentry) {
            match place_typed(object, programs, kernel, &present) {
                Ok(typed) => placed = typed,
                Err(error) if method == Method::Fentry => return Err(error.into()),
                Err(error) => reason = Some(error.to_string()),
            }
        }
        if placed.is_empty() && matches!(method, Method::Auto | Method::Session) {
            let wanted = session::Wanted::instead_of(&present, sight.sessions());
            match session::place(object, programs, kernel, &wanted) {
                Ok(placed) => {
                    sessions = placed;
                    present.retain(|probe| !wanted.iter().any(|wanted| wanted.stands_for(probe)));
                }
                Err(error) if method == Method::Session => return Err(Error::Session(error)),
                Err(error) => reason = reason.map(|first| with_session(&first, &error)),
            }
        }
        let (mut typed, mut entries) = (Vec::new(), Vec::new());
        if placed.is_empty() {
            for probe in &present {
                place(programs, probe, &mut returns)?;
            }
            entries = kprobe_entries(programs, &present);
        }
        for (probe, running) in placed {
            let begins = probe.begins().and_then(|begins| Some((begins, running.program.try_clone().ok()?)));
            entries.extend(begins);
            typed.push(running);
        }
        Ok(Self { without, returns: returns.made, typed, sessions, reason, entries })
    }

    /// Places the programs that see how packets end. They cost packets nothing that are neither dropped nor queued. Says
    /// whether what comes back from queues is seen.
    pub fn place_endings(&self, programs: &mut aya::Ebpf, kernel: &Kernel) -> Result<bool, Error> {
        let is_typed = !self.typed.is_empty();
        place_freed(programs, if is_typed { "freed_typed" } else { "freed" })?;
        // The queues' module may come later, and its function be part of another: then nothing tells of it.
        let symbols = &kernel.symbols;
        let symbol = match (symbols.nf_reinject, symbols.nfqnl_reinject) {
            _ if kernel.layout.ending.offsets.queued_skb == ABSENT => return Ok(false),
            (true, _) => "nf_reinject",
            (false, true) => "nfqnl_reinject",
            (false, false) => return Ok(false),
        };
        let reinjected = if is_typed { "reinjected_typed" } else { "reinjected" };
        let program: &mut KProbe = programs
            .program_mut(reinjected)
            .and_then(|program| program.try_into().ok())
            .ok_or(Error::NoProgram(reinjected))?;
        program.load().map_err(|source| Error::Load { program: reinjected, source })?;
        program.attach(symbol, 0).map_err(|source| Error::Attach { symbol, source })?;
        Ok(true)
    }

    /// Places the program that tells what else drops packets, where only that is looked for.
    pub fn place_drops(&self, programs: &mut aya::Ebpf) -> Result<(), Error> {
        place_freed(programs, if self.typed.is_empty() { "last_freed" } else { "last_freed_typed" })
    }

    /// Places the program that sees connections begin. It costs each connection's first packet.
    pub fn place_connections(&self, programs: &mut aya::Ebpf) -> Result<(), Error> {
        let typed = !self.typed.is_empty();
        let name = if typed { "connection_confirmed_typed" } else { "connection_confirmed" };
        let program: &mut KProbe = programs
            .program_mut(name)
            .and_then(|program| program.try_into().ok())
            .ok_or(Error::NoProgram(name))?;
        program.load().map_err(|source| Error::Load { program: name, source })?;
        program.attach(CONFIRMS, 0).map(drop).map_err(|source| Error::Attach { symbol: CONFIRMS, source })
    }

    /// How often the kernel left out a program that would have seen something begin: it does so while the program is at
    /// work on that CPU already.
    pub fn left_out(&self, begins: Begins) -> io::Result<u64> {
        let programs = self.entries.iter().filter(|(it, _)| *it == begins);
        let of_entries: u64 =
            programs.map(|(_, program)| bpf::recursion_misses(program.as_fd())).sum::<io::Result<_>>()?;
        // Of one that is at work at returns, too, the kernel does not say which side it left out.
        let sessions = self.sessions.iter().filter(|_| begins == Begins::Traversal);
        let of_sessions = sessions.map(|session| {
            Ok(bpf::recursion_misses(session.program.as_fd())? + bpf::session_misses(session.link.as_fd())?)
        });
        Ok(of_entries + of_sessions.sum::<io::Result<u64>>()?)
    }

    /// The programs that packets meet and that aya does not know of.
    pub fn own(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.typed.iter().chain(&self.sessions).map(|running| running.program.as_fd())
    }

    /// How the table functions are probed, in words.
    pub fn method(&self) -> String {
        let method = match (self.typed.as_slice(), self.sessions.as_slice()) {
            ([_, ..], _) => "fentry and fexit",
            ([], [_, ..]) => "kprobe.session",
            ([], []) => "kprobes",
        };
        self.reason.as_ref().map_or(method.to_owned(), |reason| format!("{method}, because {reason}"))
    }

    /// What is visible on the host because of them.
    pub fn footprint(&self) -> Option<&str> {
        self.returns.as_ref().map(|returns| returns.footprint.as_str())
    }

    /// Families that cannot be traced, with the reason.
    pub fn without(&self) -> &[String] {
        &self.without
    }
}

/// The function that makes an entry of conntrack one that others can find.
const CONFIRMS: &str = "__nf_conntrack_confirm";

/// The tracepoint of packets that are freed as dropped.
const FREES: &str = "kfree_skb";

/// Places a program where packets are freed as dropped.
fn place_freed(programs: &mut aya::Ebpf, name: &'static str) -> Result<(), Error> {
    let program: &mut RawTracePoint = programs
        .program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(Error::NoProgram(name))?;
    program.load().map_err(|source| Error::Load { program: name, source })?;
    program.attach(FREES).map(drop).map_err(|source| Error::Attach { symbol: FREES, source })
}

/// Loads a program for raw tracepoints that user space calls.
pub fn load_called(programs: &mut aya::Ebpf, name: &'static str) -> Result<OwnedFd, Error> {
    let program: &mut RawTracePoint = programs
        .program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(Error::NoProgram(name))?;
    let refused = |source| Error::Load { program: name, source };
    program.load().map_err(refused)?;
    let fd = program.fd().map_err(refused)?;
    fd.as_fd().try_clone_to_owned().map_err(|error| refused(ProgramError::IOError(error)))
}

/// The probes whose functions exist, and what cannot be traced for want of others, with the reason.
fn wanted(symbols: &Symbols, sight: Sight) -> Result<(Vec<&'static Probe>, Vec<String>), Error> {
    let witness = sight.witness();
    if !symbols.has_legacy() && witness.is_none() {
        return Err(Error::NoTables);
    }
    let ends = witness == Some(Witness::Return as u32);
    let mut without = Vec::new();
    let mut present = Vec::new();
    for probe in sight.probes() {
        match probe.need {
            Need::Nftables if witness.is_none() => continue,
            Need::NftRules(by) if witness != Some(by as u32) => continue,
            Need::NftEnds if !ends => continue,
            Need::Always | Need::IfPresent if !symbols.has_legacy() => continue,
            _ => {}
        }
        match (exists(symbols, probe.symbol), probe.need) {
            (true, _) => present.push(probe),
            (false, Need::Always | Need::Nftables | Need::NftRules(_) | Need::NftEnds) => {
                return Err(Error::NoFunction(probe.symbol));
            }
            (false, Need::Family(family)) if probe.point == Point::Entry => {
                without.push(format!("legacy tables of {family}: the kernel has no `{}` yet", probe.symbol));
            }
            (false, _) => {}
        }
    }
    Ok((present, without))
}

/// Has the kernel look at the programs that need no kprobe, at all functions that exist. Nothing is placed. No map may
/// have been taken out of `programs` before.
pub fn try_typed(object: &[u8], programs: &aya::Ebpf, kernel: &Kernel, sight: Sight) -> Result<(), Error> {
    let (present, _) = wanted(&kernel.symbols, sight)?;
    each_typed(object, programs, kernel, &present, typed::Programs::load)?;
    Ok(())
}

/// The same for the programs at the entry and the return of the table functions.
pub fn try_session(
    object: &[u8],
    programs: &aya::Ebpf,
    kernel: &Kernel,
    sight: Sight,
) -> Result<(), session::Error> {
    let all: Vec<&Probe> =
        sight.probes().iter().filter(|probe| exists(&kernel.symbols, probe.symbol)).collect();
    let wanted = session::Wanted::instead_of(&all, sight.sessions());
    session::load(object, programs, kernel, &wanted).map(drop)
}

/// Why there are kprobes where neither of the other two could be placed.
fn with_session(fentry: &str, session: &session::Error) -> String {
    format!("{fentry}, and kprobe.session does not work: {session}")
}

/// The kprobe programs that see something begin; each of them once, at however many functions it runs.
fn kprobe_entries(programs: &aya::Ebpf, present: &[&Probe]) -> Vec<(Begins, OwnedFd)> {
    let mut begins: Vec<_> =
        present.iter().filter_map(|probe| Some((probe.program, probe.begins()?))).collect();
    begins.dedup();
    let found = begins.into_iter().filter_map(|(name, begins)| {
        let program: &KProbe = programs.program(name)?.try_into().ok()?;
        Some((begins, program.fd().ok()?.as_fd().try_clone_to_owned().ok()?))
    });
    found.collect()
}

/// Places the programs that need no kprobe; all of them, or none.
fn place_typed(
    object: &[u8],
    programs: &aya::Ebpf,
    kernel: &Kernel,
    present: &[&'static Probe],
) -> Result<Vec<(&'static Probe, typed::Running)>, typed::Error> {
    each_typed(object, programs, kernel, present, typed::Programs::attach)
}

type Work<T> =
    fn(&typed::Programs, &'static str, &'static str, Point, &kernel::TypedTarget) -> Result<T, typed::Error>;

fn each_typed<T>(
    object: &[u8],
    programs: &aya::Ebpf,
    kernel: &Kernel,
    present: &[&'static Probe],
    work: Work<T>,
) -> Result<Vec<(&'static Probe, T)>, typed::Error> {
    let wanted: Vec<(&'static Probe, &'static str, &kernel::TypedTarget)> = present
        .iter()
        .filter_map(|probe| Some((*probe, probe.typed?)))
        .map(|(probe, program)| match kernel.typed.get(probe.symbol) {
            Some(target) => Ok((probe, program, target)),
            None => Err(typed::Error::NotDescribed(probe.symbol)),
        })
        .collect::<Result<_, _>>()?;
    let typed = typed::Programs::of(object, programs, kernel)?;
    wanted
        .into_iter()
        .map(|(probe, program, target)| {
            Ok((probe, work(&typed, program, probe.symbol, probe.point, target)?))
        })
        .collect()
}

fn exists(symbols: &Symbols, symbol: &str) -> bool {
    match symbol {
        "ipt_do_table" => symbols.ipt_do_table,
        "ip6t_do_table" => symbols.ip6t_do_table,
        "arpt_do_table" => symbols.arpt_do_table,
        "xt_copy_counters" => symbols.copy_counters,
        "xt_replace_table" => symbols.replace_table,
        "nft_do_chain" => symbols.nft_do_chain,
        "__nft_trace_packet" => symbols.nft_trace_packet,
        "nf_tables_commit" => symbols.nf_tables_commit,
        "__nf_conntrack_confirm" => symbols.conntrack_confirm,
        _ => false,
    }
}

/// Whether a return probe of the kprobe PMU has no more slots than there are CPUs.
fn few_return_slots(symbols: &Symbols) -> bool {
    !symbols.rethook && !symbols.preemption
}

fn place(programs: &mut aya::Ebpf, probe: &Probe, returns: &mut Slots) -> Result<(), Error> {
    let program: &mut KProbe = programs
        .program_mut(probe.program)
        .and_then(|program| program.try_into().ok())
        .ok_or(Error::NoProgram(probe.program))?;
    if program.fd().is_err() {
        program.load().map_err(|source| Error::Load { program: probe.program, source })?;
    }
    if probe.point == Point::Return && returns.few {
        return returns.get()?.place(program, probe.symbol);
    }
    let attached = program.attach(probe.symbol, 0);
    attached.map(drop).map_err(|source| Error::Attach { symbol: probe.symbol, source })
}

/// Where return probes get their slots from.
struct Slots {
    few: bool,
    made: Option<Returns>,
}

impl Slots {
    fn new(symbols: &Symbols) -> Self {
        Self { few: few_return_slots(symbols), made: None }
    }

    /// Those of tracefs, which are made when the first probe needs them.
    fn get(&mut self) -> Result<&mut Returns, Error> {
        Ok(match &mut self.made {
            Some(returns) => returns,
            made => made.insert(Returns::prepare()?),
        })
    }
}

/// Return probes in tracefs, with as many slots as nested traversals need.
#[derive(Debug)]
struct Returns {
    tracefs: Tracefs,
    slots: usize,
    attached: Vec<OwnedFd>,
    events: Vec<Event>,
    footprint: String,
    _guard: Guard,
}

impl Returns {
    /// Starts the guard and makes sure that nothing of an earlier process of our number is left: an event of the same
    /// name would not be replaced, but get a second probe.
    fn prepare() -> Result<Self, Error> {
        let tracefs = Tracefs::find().ok_or(Error::NoTracefs)?;
        let pid = std::process::id();
        let guard = Process::own().and_then(|ours| Guard::start(ours, &[])).map_err(Error::Guard)?;
        for event in tracefs.events().map_err(Error::Leftover)?.iter().filter(|event| event.pid == pid) {
            tracefs.remove(event).map_err(Error::Leftover)?;
        }
        Ok(Self {
            tracefs,
            slots: (8 * kernel::possible_cpus().unwrap_or(1)).max(64),
            attached: Vec::new(),
            events: Vec::new(),
            footprint: format!("return probe events {} in tracefs", tracefs::group(pid)),
            _guard: guard,
        })
    }

    fn place(&mut self, program: &KProbe, symbol: &'static str) -> Result<(), Error> {
        let refused = |source| Error::Event { symbol, source };
        let fd = program.fd().map_err(|source| Error::Attach { symbol, source })?;
        let event = self.tracefs.add_return(std::process::id(), symbol, self.slots).map_err(refused)?;
        let id = self.tracefs.id(&event);
        self.events.push(event);
        self.attached.push(id.and_then(|id| perf::run_at_event(id, fd.as_fd())).map_err(refused)?);
        Ok(())
    }
}

impl Drop for Returns {
    fn drop(&mut self) {
        // An event can go when nothing is attached any more.
        self.attached.clear();
        for event in &self.events {
            // What stays is the guard's: it ends after this.
            let _ = self.tracefs.remove(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aya::sys::SyscallError;

    fn refused(code: i32) -> Error {
        let io_error = io::Error::from_raw_os_error(code);
        let source = SyscallError { call: "perf_event_open", io_error }.into();
        Error::Attach { symbol: "ipt_do_table", source }
    }

    #[test]
    fn missing_privileges_have_a_remedy() {
        for code in [libc::EPERM, libc::EACCES] {
            let error = refused(code);
            assert!(
                error.unusable() && error.remedy().is_some_and(|remedy| remedy.contains("root")),
                "{error}"
            );
        }
        let error = refused(libc::ENOENT);
        assert_eq!((error.unusable(), error.remedy()), (false, None), "{error}");
        assert!(Error::NoTables.remedy().is_some_and(|remedy| remedy.contains("load rules")));
    }

    #[test]
    fn slots_are_few_without_rethook_and_preemption_only() {
        let few =
            |rethook, preemption| few_return_slots(&Symbols { rethook, preemption, ..Symbols::default() });
        assert!(few(false, false));
        assert!(!few(true, false) && !few(false, true) && !few(true, true));
    }
}
