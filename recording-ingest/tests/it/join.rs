//! Joining: once, interrupted anywhere, and refused.

use std::{fs, os::unix::fs::PermissionsExt as _};

use mezite_client::testing::{CLUSTER, TestCa};
use mezite_proto::v1;
use recording_ingest::{IdentityError, StartError, join, start, token_from};

use crate::cluster::{Cluster, INGEST_ID, TOKEN};

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
    assert_eq!(cluster.auth.calls().len(), calls.len());

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
    // Once lost and once again; the third run found the certificates on disk.
    assert_eq!(keys.len(), 2);
    assert_eq!(keys[0], keys[1]);
    assert_eq!(cluster.calls("RegisterAgent"), 2);
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
