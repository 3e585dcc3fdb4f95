//! Parses the bytes of a hosts.deny file into own entries, and writes entries back. Pure, and never fails: every input
//! parses, and every line that is not part of an own entry is preserved.
//!
//! An entry is two lines, a comment that names the target and the rule for it:
//!
//! ```text
//! # portsentry: 192.0.2.7 until 2026-11-22T06:32:13Z
//! ALL: 192.0.2.7
//! ```
//!
//! Each entry is independent, so an administrator may move it anywhere in the file. With BEGIN and END markers, a lost
//! END would make the rest of the file ours. A rule without its comment belongs to the administrator, and so does a
//! comment whose next line names another target.
//!
//! References: hosts_access(5), and `xgets()` of the TCP wrappers, which joins lines.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use ipnet::IpNet;

use crate::types::BanTarget;

/// Start of the comment.
const COMMENT_PREFIX: &str = "# portsentry: ";

/// `target` in the format of hosts_access(5): an IPv4 address unchanged, an IPv4 network as
/// `203.0.113.0/255.255.255.0`, an IPv6 prefix as `[2001:db8:1:2::]/64`.
pub(super) fn hosts_pattern(target: BanTarget) -> String {
    // The wrappers mask a client's address and compare it with the pattern, which must have no bits outside of the
    // mask.
    let masked = if let BanTarget::Prefix(_) = target { target } else { BanTarget::containing(target.element()) };
    match masked {
        BanTarget::V4(v4) => v4.to_string(),
        BanTarget::V6(v6) => format!("[{v6}]/{}", masked.prefix_len()),
        // The wrappers ignore the link.
        BanTarget::Link { address, .. } => format!("[{address}]/128"),
        BanTarget::Prefix(wide) => match wide.network() {
            IpNet::V4(net) => format!("{}/{}", net.addr(), net.netmask()),
            IpNet::V6(net) => format!("[{}]/{}", net.addr(), net.prefix_len()),
        },
    }
}

/// A rule for one target, without its line end, and the end of its ban.
pub(super) struct DenyRule {
    pub(super) target: BanTarget,
    pub(super) rule: String,
    pub(super) until: String,
}

/// An own entry, with the byte range of its two lines.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OwnEntry {
    pub(super) target: BanTarget,
    bytes: Range<usize>,
}

/// A parsed file.
pub(super) struct ParsedFile<'a> {
    text: &'a [u8],
    /// Own entries, in order.
    pub(super) entries: Vec<OwnEntry>,
    /// End of the last complete rule. A line appended after an incomplete rule would be treated as part of it. The
    /// wrappers refuse every client while such a line exists, and completing it is the administrator's decision.
    end: usize,
}

/// Result of an edit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Edit {
    pub(super) text: Vec<u8>,
    pub(super) removed: Vec<BanTarget>,
}

