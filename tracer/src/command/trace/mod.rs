//! `nftracer trace`

#[doc(hidden)]
pub mod interpreter;
mod live;
#[doc(hidden)]
pub mod runs;

use crate::backend::ebpf::{self, Ebpf};
use crate::cli::trace::{Mark, TraceConfig};
use crate::error::Failure;
use crate::filter;
use crate::sink::Start;
use crate::sys::netns;
use anyhow::Context as _;
use live::{Live, Next};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

/// The ring is looked at this often; the kernel wakes us earlier only when much is waiting.
const LOOK: Duration = Duration::from_millis(10);
/// Tables of this size fit in any case, larger ones when they were there at the beginning.
const TABLE_ENTRIES: u32 = 2048;
const RING_BYTES: u32 = 1 << 25;

/// Traces until it is told to stop.
pub fn run(config: TraceConfig) -> Result<(), Failure> {
    let filter = filter::compile(&config.filter).map_err(Failure::usage)?;
    let namespace = match config.netns.path() {
        Some(_) => Some(super::open_namespace(&config.netns)?),
        None => None,
    };
    let netns = namespace.as_ref().map(netns::inode).transpose().map_err(Failure::running)?;
    let namespaces = live::Namespaces::new(namespace, netns);
    // Read once for its size, which the kernel programs must know before they are loaded.
    let largest = namespaces.largest_table();
    let home = namespaces.home().map_err(Failure::running)?;
    let nftables = match config.mark {
        _ if !namespaces.have_base_chains() => ebpf::Nftables::Absent,
        Mark::Auto => ebpf::Nftables::Rules(&home),
        Mark::None => ebpf::Nftables::Ends,
    };
    let options = ebpf::Options {
        nftables,
        filter: &filter,
        netns,
        ring_bytes: ring_bytes(),
        table_entries: largest.saturating_mul(2).max(TABLE_ENTRIES),
    };
    // Whether it works is found out by trying; what keeps it from working is said as `doctor` says it.
    let ebpf = Ebpf::attach(&options).map_err(|error| match super::choose_backend(config.backend) {
        Ok(_) => refused(error),
        Err(failure) => failure,
    })?;
    let start = Start {
        filter: filter.text.clone(),
        netns: config.netns.to_string(),
        backend: "ebpf",
        footprint: ebpf.footprint().unwrap_or("none").to_owned(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        log_style: ebpf.log_style(),
    };
    let sink = super::open_sink(config.output, config.write.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the event loop")?.block_on(async {
        let live = Live::new(ebpf, namespaces, sink, config.count)?;
        follow(live, &start, config.duration).await
    })
}

/// The ring buffer's size; the environment variable is for tests of what happens when it is full.
fn ring_bytes() -> u32 {
    std::env::var("NFTRACER_RING_BYTES")
        .ok()
        .and_then(|bytes| bytes.parse::<u32>().ok())
        .and_then(u32::checked_next_power_of_two)
        .map_or(RING_BYTES, |bytes| bytes.max(4096))
}

fn refused(error: ebpf::Error) -> Failure {
    let (unusable, remedy) = (error.unusable(), error.remedy());
    let failure = if unusable { Failure::unusable(error) } else { Failure::running(error) };
    match remedy {
        Some(remedy) => failure.with_remedy(remedy),
        None => failure,
    }
}

/// One loop over everything that can happen: records, time, signals.
async fn follow(mut live: Live, start: &Start, duration: Option<Duration>) -> Result<(), Failure> {
    let listen = |kind| signal(kind).context("cannot listen for signals");
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);

    live.begin(start)?;
    let end = duration.map(|duration| Instant::now() + duration);
    let mut next = Next::Wait;
    while next != Next::End {
        tokio::select! {
            biased;
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            _ = hangup.recv() => break,
            () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => break,
            () = std::future::ready(()), if next == Next::LookAgain => {}
            _ = look.tick() => {}
            () = live.ready() => {}
        }
        next = live.look()?;
    }
    // What came before the end is shown, too: at most a full ring of the smallest records.
    for _ in 0..12 {
        if next == Next::End || live.look()? != Next::LookAgain {
            break;
        }
    }
    live.end()
}
