//! The text of a `portsentry.conf` to its options: `KEY="value"`, blanks around `=` allowed, `#` comments. What the options
//! mean is not done here.
//!
//! PortSentry 1.2 searches the file for each option and takes the first line that has it; 2.0.x reads line by line, so that
//! the last one holds, and refuses what it does not know. Both end a value at the first quote that follows.

use std::collections::BTreeMap;

use super::finding::{Findings, quoted};
use super::{LARGEST, Source};

/// Every option of 1.2, 2.0b1 and 2.0.x.
pub(super) const KEYS: [&str; 19] = [
    "TCP_PORTS",
    "UDP_PORTS",
    "ADVANCED_PORTS_TCP",
    "ADVANCED_PORTS_UDP",
    "ADVANCED_EXCLUDE_TCP",
    "ADVANCED_EXCLUDE_UDP",
    "INTERFACE_ADDRESS",
    "IGNORE_FILE",
    "HISTORY_FILE",
    "BLOCKED_FILE",
    "RESOLVE_HOST",
    "BLOCK_TCP",
    "BLOCK_UDP",
    "KILL_ROUTE",
    "KILL_HOSTS_DENY",
    "KILL_RUN_CMD",
    "KILL_RUN_CMD_FIRST",
    "SCAN_TRIGGER",
    "PORT_BANNER",
];

/// Commands and templates, in which a quote may be meant.
const COMMANDS: [&str; 3] = ["KILL_ROUTE", "KILL_HOSTS_DENY", "KILL_RUN_CMD"];

/// One option as it stands in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) value: String,
    pub(super) line: usize,
}

impl Entry {
    /// Where it comes from, for a comment.
    pub(super) fn origin(&self) -> String {
        format!("{}={} (line {})", self.key, quoted(&self.value), self.line)
    }
}

/// The options of one file.
#[derive(Debug, Default)]
pub(super) struct Classic {
    known: BTreeMap<String, Entry>,
    /// Options that no PortSentry has, in the order of the file.
    pub(super) unknown: Vec<Entry>,
}

impl Classic {
    /// The option, unless it is absent, or empty, which classic takes for absent.
    pub(super) fn get(&self, key: &str) -> Option<&Entry> {
        self.known.get(key).filter(|entry| !entry.value.trim().is_empty())
    }

    /// True where not one option is known.
    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Reads `source`. What is wrong goes to `errors`; where not one option is known, nothing else does.
    pub(super) fn read(source: &Source, errors: &mut Findings, notes: &mut Findings) -> Self {
        let mut classic = Self::default();
        let mut wrong = Findings::about(&source.name);
        for (line, text) in lines(source) {
            match entry(line, text, notes) {
                Ok(entry) if KEYS.contains(&entry.key.as_str()) => classic.put(entry, notes),
                Ok(entry) => classic.unknown.push(entry),
                Err((key, message)) => wrong.add(Some(line), key.as_deref(), message),
            }
        }
        if source.bytes.len() > LARGEST {
            errors.add(None, None, "is larger than 1 MiB; name a portsentry.conf".to_owned());
        } else if classic.known.is_empty() && !wrong.mentions(&KEYS) {
            let message = "is no configuration of PortSentry: it has none of its options, such as \
                           TCP_PORTS=\"1,11,15\"; name a portsentry.conf";
            errors.add(None, None, message.to_owned());
        } else {
            errors.append(wrong);
        }
        classic
    }

    fn put(&mut self, entry: Entry, notes: &mut Findings) {
        let (key, line) = (entry.key.clone(), entry.line);
        if let Some(before) = self.known.insert(key.clone(), entry)
            && self.known.get(&key).is_some_and(|entry| entry.value != before.value)
        {
            let message = format!(
                "stands in line {} too; this one, the last, is taken, as PortSentry 2.0 does. 1.2 takes the first: \
                 delete the line that you do not mean",
                before.line
            );
            notes.add(Some(line), Some(&key), message);
        }
    }
}

/// The lines that say something, numbered from 1.
pub(super) fn lines(source: &Source) -> impl Iterator<Item = (usize, &[u8])> {
    let bytes = source.bytes.get(..LARGEST).unwrap_or(&source.bytes);
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let numbered = (1..).zip(bytes.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii));
    numbered.filter(|(_, line)| !line.is_empty() && !line.starts_with(b"#"))
}

