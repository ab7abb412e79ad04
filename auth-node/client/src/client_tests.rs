use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use mezite_proto::IDEMPOTENCY_KEY;
use prost::Message as _;
use tonic::Code;
use tonic_types::{ErrorDetails, StatusExt as _};

use super::*;
use crate::{
    NOT_COMMITTED,
    testing::{Call, FakeServer, TestCa, dead_address as dead},
};

const CREATE: Retry = Retry::Once { check: std::borrow::Cow::Borrowed("look") };

fn pong(node_id: u64) -> Vec<u8> {
    v1::PingResponse { node_id, ..Default::default() }.encode_to_vec()
}

fn serving(ca: &TestCa, node_id: u64) -> FakeServer {
    FakeServer::start(&ca.auth_node(), ca, move |_| async move { Ok(pong(node_id)) })
}

fn failing(ca: &TestCa, status: impl Fn() -> Status + Send + Sync + 'static) -> FakeServer {
    FakeServer::start(&ca.auth_node(), ca, move |_| {
        let status = status();
        async move { Err(status) }
    })
}

/// A server that takes calls and never answers, and a signal that one is in hand.
fn silent(ca: &TestCa) -> (FakeServer, tokio::sync::mpsc::UnboundedReceiver<()>) {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let server = FakeServer::start(&ca.auth_node(), ca, move |_| {
        sender.send(()).unwrap();
        std::future::pending()
    });
    (server, receiver)
}

fn quick() -> RetryPolicy {
    RetryPolicy {
        backoff_base: Duration::from_millis(5),
        backoff_max: Duration::from_millis(20),
        attempts_per_address: 3,
        ..RetryPolicy::default()
    }
}

fn client(ca: &TestCa, addresses: &[String]) -> Client {
    Client::new(ClientConfig { policy: quick(), ..ClientConfig::new(addresses.to_vec(), ca.trust()) })
        .unwrap()
}

async fn ping(client: &Client, retry: Retry) -> Result<u64, ClientError> {
    let ping = |mut auth: AuthClient, request| async move { auth.ping(request).await };
    client.call(retry, v1::PingRequest {}, ping).await.map(|pong| pong.node_id)
}

fn unavailable(reason: Option<&str>) -> Status {
    let mut details = ErrorDetails::new();
    if let Some(reason) = reason {
        details.set_error_info(reason, "mezite", std::collections::HashMap::new());
    }
    Status::with_error_details(Code::Unavailable, "no leader", details)
}

#[tokio::test]
async fn a_call_finds_the_address_that_serves_and_stays_with_it() {
    let ca = TestCa::new();
    let (one, two) = (failing(&ca, || unavailable(None)), serving(&ca, 2));
    let client = client(&ca, &[dead(), one.address(), two.address()]);
    assert_eq!(ping(&client, Retry::Idempotent).await.unwrap(), 2);
    assert_eq!(ping(&client, Retry::Idempotent).await.unwrap(), 2);
    assert_eq!((one.calls().len(), two.calls().len()), (1, 2));
}

#[tokio::test]
async fn a_create_moves_on_while_surely_nothing_was_committed() {
    let ca = TestCa::new();
    let (one, two) = (failing(&ca, || unavailable(Some(NOT_COMMITTED))), serving(&ca, 2));
    let client = client(&ca, &[dead(), one.address(), two.address()]);
    assert_eq!(ping(&client, CREATE).await.unwrap(), 2);
    assert_eq!((one.calls().len(), two.calls().len()), (1, 1));
}

/// The idempotency keys of the calls that came to a server.
fn keys(server: &FakeServer) -> Vec<Option<String>> {
    let text = |call: &Call| call.metadata.get(IDEMPOTENCY_KEY).map(|key| key.to_str().unwrap().to_owned());
    server.calls().iter().map(text).collect()
}

