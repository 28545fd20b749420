//! Probes in the kernel and the ring buffer they fill.

pub mod attach;
#[cfg(feature = "debug-log")]
mod debug;
pub mod decode;
pub mod ending;
pub mod kernel;
pub mod kfunc;
pub mod offsets;
pub mod probes;
mod room;
pub mod session;
pub mod symbols;
pub mod typed;

use crate::filter::{Filter, Form, LinkType};
use crate::predicate::Device;
use crate::sys::bpf;
use crate::sys::cgroup::Cgroup;
use crate::trace_line::LogStyle;
use attach::Sight;
use aya::maps::{Array, MapData, PerCpuArray, PerCpuHashMap, RingBuf};
use aya::{EbpfLoader, Pod};
use decode::Record;
use ending::Endings;
use probes::Begins;
use std::borrow::Cow;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use thiserror::Error;
use tracer_common::choice::{ChoiceConfig, ask};
use tracer_common::config::Config;
use tracer_common::count::{self, by};
use tracer_common::counter::Counter;
use tracer_common::ending::EndingConfig;
use tracer_common::filter::Program;
use tracer_common::legacy::{TABLE_SLOTS, table_slot};
use tracer_common::nft::{COMMIT_SLOTS, Commits, NftConfig, Witness};
use tracer_common::offsets::ABSENT;
use tracer_common::sender::SenderConfig;
use tracer_common::throttle::Throttle;

#[cfg(bpf_object)]
const OBJECT: &[u8] = aya::include_bytes_aligned!(env!("NFTRACER_BPF_OBJECT"));
#[cfg(not(bpf_object))]
const OBJECT: &[u8] = &[];

/// Whether this build carries the kernel programs.
pub fn object_embedded() -> bool {
    !OBJECT.is_empty()
}

/// Why the probes could not be placed.
#[derive(Debug, Error)]
pub enum Error {
    /// Built without `cargo xtask build`.
    #[error("this build carries no kernel programs; build it with `cargo xtask build`")]
    NoObject,
    /// The object was built from other sources.
    #[error("the embedded object has no room for a translated filter")]
    NoRoom,
    /// The kernel did not describe itself.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// Maps or configuration were refused.
    #[error("cannot load the kernel programs: {0}")]
    Load(#[from] aya::EbpfError),
    /// The programs' messages to developers cannot be had.
    #[cfg(feature = "debug-log")]
    #[error("cannot read the messages of the kernel programs: {0}")]
    Messages(#[from] aya_log::Error),
    /// A map was refused.
    #[error("cannot use map {map}: {source}")]
    Map {
        /// Which.
        map: &'static str,
        /// Why.
        source: aya::maps::MapError,
    },
    /// A program was refused or a probe could not be placed.
    #[error(transparent)]
    Attach(#[from] attach::Error),
    /// Something else than the filter chooses packets, and this kernel does not tell what is needed for it.
    #[error("{option} does not work here: {reason}")]
    Choice {
        /// The option.
        option: &'static str,
        /// What is missing.
        reason: String,
    },
    /// A program that runs cannot be asked about.
    #[error("cannot ask the kernel about its programs: {0}")]
    Program(io::Error),
}

impl Error {
    /// Whether nothing on this host, as it is, can trace with probes; other errors came up while running.
    pub fn unusable(&self) -> bool {
        match self {
            Self::NoObject | Self::Choice { .. } => true,
            Self::NoRoom | Self::Program(_) => false,
            Self::Kernel(error) => error.unusable(),
            Self::Attach(error) => error.unusable(),
            Self::Load(error) => not_permitted(error),
            Self::Map { source, .. } => not_permitted(source),
            #[cfg(feature = "debug-log")]
            Self::Messages(_) => false,
        }
    }

    /// What can be done about it.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::NoObject | Self::NoRoom | Self::Program(_) => None,
            Self::Choice { .. } => Some("leave it out".to_owned()),
            Self::Kernel(error) => error.remedy(),
            Self::Attach(error) => error.remedy(),
            Self::Load(error) if system_code(error) == Some(libc::ENOMEM) => Some(LESS_ROOM.to_owned()),
            Self::Load(_) | Self::Map { .. } => not_permitted(self).then(|| PRIVILEGES.to_owned()),
            #[cfg(feature = "debug-log")]
            Self::Messages(_) => None,
        }
    }
}

const PRIVILEGES: &str = "run it as root, or with CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_SYSLOG";

/// What the kernel says of queues for user space, where it has them.
const QUEUES: &str = "/proc/net/netfilter/nfnetlink_queue";

const LESS_ROOM: &str = "make more memory free, or trace with less room for events: --buffer 4M";

/// The system's number for the first cause of an error.
fn system_code(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.filter_map(|error| error.downcast_ref::<io::Error>()?.raw_os_error()).last()
}

/// Whether the kernel said that this process may not.
fn not_permitted(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(system_code(error), Some(libc::EPERM | libc::EACCES))
}

/// How nftables is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nftables {
    /// Not at all: nothing of it is there.
    Absent,
    /// Rule by rule. The kernel has been made to tell of verdicts: a run that began before it would have no end.
    Rules,
    /// Only which base chains a packet met and how they ended; nothing is changed.
    Ends,
}

