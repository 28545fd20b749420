//! Helpers shared by the functional tests.
//!
//! The kernel is the judge: the same packets are traced by nftracer and by TRACE rules whose lines come back over
//! netlink ([`nflog`]) or through the kernel's log ([`kmsg`]), and [`compare`] holds one against the other.
//!
//! ```text
//!   ruleset, generate ─► lab (namespaces A ─ R ─ B) ◄─ traffic (packet)
//!                          │               │
//!                        nflog, kmsg     tracer
//!                          └──► compare ◄──┘
//! ```

pub mod agree;
pub mod bpf;
pub mod compare;
pub mod corpus;
pub mod doctor;
pub mod faults;
pub mod generate;
pub mod hash;
pub mod kmsg;
pub mod lab;
pub mod listener;
pub mod monitor;
pub mod monitored;
pub mod netns;
pub mod nflog;
pub mod nfqueue;
pub mod nft_rules;
pub mod nftrace;
pub mod packet;
pub mod paths;
pub mod predicates;
pub mod random;
pub mod reload;
pub mod ruleset;
pub mod state;
pub mod tracer;
pub mod traffic;
pub mod wait;

/// What a test says when its claim does not hold.
pub fn check(holds: bool, claim: impl Into<String>) -> anyhow::Result<()> {
    if !holds {
        anyhow::bail!("{}", claim.into());
    }
    Ok(())
}
