//! What a program tells systemd, or another supervisor that sets `NOTIFY_SOCKET` (sd_notify(3)): that it serves, that it stops, and
//! again and again that it lives, where the unit has `WatchdogSec=`. Where nobody set it, nothing is told.

use std::convert::Infallible;

use sd_notify::NotifyState::{self, Ready, Status, Stopping, Watchdog};

use crate::diagnostics::Health;

/// Says what the program does, in words, for `systemctl status`.
pub fn status(text: &str) {
    tell(&[Status(text)]);
}

/// It serves.
pub fn ready() {
    tell(&[Ready, Status("serving")]);
}

/// It was told to stop, and lets what goes on end.
pub fn stopping() {
    tell(&[Stopping, Status("stopping")]);
}

/// Says that the program lives, twice in the time that the supervisor allows, for as long as that is so.
pub(crate) async fn keep_alive(health: &impl Health) -> Infallible {
    let Some(allowed) = sd_notify::watchdog_enabled().filter(|allowed| !allowed.is_zero()) else {
        return std::future::pending().await;
    };
    let mut ticks = tokio::time::interval(allowed / 2);
    loop {
        ticks.tick().await;
        match health.alive() {
            Ok(()) => tell(&[Watchdog]),
            Err(reason) => status(&reason),
        }
    }
}

/// A supervisor that does not listen hears of it by its own timeouts.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the supervisor cannot be told");
    }
}
