//! From the messages of a dump to the model. Names and numbers are those of
//! `include/uapi/linux/netfilter/nf_tables.h`.

use super::{Base, Chain, Flowtable, Index, Rule, RuleVerdict, Ruleset, Set, Table};
use crate::netfilter::{Hook, TableFamily, Verdict};
use crate::netlink::{Attribute, Netfilter, find};
use crate::text;
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, OnceLock};

/// `NFNL_SUBSYS_NFTABLES`
pub const SUBSYSTEM: u8 = 10;
/// The messages that ask for all objects of a kind: tables, chains, rules, sets and flowtables.
pub const DUMPS: [u8; 5] = [1, 4, 7, 10, 23];
/// `NFNLGRP_NFTABLES`: the multicast group of changes. The last message of each tells its [`generation`].
pub const GROUP: u32 = 7;
/// `NFT_MSG_GETGEN`
pub const GETGEN: u8 = 16;
/// `NFT_CHAIN_BINDING`
const CHAIN_BINDING: u32 = 0x4;
/// `NFT_SET_ANONYMOUS`
const SET_ANONYMOUS: u32 = 0x1;
/// `NFT_SET_MAP`
const SET_MAP: u32 = 0x8;
/// `NFT_META_NFTRACE`
const META_NFTRACE: u32 = 12;
/// `NFTNL_UDATA_RULE_COMMENT` of libnftnl.
const UDATA_COMMENT: u8 = 0;
/// `UDATA_TYPE_EBTABLES_POLICY` of iptables.
const UDATA_EBTABLES_POLICY: u8 = 1;

/// `NFT_MSG_NEW…`
pub(super) mod new {
    pub(in crate::nftables) const TABLE: u8 = 0;
    pub(in crate::nftables) const CHAIN: u8 = 3;
    pub(in crate::nftables) const RULE: u8 = 6;
    pub(in crate::nftables) const SET: u8 = 9;
    pub(in crate::nftables) const GENERATION: u8 = 15;
    pub(in crate::nftables) const FLOWTABLE: u8 = 22;
}

/// `NFTA_…`, each by the object that has it.
pub(super) mod nfta {
    /// The name of a table, and of the table of everything else.
    pub(in crate::nftables) const TABLE: u16 = 1;
    pub(in crate::nftables) const TABLE_FLAGS: u16 = 2;
    pub(in crate::nftables) const TABLE_HANDLE: u16 = 4;
    pub(in crate::nftables) const TABLE_OWNER: u16 = 7;
    pub(in crate::nftables) const CHAIN_HANDLE: u16 = 2;
    pub(in crate::nftables) const CHAIN_NAME: u16 = 3;
    pub(in crate::nftables) const CHAIN_HOOK: u16 = 4;
    pub(in crate::nftables) const CHAIN_POLICY: u16 = 5;
    pub(in crate::nftables) const CHAIN_TYPE: u16 = 7;
    pub(in crate::nftables) const CHAIN_FLAGS: u16 = 10;
    pub(in crate::nftables) const HOOK_NUM: u16 = 1;
    pub(in crate::nftables) const HOOK_PRIORITY: u16 = 2;
    pub(in crate::nftables) const HOOK_DEV: u16 = 3;
    pub(in crate::nftables) const HOOK_DEVS: u16 = 4;
    pub(in crate::nftables) const DEVICE_PREFIX: u16 = 2;
    pub(in crate::nftables) const RULE_CHAIN: u16 = 2;
    pub(in crate::nftables) const RULE_HANDLE: u16 = 3;
    pub(in crate::nftables) const RULE_EXPRESSIONS: u16 = 4;
    pub(in crate::nftables) const RULE_POSITION: u16 = 6;
    pub(in crate::nftables) const RULE_USERDATA: u16 = 7;
    pub(in crate::nftables) const EXPR_NAME: u16 = 1;
    pub(in crate::nftables) const EXPR_DATA: u16 = 2;
    pub(in crate::nftables) const IMMEDIATE_DATA: u16 = 2;
    pub(in crate::nftables) const META_KEY: u16 = 2;
    pub(in crate::nftables) const META_SREG: u16 = 3;
    pub(in crate::nftables) const PAYLOAD_SREG: u16 = 5;
    pub(in crate::nftables) const DATA_VERDICT: u16 = 2;
    pub(in crate::nftables) const VERDICT_CODE: u16 = 1;
    pub(in crate::nftables) const VERDICT_CHAIN: u16 = 2;
    pub(in crate::nftables) const SET_NAME: u16 = 2;
    pub(in crate::nftables) const SET_FLAGS: u16 = 3;
    pub(in crate::nftables) const SET_HANDLE: u16 = 16;
    pub(in crate::nftables) const FLOWTABLE_NAME: u16 = 2;
    pub(in crate::nftables) const FLOWTABLE_HOOK: u16 = 3;
    pub(in crate::nftables) const FLOWTABLE_HANDLE: u16 = 5;
    pub(in crate::nftables) const FLOWTABLE_HOOK_DEVS: u16 = 3;
    pub(in crate::nftables) const GEN_ID: u16 = 1;
}

