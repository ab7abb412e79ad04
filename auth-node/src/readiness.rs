//! Whether the node lives, and whether it should be sent calls.

use std::sync::OnceLock;

use mezite_daemon::diagnostics::Health;
use raft_store::Store;
use tokio_util::sync::CancellationToken;

/// A node whose state lacks more log entries than this of what it knows to be committed is not ready.
pub(crate) const MAX_LAG: u64 = 1_000;

/// Whether the node lives, and whether it should be sent calls.
pub(crate) struct Readiness {
    store: Store,
    serving: CancellationToken,
    leaving: CancellationToken,
    dead: OnceLock<String>,
}

impl Readiness {
    /// Of a node that does not serve yet.
    pub(crate) fn new(store: Store) -> Self {
        Self {
            store,
            serving: CancellationToken::new(),
            leaving: CancellationToken::new(),
            dead: OnceLock::new(),
        }
    }

    /// The port of the API is open.
    pub(crate) fn serve(&self) {
        self.serving.cancel();
    }

    /// The node stops: it is not ready any more.
    pub(crate) fn leave(&self) {
        self.leaving.cancel();
    }

    /// The node does not live any more.
    pub(crate) fn die(&self, reason: String) {
        // The first reason counts.
        let _ = self.dead.set(reason);
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.is_cancelled()
    }

    /// Is cancelled when the node stops.
    pub(crate) fn stopping(&self) -> CancellationToken {
        self.leaving.clone()
    }

    /// Resolves when the node stops.
    pub(crate) async fn leaving(&self) {
        self.leaving.cancelled().await;
    }
}

impl Health for Readiness {
    fn alive(&self) -> Result<(), String> {
        self.dead.get().map_or(Ok(()), |reason| Err(reason.clone()))
    }

    /// It serves, it is in touch with a leader that has a quorum, and its state is up to it.
    async fn ready(&self) -> Result<(), String> {
        self.alive()?;
        if self.is_leaving() {
            return Err("the node is stopping".into());
        }
        if !self.serving.is_cancelled() {
            return Err("the node waits for the cluster before it serves".into());
        }
        self.store.ready(MAX_LAG).await.map_err(|error| error.to_string())
    }
}
