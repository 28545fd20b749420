//! Where fields are, and how large types are.

use super::{Btf, DEPTH_LIMIT, Error, Kind, Result, Type, TypeId};

/// How many fields a search may look at; the largest kernel structures have some hundred.
const SEARCH_LIMIT: u32 = 1 << 16;

/// A field of a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// From the start of the structure.
    pub offset_bits: u32,
    /// Its width: of the bit field, or of its type.
    pub size_bits: u32,
    /// Its type, with qualifiers.
    pub id: TypeId,
}

impl Member {
    /// Offset in bytes; none for a bit field that does not start at a byte.
    pub fn offset_bytes(&self) -> Option<u32> {
        self.offset_bits.is_multiple_of(8).then_some(self.offset_bits / 8)
    }

    /// Size in bytes; none for a bit field that is not whole bytes wide.
    pub fn size_bytes(&self) -> Option<u32> {
        self.size_bits.is_multiple_of(8).then_some(self.size_bits / 8)
    }
}

/// A field found inside a structure.
struct Found {
    offset_bits: u64,
    width_bits: u32,
    id: TypeId,
}

impl<'a> Btf<'a> {
    /// Finds a field; dots in the path step into nested structures, anonymous ones are searched by themselves.
    pub fn member(&self, structure: TypeId, path: &str) -> Result<Member> {
        let mut place = Found { offset_bits: 0, width_bits: 0, id: structure };
        for field in path.split('.') {
            let mut budget = SEARCH_LIMIT;
            let found = self.search(place.id, field, DEPTH_LIMIT, &mut budget)?;
            let found = found.ok_or_else(|| Error::NoField {
                structure: self.describe(place.id),
                field: field.to_owned(),
            })?;
            place = Found { offset_bits: place.offset_bits + found.offset_bits, ..found };
        }
        let narrow = |bits: u64| u32::try_from(bits).map_err(|_| Error::TooLarge(structure));
        let (shift, size_bits) = match place.width_bits {
            0 => self.whole_bits(place.id)?,
            width => (0, u64::from(width)),
        };
        Ok(Member {
            offset_bits: narrow(place.offset_bits + shift)?,
            size_bits: narrow(size_bits)?,
            id: place.id,
        })
    }

    /// Size in bytes of a type.
    pub fn size_of(&self, id: TypeId) -> Result<u64> {
        const POINTER_BYTES: u64 = 8;
        let (mut at, mut count) = (id, 1_u64);
        for _ in 0..DEPTH_LIMIT {
            let (here, record) = self.skip_names(at)?;
            if let Some((element, elements)) = record.array() {
                count = count.checked_mul(u64::from(elements)).ok_or(Error::TooLarge(id))?;
                at = element;
                continue;
            }
            use Kind::*;
            let bytes = match record.kind {
                Ptr => POINTER_BYTES,
                Int | Struct | Union | Enum | Enum64 | Float | Datasec => u64::from(record.size_or_type),
                found => return Err(Error::WrongKind { id: here, found, expected: "type with a size" }),
            };
            return count.checked_mul(bytes).ok_or(Error::TooLarge(id));
        }
        Err(Error::TooDeep(id))
    }

    /// The type behind qualifiers, `typedef`s and tags.
    fn skip_names(&self, id: TypeId) -> Result<(TypeId, Type<'a>)> {
        let mut at = id;
        for _ in 0..DEPTH_LIMIT {
            let record = self.get(at)?;
            match record.same_layout() {
                Some(next) => at = next,
                None => return Ok((at, record)),
            }
        }
        Err(Error::TooDeep(id))
    }

    /// Shift and width in bits of a field that is not marked as a bit field.
    fn whole_bits(&self, id: TypeId) -> Result<(u64, u64)> {
        let bits = self.size_of(id)?.checked_mul(8).ok_or(Error::TooLarge(id))?;
        let (_, record) = self.skip_names(id)?;
        Ok(match record.int_bits() {
            Some((shift, width)) if u64::from(width) < bits => (u64::from(shift), u64::from(width)),
            _ => (0, bits),
        })
    }

    fn search(&self, id: TypeId, field: &str, depth: u32, budget: &mut u32) -> Result<Option<Found>> {
        let (id, record) = self.skip_names(id)?;
        if !matches!(record.kind, Kind::Struct | Kind::Union) {
            return Err(Error::WrongKind { id, found: record.kind, expected: "struct or union" });
        }
        if depth == 0 {
            return Err(Error::TooDeep(id));
        }
        for member in record.members() {
            *budget = budget.checked_sub(1).ok_or(Error::TooDeep(id))?;
            let offset_bits = u64::from(member.offset_bits);
            if self.string_is(member.name, field) {
                return Ok(Some(Found { offset_bits, width_bits: member.width_bits, id: member.id }));
            }
            let unnamed = self.string_is(member.name, "");
            let nested = unnamed && matches!(self.skip_names(member.id)?.1.kind, Kind::Struct | Kind::Union);
            if nested && let Some(found) = self.search(member.id, field, depth - 1, budget)? {
                return Ok(Some(Found { offset_bits: offset_bits + found.offset_bits, ..found }));
            }
        }
        Ok(None)
    }
}
