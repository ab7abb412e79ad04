//! Joining by an AWS identity: as a host joins, and as somebody tries who is not who it says. AWS's part is played by moto;
//! signatures are made by AWS's Rust library, through `mezctl`, and by its Python library.

mod sts;

use std::{
    collections::BTreeSet,
    process::Command,
    time::{Duration, Instant},
};

use mezite_client::ClusterTrust;
use mezite_e2e::{
    Cluster, Output, Scratch, Setup,
    api::{self, HostKeys},
    call, run,
};
use mezite_proto::v1::{
    self, register_using_iam_method_request as asked, register_using_iam_method_response as told,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use self::sts::{ACCOUNT, Identity, Mode, Sts, says};

const ROLE: &str = "arn:aws:sts::123456789012:assumed-role/web/i-0abc";
const USER: &str = "arn:aws:iam::123456789012:user/team/joiner";

/// A cluster whose nodes ask this STS, and have an environment in which whoever heeds proxies reaches nobody.
async fn cluster(sts: &Sts) -> Cluster {
    let proxies = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"];
    let env = proxies.map(|name| (name.to_owned(), "http://127.0.0.1:9".to_owned())).to_vec();
    // Python takes its time to sign on a busy machine.
    let set = [sts.settings(), vec!["limits.call_timeout=120s".into()]].concat();
    Cluster::start_with(&Setup { set, env, ..Setup::default() }).await
}

/// Makes a token of the method iam with this name.
fn token(cluster: &Cluster, name: &str, allow: &[&str]) -> Value {
    let add = ["tokens", "add", "--name", name, "--method", "iam", "--max-uses", "9"];
    cluster.ctl().json(&[&add, allow].concat())
}

/// `mezctl agent join` on a host that has these credentials in its environment.
fn join(cluster: &Cluster, sts: &Sts, identity: &Identity, token: &str, hostname: &str) -> Output {
    let dir = cluster.dir().join(hostname);
    let names = ["--hostname", hostname, "--address", "127.0.0.1:22"];
    let by = ["--method", "iam", "--token-name", token, "--region", "us-east-1"];
    let args = [&["agent", "join", "--out", dir.to_str().unwrap()], &names[..], &by].concat();
    let mut command = cluster.ctl_named(hostname).command(&args);
    run(on_aws(&mut command, cluster, sts, identity))
}

fn on_aws<'a>(
    command: &'a mut Command,
    cluster: &Cluster,
    sts: &Sts,
    identity: &Identity,
) -> &'a mut Command {
    let Identity { key, secret, token } = identity;
    command.env("HOME", cluster.dir()).env("AWS_EC2_METADATA_DISABLED", "true");
    command.env("AWS_ACCESS_KEY_ID", key).env("AWS_SECRET_ACCESS_KEY", secret);
    if !token.is_empty() {
        command.env("AWS_SESSION_TOKEN", token);
    }
    command.env("AWS_ENDPOINT_URL_STS", sts.url())
}

fn init(keys: &HostKeys, token: &str, hostname: &str) -> asked::Init {
    let agent = v1::RegisterAgentRequest { address: format!("{hostname}:22"), ..Default::default() };
    asked::Init { token_name: token.into(), certs: Some(keys.request("", hostname)), agent: Some(agent) }
}

/// One call, as a client of its own makes it: `prove` makes the proof of the challenge, or none, and then it says nothing.
async fn exchange<P: Into<Option<asked::Proof>>>(
    address: &str,
    trust: &ClusterTrust,
    init: asked::Init,
    prove: impl FnOnce(String) -> P,
) -> Result<told::Joined, Status> {
    let message = |message| v1::RegisterUsingIamMethodRequest { message: Some(message) };
    let mut stub = api::stub(address, trust, api::tls(trust, true, None));
    let (sender, receiver) = mpsc::channel(2);
    sender.send(message(asked::Message::Init(init))).await.unwrap();
    let mut replies = stub.register_using_iam_method(ReceiverStream::new(receiver)).await?.into_inner();
    let challenge = match replies.message().await?.unwrap().message.unwrap() {
        told::Message::Challenge(challenge) => challenge,
        other => panic!("a challenge comes first: {other:?}"),
    };
    let proof: Option<asked::Proof> = tokio::task::block_in_place(|| prove(challenge)).into();
    if let Some(proof) = proof {
        sender.send(message(asked::Message::Proof(proof))).await.unwrap();
    }
    match replies.message().await?.unwrap().message.unwrap() {
        told::Message::Joined(joined) => {
            assert!(replies.message().await?.is_none(), "nothing comes after the end");
            Ok(joined)
        }
        other => panic!("{other:?}"),
    }
}

