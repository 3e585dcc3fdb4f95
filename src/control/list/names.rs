//! Looks up the names of addresses, many at once and within a time limit. The owner of an address chooses its name:
//! only letters, digits, dots and hyphens are shown.
//!
//! References: RFC 1035 section 2.3.1 for what is in a host's name, getnameinfo(3).

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use crate::host::lookup::{look_up_all, name_of};

/// Timeout for all look-ups together.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(4);

/// Maximum number of concurrent look-ups.
const MAX_CONCURRENT: usize = 32;

/// Maximum number of addresses: more could not be answered in time.
const MAX_ADDRESSES: usize = 2_000;

/// Maximum length of a domain name (RFC 1035, section 2.3.4).
const MAX_NAME_LEN: usize = 253;

/// The names of these addresses that name servers return in time; a note reports the number of missing ones.
pub(super) fn look_up(addresses: BTreeSet<IpAddr>, notes: &mut Vec<String>) -> HashMap<IpAddr, String> {
    look_up_with(addresses, notes, LOOKUP_TIMEOUT, name_of)
}

fn look_up_with(
    addresses: BTreeSet<IpAddr>,
    notes: &mut Vec<String>,
    limit: Duration,
    name_of: fn(&IpAddr) -> Option<String>,
) -> HashMap<IpAddr, String> {
    let wanted: Vec<IpAddr> = addresses.iter().copied().take(MAX_ADDRESSES).collect();
    if addresses.len() > MAX_ADDRESSES {
        notes.push(format!(
            "names not looked up, because there are too many addresses: {}",
            addresses.len() - MAX_ADDRESSES
        ));
    }
    let count = wanted.len();
    // If no thread can be created, there are no answers.
    let answers = look_up_all(wanted, (MAX_CONCURRENT, limit), name_of).unwrap_or_default();
    let missing = count - answers.len();
    if missing > 0 {
        let limit = humantime::format_duration(limit);
        notes.push(format!("addresses for which no name server answered within {limit}: {missing}"));
    }
    answers.into_iter().filter_map(|(address, name)| Some((address, printable_name(&name?, address)?))).collect()
}

/// `name` in a displayable form; `None` if it is empty or an address.
fn printable_name(name: &str, address: IpAddr) -> Option<String> {
    let name = name.trim_end_matches('.');
    if name.is_empty() || name.parse::<IpAddr>().is_ok() || name == address.to_string() {
        return None;
    }
    let shown = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '.' { c.to_ascii_lowercase() } else { '?' };
    Some(name.chars().take(MAX_NAME_LEN).map(shown).collect())
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Instant;

    use super::*;

    fn addresses(count: u8) -> BTreeSet<IpAddr> {
        (0..count).map(|last| IpAddr::from([192, 0, 2, last])).collect()
    }

    #[test]
    fn name_cannot_control_terminal() {
        let address = IpAddr::from([192, 0, 2, 7]);
        let shown = |name: &str| printable_name(name, address);
        assert_eq!(shown("Mail.Example.ORG.").as_deref(), Some("mail.example.org"));
        assert_eq!(shown("\u{1b}[2Ja_b\n\u{202e}x").as_deref(), Some("??2ja?b??x"));
        for none in ["", ".", "192.0.2.7", "198.51.100.1", "::1"] {
            assert_eq!(shown(none), None, "{none:?}");
        }
        assert_eq!(shown(&"a".repeat(10_000)).map(|name| name.len()), Some(MAX_NAME_LEN));
    }

    #[test]
    fn slow_lookup_is_abandoned() {
        let mut notes = Vec::new();
        let begin = Instant::now();
        let names = look_up_with(addresses(64), &mut notes, Duration::from_secs(3), |address| {
            match address {
                // A name server that never answers.
                IpAddr::V4(v4) if v4.octets() == [192, 0, 2, 63] => thread::sleep(Duration::from_secs(60)),
                _ => thread::sleep(Duration::from_millis(20)),
            }
            Some(format!("host-{address}.example"))
        });
        assert!(begin.elapsed() < Duration::from_secs(30));
        assert_eq!(names.len(), 63, "{notes:?}");
        assert_eq!(names.get(&IpAddr::from([192, 0, 2, 9])).map(String::as_str), Some("host-192.0.2.9.example"));
        assert_eq!(notes, ["addresses for which no name server answered within 3s: 1"]);
    }

    #[test]
    fn empty_list_needs_no_lookup() {
        let mut notes = Vec::new();
        assert!(look_up_with(BTreeSet::new(), &mut notes, LOOKUP_TIMEOUT, |_| None).is_empty());
        assert!(notes.is_empty());
    }
}
