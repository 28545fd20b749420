//! What is kept for each CPU: one line that every traversal touches, and behind it the traversals that are followed.

use crate::config::offset;
use crate::kernel::copy;
use crate::maps::{STATE, Words};
use crate::snapshot::Policies;
use core::cell::{Cell, UnsafeCell};
use core::mem::offset_of;
use tracer_common::count;
use tracer_common::legacy::{TABLE_SLOTS, doubt, table_slot};

/// Traversals that can be open on one CPU at once.
pub const DEPTH: u32 = 8;
/// Rules of a table whose counters need no page of their own.
pub const SMALL: u32 = 64;
/// The most CPUs that Linux can have on x86_64 (`NR_CPUS`).
const CPUS_MAX: usize = 8192;

/// A number that programs which interrupt each other may change: by one instruction that cannot be torn.
pub struct Shared(UnsafeCell<u64>);

// SAFETY: only read and changed whole, each by one instruction.
unsafe impl Sync for Shared {}

impl Shared {
    pub const ZERO: Self = Self(UnsafeCell::new(0));

    #[inline(always)]
    pub fn get(&self) -> u64 {
        // SAFETY: a valid number; volatile because another program may have changed it.
        unsafe { core::ptr::read_volatile(self.0.get()) }
    }

    #[inline(always)]
    pub fn add(&self, amount: u64) {
        // SAFETY: one instruction on a valid number.
        unsafe {
            core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) self.0.get(), in(reg) amount);
        }
    }
}

/// Keeps what is read and written on its side.
#[inline(always)]
fn barrier() {
    // SAFETY: no instruction.
    unsafe { core::arch::asm!("", options(nostack, preserves_flags)) };
}

/// State of one CPU that every traversal touches: one cache line.
#[repr(C, align(64))]
pub struct Cpu {
    /// Whether a program is at work here. Another one that interrupts it leaves its traversal out, entry and exit alike:
    /// kprobe programs exclude each other on a CPU anyway, and of fentry and fexit programs the kernel keeps only the
    /// same one out, which would leave half traversals.
    inside: UnsafeCell<u64>,
    /// Outermost traversals seen since the checkpoint.
    pub outermost: Shared,
    /// Open frames.
    pub depth: Cell<u32>,
    /// Whether the last packet that was judged while no frame was open came inside the counted part of another one's
    /// traversal.
    pub nested: Cell<u32>,
    /// Entries and exits seen while there were open frames.
    pub generation: Cell<u32>,
    /// `xt_recseq` at the checkpoint.
    pub checkpoint_sequence: Cell<u32>,
    /// Whether there has been a checkpoint.
    pub checkpoint_valid: Cell<u32>,
    /// When the checkpoint was.
    pub checkpoint_ns: Cell<u64>,
    /// What to add to a per-CPU address, 0 when not asked for yet.
    pub per_cpu_offset: Cell<u64>,
    /// Traversals left out since the checkpoint.
    pub left_out: Shared,
}

const _: () = assert!(size_of::<Cpu>() == 64 && offset_of!(Cpu, nested) == offset_of!(Cpu, depth) + 4);

/// One open traversal that is followed: one that is traced, or one inside another that is.
#[repr(C, align(128))]
pub struct Frame {
    /// Where on the stack the traversal was entered: the key that entry and exit share. 0 where it has ended, and others
    /// that began later have not.
    pub key: Cell<u64>,
    pub task: Cell<u64>,
    pub entry_ns: Cell<u64>,
    pub table: Cell<u64>,
    pub private: Cell<u64>,
    pub skb: Cell<u64>,
    /// Address of this CPU's first counter block.
    pub first_block: Cell<u64>,
    /// 0, [`TRACED`] or [`ALONE`].
    pub traced: Cell<u32>,
    pub number: Cell<u32>,
    /// First page of the snapshot, and how many; none for a small table.
    pub page: Cell<u32>,
    pub blocks: Cell<u32>,
    /// Of these, the blocks of the hook's own chain, and the first with a user chain in it: no others can be met.
    pub chain_first: Cell<u32>,
    pub chain_last: Cell<u32>,
    pub user_first: Cell<u32>,
    /// `xt_recseq` at entry, at the beginning of the running segment, and its advance over this frame's own
    /// segments: what inner frames do to it does not count.
    pub entry_sequence: Cell<u32>,
    pub segment_sequence: Cell<u32>,
    pub advanced: Cell<u32>,
    /// `Cpu::generation` at entry, and the frames that came and went inside.
    pub generation: Cell<u32>,
    pub inner: Cell<u32>,
    pub replace_count: Cell<u32>,
    pub doubts: Cell<u32>,
    /// Of a small table: the rules that can be met.
    pub rules: Cell<Rules>,
    /// Of these, by bits from the table's first rule on: those whose target may change packets.
    pub changers: Cell<u64>,
}

