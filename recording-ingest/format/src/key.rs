//! What the objects of a recording are called.
//!
//! Keys are made from parsed ids and numbers alone, and parsed back strictly: a listing's foreign names are refused,
//! not guessed at.

use std::{fmt, str::FromStr};

use crate::{FormatError, MAX_TIME_MS, RecordingId};

/// Prefix of all recordings' own objects.
const RECORDINGS: &str = "rec/v1";
/// Prefix of the markers of recordings that are not sealed.
const OPEN: &str = "open/v1";
/// Prefix of the index, which can be rebuilt from the manifests.
const INDEX: &str = "idx/v1";
/// Prefix of what did not verify.
const QUARANTINE: &str = "quarantine/v1";
/// Prefix of the notices of manifests that the cluster was not told of yet.
const AUDIT: &str = "audit/v1";
/// Prefix of the decisions to delete recordings.
const GONE: &str = "gone/v1";

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;

/// The key of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKey {
    /// `rec/v1/{id[0:2]}/{id}/begin.json`: owner, metadata, codec.
    Begin(RecordingId),
    /// `rec/v1/{id[0:2]}/{id}/seg/{start:020}.seg`: framed chunks.
    Segment(RecordingId, u64),
    /// `rec/v1/{id[0:2]}/{id}/manifest/{rev:04}.json`: the commit point.
    Manifest(RecordingId, u16),
    /// `open/v1/{id}`: not sealed yet.
    Open(RecordingId),
    /// `idx/v1/{YYYY}/{MM}/{DD}/{HH}/{start_ms:013}-{id}-{rev:04}.json`: what lists show.
    Index {
        /// When the session began, Unix milliseconds, at most [`MAX_TIME_MS`].
        start_ms: u64,
        /// The recording.
        id: RecordingId,
        /// Revision of the manifest it was made from.
        revision: u16,
    },
    /// `quarantine/v1/{id}/{start:020}.seg`: a segment that did not verify.
    Quarantine(RecordingId, u64),
    /// `quarantine/v1/{id}/begin.json`: a begin that did not verify.
    QuarantineBegin(RecordingId),
    /// `quarantine/v1/{id}/{rev:04}.json`: a manifest that did not verify, or is of a recording whose begin did not.
    QuarantineManifest(RecordingId, u16),
    /// `audit/v1/{id}-{rev:04}.json`: the cluster is to be told of this manifest.
    Audit(RecordingId, u16),
    /// `gone/v1/{id}.json`: the recording is being deleted.
    Gone(RecordingId),
}

impl ObjectKey {
    /// Prefix of all recordings' own objects.
    pub const RECORDINGS: &'static str = RECORDINGS;
    /// Prefix of the open markers.
    pub const OPEN: &'static str = OPEN;
    /// Prefix of the index.
    pub const INDEX: &'static str = INDEX;
    /// Prefix of the notices for the cluster.
    pub const AUDIT: &'static str = AUDIT;
    /// Prefix of the decisions to delete.
    pub const GONE: &'static str = GONE;
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begin(id) => write!(f, "{}/begin.json", recording_prefix(*id)),
            Self::Segment(id, start) => write!(f, "{}/{start:020}.seg", segment_prefix(*id)),
            Self::Manifest(id, revision) => write!(f, "{}/{revision:04}.json", manifest_prefix(*id)),
            Self::Open(id) => write!(f, "{OPEN}/{id}"),
            Self::Index { start_ms, id, revision } => {
                write!(f, "{}/{start_ms:013}-{id}-{revision:04}.json", index_hour_prefix(*start_ms))
            }
            Self::Quarantine(id, start) => write!(f, "{}/{start:020}.seg", quarantine_prefix(*id)),
            Self::QuarantineBegin(id) => write!(f, "{}/begin.json", quarantine_prefix(*id)),
            Self::QuarantineManifest(id, revision) => {
                write!(f, "{}/{revision:04}.json", quarantine_prefix(*id))
            }
            Self::Audit(id, revision) => write!(f, "{AUDIT}/{id}-{revision:04}.json"),
            Self::Gone(id) => write!(f, "{GONE}/{id}.json"),
        }
    }
}

