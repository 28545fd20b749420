//! BTF: the kernel's description of its own types, read from bytes.
//!
//! Pure: the caller brings `/sys/kernel/btf/vmlinux` or the file of a module. A module's BTF is *split*: its type ids
//! and string offsets go on where those of its base, vmlinux, end. The bytes are indexed in one pass, which also
//! proves that every record lies inside them; names are compared where they lie. Nothing here panics or runs without
//! end, whatever the bytes are.
//!
//! The format is described in the kernel's `Documentation/bpf/btf.rst`; only little-endian BTF is read.
#![forbid(unsafe_code)]

mod function;
mod member;
mod types;

#[cfg(test)]
mod tests;

pub use function::{Param, Prototype};
pub use member::Member;
pub use types::{Kind, RawMember, Type, TypeId};

use std::cell::OnceCell;
use std::fmt;
use types::u32_at;

/// Shorthand for results of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How many types in a row may refer to each other, as in a pointer to a pointer.
///
/// The kernel itself accepts 32; the limit ends cycles.
const DEPTH_LIMIT: u32 = 32;

/// Why BTF could not be read, or why it has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes as a whole are not BTF that can be read.
    #[error("BTF header: {0}")]
    Header(&'static str),
    /// The bytes end inside a type.
    #[error("BTF type {0} is cut short")]
    Truncated(TypeId),
    /// A kind newer than this reader. Its length is unknown, so nothing after it can be read.
    #[error("BTF type {id} has the unknown kind {kind}")]
    UnknownKind {
        /// The type.
        id: TypeId,
        /// Its kind.
        kind: u8,
    },
    /// Something refers to a type that does not exist.
    #[error("BTF has no type {0}")]
    NoId(TypeId),
    /// No type of that kind has that name.
    #[error("BTF has no {kind} {name}")]
    NoName {
        /// The kind looked for.
        kind: Kind,
        /// The name looked for.
        name: String,
    },
    /// A structure lacks a field.
    #[error("{structure} has no field {field}")]
    NoField {
        /// The structure, as C writes it.
        structure: String,
        /// The field, one step of a path.
        field: String,
    },
    /// An enumeration lacks a constant.
    #[error("enum {enumeration} has no constant {constant}")]
    NoConstant {
        /// The enumeration, without `enum`.
        enumeration: String,
        /// The constant looked for.
        constant: String,
    },
    /// A type is of another kind than its use demands.
    #[error("BTF type {id} is a {found}, not a {expected}")]
    WrongKind {
        /// The type.
        id: TypeId,
        /// What it is.
        found: Kind,
        /// What it should be.
        expected: &'static str,
    },
    /// Types refer to each other in a circle, or almost.
    #[error("BTF type {0} leads through too many other types")]
    TooDeep(TypeId),
    /// An offset or a size does not fit in 32 bits.
    #[error("BTF type {0} is impossibly large")]
    TooLarge(TypeId),
}

/// The types of a kernel or a module.
#[derive(Clone)]
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type starts in `types`.
    index: Vec<u32>,
    /// Types by what [`name_key`] makes of their kinds and names, in order, each with its place in `index`; made when the
    /// first name is looked for.
    by_name: OnceCell<Vec<(u32, u32)>>,
    first_id: u32,
    first_string: u32,
    base: Option<&'a Btf<'a>>,
}

impl fmt::Debug for Btf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Btf").field("first_id", &self.first_id).field("types", &self.index.len()).finish()
    }
}