const _: () = assert!(size_of::<Frame>() == 128);

/// It is told of.
pub const TRACED: u32 = 1;
/// The same, and at its entry no other outermost traversal was under way that had still to be counted.
pub const ALONE: u32 = 2;

/// Rules of a small table that follow one another.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Rules {
    pub first: u32,
    pub count: u32,
}

/// What a CPU knows about a table: it stays true as long as the table is not replaced or registered anew.
#[repr(C)]
pub struct KnownTable {
    pub table: Cell<u64>,
    pub private: Cell<u64>,
    /// Address of this CPU's first counter block.
    pub first_block: Cell<u64>,
    pub replace_count: Cell<u32>,
    pub number: Cell<u32>,
    pub size: Cell<u32>,
    /// Of a small table: the first entry behind all policies, of the first user chain if there is one.
    pub user_first: Cell<u32>,
    pub name: Cell<[u64; 4]>,
    /// Of a small table: where the chain of each hook begins, and where its policy is.
    pub hook_first: UnsafeCell<[u32; HOOKS]>,
    pub hook_last: UnsafeCell<[u32; HOOKS]>,
    /// Of a small table, by bits: the rules whose target may change packets.
    pub changers: Cell<u64>,
    /// Whether user space has been told of this version, where packets are counted.
    pub told: Cell<u64>,
}

/// Room for each hook number.
pub const HOOKS: usize = 8;

/// Counters of a small table, packets and bytes.
pub type SmallBlock = [u64; SMALL as usize * 2];

/// State of one CPU behind its line.
#[repr(C)]
pub struct State {
    frames: [Frame; DEPTH as usize],
    tables: [KnownTable; TABLE_SLOTS as usize],
    /// Snapshots of small tables, by frame.
    small: UnsafeCell<[SmallBlock; DEPTH as usize]>,
    /// The counters of a small table as they are now.
    small_now: UnsafeCell<SmallBlock>,
    /// What is asked about a table for the first time: see [`crate::snapshot::survey`].
    pub policies: UnsafeCell<Policies>,
    /// Where its chains begin, and where their policies are, by hook.
    places: UnsafeCell<[u32; 10]>,
    /// The socket whose owner was asked for last, for which packet, and the owner: user id below, group id above.
    pub sock: Cell<u64>,
    pub sock_packet: Cell<u64>,
    pub owner: Cell<u64>,
    /// The frame whose exit this is, while it is looked for.
    pub found: Cell<u32>,
    /// Whether there is an early one, likewise.
    pub early: Cell<u32>,
    /// When something used the tables on this CPU last that no frame stands for.
    pub disturbed_ns: Cell<u64>,
    /// Where the link-layer header lay that was copied last, with the hook and the depth of the frame in whose record it is;
    /// 0 for none. And whose it was.
    pub mac_at: Cell<u64>,
    pub mac_of: Cell<u64>,
    /// Records sent.
    pub records: Cell<u64>,
    /// Runs of nftables numbered on this CPU.
    pub runs: Cell<u64>,
    /// When the followed traversals began, by frame, when the last one was left, and how long it took: where that is asked
    /// for.
    began: [Cell<u64>; DEPTH as usize],
    pub left_ns: Cell<u64>,
    pub took_ns: Cell<u64>,
    /// What is being counted.
    pub counted: UnsafeCell<count::Key>,
}

// SAFETY: each CPU has its own, and `Cpu::claim` lets one program at a time to what is not `Shared`.
unsafe impl Sync for Cpu {}
// SAFETY: as for `Cpu`.
unsafe impl Sync for State {}

