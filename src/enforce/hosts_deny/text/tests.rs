//! Tests the changes to the text of hosts.deny: entries are added and removed, and all other bytes are kept.

use proptest::prelude::*;

use super::*;

fn target(address: &str) -> BanTarget {
    BanTarget::containing(address.parse().unwrap())
}

fn rule(address: &str) -> DenyRule {
    let target = target(address);
    DenyRule { target, rule: format!("ALL: {}", hosts_pattern(target)), until: "never".to_owned() }
}

/// The file after adding and removing these targets; the same bytes if nothing changes.
fn edited(text: impl AsRef<[u8]>, add: &[&str], remove: &[&str]) -> Vec<u8> {
    let text = text.as_ref();
    let add: Vec<DenyRule> = add.iter().map(|address| rule(address)).collect();
    let remove = remove.iter().map(|address| target(address)).collect();
    ParsedFile::parse(text).edit(&add, &remove).map_or_else(|| text.to_vec(), |edit| edit.text)
}

fn edit(text: &str, add: &[&str], remove: &[&str]) -> String {
    String::from_utf8(edited(text, add, remove)).unwrap()
}

fn held(text: impl AsRef<[u8]>) -> Vec<String> {
    ParsedFile::parse(text.as_ref()).entries.iter().map(|entry| entry.target.to_string()).collect()
}

const ENTRY: &str = "# portsentry: 192.0.2.7 until never\nALL: 192.0.2.7\n";

#[test]
fn target_has_hosts_access_syntax() {
    assert_eq!(hosts_pattern(target("192.0.2.7")), "192.0.2.7");
    assert_eq!(hosts_pattern(target("2001:db8:1:2:3::4")), "[2001:db8:1:2::]/64");
    assert_eq!(hosts_pattern(target("fe80::1")), "[fe80::1]/128");
    // An element that an operator added to the kernel's set, with bits beyond the prefix.
    assert_eq!(hosts_pattern(BanTarget::from_element("2001:db8::5".parse().unwrap())), "[2001:db8::]/64");
}

#[test]
fn entry_is_appended_read_and_removed() {
    let before = "# /etc/hosts.deny\nsshd: 203.0.113.0/24\n";
    let with = edit(before, &["192.0.2.7"], &[]);
    assert_eq!(with, format!("{before}{ENTRY}"));
    assert_eq!(held(&with), ["192.0.2.7"]);
    assert_eq!(edit(&with, &[], &["192.0.2.7"]), before);
    assert_eq!(edit("", &["192.0.2.7"], &[]), ENTRY);
    assert_eq!(edit(ENTRY, &[], &["192.0.2.7"]), "");
}

#[test]
fn entries_keep_their_order() {
    let with = edit("", &["192.0.2.9", "2001:db8::1", "192.0.2.7", "192.0.2.9"], &[]);
    assert_eq!(held(&with), ["2001:db8::/64", "192.0.2.7", "192.0.2.9"]);
    assert_eq!(edit(&with, &["192.0.2.7", "2001:db8::2"], &[]), with, "no target gets a second entry");
    let two = edit(&with, &["192.0.2.1"], &["192.0.2.9", "2001:db8::"]);
    assert_eq!(held(&two), ["192.0.2.7", "192.0.2.1"]);
    let doubled = format!("{ENTRY}x: y\n{ENTRY}");
    assert_eq!(
        edit(&doubled, &["192.0.2.7"], &[]),
        format!("{ENTRY}x: y\n"),
        "a duplicate made by an editor is removed"
    );
    assert_eq!(edit(&doubled, &[], &["192.0.2.7"]), "x: y\n");
}

#[test]
fn added_and_removed_target_stays() {
    assert_eq!(edit(ENTRY, &["192.0.2.7"], &["192.0.2.7"]), ENTRY);
}

#[test]
fn new_end_replaces_comment_in_place() {
    let text = format!("a: b\n{ENTRY}c: d\n");
    let mut longer = rule("192.0.2.7");
    longer.until = "2026-01-01T01:00:00Z".to_owned();
    let edit = ParsedFile::parse(text.as_bytes()).edit(&[longer], &HashSet::new()).unwrap();
    let expected = "a: b\n# portsentry: 192.0.2.7 until 2026-01-01T01:00:00Z\nALL: 192.0.2.7\nc: d\n";
    assert_eq!(String::from_utf8(edit.text).unwrap(), expected);
}

