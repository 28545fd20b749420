//! JSON Lines. The wire form is apart from the model: its field names and their order are stable.

use super::buffer::Buffer;
use super::why_json::{NothingRow, ToldRow, WhyRow};
use super::{Namespace, Namespaces, Row, Sink, Start, Totals};
use crate::container::{Container, Runtime};
use crate::latency::Spent;
use crate::netfilter::Verdict;
use crate::packet::Sender;
use crate::packet::change::{Change, Looks, device};
use crate::packet::recent::{Content, Devices, Recent};
use crate::packet::{Fragment, PacketView, Tcp, headers, protocol_name, quoted, tcp};
use crate::path::connection::{By, Connection, Tuple};
use crate::path::ending::{Ending, Freed, HookFunction, Waited};
use crate::path::group::Logged;
use crate::path::{Action, Path, Sighting, Step};
use crate::text;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::ser::Formatter;
use std::borrow::Cow;
use std::io::{self, Write};
use std::net::IpAddr;
use std::rc::Rc;

/// Writes JSON Lines.
///
/// Rows about steps and packets are many and are put together by hand, from texts made a moment ago where packets are
/// alike; serde makes those texts, the other rows, and every string that is not plain.
#[derive(Debug)]
pub struct Json<W: Write> {
    out: Buffer<W>,
    backend: Option<&'static str>,
    clock: Clock,
    devices: Recent<Devices>,
    contents: Recent<Content>,
    /// How the packets that are on their way looked at their last step.
    looks: Looks,
    namespaces: Namespaces,
}

impl<W: Write> Json<W> {
    /// Writes to `writer`.
    pub fn new(writer: W) -> Self {
        Self {
            out: Buffer::new(writer),
            backend: None,
            clock: Clock::default(),
            devices: Recent::default(),
            contents: Recent::default(),
            looks: Looks::default(),
            namespaces: Namespaces::default(),
        }
    }

    fn write_row(&mut self, row: &impl Serialize) -> io::Result<()> {
        serialize(self.out.row(), row);
        self.out.end_row()
    }

    fn begin(&mut self, start: &Start) -> io::Result<()> {
        self.backend = Some(start.backend);
        self.write_row(&StartRow::from(start))
    }

    fn namespace(&mut self, inode: u32, known: &Namespace) -> io::Result<()> {
        self.namespaces.set(inode, known);
        self.write_row(&NamespaceRow::of(inode, known))
    }

    fn step(&mut self, step: &Step<'_>) -> io::Result<()> {
        let Step { rule, view, .. } = step;
        let mut row = Object::begin(self.out.row(), "step", step.packet);
        if let Some(time_ns) = step.time_ns {
            self.clock.write(row.field("time"), time_ns);
        }
        if let Some(backend) = self.backend {
            row.text("backend", backend);
        }
        row.text("family", rule.family.name());
        row.text("engine", rule.engine.name());
        if let Some(hook) = step.hook {
            row.text("hook", hook.name());
        }
        row.text("table", rule.table);
        row.text("chain", rule.chain);
        row.text("kind", rule.kind.name());
        if let Some(number) = rule.number {
            row.number("rule", number.into());
        }
        if let Some(handle) = rule.handle {
            row.number("handle", handle);
        }
        if let Some(text) = rule.text {
            row.text("text", text);
        }
        if let Some(nft) = rule.nft {
            row.text("nft", nft);
        }
        if let Some(owner) = rule.owner {
            row.text("owner", owner);
        }
        if let Some(done) = &step.action {
            row.text("verdict", &action(done));
        }
        row.fields(self.devices.text(view, |text| members(text, &DeviceFields::of(view))));
        row.fields(self.contents.text(view, |text| members(text, &HeaderFields::of(view))));
        if let Some(tracked) = step.tracked {
            row.text("ct", tracked.state);
            if let Some(is_reply) = tracked.is_reply {
                row.text("ct_dir", if is_reply { "reply" } else { "original" });
            }
        }
        write_changes(&mut row, &self.looks.at(step.packet, view));
        if let Some(netns) = step.netns {
            row.netns(netns, &self.namespaces);
        }
        if let Some(doubt) = step.view_doubt {
            row.text("doubt", doubt);
        }
        row.end();
        self.out.end_row()
    }

