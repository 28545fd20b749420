//! Traversals of the legacy tables: `ipt_do_table`, `ip6t_do_table`, `arpt_do_table`.
//!
//! The rules whose per-CPU counters moved between entry and exit are the rules the packet matched, unless something
//! else moved them. The order of the reads is what makes that provable:
//!
//! - entry: outer frame's counters, then `xt_recseq`, then the replace counter, `private`, the snapshot, `private`;
//! - exit: counters, then `xt_recseq`, then `private` and the replace counter;
//! - exit of an inner traversal: `xt_recseq`, then the outer frame's counters.

use crate::config::{config, offset};
use crate::emit::{count, send};
use crate::frame::{Cpu, Frame, cpu, frame};
use crate::kernel::{self, HookState, copy, read};
use crate::maps::{DEPTH, RECORDS, Record, replace_count};
use crate::select::{Selected, select};
use crate::snapshot;
use core::ffi::c_void;
use tracer_common::counter::Counter;
use tracer_common::legacy::{
    ENTRY_BYTES, EXIT_BYTES, MAC_BYTES, MAX_MATCHES, Match, SkbState, Traversal, doubt, fact, kind,
};

/// Bits of a kernel stack: frames of one task share what is above them.
const STACK_SHIFT: u32 = 14;
const NF_STOLEN: u32 = 2;
const TCP_TIME_WAIT: u8 = 6;
const TCP_NEW_SYN_RECV: u8 = 12;

/// The arguments of a traversal.
pub struct Call {
    pub skb: u64,
    pub state: u64,
    pub table: u64,
    pub stack_pointer: u64,
}

impl Call {
    /// From the registers of an entry probe.
    #[inline(always)]
    pub fn from_registers(context: *mut c_void) -> Self {
        let (first, second, third) = kernel::first_arguments(context);
        let stack_pointer = kernel::stack_pointer(context);
        if config!(argument_order) == 0 {
            Self { table: first, skb: second, state: third, stack_pointer }
        } else {
            Self { skb: first, state: second, table: third, stack_pointer }
        }
    }
}

/// A packet enters a table.
#[inline(always)]
pub fn enter(call: &Call) -> Option<()> {
    let cpu = cpu()?;
    cpu.generation.set(cpu.generation.get().wrapping_add(1));
    let state = kernel::hook_state(call.state)?;
    match select(cpu, call, &state) {
        Some(selected) => push(cpu, call, Some((&selected, &state))),
        None if cpu.depth.get() != 0 => push(cpu, call, None),
        None => pass(cpu),
    }
}

/// An ARP packet enters a table.
#[inline(always)]
pub fn enter_unselected(call: &Call) -> Option<()> {
    let cpu = cpu()?;
    cpu.generation.set(cpu.generation.get().wrapping_add(1));
    if cpu.depth.get() != 0 { push(cpu, call, None) } else { pass(cpu) }
}

/// A traversal that nobody follows; only counted, for the sake of [`checkpoint`].
#[inline(always)]
fn pass(cpu: &Cpu) -> Option<()> {
    let open = cpu.open.get();
    if open == 0 {
        cpu.outermost.set(cpu.outermost.get().wrapping_add(1));
    }
    cpu.open.set(open.wrapping_add(1));
    Some(())
}

/// Compares how far `xt_recseq` moved with the traversals seen since the last time: the rest was missed.
/// Returns the number missed and the time of the checkpoint before.
#[inline(always)]
fn checkpoint(cpu: &Cpu, sequence: u32, now_ns: u64) -> (u32, u64) {
    let mut missed = 0;
    if cpu.checkpoint_valid.get() != 0 {
        let moved = sequence.wrapping_sub(cpu.checkpoint_sequence.get()) / 2;
        missed = moved.wrapping_sub(cpu.outermost.get());
        // More seen than moved, by traversals inside unfollowed ones.
        if missed > 1 << 30 {
            missed = 0;
        }
    }
    let since_ns = cpu.checkpoint_ns.get();
    let odd = sequence & 1;
    // One that is under way has been counted before, and its end is still to come.
    cpu.checkpoint_sequence.set(sequence.wrapping_add(odd));
    cpu.outermost.set(if odd == 0 { 1 + u32::from(cpu.open.get() != 0) } else { 0 });
    cpu.checkpoint_valid.set(1);
    cpu.checkpoint_ns.set(now_ns);
    if missed != 0 {
        count(Counter::Missed, u64::from(missed));
    }
    (missed, since_ns)
}

