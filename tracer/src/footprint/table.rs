//! A private table of nftables that sets the trace bit of packets, which the legacy tables look at as well.

use super::select::{Field, Selection, Test};
use crate::fetch::nft::Nftables;
use crate::netfilter::{Family, Hook, TableFamily, Verdict};
use crate::netlink::{Body, Builder};
use crate::nftables::{self, Base};
use crate::path::group::join::MARK;
use crate::sys::netlink::{Error, NETFILTER, Socket};
use crate::sys::process::Process;
use std::fs::File;

/// How the names of our tables begin.
const PREFIX: &str = "nftracer_";
/// `NFPROTO_INET`
const INET: u8 = 1;
/// `NFNL_SUBSYS_NFTABLES`
const SUBSYSTEM: u8 = libc::NFNL_SUBSYS_NFTABLES as u8;
const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const ACK: u16 = REQUEST | libc::NLM_F_ACK as u16;
const MAKE: u16 = ACK | libc::NLM_F_CREATE as u16;
/// `NFT_TABLE_F_OWNER`: the table goes when the socket that made it is closed. Since 5.12.
const OWNED: u32 = 2;
/// `NFT_REG_1`
const REGISTER: u32 = 1;

/// `enum nft_table_attributes` and its siblings.
mod attribute {
    pub(super) const TABLE_NAME: u16 = 1;
    pub(super) const TABLE_FLAGS: u16 = 2;
    pub(super) const CHAIN_TABLE: u16 = 1;
    pub(super) const CHAIN_NAME: u16 = 3;
    pub(super) const CHAIN_HOOK: u16 = 4;
    pub(super) const CHAIN_TYPE: u16 = 7;
    pub(super) const HOOK_HOOKNUM: u16 = 1;
    pub(super) const HOOK_PRIORITY: u16 = 2;
    pub(super) const RULE_TABLE: u16 = 1;
    pub(super) const RULE_CHAIN: u16 = 2;
    pub(super) const RULE_EXPRESSIONS: u16 = 4;
    pub(super) const LIST_ELEM: u16 = 1;
    pub(super) const EXPR_NAME: u16 = 1;
    pub(super) const EXPR_DATA: u16 = 2;
    pub(super) const DATA_VALUE: u16 = 1;
}

/// A table of ours. Where it is owned, the kernel removes it when this is dropped.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) owned: bool,
    _socket: Socket,
}

/// The name of a run's table.
pub(super) fn name(owner: Process) -> String {
    format!("{PREFIX}{}_{}", owner.pid, owner.start)
}

/// Which run a table is of, if it is one of ours.
pub(super) fn owner(name: &str) -> Option<Process> {
    let (pid, start) = name.strip_prefix(PREFIX)?.split_once('_')?;
    format!("{pid}:{start}").parse().ok()
}

/// Whether a table does what those of ours do, and nothing else: it sets the trace bit of packets, at [`MARK`] or where
/// no packet gets to.
pub(super) fn only_marks(table: &nftables::Table) -> bool {
    let is_marking = |base: &Base| {
        let hook = matches!(base.hook, Some(Hook::Prerouting | Hook::Output));
        hook && base.priority == MARK && base.kind == "filter" && base.policy == Verdict::Accept
    };
    let mut chains = table.chains.iter();
    table.family == TableFamily::Inet
        && table.sets.is_empty()
        && table.flowtables.is_empty()
        && chains.all(|chain| {
            chain.base.as_ref().is_none_or(is_marking) && chain.rules.iter().all(|rule| rule.only_traces)
        })
}

impl Table {
    /// Makes it, all at once. Kernels that know no owners make one that stays until it is removed.
    pub(super) fn make(namespace: &File, name: &str, selections: &[Selection]) -> Result<Self, Error> {
        let mut socket = Socket::open(Some(namespace), NETFILTER)?;
        for owned in [true, false] {
            let (batch, replies) = batch(&mut socket, |messages| all(messages, name, owned, selections));
            match socket.request(batch.as_bytes(), &replies, |_| ()) {
                Err(error) if owned && knows_no_owners(&error) => {}
                made => return made.map(|_| Self { owned, _socket: socket }),
            }
        }
        unreachable!("the second attempt returns")
    }

    /// Makes one that no packet gets to; `None` when it was to be owned and the kernel knows no owners.
    pub(super) fn inert(namespace: &File, name: &str, owned: bool) -> Result<Option<Self>, Error> {
        let mut socket = Socket::open(Some(namespace), NETFILTER)?;
        let (batch, replies) = batch(&mut socket, |messages| inert(messages, name, owned));
        match socket.request(batch.as_bytes(), &replies, |_| ()) {
            Err(error) if owned && knows_no_owners(&error) => Ok(None),
            made => made.map(|_| Some(Self { owned, _socket: socket })),
        }
    }
}

fn knows_no_owners(error: &Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
}

