//! Rulesets written by hand: each holds something that has misled tracers, or could.
//!
//! They are one text for both families. A line that begins with `4|` or `6|` is for that family only; `@B`, `@ICMP`
//! and the like stand for addresses and words of the family.

use anyhow::{Context, Result};

use crate::lab::{Family, addresses};
use crate::netns::Netns;

/// The tables, each with its built-in chains.
pub const TABLES: [(&str, &[&str]); 5] = [
    ("raw", &["PREROUTING", "OUTPUT"]),
    ("mangle", &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"]),
    ("nat", &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]),
    ("filter", &["INPUT", "FORWARD", "OUTPUT"]),
    ("security", &["INPUT", "FORWARD", "OUTPUT"]),
];

/// A ruleset written by hand.
#[derive(Clone, Copy, Debug)]
pub struct Handwritten {
    /// What it is about.
    pub name: &'static str,
    /// No chain of it can be entered twice in one traversal, so every order is known.
    pub is_tree: bool,
    text: &'static str,
}

/// The sets that rulesets use.
const SETS: &str = "\
create -exist odd4 hash:ip\nadd -exist odd4 10.0.1.3\ncreate -exist odd6 hash:ip family inet6\n\
add -exist odd6 fd00:1::3\ncreate -exist ports bitmap:port range 0-65535\nadd -exist ports 53\nadd -exist ports 443\n";

/// Makes the sets in a namespace.
pub fn create_sets(netns: &Netns) -> Result<()> {
    netns.command("ipset", &["restore"], SETS).context("ipset")?;
    Ok(())
}

/// Replaces the rules of a family; tables not named in the text stay.
pub fn load(netns: &Netns, family: Family, text: &str) -> Result<()> {
    let program = format!("{}-restore", family.tool());
    netns.command(&program, &[], text).with_context(|| format!("ruleset:\n{text}"))?;
    Ok(())
}

/// The rules of a family as the tool prints them.
pub fn saved(netns: &Netns, family: Family) -> Result<String> {
    netns.command(&format!("{}-save", family.tool()), &["-c"], "")
}

/// A ruleset without counters and comments: what must not change.
pub fn without_counters(saved: &str) -> String {
    let line = |line: &str| {
        let line = match line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
            Some((_, rule)) => rule,
            None => line.split(" [").next().unwrap_or(line),
        };
        format!("{line}\n")
    };
    saved.lines().filter(|text| !text.starts_with('#')).map(line).collect()
}

impl Handwritten {
    /// As `iptables-restore` wants it: all tables, TRACE first.
    pub fn text(&self, family: Family) -> String {
        let at = addresses(family);
        let mark = if family == Family::Ipv4 { "4|" } else { "6|" };
        let words = [
            ("@DNAT", at.r_dnat.to_string()),
            ("@B", at.b.to_string()),
            ("@OTHER", at.a_other.to_string()),
            ("@A", at.a.to_string()),
            ("@SET", if family == Family::Ipv4 { "odd4" } else { "odd6" }.to_owned()),
            // Copies may come back, and must not be copied for ever.
            (
                "@HOPS",
                if family == Family::Ipv4 { "-m ttl --ttl-gt 62" } else { "-m hl --hl-gt 62" }.to_owned(),
            ),
            ("@ICMP", if family == Family::Ipv4 { "icmp" } else { "ipv6-icmp" }.to_owned()),
            (
                "@REJECT",
                if family == Family::Ipv4 { "icmp-admin-prohibited" } else { "adm-prohibited" }.to_owned(),
            ),
            ("@TO", if at.b.is_ipv4() { at.b.to_string() } else { format!("[{}]", at.b) }),
        ];
        let mut tables: Vec<(&str, String)> = TABLES.iter().map(|(name, _)| (*name, String::new())).collect();
        let mut table = 0;
        for line in self.text.lines() {
            let line = match line.split_once('|') {
                Some(("4" | "6", _)) if !line.starts_with(mark) => continue,
                Some(("4" | "6", rest)) => rest,
                _ => line,
            };
            if let Some(name) = line.strip_prefix('*') {
                table = tables.iter().position(|(table, _)| *table == name).unwrap_or(0);
                continue;
            }
            // The longest name first: one may begin another.
            let line = words.iter().rev().fold(line.to_owned(), |line, (name, to)| line.replace(name, to));
            tables[table].1 += &line;
            tables[table].1 += "\n";
        }
        tables.iter().map(|(name, lines)| table_text(name, lines)).collect()
    }