/// True where `key` looks like the name of an option.
pub(super) fn is_name(key: &str) -> bool {
    key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// What is wrong with a line: the option, if it can be told, and a sentence.
type Wrong = (Option<String>, String);

fn entry(line: usize, text: &[u8], notes: &mut Findings) -> Result<Entry, Wrong> {
    let Ok(text) = std::str::from_utf8(text) else {
        return Err((None, "is not UTF-8; save the file as UTF-8".to_owned()));
    };
    let Some((key, rest)) = text.split_once('=').filter(|(key, _)| is_name(key.trim_end())) else {
        return Err((None, format!("{} is not KEY=\"value\"; write it so, or put # before it", quoted(text))));
    };
    let (key, rest) = (key.trim_end().to_owned(), rest.trim_start());
    let Some(quote) = rest.chars().next().filter(|c| matches!(c, '"' | '\'')) else {
        let value = rest.split(" #").next().unwrap_or("").trim_end().to_owned();
        notes.add(Some(line), Some(&key), "has no quotes, and classic skips it; taken as it is meant".to_owned());
        return Ok(Entry { key, value, line });
    };
    let inner = rest.get(1..).unwrap_or("");
    let Some((value, after)) = inner.split_once(quote) else {
        let message = format!("has no closing quote; write {key}=\"value\" on one line");
        return Err((Some(key), message));
    };
    if after.trim_start().is_empty() || after.trim_start().starts_with('#') {
        return Ok(Entry { key, value: value.to_owned(), line });
    }
    // A quote within a command, as in `sed -e "/x/d"`: the last one on the line is the closing one.
    if COMMANDS.contains(&key.as_str())
        && !value.trim().is_empty()
        && let Some(value) = inner.strip_suffix(quote)
    {
        let message = "has quotes within its quotes, and classic ends it at the second one; taken as a whole";
        notes.add(Some(line), Some(&key), message.to_owned());
        return Ok(Entry { key, value: value.replace("\\\"", "\""), line });
    }
    let message =
        format!("{} follows the closing quote; write {key}=\"value\", with no quote like that within", quoted(after));
    Err((Some(key), message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Classic, Vec<String>, Vec<String>) {
        let source = Source { name: "f".to_owned(), bytes: text.as_bytes().to_vec() };
        let (mut errors, mut notes) = (Findings::about("f"), Findings::about("f"));
        let classic = Classic::read(&source, &mut errors, &mut notes);
        let texts = |findings: Findings| findings.into_vec().iter().map(ToString::to_string).collect();
        (classic, texts(errors), texts(notes))
    }

    #[test]
    fn the_syntaxes_of_every_version_are_read() {
        for text in [
            "SCAN_TRIGGER=\"1\"",
            "SCAN_TRIGGER = \"1\"\n",
            "\u{feff}SCAN_TRIGGER\t=\t\"1\"  \r\n",
            "# a comment\n\n  SCAN_TRIGGER=\"1\" # and one behind it\n",
            "#SCAN_TRIGGER=\"5\"\nSCAN_TRIGGER='1'\n",
        ] {
            let (classic, errors, notes) = read(text);
            assert_eq!(classic.get("SCAN_TRIGGER").map(|entry| entry.value.as_str()), Some("1"), "{text:?}");
            assert!(errors.is_empty() && notes.is_empty(), "{errors:?} {notes:?}");
        }
    }

    #[test]
    fn what_classic_skips_is_taken_as_meant_and_said() {
        let (classic, errors, notes) = read("BLOCK_TCP=1 # yes\nKILL_ROUTE=\"sed -e \\\"/x/d\\\" -i \"f\" \"\n");
        assert!(errors.is_empty());
        assert_eq!(classic.get("BLOCK_TCP").unwrap().value, "1");
        assert_eq!(classic.get("KILL_ROUTE").unwrap().value, "sed -e \"/x/d\" -i \"f\" ");
        assert_eq!(notes.len(), 2);
    }

    #[test]
    fn an_option_that_stands_twice_is_said_unless_both_say_the_same() {
        let (classic, _, notes) = read("BLOCK_TCP=\"1\"\nBLOCK_TCP=\"0\"\nBLOCK_UDP=\"1\"\nBLOCK_UDP=\"1\"\n");
        assert_eq!(classic.get("BLOCK_TCP").unwrap().value, "0");
        assert_eq!(notes.len(), 1);
        assert!(notes[0].starts_with("f:2: BLOCK_TCP: stands in line 1 too"), "{notes:?}");
    }

    #[test]
    fn every_wrong_line_is_named_in_one_run() {
        let bytes = b"BLOCK_TCP=\"1\"\nBLOCK_UDP=\"1\nnonsense\n# caf\xe9 is fine here\nPORT_BANNER=\"caf\xe9\"\n\
                      TCP_PORTS=\"1\"2\"\nKILL_RUN_CMD=\"\"/bin/x\"\n";
        let source = Source { name: "f".to_owned(), bytes: bytes.to_vec() };
        let (mut errors, mut notes) = (Findings::about("f"), Findings::about("f"));
        Classic::read(&source, &mut errors, &mut notes);
        let errors: Vec<String> = errors.into_vec().iter().map(ToString::to_string).collect();
        assert_eq!(
            errors,
            [
                "f:2: BLOCK_UDP: has no closing quote; write BLOCK_UDP=\"value\" on one line",
                "f:3: \"nonsense\" is not KEY=\"value\"; write it so, or put # before it",
                "f:5: is not UTF-8; save the file as UTF-8",
                "f:6: TCP_PORTS: \"2\"\" follows the closing quote; write TCP_PORTS=\"value\", with no quote like that within",
                "f:7: KILL_RUN_CMD: \"/bin/x\"\" follows the closing quote; write KILL_RUN_CMD=\"value\", with no quote like \
                 that within",
            ]
        );
    }

    #[test]
    fn what_is_something_else_gets_one_sentence() {
        for text in ["", "# nothing\n", "expire = \"24h\"\n[tcp]\nmode = \"off\"\n", "\0\u{1}\u{2}\n\u{7f}ELF\n"] {
            let (_, errors, _) = read(text);
            assert_eq!(errors.len(), 1, "{text:?}");
            assert!(errors[0].starts_with("f: is no configuration of PortSentry"), "{errors:?}");
        }
        let (_, errors, _) = read(&"x\n".repeat(600_000));
        assert_eq!(errors, ["f: is larger than 1 MiB; name a portsentry.conf"]);
    }
}
