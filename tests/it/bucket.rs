//! Recordings in a bucket of S3, which refuses, falls silent, and loses its answers.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use mezite_e2e::{Agent, AgentSpec, Cluster, Ingest, IngestSpec, Moto, Port, eventually};
use mezite_pki::ssh::{SshPublicKey, verify_sshsig};
use recording_format::{MANIFEST_NAMESPACE, ObjectKey, RecordingId};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};

use crate::support::{asciicast, fetch, metadata, recording_id, upload};

const BUCKET: &str = "recordings";
/// Segments of a recording here are 64 KiB: so many of them.
const SEGMENTS: usize = 12;
const SEGMENT_BYTES: usize = 64 << 10;
/// Recordings that are written at a time.
const RECORDINGS: usize = 6;
/// One answer in so many goes wrong.
const ONE_IN: u32 = 6;
const PATIENCE: Duration = Duration::from_secs(120);

/// What goes wrong with an answer. The server has done what it was asked each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// `503 Slow Down` in its place.
    Refusal,
    /// The connection ends in its place.
    Lost,
    /// Nothing in its place.
    Silence,
}

const FAULTS: [Fault; 3] = [Fault::Refusal, Fault::Lost, Fault::Silence];

/// A port before a server of HTTP/1.1, whose answers go wrong while it is told so.
struct Faulty {
    port: Port,
    on: Arc<AtomicBool>,
    /// How often what went wrong, as in [`FAULTS`].
    counts: Arc<[AtomicUsize; 3]>,
    serving: AbortHandle,
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Faulty {
    async fn before(target: String) -> Self {
        let port = Port::lease();
        let listener = TcpListener::bind(port.address()).await.unwrap();
        let (on, counts) = (Arc::new(AtomicBool::new(false)), Arc::<[AtomicUsize; 3]>::default());
        let (now, counted) = (Arc::clone(&on), Arc::clone(&counts));
        let serving = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let (target, on, counts) = (target.clone(), Arc::clone(&now), Arc::clone(&counted));
                tokio::spawn(async move { relay(client, &target, &on, &counts).await });
            }
        });
        Self { port, on, counts, serving: serving.abort_handle() }
    }
}

