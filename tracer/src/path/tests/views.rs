//! Random series of targets, applied as the kernel applies them: a view that is not in doubt shows the truth.

use crate::netfilter::{Family, StepKind, Verdict};
use crate::path::attribute::{State, attribute};
use crate::ruleset::{Entry, Extension, Table, Target};
use proptest::prelude::*;

/// An IPv4 packet.
const BYTES: [u8; 24] = [0x45, 0, 0, 84, 0, 0, 0x40, 0, 64, 1, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1, 8, 0, 0, 0];

#[derive(Clone, Debug)]
enum Op {
    Mark {
        value: u32,
        mask: u32,
    },
    Restore {
        ctmask: u32,
        nfmask: u32,
    },
    Hash(u32),
    Ttl {
        mode: u8,
        ttl: u8,
    },
    Tos {
        value: u8,
        mask: u8,
    },
    Dscp(u8),
    /// A target that is not known, and does nothing.
    Idle,
    /// A target that is not known.
    Novel(u32),
    Log,
}

impl Op {
    fn extension(&self) -> Extension {
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let (name, revision, data) = match *self {
            Self::Mark { value, mask } => ("MARK", 2, words(&[value, mask])),
            Self::Restore { ctmask, nfmask } => {
                let mut data: Vec<u8> = words(&[0, ctmask, nfmask]);
                data.push(2);
                ("CONNMARK", 1, data)
            }
            Self::Hash(_) => ("HMARK", 0, Vec::new()),
            Self::Ttl { mode, ttl } => ("TTL", 0, vec![mode, ttl]),
            Self::Tos { value, mask } => ("TOS", 1, vec![value, mask]),
            Self::Dscp(dscp) => ("DSCP", 0, vec![dscp]),
            Self::Idle | Self::Novel(_) => ("NOVEL", 0, Vec::new()),
            Self::Log => ("LOG", 0, Vec::new()),
        };
        Extension { name: Some(name.into()), revision, data }
    }

    fn apply(&self, mark: &mut u32, bytes: &mut [u8], connection: u32) {
        match *self {
            Self::Mark { value, mask } => *mark = (*mark & !mask) ^ value,
            Self::Restore { ctmask, nfmask } => *mark = (*mark & !nfmask) ^ (connection & ctmask),
            Self::Hash(hash) | Self::Novel(hash) => *mark = hash,
            Self::Ttl { mode: 0, ttl } => bytes[8] = ttl,
            Self::Ttl { mode: 1, ttl } => bytes[8] = bytes[8].saturating_add(ttl),
            Self::Ttl { ttl, .. } => bytes[8] = bytes[8].saturating_sub(ttl),
            Self::Tos { value, mask } => bytes[1] = (bytes[1] & !mask) ^ value,
            Self::Dscp(dscp) => bytes[1] = bytes[1] & 3 | dscp << 2,
            Self::Idle | Self::Log => {}
        }
    }
}

fn ops() -> impl Strategy<Value = Op> {
    let mask = prop_oneof![Just(0), Just(0xff), Just(0xf0), Just(u32::MAX)];
    prop_oneof![
        4 => (0..0x200u32, mask.clone()).prop_map(|(value, mask)| Op::Mark { value, mask }),
        1 => (mask.clone(), mask).prop_map(|(ctmask, nfmask)| Op::Restore { ctmask, nfmask }),
        1 => any::<u32>().prop_map(Op::Hash),
        3 => (0..3u8, 1..=255u8).prop_map(|(mode, ttl)| Op::Ttl { mode, ttl }),
        1 => any::<(u8, u8)>().prop_map(|(value, mask)| Op::Tos { value, mask }),
        1 => (0..64u8).prop_map(Op::Dscp),
        1 => Just(Op::Idle),
        1 => (0..3u32).prop_map(Op::Novel),
        1 => Just(Op::Log),
    ]
}

fn table(ops: &[Op]) -> Table {
    let entry = |target| Entry {
        chain: None,
        number: 1,
        kind: StepKind::Rule,
        tail: false,
        unconditional: false,
        target,
        text: None,
    };
    let rules = ops.iter().map(|op| entry(Target::Extension(op.extension())));
    Table {
        family: Family::Ipv4,
        name: "mangle".to_owned(),
        entries: rules.chain([entry(Target::Verdict(Verdict::Accept))]).collect(),
        chains: Vec::new(),
        hook_entry: [None; 5],
        underflow: [None; 5],
        size: 0,
    }
}

proptest! {
    #![proptest_config(super::kernel::config())]

    #[test]
    fn certain_views_are_true(
        ops in prop::collection::vec(ops(), 0..7),
        entry in 0..0x200u32,
        connection in 0..0x200u32,
        read_at_exit in prop::bool::weighted(0.8),
    ) {
        let table = table(&ops);
        let steps: Vec<usize> = (0..table.entries.len()).collect();
        let (mut mark, mut bytes) = (entry, BYTES);
        let mut truth = vec![(mark, bytes)];
        for op in &ops {
            op.apply(&mut mark, &mut bytes, connection);
            truth.push((mark, bytes));
        }
        let at_entry = State { mark: entry, len: 84, bytes: &BYTES };
        let at_exit = State { mark, len: 84, bytes: &bytes };
        let views = attribute(&table, &steps, at_entry, read_at_exit.then_some(at_exit));
        let opaque = ops.iter().any(|op| matches!(op, Op::Restore { .. } | Op::Hash(_)));
        let novel = ops.iter().any(|op| matches!(op, Op::Idle | Op::Novel(_)));
        for (step, (mark, bytes)) in truth.iter().enumerate() {
            let (state, doubt) = views.at(step);
            if doubt.is_none() {
                prop_assert_eq!((state.mark, state.bytes), (*mark, &bytes[..]), "step {}", step);
            } else {
                prop_assert!(opaque || novel, "step {}: {:?}", step, doubt);
            }
        }
    }
}
