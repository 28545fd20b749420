//! Base chains of nftables: `nft_do_chain`, and every verdict on the way through one, from `__nft_trace_packet`.
//!
//! The kernel calls `__nft_trace_packet` for every packet once any rule of the kernel says `meta nftrace set`, whether
//! that rule is ever met or not; it looks at the packet's own mark only inside. So nothing has to be marked.
//!
//! A run is known by the address of its `nft_pktinfo`, which lies on the stack of `nft_do_chain`'s caller: while the run
//! is open, nothing else can be there. Probes miss whole runs, because what interrupts a probe ends within it; should
//! one miss a part all the same, the numbers of the events show it.

use crate::config::{config, offset};
use crate::counts;
use crate::emit::{count, wake};
use crate::frame::{State, cpu, cpu_number, state};
use crate::kernel::{self, Access, HookState, Probed, Skb, copy, read};
use crate::last_rule;
use crate::legacy::{Call, drop_none};
use crate::maps::{COMMITS, COMMITTING, EVENTS, OPEN_RUNS, Words};
use crate::preemption::Unpreempted;
use crate::record::{NO_OWNER, device, known_owner};
use crate::select::{
    ADDRESS_FROM, ADDRESS_SHIFT, Layout, Question, Selected, blurred, forget, is_wanted, namespace,
};
use crate::snapshot::bounded;
use tracer_common::count::{self, by};
use tracer_common::counter::Counter;
use tracer_common::nft::{
    COMMIT_SLOTS, Commits, Event, HANDLE_BITS, MAC_BYTES, NftConfig, PACKET_BYTES, Run, TimedEvent, Witness,
    code, commit_slot, fact, kind, what,
};
use tracer_common::offsets::ABSENT;
use tracer_common::place::{ARP, BRIDGE, EGRESS, INGRESS, nat_priority, rank};

/// Replaced by the loader.
#[unsafe(no_mangle)]
pub static NFT: NftConfig = NftConfig::UNRESOLVED;

/// A field of the configuration.
macro_rules! nft {
    ($($field:tt)+) => {
        $crate::config::field(&$crate::nft::NFT.$($field)+)
    };
}

/// A field offset, as a number to add to an address.
macro_rules! nft_offset {
    ($field:ident) => {
        u64::from(nft!(offsets.$field))
    };
}

pub(crate) use nft;

const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// `NFPROTO_NETDEV` and `NFPROTO_BRIDGE`, each with the number of their hooks.
const NETDEV: (u8, u8) = (5, 2);
const BRIDGES: (u8, u8) = (7, 5);
/// `NFPROTO_ARP`, the family of ARP packets, too.
const ARPS: (u8, u8) = (3, 3);
/// `ETH_P_IP`, `ETH_P_IPV6` and `ETH_P_ARP`, in network byte order.
const ETH_IPV4: u16 = 0x0800_u16.to_be();
const ETH_IPV6: u16 = 0x86dd_u16.to_be();
const ETH_ARP: u16 = 0x0806_u16.to_be();
/// `NFT_CHAIN_T_NAT`: a chain that is consulted for connections, not hooked in by itself.
const TYPE_NAT: u32 = 2;
const NF_DROP: i32 = 0;
const NF_STOLEN: i32 = 2;
/// `NF_QUEUE`, the last verdict that ends a run.
const NF_QUEUE: i32 = 3;

/// The second hook of a bridge.
const BRIDGE_INPUT: u8 = BRIDGE + 1;

/// Slots of open runs.
pub const RUN_SLOTS: u32 = 1024;
/// Slots of remembered base chains.
const CHAIN_SLOTS: u32 = 256;

/// A run that is traced and whose end has not been seen.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct OpenRun {
    /// What entry and events share; 0 for none.
    pub key: u64,
    pub run: u64,
    pub index: u32,
    pub commit_slot: u32,
    /// What tells the packet, and in the lowest bit whether it is at a device whose chain's policy drops it.
    pub identity: u64,
    /// Where packets are counted: handles of table and base chain, and the namespace's number.
    pub table: u64,
    pub chain: u64,
    pub netns: u64,
    /// Where it is asked for how long packets take: when it began, later by what the programs have taken since.
    pub began_ns: u64,
}