/// The family of a table by its `NFPROTO_…`.
pub(super) fn family(number: u8) -> Option<TableFamily> {
    match number {
        1 => Some(TableFamily::Inet),
        2 => Some(TableFamily::Ip),
        3 => Some(TableFamily::Arp),
        5 => Some(TableFamily::Netdev),
        7 => Some(TableFamily::Bridge),
        10 => Some(TableFamily::Ip6),
        _ => None,
    }
}

/// A hook by its number in a family.
fn hook(family: TableFamily, number: u32) -> Option<Hook> {
    match (family, number) {
        (TableFamily::Netdev, 0) | (TableFamily::Inet, 5) => Some(Hook::Ingress),
        (TableFamily::Netdev, 1) => Some(Hook::Egress),
        (TableFamily::Netdev, _) => None,
        (TableFamily::Arp, number) => Hook::ARP.get(usize::try_from(number).ok()?).copied(),
        (TableFamily::Bridge, number) => Hook::BRIDGE.get(usize::try_from(number).ok()?).copied(),
        (_, number) => Hook::from_number(u8::try_from(number).ok()?),
    }
}

/// The generation that `NFT_MSG_NEWGEN` tells; `None` for other messages.
pub fn generation(message: &Netfilter<'_>) -> Option<u32> {
    if (message.subsystem, message.message) != (SUBSYSTEM, new::GENERATION) {
        return None;
    }
    find(message.attributes, nfta::GEN_ID)?.be32()
}

/// A verdict, from the attributes of `NFTA_DATA_VERDICT` or `NFTA_TRACE_VERDICT`.
pub(super) fn verdict(bytes: &[u8]) -> Option<RuleVerdict<'_>> {
    let chain = || Some(find(bytes, nfta::VERDICT_CHAIN)?.text());
    let code = find(bytes, nfta::VERDICT_CODE)?.be32()?;
    // `enum nft_verdicts`
    match code.cast_signed() {
        -1 | -2 => Some(RuleVerdict::Continue),
        -3 => Some(RuleVerdict::Jump(chain()?)),
        -4 => Some(RuleVerdict::Goto(chain()?)),
        -5 => Some(RuleVerdict::Return),
        _ => Some(RuleVerdict::Final(Verdict::from_return(code))),
    }
}

/// Which table.
type Place = (TableFamily, Arc<str>);

/// A ruleset in the making.
#[derive(Debug, Default)]
pub struct Parts {
    tables: Vec<Table>,
    chains: Vec<(Place, Chain)>,
    rules: HashMap<(Place, Arc<str>), Vec<Rule>>,
    sets: Vec<(Place, Set)>,
    flowtables: Vec<(Place, Flowtable)>,
    /// Every name once.
    names: HashSet<Arc<str>>,
}

/// Expressions whose parameters change as packets come.
const COUNTS: [&str; 3] = ["counter", "quota", "last"];

impl Parts {
    /// Adds what a message holds. Families and objects that this program does not know are passed over.
    pub fn add(&mut self, message: &Netfilter<'_>) {
        if message.subsystem == SUBSYSTEM {
            // `None` is a message without a name, which no kernel sends.
            let _ = self.understand(message);
        }
    }

