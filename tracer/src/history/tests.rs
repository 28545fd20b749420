//! A simulated kernel that replaces tables, reuses their memory and loses records, against what is made of it; and
//! single cases.

use super::*;
use crate::netfilter::StepKind;
use crate::ruleset::Target;
use crate::xtables::Form;
use proptest::prelude::*;
use std::collections::VecDeque;
use zerocopy::FromZeros as _;

const MS: u64 = 1_000_000;
/// Two addresses with one slot, one with another.
const ADDRESSES: [u64; 4] =
    [0xffff_8880_0000_1000, 0xffff_8880_0010_1000, 0xffff_8880_0000_1080, 0xffff_8880_0010_1080];
const SIZE: u32 = 152 + 152 + 176;

/// A table of one rule, whose target's parameter is `marker`, as the kernel or as user space sees it.
fn raw(family: Family, marker: u32, form: Form) -> RawTable {
    let head = if family == Family::Ipv4 { 112 } else { 168 };
    let (target_offset, counters) = if family == Family::Ipv4 { (88, 96) } else { (140, 152) };
    let mut bytes = Vec::new();
    let mut starts = Vec::new();
    let rows: [(&[u8], u64, u16, u32); 3] =
        [(b"MARK", 0x1000, 40, marker), (b"", 0x2000, 40, -2_i32 as u32), (b"ERROR", 0x3000, 64, 0)];
    for (name, address, size, value) in rows {
        let at = bytes.len();
        starts.push(at as u32);
        bytes.resize(at + head + usize::from(size), 0);
        let mut put = |offset: usize, value: &[u8]| {
            bytes[at + offset..at + offset + value.len()].copy_from_slice(value);
        };
        put(target_offset, &(head as u16).to_ne_bytes());
        put(target_offset + 2, &(head as u16 + size).to_ne_bytes());
        put(head, &size.to_ne_bytes());
        put(head + 2, name);
        put(head + 32, &value.to_ne_bytes());
        if form == Form::Kernel {
            put(head + 8, &address.to_ne_bytes());
            put(counters, &0x6000_u64.to_ne_bytes());
        }
    }
    let mut hook_entry = [u32::MAX; 5];
    let mut underflow = hook_entry;
    (hook_entry[1], underflow[1]) = (0, starts[1]);
    RawTable { family, name: "filter".into(), valid_hooks: 2, hook_entry, underflow, number: 3, form, bytes }
}

fn read(family: Family, marker: u32) -> Fetched {
    let raw = raw(family, marker, Form::User);
    Fetched { table: raw.decode(&TargetNames::default()).unwrap(), raw, text_reason: None }
}

fn marker(version: &Version) -> u32 {
    match &version.table.entries[0].target {
        Target::Extension(extension) => u32::from_ne_bytes(extension.data[..4].try_into().unwrap()),
        target => panic!("{target:?}"),
    }
}

fn name() -> [u8; 32] {
    let mut name = [0; 32];
    name[..6].copy_from_slice(b"filter");
    name
}

fn replaced(table: u64, family: Family, count: u32, private: u64) -> Replaced {
    let raw = raw(family, 0, Form::Kernel);
    Replaced {
        replace_count: count,
        table,
        private,
        number: raw.number,
        size: raw.bytes.len() as u32,
        chunks: 1,
        family: if family == Family::Ipv4 { 2 } else { 10 },
        hook_entry: raw.hook_entry,
        underflow: raw.underflow,
        table_name: name(),
        ..Replaced::new_zeroed()
    }
}

fn chunk(table: u64, family: Family, count: u32, marker: u32) -> Box<TableChunk> {
    let raw = raw(family, marker, Form::Kernel);
    let mut chunk = Box::new(TableChunk::new_zeroed());
    (chunk.replace_count, chunk.table, chunk.len) = (count, table, raw.bytes.len() as u32);
    chunk.bytes[..raw.bytes.len()].copy_from_slice(&raw.bytes);
    chunk
}

fn traversal(table: u64, family: Family, count: u32, private: u64, entry_ns: u64) -> Traversal {
    Traversal {
        table,
        replace_count: count,
        private,
        entry_ns,
        hook: 1,
        family: if family == Family::Ipv4 { 2 } else { 10 },
        netns: 1,
        number: 3,
        size: raw(family, 0, Form::User).bytes.len() as u32,
        table_name: name(),
        ..Traversal::new_zeroed()
    }
}