/// A packet's place: the numbers are those of [`Run`].
#[derive(Clone, Copy)]
struct Place {
    hook: u8,
    /// The family of the packet.
    family: u8,
}

impl Place {
    #[inline(always)]
    fn of<A: Access>(skb: u64, state: u64) -> Option<Self> {
        let (hook, family) = A::hook_and_family(state)?;
        if (family == IPV4 || family == IPV6) && hook <= INGRESS {
            return Some(Self { hook, family });
        }
        let hook = if family == NETDEV.0 && hook < NETDEV.1 {
            INGRESS + hook
        } else if family == BRIDGES.0 && hook < BRIDGES.1 {
            BRIDGE + hook
        } else if family == ARPS.0 && hook < ARPS.1 {
            ARP + hook
        } else {
            return None;
        };
        let family = match A::field(skb, offset!(skb_protocol))? {
            ETH_IPV4 => IPV4,
            ETH_IPV6 => IPV6,
            ETH_ARP => ARPS.0,
            _ => return None,
        };
        Some(Self { hook, family })
    }

    /// Whether it is a place of a device or a bridge.
    #[inline(always)]
    fn is_at_device(self) -> bool {
        self.hook >= INGRESS
    }

    /// As [`Question::blurred`].
    #[inline(always)]
    fn blurred(self, noise: u64) -> Self {
        let number = blurred(u64::from(self.hook) << 8 | u64::from(self.family), noise);
        Self { hook: (number >> 8) as u8, family: number as u8 }
    }

    /// Asks about a run at this place.
    #[inline(always)]
    fn question<A: Access>(self, call: &Call, known: u64) -> Option<Question> {
        let Self { hook, family } = self;
        if !self.is_at_device() {
            return Some(Question::of_chain(call, hook, family, known));
        }
        let device = match hook {
            INGRESS | BRIDGE | BRIDGE_INPUT => {
                A::field(A::field(call.state, offset!(state_in))?, offset!(dev_ifindex))?
            }
            EGRESS => A::field(A::field(call.state, offset!(state_out))?, offset!(dev_ifindex))?,
            _ => 0,
        };
        Some(Question::at_device(call, hook, family, known, device))
    }
}

/// What is remembered of base chains, see [`known_chain`]. Forgotten whenever rules change.
#[unsafe(no_mangle)]
pub static BASE_CHAINS: Words<{ CHAIN_SLOTS as usize }> = Words::new();

/// The slot of a run. Stacks lie far apart, and runs that are open on one stack at different depths.
#[inline(always)]
fn open_run(key: u64) -> Option<*mut OpenRun> {
    OPEN_RUNS.get_ptr_mut(((key >> 4) ^ (key >> 14)) as u32 & (RUN_SLOTS - 1))
}

/// The arguments of a run.
#[derive(Clone, Copy)]
pub struct Start {
    /// Pointer to the `nft_pktinfo`; the verifier may know its type.
    pub pkt: u64,
    /// Address of the base chain.
    pub chain: u64,
    /// What the run is known by: a number that tells the `nft_pktinfo`, or where the function's frame lies when only
    /// the function's return will be seen.
    pub key: u64,
}

/// What [`nft_enter`](crate::nft_enter) and [`nft_leave`](crate::nft_leave) share for a run.
#[inline(always)]
pub fn key(pkt: u64, stack: u64) -> u64 {
    if nft!(witness) == Witness::Return as u32 { stack } else { pkt }
}

/// A packet enters a base chain. `number_of` makes a number of a pointer to an skb.
#[inline(always)]
pub fn enter<A: Access>(start: &Start, number_of: impl FnOnce(u64) -> u64) {
    match cpu().claim() {
        Some(_alone) => drop_none(look::<A>(start, number_of)),
        None => count(Counter::RunsLeftOut, 1),
    }
}

