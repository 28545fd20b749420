//! From the records of the ring to steps and paths.

use crate::backend::ebpf::decode::Record;
use crate::backend::ebpf::{Ebpf, ReplaceCounts};
use crate::error::Failure;
use crate::fetch;
use crate::history::{History, Unknown, Version};
use crate::netfilter::{Family, Hook, Verdict};
use crate::packet::{Link, Owner, PacketView};
use crate::path::attribute::{State, attribute, attribute_unordered};
use crate::path::track::{Part, Tracker};
use crate::path::walk::{Walk, Walker};
use crate::path::{Action, Certainty, Path, Step};
use crate::ruleset::{Table, Target};
use crate::sink::{Sink, Start, Totals};
use crate::sys::netns;
use crate::text;
use crate::trace_line::StepName;
use anyhow::Context as _;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracer_common::counter::Counter;
use tracer_common::legacy::{Match, Traversal, doubt, fact};

/// A table that changes is read again at most this often, for the texts of its rules.
const READ_AGAIN: Duration = Duration::from_millis(250);

/// The namespaces that are traced.
pub(super) struct Namespaces {
    /// By inode number; all that were found when the trace began, or were found since.
    files: HashMap<u32, File>,
}

impl Namespaces {
    /// One namespace, or all.
    pub(super) fn new(namespace: Option<File>, inode: Option<u32>) -> Self {
        let files = match namespace.zip(inode) {
            Some((file, inode)) => HashMap::from([(inode, file)]),
            None => netns::list().into_iter().filter_map(|found| Some((found.inode, found.open().ok()?))).collect(),
        };
        Self { files }
    }

    /// Entries in the largest table.
    pub(super) fn largest_table(&self) -> u32 {
        self.files.values().filter_map(|file| fetch::largest_table(file).ok()).max().unwrap_or(0)
    }

    /// A namespace by its inode number; one that appeared since is looked for.
    fn get(&mut self, inode: u32) -> Option<&File> {
        if !self.files.contains_key(&inode) {
            let found = netns::list().into_iter().find(|found| found.inode == inode)?;
            self.files.insert(inode, found.open().ok()?);
        }
        self.files.get(&inode)
    }
}

/// A trace under way.
pub(super) struct Live {
    ebpf: AsyncFd<Ebpf>,
    interpreter: Interpreter,
}

/// Everything that turns a record into output; apart from the ring, which lends the records.
struct Interpreter {
    sink: Box<dyn Sink>,
    namespaces: Namespaces,
    replace_counts: Rc<ReplaceCounts>,
    history: History,
    tracker: Tracker,
    walker: Walker,
    totals: Totals,
    limit: Option<NonZeroU64>,
    /// What to add to CLOCK_MONOTONIC to get nanoseconds since the epoch.
    epoch_ns: u64,
    /// When tables that changed were last read again.
    last_read: HashMap<(u32, Family, String), Instant>,
    /// The first failure of the sink; nothing more is written after it.
    failed: Option<io::Error>,
}

impl Live {
    /// Takes the tables of all namespaces as they are now.
    pub(super) fn new(
        ebpf: Ebpf,
        namespaces: Namespaces,
        sink: Box<dyn Sink>,
        limit: Option<NonZeroU64>,
    ) -> Result<Self, Failure> {
        let replace_counts = ebpf.replace_counts();
        let mut history = History::default();
        for (inode, file) in &namespaces.files {
            let before = replace_counts.now();
            // A namespace that is gone, or that has no tables, has nothing to be traced.
            let Ok(tables) = fetch::fetch_tables(file) else { continue };
            let after = replace_counts.now();
            for table in tables {
                if let Some(reason) = &table.text_reason {
                    eprintln!("nftracer: {} table {}: {}", table.table.family, table.table.name, text::escape(reason));
                }
                history.fetched(*inode, table, before, after);
            }
        }
        for reason in ebpf.without() {
            eprintln!("nftracer: not traced: {}", text::escape(reason));
        }
        let interpreter = Interpreter {
            sink,
            namespaces,
            replace_counts,
            history,
            tracker: Tracker::default(),
            walker: Walker::default(),
            totals: Totals::default(),
            limit,
            epoch_ns: crate::sys::clock::epoch_ns(),
            last_read: HashMap::new(),
            failed: None,
        };
        let ebpf = crate::sys::ready::register(ebpf, Interest::READABLE).context("cannot wait for the ring buffer")?;
        Ok(Self { ebpf, interpreter })
    }

