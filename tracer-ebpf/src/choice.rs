//! What packets are chosen by beside the filter; and the connections and packets that are followed.
//!
//! A connection is followed from the first packet on that is chosen. It is known by its two tuples, as conntrack itself
//! knows it: a packet that comes to its first hook is looked up by what its headers say, or where conntrack has seen it,
//! by the tuple of its entry. So replies are found before a translation is undone. The tuple of replies is certain when
//! the entry is confirmed: a probe waits for that. An entry that has another tuple by now is of another connection: entries
//! are used again.
//!
//! Between namespaces nothing but the skb goes on. It is taken for the same packet where its address is, soon after, and
//! what no rule changes of it is the same.

use crate::config::{config, field, offset};
use crate::emit::{count, send, wake};
use crate::frame::{cpu, cpu_number, state};
use crate::kernel::{Access, copy, now_ns, read};
use crate::legacy::{Call, drop_none};
use crate::maps::{CONNECTIONS, EVENTS, FILTER, PASSED, TUPLES};
use crate::record::owner;
use crate::select::{Layout, extract, traced_at};
use tracer_common::choice::{ChoiceConfig, LINK, Link, TRACKED, Tracked, Tuple, ask, has};
use tracer_common::counter::Counter;
use tracer_common::filter::word;
use tracer_common::offsets::ABSENT;
use tracer_common::place::{EGRESS, INGRESS};

/// Replaced by the loader.
#[unsafe(no_mangle)]
pub static CHOICE: ChoiceConfig = ChoiceConfig::NOTHING;

/// A field of the configuration.
macro_rules! choice {
    ($($field:tt)+) => {
        field(&CHOICE.$($field)+)
    };
}

/// A field offset, as a number to add to an address.
macro_rules! choice_offset {
    ($field:ident) => {
        u64::from(choice!(offsets.$field))
    };
}

const OUTPUT: u8 = 3;
const FORWARD: u8 = 2;
const POSTROUTING: u8 = 4;
/// Of all hooks of bridges and of ARP.
const BRIDGE_OR_ARP: u8 = 7;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const ICMPV6: u8 = 58;
/// `IPS_CONFIRMED`
const CONFIRMED: u32 = 1 << 3;
/// `IPS_DYING`
const DYING: u32 = 1 << 9;
/// `IPS_TEMPLATE`: not an entry, but what conntrack makes one by.
const TEMPLATE: u32 = 1 << 11;
/// A packet that goes to another namespace is there by then.
const UNDER_WAY_NS: u64 = 1_000_000_000;

/// A connection that is followed, as found by one of its tuples.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Followed {
    /// Address of its `nf_conn`.
    pub entry: u64,
    pub number: u64,
    /// 1 for the direction of replies.
    pub direction: u64,
}

/// Room for two tuples, the one that is looked up and one to compare with it, and for what was found.
#[repr(C)]
pub struct Tuples {
    asked: Tuple,
    other: Tuple,
    followed: Followed,
    /// What the packet that is being asked about belongs to.
    connection: u64,
    before: u64,
    /// What is told of an entry.
    tracked: Tracked,
}

/// A traced packet that may go on in another namespace.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Passed {
    pub packet: u64,
    pub netns: u64,
    pub time_ns: u64,
    /// What no rule changes.
    pub same: [u64; 2],
}

/// Whether connections are followed.
#[inline(always)]
pub fn follows() -> bool {
    choice!(asks) & ask::FOLLOW != 0
}

/// Whether it is told what conntrack knows.
#[inline(always)]
pub fn tells() -> bool {
    choice!(asks) & ask::TELL != 0
}

/// Whether a packet that is seen for the first time, at this hook, is chosen, as far as this hook can tell: user space asks
/// again, but for packets that are followed.
#[inline(always)]
pub fn chooses<A: Access>(call: &Call, hook: u8) -> bool {
    let asks = choice!(asks);
    if asks & (ask::IN | ask::UID | ask::CGROUP) == 0 {
        return true;
    }
    is_chosen::<A>(call, hook)
}

