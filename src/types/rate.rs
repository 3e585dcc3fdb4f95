//! Defines a packet rate in the notation of the configuration and of nft ("3/minute"), and in the kernel's units.

use std::fmt;
use std::str::FromStr;

/// A number of packets per unit of time, from 1 to 1,000,000. A burst of up to five more packets is possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    packets: u32,
    /// Length of the unit of time.
    seconds: u64,
}

/// The names of the units in nft, and their lengths in seconds.
const UNITS: [(&str, u64); 4] = [("second", 1), ("minute", 60), ("hour", 3_600), ("day", 86_400)];

impl Rate {
    /// The maximum number of packets per unit of time: far more than any log can take, and far below the limits of the
    /// kernel's arithmetic in nanoseconds.
    pub const MAX: u32 = 1_000_000;

    /// A rate per minute. A number of packets outside the valid range is replaced by the nearest bound.
    pub const fn per_minute(packets: u32) -> Self {
        let packets = match packets {
            0 => 1,
            more if more > Self::MAX => Self::MAX,
            packets => packets,
        };
        Self { packets, seconds: 60 }
    }

    pub fn packets(self) -> u32 {
        self.packets
    }

    /// The rate for the kernel's numbers, `packets` in `seconds`; `None` if no text can express the rate.
    pub fn from_kernel(packets: u64, seconds: u64) -> Option<Self> {
        let packets = u32::try_from(packets).ok().filter(|packets| (1..=Self::MAX).contains(packets))?;
        UNITS.iter().any(|(_, length)| *length == seconds).then_some(Self { packets, seconds })
    }

    /// Parses a rate whose unit may be abbreviated, as in iptables: "3/min". `None` if it is invalid.
    pub fn abbreviated(text: &str) -> Option<Self> {
        let (packets, unit) = text.split_once('/')?;
        let (_, seconds) = UNITS.iter().find(|(name, _)| !unit.is_empty() && name.starts_with(unit))?;
        Self::from_kernel(packets.parse().ok()?, *seconds)
    }

    /// The number of packets, and the unit of time in seconds.
    pub fn for_kernel(self) -> (u64, u64) {
        (self.packets.into(), self.seconds)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = UNITS.iter().find(|(_, length)| *length == self.seconds).map_or("second", |(name, _)| name);
        write!(f, "{}/{name}", self.packets)
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let refused = || RateError(text.chars().take(40).collect());
        let (packets, name) = text.split_once('/').ok_or_else(refused)?;
        let (_, seconds) = UNITS.iter().find(|(known, _)| *known == name).ok_or_else(refused)?;
        // `parse` accepts a plus sign, but nft does not.
        let number = packets.parse().ok().filter(|_| !packets.starts_with('+'));
        number.and_then(|number| Self::from_kernel(number, *seconds)).ok_or_else(refused)
    }
}

/// The error for a text that is not a rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a rate; write a number of packets from 1 to {max}, a slash, and second, minute, hour or day, for \
     example \"3/minute\"", max = Rate::MAX
)]
pub struct RateError(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_reads_back_unchanged() {
        for text in ["1/second", "3/minute", "12/hour", "1000000/day"] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!(rate.to_string(), text);
            let (packets, seconds) = rate.for_kernel();
            assert_eq!(Rate::from_kernel(packets, seconds), Some(rate));
        }
    }

    #[test]
    fn non_rate_is_refused_with_example() {
        for text in [
            "",
            "3",
            "/",
            "/minute",
            "3/",
            "3/min",
            "3/week",
            "0/minute",
            "-1/minute",
            "+3/minute",
            "3 /minute",
            "3/minute ",
            "1000001/day",
            "99999999999/day",
            "3/Minute",
            "3//minute",
            "٣/minute",
        ] {
            let error = text.parse::<Rate>().unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("{text:?} is not a rate")) && error.ends_with("\"3/minute\""),
                "{error}"
            );
        }
    }

    #[test]
    fn long_text_is_shortened_in_error() {
        assert!("9".repeat(10_000).parse::<Rate>().unwrap_err().to_string().len() < 250);
    }

    #[test]
    fn unrepresentable_limit_is_not_a_rate() {
        for (packets, seconds) in [(0, 60), (1_000_001, 60), (u64::MAX, 60), (3, 604_800), (3, 0)] {
            assert_eq!(Rate::from_kernel(packets, seconds), None, "{packets} in {seconds}");
        }
    }
}
