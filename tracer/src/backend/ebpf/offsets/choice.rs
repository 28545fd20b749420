//! From BTF to what the programs must know where packets are chosen by more than a filter.

use super::{Kernel, Reason, Unresolved, place};
use tracer_common::choice::{CHOICE_FIELDS, ChoiceOffsets};
use tracer_common::offsets::{ABSENT, Field};

/// Where this kernel keeps connections and cgroups, as far as it tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// [`ABSENT`] for those that it does not tell.
    pub offsets: ChoiceOffsets,
    /// Distance between the two tuples of a connection.
    pub tuple_stride: u32,
    missing: Vec<(&'static str, Reason)>,
}

/// Finds out what it can.
pub(super) fn resolve(kernel: &Kernel<'_>) -> Choice {
    let definitions = kernel.definitions(CHOICE_FIELDS);
    let mut missing = Vec::new();
    let mut tuple_stride = 0;
    let mut offsets = [ABSENT; CHOICE_FIELDS.len()];
    for (field, offset) in CHOICE_FIELDS.iter().zip(&mut offsets) {
        let all = definitions.get(field.structure).ok_or_else(|| Reason::no_structure(field));
        match all.and_then(|all| place(all, field, widths(field))) {
            Ok(place) => {
                *offset = place.offset;
                if field.name == "ct_tuples" {
                    tuple_stride = place.bytes / 2;
                }
            }
            Err(reason) => missing.push((field.name, reason)),
        }
    }
    Choice { offsets: zerocopy::transmute!(offsets), tuple_stride, missing }
}

impl Choice {
    /// Fails where connections cannot be followed.
    pub fn check_connections(&self) -> Result<(), Unresolved> {
        // Kernels can be made without marks and zones.
        let others = ["node_id", "ct_mark", "ct_zone"];
        self.check(|name| !name.contains("cgroup") && !others.contains(&name))
    }

    /// Fails where the cgroup of a socket cannot be found.
    pub fn check_cgroups(&self) -> Result<(), Unresolved> {
        let either = ["cgroup_ancestors", "cgroup_ancestor_ids"];
        self.check(|name| (name.contains("cgroup") && !either.contains(&name)) || name == "node_id")?;
        let none = either.iter().all(|name| self.missing.iter().any(|(missing, _)| missing == name));
        if none { self.check(|name| either.contains(&name)) } else { Ok(()) }
    }

    fn check(&self, needed: impl Fn(&str) -> bool) -> Result<(), Unresolved> {
        let reasons = self.missing.iter().filter(|(name, _)| needed(name));
        let reasons: Vec<Reason> = reasons.map(|(_, reason)| reason.clone()).collect();
        if reasons.is_empty() { Ok(()) } else { Err(Unresolved(reasons)) }
    }
}

fn widths(field: &Field) -> &'static [u32] {
    match field.name {
        "tuple_src" | "tuple_dst" => &[16],
        "tuple_src_port" | "tuple_dst_port" | "tuple_family" | "ct_zone" => &[2],
        "tuple_protocol" => &[1],
        "cgroup_level" | "ct_mark" => &[4],
        // Arrays without a length.
        "cgroup_ancestors" | "cgroup_ancestor_ids" => &[0],
        // Whole structures.
        "ct_tuples" | "hash_tuple" | "sock_cgroup" => &[],
        _ => &[8],
    }
}
