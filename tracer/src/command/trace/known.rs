//! The rules of a namespace as they are now, found by the names that the kernel's TRACE gives them.
//!
//! TRACE rules of our own stand first in their chains. They are no steps, and the rules after them have the numbers
//! that they have without them.

use crate::fetch::{self, Fetched};
use crate::footprint;
use crate::netfilter::{Family, Hook, Verdict};
use crate::packet::Packet;
use crate::path::Action;
use crate::path::group::{Met, goes_on};
use crate::ruleset::{Rule, Table, Target};
use crate::trace_line::{StepName, parse_prefix};
use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::fs::File;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Whether rules have changed is looked at this often.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// What a row names.
pub(super) enum Named {
    /// A rule of somebody's.
    Met(Rc<Met>),
    /// One of our own.
    Ours,
    /// Nothing that can be understood.
    Nothing,
}

/// The rules of a namespace; none where rows are of several.
pub(super) struct Known {
    namespace: Option<File>,
    fetched: Vec<Fetched>,
    names: Names,
    looked: Instant,
}

/// The names of all entries, and of what else came.
#[derive(Default)]
struct Names {
    /// By the kernel's name; `None` is a rule of ours.
    met: ByFamily<Box<str>, Option<Rc<Met>>>,
    /// By the name that is shown.
    entries: ByFamily<Rc<str>, Shown>,
}

/// Two maps, so that a name is looked up as it came.
type ByFamily<K, V> = [HashMap<K, V, RandomState>; 2];

/// Which of the two.
fn of(family: Family) -> usize {
    usize::from(family == Family::Ipv6)
}

/// Where a rule is, and the number that is shown.
#[derive(Clone, Copy)]
struct Shown {
    table: usize,
    entry: usize,
    number: u32,
}

impl Known {
    /// Reads them.
    pub(super) fn read(namespace: File) -> Result<Self, fetch::Error> {
        let fetched = fetch::fetch_tables(&namespace)?;
        let names = Names::of(fetched.iter().map(|found| &found.table));
        Ok(Self { namespace: Some(namespace), fetched, names, looked: Instant::now() })
    }

    /// Knows no rules: only what rows say.
    pub(super) fn nothing() -> Self {
        Self { namespace: None, fetched: Vec::new(), names: Names::default(), looked: Instant::now() }
    }

    /// Whose rules these are.
    pub(super) fn namespace(&self) -> Option<&File> {
        self.namespace.as_ref()
    }

    /// Why the rules of a table have no text.
    pub(super) fn complaints(&self) -> impl Iterator<Item = (&Table, &str)> {
        self.fetched.iter().filter_map(|found| Some((&found.table, found.text_reason.as_deref()?)))
    }

    /// Every table at every hook that it has a chain for.
    pub(super) fn each_place(&self, mut place: impl FnMut(Family, &str, Hook)) {
        for Fetched { table, .. } in &self.fetched {
            let hooks = table.chains.iter().filter_map(|chain| chain.hook);
            hooks.for_each(|hook| place(table.family, &table.name, hook));
        }
    }

    /// Whether rows can tell who sent packets: tables stand where they go out, or it is not known.
    pub(super) fn tells_owners(&self) -> bool {
        let mut tells = self.namespace.is_none();
        self.each_place(|_, _, hook| tells |= matches!(hook, Hook::Output | Hook::Postrouting));
        tells
    }

    /// Whether a packet that a table lets go on meets another one.
    pub(super) fn goes_on(&self, packet: &Packet, table: &str, hook: Option<Hook>) -> bool {
        let family = packet.family;
        let mut places = Vec::new();
        self.each_place(|of, table, hook| places.extend((of == family).then(|| (table.to_owned(), hook))));
        let places = places.iter().map(|(table, hook)| (table.as_str(), *hook));
        let on_loopback = packet.outdev.as_deref() == Some(b"lo");
        hook.is_none_or(|hook| goes_on((table, hook), on_loopback, places))
    }

