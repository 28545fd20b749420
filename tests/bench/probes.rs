//! A pair of probes that do nothing: the floor of whatever is built on such a pair.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::programs::KProbe;

/// Places the pair on a function; dropping it takes it away.
pub(crate) fn empty_pair(object: &Path, function: &str) -> Result<Ebpf> {
    let object = fs::read(object).with_context(|| format!("cannot read {}", object.display()))?;
    let mut programs = Ebpf::load(&object)?;
    for name in ["empty_enter", "empty_leave"] {
        let program: &mut KProbe =
            programs.program_mut(name).with_context(|| format!("the object has no {name}"))?.try_into()?;
        program.load()?;
        program.attach(function, 0)?;
    }
    Ok(programs)
}
