//! `nftracer trace`

use super::limit::{LimitArg, limits};
use super::predicates::{CgroupArgs, MarkArg, PredicateArgs, VerdictArgs, marks};
use super::{UsageError, netns::Netns};
use crate::backend::ebpf::attach::Method;
use crate::predicate::Predicates;
use crate::sink::Output;
use crate::tally::By;
use clap::{Args, ValueEnum};
use jiff::SignedDuration;
use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

const EXAMPLES: &str = "\
FILTER is a pcap-filter(7) expression, as with tcpdump; without one, every packet is traced.
Quote what the shell would take for itself, and put `--` before it when a word of it begins with a dash.

Examples:
  nftracer trace icmp and host 192.0.2.1
  nftracer trace -c 5 -- not tcp port 22
  nftracer trace 'tcp[tcpflags] & (tcp-syn|tcp-fin) != 0 and not src net 10.0.0.0/8'
  nftracer trace --netns blue --for 30s -o json udp port 53
  nftracer trace --verdict drop --in eth0 tcp
  nftracer trace --verdict drop --last-rule tcp
  nftracer trace --rule filter:FORWARD:3 --mark 0x10/0xff";

/// Show the rules that packets meet, while they meet them
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct TraceArgs {
    /// Which packets to trace
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,

    #[command(flatten)]
    source: SourceArgs,

    #[command(flatten)]
    predicates: PredicateArgs,

    #[command(flatten)]
    cgroup: CgroupArgs,

    #[command(flatten)]
    verdicts: VerdictArgs,

    /// With --verdict drop, show of each packet only what dropped it, not the rules before: packets that are accepted cost
    /// next to nothing then. The filter is asked about packets as they are when they are dropped. For ebpf, and usual there
    /// where nothing else is asked for
    #[arg(long, requires = "verdict", conflicts_with_all = ["indev", "outdev", "uid", "table", "chain", "rule", "cgroup", "follow", "conntrack", "sample", "limit", "max_cost", "who", "latency", "slow", "summary", "count_by", "explain"])]
    last_rule: bool,

    /// With --verdict drop, show all that packets met before they were dropped: each one that matches is traced for that
    #[arg(long, requires = "verdict", conflicts_with = "last_rule")]
    whole_path: bool,

    /// Show the other packets of their connections as well, in both directions, also after translation; with --all-netns
    /// packets are followed from one namespace to the next, too; for ebpf
    #[arg(long)]
    follow: bool,

    /// Show what conntrack knows of packets' connections: both directions, zone and mark; for ebpf
    #[arg(long)]
    conntrack: bool,

    /// Stop after this many packets
    #[arg(short, long, value_name = "N")]
    count: Option<u64>,

    /// Stop after this time: 30s, 2m30s, 500ms; a plain number is seconds
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    duration: Option<Duration>,

    /// Trace only one packet in N of those that match, by chance; each of them all its way
    #[arg(long, value_name = "1/N", value_parser = parse_sample)]
    sample: Option<NonZeroU32>,

    /// Trace at most so many packets in each second; with /rule, show at most so many of those that the same rule decides
    /// about. May be given once for each
    #[arg(long, value_name = "N/s[/rule]")]
    limit: Vec<LimitArg>,

    /// Take at most this share of all processors' time, programs in the kernel included: 1%, 0.5%. Where it is more, fewer
    /// packets are traced, and at last none
    #[arg(long, value_name = "SHARE", value_parser = parse_share)]
    max_cost: Option<NonZeroU32>,

    /// Say which process sends a packet that is made here: its name, number, user and cgroup
    #[arg(long)]
    who: bool,

    /// Say how long each packet was in tables and base chains
    #[arg(long)]
    latency: bool,

    /// Show only packets that were in tables and base chains for longer than this: 50us, 2ms
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    slow: Option<Duration>,

    /// End with how long packets were in each table and base chain, and with the rules that they met most often
    #[arg(long)]
    summary: bool,

    /// Count packets in the kernel instead of showing them, by what they met or by what they are
    #[arg(long, value_name = "WHAT", conflicts_with_all = ["sample", "limit", "explain", "count", "write", "latency", "slow", "summary", "who", "max_cost"])]
    count_by: Option<CountByArg>,

    /// How often counts are shown, with --count-by
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_duration)]
    interval: Duration,

    /// How many of the largest counts are shown, with --count-by
    #[arg(long, value_name = "N", default_value = "20")]
    top: usize,

    /// Say of packets that passed this rule without matching which of its conditions they did not meet; the rule as
    /// `nftracer rules` names it
    #[arg(long, value_name = "TABLE:CHAIN:N")]
    explain: Option<RuleName>,

    /// A block for each packet, the lines of the TRACE target, or JSON Lines
    #[arg(short, long, value_name = "OUTPUT", default_value = "pretty")]
    output: OutputArg,

    /// Also record everything in a file, for `nftracer read`, or for Wireshark when it ends in .pcapng
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,

    /// Say more on standard error
    #[arg(short, long)]
    verbose: bool,
}

