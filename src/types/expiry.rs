//! Defines the duration of a ban.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long a ban lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expiry {
    /// Until an operator lifts the ban.
    Never,
    /// For this duration, at least one second.
    After(Duration),
}

impl Expiry {
    /// The duration; `None` if there is no end.
    pub fn span(self) -> Option<Duration> {
        match self {
            Self::Never => None,
            Self::After(span) => Some(span),
        }
    }

    /// The duration in seconds; `None` if there is no end.
    pub fn seconds(self) -> Option<u64> {
        self.span().map(|span| span.as_secs())
    }
}

impl From<Option<Duration>> for Expiry {
    fn from(span: Option<Duration>) -> Self {
        span.map_or(Self::Never, Self::After)
    }
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str("ever"),
            Self::After(span) => humantime::format_duration(*span).fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn day_has_format_of_classic_line() {
        assert_eq!(Expiry::After(Duration::from_secs(86_400)).to_string(), "1day");
        assert_eq!(Expiry::Never.to_string(), "ever");
    }
}