impl<'a> Btf<'a> {
    /// Reads BTF that stands alone, such as vmlinux's.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        Self::read(bytes, None)
    }

    /// Reads the BTF of a module, which continues that of vmlinux.
    pub fn parse_split(bytes: &'a [u8], base: &'a Btf<'a>) -> Result<Self> {
        Self::read(bytes, Some(base))
    }

    fn read(bytes: &'a [u8], base: Option<&'a Btf<'a>>) -> Result<Self> {
        let (types, strings) = sections(bytes)?;
        // Id 0 is `void`, which has no record.
        let (first_id, first_string) = match base {
            None => (1, 0),
            Some(base) => (base.end_id(), base.end_string()),
        };
        let mut index = Vec::with_capacity(types.len() / 20);
        let mut offset = 0;
        while offset < types.len() {
            let id = TypeId(first_id.saturating_add(index.len() as u32));
            let length = types::record_length(id, &types[offset..])?;
            index.push(offset as u32);
            offset += length;
        }
        Ok(Self { types, strings, index, by_name: OnceCell::new(), first_id, first_string, base })
    }

    /// One past the last type id, where a module's BTF continues.
    pub fn end_id(&self) -> u32 {
        self.first_id.saturating_add(self.index.len() as u32)
    }

    fn end_string(&self) -> u32 {
        self.first_string.saturating_add(self.strings.len() as u32)
    }

    /// A type; [`TypeId::VOID`] has none.
    pub fn get(&self, id: TypeId) -> Result<Type<'a>> {
        if id.0 < self.first_id {
            return self.base.ok_or(Error::NoId(id))?.get(id);
        }
        let offset = self.index.get((id.0 - self.first_id) as usize).ok_or(Error::NoId(id))?;
        Type::read(id, self.types.get(*offset as usize..).unwrap_or_default())
    }

    /// The ids described here, without those of the base.
    pub fn ids(&self) -> impl Iterator<Item = TypeId> + use<> {
        (self.first_id..self.end_id()).map(TypeId)
    }

    /// All types of one kind and name that are described here, without those of the base.
    ///
    /// A name can be there twice, when two source files disagree about a structure.
    pub fn named<'s>(&'s self, kind: Kind, name: &'s str) -> impl Iterator<Item = TypeId> + use<'s, 'a> {
        let key = name_key(kind as u8, name.as_bytes());
        let by_name = self.by_name.get_or_init(|| self.sort_names());
        let first = by_name.partition_point(|(other, _)| *other < key);
        let alike = by_name[first..].iter().take_while(move |(other, _)| *other == key);
        alike.filter_map(move |(_, at)| {
            let record = self.types.get(*self.index.get(*at as usize)? as usize..)?;
            let matches = types::kind_of(record) == kind as u8 && self.string_is(u32_at(record, 0)?, name);
            matches.then_some(TypeId(self.first_id.saturating_add(*at)))
        })
    }

    /// All that have names.
    fn sort_names(&self) -> Vec<(u32, u32)> {
        let key = |offset: &u32| {
            let record = self.types.get(*offset as usize..)?;
            let name = u32_at(record, 0).filter(|name| *name != 0)?;
            Some(name_key(types::kind_of(record), self.string_bytes(name)))
        };
        let keys = self.index.iter().zip(0..).filter_map(|(offset, at)| Some((key(offset)?, at)));
        let mut by_name: Vec<(u32, u32)> = keys.collect();
        by_name.sort_unstable();
        by_name
    }

    /// The first type of that kind and name, here or in the base.
    pub fn find(&self, kind: Kind, name: &str) -> Result<TypeId> {
        let here = self.named(kind, name).next();
        match (here, self.base) {
            (Some(id), _) => Ok(id),
            (None, Some(base)) => base.find(kind, name),
            (None, None) => Err(Error::NoName { kind, name: name.to_owned() }),
        }
    }

    /// The value of an enumeration's constant.
    ///
    /// Kernels before 6.1 do not say that an enumeration is signed: there −1 reads as 4294967295.
    pub fn enum_value(&self, enumeration: &str, constant: &str) -> Result<i64> {
        let id = self.find(Kind::Enum, enumeration).or_else(|_| self.find(Kind::Enum64, enumeration))?;
        let found = self.get(id)?.constants().find(|(name, _)| self.string_is(*name, constant));
        found.map(|(_, value)| value).ok_or_else(|| Error::NoConstant {
            enumeration: enumeration.to_owned(),
            constant: constant.to_owned(),
        })
    }

    /// The string at an offset; empty where there is none.
    pub fn string(&self, offset: u32) -> &'a str {
        let bytes = self.string_bytes(offset);
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        std::str::from_utf8(&bytes[..end]).unwrap_or_default()
    }

    fn string_is(&self, offset: u32, name: &str) -> bool {
        let rest = self.string_bytes(offset).strip_prefix(name.as_bytes());
        rest.is_some_and(|rest| rest.first() == Some(&0))
    }

    /// From an offset to the end of its section.
    fn string_bytes(&self, offset: u32) -> &'a [u8] {
        match (offset.checked_sub(self.first_string), self.base) {
            (Some(here), _) => self.strings.get(here as usize..).unwrap_or_default(),
            (None, Some(base)) => base.string_bytes(offset),
            (None, None) => &[],
        }
    }
}

/// A number for a kind and a name, which ends where it is zero; seldom the same for others.
fn name_key(kind: u8, name: &[u8]) -> u32 {
    let add = |key: u32, byte: u8| (key ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    name.iter().take_while(|byte| **byte != 0).fold(add(0x811c_9dc5, kind), |key, byte| add(key, *byte))
}

/// The type and the string section.
fn sections(bytes: &[u8]) -> Result<(&[u8], &[u8])> {
    const MAGIC: [u8; 2] = [0x9f, 0xeb];
    const HEADER_BYTES: u32 = 24;
    match bytes.get(..4).ok_or(Error::Header("shorter than its header"))? {
        [0xeb, 0x9f, ..] => return Err(Error::Header("big-endian")),
        [magic @ .., 1, _] if *magic == MAGIC => {}
        [magic @ .., _, _] if *magic == MAGIC => return Err(Error::Header("not version 1")),
        _ => return Err(Error::Header("no BTF magic")),
    }
    let word = |at| u32_at(bytes, at).ok_or(Error::Header("shorter than its header"));
    // A later kernel may have made the header longer; the sections start where it ends.
    let header = word(4)?;
    if header < HEADER_BYTES {
        return Err(Error::Header("header too short"));
    }
    let section = |offset: u32, length: u32| {
        let start = u64::from(header) + u64::from(offset);
        let range = usize::try_from(start).ok()?..usize::try_from(start + u64::from(length)).ok()?;
        bytes.get(range)
    };
    let types = section(word(8)?, word(12)?).ok_or(Error::Header("type section ends beyond the data"))?;
    let strings =
        section(word(16)?, word(20)?).ok_or(Error::Header("string section ends beyond the data"))?;
    Ok((types, strings))
}
