//! The records of the type section.

use super::{Error, Result};
use std::fmt;

/// The number of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TypeId(pub u32);

impl TypeId {
    /// `void`, which has no record.
    pub const VOID: Self = Self(0);
}

impl fmt::Display for TypeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $number:literal $text:literal, $fixed:literal + $each:literal;)*) => {
        /// What a type is; numbers and names are those of `BTF_KIND_*`.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Kind { $($(#[$doc])* $kind = $number,)* }

        impl Kind {
            /// The kind with that number.
            pub fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$kind),)* _ => None }
            }

            /// Bytes after the common part of a record, and bytes of each of its members, constants or parameters.
            fn body_bytes(self) -> (usize, usize) {
                match self { $(Self::$kind => ($fixed, $each),)* }
            }
        }

        impl fmt::Display for Kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$kind => $text,)* })
            }
        }
    };
}

kinds! {
    /// An integer, a character or a truth value.
    Int = 1 "int", 4 + 0;
    /// A pointer.
    Ptr = 2 "pointer", 0 + 0;
    /// An array.
    Array = 3 "array", 12 + 0;
    /// A structure.
    Struct = 4 "struct", 0 + 12;
    /// A union.
    Union = 5 "union", 0 + 12;
    /// An enumeration of 32-bit constants.
    Enum = 6 "enum", 0 + 8;
    /// A structure or union that is declared and not defined.
    Fwd = 7 "forward declaration", 0 + 0;
    /// A `typedef`.
    Typedef = 8 "typedef", 0 + 0;
    /// A `volatile` type.
    Volatile = 9 "volatile type", 0 + 0;
    /// A `const` type.
    Const = 10 "const type", 0 + 0;
    /// A `restrict` pointer.
    Restrict = 11 "restrict type", 0 + 0;
    /// A function's name, referring to its prototype.
    Func = 12 "function", 0 + 0;
    /// A prototype.
    FuncProto = 13 "function prototype", 0 + 8;
    /// A variable.
    Var = 14 "variable", 4 + 0;
    /// A section with variables.
    Datasec = 15 "data section", 0 + 12;
    /// A floating-point number.
    Float = 16 "float", 0 + 0;
    /// An attribute of a declaration, such as `bpf_kfunc`.
    DeclTag = 17 "declaration tag", 4 + 0;
    /// An attribute of a type, such as `__rcu`.
    TypeTag = 18 "type tag", 0 + 0;
    /// An enumeration of 64-bit constants.
    Enum64 = 19 "enum64", 0 + 12;
}

/// Bytes of the part that all records have.
const COMMON_BYTES: usize = 12;

/// One type.
#[derive(Clone, Copy, Debug)]
pub struct Type<'a> {
    /// What it is.
    pub kind: Kind,
    /// Where its name is; 0 for none.
    pub name: u32,
    /// The kind's flag: bit fields in a structure, a union declared forward, a signed enumeration.
    pub flag: bool,
    /// Its size in bytes or the type it refers to, by kind.
    pub size_or_type: u32,
    body: &'a [u8],
}

/// A field as the record has it.
#[derive(Clone, Copy, Debug)]
pub struct RawMember {
    /// Where its name is; 0 for none.
    pub name: u32,
    /// Its type.
    pub id: TypeId,
    /// From the start of the structure that the record describes.
    pub offset_bits: u32,
    /// Width of a bit field; 0 for other fields.
    pub width_bits: u32,
}

impl<'a> Type<'a> {
    pub(super) fn read(id: TypeId, record: &'a [u8]) -> Result<Self> {
        let (kind, length) = measure(id, record)?;
        let word = |at| u32_at(record, at).ok_or(Error::Truncated(id));
        let body = record.get(COMMON_BYTES..length).ok_or(Error::Truncated(id))?;
        Ok(Self { kind, name: word(0)?, flag: word(4)? >> 31 == 1, size_or_type: word(8)?, body })
    }

