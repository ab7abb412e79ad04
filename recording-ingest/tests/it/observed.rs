//! What an operator sees of the calls of an ingest.

use std::fs;

use serde_json::Value;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{
    cluster::{AGENT, Cluster},
    program,
    wire::{Wire, eventually, id, page},
};

// The auth node must answer while this thread waits for `join` to end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_call_has_a_line_that_says_whose_it_is_and_how_it_ended_and_is_counted() {
    let cluster = Cluster::new();
    let ingest = program::joined(&cluster, "info,recording_ingest=debug");
    let ca = &cluster.script.ca;
    let agent = Wire::to(ingest.address, ca, Some(&cluster.agent(AGENT)));
    let auth = Wire::to(ingest.address, ca, Some(&ca.auth_node()));
    let name = id(1).to_string();
    agent.upload(&name, b"hello").await.unwrap();
    assert_eq!(auth.download(&name, 0).await.unwrap(), b"hello");
    let refused = agent.list(Default::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let manifest = cluster.store().join(format!("rec/v1/01/{name}/manifest/0000.json"));
    fs::write(&manifest, "{").unwrap();
    let failed = auth.get(&name, 0, 1).await.unwrap_err();
    assert_eq!(failed.code(), Code::DataLoss);

    let ends = || -> Vec<Value> {
        let is_end = |line: &Value| line["fields"]["ms"].as_f64().is_some_and(|ms| ms > 0.0);
        ingest.log().into_iter().filter(is_end).collect()
    };
    eventually(|| async { ends().len() == 4 }).await;
    let agent_id = format!("agent:{AGENT}");
    let wanted = [
        ("UploadSessionRecording", "Ok", agent_id.as_str(), "DEBUG", "done"),
        ("DownloadSessionRecording", "Ok", "auth:1", "DEBUG", "done"),
        ("ListSessionRecordings", "PermissionDenied", &agent_id, "DEBUG", "refused"),
        ("GetSessionRecording", "DataLoss", "auth:1", "ERROR", "the call failed"),
    ];
    for (line, (method, code, caller, level, message)) in ends().iter().zip(wanted) {
        let span = &line["span"];
        assert_eq!((&span["method"], &span["code"]), (&method.into(), &code.into()), "{line}");
        assert_eq!((&span["client"], &span["caller"]), (&"127.0.0.1".into(), &caller.into()), "{line}");
        assert_eq!((&line["level"], &line["fields"]["message"]), (&level.into(), &message.into()), "{line}");
        assert_eq!(span["request_id"].as_str().unwrap().len(), 16, "{line}");
        assert_eq!(span["recording"].as_str(), (code != "PermissionDenied").then_some(&*name), "{line}");
    }
    for (status, line) in [(refused, 2), (failed, 3)] {
        let told = status.get_details_request_info().unwrap().request_id;
        assert_eq!(ends()[line]["span"]["request_id"], told, "the line has another id than its caller");
    }
    let metrics = page(ingest.diagnostics, "/metrics").await.1;
    for (method, code, ..) in wanted {
        let counted = format!("grpc_server_handled_total{{method=\"{method}\",code=\"{code}\"}} 1");
        assert!(metrics.contains(&counted), "{counted}: {metrics}");
        let timed = format!("grpc_server_handling_seconds_count{{method=\"{method}\"}} 1");
        assert!(metrics.contains(&timed), "{timed}: {metrics}");
    }
}
