//! How a run is given up, with everything that it started put away.

use tokio::signal::unix::{SignalKind, signal};

/// Resolves when somebody tells this program to end.
///
/// # Panics
/// When signals cannot be handled.
pub async fn interrupted() {
    let mut terminated = signal(SignalKind::terminate()).unwrap();
    let mut interrupted = signal(SignalKind::interrupt()).unwrap();
    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
}
