//! `--count-by`: the programs count, and their numbers are shown now and then.

use super::interpreter::{NotRead, Reading};
use super::probes::{Namespaces, Placed, Watch, complain, not_traced, read_nftables};
use super::{Next, Session, Wish, say};
use crate::backend::ebpf::decode::Record;
use crate::backend::ebpf::{self, CommitCounts, Ebpf, ReplaceCounts};
use crate::cli::netns::Netns;
use crate::cli::trace::Counting;
use crate::error::Failure;
use crate::fetch;
use crate::hash::KernelMap;
use crate::history::{History, Version, name_of};
use crate::netfilter::{Family, StepKind, Verdict};
use crate::nftables::{Located, Ruleset};
use crate::packet::protocol_name;
use crate::ruleset::Rule;
use crate::sink::{CountJson, CountSink, CountTotals, Output, Start, Tables};
use crate::sys::clock;
use crate::tally::{By, Tally, What};
use crate::trace_line::StepName;
use anyhow::Context as _;
use std::io::{self, IsTerminal as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::Instant;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracer_common::count::{self, Key, kind};
use tracer_common::legacy::Traversal;

/// Different things that there is room for.
const ROOM: u32 = 1 << 16;
/// Records taken at once. There are few: what tables there are.
const BATCH: usize = 4096;

/// A count under way.
pub(super) struct Counter {
    ebpf: AsyncFd<Ebpf>,
    counting: Counting,
    names: Names,
    tally: Tally,
    sink: Box<dyn CountSink>,
    began: Instant,
    looked: Instant,
    /// Where nftables is not counted.
    watch: Option<Watch>,
    /// Goes after the probes.
    _key: Option<crate::footprint::Key>,
}

impl Counter {
    /// Places the probes.
    pub(super) fn start(wish: &Wish<'_>, counting: Counting) -> Result<(Self, Start), Failure> {
        let counts = ebpf::Counts { by: program(counting.by), room: ROOM };
        let Placed { ebpf, namespaces, key, start } = Placed::new(wish, Some(counts))?;
        for reason in ebpf.without() {
            say(&format!("not counted: {reason}"));
        }
        let watch = if ebpf.traces_nftables() { None } else { namespaces.home().ok().map(Watch::new) };
        let several = wish.config.netns == Netns::All;
        let names = Names::new(&ebpf, namespaces, several);
        let ebpf = crate::sys::ready::register(ebpf, Interest::READABLE)
            .context("cannot wait for the ring buffer")?;
        let sink = sink(wish.config.output);
        let now = Instant::now();
        let tally = Tally::default();
        let session = Self { ebpf, counting, names, tally, sink, began: now, looked: now, watch, _key: key };
        Ok((session, start))
    }

    /// Takes the records that wait. Says whether there may be more.
    fn drain(&mut self) -> bool {
        let names = &mut self.names;
        let taken = self.ebpf.get_mut().drain(BATCH, |record| match record {
            Record::Traversal(seen) => names.met(seen.traversal),
            Record::Replaced(replaced) => names.history.replaced(replaced),
            Record::Chunk(chunk) => names.history.chunk(chunk),
            Record::Run(_)
            | Record::Event(..)
            | Record::Freed(_)
            | Record::Dropped(_)
            | Record::Reinjected(_)
            | Record::Link(_)
            | Record::Tracked(_)
            | Record::Sender(_) => {}
        });
        taken == BATCH
    }

    fn read(&mut self) -> Result<(), Failure> {
        let (mut totals, mut packets, mut ended) = (Vec::new(), 0_u64, 0_u64);
        let (names, by) = (&mut self.names, self.counting.by);
        names.may_read = true;
        let counted = self.ebpf.get_ref().counted(|key, count| match key.kind {
            kind::PACKETS => packets += count,
            kind::VERDICT => {
                let verdict = Verdict::from_return(key.words[0] as u32);
                if matches!(verdict, Verdict::Drop | Verdict::Stolen) {
                    ended += count;
                }
                totals.push((What::named(verdict.to_string()), count));
            }
            kind::ADDRESSES => totals.push((What::named(addresses(by, key)), count)),
            _ => totals.push((names.of(by, key), count)),
        });
        counted.map_err(Failure::running)?;
        if by == By::Verdict {
            // Those that nothing stopped so far.
            totals.push((What::named("accept"), packets.saturating_sub(ended)));
        }
        self.tally.look(totals);
        Ok(())
    }

    fn show(&mut self, is_last: bool) -> Result<(), Failure> {
        let since = if is_last { self.began } else { self.looked };
        show(&mut *self.sink, &self.tally, self.counting, since, is_last)?;
        self.looked = Instant::now();
        Ok(())
    }
}

/// Shows what was counted up to now.
pub(super) fn show(
    sink: &mut dyn CountSink,
    tally: &Tally,
    counting: Counting,
    since: Instant,
    is_last: bool,
) -> Result<(), Failure> {
    let time_ns = clock::epoch_ns().wrapping_add(clock::monotonic_ns());
    let ranking = tally.ranking(counting.by, counting.top, time_ns, since.elapsed(), is_last);
    Ok(sink.show(&ranking).context("cannot write")?)
}

/// Where counts are shown.
pub(super) fn sink(output: Output) -> Box<dyn CountSink> {
    match output {
        Output::Json => Box::new(CountJson::new(io::stdout())),
        _ => Box::new(Tables::new(io::stdout(), io::stdout().is_terminal())),
    }
}

impl Session for Counter {
    fn begin(&mut self, _start: &Start) -> Result<(), Failure> {
        Ok(())
    }

    /// Waits until the kernel says that much is waiting.
    async fn ready(&mut self) {
        if let Ok(mut guard) = self.ebpf.readable_mut().await {
            guard.clear_ready();
        }
    }

    fn look(&mut self) -> Result<Next, Failure> {
        if self.watch.as_mut().is_some_and(Watch::look) {
            self.watch = None;
            say("nftables has rules now that are not counted");
        }
        let more = self.drain();
        if self.looked.elapsed() >= self.counting.interval {
            self.read()?;
            self.show(false)?;
        }
        Ok(if more { Next::LookAgain } else { Next::Wait })
    }

    fn end(mut self) -> Result<(), Failure> {
        while self.drain() {}
        self.read()?;
        self.show(true)?;
        let ebpf = self.ebpf.get_ref();
        let lost = ebpf.lost().map_err(Failure::running)?;
        let uncounted = ebpf.uncounted().map_err(Failure::running)?;
        let totals = CountTotals {
            lost: lost.records,
            missed: ebpf.missed_traversals().map_err(Failure::running)? + lost.missed_runs,
            uncounted: uncounted.no_room,
            doubtful: uncounted.doubtful,
        };
        self.sink.end(&totals).context("cannot write")?;
        eprintln!("{totals}");
        Ok(())
    }
}

/// What the programs count for it.
fn program(by: By) -> u32 {
    match by {
        By::Rule | By::Chain | By::Owner => count::by::RULE,
        By::Verdict => count::by::VERDICT,
        By::Src => count::by::SRC,
        By::Dst => count::by::DST,
        By::Flow => count::by::FLOW,
    }
}

/// What is said of the rules that are counted.
struct Names {
    namespaces: Namespaces,
    /// Names say of which namespace they are.
    several: bool,
    replace_counts: Rc<ReplaceCounts>,
    commits: Rc<CommitCounts>,
    history: History,
    /// Versions of legacy tables and their namespaces, by the address of their table info and the replace counter.
    tables: KernelMap<(u64, u32), (u32, Rc<Version>)>,
    /// Rules of nftables as they were read, the latest last.
    rulesets: Vec<(u32, Ruleset)>,
    /// Whether rules may be read again: once for each look.
    may_read: bool,
    known: KernelMap<Key, What>,
}

impl Names {
    fn new(ebpf: &Ebpf, namespaces: Namespaces, several: bool) -> Self {
        let mut names = Self {
            several,
            replace_counts: ebpf.replace_counts(),
            commits: ebpf.commits(),
            history: History::default(),
            tables: KernelMap::default(),
            rulesets: Vec::new(),
            may_read: false,
            known: KernelMap::default(),
            namespaces,
        };
        let Self { namespaces, history, replace_counts, rulesets, commits, .. } = &mut names;
        namespaces.each(|inode, file| {
            let before = replace_counts.now();
            // A namespace that is gone, or that has no tables, has nothing to be counted.
            let tables = fetch::fetch_tables(file).unwrap_or_default();
            let (after, read_ns) = (replace_counts.now(), clock::monotonic_ns());
            for fetched in tables {
                complain(&fetched);
                history.fetched(inode, fetched, before, after, read_ns);
            }
            if ebpf.traces_nftables()
                && let Some(reading) = read_nftables(file, true, commits)
            {
                for name in not_traced(&reading.ruleset) {
                    say(&format!("not counted: {name}"));
                }
                rulesets.push((inode, reading.ruleset));
            }
        });
        names
    }

    /// A CPU has met a version of a legacy table.
    fn met(&mut self, traversal: &Traversal) {
        let key = (traversal.private, traversal.replace_count);
        let Some(family) = Family::from_nfproto(traversal.family) else { return };
        if self.tables.contains_key(&key) {
            return;
        }
        let mut version = self.history.version(traversal);
        if !version.as_ref().is_ok_and(|version| version.read) {
            let name = name_of(&traversal.table_name);
            let read: Result<Reading, NotRead> =
                self.namespaces.read(traversal, family, &name, &self.replace_counts);
            if let Ok(Reading { fetched, before, after, read_ns }) = read {
                self.history.fetched(traversal.netns, fetched, before, after, read_ns);
                version = self.history.version(traversal);
            }
        }
        if let Ok(version) = version {
            self.tables.insert(key, (traversal.netns, version));
        }
    }

    /// What a key is of.
    fn of(&mut self, by: By, key: &Key) -> What {
        if let Some(known) = self.known.get(key) {
            return known.clone();
        }
        let found = match key.kind {
            kind::ENTRY => self.entry(by, key),
            _ => self.rule(by, key),
        };
        match found {
            Some(what) => {
                self.known.insert(*key, what.clone());
                what
            }
            None => What::named("a rule that is not known"),
        }
    }

    fn entry(&self, by: By, key: &Key) -> Option<What> {
        let [private, _, entry, _] = key.words;
        let (netns, version) = self.tables.get(&(private, (entry >> 32) as u32))?;
        let (name, rule) = version.rule(usize::try_from(entry & 0xffff_ffff).ok()?)?;
        Some(what(by, self.several.then_some(*netns), name, &rule))
    }

    fn rule(&mut self, by: By, key: &Key) -> Option<What> {
        let netns = u32::try_from(key.words[2]).ok()?;
        if self.located(key).is_none() && std::mem::take(&mut self.may_read) {
            let Self { namespaces, commits, .. } = self;
            let reading = namespaces.with(netns, |file| read_nftables(file, true, commits)).flatten();
            self.rulesets.extend(reading.map(|reading| (netns, reading.ruleset)));
            // Of rules that are gone the names are known, or never will be.
            const KEPT: usize = 8;
            let too_many = self.rulesets.len().saturating_sub(KEPT);
            self.rulesets.drain(..too_many);
        }
        let located = self.located(key)?;
        let Located { table, chain, kind, number, .. } = located;
        let name = StepName { table: &table.name, chain: &chain.name, kind, number }.to_string();
        Some(what(by, self.several.then_some(netns), &name, &located.rule()))
    }

    fn located(&self, key: &Key) -> Option<Located<'_>> {
        let [handle, table, netns, _] = key.words;
        self.rulesets.iter().rev().filter(|(of, _)| u64::from(*of) == netns).find_map(|(_, ruleset)| {
            let table = ruleset.tables.iter().find(|known| known.handle == table)?;
            let generation = ruleset.generation;
            if key.kind == kind::POLICY {
                let chain = table.chains.iter().find(|chain| chain.handle == handle)?;
                let (number, kind) = (chain.end(), StepKind::Policy);
                return Some(Located { table, chain, rule: None, number, kind, generation });
            }
            let (chain, number, rule) = table.rule(handle)?;
            Some(Located { table, chain, rule: Some(rule), number, kind: StepKind::Rule, generation })
        })
    }
}

