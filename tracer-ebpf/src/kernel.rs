//! Reads of registers and kernel memory. No structure layout is compiled in.

use crate::config::{config, load, offset};
use crate::frame::{Cpu, cpu_number};
use crate::maps::SKB;
use aya_ebpf::bindings::pt_regs;
use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_ktime_get_ns, bpf_probe_read_kernel};
use core::ffi::c_void;
use core::mem::MaybeUninit;
use tracer_common::kfunc;
use tracer_common::offsets::ABSENT;

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

/// An address as a pointer whose type, one of those in [`kfunc`], the verifier knows. A load from a bad one gives zero.
#[inline(always)]
pub fn cast<const TYPE: i32>(address: u64) -> u64 {
    // SAFETY: the loader puts the kernel's function in place of the number.
    unsafe {
        core::mem::transmute::<usize, unsafe extern "C" fn(u64, u64) -> u64>(kfunc::CAST as usize)(
            address,
            TYPE as u64,
        )
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
    let offset = read(config!(per_cpu_offset) + 8 * cpu_number())?;
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
pub fn recseq<A: Access>(per_cpu: u64) -> Option<u32> {
    A::number(config!(recseq).wrapping_add(per_cpu))
}

/// The status of a packet's connection. `None` where it has none, or where nobody knows where that would be.
#[inline(always)]
pub fn ct_status<A: Access>(nfct: u64) -> Option<u32> {
    if nfct <= 7 || offset!(ct_status) == u64::from(ABSENT) {
        return None;
    }
    A::number((nfct & !7) + offset!(ct_status))
}

/// Devices and namespace of a `struct nf_hook_state`.
#[derive(Clone, Copy)]
pub struct HookState {
    pub indev: u64,
    pub outdev: u64,
    pub net: u64,
}

/// Where a packet lies, how long it is, its mark.
#[derive(Clone, Copy)]
pub struct Packet {
    pub head: u64,
    pub network_header: u16,
    pub len: u32,
    pub data_len: u32,
    pub mark: u32,
}

impl Packet {
    /// Address of the network header.
    #[inline(always)]
    pub fn network(&self) -> u64 {
        self.head + u64::from(self.network_header)
    }

    /// The same packet, whose length counts from the link-layer header on, with its length from the network header on.
    #[inline(always)]
    pub fn without_frame(self, mac_header: u16) -> Self {
        let frame = u32::from(self.network_header.wrapping_sub(mac_header));
        Self { len: if frame < self.linear() { self.len - frame } else { self.len }, ..self }
    }

    /// Bytes in the linear part, from the network header on.
    #[inline(always)]
    pub fn linear(&self) -> u32 {
        self.len.wrapping_sub(self.data_len)
    }
}

/// What a record tells of an skb.
#[derive(Clone, Copy)]
pub struct Skb {
    pub packet: Packet,
    pub mac_header: u16,
    pub dev: u64,
    pub sock: u64,
    pub nfct: u64,
}

/// How a program gets at what the arguments of the probed function point to.
pub trait Access {
    /// Whether pointers have types that the verifier knows, so that fields can be loaded without a helper.
    const TYPED: bool;

    /// A field of a structure.
    fn field<T: Copy>(structure: u64, offset: u64) -> Option<T>;
    /// A number, at an address that the verifier knows nothing of. Zero, or nothing, where there is none.
    fn number<T: Copy>(address: u64) -> Option<T>;
    /// The name of a `struct net_device`.
    fn device_name(device: u64) -> Option<[u64; 2]>;
    /// Number of the input device of a `struct nf_hook_state`, where there is one.
    fn input_index(state: u64) -> Option<u32>;
    /// Hook number of a `struct nf_hook_state`.
    fn hook(state: u64) -> Option<u8>;
    /// Hook number and family of a `struct nf_hook_state`.
    fn hook_and_family(state: u64) -> Option<(u8, u8)>;
    /// The rest of a hook state that a traced packet needs.
    fn hook_state(state: u64) -> Option<HookState>;
    /// Where the packet of an skb lies.
    fn packet(skb: u64) -> Option<Packet>;
    /// All fields of an skb.
    fn skb(skb: u64) -> Option<Skb>;
}

/// From fentry and fexit: typed pointers. A load from a bad address gives zero.
pub struct Typed;

/// No structure is that large: the verifier would refuse the load of a field that this kernel does not have.
const NO_FIELD: u64 = 1 << 16;

impl Access for Typed {
    const TYPED: bool = true;

    #[inline(always)]
    fn field<T: Copy>(structure: u64, offset: u64) -> Option<T> {
        if offset >= NO_FIELD {
            return None;
        }
        // SAFETY: the kernel catches faults of such loads.
        Some(unsafe { core::ptr::read_volatile((structure + offset) as *const T) })
    }

    #[inline(always)]
    fn number<T: Copy>(address: u64) -> Option<T> {
        if config!(casts) == 0 {
            return read(address);
        }
        // SAFETY: as for `field`.
        Some(unsafe { core::ptr::read_volatile(cast::<{ kfunc::NUMBER }>(address) as *const T) })
    }

    #[inline(always)]
    fn device_name(device: u64) -> Option<[u64; 2]> {
        Some([load!(device, dev_name: u64), load!(device + 8, dev_name: u64)])
    }

    #[inline(always)]
    fn input_index(state: u64) -> Option<u32> {
        let device = load!(state, state_in: u64);
        Some(load!(device, dev_ifindex: u32))
    }

    #[inline(always)]
    fn hook(state: u64) -> Option<u8> {
        Some(load!(state, state_hook: u8))
    }

    #[inline(always)]
    fn hook_and_family(state: u64) -> Option<(u8, u8)> {
        Some((load!(state, state_hook: u8), load!(state, state_pf: u8)))
    }

    #[inline(always)]
    fn hook_state(state: u64) -> Option<HookState> {
        Some(HookState {
            indev: load!(state, state_in: u64),
            outdev: load!(state, state_out: u64),
            net: load!(state, state_net: u64),
        })
    }

    #[inline(always)]
    fn packet(skb: u64) -> Option<Packet> {
        Some(Packet {
            head: load!(skb, skb_head: u64),
            network_header: load!(skb, skb_network_header: u16),
            len: load!(skb, skb_len: u32),
            data_len: load!(skb, skb_data_len: u32),
            mark: load!(skb, skb_mark: u32),
        })
    }

    #[inline(always)]
    fn skb(skb: u64) -> Option<Skb> {
        Some(Skb {
            packet: Self::packet(skb)?,
            mac_header: load!(skb, skb_mac_header: u16),
            dev: load!(skb, skb_dev: u64),
            sock: load!(skb, skb_sk: u64),
            nfct: load!(skb, skb_nfct: u64),
        })
    }
}

/// From kprobes: plain addresses. Neighbouring fields are read at once.
pub struct Probed;

impl Access for Probed {
    const TYPED: bool = false;

    #[inline(always)]
    fn field<T: Copy>(structure: u64, offset: u64) -> Option<T> {
        read(structure + offset)
    }

    #[inline(always)]
    fn number<T: Copy>(address: u64) -> Option<T> {
        read(address)
    }

    #[inline(always)]
    fn device_name(device: u64) -> Option<[u64; 2]> {
        read(device + offset!(dev_name))
    }

    #[inline(always)]
    fn input_index(state: u64) -> Option<u32> {
        let device: u64 = read(state + offset!(state_in))?;
        read(device + offset!(dev_ifindex))
    }

    /// Hook numbers are below 256 and the machine is little endian: the first byte is enough where the field has four.
    #[inline(always)]
    fn hook(state: u64) -> Option<u8> {
        read(state + offset!(state_hook))
    }

    #[inline(always)]
    fn hook_and_family(state: u64) -> Option<(u8, u8)> {
        let first: u64 = read(state)?;
        let (hook, family) = (offset!(state_hook), offset!(state_pf));
        if hook > 7 || family > 7 {
            return None;
        }
        Some(((first >> (hook * 8)) as u8, (first >> (family * 8)) as u8))
    }

    #[inline(always)]
    fn hook_state(address: u64) -> Option<HookState> {
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

    #[inline(always)]
    fn packet(skb: u64) -> Option<Packet> {
        const SPAN: u64 = 104;
        let start = offset!(skb_len);
        let fits = |at: u64| at >= start && at - start <= SPAN - 8;
        if fits(offset!(skb_head)) && fits(offset!(skb_mark)) && fits(offset!(skb_data_len)) {
            Some(Window::read::<SPAN>(skb, start)?.packet())
        } else {
            Some(Window::read::<WINDOW>(skb, 0)?.packet())
        }
    }

    #[inline(always)]
    fn skb(skb: u64) -> Option<Skb> {
        const SPAN: u64 = 192;
        let start = offset!(skb_dev);
        let fits = |at: u64| at >= start && at - start <= SPAN - 8;
        // On the known kernels they lie between the device and the buffer's address.
        if fits(offset!(skb_head))
            && fits(offset!(skb_mark))
            && fits(offset!(skb_len))
            && fits(offset!(skb_sk))
        {
            Some(Window::read::<SPAN>(skb, start)?.skb())
        } else {
            Some(Window::read::<WINDOW>(skb, 0)?.skb())
        }
    }
}

/// Bytes of an skb that can be read at once.
const WINDOW: u64 = 256;

/// Room for a part of an skb.
#[repr(C)]
pub struct SkbWindow([u64; (WINDOW / 8) as usize]);

/// Fields of a `struct sk_buff` from one read that begins at `start`. The bytes lie in a map, the stack is too small.
struct Window {
    bytes: *const u8,
    start: u64,
    span: u64,
}

impl Window {
    /// What lies behind an skb in its slab can be read, too.
    #[inline(always)]
    fn read<const SPAN: u64>(address: u64, start: u64) -> Option<Self> {
        let window = SKB.get_ptr_mut(0)?.cast::<u8>();
        // SAFETY: a per-CPU map value longer than any span.
        let read = unsafe { copy(window, SPAN as u32, address + start) };
        read.then_some(Self { bytes: window, start, span: SPAN })
    }

    /// A field; 0 where the read does not cover it.
    #[inline(always)]
    fn field<T: Copy + Default>(&self, offset: u64) -> T {
        let at = offset.wrapping_sub(self.start);
        if at > self.span - size_of::<T>() as u64 {
            return T::default();
        }
        // SAFETY: within the window, as just compared.
        unsafe { self.bytes.add(at as usize).cast::<T>().read_volatile() }
    }

    #[inline(always)]
    fn packet(&self) -> Packet {
        Packet {
            head: self.field(offset!(skb_head)),
            network_header: self.field(offset!(skb_network_header)),
            len: self.field(offset!(skb_len)),
            data_len: self.field(offset!(skb_data_len)),
            mark: self.field(offset!(skb_mark)),
        }
    }

    #[inline(always)]
    fn skb(&self) -> Skb {
        Skb {
            packet: self.packet(),
            mac_header: self.field(offset!(skb_mac_header)),
            dev: self.field(offset!(skb_dev)),
            sock: self.field(offset!(skb_sk)),
            nfct: self.field(offset!(skb_nfct)),
        }
    }
}

/// Adds to a number that several CPUs may add to at once; the target has no atomics in `core`.
///
/// # Safety
/// `number` must be valid.
#[inline(always)]
pub unsafe fn add(number: *mut u64, amount: u64) {
    // SAFETY: the caller vouches for the number.
    unsafe {
        core::arch::asm!("lock *(u64 *)({number} + 0) += {amount}", number = in(reg) number, amount = in(reg) amount)
    };
}