#[tokio::test]
async fn a_create_that_may_have_been_committed_is_repeated_as_the_same_call() {
    let ca = TestCa::new();
    let (one, two) = (failing(&ca, || unavailable(None)), serving(&ca, 2));
    let both = [one.address(), two.address()];
    for _ in 0..2 {
        assert_eq!(ping(&client(&ca, &both), CREATE).await.unwrap(), 2);
    }
    let (first, second) = (keys(&one), keys(&two));
    assert_eq!((first.len(), &first), (2, &second));
    assert!(first[0].is_some() && first[0] != first[1], "each call has a key of its own");
    assert_eq!(ping(&client(&ca, &both), Retry::Idempotent).await.unwrap(), 2);
    assert_eq!(keys(&two)[2], None);
}

#[tokio::test]
async fn a_node_that_dies_with_a_call_in_hand() {
    for retry in [Retry::Idempotent, CREATE] {
        let once = retry != Retry::Idempotent;
        let ca = TestCa::new();
        let ((mut one, mut in_hand), two) = (silent(&ca), serving(&ca, 2));
        let client = client(&ca, &[one.address(), two.address()]);
        let call = tokio::spawn(async move { ping(&client, retry).await });
        in_hand.recv().await.unwrap();
        one.kill();
        assert_eq!(call.await.unwrap().unwrap(), 2);
        assert_eq!((keys(&one).len(), keys(&two)[0].is_some()), (1, once));
        assert_eq!(keys(&one), keys(&two));
    }
}

#[tokio::test]
async fn an_outcome_is_unknown_only_when_nobody_has_told_it_until_the_end() {
    let ca = TestCa::new();
    let lost = failing(&ca, || unavailable(None));
    let error = ping(&client(&ca, &[lost.address()]), CREATE).await.unwrap_err();
    assert!(matches!(&error, ClientError::OutcomeUnknown { check, .. } if check == "look"), "{error:?}");
    assert_eq!(lost.calls().len(), 3);
    // Also when the last that was heard is that another attempt had no effect.
    let nothing = failing(&ca, || unavailable(Some(NOT_COMMITTED)));
    let error = ping(&client(&ca, &[lost.address(), nothing.address()]), CREATE).await.unwrap_err();
    assert!(matches!(error, ClientError::OutcomeUnknown { .. }), "{error:?}");
    let error = ping(&client(&ca, &[nothing.address(), dead()]), CREATE).await.unwrap_err();
    assert!(matches!(error, ClientError::Unavailable { .. }), "{error:?}");
    let broken = failing(&ca, || Status::internal("a defect"));
    let error = ping(&client(&ca, &[broken.address()]), CREATE).await.unwrap_err();
    assert!(matches!(error, ClientError::OutcomeUnknown { .. }), "{error:?}");
    assert_eq!(broken.calls().len(), 3);
}

#[tokio::test]
async fn a_server_that_fails_leaves_it_to_another_to_tell_the_outcome() {
    let ca = TestCa::new();
    for code in [Code::Internal, Code::Unknown] {
        let (broken, serving) = (failing(&ca, move || Status::new(code, "a defect")), serving(&ca, 2));
        let both = client(&ca, &[broken.address(), serving.address()]);
        assert_eq!(ping(&both, CREATE).await.unwrap(), 2, "{code:?}");
        assert_eq!(keys(&broken), keys(&serving));
        // What may be repeated anyway is no better for it.
        let alone = client(&ca, &[broken.address()]);
        let error = ping(&alone, Retry::Idempotent).await.unwrap_err();
        assert_eq!(error.code(), Some(code));
        assert_eq!(broken.calls().len(), 2);
    }
}

#[tokio::test]
async fn a_key_that_looks_used_with_another_request_does_not_tell_that_nothing_happened() {
    let ca = TestCa::new();
    let lost = failing(&ca, || unavailable(None));
    let other = failing(&ca, || {
        let nothing = std::collections::HashMap::<String, String>::new();
        let details = ErrorDetails::with_error_info(crate::KEY_REUSED, "mezite", nothing);
        Status::with_error_details(Code::InvalidArgument, "used with another request", details)
    });
    let error = ping(&client(&ca, &[lost.address(), other.address()]), CREATE).await.unwrap_err();
    assert!(matches!(error, ClientError::OutcomeUnknown { .. }), "{error:?}");
}

