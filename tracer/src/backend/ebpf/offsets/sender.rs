//! From BTF and symbols to what tells who sends a packet. All of it is an extra.

use super::{Kernel, Symbols, place};
use tracer_common::offsets::{ABSENT, Field};
use tracer_common::sender::{SENDER_FIELDS, SenderConfig, SenderOffsets};

/// Finds out what this kernel tells; whether it is asked for is not known here.
pub(super) fn resolve(kernel: &Kernel<'_>, symbols: &Symbols) -> SenderConfig {
    let mut offsets = [ABSENT; SENDER_FIELDS.len()];
    let definitions = kernel.definitions(SENDER_FIELDS);
    for (field, offset) in SENDER_FIELDS.iter().zip(&mut offsets) {
        let found = definitions.get(field.structure).and_then(|all| place(all, field, widths(field)).ok());
        if let Some(place) = found {
            *offset = place.offset;
        }
    }
    let offsets: SenderOffsets = zerocopy::transmute!(offsets);
    let needed = [offsets.task_group_leader, offsets.task_comm, offsets.task_mm];
    let in_hot = || {
        let at = u64::from(Some(offsets.hot_preempt_count).filter(|at| *at != ABSENT)?);
        Some(symbols.pcpu_hot? + at)
    };
    let preempt_count = symbols.preempt_count.or_else(in_hot).filter(|_| !needed.contains(&ABSENT));
    SenderConfig { preempt_count: preempt_count.unwrap_or(0), asked: 0, offsets }
}

/// How many bytes a field may have. Pointers are the rest.
fn widths(field: &Field) -> &'static [u32] {
    match field.name {
        "task_comm" => &[16],
        "task_softirq_disable_cnt" | "hot_preempt_count" => &[4],
        _ => &[8],
    }
}
