//! Work that no other task gets this CPU under.
//!
//! The kernel does not run a program where it is at work already. Where tasks can be preempted in the kernel, one that loses
//! its CPU inside of a program would hide from it all that passes there until it is back, milliseconds later.

use crate::kernel::Access;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use tracer_common::kfunc;

/// For as long as this is kept, no other task gets this CPU, where the kernel lets programs say so. Programs at kprobes are
/// never preempted.
pub struct Unpreempted<A: Access>(PhantomData<A>);

impl<A: Access> Unpreempted<A> {
    /// From here on.
    #[inline(always)]
    pub fn new() -> Self {
        if A::TYPED {
            call(kfunc::PREEMPT_DISABLE);
        }
        Self(PhantomData)
    }
}

impl<A: Access> Drop for Unpreempted<A> {
    /// Who waits for this CPU would get it at once, inside of the program, if interrupts were on. So it happens when the next
    /// one comes, or when the kernel itself next lets it.
    #[inline(always)]
    fn drop(&mut self) {
        if A::TYPED {
            let mut flags = MaybeUninit::uninit();
            call_with(kfunc::IRQ_SAVE, &mut flags);
            call(kfunc::PREEMPT_ENABLE);
            call_with(kfunc::IRQ_RESTORE, &mut flags);
        }
    }
}

#[inline(always)]
fn call(function: i32) {
    // SAFETY: the loader puts the kernel's function in place of the number, or takes the call away.
    unsafe { core::mem::transmute::<usize, unsafe extern "C" fn()>(function as usize)() }
}

#[inline(always)]
fn call_with(function: i32, flags: &mut MaybeUninit<u64>) {
    // SAFETY: as in `call`.
    unsafe {
        core::mem::transmute::<usize, unsafe extern "C" fn(*mut MaybeUninit<u64>)>(function as usize)(flags)
    }
}
