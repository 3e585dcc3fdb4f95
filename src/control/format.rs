//! Formats the parts that answers on the control socket share: nullable fields, lines, times and durations.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use crate::types::Span;

/// Reads a field that may be null but not missing: serde accepts a missing `Option` as `None`.
pub(super) fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de>>(field: D) -> Result<Option<T>, D::Error> {
    Option::deserialize(field)
}

/// One line of text with a label column.
macro_rules! line {
    ($f:expr, $label:expr, $($text:tt)+) => {
        writeln!($f, "{:<11} {}", $label, format_args!($($text)+))
    };
}
pub(crate) use line;

/// A duration in its two largest units: "3d 4h".
pub(super) fn span(seconds: u64) -> String {
    Span(Duration::from_secs(seconds)).to_string()
}

/// A message on a socket: one JSON object on one line.
pub trait LineMessage: Serialize + DeserializeOwned {
    /// The error message for an invalid line: the text before and after the details.
    const INVALID: (&'static str, &'static str);

    /// Parses one line.
    ///
    /// # Errors
    /// A description of the error.
    fn parse(line: &[u8]) -> Result<Self, String> {
        let (what, remedy) = Self::INVALID;
        serde_json::from_slice(line).map_err(|error| format!("{what}: {error}{remedy}"))
    }

    fn to_line(&self) -> String {
        to_line(self)
    }
}

/// `message` as one line of JSON.
pub(super) fn to_line(message: &impl Serialize) -> String {
    // Serialisation of numbers, strings and booleans cannot fail.
    let mut line = serde_json::to_string(message).unwrap_or_default();
    line.push('\n');
    line
}

/// True if the locale uses UTF-8. The first variable that is set counts, as in setlocale(3).
pub(super) fn is_unicode(variable: impl Fn(&str) -> Option<String>) -> bool {
    let set = ["LC_ALL", "LC_CTYPE", "LANG"].iter().filter_map(|name| variable(name)).find(|value| !value.is_empty());
    set.is_some_and(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}

/// "tcp/23,8080 udp/53", sorted.
pub(super) fn compact_ports<'a>(ports: impl Iterator<Item = (&'a str, u16)>) -> String {
    let mut sorted: Vec<_> = ports.collect();
    sorted.sort_unstable();
    let group = |ports: &[(&str, u16)]| {
        let numbers: Vec<String> = ports.iter().map(|(_, port)| port.to_string()).collect();
        Some(format!("{}/{}", ports.first()?.0, numbers.join(",")))
    };
    sorted.chunk_by(|(one, _), (other, _)| one == other).filter_map(group).collect::<Vec<_>>().join(" ")
}
