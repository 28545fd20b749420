//! nftracer on a kernel that has no system call newer than Linux 3.10, and on one that says that it is 3.10.
//!
//! The program is the one beside this test, or that which `NFTRACER` names, such as the static one.
#![cfg(target_arch = "x86_64")]

mod kernel;

use std::collections::BTreeSet;
use std::env;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::process::{Command, Output, Stdio};
use std::thread;

use kernel::Kernel;
use rustix::io::{FdFlags, fcntl_setfd};
use serde_json::Value;

const OLD: Kernel = Kernel::OF_3_10;
/// It has every call, and says that it is the other.
const NAMED_OLD: Kernel = Kernel { last_call: u32::MAX, hidden: None, ..Kernel::CENTOS_7 };

/// What has to work there, and needs no bpf(2).
const WITHOUT_BPF: &[&[&str]] = &[&["--version"], &["--help"], &["rules"], &["rules", "--table", "filter"]];

/// Traces for a moment where the host can, and says why not where it cannot.
const EBPF: &[&str] = &["trace", "--backend", "ebpf", "--for", "1ms", "icmp"];

const RULES: &str =
    "*filter\n:OLD - [0:0]\n-A INPUT -p tcp -m tcp --dport 23 -j OLD\n-A OLD -j DROP\nCOMMIT\n";

fn nftracer(arguments: &[&str]) -> Command {
    let program = env::var_os("NFTRACER").unwrap_or_else(|| env!("CARGO_BIN_EXE_nftracer").into());
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    command
}

fn output(arguments: &[&str]) -> Output {
    nftracer(arguments).output().expect("nftracer can be started")
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).expect("nftracer writes UTF-8")
}

/// A network namespace of this thread and what it starts, with a rule; without privileges everything stays as it is.
fn enter_namespace_with_rules() {
    #[expect(unsafe_code, reason = "rustix asks for care with file descriptors that are not shared any more")]
    // SAFETY: a network namespace has nothing to do with file descriptors.
    let made = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) };
    if let Err(error) = made {
        eprintln!("no namespace of its own, so perhaps no rules to show: {error}");
        return;
    }
    let mut restore = Command::new("iptables-legacy-restore");
    match restore.stdin(Stdio::piped()).spawn() {
        Ok(mut child) => {
            child.stdin.take().expect("piped").write_all(RULES.as_bytes()).expect("it reads");
            assert!(child.wait().expect("it ends").success());
        }
        Err(error) => eprintln!("no rules to show: iptables-legacy-restore: {error}"),
    }
}

/// What each command says, among rules of their own.
fn outputs(commands: &[&[&str]]) -> Vec<Output> {
    enter_namespace_with_rules();
    commands.iter().map(|&arguments| output(arguments)).collect()
}

fn outputs_here(commands: &[&[&str]]) -> Vec<Output> {
    thread::scope(|scope| scope.spawn(|| outputs(commands)).join().expect("no panic"))
}

fn outputs_on(kernel: Kernel, commands: &[&[&str]]) -> (Vec<Output>, BTreeSet<i32>) {
    kernel.run(|| outputs(commands)).expect("this kernel lets a process answer another one's system calls")
}

#[test]
fn commands_work_without_newer_calls() {
    let (results, unknown) = outputs_on(OLD, WITHOUT_BPF);
    for ((arguments, result), expected) in WITHOUT_BPF.iter().zip(&results).zip(outputs_here(WITHOUT_BPF)) {
        assert_eq!(text(&result.stderr), text(&expected.stderr), "{arguments:?}");
        assert_eq!(text(&result.stdout), text(&expected.stdout), "{arguments:?}");
        assert_eq!(result.status, expected.status, "{arguments:?}");
    }
    println!("refused: {unknown:?}");
    assert!(!unknown.is_empty(), "what was refused had been asked for");
    assert!(!unknown.contains(&(libc::SYS_bpf as i32)), "bpf(2) is for the ebpf backend alone");
}

/// What `doctor --json` says, without what is about bpf(2).
fn without_bpf(doctor: &Output) -> Value {
    let mut said: Value = serde_json::from_slice(&doctor.stdout).expect("doctor writes JSON");
    for (list, name) in [("checks", "ring buffer"), ("backends", "ebpf")] {
        let entries = said[list].as_array_mut().expect("doctor has lists of both");
        entries.retain(|entry| entry["name"] != name);
        assert!(!entries.is_empty(), "{list}");
    }
    said
}

#[test]
fn only_ebpf_is_missed() {
    const DOCTOR: &[&str] = &["doctor", "--json"];
    let (results, unknown) = outputs_on(OLD, &[DOCTOR, EBPF]);
    let [doctor, trace] = &results[..] else { panic!("{results:?}") };
    let refusal = text(&trace.stderr);
    assert!(refusal.contains("ring buffer: the kernel has none"), "{refusal}");
    assert_eq!(trace.status.code(), Some(3), "{refusal}");
    assert_eq!(without_bpf(doctor), without_bpf(&outputs_here(&[DOCTOR])[0]));
    assert!(unknown.contains(&(libc::SYS_bpf as i32)), "{unknown:?}");
}

/// Else whoever waits for the end of a pipe of the tracer's maker waits for the guard.
#[test]
fn the_guard_closes_what_it_inherited() {
    let open = OLD.run(|| {
        let inherited = File::open("/dev/null").expect("it can be opened");
        fcntl_setfd(&inherited, FdFlags::empty()).expect("it can be kept open");
        let mut command = nftracer(&["guard", &format!("{}:1", std::process::id())]);
        let mut guard =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("nftracer can be started");
        guard.stdout.as_mut().expect("piped").read_exact(&mut [0]).expect("the guard says that it stands");
        let folder = format!("/proc/{}/fd", guard.id());
        let open = fs::read_dir(folder).expect("the guard is there").count();
        // This ends it.
        drop(guard.stdin.take());
        assert!(guard.wait().expect("it ends").success());
        open
    });
    let (open, _) = open.expect("this kernel lets a process answer another one's system calls");
    assert_eq!(open, 3, "its standard streams");
}

#[test]
fn nothing_is_decided_by_the_release() {
    let commands: Vec<&[&str]> = WITHOUT_BPF.iter().copied().chain([EBPF, &["doctor"]]).collect();
    let (results, _) = outputs_on(NAMED_OLD, &commands);
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let old_release = NAMED_OLD.release.expect("it has a name");
    let doctor = results.last().expect("doctor said something");
    assert!(text(&doctor.stdout).contains(old_release), "{doctor:?}");
    for ((arguments, result), expected) in commands.iter().zip(&results).zip(outputs_here(&commands)) {
        assert_eq!(text(&result.stderr), text(&expected.stderr), "{arguments:?}");
        let expected_text = text(&expected.stdout).replace(&release, old_release);
        assert_eq!(text(&result.stdout), expected_text, "{arguments:?}");
        assert_eq!(result.status, expected.status, "{arguments:?}");
    }
}
