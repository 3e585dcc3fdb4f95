//! Makes text of untrusted origin safe for a terminal, a log line and an HTML page.
//!
//! A name, a command's output or a quoted packet may contain any character. Control characters end lines and control
//! terminals (CVE-2003-0063 and its successors). Bidirectional formatting makes a line look different from its contents
//! (CVE-2021-42574).

/// True for an invisible character: control characters, line and paragraph separators, soft hyphens, zero-width
/// characters, tag characters, interlinear annotations, and the marks, overrides and isolates of bidirectional text.
pub fn is_hidden(c: char) -> bool {
    let formats = matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{fffe}' | '\u{ffff}' | '\u{e0000}'..='\u{e007f}');
    c.is_control() || formats
}

/// `text` with every hidden character replaced by `mark`.
pub fn masked(text: &str, mark: char) -> impl Iterator<Item = char> {
    text.chars().map(move |c| if is_hidden(c) { mark } else { c })
}

/// [`masked`], truncated at a character boundary to at most `max_len` bytes.
pub fn masked_to(text: &str, mark: char, max_len: usize) -> String {
    let mut out = String::new();
    for c in masked(text, mark) {
        if out.len() + c.len_utf8() > max_len {
            break;
        }
        out.push(c);
    }
    out
}

/// `text` of another program or host as part of a log line, at most `max_len` bytes: masked, and without colons.
/// Otherwise the text could match a filter such as `^.*attackalert: Host ADDRESS has been blocked`.
pub fn quotable(text: &str, max_len: usize) -> String {
    masked_to(&text.replace(':', ";"), ' ', max_len)
}

/// `c`, escaped as in a Rust literal if it is hidden. Quotes and backslashes are not escaped.
pub fn escaped(c: char) -> String {
    match c {
        '\\' | '"' | '\'' => c.to_string(),
        c if is_hidden(c) && !c.is_control() => c.escape_unicode().to_string(),
        c => c.escape_debug().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_characters_are_masked_others_stay() {
        let text = "a\u{1b}[2J\u{7}\n\u{9b}1m \u{202e}x\u{2028}\u{200b}\u{2066}\u{feff}\u{61c}\u{ad}\u{e0041} Zürich ✓";
        assert_eq!(masked(text, '?').collect::<String>(), "a?[2J???1m ?x??????? Zürich ✓");
    }

    #[test]
    fn masked_text_is_cut_between_characters() {
        assert_eq!(masked_to("ééé", '?', 5), "éé");
        assert_eq!(masked_to("\u{202e}\u{202e}\u{202e}", ' ', 2), "  ");
    }

    #[test]
    fn quoted_text_cannot_imitate_log_line() {
        let text = "ERR\nattackalert: Host 192.0.2.1 has been blocked";
        assert_eq!(quotable(text, 64), "ERR attackalert; Host 192.0.2.1 has been blocked");
        assert_eq!(quotable("a:é", 3), "a;");
    }

    #[test]
    fn hidden_characters_are_escaped_quotes_stay() {
        let out: String = "\"'\\\n\0\u{202e}é".chars().map(escaped).collect();
        assert_eq!(out, "\"'\\\\n\\0\\u{202e}é");
    }
}
