//! Joining: once, interrupted anywhere, and refused.

use std::{fs, os::unix::fs::PermissionsExt as _};

use mezite_client::testing::{CLUSTER, TestCa};
use mezite_daemon::clock;
use mezite_pki::{identity::Identity, x509::KeyPair};
use mezite_proto::v1;
use recording_ingest::{IdentityError, StartError, config::Config, join, start, token_from};

use crate::cluster::{Cluster, INGEST_ID, NEXT_INGEST_ID, TOKEN};

#[tokio::test]
async fn a_token_makes_an_ingest_and_the_second_time_nothing_happens() {
    let cluster = Cluster::new();
    let config = cluster.config("a", &["labels.zone=eu"]);
    let joined = cluster.join(&config).await.unwrap();
    assert_eq!((joined.agent_id.as_str(), joined.cluster_name.as_str()), (INGEST_ID, CLUSTER));
    assert!(!joined.already_joined);
    let calls = cluster.auth.calls();
    let registered: v1::RegisterAgentRequest = calls.last().unwrap().request();
    assert_eq!((registered.token.as_str(), registered.address.as_str()), (TOKEN, "ingest.example:3027"));
    assert_eq!(registered.labels["zone"], "eu");

    let again = join(&config, || panic!("the token is not needed")).await.unwrap();
    assert!(again.already_joined);
    // The cluster is asked whether it has it.
    assert_eq!(cluster.auth.calls().len(), calls.len() + 1);
    assert_eq!(cluster.calls("AgentHeartbeat"), 1);

    for file in fs::read_dir(&config.data_dir).unwrap() {
        let path = file.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains(TOKEN), "{}", path.display());
        if text.contains("PRIVATE KEY") {
            assert_eq!(
                fs::metadata(&path).unwrap().permissions().mode() & 0o777,
                0o600,
                "{}",
                path.display()
            );
        }
    }
}

#[tokio::test]
async fn a_join_that_was_interrupted_goes_on_with_the_same_keys() {
    let cluster = Cluster::new();
    let config = cluster.config("a", &[]);
    // The answers get lost after the cluster has done its part.
    for method in ["GetTrustBundle", "GenerateHostCerts", "RegisterAgent"] {
        cluster.script.failing.lock().unwrap().insert(method, 1);
        assert!(matches!(cluster.join(&config).await, Err(IdentityError::Cluster(_))), "{method}");
        assert!(matches!(
            start(config.clone()).await,
            Err(StartError::Identity(IdentityError::NotJoined(_)))
        ));
    }
    assert!(!cluster.join(&config).await.unwrap().already_joined);
    let keys = |method: &str| {
        let calls = cluster.auth.calls().into_iter().filter(|call| call.method == method);
        calls.map(|call| call.request::<v1::GenerateHostCertsRequest>().tls_public_key).collect::<Vec<_>>()
    };
    let keys = keys("GenerateHostCerts");
    // Lost, once again, and again for a token that may be another one.
    assert_eq!(keys.len(), 3);
    assert!(keys.iter().all(|key| *key == keys[0]));
    assert_eq!(cluster.calls("RegisterAgent"), 2);
}

/// All that is in the data folder, by its name.
fn files(config: &Config) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(&config.data_dir).unwrap().map(Result::unwrap);
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    let mut files: Vec<_> =
        files.map(|file| (file.file_name().into_string().unwrap(), fs::read(file.path()).unwrap())).collect();
    files.sort();
    files
}

/// Gives the ingest in the folder a certificate that has ended.
fn end_certificate(cluster: &Cluster, config: &Config) {
    let key = KeyPair::from_pem(&fs::read_to_string(config.data_dir.join("tls.key")).unwrap()).unwrap();
    let holder = Identity::Ingest { cluster: CLUSTER.into(), id: INGEST_ID.into() };
    let now = clock::unix_seconds();
    let life = (now - 1_000, now - 10);
    let ended = cluster.script.ca.issue_for(&key.spki_der(), Some(holder), &["a"], life, "");
    fs::write(config.data_dir.join("tls.crt"), ended.certificate).unwrap();
}

#[tokio::test]
async fn an_ingest_whose_certificate_has_ended_joins_anew_into_its_folder() {
    let cluster = Cluster::new();
    let config = cluster.config("a", &[]);
    cluster.join(&config).await.unwrap();
    end_certificate(&cluster, &config);
    let old = files(&config);
    *cluster.script.ingest_id.lock().unwrap() = NEXT_INGEST_ID;
    // As long as the new one has not joined, the old one is there as it was.
    assert!(join(&config, || Err(IdentityError::NotJoined("no token".into()))).await.is_err());
    for method in ["GenerateHostCerts", "RegisterAgent"] {
        cluster.script.failing.lock().unwrap().insert(method, 1);
        assert!(cluster.join(&config).await.is_err(), "{method}");
        assert_eq!(files(&config), old, "{method}");
    }
    let joined = cluster.join(&config).await.unwrap();
    assert_eq!((joined.agent_id.as_str(), joined.already_joined), (NEXT_INGEST_ID, false));
    let new = files(&config);
    let changed = |name: &str| {
        let of = |files: &[(String, Vec<u8>)]| files.iter().find(|(file, _)| file == name).unwrap().1.clone();
        of(&old) != of(&new)
    };
    assert!(["tls.key", "tls.crt", "ssh_host_ed25519_key", "ingest.json"].into_iter().all(changed));
    assert!(!config.data_dir.join("next").exists());
    // It is one as any.
    assert!(join(&config, || panic!("the token is not needed")).await.unwrap().already_joined);
    assert!(start(config).await.unwrap().stop().await);
}

