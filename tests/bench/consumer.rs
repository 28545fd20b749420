//! A tracer that runs beside the traffic and reads what its probes report.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

/// Where a tracer's standard error goes.
const ERRORS: &str = "/tmp/bench-errors";
/// How long a tracer may take to start or to end. The guest skips idle time, so waiting is free.
const PATIENCE: Duration = Duration::from_secs(300);
/// A tracer that uses less than a hundredth of some such windows in a row is idle.
const WINDOW: Duration = Duration::from_millis(50);
const QUIET_WINDOWS: u32 = 3;
/// How long to look at an idle tracer.
const IDLE_TIME: Duration = Duration::from_secs(1);

/// A running tracer.
pub(crate) struct Consumer {
    child: Child,
}

impl Consumer {
    /// Starts it, and waits until it has said that it is ready and has nothing left to do.
    pub(crate) fn start(command: &[&str], ready: Option<&str>) -> Result<Self> {
        let [program, arguments @ ..] = command else { bail!("no command") };
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(ERRORS)?)
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let mut consumer = Self { child };
        let given_up = Instant::now() + PATIENCE;
        while let Some(ready) = ready
            && !said().lines().any(|line| line.contains(ready))
        {
            if let Some(status) = consumer.child.try_wait()? {
                bail!("{program} ended early ({status}): {}", last_words());
            }
            if Instant::now() > given_up {
                bail!("{program} is not ready after {} s: {}", PATIENCE.as_secs(), last_words());
            }
            thread::sleep(Duration::from_millis(20));
        }
        consumer.wait_until_idle()?;
        Ok(consumer)
    }

    /// Time on the CPU so far, of all its threads, in the kernel too.
    pub(crate) fn run_time(&self) -> Result<Duration> {
        let mut total = 0;
        for thread in
            fs::read_dir(format!("/proc/{}/task", self.child.id())).context("the tracer has ended")?
        {
            let text = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
            total += text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(Duration::from_nanos(total))
    }

    /// The part of the CPU it takes while there is nothing to do.
    pub(crate) fn idle_share(&self) -> Result<f64> {
        let (start, before) = (Instant::now(), self.run_time()?);
        thread::sleep(IDLE_TIME);
        Ok((self.run_time()? - before).div_duration_f64(start.elapsed()))
    }

    /// Waits until it has dealt with everything; says how much it has run by then.
    pub(crate) fn wait_until_idle(&mut self) -> Result<Duration> {
        let given_up = Instant::now() + PATIENCE;
        let mut before = self.run_time()?;
        let mut quiet = 0;
        while quiet < QUIET_WINDOWS {
            thread::sleep(WINDOW);
            if let Some(status) = self.child.try_wait()? {
                bail!("the tracer ended early ({status}): {}", last_words());
            }
            let now = self.run_time()?;
            quiet = if now - before < WINDOW / 100 { quiet + 1 } else { 0 };
            before = now;
            if Instant::now() > given_up {
                bail!("the tracer is still busy after {} s", PATIENCE.as_secs());
            }
        }
        Ok(before)
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(self.pid()?, signal)?)
    }

    fn pid(&self) -> Result<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("it has a process id")
    }

    /// Stops it, until it is sent [`Signal::CONT`].
    pub(crate) fn stop(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        waitid(WaitId::Pid(self.pid()?), WaitIdOptions::STOPPED)?;
        Ok(())
    }

    /// Ends it as Ctrl-C does; what it said on standard error.
    pub(crate) fn end(mut self) -> Result<String> {
        self.signal(Signal::INT)?;
        self.wait()?;
        Ok(said())
    }

    fn wait(&mut self) -> Result<ExitStatus> {
        let given_up = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > given_up {
                bail!("the tracer does not end: {}", last_words());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Whether a program is there.
pub(crate) fn exists(program: &str) -> bool {
    Path::new(program).exists()
}

fn said() -> String {
    fs::read(ERRORS).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn last_words() -> String {
    let said = said();
    let start = said.lines().count().saturating_sub(3);
    said.lines().skip(start).collect::<Vec<_>>().join(" / ")
}
