//! A step that waits for the rest of its packet's way.

use crate::netfilter::{Engine, Hook, StepKind, TableFamily, Verdict};
use crate::nftables::RuleVerdict;
use crate::packet::{Packet, Tracked};
use crate::path::{Action, Step};
use crate::ruleset::Rule;
use std::rc::Rc;
use std::sync::Arc;

/// A step and the packet at it, owned.
#[derive(Debug)]
pub(super) struct Kept {
    time_ns: Option<u64>,
    hook: Option<Hook>,
    engine: Engine,
    family: TableFamily,
    table: Box<str>,
    chain: Box<str>,
    kind: StepKind,
    number: Option<u32>,
    handle: Option<u64>,
    text: Option<Arc<str>>,
    nft: Option<Arc<str>>,
    owner: Option<Box<str>>,
    name: Rc<str>,
    action: Option<RuleVerdict<'static>>,
    packet: Rc<Packet>,
    view_doubt: Option<Box<str>>,
    tracked: Option<Tracked>,
    netns: Option<u32>,
}

impl Kept {
    pub(super) fn of(step: &Step<'_>) -> Self {
        Self::sharing(step, Rc::new(Packet::from(step.view)))
    }

    /// As [`Self::of`], where the packet at the step is owned already.
    pub(super) fn sharing(step: &Step<'_>, packet: Rc<Packet>) -> Self {
        let Rule { engine, family, table, chain, kind, number, handle, text, nft, owner } = step.rule;
        Self {
            time_ns: step.time_ns,
            hook: step.hook,
            engine,
            family,
            table: table.into(),
            chain: chain.into(),
            kind,
            number,
            handle,
            text: text.cloned(),
            nft: nft.cloned(),
            owner: owner.map(Into::into),
            name: step.name.into(),
            action: step.action.as_ref().map(owned),
            packet,
            view_doubt: step.view_doubt.map(Into::into),
            tracked: step.tracked,
            netns: step.netns,
        }
    }

    pub(super) fn name(&self) -> Rc<str> {
        Rc::clone(&self.name)
    }

    pub(super) fn netns(&self) -> Option<u32> {
        self.netns
    }

    pub(super) fn packet(&self) -> Rc<Packet> {
        Rc::clone(&self.packet)
    }

    pub(super) fn table(&self) -> &str {
        &self.table
    }

    pub(super) fn hook(&self) -> Option<Hook> {
        self.hook
    }

    pub(super) fn is_legacy(&self) -> bool {
        self.engine == Engine::Legacy
    }

    pub(super) fn action(&self) -> Option<Action<'_>> {
        self.action.as_ref().map(RuleVerdict::action)
    }

    /// What legacy tables leave open, nftables may tell: who comes there was accepted before.
    pub(super) fn settle(steps: &mut [Self]) {
        for at in 1..steps.len() {
            let is_accepted = steps[at - 1].is_legacy() && !steps[at].is_legacy();
            if is_accepted && steps[at - 1].action.is_none() {
                steps[at - 1].action = Some(RuleVerdict::Final(Verdict::Accept));
            }
        }
    }

    pub(super) fn step(&self, packet: u64, netns: Option<u32>) -> Step<'_> {
        Step {
            packet,
            time_ns: self.time_ns,
            hook: self.hook,
            rule: Rule {
                engine: self.engine,
                family: self.family,
                table: &self.table,
                chain: &self.chain,
                kind: self.kind,
                number: self.number,
                handle: self.handle,
                text: self.text.as_ref(),
                nft: self.nft.as_ref(),
                owner: self.owner.as_deref(),
            },
            name: &self.name,
            action: self.action(),
            view: self.packet.view(),
            view_doubt: self.view_doubt.as_deref(),
            tracked: self.tracked,
            netns,
        }
    }
}

fn owned(action: &Action<'_>) -> RuleVerdict<'static> {
    let name = |chain: &str| chain.to_owned().into();
    match action {
        Action::Verdict(verdict) => RuleVerdict::Final(*verdict),
        Action::Continue => RuleVerdict::Continue,
        Action::Jump(chain) => RuleVerdict::Jump(name(chain)),
        Action::Goto(chain) => RuleVerdict::Goto(name(chain)),
        Action::Return => RuleVerdict::Return,
    }
}