#[test]
fn moved_entries_are_still_recognised() {
    let moved = format!("top: 1\n{ENTRY}\n# mine\nsshd: .example.com\n");
    assert_eq!(
        edit(&moved, &["192.0.2.8"], &[]),
        format!("top: 1\n{ENTRY}{}\n# mine\nsshd: .example.com\n", ENTRY.replace("2.7", "2.8"))
    );
    assert_eq!(edit(&moved, &[], &["192.0.2.7"]), "top: 1\n\n# mine\nsshd: .example.com\n");
}

#[test]
fn incomplete_entry_belongs_to_administrator() {
    let incomplete = [
        "ALL: 192.0.2.7\n",
        "# portsentry: 192.0.2.7 until never\n",
        "# portsentry: 192.0.2.7 until never\n\nALL: 192.0.2.7\n",
        "# portsentry: 192.0.2.7 until never\nALL: 192.0.2.70\n",
        "# portsentry: 192.0.2.7 until never\nALL: 1192.0.2.7\n",
        "# portsentry: 192.0.2.7 until never\nALL: 192.0.2.7/24\n",
        "# portsentry: 192.0.2.7 until never\nALL: 10.192.0.2.7\n",
        "# portsentry: 192.0.2.7 until never\n#ALL: 192.0.2.7\n",
        "# portsentry: 192.0.2.7 until never\nALL: 192.0.2.7",
        "# portsentry: 192.0.2.7 until never\nALL: 192.0.2.7\\\n, 192.0.2.8\n",
        "# portsentry: 192.0.2.7 until never\\\nALL: 192.0.2.7\n",
        " # portsentry: 192.0.2.7 until never\nALL: 192.0.2.7\n",
        "# mine, \\\n# portsentry: 192.0.2.7 until never\nALL: 192.0.2.7\n",
        "# portsentry: 192.0.2.7/32\nALL: 192.0.2.7\n",
        "# portsentry: 2001:db8::\nALL: [2001:db8::]/64\n",
        "# portsentry: 2001:db8::/32\nALL: [2001:db8::]/48\n",
        "# portsentry: \nALL: 192.0.2.7\n",
    ];
    for text in incomplete {
        assert!(held(text).is_empty(), "{text:?}");
        assert_eq!(edit(text, &[], &["192.0.2.7", "2001:db8::"]), text);
    }
    let stray = "# portsentry: 192.0.2.1 until never\n";
    assert_eq!(held(format!("{stray}{ENTRY}")), ["192.0.2.7"], "a stray comment hides no entry");
}

#[test]
fn lengthened_own_rule_is_recognised() {
    let with = "# portsentry: 192.0.2.7 until never, said Ann\nALL EXCEPT sshd: 192.0.2.7, 192.0.2.8 : DENY\n";
    assert_eq!(held(with), ["192.0.2.7"]);
    assert_eq!(edit(with, &[], &["192.0.2.7"]), "");
}

#[test]
fn existing_foreign_rule_is_not_repeated() {
    let theirs = "ALL: 192.0.2.7\nsshd: x\n";
    assert_eq!(edit(theirs, &["192.0.2.7"], &[]), theirs);
    assert_eq!(edit(" ALL: 192.0.2.7 \r\n", &["192.0.2.7"], &[]), " ALL: 192.0.2.7 \r\n");
    for no_rule in ["#ALL: 192.0.2.7\n", "x: \\\nALL: 192.0.2.7\n"] {
        assert_eq!(held(edit(no_rule, &["192.0.2.7"], &[])), ["192.0.2.7"], "{no_rule:?} denies no source");
    }
    assert_eq!(
        edit("ALL: 192.0.2.7", &["192.0.2.7"], &[]),
        format!("{ENTRY}ALL: 192.0.2.7"),
        "nor does an incomplete one"
    );
}

