//! Recordings: listed, looked at, and their payloads fetched, in ranges or as a whole. Who sees which is decided where it is for
//! the API's own methods (`rpc::recordings`).

use std::{collections::BTreeMap, io, ops::Range, sync::Arc};

use auth_core::CoreError;
use axum::{
    Json,
    body::Body,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{
        HeaderMap, HeaderValue, Method, StatusCode,
        header::{ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE},
    },
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use mezite_proto::v1;
use prost_types::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tonic::Status;

use super::{Web, call::Asked};
use crate::{
    error::{ApiError, Problem},
    rpc,
};

/// States, as they are called here.
const STATES: [(&str, v1::RecordingState); 4] = [
    ("in-progress", v1::RecordingState::InProgress),
    ("complete", v1::RecordingState::Complete),
    ("interrupted", v1::RecordingState::Interrupted),
    ("truncated", v1::RecordingState::Truncated),
];

/// Which recordings are wanted: what is behind the `?`, each as in `ListSessionRecordings`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Wanted {
    user: String,
    login: String,
    node: String,
    /// One of [`STATES`].
    state: String,
    /// `key=value,…`.
    labels: String,
    /// RFC 3339.
    from: String,
    /// RFC 3339.
    to: String,
    page_size: u32,
    page_token: String,
}

/// Whether bytes are the query of a list.
pub(super) fn is_wanted(bytes: &[u8]) -> bool {
    let uri = axum::http::Uri::try_from([b"/?", bytes].concat());
    uri.is_ok_and(|uri| {
        Query::<Wanted>::try_from_uri(&uri).is_ok_and(|Query(wanted)| request(wanted).is_ok())
    })
}

/// Lists them, newest first.
pub(super) async fn list(
    State(web): State<Arc<Web>>,
    asked: Asked,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(wanted) = wanted.map_err(|error| {
        let message = format!("the query is not as it must be: {}", error.body_text());
        Problem::new(StatusCode::BAD_REQUEST, "MALFORMED", message)
    })?;
    let call = asked.call("ListSessionRecordings")?;
    let work = async { rpc::recordings::list(&web.service, &call, request(wanted)?).await };
    let reply = web.carry_out(&call, work).await?;
    let recordings: Vec<_> = reply.recordings.iter().map(view).collect();
    Ok(Json(json!({ "recordings": recordings, "next_page_token": reply.next_page_token })).into_response())
}

/// Looks at one.
pub(super) async fn get(
    State(web): State<Arc<Web>>,
    asked: Asked,
    Path(recording_id): Path<String>,
) -> Result<Response, Problem> {
    let call = asked.call("GetSessionRecording")?;
    let request = v1::GetSessionRecordingRequest { recording_id, ..Default::default() };
    let reply = web.carry_out(&call, rpc::recordings::get(&web.service, &call, request)).await?;
    Ok(Json(json!({ "recording": reply.recording.as_ref().map(view) })).into_response())
}

/// Its payload as far as there is one, or a range of it (RFC 9110, section 14).
pub(super) async fn payload(
    State(web): State<Arc<Web>>,
    asked: Asked,
    method: Method,
    headers: HeaderMap,
    Path(recording_id): Path<String>,
) -> Result<Response, Problem> {
    let call = asked.call("DownloadSessionRecording")?;
    let work = async {
        let request =
            v1::GetSessionRecordingRequest { recording_id: recording_id.clone(), ..Default::default() };
        let reply = rpc::recordings::get(&web.service, &call, request).await?;
        let recording =
            reply.recording.ok_or_else(|| ApiError::Internal("a reply lacks the recording".into()))?;
        let part = part(headers.get(RANGE), recording.size);
        let bytes = match &part {
            Part::None => 0..0,
            Part::Whole => 0..recording.size,
            Part::Range(range) => range.clone(),
        };
        let body = if method == Method::HEAD || bytes.is_empty() {
            Body::empty()
        } else {
            let request = v1::DownloadSessionRecordingRequest { recording_id, offset: bytes.start };
            let pieces = rpc::recordings::download(&web.service, &call, request).await?;
            Body::from_stream(exactly(pieces, bytes.end.saturating_sub(bytes.start)))
        };
        Ok::<_, ApiError>((recording, part, body))
    };
    let (recording, part, body) = web.carry_out(&call, work).await?;
    Ok(sent(&recording, &part, body))
}

