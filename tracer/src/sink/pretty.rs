//! For people: one block for each packet, given out when the packet is done.

use super::why::{write_nothing, write_told, write_why};
use super::{BUFFER_BYTES, Namespace, Namespaces, Row, Sink, mac};
use crate::latency::{Span, Spent};
use crate::netfilter::{Hook, Verdict};
use crate::packet::change::Look;
use crate::packet::{Fragment, Headers, PacketView, Sender, Tcp, headers, protocol_name, quoted, tcp};
use crate::path::ending::{Ending, Freed};
use crate::path::group::Logged;
use crate::path::{Action, Belongs, Certainty, Path, Step};
use crate::text::{Escaped, escape, lossy};
use crate::why::{Told, Why};
use anstyle::{AnsiColor, Style};
use jiff::{Timestamp, tz::TimeZone};
use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;

/// Steps of unfinished packets that are kept; beyond that the oldest packet is shown as far as it went.
const PENDING_STEPS: usize = 100_000;
/// The widest that a column is padded to.
const COLUMN_WIDTH: usize = 40;
/// Hooks of IP fit into so many; where there are others, the column is wider.
const HOOK_WIDTH: usize = 11;

/// Writes a block for each packet.
#[derive(Debug)]
pub struct Pretty<W: Write> {
    out: BufWriter<W>,
    styles: Styles,
    zone: TimeZone,
    pending: BTreeMap<u64, Block>,
    pending_steps: usize,
    most_pending_steps: usize,
    /// Whether a second line explains link layer and options.
    explain: bool,
    namespaces: Namespaces,
}

impl<W: Write> Pretty<W> {
    /// Writes to `writer`, coloured if `colour`. Times are local.
    pub fn new(writer: W, colour: bool) -> Self {
        Self {
            out: BufWriter::with_capacity(BUFFER_BYTES, writer),
            styles: if colour { Styles::coloured() } else { Styles::default() },
            zone: TimeZone::system(),
            pending: BTreeMap::new(),
            pending_steps: 0,
            most_pending_steps: PENDING_STEPS,
            explain: false,
            namespaces: Namespaces::default(),
        }
    }

    #[cfg(test)]
    pub(crate) fn in_utc(mut self) -> Self {
        self.zone = TimeZone::UTC;
        self
    }

    #[cfg(test)]
    pub(super) fn with_most_pending_steps(mut self, steps: usize) -> Self {
        self.most_pending_steps = steps;
        self
    }

    fn take(&mut self, packet: u64) -> Option<Block> {
        let block = self.pending.remove(&packet)?;
        self.pending_steps -= block.rows.len();
        Some(block)
    }

    fn give_out_oldest(&mut self) -> io::Result<()> {
        let Some(&packet) = self.pending.keys().next() else { return Ok(()) };
        let Some(block) = self.take(packet) else { return Ok(()) };
        block.write(&mut self.out, &self.styles)?;
        writeln!(self.out, "  = {}not finished{:#}", self.styles.doubt, self.styles.doubt)
    }

    fn step(&mut self, step: &Step<'_>) -> io::Result<()> {
        let Self { zone, namespaces, explain, .. } = self;
        let block =
            self.pending.entry(step.packet).or_insert_with(|| Block::begin(step, zone, namespaces, *explain));
        let (shown, look) = (Shown::of(&step.view), Look::at(&step.view));
        let told = block.look.told(&look);
        let change = match told.is_empty() {
            false => Some(format!("{shown} ({told})")),
            true => (block.shown != shown).then(|| shown.to_string()),
        };
        (block.shown, block.look) = (shown, look);
        block.rows.push(StepRow {
            hook: step.hook,
            place: escape(step.name).into_owned(),
            action: step
                .action
                .as_ref()
                .map_or(String::new(), |action| escape(&action.to_string()).into_owned()),
            style: step.action.as_ref().map_or(Style::new(), |action| self.styles.of_action(action)),
            text: step.rule.text.cloned(),
            owner: step.rule.owner.map(|owner| escape(owner).into_owned()),
            doubt: step.view_doubt.map(|doubt| escape(doubt).into_owned()),
            logged: None,
            change,
        });
        self.pending_steps += 1;
        while self.pending_steps > self.most_pending_steps {
            self.give_out_oldest()?;
        }
        Ok(())
    }

