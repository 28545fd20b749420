//! Base chains of nftables: `nft_do_chain`, and every verdict on the way through one, from `__nft_trace_packet`.
//!
//! The kernel calls `__nft_trace_packet` for every packet once any rule of the kernel says `meta nftrace set`, whether
//! that rule is ever met or not; it looks at the packet's own mark only inside. So nothing has to be marked.
//!
//! A run is known by the address of its `nft_pktinfo`, which lies on the stack of `nft_do_chain`'s caller: while the run
//! is open, nothing else can be there. Probes miss whole runs, because what interrupts a probe ends within it; should
//! one miss a part all the same, the numbers of the events show it.

use crate::config::{config, field, offset};
use crate::emit::{count, wake};
use crate::frame::cpu;
use crate::kernel::{self, Skb, copy, hook_and_family, read};
use crate::legacy::{device, owner};
use crate::maps::{COMMITS, COMMITTING, EVENTS, OPEN_RUNS, Words};
use crate::select::{NO_OWNER, Selected, Visit, namespace_bits, position, select};
use crate::snapshot::bounded;
use tracer_common::counter::Counter;
use tracer_common::nft::{
    COMMIT_SLOTS, Commits, Event, HANDLE_BITS, MAC_BYTES, NftConfig, PACKET_BYTES, Run, Witness, code,
    commit_slot, fact, kind, what,
};
use tracer_common::place::{nat_priority, rank};

/// Replaced by the loader.
#[unsafe(no_mangle)]
pub static NFT: NftConfig = NftConfig::UNRESOLVED;

/// A field of the configuration.
macro_rules! nft {
    ($($field:tt)+) => {
        field(&NFT.$($field)+)
    };
}

/// A field offset, as a number to add to an address.
macro_rules! nft_offset {
    ($field:ident) => {
        u64::from(nft!(offsets.$field))
    };
}

const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// `NFT_CHAIN_T_NAT`: a chain that is consulted for connections, not hooked in by itself.
const TYPE_NAT: u32 = 2;
const NF_STOLEN: i32 = 2;
/// `NF_QUEUE`, the last verdict that ends a run.
const NF_QUEUE: i32 = 3;

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
}

/// Where base chains stand: priority in the upper sixteen bits, address below. Forgotten whenever rules change.
#[unsafe(no_mangle)]
pub static BASE_CHAINS: Words<{ CHAIN_SLOTS as usize }> = Words::new();
/// Address of the namespace that is traced, once it has been seen.
#[unsafe(no_mangle)]
pub static TRACED_NET: Words<1> = Words::new();

/// The slot of a run. Stacks lie far apart, and runs that are open on one stack at different depths.
#[inline(always)]
fn open_run(key: u64) -> Option<*mut OpenRun> {
    OPEN_RUNS.get_ptr_mut(((key >> 4) ^ (key >> 14)) as u32 & (RUN_SLOTS - 1))
}

/// A packet enters a base chain.
#[inline(always)]
pub fn enter(pkt: u64, chain: u64, stack_pointer: u64) -> Option<()> {
    let key = if nft!(witness) == Witness::Return as u32 { stack_pointer } else { pkt };
    let open = open_run(key)?;
    // SAFETY: a map value.
    let open = unsafe { &mut *open };
    if open.key == key {
        // The end of that one was not seen.
        open.key = 0;
    }
    let skb: u64 = read(pkt + nft_offset!(pkt_skb))?;
    let state: u64 = read(pkt + nft_offset!(pkt_state))?;
    let (hook, family) = hook_and_family(state)?;
    if (family != IPV4 && family != IPV6) || hook > 4 {
        return None;
    }
    let net: u64 = read(state + offset!(state_net))?;
    let priority = priority_of(chain, hook)?;
    let visit = Visit {
        skb,
        state,
        at: chain,
        position: position(hook, rank(priority)),
        namespace: namespace_bits(net),
        is_traced: is_traced(net),
    };
    let cpu = cpu()?;
    let selected = select(cpu, &visit)?;
    let number = cpu.runs.get() + 1;
    cpu.runs.set(number);
    let run = (number << 13) | u64::from(kernel::cpu_number() & 0x1fff);
    let slot = commit_slot(net);

    let Some(mut entry) = EVENTS.reserve::<Run>(0) else {
        count(Counter::Lost, 1);
        return None;
    };
    // SAFETY: a reservation of this size; `fill` writes all of it.
    let record = unsafe { &mut *entry.as_mut_ptr() };
    record.kind = kind::RUN;
    record.cpu = kernel::cpu_number();
    record.run = run;
    record.skb = skb;
    record.commit_slot = slot;
    record.priority = priority;
    record.hook = hook;
    record.family = family;
    record.reserved = 0;
    fill(record, &selected, chain, net);
    entry.submit(wake());
    *open = OpenRun { key, run, index: 0, commit_slot: slot };
    Some(())
}

