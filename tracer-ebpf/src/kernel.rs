//! Reads of registers and kernel memory. No structure layout is compiled in.

use crate::config::{config, offset};
use crate::frame::Cpu;
use crate::maps::SKB;
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

/// The first five arguments of the probed function, read as those of [`first_arguments`].
#[inline(always)]
pub fn five_arguments(context: *mut c_void) -> [u64; 5] {
    let registers = context.cast::<pt_regs>();
    // SAFETY: the context of a kprobe program is a pt_regs.
    #[cfg(bpf_target_arch = "x86_64")]
    unsafe {
        [
            core::ptr::read_volatile(&raw const (*registers).rdi),
            core::ptr::read_volatile(&raw const (*registers).rsi),
            core::ptr::read_volatile(&raw const (*registers).rdx),
            core::ptr::read_volatile(&raw const (*registers).rcx),
            core::ptr::read_volatile(&raw const (*registers).r8),
        ]
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

/// Hook number and family of a `struct nf_hook_state`: both lie in its first eight bytes on every kernel.
#[inline(always)]
pub fn hook_and_family(state: u64) -> Option<(u8, u8)> {
    let first: u64 = read(state)?;
    let (hook, family) = (offset!(state_hook), offset!(state_pf));
    if hook > 7 || family > 7 {
        return None;
    }
    // Hook numbers are below 256 and the machine is little endian: the first byte is enough where the field has four.
    Some(((first >> (hook * 8)) as u8, (first >> (family * 8)) as u8))
}

/// Devices and namespace of a `struct nf_hook_state`.
#[derive(Clone, Copy)]
pub struct HookState {
    pub indev: u64,
    pub outdev: u64,
    pub net: u64,
}

/// Reads what a traced packet needs of a hook state in one go.
#[inline(always)]
pub fn hook_state(address: u64) -> Option<HookState> {
    let (indev, outdev, net) = (offset!(state_in), offset!(state_out), offset!(state_net));
    let window: [u64; 5] = read(address)?;
    let window = &raw const window;
    if indev > 32 || outdev > 32 || net > 32 {
        return None;
    }
    let window = window.cast::<u8>();
    // SAFETY: all offsets lie within the 40 bytes just read, and are multiples of the size read.
    unsafe {
        Some(HookState {
            indev: window.add(indev as usize).cast::<u64>().read_volatile(),
            outdev: window.add(outdev as usize).cast::<u64>().read_volatile(),
            net: window.add(net as usize).cast::<u64>().read_volatile(),
        })
    }
}

/// Bytes of an skb that can be read at once.
const WINDOW: u64 = 256;

/// Room for a part of an skb.
#[repr(C)]
pub struct SkbWindow([u64; (WINDOW / 8) as usize]);

/// Fields of a `struct sk_buff` from one read that begins at `start`. The bytes lie in a map, the stack is too small.
pub struct Skb {
    window: *const u8,
    start: u64,
    span: u64,
}

macro_rules! skb_fields {
    ($($name:ident: $type:ty = $field:ident,)*) => {
        impl Skb {
            $(
                #[doc = concat!("`", stringify!($field), "`; 0 where the read does not cover it.")]
                #[inline(always)]
                pub fn $name(&self) -> $type {
                    let at = offset!($field).wrapping_sub(self.start);
                    if at > self.span - size_of::<$type>() as u64 {
                        return 0;
                    }
                    // SAFETY: within the window, as just compared.
                    unsafe { self.window.add(at as usize).cast::<$type>().read_volatile() }
                }
            )*
        }
    };
}

skb_fields! {
    head: u64 = skb_head,
    network_header: u16 = skb_network_header,
    mac_header: u16 = skb_mac_header,
    len: u32 = skb_len,
    data_len: u32 = skb_data_len,
    mark: u32 = skb_mark,
    dev: u64 = skb_dev,
    sock: u64 = skb_sk,
    nfct: u64 = skb_nfct,
}

impl Skb {
    /// All fields.
    #[inline(always)]
    pub fn whole(address: u64) -> Option<Self> {
        const SPAN: u64 = 192;
        let start = offset!(skb_dev);
        let fits = |at: u64| at >= start && at - start <= SPAN - 8;
        // On the known kernels they lie between the device and the buffer's address.
        if fits(offset!(skb_head))
            && fits(offset!(skb_mark))
            && fits(offset!(skb_len))
            && fits(offset!(skb_sk))
        {
            Self::read::<SPAN>(address, start)
        } else {
            Self::read::<WINDOW>(address, 0)
        }
    }

    /// Length, mark and place of the packet.
    #[inline(always)]
    pub fn packet(address: u64) -> Option<Self> {
        const SPAN: u64 = 104;
        let start = offset!(skb_len);
        let fits = |at: u64| at >= start && at - start <= SPAN - 8;
        if fits(offset!(skb_head)) && fits(offset!(skb_mark)) && fits(offset!(skb_data_len)) {
            Self::read::<SPAN>(address, start)
        } else {
            Self::read::<WINDOW>(address, 0)
        }
    }

    /// What lies behind an skb in its slab can be read, too.
    #[inline(always)]
    fn read<const SPAN: u64>(address: u64, start: u64) -> Option<Self> {
        let window = SKB.get_ptr_mut(0)?.cast::<u8>();
        // SAFETY: a per-CPU map value longer than any span.
        let read = unsafe { copy(window, SPAN as u32, address + start) };
        read.then_some(Self { window, start, span: SPAN })
    }

    /// Address of the network header.
    #[inline(always)]
    pub fn network(&self) -> u64 {
        self.head() + u64::from(self.network_header())
    }

    /// Bytes in the linear part, from the network header on.
    #[inline(always)]
    pub fn linear(&self) -> u32 {
        self.len().wrapping_sub(self.data_len())
    }
}
