//! From the entries of a blob to chains with numbered rules.

use super::entry::{self, RawEntry};
use super::names::{Kind, Known};
use super::{Error, RawTable, TargetNames};
use crate::netfilter::{Hook, StepKind, Verdict};
use crate::ruleset::{Chain, Entry, Extension, Table, Target};

/// `XT_RETURN`, which is `-NF_REPEAT - 1`.
const XT_RETURN: i32 = -5;

pub(super) fn decode(raw: &RawTable, names: &TargetNames) -> Result<Table, Error> {
    let size = u32::try_from(raw.bytes.len()).map_err(|_| Error::Table("is larger than 4 GiB"))?;
    let raw_entries = entry::entries(raw)?;
    let Some(last) = raw_entries.last() else { return Err(Error::Table("has no entries")) };
    let hook_entry = hooks(raw, &raw_entries, &raw.hook_entry, "begins inside an entry")?;
    let underflow = hooks(raw, &raw_entries, &raw.underflow, "has its policy inside an entry")?;
    let policies = underflow.iter().flatten().filter_map(|index| raw_entries.get(*index));
    let known = Known::new(raw.form, last, policies, names)?;

    let mut chains: Vec<Chain> = Vec::new();
    let mut entries = Vec::with_capacity(raw_entries.len());
    let mut current = None;
    let mut number = 0;
    for (index, raw_entry) in raw_entries.iter().enumerate() {
        let kind = known.kind(raw_entry.target());
        if let Some(hook) = begins(&hook_entry, index)? {
            current = Some(chains.len());
            number = 0;
            chains.push(Chain { name: hook.chain().to_owned(), hook: Some(hook), entries: index..index });
        }
        let mut entry = Entry {
            chain: None,
            number: 0,
            kind: StepKind::Rule,
            tail: false,
            unconditional: raw_entry.unconditional(),
            target: target(raw_entry, &raw_entries, &kind)?,
            text: None,
        };
        if matches!(kind, Kind::Error) {
            if begins(&hook_entry, index)?.is_some() {
                return Err(Error::Entry {
                    offset: raw_entry.offset,
                    what: "begins a hook with an ERROR target",
                });
            }
            let end = index + 1 == raw_entries.len();
            current = (!end).then_some(chains.len());
            number = 0;
            if !end {
                let name = raw_entry.target().error_text();
                chains.push(Chain { name, hook: None, entries: index + 1..index + 1 });
            }
        } else {
            let at = current.and_then(|chain| chains.get_mut(chain));
            let Some(chain) = at else {
                return Err(Error::Entry { offset: raw_entry.offset, what: "belongs to no chain" });
            };
            chain.entries.end = index + 1;
            number += 1;
            entry.chain = current;
            entry.number = number;
            entry.kind = shape(&entry, &kind, raw_entry, chain);
        }
        entries.push(entry);
    }
    if !matches!(known.kind(last.target()), Kind::Error) {
        return Err(Error::Table("does not end with an ERROR target"));
    }
    for chain in &chains {
        let error = |what| Error::Chain { chain: chain.name.clone(), what };
        let last = chain.entries.end.checked_sub(1).filter(|last| chain.entries.contains(last));
        let last = last.ok_or_else(|| error("is empty"))?;
        match chain.hook {
            Some(hook) if underflow[hook as usize] != Some(last) => {
                return Err(error("does not end with its policy"));
            }
            Some(_) => {}
            None if entries[last].unconditional && entries[last].target == Target::Return => {}
            None => return Err(error("does not end with a return")),
        }
        entries[last].tail = true;
    }
    Ok(Table { family: raw.family, name: raw.name.clone(), entries, chains, hook_entry, underflow, size })
}

/// Offsets of valid hooks, as indices.
fn hooks(
    raw: &RawTable,
    entries: &[RawEntry<'_>],
    offsets: &[u32; 5],
    what: &'static str,
) -> Result<[Option<usize>; 5], Error> {
    let mut indices = [None; 5];
    for hook in Hook::ALL {
        if raw.valid_hooks & 1 << hook as u32 != 0 {
            let index = index_of(entries, offsets[hook as usize] as usize);
            indices[hook as usize] = Some(index.ok_or(Error::Hook { hook: hook.chain(), what })?);
        }
    }
    Ok(indices)
}

/// The hook whose chain begins at an entry.
fn begins(hook_entry: &[Option<usize>; 5], index: usize) -> Result<Option<Hook>, Error> {
    let mut hooks = Hook::ALL.into_iter().filter(|hook| hook_entry[*hook as usize] == Some(index));
    let first = hooks.next();
    match hooks.next() {
        Some(hook) => Err(Error::Hook { hook: hook.chain(), what: "shares its chain with another hook" }),
        None => Ok(first),
    }
}

fn index_of(entries: &[RawEntry<'_>], offset: usize) -> Option<usize> {
    entries.binary_search_by_key(&offset, |entry| entry.offset).ok()
}

fn target(entry: &RawEntry<'_>, entries: &[RawEntry<'_>], kind: &Kind) -> Result<Target, Error> {
    let error = |what| Error::Entry { offset: entry.offset, what };
    Ok(match kind {
        Kind::Error => Target::Error,
        Kind::Extension(name, revision) => Target::Extension(Extension {
            name: name.clone(),
            revision: *revision,
            data: entry.target().data().to_vec(),
        }),
        Kind::Standard => {
            let verdict = entry.target().verdict().ok_or_else(|| error("has no verdict"))?;
            match usize::try_from(verdict) {
                Ok(offset) if offset == entry.next() => Target::Continue,
                Ok(offset) => {
                    let to = index_of(entries, offset).ok_or_else(|| error("jumps into an entry"))?;
                    if entry.goto() { Target::Goto { to } } else { Target::Jump { to } }
                }
                Err(_) if verdict == XT_RETURN => Target::Return,
                // As the kernel: (unsigned)(-v) - 1.
                Err(_) => {
                    Target::Verdict(Verdict::from_return(verdict.wrapping_neg().wrapping_sub(1) as u32))
                }
            }
        }
    })
}

/// The word that the kernel's `get_chainname_rulenum` chooses.
fn shape(entry: &Entry, kind: &Kind, raw: &RawEntry<'_>, chain: &Chain) -> StepKind {
    let negative =
        matches!(kind, Kind::Standard) && raw.target().verdict().is_some_and(|verdict| verdict < 0);
    match chain.hook {
        _ if !entry.unconditional || !negative => StepKind::Rule,
        Some(_) => StepKind::Policy,
        None => StepKind::Return,
    }
}
