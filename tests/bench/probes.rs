//! A pair of probes that do nothing: the floor of whatever is built on such a pair.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::programs::KProbe;

/// Places the pair on `ipt_do_table`; dropping it takes it away.
pub(crate) fn empty_pair(object: &Path) -> Result<Ebpf> {
    let object = fs::read(object).with_context(|| format!("cannot read {}", object.display()))?;
    let mut programs = Ebpf::load(&object)?;
    for name in ["empty_enter", "empty_leave"] {
        let program: &mut KProbe =
            programs.program_mut(name).with_context(|| format!("the object has no {name}"))?.try_into()?;
        program.load()?;
        program.attach("ipt_do_table", 0)?;
    }
    Ok(programs)
}