/// How to trace.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Which packets.
    pub filter: &'a Filter,
    /// `ns.inum` of the namespace; `None` for all.
    pub netns: Option<u32>,
    /// Bytes of the ring buffer, a power of two.
    pub ring_bytes: u32,
    /// Largest table to be followed, in entries.
    pub table_entries: u32,
    /// How probes are placed.
    pub method: attach::Method,
    /// How nftables is traced.
    pub nftables: Nftables,
    /// How many of the packets that match are traced; all without it.
    pub throttle: Option<Throttle>,
    /// Whether it matters how packets end.
    pub endings: bool,
    /// What is counted, instead of sending records.
    pub counts: Option<Counts>,
    /// Whether it is told how long packets were in tables and base chains.
    pub timed: bool,
    /// What packets are chosen by beside the filter.
    pub choice: Choice<'a>,
    /// Whether it is told who sends packets.
    pub who: bool,
    /// Only the last rule of packets that are dropped, with room for the counters of all legacy tables, in pages of
    /// [`PAGE_ENTRIES`].
    pub last_rule: Option<u32>,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// One of [`by`].
    pub by: u32,
    /// How many different things there is room for.
    pub room: u32,
}

/// What packets are chosen by beside the filter, as far as it is known at their first hook.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choice<'a> {
    /// The device that they came in by.
    pub indev: Option<&'a Device>,
    /// Who sent them.
    pub uid: Option<u32>,
    /// The cgroup that sent them.
    pub cgroup: Option<Cgroup>,
    /// Whether their connections are followed.
    pub follow: bool,
    /// Whether it is told what conntrack knows of their connections.
    pub conntrack: bool,
}

/// Placed probes. Dropping it takes them away.
pub struct Ebpf {
    ring: RingBuf<MapData>,
    counters: PerCpuArray<MapData, u64>,
    counts: PerCpuHashMap<MapData, PodKey, u64>,
    replace_counts: Rc<ReplaceCounts>,
    commits: Rc<CommitCounts>,
    probes: attach::Probes,
    /// Gives up traversals whose exit was not seen, on the CPU where it runs.
    sweep: Option<OwnedFd>,
    endings: Option<Endings>,
    tells_senders: bool,
    throttle: Array<MapData, PodThrottle>,
    without: Vec<String>,
    traces_nftables: bool,
    log_style: LogStyle,
    #[cfg(feature = "debug-log")]
    messages: debug::Messages,
    _programs: aya::Ebpf,
}

#[repr(transparent)]
#[derive(Clone, Copy)]
struct PodConfig(Config);
#[expect(unsafe_code, reason = "aya has no derive for what zerocopy proved")]
// SAFETY: `Config` derives zerocopy's `IntoBytes` and `FromBytes`: no padding, and any bytes are a value.
unsafe impl Pod for PodConfig {}
#[repr(transparent)]
#[derive(Clone, Copy)]
struct PodChoiceConfig(ChoiceConfig);
#[expect(unsafe_code, reason = "aya has no derive for what zerocopy proved")]
// SAFETY: as for `PodConfig`.
unsafe impl Pod for PodChoiceConfig {}
#[repr(transparent)]
#[derive(Clone, Copy)]
struct PodNftConfig(NftConfig);
#[expect(unsafe_code, reason = "aya has no derive for what zerocopy proved")]
// SAFETY: as for `PodConfig`.
unsafe impl Pod for PodNftConfig {}
#[repr(transparent)]
#[derive(Clone, Copy)]
struct PodEndingConfig(EndingConfig);
#[expect(unsafe_code, reason = "aya has no derive for what zerocopy proved")]
// SAFETY: as for `PodConfig`.
unsafe impl Pod for PodEndingConfig {}
#[repr(transparent)]
#[derive(Clone, Copy)]
struct PodSenderConfig(SenderConfig);
#[expect(unsafe_code, reason = "aya has no derive for what zerocopy proved")]
// SAFETY: as for `PodConfig`.
unsafe impl Pod for PodSenderConfig {}
#[repr(transparent)]
#[derive(Clone, Copy)]
struct PodCommits(Commits);
#[expect(unsafe_code, reason = "aya has no derive for what zerocopy proved")]
// SAFETY: as for `PodConfig`.
unsafe impl Pod for PodCommits {}