    fn logged(&mut self, packet: u64, logged: &Logged) {
        if let Some(row) = self.pending.get_mut(&packet).and_then(|block| block.rows.last_mut()) {
            row.logged = Some(escape(logged.prefix.trim_end()).into_owned());
        }
    }

    fn path(&mut self, path: &Path) -> io::Result<()> {
        match self.take(path.packet) {
            Some(block) => block.write(&mut self.out, &self.styles)?,
            None => self.write_bare(path)?,
        }
        if let Some(note) = &path.note {
            writeln!(self.out, "  {}", Escaped(note))?;
        }
        path.waited.iter().try_for_each(|waited| writeln!(self.out, "  {waited}"))?;
        write_belongs(&mut self.out, path)?;
        write_outcome(&mut self.out, path, &self.styles)
    }

    /// A packet of which no step is at hand: none could be read, or they have been shown before.
    fn write_bare(&mut self, path: &Path) -> io::Result<()> {
        let Path { packet, family, netns, .. } = path;
        let header = match &path.sighting {
            Some(sighting) => {
                let (time_ns, view) = (Some(sighting.time_ns), sighting.packet.view());
                header(*packet, time_ns, &view, Place::of(*netns, &self.namespaces), &self.zone)
            }
            None => format!("{family} {}packet {packet}", Place::of(*netns, &self.namespaces)),
        };
        writeln!(self.out, "{0}{header}{0:#}", self.styles.header)?;
        path.steps.iter().try_for_each(|step| writeln!(self.out, "  {}", Escaped(step)))
    }

    fn freed(&mut self, packet: u64, time_ns: u64, freed: &Freed) -> io::Result<()> {
        let (time, note) = (clock_time(time_ns, &self.zone), self.styles.note);
        writeln!(
            self.out,
            "{note}{time} packet {packet}, shown before: {}{note:#}",
            Escaped(&freed.to_string())
        )
    }

    fn told(&mut self, packet: u64, name: &str, told: &Told) -> io::Result<()> {
        match self.pending.get_mut(&packet) {
            Some(block) => write_told(&mut block.told, name, told),
            None => Ok(()),
        }
    }

    fn sender(&mut self, packet: u64, sender: &Sender) {
        if let Some(block) = self.pending.get_mut(&packet) {
            block.sender = Some(sender.to_string());
        }
    }

    fn spent(&mut self, packet: u64, spent: &Spent) {
        if let Some(block) = self.pending.get_mut(&packet) {
            block.took_ns = block.took_ns.saturating_add(spent.ns);
            if !block.took.is_empty() {
                block.took.push_str(", ");
            }
            let _ = write!(block.took, "{} {} {}", spent.hook.name(), spent.table, Span(spent.ns));
        }
    }

    fn why(&mut self, why: &Why) -> io::Result<()> {
        if let Some((at, packet)) = why.at.as_ref().zip(why.packet()) {
            let time = at.time_ns.map_or(String::new(), |time_ns| clock_time(time_ns, &self.zone) + " ");
            let (shown, header) = (packet_line(&packet.view()), self.styles.header);
            writeln!(self.out, "{header}{time}{} {shown}{header:#}", why.path.family)?;
        }
        write_why(&mut self.out, &self.styles, why)
    }
}

impl<W: Write> Sink for Pretty<W> {
    fn row(&mut self, row: Row<'_>) -> io::Result<()> {
        match row {
            // Of a line of a log there is nothing else to look at: all that it says is explained.
            Row::Start(start) => self.explain = start.backend == "log",
            Row::Namespace(inode, known) => self.namespaces.set(inode, known),
            Row::LogStyle(_) => {}
            Row::Step(step) => return self.step(step),
            Row::Logged(packet, logged) => self.logged(packet, logged),
            Row::Told(packet, name, told) => return self.told(packet, name, told),
            Row::Sender(packet, sender) => self.sender(packet, sender),
            Row::Spent(packet, spent) => self.spent(packet, spent),
            Row::Path(path) => return self.path(path),
            Row::Freed(packet, time_ns, freed) => return self.freed(packet, time_ns, freed),
            Row::Why(why) => return self.why(why),
            Row::NoDrop(packets) => return write_nothing(&mut self.out, packets),
            Row::End(_) => {
                while !self.pending.is_empty() {
                    self.give_out_oldest()?;
                }
                return self.flush();
            }
        }
        Ok(())
    }

