//! Writing a recording.

use super::record::{
    ActionRecord, CERTAINTIES, ContainerRecord, ContentRecord, ENGINES, EndingRecord, FAMILIES, HOOKS, KINDS,
    NamespaceRecord, PathRecord, PlaceRecord, Record, RuleRecord, StepRecord, TABLE_FAMILIES, place,
};
use super::{CONTENTS, MAGIC, NUMBERED, VERSION};
use crate::container::{Container, Runtime};
use crate::netfilter::Verdict;
use crate::packet::PacketView;
use crate::path::{Action, Path, Sighting, Step};
use crate::sink::{Namespace, Row, Sink, Start, Totals};
use std::collections::{HashMap, VecDeque};
use std::io::{self, BufWriter, Write};
use std::rc::Rc;

/// Writes a recording.
#[derive(Debug)]
pub struct Recorder<W: Write> {
    out: BufWriter<W>,
    /// The numbers of what has been written, by the bytes of its record.
    texts: HashMap<Box<[u8]>, u32>,
    rules: HashMap<Box<[u8]>, u32>,
    places: HashMap<Box<[u8]>, u32>,
    /// The records of the last packets, the newest first.
    contents: VecDeque<Vec<u8>>,
    /// Of the last step.
    packet: u64,
    time_ns: u64,
    scratch: Vec<u8>,
}