    fn understand(&mut self, message: &Netfilter<'_>) -> Option<()> {
        let (family, body) = (family(message.family)?, message.attributes);
        let table = self.name(body, nfta::TABLE)?;
        let place = (family, table.clone());
        match message.message {
            new::TABLE => self.tables.push(Table {
                family,
                name: table,
                handle: be64(body, nfta::TABLE_HANDLE),
                flags: be32(body, nfta::TABLE_FLAGS),
                owner: find(body, nfta::TABLE_OWNER).and_then(|owner| owner.be32()),
                chains: Vec::new(),
                sets: Vec::new(),
                flowtables: Vec::new(),
                index: Index::default(),
            }),
            new::CHAIN => {
                let name = self.name(body, nfta::CHAIN_NAME)?;
                self.chains.push((place, chain(family, name, body)));
            }
            new::RULE => {
                let chain = self.name(body, nfta::RULE_CHAIN)?;
                let rule = self.rule(body);
                self.rules.entry((place, chain)).or_default().push(rule);
            }
            new::SET => {
                let set = self.set(body)?;
                self.sets.push((place, set));
            }
            new::FLOWTABLE => {
                let name = self.name(body, nfta::FLOWTABLE_NAME)?;
                self.flowtables.push((place, flowtable(name, body)));
            }
            _ => {}
        }
        Some(())
    }

    pub(super) fn set(&mut self, body: &[u8]) -> Option<Set> {
        let (name, flags) = (self.name(body, nfta::SET_NAME)?, be32(body, nfta::SET_FLAGS));
        let (map, anonymous) = (flags & SET_MAP != 0, flags & SET_ANONYMOUS != 0);
        Some(Set { name, handle: be64(body, nfta::SET_HANDLE), map, anonymous })
    }

    pub(super) fn rule(&mut self, body: &[u8]) -> Rule {
        let (mut names, mut verdict_of_rule) = (Vec::new(), None);
        let expressions = find(body, nfta::RULE_EXPRESSIONS);
        let mut content = DefaultHasher::new();
        let (mut only_asks, mut traces) = (true, false);
        for element in expressions.iter().flat_map(Attribute::nested) {
            let name = self.name(element.value, nfta::EXPR_NAME).unwrap_or_default();
            name.hash(&mut content);
            if !COUNTS.contains(&&*name) {
                element.value.hash(&mut content);
            }
            match effect(&name, element.value) {
                Effect::None => {}
                Effect::Trace => traces = true,
                Effect::Other => only_asks = false,
            }
            if &*name == "immediate" {
                verdict_of_rule = immediate(element.value).or(verdict_of_rule);
            }
            names.push(name);
        }
        let userdata = find(body, nfta::RULE_USERDATA).map_or(&[][..], |userdata| userdata.value);
        userdata.hash(&mut content);
        Rule {
            content: content.finish(),
            handle: be64(body, nfta::RULE_HANDLE),
            comment: comment(userdata),
            policy: userdata_of(userdata, UDATA_EBTABLES_POLICY).is_some(),
            expressions: names,
            only_traces: only_asks && traces,
            verdict: verdict_of_rule,
            text: None,
            nft: None,
            owner: OnceLock::new(),
        }
    }

    /// The text of an attribute.
    pub(super) fn name(&mut self, body: &[u8], kind: u16) -> Option<Arc<str>> {
        let name = find(body, kind)?.text();
        if let Some(known) = self.names.get(&*name) {
            return Some(known.clone());
        }
        let name: Arc<str> = name.into();
        self.names.insert(name.clone());
        Some(name)
    }

    /// Puts everything into its table.
    pub fn finish(mut self, generation: u32) -> Ruleset {
        let mut places: HashMap<Place, Table> = HashMap::new();
        let mut order = Vec::new();
        for table in self.tables {
            let place = (table.family, table.name.clone());
            order.push(place.clone());
            places.insert(place, table);
        }
        for (place, mut chain) in self.chains {
            let Some(table) = places.get_mut(&place) else { continue };
            chain.rules = self.rules.remove(&(place, chain.name.clone())).unwrap_or_default();
            table.chains.push(chain);
        }
        for (place, set) in self.sets {
            places.entry(place).and_modify(|table| table.sets.push(set));
        }
        for (place, flowtable) in self.flowtables {
            places.entry(place).and_modify(|table| table.flowtables.push(flowtable));
        }
        let mut tables: Vec<Table> = order.iter().filter_map(|place| places.remove(place)).collect();
        for table in &mut tables {
            table.index = Index::of(&table.chains);
        }
        Ruleset { generation, tables }
    }
}

impl Index {
    pub(super) fn of(chains: &[Chain]) -> Self {
        let mut index = Self::default();
        for (chain, at) in chains.iter().zip(0..) {
            index.chains.insert(chain.name.clone(), at);
            index.rules.extend(chain.rules.iter().zip(0..).map(|(rule, number)| (rule.handle, (at, number))));
        }
        index
    }
}

