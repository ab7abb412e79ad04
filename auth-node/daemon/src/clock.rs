//! The one place that reads the wall clock. Everything else is given the time.

use std::time::{Duration, SystemTime};

/// Now.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the clock module")]
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// Milliseconds since the Unix epoch; 0 for a clock set before it.
#[must_use]
pub fn unix_ms() -> u64 {
    let since_epoch = now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

/// Seconds since the Unix epoch; 0 for a clock set before it.
#[must_use]
pub fn unix_seconds() -> u64 {
    unix_ms() / 1_000
}

/// Longest pause: timers do not run while a machine is suspended, and clocks are set.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// How long to sleep at `now` before looking again whether it is `due`, both in Unix seconds: an hour at most.
#[must_use]
pub fn pause(due: u64, now: u64) -> Duration {
    Duration::from_secs(due.saturating_sub(now)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pause_is_longer_than_an_hour() {
        assert_eq!(pause(1_000, 990), Duration::from_secs(10));
        assert_eq!(pause(7 * 86_400, 0), Duration::from_secs(3600));
        assert_eq!((pause(5, 5), pause(5, 6)), (Duration::ZERO, Duration::ZERO));
    }
}
