//! What a packet looked like at each step of a traversal.
//!
//! The kernel logs an entry before the entry's target runs, so a step shows what the targets before it left. The
//! packet is known at both ends of the traversal. In between, each field is followed forward from the entry and
//! backward from the exit, bit by bit, through the targets whose parameters say what they do; what neither direction
//! tells is in doubt, and the doubt names the rules that can have been responsible.

#![forbid(unsafe_code)]

use super::targets::{Change, Effects, Field, Layout};
use crate::ruleset::{Table, Target};
use std::borrow::Cow;

/// A packet at one moment: what targets can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State<'a> {
    /// `skb->mark`.
    pub mark: u32,
    /// `skb->len`, from the network header on.
    pub len: u32,
    /// The first bytes, from the network header on; empty when they could not be read.
    pub bytes: &'a [u8],
}

/// A packet as it was when an entry matched it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View<'a> {
    /// `skb->mark`.
    pub mark: u32,
    /// `skb->len`, from the network header on.
    pub len: u32,
    /// The first bytes, from the network header on. Checksums are those of the entry.
    pub bytes: Cow<'a, [u8]>,
    /// What of this is not certain, in words.
    pub doubt: Option<String>,
}

/// The packet at each step of a traversal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Views<'a> {
    /// The same at every step.
    Unchanged(State<'a>),
    /// One view for each step.
    Changed(Vec<View<'a>>),
}

impl Views<'_> {
    /// The packet at a step, counted from 0, and what is in doubt about it. Steps must be those given to
    /// [`attribute`].
    pub fn at(&self, step: usize) -> (State<'_>, Option<&str>) {
        match self {
            Self::Unchanged(state) => (*state, None),
            Self::Changed(views) => {
                let view = &views[step];
                (State { mark: view.mark, len: view.len, bytes: &view.bytes }, view.doubt.as_deref())
            }
        }
    }
}

/// Whether any target of `steps` can do anything to a packet but send it on.
pub(super) fn can_change(table: &Table, steps: &[usize]) -> bool {
    let target = |step: &usize| table.entries.get(*step).map(|entry| &entry.target);
    steps.iter().any(|step| matches!(target(step), Some(Target::Extension(_))))
}

/// Whether nothing that was read differs at the exit, byte for byte.
pub fn same_bytes(entry: State<'_>, exit: State<'_>) -> bool {
    let common = entry.bytes.len().min(exit.bytes.len());
    entry.mark == exit.mark && entry.len == exit.len && entry.bytes[..common] == exit.bytes[..common]
}

/// Says what a packet looked like at each entry of `steps`, which it met in this order. `exit` is `None` when the
/// packet could not be read at the end of the traversal.
pub fn attribute<'a>(table: &Table, steps: &[usize], entry: State<'a>, exit: Option<State<'a>>) -> Views<'a> {
    let traversal = Traversal::new(table, steps, entry, exit);
    // What the last step's target did, no step shows.
    let shown = &steps[..steps.len().saturating_sub(1)];
    if traversal.same_at_exit() && !traversal.any_effect(shown) {
        return Views::Unchanged(entry);
    }
    let fields: Vec<Solved> = traversal.fields().into_iter().map(|field| traversal.solve(field)).collect();
    Views::Changed((0..steps.len()).map(|step| traversal.view(step, &fields)).collect())
}

/// The same for entries in the table's order, when the order in which they were met is not known.
pub fn attribute_unordered<'a>(
    table: &Table,
    steps: &[usize],
    entry: State<'a>,
    exit: Option<State<'a>>,
) -> Views<'a> {
    let traversal = Traversal::new(table, steps, entry, exit);
    if traversal.same_at_exit() && !traversal.any_effect(steps) {
        return Views::Unchanged(entry);
    }
    let fields: Vec<Solved> = traversal.fields().into_iter().map(|field| traversal.give_up(field)).collect();
    Views::Changed((0..steps.len()).map(|step| traversal.view(step, &fields)).collect())
}

