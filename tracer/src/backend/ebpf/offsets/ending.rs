//! From BTF to what tells how packets end. All of it is an extra: what is missing is not told.

use super::{Kernel, place};
use crate::btf::{Btf, Kind};
use tracer_common::ending::{ENDING_FIELDS, EndingConfig, EndingOffsets};
use tracer_common::offsets::{ABSENT, Field};

/// The type that BTF gives to a tracepoint's arguments, behind one for the program's own.
const FREES: &str = "btf_trace_kfree_skb";

/// Finds out what this kernel tells.
pub(super) fn resolve(kernel: &Kernel<'_>) -> EndingConfig {
    let mut offsets = [ABSENT; ENDING_FIELDS.len()];
    let definitions = kernel.definitions(ENDING_FIELDS);
    for (field, offset) in ENDING_FIELDS.iter().zip(&mut offsets) {
        let found = definitions.get(field.structure).and_then(|all| place(all, field, widths(field)).ok());
        if let Some(place) = found {
            *offset = place.offset;
        }
    }
    let offsets: EndingOffsets = zerocopy::transmute!(offsets);
    let lists = [offsets.entries_count, offsets.entries_hooks, offsets.entry_hook, offsets.ops_priority];
    let entry_bytes = if lists.contains(&ABSENT) { None } else { entry_bytes(kernel.vmlinux) };
    EndingConfig {
        has_reason: u32::from(has_reason(kernel.vmlinux)),
        entry_bytes: entry_bytes.unwrap_or(0),
        offsets,
        ..EndingConfig::UNRESOLVED
    }
}

fn entry_bytes(vmlinux: &Btf<'_>) -> Option<u32> {
    let id = vmlinux.find(Kind::Struct, "nf_hook_entry").ok()?;
    vmlinux.get(id).ok().map(|entry| entry.size_or_type)
}

/// Whether the tracepoint's third argument is a reason.
fn has_reason(vmlinux: &Btf<'_>) -> bool {
    let argument = || {
        let pointer = vmlinux.get(vmlinux.find(Kind::Typedef, FREES).ok()?).ok()?.target()?;
        let prototype = vmlinux.get(vmlinux.get(pointer).ok()?.target()?).ok()?;
        // `(void *, struct sk_buff *, void *, enum skb_drop_reason, …)`
        let (_, reason) = prototype.params().nth(3)?;
        let reason = vmlinux.get(reason).ok()?;
        Some(reason.kind == Kind::Enum && vmlinux.string(reason.name) == REASONS)
    };
    argument().unwrap_or(false)
}

const REASONS: &str = "skb_drop_reason";

/// How many bytes a field may have; none for any number. Pointers are the rest.
fn widths(field: &Field) -> &'static [u32] {
    match field.name {
        "entries_count" => &[2],
        "ops_priority" => &[4],
        "hooks_ipv4" | "hooks_ipv6" => &[40],
        // An array without a length.
        "entries_hooks" => &[0],
        _ => &[8],
    }
}

/// The kernel's reasons for dropping packets, by number and without what all names begin with; none where it has none.
pub(crate) fn reasons(vmlinux: &Btf<'_>) -> Vec<(u32, String)> {
    constants(vmlinux, REASONS, &["SKB_DROP_REASON_", "SKB_"])
}

/// Who else gives reasons, by the number in their upper half.
pub(crate) fn reason_givers(vmlinux: &Btf<'_>) -> Vec<(u32, String)> {
    constants(vmlinux, "skb_drop_reason_subsys", &["SKB_DROP_REASON_SUBSYS_"])
}

fn constants(btf: &Btf<'_>, enumeration: &str, prefixes: &[&str]) -> Vec<(u32, String)> {
    let Some(found) = btf.find(Kind::Enum, enumeration).ok().and_then(|id| btf.get(id).ok()) else {
        return Vec::new();
    };
    let named = found.constants().map(|(name, value)| {
        let name = btf.string(name);
        let name = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
        (value as u32, name.to_owned())
    });
    named.collect()
}