/// Removes a table. Says whether it was there.
pub(super) fn remove(namespace: &File, name: &str) -> Result<bool, Error> {
    let mut socket = Socket::open(Some(namespace), NETFILTER)?;
    let (batch, replies) = batch(&mut socket, |messages| {
        messages.add(libc::NFT_MSG_DELTABLE, ACK, |body| {
            body.text(attribute::TABLE_NAME, name);
        });
    });
    match socket.request(batch.as_bytes(), &replies, |_| ()) {
        // Without nf_tables there is none.
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP)) =>
        {
            Ok(false)
        }
        removed => removed.map(|_| true),
    }
}

/// The runs that have a table in a namespace.
pub(super) fn owners(namespace: &File) -> Vec<Process> {
    let nftables = Nftables::open(namespace).ok().flatten();
    let Some(ruleset) = nftables.and_then(|mut nftables| nftables.structure().ok()) else {
        return Vec::new();
    };
    ruleset.tables.iter().filter(|table| only_marks(table)).filter_map(|table| owner(&table.name)).collect()
}

/// The messages of one transaction, with the numbers of their answers.
struct Messages<'a> {
    socket: &'a mut Socket,
    builder: Builder,
    replies: Vec<u32>,
}

impl Messages<'_> {
    fn add(&mut self, message: libc::c_int, flags: u16, fill: impl FnOnce(&mut Body<'_>)) {
        let sequence = self.socket.next_sequence();
        self.replies.push(sequence);
        let builder = std::mem::take(&mut self.builder);
        self.builder = builder.netfilter((SUBSYSTEM, message as u8), flags, sequence, (INET, 0), fill);
    }
}