/// Looks at a run that begins, and follows that of a packet that is traced.
#[inline(always)]
fn look<A: Access>(start: &Start, number_of: impl FnOnce(u64) -> u64) -> Option<()> {
    let open = open_run(start.key)?;
    // SAFETY: a map value.
    let open = unsafe { &mut *open };
    if open.key == start.key {
        // The end of that one was not seen.
        open.key = 0;
    }
    let (skb, state) = packet_and_state::<A>(start.pkt)?;
    let place = Place::of::<A>(skb, state)?;
    let known = known_chain::<A>(start.chain, state, place.hook)?;
    let call = Call { skb, skb_number: number_of(skb), state, table: start.chain, key: start.key };
    if !place.is_at_device() && Question::of_chain(&call, place.hook, place.family, known).is_untraced() {
        return Some(());
    }
    follow::<A>(&call);
    Some(())
}

/// The skb and the hook state of a packet.
#[inline(always)]
fn packet_and_state<A: Access>(pkt: u64) -> Option<(u64, u64)> {
    let (skb, state) = (nft_offset!(pkt_skb), nft_offset!(pkt_state));
    if !A::TYPED && state == skb + 8 {
        let [skb, state]: [u64; 2] = read(pkt + skb)?;
        Some((skb, state))
    } else {
        Some((A::field(pkt, skb)?, A::field(pkt, state)?))
    }
}

/// What is remembered of a base chain, in one word: its address, its namespace, whether that is traced, its rank. Asked
/// of the kernel once for each chain. Returned without the address.
#[inline(always)]
fn known_chain<A: Access>(chain: u64, state: u64, hook: u8) -> Option<u64> {
    let word = BASE_CHAINS.at::<{ CHAIN_SLOTS - 1 }>((chain >> 6) ^ (chain >> 14));
    // SAFETY: a word of global data; volatile because other CPUs write there.
    let known = unsafe { word.read_volatile() } ^ (chain << ADDRESS_SHIFT);
    if known >> ADDRESS_FROM == 0 {
        return Some(known);
    }
    let known = namespace::<A>(state)? | u64::from(rank(priority::<A>(chain, hook)?));
    // SAFETY: as for the reading.
    unsafe { word.write_volatile(known ^ (chain << ADDRESS_SHIFT)) };
    Some(known)
}

/// The priority of a base chain, as [`Run::priority`].
#[inline(always)]
fn priority<A: Access>(chain: u64, hook: u8) -> Option<i32> {
    let base = chain - nft_offset!(base_chain);
    let chain_type: u64 = A::number(base + nft_offset!(base_type))?;
    if A::number::<u32>(chain_type + nft_offset!(type_type))? == TYPE_NAT {
        Some(nat_priority(hook))
    } else {
        A::number(base + nft_offset!(base_priority))
    }
}

/// The way of a packet that is traced or has to be judged.
#[inline(never)]
fn follow<A: Access>(call: &Call) {
    let _unpreempted = Unpreempted::<A>::new();
    let _ = begin::<A>(call);
}

/// Opens the run of a traced packet.
#[inline(always)]
fn begin<A: Access>(call: &Call) -> Option<()> {
    let place = Place::of::<A>(call.skb, call.state)?;
    let known = known_chain::<A>(call.table, call.state, place.hook)?;
    let question = place.question::<A>(call, known)?.blurred();
    let place = place.blurred(known);
    let selected = question.decide::<A>(call)?;
    let open = open_run(call.key)?;
    let identity = question.identity() | if place.is_at_device() { drops::<A>(call.table) } else { 0 };
    // SAFETY: a map value.
    unsafe { ((*open).key, (*open).identity) = (0, identity) };
    let hook_state = A::hook_state(call.state)?;
    if counts::counts() {
        return begin_counted::<A>(call, question.layout(), &selected, &hook_state);
    }
    let (run, slot) = send_run::<A>(call, place, selected, &hook_state, 0)?;
    // SAFETY: a map value.
    let open = unsafe { &mut *open_run(call.key)? };
    (open.run, open.index, open.commit_slot) = (run, 0, slot);
    open.key = call.key;
    if config!(timed) != 0 {
        open.began_ns = kernel::now_ns();
    }
    Some(())
}

