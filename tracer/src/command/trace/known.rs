//! The rules of a namespace as they are now, found by the names that the kernel's TRACE gives them.
//!
//! TRACE rules of our own stand first in their chains. They are no steps, and the rules after them have the numbers
//! that they have without them.

use crate::fetch::{self, Fetched};
use crate::footprint;
use crate::netfilter::{Family, Hook, Verdict};
use crate::path::Action;
use crate::path::group::Met;
use crate::ruleset::{Rule, Table, Target};
use crate::trace_line::{StepName, parse_prefix};
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

/// The rules of a namespace.
pub(super) struct Known {
    namespace: File,
    fetched: Vec<Fetched>,
    names: Names,
    looked: Instant,
}

/// The names of all entries, and of what else came.
#[derive(Default)]
struct Names {
    /// By the kernel's name; `None` is a rule of ours.
    met: HashMap<(Family, Box<str>), Option<Rc<Met>>>,
    /// By the name that is shown.
    entries: HashMap<(Family, Rc<str>), Shown>,
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
        Ok(Self { namespace, fetched, names, looked: Instant::now() })
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

    /// What a row names by `table:chain:kind:number`.
    pub(super) fn met(&mut self, family: Family, name: &str) -> Named {
        match self.names.met.get(&(family, name.into())) {
            Some(Some(met)) => return Named::Met(Rc::clone(met)),
            Some(None) => return Named::Ours,
            None => {}
        }
        // Of a table that has changed since it was read.
        let line = format!("TRACE: {name}");
        let Some((step, _)) = parse_prefix(&line) else { return Named::Nothing };
        let met = Rc::new(met(step));
        self.names.met.insert((family, name.into()), Some(Rc::clone(&met)));
        Named::Met(met)
    }

    /// The rule of a name that is shown, and what it does.
    pub(super) fn rule(&self, family: Family, name: &Rc<str>) -> Option<(Rule<'_>, Does<'_>)> {
        let Shown { table, entry, number } = *self.names.entries.get(&(family, Rc::clone(name)))?;
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
        let same = fetch::are_same(&self.namespace, &self.fetched).unwrap_or(false);
        if same {
            return Some(Checked::Same);
        }
        if let Ok(fetched) = fetch::fetch_tables(&self.namespace) {
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
        Target::Extension(extension) => match extension.name.as_deref() {
            Some("REJECT") => Action::Verdict(Verdict::Drop),
            Some("NFQUEUE") => Action::Verdict(Verdict::Queue),
            _ => return Does::Depends,
        },
        Target::Error => return Does::Depends,
    })
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
                    let key = (table.family, name(entry.number).to_string().into());
                    if entry.text.as_deref().is_some_and(footprint::is_rule_of_ours) {
                        ours += 1;
                        names.met.insert(key, None);
                        continue;
                    }
                    let number = entry.number - ours;
                    let met = Rc::new(met(name(number)));
                    let shown = Shown { table: table_index, entry: index, number };
                    names.entries.insert((table.family, Rc::clone(&met.name)), shown);
                    names.met.insert(key, Some(met));
                }
            }
        }
        names
    }
}

fn met(step: StepName<'_>) -> Met {
    Met {
        name: step.to_string().into(),
        table: step.table.into(),
        chain: step.chain.into(),
        kind: step.kind,
        number: step.number,
    }
}
