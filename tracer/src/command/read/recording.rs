//! Shows a recording.

use super::Choice;
use super::input::Input;
use crate::cli::read::ReadConfig;
use crate::command::outlet::Outlet;
use crate::error::Failure;
use crate::recording::{Event, Reader};
use crate::sink::{Start, Totals};
use anyhow::Context as _;

/// Gives out what was recorded, as it was.
pub(super) fn show(input: Input, mut choice: Choice, config: &ReadConfig) -> Result<(), Failure> {
    let name = input.name.clone();
    let mut outlet = Outlet::new(crate::command::open_sink(config.output, None)?, None);
    outlet.choose(choice.predicates.clone(), None, choice.per_rule);
    let mut reader = Reader::new(input.into_reader()).with_context(|| format!("cannot read {name}"))?;
    let mut recorded = Totals::default();
    while let Some(event) = reader.next_event().with_context(|| format!("cannot read {name}"))? {
        match event {
            Event::Start(start) => outlet
                .begin(&Start { choice: choice.predicates.to_string(), ..start })
                .context("cannot write")?,
            Event::Namespace(inode, known) => outlet.namespace(inode, &known),
            Event::Step(step) if choice.takes_step(step.packet, &step.view) => outlet.step(&step),
            Event::Path(path) if choice.takes_path(path.packet) => outlet.path(&path),
            Event::Step(_) | Event::Path(_) => {}
            Event::Totals(totals) => recorded = totals,
        }
        outlet.check().context("cannot write")?;
    }
    let totals = outlet.finish(recorded.lost, recorded.missed).context("cannot write")?;
    eprintln!("{totals}");
    Ok(())
}
