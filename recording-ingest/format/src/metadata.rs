//! What is known of a recorded session.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What is known of a recorded session, as the agent told it. Times are Unix milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Mezite user.
    pub user: String,
    /// Login on the host.
    pub login: String,
    /// Hostname of the node.
    pub node: String,
    /// When the session began.
    pub started_at_ms: u64,
    /// When it ended; not known while it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at_ms: Option<u64>,
    /// Format of the payload, such as `asciicast-v3`.
    pub format: String,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl Metadata {
    /// Whether both tell of the same session: all but the end, which is learnt later, is equal.
    #[must_use]
    pub fn same_session(&self, other: &Self) -> bool {
        Self { ended_at_ms: None, ..self.clone() } == Self { ended_at_ms: None, ..other.clone() }
    }
}
