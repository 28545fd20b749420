//! The packet as the last step showed it: most steps of a packet show the same.
#![forbid(unsafe_code)]

use tracer_common::legacy::{ENTRY_BYTES, MAC_BYTES, SkbState, Traversal, fact, kind};

/// What a step shows of a traversal's packet, as it entered.
struct View {
    entry_bytes: [u8; ENTRY_BYTES],
    mac: [u8; MAC_BYTES],
    devices: [[u8; 16]; 2],
    numbers: Numbers,
}

/// Whatever is not bytes.
type Numbers = (SkbState, (u32, u32, u32), (u16, u16, u8), u8);

fn numbers(of: &Traversal) -> Numbers {
    const FACTS: u32 = fact::IN | fact::OUT | fact::MAC | fact::OWNER;
    let link = (of.dev_type, of.hard_header_len, of.mac_len);
    (of.entry, (of.facts & FACTS, of.uid, of.gid), link, of.family)
}

impl View {
    fn of(traversal: &Traversal) -> Self {
        let &Traversal { entry_bytes, mac, indev, outdev, .. } = traversal;
        Self { entry_bytes, mac, devices: [indev, outdev], numbers: numbers(traversal) }
    }

    #[inline]
    fn is_of(&self, other: &Traversal) -> bool {
        self.numbers == numbers(other)
            && self.devices == [other.indev, other.outdev]
            && self.mac == other.mac
            && self.entry_bytes == other.entry_bytes
    }
}

/// The packet that was shown last, if it was shown as it entered.
#[derive(Default)]
pub(super) struct Shown(Option<View>);

impl Shown {
    /// Takes a traversal's packet as shown. Long ones are not kept: there are few.
    pub(super) fn set(&mut self, traversal: &Traversal) {
        self.0 = (traversal.kind == kind::TRAVERSAL).then(|| View::of(traversal));
    }

    /// Something else was shown.
    pub(super) fn forget(&mut self) {
        self.0 = None;
    }

    /// Whether a traversal shows the same. Bytes that it does not use may tell it apart, too.
    #[inline]
    pub(super) fn is_of(&self, other: &Traversal) -> bool {
        other.kind == kind::TRAVERSAL && self.0.as_ref().is_some_and(|shown| shown.is_of(other))
    }
}
