//! Names for the namespaces of packets, found while these are shown.

use crate::fetch::containers;
use crate::hash::KernelMap;
use crate::sink::{Namespace, Row, Sink};
use crate::sys::netns::{self, Name};
use std::io;
use std::time::{Duration, Instant};

/// A name is looked at again after this time: namespaces that are gone leave their numbers to others.
const HOLDS: Duration = Duration::from_millis(50);
/// A namespace without a name is looked for again after this time: it takes a look at every process.
const MISSING: Duration = Duration::from_secs(1);

/// Gives everything to a sink, and before the steps of a namespace by what name it is known.
pub(super) struct Naming {
    shown: Box<dyn Sink>,
    known: KernelMap<u32, Known>,
    /// The namespace of the last step, while its name need not be looked at.
    current: Option<u32>,
}

struct Known {
    name: Option<Name>,
    /// What the sink has been told.
    told: Option<Namespace>,
    looked: Instant,
    /// When it was looked for what its processes are of.
    searched: Instant,
}

impl Naming {
    pub(super) fn new(shown: Box<dyn Sink>) -> Self {
        Self { shown, known: KernelMap::default(), current: None }
    }

    #[inline]
    fn tell(&mut self, netns: Option<u32>) -> io::Result<()> {
        match netns {
            Some(inode) if self.current != netns => self.look(inode),
            _ => Ok(()),
        }
    }

    #[cold]
    fn look(&mut self, inode: u32) -> io::Result<()> {
        self.current = Some(inode);
        let now = Instant::now();
        let known = self.known.get(&inode);
        let told = known.and_then(|known| known.told.as_ref());
        let since = known.map(|known| now.duration_since(known.looked));
        let has_name = known.is_some_and(|known| known.name.is_some());
        if told.is_some() && since < Some(if has_name { HOLDS } else { MISSING }) {
            return Ok(());
        }
        // Mostly it is the same.
        let held = known.and_then(|known| known.name.clone()).filter(|name| name.holds(inode));
        let is_held = held.is_some();
        let name = held.or_else(|| Name::find(inode));
        // Processes may come later.
        let searched = known.map(|known| known.searched).filter(|searched| {
            let found = told.is_some_and(|told| told.container.is_some());
            is_held && told.is_some() && (found || now.duration_since(*searched) < MISSING)
        });
        let container = match searched {
            Some(_) => told.and_then(|told| told.container.clone()),
            None => containers::of_netns(inode),
        };
        let about = Namespace { name: name.as_ref().map(ToString::to_string), container };
        if told != Some(&about) {
            self.shown.row(Row::Namespace(inode, &about))?;
        }
        let searched = searched.unwrap_or(now);
        self.known.insert(inode, Known { name, told: Some(about), looked: now, searched });
        Ok(())
    }
}

impl Sink for Naming {
    fn row(&mut self, row: Row<'_>) -> io::Result<()> {
        match row {
            // What is there is known before packets come.
            Row::Start(_) => {
                for found in netns::list() {
                    let now = Instant::now();
                    let known = Known { name: Name::of(&found), told: None, looked: now, searched: now };
                    self.known.insert(found.inode, known);
                }
            }
            Row::Step(step) => self.tell(step.netns)?,
            Row::Path(path) => self.tell(path.netns)?,
            _ => {}
        }
        self.shown.row(row)
    }

    fn step_again(&mut self, name: &str) -> io::Result<bool> {
        self.shown.step_again(name)
    }

    fn shows_paths(&self) -> bool {
        self.shown.shows_paths()
    }

    fn enough(&self) -> bool {
        self.shown.enough()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.current = None;
        self.shown.flush()
    }
}
