//! What is recorded comes back, wherever the file is cut.

use super::{Error, Event, Pcapng, Reader, Recorder};
use crate::sink::{Output, Row, Sink, choose, tests::play};
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
            Event::Start(start) => sink.row(Row::Start(&start)),
            Event::Namespace(inode, known) => sink.row(Row::Namespace(inode, &known)),
            Event::Step(step) => sink.row(Row::Step(&step)),
            Event::Path(path) => sink.row(Row::Path(&path)),
            Event::Totals(totals) => sink.row(Row::End(&totals)),
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

/// The blocks of a file: kind and body.
fn blocks(mut file: &[u8]) -> Vec<(u32, &[u8])> {
    let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
    let mut blocks = Vec::new();
    while !file.is_empty() {
        let length = word(&file[4..8]) as usize;
        assert_eq!(word(&file[length - 4..length]), length as u32);
        assert_eq!(length % 4, 0);
        blocks.push((word(&file[..4]), &file[8..length - 4]));
        file = &file[length..];
    }
    blocks
}

#[test]
fn wireshark_gets_packets_with_their_paths() {
    let mut file = Vec::new();
    let mut sink = Pcapng::new(&mut file).expect("memory can be written to");
    play(&mut sink).expect("memory can be written to");
    drop(sink);
    let blocks = blocks(&file);
    let kinds: Vec<u32> = blocks.iter().map(|(kind, _)| *kind).collect();
    // A section, a device, two packets with steps; of the third nothing was seen, and of the fourth no step.
    assert_eq!(kinds, [0x0a0d_0d0a, 1, 6, 6, 6]);
    let (_, first) = blocks[2];
    assert_eq!(first[12..20], [24, 0, 0, 0, 60, 0, 0, 0], "24 bytes of 60 were copied");
    assert_eq!(first[20], 0x45);
    let comment = String::from_utf8_lossy(&first[20 + 24 + 4..]);
    expect_test::expect![[r#"
        raw:PREROUTING:policy:1 accept
        mangle:PREROUTING:rule:1 continue  -A PREROUTING -j MARK --set-mark 1
        filter:INPUT:rule:1 jump web
        filter:INPUT:rule:2 drop  -A INPUT -p tcp -m tcp --dport 80 -j DROP
        = drop, complete"#]]
    .assert_eq(comment.trim_end_matches('\0'));
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
