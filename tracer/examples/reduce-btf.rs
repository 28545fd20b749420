//! Cuts a kernel's BTF down to the few types whose layout nftracer asks for, as test data.
//!
//! `reduce-btf OUT VMLINUX [MODULE...]` writes files of the same names to OUT. Sizes and offsets stay; structures lose
//! the fields that nobody asks for, and what pointers point to is only declared.

use anyhow::{Context as _, Result};
use nftracer::btf::{Btf, Kind, Type, TypeId};
use std::collections::HashMap;
use std::path::Path;
use tracer_common::choice::CHOICE_FIELDS;
use tracer_common::nft::NFT_FIELDS;
use tracer_common::offsets::FIELDS;

/// Kept beside [`FIELDS`] and [`NFT_FIELDS`]: what tells kernels without module BTF, and bit fields.
const MORE_FIELDS: [(&str, &str); 5] = [
    ("netns_ipv4", "iptable_filter"),
    ("nf_hook_ops", "priority"),
    ("rhltable", "ht"),
    ("nft_rule_dp", "handle"),
    ("nft_rule", "handle"),
];
const FUNCTIONS: [&str; 4] = ["ipt_do_table", "ip6t_do_table", "arpt_do_table", "__nft_trace_packet"];
const CONSTANTS: [(&str, &str); 2] =
    [("skb_drop_reason", "SKB_DROP_REASON_NETFILTER_DROP"), ("nf_inet_hooks", "NF_INET_FORWARD")];

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(std::path::PathBuf::from);
    let out = arguments.next().context("usage: reduce-btf OUT VMLINUX [MODULE...]")?;
    let vmlinux = arguments.next().context("no vmlinux BTF given")?;
    std::fs::create_dir_all(&out)?;

    let bytes = std::fs::read(&vmlinux)?;
    let base = Btf::parse(&bytes)?;
    let mut reduced = Reduced::default();
    reduced.add(&base)?;
    save(&out, &vmlinux, &reduced)?;
    for module in arguments {
        let bytes = std::fs::read(&module)?;
        let split = Btf::parse_split(&bytes, &base).with_context(|| module.display().to_string())?;
        let mut reduced = reduced.split();
        reduced.add(&split)?;
        save(&out, &module, &reduced)?;
    }
    Ok(())
}

fn save(out: &Path, source: &Path, reduced: &Reduced) -> Result<()> {
    let target = out.join(source.file_name().context("no file name")?);
    std::fs::write(&target, reduced.bytes()).with_context(|| target.display().to_string())
}

/// BTF while it is being written.
#[derive(Clone, Default)]
struct Reduced {
    types: Vec<u8>,
    type_count: u32,
    strings: Vec<u8>,
    /// Length of the base's strings.
    base_strings: u32,
    names: HashMap<String, u32>,
    /// What an old type, in full or only declared, has become.
    copies: HashMap<(TypeId, Depth), u32>,
    declared: HashMap<(String, bool), u32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Depth {
    Full,
    /// Behind a pointer.
    Declared,
}

impl Reduced {
    /// What goes on where this ends.
    fn split(&self) -> Self {
        let base_strings = self.base_strings + self.strings.len() as u32;
        Self { types: Vec::new(), strings: Vec::new(), base_strings, ..self.clone() }
    }

    fn add(&mut self, btf: &Btf<'_>) -> Result<()> {
        self.name("");
        let fields = FIELDS
            .iter()
            .chain(NFT_FIELDS)
            .chain(CHOICE_FIELDS)
            .map(|field| (field.structure, field.path))
            .chain(MORE_FIELDS);
        let fields: Vec<_> = fields.collect();
        for rows in fields.chunk_by(|row, next| row.0 == next.0) {
            let paths: Vec<_> = rows.iter().map(|row| row.1).collect();
            for id in btf.named(Kind::Struct, rows[0].0) {
                self.structure(btf, id, &paths)?;
            }
        }
        for function in FUNCTIONS {
            for id in btf.named(Kind::Func, function) {
                self.copy(btf, id, Depth::Full)?;
            }
        }
        for (enumeration, constant) in CONSTANTS {
            for id in btf.named(Kind::Enum, enumeration) {
                let record = btf.get(id)?;
                let kept = record.constants().filter(|(name, _)| btf.string(*name) == constant);
                let rows: Vec<_> =
                    kept.flat_map(|(name, value)| [self.name(btf.string(name)), value as u32]).collect();
                self.emit(btf, &record, rows.len() / 2, record.size_or_type, &rows);
            }
        }
        Ok(())
    }

