//! The recording RPCs: who may call, what was asked, and the reply. The work is done elsewhere.

use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, stream, stream::BoxStream};
use mezite_proto::v1;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};
use tracing::{Span, field};

use crate::{
    authn::{Caller, Writer},
    call::Call,
    convert,
    error::IngestError,
    index::row_of,
    outlet,
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
    let (call, caller) = Call::begin("StreamSessionRecording", &ingest, &metadata, &extensions);
    let work = async {
        let writer = writer(&ingest, caller?, &metadata).await?;
        ingest.write(writer.agent_id, writing::run(Arc::clone(&ingest), writer, inbound)).await
    };
    call.answer(work).await
}

pub(crate) async fn upload_session_recording(
    ingest: Arc<Ingest>,
    request: Request<v1::UploadSessionRecordingRequest>,
) -> Result<Response<v1::UploadSessionRecordingResponse>, Status> {
    let (metadata, extensions, request) = request.into_parts();
    let (call, caller) = Call::begin("UploadSessionRecording", &ingest, &metadata, &extensions);
    let work = async {
        let writer = writer(&ingest, caller?, &metadata).await?;
        let reply =
            ingest.write(writer.agent_id, writing::upload(Arc::clone(&ingest), writer, request)).await?;
        Ok(v1::UploadSessionRecordingResponse {
            recording_id: reply.recording_id,
            committed_offset: reply.committed_offset,
            state: reply.state,
            receipt: reply.receipt,
        })
    };
    call.answer(work).await
}

pub(crate) async fn list_session_recordings(
    ingest: Arc<Ingest>,
    request: Request<v1::ListSessionRecordingsRequest>,
) -> Result<Response<v1::ListSessionRecordingsResponse>, Status> {
    let (metadata, extensions, request) = request.into_parts();
    let (call, caller) = Call::begin("ListSessionRecordings", &ingest, &metadata, &extensions);
    let work = async {
        caller?.reader()?;
        let filter = convert::filter(&request)?;
        let after = filter.cursor(&request.page_token)?;
        if !ingest.tail.is_ready() {
            return Err(IngestError::IndexNotReady);
        }
        ingest.tail.freshen().await;
        let (rows, more) = ingest.catalog.page(&filter, after, convert::page_size(request.page_size));
        Ok(convert::page(&filter, &rows, more))
    };
    call.answer(work).await
}

pub(crate) async fn get_session_recording(
    ingest: Arc<Ingest>,
    request: Request<v1::GetSessionRecordingRequest>,
) -> Result<Response<v1::GetSessionRecordingResponse>, Status> {
    let (metadata, extensions, request) = request.into_parts();
    let (call, caller) = Call::begin("GetSessionRecording", &ingest, &metadata, &extensions);
    let work = async {
        let mut reader = open(&ingest, caller?, &request.recording_id).await?;
        let data = match u64::from(request.limit).min(MAX_GET) {
            0 => Bytes::new(),
            limit => reader.read(request.offset, limit).await?,
        };
        let recording = Some(convert::recording(&row_of(reader.stored())));
        let sealed = reader.stored().manifest.as_deref().filter(|_| request.with_receipt);
        Ok(v1::GetSessionRecordingResponse { recording, data, receipt: sealed.map(convert::receipt) })
    };
    call.answer(work).await
}

type Download = BoxStream<'static, Result<v1::DownloadSessionRecordingResponse, Status>>;

pub(crate) async fn download_session_recording(
    ingest: Arc<Ingest>,
    request: Request<v1::DownloadSessionRecordingRequest>,
) -> Result<Response<Download>, Status> {
    let (metadata, extensions, request) = request.into_parts();
    let (call, caller) = Call::begin("DownloadSessionRecording", &ingest, &metadata, &extensions);
    let work = async {
        let reader = open(&ingest, caller?, &request.recording_id).await?;
        reader.check(request.offset)?;
        let permit = ingest.download()?;
        let patience = ingest.limits().message_timeout;
        Ok(outlet::open(pieces(reader, request.offset), patience, ingest.leaving(), permit))
    };
    call.answer_all(work).await
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

/// The agent whose recording the call writes, if it may write.
async fn writer(ingest: &Ingest, caller: Caller, metadata: &MetadataMap) -> Result<Writer, IngestError> {
    let writer = caller.writer(metadata)?;
    ingest.check_member()?;
    ingest.access.admit(writer, ingest.leaving()).await
}

async fn open(ingest: &Ingest, caller: Caller, recording_id: &str) -> Result<Reader, IngestError> {
    caller.reader()?;
    let id = convert::recording_id("recording_id", recording_id)?;
    Span::current().record("recording", field::display(id));
    ingest.reader(id).await
}
