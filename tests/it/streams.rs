//! What is streamed to a user ends with what let it begin, though its client takes nothing meanwhile.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use mezite_client::{Client, SessionSecret};
use mezite_e2e::{
    ADMIN, Agent, AgentSpec, Cluster, Ingest, PASSWORD, Scratch, Setup, api, call, eventually, http, tools,
};
use mezite_proto::v1;
use tokio::task::JoinHandle;
use tonic::{Code, Request, Status, Streaming};

use crate::support::{asciicast, metadata, recording_id, upload};

const PATIENCE: Duration = Duration::from_secs(30);
/// From the commit to the end of the stream, where a node answers a question in no time.
const WITHIN: Duration = Duration::from_secs(1);
/// More than all that is on the way to a client that takes nothing.
const LONG: usize = 24 << 20;

type Stub = mezite_proto::v1::auth_service_client::AuthServiceClient<tonic::transport::Channel>;

fn stub(cluster: &Cluster, index: usize) -> Stub {
    let trust = cluster.trust();
    api::stub(&cluster.nodes()[index].address(), trust, api::tls(trust, true, None))
}

fn with<T>(session: &SessionSecret, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let bearer = format!("Bearer {}", session.expose());
    request.metadata_mut().insert("authorization", bearer.parse().unwrap());
    request
}

/// A recording, kept by the one ingest of the cluster: its id.
async fn record(cluster: &Cluster) -> (Vec<Ingest>, String) {
    let (ingests, _) = Ingest::start_all(cluster, 1).await;
    let agent = Agent::join(cluster, AgentSpec::default());
    let id = recording_id();
    let client = agent.client(cluster);
    let cast = asciicast(LONG);
    upload(&client, id, &metadata("alice"), &cast).await.unwrap();
    (ingests, id.to_string())
}

/// A download that has begun, of which nothing more is taken.
async fn download(
    cluster: &Cluster,
    index: usize,
    session: &SessionSecret,
    id: &str,
) -> Streaming<v1::DownloadSessionRecordingResponse> {
    // The ingest is known to live once it has reported, by the time of the cluster.
    let mut pieces = eventually("a download begins", PATIENCE, async || {
        let request = v1::DownloadSessionRecordingRequest { recording_id: id.into(), offset: 0 };
        let answered = stub(cluster, index).download_session_recording(with(session, request)).await;
        answered.map(tonic::Response::into_inner)
    })
    .await;
    assert!(pieces.message().await.unwrap().is_some());
    assert_eq!(downloads(cluster, index).await, Ok(1));
    pieces
}

/// How many downloads a node streams.
async fn downloads(cluster: &Cluster, index: usize) -> Result<u32, String> {
    let address = cluster.nodes()[index].diagnostics_address();
    let (_, page) = http::get(&address, "/metrics").await.map_err(|error| error.to_string())?;
    let line = page.lines().find_map(|line| line.strip_prefix("mezite_auth_downloads "));
    line.and_then(|count| count.parse().ok()).ok_or(page)
}

async fn ended(cluster: &Cluster, index: usize) {
    eventually("the download has ended", PATIENCE, async || match downloads(cluster, index).await? {
        0 => Ok(()),
        more => Err(format!("{more} go on")),
    })
    .await;
}

/// With what a stream ends, whatever was on the way before.
async fn refusal<T>(mut pieces: Streaming<T>) -> Status {
    loop {
        match pieces.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it looks whole"),
            Err(status) => return status,
        }
    }
}

/// How long a node takes for a question while something else is waited for: a machine that is busy delays what is measured as it
/// delays this.
struct Strain {
    asking: JoinHandle<Duration>,
    enough: Arc<AtomicBool>,
}

impl Strain {
    /// Asks again and again what every call is asked, through the node that streams.
    fn begin(cluster: &Cluster, index: usize) -> Self {
        let (client, enough) = (cluster.admin_at(index), Arc::new(AtomicBool::new(false)));
        let until = Arc::clone(&enough);
        let asking = tokio::spawn(async move {
            let mut slowest = Duration::ZERO;
            while !until.load(Ordering::Relaxed) {
                let asked = Instant::now();
                call!(client, get_user, v1::GetUserRequest { name: ADMIN.into() }).map(drop).unwrap();
                slowest = slowest.max(asked.elapsed());
            }
            slowest
        });
        Self { asking, enough }
    }

    /// The slowest answer.
    async fn end(self) -> Duration {
        self.enough.store(true, Ordering::Relaxed);
        self.asking.await.unwrap()
    }
}

