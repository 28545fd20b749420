//! Tracing with probes: the ring, the namespaces and the interpreter between them.

use super::cost::{Governor, Order, Percent};
use super::interpreter::{Interpreter, NotRead, Reading};
use super::runs::{Heard, NftReading};
use super::{Next, Session, Wish, buffer, gate, say};
use crate::backend::ebpf::{self, CommitCounts, Ebpf, ReplaceCounts};
use crate::cli::trace::{Extent, Mark};
use crate::command;
use crate::error::Failure;
use crate::fetch;
use crate::footprint::{self, Key};
use crate::netfilter::Family;
use crate::netlink::{Message, messages};
use crate::nftables::{Ruleset, Table};
use crate::predicate::{Predicates, User};
use crate::sink::{Output, Sink, Start};
use crate::sys::netlink::{NETFILTER, Received, Socket};
use crate::sys::privilege::{Capability, Privileges};
use crate::sys::{bpf, cgroup, clock, kernel, netns};
use anyhow::Context as _;
use std::fs::File;
use std::num::{NonZeroU32, NonZeroU64};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracer_common::count::by;
use tracer_common::legacy::Traversal;

/// Records taken before signals and time are looked at again.
const BATCH: usize = 4096;
/// Records of which it is only counted at the end how many were not read: more than the usual ring holds, and an end to
/// what the kernel goes on to fill in.
const UNREAD: usize = 1 << 20;
/// Records taken before it is asked whether rules of nftables have changed: on kernels whose announcements leave something
/// open they have to be read before they change again.
const PART: usize = 512;

/// How often the kernel is asked how many traversals it left out: before the paths that may lack them are given out.
const LEFT_OUT_EVERY_NS: u64 = 100_000_000;
/// Asking how many records were lost is a system call. Where none come, few are lost: it is asked every so many looks.
const LOOKS_PER_COUNT: u32 = 10;

/// Tables of this size fit in any case, larger ones when they were there at the beginning.
const TABLE_ENTRIES: u32 = 2048;
/// CPUs of a host that does not tell.
const CPUS: u32 = 2;

/// The namespaces that are traced. They are open only while their tables are read: an open one outlives its last
/// process.
pub(super) struct Namespaces {
    /// The one that was asked for, with its inode number; `None` for all.
    only: Option<(u32, File)>,
}

impl Namespaces {
    /// One namespace, or all.
    pub(super) fn new(namespace: Option<File>, inode: Option<u32>) -> Self {
        Self { only: inode.zip(namespace) }
    }

    /// Entries in each table.
    pub(super) fn table_sizes(&self) -> Vec<u32> {
        let mut sizes = Vec::new();
        self.each(|_, file| sizes.extend(fetch::table_sizes(file).unwrap_or_default()));
        sizes
    }

    /// Opens each namespace in turn.
    pub(super) fn each(&self, mut work: impl FnMut(u32, &File)) {
        match &self.only {
            Some((inode, file)) => work(*inode, file),
            None => netns::list().iter().for_each(|found| {
                if let Some(file) = open(found) {
                    work(found.inode, &file);
                }
            }),
        }
    }

    /// Opens a namespace by its inode number, if it can be found.
    pub(super) fn with<T>(&self, inode: u32, work: impl FnOnce(&File) -> T) -> Option<T> {
        match &self.only {
            Some((only, file)) => (*only == inode).then(|| work(file)),
            None => {
                let found = netns::list().into_iter().find(|found| found.inode == inode)?;
                open(&found).map(|file| work(&file))
            }
        }
    }
}

impl Namespaces {
    /// Whether any of them has base chains of nftables that see packets.
    pub(super) fn have_base_chains(&self) -> bool {
        let mut found = false;
        self.each(|_, file| found |= has_base_chains(file));
        found
    }

    /// The namespace that was asked for, or this process's own.
    pub(super) fn home(&self) -> Result<File, netns::Error> {
        match &self.only {
            Some((_, file)) => Ok(file.try_clone().unwrap_or(netns::current()?)),
            None => netns::current(),
        }
    }