enum Record {
    Replaced(Replaced),
    Chunk(Box<TableChunk>),
    /// With the marker of the version whose address was read, and of the one that was met.
    Traversal(Box<Traversal>, u32, u32),
}

/// One `xt_table`, found under one name all the time, at changing addresses.
struct Registered {
    address: u64,
    private: u64,
    marker: u32,
}

/// A replacement that was announced and has not happened yet.
struct Swap {
    place: usize,
    private: u64,
    marker: u32,
    refused: bool,
}

/// A traversal under way.
struct Running {
    place: usize,
    record: Box<Traversal>,
    /// Marker when the address was read, and when the table was walked.
    read: Option<u32>,
    met: Option<u32>,
}

#[derive(Clone, Debug)]
enum Op {
    Register {
        place: usize,
        address: usize,
        lost: bool,
    },
    Unregister(usize),
    Replace {
        place: usize,
        lost: bool,
        chunk_lost: bool,
        refused: bool,
    },
    Swap(usize),
    Enter(usize),
    /// The next step of a traversal.
    Step(usize),
    Drain(usize),
    Fetch {
        place: usize,
        between: usize,
    },
    Wait,
}

fn op() -> impl Strategy<Value = Op> {
    let rarely = || prop::bool::weighted(0.1);
    let place = 0..3_usize;
    prop_oneof![
        1 => (place.clone(), 0..4_usize, rarely())
            .prop_map(|(place, address, lost)| Op::Register { place, address, lost }),
        1 => place.clone().prop_map(Op::Unregister),
        6 => (place.clone(), rarely(), rarely(), rarely()).prop_map(|(place, lost, chunk_lost, refused)| {
            Op::Replace { place, lost, chunk_lost, refused }
        }),
        6 => (0..2_usize).prop_map(Op::Swap),
        8 => place.clone().prop_map(Op::Enter),
        16 => (0..8_usize).prop_map(Op::Step),
        6 => (1..6_usize).prop_map(Op::Drain),
        3 => (place, 0..3_usize).prop_map(|(place, between)| Op::Fetch { place, between }),
        2 => Just(Op::Wait),
    ]
}

struct Kernel {
    now_ns: u64,
    places: [Option<Registered>; 3],
    counts: Counts,
    /// By family: both have a lock of their own.
    swaps: [Option<Swap>; 2],
    running: Vec<Running>,
    ring: VecDeque<Record>,
    markers: u32,
    history: History,
    /// Traversals that got their version.
    known: usize,
}

fn family(place: usize) -> Family {
    if place == 1 { Family::Ipv6 } else { Family::Ipv4 }
}

impl Kernel {
    fn new() -> Self {
        let mut kernel = Self {
            now_ns: 1000 * MS,
            places: [None, None, None],
            counts: [0; TABLE_SLOTS as usize],
            swaps: [None, None],
            running: Vec::new(),
            ring: VecDeque::new(),
            markers: 0,
            history: History::default(),
            known: 0,
        };
        for (place, address) in ADDRESSES.into_iter().take(3).enumerate() {
            let (marker, private) = (kernel.marker(), kernel.allocate());
            kernel.places[place] = Some(Registered { address, private, marker });
        }
        kernel
    }

    fn marker(&mut self) -> u32 {
        self.markers += 1;
        self.markers
    }

    /// The lowest free address: memory is reused at once.
    fn allocate(&self) -> u64 {
        let used = |address| {
            self.places.iter().flatten().any(|table| table.private == address)
                || self.swaps.iter().flatten().any(|swap| swap.private == address)
        };
        (1..).map(|n| n * 64).find(|address| !used(*address)).unwrap()
    }

    fn lock(&mut self, place: usize) -> &mut Option<Swap> {
        &mut self.swaps[usize::from(family(place) == Family::Ipv6)]
    }

    fn announce(&mut self, place: usize, address: u64, private: u64, marker: u32, lost: [bool; 2]) {
        let count = &mut self.counts[table_slot(address) as usize];
        *count += 1;
        if !lost[0] {
            self.ring.push_back(Record::Replaced(replaced(address, family(place), *count, private)));
        }
        if !lost[1] {
            self.ring.push_back(Record::Chunk(chunk(address, family(place), *count, marker)));
        }
    }

