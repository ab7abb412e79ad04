//! What the cluster's audit log knows of recordings that were sealed.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use mezite_client::{Client, ClientError, PAGE_SIZE, Retry};
use mezite_proto::v1;
use serde::Serialize;
use tonic::Code;

use crate::cmd::{call, list};

/// The event by which it knows what was sealed, and its field with the manifest's digest.
const UPLOADED: (&str, &str) = ("session.upload", "manifest_sha256");
/// And by which the newest of a recording is known.
const REVISION: &str = "revision";

/// What it says of a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Said {
    /// This one was sealed.
    Same,
    /// Another one was, as the newest of the recording.
    Other,
    /// Nothing of the recording.
    Nothing,
    /// Nothing of the recording, and it begins after that was sealed.
    Forgotten,
    /// It was not asked.
    NotAsked,
}

impl Said {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Other => "other",
            Self::Nothing => "nothing",
            Self::Forgotten => "forgotten",
            Self::NotAsked => "not-asked",
        }
    }
}

/// What it says of the newest manifest of each recording.
#[derive(Debug, Default)]
pub(super) struct Audit {
    /// By the recording: revision and digest. `None` where it may not be read.
    known: Option<BTreeMap<String, (u32, String)>>,
    /// Of its first record.
    begins: Option<SystemTime>,
}

impl Audit {
    /// Asks it of one recording, by its id, or of all.
    pub(super) async fn ask(client: &Client, text: &str) -> Result<Self> {
        let request = |page_token| v1::QueryAuditEventsRequest {
            events: vec![UPLOADED.0.to_owned()],
            text: text.to_owned(),
            page_size: PAGE_SIZE,
            page_token,
            ..Default::default()
        };
        let mut known: BTreeMap<String, (u32, String)> = BTreeMap::new();
        let collect = |page: Vec<v1::AuditEvent>| {
            for mut event in page {
                let digest = event.fields.remove(UPLOADED.1).unwrap_or_default();
                let revision = event.fields.get(REVISION).and_then(|text| text.parse().ok()).unwrap_or(0);
                let newest = known.entry(event.target).or_default();
                if newest.1.is_empty() || revision > newest.0 {
                    *newest = (revision, digest);
                }
            }
            Ok::<_, ClientError>(ControlFlow::Continue(()))
        };
        let asked = list!(client, query_audit_events, events, |page_token| request(page_token), collect);
        match asked {
            Ok(()) => Ok(Self { known: Some(known), begins: begins(client).await? }),
            // A cluster whose ingests do not tell it what they sealed knows no such event.
            Err(error) if matches!(error.code(), Some(Code::PermissionDenied | Code::InvalidArgument)) => {
                Ok(Self::default())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What it says of a recording's manifest with this digest, which was sealed then (Unix milliseconds).
    pub(super) fn says(&self, id: &str, sha256: &str, sealed_at_ms: u64) -> Said {
        let Some(known) = &self.known else { return Said::NotAsked };
        let of_it =
            |target: &str| target == id || target.rsplit_once(':').is_some_and(|(_, bare)| bare == id);
        let sealed_at = UNIX_EPOCH.checked_add(Duration::from_millis(sealed_at_ms));
        match known.iter().find(|(target, _)| of_it(target)) {
            Some((_, (_, digest))) if digest == sha256 => Said::Same,
            Some(_) => Said::Other,
            None if self.begins > sealed_at => Said::Forgotten,
            None => Said::Nothing,
        }
    }
}

/// When the log begins, where it does not remember everything.
async fn begins(client: &Client) -> Result<Option<SystemTime>> {
    let request = v1::QueryAuditEventsRequest {
        order: v1::SortOrder::Ascending.into(),
        page_size: 1,
        ..Default::default()
    };
    let page = call!(client, Retry::Idempotent, query_audit_events, request)?;
    let first = page.events.into_iter().next().filter(|event| event.index > 1);
    Ok(first.and_then(|event| event.time?.try_into().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_has_forgotten_is_not_what_it_was_never_told() {
        let uploaded = [("recording:a".to_owned(), (1, "digest".to_owned()))];
        let mut audit = Audit { known: Some(uploaded.into()), begins: None };
        assert_eq!(audit.says("a", "digest", 5_000), Said::Same);
        assert_eq!(audit.says("a", "another", 5_000), Said::Other);
        assert_eq!(audit.says("b", "digest", 5_000), Said::Nothing);
        audit.begins = Some(UNIX_EPOCH + Duration::from_secs(5));
        assert_eq!(audit.says("b", "digest", 4_999), Said::Forgotten);
        assert_eq!(audit.says("b", "digest", 5_000), Said::Nothing);
        assert_eq!(audit.says("a", "digest", 4_999), Said::Same);
        assert_eq!(Audit::default().says("a", "digest", 0), Said::NotAsked);
    }
}