    /// Reads the rules of nftables again, without their texts.
    fn read_nftables(&self, inode: u32, commits: &CommitCounts) -> Option<NftReading> {
        self.with(inode, |file| read_nftables(file, false, commits))?
    }

    /// Has the rules of nftables printed: that takes longer than rules may stay the same.
    fn print_nftables(&self, inode: u32) -> Option<Receiver<Ruleset>> {
        let namespace = self.with(inode, |file| file.try_clone().ok())??;
        let (sender, receiver) = mpsc::channel();
        let print = move || {
            let nftables = fetch::nft::Nftables::open(&namespace).ok().flatten();
            if let Some(fetched) = nftables.and_then(|mut nftables| nftables.fetch().ok()) {
                // Who asked may have ended.
                let _ = sender.send(fetched.ruleset);
            }
        };
        thread::Builder::new().name("print".to_owned()).spawn(print).ok()?;
        Some(receiver)
    }

    /// Reads a table again, if it is still the one that was met and its namespace can be found.
    pub(super) fn read(
        &self,
        met: &Traversal,
        family: Family,
        name: &str,
        counts: &ReplaceCounts,
    ) -> Result<Reading, NotRead> {
        if counts.of(met.table) != met.replace_count {
            return Err(NotRead::Replaced);
        }
        let read = |file: &File| {
            let before = counts.now();
            let fetched = fetch::fetch_table(file, family, name).ok().flatten()?;
            Some(Reading { fetched, before, after: counts.now(), read_ns: clock::monotonic_ns() })
        };
        self.with(met.netns, read).flatten().ok_or(NotRead::Failed)
    }
}

/// Whether a namespace has base chains of nftables that see packets.
fn has_base_chains(namespace: &File) -> bool {
    let nftables = fetch::nft::Nftables::open(namespace).ok().flatten();
    let ruleset = nftables.and_then(|mut nftables| nftables.structure().ok());
    ruleset.is_some_and(|ruleset| ruleset.tables.iter().any(sees_packets))
}

/// What is not traced: base chains at hooks that this program does not know, and what flowtables take past all hooks.
pub(super) fn not_traced(ruleset: &Ruleset) -> Vec<String> {
    let mut names = Vec::new();
    for table in &ruleset.tables {
        for chain in &table.chains {
            let Some(base) = &chain.base else { continue };
            if base.hook.is_none() {
                let name = format!("{} {}:{}", table.family.name(), table.name, chain.name);
                names.push(format!("base chain {name}"));
            }
        }
        let flowtables = table.flowtables.iter().map(|flowtable| {
            let name = format!("{} {}:{}", table.family.name(), table.name, flowtable.name);
            format!("packets that flowtable {name} forwards")
        });
        names.extend(flowtables);
    }
    names
}

/// By its own tables another nftracer marks packets, and nothing else.
fn sees_packets(table: &Table) -> bool {
    !footprint::is_table_of_ours(table) && table.chains.iter().any(|chain| chain.base.is_some())
}

/// Reads the rules of nftables in a namespace; `None` when there is no nftables.
pub(super) fn read_nftables(namespace: &File, texts: bool, commits: &CommitCounts) -> Option<NftReading> {
    let mut nftables = fetch::nft::Nftables::open(namespace).ok().flatten()?;
    let before = commits.now();
    let ruleset = if texts { nftables.fetch().ok()?.ruleset } else { nftables.structure().ok()? };
    Some(NftReading { ruleset, before, after: commits.now(), read_ns: clock::monotonic_ns() })
}

fn no_cgroup(error: cgroup::Error) -> Failure {
    match error {
        cgroup::Error::NotMounted => Failure::unusable(error),
        cgroup::Error::NoCgroup { .. } => Failure::usage(error),
    }
}

/// Opens a namespace, unless something else is behind its path by now.
fn open(found: &netns::Namespace) -> Option<File> {
    found.open().ok().filter(|file| netns::inode(file).ok() == Some(found.inode))
}

