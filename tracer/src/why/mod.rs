//! What became of one packet, and why: the step that ended it, and the rules that nearly had it otherwise.
//!
//! Pure: rules that the packet passed come from whoever has them.
#![forbid(unsafe_code)]

mod close;
mod passed;
#[cfg(test)]
mod tests;

pub use passed::{Listed, Passed};

use crate::explain::{Leads, leads};
use crate::netfilter::{Engine, Hook, StepKind, TableFamily, Verdict};
use crate::owner::{self, Place};
use crate::packet::{Packet, Sender, headers};
use crate::path::ending::Ending;
use crate::path::{Action, Certainty, Path, Step};
use std::net::IpAddr;
use std::sync::Arc;

/// A step that outlives what it was read from.
#[derive(Clone, Debug)]
pub struct Met {
    /// Nanoseconds since the epoch; `None` where nothing tells.
    pub time_ns: Option<u64>,
    /// Where in the stack; `None` where nothing tells.
    pub hook: Option<Hook>,
    /// Who evaluates the rule.
    pub engine: Engine,
    /// The family of its table.
    pub family: TableFamily,
    /// The table's name.
    pub table: String,
    /// The chain's name.
    pub chain: String,
    /// The word for its shape.
    pub kind: StepKind,
    /// Its place in the chain, from 1.
    pub number: Option<u32>,
    /// nftables' handle of a rule.
    pub handle: Option<u64>,
    /// `table:chain:kind:number`
    pub name: String,
    /// The rule's text; `None` where it is not known, and where no user wrote one.
    pub text: Option<Arc<str>>,
    /// The program that made it, and for what.
    pub owner: Option<String>,
    /// The final verdict that it gave; `None` when it gave none, or nothing tells.
    pub verdict: Option<Verdict>,
    /// Whether what it did is known, and the packet went on.
    pub goes_on: bool,
    /// The packet as it was then.
    pub packet: Packet,
    /// How the packet looked is in doubt.
    pub doubtful: bool,
}

impl From<&Step<'_>> for Met {
    fn from(step: &Step<'_>) -> Self {
        let Step { rule, action, .. } = step;
        Self {
            time_ns: step.time_ns,
            hook: step.hook,
            engine: rule.engine,
            family: rule.family,
            table: rule.table.to_owned(),
            chain: rule.chain.to_owned(),
            kind: rule.kind,
            number: rule.number,
            handle: rule.handle,
            name: step.name.to_owned(),
            text: rule.text.cloned(),
            owner: rule.owner.map(str::to_owned),
            verdict: match action {
                Some(Action::Verdict(verdict)) => Some(*verdict),
                _ => None,
            },
            goes_on: matches!(action, Some(action) if !matches!(action, Action::Verdict(_))),
            packet: step.view.into(),
            doubtful: step.view_doubt.is_some(),
        }
    }
}

impl Met {
    /// With its owner, which not every backend looks for.
    fn owned(&self) -> Self {
        let place = Place { table: &self.table, chain: &self.chain, text: self.text.as_deref() };
        Self { owner: self.owner.clone().or_else(|| owner::of(place)), ..self.clone() }
    }

    /// Whether it is of the same table, at the same hook.
    fn is_beside(&self, other: &Self) -> bool {
        let place = |met: &Self| (met.hook, met.engine, met.family);
        place(self) == place(other) && self.table == other.table
    }

    /// Whether a user wrote it: not the policy, nor the end of a chain.
    pub fn is_rule(&self) -> bool {
        self.kind == StepKind::Rule || self.text.is_some()
    }
}

/// How a packet ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was thrown away.
    Dropped,
    /// It was thrown away, and its sender was told.
    Rejected,
    /// Every table let it go on, and the kernel dropped it for another reason, which the path's ending tells.
    Elsewhere,
    /// Every table let it go on, and then it was not seen where it had to be.
    LastSeen,
}

impl Fate {
    /// The word that the JSON output uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dropped => "dropped",
            Self::Rejected => "rejected",
            Self::Elsewhere => "dropped elsewhere",
            Self::LastSeen => "last seen",
        }
    }
}

/// What became of a packet, and why.
#[derive(Clone, Debug)]
pub struct Why {
    /// Its path.
    pub path: Path,
    /// Who sent it, where it was made here and that is known.
    pub sender: Option<Sender>,
    /// How it ended.
    pub fate: Fate,
    /// The step that ended it, or the last one; `None` when no step could be read.
    pub at: Option<Met>,
    /// Whether it is known that this step ended it.
    pub is_certain: bool,
    /// The steps of the same table before it, which led there.
    pub way: Vec<String>,
    /// Rules that nearly had it otherwise, the closest first.
    pub close: Vec<Passed>,
    /// A command that shows more.
    pub look: Option<String>,
}

/// How a packet ended, if it did not get to where it was going; and which step ended it, where that is known.
///
/// `has_stand` says whether packets that come to a hook of this packet's family are seen there for certain. `silent_ns`
/// is for how long nothing has been seen of this packet. `has_doubt` says that a path whose end was not seen is always
/// in doubt for that reason: a backend that hears of packets cannot know more.
pub fn fate(
    path: &Path,
    steps: &[Met],
    has_stand: &mut dyn FnMut(Hook) -> bool,
    silent_ns: u64,
    has_doubt: bool,
) -> Option<(Fate, Option<usize>)> {
    let dropped = steps.iter().rposition(|step| step.verdict == Some(Verdict::Drop));
    if path.verdict == Some(Verdict::Drop) || dropped.is_some() {
        let text = dropped.and_then(|at| steps[at].text.as_deref());
        let rejected = text.is_some_and(|text| leads(text) == Leads::Reject);
        return Some((if rejected { Fate::Rejected } else { Fate::Dropped }, dropped));
    }
    if is_lost(path, steps, has_stand, has_doubt) {
        return (silent_ns >= SILENCE_NS).then_some((Fate::LastSeen, None));
    }
    let is_told = path.ending.as_ref().is_some_and(is_dropped_elsewhere);
    (is_told && steps.last().is_some_and(|last| !may_end_unseen(last))).then_some((Fate::Elsewhere, None))
}

