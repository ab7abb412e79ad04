//! What happens when storage fails: the process ends.
//!
//! After a failed write or fsync nobody knows what is on the disk, so it is never retried and never ignored.

use std::sync::Arc;

/// Ends the process, or whatever a test puts in its place.
#[derive(Clone)]
pub struct Fatal(Arc<dyn Fn(&str) + Send + Sync>);

impl Fatal {
    /// Aborts the process: no destructor may run over a state that is not known.
    pub fn abort() -> Self {
        Self::new(|reason| {
            tracing::error!(reason, "storage failed; the process ends now");
            std::process::abort();
        })
    }

    /// Calls `handler` with the reason.
    pub fn new(handler: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(handler))
    }

    pub(crate) fn call(&self, reason: &str) {
        (self.0)(reason);
    }
}

impl std::fmt::Debug for Fatal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fatal")
    }
}
