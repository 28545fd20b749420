//! From BTF to what the programs must know of nftables.

use super::{Cause, Fact, Kernel, Reason, Unresolved, member, place};
use crate::btf::{Kind, Member};
use tracer_common::nft::{HANDLE_BITS, NFT_FIELDS, NftConfig, NftOffsets, Witness};
use tracer_common::offsets::{ABSENT, Field};

/// The function that is told of every verdict.
const TRACE_PACKET: &str = "__nft_trace_packet";
/// A rule's handle, in the order in which they are looked for: since Linux 5.17 packets meet a copy of the rule.
const RULES: &[Field] = &[
    Field { name: "rule", structure: "nft_rule_dp", path: "handle" },
    Field { name: "rule", structure: "nft_rule", path: "handle" },
];

/// Finds out where this kernel keeps what is read of nftables. Without module BTF only known kernels are.
pub(super) fn resolve(kernel: &Kernel<'_>) -> Result<NftConfig, Unresolved> {
    let Some(witness) = witness(kernel).map_err(|reason| Unresolved(vec![reason]))? else {
        return known(kernel).map_err(|reason| Unresolved(vec![reason]));
    };
    let mut missing = Vec::new();
    let mut offsets = [ABSENT; NFT_FIELDS.len()];
    let definitions = kernel.definitions(NFT_FIELDS);
    for (field, offset) in NFT_FIELDS.iter().zip(&mut offsets) {
        // What is an argument.
        let is_argument = matches!(field.name, "info_pkt" | "info_rule" | "info_verdict");
        if witness != Witness::TraceInfo && is_argument {
            continue;
        }
        let found = definitions
            .get(field.structure)
            .map_or(Err(Reason::no_structure(field)), |all| place(all, field, widths(field)));
        match found {
            Ok(place) => *offset = place.offset,
            Err(reason) if missing.contains(&reason) => {}
            Err(reason) => missing.push(reason),
        }
    }
    match handle(kernel) {
        Ok((rule_word, rule_shift)) if missing.is_empty() => {
            let offsets: NftOffsets = zerocopy::transmute!(offsets);
            Ok(NftConfig { witness: witness as u32, rule_word, rule_shift, offsets })
        }
        Ok(_) => Err(Unresolved(missing)),
        Err(reason) => {
            missing.push(reason);
            Err(Unresolved(missing))
        }
    }
}

fn widths(field: &Field) -> &'static [u32] {
    match field.name {
        "base_priority" | "type_type" | "verdict_code" => &[4],
        "base_policy" => &[1],
        // A whole structure.
        "base_chain" => &[],
        _ => &[8],
    }
}

/// Which arguments the kernel traces with; none if no BTF describes the function.
fn witness(kernel: &Kernel<'_>) -> Result<Option<Witness>, Reason> {
    let prototypes = kernel.sources().flat_map(|btf| {
        let ids = btf.named(Kind::Func, TRACE_PACKET);
        ids.filter_map(|id| btf.prototype(id).ok()).collect::<Vec<_>>()
    });
    let mut found = None;
    for prototype in prototypes {
        let types: Vec<&str> = prototype.params.iter().map(|param| param.type_name.as_str()).collect();
        let unknown = || Reason::Prototype { function: TRACE_PACKET, prototype: prototype.to_string() };
        found = Some(match types[..] {
            ["struct nft_traceinfo *", "const struct nft_chain *", "enum nft_trace_types"] => {
                Witness::TraceInfo
            }
            [
                "const struct nft_pktinfo *",
                "const struct nft_verdict *",
                "const struct nft_rule_dp *",
                "struct nft_traceinfo *",
                "enum nft_trace_types",
            ] => Witness::TraceArguments,
            _ => return Err(unknown()),
        });
    }
    Ok(found)
}

/// Where in a rule its handle is: the word's offset and the lowest bit in it.
fn handle(kernel: &Kernel<'_>) -> Result<(u32, u32), Reason> {
    let definitions = kernel.definitions(RULES);
    let field = RULES.iter().find(|field| definitions.contains_key(field.structure));
    let field = field.ok_or(Reason::no_structure(&RULES[0]))?;
    match member(&definitions[field.structure], field)? {
        Member { offset_bits, size_bits: HANDLE_BITS, .. } => Ok((offset_bits / 64 * 8, offset_bits % 64)),
        Member { size_bits, .. } => {
            let cause = Cause::Width { bytes: size_bits / 8, expected: &[8] };
            Err(Reason::Field { structure: field.structure, path: field.path, cause })
        }
    }
}

/// A kernel whose modules have no BTF.
struct Known {
    release: &'static str,
    vendor: &'static str,
    config: NftConfig,
    facts: &'static [Fact],
}

/// Kernels known without module BTF.
const KNOWN: &[Known] = &[
    // Debian 11, the 64-bit flavours: by its sources and the code in nf_tables.ko 5.10.262-1.
    Known {
        release: "5.10.",
        vendor: "Debian",
        config: NftConfig {
            witness: Witness::TraceInfo as u32,
            rule_word: 16,
            rule_shift: 0,
            offsets: NftOffsets {
                pkt_skb: 0,
                pkt_state: 32,
                chain_handle: 72,
                chain_table: 64,
                table_handle: 224,
                base_chain: 80,
                base_priority: 32,
                base_policy: 64,
                base_type: 56,
                type_type: 8,
                verdict_code: 0,
                verdict_chain: 8,
                info_pkt: 0,
                info_rule: 24,
                info_verdict: 32,
                info_basechain: 8,
            },
        },
        facts: &[
            // `nft_base_chain` begins with the hook's description.
            Fact { structure: "nf_hook_ops", path: "priority", offset: Some(32), bytes: 4 },
            // `nft_table` has one of these before its handle.
            Fact { structure: "rhltable", path: "ht", offset: Some(0), bytes: 136 },
        ],
    },
];

fn known(kernel: &Kernel<'_>) -> Result<NftConfig, Reason> {
    let (release, version) = (kernel.release.to_owned(), kernel.version.to_owned());
    let known = KNOWN
        .iter()
        .find(|known| release.starts_with(known.release) && version.contains(known.vendor))
        .ok_or(Reason::UnknownNftables { release, version })?;
    match known.facts.iter().find(|fact| !fact.holds(kernel.vmlinux)) {
        None => Ok(known.config),
        Some(Fact { structure, path, .. }) => {
            Err(Reason::Disproved { release: kernel.release.to_owned(), structure, path })
        }
    }
}
