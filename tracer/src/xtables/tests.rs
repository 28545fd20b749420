//! Against tables that a kernel returned, see `tests/data/xtables/README.md`.

use super::*;
use crate::ruleset::display::write_rules;
use crate::ruleset::{Target, text};
use expect_test::expect_file;
use proptest::prelude::*;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

const CAPTURED: [(Family, &str); 8] = [
    (Family::Ipv4, "raw"),
    (Family::Ipv4, "mangle"),
    (Family::Ipv4, "nat"),
    (Family::Ipv4, "filter"),
    (Family::Ipv4, "security"),
    (Family::Ipv6, "mangle"),
    (Family::Ipv6, "nat"),
    (Family::Ipv6, "filter"),
];

fn data(family: Family, table: &str, extension: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/xtables");
    directory.join(format!("{family}-{table}.{extension}"))
}

/// A captured table.
pub(crate) fn captured(family: Family, table: &str) -> RawTable {
    let info = fs::read_to_string(data(family, table, "info")).unwrap();
    let field =
        |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap();
    let number = |text: &str| text.trim_matches(['[', ']', ',']).parse().unwrap();
    let numbers = |name: &str| -> Vec<u32> { field(name).split(' ').map(number).collect() };
    RawTable {
        family,
        name: table.to_owned(),
        valid_hooks: u32::from_str_radix(&field("valid_hooks")[2..], 16).unwrap(),
        hook_entry: numbers("hook_entry").try_into().unwrap(),
        underflow: numbers("underflow").try_into().unwrap(),
        number: numbers("number")[0],
        form: Form::User,
        bytes: fs::read(data(family, table, "blob")).unwrap(),
    }
}

/// The same table as the kernel would hold it: pointers over bytes 8 to 16 of matches and targets, and for counters.
fn in_kernel(user: &RawTable) -> RawTable {
    let address = |name: &[u8]| {
        name.iter()
            .fold(0xffff_ffff_c000_0000_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)))
    };
    let mut kernel = RawTable { form: Form::Kernel, ..user.clone() };
    let mut at = Vec::new();
    for (index, entry) in entry::entries(user).unwrap().into_iter().enumerate() {
        at.push((entry.counters().start, 0x60_7f00_0000 + index as u64 * 16));
        for part in entry.matches().unwrap().into_iter().chain([entry.target()]) {
            let offset = part.data().as_ptr() as usize - user.bytes.as_ptr() as usize - 32;
            at.push((offset + 8, address(part.name())));
        }
    }
    for (offset, value) in at {
        kernel.bytes[offset..offset + 8].copy_from_slice(&value.to_ne_bytes());
    }
    kernel
}

/// Everything the decoder found, one entry in a line.
fn structure(table: &Table) -> String {
    let mut out = format!("hook_entry {:?}\nunderflow {:?}\n", table.hook_entry, table.underflow);
    for chain in &table.chains {
        writeln!(out, "chain {} {:?} {:?}", chain.name, chain.hook, chain.entries).unwrap();
    }
    for (index, entry) in table.entries.iter().enumerate() {
        let chain = table.chain_of(index).map_or("-", |chain| &chain.name);
        let target = match &entry.target {
            Target::Extension(extension) => {
                format!("{:?} revision {} data {}", extension.name, extension.revision, extension.data.len())
            }
            target => format!("{target:?}"),
        };
        let unconditional = if entry.unconditional { " unconditional" } else { "" };
        let tail = if entry.tail { " tail" } else { "" };
        writeln!(out, "{index} {chain} {} {}{unconditional}{tail} {target}", entry.kind, entry.number)
            .unwrap();
    }
    out
}

#[track_caller]
fn check(family: Family, name: &str) {
    let raw = captured(family, name);
    let mut table = raw.decode(&TargetNames::default()).unwrap();
    expect_file![data(family, name, "structure")].assert_eq(&structure(&table));
    let save = fs::read(data(family, name, "save")).unwrap();
    text::attach(&mut table, &save).unwrap();
    let mut rules = String::new();
    write_rules(&mut rules, &[&table]).unwrap();
    expect_file![data(family, name, "rules")].assert_eq(&rules);
}

