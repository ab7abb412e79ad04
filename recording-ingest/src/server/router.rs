//! From the name of a method to the function that answers it. A method that is not here is one of the auth nodes',
//! now or in a later release.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{FutureExt as _, future::BoxFuture};
use mezite_proto::{MAX_REPLY, SERVICE_NAME, transport::is_of};
use tonic::{
    Request, Status,
    body::Body,
    server::{Grpc, NamedService},
};
use tonic_prost::ProstCodec;
use tower::service_fn;

use crate::{rpc, service::Ingest};

/// Largest message that is taken, in bytes.
const MAX_MESSAGE: usize = 4 << 20;

/// Whether the request of this path's method lasts. It bounds the silence between its messages.
pub(super) fn lasts(path: &str) -> bool {
    is_of(path, SERVICE_NAME) && path.ends_with("/StreamSessionRecording")
}

/// The recording RPCs of `mezite.v1.AuthService`.
#[derive(Debug, Clone)]
pub(super) struct Router(Arc<Ingest>);

impl Router {
    pub(super) fn new(ingest: Arc<Ingest>) -> Self {
        Self(ingest)
    }
}

impl NamedService for Router {
    const NAME: &'static str = SERVICE_NAME;
}

impl tower::Service<http::Request<Body>> for Router {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        dispatch(Arc::clone(&self.0), request).map(Ok).boxed()
    }
}

/// Prost messages, bounded.
fn grpc<T, U>() -> Grpc<ProstCodec<T, U>>
where
    T: prost::Message + Send + 'static,
    U: prost::Message + Default + Send + 'static,
{
    Grpc::new(ProstCodec::default()).apply_max_message_size_config(Some(MAX_MESSAGE), Some(MAX_REPLY))
}

async fn dispatch(ingest: Arc<Ingest>, request: http::Request<Body>) -> http::Response<Body> {
    let method = request.uri().path().rsplit('/').next().unwrap_or_default();
    match method {
        "StreamSessionRecording" => {
            let call = move |request: Request<_>| rpc::stream_session_recording(Arc::clone(&ingest), request);
            grpc().client_streaming(service_fn(call), request).await
        }
        "UploadSessionRecording" => {
            let call = move |request: Request<_>| rpc::upload_session_recording(Arc::clone(&ingest), request);
            grpc().unary(service_fn(call), request).await
        }
        "ListSessionRecordings" => {
            let call = move |request: Request<_>| rpc::list_session_recordings(Arc::clone(&ingest), request);
            grpc().unary(service_fn(call), request).await
        }
        "GetSessionRecording" => {
            let call = move |request: Request<_>| rpc::get_session_recording(Arc::clone(&ingest), request);
            grpc().unary(service_fn(call), request).await
        }
        "DownloadSessionRecording" => {
            let call =
                move |request: Request<_>| rpc::download_session_recording(Arc::clone(&ingest), request);
            grpc().server_streaming(service_fn(call), request).await
        }
        _ => Status::unimplemented("an ingest serves the recording methods alone; call an auth node")
            .into_http(),
    }
}