/// Listens for changes of the rules of nftables in a namespace.
struct Changes {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Changes {
    /// `NFNLGRP_NFTABLES`
    const GROUP: u32 = 7;
    const BUFFER_BYTES: usize = 32 << 20;

    /// `None` where that cannot be heard. To listen would load nftables: only where it is loaded.
    fn of(namespace: &File) -> Option<Self> {
        let socket =
            kernel::has_nftables().then(|| Socket::open(Some(namespace), NETFILTER).ok()).flatten()?;
        // Where that is refused, more is lost, and read again.
        let _ = socket.set_receive_buffer(Self::BUFFER_BYTES);
        socket.join_group(Self::GROUP).ok()?;
        Some(Self { socket, buffer: Vec::new() })
    }

    /// Whether there were any since the last time.
    fn any(&mut self) -> bool {
        let mut any = false;
        while !matches!(self.socket.recv(&mut self.buffer), Ok(Received::Empty) | Err(_)) {
            any = true;
        }
        any
    }

    /// What was announced since the last time.
    fn hear(&mut self, take: &mut dyn FnMut(&Message<'_>, u64)) -> Heard {
        let mut heard = Heard::All;
        loop {
            match self.socket.recv(&mut self.buffer) {
                Ok(Received::Datagram(bytes)) => {
                    let now_ns = clock::monotonic_ns();
                    messages(bytes).for_each(|message| take(&message, now_ns));
                }
                Ok(Received::Overrun) => heard = Heard::Some,
                Ok(Received::Empty) => return heard,
                Err(_) => return Heard::Some,
            }
        }
    }
}

/// Looks for base chains of nftables that come while it is not traced.
pub(super) struct Watch {
    namespace: File,
    changes: Option<Changes>,
    looks: u32,
}

impl Watch {
    /// Whether nftables has been loaded is looked at every so many looks.
    const LOOKS: u32 = 100;

    pub(super) fn new(namespace: File) -> Self {
        Self { namespace, changes: None, looks: 0 }
    }