/// Whether packets of a namespace are traced.
#[inline(always)]
fn is_traced(net: u64) -> bool {
    let wanted = config!(netns);
    if wanted == 0 || TRACED_NET.get::<0>(0) == net {
        return true;
    }
    // User space keeps the namespace open: its address stays its own.
    let is = read::<u32>(net + offset!(net_inum)) == Some(wanted);
    if is {
        TRACED_NET.set::<0>(0, net);
    }
    is
}

/// The priority of a base chain, as [`Run::priority`].
#[inline(always)]
fn priority_of(chain: u64, hook: u8) -> Option<i32> {
    const ADDRESS: u64 = (1 << 48) - 1;
    let slot = (chain >> 6) ^ (chain >> 14);
    let known = BASE_CHAINS.get::<{ CHAIN_SLOTS - 1 }>(slot);
    if (known ^ chain) & ADDRESS == 0 {
        return Some((known as i64 >> 48) as i32);
    }
    let base = chain - nft_offset!(base_chain);
    let chain_type: u64 = read(base + nft_offset!(base_type))?;
    let priority = if read::<u32>(chain_type + nft_offset!(type_type))? == TYPE_NAT {
        nat_priority(hook)
    } else {
        read(base + nft_offset!(base_priority))?
    };
    let priority = if priority > i32::from(i16::MAX) {
        i32::from(i16::MAX)
    } else if priority < i32::from(i16::MIN) {
        i32::from(i16::MIN)
    } else {
        priority
    };
    BASE_CHAINS.set::<{ CHAIN_SLOTS - 1 }>(slot, ((priority as u64) << 48) | (chain & ADDRESS));
    Some(priority)
}

