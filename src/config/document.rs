//! Reads a TOML document with serde and reports every mistake in it, not only the first. Each key is deserialized
//! alone, so that each error has the position of its own value. The accepted keys are then deserialized together, for
//! the checks across keys.

use super::error::{ConfigErrors, Diagnostic, Lines};
use super::parse::{expected_names, quoted_excerpt};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Error, ValueDeserializer};

/// A mistake: the dotted key, its position in the text, and the message.
type InvalidKey = (String, Option<Range<usize>>, String);

/// Reads `text`, the contents of `file`. `check` returns the keys that contradict others, each with a message.
pub(super) fn read<T: DeserializeOwned>(
    file: &str,
    text: &str,
    check: impl Fn(&T) -> Vec<(String, String)>,
) -> Result<T, ConfigErrors> {
    let (root, slips) = DeTable::parse_recoverable(text);
    let root = root.into_inner();
    let mut refusals = Vec::new();
    let value = document::<T>(Keys::read_from_serde::<T>().accepted::<T>("", &root, &mut refusals));
    let contradictions = value.iter().flat_map(check);
    // A key with an invalid value holds its built-in value here, so a contradiction that involves it is not reported.
    let invalid: BTreeSet<String> = refusals.iter().map(|(key, ..)| key.clone()).collect();
    refusals.extend(contradictions.filter(|(key, _)| !invalid.contains(key)).map(|(key, message)| {
        let mut names = key.split('.');
        let first = names.next().and_then(|name| root.get(name));
        let found = names.fold(first, |value, name| value.and_then(|value| value.get_ref().get(name)));
        (key, found.map(Spanned::span), message)
    }));

    let lines = Lines::new(text);
    let mut errors: Vec<Diagnostic> = slips.iter().map(|slip| syntax_error(file, text, &lines, slip)).collect();
    errors.sort_by_key(|error| (error.line, error.column));
    errors.dedup_by_key(|error| error.line);
    if !slips.iter().any(|slip| hides_the_rest(text, slip)) {
        let broken: BTreeSet<_> = errors.iter().map(|error| error.line).collect();
        let refused = refusals.into_iter().map(|(key, span, message)| {
            let (line, column) = span.map(|span| lines.position(span.start)).unzip();
            Diagnostic { file: file.to_owned(), line, column, key: Some(key), message }
        });
        errors.extend(refused.filter(|error| !broken.contains(&error.line)));
        errors.sort_by_key(|error| (error.line, error.column));
    }
    ConfigErrors::unless_empty(errors, ())?;
    value.map_err(|error| {
        let position = error.span().map(|span| lines.position(span.start));
        ConfigErrors::about(file, position, error.message().to_owned())
    })
}

/// True if a syntax error makes the rest of the file unreadable. An unclosed list or string runs to the end, and keys
/// under a broken header belong to no table. Errors about the rest would point the operator to the wrong line.
fn hides_the_rest(text: &str, slip: &Error) -> bool {
    let start = slip.span().map_or(text.len(), |span| span.start);
    let (before, after) = text.split_at_checked(start).unwrap_or((text, ""));
    let line = before.rsplit('\n').next().unwrap_or("");
    after.trim().is_empty() || line.trim_start().starts_with('[') || (line.is_empty() && after.starts_with('['))
}

fn syntax_error(file: &str, text: &str, lines: &Lines<'_>, slip: &Error) -> Diagnostic {
    let span = slip.span().unwrap_or(text.len()..text.len());
    let found = text.get(span.clone()).unwrap_or_default().trim();
    let before = text.get(..span.start).and_then(|before| before.rsplit('\n').next()).unwrap_or_default();
    let message = match slip.message() {
        "duplicate key" if before.trim_start().starts_with('[') => {
            format!("the table {} is defined twice; write its keys under the first one", quoted_excerpt(found))
        }
        "duplicate key" => format!("the key {} is defined twice; keep one of the two lines", quoted_excerpt(found)),
        message => {
            let found = if found.is_empty() { String::new() } else { format!("{}: ", quoted_excerpt(found)) };
            format!("{found}{message}; write key = \"text\", key = 5, key = true or [table]")
        }
    };
    let (line, column) = lines.position(span.start);
    Diagnostic { file: file.to_owned(), line: Some(line), column: Some(column), key: None, message }
}

fn document<T: DeserializeOwned>(root: DeTable<'_>) -> Result<T, Error> {
    T::deserialize(ValueDeserializer::from(Spanned::new(0..0, DeValue::Table(root))))
}

/// Deserializes a document that contains only `value`, at the key `dotted`.
fn alone<T: DeserializeOwned>(dotted: &str, value: Spanned<DeValue<'_>>) -> Result<T, Error> {
    let (tables, key) = dotted.rsplit_once('.').map_or((None, dotted), |(tables, key)| (Some(tables), key));
    let table = |key: &str, value| DeTable::from_iter([(Spanned::new(0..0, key.to_owned().into()), value)]);
    let tables = tables.into_iter().flat_map(|tables| tables.rsplit('.'));
    document(tables.fold(table(key, value), |inner, name| table(name, Spanned::new(0..0, DeValue::Table(inner)))))
}

/// The tables that a document may contain, by dotted name ("" is the root), each with the names of its keys and tables.
pub(super) struct Keys(BTreeMap<String, Vec<String>>);

