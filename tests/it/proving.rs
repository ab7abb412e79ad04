//! Recordings are proven, and whatever is not as the cluster sealed it is found.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use mezite_e2e::{Agent, AgentSpec, Cluster, Ctl, Ingest, eventually};
use mezite_pki::{ssh::SshKeyPair, x509::CertificateInfo};
use recording_format::{
    Digest, IngestCertificates, MANIFEST_NAMESPACE, Manifest, ObjectKey, RecordingId, decode_signed_manifest,
    encode_signed_manifest,
};
use serde_json::Value;

use crate::support::{asciicast, chunk, header, metadata, recording_id, stream};

/// For an ingest to see what another has begun.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster, and recordings in its store.
struct Scene {
    ingests: Vec<Ingest>,
    store: PathBuf,
    agent: Agent,
    // The last: the others write to its folder until they end.
    cluster: Cluster,
}

/// What became of a recording that was verified.
#[derive(Debug)]
struct Verdict {
    verdict: String,
    problems: String,
}

impl Scene {
    async fn start(ingests: usize) -> Self {
        let cluster = Cluster::start(1).await;
        let (ingests, store) = Ingest::start_all(&cluster, ingests).await;
        let agent = Agent::join(&cluster, AgentSpec::default());
        Self { cluster, ingests, store, agent }
    }

    /// Sends a recording; its id, the payload's file and the receipt's.
    fn upload(&self, name: &str, bytes: usize) -> (RecordingId, PathBuf, PathBuf) {
        let file = self.cluster.dir().join(format!("{name}.cast"));
        let receipt = self.cluster.dir().join(format!("{name}.receipt"));
        fs::write(&file, asciicast(bytes)).unwrap();
        let uploaded = self.agent.upload(&file, &["--user", "alice", "--receipt", receipt.to_str().unwrap()]);
        (uploaded["recording_id"].as_str().unwrap().parse().unwrap(), file, receipt)
    }

    /// Changes an object of the store.
    fn change(&self, key: ObjectKey, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
        let path = self.store.join(key.to_string());
        let object = fs::read(&path).unwrap();
        fs::write(&path, change(object)).unwrap();
    }

    /// Puts another manifest in place of the one of a recording, signed with a key.
    fn seal_anew(&self, id: RecordingId, key: &SshKeyPair, change: impl FnOnce(&mut Manifest)) {
        self.change(ObjectKey::Manifest(id, 0), |object| {
            let mut manifest = decode_signed_manifest(id, &object).unwrap().manifest;
            manifest.signing_key = key.public_line();
            change(&mut manifest);
            let document = manifest.encode().unwrap();
            encode_signed_manifest(&document, &key.sign_sshsig(MANIFEST_NAMESPACE, &document).unwrap())
                .unwrap()
        });
    }

    fn verify(&self, ids: &[RecordingId]) -> (i32, Vec<Verdict>) {
        let ids: Vec<_> = ids.iter().map(RecordingId::to_string).collect();
        let args: Vec<_> = ids.iter().map(String::as_str).collect();
        verify(&self.cluster.ctl(), &args)
    }

    #[track_caller]
    fn proven(&self, id: RecordingId) {
        let (code, verdicts) = self.verify(&[id]);
        assert!(matches!(verdicts.as_slice(), [one] if one.verdict == "proven"), "{verdicts:?}");
        assert_eq!(code, 0);
    }

    #[track_caller]
    fn refuted(&self, id: RecordingId, why: &str) {
        let (code, verdicts) = self.verify(&[id]);
        let [found] = verdicts.as_slice() else { panic!("{verdicts:?}") };
        assert_eq!((code, found.verdict.as_str()), (1, "not-proven"), "{found:?}");
        assert!(found.problems.contains(why), "{found:?}, and not {why}");
    }
}

