//! Classic BPF to the kernel's BPF.
//!
//! The packet's first bytes are read once, before the filter runs; loads with a fixed offset among them become plain
//! loads. Whether the packet has a byte is asked once on each way through the filter. A load from outside of these
//! bytes, or by the index register, reads the kernel's memory, after the same question. What the packet does not have
//! in one piece of memory counts as not captured: as in libpcap the filter then ends without a match.
//!
//! Jumps only go forward, so one pass knows what holds on every way to an instruction. The result is as long as the
//! room for it: see [`tracer_common::translated`].

use super::classic::{self, Loaded, Operand, Operation, Register, SPECIAL_OFFSETS, arithmetic, compare};
use super::ebpf::{Instruction, PROBE_READ_KERNEL, Source, code, register};
use std::mem::offset_of;
use thiserror::Error;
use tracer_common::translated::{MEMORY_WORDS, ROOM, WINDOW_BYTES, Workspace};

/// A filter for the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translated {
    /// [`ROOM`] instructions.
    pub instructions: Vec<Instruction>,
    /// How many of the packet's first bytes the filter wants at hand: a multiple of eight, at least eight.
    pub window: u32,
}

/// Why a program cannot be translated.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TranslateError {
    /// No instruction, or one that does not exist, does not end, divides by zero or shifts by all bits.
    #[error("its instruction {0} is invalid")]
    Invalid(usize),
    /// It reads scratch memory that nothing was put into on one of the ways there. libpcap makes such programs where
    /// `geneve` stands on one side of an `or`, and what they answer is by chance.
    #[error("a part of it has no meaning where `geneve` does not match")]
    Unset,
    /// It goes back, as `protochain` does for IPv6.
    #[error("it needs a loop")]
    Loop,
    /// It asks for what is no byte of the packet.
    #[error("it asks for what stands in no packet")]
    Special,
    /// There is too little room.
    #[error("it needs {needed} instructions, and there is room for {ROOM}")]
    TooLong {
        /// Instructions, after translation.
        needed: usize,
    },
}

/// Translates a program.
pub(super) fn translate(program: &[classic::Instruction]) -> Result<Translated, TranslateError> {
    let operations = checked(program)?;
    let window = window(&operations);
    let mut translator = Translator::new(&operations, window);
    for (index, operation) in operations.iter().enumerate() {
        translator.instruction(index, *operation)?;
    }
    translator.finish()
}

/// Programs are short enough for any count of instructions to be no issue.
const MAX_CLASSIC: usize = 4096;

/// The operations, each valid by itself, with jumps that stay inside.
fn checked(program: &[classic::Instruction]) -> Result<Vec<Operation>, TranslateError> {
    if program.len() > MAX_CLASSIC {
        return Err(TranslateError::TooLong { needed: program.len() });
    }
    let mut operations = Vec::with_capacity(program.len());
    for (index, instruction) in program.iter().enumerate() {
        let invalid = TranslateError::Invalid(index);
        let operation = instruction.operation().ok_or(invalid.clone())?;
        let inside = |distance: u32| distance < (program.len() - index - 1) as u32;
        let valid = match operation {
            Operation::LoadAbsolute { offset, .. } | Operation::LoadHeaderLength { offset }
                if offset >= SPECIAL_OFFSETS =>
            {
                return Err(TranslateError::Special);
            }
            Operation::Jump { distance } if distance.cast_signed() < 0 => return Err(TranslateError::Loop),
            Operation::Jump { distance } => inside(distance),
            Operation::Compare { yes, no, .. } => inside(yes.into()) && inside(no.into()),
            Operation::Load { what: Loaded::Memory(word), .. } | Operation::Store { word, .. } => {
                word < MEMORY_WORDS as u32
            }
            Operation::Arithmetic { code, operand: Operand::Constant(constant) } => match code {
                arithmetic::DIVIDE | arithmetic::REMAINDER => constant != 0,
                arithmetic::SHIFT_LEFT | arithmetic::SHIFT_RIGHT => constant < u32::BITS,
                _ => true,
            },
            _ => true,
        };
        if !valid {
            return Err(invalid);
        }
        operations.push(operation);
    }
    match operations.last() {
        Some(Operation::Return(_)) => Ok(operations),
        _ => Err(TranslateError::Invalid(program.len())),
    }
}

/// The longest header whose length [`Operation::LoadHeaderLength`] can find.
const LONGEST_IPV4_HEADER: u64 = 60;