    /// The same in tables of several hundred rules: others that match nothing stand before, between and behind those of
    /// [`text`](Self::text).
    pub fn large_text(&self, family: Family) -> String {
        self.text(family).split_inclusive("COMMIT\n").map(|table| enlarged(table, family)).collect()
    }
}

/// A table with many more rules. Chains lie in the order of their names, behind the built-in ones.
fn enlarged(table: &str, family: Family) -> String {
    const CHAINS: [&str; 3] = ["AAA", "MMM", "zzz"];
    const RULES: u16 = 150;
    let name = table.lines().next().and_then(|line| line.strip_prefix('*')).unwrap_or_default();
    // Behind TRACE, which does not tell of itself.
    let built_in =
        TABLES.iter().find(|(table, _)| *table == name && name != "raw").map(|(_, chains)| chains[0]);
    let rule = |chain: &str, number: u16| match family {
        Family::Ipv4 => format!("-A {chain} -s 198.18.{}.{}\n", number >> 8, number & 255),
        Family::Ipv6 => format!("-A {chain} -s 2001:db8::{number:x}\n"),
    };
    let rules = |chain| (0..RULES).map(move |number| rule(chain, number));
    let is_rule = |line: &&str| line.starts_with("-A") || *line == "COMMIT\n";
    let (head, own): (Vec<&str>, Vec<&str>) = table.split_inclusive('\n').partition(|line| !is_rule(line));
    let declared = CHAINS.map(|chain| format!(":{chain} - [0:0]\n"));
    let own = own.into_iter().map(str::to_owned);
    let head = head.into_iter().map(str::to_owned);
    head.chain(declared).chain(CHAINS.into_iter().chain(built_in).flat_map(rules)).chain(own).collect()
}

/// A table, with its policies unless the lines have them, and TRACE.
fn table_text(name: &str, lines: &str) -> String {
    let chains = TABLES.iter().find(|(table, _)| *table == name).map_or(&[][..], |(_, chains)| *chains);
    let mut text = format!("*{name}\n");
    for chain in chains.iter().filter(|chain| !lines.contains(&format!(":{chain} "))) {
        text += &format!(":{chain} ACCEPT [0:0]\n");
    }
    let (declared, rules): (Vec<&str>, Vec<&str>) = lines.lines().partition(|line| line.starts_with(':'));
    let mut all: Vec<String> = declared.iter().map(|line| format!("{line} [0:0]")).collect();
    if name == "raw" {
        all.extend(["PREROUTING", "OUTPUT"].map(|chain| format!("-A {chain} -j TRACE")));
    }
    all.extend(rules.iter().filter(|line| !line.is_empty()).map(|line| (*line).to_owned()));
    text + &all.join("\n") + "\nCOMMIT\n"
}

