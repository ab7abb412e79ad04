//! The begin of a call: the recording is found, or made where the header has metadata.

use std::sync::Arc;

use mezite_daemon::clock;
use mezite_proto::v1::RecordingHeader;
use recording_format::{AgentId, Begin, Metadata, ObjectKey, OpenMarker, RecordingId};

use super::{Call, is_truncated};
use crate::{
    authn::Writer,
    convert,
    disk::Room,
    error::IngestError,
    index::row_of,
    metrics,
    objects::{Created, Objects},
    quarantine,
    recover::{self, Stored},
    service::Ingest,
};

impl Call {
    /// Finds the recording, or begins it where the header has metadata.
    ///
    /// # Errors
    /// When the header is out of bounds, the recording is another agent's or of another session, it is begun for
    /// another host, or bytes are missing before the offset.
    pub(super) async fn begin(
        ingest: Arc<Ingest>,
        writer: Writer,
        header: RecordingHeader,
    ) -> Result<Self, IngestError> {
        let id = convert::recording_id("header.recording_id", &header.recording_id)?;
        tracing::Span::current().record("recording", tracing::field::display(id));
        let metadata = header.metadata.map(convert::metadata).transpose()?;
        let (found, settled) = match recover::look(&ingest.objects, id, ingest.claims.stored(id)).await {
            Err(IngestError::Damaged(why)) => {
                check_owner_of_damaged(&ingest, id, &writer).await?;
                return Err(quarantine::instead_of(&ingest, id, why).await);
            }
            found => found?,
        };
        let stored = match (found, metadata) {
            (Some(stored), metadata) => {
                check_owner(&stored, &writer, metadata)?;
                stored
            }
            (None, Some(_)) if header.start_offset > 0 => {
                return Err(IngestError::OffsetAhead { expected: 0 });
            }
            (None, Some(metadata)) => {
                check_node(&writer, &metadata.node)?;
                create(&ingest, &writer, id, metadata).await?
            }
            (None, None) => return Err(IngestError::UnknownRecording),
        };
        if header.start_offset > stored.committed {
            match stored.sealed() {
                Some(signed) if is_truncated(signed) => (),
                Some(_) => return Err(IngestError::Sealed),
                None => return Err(IngestError::OffsetAhead { expected: stored.committed }),
            }
        }
        if !settled {
            ingest.objects.settle(id).await?;
        }
        let share = ingest.budget.share();
        Ok(Self { ingest, writer, id, stored, settled, writing: None, share, due: None })
    }
}

/// Whoever else probes a recording has nothing of it moved, and learns nothing. What has no readable begin is nobody's.
async fn check_owner_of_damaged(
    ingest: &Ingest,
    id: RecordingId,
    writer: &Writer,
) -> Result<(), IngestError> {
    let Some(document) = ingest.objects.get(ObjectKey::Begin(id)).await? else { return Ok(()) };
    match Begin::decode(id, &document) {
        Ok(begin) if begin.agent_id != writer.agent_id => Err(IngestError::NotOwner),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn check_owner(stored: &Stored, writer: &Writer, metadata: Option<Metadata>) -> Result<(), IngestError> {
    let begin = &stored.begin;
    if begin.agent_id != writer.agent_id {
        return Err(IngestError::NotOwner);
    }
    let Some(mut metadata) = metadata else { return Ok(()) };
    if metadata.started_at_ms == 0 {
        metadata.started_at_ms = begin.metadata.started_at_ms;
    }
    if metadata.same_session(&begin.metadata) { Ok(()) } else { Err(IngestError::MetadataDiffers) }
}

/// An agent records the sessions of its own host. A recording that is there already is of the host that it began with.
fn check_node(writer: &Writer, node: &str) -> Result<(), IngestError> {
    match &writer.hostnames {
        Some(names) if !names.iter().any(|name| name == node) => {
            let reason = format!("must be the hostname that the agent joined with: {}", names.join(" or "));
            Err(IngestError::invalid("metadata.node", reason))
        }
        Some(_) | None => Ok(()),
    }
}

/// Marks a recording as open, as the ingest `by`, for whoever looks after those that are. One that was interrupted needs it
/// before it can be ended.
pub(crate) async fn mark_open(objects: &Objects, by: AgentId, id: RecordingId) -> Result<(), IngestError> {
    let marker = OpenMarker::new(clock::unix_ms(), by).encode()?;
    // Whoever's marker is there says the same.
    objects.create_end(ObjectKey::Open(id), marker.into()).await?;
    Ok(())
}

/// Says of an open recording that its session goes on, though nothing comes: its marker is new again. Whether that succeeds is
/// no concern of the caller.
pub(super) async fn stay_open(objects: &Objects, by: AgentId, id: RecordingId) {
    let renewed = async {
        let marker = OpenMarker::new(clock::unix_ms(), by).encode()?;
        Ok::<_, IngestError>(objects.renew(ObjectKey::Open(id), marker.into()).await?)
    };
    if let Err(error) = renewed.await {
        tracing::warn!(%id, error = error.internals(), "an open recording's marker could not be renewed");
    }
}

/// Refuses to add to what is being deleted. It is asked after the marker was made: a deletion that has not gone so far yet sees
/// that, and lets the recording be.
///
/// # Errors
/// [`IngestError::Going`]; when the store fails.
pub(super) async fn check_not_going(ingest: &Ingest, id: RecordingId) -> Result<(), IngestError> {
    match ingest.objects.has(ObjectKey::Gone(id)).await? {
        true => Err(IngestError::Going),
        false => Ok(()),
    }
}

/// Marker, then `begin.json`: a crash in between leaves a marker without a recording, which hurts nobody.
async fn create(
    ingest: &Ingest,
    writer: &Writer,
    id: RecordingId,
    metadata: Metadata,
) -> Result<Stored, IngestError> {
    let now = clock::unix_ms();
    let mut begun = metadata.clone();
    if begun.started_at_ms == 0 {
        begun.started_at_ms = now;
    }
    if ingest.objects.room().await < Room::New {
        return Err(IngestError::NoRoom("new recordings"));
    }
    mark_open(&ingest.objects, ingest.identity().agent_id(), id).await?;
    check_not_going(ingest, id).await?;
    let begin = Begin::new(id, writer.agent_id, begun, now, ingest.identity().agent_id());
    let document = begin.encode()?;
    let stored = match ingest.objects.create(ObjectKey::Begin(id), document.clone().into()).await? {
        Created::Durable => {
            metrics::recording_begun();
            Stored::begun(begin, &document)
        }
        Created::Taken(_) => {
            let stored = recover::load(&ingest.objects, id).await?.ok_or(IngestError::Missing)?;
            check_owner(&stored, writer, Some(metadata))?;
            stored
        }
    };
    ingest.catalog.put(row_of(&stored));
    Ok(stored)
}