/// Sends what is known of a run when it begins, with these facts more. Returns its number and the slot of its commits.
#[inline(always)]
fn send_run<A: Access>(
    call: &Call,
    place: Place,
    selected: Selected,
    hook_state: &HookState,
    facts: u32,
) -> Option<(u64, u32)> {
    let state = state()?;
    let number = state.runs.get() + 1;
    state.runs.set(number);
    let run = (number << 13) | (cpu_number() & 0x1fff);
    let netns = match config!(netns) {
        0 => A::field(hook_state.net, offset!(net_inum))?,
        only => only,
    };
    let slot = commit_slot(netns);
    let Some(mut entry) = EVENTS.reserve::<Run>(0) else {
        count(Counter::Lost, 1);
        return None;
    };
    // SAFETY: a reservation of this size; `fill` writes all of it.
    let record = unsafe { &mut *entry.as_mut_ptr() };
    record.kind = kind::RUN;
    record.run = run;
    record.commit_slot = slot;
    record.netns = netns;
    record.hook = place.hook;
    record.family = place.family;
    fill::<A>(state, record, call, selected, hook_state);
    record.facts |= facts;
    entry.submit(wake());
    Some((run, slot))
}

/// Opens a run that is counted.
#[inline(always)]
fn begin_counted<A: Access>(
    call: &Call,
    layout: Layout,
    selected: &Selected,
    hook_state: &HookState,
) -> Option<()> {
    if selected.first && !counts::counts_by(by::RULE) {
        counts::begin::<A>(call.skb, layout);
    }
    // SAFETY: a map value.
    let open = unsafe { &mut *open_run(call.key)? };
    (open.run, open.index, open.commit_slot) = (0, 0, 0);
    if counts::counts_by(by::RULE) {
        let table: u64 = A::number(call.table + nft_offset!(chain_table))?;
        open.table = A::number(table + nft_offset!(table_handle))?;
        open.chain = A::number(call.table + nft_offset!(chain_handle))?;
        open.netns = u64::from(match config!(netns) {
            0 => A::field::<u32>(hook_state.net, offset!(net_inum))?,
            only => only,
        });
    }
    open.key = call.key;
    Some(())
}

/// Whether the policy of a base chain drops packets, as the lowest bit.
#[inline(always)]
fn drops<A: Access>(chain: u64) -> u64 {
    let policy: Option<u8> = A::number(chain - nft_offset!(base_chain) + nft_offset!(base_policy));
    u64::from(policy == Some(NF_DROP as u8))
}

/// Fills the rest of a record.
#[inline(always)]
fn fill<A: Access>(state: &State, record: &mut Run, call: &Call, selected: Selected, hook_state: &HookState) {
    let mut facts = if selected.first { fact::FIRST } else { 0 };
    record.cpu = cpu_number() as u32;
    record.packet = selected.packet;
    record.entry_ns = kernel::now_ns();
    record.skb = call.skb_number;
    let commits = commits(record.commit_slot);
    record.commits = commits.begun as u32;
    record.generations = commits.made as u32;
    if commits.begun != commits.done {
        facts |= fact::CHANGING;
    }
    if commits.netns == 0 || commits.netns == u64::from(record.netns) {
        facts |= fact::GENERATIONS;
    }
    let chain = call.table;
    record.priority = priority::<A>(chain, record.hook).unwrap_or(i32::MAX);
    let table: u64 = A::number(chain + nft_offset!(chain_table)).unwrap_or(0);
    let handle = |address| A::number(address).filter(|handle| *handle != 0);
    let handles = (handle(table + nft_offset!(table_handle)), handle(chain + nft_offset!(chain_handle)));
    (record.table, record.chain) = if let (Some(table), Some(chain)) = handles {
        (table, chain)
    } else {
        facts |= fact::UNREADABLE;
        (0, 0)
    };
    (record.uid, record.gid, record.ct_status, record.ctinfo) = (0, 0, 0, 0);
    (record.mark, record.len, record.copied, record.mac_len) = (0, 0, 0, 0);
    (record.dev_type, record.hard_header_len) = (0, 0);
    // A ring holds whatever was there before.
    clear(&mut record.indev);
    clear(&mut record.outdev);
    clear(&mut record.mac);
    clear(&mut record.bytes);
    if device::<A>(&mut record.indev, hook_state.indev) {
        facts |= fact::IN;
    }
    if device::<A>(&mut record.outdev, hook_state.outdev) {
        facts |= fact::OUT;
    }
    if let Some(mut skb) = A::skb(call.skb) {
        if record.hook == EGRESS {
            skb.packet = skb.packet.without_frame(skb.mac_header);
        }
        facts |= packet::<A>(state, record, &skb, hook_state);
    } else {
        facts |= fact::UNREADABLE;
    }
    record.facts = facts;
}

