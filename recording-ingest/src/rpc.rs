//! The recording RPCs: who may call, what was asked, and the reply. The work is done elsewhere.

use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream, stream::BoxStream};
use mezite_daemon::clock;
use mezite_proto::v1;
use tonic::{Extensions, Request, Response, Status, Streaming, metadata::MetadataMap};
use tracing::{Instrument as _, Span, field};

use crate::{
    authn::{self, Caller, Writer},
    convert,
    error::IngestError,
    index::row_of,
    metrics, outlet,
    read::Reader,
    service::Ingest,
    stream as writing,
};

/// Most bytes that `GetSessionRecording` answers.
const MAX_GET: u64 = 1 << 20;
/// Bytes of a message of `DownloadSessionRecording`.
const DOWNLOAD_PIECE: u64 = 256 << 10;

pub(crate) async fn stream_session_recording(
    ingest: Arc<Ingest>,
    request: Request<Streaming<v1::StreamSessionRecordingRequest>>,
) -> Result<Response<v1::StreamSessionRecordingResponse>, Status> {
    let (metadata, extensions, inbound) = request.into_parts();
    let work = async {
        let writer = writer(&ingest, &extensions, &metadata).await?;
        ingest.write(writer.agent_id, writing::run(Arc::clone(&ingest), writer, inbound)).await
    };
    answer("StreamSessionRecording", work).await
}

pub(crate) async fn upload_session_recording(
    ingest: Arc<Ingest>,
    request: Request<v1::UploadSessionRecordingRequest>,
) -> Result<Response<v1::UploadSessionRecordingResponse>, Status> {
    let (metadata, extensions, request) = request.into_parts();
    let work = async {
        let writer = writer(&ingest, &extensions, &metadata).await?;
        let reply =
            ingest.write(writer.agent_id, writing::upload(Arc::clone(&ingest), writer, request)).await?;
        Ok(v1::UploadSessionRecordingResponse {
            recording_id: reply.recording_id,
            committed_offset: reply.committed_offset,
            state: reply.state,
            receipt: reply.receipt,
        })
    };
    answer("UploadSessionRecording", work).await
}

pub(crate) async fn list_session_recordings(
    ingest: Arc<Ingest>,
    request: Request<v1::ListSessionRecordingsRequest>,
) -> Result<Response<v1::ListSessionRecordingsResponse>, Status> {
    let (_, extensions, request) = request.into_parts();
    let work = async {
        caller(&ingest, &extensions)?.reader()?;
        let filter = convert::filter(&request)?;
        let after = filter.cursor(&request.page_token)?;
        if !ingest.tail.is_ready() {
            return Err(IngestError::IndexNotReady);
        }
        ingest.tail.freshen().await;
        let (rows, more) = ingest.catalog.page(&filter, after, convert::page_size(request.page_size));
        Ok(convert::page(&filter, &rows, more))
    };
    answer("ListSessionRecordings", work).await
}

pub(crate) async fn get_session_recording(
    ingest: Arc<Ingest>,
    request: Request<v1::GetSessionRecordingRequest>,
) -> Result<Response<v1::GetSessionRecordingResponse>, Status> {
    let (_, extensions, request) = request.into_parts();
    let work = async {
        let mut reader = open(&ingest, &extensions, &request.recording_id).await?;
        let data = match u64::from(request.limit).min(MAX_GET) {
            0 => Bytes::new(),
            limit => reader.read(request.offset, limit).await?,
        };
        let recording = Some(convert::recording(&row_of(reader.stored())));
        let sealed = reader.stored().manifest.as_deref().filter(|_| request.with_receipt);
        Ok(v1::GetSessionRecordingResponse { recording, data, receipt: sealed.map(convert::receipt) })
    };
    answer("GetSessionRecording", work).await
}

type Download = BoxStream<'static, Result<v1::DownloadSessionRecordingResponse, Status>>;

pub(crate) async fn download_session_recording(
    ingest: Arc<Ingest>,
    request: Request<v1::DownloadSessionRecordingRequest>,
) -> Result<Response<Download>, Status> {
    const METHOD: &str = "DownloadSessionRecording";
    let (_, extensions, request) = request.into_parts();
    let work = async {
        let reader = open(&ingest, &extensions, &request.recording_id).await?;
        reader.check(request.offset)?;
        let permit = ingest.download()?;
        let patience = ingest.limits().message_timeout;
        let pieces = outlet::open(pieces(reader, request.offset), patience, ingest.leaving(), permit);
        let span = Span::current();
        Ok(pieces.map(move |piece| piece.map_err(|error| span.in_scope(|| refusal(METHOD, error)))).boxed())
    };
    answer(METHOD, work).await
}

/// The recording from `offset` on, piece by piece.
fn pieces(
    reader: Reader,
    offset: u64,
) -> impl Stream<Item = Result<v1::DownloadSessionRecordingResponse, IngestError>> + Send + 'static {
    stream::try_unfold((reader, offset), |(mut reader, offset)| async move {
        let data = reader.read(offset, DOWNLOAD_PIECE).await?;
        if data.is_empty() {
            return Ok(None);
        }
        let next = offset + data.len() as u64;
        Ok(Some((v1::DownloadSessionRecordingResponse { offset, data }, (reader, next))))
    })
}

fn caller(ingest: &Ingest, extensions: &Extensions) -> Result<Caller, IngestError> {
    authn::caller(extensions, ingest.identity().cluster_name(), clock::unix_seconds())
}

/// The agent whose recording the call writes, if it may write.
async fn writer(
    ingest: &Ingest,
    extensions: &Extensions,
    metadata: &MetadataMap,
) -> Result<Writer, IngestError> {
    let writer = caller(ingest, extensions)?.writer(metadata)?;
    ingest.check_member()?;
    ingest.access.admit(writer, ingest.leaving()).await
}

async fn open(ingest: &Ingest, extensions: &Extensions, recording_id: &str) -> Result<Reader, IngestError> {
    caller(ingest, extensions)?.reader()?;
    let id = convert::recording_id("recording_id", recording_id)?;
    Span::current().record("recording", field::display(id));
    ingest.reader(id).await
}

/// Does the work under a span that names the recording, and turns its failure into what the caller is told.
async fn answer<T>(
    method: &'static str,
    work: impl Future<Output = Result<T, IngestError>>,
) -> Result<Response<T>, Status> {
    let span = tracing::info_span!("call", method, recording = field::Empty);
    let result = work.instrument(span.clone()).await;
    result.map(Response::new).map_err(|error| span.in_scope(|| refusal(method, error)))
}

/// Counts and logs a failure. What is the operator's business is told to the caller by the id of its log line alone.
fn refusal(method: &'static str, error: IngestError) -> Status {
    metrics::refused(method, error.reason());
    if !error.is_ours() {
        tracing::debug!(reason = error.reason(), %error, "refused");
        return error.into();
    }
    let request_id = format!("{:016x}", rand::random::<u64>());
    tracing::error!(request_id, reason = error.reason(), error = error.internals(), "a call failed");
    error.into_status(Some(&request_id))
}