#[tokio::test]
async fn a_refusal_tells_the_outcome_unless_it_came_before_anybody_looked() {
    let ca = TestCa::new();
    let lost = failing(&ca, || unavailable(None));
    for (code, told) in [
        (Code::AlreadyExists, true),
        (Code::Aborted, true),
        (Code::FailedPrecondition, true),
        (Code::Unauthenticated, false),
        (Code::PermissionDenied, false),
        (Code::ResourceExhausted, false),
    ] {
        let refusing = failing(&ca, move || Status::new(code, "no"));
        let error = ping(&client(&ca, &[lost.address(), refusing.address()]), CREATE).await.unwrap_err();
        match error {
            ClientError::Status(status) => {
                assert!(told && status.code == code && status.repeated, "{code:?}")
            }
            ClientError::OutcomeUnknown { .. } => assert!(!told, "{code:?}"),
            other => panic!("{other:?}"),
        }
        // A first attempt that is refused had no effect, whatever the reason.
        let error = ping(&client(&ca, &[refusing.address()]), CREATE).await.unwrap_err();
        assert_eq!(error.status().map(|status| (status.code, status.repeated)), Some((code, false)));
    }
}

#[tokio::test]
async fn a_node_that_does_not_answer_costs_one_deadline() {
    let ca = TestCa::new();
    let ((one, _in_hand), two) = (silent(&ca), serving(&ca, 2));
    let policy = RetryPolicy { call_timeout: Duration::from_secs(2), ..quick() };
    let client = client(&ca, &[one.address(), two.address()]).with_policy(policy);
    assert_eq!(ping(&client, Retry::Idempotent).await.unwrap(), 2);
    assert_eq!(one.calls().len(), 1);
    // The other one is known to serve now, so it is asked first.
    assert_eq!(ping(&client, CREATE).await.unwrap(), 2);
}

#[tokio::test]
async fn a_client_comes_back_to_a_node_that_restarted() {
    let ca = TestCa::new();
    let mut one = serving(&ca, 1);
    let mut two = serving(&ca, 2);
    let client = client(&ca, &[one.address(), two.address()]);
    assert_eq!(ping(&client, Retry::Idempotent).await.unwrap(), 1);
    let address = one.address();
    one.kill();
    assert_eq!(ping(&client, Retry::Idempotent).await.unwrap(), 2);
    assert_eq!(ping(&client, CREATE).await.unwrap(), 2);
    let again = FakeServer::start_at(&address, &ca.auth_node(), &ca, |_| async { Ok(pong(1)) });
    two.kill();
    assert_eq!(ping(&client, Retry::Idempotent).await.unwrap(), 1);
    assert_eq!(again.calls().len(), 1);
}

#[tokio::test]
async fn a_lone_node_that_restarts_is_waited_for() {
    let ca = TestCa::new();
    let mut node = serving(&ca, 1);
    let patient = RetryPolicy { attempts_per_address: 1000, ..quick() };
    let client = client(&ca, &[node.address()]).with_policy(patient);
    assert_eq!(ping(&client, CREATE).await.unwrap(), 1);
    let address = node.address();
    node.kill();
    let waiting = client.clone();
    let call = tokio::spawn(async move { ping(&waiting, Retry::Idempotent).await });
    // It has been asked in vain by then.
    while !client.pool.is_avoided(0, Instant::now()) {
        tokio::task::yield_now().await;
    }
    let _again = FakeServer::start_at(&address, &ca.auth_node(), &ca, |_| async { Ok(pong(7)) });
    assert_eq!(call.await.unwrap().unwrap(), 7);
}

