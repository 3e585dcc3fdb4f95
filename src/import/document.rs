//! Keys, values and comments to the text of a TOML file. Whatever goes in, TOML comes out: texts are escaped, comments
//! stay comments.

use std::fmt::{self, Write as _};

use super::finding::Printable;

/// A value of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Switch(bool),
    Number(u8),
    Texts(Vec<String>),
}

impl Value {
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => {
                text.chars().try_fold(f.write_char('"')?, |(), c| escape(f, c)).and_then(|()| f.write_char('"'))
            }
            Self::Switch(switch) => switch.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Texts(texts) => {
                f.write_char('[')?;
                // A long list gets a line an item.
                let long = texts.len() > 4;
                for (index, text) in texts.iter().enumerate() {
                    f.write_str(if long {
                        "\n    "
                    } else if index > 0 {
                        ", "
                    } else {
                        ""
                    })?;
                    Self::text(text).fmt(f)?;
                    f.write_str(if long { "," } else { "" })?;
                }
                f.write_str(if long { "\n]" } else { "]" })
            }
        }
    }
}

fn escape(f: &mut fmt::Formatter<'_>, c: char) -> fmt::Result {
    match c {
        '"' | '\\' => write!(f, "\\{c}"),
        '\n' => f.write_str("\\n"),
        '\r' => f.write_str("\\r"),
        '\t' => f.write_str("\\t"),
        c if Printable(c).to_string().starts_with('\\') => {
            let code = u32::from(c);
            if code > 0xffff { write!(f, "\\U{code:08x}") } else { write!(f, "\\u{code:04x}") }
        }
        c => f.write_char(c),
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

/// A file in the making.
#[derive(Debug, Default)]
pub(super) struct Document {
    head: String,
    tables: [Table; TABLES.len()],
    tail: String,
}

#[derive(Debug, Default)]
struct Table {
    text: String,
    keys: usize,
}

impl Document {
    /// A comment before everything.
    pub(super) fn head(&mut self, remark: &str) {
        comment(&mut self.head, remark);
    }

    /// A comment after everything.
    pub(super) fn tail(&mut self, remark: &str) {
        comment(&mut self.tail, remark);
    }

    /// `key = value` in `table`, with a comment before it.
    pub(super) fn set(&mut self, table: &str, key: &str, value: &Value, remark: &str) {
        if let Some(table) = self.table(table) {
            comment(&mut table.text, remark);
            // Writing to a string cannot fail.
            let _ = writeln!(table.text, "{key} = {value}\n");
            table.keys += 1;
        }
    }

    /// A comment in `table`, for what has become of no key.
    pub(super) fn remark(&mut self, table: &str, remark: &str) {
        if let Some(table) = self.table(table) {
            comment(&mut table.text, remark);
            table.text.push('\n');
        }
    }

    fn table(&mut self, name: &str) -> Option<&mut Table> {
        let index = TABLES.iter().position(|table| *table == name);
        debug_assert!(index.is_some(), "{name}");
        self.tables.get_mut(index?)
    }
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("{}\n", self.head);
        for (name, table) in TABLES.iter().zip(&self.tables) {
            if table.keys > 0 && !name.is_empty() {
                let _ = writeln!(text, "[{name}]");
            }
            text.push_str(&table.text);
        }
        text.push_str(&self.tail);
        writeln!(f, "{}", text.trim_end())
    }
}

/// `remark` as comment lines of at most some hundred characters.
fn comment(text: &mut String, remark: &str) {
    const WIDTH: usize = 100;
    for paragraph in remark.lines() {
        let mut column = 0;
        for word in paragraph.split(' ').filter(|word| !word.is_empty()) {
            let word: String = word.chars().map(|c| Printable(c).to_string()).collect();
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
    fn tables_come_in_their_order_and_empty_ones_not_at_all() {
        let mut document = Document::default();
        document.head("Head.");
        document.set("tcp", "mode", &Value::text("off"), "Why.");
        document.set("", "expire", &Value::text("24h"), "");
        document.remark("allow", "Nothing.");
        document.set("block.run", "command", &Value::Texts(vec!["a".into(), "b".into()]), "");
        document.tail("End.");
        let expected = "# Head.\n\nexpire = \"24h\"\n\n[tcp]\n# Why.\nmode = \"off\"\n\n# Nothing.\n\n[block.run]\n\
                        command = [\"a\", \"b\"]\n\n# End.\n";
        assert_eq!(document.to_string(), expected);
    }

    #[test]
    fn comments_are_wrapped_and_stay_comments() {
        let mut text = String::new();
        comment(&mut text, &format!("a\tb \r x\n\n{} {}", "y".repeat(70), "z".repeat(40)));
        assert_eq!(text, format!("# a\\u{{9}}b \\u{{d}} x\n#\n# {}\n# {}\n", "y".repeat(70), "z".repeat(40)));
    }

    #[test]
    fn a_text_reads_back_as_it_was() {
        for text in ["", "a\"b\\c", "\0\u{1b}\u{7f}\u{85}\u{202e}\u{feff}\u{e000}\u{10ffff}", "é\r\n\t", "'''\"\"\""] {
            let toml = format!("key = {}\nlist = {}\n", Value::text(text), Value::Texts(vec![text.into(); 5]));
            let read = toml::de::DeTable::parse(&toml).unwrap();
            assert_eq!(read.get_ref().get("key").unwrap().get_ref().as_str(), Some(text), "{toml}");
        }
    }
}
