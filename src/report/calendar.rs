//! Calculates with calendar times for the report: buckets of its chart, weekdays and hours, and texts of times and
//! spans. All in UTC; a time outside of the years 1970 to 9999 is replaced with the nearest time within.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::clock::utc;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// 1970-01-05, the first Monday.
const MONDAY: u64 = 4 * DAY;

/// Maximum number of bars; more would be too thin on a telephone.
const MAX_BUCKETS: u64 = 62;

/// The possible widths of a bucket. 91 days are a quarter.
const WIDTHS: [u64; 11] =
    [MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 6 * HOUR, DAY, 7 * DAY, 28 * DAY, 91 * DAY, 364 * DAY, 3_640 * DAY];

pub(super) const WEEKDAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// Seconds since 1970.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Weekday, with Monday as 0, and hour.
pub(super) fn weekday_and_hour(time: SystemTime) -> (usize, usize) {
    let time = utc(time);
    let index = |value: i8| usize::try_from(value).unwrap_or_default();
    (index(time.weekday().to_monday_zero_offset()), index(time.hour()))
}

/// "2026-11-21 06:32".
pub(super) fn minute(time: SystemTime) -> String {
    utc(time).strftime("%Y-%m-%d %H:%M").to_string()
}

/// A period cut into buckets of equal width: whole hours or days, or weeks from Monday on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buckets {
    width: u64,
    origin: u64,
    first: u64,
    last: u64,
}

impl Buckets {
    /// Chooses the narrowest buckets that cover the period with at most [`MAX_BUCKETS`].
    pub(super) fn new(from: SystemTime, to: SystemTime) -> Self {
        let cut = |width: u64| {
            let origin = if width >= 7 * DAY { MONDAY } else { 0 };
            let index = |time| seconds(time).saturating_sub(origin) / width;
            Self { width, origin, first: index(from), last: index(to) }
        };
        let mut cuts = WIDTHS.into_iter().map(cut);
        let narrowest = cuts.find(|cut| cut.last.saturating_sub(cut.first) < MAX_BUCKETS);
        narrowest.unwrap_or_else(|| cut(u64::MAX))
    }

    pub(super) fn width(self) -> Duration {
        Duration::from_secs(self.width)
    }

    /// The index of the bucket that contains `time`.
    pub(super) fn index(self, time: SystemTime) -> Option<usize> {
        let index = (seconds(time).saturating_sub(self.origin) / self.width).checked_sub(self.first)?;
        usize::try_from(index).ok()
    }

    /// The start of each bucket.
    pub(super) fn starts(self) -> impl Iterator<Item = SystemTime> {
        (self.first..=self.last).map(move |index| UNIX_EPOCH + Duration::from_secs(self.origin + index * self.width))
    }
}

/// The label of a bucket: the part of its date that distinguishes it from its neighbours.
pub(super) fn label(time: SystemTime, width: Duration) -> String {
    let format = match width.as_secs() {
        ..HOUR => "%H:%M",
        HOUR..DAY => "%-d %b %H:%M",
        width if width < 28 * DAY => "%-d %b",
        _ => "%b %Y",
    };
    utc(time).strftime(format).to_string()
}

/// The width of a bucket as text: "one day", "5 minutes".
pub(super) fn unit(width: Duration) -> String {
    let (count, name) = match width.as_secs() {
        width if width.is_multiple_of(7 * DAY) => (width / (7 * DAY), "week"),
        width if width.is_multiple_of(DAY) => (width / DAY, "day"),
        width if width.is_multiple_of(HOUR) => (width / HOUR, "hour"),
        width => (width / MINUTE, "minute"),
    };
    if count == 1 { format!("one {name}") } else { format!("{count} {name}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SystemTime {
        humantime::parse_rfc3339(text).unwrap()
    }

    #[test]
    fn weekday_and_hour_are_correct() {
        assert_eq!(weekday_and_hour(at("2026-11-21T06:32:13Z")), (5, 6));
        assert_eq!(weekday_and_hour(UNIX_EPOCH), (3, 0));
        assert_eq!(weekday_and_hour(at("2024-02-29T23:59:59Z")), (3, 23));
    }

    #[test]
    fn period_has_readable_number_of_bars() {
        let end = at("2026-11-21T06:32:13Z");
        for (hours, width, count) in [
            (1, "one minute", 61),
            (24, "one hour", 25),
            (2 * 24, "one hour", 49),
            (7 * 24, "6 hours", 29),
            (30 * 24, "one day", 31),
            (365 * 24, "one week", 53),
            (730 * 24, "4 weeks", 27),
            (87_660, "13 weeks", 41),
        ] {
            let from = end - Duration::from_secs(hours * HOUR);
            let buckets = Buckets::new(from, end);
            assert_eq!((unit(buckets.width()).as_str(), buckets.starts().count()), (width, count), "{hours} h");
            let starts: Vec<_> = buckets.starts().collect();
            assert_eq!(starts.len(), count);
            assert_eq!((buckets.index(from), buckets.index(end)), (Some(0), Some(count - 1)));
            assert!(starts[0] <= from && from < starts[1], "{hours} h");
            if hours >= 365 * 24 {
                assert!(starts.iter().all(|start| weekday_and_hour(*start) == (0, 0)), "weeks begin on Monday");
            }
        }
        assert!(Buckets::new(UNIX_EPOCH, at("9999-12-31T23:59:59Z")).starts().count() <= 62);
    }

    #[test]
    fn labels_have_needed_precision() {
        let time = at("2026-11-05T06:00:00Z");
        let of = |seconds| label(time, Duration::from_secs(seconds));
        assert_eq!([of(300), of(HOUR), of(DAY), of(28 * DAY)], ["06:00", "5 Nov 06:00", "5 Nov", "Nov 2026"]);
    }
}
