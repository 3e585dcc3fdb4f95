//! Parses the options of a `portsentry.conf`: `KEY="value"`, with blanks allowed around `=`, and `#` comments. It does
//! not interpret the values.
//!
//! PortSentry 1.2 searches the file for each option and uses the first line that begins with it, without a leading
//! blank. 2.0.x reads line by line, uses the last value, and refuses unknown options. Both end a value at the first
//! quote after its opening quote.

use super::diagnostics::quoted;
use super::output::{OptionLine, Output};
use super::source::{InputFile, MAX_LEN};

/// Every option of 1.2, 2.0b1 and 2.0.x.
const KEYS: &str = "TCP_PORTS UDP_PORTS ADVANCED_PORTS_TCP ADVANCED_PORTS_UDP ADVANCED_EXCLUDE_TCP ADVANCED_EXCLUDE_UDP \
                    INTERFACE_ADDRESS IGNORE_FILE HISTORY_FILE BLOCKED_FILE RESOLVE_HOST BLOCK_TCP BLOCK_UDP KILL_ROUTE \
                    KILL_HOSTS_DENY KILL_RUN_CMD KILL_RUN_CMD_FIRST SCAN_TRIGGER PORT_BANNER";

/// Options of Debian's /etc/default/portsentry, which some users also write into this file.
pub(super) const MODES: [&str; 2] = ["TCP_MODE", "UDP_MODE"];

/// Prefix of the options that 2.0.x has dropped: a file with one of them is for 1.2.
const ONLY_1_2: &str = "ADVANCED_";

/// Commands and templates, whose values may contain quotes.
const COMMANDS: [&str; 3] = ["KILL_ROUTE", "KILL_HOSTS_DENY", "KILL_RUN_CMD"];

/// The options of one file, in the order of the file.
#[derive(Debug, Default)]
pub(super) struct Options<'s> {
    pub(super) file: &'s str,
    known: Vec<OptionLine<'s>>,
    /// Options that no version of PortSentry has.
    pub(super) unknown: Vec<OptionLine<'s>>,
}

impl<'s> Options<'s> {
    pub(super) fn new(source: &'s InputFile) -> Self {
        Self { file: &source.name, ..Self::default() }
    }

    /// Adds a known option; if it has several lines, the last one counts.
    pub(super) fn replace(&mut self, entry: OptionLine<'s>) {
        self.known.retain(|known| known.key != entry.key);
        self.known.push(entry);
    }

    /// The option; `None` if it is absent, or empty, which classic treats as absent.
    pub(super) fn get(&self, key: &str) -> Option<&OptionLine<'s>> {
        self.known.iter().find(|entry| entry.key == key).filter(|entry| !entry.value.trim().is_empty())
    }

    /// Parses `source`; `None` if it is not a configuration of PortSentry, which is then the only error.
    pub(super) fn parse(source: &'s InputFile, output: &mut Output) -> Option<Self> {
        let names_an_option = |text| name(text).is_some_and(is_known);
        if source.bytes.len() > MAX_LEN {
            output.errors.add(&source.name, None, None, "the file is larger than 1 MiB; name a portsentry.conf");
            return None;
        }
        if !lines(source).any(|(_, text)| std::str::from_utf8(text).is_ok_and(names_an_option)) {
            let message = "not a configuration of PortSentry: the file has none of its options, such as \
                           TCP_PORTS=\"1,11,15\"; name a portsentry.conf";
            output.errors.add(&source.name, None, None, message);
            return None;
        }
        let mut entries = Vec::new();
        for (line, text) in lines(source) {
            match entry(&source.name, line, text.trim_ascii_start(), output) {
                Ok(entry) => entries.push((entry, text.starts_with(b" ") || text.starts_with(b"\t"))),
                Err((key, message)) => output.errors.add(&source.name, Some(line), key, message),
            }
        }
        let is_1_2 = entries.iter().any(|(entry, _)| is_known(&entry.key) && entry.key.starts_with(ONLY_1_2));
        let mut options = Self::new(source);
        for (entry, is_indented) in entries {
            let key = entry.key.as_str();
            if is_1_2 && is_indented && is_known(key) {
                output.add_note(&entry, "the line begins with a blank, so PortSentry 1.2 skips it; left out");
            } else if is_known(key) || MODES.contains(&key) {
                options.insert(entry, is_1_2, output);
            } else {
                options.unknown.push(entry);
            }
        }
        if is_1_2 && options.known.is_empty() {
            let message = "every option has a blank before it, so PortSentry 1.2 reads none; remove the blanks";
            output.errors.add(&source.name, None, None, message);
        }
        Some(options)
    }

    fn insert(&mut self, entry: OptionLine<'s>, is_1_2: bool, output: &mut Output) {
        let before = self.known.iter().find(|known| known.key == entry.key);
        if let Some(before) = before.filter(|before| before.value != entry.value) {
            let taken = if is_1_2 {
                "the first line is used, as in PortSentry 1.2 (2.0 uses the last)"
            } else {
                "this last line is used, as in PortSentry 2.0 (1.2 uses the first)"
            };
            let message = format!("also set in line {}; {taken}. Delete the wrong line", before.line);
            output.add_note(&entry, &message);
        }
        if before.is_none() || !is_1_2 {
            self.replace(entry);
        }
    }
}

