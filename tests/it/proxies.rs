//! nginx and HAProxy before a cluster, as `deploy/proxy` has them: one address for everything, from which every client is known as
//! itself.

use std::{fs, process::Command, time::Duration};

use mezite_e2e::{
    ADMIN, Agent, AgentSpec, Cluster, Ctl, Ingest, IngestSpec, LoadBalancer, PASSWORD, PROXY_ADDRESS, Port,
    ProxyKind, Setup, call, eventually, run,
};
use mezite_proto::v1;

use crate::support::asciicast;

/// For a proxy to find out that a node is gone.
const PATIENCE: Duration = Duration::from_secs(60);

async fn serves_all(kind: ProxyKind) {
    let trusts = format!("trusted_proxies=[\"{PROXY_ADDRESS}/32\"]");
    let setup = Setup { nodes: 3, set: vec![trusts.clone()], ..Setup::default() };
    let mut cluster = Cluster::start_with(&setup).await;
    let (api, web) = (Port::lease(), Port::lease());
    let store = cluster.dir().join("recordings");
    let spec = IngestSpec { set: vec![trusts], advertise: Some(api.address()), ..IngestSpec::local(&store) };
    let ingests = Ingest::start_all_with(&cluster, 2, &spec).await;
    let behind: Vec<_> =
        ingests.iter().map(|ingest| (ingest.address(), ingest.diagnostics_address())).collect();
    let _proxy = LoadBalancer::start(kind, &cluster, &behind, &api, &web).await;

    // A person: the first contact by the pin, a login, and calls.
    let ctl = Ctl::new(&cluster.dir().join("home-proxied"), &[api.address()], cluster.ca_pin());
    let _ = ctl.login(ADMIN, PASSWORD).ok();
    let _ = ctl.by_profile().ok(&["users", "ls"]);
    // Whoever logs in is known by the address that it has, not by the proxy's.
    let query = v1::QueryAuditEventsRequest { events: vec!["user.login".into()], ..Default::default() };
    let logins = call!(cluster.admin(), query_audit_events, query).unwrap().events;
    let from: Vec<_> = logins.iter().map(|event| event.client_address.as_str()).collect();
    assert!(from.iter().all(|remote| remote.starts_with("127.0.0.1")) && from.len() >= 2, "{from:?}");

    // A host: it joins, reports and sends a recording, each through the same port.
    let agent = Agent::join(&cluster, AgentSpec { addresses: &[api.address()], ..AgentSpec::default() });
    let cast = asciicast(300_000);
    let file = cluster.dir().join("session.cast");
    fs::write(&file, &cast).unwrap();
    let uploaded = agent.upload(&file, &["--user", "alice", "--login", "root"]);
    let id = uploaded["recording_id"].as_str().unwrap();
    // It went to an ingest, and through no auth node: nobody relayed it.
    let request =
        v1::GetSessionRecordingRequest { recording_id: id.into(), with_receipt: true, ..Default::default() };
    let receipt = call!(cluster.admin(), get_session_recording, request).unwrap().receipt.unwrap();
    let manifest = recording_format::Manifest::decode(id.parse().unwrap(), &receipt.manifest).unwrap();
    assert_eq!((manifest.relayed_by, manifest.length), (None, cast.len() as u64));

    // The page, by its own port.
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--insecure", "--fail", &format!("https://{}/web/login", web.address())]);
    assert!(run(&mut curl).ok().contains("<html"));

    // One is killed: the others are found.
    cluster.node(0).kill();
    for _ in 0..6 {
        eventually("calls come through", PATIENCE, async || {
            let said = ctl.by_profile().run(&["users", "ls"]);
            if said.code == 0 { Ok(()) } else { Err(said.stderr) }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_leads_everybody_to_where_they_want() {
    serves_all(ProxyKind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_leads_everybody_to_where_they_want() {
    serves_all(ProxyKind::HaProxy).await;
}
