use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use mezite_client::testing::{CLUSTER, TestCa};

use super::*;

const GOLDEN: &str = include_str!("../golden/agent.json");

fn mode(dir: &AgentDir, name: &str) -> u32 {
    fs::metadata(dir.file(name)).unwrap().mode() & 0o7777
}

fn agent_dir() -> (tempfile::TempDir, AgentDir) {
    let temp = tempfile::tempdir().unwrap();
    let dir = AgentDir::create(&temp.path().join("agent")).unwrap();
    (temp, dir)
}

fn state() -> AgentState {
    AgentState::new(CLUSTER.into(), vec!["a.example:3025".into()], "web1.example.org".into())
}

#[test]
fn the_format_is_golden() {
    let state = AgentState {
        progress: Progress::Joined,
        cluster_name: "example".into(),
        principals: vec!["10.0.0.1".into()],
        address: "web1.example.org:22".into(),
        labels: BTreeMap::from([("env".into(), "prod".into())]),
        agent_id: "6f9619ff-8b86-4011-b42d-00c04fc964ff".into(),
        trust_bundle_revision: 3,
        revocation_revision: 4,
        phases: BTreeMap::from([(1, 1), (3, 2)]),
        certificates_lag: true,
        reload_pending: true,
        followed_revision: 2,
        recording_mode: Mode::Strict,
        ingest_addresses: vec!["ingest.example.org:3027".into()],
        spool: Some("/var/spool/mezite".into()),
        ..state()
    };
    assert_eq!(state.encode().unwrap(), GOLDEN);
    assert_eq!(AgentState::decode(GOLDEN).unwrap(), state);
    let earlier = GOLDEN.replace("  \"revocation_revision\": 4,\n", "");
    assert_eq!(AgentState::decode(&earlier).unwrap(), AgentState { revocation_revision: 0, ..state });
    for (from, to) in
        [("\"version\": 1", "\"version\": 2"), ("ctl.agent", "ctl.profile"), ("\"labels\"", "\"label\"")]
    {
        assert!(AgentState::decode(&GOLDEN.replace(from, to)).is_err(), "{to}");
    }
}

#[test]
fn keys_are_made_once_and_are_private() {
    let (_temp, dir) = agent_dir();
    let (ssh, tls) = (dir.ssh_key().unwrap().public_line(), dir.tls_key().unwrap().spki_der());
    assert_eq!(dir.ssh_key().unwrap().public_line(), ssh);
    assert_eq!(dir.tls_key().unwrap().spki_der(), tls);
    assert_eq!((mode(&dir, SSH_KEY), mode(&dir, TLS_KEY), mode(&dir, SSH_PUBLIC)), (0o600, 0o600, 0o644));
    assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o7777, 0o700);
    fs::set_permissions(dir.file(SSH_KEY), fs::Permissions::from_mode(0o640)).unwrap();
    assert!(dir.ssh_key().err().unwrap().is::<Usage>());
}

#[test]
fn a_bundle_is_kept_only_of_the_own_cluster_and_with_a_user_ca() {
    let (_temp, dir) = agent_dir();
    let (ca, mut state) = (TestCa::new(), state());
    dir.keep_bundle(&mut state, &ca.bundle(&["ssh-ed25519 AAAA one", "ssh-ed25519 BBBB two"])).unwrap();
    assert_eq!(read_text(&dir.file(USER_CAS)).unwrap(), "ssh-ed25519 AAAA one\nssh-ed25519 BBBB two\n");
    assert_eq!(dir.trust(&state).unwrap(), ca.trust());

    assert!(dir.keep_bundle(&mut state, &ca.bundle(&[])).is_err());
    let other =
        v1::GetTrustBundleResponse { cluster_name: "other".into(), ..ca.bundle(&["ssh-ed25519 CCCC"]) };
    assert!(dir.keep_bundle(&mut state, &other).is_err());
    assert!(!read_text(&dir.file(USER_CAS)).unwrap().contains("CCCC"));
}

#[test]
fn an_agent_that_has_not_joined_is_none() {
    let (temp, dir) = agent_dir();
    assert!(dir.joined().unwrap_err().is::<Usage>());
    dir.save(&state()).unwrap();
    assert!(dir.joined().unwrap_err().is::<Usage>());
    assert!(AgentDir::new(&temp.path().join("nowhere")).unwrap_err().is::<Usage>());
}

#[test]
fn leaving_removes_the_agents_files_and_no_others() {
    let (_temp, dir) = agent_dir();
    dir.ssh_key().unwrap();
    dir.save(&state()).unwrap();
    fs::write(dir.file("notes"), "mine").unwrap();
    dir.clear().unwrap();
    dir.clear().unwrap();
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["notes"]);
}

#[test]
fn new_certificates_that_are_kept_by_half_leave_the_renewal_due() {
    let (_temp, dir) = agent_dir();
    let ca = TestCa::new();
    let mut state = AgentState { progress: Progress::Joined, ..state() };
    let issued = |ssh: &str| v1::GenerateHostCertsResponse {
        ssh_certificate: ssh.into(),
        tls_certificate: ca.agent(&[]).certificate,
        trust_bundle: Some(ca.bundle(&["ssh-ed25519 AAAA one"])),
        ..Default::default()
    };
    let on_disk = |name: &str| read_text(&dir.file(name)).unwrap();
    let (first, second) = (issued("first"), issued("second"));
    // `agent run` renews by the time of this one.
    write_atomic(&dir.file(TLS_CERTIFICATE), first.tls_certificate.as_bytes(), PUBLIC).unwrap();
    // It ends at the host certificate: nothing can be put in the place of a folder.
    fs::create_dir(dir.file(SSH_CERTIFICATE)).unwrap();
    assert!(dir.keep_certificates(&mut state, &second).is_err());
    assert_eq!(
        on_disk(TLS_CERTIFICATE),
        first.tls_certificate,
        "as long as sshd lacks its own, it is renewed again"
    );
    assert!(dir.load().unwrap().unwrap().reload_pending);
    // The next attempt does all of it.
    fs::remove_dir(dir.file(SSH_CERTIFICATE)).unwrap();
    dir.keep_certificates(&mut state, &second).unwrap();
    assert_eq!(
        (on_disk(SSH_CERTIFICATE).as_str(), on_disk(TLS_CERTIFICATE)),
        ("second\n", second.tls_certificate)
    );
}

#[test]
fn what_an_agent_is_told_is_kept_while_a_service_that_was_told_otherwise_saves_the_rest() {
    let (_temp, dir) = agent_dir();
    let mut service = AgentState { progress: Progress::Joined, ..state() };
    dir.save(&service).unwrap();
    service.trust_bundle_revision = 7;
    dir.save(&service).unwrap();
    let told = dir.tell(|kept| {
        kept.addresses = vec!["new.example:3025".into()];
        kept.address = "web1.example:2222".into();
        kept.labels = BTreeMap::from([("env".into(), "moved".into())]);
        kept.spool = Some("/var/spool/mezite".into());
        kept.principals_user = Some("sshcmd".into());
    });
    // What the service has found out meanwhile is there as well.
    let told = told.unwrap();
    assert_eq!(told.trust_bundle_revision, 7);
    service.trust_bundle_revision = 8;
    dir.save(&service).unwrap();
    assert_eq!(dir.load().unwrap(), Some(AgentState { trust_bundle_revision: 8, ..told }));
}
