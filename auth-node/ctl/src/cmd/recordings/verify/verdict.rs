//! What is found of a recording, and what it comes to.

use std::time::{Duration, UNIX_EPOCH};

use prost_types::Timestamp;
use recording_format::RecordingId;
use serde::Serialize;

use super::audit::{Audit, Said};
use crate::{
    output::{self, Report},
    recording_proof::Sealed,
};

/// An ingest tells the audit log of a seal within seconds, and another one in its place within 20 minutes while auth nodes are
/// reached. After this it is time to ask why nobody did: one hour.
const TOLD_WITHIN_MS: u64 = 3_600_000;

const NOT_YET: &str = "the audit log has nothing of it yet: verify it again an hour after it was sealed";
const NEVER: &str = "the audit log should know it by now: it was sealed by somebody with an ingest's key who told nobody, the cluster \
                     was restored from before it, or its ingests cannot tell (alert ingest-audit-pending)";
const FORGOTTEN: &str = "the audit log begins after it was sealed, and cannot speak for it";

/// What was found of a recording.
#[derive(Debug, Serialize)]
pub(super) struct Verdict {
    recording_id: String,
    /// `proven`; `not-proven`; `not-in-audit-log`: the signature is good, and the cluster was never told of it; or `in-progress`: there
    /// is nothing to prove yet.
    verdict: &'static str,
    pub(super) state: &'static str,
    pub(super) length: u64,
    /// Bytes that were acknowledged and are known to be missing, as the manifest says: they were damaged.
    missing_bytes: u64,
    payload_sha256: String,
    manifest_sha256: String,
    sealed_at: Option<String>,
    ingest_id: String,
    /// What the audit log says of the manifest.
    audit: Said,
    pub(super) problems: Vec<String>,
    /// What somebody should know, and that speaks against nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'static str>,
    /// As the manifest says, Unix milliseconds.
    #[serde(skip)]
    sealed_at_ms: u64,
}

impl Report for Verdict {
    fn text(&self) -> String {
        let verdict = match self.verdict {
            "proven" => "proven: this is what the cluster sealed",
            "not-in-audit-log" => {
                "NOT IN THE AUDIT LOG: the signature is good, and the cluster was not told of it"
            }
            "in-progress" => "the session goes on: there is nothing to prove yet",
            _ => "NOT PROVEN",
        };
        let mut text = output::fields(&[
            ("recording", self.recording_id.clone()),
            ("verdict", verdict.into()),
            ("state", self.state.into()),
            ("length", format!("{} bytes", self.length)),
            ("sha256", self.payload_sha256.clone()),
            ("manifest", self.manifest_sha256.clone()),
            ("sealed at", self.sealed_at.clone().unwrap_or_default()),
            ("sealed by", self.ingest_id.clone()),
            ("audit log", self.audit.name().into()),
        ]);
        if self.missing_bytes > 0 {
            text += &format!(
                "  {} bytes of the session are missing: they were damaged in the store\n",
                self.missing_bytes
            );
        }
        for said in self.problems.iter().map(String::as_str).chain(self.note) {
            text += &format!("  {said}\n");
        }
        text
    }
}

impl Verdict {
    /// Of which nothing is proven yet.
    pub(super) fn of(id: RecordingId) -> Self {
        Self {
            recording_id: id.to_string(),
            verdict: "not-proven",
            state: "unknown",
            length: 0,
            missing_bytes: 0,
            payload_sha256: String::new(),
            manifest_sha256: String::new(),
            sealed_at: None,
            ingest_id: String::new(),
            audit: Said::NotAsked,
            problems: Vec::new(),
            note: None,
            sealed_at_ms: 0,
        }
    }

    /// Takes down what a manifest says, and what is wrong with it.
    pub(super) fn take(&mut self, sealed: &Sealed) {
        let manifest = &sealed.manifest;
        self.state = match manifest.state {
            recording_format::RecordingState::Complete => "complete",
            recording_format::RecordingState::Interrupted => "interrupted",
            recording_format::RecordingState::Truncated => "truncated",
        };
        self.length = manifest.length;
        self.missing_bytes = manifest.gaps.iter().map(|gap| gap.length).sum();
        self.payload_sha256 = manifest.payload_sha256.to_string();
        self.manifest_sha256 = sealed.sha256.to_string();
        let sealed_at = UNIX_EPOCH.checked_add(Duration::from_millis(manifest.sealed_at_ms));
        self.sealed_at = output::time(sealed_at.map(Timestamp::from).as_ref());
        self.sealed_at_ms = manifest.sealed_at_ms;
        self.ingest_id = manifest.ingest_id.to_string();
        self.problems.extend(sealed.problems.iter().cloned());
    }

    /// Takes down what the audit log says of the manifest.
    pub(super) fn ask(&mut self, audit: &Audit) {
        self.audit = audit.says(&self.recording_id, &self.manifest_sha256, self.sealed_at_ms);
    }