    fn finish_swap(&mut self, lock: usize) {
        let Some(swap) = self.swaps[lock].take() else { return };
        if let Some(table) = &mut self.places[swap.place]
            && !swap.refused
        {
            (table.private, table.marker) = (swap.private, swap.marker);
        }
    }

    fn step(&mut self, index: usize) {
        if self.running.is_empty() {
            return;
        }
        let index = index % self.running.len();
        let running = &mut self.running[index];
        let Some(table) = &self.places[running.place] else { unreachable!() };
        if running.read.is_none() {
            running.record.private = table.private;
            running.read = Some(table.marker);
        } else if running.met.is_none() {
            running.met = Some(table.marker);
        } else {
            let Running { mut record, read, met, .. } = self.running.swap_remove(index);
            if self.counts[table_slot(record.table) as usize] != record.replace_count {
                record.doubts |= doubt::REPLACE_COUNT;
            }
            if record.private != table.private {
                record.doubts |= doubt::REPLACED;
            }
            self.ring.push_back(Record::Traversal(record, read.unwrap(), met.unwrap()));
        }
    }

    fn fetch(&mut self, place: usize, between: usize) {
        let before = self.counts;
        // Someone else comes first, then the lock is waited for, then someone else comes again.
        if between == 1 {
            self.apply(&Op::Replace { place, lost: false, chunk_lost: false, refused: false });
        }
        self.finish_swap(usize::from(family(place) == Family::Ipv6));
        let Some(table) = &self.places[place] else { return };
        let fetched = read(family(place), table.marker);
        if between == 2 {
            self.apply(&Op::Replace { place, lost: false, chunk_lost: false, refused: false });
        }
        self.history.fetched(1 + place as u32, fetched, before, self.counts, self.now_ns);
    }

    fn drain(&mut self, records: usize) {
        for record in self.ring.drain(..records.min(self.ring.len())) {
            match record {
                Record::Replaced(replaced) => self.history.replaced(&replaced),
                Record::Chunk(chunk) => self.history.chunk(&chunk),
                Record::Traversal(traversal, read, met) => {
                    if let Ok(version) = self.history.version(&traversal) {
                        assert_eq!(marker(&version), read, "{traversal:?}");
                        if traversal.doubts == 0 {
                            assert_eq!(read, met);
                        }
                        self.known += 1;
                    }
                }
            }
        }
    }

    fn apply(&mut self, op: &Op) {
        self.now_ns += MS;
        match *op {
            Op::Register { place, address, lost } => {
                let address = ADDRESSES[address];
                let taken = self.places.iter().flatten().any(|table| table.address == address);
                if self.places[place].is_none() && !taken && self.lock(place).is_none() {
                    let (marker, private) = (self.marker(), self.allocate());
                    self.announce(place, address, private, marker, [lost, false]);
                    self.places[place] = Some(Registered { address, private, marker });
                }
            }
            // All traversals are waited for.
            Op::Unregister(place) => {
                if self.lock(place).is_none() && self.running.iter().all(|running| running.place != place) {
                    self.places[place] = None;
                }
            }
            Op::Replace { place, lost, chunk_lost, refused } => {
                if self.lock(place).is_none()
                    && let Some(address) = self.places[place].as_ref().map(|table| table.address)
                {
                    let (marker, private) = (self.marker(), self.allocate());
                    self.announce(place, address, private, marker, [lost, chunk_lost]);
                    *self.lock(place) = Some(Swap { place, private, marker, refused });
                }
            }
            Op::Swap(lock) => self.finish_swap(lock),
            Op::Enter(place) => {
                if let Some(table) = &self.places[place] {
                    let count = self.counts[table_slot(table.address) as usize];
                    let mut record = Box::new(traversal(table.address, family(place), count, 0, self.now_ns));
                    record.netns = 1 + place as u32;
                    self.running.push(Running { place, record, read: None, met: None });
                }
            }
            Op::Step(index) => self.step(index),
            Op::Drain(records) => self.drain(records),
            // Tables are read again because of a record.
            Op::Fetch { place, between } => {
                if self.history.running {
                    self.fetch(place, between);
                }
            }
            Op::Wait => self.now_ns += 200 * MS,
        }
    }

