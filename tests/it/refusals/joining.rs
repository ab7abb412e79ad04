//! Join tokens, and the certificates that agents show.

use std::{fs, time::Duration};

use mezite_client::{Client, ClientError, ClientIdentity};
use mezite_e2e::{
    ADMIN, Agent, AgentSpec, Cluster, PASSWORD, Setup,
    api::{self, HostKeys},
    call, eventually, tools,
};
use mezite_pki::{
    identity::Identity,
    x509::{KeyPair, LeafSpec, X509Ca},
};
use mezite_proto::v1::{self, TokenKind};
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use tokio_rustls::TlsConnector;
use tonic::Code;

/// Asks for certificates of new keys with a token.
async fn certify(
    client: &Client,
    token: &str,
    hostname: &str,
) -> Result<v1::GenerateHostCertsResponse, ClientError> {
    call!(client, generate_host_certs, HostKeys::new().request(token, hostname))
}

fn registration(token: &str) -> v1::RegisterAgentRequest {
    v1::RegisterAgentRequest {
        token: token.into(),
        address: "127.0.0.1:22".into(),
        labels: Default::default(),
        version: "1.0.0".into(),
    }
}

/// A client that shows a certificate, at the first node.
fn holder(cluster: &Cluster, identity: &ClientIdentity) -> Client {
    api::client(&[cluster.nodes()[0].address()], cluster.trust(), None, Some(identity))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_used_once() {
    let cluster = Cluster::start(1).await;
    let token = cluster.token(TokenKind::Node).await;
    let file = cluster.token_file("token", &token);
    let spec = AgentSpec::default();
    let agent = Agent::join_with(&cluster, spec, &file);

    // The same host again has nothing left to do, and needs no use of the token.
    let again = agent.ctl().json(&Agent::join_args(&agent.dir, &spec, &file));
    assert_eq!((&again["agent_id"], &again["already_joined"]), (&agent.id.as_str().into(), &true.into()));

    // What can be put right is; what its certificates say cannot.
    let mut changed = Agent::join_args(&agent.dir, &spec, &file);
    changed.extend(["--principals", "web3.example.org"]);
    let said = agent.ctl().run(&changed).failed(2);
    assert!(said.contains("agent leave"), "{said}");
    let nobody = agent.ctl().at(&["127.0.0.1:1".to_owned()]);
    let before = fs::read(agent.file("agent.json")).unwrap();
    let mut elsewhere = Agent::join_args(&agent.dir, &spec, &file);
    elsewhere.extend(["--timeout", "1s"]);
    let _ = nobody.run(&elsewhere).failed(5);
    assert_eq!(fs::read(agent.file("agent.json")).unwrap(), before);
    // Another cluster of the same name, with its own pin.
    let namesake = Cluster::start(1).await;
    let said = namesake.ctl_named("web1").run(&Agent::join_args(&agent.dir, &spec, &file)).failed(1);
    assert!(said.contains("cannot be trusted"), "{said}");
    assert_eq!(fs::read(agent.file("agent.json")).unwrap(), before);
    let moved = AgentSpec { address: "127.0.0.1:2222", labels: "env=moved", ..spec };
    let _ = agent.ctl().ok(&Agent::join_args(&agent.dir, &moved, &file));
    let _ = agent.ctl().ok(&["agent", "heartbeat", "--dir", agent.dir.to_str().unwrap()]);
    let nodes = cluster.ctl().json(&["nodes", "ls"]);
    assert_eq!(
        (&nodes[0]["address"], &nodes[0]["labels"]["env"]),
        (&"127.0.0.1:2222".into(), &"moved".into())
    );

    let other = AgentSpec { hostname: "web2.example.org", ..spec };
    let dir = cluster.dir().join("web2");
    let said = cluster.ctl_named("web2").run(&Agent::join_args(&dir, &other, &file)).failed(3);
    assert!(!said.contains(&token), "{said}");
    let client = cluster.anonymous_at(0);
    api::refused(certify(&client, &token, "web2.example.org").await, Code::PermissionDenied);
    let validate = v1::ValidateJoinTokenRequest { token: token.clone() };
    api::refused(call!(client, validate_join_token, validate), Code::PermissionDenied);
    let nodes = call!(cluster.admin(), list_nodes, v1::ListNodesRequest::default()).unwrap().nodes;
    assert_eq!(nodes.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_steps_of_a_join_are_one_use_however_often_they_are_repeated() {
    let cluster = Cluster::start(1).await;
    let token = cluster.token(TokenKind::Node).await;
    let (client, keys) = (cluster.anonymous_at(0), HostKeys::new());
    let request = keys.request(&token, "web1.example.org");
    let issued = call!(client, generate_host_certs, request.clone()).unwrap();
    let again = call!(client, generate_host_certs, request.clone()).unwrap();
    assert_eq!(again.agent_id, issued.agent_id);
    // Other keys are another join, also before the first one is finished.
    api::refused(certify(&client, &token, "web2.example.org").await, Code::PermissionDenied);

    let client = holder(&cluster, &keys.identity(&issued));
    for _ in 0..2 {
        let registered = call!(client, register_agent, registration(&token)).unwrap();
        assert_eq!(registered.agent_id, issued.agent_id);
    }
    let token =
        call!(cluster.admin(), list_tokens, v1::ListTokensRequest::default()).unwrap().tokens.remove(0);
    assert_eq!((token.uses, token.max_uses), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_cannot_be_used_look_alike() {
    let cluster = Cluster::start(1).await;
    let (admin, client) = (cluster.admin(), cluster.anonymous_at(0));
    let used = cluster.token(TokenKind::Node).await;
    certify(&client, &used, "web1.example.org").await.unwrap();
    let deleted = cluster.token(TokenKind::Node).await;
    for token in call!(admin, list_tokens, v1::ListTokensRequest::default()).unwrap().tokens {
        if token.uses == 0 {
            call!(admin, delete_token, v1::DeleteTokenRequest { name: token.name }).unwrap();
        }
    }
    let name = call!(admin, list_tokens, v1::ListTokensRequest::default()).unwrap().tokens.remove(0).name;

    let mut messages = Vec::new();
    for token in [used.as_str(), &deleted, "never-was-one", &name] {
        let refused = api::refused(certify(&client, token, "web2.example.org").await, Code::PermissionDenied);
        messages.push((refused.message, refused.reason));
        let validate = v1::ValidateJoinTokenRequest { token: token.into() };
        let refused = api::refused(call!(client, validate_join_token, validate), Code::PermissionDenied);
        messages.push((refused.message, refused.reason));
    }
    messages.dedup();
    assert_eq!(messages.len(), 1, "{messages:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_expired_is_refused() {
    let scratch = mezite_e2e::Scratch::new();
    let offset = scratch.path().join("offset");
    fs::write(&offset, "+0").unwrap();
    let setup = Setup { env: tools::shifted_clock(&offset), ..Setup::default() };
    let cluster = Cluster::start_with(&setup).await;
    let client = cluster.anonymous_at(0);
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let config = v1::ClusterConfig { session_ttl: seconds(120), ..Default::default() };
    call!(cluster.admin(), update_cluster_config, v1::UpdateClusterConfigRequest { config: Some(config) })
        .unwrap();
    let session = cluster.session_of(ADMIN).await;
    let admin = api::client(&cluster.addresses(), cluster.trust(), Some(&session), None);
    let request = v1::CreateTokenRequest {
        kind: TokenKind::Node.into(),
        ttl: seconds(60),
        max_uses: 10,
        ..Default::default()
    };
    let token = call!(cluster.admin(), create_token, request).unwrap().secret;
    let keys = HostKeys::new();
    let issued = call!(client, generate_host_certs, keys.request(&token, "web1.example.org")).unwrap();

    // The node's clock goes on by the token's life; the session is good for another minute.
    fs::write(&offset, "+61s").unwrap();
    let validate = v1::ValidateJoinTokenRequest { token: token.clone() };
    eventually("the node has looked at its clock", Duration::from_secs(10), async || {
        match call!(client, validate_join_token, validate.clone()) {
            Ok(valid) => Err(format!("{valid:?}")),
            Err(_) => Ok(()),
        }
    })
    .await;
    api::refused(call!(client, validate_join_token, validate), Code::PermissionDenied);
    api::refused(certify(&client, &token, "web2.example.org").await, Code::PermissionDenied);
    // A join that was begun cannot be finished either.
    let half = holder(&cluster, &keys.identity(&issued));
    api::refused(call!(half, register_agent, registration(&token)), Code::PermissionDenied);
    let tokens = call!(admin, list_tokens, v1::ListTokensRequest::default()).unwrap().tokens;
    assert!(tokens.is_empty(), "{tokens:?}");

    fs::write(&offset, "+121s").unwrap();
    let refused = eventually("the node has looked at its clock", Duration::from_secs(10), async || {
        call!(admin, list_tokens, v1::ListTokensRequest::default()).err().ok_or("it lists them")
    });
    api::refused(Err::<(), _>(refused.await), Code::Unauthenticated);
    api::log_in(&client, ADMIN, PASSWORD).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_registers_its_own_agent_with_a_token_that_lets_it_in_alone() {
    let cluster = Cluster::start(1).await;
    let client = cluster.anonymous_at(0);
    let (one, other) = (cluster.token(TokenKind::Node).await, cluster.token(TokenKind::Node).await);
    let (one_keys, other_keys) = (HostKeys::new(), HostKeys::new());
    let issued_one = call!(client, generate_host_certs, one_keys.request(&one, "web1.example.org")).unwrap();
    call!(client, generate_host_certs, other_keys.request(&other, "web2.example.org")).unwrap();
    let ingest_token = cluster.token(TokenKind::Ingest).await;
    let holder_one = holder(&cluster, &one_keys.identity(&issued_one));

    // Another's token, which is used up, one of another kind, none, and no certificate.
    for token in [other.as_str(), &ingest_token, "never-was-one"] {
        api::refused(call!(holder_one, register_agent, registration(token)), Code::PermissionDenied);
    }
    api::refused(call!(client, register_agent, registration(&one)), Code::Unauthenticated);
    call!(holder_one, register_agent, registration(&one)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_needs_the_certificate_of_a_registered_agent() {
    let cluster = Cluster::start(1).await;
    let client = cluster.anonymous_at(0);
    let beat = v1::AgentHeartbeatRequest { version: "1.0.0".into(), ..Default::default() };
    api::refused(call!(client, agent_heartbeat, beat.clone()), Code::Unauthenticated);
    api::refused(
        call!(client, deregister_agent, v1::DeregisterAgentRequest::default()),
        Code::Unauthenticated,
    );

    // Certified is not registered.
    let token = cluster.token(TokenKind::Node).await;
    let keys = HostKeys::new();
    let issued = call!(client, generate_host_certs, keys.request(&token, "web1.example.org")).unwrap();
    let half = holder(&cluster, &keys.identity(&issued));
    api::refused(call!(half, agent_heartbeat, beat.clone()), Code::Unauthenticated);

    // A user's certificate is none of an agent's.
    cluster.add_user("alice", &["access"], &["deploy"]).await;
    let (folder, _) = crate::support::certificates(&cluster, "alice", &["--tls"]);
    let read = |name| fs::read_to_string(folder.join(name)).unwrap();
    let user = ClientIdentity::from_pem(&read("tls.crt"), &read("tls.key")).unwrap();
    api::refused(call!(holder(&cluster, &user), agent_heartbeat, beat.clone()), Code::Unauthenticated);

    // One that left is an agent no more, and its name is free for another.
    let agent = Agent::join(&cluster, AgentSpec { hostname: "web2.example.org", ..AgentSpec::default() });
    let client = agent.client(&cluster);
    call!(client, agent_heartbeat, beat.clone()).unwrap();
    call!(client, deregister_agent, v1::DeregisterAgentRequest::default()).unwrap();
    api::refused(call!(client, agent_heartbeat, beat), Code::Unauthenticated);
    let renewal = v1::GenerateHostCertsRequest {
        token: String::new(),
        ..HostKeys::new().request("", "web2.example.org")
    };
    assert!(call!(client, generate_host_certs, renewal).is_err());
    let token = cluster.token(TokenKind::Node).await;
    certify(&cluster.anonymous_at(0), &token, "web2.example.org").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_authority_is_none() {
    let cluster = Cluster::start(1).await;
    let agent = Agent::join(&cluster, AgentSpec::default());
    let (from, until) = (1_577_836_800, 4_000_000_000);
    let stranger = X509Ca::generate("mezite e2e tls", from, until).unwrap();
    let key = KeyPair::generate_p256().unwrap();
    let spec = LeafSpec {
        public_key: key.spki_der(),
        common_name: agent.id.clone(),
        identity: Some(Identity::Agent { cluster: mezite_e2e::CLUSTER.into(), id: agent.id.clone() }),
        dns_names: vec!["web1.example.org".into()],
        ip_addresses: Vec::new(),
        not_before: from,
        not_after: until,
        client_auth: true,
        server_auth: true,
    };
    let forged = stranger.issue(&spec).unwrap();
    let key = key.private_pem();

    // TLS itself refuses it, by name, before anything is read of it.
    let tls = api::tls(cluster.trust(), true, Some((&forged, &key)));
    let stream = TcpStream::connect(cluster.nodes()[0].address()).await.unwrap();
    let name = api::auth_server_name(cluster.trust());
    let mut stream = TlsConnector::from(tls).connect(name, stream).await.unwrap();
    let said = tokio::time::timeout(Duration::from_secs(60), stream.read_u8()).await.unwrap().unwrap_err();
    assert!(said.to_string().contains("UnknownCA"), "{said:?}");

    let forged = ClientIdentity::from_pem(&forged, &key).unwrap();
    let beat = v1::AgentHeartbeatRequest { version: "1.0.0".into(), ..Default::default() };
    let mut policy = *cluster.admin().policy();
    policy.attempts_per_address = 2;
    let client = holder(&cluster, &forged).with_policy(policy);
    let error = call!(client, agent_heartbeat, beat).unwrap_err();
    assert!(error.status().is_none(), "it got as far as an answer: {error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_gets_no_name_that_is_not_its_own() {
    let cluster = Cluster::start(1).await;
    let client = cluster.anonymous_at(0);
    let _agent = Agent::join(&cluster, AgentSpec::default());
    let with = async |principals: &[&str], names: &[&str]| {
        let token = cluster.token_for(TokenKind::Node, principals).await;
        let (first, others) = names.split_first().unwrap();
        let mut request = HostKeys::new().request(&token, first);
        request.additional_principals = others.iter().map(|&name| name.to_owned()).collect();
        call!(client, generate_host_certs, request)
    };
    let refused = |result: Result<v1::GenerateHostCertsResponse, ClientError>, names: &[&str]| match result {
        Err(ClientError::Status(status)) => {
            let expected = [Code::PermissionDenied, Code::InvalidArgument, Code::AlreadyExists];
            assert!(expected.contains(&status.code), "{names:?}: {status:?}");
        }
        other => panic!("{names:?}: {other:?}"),
    };
    for names in [
        &["web1.example.org"][..],
        &["WEB1.example.org"],
        &["web9.example.org", "web1.example.org"],
        &["localhost"],
        &["127.0.0.1"],
        &["web9.example.org", "127.0.0.1"],
        &["web9.example.org", "::1"],
        &["*.example.org"],
        &["web9.example.org", "*"],
        &[""],
        &["../etc"],
        &["a b.example.org"],
        &["web9.example.org\nroot"],
    ] {
        refused(with(&[], names).await, names);
    }
    for names in [&["web9.example.com"][..], &["web9.example.org", "10.0.0.2"], &["example.org"]] {
        refused(with(&["*.example.org", "10.0.0.1"], names).await, names);
    }
    with(&["*.example.org", "10.0.0.1"], &["web9.example.org", "10.0.0.1"]).await.unwrap();
    // A loopback name is for those whose token names it.
    with(&["web8.example.org", "127.0.0.1"], &["web8.example.org", "127.0.0.1"]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_token_is_good_for_one_node() {
    let cluster = Cluster::start(3).await;
    let setup = Setup::default();
    let file = cluster.dir().join("node.token");
    let file = file.to_str().unwrap();
    let token = cluster.ctl().json(&["cluster", "token", "--out", file]);
    let pin = token["ca_pin"].as_str().unwrap().to_owned();
    let peers: Vec<_> = cluster.nodes().iter().map(|node| node.peer_address()).collect();
    let join = |name: &str, token: &str, pin: &str| {
        let node = mezite_e2e::AuthNode::configure(name, cluster.dir(), &setup);
        let args = ["--token-file", token, "--ca-pin", pin, "--peer", &peers.join(",")];
        (node.run("join", &args), node)
    };
    // Whoever does not know whom it talks to gets nothing, and gives nothing away.
    let (output, _) = join("elsewhere", file, &format!("sha256:{}", "0".repeat(64)));
    assert_ne!(output.code, 0);
    let (output, _node) = join("fourth", file, &pin);
    assert_eq!(output.code, 0, "the token was not used up by the one that did not trust: {output:?}");
    let (output, _) = join("fifth", file, &pin);
    assert_ne!(output.code, 0, "the token was good for one");
    let wrong = cluster.token_file("wrong.token", "never-was-one");
    let (output, _) = join("sixth", wrong.to_str().unwrap(), &pin);
    assert_ne!(output.code, 0);
    let wide = cluster.token_file("wide.token", "never-was-one");
    fs::set_permissions(&wide, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let (output, _) = join("seventh", wide.to_str().unwrap(), &pin);
    assert!(output.code != 0 && output.stderr.contains("chmod 600"), "{output:?}");

    // The cluster is as it was, but for a node that may come.
    eventually("the cluster serves", Duration::from_secs(60), async || {
        let status = cluster.status_of(0).await?;
        let voters = status.members.iter().filter(|member| member.voter).count();
        if voters == 3 { Ok(()) } else { Err(format!("{:?}", status.members)) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_removes_itself_and_an_admin_any() {
    let cluster = Cluster::start(1).await;
    let join = |hostname| Agent::join(&cluster, AgentSpec { hostname, ..AgentSpec::default() });
    let (one, other) = (join("web1.example.org"), join("web2.example.org"));
    cluster.add_user("alice", &["access"], &["deploy"]).await;
    let alice = cluster.user_at(0, &cluster.session_of("alice").await);
    let remove = |id: &str| v1::DeregisterAgentRequest { agent_id: id.to_owned() };
    let nodes =
        async || call!(cluster.admin(), list_nodes, v1::ListNodesRequest::default()).unwrap().nodes.len();

    api::refused(call!(one.client(&cluster), deregister_agent, remove(&other.id)), Code::PermissionDenied);
    api::refused(call!(alice, deregister_agent, remove(&other.id)), Code::PermissionDenied);
    api::refused(call!(cluster.admin(), deregister_agent, remove("../x")), Code::InvalidArgument);
    assert_eq!(nodes().await, 2);
    let _ = other.heartbeat();

    let ctl = cluster.ctl().by_profile();
    let _ = ctl.ok(&["nodes", "rm", &other.id]);
    assert_eq!(nodes().await, 1);
    let said = other.ctl().run(&["agent", "heartbeat", "--dir", other.dir.to_str().unwrap()]).failed(3);
    assert!(said.contains("not registered"), "{said}");
    let _ = ctl.run(&["nodes", "rm", &other.id]).failed(4);
    call!(one.client(&cluster), deregister_agent, remove(&one.id)).unwrap();
    assert_eq!(nodes().await, 0);
}

/// Between its two calls, after which its token ends: it holds its name, is seen by the admin, and can go on or leave.
#[tokio::test(flavor = "multi_thread")]
async fn a_join_that_broke_off_goes_on_with_another_token_or_leaves() {
    let cluster = Cluster::start(1).await;
    let ctl = cluster.ctl().by_profile();
    let host = cluster.ctl_named("host");
    let dir = cluster.dir().join("web1");
    let dir = dir.to_str().unwrap();
    // No token is used up: what a second join is refused for is the name.
    let token = |name: &str| {
        let file = cluster.dir().join(format!("{name}.token"));
        let file = file.to_str().unwrap().to_owned();
        let _ = ctl.ok(&["tokens", "add", "--name", name, "--max-uses", "9", "--out", &file]);
        file
    };
    let join = |token: &str, dir: &str, address: &str| {
        let names = ["--hostname", "web1.example.org", "--address", address];
        host.run(&[&["agent", "join", "--out", dir, "--token-file", token], &names[..]].concat())
    };
    let unfinished = || ctl.json(&["nodes", "ls", "--unfinished"]);

    let first = token("first");
    // The address is looked at by the second call alone, and refused.
    let said = join(&first, dir, "nowhere").failed(2);
    assert!(said.contains("address"), "{said}");
    let _ = ctl.ok(&["tokens", "rm", "first"]);
    let _ = join(&first, dir, "127.0.0.1:22").failed(3);
    let listed = unfinished();
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(
        (&listed[0]["hostname"], &listed[0]["registered_at"]),
        (&"web1.example.org".into(), &().into())
    );
    let id = listed[0]["agent_id"].as_str().unwrap();
    assert_eq!(ctl.json(&["nodes", "ls"]).as_array().unwrap().len(), 0);

    let second = token("second");
    let _ = join(&second, dir, "127.0.0.1:22").ok();
    let _ = host.by_profile().ok(&["agent", "heartbeat", "--dir", dir]);
    assert_eq!(ctl.json(&["nodes", "ls"])[0]["agent_id"], id, "it is the same agent");
    assert_eq!(ctl.json(&["tokens", "get", "second"])["uses"], 1);
    assert_eq!(unfinished().as_array().unwrap().len(), 0);
    let _ = host.by_profile().ok(&["agent", "leave", "--dir", dir]);

    // One that does not go on gives its name back, or has it taken by an admin.
    let elsewhere = cluster.dir().join("web1-again");
    let elsewhere = elsewhere.to_str().unwrap();
    let _ = join(&second, dir, "nowhere").failed(2);
    let _ = join(&second, elsewhere, "127.0.0.1:22").failed(3);
    let _ = host.by_profile().ok(&["agent", "leave", "--dir", dir]);
    let _ = join(&second, elsewhere, "nowhere").failed(2);
    let listed = unfinished();
    let _ = ctl.ok(&["nodes", "rm", listed[0]["agent_id"].as_str().unwrap()]);
    assert_eq!(unfinished().as_array().unwrap().len(), 0);
    let _ = join(&second, dir, "127.0.0.1:22").ok();
}
