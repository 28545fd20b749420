//! Records of traversals: what is known of a packet at its entry, and at its exit.

use crate::config::{config, offset};
use crate::counts;
use crate::emit::{send, send_traversal};
use crate::frame::{Cpu, Frame, State, distance};
use crate::kernel::{self, Access, HookState, Packet, Skb, copy, read, read_pair};
use crate::legacy::{Call, End};
use crate::maps::Record;
use crate::select::{Layout, Selected};
use crate::snapshot;
use tracer_common::count::by;
use tracer_common::legacy::{
    ENTRY_BYTES, EXIT_BYTES, FIRST_MATCHES, LONG_EXIT_BYTES, MAC_BYTES, MAX_MATCHES, MORE_BYTES, Match,
    SkbState, Traversal, fact, kind,
};

const NF_STOLEN: u32 = 2;
const TCP_TIME_WAIT: u8 = 6;
const TCP_NEW_SYN_RECV: u8 = 12;
/// What is kept of the owner of a socket that has none.
pub const NO_OWNER: u64 = u64::MAX;

/// Fills in what is known of a traversal at its end, however it ends.
#[inline(always)]
pub fn identify(cpu: &Cpu, traversal: &mut Traversal, frame: &Frame) {
    traversal.cpu = cpu.number();
    traversal.private = frame.private.get();
    traversal.replace_count = frame.replace_count.get();
    traversal.doubts = frame.doubts.get();
}

/// What counting needs of a record.
#[inline(always)]
pub fn begin_counted<A: Access>(traversal: &mut Traversal, call: &Call, (hook, selected): (u8, Selected)) {
    if selected.first && counts::counts_by(by::VERDICT) {
        counts::begin::<A>(call.skb, Layout::IP);
    }
    put(&mut traversal.match_count, 0);
    traversal.hook = hook;
    traversal.family = A::field::<u8>(call.state, offset!(state_pf)).unwrap_or(0);
    traversal.netns = config!(netns);
    if traversal.netns == 0
        && let Some(net) = A::field::<u64>(call.state, offset!(state_net))
    {
        traversal.netns = A::field(net, offset!(net_inum)).unwrap_or(0);
    }
}

/// Fills the entry half of a record.
#[inline(always)]
pub fn begin<A: Access>(
    state: &State,
    traversal: &mut Traversal,
    depth: u32,
    call: &Call,
    (hook, selected): (u8, Selected),
    now_ns: u64,
    (missed, checkpoint_ns): (u32, u64),
) {
    let mut facts = if selected.first { fact::FIRST } else { 0 };
    traversal.packet = selected.packet;
    traversal.entry_ns = now_ns;
    traversal.skb = call.skb_number;
    traversal.table = call.table;
    traversal.missed = missed;
    traversal.checkpoint_ns = checkpoint_ns;
    traversal.hook = hook;
    traversal.family = A::field::<u8>(call.state, offset!(state_pf)).unwrap_or(0);
    traversal.netns = config!(netns);
    let skb = A::skb(call.skb);
    if skb.is_none() {
        clear(&mut traversal.entry);
        put(&mut traversal.ctinfo, 0);
    }
    if let Some(hook_state) = A::hook_state(call.state) {
        if traversal.netns == 0 {
            traversal.netns = A::field(hook_state.net, offset!(net_inum)).unwrap_or(0);
        }
        if device::<A>(&mut traversal.indev, hook_state.indev) {
            facts |= fact::IN;
        }
        if device::<A>(&mut traversal.outdev, hook_state.outdev) {
            facts |= fact::OUT;
        }
        if let Some(skb) = skb {
            facts |= fill::<A>(state, traversal, depth, &hook_state, &skb);
        }
    } else {
        clear(&mut traversal.entry);
        put(&mut traversal.ctinfo, 0);
    }
    traversal.facts = facts;
}

/// Fills in what the skb tells; returns the facts learned.
#[inline(always)]
fn fill<A: Access>(
    state: &State,
    traversal: &mut Traversal,
    depth: u32,
    hook_state: &HookState,
    skb: &Skb,
) -> u32 {
    let mut facts = 0;
    traversal.ctinfo = (skb.nfct & 7) as u8;
    if let Some(status) = kernel::ct_status::<A>(skb.nfct) {
        traversal.ct_status = status;
        facts |= fact::CONNTRACK;
    }
    traversal.entry.mark = skb.packet.mark;
    traversal.entry.len = skb.packet.len;
    traversal.entry.copied = copy_packet(traversal, &skb.packet);
    // The kernel's logger prints the link layer only where there is an input device.
    if hook_state.indev != 0 {
        facts |= link::<A>(state, traversal, depth, skb);
    }
    if skb.sock != 0 {
        let owner = known_owner::<A>(state, traversal.packet, skb.sock, hook_state.net);
        if owner != NO_OWNER {
            traversal.uid = owner as u32;
            traversal.gid = (owner >> 32) as u32;
            facts |= fact::OWNER;
        }
    }
    facts
}