    fn enough(&self) -> bool {
        false
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A packet that is not done yet.
#[derive(Debug)]
struct Block {
    header: String,
    explained: Option<String>,
    shown: Shown,
    look: Look,
    rows: Vec<StepRow>,
    /// What the packet says to rules that it passed, as it is written.
    told: Vec<u8>,
    /// Who sends it.
    sender: Option<String>,
    /// How long it was in each table, and in all of them.
    took: String,
    took_ns: u64,
}

#[derive(Debug)]
struct StepRow {
    hook: Option<Hook>,
    place: String,
    action: String,
    style: Style,
    text: Option<Arc<str>>,
    /// Who made the rule.
    owner: Option<String>,
    doubt: Option<String>,
    /// How a line begins that the rule wrote to the log.
    logged: Option<String>,
    /// What the packet has become, where it differs from the step before.
    change: Option<String>,
}

impl Block {
    fn begin(step: &Step<'_>, zone: &TimeZone, namespaces: &Namespaces, explain: bool) -> Self {
        let Step { packet, view, .. } = step;
        let shown = Shown::of(view);
        let header = header(*packet, step.time_ns, view, Place::of(step.netns, namespaces), zone);
        let explained = explained(view).filter(|_| explain);
        Self {
            header,
            explained,
            shown,
            look: Look::at(view),
            rows: Vec::new(),
            told: Vec::new(),
            sender: None,
            took: String::new(),
            took_ns: 0,
        }
    }

    fn write(&self, out: &mut impl Write, styles: &Styles) -> io::Result<()> {
        let column = |length: fn(&StepRow) -> usize| {
            self.rows.iter().map(length).filter(|&length| length <= COLUMN_WIDTH).max().unwrap_or(0)
        };
        let hook = |row: &StepRow| row.hook.map_or(0, |hook| hook.full_name().len());
        let hook_width = self.rows.iter().map(hook).max().unwrap_or(0).max(HOOK_WIDTH);
        let place_width = column(|row| row.place.chars().count());
        let action_width = column(|row| row.action.chars().count());
        writeln!(out, "{}{}{:#}", styles.header, self.header, styles.header)?;
        if let Some(explained) = &self.explained {
            writeln!(out, "  {}{explained}{:#}", styles.note, styles.note)?;
        }
        if let Some(sender) = &self.sender {
            writeln!(out, "  {}sent by {sender}{:#}", styles.note, styles.note)?;
        }
        for row in &self.rows {
            row.write(out, styles, [hook_width, place_width, action_width])?;
        }
        out.write_all(&self.told)?;
        if !self.took.is_empty() {
            let note = styles.note;
            writeln!(out, "  {note}took {}: {}{note:#}", Span(self.took_ns), Escaped(&self.took))?;
        }
        Ok(())
    }
}

impl StepRow {
    fn write(
        &self,
        out: &mut impl Write,
        styles: &Styles,
        [hook, place, action]: [usize; 3],
    ) -> io::Result<()> {
        if let Some(change) = &self.change {
            writeln!(out, "  {}now {change}{:#}", styles.note, styles.note)?;
        }
        // Nothing follows: no blanks at the end of the line.
        let (place, gap) = match (&self.text, self.action.is_empty()) {
            (None, true) => (0, ""),
            _ => (place, "  "),
        };
        let name = self.hook.map_or("", Hook::full_name);
        write!(out, "  {name:<hook$}  {:<place$}{gap}", self.place)?;
        match &self.text {
            Some(text) => {
                write!(out, "{}{:<action$}{:#}  {}", self.style, self.action, self.style, Escaped(text))?;
            }
            None => write!(out, "{}{}{:#}", self.style, self.action, self.style)?,
        }
        if let Some(owner) = &self.owner {
            write!(out, "  {}[{owner}]{:#}", styles.note, styles.note)?;
        }
        if let Some(logged) = &self.logged {
            write!(out, "  {}logged {logged:?}{:#}", styles.note, styles.note)?;
        }
        if let Some(doubt) = &self.doubt {
            write!(out, "  {}({doubt}){:#}", styles.doubt, styles.doubt)?;
        }
        writeln!(out)
    }
}

/// A block's first line.
fn header(
    packet: u64,
    time_ns: Option<u64>,
    view: &PacketView<'_>,
    netns: Place<'_>,
    zone: &TimeZone,
) -> String {
    let time = time_ns.map_or(String::new(), |time_ns| clock_time(time_ns, zone) + " ");
    let user = view.owner.map_or(String::new(), |owner| format!("uid {} ", owner.uid));
    format!("{time}{} {} {user}{netns}packet {packet}", view.family, Shown::of(view))
}

/// What a block's first line says of a packet.
pub(crate) fn packet_line(view: &PacketView<'_>) -> String {
    Shown::of(view).to_string()
}

/// How a packet ended, in one line without colour.
pub(crate) fn outcome(path: &Path) -> String {
    let mut line = Vec::new();
    // Memory takes all that is written.
    let _ = write_outcome(&mut line, path, &Styles::default());
    String::from_utf8_lossy(&line).trim().to_owned()
}

fn write_belongs(out: &mut impl Write, path: &Path) -> io::Result<()> {
    let Belongs { connection, continues, known } = &path.belongs;
    if let Some(known) = known {
        writeln!(out, "  conntrack {known}")?;
    }
    match (connection, continues) {
        (None, None) => Ok(()),
        (Some(connection), None) => writeln!(out, "  connection {connection}"),
        (None, Some(packet)) => writeln!(out, "  continues packet {packet}"),
        (Some(connection), Some(packet)) => {
            writeln!(out, "  connection {connection}, continues packet {packet}")
        }
    }
}

fn write_outcome(out: &mut impl Write, path: &Path, styles: &Styles) -> io::Result<()> {
    match path.verdict {
        Some(verdict) => write!(out, "  = {0}{verdict}{0:#}", styles.of_verdict(verdict))?,
        None => write!(out, "  = verdict unknown")?,
    }
    // Where it was dropped and no table did it, nothing is known of what it met before.
    let dropper = path.ending.as_ref().and_then(Ending::dropper);
    match (&path.ending, dropper.filter(|_| path.verdict == Some(Verdict::Drop))) {
        (Some(Ending::Dropped | Ending::Stolen), _) => {
            path.steps.last().iter().try_for_each(|step| write!(out, " by {}", Escaped(step)))?;
        }
        (_, Some(dropper)) => write!(out, " by {}", Escaped(&dropper.to_string()))?,
        (Some(ending), None) => write!(out, "{}", Escaped(&ending.to_string()))?,
        (None, None) => {}
    }
    if let Some(outcome) = &path.outcome {
        write!(out, ", {}", Escaped(outcome))?;
    }
    match (path.certainty, path.why.as_slice()) {
        (Certainty::Complete, _) => writeln!(out, ", complete"),
        (certainty, []) => writeln!(out, ", {0}{certainty}{0:#}", styles.doubt),
        (certainty, why) => {
            writeln!(out, ", {0}{certainty}: {1}{0:#}", styles.doubt, Escaped(&why.join("; ")))
        }
    }
}

/// Time of day, to the microsecond, as tcpdump shows it.
fn clock_time(time_ns: u64, zone: &TimeZone) -> String {
    let timestamp = Timestamp::from_nanosecond(i128::from(time_ns)).unwrap_or_default();
    timestamp.to_zoned(zone.clone()).strftime("%H:%M:%S%.6f").to_string()
}

/// `netns 4026531840 (blue) `, or nothing where the namespace is not known.
struct Place<'a>(Option<(u32, Option<&'a Namespace>)>);