/// Gives up the frame at `depth`, whose exit will not come. A global function to the verifier, like those of
/// [`snapshot`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn abandon(depth: u32, why: u32) -> u32 {
    let (Some(cpu), Some(frame), Some(record)) = (cpu(), frame(depth), RECORDS.get_ptr_mut(depth)) else { return 1 };
    cpu.depth.set(depth);
    if frame.traced.get() != 0 {
        // SAFETY: a per-CPU map value of this program's own.
        unsafe {
            let traversal = &mut *(&raw mut (*record).traversal);
            identify(traversal, frame);
            traversal.doubts |= why;
            traversal.verdict = 0;
            traversal.match_count = 0;
            send(record.cast::<u8>(), size_of::<Traversal>() as u64);
        }
    }
    0
}

/// Fills in what is known of a traversal at its end, however it ends.
#[inline(always)]
fn identify(traversal: &mut Traversal, frame: &Frame) {
    traversal.cpu = kernel::cpu_number();
    traversal.exit_ns = kernel::now_ns();
    traversal.private = frame.private.get();
    traversal.replace_count = frame.replace_count.get();
    traversal.number = frame.number.get();
    traversal.size = frame.size.get();
    traversal.doubts = frame.doubts.get();
}

/// Follows a traversal: one that is traced, or one inside another that is followed.
#[inline(always)]
fn push(cpu: &Cpu, call: &Call, traced: Option<(&Selected, &HookState)>) -> Option<()> {
    let task = kernel::task();
    // The same task cannot be deeper in its stack than a call it made before: such a frame's exit was lost.
    for _ in 0..DEPTH {
        let depth = cpu.depth.get();
        if depth == 0 {
            break;
        }
        let top = frame(depth - 1)?;
        let top_pointer = top.stack_pointer.get();
        if top.task.get() == task
            && top_pointer >> STACK_SHIFT == call.stack_pointer >> STACK_SHIFT
            && call.stack_pointer >= top_pointer
        {
            abandon(depth - 1, doubt::NO_EXIT);
        } else {
            break;
        }
    }
    if cpu.depth.get() >= DEPTH {
        for above in 0..DEPTH {
            abandon(DEPTH - 1 - above, doubt::TOO_DEEP);
        }
        count(Counter::Overflowed, u64::from(DEPTH));
    }
    let depth = cpu.depth.get();
    let per_cpu = kernel::per_cpu_offset()?;
    let mut page = 0;
    if depth > 0 {
        let outer = frame(depth - 1)?;
        if outer.traced.get() != 0 {
            snapshot::suspend(outer, depth - 1);
        }
        outer.inner.set(outer.inner.get().wrapping_add(1));
        page = outer.page.get() + outer.blocks.get();
    }
    let sequence = kernel::recseq(per_cpu)?;
    let now_ns = kernel::now_ns();
    let mut missed = (0, 0);
    if depth > 0 {
        let outer = frame(depth - 1)?;
        let segment = sequence.wrapping_sub(outer.segment_sequence.get());
        outer.advanced.set(outer.advanced.get().wrapping_add(segment));
        if sequence & 1 == 0 {
            cpu.outermost.set(cpu.outermost.get().wrapping_add(1));
        }
    } else {
        missed = checkpoint(cpu, sequence, now_ns);
    }
    cpu.open.set(cpu.open.get().wrapping_add(1));

    let frame = frame(depth)?;
    frame.stack_pointer.set(call.stack_pointer);
    frame.task.set(task);
    frame.skb.set(call.skb);
    frame.table.set(call.table);
    frame.entry_sequence.set(sequence);
    frame.segment_sequence.set(sequence);
    frame.advanced.set(0);
    frame.generation.set(cpu.generation.get());
    frame.inner.set(0);
    frame.doubts.set(0);
    frame.page.set(page);
    frame.blocks.set(0);
    frame.traced.set(0);
    if let Some((selected, state)) = traced {
        let record = RECORDS.get_ptr_mut(depth)?;
        // SAFETY: a per-CPU map value of this program's own; nothing else refers to it now.
        let traversal = unsafe { &mut *(&raw mut (*record).traversal) };
        begin(traversal, call, selected, state, now_ns, missed);
        if depth > 0 {
            traversal.facts |= fact::NESTED;
        }
        frame.traced.set(1);
        if watch(frame, call, depth, per_cpu, state.family).is_none() {
            frame.doubt(doubt::UNREADABLE);
        }
    }
    cpu.depth.set(depth + 1);
    Some(())
}

