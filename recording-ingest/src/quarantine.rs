//! Puts aside what does not verify, so that it is neither tried again for ever nor lost.
//!
//! A recording is good up to its first damaged segment. That one and all after it, which hang on it, are moved to
//! `quarantine/v1/{id}/`; where `begin.json` is damaged, all is. What is left is a shorter recording, which its agent
//! can send the rest of again. A manifest that is damaged is moved too, and the recording is open until it is sealed
//! anew. This is the one exception from objects never changing their place; it is made only for
//! what did not verify twice.

use std::sync::Arc;

use recording_format::{
    AgentId, Begin, FormatError, MAX_TIME_MS, ObjectKey, RecordingId, Verifier, manifest_prefix,
    quarantine_prefix, segment_prefix,
};

use crate::{
    error::IngestError,
    metrics,
    objects::{Created, Objects, StoreError},
    recover,
    service::Ingest,
    stream::mark_open,
};

/// What was found of a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// All of it verifies by now.
    Good,
    /// It is good up to this offset, and the rest, or what sealed it, was put aside.
    Shorter(u64),
    /// All of it was put aside.
    Nothing,
}

/// Looks at a recording that does not verify, and puts aside what is damaged, as the ingest `by`. Can be repeated after a
/// crash.
///
/// # Errors
/// When the store fails; [`IngestError::Damaged`] when something else of the same name was put aside before.
pub(crate) async fn isolate(
    objects: &Arc<Objects>,
    by: AgentId,
    id: RecordingId,
) -> Result<Found, IngestError> {
    let Some(begin) = objects.get(ObjectKey::Begin(id)).await? else { return Ok(Found::Nothing) };
    let segments: Vec<u64> = objects.list(&segment_prefix(id)).await?.into_iter().filter_map(start).collect();
    match Verifier::new(id, &begin) {
        Ok(verifier) => {
            let start_ms = Begin::decode(id, &begin)?.metadata.started_at_ms.min(MAX_TIME_MS);
            let unsealed = put_aside_manifest(objects, by, id, start_ms).await?;
            match put_aside_segments(objects, id, verifier, &segments).await? {
                (Found::Good, end) if unsealed => Ok(Found::Shorter(end)),
                (found, _) => Ok(found),
            }
        }
        Err(why) if is_of_another_release(&why) => Err(why.into()),
        Err(why) => {
            tracing::error!(%id, %why, "the begin of a recording is damaged: all of it is put into quarantine");
            put_aside(objects, id, &segments).await?;
            let manifests = objects.list(&manifest_prefix(id)).await?;
            for (key, _) in manifests {
                if let ObjectKey::Manifest(_, revision) = key {
                    move_to(objects, key, ObjectKey::QuarantineManifest(id, revision)).await?;
                }
            }
            move_to(objects, ObjectKey::Begin(id), ObjectKey::QuarantineBegin(id)).await?;
            objects.delete(ObjectKey::Open(id)).await?;
            Ok(Found::Nothing)
        }
    }
}

/// Puts aside what is damaged of a recording that no call of this process writes, and says what its caller is to be
/// told instead of `why`.
pub(crate) async fn instead_of(ingest: &Ingest, id: RecordingId, why: FormatError) -> IngestError {
    let Some(_claim) = ingest.claims.try_claim(id) else { return why.into() };
    isolate_for(ingest, id, why).await
}

/// As [`instead_of`], for a caller that writes the recording.
pub(crate) async fn isolate_for(ingest: &Ingest, id: RecordingId, why: FormatError) -> IngestError {
    let committed = match isolate(&ingest.objects, ingest.identity().agent_id(), id).await {
        Ok(Found::Good) => return why.into(),
        Ok(Found::Shorter(committed)) => committed,
        Ok(Found::Nothing) => 0,
        Err(error) => return error,
    };
    // It is taken in again as it is now.
    ingest.catalog.remove(id);
    IngestError::Quarantined { committed }
}

/// Whether something of a recording was put aside.
///
/// # Errors
/// When the store fails.
pub(crate) async fn holds(objects: &Objects, id: RecordingId) -> Result<bool, StoreError> {
    Ok(!objects.list(&quarantine_prefix(id)).await?.is_empty())
}

