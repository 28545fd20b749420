//! `nftracer bench`: what tracing costs here, measured in namespaces that are made for it.

mod rows;
mod traffic;
mod tracing;
mod world;

use super::trace::listen::initial_namespace;
use super::trace::plan::{Marking, Plan};
use crate::backend::{log, netlink};
use crate::bench::{self, Figures, Report, Round};
use crate::cli::bench::BenchConfig;
use crate::doctor::Obstacle;
use crate::error::Failure;
use crate::footprint::{self, Footprint, RAW_MODULES};
use crate::netfilter::{Engine, Family};
use crate::sys::kernel::online_cpus;
use crate::sys::{module, netns};
use anyhow::{Context as _, anyhow};
use rows::{ROWS, Row, Way};
use std::fs::File;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tracing::Tracing;
use traffic::{Effort, PAYLOAD, Sent};
use world::{World, because, obstacle};

/// What is sent for a row. A packet may cost hundreds of times what it costs without tracing: the time is the limit.
const USUAL: Effort = Effort { singles: 400, time: Duration::from_millis(80), batches: 8192 };
/// What is sent where each packet leaves lines in the kernel's log.
const FEW: Effort = Effort { singles: 50, time: Duration::from_millis(80), batches: 16 };
/// A first round that takes longer than all that was asked for is broken off, unless it ends by then.
const ROUND_WITHIN: Duration = Duration::from_secs(50);
/// A reader that runs less than this in a window has caught up.
const WINDOW: Duration = Duration::from_millis(10);
const QUIET: Duration = Duration::from_millis(1);
/// Readers that fall behind are not waited for longer.
const CATCHES_UP_WITHIN: Duration = Duration::from_secs(1);

/// A row with what has been measured so far.
struct Measured {
    row: Row,
    rounds: Vec<Round>,
    obstacle: Option<Obstacle>,
}

/// Both kinds of rules, or why there is none.
type Worlds = [(Engine, Result<World, Obstacle>); 2];

/// Measures, and shows what was found.
pub(super) fn run(config: &BenchConfig) -> Result<(), Failure> {
    let rows = rows::chosen(&config.rows, config.fill_log);
    if let Some(unknown) = config.rows.iter().find(|name| !ROWS.iter().any(|row| row.name == **name)) {
        let names: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        return Err(Failure::usage(anyhow!("--row {unknown}: there is none; {}", names.join(", "))));
    }
    if rows.is_empty() {
        return Err(Failure::usage(anyhow!(
            "nothing to measure is left: all of it writes to the kernel's log"
        )));
    }
    let stop = watch_signals()?;
    let mut measured: Vec<Measured> =
        rows.into_iter().map(|row| Measured { row, rounds: Vec::new(), obstacle: None }).collect();
    let here = netns::current().map_err(Failure::running)?;
    let scratch = [netns::scratch().map_err(|error| Failure::unusable(error).with_remedy("run it as root"))?];
    // Where the initial namespace is out of reach, the rows that need it say so.
    let initial = initial_namespace(&scratch, Plan::Log(Marking::Rule));
    drop(scratch);
    let touched = initial.as_ref().ok().and_then(Option::as_ref).unwrap_or(&here);
    let mut footprint = Footprint::new(&[touched]).map_err(refused)?;
    let prepared = prepare(&mut measured, initial.as_ref(), &mut footprint);
    let began = Instant::now();
    if let Some(worlds) = &prepared {
        let some = worlds.iter().any(|(_, world)| world.is_ok());
        if some {
            eprintln!("{}", announcement(config, &measured, &footprint));
            rounds(config, &mut measured, worlds, &stop);
        }
    }
    drop(prepared);
    let undone = footprint.end();
    let report = report(measured, began.elapsed(), stop.load(Ordering::Relaxed));
    let text = if config.json { report.to_json() } else { report.to_text() };
    io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")?;
    undone.map_err(|error| Failure::running(error).with_remedy("`nftracer doctor --clean`"))?;
    let nothing = report.rows.iter().all(|row| row.result.is_err());
    if nothing && !report.interrupted {
        return Err(Failure::unusable(anyhow!("nothing can be measured on this host")));
    }
    Ok(())
}