#[inline(never)]
fn is_chosen<A: Access>(call: &Call, hook: u8) -> bool {
    let mut asks = choice!(asks);
    // The hooks of IP know another device than those of devices and bridges, and other senders.
    if hook >= INGRESS && asks & ask::FOLLOW == 0 {
        asks &= !(ask::IN | ask::UID);
    }
    if asks & ask::IN != 0 && !came_in::<A>(call.state) {
        return false;
    }
    if asks & (ask::UID | ask::CGROUP) == 0 {
        return true;
    }
    // What comes in was sent by nobody here. A bridge does both.
    if !matches!(hook, OUTPUT | POSTROUTING | EGRESS | BRIDGE_OR_ARP) {
        return false;
    }
    let sock = A::field::<u64>(call.skb, offset!(skb_sk)).unwrap_or(0);
    if sock == 0 {
        return false;
    }
    if asks & ask::UID != 0 {
        let Some(net) = A::field::<u64>(call.state, offset!(state_net)) else { return false };
        if owner::<A>(sock, net).is_none_or(|owner| owner as u32 != choice!(uid)) {
            return false;
        }
    }
    asks & ask::CGROUP == 0 || in_cgroup(sock).unwrap_or(false)
}

/// Whether a packet came in by the device, or may still do so.
#[inline(always)]
fn came_in<A: Access>(hook_state: u64) -> bool {
    let Some(device) = A::field::<u64>(hook_state, offset!(state_in)) else { return false };
    if device == 0 {
        return choice!(asks) & ask::LOCAL != 0;
    }
    let Some([first, second]) = A::device_name(device) else { return false };
    (first ^ choice!(device[0])) & choice!(device_mask[0]) == 0
        && (second ^ choice!(device[1])) & choice!(device_mask[1]) == 0
}

/// Whether a socket is in the cgroup, or in one below it.
#[inline(always)]
fn in_cgroup(sock: u64) -> Option<bool> {
    let cgroup: u64 = read(sock + choice_offset!(sock_cgroup))?;
    if cgroup == 0 || cgroup & 1 != 0 {
        return None;
    }
    let level = choice!(cgroup_level);
    let depth: u32 = read(cgroup + choice_offset!(cgroup_level))?;
    if depth < level {
        return Some(false);
    }
    let at = u64::from(level) * 8;
    let id = if choice!(offsets.cgroup_ancestors) != ABSENT {
        let ancestor: u64 = read(cgroup + choice_offset!(cgroup_ancestors) + at)?;
        let node: u64 = read(ancestor + choice_offset!(cgroup_node))?;
        read(node + choice_offset!(node_id))?
    } else {
        read::<u64>(cgroup + choice_offset!(cgroup_ancestor_ids) + at)?
    };
    Some(id == choice!(cgroup))
}

#[inline(always)]
fn netns<A: Access>(call: &Call) -> Option<u32> {
    match config!(netns) {
        0 => {
            let net: u64 = A::field(call.state, offset!(state_net))?;
            A::field(net, offset!(net_inum))
        }
        only => Some(only),
    }
}

/// Two bytes in network byte order.
#[inline(always)]
fn port(address: u64) -> Option<u32> {
    Some(u32::from(u16::from_be(read(address)?)))
}

/// An address in network byte order.
///
/// # Safety
/// `to` must be valid.
#[inline(always)]
unsafe fn address(to: *mut [u32; 4], from: u64) -> Option<()> {
    // SAFETY: the caller vouches for it.
    unsafe {
        if !copy(to.cast::<u8>(), 16, from) {
            return None;
        }
        let to = to.cast::<u32>();
        for word in 0..4 {
            to.add(word).write_volatile(u32::from_be(to.add(word).read_volatile()));
        }
    }
    Some(())
}

