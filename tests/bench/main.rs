//! Measures, inside a guest that counts instructions, what tracing costs per packet.
//!
//! The guest has one CPU on which every instruction takes one nanosecond, so a difference of the monotonic clock is a
//! number of instructions: of everything that ran meanwhile, the consumer of a tracer included. `cargo xtask bench`
//! starts this program once per [`World`] and evaluates what it writes.

mod consumer;
mod measure;
mod probes;
mod rows;
mod rules;
mod traffic;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::{Value, json};

use rows::{Row, World};
use traffic::Traffic;

/// Measures the rows of one ruleset.
#[derive(Parser)]
struct Arguments {
    /// The ruleset
    #[arg(value_enum)]
    world: World,
    /// Only these rows and the one they compare with
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// How often to measure each row
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Packets in a batch, where it is not the ruleset's own number
    #[arg(long)]
    packets: Option<u32>,
    /// The kernel programs, for the empty probes
    #[arg(long)]
    probe_floor: PathBuf,
    /// Where to write the figures
    #[arg(long)]
    out: PathBuf,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let rows: Vec<&Row> = rows::of(arguments.world, &arguments.rows);
    if rows.is_empty() {
        return Ok(());
    }
    arguments.world.load()?;
    let mut traffic = Traffic::new()?;
    let packets = arguments.packets.unwrap_or(arguments.world.packets());
    measure::settle(&mut traffic, packets)?;
    let means = rows::Means { probes: &arguments.probe_floor };
    let mut results = vec![Outcome::Rounds(Vec::new()); rows.len()];
    // Row after row, and that again: what changes slowly in the guest spreads over all rows.
    for round in 1..=arguments.rounds {
        for (row, result) in rows.iter().zip(&mut results) {
            let Outcome::Rounds(rounds) = result else { continue };
            match measure::row(row, &means, &mut traffic, packets) {
                Ok(figures) => {
                    println!("{} {round}: {figures}", row.name);
                    rounds.push(figures.json());
                }
                Err(error) => {
                    println!("{} {round}: {error:#}", row.name);
                    *result = Outcome::Failed(format!("{error:#}"));
                }
            }
        }
    }
    let rows: Vec<Value> = rows.iter().zip(results).map(|(row, result)| described(row, result)).collect();
    fs::write(&arguments.out, json!({ "rows": rows }).to_string())
        .with_context(|| format!("cannot write {}", arguments.out.display()))
}

/// What became of a row.
#[derive(Clone)]
enum Outcome {
    Rounds(Vec<Value>),
    Failed(String),
}

fn described(row: &Row, outcome: Outcome) -> Value {
    let (rounds, failed) = match outcome {
        Outcome::Rounds(rounds) => (rounds, None),
        Outcome::Failed(why) => (Vec::new(), Some(why)),
    };
    json!({ "name": row.name, "title": row.title, "base": row.world.base(), "rounds": rounds, "failed": failed })
}