/// Where packets are looked for, and how.
#[derive(Args, Debug)]
pub(super) struct SourceArgs {
    /// Where steps come from; auto takes the best that works here
    #[arg(long, value_name = "BACKEND", default_value = "auto")]
    backend: BackendArg,

    /// How packets are chosen for the kernel's own tracing: nft by a table of nftables, rule by TRACE rules, or none by
    /// those that are there, not for ebpf; auto takes the first that works. With a number, packets that had this mark at
    /// one of their steps: 0x10, or 0x10/0xff. May be given once for each
    #[arg(long, value_name = "MARK")]
    mark: Vec<MarkArg>,

    /// How the kernel's functions are probed, for ebpf: fentry is cheapest; session needs no BTF of modules, for legacy
    /// tables, with kprobes for nftables; kprobe works on older kernels. auto takes the first that works
    #[arg(long, value_name = "METHOD", default_value = "auto")]
    attach: AttachArg,

    /// Read the kernel's log from this file, which may be rotated, instead of /dev/kmsg; for log
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,

    /// The network namespace: a name of `ip netns`, a process id, or a path
    #[arg(long, value_name = "NAME|PID|PATH", conflicts_with = "all_netns")]
    netns: Option<String>,

    /// All network namespaces
    #[arg(long)]
    all_netns: bool,

    /// Room for what the kernel has told and nobody has taken yet: 4M, 1G; by default what suits the memory and the
    /// CPUs. What finds no room is counted as lost
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    buffer: Option<u32>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum CountByArg {
    Rule,
    Verdict,
    Chain,
    Src,
    Dst,
    Flow,
    Owner,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BackendArg {
    Auto,
    Ebpf,
    Netlink,
    Log,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AttachArg {
    Auto,
    Fentry,
    Session,
    Kprobe,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum OutputArg {
    Pretty,
    Trace,
    Json,
}

/// Where steps are to come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// The best that works here.
    #[default]
    Auto,
    /// Probes and a ring buffer.
    Ebpf,
    /// TRACE over netlink.
    Netlink,
    /// TRACE in the kernel's log.
    Log,
}

/// How packets are to be chosen for the kernel's own tracing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mark {
    /// The best that works here.
    #[default]
    Auto,
    /// Not at all: by TRACE rules that are there.
    None,
    /// By a table of nftables.
    Nft,
    /// By TRACE rules.
    Rule,
}

/// How much is shown of packets, where only those are asked for that are dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Extent {
    /// What dropped them, where probes look for that alone; all that they met elsewhere.
    #[default]
    Usual,
    /// What dropped them.
    LastRule,
    /// All that they met.
    WholePath,
}

/// A rule by its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleName {
    /// The table's name.
    pub table: String,
    /// The chain's name.
    pub chain: String,
    /// Its place in the chain, from 1.
    pub number: u32,
}

