//! Against live rules, in a network namespace of their own. Where that cannot be had, the tests say so and pass.

use super::*;
use crate::fetch::tests::Throwaway;
use crate::fetch::{Engines, Loaded, engines};
use crate::netlink::messages;
use crate::nftables::follow::{Follower, Gap};
use crate::nftables::trace;
use crate::nftables::traversal::Assembler;
use crate::sys::netlink::Received;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::net::UdpSocket;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub(super) fn run(throwaway: &Throwaway, command: &str) -> Option<()> {
    throwaway.run(&format!("PATH=$PATH:/usr/sbin:/sbin; {command}"))
}

/// Waits for a datagram.
pub(super) fn received<'a>(socket: &Socket, buffer: &'a mut Vec<u8>) -> &'a [u8] {
    let timeout = Timespec { tv_sec: 20, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&timeout)).unwrap(), 1);
    match socket.recv(buffer).unwrap() {
        Received::Datagram(bytes) => bytes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn live_rules_have_structure_and_text() {
    let Some(throwaway) = Throwaway::new() else { return };
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/nftables/rules.sh");
    let Some(()) = run(&throwaway, &format!(". {}", rules.display())) else { return };
    let mut nftables = Nftables::open(&throwaway.namespace).unwrap().unwrap();
    let fetched = nftables.fetch().unwrap();
    assert_eq!(fetched.text_reasons, [""; 0]);
    assert_eq!(fetched.ruleset.generation, nftables.generation().unwrap());
    let rules = fetched.ruleset.tables.iter().flat_map(|table| &table.chains).flat_map(|chain| &chain.rules);
    assert!(rules.clone().count() > 20);
    assert!(rules.clone().all(|rule| rule.text.is_some() && rule.nft.is_some()));
    let of_iptables: Vec<&str> =
        rules.filter(|rule| rule.text != rule.nft).filter_map(|rule| rule.text.as_deref()).collect();
    assert!(of_iptables.iter().all(|text| text.starts_with("-A ")));
    assert_eq!(of_iptables.len(), 11, "{of_iptables:?}");

    // Without the programs there is structure, and a reason.
    let printed = Printed::gather(&fetched.ruleset, &Programs::find_in("".as_ref(), &[]));
    let mut bare = nftables.structure().unwrap();
    let structure = bare.clone();
    let reasons = printed.attach(&mut bare);
    assert_eq!(bare, structure);
    assert_eq!(reasons[0], "nft is not installed; install nftables to see the text of rules");
    assert_eq!(
        reasons[1],
        "iptables-nft-save is not installed; install iptables to see rules as it prints them"
    );
}

#[test]
fn who_holds_rules_is_known() {
    let Some(throwaway) = Throwaway::new() else { return };
    assert_eq!(engines(&throwaway.namespace).unwrap(), Engines::default());
    let Some(()) = run(&throwaway, "iptables-nft -A INPUT -j ACCEPT && nft add table inet mine") else {
        return;
    };
    let found = engines(&throwaway.namespace).unwrap();
    let loaded = |family, name: &str, rules| Loaded { family, name: name.to_owned(), rules };
    assert_eq!(found.iptables_nft, [loaded(TableFamily::Ip, "filter", 1)]);
    assert_eq!(found.nftables, [loaded(TableFamily::Inet, "mine", 0)]);
    assert!(!found.mixed());
    let Some(()) = run(&throwaway, "ip6tables-legacy -t raw -A OUTPUT -j ACCEPT") else { return };
    let found = engines(&throwaway.namespace).unwrap();
    assert_eq!(found.legacy, [loaded(TableFamily::Ip6, "raw", 1)]);
    assert!(found.mixed());
}

#[test]
fn changes_are_followed() {
    let Some(throwaway) = Throwaway::new() else { return };
    let socket = Socket::open(Some(&throwaway.namespace), NETFILTER).unwrap();
    socket.join_group(decode::GROUP).unwrap();
    let Some(()) = run(&throwaway, "nft add table ip one") else { return };
    let mut nftables = Nftables::open(&throwaway.namespace).unwrap().unwrap();
    let generation = nftables.generation().unwrap();
    let (mut buffer, mut told) = (Vec::new(), None);
    while told.is_none() {
        let datagram = received(&socket, &mut buffer);
        told = messages(datagram).find_map(|message| decode::generation(&message.netfilter()?));
    }
    assert_eq!(told, Some(generation));
}

/// Every text belongs to its rule, however often the rules are replaced meanwhile.
#[test]
fn no_text_of_another_generation() {
    let Some(throwaway) = Throwaway::new() else { return };
    let Some(()) = run(&throwaway, "nft add table ip t") else { return };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                // A table that is made anew counts its handles from the beginning.
                let rules: String = (0..50)
                    .map(|rule| {
                        format!("tcp dport {} accept comment \"{round}.{rule}\"\n", 1 + rule + round % 7)
                    })
                    .collect();
                let script = format!("flush ruleset\ntable ip t {{\nchain c {{\n{rules}}}\n}}\n");
                run(&throwaway, &format!("nft -f - <<'X'\n{script}X")).unwrap();
            }
        });
        let mut nftables = Nftables::open(&throwaway.namespace).unwrap().unwrap();
        let mut texts = 0;
        for _ in 0..40 {
            let ruleset = match nftables.fetch() {
                Ok(fetched) => fetched.ruleset,
                Err(Error::Busy | Error::Netlink { source: NetlinkError::Busy }) => continue,
                Err(error) => panic!("{error}"),
            };
            for rule in ruleset.tables.iter().flat_map(|table| &table.chains).flat_map(|chain| &chain.rules) {
                let comment = format!(" comment \"{}\"", rule.comment.as_deref().unwrap());
                texts += rule.text.iter().filter(|text| text.ends_with(&comment)).count();
                assert!(rule.text.as_ref().is_none_or(|text| text.ends_with(&comment)), "{rule:?}");
            }
        }
        stop.store(true, Ordering::Relaxed);
        println!("{texts} texts");
    });
}

