//! Seconds since 1970 to weekdays, hours, stretches of a chart and what people read of them. All UTC, since the standard
//! library knows no other. Total: a time that no calendar has is taken for the nearest that one has.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// 9999-12-31T23:59:59Z: a year has four digits.
const LAST_SECOND: u64 = 253_402_300_799;

pub(super) const MINUTE: u64 = 60;
pub(super) const HOUR: u64 = 60 * MINUTE;
pub(super) const DAY: u64 = 24 * HOUR;

/// 1970-01-05, the first Monday.
const MONDAY: u64 = 4 * DAY;

/// Bars of a chart at most: more are thinner than a telephone shows.
const BARS: u64 = 62;

/// What one bar may stand for: 91 days are a quarter.
const WIDTHS: [u64; 11] =
    [MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 6 * HOUR, DAY, 7 * DAY, 28 * DAY, 91 * DAY, 364 * DAY, 3_640 * DAY];

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// The days of the week, as the rows of a table of seven have them.
pub(super) const WEEKDAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// Seconds since 1970.
pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().min(LAST_SECOND)
}

/// Weekday, Monday being 0, and hour.
pub(super) fn weekday_and_hour(time: SystemTime) -> (usize, usize) {
    let seconds = seconds(time);
    // 1970 began on a Thursday.
    let weekday = (seconds / DAY + 3) % 7;
    (usize::try_from(weekday).unwrap_or_default(), usize::try_from(seconds % DAY / HOUR).unwrap_or_default())
}

/// "2026-11-21T06:32:13Z", for machines.
pub(super) fn stamp(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds(time))).to_string()
}

/// "2026-11-21 06:32".
pub(super) fn minute(time: SystemTime) -> String {
    stamp(time).get(..16).unwrap_or_default().replace('T', " ")
}

/// A period cut into equal stretches, whole hours, days or weeks from Monday on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stretches {
    width: u64,
    origin: u64,
    first: u64,
    last: u64,
}

impl Stretches {
    /// The finest that give no more bars than can be read.
    pub(super) fn of(from: SystemTime, to: SystemTime) -> Self {
        let cut = |width: u64| {
            let origin = if width >= 7 * DAY { MONDAY } else { 0 };
            let index = |time| seconds(time).saturating_sub(origin) / width;
            Self { width, origin, first: index(from), last: index(to) }
        };
        let mut cuts = WIDTHS.into_iter().map(cut);
        let finest = cuts.find(|cut| cut.last.saturating_sub(cut.first) < BARS);
        finest.unwrap_or_else(|| cut(LAST_SECOND))
    }

    pub(super) fn width(self) -> Duration {
        Duration::from_secs(self.width)
    }

    pub(super) fn count(self) -> usize {
        usize::try_from(self.last.saturating_sub(self.first)).unwrap_or_default() + 1
    }

    /// Which one `time` lies in, counted from the first.
    pub(super) fn index(self, time: SystemTime) -> Option<usize> {
        let index = (seconds(time).saturating_sub(self.origin) / self.width).checked_sub(self.first)?;
        usize::try_from(index).ok()
    }

    /// Where each begins.
    pub(super) fn starts(self) -> impl Iterator<Item = SystemTime> {
        (self.first..=self.last).map(move |index| UNIX_EPOCH + Duration::from_secs(self.origin + index * self.width))
    }
}

/// What a bar is labelled with: as much of the date as tells it from its neighbours.
pub(super) fn label(time: SystemTime, width: Duration) -> String {
    let stamp = stamp(time);
    let part = |range| stamp.get(range).unwrap_or_default();
    let month = part(5..7).parse::<usize>().ok().and_then(|month| MONTHS.get(month.checked_sub(1)?)).unwrap_or(&"");
    let day = part(8..10).trim_start_matches('0');
    match width.as_secs() {
        ..HOUR => part(11..16).to_owned(),
        HOUR..DAY => format!("{day} {month} {}", part(11..16)),
        width if width < 28 * DAY => format!("{day} {month}"),
        _ => format!("{month} {}", part(0..4)),
    }
}

/// "one day", "5 minutes": what a bar stands for.
pub(super) fn unit(width: Duration) -> String {
    let (count, name) = match width.as_secs() {
        width if width.is_multiple_of(7 * DAY) => (width / (7 * DAY), "week"),
        width if width.is_multiple_of(DAY) => (width / DAY, "day"),
        width if width.is_multiple_of(HOUR) => (width / HOUR, "hour"),
        width => (width / MINUTE, "minute"),
    };
    if count == 1 { format!("one {name}") } else { format!("{count} {name}s") }
}

/// A span in its two largest units: "3 d 4 h".
pub(super) fn span(span: Duration) -> String {
    const UNITS: [(u64, &str); 5] = [(365 * DAY, "y"), (DAY, "d"), (HOUR, "h"), (MINUTE, "min"), (1, "s")];
    let mut left = span.as_secs();
    let parts = UNITS.into_iter().map(|(size, name)| {
        let count = left / size;
        left %= size;
        (count, name)
    });
    let parts: Vec<_> = parts.skip_while(|(count, _)| *count == 0).take(2).collect();
    let words: Vec<_> =
        parts.iter().filter(|(count, _)| *count > 0).map(|(count, name)| format!("{count} {name}")).collect();
    if words.is_empty() { "0 s".to_owned() } else { words.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SystemTime {
        humantime::parse_rfc3339(text).unwrap()
    }

    #[test]
    fn a_saturday_morning_is_one() {
        assert_eq!(weekday_and_hour(at("2026-11-21T06:32:13Z")), (5, 6));
        assert_eq!(weekday_and_hour(UNIX_EPOCH), (3, 0));
        assert_eq!(weekday_and_hour(at("2024-02-29T23:59:59Z")), (3, 23));
    }

    #[test]
    fn times_that_no_calendar_has_are_the_nearest_that_one_has() {
        assert_eq!(stamp(UNIX_EPOCH - Duration::from_secs(9)), "1970-01-01T00:00:00Z");
        assert_eq!(stamp(UNIX_EPOCH + Duration::from_secs(1 << 50)), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn a_period_is_cut_into_as_many_bars_as_can_be_read() {
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
            let stretches = Stretches::of(from, end);
            assert_eq!((unit(stretches.width()).as_str(), stretches.count()), (width, count), "{hours} h");
            let starts: Vec<_> = stretches.starts().collect();
            assert_eq!(starts.len(), count);
            assert_eq!((stretches.index(from), stretches.index(end)), (Some(0), Some(count - 1)));
            assert!(starts[0] <= from && from < starts[1], "{hours} h");
            if hours >= 365 * 24 {
                assert!(starts.iter().all(|start| weekday_and_hour(*start) == (0, 0)), "weeks begin on Monday");
            }
        }
        assert!(Stretches::of(UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(LAST_SECOND)).count() <= 62);
    }

    #[test]
    fn labels_say_as_much_as_is_needed() {
        let time = at("2026-11-05T06:00:00Z");
        let of = |seconds| label(time, Duration::from_secs(seconds));
        assert_eq!([of(300), of(HOUR), of(DAY), of(28 * DAY)], ["06:00", "5 Nov 06:00", "5 Nov", "Nov 2026"]);
    }

    #[test]
    fn spans_are_told_in_their_two_largest_units() {
        let of = |seconds| span(Duration::from_secs(seconds));
        assert_eq!([of(0), of(59), of(3_600), of(90_061), of(86_400 + 59)], ["0 s", "59 s", "1 h", "1 d 1 h", "1 d"]);
        assert_eq!(of(400 * DAY), "1 y 35 d");
    }
}