impl Cpu {
    /// Number of the CPU whose line this is, without asking for it again.
    #[inline(always)]
    pub fn number(&self) -> u32 {
        (distance(core::ptr::from_ref(self) as u64) / size_of::<Self>() as u64) as u32
    }

    /// Whether a traversal that begins here certainly is inside no other one that matters.
    #[inline(always)]
    pub fn is_quiet(&self) -> bool {
        // SAFETY: `depth` and `nested` are eight bytes, aligned as such.
        unsafe { self.depth.as_ptr().cast::<u64>().read_volatile() == 0 }
    }

    /// How many outermost traversals moved `xt_recseq` since the checkpoint.
    #[inline(always)]
    pub fn moved(&self, sequence: u32) -> u64 {
        u64::from(sequence.wrapping_sub(self.checkpoint_sequence.get()) / 2)
    }

    /// Makes this the only program at work on this CPU for as long as the claim is kept; `None` where another one is.
    #[inline(always)]
    pub fn claim(&self) -> Option<Alone<'_>> {
        let inside = self.inside.get();
        // SAFETY: a valid number. Volatile, because programs interrupt each other; who does has put back what it found.
        unsafe {
            if inside.read_volatile() != 0 {
                return None;
            }
            inside.write_volatile(1);
        }
        barrier();
        Some(Alone(self))
    }
}

/// See [`Cpu::claim`].
pub struct Alone<'a>(&'a Cpu);

impl Drop for Alone<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        barrier();
        // SAFETY: as in `claim`.
        unsafe { self.0.inside.get().write_volatile(0) };
    }
}

