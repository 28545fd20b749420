//! nftracer shows which netfilter rules a packet met.

pub mod netfilter;
pub mod packet;
pub mod ruleset;
pub mod path;
pub mod filter;
pub mod trace_line;
pub mod xtables;
pub mod btf;
pub mod backend;
pub mod fetch;
pub mod history;
pub mod sink;
pub mod doctor;
pub mod text;
pub mod sys;
pub mod error;
pub mod cli;
pub mod command;
