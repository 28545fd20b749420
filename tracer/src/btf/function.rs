//! What functions take, and types as C writes them.

use super::{Btf, DEPTH_LIMIT, Error, Kind, Result, TypeId};
use std::fmt;

/// A parameter of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param<'a> {
    /// Its name; may be empty.
    pub name: &'a str,
    /// Its type as C writes it, such as `struct sk_buff *`.
    pub type_name: String,
}

/// What a function takes and gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prototype<'a> {
    /// In order.
    pub params: Vec<Param<'a>>,
    /// The type of its value as C writes it.
    pub returns: String,
}

impl fmt::Display for Prototype<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let params: Vec<_> =
            self.params.iter().map(|param| format!("{} {}", param.type_name, param.name)).collect();
        write!(f, "{} ({})", self.returns, params.join(", "))
    }
}

impl<'a> Btf<'a> {
    /// The prototype of a function, described here or in the base.
    pub fn function(&self, name: &str) -> Result<Prototype<'a>> {
        self.prototype(self.find(Kind::Func, name)?)
    }

    /// The prototype of the function with that id.
    pub fn prototype(&self, function: TypeId) -> Result<Prototype<'a>> {
        let function = self.get(function)?;
        let id = TypeId(function.size_or_type);
        let prototype = self.get(id)?;
        if prototype.kind != Kind::FuncProto {
            let expected = "function prototype";
            return Err(Error::WrongKind { id, found: prototype.kind, expected });
        }
        let param = |(name, id)| Param { name: self.string(name), type_name: self.describe(id) };
        Ok(Prototype {
            params: prototype.params().map(param).collect(),
            returns: self.describe(TypeId(prototype.size_or_type)),
        })
    }

    /// A type as C writes it, `?` where it cannot be told.
    pub fn describe(&self, id: TypeId) -> String {
        self.describe_within(id, DEPTH_LIMIT)
    }

    fn describe_within(&self, id: TypeId, depth: u32) -> String {
        if id == TypeId::VOID {
            return "void".into();
        }
        let (Ok(record), Some(depth)) = (self.get(id), depth.checked_sub(1)) else { return "?".into() };
        let name = match self.string(record.name) {
            "" => "(anonymous)",
            name => name,
        };
        let target = || self.describe_within(TypeId(record.size_or_type), depth);
        match record.kind {
            Kind::Struct => format!("struct {name}"),
            Kind::Union => format!("union {name}"),
            Kind::Enum | Kind::Enum64 => format!("enum {name}"),
            Kind::Fwd => format!("{} {name}", if record.flag { "union" } else { "struct" }),
            Kind::Ptr => pointer_to(target()),
            Kind::Const => qualified("const", target()),
            Kind::Volatile => qualified("volatile", target()),
            Kind::Restrict => qualified("restrict", target()),
            Kind::TypeTag => target(),
            Kind::Array => record.array().map_or("?".into(), |(element, count)| {
                format!("{}[{count}]", self.describe_within(element, depth))
            }),
            Kind::FuncProto => "function".into(),
            _ => name.to_owned(),
        }
    }
}

fn pointer_to(target: String) -> String {
    if target.ends_with('*') { target + "*" } else { target + " *" }
}

/// A qualifier stands behind a pointer and before anything else.
fn qualified(qualifier: &str, target: String) -> String {
    if target.ends_with('*') { format!("{target} {qualifier}") } else { format!("{qualifier} {target}") }
}
