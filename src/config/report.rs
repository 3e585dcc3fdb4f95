//! Where the program writes what it sees: the section `report`.

use std::path::PathBuf;

/// What is written, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Whether lines name their source, as classic PortSentry's did. The name comes from whoever owns the address.
    pub resolve_host: bool,
    /// A file that gets every event as one line of JSON; `None`: there is none.
    pub json_file: Option<PathBuf>,
    /// Where the lines go.
    pub log: LogTarget,
}

/// Where the lines of the log go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogTarget {
    /// To the journal where systemd has connected standard error to it, else to standard error.
    #[default]
    Auto,
    /// To standard error.
    Stderr,
    /// To the journal.
    Journal,
    /// To the syslog daemon at /dev/log.
    Syslog,
}