#[repr(transparent)]
#[derive(Clone, Copy)]
struct PodThrottle(Throttle);
#[expect(unsafe_code, reason = "aya has no derive for what zerocopy proved")]
// SAFETY: as for `PodConfig`.
unsafe impl Pod for PodThrottle {}

#[repr(transparent)]
#[derive(Clone, Copy)]
struct PodKey(count::Key);
#[expect(unsafe_code, reason = "aya has no derive for what zerocopy proved")]
// SAFETY: as for `PodConfig`.
unsafe impl Pod for PodKey {}

/// A filter as the programs get it.
struct Chosen<'a> {
    object: Cow<'static, [u8]>,
    window: u32,
    link_bytes: u32,
    program: &'a Program,
}

impl<'a> Chosen<'a> {
    fn new(form: &'a Form) -> Result<Self, Error> {
        Ok(match form {
            Form::Program(program) => {
                Self { object: Cow::Borrowed(OBJECT), window: 0, link_bytes: 0, program }
            }
            Form::Translated { translated, link, .. } => Self {
                object: Cow::Owned(room::furnish(OBJECT, translated).ok_or(Error::NoRoom)?),
                window: translated.window,
                link_bytes: match link {
                    LinkType::Raw => 0,
                    LinkType::Ethernet => ETHERNET_HEADER,
                },
                program: &Program::ANY,
            },
        })
    }
}

/// Bytes of an Ethernet header.
const ETHERNET_HEADER: u32 = 14;

/// Rules whose counters fill a page.
pub const PAGE_ENTRIES: u32 = tracer_common::legacy::RULES_PER_BLOCK;

/// The programs with their maps, before any of them is placed.
struct Loaded {
    object: Cow<'static, [u8]>,
    programs: aya::Ebpf,
    kernel: kernel::Kernel,
    /// How rules of nftables are seen; `None` when nftables is not traced.
    witness: Option<u32>,
    /// What is not traced, with the reason.
    without: Vec<String>,
}

impl Loaded {
    fn of(options: &Options<'_>) -> Result<Self, Error> {
        if !object_embedded() {
            return Err(Error::NoObject);
        }
        let filter = Chosen::new(&options.filter.form)?;
        let kernel = kernel::Kernel::ask_for(options.endings)?;
        let layout = &kernel.layout;
        // Room for the largest table, for another one inside it, and for small ones further in.
        let usual_pages = || 2 * options.table_entries.div_ceil(PAGE_ENTRIES).next_power_of_two() + 16;
        let snapshot_pages = options.last_rule.unwrap_or_else(usual_pages);
        let config = PodConfig(Config {
            per_cpu_offset: layout.counters.per_cpu_offset,
            recseq: match layout.counters.recseq {
                None if kernel.symbols.has_legacy() => return Err(kernel::Error::NoSequence.into()),
                recseq => recseq.unwrap_or(0),
            },
            argument_order: layout.argument_order as u32,
            state_hook_bytes: layout.state_hook_bytes,
            netns: options.netns.unwrap_or(0),
            snapshot_pages,
            wakeup_bytes: options.ring_bytes / 4,
            filter_window: filter.window,
            filter_link_bytes: filter.link_bytes,
            throttled: u32::from(options.throttle.is_some()),
            count_by: options.counts.map_or(by::NOTHING, |counts| counts.by),
            timed: u32::from(options.timed),
            casts: u32::from(kernel.kfuncs.cast.is_some()),
            offsets: layout.offsets,
            reserved_after_offsets: [0; Config::OFFSETS_PADDING],
            filter: *filter.program,
        });
        let mut without = Vec::new();
        let nft = nft_config(&kernel, options.nftables, &mut without);
        let choice = PodChoiceConfig(choice_config(&kernel, &options.choice, options.netns)?);
        let [connections, passed] = if options.choice.follow { FOLLOWED } else { [1, 1] };
        let nft_config = PodNftConfig(nft.unwrap_or(NftConfig::UNRESOLVED));
        let ending = PodEndingConfig(layout.ending);
        let sender = PodSenderConfig(SenderConfig { asked: options.who.into(), ..layout.sender });
        let programs = EbpfLoader::new()
            // The programs carry no relocations against the kernel's types: no need to read them all once more.
            .btf(None)
            .override_global("CONFIG", &config, true)
            .override_global("NFT", &nft_config, true)
            .override_global("ENDING", &ending, true)
            .override_global("CHOICE", &choice, true)
            .map_max_entries("CONNECTIONS", connections)
            .map_max_entries("PASSED", passed)
            .override_global("SENDER", &sender, true)
            .map_max_entries("EVENTS", options.ring_bytes)
            .map_max_entries("SNAPSHOTS", snapshot_pages)
            .map_max_entries("COUNTS", options.counts.map_or(1, |counts| counts.room))
            .load(&filter.object)?;
        let witness = nft.map(|nft| nft.witness);
        Ok(Self { object: filter.object, programs, kernel, witness, without })
    }
}