/// `filter:FORWARD:3`, or as steps have it, `filter:FORWARD:rule:3`.
impl FromStr for RuleName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "not a rule; write it as filter:FORWARD:3";
        let (place, number) = text.rsplit_once(':').ok_or(WRONG)?;
        let (table, chain) = place.strip_suffix(":rule").unwrap_or(place).split_once(':').ok_or(WRONG)?;
        let number = number.parse().ok().filter(|number| *number > 0).ok_or(WRONG)?;
        let named = !table.is_empty() && !chain.is_empty();
        named.then(|| Self { table: table.to_owned(), chain: chain.to_owned(), number }).ok_or(WRONG)
    }
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:rule:{}", self.table, self.chain, self.number)
    }
}

/// What is asked about the time that packets take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// To be shown with each packet.
    pub shown: bool,
    /// Only packets that took longer are shown.
    pub slow: Option<Duration>,
    /// All of it together at the end.
    pub summary: bool,
}

impl Latency {
    /// Whether anything is.
    pub fn is_asked(&self) -> bool {
        self.shown || self.slow.is_some() || self.summary
    }
}

/// What is counted, and how it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counting {
    /// By what.
    pub by: By,
    /// How often.
    pub interval: Duration,
    /// How many of the largest.
    pub top: usize,
}

/// What `nftracer trace` is asked to do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TraceConfig {
    /// The filter as typed, words joined by spaces; empty for none.
    pub filter: String,
    /// What packets are chosen by beside the filter.
    pub predicates: Predicates,
    /// The cgroup of those who send packets.
    pub cgroup: Option<PathBuf>,
    /// Show all packets of the connections of those that match.
    pub follow: bool,
    /// Show what conntrack knows of their connections.
    pub conntrack: bool,
    /// How much is shown of packets that are dropped.
    pub extent: Extent,
    /// Where steps are to come from.
    pub backend: Backend,
    /// How packets are to be chosen for the kernel's own tracing.
    pub mark: Mark,
    /// How probes are to be placed.
    pub attach: Method,
    /// Where to read the kernel's log.
    pub log_file: Option<PathBuf>,
    /// Which namespace.
    pub netns: Netns,
    /// Stop after this many packets.
    pub count: Option<NonZeroU64>,
    /// Stop after this time.
    pub duration: Option<Duration>,
    /// Bytes of the buffer between the kernel and us, a power of two.
    pub buffer: Option<u32>,
    /// Trace one packet in so many.
    pub sample: Option<NonZeroU32>,
    /// Trace at most so many packets in a second.
    pub limit: Option<NonZeroU32>,
    /// Show at most so many packets in a second that one rule decides about.
    pub limit_per_rule: Option<NonZeroU32>,
    /// What is counted, instead of showing packets.
    pub counting: Option<Counting>,
    /// What is asked about the time that packets take.
    pub latency: Latency,
    /// The largest share of all processors' time, in millionths.
    pub max_cost_ppm: Option<NonZeroU32>,
    /// Whether it is told which process sends a packet.
    pub who: bool,
    /// The rule that is explained.
    pub explain: Option<RuleName>,
    /// In which form packets are shown.
    pub output: Output,
    /// Where to record it as well.
    pub write: Option<PathBuf>,
    /// Say more on standard error.
    pub verbose: bool,
}

impl TraceConfig {
    /// What packets are chosen by beside the filter, as typed.
    pub fn choice(&self) -> String {
        let words = [
            self.predicates.to_string(),
            self.cgroup.as_ref().map(|path| format!("--cgroup {}", path.display())).unwrap_or_default(),
            if self.follow { "--follow".to_owned() } else { String::new() },
            if self.extent == Extent::LastRule { "--last-rule".to_owned() } else { String::new() },
        ];
        words.into_iter().filter(|words| !words.is_empty()).collect::<Vec<_>>().join(" ")
    }

