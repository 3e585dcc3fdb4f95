//! Shortens texts for the screen and removes control characters from them.

use std::time::SystemTime;

use crate::types::printable::masked;

/// The longest text that is shown, in characters.
const MAX_LEN: usize = 400;

/// True where one of these texts contains `filter`, whatever the case of its letters.
pub(super) fn matches(filter: &str, texts: &[&str]) -> bool {
    let filter = filter.to_lowercase();
    filter.is_empty() || texts.iter().any(|text| text.to_lowercase().contains(&filter))
}

/// A text that cannot drive the terminal: a name or a command's output may be an attacker's.
pub(super) fn plain(text: &str) -> String {
    masked(text, ' ').take(MAX_LEN).collect()
}

/// "06:32:13", in UTC.
pub(super) fn clock(time: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(time).to_string();
    text.get(11..19).unwrap_or_default().to_owned()
}