/// Empties memory word by word: a `memset` of the compiler's is slow here.
#[inline(always)]
fn clear<const N: usize>(bytes: &mut [u8; N]) {
    let words = bytes.as_mut_ptr().cast::<u64>();
    let mut word = 0;
    while word < N / 8 {
        // SAFETY: within the array, which the records align to eight.
        unsafe { core::ptr::write_volatile(words.add(word), 0) };
        word += 1;
    }
}

/// Fills in what the skb tells; returns the facts learned.
#[inline(always)]
fn packet<A: Access>(state: &State, record: &mut Run, skb: &Skb, hook_state: &HookState) -> u32 {
    let mut facts = 0;
    record.ctinfo = (skb.nfct & 7) as u8;
    if let Some(status) = kernel::ct_status::<A>(skb.nfct) {
        record.ct_status = status;
        facts |= fact::CONNTRACK;
    }
    record.mark = skb.packet.mark;
    record.len = skb.packet.len;
    let len = bounded(skb.packet.linear(), PACKET_BYTES as u32);
    // SAFETY: `len` is at most the length of the array.
    if unsafe { copy((&raw mut record.bytes).cast::<u8>(), len, skb.packet.network()) } {
        record.copied = len;
    }
    if hook_state.indev != 0 {
        record.dev_type = A::field(skb.dev, offset!(dev_type)).unwrap_or(0);
        record.hard_header_len = A::field(skb.dev, offset!(dev_hard_header_len)).unwrap_or(0);
        if skb.mac_header != skb.packet.network_header {
            facts |= fact::MAC;
            let len = bounded(u32::from(record.hard_header_len), MAC_BYTES as u32);
            let address = skb.packet.head + u64::from(skb.mac_header);
            // SAFETY: `len` is at most the length of the array.
            if unsafe { copy((&raw mut record.mac).cast::<u8>(), len, address) } {
                record.mac_len = len as u8;
            }
        }
    }
    if skb.sock != 0 {
        let owner = known_owner::<A>(state, record.packet, skb.sock, hook_state.net);
        if owner != NO_OWNER {
            record.uid = owner as u32;
            record.gid = (owner >> 32) as u32;
            facts |= fact::OWNER;
        }
    }
    facts
}

/// What `__nft_trace_packet` was called with.
#[derive(Clone, Copy)]
pub struct Traced {
    /// Pointers, as the function has them.
    pub info: u64,
    pub pkt: u64,
    pub verdict: u64,
    pub rule: u64,
    /// As in [`Start`].
    pub key: u64,
    pub what: u32,
}

impl Traced {
    /// From the registers, whichever hold what on this kernel.
    #[inline(always)]
    pub fn from_arguments([first, second, third, fourth, fifth]: [u64; 5]) -> Option<Self> {
        if nft!(witness) == Witness::TraceArguments as u32 {
            let (pkt, verdict, rule) = (first, second, third);
            return Some(Self { info: fourth, pkt, verdict, rule, key: pkt, what: fifth as u32 });
        }
        Self::from_info::<Probed>(first, third as u32, |pkt| pkt)
    }

    /// From the `nft_traceinfo`; `number_of` makes a number of a pointer to the `nft_pktinfo`.
    #[inline(always)]
    pub fn from_info<A: Access>(info: u64, what: u32, number_of: impl FnOnce(u64) -> u64) -> Option<Self> {
        let pkt = A::field(info, nft_offset!(info_pkt))?;
        Some(Self { info, pkt, verdict: 0, rule: 0, key: number_of(pkt), what })
    }

    /// Pointers to the verdict and the rule.
    #[inline(always)]
    fn verdict_and_rule<A: Access>(&self) -> Option<(u64, u64)> {
        if nft!(witness) == Witness::TraceInfo as u32 {
            let (verdict, rule) = (nft_offset!(info_verdict), nft_offset!(info_rule));
            Some((A::field(self.info, verdict)?, A::field(self.info, rule)?))
        } else {
            Some((self.verdict, self.rule))
        }
    }
}

