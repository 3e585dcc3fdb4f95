//! Formats keys, values and comments as a TOML file. The result is valid TOML for any input: texts are escaped, and
//! comments remain comments.

use std::fmt;

use crate::types::printable::escaped;

/// A value of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TomlValue {
    Text(String),
    Switch(bool),
    Number(u8),
    Texts(Vec<String>),
}

impl TomlValue {
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }
}

impl fmt::Display for TomlValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "\"{}\"", text.chars().map(escape).collect::<String>()),
            Self::Switch(switch) => switch.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Texts(texts) => {
                let texts: Vec<String> = texts.iter().map(|text| Self::text(text).to_string()).collect();
                // A long list gets one line per item.
                if texts.len() > 4 {
                    write!(f, "[\n    {},\n]", texts.join(",\n    "))
                } else {
                    write!(f, "[{}]", texts.join(", "))
                }
            }
        }
    }
}

fn escape(c: char) -> String {
    match c {
        '"' | '\\' => format!("\\{c}"),
        '\n' => "\\n".to_owned(),
        '\r' => "\\r".to_owned(),
        '\t' => "\\t".to_owned(),
        c if escaped(c).starts_with('\\') => format!("\\U{:08x}", u32::from(c)),
        c => c.to_string(),
    }
}

/// The tables, in the order in which they are written; the first is the root.
const TABLES: [&str; 11] = [
    "",
    "tcp",
    "udp",
    "detect",
    "allow",
    "block",
    "block.nft",
    "block.route",
    "block.hosts_deny",
    "block.run",
    "report",
];

/// A TOML file that is being built.
#[derive(Debug, Default)]
pub(super) struct Document {
    head: String,
    tables: [String; TABLES.len()],
    tail: String,
}

impl Document {
    /// Adds a comment before all tables.
    pub(super) fn head(&mut self, remark: &str) {
        comment(&mut self.head, remark);
    }

    /// Adds a comment after all tables.
    pub(super) fn tail(&mut self, remark: &str) {
        comment(&mut self.tail, remark);
    }

    /// Adds `key = value` to `table`, with a comment before it.
    pub(super) fn set(&mut self, table: &str, key: &str, value: &TomlValue, remark: &str) {
        let text = self.table(table);
        // A table gets its header with its first key; comments need none.
        if !table.is_empty() && !text.starts_with('[') {
            text.insert_str(0, &format!("[{table}]\n"));
        }
        comment(text, remark);
        text.push_str(&format!("{key} = {value}\n\n"));
    }

    /// Adds a comment to `table`, for an option that is not translated to a key.
    pub(super) fn remark(&mut self, table: &str, remark: &str) {
        let text = self.table(table);
        comment(text, remark);
        text.push('\n');
    }

    fn table(&mut self, name: &str) -> &mut String {
        let mut tables = TABLES.iter().zip(&mut self.tables);
        let table = tables.find_map(|(table, text)| (*table == name).then_some(text));
        debug_assert!(table.is_some(), "{name}");
        table.unwrap_or(&mut self.tail)
    }
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}\n{}{}", self.head, self.tables.concat(), self.tail);
        writeln!(f, "{}", text.trim_end())
    }
}

/// Appends `remark` as comment lines of at most about a hundred characters.
fn comment(text: &mut String, remark: &str) {
    const WIDTH: usize = 100;
    for paragraph in remark.lines() {
        let mut column = 0;
        for word in paragraph.split(' ').filter(|word| !word.is_empty()) {
            let word: String = word.chars().map(escaped).collect();
            let length = word.chars().count();
            let (glue, start) = match column {
                0 => ("# ", 2),
                column if column + 1 + length > WIDTH => ("\n# ", 2),
                column => (" ", column + 1),
            };
            text.push_str(glue);
            text.push_str(&word);
            column = start + length;
        }
        text.push_str(if column == 0 { "#\n" } else { "\n" });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_ordered_and_nonempty() {
        let mut document = Document::default();
        document.head("Head.");
        document.set("tcp", "mode", &TomlValue::text("off"), "Why.");
        document.set("", "expire", &TomlValue::text("24h"), "");
        document.remark("allow", "Nothing.");
        document.set("block.run", "command", &TomlValue::Texts(vec!["a".into(), "b".into()]), "");
        document.tail("End.");
        let expected = "# Head.\n\nexpire = \"24h\"\n\n[tcp]\n# Why.\nmode = \"off\"\n\n# Nothing.\n\n[block.run]\n\
                        command = [\"a\", \"b\"]\n\n# End.\n";
        assert_eq!(document.to_string(), expected);
    }

    #[test]
    fn comments_are_wrapped_and_stay_comments() {
        let mut text = String::new();
        comment(&mut text, &format!("a\tb \r x\n\n{} {}", "y".repeat(70), "z".repeat(40)));
        assert_eq!(text, format!("# a\\tb \\r x\n#\n# {}\n# {}\n", "y".repeat(70), "z".repeat(40)));
    }

    #[test]
    fn text_reads_back_unchanged() {
        for text in ["", "a\"b\\c", "\0\u{1b}\u{7f}\u{85}\u{202e}\u{feff}\u{e000}\u{10ffff}", "é\r\n\t", "'''\"\"\""] {
            let toml = format!("key = {}\nlist = {}\n", TomlValue::text(text), TomlValue::Texts(vec![text.into(); 5]));
            let read = toml::de::DeTable::parse(&toml).unwrap();
            assert_eq!(read.get_ref().get("key").unwrap().get_ref().as_str(), Some(text), "{toml}");
        }
    }
}