    /// Whether there are base chains now.
    pub(super) fn look(&mut self) -> bool {
        let changed = match &mut self.changes {
            Some(changes) => changes.any(),
            None if self.looks.is_multiple_of(Self::LOOKS) => {
                self.changes = Changes::of(&self.namespace);
                self.changes.is_some()
            }
            None => false,
        };
        self.looks = self.looks.wrapping_add(1);
        changed && has_base_chains(&self.namespace)
    }
}

/// A trace with probes.
pub(super) struct Probing {
    ebpf: AsyncFd<Ebpf>,
    interpreter: Interpreter,
    /// Records lost until the last look, and when that was.
    lost: ebpf::Lost,
    looked_ns: u64,
    /// Traversals that the kernel had left out when it was last asked, and when that was (CLOCK_MONOTONIC).
    left_out: u64,
    left_out_ns: u64,
    /// Looks since then that found nothing.
    idle_looks: u32,
    /// Where nftables is not traced.
    watch: Option<Watch>,
    /// Where it is, and only one namespace, whose inode number this is.
    follows: Option<u32>,
    /// Whether only one packet in so many was asked for, and whether only so many in a second.
    asked: (bool, bool),
    /// What it may cost.
    budget: Option<Budget>,
    /// Goes after the probes.
    _key: Option<Key>,
}

/// Probes in their places.
pub(super) struct Placed {
    pub(super) ebpf: Ebpf,
    pub(super) namespaces: Namespaces,
    /// Goes after the probes.
    pub(super) key: Option<Key>,
    pub(super) start: Start,
}

impl Placed {
    /// Places the probes, to trace packets or to count them.
    pub(super) fn new(wish: &Wish<'_>, counts: Option<ebpf::Counts>) -> Result<Self, Failure> {
        let config = wish.config;
        // Probes could be placed without it, and no ruleset be read.
        if !Privileges::gather().has(Capability::NetAdmin)
            && let Some(obstacle) = command::ebpf_obstacle()
        {
            return Err(obstacle);
        }
        let namespace = match config.netns.path() {
            Some(_) => Some(command::open_namespace(&config.netns)?),
            None => None,
        };
        let netns = namespace.as_ref().map(netns::inode).transpose().map_err(Failure::running)?;
        let namespaces = Namespaces::new(namespace, netns);
        // Read once for their sizes, which the kernel programs must know before they are loaded.
        let sizes = namespaces.table_sizes();
        let largest = sizes.iter().max().copied().unwrap_or(0);
        let last_rule = counts.is_none() && config.asks_last_rule();
        let nftables = match config.mark {
            _ if !kernel::has_nftables() => ebpf::Nftables::Absent,
            // Where there is nothing else, base chains may come.
            _ if kernel::has_legacy_tables() && !namespaces.have_base_chains() => ebpf::Nftables::Absent,
            // What becomes of packets is known without the rules.
            _ if counts.is_some_and(|counts| counts.by != by::RULE) => ebpf::Nftables::Ends,
            // Rules alone are looked for.
            Mark::None if last_rule => ebpf::Nftables::Absent,
            Mark::None => ebpf::Nftables::Ends,
            _ => ebpf::Nftables::Rules,
        };
        if last_rule && config.mark == Mark::None && namespaces.have_base_chains() {
            say("--last-rule with --mark none: which rules of nftables drop packets is not shown");
        }
        let key = match nftables {
            ebpf::Nftables::Rules => Some(turn_key(&namespaces.home().map_err(Failure::running)?)?),
            _ => None,
        };
        // Where a packet may be seen by several devices, the first one does not decide.
        let one_device = nftables == ebpf::Nftables::Absent || !kernel::has_bridge_netfilter();
        // What else drops packets is told only so.
        let asks_verdict = !wish.predicates.verdicts.is_empty();
        let options = ebpf::Options {
            nftables,
            filter: wish.filter,
            netns,
            ring_bytes: config.buffer.unwrap_or_else(usual_ring_bytes),
            table_entries: largest.saturating_mul(2).max(TABLE_ENTRIES),
            method: config.attach,
            choice: ebpf::Choice {
                indev: wish.predicates.indev.as_ref().filter(|_| one_device || config.follow),
                uid: match wish.predicates.uid {
                    Some(User::Number(number)) => Some(number),
                    _ => None,
                },
                cgroup: config.cgroup.as_deref().map(cgroup::find).transpose().map_err(no_cgroup)?,
                follow: config.follow,
                conntrack: config.conntrack,
            },
            throttle: gate::throttle(config),
            endings: counts.is_none()
                && (config.output != Output::Trace || config.write.is_some() || asks_verdict),
            counts,
            timed: config.latency.is_asked() && counts.is_none(),
            who: config.who && counts.is_none(),
            last_rule: last_rule.then(|| pages(&sizes)),
        };
        // What keeps it from working is said as `doctor` says it.
        let ebpf = Ebpf::attach(&options)
            .map_err(|error| command::ebpf_obstacle().unwrap_or_else(|| refused(error)))?;
        if config.verbose {
            say(&format!("probes: {}", ebpf.method()));
        }
        if last_rule && config.extent == Extent::Usual {
            say(
                "of each packet only what drops it is looked for: what is accepted costs next to nothing so; --whole-path shows all that it met",
            );
        }
        let key = key.filter(|_| ebpf.traces_nftables());
        let visible = [ebpf.footprint().map(str::to_owned), key.as_ref().map(Key::describe)];
        let visible: Vec<String> = visible.into_iter().flatten().collect();
        let footprint = if visible.is_empty() { "none".to_owned() } else { visible.join(", ") };
        let start = wish.start("ebpf", footprint, ebpf.log_style());
        Ok(Self { ebpf, namespaces, key, start })
    }
}

/// Pages for the counters of tables of these sizes, when they have grown or others have come.
fn pages(sizes: &[u32]) -> u32 {
    const OTHERS: u32 = 64;
    let pages = sizes.iter().map(|size| size.div_ceil(ebpf::PAGE_ENTRIES));
    pages.fold(OTHERS, |sum, pages| sum.saturating_add(pages.saturating_mul(2)))
}

impl Probing {
    /// Places the probes.
    pub(super) fn start(wish: &Wish<'_>) -> Result<(Self, Start), Failure> {
        let config = wish.config;
        let Placed { ebpf, namespaces, key, mut start } = Placed::new(wish, None)?;
        let asked = (config.sample.is_some() || config.max_cost_ppm.is_some(), config.limit.is_some());
        let budget = config.max_cost_ppm.map(|most_ppm| Budget::new(most_ppm, config.sample));
        if budget.as_ref().is_some_and(|budget| budget.measured.is_some()) {
            const MEASURES: &str = "the time of BPF programs measured";
            start.footprint = match start.footprint.as_str() {
                "none" => MEASURES.to_owned(),
                others => format!("{others}, {MEASURES}"),
            };
        }
        let mut session =
            Self { _key: key, asked, budget, ..Self::new(ebpf, namespaces, wish.sink()?, config.count)? };
        // Packets that are followed need not meet what others were chosen by.
        let predicates = match config.follow {
            true => &Predicates { indev: None, uid: None, ..wish.predicates.clone() },
            false => wish.predicates,
        };
        session.interpreter.choose(predicates, config.latency.slow, config.limit_per_rule);
        Ok((session, start))
    }