/// Takes down which version of the table is current, and its counters.
#[inline(always)]
fn watch(frame: &Frame, call: &Call, depth: u32, per_cpu: u64, family: u8) -> Option<()> {
    frame.replace_count.set(replace_count(call.table)?);
    let private: u64 = read(call.table + offset!(table_private))?;
    frame.private.set(private);
    let size: u32 = read(private + offset!(info_size))?;
    let number: u32 = read(private + offset!(info_number))?;
    frame.number.set(number);
    frame.size.set(size);
    frame.first_block.set(snapshot::first_block(private, family, per_cpu)?);
    let blocks = snapshot::blocks(number);
    if frame.page.get().saturating_add(blocks) > config!(snapshot_pages)
        || (blocks > 1 && snapshot::locate_blocks(private, u32::from(family), 0) != 0)
    {
        frame.doubt(doubt::TOO_LARGE);
        return Some(());
    }
    frame.blocks.set(blocks);
    snapshot::take(frame, depth);
    if read::<u64>(call.table + offset!(table_private)) != Some(private) {
        frame.doubt(doubt::REPLACED);
    }
    Some(())
}

/// Fills the entry half of a record.
#[inline(always)]
fn begin(
    traversal: &mut Traversal,
    call: &Call,
    selected: &Selected,
    state: &HookState,
    now_ns: u64,
    (missed, checkpoint_ns): (u32, u64),
) {
    let mut facts = if selected.first { fact::FIRST } else { 0 };
    traversal.kind = kind::TRAVERSAL;
    traversal.packet = selected.packet;
    traversal.entry_ns = now_ns;
    traversal.skb = call.skb;
    traversal.table = call.table;
    traversal.missed = missed;
    traversal.checkpoint_ns = checkpoint_ns;
    traversal.hook = state.hook;
    traversal.family = state.family;
    traversal.netns = read(state.net + offset!(net_inum)).unwrap_or(0);
    traversal.table_name = read(call.table + offset!(table_name)).unwrap_or([0; 32]);
    traversal.match_count = 0;
    traversal.reserved = 0;

    let nfct: u64 = read(call.skb + offset!(skb_nfct)).unwrap_or(0);
    traversal.ctinfo = (nfct & 7) as u8;
    traversal.ct_status = 0;
    if nfct > 7
        && let Some(status) = read::<u64>((nfct & !7) + offset!(ct_status))
    {
        traversal.ct_status = status;
        facts |= fact::CONNTRACK;
    }

    if device(&mut traversal.indev.ifindex, &mut traversal.indev.name, state.indev) {
        facts |= fact::IN;
    }
    if device(&mut traversal.outdev.ifindex, &mut traversal.outdev.name, state.outdev) {
        facts |= fact::OUT;
    }
    let head: u64 = read(call.skb + offset!(skb_head)).unwrap_or(0);
    let network_header: u16 = read(call.skb + offset!(skb_network_header)).unwrap_or(0);
    let network = head + u64::from(network_header);
    skb_state(&mut traversal.entry, call.skb);
    traversal.entry.copied =
        copy_packet(&raw mut traversal.entry_bytes, network, traversal.entry.copied, ENTRY_BYTES as u32);

    // The kernel's logger prints the link layer only where there is an input device.
    traversal.mac_len = 0;
    traversal.dev_type = 0;
    traversal.hard_header_len = 0;
    if state.indev != 0 {
        facts |= link(traversal, call.skb, head, network_header);
    }
    let sock: u64 = read(call.skb + offset!(skb_sk)).unwrap_or(0);
    traversal.uid = 0;
    traversal.gid = 0;
    if sock != 0
        && let Some((uid, gid)) = owner(sock, state.net)
    {
        traversal.uid = uid;
        traversal.gid = gid;
        facts |= fact::OWNER;
    }
    traversal.facts = facts;
}