/// Which part of a payload is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Whole,
    Range(Range<u64>),
    /// One that it has not.
    None,
}

/// What a header `Range` asks for. One that is none, or asks for several parts, is as if it were not there.
fn part(header: Option<&HeaderValue>, size: u64) -> Part {
    let said = header.and_then(|header| header.to_str().ok()).and_then(|text| text.strip_prefix("bytes="));
    let Some((first, last)) = said.and_then(|range| range.trim().split_once('-')) else { return Part::Whole };
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>());
    let range = match (first, last, number(first), number(last)) {
        ("", "", ..) => return Part::Whole,
        ("", _, _, Some(Ok(count))) => size.saturating_sub(count)..size,
        (_, "", Some(Ok(first)), _) => first..size,
        (_, _, Some(Ok(first)), Some(Ok(last))) if first <= last => first..size.min(last.saturating_add(1)),
        _ => return Part::Whole,
    };
    if range.is_empty() { Part::None } else { Part::Range(range) }
}

/// So many bytes of a download: one that ends before is broken off, and does not look whole.
fn exactly(
    pieces: rpc::Replies<v1::DownloadSessionRecordingResponse>,
    length: u64,
) -> impl Stream<Item = io::Result<Bytes>> {
    stream::try_unfold((pieces, length), |(mut pieces, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let piece: Option<Result<_, Status>> = pieces.next().await;
        let broken_off = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let mut data = piece.ok_or_else(broken_off)?.map_err(io::Error::other)?.data;
        data.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        let left = left.saturating_sub(data.len() as u64);
        Ok::<_, io::Error>(Some((data, (pieces, left))))
    })
}

/// The answer with a payload, or a part of one.
fn sent(recording: &v1::Recording, part: &Part, body: Body) -> Response {
    let size = recording.size;
    let (status, length, range) = match part {
        Part::Whole => (StatusCode::OK, size, None),
        Part::Range(Range { start, end }) => {
            let range = format!("bytes {start}-{}/{size}", end.saturating_sub(1));
            (StatusCode::PARTIAL_CONTENT, end.saturating_sub(*start), Some(range))
        }
        Part::None => (StatusCode::RANGE_NOT_SATISFIABLE, 0, Some(format!("bytes */{size}"))),
    };
    // What was recorded is for the browser nothing to show or run by itself.
    let file = format!("attachment; filename=\"{}.cast\"", recording.recording_id);
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CONTENT_LENGTH, length.into());
    for (name, text) in [(CONTENT_DISPOSITION, Some(file)), (CONTENT_RANGE, range)] {
        if let Some(value) = text.and_then(|text| HeaderValue::try_from(text).ok()) {
            headers.insert(name, value);
        }
    }
    response
}

fn request(wanted: Wanted) -> Result<v1::ListSessionRecordingsRequest, CoreError> {
    let state = STATES.iter().find(|(name, _)| *name == wanted.state).map(|(_, state)| *state);
    if state.is_none() && !wanted.state.is_empty() {
        let names: Vec<_> = STATES.iter().map(|(name, _)| *name).collect();
        return Err(CoreError::invalid("state", format!("must be one of {}", names.join(", "))));
    }
    Ok(v1::ListSessionRecordingsRequest {
        state: state.unwrap_or_default().into(),
        labels: labels(&wanted.labels)?,
        from: time("from", &wanted.from)?,
        to: time("to", &wanted.to)?,
        user: wanted.user,
        login: wanted.login,
        node: wanted.node,
        page_size: wanted.page_size,
        page_token: wanted.page_token,
    })
}

fn labels(text: &str) -> Result<BTreeMap<String, String>, CoreError> {
    let pairs = text.split(',').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) =
            pair.split_once('=').ok_or_else(|| CoreError::invalid("labels", "must be key=value,…"))?;
        Ok((key.to_owned(), value.to_owned()))
    });
    pairs.collect()
}

fn time(field: &'static str, text: &str) -> Result<Option<Timestamp>, CoreError> {
    if text.is_empty() {
        return Ok(None);
    }
    let time =
        text.parse().map_err(|_| CoreError::invalid(field, "must be a time, such as 2026-11-24T09:00:00Z"));
    time.map(Some)
}

