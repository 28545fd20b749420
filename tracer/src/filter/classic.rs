//! Classic BPF, as libpcap's compiler makes it: `struct bpf_insn` and the values of its fields.
//!
//! Source: `pcap/bpf.h`, `bpf_filter.c` of libpcap and `filter.txt` of the kernel's documentation.

/// An instruction, laid out as C has it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Instruction {
    /// Class, and what the class is split into.
    pub code: u16,
    /// Instructions to leave out when the comparison holds.
    pub jt: u8,
    /// Instructions to leave out when it does not.
    pub jf: u8,
    /// Constant, offset or distance.
    pub k: u32,
}

/// Offsets from here on mean something else than bytes of the packet (`SKF_LL_OFF` and above).
pub(super) const SPECIAL_OFFSETS: u32 = -0x20_0000_i32 as u32;

/// What an instruction does. A is the accumulator, X the index register, both of 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Loads from the packet to A, most significant byte first.
    LoadAbsolute { bytes: u8, offset: u32 },
    /// The same, with X added to the offset.
    LoadIndexed { bytes: u8, offset: u32 },
    /// X = 4 · (packet\[offset\] & 15): the length of an IPv4 header.
    LoadHeaderLength { offset: u32 },
    /// Loads something else.
    Load { to: Register, what: Loaded },
    /// Keeps a register in scratch memory.
    Store { from: Register, word: u32 },
    /// A = A · operand.
    Arithmetic { code: u8, operand: Operand },
    /// A = -A.
    Negate,
    /// Goes on past `distance` instructions.
    Jump { distance: u32 },
    /// Compares A.
    Compare { code: u8, operand: Operand, yes: u8, no: u8 },
    /// Ends, with the number of bytes to keep; none is no match.
    Return(Operand),
    /// X = A.
    ToIndex,
    /// A = X.
    FromIndex,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    Accumulator,
    Index,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loaded {
    Constant(u32),
    Memory(u32),
    /// The packet's length.
    Length,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operand {
    Constant(u32),
    Index,
    /// Of a return only.
    Accumulator,
}

/// Codes of arithmetic, the same in the kernel's newer BPF.
pub(super) mod arithmetic {
    pub(in crate::filter) const DIVIDE: u8 = 0x30;
    pub(in crate::filter) const SHIFT_LEFT: u8 = 0x60;
    pub(in crate::filter) const SHIFT_RIGHT: u8 = 0x70;
    pub(in crate::filter) const NEGATE: u8 = 0x80;
    pub(in crate::filter) const REMAINDER: u8 = 0x90;
    pub(in crate::filter) const XOR: u8 = 0xa0;
}

/// Codes of comparisons, the same in the kernel's newer BPF.
pub(super) mod compare {
    pub(in crate::filter) const EQUAL: u8 = 0x10;
    pub(in crate::filter) const GREATER: u8 = 0x20;
    pub(in crate::filter) const GREATER_OR_EQUAL: u8 = 0x30;
    pub(in crate::filter) const ANY_BIT: u8 = 0x40;
}

impl Instruction {
    /// What it does; `None` where it is no instruction.
    pub(super) fn operation(self) -> Option<Operation> {
        let Self { code, jt, jf, k } = self;
        let [code, 0] = code.to_le_bytes() else { return None };
        let operand = if code & 0x08 == 0 { Operand::Constant(k) } else { Operand::Index };
        Some(match (code & 0x07, code & 0xf8) {
            (0, 0x20) => Operation::LoadAbsolute { bytes: 4, offset: k },
            (0, 0x28) => Operation::LoadAbsolute { bytes: 2, offset: k },
            (0, 0x30) => Operation::LoadAbsolute { bytes: 1, offset: k },
            (0, 0x40) => Operation::LoadIndexed { bytes: 4, offset: k },
            (0, 0x48) => Operation::LoadIndexed { bytes: 2, offset: k },
            (0, 0x50) => Operation::LoadIndexed { bytes: 1, offset: k },
            (1, 0xb0) => Operation::LoadHeaderLength { offset: k },
            (class @ (0 | 1), mode @ (0x00 | 0x60 | 0x80)) => Operation::Load {
                to: if class == 0 { Register::Accumulator } else { Register::Index },
                what: match mode {
                    0x00 => Loaded::Constant(k),
                    0x60 => Loaded::Memory(k),
                    _ => Loaded::Length,
                },
            },
            (2, 0) => Operation::Store { from: Register::Accumulator, word: k },
            (3, 0) => Operation::Store { from: Register::Index, word: k },
            (4, _) if code & 0xf0 == arithmetic::NEGATE => Operation::Negate,
            (4, _) if code & 0xf0 <= arithmetic::XOR => Operation::Arithmetic { code: code & 0xf0, operand },
            (5, 0) => Operation::Jump { distance: k },
            (5, _) if (compare::EQUAL..=compare::ANY_BIT).contains(&(code & 0xf0)) => {
                Operation::Compare { code: code & 0xf0, operand, yes: jt, no: jf }
            }
            (6, 0x00) => Operation::Return(Operand::Constant(k)),
            (6, 0x10) => Operation::Return(Operand::Accumulator),
            (7, 0x00) => Operation::ToIndex,
            (7, 0x80) => Operation::FromIndex,
            _ => return None,
        })
    }
}
