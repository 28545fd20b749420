//! A file or standard input, unpacked.

use crate::error::Failure;
use anyhow::Context as _;
use flate2::bufread::MultiGzDecoder;
use jiff::Timestamp;
use ruzstd::decoding::StreamingDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

const BUFFER_BYTES: usize = 256 * 1024;
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The longest line that is looked at; no kernel writes longer ones.
const LINE_BYTES: usize = 64 * 1024;

/// What is read.
pub(super) struct Input {
    /// For messages.
    pub(super) name: String,
    /// When it was last written to; now for what is no file.
    pub(super) written: Timestamp,
    reader: Box<dyn BufRead>,
    /// A line that the reader's buffer does not have in one piece.
    line: Vec<u8>,
    /// Bytes that were given out, and are still in the reader's buffer.
    given: usize,
}

impl Input {
    /// Opens a file, or standard input for `None`.
    pub(super) fn open(path: Option<&Path>) -> Result<Self, Failure> {
        let (name, written, reader): (_, _, Box<dyn Read>) = match path {
            None => ("standard input".to_owned(), None, Box::new(io::stdin().lock())),
            Some(path) => {
                let name = path.display().to_string();
                let file = File::open(path).with_context(|| format!("cannot open {name}"))?;
                let metadata = file.metadata().with_context(|| format!("cannot read {name}"))?;
                let written = metadata.is_file().then(|| metadata.modified().ok()).flatten();
                (name, written, Box::new(file))
            }
        };
        let reader = unpacked(reader).with_context(|| format!("cannot read {name}"))?;
        let written = written.and_then(|time| Timestamp::try_from(time).ok()).unwrap_or_else(Timestamp::now);
        Ok(Self { name, written, reader, line: Vec::new(), given: 0 })
    }

    #[cfg(test)]
    pub(super) fn of_bytes(bytes: &[u8], written: Timestamp) -> Self {
        let reader = unpacked(Box::new(io::Cursor::new(bytes.to_vec()))).expect("no magic but known ones");
        Self { name: "test".to_owned(), written, reader, line: Vec::new(), given: 0 }
    }

    /// Its first bytes, which stay to be read; fewer where there are fewer.
    pub(super) fn peek(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let (begins, reader) = peek(std::mem::replace(&mut self.reader, Box::new(io::empty())), count)?;
        self.reader = reader;
        Ok(begins)
    }

    /// The rest of it.
    pub(super) fn into_reader(self) -> Box<dyn BufRead> {
        self.reader
    }

    /// The next line without its line feed; of a line that is too long, as much as is looked at.
    pub(super) fn next_line(&mut self) -> io::Result<Option<&[u8]>> {
        self.reader.consume(std::mem::take(&mut self.given));
        let available = fill(&mut *self.reader)?;
        match memchr::memchr(b'\n', available) {
            Some(end) if end <= LINE_BYTES => {
                self.given = end + 1;
                Ok(Some(&fill(&mut *self.reader)?[..end]))
            }
            _ => self.gathered_line(),
        }
    }

    fn gathered_line(&mut self) -> io::Result<Option<&[u8]>> {
        self.line.clear();
        let mut some = false;
        loop {
            let available = fill(&mut *self.reader)?;
            if available.is_empty() {
                return Ok(some.then_some(&self.line));
            }
            some = true;
            let end = memchr::memchr(b'\n', available);
            let part = &available[..end.unwrap_or(available.len())];
            let room = LINE_BYTES - self.line.len();
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            let used = part.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                return Ok(Some(&self.line));
            }
        }
    }
}

/// What is in a reader's buffer, which is filled when there is nothing; empty at the end.
fn fill(reader: &mut dyn BufRead) -> io::Result<&[u8]> {
    // Asked twice, because the borrow of an answer that is not returned would not end.
    while let Err(error) = reader.fill_buf() {
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    reader.fill_buf()
}

/// The first bytes of a reader, and a reader of all.
fn peek(mut reader: Box<dyn BufRead>, count: usize) -> io::Result<(Vec<u8>, Box<dyn BufRead>)> {
    let mut begins = Vec::new();
    reader.by_ref().take(count as u64).read_to_end(&mut begins)?;
    let whole = BufReader::with_capacity(BUFFER_BYTES, io::Cursor::new(begins.clone()).chain(reader));
    Ok((begins, Box::new(whole)))
}

/// Unpacks what begins as gzip or zstd does, members and frames one after another.
fn unpacked(reader: Box<dyn Read>) -> io::Result<Box<dyn BufRead>> {
    let (begins, reader) = peek(Box::new(BufReader::with_capacity(BUFFER_BYTES, reader)), ZSTD.len())?;
    Ok(if begins.starts_with(&GZIP) {
        Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(reader)))
    } else if begins == ZSTD {
        Box::new(BufReader::with_capacity(BUFFER_BYTES, Frames { packed: Some(reader), frame: None }))
    } else {
        reader
    })
}

type Frame = StreamingDecoder<Box<dyn BufRead>, ruzstd::decoding::FrameDecoder>;

/// The frames of a zstd file, unpacked.
struct Frames {
    /// Between two frames.
    packed: Option<Box<dyn BufRead>>,
    /// Within one.
    frame: Option<Frame>,
}

impl Read for Frames {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(frame) = &mut self.frame {
                let count = frame.read(buffer)?;
                if count > 0 || buffer.is_empty() {
                    return Ok(count);
                }
                self.packed = self.frame.take().map(StreamingDecoder::into_inner);
            }
            let Some(mut packed) = self.packed.take() else { return Ok(0) };
            if packed.fill_buf()?.is_empty() {
                return Ok(0);
            }
            match StreamingDecoder::new(packed) {
                Ok(frame) => self.frame = Some(frame),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { .. })) => {
                    return Err(io::Error::other("a skippable zstd frame, which this program does not know"));
                }
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
        }
    }
}
