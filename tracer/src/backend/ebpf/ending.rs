//! What the kernel says of how packets end: where they were freed, why, and which functions are at the hooks.

use super::offsets::ending::{reason_givers, reasons};
use super::symbols::{Functions, Place};
use crate::btf::Btf;
use crate::netfilter::{Family, Hook};
use crate::path::ending::HookFunction;
use crate::sys::bpf::{self, On};
use aya::Pod;
use aya::maps::{Array, MapData};
use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};
use tracer_common::ending::{HookList, MOST_FUNCTIONS};

#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct PodHookList(HookList);
#[expect(unsafe_code, reason = "aya has no derive for what zerocopy proved")]
// SAFETY: `HookList` derives zerocopy's `IntoBytes` and `FromBytes`: no padding, and any bytes are a value.
unsafe impl Pod for PodHookList {}

/// The names of the kernel's reasons for dropping packets.
#[derive(Clone, Debug, Default)]
pub struct Reasons {
    own: Vec<(u32, String)>,
    givers: Vec<(u32, String)>,
}

impl Reasons {
    /// From the kernel's BTF.
    pub fn of(vmlinux: &Btf<'_>) -> Self {
        Self { own: reasons(vmlinux), givers: reason_givers(vmlinux) }
    }

    /// The name of a reason; `None` where the kernel has no reasons at all.
    fn name(&self, reason: u32) -> Option<String> {
        if self.own.is_empty() {
            return None;
        }
        let named = |all: &[(u32, String)], number| {
            all.iter().find(|(value, _)| *value == number).map(|(_, name)| name.clone())
        };
        let (giver, rest) = (reason >> 16, reason & 0xffff);
        Some(match named(&self.own, reason) {
            Some(name) => name,
            // What they mean is described with whoever gives them.
            None => match named(&self.givers, giver).filter(|_| giver != 0) {
                Some(giver) => format!("{giver} {rest}"),
                None => reason.to_string(),
            },
        })
    }
}

/// Tells of endings; stays usable while records are being drained.
pub struct Endings {
    functions: Functions,
    /// When they were read again.
    read_again: Option<Instant>,
    reasons: Reasons,
    hooks: Option<Hooks>,
}

/// Symbols are read again at most this often: it takes long, and an address need not be in any.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// What lists the functions at the hooks.
pub(super) struct Hooks {
    pub(super) program: OwnedFd,
    pub(super) list: Array<MapData, PodHookList>,
}

impl Endings {
    pub(super) fn new(functions: Functions, reasons: Reasons, hooks: Option<Hooks>) -> Self {
        Self { functions, read_again: None, reasons, hooks }
    }

    /// The function that an address is in, and how far from its beginning. Modules may have come since the symbols were
    /// read: then they are read again.
    pub fn place(&mut self, address: u64) -> Option<Place<'_>> {
        let may_read = self.read_again.is_none_or(|read| read.elapsed() >= READ_AGAIN);
        if self.functions.at(address).is_none()
            && may_read
            && let Ok(kallsyms) = fs::read("/proc/kallsyms")
        {
            self.functions = Functions::parse(&kallsyms);
            self.read_again = Some(Instant::now());
        }
        self.functions.at(address)
    }

    /// The kernel's name of a reason; `None` where it has none.
    pub fn reason(&self, reason: u32) -> Option<String> {
        self.reasons.name(reason)
    }

    /// The functions at a hook of a namespace, given by its address, in their order; `None` when they cannot be had.
    pub fn functions(&mut self, net: u64, family: Family, hook: Hook) -> Option<Vec<HookFunction>> {
        let hooks = self.hooks.as_ref().filter(|_| net != 0)?;
        let family = match family {
            Family::Ipv4 => 2,
            Family::Ipv6 => 10,
            Family::Arp => return None,
        };
        bpf::call_raw(hooks.program.as_fd(), [net, family], On::Any).ok()?;
        let PodHookList(list) = hooks.list.get(&0, 0).ok()?;
        let count = usize::try_from(*list.counts.get(hook as usize)?).ok()?;
        let found = list.functions.get(hook as usize)?.get(..count).filter(|_| count <= MOST_FUNCTIONS)?;
        let found = found.to_vec();
        let mut named = Vec::new();
        for function in found {
            let name = self.place(function.address).map(|place| place.name.to_owned());
            named.push(HookFunction { name: name?, priority: function.priority });
        }
        Some(named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_the_kernels_names() {
        let named = |number, name: &str| (number, name.to_owned());
        let reasons = Reasons {
            own: vec![named(2, "NOT_SPECIFIED"), named(6, "IP_RPFILTER")],
            givers: vec![named(0, "CORE"), named(3, "OPENVSWITCH")],
        };
        assert_eq!(reasons.name(6).as_deref(), Some("IP_RPFILTER"));
        assert_eq!(reasons.name(0x3_0002).as_deref(), Some("OPENVSWITCH 2"));
        assert_eq!(reasons.name(0x70).as_deref(), Some("112"));
        assert_eq!(Reasons::default().name(6), None);
    }
}