/// Reads a tuple of an entry: 0 for the original direction, 1 for replies.
///
/// # Safety
/// `to` must be valid.
#[inline(always)]
unsafe fn read_tuple(to: *mut Tuple, entry: u64, direction: u64, netns: u32) -> Option<()> {
    let tuple = entry
        + choice_offset!(ct_tuples)
        + choice_offset!(hash_tuple)
        + (direction & 1) * u64::from(choice!(tuple_stride));
    let protocol: u8 = read(tuple + choice_offset!(tuple_protocol))?;
    let family: u16 = read(tuple + choice_offset!(tuple_family))?;
    let src_port = port(tuple + choice_offset!(tuple_src_port))?;
    let is_echo = protocol == ICMP || protocol == ICMPV6;
    // Type and code stand in the place of the port.
    let dst_port = if is_echo { src_port } else { port(tuple + choice_offset!(tuple_dst_port))? };
    let version = if family == 10 { 6 } else { 4 };
    // SAFETY: the caller vouches for it.
    unsafe {
        (*to).netns = netns;
        (*to).protocol = (version << 8) | u32::from(protocol);
        (*to).ports = (src_port << 16) | dst_port;
        (*to).reserved = 0;
        address(&raw mut (*to).src, tuple + choice_offset!(tuple_src))?;
        address(&raw mut (*to).dst, tuple + choice_offset!(tuple_dst))?;
    }
    Some(())
}

/// The number of a connection by its entry; 0 where it is not followed and shall not be.
///
/// A global function, as those of `snapshot`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn connection_of(entry: u64, netns: u32, learn: u32) -> u64 {
    by_entry(entry, netns, learn != 0).unwrap_or(0)
}

#[inline(always)]
fn by_entry(entry: u64, netns: u32, learn: bool) -> Option<u64> {
    let status: u32 = read(entry + offset!(ct_status))?;
    if status & TEMPLATE != 0 {
        return None;
    }
    let tuples = TUPLES.get_ptr_mut(0)?;
    // SAFETY: a per-CPU map value of this program's own.
    let asked = unsafe { &raw mut (*tuples).asked };
    // SAFETY: as before.
    unsafe { read_tuple(asked, entry, 0, netns)? };
    let number = match known(asked, entry) {
        0 if !learn => return None,
        0 => {
            let number = new_number()?;
            insert(tuples, entry, number, 0);
            number
        }
        number => number,
    };
    if learn && status & CONFIRMED != 0 {
        // SAFETY: as before.
        unsafe { read_tuple(asked, entry, 1, netns)? };
        if known(asked, entry) == 0 {
            insert(tuples, entry, number, 1);
        }
    }
    Some(number)
}

/// The number of the connection with a tuple, if it is that of this entry; 0 for none.
#[inline(always)]
fn known(tuple: *const Tuple, entry: u64) -> u64 {
    // SAFETY: a per-CPU map value of this program's own.
    let Some(known) = CONNECTIONS.get_ptr(unsafe { &*tuple }) else { return 0 };
    // SAFETY: a map value, of which another CPU may be writing.
    unsafe {
        let is_it = (&raw const (*known).entry).read_volatile() == entry;
        if is_it { (&raw const (*known).number).read_volatile() } else { 0 }
    }
}

/// Follows the connection of an entry, whose tuple in this direction is the one that was asked for.
#[inline(always)]
fn insert(tuples: *mut Tuples, entry: u64, number: u64, direction: u64) {
    // SAFETY: a per-CPU map value of this program's own.
    let inserted = unsafe {
        (*tuples).followed = Followed { entry, number, direction };
        CONNECTIONS.insert(&(*tuples).asked, &(*tuples).followed, 0)
    };
    // The map refuses when its locks are contended; then the connection is not followed, and that is told.
    if inserted.is_err() {
        count(Counter::Lost, 1);
    }
}

#[inline(always)]
fn new_number() -> Option<u64> {
    let state = state()?;
    let number = state.runs.get() + 1;
    state.runs.set(number);
    Some((number << 13) | (cpu_number() & 0x1fff))
}

/// The number of a followed connection by the headers in this CPU's filter input, 0 for none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn connection_by_headers(netns: u32) -> u64 {
    by_headers(netns).unwrap_or(0)
}