    fn logged(&mut self, packet: u64, logged: &Logged) -> io::Result<()> {
        let mut row = Object::begin(self.out.row(), "log", packet);
        row.text("prefix", &logged.prefix);
        row.text("line", &logged.line);
        row.end();
        self.out.end_row()
    }

    fn path(&mut self, path: &Path) -> io::Result<()> {
        self.looks.forget(path.packet);
        let mut row = Object::begin(self.out.row(), "packet", path.packet);
        row.texts("path", &path.steps);
        if let Some(Sighting { time_ns, packet }) = path.sighting.as_deref() {
            let view = &packet.view();
            self.clock.write(row.field("time"), *time_ns);
            row.fields(self.devices.text(view, |text| members(text, &DeviceFields::of(view))));
            row.fields(self.contents.text(view, |text| members(text, &HeaderFields::of(view))));
        }
        if let Some(verdict) = path.verdict {
            row.text("verdict", &verdict_text(verdict));
        }
        row.text("certainty", &path.certainty.to_string());
        if !path.why.is_empty() {
            row.text("why", &path.why.join("; "));
        }
        if let Some(outcome) = &path.outcome {
            row.text("outcome", outcome);
        }
        if let Some(note) = &path.note {
            row.text("note", note);
        }
        if let Some(ending) = &path.ending {
            write_ending(row.field("ending"), ending, path);
        }
        if !path.waited.is_empty() {
            let waited: Vec<WaitedRow> = path.waited.iter().map(WaitedRow::of).collect();
            serialize(row.field("queues"), &waited);
        }
        row.text("family", path.family.name());
        row.texts("generation", &path.generation);
        if let Some(netns) = path.netns {
            row.netns(netns, &self.namespaces);
        }
        if let Some(connection) = path.belongs.connection {
            row.number("connection", connection);
        }
        if let Some(packet) = path.belongs.continues {
            row.number("continues", packet);
        }
        if let Some(known) = &path.belongs.known {
            serialize(row.field("conntrack"), &ConnectionRow::of(known));
        }
        row.end();
        self.out.end_row()
    }

    fn freed(&mut self, packet: u64, time_ns: u64, freed: &Freed) -> io::Result<()> {
        let mut row = Object::begin(self.out.row(), "freed", packet);
        self.clock.write(row.field("time"), time_ns);
        row.text("symbol", &freed.symbol);
        if let Some(reason) = &freed.reason {
            row.text("reason", reason);
        }
        if let Some(netns) = freed.netns {
            row.number("netns", netns.into());
        }
        row.end();
        self.out.end_row()
    }

    fn sender(&mut self, packet: u64, sender: &Sender) -> io::Result<()> {
        let mut row = Object::begin(self.out.row(), "sender", packet);
        row.number("pid", sender.pid.into());
        row.text("process", &sender.name);
        row.number("uid", sender.uid.into());
        if let Some(cgroup) = &sender.cgroup {
            row.text("cgroup", cgroup);
        }
        row.end();
        self.out.end_row()
    }

    fn spent(&mut self, packet: u64, spent: &Spent) -> io::Result<()> {
        let mut row = Object::begin(self.out.row(), "spent", packet);
        row.text("engine", spent.engine.name());
        row.text("family", spent.family.name());
        row.text("hook", spent.hook.name());
        row.text("table", &spent.table);
        row.text("chain", &spent.chain);
        row.number("ns", spent.ns);
        if !spent.steps_ns.is_empty() {
            let steps: Vec<String> = spent.steps_ns.iter().map(u64::to_string).collect();
            row.field("steps_ns").extend_from_slice(format!("[{}]", steps.join(",")).as_bytes());
        }
        row.end();
        self.out.end_row()
    }
}