/// Directions of connections that are followed, and packets on their way to another namespace.
const FOLLOWED: [u32; 2] = [1 << 14, 1 << 12];

/// What the programs are told of what packets are chosen by, or why this kernel cannot do it.
fn choice_config(
    kernel: &kernel::Kernel,
    choice: &Choice<'_>,
    netns: Option<u32>,
) -> Result<ChoiceConfig, Error> {
    let layout = &kernel.layout.choice;
    let missing =
        |option| move |reason: offsets::Unresolved| Error::Choice { option, reason: reason.to_string() };
    let mut asks = 0;
    let mut config =
        ChoiceConfig { offsets: layout.offsets, tuple_stride: layout.tuple_stride, ..ChoiceConfig::NOTHING };
    if let Some(device) = choice.indev {
        asks |= ask::IN;
        // Over loopback a packet comes in that began here.
        asks |= if device.is(b"lo") { ask::LOCAL } else { 0 };
        let (name, mask) = device.words();
        (config.device, config.device_mask) = (name, mask);
    }
    if let Some(uid) = choice.uid {
        asks |= ask::UID;
        config.uid = uid;
    }
    if let Some(Cgroup { id, level }) = choice.cgroup {
        layout.check_cgroups().map_err(missing("--cgroup"))?;
        asks |= ask::CGROUP;
        (config.cgroup, config.cgroup_level) = (id, level);
    }
    if choice.follow || choice.conntrack {
        let option = if choice.follow { "--follow" } else { "--conntrack" };
        layout.check_connections().map_err(missing(option))?;
        let offsets = &kernel.layout.offsets;
        if !kernel.symbols.conntrack_confirm || [offsets.skb_nfct, offsets.ct_status].contains(&ABSENT) {
            let reason = "conntrack is not in the kernel".to_owned();
            return Err(Error::Choice { option, reason });
        }
    }
    if choice.follow {
        asks |= ask::FOLLOW;
        asks |= if netns.is_none() { ask::ACROSS } else { 0 };
    }
    asks |= if choice.conntrack { ask::TELL } else { 0 };
    config.asks = asks;
    Ok(config)
}

/// Whether the kernel takes the programs that need no kprobes. Loads them for a trace of all packets and of all rules,
/// and places none.
pub fn try_fentry(everything: &Filter) -> Result<(), Error> {
    let Loaded { object, programs, kernel, witness, .. } =
        Loaded::of(&for_all(everything, attach::Method::Fentry))?;
    Ok(attach::try_typed(&object, &programs, &kernel, Sight::Whole(witness))?)
}

/// The same for the programs at the entry and the return of the table functions.
pub fn try_session(everything: &Filter) -> Result<(), Error> {
    let Loaded { object, programs, kernel, witness, .. } =
        Loaded::of(&for_all(everything, attach::Method::Session))?;
    let refused = |error| Error::Attach(attach::Error::Session(error));
    attach::try_session(&object, &programs, &kernel, Sight::Whole(witness)).map_err(refused)
}

