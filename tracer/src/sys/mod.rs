//! The operating system, and all unsafe code of this crate.

pub mod bpf;
pub mod cgroup;
pub mod child;
pub mod clock;
pub mod guard;
pub mod iptables;
pub mod kernel;
pub mod link;
pub mod module;
pub mod netlink;
pub mod netns;
pub mod nftables;
pub mod pcap;
pub mod perf;
pub mod privilege;
pub mod process;
pub mod program;
pub mod ready;
pub mod sockopt;
pub mod sysctl;
pub mod tracefs;
pub mod user;
