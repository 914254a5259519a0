//! When a CronJob is due.

use jiff::{SignedDuration, Timestamp, tz::TimeZone};

/// Times of a schedule that are looked through one by one.
const MAX_STEPS: usize = 10_000;

#[derive(Debug)]
pub(super) enum Schedule {
    At(Box<cronexpr::Crontab>),
    Every(SignedDuration),
}

/// The last time that was due, and how many times were before it that nobody served.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) at: Timestamp,
    pub(super) missed: i64,
}

impl Schedule {
    /// Five fields, or one of the `@` words: <https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/>.
    pub(super) fn parse(text: &str, zone: &TimeZone) -> Result<Schedule, String> {
        if let Some(every) = text.strip_prefix("@every ") {
            let every: SignedDuration = every.trim().parse().map_err(|error: jiff::Error| error.to_string())?;
            // Seconds are the finest that there are.
            return Ok(Schedule::Every(SignedDuration::from_secs(every.as_secs().max(1))));
        }
        let fields = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            fields => fields,
        };
        let fields = fields.split_whitespace().map(|field| field.replace('?', "*")).collect::<Vec<_>>().join(" ");
        let zone = zone.iana_name().unwrap_or("UTC");
        let crontab = cronexpr::parse_crontab(&format!("{fields} {zone}")).map_err(|error| error.to_string())?;
        Ok(Schedule::At(Box::new(crontab)))
    }

    pub(super) fn next(&self, after: Timestamp) -> Option<Timestamp> {
        match self {
            Schedule::At(crontab) => crontab.find_next(after).ok().map(|at| at.timestamp()),
            Schedule::Every(every) => Timestamp::from_second(after.as_second()).ok()?.checked_add(*every).ok(),
        }
    }

    /// Long gaps are leapt over by the distance of the first two times, as Kubernetes does.
    pub(super) fn due(&self, since: Timestamp, now: Timestamp) -> Option<Due> {
        let first = self.next(since).filter(|first| *first <= now)?;
        let Some(second) = self.next(first).filter(|second| *second <= now) else {
            return Some(Due { at: first, missed: 0 });
        };
        let distance = (second.as_second() - first.as_second()).max(1);
        let missed = (now.as_second() - first.as_second()) / distance;
        let leap = first.checked_add(SignedDuration::from_secs((missed - 1) * distance)).unwrap_or(first);
        let at = self.last(leap, now).or_else(|| self.last(first, now)).unwrap_or(second);
        Some(Due { at, missed })
    }

    fn last(&self, after: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let times = std::iter::successors(self.next(after), |at| self.next(*at));
        times.take(MAX_STEPS).take_while(|at| *at <= now).last()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn check(schedule: &str, zone: &str, after: &str, expected: &str) {
        let schedule = Schedule::parse(schedule, &TimeZone::get(zone).unwrap()).unwrap();
        assert_eq!(schedule.next(at(after)), Some(at(expected)), "{schedule:?}");
    }

    #[test]
    fn schedules_are_read_as_cron_reads_them() {
        check("*/5 * * * *", "UTC", "2026-01-01T00:00:00Z", "2026-01-01T00:05:00Z");
        check("0 9 ? * MON-FRI", "UTC", "2026-01-02T10:00:00Z", "2026-01-05T09:00:00Z");
        check("0 0 13 * 5", "UTC", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        check("@hourly", "UTC", "2026-01-01T00:00:01Z", "2026-01-01T01:00:00Z");
        check("@every 1h30m", "UTC", "2026-01-01T00:00:00.5Z", "2026-01-01T01:30:00Z");
        check("30 8 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", "2026-03-29T06:30:00Z");
        assert!(Schedule::parse("61 * * * *", &TimeZone::UTC).is_err());
    }

    #[test]
    fn of_many_missed_times_the_last_is_due() {
        let due = |schedule: &str, since: &str, now: &str| {
            Schedule::parse(schedule, &TimeZone::UTC).unwrap().due(at(since), at(now))
        };
        let some = |text: &str, missed| Some(Due { at: at(text), missed });
        assert_eq!(due("* * * * *", "2026-01-01T00:00:10Z", "2026-01-01T00:00:50Z"), None);
        assert_eq!(due("* * * * *", "2026-01-01T00:00:10Z", "2026-01-01T00:01:00Z"), some("2026-01-01T00:01:00Z", 0));
        assert_eq!(
            due("* * * * *", "2025-01-01T00:00:00Z", "2026-01-01T00:00:30Z"),
            some("2026-01-01T00:00:00Z", 525_599)
        );
        let uneven = due("0-1 9 * * 1", "2026-01-01T00:00:00Z", "2026-01-10T00:00:00Z").unwrap();
        assert_eq!(uneven.at, at("2026-01-05T09:01:00Z"));
    }
}
