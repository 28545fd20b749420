//! Reading a recording.

use super::record::{
    ActionRecord, CERTAINTIES, ContentRecord, ENGINES, FAMILIES, HOOKS, KINDS, NamespaceRecord, PathRecord,
    PlaceRecord, RECORD_KINDS, Record, RuleRecord, StepRecord, TABLE_FAMILIES, word,
};
use super::{CONTENTS, MAGIC, RECORD_MAX, VERSION};
use crate::container::{Container, Group, Names, Runtime};
use crate::netfilter::{Engine, Family, StepKind, TableFamily, Verdict};
use crate::packet::{Link, Owner, PacketView};
use crate::path::ending::{Ending, Waited};
use crate::path::{Action, Path, Sighting, Step};
use crate::ruleset::Rule;
use crate::sink::{Namespace, Start, Totals};
use crate::trace_line::LogStyle;
use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{self, Read};
use std::rc::Rc;
use std::sync::Arc;
use thiserror::Error;

/// Why a recording cannot be read, or not further.
#[derive(Debug, Error)]
pub enum Error {
    /// It cannot be read at all.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Another kind of file.
    #[error("this is no recording")]
    NotARecording,
    /// Made by a later version of this program.
    #[error("this recording has version {0}, and this program knows versions up to {VERSION}")]
    Version(u16),
    /// Something stands there that no writer writes.
    #[error("the recording is damaged at byte {0}")]
    Damaged(u64),
}

/// What a recording holds, in the order it was written.
#[derive(Debug)]
pub enum Event<'a> {
    /// Tracing began.
    Start(Start),
    /// What is known of the namespace of this inode number from here on.
    Namespace(u32, Namespace),
    /// A packet met a rule.
    Step(Step<'a>),
    /// A packet was done.
    Path(Path),
    /// Tracing ended.
    Totals(Totals),
}

/// Reads a recording.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    /// Bytes read so far.
    offset: u64,
    record: Vec<u8>,
    known: Known,
    cut: bool,
}

/// What later records refer to.
#[derive(Debug, Default)]
struct Known {
    texts: Vec<Rc<str>>,
    rules: Vec<KnownRule>,
    places: Vec<KnownPlace>,
    /// The newest first.
    contents: VecDeque<Content>,
    packet: u64,
    time_ns: u64,
    note: Option<String>,
    ending: (Option<Ending>, Vec<Waited>),
    sighting: Option<Box<Sighting>>,
}

#[derive(Debug)]
struct KnownRule {
    engine: Engine,
    family: TableFamily,
    table: String,
    chain: String,
    kind: StepKind,
    number: Option<u32>,
    handle: Option<u64>,
    text: Option<Arc<str>>,
    owner: Option<String>,
    name: String,
}

#[derive(Debug)]
struct KnownPlace {
    netns: Option<u32>,
    indev: Option<Vec<u8>>,
    outdev: Option<Vec<u8>>,
    dev_type: u16,
    hard_header_len: u16,
    header: Option<Vec<u8>>,
}

#[derive(Debug)]
struct Content {
    family: Family,
    len: u32,
    mark: u32,
    owner: Option<Owner>,
    bytes: Vec<u8>,
}

