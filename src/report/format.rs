//! Formats the values on the page: numbers for readers, machine-readable times, and untrusted text.

use std::time::SystemTime;

use maud::{Markup, PreEscaped, Render, html};

use super::calendar::minute;
use crate::clock::WallTime;
use crate::types::printable::is_hidden;

/// Escapes text from outside of this program. Characters that reverse the writing direction or control a terminal
/// become U+FFFD. The template escapes all other markup characters except the apostrophe, which is escaped here.
pub(super) fn untrusted(text: &str) -> Markup {
    PreEscaped(text.replace(is_hidden, "\u{fffd}").render().into_string().replace('\'', "&#39;"))
}

/// A time, shown to the minute, and to the second in its machine-readable form.
pub(super) fn time(time: SystemTime) -> Markup {
    html! { time datetime=(WallTime(time).without_fraction()) { (minute(time)) } }
}

/// A number with separators: "1,234,567".
pub(super) fn format_number(value: u64) -> String {
    match value {
        ..1_000 => value.to_string(),
        _ => format!("{},{:03}", format_number(value / 1_000), value % 1_000),
    }
}

/// A number with its noun: "1 ban", "2 bans".
pub(super) fn counted(value: u64, one: &str, many: &str) -> String {
    format!("{} {}", format_number(value), if value == 1 { one } else { many })
}

/// A number in at most five characters: "9,999", "12k", "4M".
pub(super) fn short(value: u64) -> String {
    match value {
        ..10_000 => format_number(value),
        10_000..1_000_000 => format!("{}k", value / 1_000),
        _ => format!("{}M", value / 1_000_000),
    }
}

/// `part` of `whole` as a CSS length: "12.34%"; 0 if both are 0.
pub(super) fn length(part: u64, whole: u64) -> String {
    let parts = fraction(part, whole, 10_000);
    format!("{}.{:02}%", parts / 100, parts % 100)
}

/// `part` of `whole` as a rounded percentage for readers: "12 %".
pub(super) fn share(part: u64, whole: u64) -> String {
    match fraction(part, whole, 1_000) {
        0..10 if part > 0 => "< 1\u{a0}%".to_owned(),
        parts => format!("{}\u{a0}%", (parts + 5) / 10),
    }
}

/// Scales `part` so that `whole` becomes `unit`, and rounds down.
pub(super) fn fraction(part: u64, whole: u64, unit: u64) -> u64 {
    let parts = u128::from(part) * u128::from(unit) / u128::from(whole.max(1));
    u64::try_from(parts).unwrap_or(u64::MAX).min(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_never_markup() {
        let hostile = "<script src='x'>&\"\u{202e}\u{1b}[31m\0\n</script>";
        assert_eq!(
            untrusted(hostile).into_string(),
            "&lt;script src=&#39;x&#39;&gt;&amp;&quot;\u{fffd}\u{fffd}[31m\u{fffd}\u{fffd}&lt;/script&gt;"
        );
        assert_eq!(untrusted("<é").into_string(), "&lt;é");
    }

    #[test]
    fn numbers_are_formatted_readably() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(format_number), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([9_999, 12_345, 4_999_999].map(short), ["9,999", "12k", "4M"]);
        assert_eq!((length(1, 3), length(0, 0), length(3, 3)), ("33.33%".into(), "0.00%".into(), "100.00%".into()));
        assert_eq!((share(1, 8), share(1, 100_000)), ("13\u{a0}%".into(), "< 1\u{a0}%".into()));
        assert_eq!((share(u64::MAX, u64::MAX), share(0, 5)), ("100\u{a0}%".into(), "0\u{a0}%".into()));
        assert_eq!((counted(1, "ban", "bans"), counted(2_000, "ban", "bans")), ("1 ban".into(), "2,000 bans".into()));
    }
}