impl State {
    /// An open frame by its depth, from 0.
    #[inline(always)]
    pub fn frame(&'static self, depth: u32) -> &'static Frame {
        let depth = crate::snapshot::mask::<{ DEPTH - 1 }>(u64::from(depth)) as usize;
        // SAFETY: the mask keeps the index in range.
        unsafe { &*(&raw const self.frames).cast::<Frame>().add(depth) }
    }

    /// When the traversal of a frame began.
    #[inline(always)]
    pub fn began(&'static self, depth: u32) -> &'static Cell<u64> {
        let depth = crate::snapshot::mask::<{ DEPTH - 1 }>(u64::from(depth)) as usize;
        // SAFETY: the mask keeps the index in range.
        unsafe { &*(&raw const self.began).cast::<Cell<u64>>().add(depth) }
    }

    /// What is known of a table, or what may be forgotten for it. There are two places for each, so that two tables of one
    /// slot do not drive each other out.
    #[inline(always)]
    pub fn table(&'static self, table: u64) -> &'static KnownTable {
        let slot = table_slot(table);
        let first = self.known(slot);
        let second = self.known(slot ^ 1);
        let address = first.table.get();
        if address == table || (address == 0 && second.table.get() != table) { first } else { second }
    }

    #[inline(always)]
    fn known(&'static self, slot: u32) -> &'static KnownTable {
        let slot = crate::snapshot::mask::<{ TABLE_SLOTS - 1 }>(u64::from(slot)) as usize;
        // SAFETY: the mask keeps the index in range.
        unsafe { &*(&raw const self.tables).cast::<KnownTable>().add(slot) }
    }

    /// Where the chains begin, and where the policies are, of the table that was asked about last: five numbers each.
    #[inline(always)]
    pub fn known_places(&self) -> *const u32 {
        self.places.get().cast_const().cast()
    }

    /// Asks the kernel about a table, for [`known_places`](Self::known_places).
    #[inline(always)]
    pub fn ask_places(&self, private: u64) -> Option<()> {
        let places = self.places.get().cast::<u8>();
        // SAFETY: 20 bytes each, of 40.
        let read = unsafe {
            copy(places, 20, private + offset!(info_hook_entry))
                && copy(places.add(20), 20, private + offset!(info_underflow))
        };
        read.then_some(())
    }

    /// The snapshot of a frame whose table is small.
    #[inline(always)]
    pub fn small(&self, depth: u32) -> *mut SmallBlock {
        let depth = crate::snapshot::mask::<{ DEPTH - 1 }>(u64::from(depth)) as usize;
        // SAFETY: the mask keeps the index in range.
        unsafe { self.small.get().cast::<SmallBlock>().add(depth) }
    }

    /// Room for the counters of a small table, to be compared with its snapshot.
    #[inline(always)]
    pub fn small_now(&self) -> *mut SmallBlock {
        self.small_now.get()
    }
}

impl KnownTable {
    /// Whether there is more behind the last policy than the entry that ends the table.
    #[inline(always)]
    pub fn has_user_chains(&self) -> bool {
        self.user_first.get().wrapping_add(1) < self.number.get()
    }
}

impl Frame {
    /// Whether it is open and had perhaps not come to its counted part when another one began above it: what the sequence
    /// count moved by since may be its doing.
    #[inline(always)]
    pub fn is_early(&self) -> bool {
        let has_counted = self.advanced.get() != 0 && self.doubts.get() & doubt::SEQUENCE == 0;
        self.key.get() != 0 && self.entry_sequence.get() & 1 == 0 && !has_counted
    }

    /// How far its own segments have moved the sequence count, the running one included.
    #[inline(always)]
    pub fn advanced_to(&self, sequence: u32) -> u32 {
        self.advanced.get().wrapping_add(sequence.wrapping_sub(self.segment_sequence.get()))
    }

    /// How far its traversal moves it: inside the counted part of another one, not at all.
    #[inline(always)]
    pub fn advances(&self) -> u32 {
        if self.entry_sequence.get() & 1 == 0 { 2 } else { 0 }
    }

    /// Casts doubt on the traversal.
    #[inline(always)]
    pub fn doubt(&self, doubt: u32) {
        self.doubts.set(self.doubts.get() | doubt);
    }
}

/// The lines of all CPUs. Global data, because its address is part of the program: no look-up.
pub struct Cpus(UnsafeCell<[[u64; 8]; CPUS_MAX]>);

// SAFETY: as for `Cpu`.
unsafe impl Sync for Cpus {}

/// See [`Cpus`].
#[unsafe(no_mangle)]
pub static CPUS: Cpus = Cpus(UnsafeCell::new([[0; 8]; CPUS_MAX]));

/// Number of the running CPU.
#[inline(always)]
pub fn cpu_number() -> u64 {
    /// `BPF_FUNC_get_smp_processor_id`
    const HELPER: usize = 8;
    // SAFETY: the helper has no preconditions. All 64 bits are its result; as it is declared elsewhere, with 32, the
    // compiler would clear the others each time.
    unsafe { core::mem::transmute::<usize, unsafe extern "C" fn() -> u64>(HELPER)() }
}

/// The line of the running CPU.
#[inline(always)]
pub fn cpu() -> &'static Cpu {
    let cpu = crate::snapshot::mask::<{ CPUS_MAX as u32 - 1 }>(cpu_number()) as usize;
    // SAFETY: the mask keeps the index in range; zeros are a valid line.
    unsafe { &*CPUS.0.get().cast::<Cpu>().add(cpu) }
}

/// A pointer as a number that tells it from others: its distance from a fixed address. The verifier forbids other
/// arithmetic with typed pointers, and this way they need not go through memory.
#[inline(always)]
pub fn distance(pointer: u64) -> u64 {
    let mut distance = pointer;
    // SAFETY: one subtraction.
    unsafe {
        core::arch::asm!(
            "{0} -= {1}",
            inout(reg) distance,
            in(reg) CPUS.0.get(),
            options(pure, nomem, nostack)
        );
    };
    distance
}

/// [`distance`] of an address that is a number already. The verifier does not take a pointer from a number: the fixed
/// address goes through memory, where it becomes one.
#[inline(always)]
pub fn distance_of_number(address: u64) -> u64 {
    BASE.set::<0>(0, CPUS.0.get() as u64);
    address.wrapping_sub(BASE.get::<0>(0))
}

/// Room for [`distance_of_number`].
#[unsafe(no_mangle)]
static BASE: Words<1> = Words::new();

/// The state of the running CPU.
#[inline(always)]
pub fn state() -> Option<&'static State> {
    STATE.get(0)
}
