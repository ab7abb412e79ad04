//! What an operator sees of calls: a line of the log for each, and spans at a collector of OpenTelemetry's.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use mezite_e2e::{
    ADMIN, Agent, AgentSpec, Cluster, Ingest, IngestSpec, PASSWORD, Port, Setup, api, eventually,
};
use mezite_proto::v1::{AuthenticateLocalRequest, PingRequest, UploadSessionRecordingRequest};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use prost::Message as _;
use recording_format::Digest;
use serde_json::Value as Json;
use tonic::{Request, Response, Status, transport::Server};

use crate::support::{metadata, recording_id};

const PATIENCE: Duration = Duration::from_secs(60);
/// As W3C has it in its examples.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A request of a caller whose trace has these flags: `01` if it is recorded.
fn in_trace<T>(message: T, flags: &str) -> Request<T> {
    let mut request = Request::new(message);
    let parent = format!("00-{TRACE}-{PARENT}-{flags}");
    request.metadata_mut().insert("traceparent", parent.parse().unwrap());
    request
}

/// A collector that keeps what it is sent.
#[derive(Debug, Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Listens, until the test ends: its URL.
    fn serve(&self) -> String {
        let port = Port::lease();
        let address = port.address();
        let server = Server::builder().add_service(TraceServiceServer::new(self.clone()));
        let at = address.parse().unwrap();
        tokio::spawn(async move {
            let _port = port;
            server.serve(at).await.unwrap();
        });
        format!("http://{address}")
    }

    fn spans(&self) -> Vec<Span> {
        let sent = self.0.lock().unwrap();
        let resources = sent.iter().flat_map(|request| &request.resource_spans);
        resources.flat_map(|resource| &resource.scope_spans).flat_map(|scope| scope.spans.clone()).collect()
    }
}