impl<'a> Place<'a> {
    fn of(inode: Option<u32>, namespaces: &'a Namespaces) -> Self {
        Self(inode.map(|inode| (inode, namespaces.get(inode))))
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((inode, known)) = self.0 else { return Ok(()) };
        match known.map(ToString::to_string).filter(|known| !known.is_empty()) {
            Some(known) => write!(f, "netns {inode} ({}) ", Escaped(&known)),
            None => write!(f, "netns {inode} "),
        }
    }
}

/// What is shown of a packet, and shown again when it changes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shown {
    indev: Option<Vec<u8>>,
    outdev: Option<Vec<u8>>,
    headers: Headers,
    /// What kind of TCP segment, ICMP message or fragment it is.
    detail: String,
    len: u32,
    mark: u32,
}

impl Shown {
    fn of(view: &PacketView<'_>) -> Self {
        // Not shown here, and it changes at every router.
        let headers = Headers { ttl: None, ..headers(view) };
        Self {
            detail: detail(view, &headers),
            indev: view.indev.map(<[u8]>::to_vec),
            outdev: view.outdev.map(<[u8]>::to_vec),
            headers,
            len: view.len,
            mark: view.mark,
        }
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (word, device) in [("in", &self.indev), ("out", &self.outdev)] {
            if let Some(device) = device {
                write!(f, "{word} {} ", Escaped(&lossy(device)))?;
            }
        }
        if let (Some(src), Some(dst)) = (self.headers.src, self.headers.dst) {
            write!(f, "{}", End(src, self.headers.sport))?;
            write!(f, " > {} ", End(dst, self.headers.dport))?;
        }
        if let Some(protocol) = self.headers.protocol.map(protocol_name) {
            write!(f, "{protocol} ")?;
        }
        if !self.detail.is_empty() {
            write!(f, "{} ", self.detail)?;
        }
        write!(f, "length {}", self.headers.length.unwrap_or(self.len))?;
        if self.mark != 0 {
            write!(f, " mark {:#x}", self.mark)?;
        }
        Ok(())
    }
}

