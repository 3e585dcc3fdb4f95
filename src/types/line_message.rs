//! Defines the format of the messages on the project's sockets: one JSON object on one line.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

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
pub(crate) fn to_line(message: &impl Serialize) -> String {
    // Serialisation of numbers, strings and booleans cannot fail.
    let mut line = serde_json::to_string(message).unwrap_or_default();
    line.push('\n');
    line
}

/// Reads a field that may be null but not missing: serde accepts a missing `Option` as `None`.
pub(crate) fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de>>(field: D) -> Result<Option<T>, D::Error> {
    Option::deserialize(field)
}
