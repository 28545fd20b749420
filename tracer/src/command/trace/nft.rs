//! The rules of nftables, followed while they change.

use crate::fetch::nft::{self, Fetched, Nftables};
use crate::footprint;
use crate::netfilter::TableFamily;
use crate::nftables::stands::{Layer, Stands};
use crate::nftables::trace::TraceEvent;
use crate::nftables::{Located, Ruleset, inherit_texts, lacks_text};
use crate::sys::link;
use std::collections::HashSet;
use std::fs::File;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A generation of which the announcement was lost counts as announced when it is this old.
const SETTLED: Duration = Duration::from_secs(1);
/// The programs that print rules take no more than one part of so many of the time.
const PRINTING_SHARE: u32 = 3;

/// The rules of a namespace.
///
/// A message is about rules that are certain when it came after the announcement of their generation, and the kernel,
/// asked after the message has come, still tells that generation (see [`Ruleset::locate`]).
pub(super) struct Live {
    nftables: Nftables,
    namespace: Option<File>,
    /// The rules that messages are about.
    held: Ruleset,
    stands: Rc<Stands>,
    /// Tables that are called as those that mark packets for a run, and do something else.
    foreign: HashSet<(TableFamily, Arc<str>)>,
    /// Rules that were not announced yet.
    next: Option<Ruleset>,
    /// What the kernel told when it was asked last; `None` when it did not answer.
    now: Option<u32>,
    /// The last generation that was announced; `None` when the announcement may have been lost.
    announced: Option<u32>,
    /// When rules were first seen whose announcement may have been lost.
    unannounced: Option<Instant>,
    /// This run marks packets by a table of nftables.
    is_marked: bool,
    /// When rules were printed last, and how long that took.
    printed: (Instant, Duration),
}

impl Live {
    /// Reads the rules of a namespace, and why some have no text; `None` where the kernel has no nftables. Announcements
    /// are to arrive from before on. `is_marked` says whether this run marks packets by a table of nftables.
    pub(super) fn read(namespace: &File, is_marked: bool) -> Result<Option<(Self, Vec<String>)>, nft::Error> {
        let Some(mut nftables) = Nftables::open(namespace)? else { return Ok(None) };
        let began = Instant::now();
        let Fetched { ruleset, text_reasons } = nftables.fetch()?;
        let generation = Some(ruleset.generation);
        let namespace = namespace.try_clone().ok();
        let mut live = Self {
            nftables,
            stands: stands(&ruleset, namespace.as_ref()),
            namespace,
            foreign: HashSet::new(),
            held: ruleset,
            next: None,
            now: generation,
            announced: generation,
            unannounced: None,
            is_marked,
            printed: (Instant::now(), began.elapsed()),
        };
        live.note_foreign();
        Ok(Some((live, text_reasons)))
    }

    /// Whether this run marks packets by a table of nftables.
    pub(super) fn is_marked(&self) -> bool {
        self.is_marked
    }

    /// What packets come to now.
    pub(super) fn stands(&self) -> &Rc<Stands> {
        &self.stands
    }

    /// Whether a table marks packets for a run. Of one that could not be read in time the name has to do.
    pub(super) fn is_of_ours(&self, family: TableFamily, table: &str) -> bool {
        let mut foreign = self.foreign.iter();
        footprint::is_named_like_ours(table)
            && !foreign.any(|(other, name)| *other == family && **name == *table)
    }

    fn note_foreign(&mut self) {
        let tables = self.next.iter().chain([&self.held]).flat_map(|ruleset| &ruleset.tables);
        let foreign = tables.filter(|table| {
            footprint::is_named_like_ours(&table.name) && !footprint::is_table_of_ours(table)
        });
        self.foreign.extend(foreign.map(|table| (table.family, Arc::clone(&table.name))));
    }

    /// Asks the kernel for the generation of its rules, and reads them when it is another. All messages that are asked about
    /// afterwards have come before.
    pub(super) fn settle(&mut self) {
        self.now = self.nftables.generation().ok();
        let Some(now) = self.now else { return };
        if now != self.held.generation && self.next.as_ref().is_none_or(|next| next.generation != now) {
            self.next = self.nftables.structure().ok();
            if let Some(next) = &mut self.next {
                inherit_texts(next, &self.held);
                self.now = Some(next.generation);
            }
            self.note_foreign();
        }
        if self.announced.is_none() {
            self.do_without_announcement();
        }
        self.take_over();
    }

    fn do_without_announcement(&mut self) {
        let Some(next) = &self.next else {
            // Nothing has been changed that could have been announced.
            self.announced = self.now.filter(|now| *now == self.held.generation);
            return;
        };
        if self.unannounced.get_or_insert_with(Instant::now).elapsed() > SETTLED {
            self.announced = Some(next.generation);
        }
    }

    /// The kernel announces that its rules are of this generation.
    pub(super) fn announce(&mut self, generation: u32) {
        self.announced = Some(generation);
        self.unannounced = None;
        self.take_over();
    }

    fn take_over(&mut self) {
        if let Some(next) = self.next.take_if(|next| self.announced == Some(next.generation)) {
            self.stands = stands(&next, self.namespace.as_ref());
            self.held = next;
        }
    }

    /// Messages were lost, an announcement may be among them.
    pub(super) fn lost(&mut self) {
        self.announced = None;
        self.unannounced = None;
    }

    /// What a message is about; `None` when that is not certain.
    pub(super) fn locate(&self, event: &TraceEvent<'_>) -> Option<Located<'_>> {
        if self.announced != Some(self.held.generation) {
            return None;
        }
        match &self.next {
            None => (self.now == self.announced).then(|| self.held.locate(event)).flatten(),
            Some(next) => self.held.locate_before(next, event),
        }
    }

    /// Has rules printed that have no text yet; not all the time, when they are changed all the time.
    pub(super) fn print(&mut self) {
        let (at, took) = self.printed;
        if self.next.is_some() || at.elapsed() < took * PRINTING_SHARE || !lacks_text(&self.held) {
            return;
        }
        let began = Instant::now();
        // Rules that changed meanwhile are printed the next time.
        let _ = self.nftables.print(&mut self.held);
        self.printed = (Instant::now(), began.elapsed());
    }
}

/// What stands at the hooks, and which device is on top of which.
fn stands(ruleset: &Ruleset, namespace: Option<&File>) -> Rc<Stands> {
    let stands = Stands::of(ruleset, footprint::is_table_of_ours);
    let devices = namespace.and_then(|it| link::devices(it).ok());
    let layer =
        |device: link::Device| Layer { name: device.name, is_bridge: device.is_bridge, below: device.below };
    Rc::new(stands.with_layers(devices.unwrap_or_default().into_iter().map(layer).collect()))
}