/// `syn,ack`, `type 3 code 10 about 10.9.0.2:60142 > 10.9.0.1:25 tcp`, `fragment 1480+`, or nothing.
fn detail(view: &PacketView<'_>, headers: &Headers) -> String {
    let mut words = Vec::new();
    if let Some(Fragment { offset, more }) = headers.fragment {
        words.push(format!("fragment {offset}{}", if more { "+" } else { "" }));
    }
    if let Some(flags) = tcp(view).map(|tcp| tcp.flags().join(",")).filter(|flags| !flags.is_empty()) {
        words.push(flags);
    }
    match headers.arp {
        Some(1) => words.push("request".to_owned()),
        Some(2) => words.push("reply".to_owned()),
        Some(operation) => words.push(format!("operation {operation}")),
        None => {}
    }
    match (headers.echo, headers.icmp) {
        (Some([id, sequence]), Some([kind, _])) => {
            let word = if matches!(kind, 8 | 128) { "echo" } else { "reply" };
            words.push(format!("{word} id {id} seq {sequence}"));
        }
        (_, Some([kind, code])) => words.push(format!("type {kind} code {code}")),
        (_, None) => {}
    }
    if let Some(inner) = quoted(view).map(|inner| self::headers(&inner))
        && let (Some(src), Some(dst)) = (inner.src, inner.dst)
    {
        let protocol = inner.protocol.map_or(String::new(), |number| format!(" {}", protocol_name(number)));
        words.push(format!("about {} > {}{protocol}", End(src, inner.sport), End(dst, inner.dport)));
    }
    words.join(" ")
}

/// `12:dd:bf:71:4f:e9 > 8a:3a:5b:48:21:77 type 0x0800, options mss 1460,nop`, or nothing.
fn explained(view: &PacketView<'_>) -> Option<String> {
    let mut parts = Vec::new();
    if let Some((destination, source, number)) = view.link.ethernet() {
        parts.push(format!("{} > {} type {number:#06x}", mac(source), mac(destination)));
    }
    let options: Vec<String> =
        tcp(view).iter().flat_map(Tcp::options).map(|option| option.to_string()).collect();
    if !options.is_empty() {
        parts.push(format!("options {}", options.join(",")));
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// An address with its port: `192.0.2.1:80`, `[2001:db8::1]:80`, `2001:db8::1`.
struct End(std::net::IpAddr, Option<u16>);

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Some(port) => std::net::SocketAddr::new(self.0, port).fmt(f),
            None => self.0.fmt(f),
        }
    }
}

/// Colours by meaning; all plain where there is to be no colour.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Styles {
    header: Style,
    pub(super) note: Style,
    accept: Style,
    pub(super) drop: Style,
    other: Style,
    pub(super) doubt: Style,
}

impl Styles {
    fn coloured() -> Self {
        Self {
            header: Style::new().bold(),
            note: Style::new().dimmed(),
            accept: AnsiColor::Green.on_default(),
            drop: AnsiColor::Red.on_default().bold(),
            other: AnsiColor::Cyan.on_default(),
            doubt: AnsiColor::Yellow.on_default(),
        }
    }

    fn of_verdict(&self, verdict: Verdict) -> Style {
        match verdict {
            Verdict::Accept => self.accept,
            Verdict::Drop => self.drop,
            _ => self.other,
        }
    }

    fn of_action(&self, action: &Action<'_>) -> Style {
        match action {
            Action::Verdict(verdict) => self.of_verdict(*verdict),
            _ => Style::new(),
        }
    }
}