impl<'a> ParsedFile<'a> {
    pub(super) fn parse(text: &'a [u8]) -> Self {
        let mut file = Self { text, entries: Vec::new(), end: 0 };
        let (mut at, mut joined, mut marked) = (0, false, None);
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            let from = at;
            at += line.len();
            let joins = joins_next(line);
            match marked.take() {
                Some((target, start)) if !joins && names(line, target) => {
                    file.entries.push(OwnEntry { target, bytes: start..at });
                }
                _ if !joined && !joins => marked = parse_comment(line).map(|target| (target, from)),
                _ => {}
            }
            joined = joins;
            if !joins {
                file.end = at;
            }
        }
        file
    }

    /// Returns the file without the entries of `remove` and with those of `add`. An existing entry keeps its position,
    /// and no target has two entries. A rule that another author has already written is not added. `None` if nothing
    /// changes.
    pub(super) fn edit(&self, add: &[DenyRule], remove: &HashSet<BanTarget>) -> Option<Edit> {
        let mut wanted: Vec<(&DenyRule, bool)> = Vec::with_capacity(add.len());
        let mut seen = HashSet::new();
        // The last rule for a target counts.
        wanted.extend(add.iter().rev().filter(|rule| seen.insert(rule.target)).map(|rule| (rule, false)));
        wanted.reverse();
        let places: HashMap<BanTarget, usize> =
            wanted.iter().enumerate().map(|(place, (rule, _))| (rule.target, place)).collect();
        let mut edit = Edit { text: Vec::with_capacity(self.text.len() + add.len() * 96), removed: Vec::new() };
        let (mut at, mut ours) = (0, None);
        for entry in &self.entries {
            self.copy(at..entry.bytes.start, &mut edit.text);
            at = entry.bytes.end;
            match places.get(&entry.target).and_then(|place| wanted.get_mut(*place)) {
                Some((rule, written)) if !*written => {
                    *written = true;
                    self.write_entry(rule, &mut edit.text);
                }
                Some(_) => {}
                None if remove.contains(&entry.target) => edit.removed.push(entry.target),
                None => self.copy(entry.bytes.clone(), &mut edit.text),
            }
            ours = Some(edit.text.len());
        }
        // New entries follow the last own one, even if an administrator has moved it, or the last complete line.
        let missing: Vec<&DenyRule> = wanted.iter().filter(|(_, written)| !written).map(|(rule, _)| *rule).collect();
        let missing = self.not_by_others(missing);
        if ours.is_none() {
            self.copy(at..self.end, &mut edit.text);
            at = self.end;
        }
        for rule in missing {
            self.write_entry(rule, &mut edit.text);
        }
        self.copy(at..self.text.len(), &mut edit.text);
        (edit.text != self.text).then_some(edit)
    }

    /// The file without own entries. For the fuzzer.
    #[cfg(any(test, fuzzing))]
    pub(super) fn others(&self) -> Vec<u8> {
        let mut others = Vec::new();
        let mut at = 0;
        for entry in &self.entries {
            self.copy(at..entry.bytes.start, &mut others);
            at = entry.bytes.end;
        }
        self.copy(at..self.text.len(), &mut others);
        others
    }

    /// The rules of `rules` that no foreign line already contains.
    fn not_by_others<'r>(&self, mut rules: Vec<&'r DenyRule>) -> Vec<&'r DenyRule> {
        if rules.is_empty() {
            return rules;
        }
        let mut others = HashSet::new();
        let mut at = 0;
        for range in self.entries.iter().map(|entry| entry.bytes.clone()).chain(std::iter::once(self.end..self.end)) {
            let mut joined = false;
            let between = self.text.get(at..range.start).unwrap_or_default();
            for line in between.split_inclusive(|byte| *byte == b'\n') {
                let joins = joins_next(line);
                if !joined && !joins {
                    others.insert(line.trim_ascii());
                }
                joined = joins;
            }
            at = range.end;
        }
        rules.retain(|rule| !others.contains(rule.rule.trim().as_bytes()));
        rules
    }

    fn copy(&self, range: Range<usize>, to: &mut Vec<u8>) {
        to.extend_from_slice(self.text.get(range).unwrap_or_default());
    }

    /// Writes an entry with the line ends of the file.
    fn write_entry(&self, rule: &DenyRule, to: &mut Vec<u8>) {
        let first = self.text.split_inclusive(|byte| *byte == b'\n').next();
        let end = if first.is_some_and(|line| line.ends_with(b"\r\n")) { "\r\n" } else { "\n" };
        let DenyRule { target, rule, until } = rule;
        to.extend_from_slice(format!("{COMMENT_PREFIX}{target} until {until}{end}{rule}{end}").as_bytes());
    }
}

/// True if the wrappers treat the next line as part of this one: the line end is missing, escaped with a backslash, or
/// hidden behind a NUL.
fn joins_next(line: &[u8]) -> bool {
    !line.ends_with(b"\n") || line.ends_with(b"\\\n") || line.contains(&0)
}

/// The target that an own comment names.
fn parse_comment(line: &[u8]) -> Option<BanTarget> {
    let rest = std::str::from_utf8(line.strip_prefix(COMMENT_PREFIX.as_bytes())?).ok()?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

/// True if a rule contains `target` as a word.
fn names(line: &[u8], target: BanTarget) -> bool {
    let pattern = hosts_pattern(target);
    let part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'/' | b'[' | b']' | b'_' | b'-');
    !line.starts_with(b"#")
        && line.windows(pattern.len()).enumerate().any(|(at, window)| {
            let before = at.checked_sub(1).and_then(|before| line.get(before));
            let after = line.get(at + pattern.len());
            window == pattern.as_bytes() && !before.is_some_and(part) && !after.is_some_and(part)
        })
}

/// Reads any bytes as a file, adds an entry and removes it. All other bytes must not change. For the fuzzer.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(text: &[u8]) {
    let before = ParsedFile::parse(text);
    let held: HashSet<BanTarget> = before.entries.iter().map(|entry| entry.target).collect();
    let cleared = before.edit(&[], &held).map_or_else(|| text.to_vec(), |edit| edit.text);
    assert_eq!(cleared, before.others(), "foreign bytes are unchanged");
    for target in ["192.0.2.7", "2001:db8:1:2::/64", "203.0.113.0/24"].into_iter().filter_map(|text| text.parse().ok())
    {
        deny(&before, text, target);
    }
}

#[cfg(any(test, fuzzing))]
fn deny(before: &ParsedFile<'_>, text: &[u8], target: BanTarget) {
    let rule =
        DenyRule { target, rule: format!("ALL: {}", hosts_pattern(target)), until: "2026-11-22T06:32:13Z".to_owned() };
    let Some(edit) = before.edit(&[rule], &HashSet::new()) else { return };
    if before.entries.iter().any(|entry| entry.target == target) {
        // Its line was rewritten, and duplicates were removed.
        return;
    }
    let after = ParsedFile::parse(&edit.text);
    assert_eq!(after.others(), before.others());
    assert_eq!(after.entries.iter().filter(|entry| entry.target == target).count(), 1);
    let back = after.edit(&[], &HashSet::from([target])).map(|edit| edit.text);
    assert_eq!(back.as_deref(), Some(text));
}

#[cfg(test)]
mod tests;