/// The newest manifest, where two reads of it say that it is damaged: answers whether it was.
async fn put_aside_manifest(
    objects: &Arc<Objects>,
    by: AgentId,
    id: RecordingId,
    start_ms: u64,
) -> Result<bool, IngestError> {
    for _ in 0..2 {
        match recover::newest_manifest(objects, id).await {
            Err(IngestError::Damaged(why)) if is_of_another_release(&why) => return Err(why.into()),
            Err(IngestError::Damaged(why)) => tracing::error!(%id, %why, "a manifest is damaged"),
            whole => return whole.map(|_| false),
        }
    }
    let manifests = objects.list(&manifest_prefix(id)).await?;
    let Some(&(key @ ObjectKey::Manifest(_, revision), _)) = manifests.last() else { return Ok(false) };
    // It is open again: without the marker nobody would seal it if its agent does not come back.
    mark_open(objects, by, id).await?;
    objects.delete(ObjectKey::Index { start_ms, id, revision }).await?;
    move_to(objects, key, ObjectKey::QuarantineManifest(id, revision)).await?;
    Ok(true)
}

/// What a newer release wrote is not damaged: it is left for that one to read.
fn is_of_another_release(why: &FormatError) -> bool {
    matches!(why, FormatError::UnknownVersion { .. })
}

/// Answers, beside what was found, up to where the recording is good.
async fn put_aside_segments(
    objects: &Arc<Objects>,
    id: RecordingId,
    mut verifier: Verifier,
    segments: &[u64],
) -> Result<(Found, u64), IngestError> {
    for (at, start) in segments.iter().enumerate() {
        let (next, why) = verified(objects, id, verifier, *start).await?;
        verifier = next;
        if let Some(why) = why {
            if is_of_another_release(&why) {
                return Err(why.into());
            }
            let good = verifier.end();
            let rest = segments.get(at..).unwrap_or_default();
            tracing::error!(
                %id, %why, good, segments = rest.len(),
                "a segment is damaged: it and those after it are put into quarantine"
            );
            put_aside(objects, id, rest).await?;
            return Ok((Found::Shorter(good), good));
        }
    }
    Ok((Found::Good, verifier.end()))
}

/// Takes a segment up, and answers why that cannot be, where two reads of it say so.
async fn verified(
    objects: &Arc<Objects>,
    id: RecordingId,
    mut verifier: Verifier,
    start: u64,
) -> Result<(Verifier, Option<FormatError>), IngestError> {
    let mut why = None;
    for _ in 0..2 {
        let Some(object) = objects.get(ObjectKey::Segment(id, start)).await? else {
            return Err(IngestError::Missing);
        };
        let checked = tokio::task::spawn_blocking(move || {
            let damage = verifier.segment(object).err();
            (verifier, damage)
        });
        (verifier, why) = checked.await?;
        if why.is_none() {
            break;
        }
    }
    Ok((verifier, why))
}

/// From the last one on, so that what is left is without a gap after each.
async fn put_aside(objects: &Objects, id: RecordingId, segments: &[u64]) -> Result<(), IngestError> {
    for start in segments.iter().rev() {
        move_to(objects, ObjectKey::Segment(id, *start), ObjectKey::Quarantine(id, *start)).await?;
    }
    Ok(())
}

/// One that is gone already was moved by another replica.
async fn move_to(objects: &Objects, from: ObjectKey, to: ObjectKey) -> Result<(), IngestError> {
    let Some(object) = objects.get(from).await? else { return Ok(()) };
    if let Created::Taken(_) = objects.create_end(to, object.into()).await? {
        tracing::error!(%from, %to, "a damaged object stays, for another one was put aside under its name");
        return Err(IngestError::Damaged(FormatError::BadKey));
    }
    objects.delete(from).await?;
    metrics::quarantined();
    Ok(())
}