/// Passes bytes on both ways. An answer begins with the first bytes that come after a request.
async fn relay(
    mut client: TcpStream,
    target: &str,
    on: &AtomicBool,
    counts: &[AtomicUsize; 3],
) -> std::io::Result<()> {
    let mut server = TcpStream::connect(target).await?;
    let (mut asked, mut answered) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut begins = true;
    loop {
        tokio::select! {
            read = client.read(&mut asked) => match read? {
                0 => return Ok(()),
                read => {
                    server.write_all(&asked[..read]).await?;
                    begins = true;
                }
            },
            read = server.read(&mut answered) => {
                let read = read?;
                if begins && on.load(Ordering::Relaxed) && rand::random_ratio(1, ONE_IN) {
                    let fault = rand::random_range(0..FAULTS.len());
                    counts[fault].fetch_add(1, Ordering::Relaxed);
                    match FAULTS[fault] {
                        Fault::Refusal => {
                            let slow = b"HTTP/1.1 503 Slow Down\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
                            client.write_all(slow).await?;
                        }
                        Fault::Lost => (),
                        // Until the client gives up.
                        Fault::Silence => while client.read(&mut asked).await? > 0 {},
                    }
                    return Ok(());
                }
                begins = false;
                match read {
                    0 => return Ok(()),
                    read => client.write_all(&answered[..read]).await?,
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_keeps_recordings_whole_and_once_whatever_becomes_of_its_answers() {
    let cluster = Cluster::start(1).await;
    let moto = Moto::start(cluster.dir()).await;
    moto.create_bucket(BUCKET).await;
    let bucket = Faulty::before(moto.address()).await;
    let set = [
        format!("s3.endpoint=http://{}", bucket.port.address()),
        "s3.allow_http=true".into(),
        "s3.path_style=true".into(),
        "s3.request_timeout=2s".into(),
        format!("limits.segment_bytes={SEGMENT_BYTES}"),
    ];
    let env = [
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ];
    let spec = IngestSpec {
        store: format!("s3://{BUCKET}/ssh"),
        set: set.to_vec(),
        env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        ..IngestSpec::default()
    };
    let ingests = Ingest::start_all_with(&cluster, 2, &spec).await;
    let agent = Agent::join(&cluster, AgentSpec::default());
    let addresses: Vec<String> = ingests.iter().map(Ingest::address).collect();
    let client = agent.client(&cluster).for_recordings(&addresses).unwrap();

    bucket.on.store(true, Ordering::Relaxed);
    let cast = asciicast(SEGMENTS * SEGMENT_BYTES);
    let sent = join_all((0..RECORDINGS).map(async |_| {
        let id = recording_id();
        // As an agent does, until there is a receipt.
        eventually("there is a receipt", PATIENCE, async || {
            upload(&client, id, &metadata("alice"), &cast).await.map_err(|error| error.to_string())
        })
        .await
    }));
    let receipts = sent.await;
    bucket.on.store(false, Ordering::Relaxed);
    let counts: Vec<usize> = bucket.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
    assert!(counts.iter().all(|count| *count > 0), "each of {FAULTS:?} must have happened: {counts:?}");

    for receipt in &receipts {
        let manifest = &receipt.manifest;
        assert_eq!(manifest.length, cast.len() as u64);
        let key = SshPublicKey::parse(&manifest.signing_key).unwrap();
        verify_sshsig(&receipt.signed.signature, MANIFEST_NAMESPACE, &receipt.signed.manifest, &key).unwrap();
        let (_, payload) = fetch(&cluster.admin(), manifest.recording_id).await.unwrap();
        assert!(payload == cast, "{} differs", manifest.recording_id);
    }
    // What a lost answer left to do is done by whoever looks next, and the audit log hears of each.
    eventually("nothing is left to do", PATIENCE, async || {
        let keys = moto.keys(BUCKET).await;
        let left: Vec<_> =
            keys.into_iter().filter(|key| key.contains("/open/") || key.contains("/audit/")).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    let mut kinds = BTreeMap::<RecordingId, (usize, usize, usize, usize)>::new();
    for key in moto.keys(BUCKET).await {
        let key = key.strip_prefix("ssh/").unwrap();
        match key.parse().unwrap_or_else(|_| panic!("{key} is left")) {
            ObjectKey::Begin(id) => kinds.entry(id).or_default().0 += 1,
            ObjectKey::Segment(id, _) => kinds.entry(id).or_default().1 += 1,
            ObjectKey::Manifest(id, 0) => kinds.entry(id).or_default().2 += 1,
            ObjectKey::Index { id, revision: 0, .. } => kinds.entry(id).or_default().3 += 1,
            other => panic!("{other} is left"),
        }
    }
    assert_eq!(kinds.len(), RECORDINGS);
    for receipt in &receipts {
        let manifest = &receipt.manifest;
        assert_eq!(kinds[&manifest.recording_id], (1, manifest.segments.len(), 1, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_cannot_be_used_is_named_at_the_start() {
    let cluster = Cluster::start(1).await;
    let moto = Moto::start(cluster.dir()).await;
    let (dir, env) = (cluster.dir(), |name: &str, value: &str| (name.to_owned(), value.to_owned()));
    std::fs::write(dir.join("none"), "").unwrap();
    let none = dir.join("none").display().to_string();
    let nobody = [
        env("AWS_EC2_METADATA_DISABLED", "true"),
        env("AWS_CONFIG_FILE", &none),
        env("AWS_SHARED_CREDENTIALS_FILE", &none),
    ];
    let somebody = [env("AWS_ACCESS_KEY_ID", "key"), env("AWS_SECRET_ACCESS_KEY", "secret")];
    let set = [
        format!("s3.endpoint=http://{}", moto.address()),
        "s3.allow_http=true".to_owned(),
        "s3.path_style=true".to_owned(),
    ];
    let cases = [
        ("no-credentials", nobody.to_vec(), "credentials"),
        ("no-bucket", [&nobody[..], &somebody].concat(), "NoSuchBucket"),
    ];
    for (name, env, reason) in cases {
        let spec =
            IngestSpec { store: "s3://nowhere".into(), set: set.to_vec(), env, ..IngestSpec::default() };
        let ingest = Ingest::configure(&cluster, name, &spec);
        let token = ingest.dir().join("token");
        mezite_e2e::secret_file(&token, &cluster.token(mezite_proto::v1::TokenKind::Ingest).await);
        let _ = ingest.run("join", &["--token-file", token.to_str().unwrap()]).ok();
        let refused = ingest.run("run", &[]);
        assert!(refused.code != 0 && refused.stderr.contains(reason), "{name}: {refused:?}");
    }
}
