//! Shows the tracer at work: here, and in a guest where this machine's kernel allows no probes.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use crate::process::{command, read, run_quietly};
use crate::{build, places, setup, vm};

/// Where to show it.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Shows it in a guest with this kernel of tests/kernels.toml, whatever this machine can do
    #[arg(long)]
    kernel: Option<String>,
    #[command(flatten)]
    build: build::Options,
}

/// The guest's kernel where nobody chose.
const KERNEL: &str = "6.12";

/// The `demo` task.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::run(&setup::Options::default())?;
    if let Some(kernel) = &options.kernel {
        return in_guest(kernel, options);
    }
    match (obstacle()?, without_probes()) {
        (None, None) => here(options),
        (None, Some(reason)) => {
            println!("This machine allows no probes: {reason}.");
            println!(
                "The demonstration runs on it first in the way that is left: packets of a namespace that is"
            );
            println!("thrown away are marked, and the kernel tells of them over netlink.");
            let ended = here(options)?;
            if ended != ExitCode::SUCCESS {
                return Ok(ended);
            }
            println!("\nNow with probes, in a virtual machine with Debian's kernel {KERNEL}.");
            in_guest(KERNEL, options)
        }
        (Some(obstacle), _) => {
            println!("This machine cannot run the demonstration itself: {obstacle}.");
            println!("It runs in a virtual machine with Debian's kernel {KERNEL} instead.");
            in_guest(KERNEL, options)
        }
    }
}

/// Why the tracer cannot show anything on this machine.
fn obstacle() -> Result<Option<&'static str>> {
    if read(command("id").arg("-u"))?.trim() != "0" {
        return Ok(Some("only root may trace"));
    }
    // Asks for the tables in a namespace of its own: where they are not loaded, that loads them.
    let tables = ["unshare", "--net", "iptables-legacy", "-w", "-t", "nat", "-L", "-n"];
    let asked = run_quietly(command(tables[0]).args(&tables[1..]));
    Ok(asked.err().map(|_| "its kernel has no legacy tables"))
}

/// Why probes cannot be placed on this machine.
fn without_probes() -> Option<&'static str> {
    let needed = [
        ("/sys/bus/event_source/devices/kprobe", "its kernel has no kprobes"),
        ("/sys/kernel/btf/vmlinux", "its kernel does not describe its types"),
    ];
    needed.into_iter().find(|(path, _)| !Path::new(path).exists()).map(|(_, reason)| reason)
}

fn script() -> std::path::PathBuf {
    places::root().join("tests/demo/demo.sh")
}

fn here(options: &Options) -> Result<ExitCode> {
    let built = build::run(&options.build)?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folder = built.program("");
    let path = std::env::join_paths(std::iter::once(folder).chain(std::env::split_paths(&path)))?;
    let status = command("sh").arg(script()).env("PATH", path).status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn in_guest(kernel: &str, options: &Options) -> Result<ExitCode> {
    let machine = vm::MachineOptions {
        files: vec![format!("{}:/root/demo.sh", script().display())],
        ..vm::MachineOptions::for_kernel(kernel, &options.build)
    };
    const COMMAND: &str = "modprobe -qa veth ip_tables iptable_nat iptable_filter; exec sh /root/demo.sh";
    if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
        // With colours.
        return vm::attached(&machine, COMMAND);
    }
    vm::run(&vm::Options {
        machine,
        timeout: 600,
        silence: 180,
        jobs: 1,
        out: None,
        command: vec![COMMAND.to_owned()],
    })
}