/// The handle of a rule.
#[inline(always)]
fn handle<A: Access>(rule: u64) -> Option<u64> {
    let word: u64 = A::field(rule, u64::from(nft!(rule_word)))?;
    Some((word >> (nft!(rule_shift) & 63)) & ((1 << HANDLE_BITS) - 1))
}

/// The kernel tells of a verdict. While another program is at work here it is that of a run that began since and was
/// left out, or else a number of its run is missing.
#[inline(always)]
pub fn traced<A: Access>(traced: &Traced) {
    if let Some(_alone) = cpu().claim() {
        drop_none(tell::<A>(traced));
    } else if let Some(open) = open_run(traced.key) {
        // SAFETY: a map value.
        let open = unsafe { &mut *open };
        if open.key == traced.key {
            open.index = open.index.wrapping_add(1);
            if counts::counts_by(by::RULE) {
                count(Counter::Uncounted, 1);
            }
        }
    }
}

/// Sends the verdict, if its run is open.
#[inline(always)]
fn tell<A: Access>(traced: &Traced) -> Option<()> {
    // SAFETY: a map value.
    let open = unsafe { &mut *open_run(traced.key)? };
    if open.key != traced.key {
        return None;
    }
    let _unpreempted = Unpreempted::<A>::new();
    let came_ns = if config!(timed) != 0 { kernel::now_ns() } else { 0 };
    let index = open.index;
    open.index = index.wrapping_add(1);
    // What cannot be read is missing from the run, and its number tells.
    let (verdict, rule) = traced.verdict_and_rule::<A>()?;
    let policy = traced.what == what::POLICY;
    let code: i32 = if policy { code::CONTINUE } else { A::field(verdict, nft_offset!(verdict_code))? };
    let target = if code == code::JUMP || code == code::GOTO {
        let chain: u64 = A::field(verdict, nft_offset!(verdict_chain))?;
        A::field(chain, nft_offset!(chain_handle))?
    } else {
        0
    };
    // At the end of a chain the rule is whatever was there last.
    let decided = traced.what == what::RULE || (traced.what == what::RETURN && code == code::RETURN);
    let rule = if decided { handle::<A>(rule)? } else { 0 };
    let low = code & 0xff;
    if counts::counts() {
        if policy {
            counts::add_one(count::kind::POLICY, [open.chain, open.table, open.netns]);
        } else if decided && rule != 0 {
            // What stands behind the last rule of a chain has no handle.
            counts::add_one(count::kind::RULE, [rule, open.table, open.netns]);
        }
        if policy || (decided && low <= NF_QUEUE) {
            open.key = 0;
            ended(open.identity, if policy { None } else { Some(low) });
        }
        return Some(());
    }
    // A stolen packet may be gone.
    let mark = if low == NF_STOLEN {
        0
    } else {
        let skb: u64 = A::field(traced.pkt, nft_offset!(pkt_skb))?;
        A::field(skb, offset!(skb_mark))?
    };
    if policy || (decided && low <= NF_QUEUE) {
        open.key = 0;
        ended(open.identity, if policy { None } else { Some(low) });
    }
    let event = Event {
        kind: kind::EVENT,
        index,
        run: open.run,
        rule,
        target,
        what: traced.what,
        code,
        commits: commits(open.commit_slot).begun as u32,
        mark,
    };
    if config!(timed) == 0 {
        send(event);
        return Some(());
    }
    send_timed(event, came_ns.wrapping_sub(open.began_ns));
    let took_ns = kernel::now_ns().wrapping_sub(came_ns);
    open.began_ns = open.began_ns.wrapping_add(took_ns);
    Some(())
}

/// The kernel tells of a verdict, and only those that drop a packet are wanted, with what they drop. That needs nothing of
/// what came before: the base chain is told with each.
#[inline(always)]
pub fn dropped<A: Access>(told: &Told, traced: impl FnOnce() -> Option<Traced>, number_of: fn(u64) -> u64) {
    if told.drops::<A>() != Some(true) {
        return;
    }
    match cpu().claim() {
        Some(_alone) => drop_none(traced().and_then(|traced| tell_dropped::<A>(&traced, number_of))),
        None => count(Counter::RunsLeftOut, 1),
    }
}

