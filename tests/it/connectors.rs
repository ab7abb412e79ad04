//! Single sign-on connectors as an admin keeps them, and through a backup.

use std::{fs, os::unix::fs::PermissionsExt as _};

use mezite_e2e::{ADMIN, AuthNode, Cluster, Ctl, PASSWORD, Setup, secret_file};

use crate::support::add_role;

const OIDC: &str = "\
kind: connector
metadata: {name: corporate, display_name: Corporate login}
spec:
  mappings:
    - {claim: groups, value: developers, roles: [developer]}
  oidc:
    issuer_url: https://login.example.com
    client_id: mezite
    scopes: [profile, groups]
";
const SECRET: &str = "what the provider gave us";

#[tokio::test(flavor = "multi_thread")]
async fn connectors_are_kept_with_their_secrets_and_tell_none() {
    let cluster = Cluster::start(1).await;
    let ctl = cluster.ctl();
    add_role(&cluster, "developer", "  allow: {}\n");
    let path = |name: &str| cluster.dir().join(name).to_str().unwrap().to_owned();
    let (file, secret) = (path("connector.yaml"), path("client.secret"));
    fs::write(&file, OIDC).unwrap();
    secret_file(secret.as_ref(), SECRET);
    let said = ctl.run(&["connectors", "add", &file]).failed(2);
    assert!(said.contains("--client-secret-file"), "{said}");
    let made = ctl.ok(&["connectors", "add", &file, "--client-secret-file", &secret]);
    assert!(made.contains("[redacted]") && !made.contains(SECRET), "{made}");
    let _ = ctl.run(&["connectors", "add", &file, "--client-secret-file", &secret]).failed(7);
    let listed = ctl.json(&["connectors", "ls"]);
    assert_eq!((&listed[0]["provider"], &listed[0]["roles"][0]), (&"oidc".into(), &"developer".into()));
    // A role that a connector gives cannot vanish.
    let said = ctl.run(&["roles", "rm", "developer"]).failed(1);
    assert!(said.contains("connector corporate"), "{said}");

    // What is printed is a file that is read back; it carries the revision that it was printed with.
    let printed = path("printed.yaml");
    fs::write(&printed, ctl.ok(&["connectors", "get", "corporate"])).unwrap();
    let _ = ctl.ok(&["connectors", "update", &printed]);
    let _ = ctl.run(&["connectors", "update", &printed]).failed(7);
    fs::write(&printed, ctl.ok(&["get", "connector/corporate", "-o", "yaml"])).unwrap();
    let done = ctl.json(&["create", "--force", &printed]);
    assert_eq!((&done[0]["name"], &done[0]["action"]), (&"corporate".into(), &"unchanged".into()));
    // A secret that is kept is not sent elsewhere.
    fs::write(&printed, OIDC.replace("login.example.com", "evil.example")).unwrap();
    let said = ctl.run(&["connectors", "update", &printed]).failed(2);
    assert!(said.contains("another issuer"), "{said}");
    // One that is in the file is for its owner's eyes.
    let own = OIDC.replace("    scopes", &format!("    client_secret: {SECRET}\n    scopes"));
    fs::write(&file, own).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let said = ctl.run(&["connectors", "update", &file]).failed(2);
    assert!(said.contains("chmod 600"), "{said}");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let _ = ctl.ok(&["connectors", "update", &file]);

    let mut restored = restored(&cluster);
    let ctl = Ctl::new(&cluster.dir().join("home-restored"), &[restored.address()], cluster.ca_pin());
    restored.ready().await;
    let _ = ctl.login(ADMIN, PASSWORD).ok();
    fs::write(&printed, ctl.ok(&["connectors", "get", "corporate"])).unwrap();
    let _ = ctl.ok(&["connectors", "update", &printed]);
    let _ = ctl.ok(&["connectors", "rm", "corporate"]);
    let _ = ctl.run(&["connectors", "get", "corporate"]).failed(4);
    let _ = ctl.ok(&["roles", "rm", "developer"]);
}

/// A node of a cluster that is made of a backup, which has no secret in the clear.
fn restored(cluster: &Cluster) -> AuthNode {
    let backup = cluster.dir().join("backup");
    let saved = backup.to_str().unwrap();
    let _ = cluster.ctl().ok(&["cluster", "backup", "--out", saved]);
    let bytes = fs::read(&backup).unwrap();
    assert!(!bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()));
    let mut node = AuthNode::configure("restored", cluster.dir(), &Setup::default());
    let kek = cluster.nodes()[0].data_dir().join("kek");
    let _ = node.run("restore", &["--from", saved, "--kek-file", kek.to_str().unwrap()]).ok();
    node.start();
    node
}
