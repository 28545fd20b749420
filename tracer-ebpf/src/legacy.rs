//! Traversals of the legacy tables: `ipt_do_table`, `ip6t_do_table`, `arpt_do_table`.
//!
//! The rules whose per-CPU counters moved between entry and exit are the rules the packet matched, unless something
//! else moved them. The order of the reads is what makes that provable:
//!
//! - entry: outer frame's counters, then `xt_recseq`, then the replace counter, `private`, the snapshot, `private`;
//! - exit: counters, then `xt_recseq`, then `private` and the replace counter;
//! - exit of an inner traversal: `xt_recseq`, then the outer frame's counters.

use crate::config::{config, offset};
use crate::emit::{count, send, send_traversal};
use crate::frame::{Cpu, Frame, cpu, frame};
use crate::kernel::{self, Skb, copy, read, read_pair};
use crate::maps::{DEPTH, KNOWN_TABLES, RECORDS, Record, replace_count};
use crate::select::{NO_OWNER, Selected, select_table};
use crate::snapshot;
use core::ffi::c_void;
use tracer_common::counter::Counter;
use tracer_common::legacy::{
    ENTRY_BYTES, EXIT_BYTES, FIRST_MATCHES, MAC_BYTES, MAX_MATCHES, MORE_BYTES, Match, SkbState, Traversal,
    doubt, fact, kind, table_slot,
};

/// Bits of a kernel stack: frames of one task share what is above them.
const STACK_SHIFT: u32 = 14;
/// No traversal takes that long, not even one whose task has to wait for its CPU.
const FORGOTTEN_NS: u64 = 1_000_000_000;
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

/// A traversal of a packet that is traced.
struct Traced {
    selected: Selected,
    hook: u8,
    family: u8,
}