/// How many bytes the loads want that can be served from the window.
fn window(operations: &[Operation]) -> u32 {
    let wanted = operations.iter().filter_map(|operation| match *operation {
        Operation::LoadAbsolute { bytes, offset } => Some(u64::from(offset) + u64::from(bytes)),
        Operation::LoadHeaderLength { offset } => Some(u64::from(offset) + 1),
        Operation::LoadIndexed { bytes, offset } => {
            let end = u64::from(offset) + u64::from(bytes);
            (end <= WINDOW_BYTES as u64).then_some((end + LONGEST_IPV4_HEADER).min(WINDOW_BYTES as u64))
        }
        _ => None,
    });
    let bytes = wanted.filter(|bytes| *bytes <= WINDOW_BYTES as u64).max().unwrap_or(0);
    bytes.max(1).next_multiple_of(8) as u32
}

/// What holds on every way to an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    /// The packet has at least so many bytes.
    bytes: u32,
    /// Words of scratch memory that something was put into, one bit for each.
    stored: u16,
}

/// Where a jump goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// To what a classic instruction became.
    Classic(usize),
    Accept,
    Reject,
    /// Behind the last instruction of the room.
    End,
    /// To what fills the room.
    Filling,
    /// Within what a classic instruction became.
    Label(usize),
}

struct Translator {
    window: u32,
    /// By classic instruction; `None` where no way leads to.
    known: Vec<Option<Known>>,
    /// Where each classic instruction begins.
    begins: Vec<usize>,
    labels: Vec<usize>,
    code: Vec<Instruction>,
    jumps: Vec<(usize, Target)>,
}

impl Translator {
    fn new(operations: &[Operation], window: u32) -> Self {
        let mut known = vec![None; operations.len()];
        known[0] = Some(Known { bytes: 0, stored: 0 });
        let mut translator = Self {
            window,
            known,
            begins: Vec::with_capacity(operations.len()),
            labels: Vec::new(),
            code: Vec::new(),
            jumps: Vec::new(),
        };
        translator.begin();
        translator
    }

    fn begin(&mut self) {
        use register::{ACCUMULATOR, FIRST, INDEX, LINEAR, WORKSPACE};
        self.push(Instruction::wide(code::MOVE, WORKSPACE, Source::Register(FIRST)));
        self.push(Instruction::load(4, LINEAR, WORKSPACE, offset_of!(Workspace, linear)));
        // Never so: the kernel refuses instructions that nothing leads to, and the rest of the room has to be filled.
        self.compare(Instruction::compare(code::NEGATIVE, LINEAR, Source::Constant(0)), Target::Filling);
        self.push(Instruction::arithmetic(code::MOVE, ACCUMULATOR, Source::Constant(0)));
        self.push(Instruction::arithmetic(code::MOVE, INDEX, Source::Constant(0)));
    }

    fn push(&mut self, instruction: Instruction) {
        self.code.push(instruction);
    }

    fn compare(&mut self, instruction: Instruction, target: Target) {
        self.jumps.push((self.code.len(), target));
        self.push(instruction);
    }

    fn jump(&mut self, target: Target) {
        self.compare(Instruction::jump(), target);
    }

    fn label(&mut self) -> Target {
        self.labels.push(0);
        Target::Label(self.labels.len() - 1)
    }

    fn place(&mut self, label: Target) {
        if let Target::Label(index) = label {
            self.labels[index] = self.code.len();
        }
    }

    /// Something leads from here to `to`.
    fn reach(&mut self, to: usize, from: Known) {
        let known = match self.known[to] {
            None => from,
            Some(other) => Known { bytes: from.bytes.min(other.bytes), stored: from.stored & other.stored },
        };
        self.known[to] = Some(known);
    }

    fn instruction(&mut self, index: usize, operation: Operation) -> Result<(), TranslateError> {
        use register::{ACCUMULATOR, INDEX};
        self.begins.push(self.code.len());
        let Some(mut known) = self.known[index] else { return Ok(()) };
        let next = index + 1;
        match operation {
            Operation::LoadAbsolute { bytes, offset } => {
                if !self.absolute(&mut known, ACCUMULATOR, bytes, offset) {
                    return Ok(());
                }
            }
            Operation::LoadIndexed { bytes, offset } => {
                if !self.indexed(bytes, offset) {
                    return Ok(());
                }
            }
            Operation::LoadHeaderLength { offset } => {
                if !self.absolute(&mut known, INDEX, 1, offset) {
                    return Ok(());
                }
                self.push(Instruction::arithmetic(code::AND, INDEX, Source::Constant(0xf)));
                self.push(Instruction::arithmetic(code::SHIFT_LEFT, INDEX, Source::Constant(2)));
            }
            Operation::Load { what: Loaded::Memory(word), .. } if known.stored & 1 << word == 0 => {
                return Err(TranslateError::Unset);
            }
            Operation::Load { to, what } => self.load(to, what),
            Operation::Store { from, word } => {
                known.stored |= 1 << word;
                self.push(Instruction::store(4, register::WORKSPACE, memory(word), from.place()));
            }
            Operation::Arithmetic { code, operand } => self.arithmetic(code, operand),
            Operation::Negate => {
                self.push(Instruction::arithmetic(code::NEGATE, ACCUMULATOR, Source::Constant(0)))
            }
            Operation::ToIndex => {
                self.push(Instruction::arithmetic(code::MOVE, INDEX, Source::Register(ACCUMULATOR)));
            }
            Operation::FromIndex => {
                self.push(Instruction::arithmetic(code::MOVE, ACCUMULATOR, Source::Register(INDEX)));
            }
            Operation::Jump { distance } => {
                let to = next + distance as usize;
                self.reach(to, known);
                if to != next {
                    self.jump(Target::Classic(to));
                }
                return Ok(());
            }
            Operation::Compare { code, operand, yes, no } => {
                let (yes, no) = (next + usize::from(yes), next + usize::from(no));
                self.reach(yes, known);
                self.reach(no, known);
                self.branch(code, operand, next, yes, no);
                return Ok(());
            }
            Operation::Return(operand) => {
                self.end(operand);
                return Ok(());
            }
        }
        self.reach(next, known);
        Ok(())
    }

