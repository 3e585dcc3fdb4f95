//! A shell line to words and operators, as `sh` takes it apart, without expanding or running anything. Tells whether the
//! line needs a shell at all: what is only words can be run as they are.

/// A word, or what stands between commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// A word, its quotes taken off.
    Word(String),
    /// `|`: the next command reads what this one prints.
    Pipe,
    /// `&&`, `||`, `;`, `&`, a parenthesis: the next command is another one.
    Next,
}

/// A line taken apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) tokens: Vec<Token>,
    /// It has something that only a shell does: operators, redirections, variables, patterns.
    pub(super) needs_shell: bool,
}

/// Classic replaces these before a shell sees them: they are plain text here.
const MACROS: [&str; 3] = ["$TARGET$", "$PORT$", "$MODE$"];

impl Line {
    /// Takes `text` apart; `None` where a quote is not closed.
    pub(super) fn of(text: &str) -> Option<Self> {
        let mut reader = Reader { rest: text, ..Reader::default() };
        while let Some(c) = reader.next() {
            reader.take(c)?;
        }
        reader.end_word();
        Some(reader.line)
    }

    /// The words, where there is nothing else.
    pub(super) fn words(&self) -> Option<Vec<String>> {
        // VARIABLE=value before a command is the shell's, too.
        let assigns = matches!(self.tokens.first(), Some(Token::Word(first)) if first.contains('='));
        if self.needs_shell || assigns {
            return None;
        }
        let word = |token: &Token| match token {
            Token::Word(word) => Some(word.clone()),
            Token::Pipe | Token::Next => None,
        };
        self.tokens.iter().map(word).collect()
    }

    /// The pipelines, each a list of commands, each a list of words; empty ones left out.
    pub(super) fn pipelines(&self) -> Vec<Vec<Vec<String>>> {
        let mut pipelines: Vec<Vec<Vec<String>>> = vec![vec![Vec::new()]];
        for token in &self.tokens {
            let Some(pipeline) = pipelines.last_mut() else { break };
            match (token, pipeline.last_mut()) {
                (Token::Word(word), Some(command)) => command.push(word.clone()),
                (Token::Pipe, _) => pipeline.push(Vec::new()),
                (Token::Next, _) => pipelines.push(vec![Vec::new()]),
                (Token::Word(_), None) => {}
            }
        }
        for pipeline in &mut pipelines {
            pipeline.retain(|command| !command.is_empty());
        }
        pipelines.retain(|pipeline| !pipeline.is_empty());
        pipelines
    }
}

#[derive(Default)]
struct Reader<'t> {
    rest: &'t str,
    line: Line,
    word: Option<String>,
    /// The word that comes is where a redirection goes to.
    target: bool,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let c = chars.next()?;
        self.rest = chars.as_str();
        Some(c)
    }

    fn push(&mut self, c: char) {
        self.word.get_or_insert_default().push(c);
    }

    fn end_word(&mut self) {
        if let Some(word) = self.word.take()
            && !std::mem::take(&mut self.target)
        {
            self.line.tokens.push(Token::Word(word));
        }
    }

    fn operator(&mut self, token: Token) {
        self.end_word();
        self.target = false;
        self.line.needs_shell = true;
        self.line.tokens.push(token);
    }

    fn take(&mut self, c: char) -> Option<()> {
        match c {
            c if c.is_ascii_whitespace() => self.end_word(),
            '\'' => {
                let (inner, rest) = self.rest.split_once('\'')?;
                self.word.get_or_insert_default().push_str(inner);
                self.rest = rest;
            }
            '"' => self.double_quoted()?,
            '\\' => {
                let c = self.next()?;
                self.push(c);
            }
            '$' => self.dollar(),
            '|' if self.rest.starts_with('|') => {
                self.next();
                self.operator(Token::Next);
            }
            '|' => self.operator(Token::Pipe),
            ';' | '&' | '(' | ')' => self.operator(Token::Next),
            '<' | '>' => self.redirection(),
            '#' if self.word.is_none() => {
                self.line.needs_shell = true;
                self.rest = "";
            }
            '`' | '*' | '?' | '[' | '~' => {
                self.line.needs_shell = true;
                self.push(c);
            }
            c => self.push(c),
        }
        Some(())
    }

    fn double_quoted(&mut self) -> Option<()> {
        self.word.get_or_insert_default();
        loop {
            match self.next()? {
                '"' => return Some(()),
                '\\' => match self.next()? {
                    c if matches!(c, '"' | '\\' | '$' | '`') => self.push(c),
                    c => {
                        self.push('\\');
                        self.push(c);
                    }
                },
                '$' => self.dollar(),
                '`' => {
                    self.line.needs_shell = true;
                    self.push('`');
                }
                c => self.push(c),
            }
        }
    }

    /// A macro stays as it is; everything else behind a dollar is the shell's.
    fn dollar(&mut self) {
        for name in MACROS {
            if let Some(rest) = name.strip_prefix('$').and_then(|name| self.rest.strip_prefix(name)) {
                self.word.get_or_insert_default().push_str(name);
                self.rest = rest;
                return;
            }
        }
        self.line.needs_shell = true;
        self.push('$');
    }

    /// `>file`, `2>&1`, `<<word`: left out with its number and its target.
    fn redirection(&mut self) {
        if self.word.as_ref().is_some_and(|word| word.bytes().all(|byte| byte.is_ascii_digit())) {
            self.word = None;
        }
        self.end_word();
        self.line.needs_shell = true;
        self.rest = self.rest.trim_start_matches(['<', '>', '&', '|']);
        self.target = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Option<Vec<String>> {
        Line::of(text).and_then(|line| line.words())
    }

    #[test]
    fn words_are_taken_apart_as_a_shell_does() {
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
    fn what_needs_a_shell_is_not_taken_for_words() {
        for text in [
            "x | y", "x && y", "x; y", "x &", "x > f", "x 2>&1", "x $HOME", "x `y`", "x *.c", "x ~", "A=1 x", "(x)",
            "x # y",
        ] {
            assert_eq!(words(text), None, "{text}");
        }
        for unclosed in ["x 'y", "x \"y", "x \\"] {
            assert_eq!(Line::of(unclosed), None, "{unclosed}");
        }
        assert!(words("x '|' \"&&\" a\\;b").is_some());
    }

    #[test]
    fn commands_are_told_apart_and_redirections_left_out() {
        let line = Line::of("a 1 2>&1 >/dev/null && (b | c 2) ; d & e || f 2> g").unwrap();
        let expected =
            [vec![vec!["a", "1"]], vec![vec!["b"], vec!["c", "2"]], vec![vec!["d"]], vec![vec!["e"]], vec![vec!["f"]]];
        assert_eq!(line.pipelines(), expected);
    }
}
