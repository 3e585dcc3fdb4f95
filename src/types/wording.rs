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
        f.write_str(&units(self.0, " ", ["y", "d", "h", "m", "s"]))
    }
}

/// A duration in its two largest units, in at most seven columns: "45s", "12m5s", "6d23h", "2y14d".
pub fn brief(span: Duration) -> String {
    units(span, "", ["y", "d", "h", "m", "s"])
}

/// A duration in its two largest units, for the HTML report: "45 s", "12 min 5 s", "7 d".
pub fn spaced(span: Duration) -> String {
    units(span, " ", [" y", " d", " h", " min", " s"])
}

/// `names` are those of years, days, hours, minutes and seconds.
fn units(span: Duration, between: &str, names: [&str; 5]) -> String {
    let mut rest = span.as_secs();
    let units = || names.into_iter().zip([31_536_000, 86_400, 3_600, 60, 1]);
    let Some(at) = units().position(|(_, length)| rest >= length) else { return format!("0{}", names[4]) };
    let mut text = String::new();
    for (unit, length) in units().skip(at).take(2) {
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

    #[test]
    fn spans_have_two_largest_units() {
        let of = |seconds| spaced(Duration::from_secs(seconds));
        assert_eq!([of(0), of(59), of(3_600), of(90_061), of(86_400 + 59)], ["0 s", "59 s", "1 h", "1 d 1 h", "1 d"]);
        assert_eq!(of(400 * 86_400), "1 y 35 d");
    }
}