/// A trace of all packets and of all rules.
fn for_all(everything: &Filter, method: attach::Method) -> Options<'_> {
    Options {
        filter: everything,
        netns: None,
        ring_bytes: 1 << 16,
        table_entries: PAGE_ENTRIES,
        method,
        nftables: Nftables::Rules,
        throttle: None,
        endings: false,
        counts: None,
        timed: false,
        choice: Choice::default(),
        who: false,
        last_rule: None,
    }
}

impl Ebpf {
    /// Loads the programs and places the probes.
    pub fn attach(options: &Options<'_>) -> Result<Self, Error> {
        let Loaded { object, mut programs, kernel, witness, mut without } = Loaded::of(options)?;
        if let Some(throttle) = options.throttle {
            let refused = |source| Error::Map { map: "THROTTLE", source };
            let map = programs.map_mut("THROTTLE").ok_or(Error::NoRoom)?;
            let mut map: Array<_, PodThrottle> = Array::try_from(map).map_err(refused)?;
            map.set(0, PodThrottle(throttle), 0).map_err(refused)?;
        }
        let sight = match options.last_rule {
            Some(_) => Sight::LastRule(witness),
            None => Sight::Whole(witness),
        };
        let probes = attach::Probes::place(&object, &mut programs, &kernel, options.method, sight)?;
        if options.choice.follow || options.choice.conntrack {
            probes.place_connections(&mut programs)?;
        }
        without.extend(probes.without().iter().cloned());
        let sweep = attach::load_called(&mut programs, "sweep").ok();
        let has_preempt_count = kernel.layout.sender.preempt_count != 0;
        let (mut endings, mut sees_reinjected) = (None, false);
        if options.endings {
            let placed = match sight {
                Sight::LastRule(_) => probes.place_drops(&mut programs).map(|()| false),
                _ => probes.place_endings(&mut programs, &kernel),
            };
            match placed {
                Err(error) => {
                    // The verifier's words would hide the rest.
                    let error = error.to_string();
                    let error = error.split(". Verifier output").next().unwrap_or_default();
                    without.push(format!("how packets end where no table says it: {error}"));
                }
                Ok(sees) => {
                    sees_reinjected = sees;
                    let list = take(&mut programs, "HOOK_LIST", Array::try_from)?;
                    let hooks = attach::load_called(&mut programs, "list_hooks").ok();
                    let hooks = hooks.map(|program| ending::Hooks { program, list });
                    endings = Some(Endings::new(kernel.functions, kernel.reasons, hooks));
                }
            }
        }
        let tells_senders = options.who && {
            let unknown = match (&endings, has_preempt_count) {
                (_, false) => Some("where this kernel counts what interrupts a task is not known"),
                (None, _) => Some("what comes back from queues is not seen"),
                (Some(_), _) if !sees_reinjected && Path::new(QUEUES).exists() => {
                    Some("what comes back from queues is not seen")
                }
                _ => None,
            };
            without.extend(unknown.map(|reason| format!("who sends packets: {reason}")));
            unknown.is_none()
        };
        let throttle = take(&mut programs, "THROTTLE", Array::try_from)?;
        let ring = take(&mut programs, "EVENTS", RingBuf::try_from)?;
        let counters = take(&mut programs, "COUNTERS", PerCpuArray::try_from)?;
        let counts = take(&mut programs, "COUNTS", PerCpuHashMap::try_from)?;
        let replace_counts = Rc::new(ReplaceCounts(take(&mut programs, "REPLACE_COUNTS", Array::try_from)?));
        #[cfg(feature = "debug-log")]
        let messages = debug::Messages::of(&mut programs)?;
        let commits = Rc::new(CommitCounts(take(&mut programs, "COMMITS", Array::try_from)?));
        Ok(Self {
            without,
            traces_nftables: witness.is_some(),
            commits,
            ring,
            counters,
            counts,
            replace_counts,
            probes,
            sweep,
            endings,
            tells_senders,
            throttle,
            log_style: kernel.log_style,
            #[cfg(feature = "debug-log")]
            messages,
            _programs: programs,
        })
    }

    /// How this kernel writes log lines.
    pub fn log_style(&self) -> LogStyle {
        self.log_style
    }

    /// What the probes leave visible on the host while they are there; `None` for nothing.
    pub fn footprint(&self) -> Option<&str> {
        self.probes.footprint()
    }

    /// How the table functions are probed, in words.
    pub fn method(&self) -> String {
        self.probes.method()
    }

    /// Families that cannot be traced, with the reason.
    pub fn without(&self) -> &[String] {
        &self.without
    }