    /// A structure with the fields on the paths and no others.
    fn structure(&mut self, btf: &Btf<'_>, id: TypeId, paths: &[&str]) -> Result<u32> {
        let record = btf.get(id)?;
        if let Some(target) = record.target() {
            return self.structure(btf, target, paths);
        }
        let mut rows = Vec::new();
        for member in record.members() {
            let name = btf.string(member.name);
            let below: Vec<&str> = match name {
                "" => paths.iter().copied().filter(|path| btf.member(member.id, path).is_ok()).collect(),
                _ => paths.iter().filter_map(|path| path.strip_prefix(name)?.strip_prefix('.')).collect(),
            };
            let id = match below[..] {
                [] if paths.contains(&name) => self.copy(btf, member.id, Depth::Full)?,
                [] => continue,
                _ => self.structure(btf, member.id, &below)?,
            };
            rows.extend([self.name(name), id, member.width_bits << 24 | member.offset_bits]);
        }
        Ok(self.emit(btf, &record, rows.len() / 3, record.size_or_type, &rows))
    }

    fn copy(&mut self, btf: &Btf<'_>, id: TypeId, depth: Depth) -> Result<u32> {
        if id == TypeId::VOID {
            return Ok(0);
        }
        if let Some(copy) = self.copies.get(&(id, depth)) {
            return Ok(*copy);
        }
        let record = btf.get(id)?;
        let copy = match (record.kind, depth) {
            (Kind::Struct | Kind::Union | Kind::Fwd, Depth::Declared) => self.declare(btf, &record),
            (Kind::FuncProto, Depth::Declared) => 0,
            (Kind::Struct | Kind::Union | Kind::Enum | Kind::Enum64, _) => {
                self.emit(btf, &record, 0, record.size_or_type, &[])
            }
            (Kind::FuncProto, _) => {
                let mut rows = Vec::new();
                for (name, id) in record.params() {
                    rows.extend([self.name(btf.string(name)), self.copy(btf, id, depth)?]);
                }
                let returns = self.copy(btf, TypeId(record.size_or_type), depth)?;
                self.emit(btf, &record, rows.len() / 2, returns, &rows)
            }
            (Kind::Array, _) => {
                let words = words(record.body());
                let (element, index) =
                    (self.copy(btf, TypeId(words[0]), depth)?, self.copy(btf, TypeId(words[1]), depth)?);
                self.emit(btf, &record, 0, 0, &[element, index, words[2]])
            }
            (kind, _) => {
                let below = if kind == Kind::Ptr { Depth::Declared } else { depth };
                let word = match record.target() {
                    Some(target) => self.copy(btf, target, below)?,
                    None => record.size_or_type,
                };
                // A function has its linkage where others have the number of their rows.
                let linkage = if kind == Kind::Func { 1 } else { 0 };
                self.emit(btf, &record, linkage, word, &words(record.body()))
            }
        };
        self.copies.insert((id, depth), copy);
        Ok(copy)
    }

    fn declare(&mut self, btf: &Btf<'_>, record: &Type<'_>) -> u32 {
        let union = record.kind == Kind::Union || (record.kind == Kind::Fwd && record.flag);
        let key = (btf.string(record.name).to_owned(), union);
        if let Some(id) = self.declared.get(&key) {
            return *id;
        }
        let name = self.name(&key.0);
        let id = self.write(name, info(Kind::Fwd, union, 0), 0, &[]);
        self.declared.insert(key, id);
        id
    }

    /// Writes a type of the same name, kind and flag.
    fn emit(&mut self, btf: &Btf<'_>, record: &Type<'_>, rows: usize, word: u32, body: &[u32]) -> u32 {
        let name = self.name(btf.string(record.name));
        self.write(name, info(record.kind, record.flag, rows), word, body)
    }

    fn write(&mut self, name: u32, info: u32, word: u32, body: &[u32]) -> u32 {
        let words = [name, info, word].into_iter().chain(body.iter().copied());
        self.types.extend(words.flat_map(u32::to_le_bytes));
        self.type_count += 1;
        self.type_count
    }

    fn name(&mut self, name: &str) -> u32 {
        if let Some(offset) = self.names.get(name) {
            return *offset;
        }
        let offset = self.base_strings + self.strings.len() as u32;
        self.strings.extend(name.bytes().chain([0]));
        self.names.insert(name.to_owned(), offset);
        offset
    }

    fn bytes(&self) -> Vec<u8> {
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        let words = [24, 0, types, types, strings].map(u32::to_le_bytes);
        [&[0x9f, 0xeb, 1, 0], words.as_flattened(), &self.types, &self.strings].concat()
    }
}

fn info(kind: Kind, flag: bool, rows: usize) -> u32 {
    u32::from(flag) << 31 | (kind as u32) << 24 | rows as u32
}

fn words(body: &[u8]) -> Vec<u32> {
    let words = body.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    words.collect()
}
