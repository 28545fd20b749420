//! Instructions of the kernel's BPF, as far as translated filters need them.
//!
//! Source: `bpf/standardization/instruction-set.rst` of the kernel's documentation.

/// Registers.
pub(super) mod register {
    /// What a called function returns, and the filter's answer.
    pub(in crate::filter) const RESULT: u8 = 0;
    /// First argument of a called function; not kept over the call.
    pub(in crate::filter) const FIRST: u8 = 1;
    pub(in crate::filter) const SECOND: u8 = 2;
    pub(in crate::filter) const THIRD: u8 = 3;
    /// Kept over calls, like the following.
    pub(in crate::filter) const WORKSPACE: u8 = 6;
    pub(in crate::filter) const LINEAR: u8 = 7;
    pub(in crate::filter) const ACCUMULATOR: u8 = 8;
    pub(in crate::filter) const INDEX: u8 = 9;
}

/// Codes of operations, without class and source.
pub(super) mod code {
    pub(in crate::filter) const ADD: u8 = 0x00;
    pub(in crate::filter) const AND: u8 = 0x50;
    pub(in crate::filter) const SHIFT_LEFT: u8 = 0x60;
    pub(in crate::filter) const NEGATE: u8 = 0x80;
    pub(in crate::filter) const MOVE: u8 = 0xb0;
    pub(in crate::filter) const EQUAL: u8 = 0x10;
    pub(in crate::filter) const GREATER: u8 = 0x20;
    pub(in crate::filter) const NOT_EQUAL: u8 = 0x50;
    pub(in crate::filter) const LESS: u8 = 0xa0;
    pub(in crate::filter) const LESS_OR_EQUAL: u8 = 0xb0;
    pub(in crate::filter) const NEGATIVE: u8 = 0xc0;
}

/// `bpf_probe_read_kernel(destination, bytes, source)`.
pub(super) const PROBE_READ_KERNEL: i32 = 113;

/// `struct bpf_insn` of the kernel's: code, registers, offset, constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Class, source and operation.
    pub code: u8,
    /// Register that is changed or compared.
    pub destination: u8,
    /// Register that is read.
    pub source: u8,
    /// Distance of a jump, or offset in memory.
    pub offset: i16,
    /// Constant.
    pub immediate: i32,
}

/// Second operand.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    Register(u8),
    Constant(u32),
}

impl Instruction {
    /// As it stands in an object file, in the byte order of the machines that nftracer runs on.
    pub fn bytes(self) -> [u8; 8] {
        let [low, high] = self.offset.to_le_bytes();
        let [a, b, c, d] = self.immediate.to_le_bytes();
        [self.code, self.source << 4 | self.destination, low, high, a, b, c, d]
    }

    fn with(class: u8, code: u8, destination: u8, source: Source) -> Self {
        let (flag, source, immediate) = match source {
            Source::Register(source) => (0x08, source, 0),
            Source::Constant(constant) => (0, 0, constant.cast_signed()),
        };
        Self { code: class | code | flag, destination, source, offset: 0, immediate }
    }

    /// On the lower 32 bits; the upper become zero.
    pub(super) fn arithmetic(code: u8, destination: u8, source: Source) -> Self {
        Self::with(0x04, code, destination, source)
    }

    /// On all 64 bits; a constant must be below 2³¹.
    pub(super) fn wide(code: u8, destination: u8, source: Source) -> Self {
        Self::with(0x07, code, destination, source)
    }

    /// From most significant byte first to the machine's order; of `bytes` bytes, others become zero.
    pub(super) fn from_big_endian(destination: u8, bytes: u8) -> Self {
        Self { code: 0xdc, destination, source: 0, offset: 0, immediate: i32::from(bytes) * 8 }
    }

    /// `bytes` bytes at register + offset; the upper bits become zero.
    pub(super) fn load(bytes: u8, destination: u8, source: u8, offset: usize) -> Self {
        Self { code: 0x61 | size(bytes), destination, source, offset: place(offset), immediate: 0 }
    }

    pub(super) fn store(bytes: u8, destination: u8, offset: usize, source: u8) -> Self {
        Self { code: 0x63 | size(bytes), destination, source, offset: place(offset), immediate: 0 }
    }

    /// Compares the lower 32 bits; the distance is filled in later.
    pub(super) fn compare(code: u8, destination: u8, source: Source) -> Self {
        Self::with(0x06, code, destination, source)
    }

    /// Compares all 64 bits.
    pub(super) fn compare_wide(code: u8, destination: u8, source: Source) -> Self {
        Self::with(0x05, code, destination, source)
    }

    pub(super) fn jump() -> Self {
        Self { code: 0x05, destination: 0, source: 0, offset: 0, immediate: 0 }
    }

    pub(super) fn call(helper: i32) -> Self {
        Self { code: 0x85, destination: 0, source: 0, offset: 0, immediate: helper }
    }
}

/// The field that says how many bytes, relative to four of them.
fn size(bytes: u8) -> u8 {
    match bytes {
        1 => 0x10,
        2 => 0x08,
        4 => 0x00,
        _ => 0x18,
    }
}

/// Within the workspace.
fn place(offset: usize) -> i16 {
    i16::try_from(offset).expect("the workspace is smaller than 32 KiB")
}