/// Fills the audit log, so that a backup takes its time.
async fn fill(admin: &Client) {
    let fields: BTreeMap<_, _> = (0..64).map(|field| (format!("f{field}"), "x".repeat(1024))).collect();
    let events = (0..128).map(|number| {
        let request = v1::EmitAuditEventRequest {
            event: "session.command".into(),
            target: format!("session:{number}"),
            fields: fields.clone().into_iter().collect(),
        };
        async move { call!(admin, emit_audit_event, request).map(drop) }
    });
    futures::future::try_join_all(events).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_and_backups_end_within_a_second_of_what_ends_their_session_on_another_node() {
    let cluster = Cluster::start(3).await;
    let (_ingests, id) = record(&cluster).await;
    fill(&cluster.admin()).await;
    for (index, what) in ["revoked", "locked", "deleted", "demoted"].into_iter().enumerate() {
        let (here, there) = (index % 3, cluster.admin_at((index + 1) % 3));
        cluster.add_user(what, &["admin"], &[]).await;
        let session = cluster.session_of(what).await;
        let backup = stub(&cluster, here).save_backup(with(&session, v1::SaveBackupRequest {})).await;
        let mut backup = backup.unwrap().into_inner();
        assert!(backup.message().await.unwrap().is_some());
        let recording = download(&cluster, here, &session, &id).await;
        match what {
            "revoked" => {
                let request = v1::RevokeSessionRequest { session: session.expose().into() };
                call!(there, revoke_session, request).map(drop).unwrap();
            }
            "locked" => {
                let target = Some(v1::lock_target::Target::User(what.into()));
                let target = Some(v1::LockTarget { target });
                call!(there, create_lock, v1::CreateLockRequest { target, ..Default::default() })
                    .map(drop)
                    .unwrap();
            }
            "deleted" => {
                call!(there, delete_user, v1::DeleteUserRequest { name: what.into() }).map(drop).unwrap();
            }
            _ => {
                let user = v1::User { name: what.into(), roles: vec!["access".into()], ..Default::default() };
                call!(there, update_user, v1::UpdateUserRequest { user: Some(user) }).map(drop).unwrap();
            }
        }
        let (since, strain) = (Instant::now(), Strain::begin(&cluster, here));
        let code = match what {
            // A user may download recordings still, and not those of others.
            "locked" | "demoted" => Code::PermissionDenied,
            _ => Code::Unauthenticated,
        };
        ended(&cluster, here).await;
        let took = since.elapsed();
        let slowest = strain.end().await;
        eprintln!("{what}: ended after {took:?}; the slowest answer meanwhile took {slowest:?}");
        // The stream's own question, the end of the stream, and the look at the metric that tells of it.
        assert!(took < WITHIN + 3 * slowest, "{what}: {took:?}, and answers took {slowest:?} at most");
        assert_eq!(refusal(recording).await.code(), code, "{what}");
        assert_eq!(refusal(backup).await.code(), code, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_ends_when_its_session_expires_or_is_not_used() {
    let scratch = Scratch::new();
    let offset = scratch.path().join("offset");
    let set_ahead = |offset: &Path, seconds: u64| fs::write(offset, format!("+{seconds}s")).unwrap();
    set_ahead(&offset, 0);
    let setup = Setup { env: tools::shifted_clock(&offset), ..Setup::default() };
    let cluster = Cluster::start_with(&setup).await;
    let (_ingests, id) = record(&cluster).await;
    cluster.add_user("reader", &["admin"], &[]).await;
    let minutes = |minutes: i64| Some(prost_types::Duration { seconds: minutes * 60, nanos: 0 });
    let idle = v1::ClusterConfig { session_idle_timeout: minutes(10), ..Default::default() };
    let short = v1::ClusterConfig { session_ttl: minutes(10), ..Default::default() };
    for (round, config) in [idle, short].into_iter().enumerate() {
        let boss = api::log_in(&cluster.anonymous_at(0), ADMIN, PASSWORD).await.unwrap();
        let request = v1::UpdateClusterConfigRequest { config: Some(config) };
        call!(cluster.user_at(0, &boss), update_cluster_config, request).unwrap();
        let session = cluster.session_of("reader").await;
        let recording = download(&cluster, 0, &session, &id).await;
        set_ahead(&offset, (round as u64 + 1) * 900);
        ended(&cluster, 0).await;
        assert_eq!(refusal(recording).await.code(), Code::Unauthenticated);
    }
}