fn batch(socket: &mut Socket, fill: impl FnOnce(&mut Messages<'_>)) -> (Builder, Vec<u32>) {
    let frame = |builder: Builder, message: libc::c_int, sequence| {
        builder.netfilter((0, message as u8), REQUEST, sequence, (0, SUBSYSTEM.into()), |_| ())
    };
    let builder = frame(Builder::new(), libc::NFNL_MSG_BATCH_BEGIN, socket.next_sequence());
    let mut messages = Messages { socket, builder, replies: Vec::new() };
    fill(&mut messages);
    let Messages { socket, builder, replies } = messages;
    (frame(builder, libc::NFNL_MSG_BATCH_END, socket.next_sequence()), replies)
}

fn table(messages: &mut Messages<'_>, name: &str, owned: bool) {
    let exclusive = MAKE | libc::NLM_F_EXCL as u16;
    messages.add(libc::NFT_MSG_NEWTABLE, exclusive, |body| {
        body.text(attribute::TABLE_NAME, name);
        if owned {
            number(body, attribute::TABLE_FLAGS, OWNED);
        }
    });
}

/// A chain without a hook, with one rule that sets the trace bit.
fn inert(messages: &mut Messages<'_>, name: &str, owned: bool) {
    const CHAIN: &str = "key";
    table(messages, name, owned);
    messages.add(libc::NFT_MSG_NEWCHAIN, MAKE, |body| {
        body.text(attribute::CHAIN_TABLE, name).text(attribute::CHAIN_NAME, CHAIN);
    });
    messages.add(libc::NFT_MSG_NEWRULE, MAKE | libc::NLM_F_APPEND as u16, |body| {
        body.text(attribute::RULE_TABLE, name).text(attribute::RULE_CHAIN, CHAIN);
        body.nested(attribute::RULE_EXPRESSIONS, |body| Expressions { body }.trace());
    });
}

fn all(messages: &mut Messages<'_>, name: &str, owned: bool, selections: &[Selection]) {
    table(messages, name, owned);
    for (chain, hook) in [("prerouting", libc::NF_INET_PRE_ROUTING), ("output", libc::NF_INET_LOCAL_OUT)] {
        messages.add(libc::NFT_MSG_NEWCHAIN, MAKE, |body| {
            body.text(attribute::CHAIN_TABLE, name).text(attribute::CHAIN_NAME, chain);
            body.nested(attribute::CHAIN_HOOK, |body| {
                number(body, attribute::HOOK_HOOKNUM, hook as u32);
                body.attribute(attribute::HOOK_PRIORITY, &MARK.to_be_bytes());
            });
            body.text(attribute::CHAIN_TYPE, "filter");
        });
        for selection in selections {
            messages.add(libc::NFT_MSG_NEWRULE, MAKE | libc::NLM_F_APPEND as u16, |body| {
                body.text(attribute::RULE_TABLE, name).text(attribute::RULE_CHAIN, chain);
                body.nested(attribute::RULE_EXPRESSIONS, |body| rule(&mut Expressions { body }, selection));
            });
        }
    }
}

fn rule(expressions: &mut Expressions<'_, '_>, selection: &Selection) {
    let family = match selection.family {
        Family::Ipv4 => libc::NFPROTO_IPV4,
        Family::Ipv6 => libc::NFPROTO_IPV6,
        Family::Arp => libc::NFPROTO_ARP,
    };
    expressions.meta(libc::NFT_META_NFPROTO);
    expressions.compare(libc::NFT_CMP_EQ, &[family as u8]);
    selection.tests.iter().for_each(|test| expressions.test(selection.family, test));
    expressions.trace();
}

/// The expressions of a rule, `enum nft_…_attributes` of each.
struct Expressions<'a, 'b> {
    body: &'a mut Body<'b>,
}

impl Expressions<'_, '_> {
    fn add(&mut self, name: &str, fill: impl FnOnce(&mut Body<'_>)) {
        self.body.nested(attribute::LIST_ELEM, |body| {
            body.text(attribute::EXPR_NAME, name).nested(attribute::EXPR_DATA, fill);
        });
    }

    /// `NFTA_META_DREG`, `NFTA_META_KEY`
    fn meta(&mut self, key: libc::c_int) {
        self.add("meta", |body| {
            number(number(body, 1, REGISTER), 2, key as u32);
        });
    }

    /// `NFTA_PAYLOAD_DREG`, `NFTA_PAYLOAD_BASE`, `NFTA_PAYLOAD_OFFSET`, `NFTA_PAYLOAD_LEN`
    fn payload(&mut self, base: libc::c_int, offset: u32, length: u32) {
        self.add("payload", |body| {
            let body = number(number(body, 1, REGISTER), 2, base as u32);
            number(number(body, 3, offset), 4, length);
        });
    }

    /// `NFTA_BITWISE_SREG`, `NFTA_BITWISE_DREG`, `NFTA_BITWISE_LEN`, `NFTA_BITWISE_MASK`, `NFTA_BITWISE_XOR`
    fn mask(&mut self, mask: &[u8]) {
        self.add("bitwise", |body| {
            let body = number(number(body, 1, REGISTER), 2, REGISTER);
            let body = number(body, 3, mask.len() as u32);
            value(value(body, 4, mask), 5, &vec![0; mask.len()]);
        });
    }

    /// `NFTA_CMP_SREG`, `NFTA_CMP_OP`, `NFTA_CMP_DATA`
    fn compare(&mut self, operator: libc::c_int, bytes: &[u8]) {
        self.add("cmp", |body| {
            value(number(number(body, 1, REGISTER), 2, operator as u32), 3, bytes);
        });
    }

    /// `meta nftrace set 1`: `NFTA_IMMEDIATE_DREG`, `NFTA_IMMEDIATE_DATA`; `NFTA_META_KEY`, `NFTA_META_SREG`
    fn trace(&mut self) {
        self.add("immediate", |body| {
            value(number(body, 1, REGISTER), 2, &[1]);
        });
        self.add("meta", |body| {
            number(number(body, 2, libc::NFT_META_NFTRACE as u32), 3, REGISTER);
        });
    }

    fn test(&mut self, family: Family, test: &Test) {
        let (network, transport) = (libc::NFT_PAYLOAD_NETWORK_HEADER, libc::NFT_PAYLOAD_TRANSPORT_HEADER);
        let (source, destination) = if family == Family::Ipv4 { (12, 16) } else { (8, 24) };
        let length = match test.field {
            Field::Protocol if family == Family::Ipv4 => {
                self.payload(network, 9, 1);
                1
            }
            Field::Protocol => {
                self.meta(libc::NFT_META_L4PROTO);
                1
            }
            Field::SourcePort => {
                self.payload(transport, 0, 2);
                2
            }
            Field::DestinationPort => {
                self.payload(transport, 2, 2);
                2
            }
            Field::Source(word) => {
                self.payload(network, source + 4 * u32::from(word), 4);
                4
            }
            Field::Destination(word) => {
                self.payload(network, destination + 4 * u32::from(word), 4);
                4
            }
        };
        let bytes = |value: u32| value.to_be_bytes()[4 - length..].to_vec();
        let full = bytes(u32::MAX);
        if bytes(test.mask) != full {
            self.mask(&bytes(test.mask));
        }
        match (test.is_one(), test.inside) {
            (true, true) => self.compare(libc::NFT_CMP_EQ, &bytes(test.low)),
            (true, false) => self.compare(libc::NFT_CMP_NEQ, &bytes(test.low)),
            (false, _) => {
                self.compare(libc::NFT_CMP_GTE, &bytes(test.low));
                let most = u32::MAX >> (32 - 8 * length);
                self.compare(libc::NFT_CMP_LTE, &bytes(test.high.min(most)));
            }
        }
    }
}

fn number<'a, 'b>(body: &'a mut Body<'b>, kind: u16, number: u32) -> &'a mut Body<'b> {
    body.attribute(kind, &number.to_be_bytes())
}

fn value<'a, 'b>(body: &'a mut Body<'b>, kind: u16, bytes: &[u8]) -> &'a mut Body<'b> {
    body.nested(kind, |body| {
        body.attribute(attribute::DATA_VALUE, bytes);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_tables_are_ours() {
        let process = Process { pid: 7, start: 8 };
        assert_eq!(owner(&name(process)), Some(process));
        for other in ["nftracer", "nftracer_", "nftracer_7", "nftracer_7_x", "nftracer_7_8_9", "filter"] {
            assert_eq!(owner(other), None, "{other}");
        }
    }
}