struct Traversal<'a, 't> {
    table: &'t Table,
    steps: &'t [usize],
    entry: State<'a>,
    exit: Option<State<'a>>,
    layout: Layout,
}

/// A field at every step.
struct Solved {
    field: Field,
    /// Before each step.
    states: Vec<Bits>,
    /// What is not certain, for each step.
    doubts: Vec<Option<String>>,
}

/// A value of which some bits are known. Bits that are not known are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bits {
    value: u32,
    known: u32,
}

impl<'a, 't> Traversal<'a, 't> {
    fn new(table: &'t Table, steps: &'t [usize], entry: State<'a>, exit: Option<State<'a>>) -> Self {
        Self { table, steps, entry, exit, layout: Layout::of(entry.bytes) }
    }

    fn effects(&self, entry: usize) -> Effects {
        match self.table.entries.get(entry).map(|entry| &entry.target) {
            Some(Target::Extension(extension)) => Effects::of(extension, self.layout),
            _ => Effects::Known(Vec::new()),
        }
    }

    /// Whether nothing that was read differs at the exit, checksums left out.
    fn same_at_exit(&self) -> bool {
        self.exit.is_none_or(|exit| {
            same_bytes(self.entry, exit)
                || (exit.mark == self.entry.mark
                    && exit.len == self.entry.len
                    && self.differing().next().is_none())
        })
    }

    /// Whether a target of `steps` can have changed anything. One that is not known is trusted if nothing changed, as
    /// long as there is no second one that can have undone it.
    fn any_effect(&self, steps: &[usize]) -> bool {
        let mut unknown = 0;
        let known = steps.iter().any(|step| match self.effects(*step) {
            Effects::Known(effects) => !effects.is_empty(),
            Effects::Unknown => {
                unknown += 1;
                self.exit.is_none()
            }
        });
        known || unknown > 1
    }

    /// The bytes that differ between entry and exit, checksums left out.
    fn differing(&self) -> impl Iterator<Item = usize> {
        let exit = self.exit.map_or(&[][..], |exit| exit.bytes);
        let pairs = self.entry.bytes.iter().zip(exit).enumerate();
        let layout = self.layout;
        pairs.filter(move |(index, (a, b))| a != b && !layout.is_checksum(*index)).map(|(index, _)| index)
    }

    /// All fields, with a byte of its own for each that a target changes by parameters.
    fn fields(&self) -> Vec<Field> {
        let mut fields = vec![Field::Mark, Field::Network, Field::Transport];
        for step in self.steps {
            let Effects::Known(effects) = self.effects(*step) else { continue };
            for effect in effects {
                let readable = !matches!(effect.field, Field::Byte(byte) if byte >= self.entry.bytes.len());
                if readable && !fields.contains(&effect.field) {
                    fields.push(effect.field);
                }
            }
        }
        fields
    }

    /// What `field` is at entry and exit. For the large fields 0 is "as at entry", 1 "as at exit".
    fn ends(&self, field: Field) -> (Bits, Bits) {
        let full = full(field);
        let known = |value: u32| Bits { value, known: full };
        let unknown = Bits { value: 0, known: 0 };
        let readable = self.exit.filter(|exit| !exit.bytes.is_empty());
        match field {
            Field::Mark => (known(self.entry.mark), self.exit.map_or(unknown, |exit| known(exit.mark))),
            Field::Byte(byte) => {
                let at_exit = self.exit.and_then(|exit| exit.bytes.get(byte).copied());
                (known(self.entry.bytes[byte].into()), at_exit.map_or(unknown, |value| known(value.into())))
            }
            Field::Network | Field::Transport => {
                let own: Vec<Field> = self.fields();
                let mut rest = self.differing().filter(|byte| !own.contains(&Field::Byte(*byte)));
                let differs = match field {
                    Field::Network => rest.any(|byte| self.is_network(byte)),
                    _ => {
                        rest.any(|byte| !self.is_network(byte))
                            || readable.is_some_and(|e| e.len != self.entry.len)
                    }
                };
                (known(0), readable.map_or(unknown, |_| known(differs.into())))
            }
        }
    }