impl<W: Write> Sink for Json<W> {
    fn row(&mut self, row: Row<'_>) -> io::Result<()> {
        match row {
            Row::Start(start) => self.begin(start),
            Row::Namespace(inode, known) => self.namespace(inode, known),
            Row::LogStyle(_) => Ok(()),
            Row::Step(step) => self.step(step),
            Row::Logged(packet, logged) => self.logged(packet, logged),
            Row::Told(packet, name, told) => self.write_row(&ToldRow::of(packet, name, told)),
            Row::Sender(packet, sender) => self.sender(packet, sender),
            Row::Spent(packet, spent) => self.spent(packet, spent),
            Row::Path(path) => self.path(path),
            Row::Freed(packet, time_ns, freed) => self.freed(packet, time_ns, freed),
            Row::Why(why) => {
                serialize(self.out.row(), &WhyRow::of(why, &self.namespaces));
                self.out.end_row()
            }
            Row::NoDrop(packets) => self.write_row(&NothingRow { fate: "none", packets }),
            Row::End(totals) => {
                self.write_row(&EndRow::from(totals))?;
                self.flush()
            }
        }
    }

    fn enough(&self) -> bool {
        false
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// An object being written.
struct Object<'a>(&'a mut Vec<u8>);

impl<'a> Object<'a> {
    fn begin(out: &'a mut Vec<u8>, kind: &str, packet: u64) -> Self {
        out.extend_from_slice(b"{\"type\":\"");
        out.extend_from_slice(kind.as_bytes());
        out.push(b'"');
        let mut row = Self(out);
        row.number("packet", packet);
        row
    }

    /// Where the value of a field goes.
    #[inline(always)]
    fn field(&mut self, name: &str) -> &mut Vec<u8> {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
        self.0
    }

    #[inline(always)]
    fn number(&mut self, name: &str, value: u64) {
        push_number(self.field(name), value);
    }

    #[inline(always)]
    fn text(&mut self, name: &str, value: &str) {
        push_text(self.field(name), value);
    }

    fn netns(&mut self, inode: u32, namespaces: &Namespaces) {
        self.number("netns", inode.into());
        if let Some(name) = namespaces.name(inode) {
            self.text("netns_name", name);
        }
    }

    fn texts(&mut self, name: &str, values: &[Rc<str>]) {
        let out = self.field(name);
        out.push(b'[');
        for (index, value) in values.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            push_text(out, value);
        }
        out.push(b']');
    }

    /// Fields that are written already, each with its comma.
    fn fields(&mut self, text: &[u8]) {
        self.0.extend_from_slice(text);
    }

    fn end(self) {
        self.0.push(b'}');
    }
}

fn push_number(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    if is_plain(text.as_bytes()) {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        serialize(out, &text);
    }
}

/// Whether JSON and terminals take it as it is. Looks at all of it, which compilers turn into wide instructions.
fn is_plain(text: &[u8]) -> bool {
    text.iter()
        .fold(true, |plain, &byte| plain & (b' '..=b'~').contains(&byte) & (byte != b'"') & (byte != b'\\'))
}

fn action<'a>(action: &Action<'a>) -> Cow<'a, str> {
    match action {
        Action::Verdict(verdict) => verdict_text(*verdict),
        Action::Continue => "continue".into(),
        other => other.to_string().into(),
    }
}

/// The usual ones without making a string.
fn verdict_text(verdict: Verdict) -> Cow<'static, str> {
    match verdict {
        Verdict::Accept => "accept".into(),
        Verdict::Drop => "drop".into(),
        other => other.to_string().into(),
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "start")]
struct StartRow<'a> {
    version: &'static str,
    filter: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    choice: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    netns: &'a str,
    backend: &'static str,
    footprint: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    kernel: &'a str,
}

impl<'a> From<&'a Start> for StartRow<'a> {
    fn from(Start { filter, choice, netns, backend, footprint, kernel, .. }: &'a Start) -> Self {
        Self { version: env!("CARGO_PKG_VERSION"), filter, choice, netns, backend, footprint, kernel }
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "netns")]
struct NamespaceRow<'a> {
    netns: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<ContainerFields<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<PodFields<'a>>,
}

#[derive(Serialize)]
struct ContainerFields<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime: Option<&'static str>,
}