    /// Says that the probes are in place.
    pub(super) fn begin(&mut self, start: &Start) -> Result<(), Failure> {
        self.interpreter.sink.begin(start).and_then(|()| self.interpreter.sink.flush()).context("cannot write")?;
        eprintln!("{start}");
        Ok(())
    }

    /// Waits until the kernel says that much is waiting.
    pub(super) async fn ready(&mut self) {
        if let Ok(mut guard) = self.ebpf.readable_mut().await {
            guard.clear_ready();
        }
    }

    /// Takes all waiting records. Says whether there is to be more.
    pub(super) fn look(&mut self) -> Result<bool, Failure> {
        let interpreter = &mut self.interpreter;
        self.ebpf.get_mut().drain(|record| interpreter.record(record));
        interpreter.expire(crate::sys::clock::monotonic_ns());
        if let Some(error) = interpreter.failed.take() {
            return Err(anyhow::Error::new(error).context("cannot write").into());
        }
        interpreter.sink.flush().context("cannot write")?;
        Ok(!self.interpreter.enough())
    }

    /// Gives out what is left, and the totals.
    pub(super) fn end(mut self) -> Result<(), Failure> {
        let interpreter = &mut self.interpreter;
        interpreter.finish();
        let ebpf = self.ebpf.get_ref();
        interpreter.totals.lost = ebpf.counter(Counter::Lost).map_err(Failure::running)?;
        interpreter.totals.missed = ebpf.counter(Counter::Missed).map_err(Failure::running)?;
        if let Some(error) = interpreter.failed.take() {
            return Err(anyhow::Error::new(error).context("cannot write").into());
        }
        interpreter.sink.finish(&interpreter.totals).context("cannot write")?;
        eprintln!("{}", interpreter.totals);
        Ok(())
    }
}

impl Interpreter {
    fn record(&mut self, record: Record<'_>) {
        match record {
            Record::Traversal(traversal, matches) => self.traversal(traversal, matches),
            Record::Replaced(replaced) => self.history.replaced(replaced),
            Record::Chunk(chunk) => self.history.chunk(chunk),
        }
    }

    fn enough(&self) -> bool {
        self.limit.is_some_and(|limit| self.totals.packets >= limit.get())
    }

    fn traversal(&mut self, traversal: &Traversal, matches: &[Match]) {
        let (Some(family), Some(hook)) = (Family::from_nfproto(traversal.family), Hook::from_number(traversal.hook))
        else {
            return;
        };
        let number = self.tracker.number(traversal);
        let part = match self.version(traversal, family) {
            Ok(version) => self.steps(number, &version, hook, traversal, matches),
            Err(unknown) => Part {
                steps: Vec::new(),
                certainty: Certainty::Inexact,
                why: Some(unknown.to_string()),
                generation: None,
                outcome: None,
                verdict: verdict_of(traversal),
            },
        };
        let loaded = self.history.loaded(traversal.netns, family);
        let Self { tracker, sink, totals, limit, failed, .. } = self;
        tracker.add(traversal, family, part, loaded, &mut |path| give(sink, totals, *limit, failed, &path));
    }

    /// The version of the table that the packet met. A new one is read at once, for the texts of its rules, unless the
    /// table is being changed all the time.
    fn version(&mut self, traversal: &Traversal, family: Family) -> Result<Rc<Version>, Unknown> {
        let met = self.history.version(traversal);
        match &met {
            Ok(version) if version.read => return met,
            Err(Unknown::OtherAddress(_)) => return met,
            _ => {}
        }
        let key = (traversal.netns, family, crate::history::name_of(&traversal.table_name));
        let now = Instant::now();
        if self.last_read.get(&key).is_some_and(|last| now.duration_since(*last) < READ_AGAIN) {
            return met;
        }
        let (inode, family, name) = &key;
        let Some(file) = self.namespaces.get(*inode) else { return met };
        let before = self.replace_counts.now();
        let fetched = fetch::fetch_table(file, *family, name);
        let after = self.replace_counts.now();
        self.last_read.insert(key, Instant::now());
        let Ok(Some(fetched)) = fetched else { return met };
        self.history.fetched(traversal.netns, fetched, before, after);
        self.history.version(traversal)
    }