/// What is said of a rule.
pub(super) fn what(by: By, netns: Option<u32>, name: &str, rule: &Rule<'_>) -> What {
    let of_all =
        What { name: String::new(), family: Some(rule.family.name()), netns, text: None, owner: None };
    match by {
        By::Chain => What { name: format!("{}:{}", rule.table, rule.chain), ..of_all },
        By::Owner => {
            What { name: rule.owner.unwrap_or("nobody that is known").to_owned(), family: None, ..of_all }
        }
        _ => What {
            name: name.to_owned(),
            text: rule.text.cloned(),
            owner: rule.owner.map(str::to_owned),
            ..of_all
        },
    }
}

/// `192.0.2.1`, `udp 192.0.2.1:4000 > 192.0.2.2:53`
fn addresses(by: By, key: &Key) -> String {
    let [src, dst] = key.addresses().map(|words| address(key.version, words));
    match by {
        By::Src => src.to_string(),
        By::Dst => dst.to_string(),
        _ => {
            let protocol = protocol_name(key.protocol);
            let [sport, dport] = [key.ports >> 16, key.ports & 0xffff].map(|port| port as u16);
            if key.ports == 0 {
                format!("{protocol} {src} > {dst}")
            } else {
                format!("{protocol} {} > {}", SocketAddr::new(src, sport), SocketAddr::new(dst, dport))
            }
        }
    }
}

fn address(version: u8, words: [u32; 4]) -> IpAddr {
    if version == 6 {
        let [a, b, c, d] = words.map(u128::from);
        Ipv6Addr::from_bits((a << 96) | (b << 64) | (c << 32) | d).into()
    } else {
        Ipv4Addr::from_bits(words[0]).into()
    }
}
