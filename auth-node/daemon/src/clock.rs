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
