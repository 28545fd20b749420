//! What the kernel programs say to their developers, on standard error.

use aya_log::{EbpfLogger, Error};

/// Messages that wait to be shown.
pub(super) struct Messages(EbpfLogger<StandardError>);

impl Messages {
    /// Takes the programs' messages.
    pub(super) fn of(programs: &mut aya::Ebpf) -> Result<Self, Error> {
        EbpfLogger::init_with_logger(programs, StandardError).map(Self)
    }

    /// Shows those that have come.
    pub(super) fn show(&mut self) {
        self.0.flush();
    }
}

struct StandardError;

impl log::Log for StandardError {
    fn enabled(&self, _metadata: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        eprintln!("{}: {}", record.target(), crate::text::escape(&record.args().to_string()));
    }

    fn flush(&self) {}
}
