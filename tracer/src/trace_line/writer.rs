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
        self.devices.text(packet, |text| whole_line(text, |line| devices(line, packet, style)));
        self.contents.text(packet, |text| whole_line(text, |line| content(line, packet, style)));
        if !self.write_again(out, name) {
            super::write(out, name, packet, style);
        }
    }

    /// Appends the line for the packet that was written last at another entry. Says whether that could be done: only
    /// the whole knows what to escape and where to cut.
    pub fn write_again(&mut self, out: &mut Vec<u8>, name: &str) -> bool {
        let (Some(devices), Some(content)) = (self.devices.last(), self.contents.last()) else {
            return false;
        };
        let parts = [PREFIX, name.as_bytes(), b" ", devices, content];
        if !is_printable_text(name.as_bytes())
            || parts.iter().map(|part| part.len()).sum::<usize>() >= LINE_MAX
        {
            return false;
        }
        out.reserve(LINE_MAX);
        parts.iter().for_each(|part| out.extend_from_slice(part));
        true
    }
}