#[test]
fn a_packet_is_traced() {
    let Some(throwaway) = Throwaway::new() else { return };
    let rules = "ip link set lo up
        nft -f - <<'X'
        table inet t {
            chain out {
                type filter hook output priority 0
                meta nftrace set 1
                udp dport 9 jump more
            }
            chain more {
                udp dport 9 drop
            }
        }\nX";
    let Some(()) = run(&throwaway, rules) else { return };
    let ruleset = Nftables::open(&throwaway.namespace).unwrap().unwrap().fetch().unwrap().ruleset;
    let socket = Socket::open(Some(&throwaway.namespace), NETFILTER).unwrap();
    socket.join_group(trace::GROUP).unwrap();
    netns::inside(&throwaway.namespace, || {
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        // The drop is told to the sender.
        sender.send_to(b"x", "127.0.0.1:9").unwrap_err();
    })
    .unwrap();
    let (mut buffer, mut assembler, mut steps) = (Vec::new(), Assembler::default(), Vec::new());
    let mut verdict = None;
    while verdict.is_none() {
        for message in messages(received(&socket, &mut buffer)) {
            let event = trace::decode(&message.netfilter().unwrap()).unwrap();
            let mut device = |index| Some(socket.device_name(index)?.into());
            let added = assembler.add(&event, ruleset.locate(&event), (1, None), &mut device, &mut |_| ());
            steps.extend(added.step.map(|step| {
                assert_eq!((step.view.indev, step.view.outdev), (None, Some(&b"lo"[..])));
                format!("{} {}", step.name, step.rule.text.unwrap())
            }));
            verdict = added.verdict;
        }
    }
    assert_eq!(
        steps,
        [
            "t:out:rule:1 meta nftrace set 1",
            "t:out:rule:2 udp dport 9 jump more",
            "t:more:rule:1 udp dport 9 drop"
        ]
    );
    let mut paths = Vec::new();
    assembler.expire(2, &mut |path| paths.push(path));
    assert_eq!(paths[0].why, [""; 0]);
}