#[derive(Serialize)]
struct PodFields<'a> {
    uid: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
}

impl<'a> NamespaceRow<'a> {
    fn of(netns: u32, known: &'a Namespace) -> Self {
        let container = known.container.as_ref();
        Self {
            netns,
            name: known.name.as_deref(),
            container: container.and_then(|Container { group, names }| {
                let runtime = group.runtime.map(Runtime::name);
                Some(ContainerFields { id: group.id.as_deref()?, name: names.container.as_deref(), runtime })
            }),
            pod: container.and_then(|Container { group, names }| {
                let namespace = names.namespace.as_deref();
                Some(PodFields { uid: group.pod.as_deref()?, name: names.pod.as_deref(), namespace })
            }),
        }
    }
}

/// The fields of a step that are of its devices and its link layer.
#[derive(Serialize)]
pub(super) struct DeviceFields<'a> {
    #[serde(rename = "in", skip_serializing_if = "Option::is_none")]
    indev: Option<Cow<'a, str>>,
    #[serde(rename = "out", skip_serializing_if = "Option::is_none")]
    outdev: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    physin: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    physout: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mac_src: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mac_dst: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ethertype: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vlan: Option<u16>,
}

impl<'a> DeviceFields<'a> {
    pub(super) fn of(view: &PacketView<'a>) -> Self {
        let ethernet = view.link.ethernet();
        Self {
            indev: view.indev.map(text::lossy),
            outdev: view.outdev.map(text::lossy),
            physin: view.link.physin.map(text::lossy),
            physout: view.link.physout.map(text::lossy),
            mac_src: ethernet.map(|(_, source, _)| super::mac(source)),
            mac_dst: ethernet.map(|(destination, ..)| super::mac(destination)),
            ethertype: ethernet.map(|(.., number)| format!("{number:#06x}")),
            vlan: view.link.vlan.map(|tag| tag.tci & 0x0fff),
        }
    }
}

/// The fields of a step that are of its packet.
#[derive(Serialize)]
pub(super) struct HeaderFields {
    #[serde(flatten)]
    network: NetworkFields,
    /// The packet that an ICMP error is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    inner: Option<NetworkFields>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gid: Option<u32>,
    mark: u32,
}

impl HeaderFields {
    pub(super) fn of(view: &PacketView<'_>) -> Self {
        Self {
            network: NetworkFields::of(view),
            inner: quoted(view).map(|inner| NetworkFields::of(&inner)),
            uid: view.owner.map(|owner| owner.uid),
            gid: view.owner.map(|owner| owner.gid),
            mark: view.mark,
        }
    }
}

/// What conntrack knows of a connection.
#[derive(Serialize)]
struct ConnectionRow {
    proto: Cow<'static, str>,
    original: TupleRow,
    reply: TupleRow,
    #[serde(skip_serializing_if = "Option::is_none")]
    zone: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mark: Option<u32>,
}

#[derive(Serialize)]
struct TupleRow {
    src: IpAddr,
    dst: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    sport: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dport: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u16>,
}

impl ConnectionRow {
    fn of(known: &Connection) -> Self {
        let tuple = |tuple: &Tuple| {
            let (sport, dport, id) = match tuple.by {
                By::Ports(sport, dport) => (Some(sport), Some(dport), None),
                By::Id(id) => (None, None, Some(id)),
            };
            TupleRow { src: tuple.src, dst: tuple.dst, sport, dport, id }
        };
        Self {
            proto: protocol_name(known.protocol),
            original: tuple(&known.original),
            reply: tuple(&known.reply),
            zone: known.zone,
            mark: known.mark,
        }
    }
}

/// The fields of a packet's headers.
#[derive(Serialize)]
struct NetworkFields {
    #[serde(skip_serializing_if = "Option::is_none")]
    src: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dst: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proto: Option<Cow<'static, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sport: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dport: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    length: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fragment: Option<FragmentFields>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flags: Option<Vec<&'static str>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    options: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    icmp_type: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    icmp_code: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    icmp_id: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    icmp_seq: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arp_op: Option<u16>,
}

