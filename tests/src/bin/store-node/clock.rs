//! The one place of this program that reads the wall clock.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use raft_store::Clock;

#[allow(clippy::disallowed_methods, reason = "this is the clock module")]
fn unix_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

/// The wall clock, which a test may have faked.
pub(crate) fn system() -> Clock {
    Arc::new(unix_ms)
}