#[test]
fn line_without_end_stays_last() {
    for tail in ["ALL: ALL", "ALL: \\\n", "ALL: \\\nx\\\n", "x\0y\n", "ALL: \\\nALL"] {
        let text = format!("a: b\n{tail}");
        let with = edit(&text, &["192.0.2.7"], &[]);
        assert_eq!(with, format!("a: b\n{ENTRY}{tail}"));
        assert_eq!(held(&with), ["192.0.2.7"]);
        assert_eq!(edit(&with, &[], &["192.0.2.7"]), text);
    }
    assert_eq!(edit("ALL: ALL", &["192.0.2.7"], &[]), format!("{ENTRY}ALL: ALL"));
}

#[test]
fn line_endings_are_kept() {
    let text = "a: b\r\nc: d\r\n";
    let with = edit(text, &["192.0.2.7"], &[]);
    assert_eq!(with, format!("{text}{}", ENTRY.replace('\n', "\r\n")));
    assert_eq!(held(&with), ["192.0.2.7"]);
    assert_eq!(edit(&with, &[], &["192.0.2.7"]), text);
    // TCP wrappers do not join lines at a backslash before CR LF.
    assert_eq!(edit("a: b\\\r\n", &["192.0.2.7"], &[]), format!("a: b\\\r\n{}", ENTRY.replace('\n', "\r\n")));
}

#[test]
fn non_utf8_bytes_are_kept() {
    let text = b"# caf\xe9 \xff\xfe\nsshd: \x1b[2J\n";
    let with = edited(text, &["192.0.2.7"], &[]);
    assert!(with.starts_with(text));
    assert_eq!(edited(&with, &[], &["192.0.2.7"]), text);
}

#[test]
fn truncated_hosts_deny_loses_no_foreign_byte() {
    let other = "sshd: .example.com\\\n, 198.51.100.1\n";
    let second = ENTRY.replace("192.0.2.7", "192.0.2.8");
    let whole = format!("# head\r\n{ENTRY}{other}{second}# foot");
    for length in 0..=whole.len() {
        let cut = &whole[..length];
        let entries = held(cut).len();
        let first_ends = "# head\r\n".len() + ENTRY.len();
        let second_ends = whole.len() - "# foot".len();
        assert_eq!(entries, usize::from(length >= first_ends) + usize::from(length >= second_ends), "{length}");
        let mut expected = cut.to_owned();
        for entry in [ENTRY, &second] {
            expected = expected.replacen(entry, "", 1);
        }
        assert_eq!(edit(cut, &[], &["192.0.2.7", "192.0.2.8"]), expected, "{length}");
        let with = edit(cut, &["203.0.113.5"], &[]);
        assert_eq!(held(&with).len(), entries + 1, "{length}");
        assert_eq!(edit(&with, &[], &["203.0.113.5"]), cut, "{length}");
    }
}

/// Lines that are difficult to parse.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(ENTRY.as_bytes().to_vec()),
        Just(b"# portsentry: 192.0.2.9 until never\n".to_vec()),
        Just(b"# portsentry: ".to_vec()),
        Just(b"ALL: 192.0.2.7\n".to_vec()),
        Just(b"ALL: 192.0.2.8".to_vec()),
        Just(b"\\\n".to_vec()),
        Just(b"\n".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"\0".to_vec()),
        prop::collection::vec(any::<u8>(), 0..20),
    ];
    prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn adding_and_removing_restores_every_byte(text in hostile()) {
        let with = edited(&text, &["203.0.113.5", "2001:db8::1"], &[]);
        let (before, after) = (held(&text), held(&with));
        prop_assert_eq!(after.len(), before.len() + 2);
        prop_assert_eq!(edited(&with, &[], &["203.0.113.5", "2001:db8::1"]), text);
    }

    #[test]
    fn second_write_changes_nothing(text in hostile()) {
        let once = edited(&text, &["192.0.2.7", "192.0.2.8"], &[]);
        prop_assert_eq!(edited(&once, &["192.0.2.7", "192.0.2.8"], &[]), once);
    }

    #[test]
    fn removed_target_has_no_entry(text in hostile()) {
        let without = edited(&text, &[], &["192.0.2.7", "192.0.2.8"]);
        prop_assert!(!held(&without).iter().any(|target| target == "192.0.2.7" || target == "192.0.2.8"));
    }
}
