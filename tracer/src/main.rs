//! Parses the command line, runs the command, and turns its result into an exit status.

use nftracer::{cli::Cli, command, error};
use std::process::ExitCode;

fn main() -> ExitCode {
    error::report(command::run(Cli::from_command_line()))
}