    fn is_network(&self, byte: usize) -> bool {
        byte < self.layout.header && !self.layout.length_field().contains(&byte)
    }

    /// What each step does to `field`; for targets that are not known, what `unknown` says.
    fn changes(&self, field: Field, unknown: Option<Change>) -> Vec<Vec<Change>> {
        let of_step = |step: &usize| match self.effects(*step) {
            Effects::Known(effects) => effects
                .into_iter()
                .filter(|effect| effect.field == field)
                .map(|effect| effect.change)
                .collect(),
            Effects::Unknown => unknown.into_iter().collect(),
        };
        self.steps.iter().map(of_step).collect()
    }

    fn solve(&self, field: Field) -> Solved {
        let (entry, exit) = self.ends(field);
        let mut changes = self.changes(field, None);
        // A target that ends the traversal may have failed to do its work.
        if let Some(last) = changes.last_mut().filter(|last| !last.is_empty()) {
            *last = vec![Change::Opaque(full(field))];
        }
        let exact: Vec<Vec<Change>> = changes
            .iter()
            .map(|changes| {
                changes.iter().copied().filter(|change| !matches!(change, Change::Opaque(_))).collect()
            })
            .collect();
        let explained = exit.known != 0 && follow(&exact, entry, exit).is_some();
        let large = matches!(field, Field::Network | Field::Transport);
        if explained && large {
            // No target undoes what another did to them.
            changes = exact;
        } else if explained {
            self.distrust_hidden(field, &mut changes);
        } else {
            let any = Change::Opaque(full(field));
            for (step, known) in self.steps.iter().zip(&mut changes) {
                if self.effects(*step) == Effects::Unknown {
                    *known = vec![any];
                }
            }
        }
        match follow(&changes, entry, exit) {
            Some(states) => {
                let doubts =
                    states.iter().map(|state| self.doubt(field, &changes, full(field) & !state.known));
                Solved { field, doubts: doubts.collect(), states }
            }
            None => {
                let doubt = format!("{}, which no matched rule explains", self.what_changed(field));
                let states = forward(&changes, entry);
                let doubts = (0..states.len()).map(|step| (step > 0).then(|| doubt.clone())).collect();
                Solved { field, states, doubts }
            }
        }
    }

    /// A target that is not known is trusted to have left the field alone where its work would show at the exit: not
    /// where a later target wrote over it, nor where another one that is not known can have undone it.
    fn distrust_hidden(&self, field: Field, changes: &mut [Vec<Change>]) {
        let is_unknown = |step: &usize| self.effects(*step) == Effects::Unknown;
        let several = self.steps.iter().filter(|step| is_unknown(step)).count() > 1;
        let opaque = |all, change: &Change| match change {
            Change::Opaque(mask) => all | mask,
            _ => all,
        };
        // What nobody can predict does not tell, either.
        let mut hidden = if several { full(field) } else { changes.iter().flatten().fold(0, opaque) };
        for (step, changes) in self.steps.iter().zip(changes).rev() {
            if is_unknown(step) && hidden != 0 {
                *changes = vec![Change::Opaque(hidden)];
            }
            hidden |= changes.iter().fold(0, |all, change| {
                all | match change {
                    Change::Bits { mask, .. } | Change::Opaque(mask) => *mask,
                    // What is at its limit does not tell where it came from.
                    Change::Add(_) | Change::Subtract(_) => full(field),
                }
            });
        }
    }