    /// Whether nftables is traced.
    pub fn traces_nftables(&self) -> bool {
        self.traces_nftables
    }

    /// How often rules of nftables have been committed; stays readable while records are being drained.
    pub fn commits(&self) -> Rc<CommitCounts> {
        Rc::clone(&self.commits)
    }

    /// What tells how packets end; once.
    pub fn endings(&mut self) -> Option<Endings> {
        self.endings.take()
    }

    /// Whether it is known who sends packets, as far as that was asked for.
    pub fn tells_senders(&self) -> bool {
        self.tells_senders
    }

    /// Gives up traversals that have been open for long: nothing but the next one on their CPU would find that their
    /// exit was not seen. Their records come then.
    pub fn sweep(&self) {
        let Some(sweep) = &self.sweep else { return };
        for cpu in 0..kernel::possible_cpus().map_or(0, |cpus| cpus as u32) {
            // Not on one that is off, and not on kernels that cannot call programs.
            let _ = bpf::call_raw(sweep.as_fd(), [0, 0], bpf::On::Cpu(cpu));
        }
    }

    /// Gives waiting records to `receive`, at most `limit` of them: the kernel may fill the ring as fast as it is
    /// emptied. Says how many there were.
    pub fn drain(&mut self, limit: usize, mut receive: impl FnMut(Record<'_>)) -> usize {
        #[cfg(feature = "debug-log")]
        self.messages.show();
        let mut records = 0;
        while records < limit
            && let Some(item) = self.ring.next()
        {
            if let Some(record) = decode::decode(&item) {
                receive(record);
            }
            records += 1;
        }
        records
    }

    /// What was lost so that no later record tells of it: records that did not fit into the ring, and runs of nftables
    /// that no program saw.
    pub fn lost(&self) -> Result<Lost, Error> {
        let missed_runs = self.counter(Counter::RunsLeftOut)? + self.left_out(Begins::Run)?;
        Ok(Lost { records: self.counter(Counter::Lost)?, missed_runs })
    }

    /// Traversals of tables that no program saw, or not to their end: the kernel leaves the exit of one out where another
    /// exit is at work, and then nobody knows its rules. The sequence count does not tell of those that one target starts
    /// inside another traversal, and the kernel does not tell of those that found none of our probes in place.
    pub fn missed_traversals(&self) -> Result<u64, Error> {
        let missed = self.counter(Counter::Missed)?.max(self.left_out(Begins::Traversal)?);
        Ok(self.counter(Counter::LeftOut)? + self.counter(Counter::Unended)? + missed)
    }

    /// Packets that matched and were not traced, as was asked for.
    pub fn throttled(&self) -> Result<Throttled, Error> {
        let (by_chance, by_limit) = (self.counter(Counter::SampledOut)?, self.counter(Counter::LimitedOut)?);
        Ok(Throttled { by_chance, by_limit })
    }

    /// From now on, one packet in so many is traced. Only where a part of them was asked for from the start.
    pub fn sample(&mut self, one_in: u32) -> Result<(), Error> {
        let refused = |source| Error::Map { map: "THROTTLE", source };
        let PodThrottle(before) = self.throttle.get(&0, 0).map_err(refused)?;
        let threshold = Throttle::new(one_in, None).threshold;
        self.throttle.set(0, PodThrottle(Throttle { threshold, ..before }), 0).map_err(refused)
    }

    /// How long all programs have run, while the kernel measured that.
    pub fn run_time(&self) -> io::Result<Duration> {
        let others = self._programs.programs().filter_map(|(_, program)| program.fd().ok());
        self.probes.own().chain(others.map(AsFd::as_fd)).map(bpf::run_time).sum()
    }

    /// Gives all that was counted.
    pub fn counted(&self, mut each: impl FnMut(&count::Key, u64)) -> Result<(), Error> {
        for counted in self.counts.iter() {
            let (PodKey(key), values) = counted.map_err(|source| Error::Map { map: "COUNTS", source })?;
            each(&key, values.iter().sum());
        }
        Ok(())
    }

    /// What was seen and is in no count.
    pub fn uncounted(&self) -> Result<Uncounted, Error> {
        let no_room = self.counter(Counter::Uncounted)?;
        Ok(Uncounted { no_room, doubtful: self.counter(Counter::Doubtful)? })
    }

    /// Traversals that the kernel left the programs out of, as far as it counts them, or one program because of another;
    /// the next traversal on the same CPU tells of most of them, too.
    pub fn traversals_left_out(&self) -> Result<u64, Error> {
        Ok(self.counter(Counter::LeftOut)? + self.left_out(Begins::Traversal)?)
    }

    fn left_out(&self, begins: Begins) -> Result<u64, Error> {
        self.probes.left_out(begins).map_err(Error::Program)
    }

    /// Sum of a counter over all CPUs.
    fn counter(&self, counter: Counter) -> Result<u64, Error> {
        let values = self
            .counters
            .get(&(counter as u32), 0)
            .map_err(|source| Error::Map { map: "COUNTERS", source })?;
        Ok(values.iter().sum())
    }

    /// How often tables have been replaced; stays readable while records are being drained.
    pub fn replace_counts(&self) -> Rc<ReplaceCounts> {
        Rc::clone(&self.replace_counts)
    }
}

/// How often tables have been replaced since the probes were placed.
pub struct ReplaceCounts(Array<MapData, u32>);

impl ReplaceCounts {
    /// The counters of all slots as they are now.
    pub fn now(&self) -> [u32; TABLE_SLOTS as usize] {
        let mut counts = [0; TABLE_SLOTS as usize];
        for (slot, count) in (0..).zip(&mut counts) {
            *count = self.slot(slot);
        }
        counts
    }