    /// Whether probes look for what dropped packets, and for nothing else.
    pub fn asks_last_rule(&self) -> bool {
        match self.extent {
            Extent::LastRule => true,
            Extent::WholePath => false,
            Extent::Usual => {
                let Self { follow, conntrack, who, .. } = *self;
                let asks_more = follow || conntrack || who || self.latency.is_asked();
                let leaves_out = self.sample.is_some()
                    || self.limit.is_some()
                    || self.limit_per_rule.is_some()
                    || self.max_cost_ppm.is_some();
                self.predicates == Predicates::dropped()
                    && self.mark == Mark::Auto
                    && self.cgroup.is_none()
                    && self.counting.is_none()
                    && self.explain.is_none()
                    && !asks_more
                    && !leaves_out
            }
        }
    }

    /// Fails for what only probes can tell, where it is not they that shall tell it, and for what is known too late.
    pub(super) fn checked(mut self) -> Result<Self, UsageError> {
        let asks_last_rule = self.extent == Extent::LastRule;
        let option = match (self.follow, self.conntrack, &self.cgroup, asks_last_rule) {
            (true, ..) => "--follow",
            (_, true, ..) => "--conntrack",
            (_, _, Some(_), _) => "--cgroup",
            (.., true) => "--last-rule",
            (false, false, None, false) => return Ok(self),
        };
        let reason = "only the ebpf backend can do it, and that needs no mark";
        let refused = |value: &str| Err(UsageError::Value { option, value: value.to_owned(), reason });
        match (self.backend, self.mark) {
            (Backend::Netlink, _) => return refused("with --backend netlink"),
            (Backend::Log, _) => return refused("with --backend log"),
            (_, Mark::Nft | Mark::Rule) => return refused("with --mark"),
            (Backend::Auto | Backend::Ebpf, _) => self.backend = Backend::Ebpf,
        }
        if asks_last_rule && self.predicates != Predicates::dropped() {
            let reason = "it shows what is dropped, as far as that is known: --verdict drop goes with it, and nothing else";
            let value = format!("with {}", self.predicates);
            return Err(UsageError::Value { option: "--last-rule", value, reason });
        }
        let first = Predicates { indev: None, uid: None, verdicts: Vec::new(), ..self.predicates.clone() };
        if self.follow && !first.is_empty() {
            let reason = "that is known too late to follow a connection; --in, --uid, --cgroup and --verdict can be \
                          asked with it";
            return Err(UsageError::Value { option: "--follow", value: format!("with {first}"), reason });
        }
        Ok(self)
    }
}