    /// Takes the tables of all namespaces as they are now.
    fn new(
        mut ebpf: Ebpf,
        namespaces: Namespaces,
        sink: Box<dyn Sink>,
        limit: Option<NonZeroU64>,
    ) -> Result<Self, Failure> {
        let counts = ebpf.replace_counts();
        let mut found = Vec::new();
        namespaces.each(|inode, file| {
            let before = counts.now();
            // A namespace that is gone, or that has no tables, has nothing to be traced.
            let Ok(tables) = fetch::fetch_tables(file) else { return };
            let (after, read_ns) = (counts.now(), clock::monotonic_ns());
            let reading = |fetched| (inode, Reading { fetched, before, after, read_ns });
            found.extend(tables.into_iter().map(reading));
        });
        let commits = ebpf.commits();
        // Before they are read: then no change is unheard.
        let changes = namespaces.only.as_ref().filter(|_| ebpf.traces_nftables());
        let mut changes = changes.and_then(|(inode, file)| Some((*inode, Changes::of(file)?)));
        let follows = changes.as_ref().map(|(inode, _)| *inode);
        let mut rules = Vec::new();
        if ebpf.traces_nftables() {
            namespaces.each(|inode, file| {
                rules.extend(read_nftables(file, true, &commits).map(|reading| (inode, reading)));
            });
        }
        for reason in ebpf.without() {
            say(&format!("not traced: {reason}"));
        }
        let watch = if ebpf.traces_nftables() { None } else { namespaces.home().ok().map(Watch::new) };
        let namespaces = Rc::new(namespaces);
        let again = Rc::clone(&namespaces);
        let read_again = move |met: &Traversal, family, name: &str| again.read(met, family, name, &counts);
        let to_print = Rc::clone(&namespaces);
        let print_nftables = move |inode| to_print.print_nftables(inode);
        let read_nftables = move |inode| namespaces.read_nftables(inode, &commits);
        let hear_changes = move |inode, take: &mut dyn FnMut(&Message<'_>, u64)| match &mut changes {
            Some((only, changes)) if *only == inode => changes.hear(take),
            _ => Heard::Nothing,
        };
        let mut interpreter = Interpreter::new(
            sink,
            limit,
            clock::epoch_ns(),
            Box::new(read_again),
            Box::new(read_nftables),
            Box::new(print_nftables),
            Box::new(hear_changes),
        );
        if ebpf.tells_senders() {
            interpreter.tell_senders();
        }
        if let Some(endings) = ebpf.endings() {
            interpreter.tell_endings(endings);
        }
        if !ebpf.traces_nftables() {
            interpreter.omit_nftables();
        }
        for (inode, reading) in rules {
            for name in not_traced(&reading.ruleset) {
                say(&format!("not traced: {name}"));
            }
            interpreter.fetched_nftables(inode, reading);
        }
        for (inode, reading) in found {
            complain(&reading.fetched);
            interpreter.fetched(inode, reading);
        }
        let ebpf = crate::sys::ready::register(ebpf, Interest::READABLE)
            .context("cannot wait for the ring buffer")?;
        Ok(Self {
            ebpf,
            interpreter,
            lost: ebpf::Lost::default(),
            looked_ns: 0,
            left_out: 0,
            left_out_ns: 0,
            idle_looks: 0,
            watch,
            follows,
            asked: (false, false),
            budget: None,
            _key: None,
        })
    }
}

/// A share of all processors' time that must be enough.
struct Budget {
    governor: Governor,
    /// While it is there, the kernel measures how long programs run.
    measured: Option<OwnedFd>,
}

impl Budget {
    fn new(most_ppm: NonZeroU32, sample: Option<NonZeroU32>) -> Self {
        let measured = bpf::measure_programs();
        if measured.is_err() {
            say("--max-cost: only this process is measured, this kernel does not measure its programs");
        }
        let cpus = kernel::online_cpus().map_or(1, |cpus| cpus as usize);
        Self {
            governor: Governor::new(most_ppm, cpus, sample.map_or(1, NonZeroU32::get)),
            measured: measured.ok(),
        }
    }

