//! Undoing what a run changed: at its own end, in its guard, or when somebody cleans up.

use super::change::{Change, Sysctl};
use super::record::{Folder, Locked, Record, is_ours};
use super::{Error, rule, table};
use crate::netfilter::Family;
use crate::sys::process::Process;
use crate::sys::program::Witness;
use crate::sys::{module, netns, sysctl};
use std::fs::File;
use std::io;

/// Open namespaces, by their inode numbers. Others are looked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Namespaces<'a>(pub(super) &'a [File]);

impl Namespaces<'_> {
    /// Works in a namespace; `None` when it is gone, and all that was changed in it.
    fn with<T>(self, inode: u32, work: impl FnOnce(&File) -> T) -> Option<T> {
        if let Some(open) = self.0.iter().find(|file| netns::inode(file).ok() == Some(inode)) {
            return Some(work(open));
        }
        let found = netns::list().into_iter().find(|found| found.inode == inode)?;
        let file = found.open().ok().filter(|file| netns::inode(file).ok() == Some(inode))?;
        Some(work(&file))
    }
}

/// Undoes what the record of a run says, last first, and removes the record. Says what was undone. What could not be
/// undone stays in the record.
pub(super) fn undo(
    folder: &Folder,
    owner: Process,
    namespaces: Namespaces<'_>,
    witness: Witness<'_>,
) -> Result<Vec<String>, Error> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let locked = folder.lock().map_err(Error::Record)?;
    undo_locked(&locked, owner, namespaces, witness)
}

/// The same for somebody who is alone with the records already.
pub(super) fn undo_locked(
    locked: &Locked<'_>,
    owner: Process,
    namespaces: Namespaces<'_>,
    witness: Witness<'_>,
) -> Result<Vec<String>, Error> {
    let mut records = locked.records().map_err(Error::Record)?;
    let Some(at) = records.iter().position(|record| record.owner == owner) else { return Ok(Vec::new()) };
    let Record { changes, .. } = records.remove(at);
    let (mut said, mut failed) = (Vec::new(), None);
    for change in changes.iter().rev() {
        match undo_one(change, owner, &records, namespaces, witness) {
            Ok(undone) => said.extend(undone),
            Err(error) => failed = Some(failed.unwrap_or(error)),
        }
    }
    match failed {
        Some(error) => Err(error),
        None => locked.remove(owner).map_err(Error::Record).map(|()| said),
    }
}

/// Says what was undone, if there was something.
fn undo_one(
    change: &Change,
    owner: Process,
    others: &[Record],
    namespaces: Namespaces<'_>,
    witness: Witness<'_>,
) -> Result<Option<String>, Error> {
    let undone = match change {
        Change::Sysctl(setting) => {
            namespaces.with(setting.netns, |namespace| restore(namespace, setting, others))
        }
        Change::Table { netns, name } => {
            namespaces.with(*netns, |namespace| remove_table(namespace, *netns, name))
        }
        Change::Rules { netns, family } => {
            namespaces.with(*netns, |namespace| remove_rules(namespace, (*netns, *family), owner, witness))
        }
        Change::Module { name } => Some(Ok(unload(name, others))),
    };
    undone.unwrap_or(Ok(None))
}

/// Gives a setting its value back, if it still has ours and nobody else needs it.
fn restore(namespace: &File, setting: &Sysctl, others: &[Record]) -> Result<Option<String>, Error> {
    let Sysctl { netns, name, before, .. } = setting;
    let failed = |source| Error::Sysctl { name: name.clone(), source };
    let now = match sysctl::read(namespace, name) {
        // It went with its module.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        now => now.map_err(failed)?,
    };
    if !is_ours(setting, &now, others, Process::is_alive) || now == *before {
        return Ok(None);
    }
    sysctl::write(namespace, name, before).map_err(failed)?;
    Ok(Some(format!("set {name} in namespace {} back to {before}", netns::in_words(*netns))))
}

/// Removes a table.
pub(super) fn remove_table(namespace: &File, netns: u32, name: &str) -> Result<Option<String>, Error> {
    let removed = table::remove(namespace, name).map_err(Error::Table)?;
    Ok(removed.then(|| format!("removed the table inet {name} from namespace {}", netns::in_words(netns))))
}

/// Removes the rules of a run.
pub(super) fn remove_rules(
    namespace: &File,
    (netns, family): (u32, Family),
    owner: Process,
    witness: Witness<'_>,
) -> Result<Option<String>, Error> {
    let removed = netns::inside(namespace, || rule::remove(owner, family, witness))?;
    let count = removed.map_err(|reason| Error::Rules { family, reason })?;
    Ok((count > 0).then(|| {
        format!(
            "removed {count} TRACE rules from the {family} table raw of namespace {}",
            netns::in_words(netns)
        )
    }))
}

/// Lets a module go, unless it is in use by now, or another run has asked for it as well.
fn unload(name: &str, others: &[Record]) -> Option<String> {
    let wanted = |change: &Change| matches!(change, Change::Module { name: theirs } if theirs == name);
    let needed = others.iter().any(|record| record.owner.is_alive() && record.changes.iter().any(wanted));
    let unloaded = !needed && module::unload(name).is_ok();
    unloaded.then(|| format!("unloaded the module {name}"))
}
