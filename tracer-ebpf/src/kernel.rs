//! Reads of registers and kernel memory. No structure layout is compiled in.

use crate::config::{config, offset};
use crate::frame::Cpu;
use aya_ebpf::bindings::pt_regs;
use aya_ebpf::helpers::generated::{
    bpf_get_current_task, bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_probe_read_kernel,
};
use core::ffi::c_void;
use core::mem::MaybeUninit;

/// A value somewhere in kernel memory.
#[inline(always)]
pub fn read<T: Copy>(address: u64) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the destination is large enough; the helper copes with any source address and returns an error for
    // those that cannot be read. T is a plain integer or array of integers at every call.
    unsafe {
        let result = bpf_probe_read_kernel(
            value.as_mut_ptr().cast::<c_void>(),
            size_of::<T>() as u32,
            address as *const c_void,
        );
        if result == 0 { Some(value.assume_init()) } else { None }
    }
}

/// Copies kernel memory to `destination`. `len` must have an upper bound that the verifier can see.
///
/// # Safety
/// `destination` must be valid for `len` bytes.
#[inline(always)]
pub unsafe fn copy(destination: *mut u8, len: u32, address: u64) -> bool {
    // SAFETY: the caller vouches for the destination; the helper checks the source.
    unsafe { bpf_probe_read_kernel(destination.cast::<c_void>(), len, address as *const c_void) == 0 }
}

/// The first three arguments of the probed function. All are read before any is chosen: a register picked by a
/// branch is an access the verifier refuses.
#[inline(always)]
pub fn first_arguments(context: *mut c_void) -> (u64, u64, u64) {
    let registers = context.cast::<pt_regs>();
    // SAFETY: the context of a kprobe program is a pt_regs.
    #[cfg(bpf_target_arch = "x86_64")]
    unsafe {
        (
            core::ptr::read_volatile(&raw const (*registers).rdi),
            core::ptr::read_volatile(&raw const (*registers).rsi),
            core::ptr::read_volatile(&raw const (*registers).rdx),
        )
    }
}

/// The stack pointer at entry of the probed function.
#[inline(always)]
pub fn stack_pointer(context: *mut c_void) -> u64 {
    // SAFETY: the context of a kprobe program is a pt_regs.
    #[cfg(bpf_target_arch = "x86_64")]
    unsafe {
        core::ptr::read_volatile(&raw const (*context.cast::<pt_regs>()).rsp)
    }
}

/// What [`stack_pointer`] was at entry, seen from the exit: the return address is gone from the stack by then.
#[inline(always)]
pub fn return_stack_pointer(context: *mut c_void) -> u64 {
    stack_pointer(context).wrapping_sub(8)
}

/// Address of the running task.
#[inline(always)]
pub fn task() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_current_task() }
}

/// Number of the running CPU.
#[inline(always)]
pub fn cpu_number() -> u32 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_smp_processor_id() }
}

/// CLOCK_MONOTONIC.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// What to add to a per-CPU address to get this CPU's copy; asked of the kernel once for each CPU.
#[inline(always)]
pub fn per_cpu_offset(cpu: &Cpu) -> Option<u64> {
    let known = cpu.per_cpu_offset.get();
    if known != 0 {
        return Some(known);
    }
    let offset = read(config!(per_cpu_offset) + 8 * u64::from(cpu_number()))?;
    cpu.per_cpu_offset.set(offset);
    Some(offset)
}

/// Two numbers of one structure; in one read where they follow one another.
#[inline(always)]
pub fn read_pair(address: u64, first: u64, second: u64) -> Option<(u32, u32)> {
    if second == first + 4 {
        let [first, second]: [u32; 2] = read(address + first)?;
        Some((first, second))
    } else {
        Some((read(address + first)?, read(address + second)?))
    }
}

/// This CPU's `xt_recseq`: one for all tables of all families, moved once at the beginning and once at the end of
/// each outermost traversal, and by every addition of saved counters.
#[inline(always)]
pub fn recseq(per_cpu: u64) -> Option<u32> {
    read(config!(recseq).wrapping_add(per_cpu))
}

/// `struct nf_hook_state` without its last member.
#[derive(Clone, Copy)]
pub struct HookState {
    pub hook: u8,
    pub family: u8,
    pub indev: u64,
    pub outdev: u64,
    pub net: u64,
}

/// Reads a hook state in one go.
#[inline(always)]
pub fn hook_state(address: u64) -> Option<HookState> {
    let window: [u64; 5] = read(address)?;
    let window = (&raw const window).cast::<u8>();
    let (hook, family) = (offset!(state_hook), offset!(state_pf));
    let (indev, outdev, net) = (offset!(state_in), offset!(state_out), offset!(state_net));
    if hook > 36 || family > 36 || indev > 32 || outdev > 32 || net > 32 {
        return None;
    }
    // SAFETY: all offsets lie within the 40 bytes just read, and are multiples of the size read.
    unsafe {
        Some(HookState {
            // Hook numbers are below 256 and the machine is little endian: the first byte is enough in both widths.
            hook: window.add(hook as usize).read_volatile(),
            family: window.add(family as usize).read_volatile(),
            indev: window.add(indev as usize).cast::<u64>().read_volatile(),
            outdev: window.add(outdev as usize).cast::<u64>().read_volatile(),
            net: window.add(net as usize).cast::<u64>().read_volatile(),
        })
    }
}