#[test]
fn captured_tables() {
    for (family, name) in CAPTURED {
        check(family, name);
    }
}

#[test]
fn the_kernels_form_is_learned() {
    for (family, name) in CAPTURED {
        let user = captured(family, name);
        let kernel = in_kernel(&user);
        let mut names = TargetNames::default();
        assert!(names.learn(&kernel, &user), "{family} {name}");
        let decoded = kernel.decode(&names).unwrap();
        assert_eq!(decoded, user.decode(&names).unwrap());
    }
}

#[test]
fn without_learning_short_names_are_known() {
    let decoded = in_kernel(&captured(Family::Ipv4, "nat")).decode(&TargetNames::default()).unwrap();
    let names = decoded.entries.iter().filter_map(|entry| match &entry.target {
        Target::Extension(extension) => Some(extension.name.as_deref()),
        _ => None,
    });
    assert_eq!(names.collect::<Vec<_>>(), [None, Some("SNAT"), None, Some("DNAT")]);
}

#[test]
fn another_version_is_not_learned_from() {
    let user = captured(Family::Ipv4, "mangle");
    let kernel = in_kernel(&user);
    // Everything but counters, and what the kernel's pointers hide of names, tells versions apart.
    let mut names = TargetNames::default();
    for entry in entry::entries(&user).unwrap() {
        let data = entry.target().data().as_ptr() as usize - user.bytes.as_ptr() as usize;
        for at in [entry.offset, entry.offset + 82, data, data - 1, data - 30] {
            let mut other = user.clone();
            other.bytes[at] ^= 0x41;
            assert!(!names.learn(&kernel, &other), "byte {at}");
        }
        let mut other = user.clone();
        other.bytes[entry.counters().start] ^= 0x41;
        assert!(names.learn(&kernel, &other));
    }
}

#[test]
fn counters_do_not_matter() {
    for (family, name) in CAPTURED {
        let raw = captured(family, name);
        let mut other = raw.clone();
        for range in raw.counters().unwrap() {
            other.bytes[range].fill(0xff);
        }
        assert!(raw.same_rules(&other) && other.same_rules(&raw));
        *other.bytes.first_mut().unwrap() ^= 1;
        assert!(!raw.same_rules(&other));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_panic(
        which in 0..CAPTURED.len(),
        kernel in any::<bool>(),
        cut in any::<prop::sample::Index>(),
        shorten in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        offset in (0..5_usize, any::<bool>(), prop::num::u32::ANY),
    ) {
        let (family, name) = CAPTURED[which];
        let user = captured(family, name);
        let mut raw = if kernel { in_kernel(&user) } else { user.clone() };
        for (at, value) in changes {
            let at = at.index(raw.bytes.len());
            raw.bytes[at] = value;
        }
        if shorten {
            raw.bytes.truncate(cut.index(raw.bytes.len()));
        }
        let (hook, change, value) = offset;
        if change {
            raw.hook_entry[hook] = value % (raw.bytes.len() as u32 + 8);
        }
        let mut names = TargetNames::default();
        names.learn(&raw, &user);
        raw.same_rules(&user);
        if let Ok(mut table) = raw.decode(&names) {
            assert_eq!(table.entries.len(), raw.number as usize);
            for entry in &table.entries {
                if let Target::Jump { to } | Target::Goto { to } = entry.target {
                    assert!(to < table.entries.len());
                }
            }
            assert!(table.chains.iter().all(|chain| table.entries[chain.entries.clone()].last().unwrap().tail));
            let _ = text::attach(&mut table, &fs::read(data(family, name, "save")).unwrap());
            write_rules(&mut String::new(), &[&table]).unwrap();
        }
    }
}