    /// Gives out the steps of a traversal.
    fn steps(
        &mut self,
        number: u64,
        version: &Rc<Version>,
        hook: Hook,
        traversal: &Traversal,
        matches: &[Match],
    ) -> Part {
        let table = &version.table;
        let mut why = doubts(traversal.doubts);
        let mut outcome = None;
        let walk = match why {
            Some(_) => None,
            None => Some(self.walker.walk(&version.graph, hook, matches, traversal.verdict)),
        };
        let (entries, mut certainty) = match walk {
            Some(Walk::Ordered(entries)) => (entries, Certainty::Complete),
            Some(Walk::Unordered(entries)) => {
                why = Some(format!("the order in {}:{} is not known", table.name, hook.chain()));
                (entries, Certainty::Unordered)
            }
            Some(Walk::Cut(entries, cut)) => {
                outcome = Some(format!("dropped by {}", cut.text()));
                (entries, Certainty::Complete)
            }
            Some(Walk::Inexact(reason)) => {
                why = Some(reason.text(table));
                (plausible(table, matches), Certainty::Inexact)
            }
            None => (plausible(table, matches), Certainty::Inexact),
        };
        let entry = state(&traversal.entry, &traversal.entry_bytes);
        let exit = (traversal.facts & fact::EXIT != 0).then(|| state(&traversal.exit, &traversal.exit_bytes));
        let views = match certainty {
            Certainty::Complete => attribute(table, &entries, entry, exit),
            Certainty::Unordered => attribute_unordered(table, &entries, entry, exit),
            Certainty::Inexact => crate::path::attribute::Views::Unchanged(entry),
        };
        let last = entries.len().saturating_sub(1);
        let mut names = Vec::with_capacity(entries.len());
        for (index, &entry) in entries.iter().enumerate() {
            let Some(name) = name_of(table, entry) else {
                certainty = Certainty::Inexact;
                continue;
            };
            names.push(name.to_string());
            let (state, view_doubt) = views.at(index);
            let ended = (index == last && outcome.is_none()).then_some(traversal.verdict);
            let step = Step {
                packet: number,
                time_ns: self.epoch_ns.wrapping_add(traversal.entry_ns),
                hook,
                table,
                entry,
                action: action(table, entry, ended),
                view: view(traversal, state),
                view_doubt,
                netns: traversal.netns,
            };
            self.totals.steps += 1;
            // Steps beyond the last packet that was asked for would belong to paths that are not given out.
            if self.failed.is_none()
                && !self.enough()
                && let Err(error) = self.sink.step(&step)
            {
                self.failed = Some(error);
            }
        }
        Part {
            steps: names,
            certainty,
            why,
            generation: Some(format!("{}@{}", table.name, version.generation)),
            outcome,
            verdict: verdict_of(traversal),
        }
    }

    fn expire(&mut self, now_ns: u64) {
        let Self { tracker, sink, totals, limit, failed, .. } = self;
        tracker.expire(now_ns, &mut |path| give(sink, totals, *limit, failed, &path));
    }

    fn finish(&mut self) {
        let Self { tracker, sink, totals, limit, failed, .. } = self;
        tracker.finish(&mut |path| give(sink, totals, *limit, failed, &path));
    }
}

/// Gives out a path and counts it, up to the number of packets that was asked for.
fn give(
    sink: &mut Box<dyn Sink>,
    totals: &mut Totals,
    limit: Option<NonZeroU64>,
    failed: &mut Option<io::Error>,
    path: &Path,
) {
    if limit.is_some_and(|limit| totals.packets >= limit.get()) || failed.is_some() {
        return;
    }
    totals.packets += 1;
    match path.certainty {
        Certainty::Complete => {}
        Certainty::Unordered => totals.unordered += 1,
        Certainty::Inexact => totals.inexact += 1,
    }
    if let Err(error) = sink.path(path) {
        *failed = Some(error);
    }
}