#[inline(always)]
fn by_headers(netns: u32) -> Option<u64> {
    let tuples = TUPLES.get_ptr_mut(0)?;
    let input = FILTER.get_ptr(0)?;
    // SAFETY: per-CPU map values of this program's own.
    unsafe {
        let words = &(*input).key.words;
        let header = &(*input).header.0;
        let asked = &raw mut (*tuples).asked;
        let protocol = words[word::PROTOCOL as usize] as u8;
        (*asked).netns = netns;
        (*asked).protocol = (words[word::VERSION as usize] << 8) | u32::from(protocol);
        (*asked).ports = if protocol == ICMP || protocol == ICMPV6 {
            let id = echo(header, words[word::VERSION as usize])?;
            (id << 16) | id
        } else {
            (words[word::SPORT as usize] << 16) | words[word::DPORT as usize]
        };
        (*asked).reserved = 0;
        let (src, dst) = (word::SRC as usize, word::DST as usize);
        (*asked).src = [words[src], words[src + 1], words[src + 2], words[src + 3]];
        (*asked).dst = [words[dst], words[dst + 1], words[dst + 2], words[dst + 3]];
        let known = CONNECTIONS.get_ptr(&*asked)?;
        let entry = (&raw const (*known).entry).read_volatile();
        let number = (&raw const (*known).number).read_volatile();
        let direction = (&raw const (*known).direction).read_volatile();
        // The entry may be gone, or another connection's.
        let status: u32 = read(entry + offset!(ct_status))?;
        let other = &raw mut (*tuples).other;
        read_tuple(other, entry, direction, netns)?;
        let is_same = (*asked).protocol == (*other).protocol
            && (*asked).ports == (*other).ports
            && (*asked).src[0] == (*other).src[0]
            && (*asked).src[1] == (*other).src[1]
            && (*asked).src[2] == (*other).src[2]
            && (*asked).src[3] == (*other).src[3]
            && (*asked).dst[0] == (*other).dst[0]
            && (*asked).dst[1] == (*other).dst[1]
            && (*asked).dst[2] == (*other).dst[2]
            && (*asked).dst[3] == (*other).dst[3];
        if !is_same || status & DYING != 0 {
            let _ = CONNECTIONS.remove(&*asked);
            return None;
        }
        // Before that, conntrack does not find it either.
        (status & CONFIRMED != 0).then_some(number)
    }
}

/// The identifier of an echo or its reply.
#[inline(always)]
fn echo(header: &[u8; 64], version: u32) -> Option<u32> {
    let at = if version == 6 { 40 } else { usize::from(header[0] & 0xf) << 2 };
    let at = at & 60;
    let kind = header[at];
    let is_echo = if version == 6 { kind == 128 || kind == 129 } else { kind == 0 || kind == 8 };
    let at = (at + 4) & 60;
    if is_echo { Some((u32::from(header[at]) << 8) | u32::from(header[at | 1])) } else { None }
}

/// An entry of conntrack is about to be confirmed: its tuples are what they will be. `skb` is that of its first packet,
/// of whose address `number` makes what packets are known by.
#[inline(always)]
pub fn confirmed(skb: u64, number: impl FnOnce(u64) -> u64) {
    if let Some(_alone) = cpu().claim() {
        drop_none(confirm(skb, number));
    }
}

#[inline(always)]
fn confirm(skb: u64, number: impl FnOnce(u64) -> u64) -> Option<()> {
    let entry = read::<u64>(skb + offset!(skb_nfct))? & !7;
    if entry == 0 {
        return None;
    }
    let net: u64 = read(entry + choice_offset!(ct_net))?;
    let netns: u32 = read(net + offset!(net_inum))?;
    let wanted = config!(netns);
    if wanted != 0 && netns != wanted {
        return None;
    }
    if tells()
        && let Some(packet) = traced_at(number(skb))
    {
        tell_tracked(packet, entry, 0);
    }
    if !follows() {
        return None;
    }
    let number = connection_of(entry, netns, 0);
    if number == 0 {
        return None;
    }
    let tuples = TUPLES.get_ptr_mut(0)?;
    // SAFETY: a per-CPU map value of this program's own.
    unsafe {
        let asked = &raw mut (*tuples).asked;
        read_tuple(asked, entry, 1, netns)?;
        insert(tuples, entry, number, 1);
    }
    Some(())
}

