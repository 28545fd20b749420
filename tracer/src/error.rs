//! How a command fails: which exit status, what is said, what can be done about it.
#![forbid(unsafe_code)]

use crate::filter::FilterError;
use crate::text;
use std::fmt;
use std::io::{self, Write as _};
use std::process::ExitCode;

/// The kind of a [`Failure`], which is its exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Failed while running.
    Running = 1,
    /// Wrong usage.
    Usage = 2,
    /// Nothing on this host can do what was asked.
    Unusable = 3,
}

/// Why a command did not do what was asked.
#[derive(Debug)]
pub struct Failure {
    kind: Kind,
    error: anyhow::Error,
    remedy: Option<String>,
}

impl Failure {
    /// The command line asks for something that makes no sense.
    pub fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self { kind: Kind::Usage, error: error.into(), remedy: None }
    }

    /// Nothing on this host can do what was asked.
    pub fn unusable(error: impl Into<anyhow::Error>) -> Self {
        Self { kind: Kind::Unusable, error: error.into(), remedy: None }
    }

    /// Something went wrong while running; `?` on an [`anyhow::Error`] does the same.
    pub fn running(error: impl Into<anyhow::Error>) -> Self {
        Self { kind: Kind::Running, error: error.into(), remedy: None }
    }

    /// Says what can be done about it.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// What can be done about it.
    pub fn remedy(&self) -> Option<&str> {
        self.remedy.as_deref()
    }

    /// What went wrong, with all causes, on one line.
    pub fn reason(&self) -> String {
        format!("{:#}", self.error)
    }

    /// Which kind it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether the reader of our output went away, which ends a run quietly.
    pub fn is_closed_pipe(&self) -> bool {
        self.error.chain().any(is_broken_pipe)
    }
}

fn is_broken_pipe(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::running(error)
    }
}

/// One line with all causes, and one with the remedy; what is wrong with a filter is shown in it.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.error.downcast_ref::<FilterError>() {
            // Several lines that point at a place, fit for a terminal as they are.
            Some(error) => write!(f, "nftracer: {error}")?,
            None => write!(f, "nftracer: {}", text::escape(&self.reason()))?,
        }
        match &self.remedy {
            Some(remedy) => write!(f, "\nremedy: {}", text::escape(remedy)),
            None => Ok(()),
        }
    }
}

/// Prints what went wrong and gives the exit status.
pub fn report(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) if failure.is_closed_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            // Nothing is left to be told to when standard error is gone.
            let _ = writeln!(io::stderr(), "{failure}");
            ExitCode::from(failure.kind as u8)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    fn io_error(kind: io::ErrorKind) -> anyhow::Result<()> {
        Err(io::Error::from(kind)).context("cannot write output")
    }

    #[test]
    fn one_line_names_operation_object_and_cause() {
        let error = io_error(io::ErrorKind::PermissionDenied).context("trace").unwrap_err();
        let failure = Failure::unusable(error).with_remedy("run it as root");
        assert_eq!(
            failure.to_string(),
            "nftracer: trace: cannot write output: permission denied\nremedy: run it as root"
        );
    }

    #[test]
    fn control_characters_do_not_get_through() {
        let failure = Failure::usage(anyhow::anyhow!("--netns \x1b[2J: no such namespace\nreally"));
        assert_eq!(failure.to_string(), r"nftracer: --netns \x1b[2J: no such namespace\nreally");
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let closed = Failure::from(io_error(io::ErrorKind::BrokenPipe).unwrap_err());
        assert_eq!(report(Err(closed)), ExitCode::SUCCESS);
        let other = Failure::from(io_error(io::ErrorKind::NotFound).unwrap_err());
        assert!(!other.is_closed_pipe());
        assert_eq!((other.kind() as u8, Kind::Usage as u8, Kind::Unusable as u8), (1, 2, 3));
    }
}