impl FromStr for ObjectKey {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let parts: Vec<&str> = text.split('/').collect();
        let key = match parts.as_slice() {
            ["rec", "v1", _, id, "begin.json"] => Self::Begin(id.parse()?),
            ["rec", "v1", _, id, "seg", name] => Self::Segment(id.parse()?, number(name, ".seg")?),
            ["rec", "v1", _, id, "manifest", name] => Self::Manifest(id.parse()?, number(name, ".json")?),
            ["open", "v1", id] => Self::Open(id.parse()?),
            ["idx", "v1", _, _, _, _, name] => index_name(name)?,
            ["quarantine", "v1", id, "begin.json"] => Self::QuarantineBegin(id.parse()?),
            ["quarantine", "v1", id, name] if name.ends_with(".seg") => {
                Self::Quarantine(id.parse()?, number(name, ".seg")?)
            }
            ["quarantine", "v1", id, name] => Self::QuarantineManifest(id.parse()?, number(name, ".json")?),
            ["audit", "v1", name] => {
                let (id, revision) = name.split_at_checked(36).ok_or(FormatError::BadKey)?;
                let revision = revision.strip_prefix('-').ok_or(FormatError::BadKey)?;
                Self::Audit(id.parse()?, number(revision, ".json")?)
            }
            ["gone", "v1", name] => {
                Self::Gone(name.strip_suffix(".json").ok_or(FormatError::BadKey)?.parse()?)
            }
            _ => return Err(FormatError::BadKey),
        };
        // Only the one spelling that we write: padding, shard and hour included.
        if key.to_string() == text { Ok(key) } else { Err(FormatError::BadKey) }
    }
}

fn number<T: FromStr>(name: &str, suffix: &str) -> Result<T, FormatError> {
    name.strip_suffix(suffix).and_then(|digits| digits.parse().ok()).ok_or(FormatError::BadKey)
}

fn index_name(name: &str) -> Result<ObjectKey, FormatError> {
    let (start, rest) = name.split_at_checked(13).ok_or(FormatError::BadKey)?;
    let (id, rest) =
        rest.strip_prefix('-').and_then(|rest| rest.split_at_checked(36)).ok_or(FormatError::BadKey)?;
    let revision = rest.strip_prefix('-').ok_or(FormatError::BadKey)?;
    Ok(ObjectKey::Index {
        start_ms: start.parse().map_err(|_| FormatError::BadKey)?,
        id: id.parse()?,
        revision: number(revision, ".json")?,
    })
}

/// `rec/v1/{id[0:2]}/{id}`: all objects of one recording. Two hex digits spread recordings over 256 folders.
#[must_use]
pub fn recording_prefix(id: RecordingId) -> String {
    format!("{RECORDINGS}/{:02x}/{id}", id.as_bytes()[0])
}

/// `rec/v1/{id[0:2]}/{id}/seg`: the segments of one recording.
#[must_use]
pub fn segment_prefix(id: RecordingId) -> String {
    format!("{}/seg", recording_prefix(id))
}

/// `rec/v1/{id[0:2]}/{id}/manifest`: the manifests of one recording.
#[must_use]
pub fn manifest_prefix(id: RecordingId) -> String {
    format!("{}/manifest", recording_prefix(id))
}

/// `quarantine/v1/{id}`: what did not verify of one recording.
#[must_use]
pub fn quarantine_prefix(id: RecordingId) -> String {
    format!("{QUARANTINE}/{id}")
}

/// `idx/v1/{YYYY}/{MM}/{DD}/{HH}`: the index of the hour (UTC) that contains `start_ms`, clamped to [`MAX_TIME_MS`].
#[must_use]
pub fn index_hour_prefix(start_ms: u64) -> String {
    let start_ms = start_ms.min(MAX_TIME_MS);
    let (year, month, day) = civil_date(start_ms / DAY_MS);
    let hour = start_ms % DAY_MS / HOUR_MS;
    format!("{INDEX}/{year:04}/{month:02}/{day:02}/{hour:02}")
}