fn refused(error: footprint::Error) -> Failure {
    let remedy = error.remedy();
    remedy.into_iter().fold(Failure::unusable(error), Failure::with_remedy)
}

fn not_changed(error: footprint::Error) -> Obstacle {
    let remedy = error.remedy();
    Obstacle { remedy, ..obstacle(error) }
}

/// Turns true when this process is told to end.
fn watch_signals() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the event loop")?;
    let entered = runtime.enter();
    let listen = |kind| signal(kind).context("cannot listen for signals");
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    drop(entered);
    let told = Arc::clone(&stop);
    // Ends with the process.
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        });
        told.store(true, Ordering::Relaxed);
    });
    Ok(stop)
}

/// Brings what the rows need. Rows whose needs this host does not meet are not measured.
fn prepare(
    measured: &mut [Measured],
    initial: Result<&Option<File>, &Failure>,
    footprint: &mut Footprint,
) -> Option<Worlds> {
    if let Err(error) = footprint.module(&["veth"]) {
        let reason = not_changed(error);
        measured.iter_mut().for_each(|row| row.obstacle = Some(reason.clone()));
        return None;
    }
    let wanted = |engine| measured.iter().any(|measured| measured.row.engine == engine);
    let worlds = [Engine::Legacy, Engine::Nft].map(|engine| {
        let world = if wanted(engine) { World::new(engine) } else { Err(because("not asked for")) };
        (engine, world)
    });
    for Measured { row, obstacle, .. } in measured {
        let needs = match world_of(row.engine, &worlds) {
            Ok(_) => bring(row.way, initial, footprint),
            Err(reason) => Err(reason.clone()),
        };
        *obstacle = needs.err();
    }
    Some(worlds)
}

fn world_of(engine: Engine, worlds: &Worlds) -> Result<&World, &Obstacle> {
    let [(_, legacy), (_, nft)] = worlds;
    match engine {
        Engine::Legacy => legacy.as_ref(),
        Engine::Nft => nft.as_ref(),
    }
}

/// What a rule's target needs, and the kernel's log.
fn bring(
    way: Way,
    initial: Result<&Option<File>, &Failure>,
    footprint: &mut Footprint,
) -> Result<(), Obstacle> {
    let Way::Rule { table, module: target, .. } = way else { return Ok(()) };
    if table == "raw" && !module::is_there(RAW_MODULES[0]) {
        let remedy = Some(format!("`modprobe {}`", RAW_MODULES[0]));
        return Err(Obstacle { reason: "this kernel has no table raw loaded".to_owned(), remedy });
    }
    footprint.module(&[target]).map_err(not_changed)?;
    let logger =
        if way.fills_log() { log::modules(Family::Ipv4).to_vec() } else { netlink::MODULES.to_vec() };
    footprint.module(&logger).map_err(not_changed)?;
    if way.fills_log() {
        match initial {
            Err(failure) => {
                let remedy = failure.remedy().map(str::to_owned);
                return Err(Obstacle { reason: failure.reason(), remedy });
            }
            Ok(Some(initial)) => footprint.set(initial, log::ALL_NETNS, "1", &[]).map_err(not_changed)?,
            Ok(None) => {}
        }
    }
    Ok(())
}

/// What is said before the first round.
fn announcement(config: &BenchConfig, measured: &[Measured], footprint: &Footprint) -> String {
    let lines = |measured: &Measured| measured.obstacle.is_none() && measured.row.way.fills_log();
    let in_log = if measured.iter().any(lines) { ", lines in the kernel's log" } else { "" };
    let footprint = footprint.describe();
    format!(
        "measuring for at most {:.0} s in namespaces of its own, footprint: {footprint}{in_log}",
        config.duration.max(ROUND_WITHIN).as_secs_f64()
    )
}