pub(super) fn chain(family: TableFamily, name: Arc<str>, body: &[u8]) -> Chain {
    let base = find(body, nfta::CHAIN_HOOK).map(|place| Base {
        hook: hook(family, be32(place.value, nfta::HOOK_NUM)),
        priority: be32(place.value, nfta::HOOK_PRIORITY).cast_signed(),
        kind: find(body, nfta::CHAIN_TYPE).map(|kind| kind.text().into_owned()).unwrap_or_default(),
        policy: Verdict::from_return(be32(body, nfta::CHAIN_POLICY)),
        devices: devices(place.value, nfta::HOOK_DEV, nfta::HOOK_DEVS),
    });
    let bound = be32(body, nfta::CHAIN_FLAGS) & CHAIN_BINDING != 0;
    Chain {
        name,
        handle: be64(body, nfta::CHAIN_HANDLE),
        base,
        bound,
        rules: Vec::new(),
        owner: OnceLock::new(),
    }
}

fn flowtable(name: Arc<str>, body: &[u8]) -> Flowtable {
    let place = find(body, nfta::FLOWTABLE_HOOK).map_or(&[][..], |place| place.value);
    Flowtable {
        name,
        handle: be64(body, nfta::FLOWTABLE_HANDLE),
        priority: be32(place, nfta::HOOK_PRIORITY).cast_signed(),
        devices: devices(place, u16::MAX, nfta::FLOWTABLE_HOOK_DEVS),
    }
}

/// The names in a list of devices, or the one device of a chain that has no list.
fn devices(place: &[u8], one: u16, many: u16) -> Vec<String> {
    let name = |device: Attribute<'_>| match device.kind {
        nfta::DEVICE_PREFIX => format!("{}*", device.text()),
        _ => device.text().into_owned(),
    };
    let list: Vec<String> = find(place, many).iter().flat_map(Attribute::nested).map(name).collect();
    if list.is_empty() {
        return find(place, one).map(|device| device.text().into_owned()).into_iter().collect();
    }
    list
}

/// The verdict in an `immediate` expression; `None` for one that loads data.
fn immediate(expression: &[u8]) -> Option<RuleVerdict<'static>> {
    let data = find(find(expression, nfta::EXPR_DATA)?.value, nfta::IMMEDIATE_DATA)?;
    Some(verdict(find(data.value, nfta::DATA_VERDICT)?.value)?.into_owned())
}

/// What an expression does besides asking.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    None,
    /// Sets the packet's trace bit.
    Trace,
    Other,
}

fn effect(name: &str, expression: &[u8]) -> Effect {
    let data = find(expression, nfta::EXPR_DATA).map_or(&[][..], |data| data.value);
    let writes = |source: u16| find(data, source).is_some();
    match name {
        "cmp" | "bitwise" | "range" => Effect::None,
        "payload" if !writes(nfta::PAYLOAD_SREG) => Effect::None,
        "immediate" if immediate(expression).is_none() => Effect::None,
        "meta" if !writes(nfta::META_SREG) => Effect::None,
        "meta" if be32(data, nfta::META_KEY) == META_NFTRACE => Effect::Trace,
        _ => Effect::Other,
    }
}

/// The comment in a rule's userdata.
fn comment(userdata: &[u8]) -> Option<String> {
    let value = userdata_of(userdata, UDATA_COMMENT)?;
    Some(text::lossy(value.split(|byte| *byte == 0).next()?).into_owned())
}

/// One value of userdata, a list of type, length and value.
fn userdata_of(mut userdata: &[u8], wanted: u8) -> Option<&[u8]> {
    while let [kind, length, rest @ ..] = userdata {
        let (value, after) = rest.split_at_checked(usize::from(*length))?;
        if *kind == wanted {
            return Some(value);
        }
        userdata = after;
    }
    None
}

/// The number in an attribute; 0 where there is none.
fn be32(bytes: &[u8], kind: u16) -> u32 {
    find(bytes, kind).and_then(|attribute| attribute.be32()).unwrap_or(0)
}

fn be64(bytes: &[u8], kind: u16) -> u64 {
    find(bytes, kind).and_then(|attribute| attribute.be64()).unwrap_or(0)
}