/// Days since 1970-01-01 as year, month, day of the proleptic Gregorian calendar (the usual era arithmetic, with
/// years that begin in March so that a leap day comes last).
fn civil_date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id() -> RecordingId {
        "0b5c2f6e-6a1d-4c0e-9c55-1f2e3d4c5b6a".parse().unwrap()
    }

    #[test]
    fn keys_are_golden() {
        let dir = "rec/v1/0b/0b5c2f6e-6a1d-4c0e-9c55-1f2e3d4c5b6a";
        let golden = [
            (ObjectKey::Begin(id()), format!("{dir}/begin.json")),
            (ObjectKey::Segment(id(), 8_388_608), format!("{dir}/seg/00000000000008388608.seg")),
            (ObjectKey::Manifest(id(), 0), format!("{dir}/manifest/0000.json")),
            (ObjectKey::Open(id()), "open/v1/0b5c2f6e-6a1d-4c0e-9c55-1f2e3d4c5b6a".to_owned()),
            (
                ObjectKey::Index { start_ms: 1_709_210_096_789, id: id(), revision: 1 },
                "idx/v1/2024/02/29/12/1709210096789-0b5c2f6e-6a1d-4c0e-9c55-1f2e3d4c5b6a-0001.json"
                    .to_owned(),
            ),
            (
                ObjectKey::Quarantine(id(), 0),
                "quarantine/v1/0b5c2f6e-6a1d-4c0e-9c55-1f2e3d4c5b6a/00000000000000000000.seg".to_owned(),
            ),
            (
                ObjectKey::QuarantineBegin(id()),
                "quarantine/v1/0b5c2f6e-6a1d-4c0e-9c55-1f2e3d4c5b6a/begin.json".to_owned(),
            ),
            (
                ObjectKey::QuarantineManifest(id(), 7),
                "quarantine/v1/0b5c2f6e-6a1d-4c0e-9c55-1f2e3d4c5b6a/0007.json".to_owned(),
            ),
            (ObjectKey::Audit(id(), 1), "audit/v1/0b5c2f6e-6a1d-4c0e-9c55-1f2e3d4c5b6a-0001.json".to_owned()),
            (ObjectKey::Gone(id()), "gone/v1/0b5c2f6e-6a1d-4c0e-9c55-1f2e3d4c5b6a.json".to_owned()),
        ];
        for (key, text) in golden {
            assert_eq!(key.to_string(), text);
            assert_eq!(text.parse(), Ok(key));
        }
    }

    #[test]
    fn hours_are_of_the_calendar() {
        assert_eq!(index_hour_prefix(0), "idx/v1/1970/01/01/00");
        assert_eq!(index_hour_prefix(951_782_399_999), "idx/v1/2000/02/28/23");
        assert_eq!(index_hour_prefix(951_782_400_000), "idx/v1/2000/02/29/00");
        assert_eq!(index_hour_prefix(1_767_225_599_999), "idx/v1/2025/12/31/23");
        assert_eq!(index_hour_prefix(1_767_225_600_000), "idx/v1/2026/01/01/00");
        assert_eq!(index_hour_prefix(u64::MAX), index_hour_prefix(MAX_TIME_MS));
    }

    #[test]
    fn foreign_names_are_refused() {
        for name in [
            "",
            "rec/v1/0b/../../etc/passwd",
            "rec/v1/ff/0b5c2f6e-6a1d-4c0e-9c55-1f2e3d4c5b6a/begin.json",
            "rec/v1/0b/0b5c2f6e-6a1d-4c0e-9c55-1f2e3d4c5b6a/seg/0.seg",
            "rec/v1/0b/0b5c2f6e-6a1d-4c0e-9c55-1f2e3d4c5b6a/seg/+0000000000000000000.seg",
            "rec/v1/0b/0b5c2f6e-6a1d-4c0e-9c55-1f2e3d4c5b6a/seg/00000000000000000000.seg#1",
            "rec/v1/0b/0b5c2f6e-6a1d-4c0e-9c55-1f2e3d4c5b6a/manifest/0.json",
            "idx/v1/1999/02/29/12/1709210096789-0b5c2f6e-6a1d-4c0e-9c55-1f2e3d4c5b6a-0001.json",
            "open/v1/0B5C2F6E-6A1D-4C0E-9C55-1F2E3D4C5B6A",
        ] {
            assert!(name.parse::<ObjectKey>().is_err(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn keys_survive_the_round_trip(bytes: [u8; 16], number: u64, revision in 0..=9_999_u16, start_ms in 0..=MAX_TIME_MS) {
            let id = RecordingId::from_bytes(bytes);
            for key in [
                ObjectKey::Begin(id),
                ObjectKey::Segment(id, number),
                ObjectKey::Manifest(id, revision),
                ObjectKey::Open(id),
                ObjectKey::Index { start_ms, id, revision },
                ObjectKey::Quarantine(id, number),
                ObjectKey::QuarantineBegin(id),
                ObjectKey::QuarantineManifest(id, revision),
                ObjectKey::Audit(id, revision),
                ObjectKey::Gone(id),
            ] {
                prop_assert_eq!(key.to_string().parse(), Ok(key));
            }
        }

        #[test]
        fn keys_sort_as_their_numbers(a: u64, b: u64) {
            let (x, y) = (ObjectKey::Segment(id(), a).to_string(), ObjectKey::Segment(id(), b).to_string());
            prop_assert_eq!(a.cmp(&b), x.cmp(&y));
        }

        #[test]
        fn any_text_parses_or_is_refused(text: String) {
            let _ = text.parse::<ObjectKey>();
        }
    }
}
