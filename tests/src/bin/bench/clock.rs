//! The one place of this program that reads the wall clock.

use std::time::{Duration, SystemTime};

/// Milliseconds since the Unix epoch; 0 for a clock set before it.
#[allow(clippy::disallowed_methods, reason = "this is the clock module")]
pub(crate) fn unix_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}