#[derive(Serialize)]
struct FragmentFields {
    offset: u16,
    more: bool,
}

impl NetworkFields {
    fn of(view: &PacketView<'_>) -> Self {
        let headers = headers(view);
        let tcp = tcp(view);
        Self {
            src: headers.src,
            dst: headers.dst,
            proto: headers.protocol.map(protocol_name),
            sport: headers.sport,
            dport: headers.dport,
            length: headers.length,
            ttl: headers.ttl,
            id: headers.id,
            fragment: headers.fragment.map(|Fragment { offset, more }| FragmentFields { offset, more }),
            flags: tcp.as_ref().map(Tcp::flags),
            options: tcp.iter().flat_map(Tcp::options).map(|option| option.to_string()).collect(),
            icmp_type: headers.icmp.map(|[kind, _]| kind),
            icmp_code: headers.icmp.map(|[_, code]| code),
            icmp_id: headers.echo.map(|[id, _]| id),
            icmp_seq: headers.echo.map(|[_, sequence]| sequence),
            arp_op: headers.arp,
        }
    }
}

/// What has changed since the packet's step before: an object with what each field was, and what it is.
fn write_changes(row: &mut Object<'_>, changes: &[Change]) {
    if changes.is_empty() {
        return;
    }
    let out = row.field("changed");
    for (index, change) in changes.iter().enumerate() {
        out.push(if index == 0 { b'{' } else { b',' });
        match change {
            Change::Address(name, before, after) => push_change(out, name, (before, after)),
            Change::Port(name, before, after) => push_change(out, name, (before, after)),
            Change::Mark(before, after) => push_change(out, "mark", (before, after)),
            Change::Dscp(before, after) => push_change(out, "dscp", (before, after)),
            Change::Ttl(before, after) => push_change(out, "ttl", (before, after)),
            Change::Out(before, after) => push_change(out, "out", (device(before), device(after))),
        }
    }
    out.push(b'}');
}

fn push_change<T: Serialize>(out: &mut Vec<u8>, name: &str, values: (T, T)) {
    push_text(out, name);
    out.push(b':');
    serialize(out, &values);
}

/// How a packet ended, as an object. The usual ones are written by hand.
fn write_ending(out: &mut Vec<u8>, ending: &Ending, path: &Path) {
    match ending {
        Ending::Accepted(hook) => {
            out.extend_from_slice(b"{\"kind\":\"accepted\",\"hook\":\"");
            out.extend_from_slice(hook.name().as_bytes());
            out.extend_from_slice(b"\"}");
        }
        ending => serialize(out, &EndingFields::of(ending, path)),
    }
}

/// How a packet ended.
#[derive(Default, Serialize)]
pub(super) struct EndingFields<'a> {
    kind: &'static str,
    /// The step that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hook: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<u16>,
    /// Who did it, where it is no rule: `function`, `user`.
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<&'static str>,
    /// The hooks that come into question.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hooks: Vec<&'static str>,
    /// The functions that come into question.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    functions: Vec<FunctionFields<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    symbol: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<u32>,
}

#[derive(Serialize)]
struct FunctionFields<'a> {
    name: &'a str,
    priority: i32,
}

impl<'a> EndingFields<'a> {
    pub(super) fn of(ending: &'a Ending, path: &'a Path) -> Self {
        let freed = ending.freed();
        let fields = Self {
            kind: ending.kind(),
            symbol: freed.map(|freed| freed.symbol.as_str()),
            reason: freed.and_then(|freed| freed.reason.as_deref()),
            netns: freed.and_then(|freed| freed.netns),
            ..Self::default()
        };
        match ending {
            Ending::Dropped | Ending::Stolen => {
                Self { step: path.steps.last().map(|step| &**step), ..fields }
            }
            Ending::ByFunction { hooks, functions, .. } => Self {
                by: Some("function"),
                hooks: hooks.iter().map(|hook| hook.name()).collect(),
                functions: functions
                    .iter()
                    .map(|HookFunction { name, priority }| FunctionFields { name, priority: *priority })
                    .collect(),
                ..fields
            },
            Ending::Accepted(hook) => Self { hook: Some(hook.name()), ..fields },
            Ending::Forwarded(device) | Ending::Sent(device) => {
                Self { device: Some(device.to_string()), ..fields }
            }
            Ending::Queued { queue } => Self { queue: *queue, ..fields },
            Ending::ByUser { queue } => Self { by: Some("user"), queue: *queue, ..fields },
            Ending::Freed(_) | Ending::Unknown => fields,
        }
    }
}

