//! nftracer shows which netfilter rules a packet met.
//!
//! ```text
//!  kernel:  probes on the table functions ──► ring buffer
//!                                                 │ records
//!                                     backend ────┘
//!                                        │
//!   fetch ──► xtables ──► ruleset ──► history      which version of a table a packet met
//!   (live tables)         (rules)        │
//!                                      path        walk: the order; attribute: the packet at each step;
//!                                        │         track: the traversals of one packet
//!                                      sink        trace lines (trace_line), JSON Lines, blocks for people
//! ```
//!
//! `command` wires these together and is the only place that knows them all. `filter` becomes a program for the kernel
//! side; `btf` and `backend::ebpf::offsets` tell that side where this kernel keeps its fields.

// What everything speaks of.
pub mod netfilter;
pub mod packet;
pub mod ruleset;
// Pure: bytes and events in, meaning out.
pub mod path;
pub mod history;
pub mod filter;
pub mod predicate;
pub mod trace_line;
pub mod kernel_log;
pub mod latency;
pub mod xtables;
pub mod nftables;
pub mod netlink;
pub mod btf;
pub mod text;
pub mod container;
pub mod owner;
pub mod explain;
pub mod why;
mod hash;
mod kallsyms;
// The shell: the kernel, files, people.
pub mod backend;
pub mod fetch;
pub mod footprint;
pub mod sink;
pub mod recording;
pub mod bench;
pub mod doctor;
pub mod sys;
pub mod tally;
pub mod error;
pub mod cli;
pub mod command;