    /// What a row names by `table:chain:kind:number`.
    pub(super) fn met(&mut self, family: Family, name: &str) -> Named {
        match self.names.met[of(family)].get(name) {
            Some(Some(met)) => return Named::Met(Rc::clone(met)),
            Some(None) => return Named::Ours,
            None => {}
        }
        // Of a table that has changed since it was read.
        let line = format!("TRACE: {name}");
        let Some((step, _)) = parse_prefix(&line) else { return Named::Nothing };
        let met = Rc::new(Met::from(step));
        self.names.met[of(family)].insert(name.into(), Some(Rc::clone(&met)));
        Named::Met(met)
    }

    /// The rule of a name that is shown, and what it does.
    pub(super) fn rule(&self, family: Family, name: &str) -> Option<(Rule<'_>, Does<'_>)> {
        let Shown { table, entry, number } = *self.names.entries[of(family)].get(name)?;
        let table = &self.fetched.get(table)?.table;
        let rule = Rule { number: Some(number), ..table.rule(entry)? };
        Some((rule, does(table, entry)))
    }

    /// Looks now and then whether the rules are still the same, and reads them again if not. `None` when it has not
    /// looked.
    pub(super) fn check(&mut self, now: bool) -> Option<Checked> {
        if !now && self.looked.elapsed() < LOOK_AGAIN {
            return None;
        }
        self.looked = Instant::now();
        let Some(namespace) = &self.namespace else { return Some(Checked::Same) };
        let same = fetch::are_same(namespace, &self.fetched).unwrap_or(false);
        if same {
            return Some(Checked::Same);
        }
        if let Ok(fetched) = fetch::fetch_tables(namespace) {
            self.names = Names::of(fetched.iter().map(|found| &found.table));
            self.fetched = fetched;
        }
        self.looked = Instant::now();
        Some(Checked::Changed)
    }
}

/// What a look at the rules found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checked {
    /// They are as they were when they were read.
    Same,
    /// They have been replaced since.
    Changed,
}

/// What an entry does with a packet that matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Does<'a> {
    /// This.
    Always(Action<'a>),
    /// That depends.
    Depends,
}

fn does(table: &Table, entry: usize) -> Does<'_> {
    let chain = |to: usize| table.chain_of(to).map_or("?", |chain| chain.name.as_str());
    let Some(entry) = table.entries.get(entry) else { return Does::Depends };
    Does::Always(match &entry.target {
        Target::Verdict(verdict) => Action::Verdict(*verdict),
        Target::Return => Action::Return,
        Target::Jump { to } => Action::Jump(chain(*to)),
        Target::Goto { to } => Action::Goto(chain(*to)),
        Target::Continue => Action::Continue,
        target if is_queue(target) => Action::Verdict(Verdict::Queue),
        Target::Extension(extension) => match extension.name.as_deref() {
            Some("REJECT") => Action::Verdict(Verdict::Drop),
            _ => return Does::Depends,
        },
        Target::Error => return Does::Depends,
    })
}

/// Whether a program in user space decides.
fn is_queue(target: &Target) -> bool {
    match target {
        Target::Verdict(verdict) => *verdict == Verdict::Queue,
        Target::Extension(extension) => extension.name.as_deref() == Some("NFQUEUE"),
        _ => false,
    }
}

impl Names {
    fn of<'a>(tables: impl Iterator<Item = &'a Table>) -> Self {
        let mut names = Self::default();
        for (table_index, table) in tables.enumerate() {
            for chain in &table.chains {
                let mut ours = 0;
                for index in chain.entries.clone() {
                    let Some(entry) = table.entries.get(index) else { continue };
                    let name = |number| StepName {
                        table: &table.name,
                        chain: &chain.name,
                        kind: entry.kind,
                        number,
                    };
                    let key = name(entry.number).to_string().into();
                    if entry.text.as_deref().is_some_and(footprint::is_rule_of_ours) {
                        ours += 1;
                        names.met[of(table.family)].insert(key, None);
                        continue;
                    }
                    let number = entry.number - ours;
                    let met = Rc::new(Met::from(name(number)).waiting(is_queue(&entry.target)));
                    let shown = Shown { table: table_index, entry: index, number };
                    names.entries[of(table.family)].insert(Rc::clone(&met.name), shown);
                    names.met[of(table.family)].insert(key, Some(met));
                }
            }
        }
        names
    }
}