fn view(recording: &v1::Recording) -> Value {
    let state =
        STATES.iter().find(|(_, state)| *state == recording.state()).map_or("unknown", |(name, _)| *name);
    let metadata = recording.metadata.clone().unwrap_or_default();
    json!({
        "recording_id": recording.recording_id,
        "state": state,
        "user": metadata.user,
        "login": metadata.login,
        "node": metadata.node,
        "started_at": metadata.started_at.map(|time| time.to_string()),
        "ended_at": metadata.ended_at.map(|time| time.to_string()),
        "format": metadata.format,
        "labels": metadata.labels,
        "size": recording.size,
        "payload_sha256": hex::encode(&recording.payload_sha256),
        "manifest_sha256": hex::encode(&recording.manifest_sha256),
        "agent_id": recording.agent_id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_of_what_there_is() {
        let of = |text: &str| part(Some(&HeaderValue::from_str(text).unwrap()), 10);
        for (text, range) in [
            ("bytes=0-0", 0..1),
            ("bytes=2-5", 2..6),
            ("bytes=2-", 2..10),
            ("bytes=2-99", 2..10),
            ("bytes=-3", 7..10),
            ("bytes=-99", 0..10),
            ("bytes=0-18446744073709551615", 0..10),
        ] {
            assert_eq!(of(text), Part::Range(range), "{text}");
        }
        for beyond in ["bytes=10-", "bytes=10-12", "bytes=-0", "bytes=18446744073709551615-"] {
            assert_eq!(of(beyond), Part::None, "{beyond}");
        }
        for none in [
            "bytes=",
            "bytes=-",
            "bytes=5-2",
            "bytes=a-b",
            "bytes=+1-2",
            "bytes=0-1,3-4",
            "lines=0-1",
            "bytes=99999999999999999999-",
        ] {
            assert_eq!(of(none), Part::Whole, "{none}");
        }
        assert_eq!(part(None, 10), Part::Whole);
        assert_eq!(part(Some(&HeaderValue::from_static("bytes=0-")), 0), Part::None);
    }

    #[test]
    fn what_is_wanted_is_checked_field_by_field() {
        assert!(
            is_wanted(b"")
                && is_wanted(b"user=ann&state=in-progress&labels=a=b,c=d&from=2026-11-24T09:00:00Z")
        );
        for wrong in [
            "state=open",
            "labels=a",
            "from=yesterday",
            "to=2026",
            "page_size=-1",
            "colour=green",
            "user=a&user=b",
        ] {
            assert!(!is_wanted(wrong.as_bytes()), "{wrong}");
        }
        let wanted = Wanted { labels: "a=b,c=d=e".into(), state: "truncated".into(), ..Wanted::default() };
        let asked = request(wanted).unwrap();
        assert_eq!(asked.state(), v1::RecordingState::Truncated);
        assert_eq!(asked.labels, [("a".into(), "b".into()), ("c".into(), "d=e".into())].into());
    }

    #[tokio::test]
    async fn a_part_has_its_length_or_breaks_off() {
        let pieces = |sizes: &'static [usize]| -> rpc::Replies<v1::DownloadSessionRecordingResponse> {
            let piece = |size: &usize| {
                Ok(v1::DownloadSessionRecordingResponse { offset: 0, data: vec![7; *size].into() })
            };
            stream::iter(sizes.iter().map(piece)).boxed()
        };
        let taken = |sizes, length| exactly(pieces(sizes), length).collect::<Vec<_>>();
        let lengths = |taken: Vec<io::Result<Bytes>>| {
            taken.into_iter().map(|part| part.unwrap().len()).collect::<Vec<_>>()
        };
        assert_eq!(lengths(taken(&[4, 4, 4], 6).await), [4, 2]);
        assert_eq!(lengths(taken(&[4, 4], 8).await), [4, 4]);
        assert_eq!(lengths(taken(&[4], 0).await), Vec::<usize>::new());
        let mut short = taken(&[4], 6).await;
        assert_eq!(short.pop().unwrap().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(lengths(short), [4]);
    }
}
