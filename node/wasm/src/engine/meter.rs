use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// The CPU time that a container uses, and its limit as cgroups know it: so much in each period.
pub(crate) struct Cpu {
    used_ns: AtomicU64,
    quota: Mutex<Option<Quota>>,
    limited: std::sync::atomic::AtomicBool,
}

struct Quota {
    quota: Duration,
    period: Duration,
    window: Instant,
    used: Duration,
}

impl Cpu {
    /// A quota or period that is zero or negative is no limit.
    pub(crate) fn new(quota_us: i64, period_us: i64, now: Instant) -> Cpu {
        let cpu = Cpu {
            used_ns: AtomicU64::new(0),
            quota: Mutex::new(None),
            limited: std::sync::atomic::AtomicBool::new(false),
        };
        cpu.set_limit(quota_us, period_us, now);
        cpu
    }

    pub(crate) fn set_limit(&self, quota_us: i64, period_us: i64, now: Instant) {
        let positive = |us: i64| u64::try_from(us).ok().filter(|us| *us > 0).map(Duration::from_micros);
        let quota = positive(quota_us).zip(positive(period_us)).map(|(quota, period)| Quota {
            quota,
            period,
            window: now,
            used: Duration::ZERO,
        });
        self.limited.store(quota.is_some(), Ordering::Relaxed);
        *self.quota.lock() = quota;
    }

    pub(crate) fn used(&self) -> Duration {
        Duration::from_nanos(self.used_ns.load(Ordering::Relaxed))
    }

    pub(crate) fn spend(&self, time: Duration, now: Instant) {
        self.used_ns.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if self.limited.load(Ordering::Relaxed)
            && let Some(quota) = self.quota.lock().as_mut()
        {
            quota.roll(now);
            quota.used += time;
        }
    }

    /// Until when its guests must wait because the period's share is used up.
    pub(crate) fn exhausted_until(&self, now: Instant) -> Option<Instant> {
        if !self.limited.load(Ordering::Relaxed) {
            return None;
        }
        let mut quota = self.quota.lock();
        let quota = quota.as_mut()?;
        quota.roll(now);
        (quota.used >= quota.quota).then(|| quota.window + quota.period)
    }
}

impl Quota {
    /// What was used beyond a period's share is paid by the periods after it.
    fn roll(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.window);
        let periods = passed.as_nanos() / self.period.as_nanos().max(1);
        if periods == 0 {
            return;
        }
        let periods = u32::try_from(periods).unwrap_or(u32::MAX);
        self.window += self.period.saturating_mul(periods);
        self.used = self.used.saturating_sub(self.quota.saturating_mul(periods));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn half_a_core_waits_for_the_next_period() {
        let start = Instant::now();
        let cpu = Cpu::new(50_000, 100_000, start);
        assert_eq!(cpu.exhausted_until(start), None);
        cpu.spend(40 * MS, start + 40 * MS);
        assert_eq!(cpu.exhausted_until(start + 40 * MS), None);
        cpu.spend(10 * MS, start + 50 * MS);
        assert_eq!(cpu.exhausted_until(start + 50 * MS), Some(start + 100 * MS));
        assert_eq!(cpu.exhausted_until(start + 100 * MS), None);
        assert_eq!(cpu.used(), 50 * MS);
    }

    #[test]
    fn overdraft_is_paid_later_and_savings_are_not_kept() {
        let start = Instant::now();
        let cpu = Cpu::new(50_000, 100_000, start);
        cpu.spend(120 * MS, start);
        assert_eq!(cpu.exhausted_until(start + 100 * MS), Some(start + 200 * MS));
        assert_eq!(cpu.exhausted_until(start + 200 * MS), None);
        cpu.spend(30 * MS, start + 1000 * MS);
        cpu.spend(30 * MS, start + 1000 * MS);
        assert_eq!(cpu.exhausted_until(start + 1001 * MS), Some(start + 1100 * MS));
    }

    #[test]
    fn no_limit() {
        let start = Instant::now();
        let cpu = Cpu::new(-1, 100_000, start);
        cpu.spend(Duration::from_secs(10), start);
        assert_eq!(cpu.exhausted_until(start), None);
    }
}