impl TraceArgs {
    pub(super) fn config(self) -> Result<TraceConfig, UsageError> {
        if let Some(rule) = self.explain.as_ref()
            && (self.source.all_netns || matches!(self.output, OutputArg::Trace))
        {
            let reason = "it needs one namespace, and an output that has room for it: pretty or json";
            return Err(UsageError::Value { option: "--explain", value: rule.to_string(), reason });
        }
        if let Some(by) = self.count_by {
            let value = word(by);
            if matches!(self.output, OutputArg::Trace) {
                let reason = "counts are no lines of TRACE; use -o pretty or json";
                return Err(UsageError::Value { option: "--count-by", value, reason });
            }
            if !matches!(self.source.backend, BackendArg::Auto | BackendArg::Ebpf) {
                let reason = "only --backend ebpf counts in the kernel";
                return Err(UsageError::Value { option: "--count-by", value, reason });
            }
        }
        let latency = Latency { shown: self.latency, slow: self.slow, summary: self.summary };
        let asks_more = latency.is_asked() || self.who || self.max_cost.is_some();
        if asks_more
            && let Some((option, reason)) = match (&self.source.backend, &self.output) {
                (BackendArg::Netlink | BackendArg::Log, _) if latency.is_asked() => {
                    Some(("--backend", "only ebpf knows how long packets take"))
                }
                (BackendArg::Netlink | BackendArg::Log, _) if self.who => {
                    Some(("--backend", "only ebpf knows who sends packets"))
                }
                (BackendArg::Netlink | BackendArg::Log, _) => {
                    Some(("--backend", "only of ebpf it is known what it costs"))
                }
                (_, OutputArg::Trace) if latency.is_asked() => {
                    Some(("--output", "lines of TRACE do not say how long packets take"))
                }
                (_, OutputArg::Trace) if self.who => {
                    Some(("--output", "lines of TRACE do not say who sends packets"))
                }
                _ => None,
            }
        {
            let value = if option == "--output" { "trace".to_owned() } else { word(self.source.backend) };
            return Err(UsageError::Value { option, value, reason });
        }
        let mut source = self.source.config()?;
        if asks_more {
            source.backend = Backend::Ebpf;
        }
        let predicates = Predicates {
            mark: source.predicates.mark,
            verdicts: self.verdicts.verdicts(),
            ..self.predicates.predicates()
        };
        if let Some(by) = self.count_by
            && (!predicates.is_empty() || self.cgroup.cgroup.is_some() || self.follow || self.conntrack)
        {
            let reason = "packets are counted by the filter alone; leave out what else is asked of them";
            return Err(UsageError::Value { option: "--count-by", value: word(by), reason });
        }
        let (limit, limit_per_rule) = limits(&self.limit)?;
        TraceConfig {
            cgroup: self.cgroup.cgroup,
            follow: self.follow,
            conntrack: self.conntrack,
            extent: match (self.last_rule, self.whole_path) {
                (true, _) => Extent::LastRule,
                (_, true) => Extent::WholePath,
                (false, false) => Extent::Usual,
            },
            counting: self.count_by.map(|by| Counting {
                by: by.into(),
                interval: self.interval.max(SHORTEST_INTERVAL),
                top: self.top,
            }),
            filter: self.filter.join(" ").trim().to_owned(),
            predicates,
            latency,
            max_cost_ppm: self.max_cost,
            who: self.who,
            explain: self.explain,
            count: self.count.map(checked_count).transpose()?,
            duration: self.duration,
            sample: self.sample,
            limit,
            limit_per_rule,
            output: self.output.into(),
            write: self.write,
            verbose: self.verbose,
            ..source
        }
        .checked()
    }
}

impl SourceArgs {
    /// Everything else is as it is when nothing is said of it.
    pub(super) fn config(self) -> Result<TraceConfig, UsageError> {
        // Who says how functions are probed wants them probed.
        let backend = match (self.backend, self.attach) {
            (BackendArg::Auto, attach) if attach != AttachArg::Auto && self.log_file.is_none() => {
                Backend::Ebpf
            }
            (backend, _) => backend.into(),
        };
        if self.attach != AttachArg::Auto && backend != Backend::Ebpf {
            return Err(UsageError::Value {
                option: "--attach",
                value: word(self.attach),
                reason: "only --backend ebpf probes functions",
            });
        }
        let (mark, number) = marks(&self.mark)?;
        if backend == Backend::Ebpf && matches!(mark, Mark::Nft | Mark::Rule) {
            let reason = "the ebpf backend needs no mark; --backend netlink and log do";
            return Err(UsageError::Value {
                option: "--mark",
                value: MarkArg::Way(mark).to_string(),
                reason,
            });
        }
        if let Some(file) =
            self.log_file.as_ref().filter(|_| !matches!(backend, Backend::Auto | Backend::Log))
        {
            let reason = "only --backend log reads a file";
            return Err(UsageError::Value {
                option: "--log-file",
                value: file.display().to_string(),
                reason,
            });
        }
        Ok(TraceConfig {
            backend: if self.log_file.is_some() { Backend::Log } else { backend },
            mark,
            attach: self.attach.into(),
            log_file: self.log_file,
            netns: if self.all_netns { Netns::All } else { Netns::from_option(self.netns.as_deref())? },
            buffer: self.buffer,
            predicates: Predicates { mark: number, ..Predicates::default() },
            ..TraceConfig::default()
        })
    }
}