#[tokio::test]
async fn a_hint_of_the_server_is_waited_for() {
    let ca = TestCa::new();
    let asked = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&asked);
    let server = FakeServer::start(&ca.auth_node(), &ca, move |_| {
        let first = counter.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            let wait = ErrorDetails::with_retry_info(Some(Duration::from_millis(200)));
            if first {
                Err(Status::with_error_details(Code::ResourceExhausted, "busy", wait))
            } else {
                Ok(pong(1))
            }
        }
    });
    let begin = Instant::now();
    assert_eq!(ping(&client(&ca, &[server.address()]), CREATE).await.unwrap(), 1);
    assert!(begin.elapsed() >= Duration::from_millis(200));
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn attempts_are_bounded() {
    let ca = TestCa::new();
    let server = failing(&ca, || unavailable(Some(NOT_COMMITTED)));
    let error = ping(&client(&ca, &[server.address(), dead()]), CREATE).await.unwrap_err();
    assert!(matches!(&error, ClientError::Unavailable { attempts: 6, .. }), "{error:?}");
    assert_eq!(server.calls().len(), 3);
}

#[tokio::test]
async fn what_a_server_says_tells_more_than_that_others_are_away() {
    let ca = TestCa::new();
    let leaderless = failing(&ca, || unavailable(Some(NOT_COMMITTED)));
    for addresses in [[leaderless.address(), dead()], [dead(), leaderless.address()]] {
        let error = ping(&client(&ca, &addresses), Retry::Idempotent).await.unwrap_err();
        assert!(
            matches!(&error, ClientError::Unavailable { reason, .. } if reason == "no leader"),
            "{error:?}"
        );
    }
    // What it said before it went is of no use any more.
    let leaving = FakeServer::start(&ca.auth_node(), &ca, |_| async { Err(unavailable(None)) });
    let slow = Duration::from_millis(300);
    let policy = RetryPolicy { backoff_base: slow, backoff_max: slow, ..quick() };
    let client = client(&ca, &[leaving.address()]).with_policy(policy);
    let call = tokio::spawn(async move { ping(&client, Retry::Idempotent).await });
    while leaving.calls().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(leaving);
    let error = call.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("no connection"), "{error}");
}

#[tokio::test]
async fn a_hint_beyond_the_deadline_ends_the_call() {
    let ca = TestCa::new();
    let server = failing(&ca, || {
        let wait = ErrorDetails::with_retry_info(Some(Duration::from_secs(3600)));
        Status::with_error_details(Code::ResourceExhausted, "locked out", wait)
    });
    let begin = Instant::now();
    let error = ping(&client(&ca, &[server.address()]), Retry::Idempotent).await.unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(10));
    let status = error.status().unwrap();
    assert_eq!((status.code, status.retry_after), (Code::ResourceExhausted, Some(Duration::from_secs(3600))));
    assert_eq!(server.calls().len(), 1);
}

#[tokio::test]
async fn an_answer_after_a_doubtful_attempt_says_so() {
    let ca = TestCa::new();
    let (one, two) = (failing(&ca, || unavailable(None)), failing(&ca, || Status::not_found("gone")));
    let both = client(&ca, &[one.address(), two.address()]);
    assert!(ping(&both, Retry::Idempotent).await.unwrap_err().repeated_with(Code::NotFound));
    let second = client(&ca, &[two.address()]);
    assert!(!ping(&second, Retry::Idempotent).await.unwrap_err().repeated_with(Code::NotFound));
}

#[tokio::test]
async fn a_server_of_another_ca_is_not_trusted_whatever_its_name() {
    let (ca, evil) = (TestCa::new(), TestCa::new());
    let server = FakeServer::start(&evil.auth_node(), &evil, |_| async { Ok(pong(9)) });
    let error = ping(&client(&ca, &[server.address()]), Retry::Idempotent).await.unwrap_err();
    assert!(matches!(error, ClientError::Untrusted { .. }), "{error:?}");
    assert!(server.calls().is_empty());
}

#[tokio::test]
async fn an_agent_of_the_cluster_is_no_auth_node() {
    let ca = TestCa::new();
    let agent = FakeServer::start(&ca.agent(&["web1.example.org"]), &ca, |_| async { Ok(pong(9)) });
    let real = serving(&ca, 1);
    let error = ping(&client(&ca, &[agent.address()]), Retry::Idempotent).await.unwrap_err();
    assert!(matches!(error, ClientError::Untrusted { .. }), "{error:?}");
    assert_eq!(ping(&client(&ca, &[agent.address(), real.address()]), CREATE).await.unwrap(), 1);
    assert!(agent.calls().is_empty());
}

