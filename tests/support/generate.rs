//! Rulesets made up from a seed, and made smaller when one shows a fault.

use std::fmt::Write;

use anyhow::Result;

use crate::lab::{Family, addresses};
use crate::netns::Netns;
use crate::random::Random;
use crate::ruleset::{TABLES, load};

/// How chains may refer to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// At most one rule leads to each chain: no chain can be entered twice in one traversal.
    Tree,
    /// Any number of rules may lead to a chain.
    Graph,
}

/// A ruleset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// For which family.
    pub family: Family,
    tables: Vec<Table>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Table {
    name: &'static str,
    chains: Vec<Chain>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Chain {
    name: String,
    /// `ACCEPT` or `DROP`; `-` for a user chain.
    policy: &'static str,
    rules: Vec<String>,
}

/// What rules of this kernel can be made of.
#[derive(Clone, Debug)]
pub struct Parts {
    matches: Vec<String>,
    targets: Vec<(String, Vec<&'static str>)>,
}

const ALL: &[&str] = &["raw", "mangle", "nat", "filter", "security"];
const MATCHES: &[&str] = &[
    "-p udp",
    "-p tcp",
    "-p @ICMP",
    "-p udp --dport 4000",
    "-p udp --dport 4000:5001",
    "-p udp -m multiport --dports 53,80,443",
    "-p tcp --dport 80",
    "-p tcp --syn",
    "-p tcp ! --syn",
    "-p tcp -m multiport --ports 4000,7001",
    "-s @A",
    "-d @B",
    "! -s @OTHER",
    "-m statistic --mode random --probability 0.5",
    "-m statistic --mode random --probability 0.8",
    "-m statistic --mode nth --every 2 --packet 0",
    "-m limit --limit 30/sec --limit-burst 5",
    "-m mark --mark 1",
    "-m mark ! --mark 0",
    "-m connmark --mark 2/0xf",
    "-m conntrack --ctstate NEW",
    "-m conntrack --ctstate ESTABLISHED,RELATED",
    "-m conntrack --ctstate INVALID,UNTRACKED",
    "-m comment --comment \"a 'b' \\\"c\\\" $d\"",
    "-m length --length 20:120",
    "-m length --length 100:65535",
    "-m set --match-set @SET src",
    "-p udp -m set --match-set ports dst",
    "-m hashlimit --hashlimit-name g@ICMP --hashlimit-mode srcip --hashlimit-upto 50/sec --hashlimit-burst 4",
    "-m recent --name r@ICMP --set",
    "-m recent --name r@ICMP --rcheck --hitcount 2",
    "-m addrtype --dst-type LOCAL",
    "-m addrtype ! --dst-type LOCAL",
    "-m tos --tos 0x10",
    "-m dscp --dscp 0x0a",
    "-m quota --quota 4000",
    "-m pkttype --pkt-type unicast",
    "-m cpu --cpu 0",
    "-m connbytes --connbytes 2: --connbytes-dir both --connbytes-mode packets",
    "-m u32 --u32 \"0x0&0xff=0x0:0x7f\"",
];
const TARGETS: &[(&str, &[&str])] = &[
    ("-j MARK --set-mark 1", &["mangle", "filter", "raw", "security"]),
    ("-j MARK --xor-mark 0x3", &["mangle", "filter"]),
    ("-j CONNMARK --set-mark 2", &["mangle", "filter"]),
    ("-j CONNMARK --restore-mark", &["mangle"]),
    ("-j DSCP --set-dscp 0x0a", &["mangle"]),
    ("-j TOS --set-tos 0x10", &["mangle"]),
    ("-j @TTL", &["mangle"]),
    // A copy may come back; without the condition it would be copied again, for ever.
    ("@HOPS -j TEE --gateway @B", &["mangle", "filter"]),
    ("-j NFLOG --nflog-group 5", &["mangle", "filter", "raw"]),
    ("-j CT --notrack", &["raw"]),
    ("-j REJECT", &["filter"]),
    ("-p tcp -j REJECT --reject-with tcp-reset", &["filter"]),
    ("", ALL),
];

impl Parts {
    /// Those that a namespace's kernel and tools take. The rest is named.
    pub fn of(netns: &Netns, family: Family) -> Result<(Self, Vec<String>)> {
        let mut parts = Self::all(family);
        if load(netns, family, &parts.sample(family)).is_ok() {
            return Ok((parts, Vec::new()));
        }
        let mut refused = Vec::new();
        let mut takes = |table: &str, rule: &str| {
            let taken = load(netns, family, &format!("*{table}\n-A OUTPUT {rule}\nCOMMIT\n")).is_ok();
            if !taken {
                refused.push(rule.to_owned());
            }
            taken
        };
        parts.matches.retain(|text| takes("mangle", text));
        parts.targets.retain(|(text, tables)| takes(tables[0], text));
        netns.clear_rules()?;
        Ok((parts, refused))
    }

    fn all(family: Family) -> Self {
        Self {
            matches: MATCHES.iter().map(|text| fill(text, family)).collect(),
            targets: TARGETS.iter().map(|(text, tables)| (fill(text, family), tables.to_vec())).collect(),
        }
    }

    /// Everything once.
    fn sample(&self, family: Family) -> String {
        let mut tables: Vec<Table> = empty_tables();
        for table in &mut tables {
            let fitting = self.targets.iter().filter(|(_, tables)| tables.contains(&table.name));
            let targets = fitting.map(|(text, _)| text.clone());
            let rules = self.matches.iter().cloned().chain(targets);
            let output = table.chains.iter_mut().find(|chain| chain.name == "OUTPUT");
            output.into_iter().for_each(|chain| chain.rules = rules.clone().collect());
        }
        // And nothing of it stays: the last rules that are loaded are empty ones.
        Ruleset { family, tables }.text() + &Ruleset { family, tables: empty_tables() }.text()
    }
}

fn fill(text: &str, family: Family) -> String {
    let at = addresses(family);
    let four = family == Family::Ipv4;
    text.replace("@ICMP", if four { "icmp" } else { "ipv6-icmp" })
        .replace("@SET", if four { "odd4" } else { "odd6" })
        .replace("@TTL", if four { "TTL --ttl-set 50" } else { "HL --hl-set 50" })
        .replace("@HOPS", if four { "-m ttl --ttl-gt 62" } else { "-m hl --hl-gt 62" })
        .replace("@OTHER", &at.a_other.to_string())
        .replace("@A", &at.a.to_string())
        .replace("@B", &at.b.to_string())
}

fn empty_tables() -> Vec<Table> {
    let chain = |name: &&str| Chain { name: (*name).to_owned(), policy: "ACCEPT", rules: Vec::new() };
    TABLES.iter().map(|(name, chains)| Table { name, chains: chains.iter().map(chain).collect() }).collect()
}

/// Makes a ruleset from a seed.
pub fn generate(seed: u64, family: Family, shape: Shape, parts: &Parts) -> Ruleset {
    let mut random = Random::new(seed);
    let mut tables = empty_tables();
    for table in &mut tables {
        Maker { random: &mut random, family, shape, parts, table: table.name }.table(table);
    }
    Ruleset { family, tables }
}

/// Makes the rules of one table.
struct Maker<'a> {
    random: &'a mut Random,
    family: Family,
    shape: Shape,
    parts: &'a Parts,
    table: &'static str,
}

impl Maker<'_> {
    fn table(&mut self, table: &mut Table) {
        let builtin = table.chains.len();
        let user = match self.random.below(10) {
            0..2 => 0,
            2..8 => self.random.between(1, 4),
            _ => self.random.between(5, 10),
        };
        let names: Vec<String> = (0..user).map(|number| self.name(number)).collect();
        let user_chains = names.into_iter().map(|name| Chain { name, policy: "-", rules: Vec::new() });
        table.chains.extend(user_chains);
        // Chains that nothing leads to yet; a jump only goes to a later chain, so there is no circle.
        let mut free: Vec<bool> = vec![true; table.chains.len()];
        for at in 0..table.chains.len() {
            let count = if at < builtin { self.random.below(5) } else { self.random.below(6) };
            for _ in 0..count {
                let rule = self.rule(at, builtin, &table.chains, &mut free);
                table.chains[at].rules.push(rule);
            }
            if at < builtin && self.table == "filter" && self.random.percent(12) {
                table.chains[at].policy = "DROP";
            }
        }
    }

    fn name(&mut self, number: usize) -> String {
        match self.random.below(12) {
            0 => format!("INPUT{number}"),
            1 => format!("rule:{number}"),
            2 => format!("A-{number}-chain.with_long_name"),
            _ => format!("C{number}"),
        }
    }

    fn rule(&mut self, at: usize, builtin: usize, chains: &[Chain], free: &mut [bool]) -> String {
        let conditions = self.conditions(at < builtin, &chains[at].name);
        let later = at.max(builtin - 1) + 1;
        let open: Vec<usize> =
            (later..chains.len()).filter(|to| self.shape == Shape::Graph || free[*to]).collect();
        if !open.is_empty() && self.random.percent(55) {
            let to = *self.random.pick(&open);
            free[to] = false;
            let word = if self.random.percent(80) { "-j" } else { "-g" };
            return format!("{conditions} {word} {}", chains[to].name);
        }
        let target = match self.random.below(100) {
            0..25 if at >= builtin => "-j RETURN".to_owned(),
            25..33 => "-j ACCEPT".to_owned(),
            33..36 if self.table != "nat" => "-j DROP".to_owned(),
            36..44 if self.table == "nat" && at < builtin => self.translation(&chains[at].name),
            _ => self.target(),
        };
        // REJECT with a reset and translations name conditions themselves, and iptables takes each only once.
        if target.starts_with("-j") { format!("{conditions} {target}") } else { target }
    }

    fn conditions(&mut self, is_builtin: bool, chain: &str) -> String {
        let mut text = match self.random.below(10) {
            0..2 => String::new(),
            2..8 => self.random.pick(&self.parts.matches).clone(),
            _ => self.random.pick(&self.parts.matches).clone() + " -m comment --comment second",
        };
        if is_builtin && self.random.percent(8) {
            text += match chain {
                "PREROUTING" | "INPUT" => " -i ra",
                "OUTPUT" | "POSTROUTING" => " -o rb",
                _ => " -i ra -o rb",
            };
        }
        text
    }

    fn target(&mut self) -> String {
        let table = self.table;
        let fitting: Vec<_> =
            self.parts.targets.iter().filter(|(_, tables)| tables.contains(&table)).collect();
        self.random.pick(&fitting).0.clone()
    }

    fn translation(&self, chain: &str) -> String {
        let b = addresses(self.family).b;
        match chain {
            "PREROUTING" => format!("-d {} -j DNAT --to-destination {b}", addresses(self.family).r_dnat),
            "POSTROUTING" => "-j MASQUERADE".to_owned(),
            "OUTPUT" => format!("-d {b} -p udp -j REDIRECT --to-ports 4000"),
            _ => String::new(),
        }
    }
}