/// As much of what `__nft_trace_packet` was called with as tells whether a packet is dropped: most are not.
#[derive(Clone, Copy)]
pub struct Told {
    /// Pointer to the `nft_traceinfo`.
    pub info: u64,
    /// Pointer to the verdict; 0 where it is in `info`.
    pub verdict: u64,
    pub what: u32,
}

impl Told {
    /// From the registers, whichever hold what on this kernel.
    #[inline(always)]
    pub fn from_arguments([first, second, third, fourth, fifth]: [u64; 5]) -> Self {
        if nft!(witness) == Witness::TraceArguments as u32 {
            Self { info: fourth, verdict: second, what: fifth as u32 }
        } else {
            Self { info: first, verdict: 0, what: third as u32 }
        }
    }

    #[inline(always)]
    fn drops<A: Access>(&self) -> Option<bool> {
        if self.what == what::POLICY {
            let base: u64 = A::field(self.info, nft_offset!(info_basechain))?;
            return Some(A::field::<u8>(base, nft_offset!(base_policy))? == NF_DROP as u8);
        }
        let verdict = if nft!(witness) == Witness::TraceInfo as u32 {
            A::field(self.info, nft_offset!(info_verdict))?
        } else {
            self.verdict
        };
        let code: i32 = A::field(verdict, nft_offset!(verdict_code))?;
        Some(self.what == what::RULE && code >= 0 && code & 0xff == NF_DROP)
    }
}

/// Sends a packet that is dropped, if it is one that was asked for, and what drops it.
#[inline(always)]
fn tell_dropped<A: Access>(traced: &Traced, number_of: fn(u64) -> u64) -> Option<()> {
    let (skb, state) = packet_and_state::<A>(traced.pkt)?;
    last_rule::told(number_of(skb));
    let place = Place::of::<A>(skb, state)?;
    let base: u64 = read(traced.info + nft_offset!(info_basechain))?;
    let chain = base + nft_offset!(base_chain);
    let call = Call { skb, skb_number: number_of(skb), state, table: chain, key: traced.key };
    if !is_wanted::<A>(&call, Layout::at(place.hook, place.family)) {
        return None;
    }
    let (rule, code) = if traced.what == what::POLICY {
        (0, code::CONTINUE)
    } else {
        let (verdict, rule) = traced.verdict_and_rule::<A>()?;
        (handle::<A>(rule)?, A::field(verdict, nft_offset!(verdict_code))?)
    };
    let hook_state = A::hook_state(state)?;
    let (run, slot) = send_run::<A>(&call, place, last_rule::next_packet()?, &hook_state, fact::LAST_RULE)?;
    send(Event {
        kind: kind::EVENT,
        index: 0,
        run,
        rule,
        target: 0,
        what: traced.what,
        code,
        commits: commits(slot).begun as u32,
        mark: A::field(skb, offset!(skb_mark))?,
    });
    Some(())
}

/// A run has ended, by a verdict or by the policy. Of a packet that does not go on nothing more can come.
#[inline(always)]
fn ended(identity: u64, verdict: Option<i32>) {
    let gone = match verdict {
        Some(verdict) => verdict == NF_DROP || verdict == NF_STOLEN,
        None => identity & 1 != 0,
    };
    if gone {
        forget(identity & !1);
    }
}

/// A packet leaves a base chain, where nothing else tells. `key` is where the function's frame lies.
///
/// Newer kernels free what they drop at once, for a reason, and return an error number with `NF_STOLEN` (`NF_DROP_REASON`).
#[inline(always)]
pub fn leave(key: u64, code: u32) {
    let freed = code & 0xff == NF_STOLEN as u32 && code >> 16 != 0;
    let code = if freed { NF_DROP as u32 } else { code };
    if let Some(_alone) = cpu().claim() {
        drop_none(end(key, code));
    }
}