/// Remembers the packet whose headers are in this CPU's filter input.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn remember(skb: u64, packet: u64, netns: u32) -> u32 {
    let passed = Passed { packet, netns: u64::from(netns), time_ns: now_ns(), same: same() };
    if PASSED.insert(skb, passed, 0).is_err() {
        count(Counter::Lost, 1);
    }
    0
}

/// What no rule changes of the packet in this CPU's filter input: length, identification, hops, protocol, and the number
/// of a segment.
#[inline(always)]
fn same() -> [u64; 2] {
    let Some(input) = FILTER.get_ptr(0) else { return [0; 2] };
    // SAFETY: a per-CPU map value of this program's own.
    let (header, words) = unsafe { (&(*input).header.0, &(*input).key.words) };
    let at = |index: usize| u64::from(header[index & 63]);
    let version = words[word::VERSION as usize];
    let (first, transport) = if version == 6 {
        let label = (at(1) & 0xf) << 16 | at(2) << 8 | at(3);
        (label << 32 | at(4) << 24 | at(5) << 16 | at(6) << 8 | at(7), 40)
    } else {
        let length = at(2) << 8 | at(3);
        (length << 32 | at(4) << 24 | at(5) << 16 | at(8) << 8 | at(9), (header[0] as usize & 0xf) << 2)
    };
    let sequence = if words[word::PROTOCOL as usize] == u32::from(TCP) {
        let from = transport & 60;
        at(from + 4) << 24 | at(from + 5) << 16 | at(from + 6) << 8 | at(from + 7)
    } else {
        0
    };
    [first | 1 << 63, sequence]
}

/// The packet with this skb that another namespace let go, if it is the one in this CPU's filter input.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn came_from(skb: u64, netns: u32) -> u64 {
    let Some(passed) = PASSED.get_ptr(skb) else { return 0 };
    // SAFETY: a map value; who writes there has this skb.
    let Passed { packet, netns: there, time_ns, same: left } = unsafe { core::ptr::read_volatile(passed) };
    let [first, second] = same();
    let is_it = there != u64::from(netns)
        && first == left[0]
        && second == left[1]
        && now_ns().wrapping_sub(time_ns) < UNDER_WAY_NS;
    if is_it { packet } else { 0 }
}

/// Tells what a packet belongs to, if it is anything.
#[inline(always)]
fn tell(packet: u64, connection: u64, before: u64) {
    if connection | before == 0 {
        return;
    }
    match EVENTS.reserve::<Link>(0) {
        Some(mut entry) => {
            entry.write(Link { kind: LINK, reserved: 0, packet, connection, before });
            entry.submit(wake());
        }
        None => count(Counter::Lost, 1),
    }
}

/// Tells what conntrack knows of a packet's connection, if the entry has any of the bits of `status`, or 0 is asked for.
///
/// A global function, as those of `snapshot`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tell_tracked(packet: u64, entry: u64, status: u32) -> u32 {
    u32::from(tracked(packet, entry, status).is_none())
}