impl<W: Write> Recorder<W> {
    /// Begins a recording.
    pub fn new(writer: W) -> io::Result<Self> {
        let mut out = BufWriter::new(writer);
        out.write_all(&MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        Ok(Self {
            out,
            texts: HashMap::new(),
            rules: HashMap::new(),
            places: HashMap::new(),
            contents: VecDeque::with_capacity(CONTENTS),
            packet: 0,
            time_ns: 0,
            scratch: Vec::new(),
        })
    }

    fn write(&mut self, record: &Record<'_>) -> io::Result<()> {
        encode(record, &mut self.scratch)?;
        frame(&mut self.out, &self.scratch)
    }

    fn text(&mut self, text: &str) -> io::Result<u32> {
        encode(&Record::Text(text), &mut self.scratch)?;
        number(&mut self.texts, &mut self.out, &self.scratch)
    }

    fn rule(&mut self, step: &Step<'_>) -> io::Result<u32> {
        let rule = &step.rule;
        let record = Record::Rule(RuleRecord {
            engine: place(ENGINES, &rule.engine),
            family: place(TABLE_FAMILIES, &rule.family),
            table: rule.table,
            chain: rule.chain,
            kind: place(KINDS, &rule.kind),
            number: rule.number,
            handle: rule.handle,
            text: rule.text.map(|text| &**text),
            owner: rule.owner,
            name: step.name,
        });
        encode(&record, &mut self.scratch)?;
        number(&mut self.rules, &mut self.out, &self.scratch)
    }

    fn place(&mut self, netns: Option<u32>, view: &PacketView<'_>) -> io::Result<u32> {
        let PacketView { indev, outdev, link, .. } = *view;
        let (dev_type, hard_header_len, header) = (link.dev_type, link.hard_header_len, link.header);
        let record = PlaceRecord { netns, indev, outdev, dev_type, hard_header_len, header };
        encode(&Record::Place(record), &mut self.scratch)?;
        number(&mut self.places, &mut self.out, &self.scratch)
    }

    /// How many packets have been written since this one.
    fn content(&mut self, view: &PacketView<'_>) -> io::Result<u32> {
        let owner = view.owner.map(|owner| (owner.uid, owner.gid));
        let PacketView { len, mark, bytes, .. } = *view;
        let family = place(FAMILIES, &view.family);
        encode(&Record::Content(ContentRecord { family, len, mark, owner, bytes }), &mut self.scratch)?;
        let found = self.contents.iter().position(|known| *known == self.scratch);
        if found.is_none() {
            frame(&mut self.out, &self.scratch)?;
            let mut oldest = match self.contents.len() {
                CONTENTS => self.contents.pop_back().unwrap_or_default(),
                _ => Vec::new(),
            };
            oldest.clone_from(&self.scratch);
            self.contents.push_front(oldest);
        }
        Ok(found.unwrap_or(0) as u32)
    }

    /// Lets the numbers begin anew when there are many.
    fn make_room(&mut self) -> io::Result<()> {
        let numbers = [&mut self.texts, &mut self.rules, &mut self.places];
        if numbers.iter().any(|known| known.len() >= NUMBERED) {
            numbers.into_iter().for_each(HashMap::clear);
            self.contents.clear();
            self.write(&Record::Anew)?;
        }
        Ok(())
    }

    fn begin(&mut self, start: &Start) -> io::Result<()> {
        let Start { filter, netns, backend, footprint, kernel, log_style, .. } = start;
        let ae_flag = log_style.ae_flag;
        self.write(&Record::Start { filter, netns, backend, footprint, kernel, ae_flag })
    }

    fn namespace(&mut self, inode: u32, known: &Namespace) -> io::Result<()> {
        let container = known.container.as_ref().map(|Container { group, names }| ContainerRecord {
            runtime: group.runtime.map(|runtime| place(&Runtime::ALL, &runtime)),
            id: group.id.as_deref(),
            name: names.container.as_deref(),
            pod_uid: group.pod.as_deref(),
            pod: names.pod.as_deref(),
            namespace: names.namespace.as_deref(),
        });
        let name = known.name.as_deref();
        self.write(&Record::Namespace(NamespaceRecord { inode, name, container }))
    }

    fn step(&mut self, step: &Step<'_>) -> io::Result<()> {
        self.make_room()?;
        let rule = self.rule(step)?;
        let place = self.place(step.netns, &step.view)?;
        let content = self.content(&step.view)?;
        let doubt = step.view_doubt.map(|doubt| self.text(doubt)).transpose()?;
        let action = match &step.action {
            None => None,
            Some(Action::Verdict(verdict)) => Some(ActionRecord::Verdict(verdict.number())),
            Some(Action::Continue) => Some(ActionRecord::Continue),
            Some(Action::Jump(chain)) => Some(ActionRecord::Jump(self.text(chain)?)),
            Some(Action::Goto(chain)) => Some(ActionRecord::Goto(self.text(chain)?)),
            Some(Action::Return) => Some(ActionRecord::Return),
        };
        let time_ns = step.time_ns.map(|time_ns| since(time_ns, &mut self.time_ns));
        let packet = since(step.packet, &mut self.packet);
        let hook = step.hook.map(|hook| self::place(HOOKS, &hook));
        self.write(&Record::Step(StepRecord { packet, time_ns, hook, rule, action, place, content, doubt }))
    }

    fn path(&mut self, path: &Path) -> io::Result<()> {
        self.make_room()?;
        let mut numbers = |texts: &[Rc<str>]| -> io::Result<Vec<u32>> {
            texts.iter().map(|text| self.text(text)).collect()
        };
        let (steps, generation) = (numbers(&path.steps)?, numbers(&path.generation)?);
        if let Some(note) = &path.note {
            self.write(&Record::Note(note))?;
        }
        if let Some(Sighting { time_ns, packet }) = path.sighting.as_deref() {
            let view = packet.view();
            let (place, content) = (self.place(path.netns, &view)?, self.content(&view)?);
            self.write(&Record::Sighting { time_ns: *time_ns, place, content })?;
        }
        if let Some(ending) = EndingRecord::of(path) {
            self.write(&Record::Ending(ending))?;
        }
        self.write(&Record::Path(PathRecord {
            packet: path.packet,
            family: place(FAMILIES, &path.family),
            steps,
            verdict: path.verdict.map(Verdict::number),
            certainty: place(CERTAINTIES, &path.certainty),
            why: path.why.iter().map(String::as_str).collect(),
            outcome: path.outcome.as_deref(),
            generation,
            netns: path.netns,
        }))
    }
}

impl<W: Write> Sink for Recorder<W> {
    fn row(&mut self, row: Row<'_>) -> io::Result<()> {
        match row {
            Row::Start(start) => self.begin(start),
            Row::Namespace(inode, known) => self.namespace(inode, known),
            Row::Step(step) => self.step(step),
            Row::Path(path) => self.path(path),
            Row::End(&Totals { packets, steps, lost, missed, unordered, inexact, .. }) => {
                self.write(&Record::Totals { packets, steps, lost, missed, unordered, inexact })?;
                self.flush()
            }
            Row::LogStyle(_)
            | Row::Logged(..)
            | Row::Told(..)
            | Row::Sender(..)
            | Row::Spent(..)
            | Row::Freed(..)
            | Row::Why(_)
            | Row::NoDrop(_) => Ok(()),
        }
    }

    fn enough(&self) -> bool {
        false
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The difference to the last one, which this becomes.
fn since(value: u64, last: &mut u64) -> i64 {
    let difference = value.wrapping_sub(*last) as i64;
    *last = value;
    difference
}

fn encode(record: &Record<'_>, scratch: &mut Vec<u8>) -> io::Result<()> {
    scratch.clear();
    *scratch = postcard::to_extend(record, std::mem::take(scratch)).map_err(io::Error::other)?;
    Ok(())
}

/// A record behind its length.
fn frame(out: &mut impl Write, record: &[u8]) -> io::Result<()> {
    let mut length = [0; 10];
    let length = postcard::to_slice(&record.len(), &mut length).map_err(io::Error::other)?;
    out.write_all(length)?;
    out.write_all(record)
}

/// The number of a record, which is written if it is new.
fn number(known: &mut HashMap<Box<[u8]>, u32>, out: &mut impl Write, record: &[u8]) -> io::Result<u32> {
    if let Some(number) = known.get(record) {
        return Ok(*number);
    }
    frame(out, record)?;
    let number = known.len() as u32;
    known.insert(record.into(), number);
    Ok(number)
}