impl Ruleset {
    /// As `iptables-restore` wants it.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for table in &self.tables {
            let _ = writeln!(text, "*{}", table.name);
            for chain in &table.chains {
                let _ = writeln!(text, ":{} {} [0:0]", chain.name, chain.policy);
            }
            for chain in &table.chains {
                if table.name == "raw" && matches!(&*chain.name, "PREROUTING" | "OUTPUT") {
                    let _ = writeln!(text, "-A {} -j TRACE", chain.name);
                }
                for rule in &chain.rules {
                    let _ = writeln!(text, "-A {} {}", chain.name, rule.trim());
                }
            }
            text += "COMMIT\n";
        }
        text
    }

    /// How many rules it has.
    pub fn size(&self) -> usize {
        self.tables.iter().flat_map(|table| &table.chains).map(|chain| chain.rules.len()).sum()
    }

    /// The same with less, larger cuts first: without a table's rules, without a chain's, without one rule.
    pub fn smaller(&self) -> Vec<Self> {
        let mut all = Vec::new();
        let mut cut = |change: &dyn Fn(&mut Self)| {
            let mut smaller = self.clone();
            change(&mut smaller);
            smaller.drop_unused_chains();
            if smaller != *self {
                all.push(smaller);
            }
        };
        for table in 0..self.tables.len() {
            cut(&|it| it.tables[table].chains.iter_mut().for_each(|chain| chain.rules.clear()));
        }
        for (table, chains) in self.tables.iter().map(|table| table.chains.len()).enumerate() {
            for chain in 0..chains {
                cut(&|it| it.tables[table].chains[chain].rules.clear());
            }
            for chain in 0..chains {
                for rule in 0..self.tables[table].chains[chain].rules.len() {
                    cut(&|it| drop(it.tables[table].chains[chain].rules.remove(rule)));
                }
            }
        }
        all
    }

    fn drop_unused_chains(&mut self) {
        for table in &mut self.tables {
            loop {
                let used: Vec<String> = table
                    .chains
                    .iter()
                    .flat_map(|chain| &chain.rules)
                    .filter_map(|rule| leads_to(rule))
                    .collect();
                let before = table.chains.len();
                table.chains.retain(|chain| chain.policy != "-" || used.contains(&chain.name));
                if table.chains.len() == before {
                    break;
                }
            }
        }
    }
}

