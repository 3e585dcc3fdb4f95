//! Converts the output of a command to text for one log line. A command may print bytes that an attacker chose, so
//! control characters are replaced: they neither end the line nor control a terminal.

use crate::types::printable::push_escaped;

/// Number of bytes of a command's output that are kept.
pub(super) const KEPT: usize = 4 << 10;

/// Converts `bytes` to one line: line ends and invisible characters are escaped as in Rust (`\n`, `\u{1b}`), invalid
/// UTF-8 becomes U+FFFD. At most [`KEPT`] characters.
pub(super) fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes.get(..KEPT).unwrap_or(bytes));
    let mut line = String::new();
    for c in text.trim_end().chars().take(KEPT) {
        push_escaped(&mut line, c);
    }
    match line.char_indices().nth(KEPT) {
        Some((end, _)) => line.get(..end).unwrap_or_default().to_owned(),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_becomes_one_escaped_line() {
        assert_eq!(printable(b"done: 192.0.2.7 \"ok\"\n"), "done: 192.0.2.7 \"ok\"");
        assert_eq!(printable(b"one\ntwo\r\n\n"), "one\\ntwo");
        assert_eq!(printable(b"\x1b[2J\x07\x9b\x00"), "\\u{1b}[2J\\u{7}\u{fffd}\\0");
        assert_eq!(printable("\u{9b}1m \u{202e}evil\u{2028}".as_bytes()), "\\u{9b}1m \\u{202e}evil");
        assert_eq!(printable("Zürich ✓".as_bytes()), "Zürich ✓");
        for byte in 0..=u8::MAX {
            let text = printable(&[b'a', byte, b'b']);
            assert!(!text.chars().any(char::is_control), "{byte:#x}: {text:?}");
        }
    }

    #[test]
    fn long_output_is_cut() {
        assert_eq!(printable(&[b'x'; 5_000]).len(), KEPT);
        assert_eq!(printable(&[0x1b; 5_000]).len(), KEPT);
        assert_eq!(printable("é".repeat(5_000).as_bytes()).chars().count(), KEPT / 2);
    }
}