    fn give_up(&self, field: Field) -> Solved {
        let (entry, exit) = self.ends(field);
        let changed = exit.known == 0 || entry != exit;
        let changes = self.changes(field, changed.then_some(Change::Opaque(full(field))));
        let by = self.responsible(&changes, |_| true);
        let what = self.what_changed(field);
        let doubt = match (by.is_empty(), entry == exit) {
            (true, true) => None,
            (true, false) if exit.known == 0 => None,
            (true, false) => Some(format!("{what}, which no matched rule explains")),
            (false, _) => Some(format!("{what} by {by}, the order of the rules is not known")),
        };
        Solved { field, states: vec![entry; self.steps.len()], doubts: vec![doubt; self.steps.len()] }
    }

    fn doubt(&self, field: Field, changes: &[Vec<Change>], unknown: u32) -> Option<String> {
        if unknown == 0 {
            return None;
        }
        let touches = |change: &Change| matches!(change, Change::Opaque(mask) if mask & unknown != 0);
        let inexact = |change: &Change| matches!(change, Change::Add(_) | Change::Subtract(_));
        let by = self.responsible(changes, |change| touches(change) || inexact(change));
        Some(format!("{} by {by}", self.what_changed(field)))
    }

    /// The rules that did a change for which `which` holds.
    fn responsible(&self, changes: &[Vec<Change>], which: impl Fn(&Change) -> bool) -> String {
        let steps = self.steps.iter().zip(changes).filter(|(_, changes)| changes.iter().any(&which));
        let mut names: Vec<String> = steps.map(|(step, _)| self.table.step_name(*step)).collect();
        names.dedup();
        names.join(" or ")
    }

    fn what_changed(&self, field: Field) -> String {
        let (entry, exit) = self.ends(field);
        let name = self.name(field);
        match field {
            _ if exit.known == 0 || entry == exit => format!("{name} may have been changed"),
            Field::Mark => format!("mark changed from {:#x} to {:#x}", entry.value, exit.value),
            Field::Byte(_) => format!("{name} changed from {} to {}", entry.value, exit.value),
            Field::Network | Field::Transport => format!("{name} changed"),
        }
    }

    fn name(&self, field: Field) -> &'static str {
        match (field, self.layout.ipv6) {
            (Field::Mark, _) => "mark",
            (Field::Byte(0 | 1), true) => "traffic class",
            (Field::Byte(0 | 1), false) => "type of service",
            (Field::Byte(7), true) => "hop limit",
            (Field::Byte(8), false) => "time to live",
            (Field::Byte(_), _) => "TCP flags",
            (Field::Network, _) => "network header",
            (Field::Transport, _) => "length or transport header",
        }
    }

    fn view(&self, step: usize, fields: &[Solved]) -> View<'a> {
        let mut view = View {
            mark: self.entry.mark,
            len: self.entry.len,
            bytes: Cow::Borrowed(self.entry.bytes),
            doubt: None,
        };
        // The large fields come first in `fields`, so that single bytes are written over them.
        for solved in fields {
            let Bits { value, known } = solved.states[step];
            // Bits that are in doubt are shown as they were at entry.
            match (solved.field, self.exit) {
                (Field::Mark, _) => view.mark = value | self.entry.mark & !known,
                (Field::Byte(byte), _) => {
                    let [value, known] = [value, known].map(|word| word.to_le_bytes()[0]);
                    let value = value | self.entry.bytes[byte] & !known;
                    if view.bytes.get(byte).is_some_and(|shown| *shown != value) {
                        view.bytes.to_mut()[byte] = value;
                    }
                }
                (Field::Network | Field::Transport, Some(exit)) if value == 1 => {
                    self.take_from_exit(solved.field, exit, &mut view);
                }
                (Field::Network | Field::Transport, _) => {}
            }
            if let Some(doubt) = &solved.doubts[step] {
                match &mut view.doubt {
                    None => view.doubt = Some(doubt.clone()),
                    Some(before) => *before = format!("{before}; {doubt}"),
                }
            }
        }
        view
    }

    /// Takes a large field from the exit. Beyond what was read there, bytes stay unless they have moved.
    fn take_from_exit(&self, field: Field, exit: State<'_>, view: &mut View<'a>) {
        let network = field == Field::Network;
        let bytes = view.bytes.to_mut();
        for (index, (shown, at_exit)) in bytes.iter_mut().zip(exit.bytes).enumerate() {
            if self.is_network(index) == network && !self.layout.is_checksum(index) {
                *shown = *at_exit;
            }
        }
        if !network && exit.len != self.entry.len {
            view.len = exit.len;
            bytes.truncate(exit.bytes.len());
            bytes.extend_from_slice(exit.bytes.get(bytes.len()..).unwrap_or_default());
        }
    }
}

