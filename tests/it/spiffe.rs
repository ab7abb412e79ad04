//! SPIFFE, with peers that nobody here wrote: workloads whose SVIDs Python's `cryptography` and PyJWT make, right and wrong, and
//! py-spiffe, which reads what the cluster issues.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use mezite_client::{ClientError, ClientIdentity, RetryPolicy, SessionSecret};
use mezite_e2e::{Cluster, account, api, call, eventually, run, tools};
use mezite_proto::v1::{self, authenticate_spiffe_request::Svid};
use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use serde_json::Value;
use tonic::Code;

use crate::{
    locks::host,
    support::{EVERYWHERE, add_role, user_certificate},
    web::Curl,
};

const PATIENCE: Duration = Duration::from_secs(60);
const ID: &str = "spiffe://red.example/ns/ci/sa/runner";
fn python(args: &[&str]) -> String {
    let script = tools::repository().join("tests/python/svid.py");
    run(Command::new(tools::python()).arg(script).args(args)).ok().trim().to_owned()
}

/// A trust domain of somebody else's.
struct Domain {
    name: &'static str,
    dir: PathBuf,
}

impl Domain {
    /// One whose keys for tokens have this id.
    fn new(cluster: &Cluster, name: &'static str, key_id: &str) -> Self {
        let dir = cluster.dir().join(name);
        python(&["domain", dir.to_str().unwrap(), name, "--kid", key_id]);
        Self { name, dir }
    }

    fn bundle(&self) -> PathBuf {
        self.dir.join("bundle.json")
    }

    /// Lets its workloads in.
    fn let_in(&self, cluster: &Cluster) -> Value {
        let bundle = self.bundle();
        cluster.ctl().json(&["spiffe-domains", "add", self.name, "--bundle", bundle.to_str().unwrap()])
    }

    fn token(&self, sub: &str, audience: &str, more: &[&str]) -> String {
        let args = ["jwt", self.dir.to_str().unwrap(), "--sub", sub, "--aud", audience];
        python(&[&args, more].concat())
    }

    /// Certificate and key, PEM.
    fn certificate(&self, id: &str, wrong: &str) -> (String, String) {
        let out = self.dir.join(format!("svid-{wrong}"));
        python(&["x509", self.dir.to_str().unwrap(), out.to_str().unwrap(), "--id", id, "--wrong", wrong]);
        let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();
        (read("svid.pem"), read("svid.key"))
    }
}

fn us(cluster: &Cluster) -> String {
    format!("mezite://{}", cluster.trust().cluster_name())
}

/// Shows a token to one node.
async fn show(cluster: &Cluster, node: usize, token: &str) -> Result<SessionSecret, ClientError> {
    let request = v1::AuthenticateSpiffeRequest { svid: Some(Svid::Jwt(token.into())) };
    let reply = call!(cluster.anonymous_at(node), authenticate_spiffe, request)?;
    SessionSecret::new(reply.session_id)
}

/// Shows a certificate to one node.
async fn show_certificate(
    cluster: &Cluster,
    node: usize,
    (certificate, key): &(String, String),
) -> Result<SessionSecret, ClientError> {
    let identity = ClientIdentity::from_pem(certificate, key).unwrap();
    let client = api::client(&cluster.addresses()[node..=node], cluster.trust(), None, Some(&identity));
    // Whom TLS does not let in is not let in at the next attempt either.
    let client = client.with_policy(RetryPolicy { attempts_per_address: 1, ..RetryPolicy::default() });
    let request = v1::AuthenticateSpiffeRequest { svid: Some(Svid::X509(true)) };
    let reply = call!(client, authenticate_spiffe, request)?;
    SessionSecret::new(reply.session_id)
}

async fn whose(cluster: &Cluster, node: usize, session: &SessionSecret) -> Option<String> {
    let list = v1::ListActiveSessionsRequest::default();
    let listed = call!(cluster.user_at(node, session), list_active_sessions, list).ok()?;
    Some(listed.sessions[0].user.clone())
}

/// An identity that has SPIFFE IDs, and may log in as the one who runs the tests.
fn add_identity(cluster: &Cluster, name: &str, ids: &str) {
    let login = account();
    let _ = cluster.ctl().ok(&[
        "agent-identities",
        "add",
        name,
        "--roles",
        "everywhere",
        "--logins",
        &login,
        "--spiffe-ids",
        ids,
        "--out",
        cluster.dir().join(format!("{name}.secret")).to_str().unwrap(),
    ]);
}