/// Copies as much of the packet as its headers can need; returns how much.
#[inline(always)]
fn copy_packet(traversal: &mut Traversal, packet: &Packet) -> u32 {
    let linear = packet.linear();
    let bytes = (&raw mut traversal.entry_bytes).cast::<u8>();
    let len = snapshot::bounded(linear, ENTRY_BYTES as u32);
    // SAFETY: `len` is at most the length of the array.
    if !unsafe { copy(bytes, len, packet.network()) } {
        return 0;
    }
    if linear <= ENTRY_BYTES as u32 || headers_fit(&traversal.entry_bytes) {
        return len;
    }
    let more = snapshot::bounded(linear - ENTRY_BYTES as u32, MORE_BYTES as u32);
    // For verifiers that forget the bound of a number that was on the stack meanwhile.
    let masked = snapshot::mask::<255>(u64::from(more)) as u32;
    // SAFETY: what follows `entry_bytes` in the record continues it, for `MORE_BYTES`.
    if unsafe { copy(bytes.add(ENTRY_BYTES), masked, packet.network() + ENTRY_BYTES as u64) } {
        ENTRY_BYTES as u32 + more
    } else {
        len
    }
}

/// Whether the headers that a log line shows certainly end within `bytes`: those of TCP and UDP behind a plain IP
/// header.
#[inline(always)]
fn headers_fit(bytes: &[u8; ENTRY_BYTES]) -> bool {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    let (protocol, transport) = match bytes[0] {
        0x45 => (bytes[9], 20),
        first if first >> 4 == 6 => (bytes[6], 40),
        _ => return false,
    };
    match (protocol, transport) {
        (UDP, _) => true,
        (TCP, 20) => bytes[32] >> 4 <= (ENTRY_BYTES as u8 - 20) / 4,
        (TCP, _) => bytes[52] >> 4 <= (ENTRY_BYTES as u8 - 40) / 4,
        _ => false,
    }
}

/// Writes one field: the compiler would join several zeros to a call of `memset`, which is slow here.
#[inline(always)]
pub fn put<T>(field: &mut T, value: T) {
    // SAFETY: a valid reference.
    unsafe { core::ptr::write_volatile(field, value) };
}

/// Empties a state.
#[inline(always)]
pub fn clear(state: &mut SkbState) {
    for field in [&mut state.mark, &mut state.len, &mut state.copied, &mut state.took_ns] {
        put(field, 0);
    }
}

/// Reads what the kernel's logger prints about a device; what was there is left where there is none.
#[inline(always)]
pub fn device<A: Access>(to: &mut [u8; 16], address: u64) -> bool {
    if address == 0 {
        return false;
    }
    let Some([first, second]) = A::device_name(address) else { return false };
    let to = to.as_mut_ptr().cast::<u64>();
    // SAFETY: 16 bytes, aligned to eight in the record. Volatile, or else it would be a call of `memcpy`.
    unsafe {
        to.write_volatile(first);
        to.add(1).write_volatile(second);
    }
    true
}

/// Reads the link layer of an incoming packet; returns the facts learned. Its header stays as it is as long as the packet
/// is at one hook, and need not be read again where this record still has it.
#[inline(always)]
fn link<A: Access>(state: &State, traversal: &mut Traversal, depth: u32, skb: &Skb) -> u32 {
    let (dev_type, hard_header_len) = (offset!(dev_type), offset!(dev_hard_header_len));
    if !A::TYPED && hard_header_len == dev_type + 2 {
        let both: u32 = read(skb.dev + dev_type).unwrap_or(0);
        traversal.dev_type = both as u16;
        traversal.hard_header_len = (both >> 16) as u16;
    } else {
        traversal.dev_type = A::field(skb.dev, dev_type).unwrap_or(0);
        traversal.hard_header_len = A::field(skb.dev, hard_header_len).unwrap_or(0);
    }
    if skb.mac_header == skb.packet.network_header {
        return 0;
    }
    let address = skb.packet.head + u64::from(skb.mac_header);
    // The highest bits of kernel addresses are all the same.
    let at = (address << 6) | (u64::from(traversal.hook) << 3) | u64::from(depth);
    if state.mac_at.get() == at && state.mac_of.get() == traversal.packet {
        return fact::MAC;
    }
    let len = snapshot::bounded(u32::from(traversal.hard_header_len), MAC_BYTES as u32);
    // SAFETY: `len` is at most the length of the array.
    if unsafe { copy((&raw mut traversal.mac).cast::<u8>(), len, address) } {
        traversal.mac_len = len as u8;
        state.mac_at.set(at);
        state.mac_of.set(traversal.packet);
    } else {
        put(&mut traversal.mac_len, 0);
        state.mac_at.set(0);
    }
    fact::MAC
}

/// Owner of a packet's socket, asked for once for all that the packet meets; [`NO_OWNER`] where it has none.
#[inline(always)]
pub fn known_owner<A: Access>(state: &State, packet: u64, sock: u64, net: u64) -> u64 {
    // Only the packet holds on to the socket: its address may be another one's in another packet.
    let number = if A::TYPED { distance(sock) } else { sock };
    if state.sock.get() != number || state.sock_packet.get() != packet {
        state.owner.set(owner::<A>(sock, net).unwrap_or(NO_OWNER));
        state.sock.set(number);
        state.sock_packet.set(packet);
    }
    state.owner.get()
}

