//! Kernel functions that programs call, in place of what the object has there: see [`tracer_common::kfunc`].

use crate::btf::{Btf, Kind};
use aya_obj::generated::{BPF_ALU64, BPF_CALL, BPF_JMP, BPF_K, BPF_MOV, bpf_insn};
use tracer_common::kfunc::{IRQ_RESTORE, IRQ_SAVE, PREEMPT_DISABLE, PREEMPT_ENABLE};

/// `BPF_PSEUDO_KFUNC_CALL`
const KERNEL_FUNCTION: u8 = 2;

/// BTF ids of what programs call that are not to be preempted. Linux has all of them since 6.14.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preemption {
    disable: u32,
    enable: u32,
    irq_save: u32,
    irq_restore: u32,
}

impl Preemption {
    /// Looks for them in the kernel's own BTF.
    pub fn of(vmlinux: &Btf<'_>) -> Option<Self> {
        let id = |name| Some(vmlinux.find(Kind::Func, name).ok()?.0);
        Some(Self {
            disable: id("bpf_preempt_disable")?,
            enable: id("bpf_preempt_enable")?,
            irq_save: id("bpf_local_irq_save")?,
            irq_restore: id("bpf_local_irq_restore")?,
        })
    }

    fn id(&self, function: i32) -> u32 {
        match function {
            PREEMPT_DISABLE => self.disable,
            PREEMPT_ENABLE => self.enable,
            IRQ_SAVE => self.irq_save,
            _ => self.irq_restore,
        }
    }
}

/// The function that an instruction calls, if it is one of the kernel's.
pub(super) fn called(instruction: &bpf_insn) -> Option<i32> {
    let is_helper = instruction.code == (BPF_JMP | BPF_CALL) as u8 && instruction.src_reg() == 0;
    is_helper.then_some(instruction.imm)
}

/// Has an instruction call a function.
pub(super) fn set_call(instruction: &mut bpf_insn, id: u32) {
    instruction.set_src_reg(KERNEL_FUNCTION);
    instruction.imm = id.cast_signed();
}

/// Puts the functions of [`Preemption`] in place, or takes the call away where the kernel has none.
pub(super) fn place(instruction: &mut bpf_insn, preemption: Option<&Preemption>) {
    let Some(function @ (PREEMPT_DISABLE | PREEMPT_ENABLE | IRQ_SAVE | IRQ_RESTORE)) = called(instruction)
    else {
        return;
    };
    match preemption {
        Some(ids) => set_call(instruction, ids.id(function)),
        None => {
            // The register that a call leaves its result in.
            instruction.code = (BPF_ALU64 | BPF_MOV | BPF_K) as u8;
            instruction.imm = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::typed::instruction_bytes;
    use super::*;

    const IDS: Preemption =
        Preemption { disable: 70_001, enable: 70_002, irq_save: 70_003, irq_restore: 70_004 };

    fn call(source: u8, function: i32) -> bpf_insn {
        let registers = bpf_insn::new_bitfield_1(0, source);
        bpf_insn { code: 0x85, _bitfield_align_1: [], _bitfield_1: registers, off: 0, imm: function }
    }

    fn placed(source: u8, function: i32, preemption: Option<&Preemption>) -> [u8; 8] {
        let mut instruction = call(source, function);
        place(&mut instruction, preemption);
        instruction_bytes(&instruction)
    }

    #[test]
    fn functions_are_called_by_their_ids() {
        let functions = [PREEMPT_DISABLE, PREEMPT_ENABLE, IRQ_SAVE, IRQ_RESTORE];
        for (function, id) in functions.into_iter().zip(70_001..) {
            assert_eq!(placed(0, function, Some(&IDS)), instruction_bytes(&call(2, id)));
        }
    }

    #[test]
    fn a_kernel_without_them_gets_no_call() {
        // r0 = 0
        assert_eq!(placed(0, IRQ_SAVE, None), [0xb7, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn other_calls_stay() {
        // A helper, and a function of the program that lies that far away.
        for (source, function) in [(0, 113), (1, PREEMPT_ENABLE)] {
            for preemption in [None, Some(&IDS)] {
                assert_eq!(placed(source, function, preemption), instruction_bytes(&call(source, function)));
            }
        }
    }
}