#[inline(always)]
fn tracked(packet: u64, entry: u64, status: u32) -> Option<()> {
    if status != 0 && read::<u32>(entry + offset!(ct_status))? & status == 0 {
        return None;
    }
    let tuples = TUPLES.get_ptr_mut(0)?;
    // SAFETY: a per-CPU map value of this program's own.
    unsafe {
        let tracked = &raw mut (*tuples).tracked;
        (*tracked).kind = TRACKED;
        (*tracked).packet = packet;
        (*tracked).has = 0;
        if choice!(offsets.ct_mark) != ABSENT {
            (*tracked).mark = read(entry + choice_offset!(ct_mark))?;
            (*tracked).has |= has::MARK;
        }
        if choice!(offsets.ct_zone) != ABSENT {
            (*tracked).zone = u32::from(read::<u16>(entry + choice_offset!(ct_zone))?);
            (*tracked).has |= has::ZONE;
        }
        read_tuple(&raw mut (*tracked).original, entry, 0, 0)?;
        read_tuple(&raw mut (*tracked).reply, entry, 1, 0)?;
        send(tracked.cast_const().cast::<u8>(), size_of::<Tracked>() as u64);
    }
    Some(())
}

/// The same of a traced packet at one of its hooks, once the entry's tuples are what they will be.
#[inline(never)]
pub fn tell_confirmed<A: Access>(call: &Call, packet: u64) -> u32 {
    let entry = entry::<A>(call);
    if entry == 0 { 0 } else { tell_tracked(packet, entry, CONFIRMED) }
}

/// Whether a packet that is seen for the first time is traced, where connections are followed: one that is `chosen`, one of
/// a followed connection, or one that was traced in another namespace. What it belongs to is kept for [`begins`].
#[inline(never)]
pub fn follow<A: Access>(call: &Call, layout: Layout, chosen: bool) -> bool {
    let netns = netns::<A>(call).unwrap_or(0);
    let entry = entry::<A>(call);
    let across = choice!(asks) & ask::ACROSS != 0;
    let has_headers = (entry == 0 || across) && headers::<A>(call, layout) != 0;
    let before = if across && has_headers { came_from(call.skb_number, netns) } else { 0 };
    let connection = if entry != 0 {
        connection_of(entry, netns, u32::from(chosen || before != 0))
    } else if has_headers {
        connection_by_headers(netns)
    } else {
        0
    };
    if let Some(tuples) = TUPLES.get_ptr_mut(0) {
        // SAFETY: a per-CPU map value of this program's own.
        unsafe { ((*tuples).connection, (*tuples).before) = (connection, before) };
    }
    chosen || connection | before != 0
}

/// A packet is traced that has been asked about by [`follow`].
#[inline(never)]
pub fn begins<A: Access>(call: &Call, hook: u8, layout: Layout, packet: u64) {
    if let Some(tuples) = TUPLES.get_ptr(0) {
        // SAFETY: a per-CPU map value of this program's own.
        let (connection, before) = unsafe { ((*tuples).connection, (*tuples).before) };
        tell(packet, connection, before);
    }
    leaves::<A>(call, hook, layout, packet);
}

/// A traced packet goes on.
#[inline(never)]
pub fn goes_on<A: Access>(call: &Call, hook: u8, layout: Layout, packet: u64) {
    let entry = entry::<A>(call);
    if entry != 0 {
        tell(packet, connection_of(entry, netns::<A>(call).unwrap_or(0), 1), 0);
    }
    leaves::<A>(call, hook, layout, packet);
}

/// Remembers a traced packet that may leave the namespace by this hook.
#[inline(always)]
fn leaves<A: Access>(call: &Call, hook: u8, layout: Layout, packet: u64) {
    let may_leave =
        choice!(asks) & ask::ACROSS != 0 && matches!(hook, FORWARD | OUTPUT | POSTROUTING | EGRESS);
    if may_leave && headers::<A>(call, layout) != 0 {
        remember(call.skb_number, packet, netns::<A>(call).unwrap_or(0));
    }
}

/// The entry of conntrack that a packet has; 0 for none.
#[inline(always)]
fn entry<A: Access>(call: &Call) -> u64 {
    A::field::<u64>(call.skb, offset!(skb_nfct)).unwrap_or(0) & !7
}

/// Puts the packet's headers into this CPU's filter input; 0 where that cannot be done.
#[inline(never)]
fn headers<A: Access>(call: &Call, layout: Layout) -> u32 {
    u32::from(layout != Layout::ARP && extract::<A>(call.skb, layout).is_some())
}