/// Says when a test is over, also when it failed.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Rules are replaced all the time, handles begin anew each time, and packets tell by the mark that was set which rules
/// they met. What counts as certain must be true.
#[test]
fn no_step_of_another_generation() {
    let Some(throwaway) = Throwaway::new() else { return };
    let Some(()) = run(&throwaway, "ip link set lo up && nft add table ip t") else { return };
    let script = |round: u32| {
        let rule = format!("udp dport 9 meta mark set {round} comment \"{round}\"");
        let chain = format!("type filter hook output priority 0\nmeta nftrace set 1\n{rule}\n");
        format!("flush ruleset\ntable ip t {{\nchain c {{\n{chain}}}\n}}\n")
    };
    let replace = |over: &AtomicBool| {
        for round in (1..).take_while(|_| !over.load(Ordering::Relaxed)) {
            run(&throwaway, &format!("nft -f - <<'X'\n{}X", script(round))).unwrap();
        }
    };
    let send = |over: &AtomicBool| {
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        while !over.load(Ordering::Relaxed) {
            // Refused, because nobody listens.
            let _ = sender.send_to(b"x", "127.0.0.1:9");
        }
    };
    let mut nftables = Nftables::open(&throwaway.namespace).unwrap().unwrap();
    let socket = Socket::open(Some(&throwaway.namespace), NETFILTER).unwrap();
    socket.join_group(trace::GROUP).unwrap();
    socket.join_group(decode::GROUP).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _over = Over(&over);
        scope.spawn(|| replace(&over));
        scope.spawn(|| netns::inside(&throwaway.namespace, || send(&over)).unwrap());
        let (mut buffer, mut ruleset, mut announced) = (Vec::new(), Ruleset::default(), None);
        let (mut known, mut unknown) = (0, 0);
        let deadline = Instant::now() + Duration::from_secs(60);
        while known < 300 && Instant::now() < deadline {
            let datagram = match socket.recv(&mut buffer).unwrap() {
                Received::Datagram(datagram) => datagram,
                Received::Empty => continue,
                Received::Overrun => {
                    announced = None;
                    continue;
                }
            };
            let now = nftables.generation().unwrap();
            for message in messages(datagram).filter_map(|message| message.netfilter()) {
                announced = decode::generation(&message).or(announced);
                let Some(event) = trace::decode(&message) else { continue };
                let certain = announced == Some(ruleset.generation) && now == ruleset.generation;
                match ruleset.locate(&event).filter(|_| certain).and_then(|located| located.rule) {
                    Some(rule) => {
                        known += 1;
                        let comment = rule.comment.as_deref().unwrap_or("0");
                        assert_eq!(comment, event.mark.to_string(), "{event:?}");
                    }
                    None => unknown += 1,
                }
            }
            if announced.is_some_and(|announced| announced != ruleset.generation) {
                ruleset = nftables.structure().unwrap();
            }
        }
        println!("{known} known, {unknown} unknown");
        assert!(known > 0);
    });
}

#[test]
fn announced_changes_are_what_is_read() {
    let Some(throwaway) = Throwaway::new() else { return };
    let Some(()) = run(&throwaway, "nft list ruleset") else { return };
    let socket = Socket::open(Some(&throwaway.namespace), NETFILTER).unwrap();
    socket.join_group(decode::GROUP).unwrap();
    let mut nftables = Nftables::open(&throwaway.namespace).unwrap().unwrap();
    let (mut buffer, mut follower) = (Vec::new(), Follower::default());
    let mut known = nftables.structure().unwrap();
    // Each is one transaction, and whether its announcements tell all.
    let transactions = [
        ("add table inet t; add chain inet t in { type filter hook input priority 0; policy accept; }", true),
        ("add rule inet t in counter comment \"a\"; add rule inet t in counter comment \"b\"", true),
        (
            "insert rule inet t in counter comment \"first\"; insert rule inet t in counter comment \"zeroth\"",
            true,
        ),
        ("add rule inet t in index 1 counter comment \"second\"; insert rule inet t in index 4 drop", true),
        ("add chain inet t one; add rule inet t one return; add rule inet t in jump one", true),
        ("replace rule inet t in handle 4 counter comment \"replaced\"", true),
        (
            "flush chain inet t in; add rule inet t in meta mark set 1; add rule inet t in meta mark set 2",
            true,
        ),
        (
            "insert rule inet t in meta mark set 3; add rule inet t in meta mark set 4; delete chain inet t one",
            true,
        ),
        (
            "add map inet t m { type inet_service : verdict; elements = { 80 : drop }; }; add rule inet t in tcp dport vmap @m",
            true,
        ),
        ("add rule inet t in ip saddr { 10.0.0.1, 10.0.0.2 } drop", true),
        ("chain inet t in { policy drop; }", true),
        (
            "flush ruleset; add table ip x; add chain ip x a; add rule ip x a accept; add table inet t; add chain inet t in",
            true,
        ),
        (
            "delete table ip x; add table ip x; add chain ip x b; add rule ip x b drop; insert rule ip x b jump { counter; }",
            false,
        ),
        ("insert rule ip x b accept", false),
        ("add table netdev d; add chain netdev d i { type filter hook ingress device lo priority 0; }", true),
        ("delete chain netdev d i", false),
    ];
    for (transaction, told) in transactions {
        let lines = transaction.replace("; add ", "\nadd ").replace("; insert ", "\ninsert ");
        let lines = lines.replace("; delete ", "\ndelete ");
        run(&throwaway, &format!("nft -f - <<'R'\n{lines}\nR")).unwrap();
        let mut announced = None;
        while announced.is_none() {
            for message in messages(received(&socket, &mut buffer)) {
                announced = follower.take(&message, &known).or(announced);
            }
        }
        let read = nftables.structure().unwrap();
        match announced.unwrap() {
            Ok(ruleset) => assert_eq!(ruleset, read, "{transaction}"),
            Err(Gap) => assert!(!told, "{transaction}"),
        }
        known = read;
    }
}
