//! Which network namespace is meant.

use super::UsageError;
use std::fmt;
use std::path::PathBuf;

/// A network namespace as named on the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Netns {
    /// The one this program runs in.
    #[default]
    Current,
    /// A name of `ip netns`.
    Name(String),
    /// That of a process.
    Pid(u32),
    /// A file such as `/run/netns/blue` or `/proc/1/ns/net`.
    Path(PathBuf),
    /// All of them.
    All,
}

impl Netns {
    /// From the value of `--netns`: with a slash a path, digits alone a process, otherwise a name.
    pub(super) fn from_option(value: Option<&str>) -> Result<Self, UsageError> {
        match value {
            None => Ok(Self::Current),
            Some(path) if path.contains('/') => Ok(Self::Path(path.into())),
            Some(pid) if !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit()) => parse_pid(pid),
            Some("" | "." | "..") => {
                Err(error(value.unwrap_or_default(), "neither a name nor a process nor a path"))
            }
            Some(name) => Ok(Self::Name(name.to_owned())),
        }
    }

    /// The file that stands for the namespace; `None` for [`Netns::All`].
    pub fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Current => Some("/proc/self/ns/net".into()),
            Self::Name(name) => Some(PathBuf::from("/run/netns").join(name)),
            Self::Pid(pid) => Some(format!("/proc/{pid}/ns/net").into()),
            Self::Path(path) => Some(path.clone()),
            Self::All => None,
        }
    }
}

fn parse_pid(text: &str) -> Result<Netns, UsageError> {
    match text.parse() {
        Ok(0) | Err(_) => Err(error(text, "no such process")),
        Ok(pid) => Ok(Netns::Pid(pid)),
    }
}

fn error(value: &str, reason: &'static str) -> UsageError {
    UsageError::Value { option: "--netns", value: value.to_owned(), reason }
}

/// As it was typed; `current` and `all` for the two that have no name.
impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Current => f.write_str("current"),
            Self::Name(name) => f.write_str(name),
            Self::Pid(pid) => write!(f, "{pid}"),
            Self::Path(path) => path.display().fmt(f),
            Self::All => f.write_str("all"),
        }
    }
}