    /// When all is quiet and the tables have been read again, everything is known.
    fn settle(&mut self) {
        self.finish_swap(0);
        self.finish_swap(1);
        while !self.running.is_empty() {
            self.step(0);
        }
        self.drain(usize::MAX);
        self.history.running = true;
        for place in (0..3).filter(|place| self.places[*place].is_some()).collect::<Vec<_>>() {
            self.fetch(place, 0);
            self.now_ns += 200 * MS;
            self.apply(&Op::Enter(place));
            (0..3).for_each(|_| self.step(0));
            let known = self.known;
            self.drain(usize::MAX);
            assert_eq!(self.known, known + 1, "place {place}: {:#?}", self.history);
        }
    }
}

fn simulate(first: &[Op], read: [bool; 3], rest: &[Op], refuse: bool) {
    let mut kernel = Kernel::new();
    let apply = |kernel: &mut Kernel, op: &Op| match op {
        Op::Replace { place, lost, chunk_lost, .. } if !refuse => {
            kernel.apply(&Op::Replace {
                place: *place,
                lost: *lost,
                chunk_lost: *chunk_lost,
                refused: false,
            });
        }
        op => kernel.apply(op),
    };
    // The trace has begun, and nothing has been taken from the ring yet.
    for op in first.iter().filter(|op| !matches!(op, Op::Drain(_) | Op::Unregister(_))) {
        apply(&mut kernel, op);
    }
    for place in (0..3).filter(|place| read[*place]) {
        kernel.fetch(place, 0);
    }
    rest.iter().for_each(|op| apply(&mut kernel, op));
    if !refuse {
        kernel.settle();
    }
    assert!(kernel.history.tables.values().all(|line| line.versions.len() <= KEPT + 1));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn never_another_table(
        first in prop::collection::vec(op(), 0..10),
        read in any::<[bool; 3]>(),
        rest in prop::collection::vec(op(), 0..200),
        refuse in any::<bool>(),
    ) {
        simulate(&first, read, &rest, refuse);
    }
}

const TABLE: u64 = ADDRESSES[0];
const NEIGHBOUR: u64 = ADDRESSES[1];

/// A history that knows the first version, marker 1 at address 64.
fn started() -> History {
    let mut history = History::default();
    history.fetched(1, read(Family::Ipv4, 1), [0; 64], [0; 64], MS);
    assert_eq!(met(&mut history, 0, 64, 0), Ok(1));
    history
}

fn replace(history: &mut History, table: u64, count: u32, private: u64, marker: u32) {
    history.replaced(&replaced(table, Family::Ipv4, count, private));
    history.chunk(&chunk(table, Family::Ipv4, count, marker));
}

fn met(history: &mut History, count: u32, private: u64, doubts: u32) -> Result<u32, Unknown> {
    let mut traversal = traversal(TABLE, Family::Ipv4, count, private, 2 * MS);
    traversal.doubts = doubts;
    history.version(&traversal).map(|version| marker(&version))
}

fn not_reported() -> Result<u32, Unknown> {
    Err(Unknown::NotReported("filter".into()))
}

#[test]
fn the_sample_is_a_table() {
    let table = raw(Family::Ipv4, 7, Form::Kernel).decode(&TargetNames::default()).unwrap();
    assert_eq!((table.size, table.entries.len()), (SIZE, 3));
    assert_eq!(table.entries[1].kind, StepKind::Policy);
}

#[test]
fn before_and_after_a_swap() {
    let mut history = started();
    replace(&mut history, TABLE, 1, 128, 2);
    assert_eq!(met(&mut history, 1, 64, 0), Ok(1));
    assert_eq!(met(&mut history, 1, 128, 0), Ok(2));
    assert_eq!(met(&mut history, 1, 192, 0), Err(Unknown::OtherAddress("filter".into())));
}

#[test]
fn a_second_loss_counts_too() {
    let mut history = started();
    replace(&mut history, TABLE, 2, 128, 3);
    assert_eq!(met(&mut history, 2, 128, 0), Ok(3));
    // 3 and 4 were of this table, and lost; its memory is where it was.
    replace(&mut history, NEIGHBOUR, 5, 256, 9);
    assert_eq!(met(&mut history, 5, 128, 0), not_reported());
}

