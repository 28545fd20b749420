//! The table that makes the kernel tell of nftables' verdicts.
//!
//! The kernel calls `__nft_trace_packet` as long as any rule of its namespaces says `meta nftrace set`. Ours says it in
//! a chain without a hook, to which nothing leads: no packet gets there, and none is marked.
#![forbid(unsafe_code)]

use crate::netlink::{Body, Builder};
use crate::sys::netlink::{Error, NETFILTER, Socket};
use std::fs::File;

/// `NFPROTO_INET`
const INET: u8 = 1;
/// `NFNL_SUBSYS_NFTABLES`
const SUBSYSTEM: u8 = libc::NFNL_SUBSYS_NFTABLES as u8;
const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const MAKE: u16 = REQUEST | (libc::NLM_F_ACK | libc::NLM_F_CREATE) as u16;
/// `NFT_TABLE_F_OWNER`: the table goes when the socket that made it is closed. Since 5.12.
const OWNED: u32 = 2;
/// `NFT_REG_1`
const REGISTER: u32 = 1;
const CHAIN: &str = "key";

/// A message of a batch, its flags, and what writes its attributes.
type Part<'a> = (i32, i32, &'a dyn Fn(&mut Body<'_>));

/// The table. Where it is owned, the kernel removes it when this is dropped, and when the process ends in whatever way.
#[derive(Debug)]
pub struct Key {
    name: String,
    owned: bool,
    socket: Socket,
}

impl Key {
    /// Makes it in a namespace. Its effect is on all of them.
    pub fn turn(namespace: &File) -> Result<Self, Error> {
        let name = format!("nftracer_{}", std::process::id());
        let socket = Socket::open(Some(namespace), NETFILTER)?;
        let mut key = Self { name, owned: true, socket };
        match key.make() {
            // Kernels that know no owners make one that stays until it is removed.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
                key.owned = false;
                key.make()?;
            }
            made => made?,
        }
        Ok(key)
    }

    fn make(&mut self) -> Result<(), Error> {
        let (name, owned) = (self.name.clone(), self.owned);
        self.batch(&[
            // `NFTA_TABLE_NAME`, `NFTA_TABLE_FLAGS`
            (libc::NFT_MSG_NEWTABLE, libc::NLM_F_EXCL, &|body| {
                body.text(1, &name);
                if owned {
                    number(body, 2, OWNED);
                }
            }),
            // `NFTA_CHAIN_TABLE`, `NFTA_CHAIN_NAME`
            (libc::NFT_MSG_NEWCHAIN, 0, &|body| {
                body.text(1, &name).text(3, CHAIN);
            }),
            // `NFTA_RULE_TABLE`, `NFTA_RULE_CHAIN`, `NFTA_RULE_EXPRESSIONS`
            (libc::NFT_MSG_NEWRULE, libc::NLM_F_APPEND, &|body| {
                body.text(1, &name).text(2, CHAIN).nested(4, trace);
            }),
        ])
    }

    fn batch(&mut self, messages: &[Part<'_>]) -> Result<(), Error> {
        let mut builder = frame(Builder::new(), libc::NFNL_MSG_BATCH_BEGIN, self.socket.next_sequence());
        let mut replies = Vec::new();
        for (message, flags, fill) in messages {
            let sequence = self.socket.next_sequence();
            replies.push(sequence);
            let flags = MAKE | *flags as u16;
            builder = builder.netfilter((SUBSYSTEM, *message as u8), flags, sequence, (INET, 0), fill);
        }
        let builder = frame(builder, libc::NFNL_MSG_BATCH_END, self.socket.next_sequence());
        self.socket.request(builder.as_bytes(), &replies, |_| ()).map(drop)
    }

    /// What of it is visible on the host.
    pub fn footprint(&self) -> String {
        let owned = if self.owned { " (owned)" } else { "" };
        format!("table inet {} of nftables without a hook{owned}", self.name)
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        if !self.owned {
            let name = self.name.clone();
            let _ = self.batch(&[(libc::NFT_MSG_DELTABLE, 0, &|body| {
                body.text(1, &name);
            })]);
        }
    }
}

fn frame(builder: Builder, message: i32, sequence: u32) -> Builder {
    builder.netfilter((0, message as u8), REQUEST, sequence, (0, SUBSYSTEM.into()), |_| ())
}

/// `meta nftrace set 1`: `NFTA_IMMEDIATE_DREG`, `NFTA_IMMEDIATE_DATA`; `NFTA_META_KEY`, `NFTA_META_SREG`.
fn trace(body: &mut Body<'_>) {
    expression(body, "immediate", |body| {
        number(body, 1, REGISTER).nested(2, |body| {
            body.attribute(1, &[1]);
        });
    });
    expression(body, "meta", |body| {
        number(number(body, 2, libc::NFT_META_NFTRACE as u32), 3, REGISTER);
    });
}

/// `NFTA_LIST_ELEM`, `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`
fn expression(body: &mut Body<'_>, name: &str, fill: impl FnOnce(&mut Body<'_>)) {
    body.nested(1, |body| {
        body.text(1, name).nested(2, fill);
    });
}

fn number<'a, 'b>(body: &'a mut Body<'b>, kind: u16, number: u32) -> &'a mut Body<'b> {
    body.attribute(kind, &number.to_be_bytes())
}
