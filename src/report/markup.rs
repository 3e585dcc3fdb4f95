//! Values to what may stand in a page. Whatever did not grow in this program goes through [`Text`]; numbers come out as
//! people read them.

use std::fmt::{self, Display, Write};

/// Any value as text between tags or in a quoted attribute: nothing in it is markup, and nothing in it turns the line
/// around or rings a bell.
pub(super) struct Text<T>(pub(super) T);

impl<T: Display> Display for Text<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escape(f), "{}", self.0)
    }
}

struct Escape<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl Write for Escape<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|character| match character {
            '&' => self.0.write_str("&amp;"),
            '<' => self.0.write_str("&lt;"),
            '>' => self.0.write_str("&gt;"),
            '"' => self.0.write_str("&quot;"),
            '\'' => self.0.write_str("&#39;"),
            // Overrides and isolates of the direction of writing can make a name look like another one.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{fffe}' | '\u{ffff}' => {
                self.0.write_char('\u{fffd}')
            }
            other if other.is_control() => self.0.write_char('\u{fffd}'),
            other => self.0.write_char(other),
        })
    }
}

/// "1,234,567".
pub(super) fn number(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// "1 ban", "2 bans".
pub(super) fn counted(value: u64, one: &str, many: &str) -> String {
    format!("{} {}", number(value), if value == 1 { one } else { many })
}

/// In five characters at most: "9,999", "12k", "4M".
pub(super) fn short(value: u64) -> String {
    match value {
        ..10_000 => number(value),
        10_000..1_000_000 => format!("{}k", value / 1_000),
        _ => format!("{}M", value / 1_000_000),
    }
}

/// How much `part` is of `whole`, as a length: "12.34%". Nothing of nothing is nothing.
pub(super) fn length(part: u64, whole: u64) -> String {
    let parts = fraction(part, whole, 10_000);
    format!("{}.{:02}%", parts / 100, parts % 100)
}

/// How much `part` is of `whole`, for people: "12.3 %".
pub(super) fn share(part: u64, whole: u64) -> String {
    match fraction(part, whole, 1_000) {
        0 if part > 0 => "< 0.1\u{a0}%".to_owned(),
        1_000 => "100\u{a0}%".to_owned(),
        parts => format!("{}.{}\u{a0}%", parts / 10, parts % 10),
    }
}

/// `part` of `whole`, in so many of `unit`, rounded down.
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
            Text(hostile).to_string(),
            "&lt;script src=&#39;x&#39;&gt;&amp;&quot;\u{fffd}\u{fffd}[31m\u{fffd}\u{fffd}&lt;/script&gt;"
        );
        assert_eq!(Text(format_args!("{}é", '<')).to_string(), "&lt;é");
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(number), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([9_999, 12_345, 4_999_999].map(short), ["9,999", "12k", "4M"]);
        assert_eq!((length(1, 3), length(0, 0), length(3, 3)), ("33.33%".into(), "0.00%".into(), "100.00%".into()));
        assert_eq!((share(1, 8), share(1, 100_000)), ("12.5\u{a0}%".into(), "< 0.1\u{a0}%".into()));
        assert_eq!((share(u64::MAX, u64::MAX), share(0, 5)), ("100\u{a0}%".into(), "0.0\u{a0}%".into()));
        assert_eq!((counted(1, "ban", "bans"), counted(2_000, "ban", "bans")), ("1 ban".into(), "2,000 bans".into()));
    }
}
