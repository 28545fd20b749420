//! The packet as the last step showed it: most steps of a packet show the same.
#![forbid(unsafe_code)]

use tracer_common::legacy::{Traversal, fact, kind};
use zerocopy::FromZeros as _;

/// The traversal whose packet was shown last, if it was shown as it entered.
pub(super) struct Shown {
    traversal: Traversal,
    known: bool,
}

impl Default for Shown {
    fn default() -> Self {
        Self { traversal: Traversal::new_zeroed(), known: false }
    }
}

impl Shown {
    /// Takes a traversal as shown. Long ones are not kept: there are few.
    pub(super) fn set(&mut self, traversal: &Traversal) {
        self.known = traversal.kind == kind::TRAVERSAL;
        if self.known {
            self.traversal = *traversal;
        }
    }

    /// Something else was shown.
    pub(super) fn forget(&mut self) {
        self.known = false;
    }

    /// Whether a traversal shows the same. Bytes that it does not use may tell it apart, too.
    pub(super) fn is_of(&self, other: &Traversal) -> bool {
        const FACTS: u32 = fact::IN | fact::OUT | fact::MAC | fact::OWNER;
        let numbers = |of: &Traversal| {
            let link = (of.dev_type, of.hard_header_len, of.mac_len);
            (of.kind, of.family, link, of.facts & FACTS, of.uid, of.gid, of.entry)
        };
        let shown = &self.traversal;
        self.known
            && numbers(shown) == numbers(other)
            && (shown.indev, shown.outdev, shown.mac) == (other.indev, other.outdev, other.mac)
            && shown.entry_bytes == other.entry_bytes
    }
}