fn is_known(key: &str) -> bool {
    KEYS.split(' ').any(|known| known == key)
}

/// The lines that are neither blank nor comments, numbered from 1. Leading blanks are kept.
pub(super) fn lines(source: &InputFile) -> impl Iterator<Item = (usize, &[u8])> {
    let bytes = source.bytes.get(..MAX_LEN).unwrap_or(&source.bytes);
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let numbered = (1..).zip(bytes.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end));
    numbered.filter(|(_, line)| !matches!(line.trim_ascii_start(), [] | [b'#', ..]))
}

/// The name before the `=` of a line.
pub(super) fn name(text: &str) -> Option<&str> {
    let name = text.split_once('=')?.0.trim();
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    (starts && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')).then_some(name)
}

/// Parses a line. The error is the option, if it is recognisable, and a message.
fn entry<'s>(
    file: &'s str,
    line: usize,
    text: &'s [u8],
    output: &mut Output,
) -> Result<OptionLine<'s>, (Option<&'s str>, String)> {
    let Ok(text) = std::str::from_utf8(text) else {
        return Err((None, "invalid UTF-8; save the file as UTF-8".to_owned()));
    };
    let Some((key, (_, rest))) = name(text).zip(text.split_once('=')) else {
        return Err((
            None,
            format!(
                "{} does not have the form KEY=\"value\"; correct the line, or make it a comment with #",
                quoted(text)
            ),
        ));
    };
    let rest = rest.trim_start();
    let entry = |value: &str| OptionLine { file, line, key: key.to_owned(), value: value.to_owned() };
    let Some(quote) = rest.chars().next().filter(|c| matches!(c, '"' | '\'')) else {
        let entry = entry(rest.split(" #").next().unwrap_or("").trim_end());
        output.add_note(&entry, "the value has no quotes, so classic PortSentry skips the line; the value is used");
        return Ok(entry);
    };
    let inner = rest.get(1..).unwrap_or("");
    let Some((value, after)) = inner.split_once(quote) else {
        return Err((Some(key), format!("the closing quote is missing; write {key}=\"value\" on one line")));
    };
    if after.trim_start().is_empty() || after.trim_start().starts_with('#') {
        return Ok(entry(value));
    }
    // For a quote inside a command, as in `sed -e "/x/d"`, the last quote on the line is the closing one.
    if COMMANDS.contains(&key)
        && !value.trim().is_empty()
        && let Some(value) = inner.strip_suffix(quote)
    {
        let entry = entry(&value.replace("\\\"", "\""));
        output.add_note(
            &entry,
            "the value contains quotes, so classic PortSentry ends it at the first inner one; the whole value is \
             used",
        );
        return Ok(entry);
    }
    let after = quoted(after);
    Err((
        Some(key),
        format!("{after} follows the closing quote; write {key}=\"value\" without quotes inside the value"),
    ))
}

#[cfg(test)]
mod tests {
    use super::super::Sources;
    use super::super::diagnostics::Diagnostics;
    use super::*;

    fn read(bytes: &[u8]) -> (Options<'static>, Vec<String>, Vec<String>) {
        let config = InputFile { name: "f".to_owned(), bytes: bytes.to_vec() };
        let sources: &Sources = Box::leak(Box::new(Sources { config, ..Sources::default() }));
        let mut output = Output::new(sources);
        let options = Options::parse(&sources.config, &mut output).unwrap_or_default();
        let texts = |list: Diagnostics| list.into_vec().iter().map(ToString::to_string).collect();
        (options, texts(output.errors), texts(output.notes))
    }

