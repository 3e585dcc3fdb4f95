//! A TOML document to values, one key at a time. Collects what is wrong instead of stopping at it, and knows after the
//! walk which keys were asked for: every other key in the file is an unknown one. What the keys mean is not done here.

use super::error::{ConfigError, Lines};
use std::collections::BTreeMap;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What one walk over a document finds.
pub(super) struct Walk<'d> {
    file: &'d str,
    lines: &'d Lines<'d>,
    errors: Vec<ConfigError>,
    unknown: Vec<(String, Range<usize>)>,
    /// Dotted keys that were asked for, with where their value stands if they are in the file.
    keys: BTreeMap<String, Option<Range<usize>>>,
    tables: Vec<String>,
}

impl<'d> Walk<'d> {
    /// Reads `document` with `read`; `lines` are those of its text, `file` is its name.
    pub(super) fn over(
        file: &'d str,
        lines: &'d Lines<'d>,
        document: &'d DeTable<'d>,
        read: impl FnOnce(&mut Section<'_, 'd>),
    ) -> Self {
        let (errors, unknown, keys, tables) = (Vec::new(), Vec::new(), BTreeMap::new(), Vec::new());
        let mut walk = Self { file, lines, errors, unknown, keys, tables };
        Section { walk: &mut walk, path: String::new(), table: Some(document), asked: Vec::new() }.finish(read);
        walk
    }

    /// Everything wrong so far; `others` are complaints about keys as they stand together.
    pub(super) fn into_errors(mut self, others: Vec<(String, String)>) -> Vec<ConfigError> {
        for (key, span) in std::mem::take(&mut self.unknown) {
            let message = self.unknown_key(&key);
            self.refuse(key, Some(span), message);
        }
        for (key, message) in others {
            let span = self.keys.get(&key).cloned().flatten();
            self.refuse(key, span, message);
        }
        self.errors
    }

    /// The dotted keys that were asked for.
    pub(super) fn into_keys(self) -> Vec<String> {
        self.keys.into_keys().collect()
    }

    fn refuse(&mut self, key: String, span: Option<Range<usize>>, message: String) {
        let position = span.map(|span| self.lines.position(span.start));
        self.errors.push(ConfigError { file: self.file.to_owned(), position, key: Some(key), message });
    }

    fn unknown_key(&self, key: &str) -> String {
        let (table, name) = split(key);
        let letters = name.chars().count();
        let far = |known: &str| {
            let (known_table, known_name) = split(known);
            distance(&name.to_lowercase(), known_name) + usize::from(known_table != table)
        };
        let nearest = self.keys.keys().chain(&self.tables).map(|known| (far(known), known)).min();
        match nearest {
            // Two letters, or a third of a long word: "tpc" and "netwrks" are slips, "flavour" for "action" is none.
            Some((far, known)) if far <= (letters / 3).max(2) && far < letters => {
                format!("unknown key; did you mean \"{known}\"?")
            }
            _ => {
                let known = self.keys.keys().chain(&self.tables).map(|known| split(known));
                let names: Vec<&str> = known.filter(|(of, _)| *of == table).map(|(_, name)| name).collect();
                format!("unknown key; take it out: the keys here are {}", names.join(", "))
            }
        }
    }
}

/// One table of the document, or the place of one that the file leaves out.
pub(super) struct Section<'r, 'd> {
    walk: &'r mut Walk<'d>,
    path: String,
    table: Option<&'d DeTable<'d>>,
    asked: Vec<&'static str>,
}

impl<'d> Section<'_, 'd> {
    /// Puts the value of `key` into `place` where the file has one that `convert` takes.
    pub(super) fn read<T>(
        &mut self,
        key: &'static str,
        place: &mut T,
        convert: impl FnOnce(&DeValue<'d>) -> Result<T, String>,
    ) {
        let Some(value) = self.ask(key) else { return };
        match convert(value.get_ref()) {
            Ok(read) => *place = read,
            Err(message) => self.walk.refuse(self.dotted(key), Some(value.span()), message),
        }
    }

    /// Puts the items of the list `key` into `place`, each through `convert` and each refused at its own place.
    pub(super) fn read_list<T>(
        &mut self,
        key: &'static str,
        place: &mut Vec<T>,
        example: &str,
        convert: impl Fn(&DeValue<'d>) -> Result<T, String>,
    ) {
        let Some(value) = self.ask(key) else { return };
        let DeValue::Array(items) = value.get_ref() else {
            let message = super::value::wrong(value.get_ref(), "a list", example);
            return self.walk.refuse(self.dotted(key), Some(value.span()), message);
        };
        let mut read = Vec::new();
        for item in items.iter() {
            match convert(item.get_ref()) {
                Ok(one) => read.push(one),
                Err(message) => self.walk.refuse(self.dotted(key), Some(item.span()), message),
            }
        }
        if read.len() == items.len() {
            *place = read;
        }
    }

    /// Reads the table `name` with `read`, which runs also where the file has no such table.
    pub(super) fn section(&mut self, name: &'static str, read: impl FnOnce(&mut Section<'_, 'd>)) {
        self.asked.push(name);
        let path = self.dotted(name);
        self.walk.tables.push(path.clone());
        let table = match self.find(name) {
            Some(value) => match value.get_ref() {
                DeValue::Table(table) => Some(table),
                other => {
                    let message = super::value::wrong(other, "a table", &format!("[{path}] on a line of its own"));
                    self.walk.refuse(path.clone(), Some(value.span()), message);
                    None
                }
            },
            None => None,
        };
        Section { walk: &mut *self.walk, path, table, asked: Vec::new() }.finish(read);
    }

    fn finish(mut self, read: impl FnOnce(&mut Section<'_, 'd>)) {
        read(&mut self);
        for (key, _) in self.table.into_iter().flatten() {
            if !self.asked.contains(&key.get_ref().as_ref()) {
                let dotted = self.dotted(key.get_ref());
                self.walk.unknown.push((dotted, key.span()));
            }
        }
    }

    fn ask(&mut self, key: &'static str) -> Option<&'d Spanned<DeValue<'d>>> {
        self.asked.push(key);
        let value = self.find(key);
        self.walk.keys.insert(self.dotted(key), value.map(Spanned::span));
        value
    }

    fn find(&self, key: &str) -> Option<&'d Spanned<DeValue<'d>>> {
        self.table.and_then(|table| table.get(key))
    }

    fn dotted(&self, key: &str) -> String {
        // A quoted key may hold anything; shown escaped it can neither end the line nor drive the terminal.
        let key: String = key.escape_debug().take(60).collect();
        if self.path.is_empty() { key } else { format!("{}.{key}", self.path) }
    }
}

fn split(dotted: &str) -> (&str, &str) {
    dotted.rsplit_once('.').unwrap_or(("", dotted))
}

/// Levenshtein's distance: how many letters to put in, take out or change.
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.chars().count()).collect();
    for (above, letter) in from.chars().enumerate() {
        let mut diagonal = above;
        let mut left = above + 1;
        for (cell, other) in row.iter_mut().skip(1).zip(to.chars()) {
            let changed = diagonal + usize::from(letter != other);
            diagonal = *cell;
            left = changed.min(diagonal + 1).min(left + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = above + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_letters_put_in_taken_out_and_changed() {
        for (from, to, far) in
            [("", "", 0), ("window", "window", 0), ("windw", "window", 1), ("", "tcp", 3), ("mode", "", 4)]
        {
            assert_eq!(distance(from, to), far, "{from} {to}");
        }
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("sitting", "kitten"), 3);
    }
}
