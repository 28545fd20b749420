//! The live rules of nftables in a network namespace.
//!
//! Structure comes from the kernel, by netlink. The text comes from the programs that the rules' owners use, and is
//! taken only when the kernel's generation was the same before and after.

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;

use crate::netfilter::TableFamily;
use crate::netlink::{Builder, Message};
use crate::nftables::{Mismatch, Ruleset, attach_listing, attach_save, decode};
use crate::sys::netlink::{Error as NetlinkError, NETFILTER, Socket};
use crate::sys::program::{SYSTEM, find_in, run};
use crate::sys::{kernel, netns};
use std::ffi::OsStr;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::{env, io};

/// A ruleset that changes while it is read is read this often before giving up.
const ATTEMPTS: u32 = 20;
/// Programs that print rules are slower; one that changes while they run is read this often before its text is given
/// up.
const TEXT_ATTEMPTS: u32 = 3;
/// The families that have programs of their own beside nft, and the names of these.
const SAVE: [(TableFamily, &str, &str); 4] = [
    (TableFamily::Ip, "iptables-nft-save", "iptables-save"),
    (TableFamily::Ip6, "ip6tables-nft-save", "ip6tables-save"),
    (TableFamily::Bridge, "ebtables-nft-save", "ebtables-save"),
    (TableFamily::Arp, "arptables-nft-save", "arptables-save"),
];

/// Why the rules of nftables could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// The kernel was not willing.
    #[error("cannot read the rules of nftables{}", remedy(source))]
    Netlink {
        /// Its reason.
        #[from]
        source: NetlinkError,
    },
    /// The rules changed again and again.
    #[error("the rules of nftables changed {ATTEMPTS} times while they were read; try again")]
    Busy,
}

fn remedy(error: &NetlinkError) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => "; it needs CAP_NET_ADMIN in the namespace, for example by sudo",
        _ => "",
    }
}

/// A ruleset with the text of its rules, as far as it could be had.
#[derive(Clone, Debug, Default)]
pub struct Fetched {
    /// The rules.
    pub ruleset: Ruleset,
    /// Why rules have no text, or not that of their owner's tool, and what to do.
    pub text_reasons: Vec<String>,
}

/// A connection to nftables in a network namespace.
#[derive(Debug)]
pub struct Nftables {
    namespace: File,
    socket: Socket,
}

impl Nftables {
    /// Connects; `None` where the kernel has no nftables, or has not loaded it. It is not asked then, because it would
    /// load the module.
    pub fn open(namespace: &File) -> Result<Option<Self>, Error> {
        if !kernel::has_nftables() {
            return Ok(None);
        }
        let socket = Socket::open(Some(namespace), NETFILTER)?;
        let namespace = namespace.try_clone().map_err(NetlinkError::Open)?;
        Ok(Some(Self { namespace, socket }))
    }

    /// The number of the present state, `NFTA_GEN_ID`. Every change gives another.
    pub fn generation(&mut self) -> Result<u32, Error> {
        let sequence = self.socket.next_sequence();
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        let request = request(decode::GETGEN, flags, sequence);
        let mut generation = None;
        // One message cannot be disturbed.
        let _ = self.socket.request(request.as_bytes(), &[sequence], |message| {
            generation = message.netfilter().and_then(|message| decode::generation(&message)).or(generation);
        })?;
        generation.ok_or(Error::Netlink { source: NetlinkError::Silent })
    }

    /// All rules without their text, in one undisturbed state.
    pub fn structure(&mut self) -> Result<Ruleset, Error> {
        let mut before = self.generation()?;
        for _ in 0..ATTEMPTS {
            let parts = self.dump()?;
            let after = self.generation()?;
            if before == after {
                return Ok(parts.finish(after));
            }
            before = after;
        }
        Err(Error::Busy)
    }

    /// Gives rules the text that their owners' programs print, and says what could not be given, and why. `None` when the
    /// rules have changed since they were read: their texts stay as they were.
    pub fn print(&mut self, ruleset: &mut Ruleset) -> Result<Option<Vec<String>>, Error> {
        if ruleset.tables.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let printed = netns::inside(&self.namespace, || Printed::gather(ruleset, &Programs::find()))?;
        Ok((self.generation()? == ruleset.generation).then(|| printed.attach(ruleset)))
    }