fn leads_to(rule: &str) -> Option<String> {
    let mut words = rule.split(' ').skip_while(|word| !matches!(*word, "-j" | "-g"));
    words.nth(1).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rulesets(shape: Shape) -> impl Iterator<Item = Ruleset> {
        let parts = Parts::all(Family::Ipv4);
        (0..200).map(move |seed| generate(seed, Family::Ipv4, shape, &parts))
    }

    #[test]
    fn the_same_seed_gives_the_same_ruleset() {
        let parts = Parts::all(Family::Ipv6);
        let make = || generate(7, Family::Ipv6, Shape::Graph, &parts).text();
        assert_eq!(make(), make());
    }

    #[test]
    fn no_rule_names_a_condition_twice() {
        for line in rulesets(Shape::Graph)
            .chain(rulesets(Shape::Tree))
            .flat_map(|ruleset| ruleset.text().lines().map(str::to_owned).collect::<Vec<_>>())
        {
            for option in [" -p ", " -d ", " -s "] {
                assert!(line.matches(option).count() < 2, "{line}");
            }
        }
    }

    #[test]
    fn in_a_tree_at_most_one_rule_leads_to_a_chain() {
        for ruleset in rulesets(Shape::Tree) {
            for table in &ruleset.tables {
                let mut targets: Vec<_> = table
                    .chains
                    .iter()
                    .flat_map(|chain| &chain.rules)
                    .filter_map(|rule| leads_to(rule))
                    .collect();
                targets.retain(|target| table.chains.iter().any(|chain| chain.name == *target));
                let count = targets.len();
                targets.sort();
                targets.dedup();
                assert_eq!(targets.len(), count, "{}", ruleset.text());
            }
        }
    }

    #[test]
    fn graphs_enter_chains_twice() {
        let twice = rulesets(Shape::Graph).filter(|ruleset| {
            ruleset.tables.iter().flat_map(|table| &table.chains).any(|chain| {
                let word = format!(" {}", chain.name);
                ruleset.text().lines().filter(|line| line.ends_with(&word)).count() > 1
            })
        });
        assert!(twice.count() > 20);
    }

    #[test]
    fn smaller_ones_are_smaller() {
        for ruleset in rulesets(Shape::Graph).take(20) {
            assert!(ruleset.smaller().iter().all(|smaller| smaller.size() < ruleset.size()));
        }
    }
}