/// A packet enters a table.
#[inline(always)]
pub fn enter(call: &Call) -> Option<()> {
    let cpu = cpu()?;
    cpu.generation.set(cpu.generation.get().wrapping_add(1));
    let (hook, family) = kernel::hook_and_family(call.state)?;
    match select_table(cpu, call, hook) {
        Some(selected) => push(cpu, call, Some(&Traced { selected, hook, family })),
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

/// A traversal that nobody follows; only counted, for the sake of [`checkpoint`]. One that begins inside another moves
/// the sequence count only when the other is not inside its own counted part: softirqs run at its end, too.
#[inline(always)]
fn pass(cpu: &Cpu) -> Option<()> {
    let open = cpu.open.get();
    cpu.open.set(open.wrapping_add(1));
    if open == 0 || kernel::recseq(kernel::per_cpu_offset(cpu)?)? & 1 == 0 {
        cpu.outermost.set(cpu.outermost.get().wrapping_add(1));
    }
    Some(())
}

/// Saved counts are about to be added to a table's counters, which moves `xt_recseq` as a traversal does.
#[inline(always)]
pub fn counters_added() -> Option<()> {
    let cpu = cpu()?;
    cpu.outermost.set(cpu.outermost.get().wrapping_add(1));
    Some(())
}

/// An outermost traversal begins: compares how far `xt_recseq` moved with the traversals seen since the last time. The
/// rest was missed. One that was seen and has not moved it yet stays in the account.
/// Returns the number missed and the time of the checkpoint before.
#[inline(always)]
fn checkpoint(cpu: &Cpu, sequence: u32, now_ns: u64) -> (u32, u64) {
    let seen = cpu.outermost.get();
    let mut missed = 0;
    let mut pending = 0;
    if cpu.checkpoint_valid.get() != 0 {
        let moved = sequence.wrapping_sub(cpu.checkpoint_sequence.get()) / 2;
        if moved > seen {
            missed = moved - seen;
        } else {
            pending = seen - moved;
        }
    }
    let since_ns = cpu.checkpoint_ns.get();
    cpu.checkpoint_sequence.set(sequence);
    cpu.outermost.set(pending + 1);
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
    let (Some(cpu), Some(frame), Some(record)) = (cpu(), frame(depth), RECORDS.get_ptr_mut(depth)) else {
        return 1;
    };
    cpu.depth.set(depth);
    if frame.traced.get() != 0 {
        // SAFETY: a per-CPU map value of this program's own.
        unsafe {
            let traversal = &mut *(&raw mut (*record).traversal);
            identify(traversal, frame);
            traversal.doubts |= why;
            traversal.kind = kind::TRAVERSAL;
            traversal.verdict = 0;
            traversal.match_count = 0;
            clear(&mut traversal.exit);
            if traversal.entry.copied > ENTRY_BYTES as u32 {
                traversal.entry.copied = ENTRY_BYTES as u32;
            }
            send_traversal(record);
        }
    }
    0
}

/// Fills in what is known of a traversal at its end, however it ends.
#[inline(always)]
fn identify(traversal: &mut Traversal, frame: &Frame) {
    traversal.cpu = kernel::cpu_number();
    traversal.private = frame.private.get();
    traversal.replace_count = frame.replace_count.get();
    traversal.doubts = frame.doubts.get();
}

/// Follows a traversal: one that is traced, or one inside another that is followed.
#[inline(always)]
fn push(cpu: &Cpu, call: &Call, traced: Option<&Traced>) -> Option<()> {
    let task = kernel::task();
    let now_ns = kernel::now_ns();
    // The same task cannot be deeper in its stack than a call it made before: such a frame's exit was lost. One that is
    // very old has ended on another CPU.
    for _ in 0..DEPTH {
        let depth = cpu.depth.get();
        if depth == 0 {
            break;
        }
        let top = frame(depth - 1)?;
        let top_pointer = top.stack_pointer.get();
        let returned = top.task.get() == task
            && top_pointer >> STACK_SHIFT == call.stack_pointer >> STACK_SHIFT
            && call.stack_pointer >= top_pointer;
        if returned || now_ns.wrapping_sub(top.entry_ns.get()) > FORGOTTEN_NS {
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
    let per_cpu = kernel::per_cpu_offset(cpu)?;
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
    if depth > 0 {
        let outer = frame(depth - 1)?;
        let segment = sequence.wrapping_sub(outer.segment_sequence.get());
        outer.advanced.set(outer.advanced.get().wrapping_add(segment));
    }
    // Inside the counted part of another one, a traversal does not move the sequence count.
    let missed = if sequence & 1 == 0 { checkpoint(cpu, sequence, now_ns) } else { (0, 0) };
    cpu.open.set(cpu.open.get().wrapping_add(1));

    let frame = frame(depth)?;
    frame.stack_pointer.set(call.stack_pointer);
    frame.task.set(task);
    frame.skb.set(call.skb);
    frame.table.set(call.table);
    frame.entry_sequence.set(sequence);
    frame.segment_sequence.set(sequence);
    frame.advanced.set(0);
    frame.entry_ns.set(now_ns);
    frame.generation.set(cpu.generation.get());
    frame.inner.set(0);
    frame.doubts.set(0);
    frame.page.set(page);
    frame.blocks.set(0);
    frame.traced.set(0);
    if let Some(traced) = traced {
        let record = RECORDS.get_ptr_mut(depth)?;
        // SAFETY: a per-CPU map value of this program's own; nothing else refers to it now.
        let traversal = unsafe { &mut *(&raw mut (*record).traversal) };
        begin(traversal, call, traced, now_ns, missed);
        if depth > 0 {
            traversal.facts |= fact::NESTED;
        }
        frame.traced.set(1);
        if watch(frame, traversal, call, depth, per_cpu).is_none() {
            frame.doubt(doubt::UNREADABLE);
        }
    }
    cpu.depth.set(depth + 1);
    Some(())
}

/// Takes down which version of the table is current, and its counters.
#[inline(always)]
fn watch(frame: &Frame, traversal: &mut Traversal, call: &Call, depth: u32, per_cpu: u64) -> Option<()> {
    let count = replace_count(call.table)?;
    frame.replace_count.set(count);
    let private: u64 = read(call.table + offset!(table_private))?;
    frame.private.set(private);
    let known = KNOWN_TABLES.get(table_slot(call.table))?;
    if known.table.get() != call.table || known.private.get() != private || known.replace_count.get() != count
    {
        // Nothing is known while it is being asked for.
        known.table.set(0);
        let (size, number) = read_pair(private, offset!(info_size), offset!(info_number))?;
        known.size.set(size);
        known.number.set(number);
        known.first_block.set(snapshot::first_block(private, traversal.family, per_cpu)?);
        known.name.set(read(call.table + offset!(table_name))?);
        known.private.set(private);
        known.replace_count.set(count);
        known.table.set(call.table);
    }
    let number = known.number.get();
    frame.number.set(number);
    traversal.number = number;
    traversal.size = known.size.get();
    frame.first_block.set(known.first_block.get());
    let name = known.name.get();
    // SAFETY: 32 bytes each; the destination is aligned to eight.
    unsafe { core::ptr::write_volatile((&raw mut traversal.table_name).cast::<[u64; 4]>(), name) };
    let blocks = snapshot::blocks(number);
    if frame.page.get().saturating_add(blocks) > config!(snapshot_pages)
        || (blocks > 1 && snapshot::locate_blocks(private, u32::from(traversal.family), 0) != 0)
    {
        frame.doubt(doubt::TOO_LARGE);
        return Some(());
    }
    frame.chain_first.set(0);
    frame.chain_last.set(0);
    frame.user_first.set(0);
    if blocks > 1 {
        snapshot::reach(frame, traversal.hook)?;
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
    traced: &Traced,
    now_ns: u64,
    (missed, checkpoint_ns): (u32, u64),
) {
    let selected = &traced.selected;
    let state = &selected.state;
    let mut facts = if selected.first { fact::FIRST } else { 0 };
    traversal.packet = selected.packet;
    traversal.entry_ns = now_ns;
    traversal.skb = call.skb;
    traversal.table = call.table;
    traversal.missed = missed;
    traversal.checkpoint_ns = checkpoint_ns;
    traversal.hook = traced.hook;
    traversal.family = traced.family;
    traversal.netns = match config!(netns) {
        0 => read(state.net + offset!(net_inum)).unwrap_or(0),
        only => only,
    };
    traversal.match_count = 0;
    traversal.number = 0;
    traversal.size = 0;
    traversal.ctinfo = 0;
    traversal.ct_status = 0;
    traversal.mac_len = 0;
    traversal.dev_type = 0;
    traversal.hard_header_len = 0;
    traversal.uid = 0;
    traversal.gid = 0;
    if device(&mut traversal.indev, state.indev) {
        facts |= fact::IN;
    }
    if device(&mut traversal.outdev, state.outdev) {
        facts |= fact::OUT;
    }
    clear(&mut traversal.entry);
    if let Some(skb) = Skb::whole(call.skb) {
        facts |= packet(traversal, selected, &skb);
    }
    traversal.facts = facts;
}

/// Fills in what the skb tells; returns the facts learned.
#[inline(always)]
fn packet(traversal: &mut Traversal, selected: &Selected, skb: &Skb) -> u32 {
    let mut facts = 0;
    let nfct = skb.nfct();
    traversal.ctinfo = (nfct & 7) as u8;
    if nfct > 7
        && let Some(status) = read::<u32>((nfct & !7) + offset!(ct_status))
    {
        traversal.ct_status = status;
        facts |= fact::CONNTRACK;
    }
    traversal.entry.mark = skb.mark();
    traversal.entry.len = skb.len();
    // What follows `entry_bytes` in the record continues it.
    let limit = (ENTRY_BYTES + MORE_BYTES) as u32;
    let len = snapshot::bounded(skb.linear(), limit);
    // SAFETY: a record has room for `limit` bytes from here on.
    if unsafe { copy((&raw mut traversal.entry_bytes).cast::<u8>(), len, skb.network()) } {
        traversal.entry.copied = len;
    }
    // The kernel's logger prints the link layer only where there is an input device.
    if selected.state.indev != 0 {
        facts |= link(traversal, skb);
    }
    let sock = skb.sock();
    if sock != 0 {
        // SAFETY: a map value; only the CPU that has the packet uses it.
        let known = unsafe { &mut *selected.known };
        if known.sock != sock {
            known.sock = sock;
            known.owner = owner(sock, selected.state.net).unwrap_or(NO_OWNER);
        }
        if known.owner != NO_OWNER {
            traversal.uid = known.owner as u32;
            traversal.gid = (known.owner >> 32) as u32;
            facts |= fact::OWNER;
        }
    }
    facts
}

/// Empties a state, field by field: the compiler would join them to a call of `memset`, which is slow here.
#[inline(always)]
fn clear(state: &mut SkbState) {
    for field in [&mut state.mark, &mut state.len, &mut state.copied, &mut state.reserved] {
        // SAFETY: a valid reference.
        unsafe { core::ptr::write_volatile(field, 0) };
    }
}

/// Reads what the kernel's logger prints about a device; what was there is left where there is none.
#[inline(always)]
pub fn device(name: &mut [u8; 16], address: u64) -> bool {
    // SAFETY: the destination has 16 bytes.
    address != 0 && unsafe { copy(name.as_mut_ptr(), 16, address + offset!(dev_name)) }
}

/// Reads the link layer of an incoming packet; returns the facts learned.
#[inline(always)]
fn link(traversal: &mut Traversal, skb: &Skb) -> u32 {
    let dev = skb.dev();
    let (dev_type, hard_header_len) = (offset!(dev_type), offset!(dev_hard_header_len));
    if hard_header_len == dev_type + 2 {
        let both: u32 = read(dev + dev_type).unwrap_or(0);
        traversal.dev_type = both as u16;
        traversal.hard_header_len = (both >> 16) as u16;
    } else {
        traversal.dev_type = read(dev + dev_type).unwrap_or(0);
        traversal.hard_header_len = read(dev + hard_header_len).unwrap_or(0);
    }
    if skb.mac_header() == skb.network_header() {
        return 0;
    }
    let len = snapshot::bounded(u32::from(traversal.hard_header_len), MAC_BYTES as u32);
    let address = skb.head() + u64::from(skb.mac_header());
    // SAFETY: `len` is at most the length of the array.
    if unsafe { copy((&raw mut traversal.mac).cast::<u8>(), len, address) } {
        traversal.mac_len = len as u8;
    }
    fact::MAC
}

/// Owner of a socket, under the conditions of `nf_log_dump_sk_uid_gid` in `net/netfilter/nf_log_syslog.c`: user id in
/// the low half, group id in the high one.
#[inline(always)]
pub fn owner(sock: u64, net: u64) -> Option<u64> {
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
    let (uid, gid) = read_pair(cred, offset!(cred_fsuid), offset!(cred_fsgid))?;
    Some((u64::from(gid) << 32) | u64::from(uid))
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
        let top = frame(top.wrapping_sub(1))?;
        if top.task.get() == kernel::task() {
            top.doubt(doubt::ORPHAN);
        } else {
            // Another task runs only while the one on top is outside its counted part, and if this one had moved
            // counters here, it would have moved the sequence count, too.
            cpu.generation.set(cpu.generation.get().wrapping_sub(1));
        }
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
    let per_cpu = kernel::per_cpu_offset(cpu)?;
    let traced = frame.traced.get() != 0;
    if traced {
        snapshot::compare(frame, depth);
    }
    let sequence = kernel::recseq(per_cpu)?;
    if traced {
        check(cpu, frame, sequence);
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

/// The checks that prove that the counters tell of this packet alone. Size, number and place of the counters need no
/// look: they change only with `private` or the replace counter.
#[inline(always)]
fn check(cpu: &Cpu, frame: &Frame, sequence: u32) {
    let segment = sequence.wrapping_sub(frame.segment_sequence.get());
    let advanced = frame.advanced.get().wrapping_add(segment);
    let expected = if frame.entry_sequence.get() & 1 == 0 { 2 } else { 0 };
    if advanced != expected {
        frame.doubt(doubt::SEQUENCE);
    }
    if read::<u64>(frame.table.get() + offset!(table_private)) != Some(frame.private.get()) {
        frame.doubt(doubt::REPLACED);
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
    clear(&mut traversal.exit);
    // A stolen packet may be gone.
    if verdict & 0xff != NF_STOLEN
        && let Some(skb) = Skb::packet(frame.skb.get())
    {
        traversal.exit.mark = skb.mark();
        traversal.exit.len = skb.len();
        traversal.facts |= fact::EXIT;
        let len = snapshot::bounded(skb.linear(), EXIT_BYTES as u32);
        // SAFETY: `len` is at most the length of the array.
        if unsafe { copy((&raw mut traversal.exit_bytes).cast::<u8>(), len, skb.network()) } {
            traversal.exit.copied = len;
        }
    }
    let matches = traversal.match_count;
    if matches <= FIRST_MATCHES as u32 && traversal.entry.copied <= ENTRY_BYTES as u32 {
        traversal.kind = kind::TRAVERSAL;
        // SAFETY: a map value and a reservation, both of the size of a traversal; the matches were written by
        // `snapshot`, those beyond the last one are left from others and not counted.
        unsafe { send_traversal(record) };
        return Some(());
    }
    traversal.kind = kind::LONG_TRAVERSAL;
    let matches = snapshot::bounded(matches, MAX_MATCHES as u32);
    let tail = MORE_BYTES as u64 + u64::from(matches) * size_of::<Match>() as u64;
    // SAFETY: at most the size of the record.
    unsafe { send(record.cast::<u8>(), size_of::<Traversal>() as u64 + tail) };
    Some(())
}
