//! Shortens texts for the screen and removes control characters from them.

use std::time::SystemTime;

use crate::clock::printable_time;
use crate::types::printable::masked;

/// Maximum length of a displayed text, in characters.
const MAX_LEN: usize = 400;

/// True if one of these texts contains `filter`, ignoring case.
pub(super) fn matches(filter: &str, texts: &[&str]) -> bool {
    let filter = filter.to_lowercase();
    filter.is_empty() || texts.iter().any(|text| text.to_lowercase().contains(&filter))
}

/// Replaces control characters: a name or a command's output may come from an attacker.
pub(super) fn plain(text: &str) -> String {
    masked(text, ' ').take(MAX_LEN).collect()
}

/// "06:32:13", in UTC.
pub(super) fn clock(time: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(printable_time(time)).to_string();
    text.get(11..19).unwrap_or_default().to_owned()
}
