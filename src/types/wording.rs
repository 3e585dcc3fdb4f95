//! Formats numbers, durations and networks for sentences.

use std::fmt;
use std::time::Duration;

use ipnet::IpNet;

/// "1 ban", "2 bans", "1 entry", "2 entries".
pub fn counted(number: impl TryInto<u64>, noun: &str) -> String {
    let number = number.try_into().unwrap_or(u64::MAX);
    match (number, noun.strip_suffix('y')) {
        (1, _) => format!("1 {noun}"),
        (_, Some(stem)) => format!("{number} {stem}ies"),
        (_, None) => format!("{number} {noun}s"),
    }
}

/// A network in its usual notation: a single address without a prefix length.
pub fn plain(network: IpNet) -> String {
    if network.prefix_len() == network.max_prefix_len() { network.addr().to_string() } else { network.to_string() }
}

/// The first item and the number of the others; `None` if there is none.
pub fn first_and_more(items: &[impl fmt::Display]) -> Option<String> {
    match items {
        [] => None,
        [first] => Some(first.to_string()),
        [first, others @ ..] => Some(format!("{first} and {} more", others.len())),
    }
}

/// A duration in its two largest units, for sentences: "45s", "12m 5s", "7d".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&units(self.0, " "))
    }
}

/// A duration in its two largest units, in at most seven columns: "45s", "12m5s", "6d23h", "2y14d".
pub fn brief(span: Duration) -> String {
    units(span, "")
}

fn units(span: Duration, between: &str) -> String {
    let seconds = span.as_secs();
    let units = [("y", 31_536_000), ("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];
    let Some(at) = units.iter().position(|(_, length)| seconds >= *length) else { return "0s".to_owned() };
    let mut text = String::new();
    let mut rest = seconds;
    for (unit, length) in units.iter().skip(at).take(2) {
        if rest / length > 0 {
            let between = if text.is_empty() { "" } else { between };
            text.push_str(&format!("{between}{}{unit}", rest / length));
        }
        rest %= length;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_agree_with_their_nouns() {
        let all =
            [(0_u64, "ban"), (1, "ban"), (2, "ban"), (1, "entry"), (9, "entry")].map(|(n, noun)| counted(n, noun));
        assert_eq!(all, ["0 bans", "1 ban", "2 bans", "1 entry", "9 entries"]);
    }

    #[test]
    fn spans_are_short_and_correct() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (3_599, "59m59s"),
            (3_600, "1h"),
            (7 * 86_400, "7d"),
            (90_061, "1d1h"),
            (86_400 + 60, "1d"),
            (31_536_000 * 3 + 86_400 * 364, "3y364d"),
        ] {
            assert_eq!(brief(Duration::from_secs(seconds)), text);
        }
        assert_eq!(Span(Duration::from_secs(90_061)).to_string(), "1d 1h");
    }
}