fn full(field: Field) -> u32 {
    match field {
        Field::Mark => u32::MAX,
        Field::Byte(_) => 0xff,
        Field::Network | Field::Transport => 1,
    }
}

/// The field before each step, from both ends; `None` when the ends contradict each other.
fn follow(changes: &[Vec<Change>], entry: Bits, exit: Bits) -> Option<Vec<Bits>> {
    let mut states = forward(changes, entry);
    let mut back = exit;
    let end = changes.last().map_or(entry, |last| last.iter().fold(*states.last().unwrap_or(&entry), after));
    end.join(back)?;
    for (state, changes) in states.iter_mut().zip(changes).rev() {
        back = changes.iter().rev().fold(back, before);
        *state = state.join(back)?;
    }
    Some(states)
}

/// The field before each step, from the entry alone.
fn forward(changes: &[Vec<Change>], entry: Bits) -> Vec<Bits> {
    let mut state = entry;
    let step = |changes: &Vec<Change>| {
        let shown = state;
        state = changes.iter().fold(state, after);
        shown
    };
    changes.iter().map(step).collect()
}

impl Bits {
    /// Both at once; `None` when they differ in a bit that both know.
    fn join(self, other: Self) -> Option<Self> {
        let agree = (self.value ^ other.value) & self.known & other.known == 0;
        agree.then_some(Self { value: self.value | other.value, known: self.known | other.known })
    }

    fn is_byte(self) -> bool {
        self.known == 0xff
    }

    fn byte(value: u32) -> Self {
        Self { value, known: 0xff }
    }
}

const NOTHING: Bits = Bits { value: 0, known: 0 };

/// A value after a change.
fn after(old: Bits, change: &Change) -> Bits {
    match *change {
        Change::Bits { mask, value } => {
            let known = old.known | mask;
            Bits { value: ((old.value & !mask) ^ value) & known, known }
        }
        Change::Add(amount) if old.is_byte() => Bits::byte((old.value + u32::from(amount)).min(0xff)),
        Change::Subtract(amount) if old.is_byte() => Bits::byte(old.value.saturating_sub(amount.into())),
        Change::Add(_) | Change::Subtract(_) => NOTHING,
        Change::Opaque(mask) => Bits { value: old.value & !mask, known: old.known & !mask },
    }
}

/// A value before a change, from the one after it.
fn before(new: Bits, change: &Change) -> Bits {
    match *change {
        Change::Bits { mask, value } => {
            let known = new.known & !mask;
            Bits { value: (new.value ^ value) & known, known }
        }
        // At its limit the value does not tell where it came from.
        Change::Add(amount) if new.is_byte() && new.value < 0xff => {
            new.value.checked_sub(amount.into()).map_or(NOTHING, Bits::byte)
        }
        Change::Subtract(amount) if new.is_byte() && new.value > 0 => {
            Some(new.value + u32::from(amount)).filter(|old| *old <= 0xff).map_or(NOTHING, Bits::byte)
        }
        Change::Add(_) | Change::Subtract(_) => NOTHING,
        Change::Opaque(mask) => Bits { value: new.value & !mask, known: new.known & !mask },
    }
}