/// Whether the kernel certainly dropped a packet, and no table did. Without a reason it frees others like this as well, and
/// TCP throws away what it has already.
fn is_dropped_elsewhere(ending: &Ending) -> bool {
    match ending {
        Ending::ByFunction { .. } | Ending::ByUser { .. } => true,
        Ending::Freed(freed) => {
            let reason = freed.reason.as_deref().filter(|reason| !reason.starts_with("TCP_"));
            reason.is_some_and(|reason| !NO_REASONS.contains(&reason))
        }
        _ => false,
    }
}

/// What the kernel says where it was not told why.
const NO_REASONS: [&str; 3] = ["NOT_SPECIFIED", "NOT_DROPPED_YET", "CONSUMED"];

/// A packet that was seen more recently may still be on its way.
const SILENCE_NS: u64 = 200_000_000;

/// Whether a packet was let go on, and had to be seen again.
fn is_lost(path: &Path, steps: &[Met], has_stand: &mut dyn FnMut(Hook) -> bool, has_doubt: bool) -> bool {
    let Some(last) = steps.last() else { return false };
    let is_sure = match has_doubt {
        true => path.certainty == Certainty::Inexact && path.why.len() == 1,
        false => path.certainty != Certainty::Inexact && path.verdict == Some(Verdict::Accept),
    };
    let let_go = path.verdict == Some(Verdict::Accept) || has_doubt && last.goes_on;
    if path.outcome.is_some() || !is_sure || !let_go || may_end_unseen(last) {
        return false;
    }
    let mut next = |hook| has_stand(hook);
    match last.hook {
        Some(Hook::Prerouting) => next(Hook::Input) && (next(Hook::Forward) || next(Hook::Postrouting)),
        Some(Hook::Forward | Hook::Output) => next(Hook::Postrouting),
        _ => false,
    }
}

/// Multicasts and broadcasts that nobody here wants end without a word all the time, and so do fragments that are put
/// together with others.
fn may_end_unseen(met: &Met) -> bool {
    let view = met.packet.view();
    let packet = headers(&view);
    if packet.fragment.is_some() {
        return true;
    }
    let broadcast = view.link.ethernet().is_some_and(|(to, ..)| to[0] & 1 != 0);
    match packet.dst {
        Some(IpAddr::V4(to)) => broadcast || to.is_multicast() || to.is_broadcast(),
        Some(IpAddr::V6(to)) => broadcast || to.is_multicast(),
        None => true,
    }
}

impl Why {
    /// Puts together what is known. `rules` lists the rules of the chain of a step.
    pub fn of(
        path: &Path,
        steps: &[Met],
        (fate, at): (Fate, Option<usize>),
        rules: &mut dyn FnMut(&Met) -> Option<Vec<Listed>>,
    ) -> Self {
        let place = at.or(steps.len().checked_sub(1));
        let same = |step: &&Met| place.is_some_and(|place| step.is_beside(&steps[place]));
        let before = steps.get(..place.unwrap_or(0)).unwrap_or_default();
        let certain = path.certainty == Certainty::Complete;
        Self {
            path: path.clone(),
            sender: None,
            fate,
            at: place.map(|place| steps[place].owned()),
            is_certain: at.is_some(),
            way: before.iter().filter(same).map(|step| step.name.clone()).collect(),
            close: at.filter(|_| certain).map(|at| close::close(steps, at, rules)).unwrap_or_default(),
            look: None,
        }
    }

    /// The packet as it was at its last known step.
    pub fn packet(&self) -> Option<&Packet> {
        self.at.as_ref().map(|met| &met.packet)
    }
}

/// What is known of a packet and one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// It passed the rule, and says this to it.
    Passed(Passed),
    /// Whether it passed the rule, or by which condition, is not known, for this reason.
    Unknown(&'static str),
}

/// What a packet says to one rule of a chain, given its steps there, the rules of the chain, and whether rules of the
/// table may change a packet without being met. `None` when it matched the rule, or did not come to it.
pub fn told(steps: &[Met], number: u32, rules: Option<(&[Listed], bool)>) -> Option<Told> {
    let first = steps.first()?;
    let at_hook: Vec<&Met> = steps.iter().take_while(|step| step.is_beside(first)).collect();
    if at_hook.len() < steps.len() {
        return Some(Told::Unknown("it came to the chain at several hooks"));
    }
    let Some((listed, changed)) = rules else {
        return Some(Told::Unknown("the rules were changed meanwhile"));
    };
    let met = passed::InChain { steps: &at_hook, listed, changed };
    if !met.is_clear() {
        return Some(Told::Unknown("it came to the chain more than once"));
    }
    let at = met.behind(number)?;
    let rule = listed.iter().find(|rule| rule.number == number)?;
    Some(met.ask(rule, at).map_or(Told::Unknown("the text of the rule is not known"), Told::Passed))
}