fn verify(ctl: &Ctl, args: &[&str]) -> (i32, Vec<Verdict>) {
    let output = ctl.run(&[&["--format", "json", "recordings", "verify"], args].concat());
    let said: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let verdict = |said: &Value| Verdict {
        verdict: said["verdict"].as_str().unwrap().to_owned(),
        problems: said["problems"].to_string(),
    };
    (output.code, said.as_array().unwrap().iter().map(verdict).collect())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_as_it_was_sealed_is_proven_with_the_cluster_and_without_it() {
    let mut scene = Scene::start(2).await;
    let ids: Vec<_> = (0..3).map(|number| scene.upload(&format!("session-{number}"), 3 << 20)).collect();
    let open = recording_id();
    let begun = vec![header(open, 0, Some(metadata("alice"))), chunk(0, b"{\"version\":3")];
    stream(&scene.agent.client(&scene.cluster), begun).await.unwrap();
    scene.proven(ids[0].0);
    // An ingest looks now and then for what the other has begun.
    eventually("all are listed", PATIENCE, async || {
        let (code, all) = verify(&scene.cluster.ctl(), &["--all"]);
        let count = |verdict: &str| all.iter().filter(|one| one.verdict == verdict).count();
        match (code, all.len(), count("proven"), count("in-progress")) {
            (0, 4, 3, 1) => Ok(()),
            _ => Err(format!("{code}: {all:?}")),
        }
    })
    .await;
    let (code, none) = verify(&scene.cluster.ctl(), &["--all", "--to", "2001-01-01T00:00:00Z"]);
    assert_eq!((code, none.len()), (0, 0), "{none:?}");
    let shown = scene.cluster.ctl().ok(&["recordings", "verify", &ids[0].0.to_string()]);
    assert!(shown.contains("proven: this is what the cluster sealed"), "{shown}");

    // A copy, by its receipt: with what the cluster says of its authorities, and with what was kept of them.
    let (_, file, receipt) = &ids[1];
    let by_receipt = [text(file), "--receipt", text(receipt)];
    assert_eq!(verify(&scene.cluster.ctl(), &by_receipt).0, 0);
    let kept = ["host", "tls"].map(|kind| {
        let path = scene.cluster.dir().join(format!("{kind}.authority"));
        let _ = scene.cluster.ctl().ok(&["auth", "export", kind, "--out", text(&path)]);
        path
    });
    let stranger =
        Ctl::new(&scene.cluster.dir().join("nowhere"), &["127.0.0.1:1".into()], scene.cluster.ca_pin());
    let [host, tls] = &kept;
    let alone = [&by_receipt[..], &["--authority", text(host), "--authority", text(tls)]].concat();
    assert_eq!(verify(&stranger, &alone).0, 0);
    let half = [&by_receipt[..], &["--authority", text(host)]].concat();
    assert_eq!(verify(&stranger, &half).0, 1);
    let (_, other, _) = &ids[2];
    fs::write(other, b"something else").unwrap();
    assert_eq!(verify(&stranger, &[&[text(other)], &alone[1..]].concat()).0, 1);

    // The ingest that sealed it is removed, and has its place taken by another one.
    let sealed: Manifest = serde_json::from_slice(&fs::read(&ids[0].2).unwrap()).unwrap();
    let gone = scene.ingests.iter().position(|ingest| ingest.id() == sealed.ingest_id.to_string()).unwrap();
    scene.ingests.remove(gone);
    let _ = scene.cluster.ctl().ok(&["nodes", "rm", &sealed.ingest_id.to_string()]);
    scene.proven(ids[0].0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_in_the_store_is_found() {
    let scene = Scene::start(1).await;
    // What was read lately is kept in memory: each of them is read after it was changed.
    let damage = |name: &str| scene.upload(name, 20_000).0;

    let id = damage("segment");
    scene.change(ObjectKey::Segment(id, 0), |mut object| {
        let middle = object.len() / 2;
        object[middle] ^= 1;
        object
    });
    scene.refuted(id, "the cluster: ");

    let id = damage("manifest");
    scene.change(ObjectKey::Manifest(id, 0), |object| {
        let text = String::from_utf8(object).unwrap();
        assert!(text.contains("\"user\":\"alice\""));
        text.replace("\"user\":\"alice\"", "\"user\":\"mario\"").into()
    });
    scene.refuted(id, "not what was signed");

    let id = damage("gone");
    fs::remove_file(scene.store.join(ObjectKey::Segment(id, 0).to_string())).unwrap();
    scene.refuted(id, "the cluster: ");

    // Whoever has the store can sign anything with a key of its own: it is known by nobody.
    let id = damage("stranger");
    let stranger = SshKeyPair::generate_ed25519("").unwrap();
    scene.seal_anew(id, &stranger, |manifest| manifest.metadata.user = "mario".into());
    scene.refuted(id, "another key than the one that signed");
    let id = damage("nobody");
    scene.seal_anew(id, &stranger, |manifest| manifest.ingest_certificates = None);
    scene.refuted(id, "proves nobody");

    // A host of the cluster has a key and certificates of the same authorities, and is no ingest.
    let id = damage("host");
    let read = |name: &str| fs::read_to_string(scene.agent.file(name)).unwrap();
    let key = SshKeyPair::from_openssh(&read("ssh_host_ed25519_key")).unwrap();
    scene.seal_anew(id, &key, |manifest| {
        let tls = scene.agent.pems().0;
        let ssh = read("ssh_host_ed25519_key-cert.pub").trim_end().to_owned();
        manifest.ingest_id = scene.agent.id.parse().unwrap();
        manifest.ingest_certificate_sha256 =
            Digest::from_bytes(CertificateInfo::from_pem(&tls).unwrap().fingerprint_sha256);
        manifest.ingest_certificates = Some(IngestCertificates { ssh, tls });
    });
    scene.refuted(id, "nobody that is an ingest");

    let whole = damage("whole");
    scene.proven(whole);
    let (code, all) = verify(&scene.cluster.ctl(), &["--all"]);
    let good = all.iter().filter(|one| one.verdict == "proven").count();
    assert_eq!((code, all.len(), good), (1, 7, 1), "{all:?}");
}
