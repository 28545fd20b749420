//! Writing many lines: what is the same as a moment ago is copied.

use super::text::{LINE_MAX, is_printable_text};
use super::{LogStyle, PREFIX, content, devices, whole_line};
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

    /// Appends the line for a packet at an entry, as [`write`](super::write) does.
    pub fn write(&mut self, out: &mut Vec<u8>, name: &str, packet: &PacketView<'_>) {
        let style = self.style;
        let devices = self.devices.text(packet, |text| whole_line(text, |line| devices(line, packet, style)));
        let content =
            self.contents.text(packet, |text| whole_line(text, |line| content(line, packet, style)));
        let start = out.len();
        for part in [PREFIX, name.as_bytes(), b" "] {
            out.extend_from_slice(part);
        }
        if is_printable_text(name.as_bytes()) && out.len() - start + devices.len() + content.len() < LINE_MAX
        {
            out.extend_from_slice(devices);
            out.extend_from_slice(content);
        } else {
            // Only the whole knows what to escape and where to cut.
            out.truncate(start);
            super::write(out, name, packet, style);
        }
    }
}
