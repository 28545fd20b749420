//! Packets that were dropped at a hook, or by user space, and by nothing that is watched.
#![forbid(unsafe_code)]

use super::views::trimmed;
use crate::backend::ebpf::ending::Endings;
use crate::backend::ebpf::kernel::HOOKS_DROP;
use crate::netfilter::{Family, Hook, Verdict};
use crate::packet::{Link, PacketView};
use crate::path::ending::{self, Ending, HookFunction};
use crate::path::track::Released;
use crate::path::{Certainty, Path, Sighting, last_rule};
use std::collections::VecDeque;
use tracer_common::ending::{Dropped, Freed};

/// How long they wait: until it is known whether a rule may have done it that was missed.
const WAIT_NS: u64 = 500_000_000;

/// Those that wait, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Drops(VecDeque<Dropped>);

impl Drops {
    /// Lets one wait.
    pub(super) fn wait(&mut self, dropped: &Dropped) {
        self.0.push_back(*dropped);
    }

    /// The next one that has waited for long enough.
    pub(super) fn next(&mut self, now_ns: u64) -> Option<Dropped> {
        let dropped = self.0.front()?;
        if dropped.freed.time_ns.saturating_add(WAIT_NS) > now_ns { None } else { self.0.pop_front() }
    }
}

/// What else a function at a hook may stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Watched {
    /// Base chains of nftables, whose drops are told.
    pub(super) nftables: bool,
    /// No traversal was missed at that time.
    pub(super) all: bool,
}

/// The path of one, which has no steps. `None` where it is no packet of IP.
pub(super) fn path(
    number: u64,
    dropped: &Dropped,
    epoch_ns: u64,
    watched: Watched,
    endings: &mut Endings,
) -> Option<Path> {
    let freed = &dropped.freed;
    let bytes = &freed.bytes[..usize::try_from(freed.copied).unwrap_or(0).min(freed.bytes.len())];
    let family = match bytes.first()? >> 4 {
        4 => Family::Ipv4,
        6 => Family::Ipv6,
        _ => return None,
    };
    let behind = dropped.callers.iter().position(|caller| *caller == freed.location);
    let caller = behind.and_then(|at| dropped.callers.get(at + 1).copied()).unwrap_or(0);
    let hook = endings.place(caller).and_then(|place| hook_of(place.name));
    let (function, said) = said(endings, freed);
    let said = said.seen_from(Some(freed.netns));
    let mut why = last_rule::NO_RULE.to_owned();
    let ending = if function == HOOKS_DROP {
        let mut ending = match hook {
            Some(hook) => {
                let released =
                    Released { family, netns: Some(freed.netns), unseen: vec![(hook, i32::MIN, i32::MAX)] };
                by_function(endings, freed, released, said, watched.nftables)
            }
            None => Ending::ByFunction { hooks: Vec::new(), functions: Vec::new(), freed: said },
        };
        if let Ending::ByFunction { functions, hooks, .. } = &mut ending
            && !watched.all
        {
            functions.clear();
            *hooks = hook.into_iter().collect();
            last_rule::SOME_MISSED.clone_into(&mut why);
        }
        ending
    } else {
        Ending::ByUser { queue: None }
    };
    let name = trimmed(&dropped.device);
    let device = |is_there: bool| (is_there && !name.is_empty()).then_some(name);
    let view = PacketView {
        family,
        indev: device(matches!(hook, Some(Hook::Prerouting | Hook::Input | Hook::Forward))),
        outdev: device(matches!(hook, Some(Hook::Output | Hook::Postrouting))),
        link: Link::default(),
        len: dropped.len,
        bytes: &bytes[..bytes.len().min(usize::try_from(dropped.len).unwrap_or(usize::MAX))],
        mark: dropped.mark,
        owner: None,
    };
    Some(Path {
        verdict: Some(Verdict::Drop),
        certainty: Certainty::Inexact,
        why: vec![why],
        ending: Some(ending),
        sighting: Some(Box::new(Sighting {
            time_ns: epoch_ns.wrapping_add(freed.time_ns),
            packet: view.into(),
        })),
        ..Path::new(number, family, Some(freed.netns).filter(|netns| *netns != 0))
    })
}