/// Reads length and mark of an skb; `copied` becomes the length of its linear part.
#[inline(always)]
fn skb_state(state: &mut SkbState, skb: u64) {
    state.mark = read(skb + offset!(skb_mark)).unwrap_or(0);
    state.len = read(skb + offset!(skb_len)).unwrap_or(0);
    let data_len: u32 = read(skb + offset!(skb_data_len)).unwrap_or(0);
    state.copied = state.len.wrapping_sub(data_len);
    state.reserved = 0;
}

/// Copies the first bytes of the linear part; says how many.
#[inline(always)]
fn copy_packet<const N: usize>(destination: *mut [u8; N], address: u64, linear: u32, limit: u32) -> u32 {
    let len = if linear > limit { limit } else { linear };
    let len = snapshot::bounded(len, limit);
    // SAFETY: `len` is at most `limit`, which is the length of the array.
    if unsafe { copy(destination.cast::<u8>(), len, address) } { len } else { 0 }
}

/// Reads what the kernel's logger prints about a device.
#[inline(always)]
fn device(ifindex: &mut u32, name: &mut [u8; 16], address: u64) -> bool {
    *ifindex = 0;
    *name = [0; 16];
    if address == 0 {
        return false;
    }
    *ifindex = read(address + offset!(dev_ifindex)).unwrap_or(0);
    // SAFETY: the destination has 16 bytes.
    unsafe { copy(name.as_mut_ptr(), 16, address + offset!(dev_name)) }
}

/// Reads the link layer of an incoming packet; returns the facts learned.
#[inline(always)]
fn link(traversal: &mut Traversal, skb: u64, head: u64, network_header: u16) -> u32 {
    let Some(dev) = read::<u64>(skb + offset!(skb_dev)) else { return 0 };
    let Some(mac_header) = read::<u16>(skb + offset!(skb_mac_header)) else { return 0 };
    traversal.dev_type = read(dev + offset!(dev_type)).unwrap_or(0);
    traversal.hard_header_len = read(dev + offset!(dev_hard_header_len)).unwrap_or(0);
    if mac_header == network_header {
        return 0;
    }
    let len = if traversal.hard_header_len > MAC_BYTES as u16 { MAC_BYTES as u16 } else { traversal.hard_header_len };
    let len = snapshot::bounded(u32::from(len), MAC_BYTES as u32);
    // SAFETY: `len` is at most the length of the array.
    if unsafe { copy((&raw mut traversal.mac).cast::<u8>(), len, head + u64::from(mac_header)) } {
        traversal.mac_len = len as u8;
    }
    fact::MAC
}

/// Owner of a socket, under the conditions of `nf_log_dump_sk_uid_gid` in `net/netfilter/nf_log_syslog.c`.
#[inline(always)]
fn owner(sock: u64, net: u64) -> Option<(u32, u32)> {
    let state: u8 = read(sock + offset!(sock_state))?;
    if state == TCP_TIME_WAIT || state == TCP_NEW_SYN_RECV || read::<u64>(sock + offset!(sock_net))? != net {
        return None;
    }
    let socket: u64 = read(sock + offset!(sock_socket))?;
    if socket == 0 {
        return None;
    }
    let file: u64 = read(socket + offset!(socket_file))?;
    if file == 0 {
        return None;
    }
    let cred: u64 = read(file + offset!(file_cred))?;
    Some((read(cred + offset!(cred_fsuid))?, read(cred + offset!(cred_fsgid))?))
}