    /// Loads from a fixed offset; false where no packet is so long.
    fn absolute(&mut self, known: &mut Known, to: u8, bytes: u8, offset: u32) -> bool {
        let end = offset.checked_add(bytes.into()).filter(|end| end.cast_signed() > 0);
        let Some(end) = end else {
            self.jump(Target::Reject);
            return false;
        };
        if known.bytes < end {
            let shorter = Instruction::compare(code::LESS, register::LINEAR, Source::Constant(end));
            self.compare(shorter, Target::Reject);
            known.bytes = end;
        }
        if end <= self.window {
            let at = offset_of!(Workspace, window) + offset as usize;
            self.push(Instruction::load(bytes, to, register::WORKSPACE, at));
        } else {
            self.outside(to, bytes, Source::Constant(offset));
        }
        self.in_order(to, bytes);
        true
    }

    /// Loads from X + offset; false where no packet is so long.
    fn indexed(&mut self, bytes: u8, offset: u32) -> bool {
        use register::{ACCUMULATOR, FIRST, INDEX, LINEAR, SECOND, WORKSPACE};
        let size = Source::Constant(bytes.into());
        if offset.cast_signed() < 0 {
            self.jump(Target::Reject);
            return false;
        }
        self.push(Instruction::wide(code::MOVE, FIRST, Source::Register(INDEX)));
        self.push(Instruction::wide(code::ADD, FIRST, Source::Constant(offset)));
        self.push(Instruction::wide(code::MOVE, SECOND, Source::Register(FIRST)));
        self.push(Instruction::wide(code::ADD, SECOND, size));
        self.compare(
            Instruction::compare_wide(code::GREATER, SECOND, Source::Register(LINEAR)),
            Target::Reject,
        );
        let (outside, done) = (self.label(), self.label());
        let last = self.window.checked_sub(bytes.into()).filter(|last| offset <= *last);
        if let Some(last) = last {
            self.compare(Instruction::compare_wide(code::GREATER, FIRST, Source::Constant(last)), outside);
            self.push(Instruction::wide(code::ADD, FIRST, Source::Register(WORKSPACE)));
            self.push(Instruction::load(bytes, ACCUMULATOR, FIRST, offset_of!(Workspace, window)));
            self.jump(done);
        }
        self.place(outside);
        self.outside(ACCUMULATOR, bytes, Source::Register(FIRST));
        self.place(done);
        self.in_order(ACCUMULATOR, bytes);
        true
    }

    /// Reads what the packet has but the window has not.
    fn outside(&mut self, to: u8, bytes: u8, offset: Source) {
        use register::{FIRST, RESULT, SECOND, THIRD, WORKSPACE};
        let room = offset_of!(Workspace, outside);
        self.push(Instruction::load(8, THIRD, WORKSPACE, offset_of!(Workspace, start)));
        self.push(Instruction::wide(code::ADD, THIRD, offset));
        self.push(Instruction::wide(code::MOVE, FIRST, Source::Register(WORKSPACE)));
        self.push(Instruction::wide(code::ADD, FIRST, Source::Constant(room as u32)));
        self.push(Instruction::wide(code::MOVE, SECOND, Source::Constant(bytes.into())));
        self.push(Instruction::call(PROBE_READ_KERNEL));
        self.compare(Instruction::compare_wide(code::NOT_EQUAL, RESULT, Source::Constant(0)), Target::Reject);
        self.push(Instruction::load(bytes, to, WORKSPACE, room));
    }

    fn in_order(&mut self, register: u8, bytes: u8) {
        if bytes > 1 {
            self.push(Instruction::from_big_endian(register, bytes));
        }
    }