/// A packet waited in a queue.
#[derive(Serialize)]
struct WaitedRow {
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<u16>,
    waited_ns: u64,
    verdict: Cow<'static, str>,
}

impl WaitedRow {
    fn of(&Waited { queue, waited_ns, verdict }: &Waited) -> Self {
        Self { queue, waited_ns, verdict: verdict_text(verdict) }
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "end")]
struct EndRow {
    packets: u64,
    steps: u64,
    lost: u64,
    missed: u64,
    unordered: u64,
    inexact: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    sampled_out: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limited_out: Option<u64>,
    #[serde(skip_serializing_if = "is_none")]
    undecided: u64,
}

/// Where nothing was left out, nothing is said of it.
fn is_none(count: &u64) -> bool {
    *count == 0
}

impl From<&Totals> for EndRow {
    fn from(totals: &Totals) -> Self {
        let &Totals { packets, steps, lost, missed, unordered, inexact, .. } = totals;
        let &Totals { sampled_out, limited_out, undecided, .. } = totals;
        Self { packets, steps, lost, missed, unordered, inexact, sampled_out, limited_out, undecided }
    }
}

/// Turns nanoseconds into RFC 3339 and remembers the second it formatted last.
#[derive(Debug, Default)]
struct Clock {
    second: Option<u64>,
    /// `2026-11-23T15:04:05`
    text: String,
}

impl Clock {
    /// Appends a moment in UTC, with nanoseconds.
    fn write(&mut self, out: &mut Vec<u8>, time_ns: u64) {
        let (second, nanosecond) = (time_ns / 1_000_000_000, time_ns % 1_000_000_000);
        if self.second != Some(second) {
            self.second = Some(second);
            self.text = second_text(second);
        }
        out.push(b'"');
        out.extend_from_slice(self.text.as_bytes());
        let dot = out.len();
        // A digit before the nanoseconds keeps their zeros; the dot takes its place.
        push_number(out, 1_000_000_000 + nanosecond);
        out[dot] = b'.';
        out.extend_from_slice(b"Z\"");
    }
}

/// 64 bits of nanoseconds end in the year 2554, which a timestamp can hold.
fn second_text(second: u64) -> String {
    let timestamp = i64::try_from(second).ok().and_then(|second| Timestamp::from_second(second).ok());
    timestamp.unwrap_or_default().strftime("%Y-%m-%dT%H:%M:%S").to_string()
}

/// Appends a value. Memory takes all that is written, and all types of rows are made for JSON.
pub(super) fn serialize(out: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    let _ = value.serialize(&mut serde_json::Serializer::with_formatter(out, SafeFormatter));
}

/// Appends the fields of an object, a comma before each.
fn members(out: &mut Vec<u8>, fields: &impl Serialize) {
    let start = out.len();
    serialize(out, fields);
    out.pop();
    match out.len() - start {
        1 => out.truncate(start),
        _ => out[start] = b',',
    }
}

/// Compact JSON that also escapes those characters a terminal acts on which JSON itself leaves alone.
struct SafeFormatter;

impl Formatter for SafeFormatter {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        if is_plain(fragment.as_bytes()) {
            return writer.write_all(fragment.as_bytes());
        }
        for part in fragment.split_inclusive(text::is_unsafe) {
            let mut rest = part.chars();
            match rest.next_back() {
                Some(last) if text::is_unsafe(last) => {
                    writer.write_all(rest.as_str().as_bytes())?;
                    write!(writer, "\\u{:04x}", u32::from(last))?;
                }
                _ => writer.write_all(part.as_bytes())?,
            }
        }
        Ok(())
    }
}