    /// Of a session that goes on.
    pub(super) fn goes_on(self) -> Self {
        Self { verdict: "in-progress", ..self }
    }

    /// What all of it comes to at this time, Unix milliseconds.
    pub(super) fn conclude(mut self, now_ms: u64) -> Self {
        if self.audit == Said::Other {
            let other = "the audit log has another manifest as the newest of this recording";
            self.problems.push(other.to_owned());
        }
        if !self.problems.is_empty() {
            return self;
        }
        // Whoever signs can say any time, also one that is yet to come.
        let is_new = now_ms.abs_diff(self.sealed_at_ms) < TOLD_WITHIN_MS;
        (self.verdict, self.note) = match self.audit {
            Said::Nothing if is_new => ("proven", Some(NOT_YET)),
            Said::Nothing => ("not-in-audit-log", Some(NEVER)),
            Said::Forgotten => ("proven", Some(FORGOTTEN)),
            Said::Same | Said::Other | Said::NotAsked => ("proven", None),
        };
        self
    }

    /// Whether somebody must look at it.
    pub(super) fn is_bad(&self) -> bool {
        matches!(self.verdict, "not-proven" | "not-in-audit-log")
    }
}

#[cfg(test)]
mod tests {
    use mezite_client::testing::manifest;
    use mezite_pki::ssh::SshKeyPair;
    use recording_format::{AgentId, Digest, Gap};

    use super::*;

    const SEALED_AT_MS: u64 = 1_700_000_000_000;

    fn verdict(gaps: Vec<Gap>, audit: Said) -> Verdict {
        let id = RecordingId::from_bytes([1; 16]);
        let key = SshKeyPair::generate_ed25519("").unwrap();
        let mut manifest = manifest(id, AgentId::from_bytes([2; 16]), b"what was shown", &key);
        (manifest.sealed_at_ms, manifest.gaps) = (SEALED_AT_MS, gaps);
        let mut verdict = Verdict::of(id);
        verdict.take(&Sealed { manifest, sha256: Digest::of(b"m"), problems: Vec::new() });
        verdict.audit = audit;
        verdict
    }

    /// The verdict so long after the seal, and whether somebody must look at it.
    fn after(audit: Said, ms: u64) -> (&'static str, bool) {
        let concluded = verdict(Vec::new(), audit).conclude(SEALED_AT_MS + ms);
        assert_eq!(concluded.note.is_some(), matches!(audit, Said::Nothing | Said::Forgotten));
        (concluded.verdict, concluded.is_bad())
    }

    #[test]
    fn what_the_audit_log_never_heard_of_is_not_proven_for_long() {
        assert_eq!(after(Said::Same, 0), ("proven", false));
        assert_eq!(after(Said::NotAsked, TOLD_WITHIN_MS), ("proven", false));
        assert_eq!(after(Said::Forgotten, TOLD_WITHIN_MS), ("proven", false));
        assert_eq!(after(Said::Nothing, TOLD_WITHIN_MS - 1), ("proven", false));
        assert_eq!(after(Said::Nothing, TOLD_WITHIN_MS), ("not-in-audit-log", true));
        assert_eq!(after(Said::Other, 0), ("not-proven", true));
        // A seal in the time to come is no new one.
        let ahead = verdict(Vec::new(), Said::Nothing).conclude(SEALED_AT_MS - TOLD_WITHIN_MS);
        assert_eq!(ahead.verdict, "not-in-audit-log");
        // What is wrong with the recording itself says more.
        let mut broken = verdict(Vec::new(), Said::Nothing);
        broken.problems.push("a segment".into());
        assert_eq!(broken.conclude(u64::MAX).verdict, "not-proven");
        let said = verdict(Vec::new(), Said::Nothing).conclude(u64::MAX).text();
        assert!(
            said.contains("NOT IN THE AUDIT LOG") && said.contains("somebody with an ingest's key"),
            "{said}"
        );
    }

    #[test]
    fn bytes_that_are_missing_are_told_of() {
        let gaps = vec![Gap { start: 2, length: 3 }, Gap { start: 9, length: 4 }];
        let concluded = verdict(gaps, Said::Same).conclude(SEALED_AT_MS);
        // The manifest says so: the recording is what was sealed.
        assert_eq!((concluded.missing_bytes, concluded.verdict), (7, "proven"));
        assert!(concluded.text().contains("7 bytes of the session are missing"), "{}", concluded.text());
        assert_eq!(serde_json::to_value(&concluded).unwrap()["missing_bytes"], 7);
        let whole = verdict(Vec::new(), Said::Same).conclude(SEALED_AT_MS);
        assert_eq!(whole.missing_bytes, 0);
        assert!(!whole.text().contains("missing"));
    }
}