/// Ends the run, if it is open.
#[inline(always)]
fn end(key: u64, code: u32) -> Option<()> {
    // SAFETY: a map value.
    let open = unsafe { &mut *open_run(key)? };
    if open.key != key {
        return None;
    }
    open.key = 0;
    ended(open.identity, Some((code & 0xff) as i32));
    if counts::counts() {
        if counts::counts_by(by::VERDICT) {
            counts::ended(code);
        }
        return Some(());
    }
    let event = Event {
        kind: kind::EVENT,
        index: open.index,
        run: open.run,
        rule: 0,
        target: 0,
        what: what::LEFT,
        code: code as i32,
        commits: commits(open.commit_slot).begun as u32,
        mark: 0,
    };
    if config!(timed) == 0 {
        send(event);
    } else {
        send_timed(event, kernel::now_ns().wrapping_sub(open.began_ns));
    }
    Some(())
}

#[inline(always)]
fn send(event: Event) {
    match EVENTS.reserve::<Event>(0) {
        Some(mut entry) => {
            entry.write(event);
            entry.submit(wake());
        }
        None => count(Counter::Lost, 1),
    }
}

#[inline(always)]
fn send_timed(event: Event, since_ns: u64) {
    match EVENTS.reserve::<TimedEvent>(0) {
        Some(mut entry) => {
            entry.write(TimedEvent { event: Event { kind: kind::TIMED_EVENT, ..event }, since_ns });
            entry.submit(wake());
        }
        None => count(Counter::Lost, 1),
    }
}

/// The commits of a slot so far.
#[inline(always)]
fn commits(slot: u32) -> Commits {
    let Some(commits) = COMMITS.get_ptr(slot & (COMMIT_SLOTS - 1)) else { return Commits::default() };
    // SAFETY: a map value; another CPU may be adding to it, hence volatile.
    unsafe { core::ptr::read_volatile(commits) }
}

/// A commit under way.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UnderWay {
    pub net: u64,
    pub slot: u32,
    /// `net->nft.gencursor` before it.
    pub cursor: u32,
}

/// Which half of the rules' bits is current: each commit that changes anything changes it.
#[inline(always)]
fn cursor(net: u64) -> Option<u32> {
    if offset!(net_gencursor) == u64::from(ABSENT) {
        return None;
    }
    read::<u8>(net + offset!(net_gencursor)).map(u32::from)
}

/// The rules of a namespace are about to change.
#[inline(always)]
pub fn commit_begins(net: u64) -> Option<()> {
    /// [`Commits::netns`] for several.
    const SEVERAL: u64 = u64::MAX;
    let number: u32 = read(net + offset!(net_inum))?;
    let slot = commit_slot(number);
    let number = u64::from(number);
    let commits = COMMITS.get_ptr_mut(slot)?;
    forget_chains();
    let cursor = cursor(net);
    // SAFETY: a map value.
    unsafe {
        let known = &raw mut (*commits).netns;
        let before = core::ptr::read_volatile(known);
        let only = (before == 0 || before == number) && cursor.is_some();
        core::ptr::write_volatile(known, if only { number } else { SEVERAL });
        kernel::add(&raw mut (*commits).begun, 1);
    }
    COMMITTING.insert(kernel::task(), UnderWay { net, slot, cursor: cursor.unwrap_or(0) }, 0).ok()
}

/// The rules of a namespace have changed; the return does not tell of which.
#[inline(always)]
pub fn commit_ends() -> Option<()> {
    let task = kernel::task();
    let under_way = COMMITTING.get_ptr(task)?;
    // SAFETY: a map value; only this task's commits write to it.
    let UnderWay { net, slot, cursor: before } = unsafe { *under_way };
    let commits = COMMITS.get_ptr_mut(slot & (COMMIT_SLOTS - 1))?;
    // SAFETY: a map value.
    unsafe {
        if cursor(net) != Some(before) {
            kernel::add(&raw mut (*commits).made, 1);
        }
        kernel::add(&raw mut (*commits).done, 1);
    }
    forget_chains();
    COMMITTING.remove(task).ok()
}

/// Another chain may come to the address of one that is gone.
#[inline(always)]
fn forget_chains() {
    for slot in 0..u64::from(CHAIN_SLOTS) {
        BASE_CHAINS.set::<{ CHAIN_SLOTS - 1 }>(slot, 0);
    }
}