fn start((key, _): (ObjectKey, u64)) -> Option<u64> {
    match key {
        ObjectKey::Segment(_, start) => Some(start),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use recording_format::{Codec, Metadata, SegmentBuilder};

    use super::*;

    fn agent() -> AgentId {
        AgentId::from_bytes([2; 16])
    }

    fn id() -> RecordingId {
        RecordingId::from_bytes([1; 16])
    }

    /// A recording of three segments of four bytes, of which one has a wrong byte in the middle.
    async fn damaged(which: u64) -> Arc<Objects> {
        let objects = Arc::new(Objects::with_store(Arc::new(InMemory::new())));
        let begin = Begin::new(id(), agent(), Metadata::default(), 0, agent()).encode().unwrap();
        let mut head = Begin::chain(id(), &begin);
        objects.create(ObjectKey::Begin(id()), begin.into()).await.unwrap();
        for start in [0, 4, 8] {
            let mut builder = SegmentBuilder::new(id(), start, Codec::Identity, head);
            builder.push(b"abcd", crc32c::crc32c(b"abcd")).unwrap();
            let segment = builder.finish().unwrap();
            let mut bytes = segment.to_bytes().to_vec();
            if start == which {
                bytes[93] ^= 1;
            }
            objects.create(ObjectKey::Segment(id(), start), bytes.into()).await.unwrap();
            head = segment.head;
        }
        objects
    }

    async fn keys(objects: &Objects, prefix: &str) -> Vec<ObjectKey> {
        objects.list(prefix).await.unwrap().into_iter().map(|(key, _)| key).collect()
    }

    #[tokio::test]
    async fn what_is_damaged_and_what_hangs_on_it_is_put_aside_and_the_rest_stays() {
        let objects = damaged(4).await;
        assert!(!holds(&objects, id()).await.unwrap());
        assert_eq!(isolate(&objects, agent(), id()).await.unwrap(), Found::Shorter(4));
        assert_eq!(keys(&objects, &segment_prefix(id())).await, [ObjectKey::Segment(id(), 0)]);
        let aside = [4, 8].map(|start| ObjectKey::Quarantine(id(), start));
        assert_eq!(keys(&objects, &quarantine_prefix(id())).await, aside);
        assert!(holds(&objects, id()).await.unwrap());
        assert_eq!(isolate(&objects, agent(), id()).await.unwrap(), Found::Good);
    }

    #[tokio::test]
    async fn a_crash_in_the_middle_is_gone_on_from() {
        let objects = damaged(0).await;
        // The last one was copied and removed, the second copied.
        for (start, removed) in [(8, true), (4, false)] {
            let object = objects.get(ObjectKey::Segment(id(), start)).await.unwrap().unwrap();
            objects.create(ObjectKey::Quarantine(id(), start), object.into()).await.unwrap();
            if removed {
                objects.delete(ObjectKey::Segment(id(), start)).await.unwrap();
            }
        }
        assert_eq!(isolate(&objects, agent(), id()).await.unwrap(), Found::Shorter(0));
        assert_eq!(keys(&objects, &segment_prefix(id())).await, []);
        assert_eq!(keys(&objects, &quarantine_prefix(id())).await.len(), 3);
    }

    #[tokio::test]
    async fn without_its_begin_nothing_of_a_recording_stays() {
        let objects = damaged(99).await;
        objects.delete(ObjectKey::Begin(id())).await.unwrap();
        objects.create(ObjectKey::Begin(id()), "{".into()).await.unwrap();
        objects.create(ObjectKey::Open(id()), "{}".into()).await.unwrap();
        objects.create(ObjectKey::Manifest(id(), 0), "{}".into()).await.unwrap();
        assert_eq!(isolate(&objects, agent(), id()).await.unwrap(), Found::Nothing);
        assert_eq!(isolate(&objects, agent(), id()).await.unwrap(), Found::Nothing);
        for prefix in [&recording_format::recording_prefix(id()), ObjectKey::OPEN] {
            assert_eq!(keys(&objects, prefix).await, []);
        }
        assert_eq!(keys(&objects, &quarantine_prefix(id())).await.len(), 5);
    }

    #[tokio::test]
    async fn a_manifest_that_is_damaged_is_put_aside_and_the_recording_is_open_again() {
        let objects = damaged(99).await;
        objects.create(ObjectKey::Manifest(id(), 0), "{".into()).await.unwrap();
        assert!(matches!(recover::load(&objects, id()).await, Err(IngestError::Damaged(_))));
        assert_eq!(isolate(&objects, agent(), id()).await.unwrap(), Found::Shorter(12));
        let stored = recover::load(&objects, id()).await.unwrap().unwrap();
        assert!(stored.manifest.is_none() && stored.committed == 12);
        assert_eq!(keys(&objects, &quarantine_prefix(id())).await, [ObjectKey::QuarantineManifest(id(), 0)]);
        assert_eq!(keys(&objects, ObjectKey::OPEN).await, [ObjectKey::Open(id())]);
        assert_eq!(isolate(&objects, agent(), id()).await.unwrap(), Found::Good);
    }

    #[tokio::test]
    async fn nothing_is_overwritten_in_quarantine() {
        let objects = damaged(8).await;
        objects.create(ObjectKey::Quarantine(id(), 8), "from before".into()).await.unwrap();
        assert!(matches!(isolate(&objects, agent(), id()).await, Err(IngestError::Damaged(_))));
        assert!(objects.get(ObjectKey::Segment(id(), 8)).await.unwrap().is_some());
    }
}