/// Fills the rest of a record.
#[inline(always)]
fn fill(record: &mut Run, selected: &Selected, chain: u64, net: u64) {
    let state = &selected.state;
    let mut facts = if selected.first { fact::FIRST } else { 0 };
    record.packet = selected.packet;
    record.entry_ns = kernel::now_ns();
    record.netns = match config!(netns) {
        0 => read(net + offset!(net_inum)).unwrap_or(0),
        only => only,
    };
    let commits = commits(record.commit_slot);
    record.commits = commits.begun as u32;
    if commits.begun != commits.done {
        facts |= fact::CHANGING;
    }
    let table: u64 = read(chain + nft_offset!(chain_table)).unwrap_or(0);
    let handles = (read(table + nft_offset!(table_handle)), read(chain + nft_offset!(chain_handle)));
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
    if device(&mut record.indev, state.indev) {
        facts |= fact::IN;
    }
    if device(&mut record.outdev, state.outdev) {
        facts |= fact::OUT;
    }
    if let Some(skb) = Skb::whole(record.skb) {
        facts |= packet(record, selected, &skb);
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
fn packet(record: &mut Run, selected: &Selected, skb: &Skb) -> u32 {
    let mut facts = 0;
    let nfct = skb.nfct();
    record.ctinfo = (nfct & 7) as u8;
    if nfct > 7
        && let Some(status) = read::<u32>((nfct & !7) + offset!(ct_status))
    {
        record.ct_status = status;
        facts |= fact::CONNTRACK;
    }
    record.mark = skb.mark();
    record.len = skb.len();
    let len = bounded(skb.linear(), PACKET_BYTES as u32);
    // SAFETY: `len` is at most the length of the array.
    if unsafe { copy((&raw mut record.bytes).cast::<u8>(), len, skb.network()) } {
        record.copied = len;
    }
    if selected.state.indev != 0 {
        let dev = skb.dev();
        record.dev_type = read(dev + offset!(dev_type)).unwrap_or(0);
        record.hard_header_len = read(dev + offset!(dev_hard_header_len)).unwrap_or(0);
        if skb.mac_header() != skb.network_header() {
            facts |= fact::MAC;
            let len = bounded(u32::from(record.hard_header_len), MAC_BYTES as u32);
            let address = skb.head() + u64::from(skb.mac_header());
            // SAFETY: `len` is at most the length of the array.
            if unsafe { copy((&raw mut record.mac).cast::<u8>(), len, address) } {
                record.mac_len = len as u8;
            }
        }
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
            record.uid = known.owner as u32;
            record.gid = (known.owner >> 32) as u32;
            facts |= fact::OWNER;
        }
    }
    facts
}

/// What `__nft_trace_packet` was called with.
pub struct Traced {
    pub pkt: u64,
    pub verdict: u64,
    pub rule: u64,
    pub what: u32,
}

impl Traced {
    /// From its arguments, whichever they are on this kernel.
    #[inline(always)]
    pub fn from_arguments([first, second, third, _, fifth]: [u64; 5]) -> Option<Self> {
        if nft!(witness) == Witness::TraceArguments as u32 {
            return Some(Self { pkt: first, verdict: second, rule: third, what: fifth as u32 });
        }
        let pkt = read(first + nft_offset!(info_pkt))?;
        Some(Self { pkt, verdict: 0, rule: first, what: third as u32 })
    }

    /// Reads what a traced packet needs and where only the `nft_traceinfo` has it.
    #[inline(always)]
    fn complete(&mut self) -> Option<()> {
        if nft!(witness) == Witness::TraceInfo as u32 {
            let info = self.rule;
            self.verdict = read(info + nft_offset!(info_verdict))?;
            self.rule = read(info + nft_offset!(info_rule))?;
        }
        Some(())
    }
}

/// The kernel tells of a verdict.
#[inline(always)]
pub fn traced(mut traced: Traced) -> Option<()> {
    // SAFETY: a map value.
    let open = unsafe { &mut *open_run(traced.pkt)? };
    if open.key != traced.pkt {
        return None;
    }
    let index = open.index;
    open.index = index.wrapping_add(1);
    // What cannot be read is missing from the run, and its number tells.
    traced.complete()?;
    let policy = traced.what == what::POLICY;
    let code: i32 = if policy { code::CONTINUE } else { read(traced.verdict + nft_offset!(verdict_code))? };
    let target = if code == code::JUMP || code == code::GOTO {
        let chain: u64 = read(traced.verdict + nft_offset!(verdict_chain))?;
        read(chain + nft_offset!(chain_handle))?
    } else {
        0
    };
    // At the end of a chain the rule is whatever was there last.
    let decided = traced.what == what::RULE || (traced.what == what::RETURN && code == code::RETURN);
    let rule = if decided {
        let word: u64 = read(traced.rule + u64::from(nft!(rule_word)))?;
        (word >> (nft!(rule_shift) & 63)) & ((1 << HANDLE_BITS) - 1)
    } else {
        0
    };
    let low = code & 0xff;
    // A stolen packet may be gone.
    let mark = if low == NF_STOLEN {
        0
    } else {
        let skb: u64 = read(traced.pkt + nft_offset!(pkt_skb))?;
        read(skb + offset!(skb_mark))?
    };
    if policy || (decided && low <= NF_QUEUE) {
        open.key = 0;
    }
    send(Event {
        kind: kind::EVENT,
        index,
        run: open.run,
        rule,
        target,
        what: traced.what,
        code,
        commits: commits(open.commit_slot).begun as u32,
        mark,
    });
    Some(())
}

/// A packet leaves a base chain, where nothing else tells.
#[inline(always)]
pub fn leave(stack_pointer: u64, code: u32) -> Option<()> {
    // SAFETY: a map value.
    let open = unsafe { &mut *open_run(stack_pointer)? };
    if open.key != stack_pointer {
        return None;
    }
    open.key = 0;
    send(Event {
        kind: kind::EVENT,
        index: open.index,
        run: open.run,
        rule: 0,
        target: 0,
        what: what::LEFT,
        code: code as i32,
        commits: commits(open.commit_slot).begun as u32,
        mark: 0,
    });
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

/// The commits of a slot so far.
#[inline(always)]
fn commits(slot: u32) -> Commits {
    let Some(commits) = COMMITS.get_ptr(slot & (COMMIT_SLOTS - 1)) else { return Commits::default() };
    // SAFETY: a map value; another CPU may be adding to it, hence volatile.
    unsafe { core::ptr::read_volatile(commits) }
}

/// The rules of a namespace are about to change.
#[inline(always)]
pub fn commit_begins(net: u64) -> Option<()> {
    let slot = commit_slot(net);
    let commits = COMMITS.get_ptr_mut(slot)?;
    forget_chains();
    // SAFETY: a map value.
    unsafe { add_one(&raw mut (*commits).begun) };
    COMMITTING.insert(kernel::task(), slot, 0).ok()
}

/// The rules of a namespace have changed; the return does not tell of which.
#[inline(always)]
pub fn commit_ends() -> Option<()> {
    let task = kernel::task();
    let committing = COMMITTING.get_ptr(task)?;
    // SAFETY: a map value; only this task's commits write to it.
    let slot = unsafe { *committing };
    let commits = COMMITS.get_ptr_mut(slot & (COMMIT_SLOTS - 1))?;
    // SAFETY: a map value.
    unsafe { add_one(&raw mut (*commits).done) };
    forget_chains();
    COMMITTING.remove(task).ok()
}

/// Adds to a number that several CPUs may add to at once; the target has no atomics in `core`.
///
/// # Safety
/// `number` must be valid.
#[inline(always)]
unsafe fn add_one(number: *mut u64) {
    // SAFETY: the caller vouches for the number.
    unsafe {
        core::arch::asm!("lock *(u64 *)({number} + 0) += {one}", number = in(reg) number, one = in(reg) 1u64)
    };
}

/// Another chain may come to the address of one that is gone.
#[inline(always)]
fn forget_chains() {
    for slot in 0..u64::from(CHAIN_SLOTS) {
        BASE_CHAINS.set::<{ CHAIN_SLOTS - 1 }>(slot, 0);
    }
}