fn text<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_is_sent_the_spans_of_calls_with_links_to_strangers_traces_and_no_secret() {
    let collector = Collector::default();
    let set = vec![format!("traces.endpoint={}", collector.serve()), "traces.one_in=1".into()];
    let cluster = Cluster::start_with(&Setup { set, ..Setup::default() }).await;
    let trust = cluster.trust();
    let mut stub = api::stub(&cluster.nodes()[0].address(), trust, api::tls(trust, true, None));
    // It says that its trace is not recorded.
    let _ = stub.ping(in_trace(PingRequest::default(), "00")).await.unwrap();
    let login =
        |password: &str| AuthenticateLocalRequest { username: ADMIN.into(), password: password.into() };
    let session = stub.authenticate_local(login(PASSWORD)).await.unwrap().into_inner();
    let _ = stub.authenticate_local(login("wrong horse battery staple")).await.unwrap_err();
    let of = |method: &str, code: &str| {
        let mut spans = collector.spans().into_iter();
        spans.find(|span| {
            text(&span.attributes, "method") == Some(method) && text(&span.attributes, "code") == Some(code)
        })
    };
    eventually("the collector has all of them", PATIENCE, async || {
        let wanted = [("Ping", "Ok"), ("AuthenticateLocal", "Ok"), ("AuthenticateLocal", "Unauthenticated")];
        let missing: Vec<_> = wanted.iter().filter(|(method, code)| of(method, code).is_none()).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?}")) }
    })
    .await;
    let spans = collector.spans();
    assert!(spans.iter().all(|span| hex::encode(&span.trace_id) != TRACE), "a stranger's trace goes on");
    let mut links = spans.iter().flat_map(|span| &span.links);
    assert!(links.any(|link| hex::encode(&link.trace_id) == TRACE && hex::encode(&link.span_id) == PARENT));
    let resource = collector.0.lock().unwrap()[0].resource_spans[0].resource.clone().unwrap();
    assert_eq!(text(&resource.attributes, "service.name"), Some("auth-node"));
    let sent: Vec<u8> =
        collector.0.lock().unwrap().iter().flat_map(|request| request.encode_to_vec()).collect();
    for secret in [PASSWORD, "wrong horse battery staple", &session.session_id] {
        assert!(
            !secret.is_empty() && !sent.windows(secret.len()).any(|part| part == secret.as_bytes()),
            "{secret}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agents_trace_goes_on_to_the_ingest_and_a_strangers_has_nothing_traced() {
    let collector = Collector::default();
    // Nothing is traced but what a caller has traced.
    let set = vec![format!("traces.endpoint={}", collector.serve()), format!("traces.one_in={}", u32::MAX)];
    let cluster = Cluster::start_with(&Setup { set: set.clone(), ..Setup::default() }).await;
    let store = IngestSpec::local(&cluster.dir().join("recordings"));
    let _ingests = Ingest::start_all_with(&cluster, 1, &IngestSpec { set, ..store }).await;
    let (certificate, key) = Agent::join(&cluster, AgentSpec::default()).pems();
    let stub = |identity| {
        let trust = cluster.trust();
        api::stub(&cluster.nodes()[0].address(), trust, api::tls(trust, true, identity))
    };
    let _ = stub(None).ping(in_trace(PingRequest::default(), "01")).await.unwrap();
    let payload = b"a session";
    let upload = UploadSessionRecordingRequest {
        recording_id: recording_id().to_string(),
        metadata: Some(metadata("alice")),
        data: payload.as_slice().into(),
        payload_sha256: Digest::of(payload).as_bytes().to_vec().into(),
    };
    let mut agent = stub(Some((&certificate, &key)));
    let _ = agent.upload_session_recording(in_trace(upload, "01")).await.unwrap();
    eventually("the collector has both programs' spans", PATIENCE, async || {
        let spans = collector.spans();
        if spans.len() >= 2 { Ok(()) } else { Err(format!("{spans:?}")) }
    })
    .await;
    let spans = collector.spans();
    assert_eq!(spans.len(), 2, "{spans:?}");
    let under = |parent: &str| {
        let found = spans.iter().find(|span| hex::encode(&span.parent_span_id) == parent);
        let span = found.unwrap_or_else(|| panic!("no span is under {parent}: {spans:?}"));
        assert_eq!(hex::encode(&span.trace_id), TRACE);
        assert_eq!(text(&span.attributes, "method"), Some("UploadSessionRecording"), "{span:?}");
        span
    };
    let node = under(PARENT);
    let ingest = under(&hex::encode(&node.span_id));
    assert!(text(&node.attributes, "caller").unwrap().starts_with("agent:"), "{node:?}");
    assert_eq!(text(&ingest.attributes, "caller"), Some("auth:1"), "{ingest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_call_has_a_line_for_programs_that_says_whose_it_is_and_how_it_ended() {
    let set = vec!["log.format=json".into(), "log.level=info,auth_node=debug".into()];
    let cluster = Cluster::start_with(&Setup { set, ..Setup::default() }).await;
    let _ = cluster.ctl().ok(&["users", "get", ADMIN]);
    let _ = cluster.ctl().run(&["users", "get", "nobody"]).failed(4);
    let log = cluster.nodes()[0].log();
    let lines: Vec<Json> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let calls: Vec<_> = lines.iter().filter(|line| line["span"]["method"] == "GetUser").collect();
    let codes: Vec<_> = calls.iter().map(|line| line["span"]["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["Ok", "NotFound"], "{log}");
    for line in calls {
        let span = &line["span"];
        assert_eq!(span["request_id"].as_str().unwrap().len(), 16, "{line}");
        assert_eq!(
            (&span["client"], &span["caller"]),
            (&"127.0.0.1".into(), &format!("user:{ADMIN}").into()),
            "{line}"
        );
        assert!(line["fields"]["ms"].as_f64().unwrap() > 0.0, "{line}");
    }
    assert!(lines.iter().all(|line| line["spans"].is_null()), "a span is told twice: {log}");
    let serving = lines.iter().find(|line| line["fields"]["message"] == "serving").unwrap();
    assert_eq!(serving["fields"]["web_address"], cluster.nodes()[0].web_address().as_str());
    assert!(!log.contains(PASSWORD) && !log.contains(cluster.session().expose()), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_for_people_says_once_whose_its_call_is() {
    let set = vec!["log.level=info,auth_node=debug".into()];
    let cluster = Cluster::start_with(&Setup { set, ..Setup::default() }).await;
    // One that is admitted before its work and with it.
    cluster.add_user("alice", &["access"], &[]).await;
    let log = cluster.nodes()[0].log();
    let line = log.lines().find(|line| line.contains("CreateUser") && line.contains("done")).unwrap();
    assert_eq!(line.matches("caller=").count(), 1, "{line}");
}