/// All of them.
pub const HANDWRITTEN: &[Handwritten] = &[
    Handwritten { name: "empty", is_tree: true, text: "" },
    Handwritten {
        name: "jumps, gotos, returns",
        is_tree: true,
        text: "\
*filter
:ONE -
:TWO -
:THREE -
:FOUR -
:EMPTY -
-A FORWARD -j EMPTY
-A FORWARD -p udp -j ONE
-A FORWARD -p tcp -g TWO
-A FORWARD -p @ICMP -j THREE
-A INPUT -g FOUR
-A ONE -p udp --dport 53 -j RETURN
-A ONE -p udp --dport 80 -g LATE
-A ONE -m comment --comment middle
:LATE -
-A LATE -p udp -j RETURN
-A TWO -p tcp --dport 443 -j ACCEPT
-A TWO -p tcp --syn -j RETURN
-A TWO -j ACCEPT
-A THREE -j RETURN
-A THREE -j DROP
-A FOUR -p udp --dport 4001 -j DROP
-A FOUR -p tcp
",
    },
    Handwritten {
        name: "chains entered twice",
        is_tree: false,
        text: "\
*mangle
:DEEP -
:DEEPER -
-A PREROUTING -p udp -j DEEP
-A PREROUTING -j DEEP
-A POSTROUTING -j DEEPER
-A POSTROUTING -m statistic --mode random --probability 0.5 -j DEEP
-A DEEP -m statistic --mode random --probability 0.5 -j RETURN
-A DEEP -j DEEPER
-A DEEP -p udp --dport 53 -j DEEPER
-A DEEPER -m statistic --mode random --probability 0.3 -j MARK --set-mark 3
-A DEEPER -p tcp -j RETURN
*filter
:C1 -
:C2 -
-A FORWARD -j C1
-A FORWARD -j C1
-A FORWARD -g C1
-A C1 -m statistic --mode random --probability 0.4 -j C2
-A C1 -p udp --dport 443 -j RETURN
-A C2 -m statistic --mode random --probability 0.5 -j RETURN
-A C2 -p udp --dport 5001 -j ACCEPT
",
    },
    Handwritten {
        name: "names of builtins, odd names and comments",
        is_tree: true,
        text: "\
*mangle
:FORWARD ACCEPT
:filter -
:prerouting -
-A FORWARD -j filter
-A PREROUTING -j prerouting
-A prerouting -m comment --comment \"policy:1 # ünïcode; \\\"quoted\\\" 'x' \\\\ $HOME `x` %s\"
-A filter -p udp -m comment --comment \"TRACE: raw:PREROUTING:rule:1 IN=eth0\" -j RETURN
-A filter -m comment --comment \"\t tab\" -j ACCEPT
*raw
:INPUT -
:POSTROUTING -
-A PREROUTING -j INPUT
-A INPUT -p udp -j POSTROUTING
-A POSTROUTING -j RETURN
*filter
:PREROUTING -
:rule -
:a:b -
:an_extremely_long_name_of_28 -
-A FORWARD -j PREROUTING
-A PREROUTING -p udp -j rule
-A PREROUTING -p tcp -j a:b
-A PREROUTING -p @ICMP -j an_extremely_long_name_of_28
-A rule -p udp --dport 53 -j ACCEPT
-A a:b -p tcp --dport 80 -j ACCEPT
-A an_extremely_long_name_of_28 -j RETURN
",
    },
    Handwritten {
        name: "policies DROP, rules shaped like policies",
        is_tree: true,
        text: "\
*filter
:INPUT DROP
:FORWARD DROP
:U -
:V -
-A INPUT -p @ICMP -j ACCEPT
-A INPUT -p udp --dport 4000 -j U
-A INPUT -p tcp -j V
-A FORWARD -p udp --dport 4000:4001 -j ACCEPT
-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A OUTPUT -j ACCEPT
-A OUTPUT -p tcp
-A U -j ACCEPT
-A V -j DROP
*security
:INPUT ACCEPT
-A INPUT -j ACCEPT
-A FORWARD -j DROP
",
    },
    Handwritten {
        name: "nat",
        is_tree: true,
        text: "\
*nat
:IN -
:OUT -
-A PREROUTING -d @DNAT -j IN
-A IN -p udp --dport 53 -j DNAT --to-destination @TO:4000
-A IN -p tcp --dport 80 -j REDIRECT --to-ports 4000
-A IN -j DNAT --to-destination @B
-A OUTPUT -p udp --dport 443 -j REDIRECT --to-ports 4000
-A POSTROUTING -o rb -j OUT
-A OUT -p udp --dport 80 -j SNAT --to-source @DNAT
-A OUT -p udp -j MASQUERADE --to-ports 30000-60000
-A OUT -j MASQUERADE
*filter
-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT
-A FORWARD -m conntrack --ctstate NEW -m comment --comment new
-A FORWARD -m conntrack --ctstate INVALID -j DROP
",
    },
    Handwritten {
        name: "REJECT",
        is_tree: true,
        text: "\
*filter
-A INPUT -p udp --dport 6001 -j REJECT
-A INPUT -p tcp --dport 7001 -j REJECT --reject-with tcp-reset
-A FORWARD -p udp --dport 6001 -j REJECT --reject-with @REJECT
-A FORWARD -p tcp --dport 7001 -j REJECT --reject-with tcp-reset
-A FORWARD -p tcp --dport 443 -j REJECT
-A FORWARD -p @ICMP -m statistic --mode random --probability 0.3 -j REJECT
-A OUTPUT -p udp --dport 53 -j REJECT
-A OUTPUT -p tcp --dport 5001 -j REJECT --reject-with tcp-reset
",
    },
    Handwritten {
        name: "TEE",
        is_tree: false,
        text: "\
*mangle
:M -
-A PREROUTING -p udp -j M
-A PREROUTING -p @ICMP -m statistic --mode random --probability 0.5 @HOPS -j TEE --gateway @B
-A M -m statistic --mode random --probability 0.5 @HOPS -j TEE --gateway @B
-A M -m comment --comment after
-A OUTPUT -p udp -j M
-A POSTROUTING -p tcp -j M
*filter
:C -
-A FORWARD -j C
-A FORWARD -p udp --dport 4000 @HOPS -j TEE --gateway @B
-A OUTPUT -j C
-A C -p udp -j RETURN
",
    },
    Handwritten {
        name: "matches with a memory",
        is_tree: true,
        text: "\
*raw
-A PREROUTING -m statistic --mode random --probability 0.1
-A PREROUTING -m statistic --mode nth --every 3 --packet 1
*mangle
-A PREROUTING -m limit --limit 20/sec --limit-burst 3 -j MARK --set-mark 9
-A PREROUTING -m mark --mark 9 -j MARK --or-mark 0x100
-A PREROUTING -m connmark --mark 7
-A POSTROUTING -j CONNMARK --set-mark 7
-A POSTROUTING -m mark ! --mark 0/0xff -j CONNMARK --save-mark
*filter
:HASH -
-A FORWARD -m recent --name seen --update --seconds 5 --hitcount 3
-A FORWARD -m recent --name seen --set
-A FORWARD -p udp -j HASH
-A HASH -m hashlimit --hashlimit-name h@ICMP --hashlimit-mode srcip,dstport --hashlimit-upto 10/sec --hashlimit-burst 2 -j ACCEPT
-A FORWARD -m set --match-set @SET src
-A FORWARD -p tcp -m set --match-set ports dst -j DROP
-A FORWARD -m quota --quota 20000
-A INPUT -m addrtype --dst-type LOCAL -m pkttype --pkt-type unicast
-A INPUT -m length --length 40:200
-A OUTPUT -m owner --uid-owner 0
-A OUTPUT -m statistic --mode random --probability 0.2 -j DROP
",
    },
    Handwritten {
        name: "targets that go on",
        is_tree: true,
        text: "\
*mangle
-A PREROUTING -p udp --dport 53 -j MARK --set-mark 0x10/0xff
-A PREROUTING -p udp -j MARK --xor-mark 0x3
-A PREROUTING -j CONNMARK --restore-mark
-A FORWARD -p udp -j DSCP --set-dscp 0x0a
-A FORWARD -p tcp -j TOS --set-tos 0x10
4|-A FORWARD -p udp --dport 80 -j TTL --ttl-set 40
6|-A FORWARD -p udp --dport 80 -j HL --hl-set 40
-A POSTROUTING -j CLASSIFY --set-class 1:2
-A OUTPUT -m mark --mark 0 -j MARK --set-mark 0xdeadbeef
*raw
-A PREROUTING -p udp --dport 443 -j CT --notrack
-A PREROUTING -p udp --dport 5001 -j CT --zone 5
-A OUTPUT -p @ICMP -j NOTRACK
*filter
-A FORWARD -p udp --dport 53 -j NFLOG --nflog-group 5 --nflog-prefix \"not us\"
-A FORWARD -p udp --dport 80 -m limit --limit 2/sec -j LOG --log-prefix \"TRACE: raw:FAKE:rule:1 \"
-A FORWARD -m conntrack --ctstate UNTRACKED
",
    },
    Handwritten {
        name: "fragments",
        is_tree: true,
        text: "\
*raw
-A PREROUTING -p udp --dport 4000
4|-A PREROUTING -f
6|-A PREROUTING -m frag --fragmore
6|-A PREROUTING -m frag --fraglast
-A PREROUTING -p udp
*filter
-A FORWARD -p udp --dport 4000 -j ACCEPT
4|-A FORWARD -f -j ACCEPT
",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_family_are_put_in() {
        for ruleset in HANDWRITTEN {
            for family in Family::ALL {
                let text = ruleset.text(family);
                assert!(!text.contains('@') && !text.contains("4|") && !text.contains("6|"), "{text}");
                assert_eq!(text.matches("COMMIT").count(), TABLES.len());
                assert_eq!(text.matches("-j TRACE").count(), 2);
            }
        }
    }

    #[test]
    fn counters_are_left_out() {
        let saved =
            "# x\n*filter\n:INPUT ACCEPT [12:34]\n[5:6] -A INPUT -m comment --comment \"a [b\" -j DROP\n";
        assert_eq!(
            without_counters(saved),
            "*filter\n:INPUT ACCEPT\n-A INPUT -m comment --comment \"a [b\" -j DROP\n"
        );
    }
}