#[tokio::test]
async fn an_ingest_that_was_removed_joins_anew_and_one_that_cannot_ask_does_not() {
    let mut cluster = Cluster::new();
    let config = cluster.config("a", &[]);
    cluster.join(&config).await.unwrap();
    let old = files(&config);
    *cluster.script.ingest_id.lock().unwrap() = NEXT_INGEST_ID;
    // A failure says nothing of the registry.
    cluster.script.failing.lock().unwrap().insert("AgentHeartbeat", 1);
    assert!(cluster.join(&config).await.unwrap().already_joined);
    cluster.auth.kill();
    assert!(cluster.join(&config).await.unwrap().already_joined);
    assert_eq!(files(&config), old);
    cluster.restart_auth();
    cluster.script.remove_ingest();
    // Under another name, too, since it is another ingest.
    let config = cluster.config("a", &["hostname=other.example"]);
    let joined = cluster.join(&config).await.unwrap();
    assert_eq!((joined.agent_id.as_str(), joined.already_joined), (NEXT_INGEST_ID, false));
}

#[tokio::test]
async fn an_ingest_that_missed_a_rotation_joins_anew_by_the_pin_of_now() {
    let (old, new) = (Cluster::new(), Cluster::new());
    let address = |config: &mut Config| config.auth_servers = vec![new.auth.address()];
    let mut config = old.config("a", &[]);
    old.join(&config).await.unwrap();
    let before = files(&config);
    address(&mut config);
    // Whoever has another CA is not believed for that.
    assert!(new.join(&config).await.is_err());
    assert_eq!(files(&config), before);
    config.ca_pin = new.config("a", &[]).ca_pin;
    assert!(!new.join(&config).await.unwrap().already_joined);
    assert_ne!(files(&config), before);
}

/// Its certificates were issued, and it was removed, or they ended, before it registered.
#[tokio::test]
async fn a_join_that_is_gone_before_its_end_goes_on_as_another_one() {
    let cluster = Cluster::new();
    let config = cluster.config("a", &[]);
    cluster.script.failing.lock().unwrap().insert("RegisterAgent", 1);
    assert!(cluster.join(&config).await.is_err());
    *cluster.script.ingest_id.lock().unwrap() = NEXT_INGEST_ID;
    assert_eq!(cluster.join(&config).await.unwrap().agent_id, NEXT_INGEST_ID);
}

#[tokio::test]
async fn a_token_of_another_kind_makes_no_ingest() {
    let cluster = Cluster::new();
    *cluster.script.issues_to_agents.lock().unwrap() = true;
    let config = cluster.config("a", &[]);
    let refused = cluster.join(&config).await.unwrap_err();
    assert!(refused.to_string().contains("token of kind ingest"), "{refused}");
    assert_eq!(cluster.calls("RegisterAgent"), 0);
    // With the right token the same folder is good.
    *cluster.script.issues_to_agents.lock().unwrap() = false;
    cluster.join(&config).await.unwrap();
}

#[tokio::test]
async fn a_wrong_token_or_another_cluster_is_refused() {
    let cluster = Cluster::new();
    let wrong = join(&cluster.config("a", &[]), || Ok("wrong".to_owned().into())).await;
    assert!(matches!(wrong, Err(IdentityError::Cluster(_))));
    let pin = format!("ca_pin={}", TestCa::new().pin());
    assert!(matches!(cluster.join(&cluster.config("b", &[&pin])).await, Err(IdentityError::Cluster(_))));
    assert_eq!(cluster.calls("GenerateHostCerts"), 1);
}

#[tokio::test]
async fn a_ca_file_is_as_good_as_a_pin() {
    let cluster = Cluster::new();
    let file = cluster.dir.path().join("ca.pem");
    fs::write(&file, cluster.script.ca.pem()).unwrap();
    let mut config = cluster.config("a", &[]);
    (config.ca_pin, config.ca_file) = (None, Some(file));
    cluster.join(&config).await.unwrap();
}

#[tokio::test]
async fn what_is_needed_to_join_is_named() {
    let cluster = Cluster::new();
    for (flag, field) in
        [("hostname=''", "hostname"), ("advertise=''", "advertise"), ("auth_servers=[]", "auth_servers")]
    {
        match cluster.join(&cluster.config("a", &[flag])).await {
            Err(IdentityError::Config { field: named, .. }) => assert_eq!(named, field),
            other => panic!("{other:?}"),
        }
    }
    let config = cluster.config("a", &[]);
    cluster.join(&config).await.unwrap();
    let moved = cluster.join(&cluster.config("a", &["hostname=other.example"])).await;
    assert!(matches!(moved, Err(IdentityError::Config { field: "hostname", .. })));
}

#[tokio::test]
async fn a_folder_in_use_or_with_an_open_key_is_refused() {
    let cluster = Cluster::new();
    let ingest = cluster.ingest("a", &[]).await;
    let config = cluster.config("a", &[]);
    assert!(matches!(cluster.join(&config).await, Err(IdentityError::InUse(_))));
    assert!(matches!(start(config.clone()).await, Err(StartError::Identity(IdentityError::InUse(_)))));
    assert!(ingest.stop().await);
    fs::set_permissions(config.data_dir.join("tls.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let refused = start(config).await.unwrap_err();
    assert!(refused.to_string().contains("chmod 600"), "{refused}");
}

#[test]
fn a_token_is_the_only_line_of_a_private_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let keep = |text: &str, mode| {
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    keep("secret\n", 0o600);
    assert_eq!(token_from(Some(&path)).unwrap().as_str(), "secret");
    for (text, mode) in [("secret\n", 0o644), ("", 0o600), ("\n", 0o600), ("a\nb\n", 0o600)] {
        keep(text, mode);
        assert!(token_from(Some(&path)).is_err(), "{text:?} {mode:o}");
    }
    assert!(token_from(None).is_err());
}