    #[test]
    fn syntax_of_every_version_is_read() {
        for text in [
            "SCAN_TRIGGER=\"1\"",
            "SCAN_TRIGGER = \"1\"\n",
            "\u{feff}SCAN_TRIGGER\t=\t\"1\"  \r\n",
            "# a comment\n\n  SCAN_TRIGGER=\"1\" # and one behind it\n",
            "#SCAN_TRIGGER=\"5\"\nSCAN_TRIGGER='1'\n",
        ] {
            let (options, errors, notes) = read(text.as_bytes());
            assert_eq!(options.get("SCAN_TRIGGER").map(|entry| entry.value.as_str()), Some("1"), "{text:?}");
            assert!(errors.is_empty() && notes.is_empty(), "{errors:?} {notes:?}");
        }
    }

    #[test]
    fn classic_skipped_lines_are_imported_with_note() {
        let (options, errors, notes) = read(b"BLOCK_TCP=1 # yes\nKILL_ROUTE=\"sed -e \\\"/x/d\\\" -i \"f\" \"\n");
        assert!(errors.is_empty());
        assert_eq!(options.get("BLOCK_TCP").unwrap().value, "1");
        assert_eq!(options.get("KILL_ROUTE").unwrap().value, "sed -e \"/x/d\" -i \"f\" ");
        assert_eq!(notes.len(), 2);
    }

    #[test]
    fn repeated_option_is_reported_unless_equal() {
        let (options, _, notes) = read(b"BLOCK_TCP=\"1\"\nBLOCK_TCP=\"0\"\nBLOCK_UDP=\"1\"\nBLOCK_UDP=\"1\"\n");
        assert_eq!(options.get("BLOCK_TCP").unwrap().value, "0");
        assert_eq!(notes.len(), 1);
        assert!(notes[0].starts_with("f:2: BLOCK_TCP: also set in line 1"), "{notes:?}");
    }

    #[test]
    fn first_unindented_line_counts_in_1_2() {
        let (options, errors, notes) = read(
            b"ADVANCED_PORTS_TCP=\"1024\"\n KILL_ROUTE=\"a\"\nKILL_ROUTE=\"b\"\nKILL_ROUTE=\"c\"\n\tBLOCK_TCP=\"1\"\n",
        );
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(options.get("KILL_ROUTE").unwrap().value, "b");
        assert!(options.get("BLOCK_TCP").is_none());
        assert_eq!(notes.len(), 3, "{notes:?}");
        assert!(notes[0].starts_with("f:2: KILL_ROUTE: the line begins with a blank"), "{notes:?}");
        assert!(notes[1].starts_with("f:4: KILL_ROUTE: also set in line 3; the first line"), "{notes:?}");
    }

    #[test]
    fn all_wrong_lines_are_named() {
        let bytes = b"BLOCK_TCP=\"1\"\nBLOCK_UDP=\"1\nnonsense\n# caf\xe9 is fine here\nPORT_BANNER=\"caf\xe9\"\n\
                      TCP_PORTS=\"1\"2\"\nKILL_RUN_CMD=\"\"/bin/x\"\n";
        let (_, errors, _) = read(bytes);
        assert_eq!(
            errors,
            [
                "f:2: BLOCK_UDP: the closing quote is missing; write BLOCK_UDP=\"value\" on one line",
                "f:3: \"nonsense\" does not have the form KEY=\"value\"; correct the line, or make it a comment with #",
                "f:5: invalid UTF-8; save the file as UTF-8",
                "f:6: TCP_PORTS: \"2\"\" follows the closing quote; write TCP_PORTS=\"value\" without quotes inside \
                 the value",
                "f:7: KILL_RUN_CMD: \"/bin/x\"\" follows the closing quote; write KILL_RUN_CMD=\"value\" without \
                 quotes inside the value",
            ]
        );
    }

    #[test]
    fn unrelated_file_gets_one_error() {
        for text in ["", "# nothing\n", "expire = \"24h\"\n[tcp]\nmode = \"off\"\n", "\0\u{1}\u{2}\n\u{7f}ELF\n"] {
            let (_, errors, _) = read(text.as_bytes());
            assert_eq!(errors.len(), 1, "{text:?}");
            assert!(errors[0].starts_with("f: not a configuration of PortSentry"), "{errors:?}");
        }
        let (_, errors, _) = read("x\n".repeat(600_000).as_bytes());
        assert_eq!(errors, ["f: the file is larger than 1 MiB; name a portsentry.conf"]);
    }
}
