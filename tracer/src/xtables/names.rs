//! What stands behind a target's name or pointer.

use super::entry::{self, Part, RawEntry};
use super::{Error, Form, RawTable};
use std::collections::HashMap;
use std::sync::Arc;

/// The name of the standard target, `XT_STANDARD_TARGET`.
const STANDARD: &[u8] = b"";
/// The name of the target at the head of a user chain, `XT_ERROR_TARGET`.
const ERROR: &[u8] = b"ERROR";

/// Names of target extensions by the address of their `struct xt_target`.
///
/// An address means nothing longer than the module stays loaded: learn anew when a module has been loaded or removed.
#[derive(Clone, Debug, Default)]
pub struct TargetNames(HashMap<u64, Named>);

/// Name and revision.
type Named = (Arc<str>, u8);

impl TargetNames {
    /// Name and revision of the target at an address.
    pub fn get(&self, address: u64) -> Option<(Arc<str>, u8)> {
        self.0.get(&address).cloned()
    }

    /// Adds one, or replaces what was known of its address.
    pub fn insert(&mut self, address: u64, name: Arc<str>, revision: u8) {
        self.0.insert(address, (name, revision));
    }

    /// Learns the addresses in `kernel` from the names in `user`, if both are the same version of a table. Says
    /// whether they are.
    ///
    /// They are when everything agrees that both forms show. Of parameters that is every byte that is not zero in
    /// user space: there the kernel leaves its private ones out.
    pub fn learn(&mut self, kernel: &RawTable, user: &RawTable) -> bool {
        let Some(found) = aligned(kernel, user) else { return false };
        self.0.extend(found);
        true
    }
}

/// The addresses in `kernel` with their names; `None` when the two are not the same version.
fn aligned(kernel: &RawTable, user: &RawTable) -> Option<Vec<(u64, Named)>> {
    let head = |raw: &RawTable| (raw.family, raw.valid_hooks, raw.number, raw.bytes.len());
    if (kernel.form, user.form) != (Form::Kernel, Form::User)
        || head(kernel) != head(user)
        || kernel.name != user.name
    {
        return None;
    }
    for hook in (0..5).filter(|hook| user.valid_hooks & 1 << hook != 0) {
        if kernel.hook_entry[hook] != user.hook_entry[hook] || kernel.underflow[hook] != user.underflow[hook]
        {
            return None;
        }
    }
    let (kernel_entries, user_entries) = (entry::entries(kernel).ok()?, entry::entries(user).ok()?);
    let mut found = HashMap::new();
    for (in_kernel, in_user) in kernel_entries.iter().zip(&user_entries) {
        if in_kernel.head() != in_user.head() {
            return None;
        }
        let (kernel_matches, user_matches) = (in_kernel.matches()?, in_user.matches()?);
        if kernel_matches.len() != user_matches.len() {
            return None;
        }
        let pairs = kernel_matches.into_iter().zip(user_matches);
        let (kernel_target, user_target) = (in_kernel.target(), in_user.target());
        if !pairs.chain([(kernel_target, user_target)]).all(|(kernel, user)| agree(kernel, user)) {
            return None;
        }
        let named = (user_target.name(), user_target.revision());
        if *found.entry(kernel_target.pointer()).or_insert(named) != named {
            return None;
        }
    }
    found.retain(|_, (name, _)| ![STANDARD, ERROR].contains(name));
    Some(
        found
            .into_iter()
            .map(|(address, (name, revision))| (address, (entry::text(name).into(), revision)))
            .collect(),
    )
}

/// Whether both are the same match or target.
fn agree(kernel: Part<'_>, user: Part<'_>) -> bool {
    let name = user.name();
    kernel.len() == user.len()
        && kernel.revision() == user.revision()
        && kernel.name_rest() == name.get(..6).unwrap_or(name)
        && kernel.data().iter().zip(user.data()).all(|(kernel, user)| *user == 0 || kernel == user)
}

/// What kind of target an entry has.
pub(super) enum Kind {
    Standard,
    Error,
    Extension(Option<Arc<str>>, u8),
}

/// Tells the targets of one blob apart.
pub(super) enum Known<'a> {
    /// By name.
    User,
    /// By address: those of the two built-in targets in this blob, and those learned before.
    Kernel { error: u64, standard: Option<u64>, names: &'a TargetNames },
}

impl<'a> Known<'a> {
    /// Every blob ends with an ERROR entry, and policies are standard targets.
    pub(super) fn new<'b>(
        form: Form,
        last: &RawEntry<'b>,
        mut policies: impl Iterator<Item = &'b RawEntry<'b>>,
        names: &'a TargetNames,
    ) -> Result<Self, Error> {
        if form == Form::User {
            return Ok(Self::User);
        }
        let error = last.target().pointer();
        let standard = policies.next().map(|entry| entry.target().pointer());
        if policies.any(|entry| Some(entry.target().pointer()) != standard) {
            return Err(Error::Table("has policies with different targets"));
        }
        if standard == Some(error) {
            return Err(Error::Table("ends with a policy"));
        }
        Ok(Self::Kernel { error, standard, names })
    }

    pub(super) fn kind(&self, target: Part<'_>) -> Kind {
        match self {
            Self::User => match target.name() {
                STANDARD => Kind::Standard,
                ERROR => Kind::Error,
                name => Kind::Extension(Some(entry::text(name).into()), target.revision()),
            },
            Self::Kernel { error, standard, names } => match target.pointer() {
                address if address == *error => Kind::Error,
                address if Some(address) == *standard => Kind::Standard,
                address => match names.get(address) {
                    Some((name, revision)) => Kind::Extension(Some(name), revision),
                    None => {
                        let name = Some(target.name_rest()).filter(|name| (1..6).contains(&name.len()));
                        Kind::Extension(name.map(|name| entry::text(name).into()), target.revision())
                    }
                },
            },
        }
    }
}