/// Why the last SVID was not accepted.
async fn last_reason(cluster: &Cluster) -> String {
    let request =
        v1::QueryAuditEventsRequest { events: vec!["spiffe.login.denied".into()], ..Default::default() };
    let mut found = call!(cluster.admin(), query_audit_events, request).unwrap().events;
    found.sort_by_key(|event| event.index);
    found.pop().map(|event| event.fields["reason"].clone()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_gets_a_session_on_one_node_and_on_another_a_certificate_that_opens_sshd() {
    let cluster = Cluster::start(3).await;
    let (_agent, sshd, _service) = host(&cluster).await;
    let login = account();
    add_role(&cluster, "everywhere", EVERYWHERE);
    let red = Domain::new(&cluster, "red.example", "key");
    let added = red.let_in(&cluster);
    assert_eq!((&added["x509_authorities"], &added["jwt_authorities"]), (&1.into(), &2.into()));
    add_identity(&cluster, "ci", ID);

    // Of all who show the token at once, on all nodes, one gets in; and nobody afterwards.
    let token = red.token(ID, &us(&cluster), &[]);
    let tries = (0..6).map(|index| show(&cluster, index % 3, &token));
    let done = futures::future::join_all(tries).await;
    assert_eq!(done.iter().filter(|done| done.is_ok()).count(), 1);
    for node in 0..3 {
        api::refused(show(&cluster, node, &token).await, Code::PermissionDenied);
    }
    assert_eq!(last_reason(&cluster).await, "it was used before");
    let session = done.into_iter().find_map(Result::ok).unwrap();
    assert_eq!(whose(&cluster, 1, &session).await.as_deref(), Some("bot:ci"));

    let folder = cluster.dir().join("workload");
    user_certificate(&cluster.user_at(2, &session), &folder).await.unwrap();
    assert_eq!(sshd.client(&folder).run(&login, "echo in").ok(), "in\n");
    sshd.says("ID bot:ci ").await;

    // RSA too, and a certificate as often as it is shown: its key is proved each time.
    for alg in ["RS256", "PS256"] {
        show(&cluster, 0, &red.token(ID, &us(&cluster), &["--alg", alg])).await.unwrap();
    }
    let svid = red.certificate(ID, "");
    for node in 0..3 {
        eventually("the node lets the trust domain in", PATIENCE, async || {
            show_certificate(&cluster, node, &svid).await.map(drop).map_err(|error| error.to_string())
        })
        .await;
    }

    // Whoever loses the id loses what came of it, at once and everywhere.
    let _ = cluster.ctl().ok(&["agent-identities", "update", "ci", "--spiffe-ids", ""]);
    for node in 0..3 {
        assert_eq!(whose(&cluster, node, &session).await, None, "{node}");
    }
    api::refused(show_certificate(&cluster, 1, &svid).await, Code::PermissionDenied);
    let since = std::time::Instant::now();
    crate::locks::refused(&sshd.client(&folder), &sshd, since).await;
    let _ = cluster.ctl().ok(&["spiffe-domains", "rm", "red.example"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_wrong_token_is_refused_alike_and_the_audit_log_knows_why() {
    let cluster = Cluster::start(1).await;
    add_role(&cluster, "everywhere", EVERYWHERE);
    // Their keys have the same ids.
    let (red, blue) =
        (Domain::new(&cluster, "red.example", "key"), Domain::new(&cluster, "blue.example", "key"));
    let green = Domain::new(&cluster, "green.example", "key");
    red.let_in(&cluster);
    blue.let_in(&cluster);
    add_identity(&cluster, "ci", ID);
    add_identity(&cluster, "locked", "spiffe://red.example/locked");
    let _ = cluster.ctl().ok(&["locks", "add", "agent-identity:locked"]);
    let us = us(&cluster);
    let with = |more: &[&str]| red.token(ID, &us, more);
    let mut answers = BTreeSet::new();
    for (what, token, why) in [
        ("none", with(&["--wrong", "none"]), "algorithm"),
        ("an EC key as a secret", with(&["--wrong", "hs256-ec"]), "algorithm"),
        ("an RSA key as a secret", with(&["--wrong", "hs256-rsa"]), "algorithm"),
        ("somebody else's key", with(&["--wrong", "stranger"]), "InvalidSignature"),
        ("blue's key for red", blue.token(ID, &us, &[]), "InvalidSignature"),
        ("red's key for blue", red.token("spiffe://blue.example/x", &us, &[]), "InvalidSignature"),
        (
            "a trust domain that is not let in",
            green.token("spiffe://green.example/x", &us, &[]),
            "not let in",
        ),
        ("another cluster", red.token(ID, "mezite://other", &[]), "InvalidAudience"),
        ("others alone", red.token(ID, "mezite://other", &["--aud", "https://x"]), "InvalidAudience"),
        ("ended", with(&["--ends", "-5"]), "ExpiredSignature"),
        ("not yet", with(&["--begins", "120"]), "ImmatureSignature"),
        ("for a day", with(&["--ends", "86400"]), "longer than an hour"),
        ("nobody's id", red.token("spiffe://red.example/ns/ci/sa", &us, &[]), "no agent identity"),
        ("no id", red.token("spiffe://red.example/", &us, &[]), "invalid spiffe_id"),
        ("an id in capitals", red.token("spiffe://RED.example/ns/ci/sa/runner", &us, &[]), "one form"),
        ("an identity that is locked", red.token("spiffe://red.example/locked", &us, &[]), "locked"),
    ] {
        let refused = api::refused(show(&cluster, 0, &token).await, Code::PermissionDenied);
        answers.insert(refused.message);
        let told = last_reason(&cluster).await;
        assert!(told.contains(why), "{what}: {told}");
    }
    assert_eq!(answers.len(), 1, "{answers:?}");
    let huge = format!("{}{}", with(&[]), "x".repeat(17 << 10));
    api::refused(show(&cluster, 0, &huge).await, Code::InvalidArgument);
    show(&cluster, 0, &with(&["--aud", "https://another"])).await.unwrap();

    // A bundle without keys lets nobody in from the next call on.
    let empty = cluster.dir().join("empty.json");
    fs::write(&empty, r#"{"keys": [], "spiffe_sequence": 0}"#).unwrap();
    let set = ["spiffe-domains", "update", "red.example", "--bundle", empty.to_str().unwrap()];
    assert_eq!(cluster.ctl().json(&set)["jwt_authorities"], 0);
    api::refused(show(&cluster, 0, &with(&[])).await, Code::PermissionDenied);
}

/// Shows a certificate, and signs with another key.
#[derive(Debug)]
struct Thief(Arc<CertifiedKey>);

impl ResolvesClientCert for Thief {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_certificate_is_taken_but_a_workloads_whose_key_is_there() {
    let cluster = Cluster::start(1).await;
    add_role(&cluster, "everywhere", EVERYWHERE);
    let (red, blue) =
        (Domain::new(&cluster, "red.example", "key"), Domain::new(&cluster, "blue.example", "key"));
    red.let_in(&cluster);
    blue.let_in(&cluster);
    add_identity(&cluster, "ci", ID);
    let good = red.certificate(ID, "");
    eventually("the node lets the trust domain in", PATIENCE, async || {
        show_certificate(&cluster, 0, &good).await.map(drop).map_err(|error| error.to_string())
    })
    .await;
    let unmapped = red.certificate("spiffe://red.example/ns/ci", "");
    api::refused(show_certificate(&cluster, 0, &unmapped).await, Code::PermissionDenied);
    assert!(last_reason(&cluster).await.contains("no agent identity"));

    // TLS has none of these: no call is made.
    let before = last_reason(&cluster).await;
    for wrong in ["two-ids", "two-uris", "ca", "cert-sign", "no-signature", "ended", "not-yet", "stranger"] {
        let refused = show_certificate(&cluster, 0, &red.certificate(ID, wrong)).await.unwrap_err();
        assert!(refused.status().is_none(), "{wrong}: {refused:?}");
    }
    let foreign = blue.certificate(ID, "");
    assert!(show_certificate(&cluster, 0, &foreign).await.unwrap_err().status().is_none());
    let green = Domain::new(&cluster, "green.example", "key").certificate("spiffe://green.example/x", "");
    assert!(show_certificate(&cluster, 0, &green).await.unwrap_err().status().is_none());
    assert_eq!(last_reason(&cluster).await, before);

    // A certificate is public. Who has not its key cannot show it, and who shows none has none.
    let chain: Vec<_> = CertificateDer::pem_slice_iter(good.0.as_bytes()).map(Result::unwrap).collect();
    let (_, other_key) = red.certificate(ID, "other");
    let other_key = PrivateKeyDer::from_pem_slice(other_key.as_bytes()).unwrap();
    let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&other_key).unwrap();
    let mut tls = Arc::unwrap_or_clone(api::tls(cluster.trust(), true, None));
    tls.client_auth_cert_resolver = Arc::new(Thief(Arc::new(CertifiedKey::new(chain, signing))));
    let mut thief = api::stub(&cluster.addresses()[0], cluster.trust(), Arc::new(tls));
    let request = || v1::AuthenticateSpiffeRequest { svid: Some(Svid::X509(true)) };
    let refused = thief.authenticate_spiffe(request()).await.unwrap_err();
    assert_ne!(refused.code(), Code::PermissionDenied, "{refused:?}");
    let plain = api::tls(cluster.trust(), true, None);
    let mut plain = api::stub(&cluster.addresses()[0], cluster.trust(), plain);
    let refused = plain.authenticate_spiffe(request()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);

    // It opens that one call: for all else there is the session.
    let identity = ClientIdentity::from_pem(&good.0, &good.1).unwrap();
    let shown = api::client(&cluster.addresses(), cluster.trust(), None, Some(&identity));
    for refused in [
        call!(shown, list_users, v1::ListUsersRequest::default()).map(drop),
        call!(shown, issue_svid, v1::IssueSvidRequest::default()).map(drop),
    ] {
        api::refused(refused, Code::Unauthenticated);
    }
    let session = show_certificate(&cluster, 0, &good).await.unwrap();
    assert_eq!(whose(&cluster, 0, &session).await.as_deref(), Some("bot:ci"));
}

/// What py-spiffe says of the SVID in a folder, by what a node tells at its web address and by the bundle beside it.
fn read_svid(curl: &Curl, dir: &Path) -> Value {
    let told = curl.get(&[], "/v1/webapi/spiffe/bundle");
    assert_eq!(told.status, 200);
    let document = dir.join("told.json");
    fs::write(&document, told.body.to_string()).unwrap();
    let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let args = [file("svid.pem"), file("svid_key.pem"), file("told.json"), file("bundle.pem")];
    let args: Vec<_> = ["check"].into_iter().chain(args.iter().map(String::as_str)).collect();
    serde_json::from_str(&python(&args)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_and_bots_have_svids_that_others_verify_and_they_follow_a_rotation() {
    let cluster = Cluster::start(3).await;
    let (agent, _sshd, _service) = host(&cluster).await;
    let name = cluster.trust().cluster_name().to_owned();
    let agent_dir = agent.file("svid.pem").parent().unwrap().to_owned();
    let curls: Vec<_> = (0..3).map(|node| Curl::new(&cluster, node)).collect();
    eventually("the agent has an SVID", PATIENCE, async || {
        if agent.file("svid.pem").exists() { Ok(()) } else { Err("not yet") }
    })
    .await;
    let first = read_svid(&curls[0], &agent_dir);
    assert_eq!(first["spiffe_id"], format!("spiffe://{name}/agent/{}", agent.id));
    assert_eq!((&first["authorities"], &first["refresh_hint"]), (&1.into(), &300.into()));
    // Every node tells the same.
    let told: Vec<_> = curls.iter().map(|curl| curl.get(&[], "/v1/webapi/spiffe/bundle").body).collect();
    assert!(told.iter().all(|one| *one == told[0]), "{told:?}");

    let bot_dir = cluster.dir().join("bot");
    let secret = cluster.agent_identity("ci", &["access"], &[]).await;
    let secret = cluster.token_file("ci.secret", &secret);
    let out = bot_dir.to_str().unwrap();
    let bot =
        ["bot", "run", "--once", "--identity", "ci", "--secret-file", secret.to_str().unwrap(), "--out", out];
    let _ = cluster.ctl_named("bot").ok(&bot);
    let of_bot = read_svid(&curls[1], &bot_dir);
    assert_eq!(of_bot["spiffe_id"], format!("spiffe://{name}/bot/ci"));
    assert_eq!(of_bot["issuer"], first["issuer"]);

    let admin = cluster.ctl();
    let mut before = first;
    for (phase, authorities, moved) in
        [("init", 2, false), ("update-clients", 2, true), ("update-servers", 2, true)]
    {
        let _ = admin.ok(&["auth", "rotate", "spiffe", "--to", phase]);
        let now = eventually("the agent has followed", PATIENCE, async || {
            let now = read_svid(&curls[2], &agent_dir);
            let followed = now["beside"] == authorities
                && (now["issuer"] != before["issuer"]) == (phase == "update-clients");
            if followed { Ok(now) } else { Err(now) }
        })
        .await;
        assert_eq!(now["authorities"], authorities, "{phase}");
        assert!(now["sequence"].as_u64() > before["sequence"].as_u64(), "{phase}");
        assert_eq!(now["issuer"] != of_bot["issuer"], moved, "{phase}");
        eventually("nobody lags", PATIENCE, async || {
            let all = admin.json(&["auth", "status"]);
            let one = all.as_array().unwrap().iter().find(|one| one["kind"] == "spiffe").unwrap().clone();
            if one["lagging"] == 0 { Ok(()) } else { Err(one) }
        })
        .await;
        before = now;
    }
    // The bot has an SVID of the old key for as long as the credentials that it had before.
    let held = admin.run(&["auth", "rotate", "spiffe", "--to", "standby"]);
    assert!(held.code != 0 && held.stderr.contains("certificates"), "{held:?}");
    let _ = admin.ok(&["auth", "rotate", "spiffe", "--to", "standby", "--force"]);
    let now = eventually("the old key is forgotten", PATIENCE, async || {
        let now = read_svid(&curls[0], &agent_dir);
        if now["beside"] == 1 { Ok(now) } else { Err(now) }
    })
    .await;
    assert_eq!((&now["authorities"], now["issuer"] == before["issuer"]), (&1.into(), true));
}
