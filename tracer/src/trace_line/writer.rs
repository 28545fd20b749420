//! Writing many lines: what is the same as a moment ago is copied.

use super::text::{LINE_MAX, Line, is_printable_text};
use super::{LogStyle, PREFIX, devices, headers, owner_and_mark};
use crate::packet::PacketView;
use crate::packet::recent::{Content, Devices, Recent};

/// Writes lines of one style.
#[derive(Debug, Default)]
pub struct Writer {
    style: LogStyle,
    devices: Recent<Devices>,
    headers: Recent<Content, Headers>,
    /// What follows the name in the line that was written last.
    rest: Vec<u8>,
    /// Memory for what is being written.
    line: Line,
}

/// What a line says of a packet's headers.
#[derive(Debug, Default)]
struct Headers {
    text: Vec<u8>,
    /// Owner and mark follow.
    goes_on: bool,
}

impl Writer {
    /// Has written nothing yet.
    pub fn new(style: LogStyle) -> Self {
        Self { style, ..Self::default() }
    }

    /// Appends the line for a packet at an entry, as [`write`](super::write) does.
    pub fn write(&mut self, out: &mut Vec<u8>, name: &str, packet: &PacketView<'_>) {
        let style = self.style;
        let line = &mut self.line;
        let devices = self.devices.text(packet, |text| {
            text.extend_from_slice(line.filled(|line| devices(line, packet, style)));
        });
        // A packet that comes in over loopback has lost its owner, and is otherwise as it went out.
        let bare = PacketView { owner: None, mark: 0, ..*packet };
        let headers = self.headers.made(&bare, |made| {
            made.text.clear();
            let text = line.filled(|line| made.goes_on = headers(line, &bare, style).is_continue());
            made.text.extend_from_slice(text);
        });
        self.rest.clear();
        self.rest.extend_from_slice(devices);
        self.rest.extend_from_slice(&headers.text);
        if headers.goes_on {
            self.rest.extend_from_slice(line.filled(|line| owner_and_mark(line, packet)));
        }
        if !self.write_again(out, name) {
            super::write(out, name, packet, style);
        }
    }

    /// Appends the line for the packet that was written last at another entry. Says whether that could be done: only
    /// the whole knows what to escape and where to cut.
    #[inline]
    pub fn write_again(&mut self, out: &mut Vec<u8>, name: &str) -> bool {
        let len = PREFIX.len() + name.len() + 1 + self.rest.len();
        if self.rest.is_empty() || len >= LINE_MAX || !is_printable_text(name.as_bytes()) {
            return false;
        }
        out.extend_from_slice(PREFIX);
        out.extend_from_slice(name.as_bytes());
        out.push(b' ');
        out.extend_from_slice(&self.rest);
        true
    }
}