    fn load(&mut self, to: Register, what: Loaded) {
        let to = to.place();
        self.push(match what {
            Loaded::Constant(value) => Instruction::arithmetic(code::MOVE, to, Source::Constant(value)),
            Loaded::Memory(word) => Instruction::load(4, to, register::WORKSPACE, memory(word)),
            Loaded::Length => Instruction::load(4, to, register::WORKSPACE, offset_of!(Workspace, length)),
        });
    }

    /// Division by zero ends a filter; a shift by more than all bits leaves none.
    fn arithmetic(&mut self, operation: u8, operand: Operand) {
        use register::{ACCUMULATOR, INDEX};
        let instruction = Instruction::arithmetic(operation, ACCUMULATOR, operand.source());
        match (operation, operand) {
            (arithmetic::DIVIDE | arithmetic::REMAINDER, Operand::Index) => {
                self.compare(Instruction::compare(code::EQUAL, INDEX, Source::Constant(0)), Target::Reject);
                self.push(instruction);
            }
            (arithmetic::SHIFT_LEFT | arithmetic::SHIFT_RIGHT, Operand::Index) => {
                let (shift, done) = (self.label(), self.label());
                let fits = Instruction::compare(code::LESS, INDEX, Source::Constant(u32::BITS));
                self.compare(fits, shift);
                self.push(Instruction::arithmetic(code::MOVE, ACCUMULATOR, Source::Constant(0)));
                self.jump(done);
                self.place(shift);
                self.push(instruction);
                self.place(done);
            }
            _ => self.push(instruction),
        }
    }

    /// Goes to `yes` or `no`, one of which may follow at once.
    fn branch(&mut self, code: u8, operand: Operand, next: usize, yes: usize, no: usize) {
        let test = |code| Instruction::compare(code, register::ACCUMULATOR, operand.source());
        match opposite(code) {
            _ if yes == no => {
                if no != next {
                    self.jump(Target::Classic(no));
                }
            }
            Some(opposite) if yes == next => self.compare(test(opposite), Target::Classic(no)),
            _ => {
                self.compare(test(code), Target::Classic(yes));
                if no != next {
                    self.jump(Target::Classic(no));
                }
            }
        }
    }

    fn end(&mut self, operand: Operand) {
        match operand {
            Operand::Constant(0) => self.jump(Target::Reject),
            Operand::Constant(_) => self.jump(Target::Accept),
            Operand::Index | Operand::Accumulator => {
                let kept = Instruction::compare(code::NOT_EQUAL, register::ACCUMULATOR, Source::Constant(0));
                self.compare(kept, Target::Accept);
                self.jump(Target::Reject);
            }
        }
    }

    /// Puts the answers behind the rest, fills the room, and says how far each jump goes.
    fn finish(mut self) -> Result<Translated, TranslateError> {
        let answer = |value| Instruction::arithmetic(code::MOVE, register::RESULT, Source::Constant(value));
        let mut answers = [0; 2];
        for (value, target) in [(1, Target::Accept), (0, Target::Reject)] {
            answers[value as usize] = self.code.len();
            if self.jumps.iter().any(|(_, to)| *to == target) {
                self.push(answer(value));
                self.jump(Target::End);
            }
        }
        let filling = self.code.len();
        // At least one of them, for the jump that leads there.
        if filling >= ROOM {
            return Err(TranslateError::TooLong { needed: filling + 1 });
        }
        self.code.resize(ROOM, answer(0));
        for (at, target) in &self.jumps {
            let to = match *target {
                Target::Classic(index) => self.begins[index],
                Target::Accept => answers[1],
                Target::Reject => answers[0],
                Target::End => ROOM,
                Target::Filling => filling,
                Target::Label(index) => self.labels[index],
            };
            // The room is smaller than any distance that does not fit.
            self.code[*at].offset = (to - at - 1) as i16;
        }
        Ok(Translated { instructions: self.code, window: self.window })
    }
}

impl Register {
    fn place(self) -> u8 {
        match self {
            Self::Accumulator => register::ACCUMULATOR,
            Self::Index => register::INDEX,
        }
    }
}

impl Operand {
    fn source(self) -> Source {
        match self {
            Self::Constant(value) => Source::Constant(value),
            Self::Index => Source::Register(register::INDEX),
            Self::Accumulator => Source::Register(register::ACCUMULATOR),
        }
    }
}

/// The comparison that holds where this one does not.
fn opposite(code: u8) -> Option<u8> {
    match code {
        compare::EQUAL => Some(code::NOT_EQUAL),
        compare::GREATER => Some(code::LESS_OR_EQUAL),
        compare::GREATER_OR_EQUAL => Some(code::LESS),
        _ => None,
    }
}

/// Place of a word of scratch memory in the workspace.
fn memory(word: u32) -> usize {
    offset_of!(Workspace, memory) + 4 * word as usize
}