    /// The counter of a table, by the table's address.
    pub fn of(&self, table: u64) -> u32 {
        self.slot(table_slot(table))
    }

    fn slot(&self, slot: u32) -> u32 {
        // The map has exactly these slots, and reading an array element does not fail.
        self.0.get(&slot, 0).unwrap_or(0)
    }
}

/// How often rules of nftables have been committed since the probes were placed.
pub struct CommitCounts(Array<MapData, PodCommits>);

impl CommitCounts {
    /// The counters of all slots as they are now.
    pub fn now(&self) -> [Commits; COMMIT_SLOTS as usize] {
        let mut commits = [Commits::default(); COMMIT_SLOTS as usize];
        for (slot, commits) in (0..).zip(&mut commits) {
            // The map has exactly these slots, and reading an array element does not fail.
            *commits = self.0.get(&slot, 0).map_or(Commits::default(), |PodCommits(commits)| commits);
        }
        commits
    }
}

/// What the programs are told of nftables; `None` when it is not traced. Why not, where it should be, is added.
fn nft_config(kernel: &kernel::Kernel, nftables: Nftables, without: &mut Vec<String>) -> Option<NftConfig> {
    if matches!(nftables, Nftables::Absent) || !kernel.symbols.nft_do_chain {
        return None;
    }
    match &kernel.layout.nft {
        Ok(config) if matches!(nftables, Nftables::Ends) => {
            Some(NftConfig { witness: Witness::Return as u32, ..*config })
        }
        Ok(config) => Some(*config),
        Err(unresolved) => {
            without.push(format!("nftables: {unresolved}"));
            None
        }
    }
}

/// What was lost, since the probes were placed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Records.
    pub records: u64,
    /// Runs of nftables.
    pub missed_runs: u64,
}

/// What was seen and is in no count, since the probes were placed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uncounted {
    /// What found no room, and verdicts that could not be told.
    pub no_room: u64,
    /// Traversals of tables whose rules are in doubt.
    pub doubtful: u64,
}

/// Packets that matched and were not traced, since the probes were placed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttled {
    /// Not among the one in so many.
    pub by_chance: u64,
    /// More than so many in a second.
    pub by_limit: u64,
}

impl AsRawFd for Ebpf {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl AsFd for Ebpf {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let fd = self.ring.as_raw_fd();
        #[expect(unsafe_code, reason = "aya gives the ring's descriptor only as a number")]
        // SAFETY: the ring is owned by `self` and open as long as the borrow lasts.
        unsafe {
            BorrowedFd::borrow_raw(fd)
        }
    }
}

fn take<T>(
    programs: &mut aya::Ebpf,
    map: &'static str,
    convert: impl FnOnce(aya::maps::Map) -> Result<T, aya::maps::MapError>,
) -> Result<T, Error> {
    let taken = programs
        .take_map(map)
        .ok_or(Error::Map { map, source: aya::maps::MapError::IoError(io::ErrorKind::NotFound.into()) })?;
    convert(taken).map_err(|source| Error::Map { map, source })
}
