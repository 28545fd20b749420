//! Kernel functions that programs call, in place of what the object has there: see [`tracer_common::kfunc`].

use crate::btf::{Btf, Kind};
use aya_obj::generated::{BPF_ALU, BPF_ALU64, BPF_CALL, BPF_JMP, BPF_K, BPF_MOV, bpf_insn};
use tracer_common::kfunc::{CAST, IRQ_RESTORE, IRQ_SAVE, NUMBER, PREEMPT_DISABLE, PREEMPT_ENABLE};

/// BTF ids, in the kernel's own BTF, of what programs call where the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// For loads from addresses without a type. Linux has it since 6.2.
    pub cast: Option<Cast>,
    /// For programs that are not to be preempted. Linux has all of it since 6.14.
    pub preemption: Option<Preemption>,
}

/// `bpf_rdonly_cast`, and what a number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cast {
    function: u32,
    number: u32,
}

/// `bpf_preempt_disable` and the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preemption {
    disable: u32,
    enable: u32,
    irq_save: u32,
    irq_restore: u32,
}

impl Ids {
    /// Looks for them.
    pub fn of(vmlinux: &Btf<'_>) -> Self {
        let id = |kind, name| Some(vmlinux.find(kind, name).ok()?.0);
        let function = |name| id(Kind::Func, name);
        let cast =
            || Some(Cast { function: function("bpf_rdonly_cast")?, number: id(Kind::Struct, "timespec64")? });
        let preemption = || {
            Some(Preemption {
                disable: function("bpf_preempt_disable")?,
                enable: function("bpf_preempt_enable")?,
                irq_save: function("bpf_local_irq_save")?,
                irq_restore: function("bpf_local_irq_restore")?,
            })
        };
        Self { cast: cast(), preemption: preemption() }
    }

    /// Puts functions and types in place. A call that the kernel does not know goes away.
    pub(super) fn place(&self, instruction: &mut bpf_insn) {
        if let (Some(NUMBER), Some(cast)) = (moved(instruction), self.cast) {
            instruction.imm = cast.number.cast_signed();
        }
        let Some(function) = called(instruction) else { return };
        let preemption = |id: fn(&Preemption) -> u32| self.preemption.as_ref().map(id);
        let id = match function {
            CAST => self.cast.map(|cast| cast.function),
            PREEMPT_DISABLE => preemption(|ids| ids.disable),
            PREEMPT_ENABLE => preemption(|ids| ids.enable),
            IRQ_SAVE => preemption(|ids| ids.irq_save),
            IRQ_RESTORE => preemption(|ids| ids.irq_restore),
            _ => return,
        };
        match id {
            Some(id) => set_call(instruction, id),
            None => {
                // The register that a call leaves its result in.
                instruction.code = MOVE;
                instruction.imm = 0;
            }
        }
    }
}

const CALL: u8 = (BPF_JMP | BPF_CALL) as u8;
const MOVE: u8 = (BPF_ALU64 | BPF_MOV | BPF_K) as u8;
/// The same to the lower half of a register.
const MOVE_32: u8 = (BPF_ALU | BPF_MOV | BPF_K) as u8;
/// `BPF_PSEUDO_KFUNC_CALL`
const KERNEL_FUNCTION: u8 = 2;

/// What an instruction calls, if that is not a function of the program.
pub(super) fn called(instruction: &bpf_insn) -> Option<i32> {
    (instruction.code == CALL && instruction.src_reg() == 0).then_some(instruction.imm)
}

/// Has an instruction call one of the kernel's functions.
pub(super) fn set_call(instruction: &mut bpf_insn, id: u32) {
    instruction.set_src_reg(KERNEL_FUNCTION);
    instruction.imm = id.cast_signed();
}

/// The number that an instruction puts into a register.
pub(super) fn moved(instruction: &bpf_insn) -> Option<i32> {
    (matches!(instruction.code, MOVE | MOVE_32) && instruction.src_reg() == 0).then_some(instruction.imm)
}

#[cfg(test)]
mod tests {
    use super::super::typed::instruction_bytes;
    use super::*;

    const IDS: Ids = Ids {
        cast: Some(Cast { function: 70_000, number: 7 }),
        preemption: Some(Preemption {
            disable: 70_001,
            enable: 70_002,
            irq_save: 70_003,
            irq_restore: 70_004,
        }),
    };
    const NONE: Ids = Ids { cast: None, preemption: None };

    fn instruction(code: u8, source: u8, number: i32) -> bpf_insn {
        let registers = bpf_insn::new_bitfield_1(0, source);
        bpf_insn { code, _bitfield_align_1: [], _bitfield_1: registers, off: 0, imm: number }
    }

    fn check(ids: &Ids, (code, source, number): (u8, u8, i32), to: (u8, u8, i32)) {
        let mut placed = instruction(code, source, number);
        ids.place(&mut placed);
        assert_eq!(instruction_bytes(&placed), instruction_bytes(&instruction(to.0, to.1, to.2)));
    }

    #[test]
    fn functions_are_called_by_their_ids() {
        let functions = [CAST, PREEMPT_DISABLE, PREEMPT_ENABLE, IRQ_SAVE, IRQ_RESTORE];
        for (function, id) in functions.into_iter().zip(70_000..) {
            check(&IDS, (CALL, 0, function), (CALL, KERNEL_FUNCTION, id));
        }
    }

    #[test]
    fn types_are_named_by_their_ids() {
        check(&IDS, (MOVE, 0, NUMBER), (MOVE, 0, 7));
        check(&IDS, (MOVE_32, 0, NUMBER), (MOVE_32, 0, 7));
    }

    #[test]
    fn a_kernel_without_a_function_gets_no_call() {
        for function in [CAST, IRQ_SAVE] {
            check(&NONE, (CALL, 0, function), (MOVE, 0, 0));
        }
    }

    #[test]
    fn other_instructions_stay() {
        // A helper, a function of the program that lies that far away, an addition, and a number.
        for other in [(CALL, 0, 113), (CALL, 1, PREEMPT_ENABLE), (0x07, 0, NUMBER), (MOVE, 0, 113)] {
            check(&IDS, other, other);
            check(&NONE, other, other);
        }
    }
}