/// As it was typed.
fn word(typed: impl ValueEnum) -> String {
    typed.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// Counts are not shown more often.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

impl From<CountByArg> for By {
    fn from(typed: CountByArg) -> Self {
        match typed {
            CountByArg::Rule => Self::Rule,
            CountByArg::Verdict => Self::Verdict,
            CountByArg::Chain => Self::Chain,
            CountByArg::Src => Self::Src,
            CountByArg::Dst => Self::Dst,
            CountByArg::Flow => Self::Flow,
            CountByArg::Owner => Self::Owner,
        }
    }
}

impl From<BackendArg> for Backend {
    fn from(typed: BackendArg) -> Self {
        match typed {
            BackendArg::Auto => Self::Auto,
            BackendArg::Ebpf => Self::Ebpf,
            BackendArg::Netlink => Self::Netlink,
            BackendArg::Log => Self::Log,
        }
    }
}

impl From<AttachArg> for Method {
    fn from(typed: AttachArg) -> Self {
        match typed {
            AttachArg::Auto => Self::Auto,
            AttachArg::Fentry => Self::Fentry,
            AttachArg::Session => Self::Session,
            AttachArg::Kprobe => Self::Kprobe,
        }
    }
}

impl From<OutputArg> for Output {
    fn from(typed: OutputArg) -> Self {
        match typed {
            OutputArg::Pretty => Self::Pretty,
            OutputArg::Trace => Self::Trace,
            OutputArg::Json => Self::Json,
        }
    }
}

pub(super) fn checked_count(count: u64) -> Result<NonZeroU64, UsageError> {
    let reason = "at least one packet; leave it out to trace without end";
    NonZeroU64::new(count).ok_or(UsageError::Value { option: "--count", value: count.to_string(), reason })
}

/// A number of bytes, with K, M or G for the powers of 1024; rounded up to a power of two, as the ring has to be.
fn parse_size(text: &str) -> Result<u32, &'static str> {
    const WRONG: &str = "not a size from 4K to 1G; write it as 512K, 64M or 1G";
    const SIZES: std::ops::RangeInclusive<u32> = 4096..=1 << 30;
    let (digits, shift) = match text.as_bytes().last().map(u8::to_ascii_uppercase) {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u32 = digits.parse().map_err(|_| WRONG)?;
    let bytes = number.checked_mul(1 << shift).and_then(u32::checked_next_power_of_two);
    bytes.filter(|bytes| SIZES.contains(bytes)).ok_or(WRONG)
}

/// `1/100`
fn parse_sample(text: &str) -> Result<NonZeroU32, &'static str> {
    let number = text.strip_prefix("1/").and_then(|number| number.parse().ok());
    number.ok_or("not a share; write one packet in a hundred as 1/100")
}

/// `1%`; a plain number is the same. In millionths.
fn parse_share(text: &str) -> Result<NonZeroU32, &'static str> {
    let percent: Option<f64> = text.strip_suffix('%').unwrap_or(text).parse().ok();
    let share = percent.filter(|percent| (0.0..=100.0).contains(percent)).map(|percent| percent * 1e4);
    let share = share.and_then(|share| NonZeroU32::new(share.round() as u32));
    share.ok_or("not a share of all processors; write one in a hundred as 1%")
}

pub(super) fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    const WRONG: &str = "not a duration; write it as 30s, 2m30s or 500ms";
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|_| WRONG);
    }
    text.parse::<SignedDuration>().ok().and_then(|signed| signed.try_into().ok()).ok_or(WRONG)
}
