//! What is recorded comes back, wherever the file is cut.

use super::{Error, Event, Reader, Recorder};
use crate::sink::{Output, Sink, choose, tests::play};
use proptest::prelude::*;
use std::io;

fn recorded() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut recorder = Recorder::new(&mut bytes).expect("memory can be written to");
    play(&mut recorder).expect("memory can be written to");
    drop(recorder);
    bytes
}

/// Gives everything to a sink; says whether the end was cut off.
fn replay(bytes: &[u8], sink: &mut dyn Sink) -> Result<bool, Error> {
    let mut reader = Reader::new(bytes)?;
    while let Some(event) = reader.next_event()? {
        match event {
            Event::Start(start) => sink.begin(&start),
            Event::Step(step) => sink.step(&step),
            Event::Path(path) => sink.path(&path),
            Event::Totals(totals) => sink.finish(&totals),
        }?;
    }
    Ok(reader.is_cut())
}

fn shown(bytes: &[u8], output: Output) -> String {
    let mut shown = Vec::new();
    let mut sink = choose(output, false, &mut shown);
    replay(bytes, sink.as_mut()).expect("a recording");
    sink.flush().expect("memory can be written to");
    drop(sink);
    String::from_utf8(shown).expect("sinks write UTF-8")
}

#[test]
fn a_recording_shows_what_was_seen() {
    for output in [Output::Json, Output::Trace, Output::Pretty] {
        let mut live = Vec::new();
        let mut sink = choose(output, false, &mut live);
        play(sink.as_mut()).expect("memory can be written to");
        drop(sink);
        assert_eq!(shown(&recorded(), output), String::from_utf8(live).expect("sinks write UTF-8"));
    }
}

#[test]
fn cut_anywhere_the_beginning_remains() {
    let bytes = recorded();
    let whole = shown(&bytes, Output::Json);
    let mut lengths = Vec::new();
    for end in super::MAGIC.len() + 2..bytes.len() {
        let part = shown(&bytes[..end], Output::Json);
        assert!(whole.starts_with(&part), "cut at {end}: {part}");
        lengths.push(part.len());
    }
    assert!(lengths.is_sorted());
    assert_eq!(
        replay(&bytes[..bytes.len() - 1], choose(Output::Json, false, io::sink()).as_mut()).ok(),
        Some(true)
    );
    assert_eq!(replay(&bytes, choose(Output::Json, false, io::sink()).as_mut()).ok(), Some(false));
}

#[test]
fn other_files_are_refused() {
    let mut later = recorded();
    later[8] = 2;
    let say = |bytes: &[u8]| Reader::new(bytes).expect_err("no recording").to_string();
    assert_eq!(say(b"TRACE: filter:INPUT:rule:1 IN="), "this is no recording");
    assert_eq!(say(b"nft"), "this is no recording");
    assert_eq!(say(&later), "this recording has version 2, and this program knows versions up to 1");
}

proptest! {
    #[test]
    fn damage_is_an_error_or_harmless(at in 10_usize..1000, with: u8) {
        let mut bytes = recorded();
        let at = at % bytes.len();
        bytes[at] = with;
        let _ = replay(&bytes, choose(Output::Json, false, io::sink()).as_mut());
    }
}