/// What AWS's Python library signs, with what is wrong about it.
fn botocore(sts: &Sts, identity: &Identity, challenge: &str, wrong: Value) -> asked::Proof {
    let (authorization, amz_date) = sts.sign(identity, challenge, wrong);
    let region = "us-east-1".to_owned();
    asked::Proof { region, authorization, amz_date, security_token: identity.token.clone() }
}

/// The last record of an event in the audit log.
async fn audited(cluster: &Cluster, event: &str) -> v1::AuditEvent {
    let request = v1::QueryAuditEventsRequest { events: vec![event.into()], ..Default::default() };
    let mut found = call!(cluster.admin(), query_audit_events, request).unwrap().events;
    found.sort_by_key(|event| event.index);
    found.pop().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_join_by_their_aws_identity() {
    let scratch = Scratch::new();
    let sts = Sts::start(scratch.path()).await;
    let cluster = cluster(&sts).await;
    let made = token(&cluster, "web", &["--allow-arn", "arn:aws:sts::123456789012:assumed-role/web/*"]);
    assert_eq!((&made["method"], &made["secret"]), (&"iam".into(), &Value::Null));

    // By the role that an instance has, with a session token; and the challenge is what was signed.
    let joined = join(&cluster, &sts, &sts.role, "web", "web1.example.org").ok();
    assert!(joined.contains("web1.example.org (joined)"), "{joined}");
    let asked = sts.asked();
    assert_eq!(asked.len(), 1);
    let expected = ["POST / HTTP/1.1\r\n", "accept: application/json\r\n", "x-mezite-challenge: "];
    assert!(expected.iter().all(|part| asked[0].contains(part)), "{}", asked[0]);
    assert!(asked[0].ends_with("\r\n\r\nAction=GetCallerIdentity&Version=2011-06-15"), "{}", asked[0]);
    let nodes = cluster.ctl().json(&["nodes", "ls"]);
    assert_eq!(nodes[0]["hostname"], "web1.example.org");
    let event = audited(&cluster, "agent.join").await;
    assert_eq!(event.fields["aws_arn"], ROLE);

    // It is an agent as any: it reports, renews, and leaves.
    let dir = cluster.dir().join("web1.example.org");
    let host = cluster.ctl_named("web1.example.org").by_profile();
    for command in ["heartbeat", "renew"] {
        let _ = host.ok(&["agent", command, "--dir", dir.to_str().unwrap()]);
    }
    // Run again, there is nothing left to do.
    let again = join(&cluster, &sts, &sts.role, "web", "web1.example.org").ok();
    assert!(again.contains("had joined before") && sts.asked().is_empty(), "{again}");

    // A user, by a rule for the whole account; and one that no rule allows.
    let refused = join(&cluster, &sts, &sts.user, "web", "web2.example.org").failed(3);
    assert!(refused.contains("the join is not accepted"), "{refused}");
    let event = audited(&cluster, "agent.join.denied").await;
    assert_eq!(event.target, "token:web");
    assert_eq!(event.fields["reason"], format!("no rule of the token allows {USER}"));
    token(&cluster, "all", &["--allow-account", ACCOUNT]);
    let _ = join(&cluster, &sts, &sts.user, "all", "web2.example.org").ok();
    let uses = |name: &str| cluster.ctl().json(&["tokens", "get", name])["uses"].clone();
    assert_eq!((uses("web"), uses("all")), (1.into(), 1.into()));
    let _ = host.ok(&["agent", "leave", "--dir", dir.to_str().unwrap()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_is_of_one_call_one_identity_and_now() {
    let scratch = Scratch::new();
    let sts = Sts::start(scratch.path()).await;
    let cluster = cluster(&sts).await;
    token(&cluster, "web", &["--allow-account", ACCOUNT]);
    token(&cluster, "other", &["--allow-account", "210987654321"]);
    token(&cluster, "crossing", &["--allow-arn", "arn:aws:iam::123456789012:user/*"]);
    let (trust, address) = (cluster.trust(), cluster.addresses().remove(0));
    let keys = HostKeys::new();
    let by = async |token: &str, prove: &dyn Fn(String) -> asked::Proof| {
        exchange(&address, trust, init(&keys, token, "web1.example.org"), prove).await
    };
    let good = |challenge: String| botocore(&sts, &sts.user, &challenge, Value::Null);

    // Refused by AWS, or by the token: all of them alike, and asked of AWS all of them.
    let stranger = Identity { secret: "not the secret of that key".into(), ..sts.user.clone() };
    let unknown = Identity { key: "AKIAIOSFODNN7EXAMPLE".into(), ..sts.user.clone() };
    let by_stranger = |challenge: String| botocore(&sts, &stranger, &challenge, Value::Null);
    let by_unknown = |challenge: String| botocore(&sts, &unknown, &challenge, Value::Null);
    let tampered = |challenge: String| good(format!("{challenge}x"));
    let for_another_host = |challenge: String| {
        botocore(&sts, &sts.user, &challenge, json!({"host": "sts.us-east-1.amazonaws.com"}))
    };
    type Prove<'a> = &'a dyn Fn(String) -> asked::Proof;
    let wrong: [(&str, &str, Prove); 7] = [
        ("the wrong secret", "web", &by_stranger),
        ("an unknown key", "web", &by_unknown),
        ("a tampered challenge", "web", &tampered),
        ("another host", "web", &for_another_host),
        ("another account", "other", &good),
        ("an ARN behind a slash", "crossing", &good),
        ("an unknown token", "unknown", &good),
    ];
    let (mut messages, mut last) = (BTreeSet::new(), 0);
    for (what, token, prove) in wrong {
        let status = by(token, prove).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{what}: {status:?}");
        messages.insert(status.message().to_owned());
        assert_eq!(sts.asked().len(), 1, "{what}");
        let event = audited(&cluster, "agent.join.denied").await;
        assert!(event.target == format!("token:{token}") && event.index > last, "{what}: {event:?}");
        last = event.index;
    }
    assert_eq!(messages.len(), 1, "{messages:?}");

    // A proof of one call is none in another, whoever made it.
    let stolen = std::sync::Mutex::new(None);
    let keep = |challenge: String| {
        let proof = good(challenge);
        stolen.lock().unwrap().replace(proof.clone());
        asked::Proof { authorization: String::new(), ..proof }
    };
    assert_eq!(by("web", &keep).await.unwrap_err().code(), Code::InvalidArgument);
    let stolen = stolen.into_inner().unwrap().unwrap();
    assert_eq!(by("web", &|_| stolen.clone()).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(sts.asked().len(), 1);

    // What is not signed exactly as it must be is not even asked.
    for (what, wrong, field) in [
        ("ten minutes ago", json!({"shift": -600}), "amz_date"),
        ("in ten minutes", json!({"shift": 600}), "amz_date"),
        ("another region", json!({"scope": "eu-west-1"}), "authorization"),
        ("one header more", json!({"more": {"X-Extra": "1"}}), "authorization"),
        ("no challenge", json!({"less": ["X-Mezite-Challenge"]}), "authorization"),
        ("no type", json!({"less": ["Accept"]}), "authorization"),
    ] {
        let prove = |challenge: String| botocore(&sts, &sts.user, &challenge, wrong.clone());
        let status = by("web", &prove).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status:?}");
        assert!(status.message().starts_with(field), "{what}: {status:?}");
    }
    let elsewhere = |challenge: String| asked::Proof { region: "eu west".into(), ..good(challenge) };
    assert_eq!(by("web", &elsewhere).await.unwrap_err().code(), Code::InvalidArgument);
    assert!(sts.asked().is_empty());

    // Nobody has joined by any of it; and what is right is let in, also by the other library's signature.
    let nodes = call!(cluster.admin(), list_nodes, v1::ListNodesRequest::default()).unwrap().nodes;
    assert!(nodes.is_empty(), "{nodes:?}");
    let joined = by("web", &good).await.unwrap();
    let (certs, agent) = (joined.certs.unwrap(), joined.agent.unwrap());
    assert_eq!(certs.agent_id, agent.agent_id);
    // The same keys again are the same join.
    let again = by("web", &|challenge| botocore(&sts, &sts.role, &challenge, Value::Null)).await.unwrap();
    assert_eq!(again.agent.unwrap().agent_id, agent.agent_id);
    assert_eq!(cluster.ctl().json(&["tokens", "get", "web"])["uses"], 1);
    let identity = keys.identity(&certs);
    let holder = api::client(&cluster.addresses(), trust, None, Some(&identity));
    call!(holder, agent_heartbeat, v1::AgentHeartbeatRequest::default()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_misbehaves_lets_nobody_in() {
    let scratch = Scratch::new();
    let sts = Sts::start(scratch.path()).await;
    let cluster = cluster(&sts).await;
    token(&cluster, "web", &["--allow-account", ACCOUNT]);
    let (trust, address) = (cluster.trust(), cluster.addresses().remove(0));
    let (keys, host) = (HostKeys::new(), "web1.example.org");
    let attempt = async || {
        let prove = |challenge: String| botocore(&sts, &sts.user, &challenge, Value::Null);
        exchange(&address, trust, init(&keys, "web", host), prove).await
    };
    let result = format!(r#"{{"Account":"{ACCOUNT}","Arn":"{USER}","UserId":"AIDA"}}"#);
    let good = format!(r#"{{"GetCallerIdentityResponse":{{"GetCallerIdentityResult":{result}}}}}"#);
    let location = format!("location: {}/\r\n", sts.url());
    let other = good.replace(&format!("\"Account\":\"{ACCOUNT}\""), "\"Account\":\"210987654321\"");
    for (what, answer) in [
        ("it redirects", says("307 Temporary Redirect", &location, "")),
        ("it answers too much", says("200 OK", "", &format!("{good}{}", " ".repeat(64 << 10)))),
        ("it answers no JSON", says("200 OK", "", "<GetCallerIdentityResponse/>")),
        ("it answers another JSON", says("200 OK", "", &result)),
        ("it contradicts itself", says("200 OK", "", &other)),
        ("it has failed", says("500 Internal Server Error", "", &good)),
    ] {
        sts.set_mode(Mode::Says(answer));
        let status = attempt().await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{what}: {status:?}");
        assert_eq!(sts.asked().len(), 1, "{what}");
    }
    sts.set_mode(Mode::Silent);
    let asked_at = std::cell::Cell::new(Instant::now());
    let prove = |challenge: String| {
        let proof = botocore(&sts, &sts.user, &challenge, Value::Null);
        asked_at.set(Instant::now());
        proof
    };
    let status = exchange(&address, trust, init(&keys, "web", host), prove).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let waited = asked_at.get().elapsed();
    assert!((Duration::from_secs(5)..Duration::from_secs(20)).contains(&waited), "{waited:?}");

    let nodes = call!(cluster.admin(), list_nodes, v1::ListNodesRequest::default()).unwrap().nodes;
    assert!(nodes.is_empty(), "{nodes:?}");
    // That it can say who signed, is believed: it is the endpoint that the operator has named.
    sts.set_mode(Mode::Says(says("200 OK", "", &good)));
    attempt().await.unwrap();
}

/// What is wrong with what is asked for is told before any challenge, by its field, and whoever says nothing more is not
/// waited for long.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_is_checked_before_anything_is_proved() {
    let set = vec!["limits.call_timeout=5s".to_owned()];
    let cluster = Cluster::start_with(&Setup { set, ..Setup::default() }).await;
    let (trust, address) = (cluster.trust(), cluster.addresses().remove(0));
    let never = |_: String| -> asked::Proof { panic!("it was asked for a proof") };
    let right = || init(&HostKeys::new(), "web", "web1.example.org");
    let certs = |change: fn(&mut v1::GenerateHostCertsRequest)| {
        let mut init = right();
        change(init.certs.as_mut().unwrap());
        init
    };
    let agent = |change: fn(&mut v1::RegisterAgentRequest)| {
        let mut init = right();
        change(init.agent.as_mut().unwrap());
        init
    };
    for (wrong, field) in [
        (asked::Init { token_name: "No Name".into(), ..right() }, "token_name"),
        (asked::Init { token_name: "a".repeat(64), ..right() }, "token_name"),
        (asked::Init { certs: None, ..right() }, "tls_public_key"),
        (asked::Init { agent: None, ..right() }, "address"),
        (certs(|certs| certs.token = "secret".into()), "certs.token"),
        (certs(|certs| certs.hostname = "*".into()), "hostname"),
        (certs(|certs| certs.additional_principals = vec!["a".into(); 33]), "additional_principals"),
        (agent(|agent| agent.token = "secret".into()), "agent.token"),
        (agent(|agent| agent.address = "nowhere".into()), "address"),
        (agent(|agent| agent.version = "x".repeat(65)), "version"),
        (agent(|agent| agent.labels = [(String::new(), String::new())].into()), "labels"),
    ] {
        let status = exchange(&address, trust, wrong, never).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status:?}");
        assert!(status.message().starts_with(field), "{field}: {status:?}");
    }
    // One that is silent after its challenge.
    let begun = Instant::now();
    let status = exchange(&address, trust, right(), |_| None::<asked::Proof>).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}