/// The hook that is called from a function of the kernel; compilers may put that into one that calls it.
fn hook_of(caller: &str) -> Option<Hook> {
    Some(match caller.split('.').next().unwrap_or(caller) {
        "ip_rcv" | "ip_list_rcv" | "ip_sublist_rcv" | "ipv6_rcv" | "ipv6_list_rcv" | "ip6_sublist_rcv"
        | "nf_hook_slow_list" => Hook::Prerouting,
        "ip_local_deliver" | "ip6_input" | "ip6_mc_input" => Hook::Input,
        "ip_forward" | "ip6_forward" | "ipmr_queue_xmit" | "ip6mr_forward2" => Hook::Forward,
        "__ip_local_out" | "ip_local_out" | "raw_sendmsg" | "raw_send_hdrinc" | "__ip6_local_out"
        | "ip6_local_out" | "ip6_xmit" | "rawv6_sendmsg" | "rawv6_send_hdrinc" | "ndisc_send_skb"
        | "mld_sendpack" | "igmp6_send" => Hook::Output,
        "ip_output" | "ip_mc_output" | "ip6_output" | "xfrm_output" => Hook::Postrouting,
        _ => return None,
    })
}

/// The function that freed a packet, and what the kernel says of that.
pub(super) fn said(endings: &mut Endings, freed: &Freed) -> (String, ending::Freed) {
    let (function, offset) = match endings.place(freed.location) {
        Some(place) => (place.name.to_owned(), place.offset),
        None => ("?".to_owned(), 0),
    };
    let said = ending::Freed {
        symbol: if offset == 0 { function.clone() } else { format!("{function}+{offset:#x}") },
        reason: endings.reason(freed.reason),
        netns: Some(freed.netns).filter(|netns| *netns != 0),
    };
    (function, said)
}

/// What a hook function does that stands for a table or a base chain.
const OF_TABLES: [&str; 4] = ["ipt_do_table", "ip6t_do_table", "iptable_", "ip6table_"];
const OF_CHAINS: &str = "nft_do_chain";

/// How a packet ended that was dropped at a hook, and by no table. `nftables` says whether by no base chain either.
pub(super) fn by_function(
    endings: &mut Endings,
    freed: &Freed,
    released: Released,
    said: ending::Freed,
    nftables: bool,
) -> Ending {
    let Released { family, unseen, .. } = released;
    let mut functions: Option<Vec<HookFunction>> = Some(Vec::new());
    let mut hooks = Vec::new();
    for (hook, from, to) in unseen {
        let at = endings.functions(freed.net, family, hook);
        let is_watched = |name: &str| {
            OF_TABLES.iter().any(|table| name.starts_with(table)) || (nftables && name.starts_with(OF_CHAINS))
        };
        let comes =
            |function: &HookFunction| (from..=to).contains(&function.priority) && !is_watched(&function.name);
        match at {
            Some(at) => {
                let known = functions.as_ref().map_or(0, Vec::len);
                if let Some(functions) = &mut functions {
                    functions.extend(at.into_iter().filter(comes));
                }
                if functions.as_ref().is_none_or(|functions| functions.len() > known) {
                    hooks.push(hook);
                }
            }
            None => {
                functions = None;
                hooks.push(hook);
            }
        }
    }
    Ending::ByFunction { hooks, functions: functions.unwrap_or_default(), freed: said }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caller_tells_the_hook() {
        assert_eq!(hook_of("ip_rcv"), Some(Hook::Prerouting));
        assert_eq!(hook_of("ip_sublist_rcv.constprop.0"), Some(Hook::Prerouting));
        assert_eq!(hook_of("ip6_input"), Some(Hook::Input));
        assert_eq!(hook_of("__ip_local_out"), Some(Hook::Output));
        assert_eq!(hook_of("br_handle_frame"), None);
    }
}
