//! `nftracer trace`

mod both;
mod buffer;
mod cost;
mod counting;
mod drops;
mod gate;
#[doc(hidden)]
pub mod interpreter;
mod known;
mod links;
pub(super) mod listen;
mod nft;
pub(super) mod plan;
mod probes;
mod readings;
mod rows;
#[doc(hidden)]
pub mod runs;
mod senders;
mod shown;
mod standings;
mod views;

use super::choice::resolved;
use super::naming::Naming;
use super::why::explain::Explaining;
use crate::cli::trace::TraceConfig;
use crate::error::{Failure, Kind};
use crate::filter::{self, Filter};
use crate::predicate::Predicates;
use crate::sink::{Output, Sink, Start, Summarised};
use crate::sys::pcap;
use crate::text;
use crate::trace_line::LogStyle;
use anyhow::Context as _;
use counting::Counter;
use listen::Listening;
use plan::Plan;
use probes::Probing;
use readings::Readings;
use std::io;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

/// A source is looked at this often; the kernel wakes us earlier only when much is waiting.
const LOOK: Duration = Duration::from_millis(10);

/// What is to be done after a look at a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// More is waiting.
    LookAgain,
    /// Wait for more.
    Wait,
    /// All packets that were asked for have been given out.
    End,
}

/// A trace under way, wherever its steps come from.
trait Session {
    /// Gives out what is said first.
    fn begin(&mut self, start: &Start) -> Result<(), Failure>;
    /// Waits until something can be taken.
    async fn ready(&mut self);
    /// Takes what is waiting. Says what is to be done next.
    fn look(&mut self) -> Result<Next, Failure>;
    /// Undoes what was changed, gives out what is left, and the totals.
    fn end(self) -> Result<(), Failure>;
}

/// What every source is asked for.
struct Wish<'a> {
    config: &'a TraceConfig,
    filter: &'a Filter,
    /// With users by their numbers.
    predicates: &'a Predicates,
    open_sink: &'a OpenSink<'a>,
}

/// Opens what all that is found out goes into. Each way that is tried opens its own.
pub(super) type OpenSink<'a> = dyn Fn() -> Result<Box<dyn Sink>, Failure> + 'a;

impl Wish<'_> {
    fn sink(&self) -> Result<Box<dyn Sink>, Failure> {
        let sink = (self.open_sink)()?;
        // Lines of the log name no namespace.
        let shows_names = self.config.output != Output::Trace || self.config.write.is_some();
        Ok(if shows_names { Box::new(Naming::new(sink)) } else { sink })
    }

    fn start(&self, backend: &'static str, footprint: String, log_style: LogStyle) -> Start {
        Start {
            filter: self.filter.text.clone(),
            choice: self.config.choice(),
            netns: self.config.netns.to_string(),
            backend,
            footprint,
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            log_style,
        }
    }
}

/// Traces until it is told to stop.
pub fn run(config: TraceConfig) -> Result<(), Failure> {
    run_into(&config, &|| {
        let sink = super::open_sink(config.output, config.write.as_deref())?;
        let sink: Box<dyn Sink> = if config.latency.summary {
            Box::new(Summarised::new(sink, config.output, io::stdout()))
        } else {
            sink
        };
        Ok(match &config.explain {
            Some(rule) => Box::new(Explaining::new(sink, rule, &config.netns)),
            None => sink,
        })
    })
}

/// Traces until it is told to stop, or the sink has enough.
pub(super) fn run_into(config: &TraceConfig, open_sink: &OpenSink<'_>) -> Result<(), Failure> {
    let filter = filter::compile(&config.filter, &pcap::compile).map_err(Failure::usage)?;
    let predicates = resolved(&config.predicates)?;
    let wish = Wish { config, filter: &filter, predicates: &predicates, open_sink };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the event loop")?.block_on(async {
        if let Some(counting) = config.counting
            && let Some((session, start)) = Readings::start(&wish, counting)?
        {
            return follow(session, &start, config.duration).await;
        }
        let mut refused = Vec::new();
        // Whether it works is found out by trying.
        for plan in plan::plans(config.backend, config.mark) {
            let failure = match plan {
                Plan::Ebpf if let Some(counting) = config.counting => match Counter::start(&wish, counting) {
                    Ok((session, start)) => return follow(session, &start, config.duration).await,
                    Err(failure) => return Err(failure),
                },
                Plan::Ebpf => match Probing::start(&wish) {
                    Ok((session, start)) => return follow(session, &start, config.duration).await,
                    Err(failure) => failure,
                },
                Plan::Netlink(_) | Plan::Log(_) => match Listening::start(&wish, plan) {
                    Ok((session, start)) => {
                        refused.iter().for_each(|failure: &Failure| say(&failure.reason()));
                        return follow(session, &start, config.duration).await;
                    }
                    Err(failure) => failure,
                },
            };
            if failure.kind() != Kind::Unusable {
                return Err(failure);
            }
            if !refused.iter().any(|earlier| earlier.reason() == failure.reason()) {
                refused.push(failure);
            }
        }
        Err(nothing_works(refused))
    })
}

/// One failure of several: what each said, and what to do about the best.
fn nothing_works(mut refused: Vec<Failure>) -> Failure {
    if refused.len() == 1 {
        return refused.remove(0);
    }
    let reasons: Vec<String> = refused.iter().map(Failure::reason).collect();
    let remedy = refused.iter().find_map(Failure::remedy);
    let failure = Failure::unusable(anyhow::anyhow!("{}", reasons.join("; ")));
    match remedy {
        Some(remedy) => failure.with_remedy(remedy),
        None => failure,
    }
}

/// Says something beside the output.
fn say(message: &str) {
    eprintln!("nftracer: {}", text::escape(message));
}

/// One loop over everything that can happen: steps, time, signals.
async fn follow(mut session: impl Session, start: &Start, duration: Option<Duration>) -> Result<(), Failure> {
    let listen = |kind| signal(kind).context("cannot listen for signals");
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);

    session.begin(start)?;
    eprintln!("{start}");
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
            () = session.ready() => {}
        }
        next = session.look()?;
    }
    // What came before the end is shown, too: at most a full ring of the smallest records.
    for _ in 0..12 {
        if next == Next::End || session.look()? != Next::LookAgain {
            break;
        }
    }
    session.end()
}