impl<R: Read> Reader<R> {
    /// Reads the beginning. A buffered reader is faster.
    pub fn new(mut input: R) -> Result<Self, Error> {
        let (mut magic, mut version) = ([0; MAGIC.len()], [0; 2]);
        let short = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::NotARecording,
            _ => error.into(),
        };
        input.read_exact(&mut magic).map_err(short)?;
        if magic != MAGIC {
            return Err(Error::NotARecording);
        }
        input.read_exact(&mut version).map_err(short)?;
        match u16::from_le_bytes(version) {
            VERSION => {}
            later => return Err(Error::Version(later)),
        }
        let offset = (magic.len() + version.len()) as u64;
        Ok(Self { input, offset, record: Vec::new(), known: Known::default(), cut: false })
    }

    /// Whether the end came in the middle of a record: the writer was killed.
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    /// The next event; `None` at the end.
    pub fn next_event(&mut self) -> Result<Option<Event<'_>>, Error> {
        loop {
            let at = self.offset;
            if !self.fill()? {
                return Ok(None);
            }
            let damaged = || Error::Damaged(at);
            let record = match postcard::from_bytes(&self.record) {
                Ok(record) => record,
                // A kind of record that a later minor version added.
                Err(_) if self.record.first().is_some_and(|kind| *kind >= RECORD_KINDS) => continue,
                Err(_) => return Err(damaged()),
            };
            match record {
                Record::Step(step) => {
                    self.known.advance(&step);
                    return self.known.step(&step).map(|step| Some(Event::Step(step))).ok_or_else(damaged);
                }
                Record::Path(path) => return self.known.path(path).map(Some).ok_or_else(damaged),
                Record::Start { filter, netns, backend, footprint, kernel, ae_flag } => {
                    return Ok(Some(Event::Start(Start {
                        choice: String::new(),
                        filter: filter.to_owned(),
                        netns: netns.to_owned(),
                        backend: known_backend(backend),
                        footprint: footprint.to_owned(),
                        kernel: kernel.to_owned(),
                        log_style: LogStyle::of_tcp_header(ae_flag),
                    })));
                }
                Record::Totals { packets, steps, lost, missed, unordered, inexact } => {
                    let totals =
                        Totals { packets, steps, lost, missed, unordered, inexact, ..Totals::default() };
                    return Ok(Some(Event::Totals(totals)));
                }
                Record::Namespace(record) => return Ok(Some(record.into())),
                Record::Text(text) => self.known.texts.push(text.into()),
                Record::Rule(rule) => self.known.rules.push(KnownRule::of(&rule).ok_or_else(damaged)?),
                Record::Place(place) => self.known.places.push(place.into()),
                Record::Content(content) => self.known.content(&content).ok_or_else(damaged)?,
                Record::Anew => self.known.begin_anew(),
                Record::Note(note) => self.known.note = Some(note.to_owned()),
                Record::Sighting { time_ns, place, content } => {
                    let sighting = self.known.sighting(time_ns, place, content).ok_or_else(damaged)?;
                    self.known.sighting = Some(Box::new(sighting));
                }
                Record::Ending(ending) => self.known.ending = ending.take().ok_or_else(damaged)?,
            }
        }
    }

    /// Takes the next record; false at the end.
    fn fill(&mut self) -> Result<bool, Error> {
        let Some(length) = self.length()? else { return Ok(false) };
        if length > RECORD_MAX {
            return Err(Error::Damaged(self.offset));
        }
        self.record.resize(length, 0);
        match self.input.read_exact(&mut self.record) {
            Ok(()) => {
                self.offset += length as u64;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.cut = true;
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A length: seven bits in each byte, the lowest first.
    fn length(&mut self) -> Result<Option<usize>, Error> {
        let (mut length, mut byte) = (0, [0]);
        for shift in [0, 7, 14, 21] {
            match self.input.read_exact(&mut byte) {
                Ok(()) => self.offset += 1,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.cut |= shift > 0;
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
            length |= usize::from(byte[0] & 0x7f) << shift;
            if byte[0] & 0x80 == 0 {
                return Ok(Some(length));
            }
        }
        Err(Error::Damaged(self.offset))
    }
}

impl Known {
    fn advance(&mut self, step: &StepRecord) {
        self.packet = self.packet.wrapping_add_signed(step.packet);
        self.time_ns = self.time_ns.wrapping_add_signed(step.time_ns.unwrap_or(0));
    }

    fn step(&self, step: &StepRecord) -> Option<Step<'_>> {
        let text = |number: u32| self.texts.get(number as usize).map(|text| &**text);
        let rule = self.rules.get(step.rule as usize)?;
        let place = self.places.get(step.place as usize)?;
        let content = self.contents.get(step.content as usize)?;
        let action = match step.action {
            None => None,
            Some(ActionRecord::Verdict(verdict)) => {
                Some(Action::Verdict(Verdict::from_return(verdict.into())))
            }
            Some(ActionRecord::Continue) => Some(Action::Continue),
            Some(ActionRecord::Jump(chain)) => Some(Action::Jump(text(chain)?)),
            Some(ActionRecord::Goto(chain)) => Some(Action::Goto(text(chain)?)),
            Some(ActionRecord::Return) => Some(Action::Return),
        };
        let view_doubt = match step.doubt {
            None => None,
            Some(doubt) => Some(text(doubt)?),
        };
        let hook = match step.hook {
            None => None,
            Some(hook) => Some(word(HOOKS, hook)?),
        };
        Some(Step {
            packet: self.packet,
            time_ns: step.time_ns.map(|_| self.time_ns),
            hook,
            rule: rule.view(),
            name: &rule.name,
            action,
            view: content.view(place),
            view_doubt,
            tracked: None,
            netns: place.netns,
        })
    }

    fn sighting(&self, time_ns: u64, place: u32, content: u32) -> Option<Sighting> {
        let (place, content) = (self.places.get(place as usize)?, self.contents.get(content as usize)?);
        Some(Sighting { time_ns, packet: content.view(place).into() })
    }

    fn path(&mut self, path: PathRecord<'_>) -> Option<Event<'static>> {
        let (ending, waited) = std::mem::take(&mut self.ending);
        let texts = |numbers: &[u32]| -> Option<Vec<Rc<str>>> {
            numbers.iter().map(|number| self.texts.get(*number as usize).cloned()).collect()
        };
        Some(Event::Path(Path {
            packet: path.packet,
            family: word(FAMILIES, path.family)?,
            steps: texts(&path.steps)?,
            sighting: self.sighting.take(),
            verdict: path.verdict.map(|verdict| Verdict::from_return(verdict.into())),
            certainty: word(CERTAINTIES, path.certainty)?,
            why: path.why.into_iter().map(str::to_owned).collect(),
            outcome: path.outcome.map(str::to_owned),
            belongs: crate::path::Belongs::default(),
            note: self.note.take().map(Cow::Owned),
            ending,
            waited,
            generation: texts(&path.generation)?,
            netns: path.netns,
        }))
    }

    fn content(&mut self, record: &ContentRecord<'_>) -> Option<()> {
        let family = word(FAMILIES, record.family)?;
        let oldest = if self.contents.len() == CONTENTS { self.contents.pop_back() } else { None };
        let mut bytes = oldest.map(|content| content.bytes).unwrap_or_default();
        bytes.clear();
        bytes.extend_from_slice(record.bytes);
        let owner = record.owner.map(|(uid, gid)| Owner { uid, gid });
        let ContentRecord { len, mark, .. } = *record;
        self.contents.push_front(Content { family, len, mark, owner, bytes });
        Some(())
    }

    fn begin_anew(&mut self) {
        self.texts.clear();
        self.rules.clear();
        self.places.clear();
        self.contents.clear();
    }
}

impl KnownRule {
    fn of(record: &RuleRecord<'_>) -> Option<Self> {
        Some(Self {
            engine: word(ENGINES, record.engine)?,
            family: word(TABLE_FAMILIES, record.family)?,
            table: record.table.to_owned(),
            chain: record.chain.to_owned(),
            kind: word(KINDS, record.kind)?,
            number: record.number,
            handle: record.handle,
            text: record.text.map(Into::into),
            owner: record.owner.map(str::to_owned),
            name: record.name.to_owned(),
        })
    }

    fn view(&self) -> Rule<'_> {
        Rule {
            engine: self.engine,
            family: self.family,
            table: &self.table,
            chain: &self.chain,
            kind: self.kind,
            number: self.number,
            handle: self.handle,
            text: self.text.as_ref(),
            nft: None,
            owner: self.owner.as_deref(),
        }
    }
}

impl From<NamespaceRecord<'_>> for Event<'_> {
    fn from(record: NamespaceRecord<'_>) -> Self {
        let NamespaceRecord { inode, name, container } = record;
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let container = container.map(|record| Container {
            group: Group {
                runtime: record.runtime.and_then(|place| word(&Runtime::ALL, place)),
                id: owned(record.id),
                pod: owned(record.pod_uid),
            },
            names: Names {
                container: owned(record.name),
                pod: owned(record.pod),
                namespace: owned(record.namespace),
            },
        });
        Event::Namespace(inode, Namespace { name: owned(name), container })
    }
}

impl From<PlaceRecord<'_>> for KnownPlace {
    fn from(record: PlaceRecord<'_>) -> Self {
        let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
        Self {
            netns: record.netns,
            indev: owned(record.indev),
            outdev: owned(record.outdev),
            dev_type: record.dev_type,
            hard_header_len: record.hard_header_len,
            header: owned(record.header),
        }
    }
}

impl Content {
    fn view<'a>(&'a self, place: &'a KnownPlace) -> PacketView<'a> {
        PacketView {
            family: self.family,
            indev: place.indev.as_deref(),
            outdev: place.outdev.as_deref(),
            link: Link {
                dev_type: place.dev_type,
                hard_header_len: place.hard_header_len,
                header: place.header.as_deref(),
                ..Link::default()
            },
            len: self.len,
            bytes: &self.bytes,
            mark: self.mark,
            owner: self.owner,
        }
    }
}

/// The backends of this version by name.
fn known_backend(name: &str) -> &'static str {
    ["ebpf", "netlink", "log"].into_iter().find(|known| *known == name).unwrap_or("another backend")
}