    /// Whether the trace may go on.
    fn keep(&mut self, ebpf: &mut Ebpf) -> Result<bool, Failure> {
        let now = Duration::from_nanos(clock::monotonic_ns());
        if !self.governor.is_due(now) {
            return Ok(true);
        }
        let in_kernel = match &self.measured {
            Some(_) => ebpf.run_time().context("cannot ask how long programs run")?,
            None => Duration::ZERO,
        };
        Ok(match self.governor.judge(now, clock::spent() + in_kernel) {
            Order::GoOn => true,
            Order::Sample(one_in, share) => {
                ebpf.sample(one_in).map_err(Failure::running)?;
                say(&format!(
                    "--max-cost: {} of all processors, now one in {one_in} packets is traced",
                    Percent(share)
                ));
                true
            }
            Order::End(share) => {
                say(&format!(
                    "--max-cost: {} of all processors, and fewer packets cannot be traced: the trace ends",
                    Percent(share)
                ));
                false
            }
        })
    }
}

impl Probing {
    /// Learns of records that found no room.
    fn notice_lost(&mut self) -> Result<(), Failure> {
        let asked_ns = clock::monotonic_ns();
        let lost = self.ebpf.get_ref().lost().map_err(Failure::running)?;
        if lost != self.lost {
            self.interpreter.lost(self.looked_ns, clock::monotonic_ns());
        }
        (self.lost, self.looked_ns) = (lost, asked_ns);
        Ok(())
    }

    /// Learns of traversals that were left out and that no later one on the same CPU has told of yet.
    fn notice_left_out(&mut self) -> Result<(), Failure> {
        let asked_ns = clock::monotonic_ns();
        let left_out = self.ebpf.get_ref().traversals_left_out().map_err(Failure::running)?;
        if left_out != self.left_out {
            self.interpreter.lost(self.left_out_ns, clock::monotonic_ns());
        }
        (self.left_out, self.left_out_ns) = (left_out, asked_ns);
        Ok(())
    }
}

/// What suits this host.
fn usual_ring_bytes() -> u32 {
    let system = rustix::system::sysinfo();
    let memory_bytes = system.totalram.saturating_mul(system.mem_unit.into());
    buffer::ring_bytes(memory_bytes, kernel::online_cpus().unwrap_or(CPUS))
}

impl Session for Probing {
    fn begin(&mut self, start: &Start) -> Result<(), Failure> {
        Ok(self.interpreter.begin(start).context("cannot write")?)
    }

    /// Waits until the kernel says that much is waiting.
    async fn ready(&mut self) {
        if let Ok(mut guard) = self.ebpf.readable_mut().await {
            guard.clear_ready();
        }
    }