#[test]
fn what_was_lost_is_read_again() {
    let mut history = started();
    replace(&mut history, NEIGHBOUR, 2, 256, 9);
    assert_eq!(met(&mut history, 2, 128, 0), not_reported());
    history.fetched(1, read(Family::Ipv4, 2), [2; 64], [2; 64], 3 * MS);
    // It entered before the reading was over.
    assert_eq!(met(&mut history, 2, 128, 0), Err(Unknown::NeverRead("filter".into())));
    let later = traversal(TABLE, Family::Ipv4, 2, 128, 4 * MS);
    assert_eq!(history.version(&later).map(|version| marker(&version)), Ok(2));
}

#[test]
fn numbers_that_come_twice_or_begin_anew_are_a_loss() {
    let mut history = started();
    replace(&mut history, TABLE, 1, 128, 2);
    replace(&mut history, NEIGHBOUR, 1, 256, 9);
    assert_eq!(met(&mut history, 1, 128, 0), not_reported());
    replace(&mut history, TABLE, 2, 64, 3);
    assert_eq!(met(&mut history, 2, 64, 0), Ok(3));
    replace(&mut history, NEIGHBOUR, u32::MAX, 256, 9);
    replace(&mut history, TABLE, 0, 128, 4);
    assert_eq!(met(&mut history, 0, 128, 0), not_reported());
}

#[test]
fn a_version_from_long_ago_is_not_taken_for_the_first() {
    let mut history = History::default();
    history.fetched(1, read(Family::Ipv4, 1), [0; 64], [0; 64], MS);
    for count in 1..100 {
        replace(&mut history, TABLE, count, u64::from(64 * count), count + 1);
    }
    assert_eq!(met(&mut history, 99, 99 * 64, 0), Ok(100));
    assert_eq!(met(&mut history, 20, 20 * 64, 0), Err(Unknown::NeverRead("filter".into())));
}

#[test]
fn an_address_read_too_late_teaches_nothing() {
    let mut history = History::default();
    history.fetched(1, read(Family::Ipv4, 1), [0; 64], [0; 64], MS);
    replace(&mut history, TABLE, 1, 128, 2);
    assert!(met(&mut history, 0, 128, doubt::REPLACE_COUNT).is_err());
    assert!(met(&mut history, 0, 128, doubt::NO_EXIT).is_err());
    assert!(met(&mut history, 0, 0, doubt::UNREADABLE).is_err());
    assert_eq!(met(&mut history, 0, 64, 0), Ok(1));
}

#[test]
fn a_lost_part_is_made_good_by_reading() {
    let mut history = started();
    history.replaced(&replaced(TABLE, Family::Ipv4, 1, 128));
    assert!(matches!(met(&mut history, 1, 128, 0), Err(Unknown::NotCaptured { .. })));
    history.fetched(1, read(Family::Ipv4, 2), [1; 64], [1; 64], MS);
    assert_eq!(met(&mut history, 1, 128, 0), Ok(2));
}

#[test]
fn a_table_of_another_size_is_not_it() {
    let mut history = started();
    let other = Traversal { size: 1000, ..traversal(TABLE, Family::Ipv4, 0, 64, MS) };
    assert_eq!(history.version(&other).err(), Some(Unknown::OtherSize("filter".into())));
}

#[test]
fn a_table_that_comes_is_expected() {
    let mut history = History::default();
    let none = Loaded::default();
    assert_eq!(history.loaded(1, Family::Ipv4), none);
    replace(&mut history, TABLE, 1, 64, 1);
    let possible = Loaded { possible: [0, 1 << 4, 0, 0, 0, 0, 0, 0], ..none };
    assert_eq!(history.loaded(1, Family::Ipv4), possible);
    assert_eq!(history.loaded(1, Family::Ipv6), none);
    assert_eq!(met(&mut history, 1, 64, 0), Ok(1));
    assert_eq!(history.loaded(1, Family::Ipv4), Loaded { ranks: possible.possible, ..possible });
    assert_eq!(history.loaded(2, Family::Ipv4), possible);
}
