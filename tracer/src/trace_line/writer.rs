//! Writing many lines: what is the same as a moment ago is copied.

use super::text::{LINE_MAX, is_printable_text, push_decimal};
use super::{LogStyle, StepName, content, devices, whole_line, word};
use crate::packet::PacketView;
use crate::packet::recent::{Content, Devices, Recent};

/// Writes lines of one style.
#[derive(Debug, Default)]
pub struct Writer {
    style: LogStyle,
    devices: Recent<Devices>,
    contents: Recent<Content>,
}

impl Writer {
    /// Has written nothing yet.
    pub fn new(style: LogStyle) -> Self {
        Self { style, ..Self::default() }
    }

    /// Appends the line for a packet at an entry, as [`write`](super::write) does. `label` is what the name displays
    /// as, where that is at hand.
    pub fn write(
        &mut self,
        out: &mut Vec<u8>,
        step: StepName<'_>,
        label: Option<&str>,
        packet: &PacketView<'_>,
    ) {
        let style = self.style;
        let devices = self.devices.text(packet, |text| whole_line(text, |line| devices(line, packet)));
        let content =
            self.contents.text(packet, |text| whole_line(text, |line| content(line, packet, style)));
        let start = out.len();
        prefix(out, step, label);
        let name = &out[start..];
        if is_printable_text(name) && name.len() + devices.len() + content.len() < LINE_MAX {
            out.extend_from_slice(devices);
            out.extend_from_slice(content);
        } else {
            // Only the whole knows what to escape and where to cut.
            out.truncate(start);
            super::write(out, step, packet, style);
        }
    }
}

fn prefix(out: &mut Vec<u8>, step: StepName<'_>, label: Option<&str>) {
    out.extend_from_slice(b"TRACE: ");
    match label {
        Some(label) => out.extend_from_slice(label.as_bytes()),
        None => push_name(out, step),
    }
    out.push(b' ');
}

fn push_name(out: &mut Vec<u8>, step: StepName<'_>) {
    out.extend_from_slice(step.table.as_bytes());
    out.push(b':');
    out.extend_from_slice(step.chain.as_bytes());
    out.push(b':');
    out.extend_from_slice(word(step.kind).as_bytes());
    out.push(b':');
    push_decimal(out, step.number.into());
}