    fn dump(&mut self) -> Result<decode::Parts, Error> {
        let mut parts = decode::Parts::default();
        for kind in decode::DUMPS {
            let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
            let dumped = self.socket.dump(
                |sequence| request(kind, flags, sequence),
                |message| Some((message.kind, message.payload.to_vec())),
            );
            let dumped = match dumped {
                // Kernels that do not know the kind of object.
                Err(NetlinkError::Refused { source, .. }) if is_unknown(&source) => continue,
                dumped => dumped?,
            };
            for (kind, payload) in dumped {
                let message = Message { kind, flags: 0, sequence: 0, port: 0, payload: &payload };
                message.netfilter().iter().for_each(|message| parts.add(message));
            }
        }
        Ok(parts)
    }

    /// All rules with their text.
    pub fn fetch(&mut self) -> Result<Fetched, Error> {
        for _ in 0..TEXT_ATTEMPTS {
            let mut ruleset = self.structure()?;
            if let Some(text_reasons) = self.print(&mut ruleset)? {
                return Ok(Fetched { ruleset, text_reasons });
            }
        }
        let reason =
            format!("the rules of nftables changed {TEXT_ATTEMPTS} times while they were printed; try again");
        Ok(Fetched { ruleset: self.structure()?, text_reasons: vec![reason] })
    }
}

fn request(kind: u8, flags: u16, sequence: u32) -> Builder {
    Builder::new().netfilter((decode::SUBSYSTEM, kind), flags, sequence, (0, 0), |_| ())
}

/// Whether the kernel does not know what it was asked for.
fn is_unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOENT))
}

/// The programs of this host that print rules; or why there are none, and what to do.
struct Programs {
    nft: Result<PathBuf, String>,
    save: Vec<(TableFamily, Result<PathBuf, String>)>,
}

impl Programs {
    fn find() -> Self {
        Self::find_in(&env::var_os("PATH").unwrap_or_default(), &SYSTEM)
    }

    fn find_in(path: &OsStr, system: &[&str]) -> Self {
        let missing = || "nft is not installed; install nftables to see the text of rules".to_owned();
        let save = |nft: &str, plain: &str| {
            let is_nft = |program: &PathBuf| {
                run(program, &["--version"])
                    .is_ok_and(|version| version.windows(9).any(|word| word == b"nf_tables"))
            };
            let plain = || find_in(path, system, plain).filter(is_nft);
            find_in(path, system, nft).or_else(plain).ok_or_else(|| {
                format!("{nft} is not installed; install iptables to see rules as it prints them")
            })
        };
        Self {
            nft: find_in(path, system, "nft").ok_or_else(missing),
            save: SAVE.map(|(family, nft, plain)| (family, save(nft, plain))).into(),
        }
    }
}

/// What the programs print.
struct Printed {
    nft: Result<Vec<u8>, String>,
    save: Vec<(TableFamily, Result<Vec<u8>, String>)>,
}

impl Printed {
    /// Runs the programs that the ruleset needs in the calling thread's namespace.
    fn gather(ruleset: &Ruleset, programs: &Programs) -> Self {
        let output = |program: &Result<PathBuf, String>, arguments: &[&str]| {
            program.as_ref().map_err(Clone::clone).and_then(|program| run(program, arguments))
        };
        let wanted = |family: TableFamily| {
            ruleset.tables.iter().any(|table| table.family == family && table.is_of_iptables())
        };
        let save = programs.save.iter().filter(|(family, _)| wanted(*family));
        Self {
            nft: output(&programs.nft, &["-a", "list", "ruleset"]),
            save: save.map(|(family, program)| (*family, output(program, &[]))).collect(),
        }
    }

    /// Gives the rules their text. What could not be given, and why.
    fn attach(self, ruleset: &mut Ruleset) -> Vec<String> {
        let mut reasons = Vec::new();
        let told = |program: &str, (family, table, mismatch): (TableFamily, Arc<str>, Mismatch)| {
            format!("{} table {table} has no text of {program}: {mismatch}", family.name())
        };
        match self.nft {
            Ok(listing) => {
                let mismatches = attach_listing(ruleset, &listing);
                reasons.extend(mismatches.into_iter().map(|mismatch| told("nft", mismatch)));
            }
            Err(reason) => reasons.push(reason),
        }
        for (family, printed) in self.save {
            let (_, program, _) = SAVE.into_iter().find(|(of, ..)| *of == family).unwrap_or(SAVE[0]);
            match printed {
                Ok(save) => {
                    let mismatches = attach_save(ruleset, family, &save);
                    reasons.extend(mismatches.into_iter().map(|mismatch| told(program, mismatch)));
                }
                Err(reason) => reasons.push(reason),
            }
        }
        reasons
    }
}
