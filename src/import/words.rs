//! Splits a shell line into commands and words without expanding or running anything. It also determines whether the
//! line needs a shell: a line that consists only of words can be run directly.

/// A shell line, split into words.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ShellLine {
    /// Pipelines of commands, each a list of words. Redirections and empty commands are left out.
    pub(super) pipelines: Vec<Vec<Vec<String>>>,
    /// The line has shell syntax: operators, redirections, variables, patterns, comments or assignments.
    pub(super) needs_shell: bool,
}

/// Classic replaces these before it calls a shell, so their dollar signs are plain text.
const MACROS: [(&str, &str); 3] = [("$TARGET$", "_TARGET_"), ("$PORT$", "_PORT_"), ("$MODE$", "_MODE_")];

impl ShellLine {
    /// Splits `text`; `None` if a quote is not closed.
    pub(super) fn split(text: &str) -> Option<Self> {
        let (pieces, needs_shell) = cut(text);
        let mut line = Self { needs_shell, pipelines: Vec::new() };
        let mut is_piped = false;
        for (piece, pipe_follows) in pieces {
            let words = shlex::split(piece)?;
            let words = if needs_shell { without_redirections(words) } else { words };
            if !words.is_empty() {
                line.needs_shell |= line.pipelines.is_empty() && words.first().is_some_and(|word| word.contains('='));
                match line.pipelines.last_mut().filter(|_| is_piped) {
                    Some(pipeline) => pipeline.push(words),
                    None => line.pipelines.push(vec![words]),
                }
            }
            is_piped = pipe_follows;
        }
        Some(line)
    }

    /// The words of a line that needs no shell.
    pub(super) fn words(&self) -> Option<Vec<String>> {
        (!self.needs_shell).then(|| self.pipelines.concat().concat())
    }
}

/// Splits a line at the operators outside of quotes. Returns each piece and whether a pipe follows it, and whether the
/// line needs a shell.
fn cut(text: &str) -> (Vec<(&str, bool)>, bool) {
    // The masks have the length of the names, so positions do not change.
    let masked = MACROS.iter().fold(text.to_owned(), |text, (name, mask)| text.replace(name, mask));
    let (mut pieces, mut needs_shell) = (Vec::new(), false);
    let (mut start, mut end, mut before, mut quote) = (0, text.len(), ' ', None);
    let mut chars = masked.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (Some(open), _) if open == c => quote = None,
            (Some('\''), _) => {}
            (_, '\\') => drop(chars.next()),
            (None, '\'' | '"') => quote = Some(c),
            (_, '$' | '`') | (None, '<' | '>' | '*' | '?' | '[' | '~') => needs_shell = true,
            // This is a redirection such as 2>&1.
            (None, '|' | '&') if matches!(before, '<' | '>') => {}
            (None, '|' | '&' | ';' | '(' | ')') => {
                let is_doubled = chars.next_if(|(_, next)| *next == c && c != '(' && c != ')').is_some();
                pieces.push((text.get(start..at).unwrap_or(""), c == '|' && !is_doubled));
                start = chars.peek().map_or(text.len(), |(next, _)| *next);
                needs_shell = true;
            }
            (None, '#') if before.is_whitespace() => {
                (end, needs_shell) = (at, true);
                break;
            }
            _ => {}
        }
        before = c;
    }
    pieces.push((text.get(start..end).unwrap_or(""), false));
    (pieces, needs_shell)
}

/// Removes redirections such as `>file`, `> file` and `2>&1`. A word with a blank was quoted and is kept.
fn without_redirections(words: Vec<String>) -> Vec<String> {
    let mut kept = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let Some(at) = word.find(['<', '>']).filter(|_| !word.contains(' ')) else {
            kept.push(word);
            continue;
        };
        let (head, target) = word.split_at(at);
        if !head.bytes().all(|byte| byte.is_ascii_digit()) {
            kept.push(head.to_owned());
        }
        if target.trim_start_matches(['<', '>', '&', '|']).is_empty() {
            words.next();
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Option<Vec<String>> {
        ShellLine::split(text).and_then(|line| line.words())
    }

    #[test]
    fn words_are_split_as_in_shell() {
        for (text, expected) in [
            ("/bin/x $TARGET$ $PORT$", vec!["/bin/x", "$TARGET$", "$PORT$"]),
            ("x 'a  b'\"c $MODE$\"d", vec!["x", "a  bc $MODE$d"]),
            ("x '' a\\ b \"\\\"\\n\"", vec!["x", "", "a b", "\"\\n"]),
            ("  x\t--y=$TARGET$/32 ", vec!["x", "--y=$TARGET$/32"]),
            ("", vec![]),
        ] {
            assert_eq!(words(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn shell_syntax_is_not_split() {
        for text in [
            "x | y", "x && y", "x; y", "x &", "x > f", "x 2>&1", "x $HOME", "x `y`", "x *.c", "x ~", "A=1 x", "(x)",
            "x # y",
        ] {
            assert_eq!(words(text), None, "{text}");
        }
        for unclosed in ["x 'y", "x \"y", "x \\"] {
            assert_eq!(ShellLine::split(unclosed), None, "{unclosed}");
        }
        assert!(words("x '|' \"&&\" a\\;b").is_some());
    }

    #[test]
    fn commands_are_split_without_redirections() {
        let line = ShellLine::split("a 1 2>&1 >/dev/null && (b | c 2) ; d & e || f 2> g").unwrap();
        let expected =
            [vec![vec!["a", "1"]], vec![vec!["b"], vec!["c", "2"]], vec![vec!["d"]], vec![vec!["e"]], vec![vec!["f"]]];
        assert_eq!(line.pipelines, expected);
    }
}