/// A packet leaves a table.
#[inline(always)]
pub fn leave(stack_pointer: u64, verdict: u32) -> Option<()> {
    let cpu = cpu()?;
    cpu.generation.set(cpu.generation.get().wrapping_add(1));
    let open = cpu.open.get();
    if open != 0 {
        cpu.open.set(open - 1);
    }
    let top = cpu.depth.get();
    if top == 0 {
        return Some(());
    }
    let mut depth = DEPTH;
    for candidate in 0..DEPTH {
        if candidate < top && frame(candidate)?.stack_pointer.get() == stack_pointer {
            depth = candidate;
        }
    }
    if depth >= DEPTH {
        // Its frame is on the CPU where it entered, or was never made.
        count(Counter::OrphanExits, 1);
        frame(top.wrapping_sub(1))?.doubt(doubt::ORPHAN);
        return Some(());
    }
    let frame = frame(depth)?;
    for _ in 0..DEPTH {
        let above = cpu.depth.get().wrapping_sub(1);
        if above <= depth || above >= DEPTH {
            break;
        }
        abandon(above, doubt::NO_EXIT);
        frame.doubt(doubt::NO_EXIT);
    }
    let per_cpu = kernel::per_cpu_offset()?;
    let traced = frame.traced.get() != 0;
    if traced {
        snapshot::compare(frame, depth);
    }
    let sequence = kernel::recseq(per_cpu)?;
    if traced {
        check(cpu, frame, depth, sequence, per_cpu);
        finish(frame, depth, verdict)?;
    }
    cpu.depth.set(depth);
    if depth > 0 {
        let outer = crate::frame::frame(depth - 1)?;
        outer.inner.set(outer.inner.get().wrapping_add(frame.inner.get()));
        outer.segment_sequence.set(sequence);
        if outer.traced.get() != 0 {
            snapshot::resume(outer, depth - 1);
        }
    }
    Some(())
}

/// The checks that prove that the counters tell of this packet alone.
#[inline(always)]
fn check(cpu: &Cpu, frame: &Frame, depth: u32, sequence: u32, per_cpu: u64) {
    let segment = sequence.wrapping_sub(frame.segment_sequence.get());
    let advanced = frame.advanced.get().wrapping_add(segment);
    let expected = if frame.entry_sequence.get() & 1 == 0 { 2 } else { 0 };
    if advanced != expected {
        frame.doubt(doubt::SEQUENCE);
    }
    let private = frame.private.get();
    if read::<u64>(frame.table.get() + offset!(table_private)) != Some(private) {
        frame.doubt(doubt::REPLACED);
    }
    if read::<u32>(private + offset!(info_size)) != Some(frame.size.get())
        || read::<u32>(private + offset!(info_number)) != Some(frame.number.get())
        || snapshot::first_block_of(depth, private, per_cpu) != Some(frame.first_block.get())
    {
        frame.doubt(doubt::MOVED);
    }
    if replace_count(frame.table.get()) != Some(frame.replace_count.get()) {
        frame.doubt(doubt::REPLACE_COUNT);
    }
    let seen = cpu.generation.get().wrapping_sub(frame.generation.get());
    if seen != frame.inner.get().wrapping_mul(2).wrapping_add(1) {
        frame.doubt(doubt::GENERATION);
    }
}

/// Fills the exit half of the record and sends it.
#[inline(always)]
fn finish(frame: &Frame, depth: u32, verdict: u32) -> Option<()> {
    let record: *mut Record = RECORDS.get_ptr_mut(depth)?;
    // SAFETY: a per-CPU map value of this program's own; nothing else refers to it now.
    let traversal = unsafe { &mut *(&raw mut (*record).traversal) };
    identify(traversal, frame);
    traversal.verdict = verdict;
    // A stolen packet may be gone.
    if verdict & 0xff != NF_STOLEN {
        let skb = frame.skb.get();
        let head: u64 = read(skb + offset!(skb_head))?;
        let network_header: u16 = read(skb + offset!(skb_network_header))?;
        skb_state(&mut traversal.exit, skb);
        traversal.exit.copied = copy_packet(
            &raw mut traversal.exit_bytes,
            head + u64::from(network_header),
            traversal.exit.copied,
            EXIT_BYTES as u32,
        );
        traversal.facts |= fact::EXIT;
    }
    let matches = snapshot::bounded(traversal.match_count, MAX_MATCHES as u32);
    let len = size_of::<Traversal>() as u64 + u64::from(matches) * size_of::<Match>() as u64;
    // SAFETY: `len` is at most the size of the record.
    unsafe { send(record.cast::<u8>(), len) };
    Some(())
}