impl Keys {
    /// The keys of `T`, taken from the error that serde returns for an unknown key.
    pub(super) fn read_from_serde<T: DeserializeOwned>() -> Self {
        fn add<T: DeserializeOwned>(tables: &mut BTreeMap<String, Vec<String>>, path: &str) {
            let refusal = alone::<T>(&join(path, ""), Spanned::new(0..0, DeValue::Boolean(true))).err();
            let message = refusal.as_ref().map_or("", Error::message);
            if message.starts_with("unknown field") {
                let names: Vec<String> = expected_names(message).into_iter().map(str::to_owned).collect();
                names.iter().for_each(|name| add::<T>(tables, &join(path, name)));
                tables.insert(path.to_owned(), names);
            }
        }
        let mut tables = BTreeMap::new();
        add::<T>(&mut tables, "");
        Self(tables)
    }

    /// All keys except tables, dotted, in alphabetical order.
    pub(super) fn dotted(&self) -> Vec<String> {
        let all = self.0.iter().flat_map(|(table, names)| names.iter().map(|name| join(table, name)));
        let keys: BTreeSet<String> = all.filter(|key| !self.0.contains_key(key)).collect();
        keys.into_iter().collect()
    }

    /// The part of `table` that serde accepts. Refused keys are appended to `refusals`.
    fn accepted<'t, T: DeserializeOwned>(
        &self,
        path: &str,
        table: &DeTable<'t>,
        refusals: &mut Vec<InvalidKey>,
    ) -> DeTable<'t> {
        let mut accepted = DeTable::new();
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let dotted = join(path, name);
            let mut refuse = |span, message| refusals.push((dotted.clone(), Some(span), message));
            let value = match value.get_ref() {
                _ if !self.0.get(path).is_some_and(|names| names.iter().any(|known| known == name)) => {
                    refuse(key.span(), self.unknown(&dotted));
                    continue;
                }
                DeValue::Table(inner) if self.0.contains_key(&dotted) => {
                    Spanned::new(value.span(), DeValue::Table(self.accepted::<T>(&dotted, inner, refusals)))
                }
                other if self.0.contains_key(&dotted) => {
                    let message = format!("is not a table; write [{dotted}] on a line of its own");
                    refuse(value.span(), sentence(other, &message));
                    continue;
                }
                _ => {
                    let refused = refused::<T>(&dotted, value);
                    if !refused.is_empty() {
                        refused.into_iter().for_each(|(span, message)| refuse(span, message));
                        continue;
                    }
                    value.clone()
                }
            };
            accepted.insert(key.clone(), value);
        }
        accepted
    }

    /// The remedy for the unknown key `dotted`.
    fn unknown(&self, dotted: &str) -> String {
        let (table, name) = dotted.rsplit_once('.').unwrap_or(("", dotted));
        if name.contains('_') && name.chars().all(|c| c == '_' || c.is_ascii_uppercase()) {
            return "an option of classic PortSentry; `portsentry import FILE` translates a classic portsentry.conf"
                .to_owned();
        }
        // Maximum edit distance for a suggestion: two letters, or a third of a long word. "tpc" and "netwrks" count as
        // typing errors, "flavour" for "action" does not.
        let letters = name.chars().count();
        let most = (letters / 3).max(2).min(letters.saturating_sub(1));
        let known = self.0.iter().flat_map(|(of, names)| names.iter().map(move |name| (of, name)));
        let near = known.filter_map(|(of, known)| {
            let far = strsim::levenshtein(&name.to_lowercase(), known) + usize::from(of != table);
            (far <= most).then(|| (far, join(of, known)))
        });
        match near.min() {
            Some((_, known)) => format!("unknown key; did you mean \"{known}\"?"),
            None => {
                let names = self.0.get(table).map(|names| names.join(", ")).unwrap_or_default();
                format!("unknown key; remove it, the keys of this table are {names}")
            }
        }
    }
}

/// The errors of serde about the value of a key: one for the whole value, or one for each wrong item of a list.
fn refused<'t, T: DeserializeOwned>(dotted: &str, value: &Spanned<DeValue<'t>>) -> Vec<(Range<usize>, String)> {
    let wrong = |part: &Spanned<DeValue<'_>>, tried: Spanned<DeValue<'_>>| {
        let error = alone::<T>(dotted, tried).err()?;
        Some((part.span(), sentence(part.get_ref(), error.message())))
    };
    let list = |item: Option<&Spanned<DeValue<'t>>>| {
        Spanned::new(value.span(), DeValue::Array(item.into_iter().cloned().collect()))
    };
    let whole = wrong(value, value.clone());
    match value.get_ref() {
        DeValue::Array(items) if whole.is_some() && alone::<T>(dotted, list(None)).is_ok() => {
            items.iter().filter_map(|item| wrong(item, list(Some(item)))).collect()
        }
        _ => whole.into_iter().collect(),
    }
}

/// The message about `value`. The value is put in front unless the message already quotes the wrong part.
fn sentence(value: &DeValue<'_>, message: &str) -> String {
    let shown = match value {
        _ if message.starts_with('"') => return message.to_owned(),
        DeValue::String(text) => quoted_excerpt(text),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(switch) => switch.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    };
    format!("{shown} {message}")
}

/// The dotted name of `key` in `table`. A quoted key may contain any character; escaping prevents line breaks and
/// terminal control sequences.
fn join(table: &str, key: &str) -> String {
    let key: String = key.escape_debug().take(60).collect();
    if table.is_empty() { key } else { format!("{table}.{key}") }
}