    fn look(&mut self) -> Result<Next, Failure> {
        let interpreter = &mut self.interpreter;
        if self.watch.as_mut().is_some_and(Watch::look) {
            self.watch = None;
            say("nftables has rules that are not traced: from here on no path is complete");
            interpreter.doubt_all("nftables has rules that are not traced");
        }
        // Of what happened until now, everything is in the ring.
        let now_ns = clock::monotonic_ns();
        interpreter.heard(now_ns);
        let mut records = 0;
        while records < BATCH {
            if let Some(netns) = self.follows {
                interpreter.follow_nftables(netns);
            }
            let taken = self.ebpf.get_mut().drain(PART, |record| interpreter.record(record));
            records += taken;
            if taken < PART {
                break;
            }
        }
        self.idle_looks = if records == 0 { self.idle_looks + 1 } else { LOOKS_PER_COUNT };
        if self.idle_looks >= LOOKS_PER_COUNT {
            self.notice_lost()?;
            self.idle_looks = 0;
        }
        if now_ns >= self.left_out_ns + LEFT_OUT_EVERY_NS {
            self.notice_left_out()?;
        }
        let interpreter = &mut self.interpreter;
        // While records wait, what a packet met next may be among them: it is as late as the last one taken.
        interpreter.expire(if records < BATCH { now_ns } else { interpreter.seen_ns() });
        interpreter.flush().context("cannot write")?;
        let is_within = match &mut self.budget {
            Some(budget) => budget.keep(self.ebpf.get_mut())?,
            None => true,
        };
        Ok(match records {
            _ if !is_within || self.interpreter.enough() => Next::End,
            BATCH => Next::LookAgain,
            _ => Next::Wait,
        })
    }

    fn end(mut self) -> Result<(), Failure> {
        let interpreter = &mut self.interpreter;
        let ebpf = self.ebpf.get_mut();
        ebpf.sweep();
        // Few: those of packets that are on their way. Where there are more, what those met next has not been read.
        let taken = ebpf.drain(BATCH, |record| interpreter.record(record));
        self.notice_lost()?;
        self.notice_left_out()?;
        let interpreter = &mut self.interpreter;
        let read_until_ns = if taken < BATCH { clock::monotonic_ns() } else { interpreter.seen_ns() };
        interpreter.give_out_rest(read_until_ns);
        // What nobody asked for is not missed.
        let unread =
            if taken < BATCH || interpreter.enough() { 0 } else { self.ebpf.get_mut().drain(UNREAD, |_| ()) };
        let interpreter = &mut self.interpreter;
        let ebpf = self.ebpf.get_ref();
        let lost = ebpf.lost().map_err(Failure::running)?;
        let missed = ebpf.missed_traversals().map_err(Failure::running)? + lost.missed_runs;
        let throttled = ebpf.throttled().map_err(Failure::running)?;
        let (sampled, limited) = self.asked;
        interpreter.left_out(sampled.then_some(throttled.by_chance), limited.then_some(throttled.by_limit));
        let totals = interpreter.finish(lost.records + unread as u64, missed).context("cannot write")?;
        eprintln!("{totals}");
        Ok(())
    }
}

/// Makes the kernel tell of nftables' verdicts.
fn turn_key(home: &File) -> Result<Key, Failure> {
    Key::turn(home).map_err(|error| {
        let (remedy, denied) = (error.remedy(), error.is_denied());
        let failure = if denied { Failure::unusable(error) } else { Failure::running(error) };
        match remedy {
            Some(remedy) => failure.with_remedy(remedy),
            None => failure,
        }
    })
}

fn refused(error: ebpf::Error) -> Failure {
    let (unusable, remedy) = (error.unusable(), error.remedy());
    let failure = if unusable { Failure::unusable(error) } else { Failure::running(error) };
    match remedy {
        Some(remedy) => failure.with_remedy(remedy),
        None => failure,
    }
}

/// Says why the rules of a table have no text.
pub(super) fn complain(fetched: &fetch::Fetched) {
    if let Some(reason) = &fetched.text_reason {
        let table = &fetched.table;
        say(&format!("{} table {}: {reason}", table.family, table.name));
    }
}