/// What is in doubt about a traversal, in words.
fn doubts(bits: u32) -> Option<String> {
    const WORDS: [(u32, &str); 11] = [
        (doubt::REPLACED, "the table was replaced meanwhile"),
        (doubt::REPLACE_COUNT, "a table was replaced meanwhile"),
        (doubt::SEQUENCE, "something else used the tables on this CPU meanwhile"),
        (doubt::GENERATION, "a probe was missed meanwhile"),
        (doubt::NO_EXIT, "its end was not seen: the task moved to another CPU, or the probe was missed"),
        (doubt::TOO_DEEP, "too many traversals were open on this CPU"),
        (doubt::TOO_LARGE, "the table has grown too large since the trace began"),
        (doubt::UNREADABLE, "the table could not be read"),
        (doubt::TOO_MANY, "more rules matched than can be reported"),
        (doubt::ORPHAN, "a traversal from another CPU ended meanwhile"),
        (doubt::MOVED, "the table moved in memory"),
    ];
    let words: Vec<&str> = WORDS.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, word)| *word).collect();
    (!words.is_empty()).then(|| words.join(", "))
}

/// The entries that may have matched, for a traversal in doubt.
fn plausible(table: &Table, matches: &[Match]) -> Vec<usize> {
    let known = |entry: &Match| usize::try_from(entry.index).ok().filter(|index| name_of(table, *index).is_some());
    matches.iter().filter(|entry| entry.count <= 0x7fff_ffff).filter_map(known).collect()
}

fn name_of(table: &Table, entry: usize) -> Option<StepName<'_>> {
    let found = table.entries.get(entry)?;
    let chain = table.chain_of(entry)?;
    Some(StepName { table: &table.name, chain: &chain.name, kind: found.kind, number: found.number })
}

/// `None` when the end of the traversal was not seen.
fn verdict_of(traversal: &Traversal) -> Option<Verdict> {
    (traversal.doubts & (doubt::NO_EXIT | doubt::TOO_DEEP) == 0).then(|| Verdict::from_return(traversal.verdict))
}

/// What an entry did. `ended` is what the function returned when this was the last entry.
fn action(table: &Table, entry: usize, ended: Option<u32>) -> Action<'_> {
    let chain = |to: usize| table.chain_of(to).map_or("?", |chain| chain.name.as_str());
    match &table.entries[entry].target {
        Target::Verdict(verdict) => Action::Verdict(*verdict),
        Target::Return => Action::Return,
        Target::Jump { to } => Action::Jump(chain(*to)),
        Target::Goto { to } => Action::Goto(chain(*to)),
        Target::Continue | Target::Error => Action::Continue,
        Target::Extension(_) => ended.map_or(Action::Continue, |value| Action::Verdict(Verdict::from_return(value))),
    }
}

fn state<'a>(skb: &tracer_common::legacy::SkbState, bytes: &'a [u8]) -> State<'a> {
    let copied = usize::try_from(skb.copied).unwrap_or(0).min(bytes.len());
    State { mark: skb.mark, len: skb.len, bytes: &bytes[..copied] }
}

fn view<'a>(traversal: &'a Traversal, state: State<'a>) -> PacketView<'a> {
    let has = |bit| traversal.facts & bit != 0;
    PacketView {
        family: Family::from_nfproto(traversal.family).unwrap_or(Family::Ipv4),
        indev: has(fact::IN).then(|| trimmed(&traversal.indev.name)),
        outdev: has(fact::OUT).then(|| trimmed(&traversal.outdev.name)),
        link: Link {
            dev_type: traversal.dev_type,
            hard_header_len: traversal.hard_header_len,
            header: has(fact::MAC).then(|| &traversal.mac[..usize::from(traversal.mac_len).min(traversal.mac.len())]),
        },
        len: state.len,
        bytes: state.bytes,
        mark: state.mark,
        owner: has(fact::OWNER).then_some(Owner { uid: traversal.uid, gid: traversal.gid }),
    }
}

fn trimmed(name: &[u8]) -> &[u8] {
    name.iter().position(|byte| *byte == 0).map_or(name, |end| &name[..end])
}