/// Owner of a socket, under the conditions of `nf_log_dump_sk_uid_gid` in `net/netfilter/nf_log_syslog.c`: user id in
/// the low half, group id in the high one.
#[inline(always)]
pub fn owner<A: Access>(sock: u64, net: u64) -> Option<u64> {
    let state: u8 = A::field(sock, offset!(sock_state))?;
    if state == TCP_TIME_WAIT || state == TCP_NEW_SYN_RECV || A::field::<u64>(sock, offset!(sock_net))? != net
    {
        return None;
    }
    let socket: u64 = A::field(sock, offset!(sock_socket))?;
    if socket == 0 {
        return None;
    }
    let file: u64 = A::field(socket, offset!(socket_file))?;
    if file == 0 {
        return None;
    }
    let cred: u64 = A::field(file, offset!(file_cred))?;
    let (uid, gid): (u32, u32) = if A::TYPED {
        (A::field(cred, offset!(cred_fsuid))?, A::field(cred, offset!(cred_fsgid))?)
    } else {
        read_pair(cred, offset!(cred_fsuid), offset!(cred_fsgid))?
    };
    Some((u64::from(gid) << 32) | u64::from(uid))
}

/// Fills the exit half of the record and sends it. `changed` says whether a target may have changed the packet.
#[inline(always)]
pub fn finish<A: Access>(
    cpu: &Cpu,
    state: &State,
    frame: &Frame,
    record: *mut Record,
    end: &End,
    changed: bool,
) {
    // SAFETY: a per-CPU map value of this program's own; nothing else refers to it now.
    let traversal = unsafe { &mut *(&raw mut (*record).traversal) };
    identify(cpu, traversal, frame);
    traversal.verdict = end.verdict;
    let long = is_long(traversal);
    let skb = if A::TYPED { end.skb } else { frame.skb.get() };
    // A stolen packet may be gone.
    if end.verdict & 0xff != NF_STOLEN
        && let Some(packet) = A::packet(skb)
    {
        traversal.exit.mark = packet.mark;
        traversal.exit.len = packet.len;
        traversal.facts |= fact::EXIT;
        let same = !changed
            && frame.doubts.get() == 0
            && (packet.mark, packet.len) == (traversal.entry.mark, traversal.entry.len);
        // SAFETY: a map value; the lengths are at most those of the arrays.
        traversal.exit.copied = unsafe {
            if same {
                traversal.facts |= fact::SAME_BYTES;
                0
            } else if long {
                let bytes = (&raw mut (*record).tail.exit_bytes).cast::<u8>();
                let len = snapshot::bounded(packet.linear(), LONG_EXIT_BYTES as u32);
                // The first of them are also where those of a short record are.
                let first = snapshot::bounded(packet.linear(), EXIT_BYTES as u32);
                copy((&raw mut traversal.exit_bytes).cast::<u8>(), first, packet.network());
                if copy(bytes, len, packet.network()) { len } else { 0 }
            } else {
                let bytes = (&raw mut traversal.exit_bytes).cast::<u8>();
                let len = snapshot::bounded(packet.linear(), EXIT_BYTES as u32);
                if copy(bytes, len, packet.network()) { len } else { 0 }
            }
        };
    } else {
        clear(&mut traversal.exit);
    }
    if config!(timed) != 0 {
        traversal.exit.took_ns = state.took_ns.get() as u32;
    }
    send_record(state, record, long);
}

/// Whether a traversal needs a [`LongTail`](tracer_common::legacy::LongTail).
#[inline(always)]
fn is_long(traversal: &Traversal) -> bool {
    traversal.match_count > FIRST_MATCHES as u32 || traversal.entry.copied > ENTRY_BYTES as u32
}

/// Sends a traversal of which nothing is known at its exit.
#[inline(always)]
pub fn send_without_exit(state: &State, record: *mut Record) {
    // SAFETY: a per-CPU map value of this program's own; nothing else refers to it now.
    let traversal = unsafe { &mut *(&raw mut (*record).traversal) };
    clear(&mut traversal.exit);
    send_record(state, record, is_long(traversal));
}

#[inline(always)]
fn send_record(state: &State, record: *mut Record, long: bool) {
    // SAFETY: a per-CPU map value of this program's own; nothing else refers to it now.
    let traversal = unsafe { &mut *(&raw mut (*record).traversal) };
    if !long {
        traversal.kind = kind::TRAVERSAL;
        // SAFETY: a map value and a reservation, both of the size of a traversal; the matches were written by
        // `snapshot`, those beyond the last one are left from others and not counted.
        unsafe { send_traversal(record, state) };
        return;
    }
    traversal.kind = kind::LONG_TRAVERSAL;
    let matches = snapshot::bounded(traversal.match_count, MAX_MATCHES as u32);
    let tail = (MORE_BYTES + LONG_EXIT_BYTES) as u64 + u64::from(matches) * size_of::<Match>() as u64;
    // SAFETY: at most the size of the record.
    unsafe { send(record.cast::<u8>(), size_of::<Traversal>() as u64 + tail) };
}
