//! Tracing with probes: the ring, the namespaces and the interpreter between them.

use super::interpreter::{Interpreter, NotRead, Reading};
use super::{Next, Session, Wish, buffer_bytes, say};
use crate::backend::ebpf::{self, Ebpf, ReplaceCounts};
use crate::command;
use crate::error::Failure;
use crate::fetch;
use crate::netfilter::Family;
use crate::sink::{Sink, Start};
use crate::sys::privilege::{Capability, Privileges};
use crate::sys::{clock, netns};
use anyhow::Context as _;
use std::fs::File;
use std::num::NonZeroU64;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracer_common::counter::Counter;
use tracer_common::legacy::Traversal;

/// Records taken before signals and time are looked at again.
const BATCH: usize = 4096;

/// Asking how many records were lost is a system call. Where none come, few are lost: it is asked every so many looks.
const LOOKS_PER_COUNT: u32 = 10;

/// Tables of this size fit in any case, larger ones when they were there at the beginning.
const TABLE_ENTRIES: u32 = 2048;
const RING_BYTES: u32 = 1 << 25;

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

    /// Entries in the largest table.
    pub(super) fn largest_table(&self) -> u32 {
        let mut largest = 0;
        self.each(|_, file| largest = largest.max(fetch::largest_table(file).unwrap_or(0)));
        largest
    }

    /// Opens each namespace in turn.
    fn each(&self, mut work: impl FnMut(u32, &File)) {
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
    fn with<T>(&self, inode: u32, work: impl FnOnce(&File) -> T) -> Option<T> {
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
    /// Reads a table again, if it is still the one that was met and its namespace can be found.
    fn read(
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

/// Opens a namespace, unless something else is behind its path by now.
fn open(found: &netns::Namespace) -> Option<File> {
    found.open().ok().filter(|file| netns::inode(file).ok() == Some(found.inode))
}

/// A trace with probes.
pub(super) struct Probing {
    ebpf: AsyncFd<Ebpf>,
    interpreter: Interpreter,
    /// Records lost until the last look, and when that was.
    lost: u64,
    looked_ns: u64,
    /// Looks since then that found nothing.
    idle_looks: u32,
}

impl Probing {
    /// Places the probes.
    pub(super) fn start(wish: &Wish<'_>) -> Result<(Self, Start), Failure> {
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
        // Read once for its size, which the kernel programs must know before they are loaded.
        let largest = namespaces.largest_table();
        let options = ebpf::Options {
            filter: wish.filter,
            netns,
            ring_bytes: buffer_bytes(RING_BYTES),
            table_entries: largest.saturating_mul(2).max(TABLE_ENTRIES),
            method: config.attach,
        };
        // What keeps it from working is said as `doctor` says it.
        let ebpf = Ebpf::attach(&options)
            .map_err(|error| command::ebpf_obstacle().unwrap_or_else(|| refused(error)))?;
        if config.verbose {
            say(&format!("probes: {}", ebpf.method()));
        }
        let footprint = ebpf.footprint().unwrap_or("none").to_owned();
        let start = wish.start("ebpf", footprint, ebpf.log_style());
        let session = Self::new(ebpf, namespaces, wish.sink()?, config.count)?;
        Ok((session, start))
    }

    /// Takes the tables of all namespaces as they are now.
    fn new(
        ebpf: Ebpf,
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
        for reason in ebpf.without() {
            say(&format!("not traced: {reason}"));
        }
        let read_again =
            move |met: &Traversal, family, name: &str| namespaces.read(met, family, name, &counts);
        let mut interpreter = Interpreter::new(sink, limit, clock::epoch_ns(), Box::new(read_again));
        for (inode, reading) in found {
            complain(&reading.fetched);
            interpreter.fetched(inode, reading);
        }
        let ebpf = crate::sys::ready::register(ebpf, Interest::READABLE)
            .context("cannot wait for the ring buffer")?;
        Ok(Self { ebpf, interpreter, lost: 0, looked_ns: 0, idle_looks: 0 })
    }
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
        // Of what happened until now, everything is in the ring.
        let now_ns = clock::monotonic_ns();
        let records = self.ebpf.get_mut().drain(BATCH, |record| interpreter.record(record));
        self.idle_looks = if records == 0 { self.idle_looks + 1 } else { LOOKS_PER_COUNT };
        if self.idle_looks >= LOOKS_PER_COUNT {
            let lost = self.ebpf.get_ref().counter(Counter::Lost).map_err(Failure::running)?;
            if lost != self.lost {
                interpreter.lost(self.looked_ns, clock::monotonic_ns());
            }
            (self.lost, self.looked_ns, self.idle_looks) = (lost, now_ns, 0);
        }
        // While records wait, what a packet met next may be among them: it is as late as the last one taken.
        interpreter.expire(if records < BATCH { now_ns } else { interpreter.seen_ns() });
        interpreter.flush().context("cannot write")?;
        Ok(match records {
            _ if self.interpreter.enough() => Next::End,
            BATCH => Next::LookAgain,
            _ => Next::Wait,
        })
    }

    fn end(mut self) -> Result<(), Failure> {
        let interpreter = &mut self.interpreter;
        interpreter.give_out_rest();
        let ebpf = self.ebpf.get_ref();
        let lost = ebpf.counter(Counter::Lost).map_err(Failure::running)?;
        let missed = ebpf.counter(Counter::Missed).map_err(Failure::running)?;
        let totals = interpreter.finish(lost, missed).context("cannot write")?;
        eprintln!("{totals}");
        Ok(())
    }
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
fn complain(fetched: &fetch::Fetched) {
    if let Some(reason) = &fetched.text_reason {
        let table = &fetched.table;
        say(&format!("{} table {}: {reason}", table.family, table.name));
    }
}