    /// The type that a pointer, qualifier, `typedef`, tag, variable or function refers to.
    pub fn target(&self) -> Option<TypeId> {
        use Kind::*;
        let refers = matches!(
            self.kind,
            Ptr | Typedef | Volatile | Const | Restrict | Func | FuncProto | Var | DeclTag | TypeTag
        );
        refers.then_some(TypeId(self.size_or_type))
    }

    /// The type behind a qualifier, `typedef` or type tag, none of which changes the layout.
    pub(super) fn same_layout(&self) -> Option<TypeId> {
        use Kind::*;
        matches!(self.kind, Typedef | Volatile | Const | Restrict | TypeTag)
            .then_some(TypeId(self.size_or_type))
    }

    /// Element type and element count of an array.
    pub fn array(&self) -> Option<(TypeId, u32)> {
        let array = self.kind == Kind::Array;
        array.then(|| Some((TypeId(u32_at(self.body, 0)?), u32_at(self.body, 8)?))).flatten()
    }

    /// What follows the common part, as it is.
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    /// Fields of a structure or union, none for other kinds.
    pub fn members(&self) -> impl Iterator<Item = RawMember> + use<'a> {
        let flag = self.flag;
        self.rows(matches!(self.kind, Kind::Struct | Kind::Union), 12).map(move |row| {
            let [name, id, offset] = words(row);
            let (offset_bits, width_bits) =
                if flag { (offset & 0xff_ffff, offset >> 24) } else { (offset, 0) };
            RawMember { name, id: TypeId(id), offset_bits, width_bits }
        })
    }

    /// Names and types of a prototype's parameters, none for other kinds.
    pub fn params(&self) -> impl Iterator<Item = (u32, TypeId)> + use<'a> {
        self.rows(self.kind == Kind::FuncProto, 8).map(|row| {
            let [name, id] = words(row);
            (name, TypeId(id))
        })
    }

    /// Names and values of an enumeration's constants, none for other kinds.
    pub fn constants(&self) -> impl Iterator<Item = (u32, i64)> + use<'a> {
        let flag = self.flag;
        let small = self.rows(self.kind == Kind::Enum, 8).map(move |row| {
            let [name, value] = words(row);
            (name, if flag { i64::from(value.cast_signed()) } else { i64::from(value) })
        });
        let large = self.rows(self.kind == Kind::Enum64, 12).map(|row| {
            let [name, low, high] = words(row);
            (name, (u64::from(high) << 32 | u64::from(low)).cast_signed())
        });
        small.chain(large)
    }

    /// Offset and width in bits that an integer has inside its own storage; how bit fields were told before 4.20.
    pub(super) fn int_bits(&self) -> Option<(u32, u32)> {
        let word = u32_at(self.body, 0)?;
        (self.kind == Kind::Int).then_some((word >> 16 & 0xff, word & 0xff))
    }

    fn rows(&self, applies: bool, bytes: usize) -> std::slice::ChunksExact<'a, u8> {
        let body: &'a [u8] = if applies { self.body } else { &[] };
        body.chunks_exact(bytes)
    }
}

/// The number of the kind of the record at the start of `record`; 0 where there is none.
pub(super) fn kind_of(record: &[u8]) -> u8 {
    // Five bits until Linux 7, seven since; those in between were zero.
    record.get(7).map_or(0, |byte| byte & 0x7f)
}

/// Bytes of the record at the start of `record`, which are all there.
pub(super) fn record_length(id: TypeId, record: &[u8]) -> Result<usize> {
    let (_, length) = measure(id, record)?;
    if length <= record.len() { Ok(length) } else { Err(Error::Truncated(id)) }
}

fn measure(id: TypeId, record: &[u8]) -> Result<(Kind, usize)> {
    let info = u32_at(record, 4).ok_or(Error::Truncated(id))?;
    let number = kind_of(record);
    let kind = Kind::from_number(number).ok_or(Error::UnknownKind { id, kind: number })?;
    let (fixed, each) = kind.body_bytes();
    Ok((kind, COMMON_BYTES + fixed + each * (info & 0xff_ffff) as usize))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*word))
}

fn words<const COUNT: usize>(row: &[u8]) -> [u32; COUNT] {
    std::array::from_fn(|at| u32_at(row, 4 * at).unwrap_or_default())
}