/// Row after row, and that again as long as there is time: what changes slowly on this host spreads over all rows.
fn rounds(config: &BenchConfig, measured: &mut [Measured], worlds: &Worlds, stop: &AtomicBool) {
    let began = Instant::now();
    let limit = config.duration.max(ROUND_WITHIN);
    for _ in 0..config.rounds {
        let round = Instant::now();
        for Measured { row, rounds, obstacle } in measured.iter_mut().filter(|row| row.obstacle.is_none()) {
            let Ok(world) = world_of(row.engine, worlds) else { continue };
            if began.elapsed() > limit {
                return;
            }
            match round_of(*row, world, stop) {
                Ok(found) => rounds.extend(found),
                Err(reason) => *obstacle = Some(reason),
            }
            if stop.load(Ordering::Relaxed) {
                return;
            }
        }
        if began.elapsed() + round.elapsed() > config.duration {
            return;
        }
    }
}

/// Nothing, and right after it a way of tracing. `None` when it is told to stop.
fn round_of(row: Row, world: &World, stop: &AtomicBool) -> Result<Option<Round>, Obstacle> {
    let without = world.traffic.measure(USUAL, stop).map_err(lost_packets)?;
    if row.way == Way::Nothing {
        let (rate, latencies_ns) = (without.packets_per_second, without.latencies_ns);
        let nothing =
            Round { packets_per_second: rate, without_per_second: rate, latencies_ns, ..Round::default() };
        return Ok((!stop.load(Ordering::Relaxed)).then_some(nothing));
    }
    let Some(tracing) = Tracing::start(row.way, world, stop)? else { return Ok(None) };
    let effort = if row.way.fills_log() { FEW } else { USUAL };
    catch_up(&tracing);
    let before = tracing.run_time();
    let sent = world.traffic.measure(effort, stop).map_err(lost_packets)?;
    catch_up(&tracing);
    let ran = tracing.run_time().zip(before).map(|(after, before)| after.saturating_sub(before));
    let Sent { packets, packets_per_second, latencies_ns } = sent;
    if stop.load(Ordering::Relaxed) {
        return Ok(None);
    }
    let lost = tracing.end(packets)?;
    Ok(Some(Round {
        packets_per_second,
        without_per_second: without.packets_per_second,
        latencies_ns,
        reader_ns: ran.map(|ran| ran.as_nanos() as f64 / packets as f64),
        lost,
    }))
}

fn lost_packets(error: io::Error) -> Obstacle {
    because(format!("a packet did not arrive: {error}"))
}

/// Waits until whoever reads has nothing left to do.
fn catch_up(tracing: &Tracing<'_>) {
    let end = Instant::now() + CATCHES_UP_WITHIN;
    let Some(mut before) = tracing.run_time() else { return };
    while Instant::now() < end {
        thread::sleep(WINDOW);
        let Some(now) = tracing.run_time() else { return };
        if now.saturating_sub(before) < QUIET {
            return;
        }
        before = now;
    }
}

fn report(measured: Vec<Measured>, took: Duration, interrupted: bool) -> Report {
    let none = if interrupted { "ended before its turn" } else { "there was no time for it" };
    let row = |Measured { row, rounds, obstacle }: Measured| {
        let figures = Figures::of(&rounds);
        let result = match obstacle {
            Some(obstacle) => Err(obstacle),
            None => figures.ok_or_else(|| because(none)),
        };
        bench::Row { name: row.name, title: row.title, engine: row.engine, result }
    };
    Report {
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        arch: std::env::consts::ARCH,
        cpus: online_cpus(),
        payload_bytes: PAYLOAD.len(),
        took,
        interrupted,
        rows: measured.into_iter().map(row).collect(),
    }
}
