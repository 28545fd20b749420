//! `nftracer guard`, which `trace` starts for itself: clears up when a process ends.

use crate::error::Failure;
use crate::footprint;
use crate::sys::guard;
use crate::sys::process::Process;
use crate::sys::tracefs::{Event, Tracefs};
use std::io;
use std::thread;
use std::time::{Duration, Instant};

/// How long the kernel may need to let go of what a killed process had: its pipe can end before its programs are
/// detached, and before the tables that its sockets own are gone.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(10);

/// Waits for the end of a process and undoes what it has not undone itself.
pub fn run(process: Process, namespaces: &[u32]) -> Result<(), Failure> {
    let namespaces = guard::stand(namespaces).map_err(Failure::running)?;
    let undone = until_done(|| footprint::undo_after(process, &namespaces));
    if let Some(tracefs) = Tracefs::find() {
        until_done(|| remove_all(&tracefs, process.pid)).map_err(Failure::running)?;
    }
    undone.map_err(Failure::running)
}

fn remove_all(tracefs: &Tracefs, pid: u32) -> io::Result<()> {
    let events: Vec<Event> = tracefs.events()?.into_iter().filter(|event| event.pid == pid).collect();
    events.iter().map(|event| tracefs.remove(event)).fold(Ok(()), Result::and)
}

/// Tries again until it is done.
fn until_done<E>(mut work: impl FnMut() -> Result<(), E>) -> Result<(), E> {
    let give_up = Instant::now() + PATIENCE;
    loop {
        match work() {
            Err(_) if Instant::now() < give_up => thread::sleep(PAUSE),
            done => return done,
        }
    }
}
