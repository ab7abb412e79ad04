//! What is the same for all calls: it is known from whom each comes, it belongs to its caller's trace, and it ends with a line and
//! is counted; an error becomes a status.

use futures::{Stream, StreamExt as _, stream, stream::BoxStream};
use mezite_daemon::{
    calls::{self, CallSpan, Measured},
    clock, traces,
};
use mezite_proto::transport::ConnectionInfo;
use tonic::{Code, Extensions, Response, Status, metadata::MetadataMap};
use tracing::{Instrument as _, Span};

use crate::{
    authn::{self, Caller},
    error::IngestError,
    metrics,
    service::Ingest,
};

/// A call that has begun.
pub(crate) struct Call {
    method: &'static str,
    request_id: String,
    span: CallSpan,
    measured: Measured,
}

impl Call {
    /// Begins a call, and tells whose it is.
    pub(crate) fn begin(
        method: &'static str,
        ingest: &Ingest,
        metadata: &MetadataMap,
        extensions: &Extensions,
    ) -> (Self, Result<Caller, IngestError>) {
        let measured = Measured::begin(method);
        let request_id = calls::new_id();
        let client = extensions.get::<ConnectionInfo>().map(|info| info.remote_addr.ip().to_canonical());
        let client = client.map(|address| address.to_string()).unwrap_or_default();
        let span = CallSpan::begin(method, &request_id, &client);
        let caller = authn::caller(extensions, ingest.identity().cluster_name(), clock::unix_seconds());
        traces::continue_trace(&span, || caller.is_ok(), |name| metadata.get(name)?.to_str().ok());
        if let Ok(caller) = &caller {
            span.note(|| caller.to_string());
        }
        (Self { method, request_id, span, measured }, caller)
    }

    /// Does the work of a call that has one answer.
    pub(crate) async fn answer<T>(
        self,
        work: impl Future<Output = Result<T, IngestError>>,
    ) -> Result<Response<T>, Status> {
        let result = work.instrument(Span::clone(&self.span)).await;
        self.end(result).map(Response::new)
    }

    /// Does the work of a call that has many answers, and ends with the last.
    pub(crate) async fn answer_all<T, S>(
        self,
        work: impl Future<Output = Result<S, IngestError>>,
    ) -> Result<Response<BoxStream<'static, Result<T, Status>>>, Status>
    where
        T: Send + 'static,
        S: Stream<Item = Result<T, IngestError>> + Send + 'static,
    {
        match work.instrument(Span::clone(&self.span)).await {
            Ok(answers) => Ok(Response::new(self.until_end(answers).boxed())),
            Err(error) => self.end(Err(error)),
        }
    }

    fn until_end<T>(
        self,
        answers: impl Stream<Item = Result<T, IngestError>> + Send + 'static,
    ) -> impl Stream<Item = Result<T, Status>> + Send + 'static {
        stream::unfold((Box::pin(answers), Some(self)), |(mut answers, call)| async move {
            let call = call?;
            match answers.next().await {
                Some(Ok(answer)) => Some((Ok(answer), (answers, Some(call)))),
                Some(Err(error)) => Some((call.end(Err(error)), (answers, None))),
                None => call.end(Ok(())).err().map(|status| (Err(status), (answers, None))),
            }
        })
    }

    /// Ends the call: measures it, logs it, and tells the caller what went wrong. What is the operator's business is told by the
    /// id of its line alone.
    fn end<T>(self, result: Result<T, IngestError>) -> Result<T, Status> {
        let Self { method, request_id, span, measured } = self;
        let ms = span.end(measured, result.as_ref().map_or_else(IngestError::code, |_| Code::Ok));
        span.in_scope(|| match &result {
            Ok(_) => tracing::debug!(ms, "done"),
            Err(error) if error.is_ours() => {
                tracing::error!(ms, reason = error.reason(), error = error.internals(), "the call failed");
            }
            // Anybody can have these said as often as they like; the metrics count them.
            Err(error) => tracing::debug!(ms, reason = error.reason(), %error, "refused"),
        });
        result.map_err(|error| {
            metrics::refused(method, error.reason());
            error.into_status(&request_id)
        })
    }
}
