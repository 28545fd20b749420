//! What stands at the hooks of namespaces, made once for as long as the rules stay the same.
#![forbid(unsafe_code)]

use crate::hash::KernelMap;
use crate::history::{History, Loaded};
use crate::netfilter::Family;
use crate::nftables::versions::Version;
use crate::path::stands::Stands;
use std::rc::Rc;

/// What stands at the hooks, with what it was made from.
#[derive(Clone)]
struct Standing {
    loaded: Loaded,
    version: Option<Rc<Version>>,
    stands: Rc<Stands>,
}

/// What stands at the hooks of each namespace for each family.
#[derive(Default)]
pub(super) struct Standings {
    all: KernelMap<(u32, Family), Standing>,
    /// The place asked about last, mostly the one asked about next, and [`History::loads`] then.
    last: Option<((u32, Family), u64, Standing)>,
}

impl Standings {
    /// What stands at the hooks of a namespace with these rules of nftables.
    #[inline(always)]
    pub(super) fn of(
        &mut self,
        place: (u32, Family),
        history: &History,
        version: Option<&Rc<Version>>,
    ) -> Rc<Stands> {
        if let Some((last, loads, standing)) = &self.last
            && (*last, *loads) == (place, history.loads())
            && standing.has(version)
        {
            return Rc::clone(&standing.stands);
        }
        let standing = self.find(place, history, version);
        let stands = Rc::clone(&standing.stands);
        self.last = Some((place, history.loads(), standing));
        stands
    }

    /// The same when it is not what the last one was.
    #[cold]
    fn find(&mut self, place: (u32, Family), history: &History, version: Option<&Rc<Version>>) -> Standing {
        let (netns, family) = place;
        let loaded = history.loaded(netns, family);
        let known = self.all.get(&place).filter(|known| known.loaded == loaded && known.has(version));
        if let Some(known) = known {
            return known.clone();
        }
        let stands = Rc::new(Stands::of(loaded, family, version.map(|version| &version.ruleset)));
        let standing = Standing { loaded, version: version.cloned(), stands };
        self.all.insert(place, standing.clone());
        standing
    }
}

impl Standing {
    /// Whether it is with these rules of nftables.
    #[inline]
    fn has(&self, version: Option<&Rc<Version>>) -> bool {
        self.version.as_ref().map(Rc::as_ptr) == version.map(Rc::as_ptr)
    }
}