#[tokio::test]
async fn something_that_is_not_tls_is_not_trusted() {
    let ca = TestCa::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n")
                .await
                .unwrap();
        }
    });
    let error = ping(&client(&ca, &[address]), Retry::Idempotent).await.unwrap_err();
    assert!(matches!(error, ClientError::Untrusted { .. }), "{error:?}");
}

#[tokio::test]
async fn credentials_are_shown() {
    let ca = TestCa::new();
    let server = serving(&ca, 1);
    let plain = client(&ca, &[server.address()]);
    ping(&plain, Retry::Idempotent).await.unwrap();
    let config = ClientConfig::new(vec![server.address()], ca.trust());
    let identity = Some(ca.agent(&["web1.example.org"]).client_identity());
    let session = Some(SessionSecret::new("c0ffee".into()).unwrap());
    let full = Client::new(ClientConfig { identity, session, ..config }).unwrap();
    ping(&full, Retry::Idempotent).await.unwrap();
    let seen = |call: &Call| {
        let header = call.metadata.get("authorization").map(|value| value.to_str().unwrap().to_owned());
        (call.certified, header)
    };
    let calls: Vec<_> = server.calls().iter().map(seen).collect();
    assert_eq!(calls, [(false, None), (true, Some("Bearer c0ffee".into()))]);
    assert!(!format!("{full:?}").contains("c0ffee"));
}

#[tokio::test]
async fn a_client_certificate_that_the_server_refuses_is_said() {
    let (ca, other) = (TestCa::new(), TestCa::new());
    let server = serving(&ca, 1);
    let config = ClientConfig::new(vec![server.address()], ca.trust());
    let identity = Some(other.agent(&["web1.example.org"]).client_identity());
    let client = Client::new(ClientConfig { identity, policy: quick(), ..config }).unwrap();
    let error = ping(&client, Retry::Idempotent).await.unwrap_err();
    assert!(matches!(error, ClientError::Untrusted { .. } | ClientError::Unavailable { .. }), "{error:?}");
    assert!(server.calls().is_empty());
}

#[tokio::test]
async fn recordings_go_to_ingests_and_to_auth_nodes_only_when_there_is_none() {
    let ca = TestCa::new();
    let auth = serving(&ca, 1);
    let mut ingest = FakeServer::start(&ca.ingest(), &ca, |_| async { Ok(pong(2)) });
    let recordings = client(&ca, &[auth.address()]).for_recordings(&[ingest.address()]).unwrap();
    assert_eq!(recordings.addresses(), [ingest.address(), auth.address()]);
    assert_eq!(ping(&recordings, Retry::Idempotent).await.unwrap(), 2);
    ingest.kill();
    assert_eq!(ping(&recordings, Retry::Idempotent).await.unwrap(), 1);
    let again = recordings.for_recordings(&[]).unwrap();
    assert_eq!(again.addresses(), [auth.address()]);
}

#[tokio::test]
async fn an_auth_node_is_not_taken_for_an_ingest() {
    let ca = TestCa::new();
    let (auth, other) = (serving(&ca, 1), serving(&ca, 2));
    let recordings = client(&ca, &[auth.address()]).for_recordings(&[other.address()]).unwrap();
    assert_eq!(ping(&recordings, Retry::Idempotent).await.unwrap(), 1);
    assert!(other.calls().is_empty());
}

#[tokio::test]
async fn calls_that_wait_for_a_dead_address_wait_together() {
    let ca = TestCa::new();
    // It takes connections and says nothing.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let two = serving(&ca, 2);
    let policy = RetryPolicy { connect_timeout: Duration::from_secs(1), ..quick() };
    let client = client(&ca, &[mute.local_addr().unwrap().to_string(), two.address()]).with_policy(policy);
    let begin = Instant::now();
    let calls = (0..20).map(|_| ping(&client, CREATE));
    for node in futures::future::join_all(calls).await {
        assert_eq!(node.unwrap(), 2);
    }
    // One after the other they would wait for twenty.
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}
