//! Placing the probes.
//!
//! Entry and return probes are perf events of the kprobe PMU: they belong to this process's file descriptors, so the
//! kernel takes them away when the process ends, however it ends. One case is different: a kernel without rethook and
//! without preemption has as many return slots as CPUs for such a probe, too few for nested traversals. Only tracefs
//! can ask for more, and a tracefs event outlives its maker: there a guard process waits for our end.

use super::offsets::Symbols;
use super::probes::{Need, PROBES, Point, Probe};
use aya::programs::{KProbe, ProgramError};
use thiserror::Error;

/// Why a probe could not be placed.
#[derive(Debug, Error)]
pub enum Error {
    /// The object lacks a program: it was built from other sources.
    #[error("the embedded object has no program `{0}`")]
    NoProgram(&'static str),
    /// The kernel refused a program.
    #[error("the kernel refuses program `{program}`: {source}")]
    Load {
        /// Which.
        program: &'static str,
        /// Why; the verifier's words at the end.
        source: ProgramError,
    },
    /// The kernel refused a probe.
    #[error("cannot attach to `{symbol}`: {source}")]
    Attach {
        /// The kernel function.
        symbol: &'static str,
        /// Why.
        source: ProgramError,
    },
    /// A function that every trace needs is not there.
    #[error("the kernel has no function `{0}`")]
    NoFunction(&'static str),
    /// Neither family's tables are there.
    #[error("the kernel has no legacy tables: neither `ipt_do_table` nor `ip6t_do_table` exists")]
    NoTables,
}

/// Placed probes.
#[derive(Debug)]
pub struct Probes {
    without: Vec<String>,
}

impl Probes {
    /// Places all probes whose functions exist.
    pub fn place(programs: &mut aya::Ebpf, symbols: &Symbols) -> Result<Self, Error> {
        if !symbols.ipt_do_table && !symbols.ip6t_do_table {
            return Err(Error::NoTables);
        }
        let mut without = Vec::new();
        for probe in PROBES {
            match (exists(symbols, probe.symbol), probe.need) {
                (true, _) => place(programs, probe)?,
                (false, Need::Always) => return Err(Error::NoFunction(probe.symbol)),
                (false, Need::Family(family)) if probe.point == Point::Entry => {
                    without.push(format!("{family}: the kernel has no `{}` yet", probe.symbol));
                }
                (false, _) => {}
            }
        }
        Ok(Self { without })
    }

    /// What is visible on the host because of them.
    pub fn footprint(&self) -> Option<&str> {
        None
    }

    /// Families that cannot be traced, with the reason.
    pub fn without(&self) -> &[String] {
        &self.without
    }
}

fn exists(symbols: &Symbols, symbol: &str) -> bool {
    match symbol {
        "ipt_do_table" => symbols.ipt_do_table,
        "ip6t_do_table" => symbols.ip6t_do_table,
        "arpt_do_table" => symbols.arpt_do_table,
        "xt_replace_table" => symbols.replace_table,
        _ => false,
    }
}

fn place(programs: &mut aya::Ebpf, probe: &Probe) -> Result<(), Error> {
    let program: &mut KProbe = programs
        .program_mut(probe.program)
        .and_then(|program| program.try_into().ok())
        .ok_or(Error::NoProgram(probe.program))?;
    if program.fd().is_err() {
        program.load().map_err(|source| Error::Load { program: probe.program, source })?;
    }
    program.attach(probe.symbol, 0).map_err(|source| Error::Attach { symbol: probe.symbol, source })?;
    Ok(())
}
