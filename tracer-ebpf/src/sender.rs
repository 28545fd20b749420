//! Which process sends a packet, where the current task certainly is the one.

use crate::emit::count;
use crate::frame::cpu;
use crate::kernel::{self, copy, read};
use crate::maps::{EVENTS, REINJECTING};
use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
};
use tracer_common::counter::Counter;
use tracer_common::offsets::ABSENT;
use tracer_common::sender::{INTERRUPTED, Sender, SenderConfig, kind};

/// Replaced by the loader.
#[unsafe(no_mangle)]
pub static SENDER: SenderConfig = SenderConfig::UNRESOLVED;

/// A field of the configuration.
macro_rules! sender {
    ($($field:tt)+) => {
        crate::config::field(&SENDER.$($field)+)
    };
}

/// Whether senders are asked for.
#[inline(always)]
pub fn is_asked() -> bool {
    sender!(asked) != 0
}

/// Tells who sends a packet that begins its way at the hook `output`. User space asks for the packet's socket, too: what the
/// kernel sends by itself belongs to no file.
///
/// A global function, like those of `snapshot`, so that nothing of it is on the way of packets where nobody asks.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tell_sender(packet: u64) -> u32 {
    if !is_asked() || sender!(preempt_count) == 0 {
        return 0;
    }
    // Interrupts use the task that they find, and send on behalf of others.
    let Some(per_cpu) = kernel::per_cpu_offset(cpu()) else { return 0 };
    let Some(preempt_count) = read::<u32>(sender!(preempt_count).wrapping_add(per_cpu)) else { return 0 };
    let task = kernel::task();
    let of_task = sender!(offsets.task_softirq_disable_cnt);
    let softirqs = if of_task == ABSENT { Some(0) } else { read::<u32>(task + u64::from(of_task)) };
    if preempt_count & INTERRUPTED != 0 || softirqs != Some(0) {
        return 0;
    }
    // A thread of the kernel sends for somebody else, and a program that reads a queue what others have sent.
    let memory = read::<u64>(task + u64::from(sender!(offsets.task_mm))).unwrap_or(0);
    if memory == 0 || REINJECTING.get_ptr(task).is_some() {
        return 0;
    }
    let Some(leader) = read::<u64>(task + u64::from(sender!(offsets.task_group_leader))) else { return 0 };
    let Some(mut entry) = EVENTS.reserve::<Sender>(0) else {
        count(Counter::Lost, 1);
        return 0;
    };
    let told = entry.as_mut_ptr();
    // SAFETY: a reservation for one of these; each field is written. The helpers have no preconditions.
    unsafe {
        (*told).kind = kind::SENDER;
        (*told).pid = (bpf_get_current_pid_tgid() >> 32) as u32;
        (*told).packet = packet;
        (*told).cgroup = bpf_get_current_cgroup_id();
        (*told).uid = bpf_get_current_uid_gid() as u32;
        (*told).reserved = 0;
        let name = (&raw mut (*told).name).cast::<u8>();
        if !copy(name, 16, leader + u64::from(sender!(offsets.task_comm))) {
            (*told).name = [0; 16];
        }
    }
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
    1
}

/// The current task gives a packet back from a queue: what it sends from now on may be others'.
#[inline(always)]
pub fn reinjects() {
    if is_asked() && REINJECTING.insert(kernel::task(), 1, 0).is_err() {
        count(Counter::Lost, 1);
    }
}
