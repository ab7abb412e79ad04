use mezite_pki::{
    ssh::{SshCa, SshKeyPair, UserExtensions, parse_certificate},
    x509::{CertificateInfo, KeyPair, X509Ca},
};

use super::*;
use crate::{
    ca::unseal,
    secret::SecretDigest,
    tables::{AuthMethod, ConditionsRow, RoleOptionsRow, RoleRow, SessionKey},
    testing::{Observed, SESSION_TTL_MS, assert_invalid, strings, traits},
    world::{Host, World, assert_denied, kek},
};

/// What a test asks for: one SSH key, and all that is allowed.
#[derive(Default)]
struct Ask {
    ttl: Option<Duration>,
    logins: &'static [&'static str],
    node: String,
    tls: Vec<u8>,
}

fn key() -> String {
    SshKeyPair::generate_ed25519("").unwrap().public_line()
}

fn request(ask: Ask) -> UserCertRequest {
    let logins = ask.logins.iter().map(|&login| login.to_owned()).collect();
    UserCertRequest::new(&[key()], ask.tls, ask.ttl, logins, &ask.node, || 5).unwrap()
}

fn issue(world: &mut World, session: SecretDigest, ask: Ask) -> Result<UserCerts, CoreError> {
    issue_for(world, session, &request(ask))
}

fn issue_for(
    world: &mut World,
    session: SecretDigest,
    request: &UserCertRequest,
) -> Result<UserCerts, CoreError> {
    // As the handler does it.
    if let Some(certs) = world.call(session, |tx, context| user_certs_at_once(tx, context, request))? {
        return Ok(certs);
    }
    let found = world.call(session, |view, context| candidates(view, context, request))?;
    world.call(session, |tx, context| user_certs(tx, context, request, &found))
}

fn principals(certs: &UserCerts) -> Vec<&str> {
    certs.ssh[0].principals.iter().map(String::as_str).collect()
}

fn conditions(logins: &[&str], labels: &[(&str, &str)]) -> ConditionsRow {
    let node_labels = labels.iter().map(|(key, value)| ((*key).to_owned(), strings(&[value]))).collect();
    ConditionsRow { logins: strings(logins).values, node_labels, ..ConditionsRow::default() }
}

fn role(logins: &[&str], labels: &[(&str, &str)]) -> RoleRow {
    RoleRow { allow: Some(conditions(logins, labels)), ..RoleRow::default() }
}

/// A user `ann` that holds this role alone.
fn with_role(world: &mut World, row: &RoleRow) -> SecretDigest {
    world.add_role("role", row);
    world.user_with("ann", "role", traits(&[]))
}

fn with_options(world: &mut World, options: RoleOptionsRow) -> SecretDigest {
    with_role(world, &RoleRow { options: Some(options), ..role(&["root"], &[("*", "*")]) })
}

#[test]
fn requests_are_checked_field_by_field() {
    let new = |keys: &[String], tls: &[u8], ttl: Option<u64>, logins: &[&str], node: &str| {
        let (ttl, logins) = (ttl.map(Duration::from_millis), strings(logins).values);
        UserCertRequest::new(keys, tls.to_vec(), ttl, logins, node, || 1).map(drop)
    };
    let keys: Vec<_> = (0..5).map(|_| key()).collect();
    assert!(new(&keys[..4], b"", Some(1000), &["root"], "Web1.example").is_ok());
    assert_invalid(new(&[], b"", None, &[], ""), "ssh_public_keys");
    assert_invalid(new(&keys, b"", None, &[], ""), "ssh_public_keys");
    assert_invalid(new(&["nonsense".into()], b"", None, &[], ""), "ssh_public_keys");
    assert_invalid(new(&keys[..1], b"x", None, &[], ""), "tls_public_key");
    for bad in ["*", "a,b", "root@x", "", "-o"] {
        assert_invalid(new(&keys[..1], b"", None, &["root", bad], ""), "logins[1]");
    }
    assert_invalid(new(&keys[..1], b"", None, &["root"; 257], ""), "logins");
    for bad in ["*", "a b", "*.example"] {
        assert_invalid(new(&keys[..1], b"", None, &[], bad), "node");
    }
}

#[test]
fn a_certificate_offered_as_a_key_is_refused() {
    let mut world = World::new();
    let ann = with_role(&mut world, &role(&["root"], &[("*", "*")]));
    let certs = issue(&mut world, ann, Ask::default()).unwrap();
    let certificate = SshCa::generate().unwrap().sign_user(&certs.ssh[0]).unwrap();
    let offered = UserCertRequest::new(&[key(), certificate], vec![], None, vec![], "", || 1);
    assert_invalid(offered.map(drop), "ssh_public_keys");
}

#[test]
fn a_ttl_of_zero_negative_or_above_the_maximum_is_an_error_or_clamped_never_forever() {
    let keys = [key()];
    for bad in [0, 999] {
        let ttl = Some(Duration::from_millis(bad));
        assert_invalid(UserCertRequest::new(&keys, vec![], ttl, vec![], "", || 1).map(drop), "ttl");
    }
    let mut world = World::new();
    let options = RoleOptionsRow { max_session_ttl_ms: Some(100_000), ..RoleOptionsRow::default() };
    let ann = with_options(&mut world, options);
    let now = world.now / 1000;
    for (wanted, expected) in
        [(None, 100), (Some(1), 1), (Some(99), 99), (Some(101), 100), (Some(u64::MAX), 100)]
    {
        let ask = Ask { ttl: wanted.map(Duration::from_secs), ..Ask::default() };
        let certs = issue(&mut world, ann, ask).unwrap();
        let (after, before) = (certs.ssh[0].valid_after, certs.ssh[0].valid_before);
        assert_eq!((after, before), (now - 60, now + expected), "{wanted:?}");
        assert_eq!(certs.expires_at_ms, (now + expected) * 1000);
    }
}

#[test]
fn a_certificate_never_outlives_the_session_it_came_from() {
    let mut world = World::new();
    let ann = with_options(&mut world, RoleOptionsRow::default());
    let session_end = (world.now + SESSION_TTL_MS) / 1000;
    assert_eq!(issue(&mut world, ann, Ask::default()).unwrap().ssh[0].valid_before, session_end);
    world.now = session_end * 1000 - 1;
    let end = world.run(|tx, _| Ok(tx.get(&SessionKey(ann))?.unwrap().row.expires_at_ms)).unwrap();
    assert!(end > world.now);
    assert_eq!(issue(&mut world, ann, Ask::default()).unwrap().ssh[0].valid_before, session_end);
    world.now = end;
    assert!(matches!(issue(&mut world, ann, Ask::default()), Err(CoreError::Unauthenticated(_))));
}

#[test]
fn what_is_specified_can_be_signed_and_holds_what_the_roles_allow() {
    let mut world = World::new();
    let options = RoleOptionsRow {
        permit_port_forwarding: Some(true),
        source_addresses: vec!["192.0.2.0/24".into()],
        ..RoleOptionsRow::default()
    };
    let ann = with_options(&mut world, options);
    let tls = KeyPair::generate_p256().unwrap().spki_der().to_vec();
    let certs = issue(&mut world, ann, Ask { tls, ..Ask::default() }).unwrap();
    let spec = &certs.ssh[0];
    let extensions = UserExtensions { pty: true, port_forwarding: true, ..UserExtensions::default() };
    assert_eq!(
        (spec.extensions, spec.source_addresses.as_slice()),
        (extensions, &["192.0.2.0/24".to_owned()][..])
    );

    let open = |active: &ActiveCa| {
        let key = &active.key;
        let bytes = unseal(&kek(), active.kind, &key.public, &key.sealed_private).unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    };
    let ca = SshCa::from_openssh(&open(&certs.user_ca)).unwrap();
    let ssh = parse_certificate(&ca.sign_user(spec).unwrap()).unwrap();
    assert_eq!((ssh.principals.as_slice(), ssh.key_id.as_str()), (&["root".to_owned()][..], "ann"));
    let ca = X509Ca::from_pems(&certs.tls_ca.key.public, &open(&certs.tls_ca)).unwrap();
    let info = CertificateInfo::from_pem(&ca.issue(certs.tls.as_ref().unwrap()).unwrap()).unwrap();
    assert_eq!(info.identity, Some(Identity::User { cluster: "test".into(), name: "ann".into() }));
    assert_eq!(info.not_after + 1, spec.valid_before);
    assert!(!certs.tls.unwrap().server_auth);

    let record = world.last_audit();
    assert_eq!((record.event.as_str(), record.actor.as_str()), ("cert.user.issue", "user:ann"));
    assert_eq!((record.fields["logins"].as_str(), record.fields["serials"].as_str()), ("root", "5"));
    assert!(record.fields["keys"].starts_with("SHA256:"));
}

#[test]
fn every_key_gets_its_own_certificate() {
    let mut world = World::new();
    let ann = with_role(&mut world, &role(&["root"], &[("*", "*")]));
    let keys = [key(), key(), key()];
    let mut serial = 0;
    let random = || {
        serial += 1;
        serial
    };
    let request = UserCertRequest::new(&keys, vec![], None, vec![], "", random).unwrap();
    let certs = issue_for(&mut world, ann, &request).unwrap();
    let issued: Vec<_> = certs.ssh.iter().map(|spec| (spec.public_key.line(), spec.serial)).collect();
    assert_eq!(issued, [(keys[0].clone(), 1), (keys[1].clone(), 2), (keys[2].clone(), 3)]);
    assert!(certs.tls.is_none());
}

#[test]
fn principals_are_logins_everywhere_or_logins_on_nodes() {
    let mut world = World::new();
    let dev = world.joined(NodeKind::Ssh, "web1", &[("env", "dev")]);
    let prod = world.joined(NodeKind::Ssh, "web2", &[("env", "prod")]);
    world.joined(NodeKind::Ingest, "ingest1", &[("env", "dev")]);
    world.add_role("every", &role(&["guest"], &[("*", "*")]));
    world.add_role("dev", &role(&["root", "guest"], &[("env", "dev")]));
    let grants = crate::testing::grants(&["every", "dev"]);
    world.add_user("ann", grants);
    let ann = world.log_in("ann");

    let root = format!("root@{}", dev.id());
    let certs = issue(&mut world, ann, Ask::default()).unwrap();
    assert_eq!(principals(&certs), ["guest", root.as_str()]);
    assert_eq!(certs.logins, ["guest".to_owned(), "root".to_owned()].into());
    let certs = issue(&mut world, ann, Ask { logins: &["root"], ..Ask::default() }).unwrap();
    assert_eq!(principals(&certs), [root.as_str()]);

    // For one node, by id or by name, only for that node.
    let guest = format!("guest@{}", dev.id());
    for node in [dev.id().to_string(), "WEB1".into()] {
        let certs = issue(&mut world, ann, Ask { node, ..Ask::default() }).unwrap();
        assert_eq!(principals(&certs), [guest.as_str(), root.as_str()]);
    }
    let guest = format!("guest@{}", prod.id());
    let certs = issue(&mut world, ann, Ask { node: "web2".into(), ..Ask::default() }).unwrap();
    assert_eq!(principals(&certs), [guest.as_str()]);
    let refused = issue(&mut world, ann, Ask { node: "web2".into(), logins: &["root"], ..Ask::default() });
    assert_denied(refused, "do not allow the login root on that node");
}

#[test]
fn deny_wins_on_the_nodes_that_it_names() {
    let mut world = World::new();
    let dev = world.joined(NodeKind::Ssh, "web1", &[("env", "dev")]);
    world.joined(NodeKind::Ssh, "web2", &[("env", "prod")]);
    let deny = Some(conditions(&["root"], &[("env", "prod")]));
    let ann = with_role(&mut world, &RoleRow { deny, ..role(&["root"], &[("*", "*")]) });
    // Not `root`, which would be good on every node.
    let certs = issue(&mut world, ann, Ask::default()).unwrap();
    assert_eq!(principals(&certs), [format!("root@{}", dev.id())]);
    assert_denied(issue(&mut world, ann, Ask { node: "web2".into(), ..Ask::default() }), "allow no login");
}

#[test]
fn what_is_not_allowed_is_refused() {
    let mut world = World::new();
    world.joined(NodeKind::Ssh, "web1", &[("env", "prod")]);
    let ann = with_role(&mut world, &role(&["root"], &[("env", "dev")]));
    assert_denied(issue(&mut world, ann, Ask::default()), "allow no login on any node");
    for logins in [&["root"][..], &["admin"]] {
        assert_denied(issue(&mut world, ann, Ask { logins, ..Ask::default() }), "do not allow the login");
    }
    let auditor = world.user_with("eve", "auditor", traits(&[("logins", &["root"])]));
    assert_denied(issue(&mut world, auditor, Ask::default()), "allow no login");
    let request = request(Ask::default());
    let anonymous = world.run(|tx, context| user_certs(tx, context, &request, &Candidates::default()));
    assert!(matches!(anonymous, Err(CoreError::Unauthenticated(_))));
    let anonymous = world.run(|view, context| candidates(view, context, &request));
    assert!(matches!(anonymous, Err(CoreError::Unauthenticated(_))));
    assert!(world.events(0).iter().all(|event| event != "cert.user.issue"));
}

#[test]
fn not_found_and_denied_look_alike_where_existence_is_a_secret() {
    let mut world = World::new();
    let hidden = world.joined(NodeKind::Ssh, "web1", &[("env", "prod")]);
    world.joined(NodeKind::Ingest, "ingest1", &[("env", "dev")]);
    let mut joining = Host::new(NodeKind::Ssh);
    world.add_token(crate::world::new_token("t", NodeKind::Ssh));
    world.ask(&mut joining, "t", "joining", &[]).unwrap();
    let ann = with_role(&mut world, &role(&["root"], &[("env", "dev")]));
    let mut answers = Vec::new();
    let unknown = AgentId::from_random([200; 16]).to_string();
    for node in ["web1", hidden.id().as_str(), "nowhere", &unknown, "ingest1", "joining"] {
        answers.push(issue(&mut world, ann, Ask { node: node.into(), ..Ask::default() }).unwrap_err());
    }
    assert!(answers.iter().all(|answer| answer == &answers[0]), "{answers:?}");
}

#[test]
fn a_second_factor_is_needed_where_a_role_asks_for_it() {
    let mut world = World::new();
    let ann = with_options(&mut world, RoleOptionsRow { require_mfa: true, ..RoleOptionsRow::default() });
    assert_denied(issue(&mut world, ann, Ask::default()), "second factor");
    world
        .run(|tx, _| {
            use store_txn::TransactionExt as _;
            let mut row = tx.get(&SessionKey(ann))?.unwrap().row;
            row.method = AuthMethod::Webauthn.into();
            tx.put(&SessionKey(ann), &row);
            Ok(())
        })
        .unwrap();
    assert!(issue(&mut world, ann, Ask::default()).is_ok());
}

#[test]
fn more_principals_than_a_certificate_holds_are_refused_unless_a_node_is_named() {
    let mut world = World::new();
    let logins: Vec<String> = (0..64).map(|n| format!("user{n}")).collect();
    let logins: Vec<&str> = logins.iter().map(String::as_str).collect();
    let ann = with_role(&mut world, &role(&logins, &[("env", "dev")]));
    for number in 0..4 {
        world.joined(NodeKind::Ssh, &format!("web{number}"), &[("env", "dev")]);
    }
    assert_eq!(issue(&mut world, ann, Ask::default()).unwrap().ssh[0].principals.len(), 256);
    let last = world.joined(NodeKind::Ssh, "web4", &[("env", "dev")]);
    assert!(matches!(issue(&mut world, ann, Ask::default()), Err(CoreError::Precondition(_))));
    let certs = issue(&mut world, ann, Ask { node: "web4".into(), ..Ask::default() }).unwrap();
    assert_eq!(certs.ssh[0].principals.len(), 64);
    assert!(principals(&certs).iter().all(|principal| principal.ends_with(last.id().as_str())));
    let certs = issue(&mut world, ann, Ask { logins: &["user7"], ..Ask::default() }).unwrap();
    assert_eq!(certs.ssh[0].principals.len(), 5);
}

/// A trait is the user's, or an identity provider's: its values must not become other principals.
#[test]
fn locked_logins_and_nodes_are_in_no_certificate() {
    let mut world = World::new();
    let ann = with_role(&mut world, &role(&["root", "guest"], &[("env", "dev")]));
    let [first, second] = ["web1.example.org", "web2.example.org"]
        .map(|name| world.joined(NodeKind::Ssh, name, &[("env", "dev")]));
    let lock = |world: &mut World, number: u8, target| {
        let (id, message) = (crate::names::LockId::from_random([number; 16]), String::new());
        let new = lock::NewLock { id, target, message, ttl: None };
        world.admin(|tx, context| lock::create(tx, context, new)).unwrap();
    };
    lock(&mut world, 1, lock::Target::login("", "root").unwrap());
    lock(&mut world, 2, lock::Target::Node(first.id()));
    let certs = issue(&mut world, ann, Ask::default()).unwrap();
    assert_eq!(principals(&certs), [format!("guest@{}", second.id())]);
    let refused = issue(&mut world, ann, Ask { logins: &["root"], ..Ask::default() });
    assert_denied(refused, "root");
    let refused = issue(&mut world, ann, Ask { node: first.id().to_string(), ..Ask::default() });
    assert_denied(refused, "no login on that node");
}

#[test]
fn a_trait_value_that_is_no_login_is_never_a_principal() {
    let mut world = World::new();
    let host = world.joined(NodeKind::Ssh, "web1", &[]);
    let evil = format!("root@{}", host.id());
    let values = ["ann", evil.as_str(), "a,root", "*", ""];
    let grants = crate::user::Grants { traits: traits(&[]), ..crate::testing::grants(&["access"]) };
    world.add_user("ann", grants);
    let ann = world.log_in("ann");
    world
        .run(|tx, _| {
            use store_txn::TransactionExt as _;
            let key = crate::tables::UserKey(crate::testing::name("ann"));
            let mut row = tx.get(&key)?.unwrap().row;
            row.traits = traits(&[("logins", &values)]);
            tx.put(&key, &row);
            Ok(())
        })
        .unwrap();
    assert_eq!(principals(&issue(&mut world, ann, Ask::default()).unwrap()), ["ann"]);
}

/// The roles of the moment decide, in the transaction that issues.
#[test]
fn a_role_that_was_removed_in_between_counts() {
    let mut world = World::new();
    let ann = with_role(&mut world, &role(&["root"], &[("*", "*")]));
    assert!(issue(&mut world, ann, Ask::default()).is_ok());
    let narrowed = role(&["guest"], &[("*", "*")]);
    world
        .admin(|tx, context| {
            crate::role::update(tx, context, &crate::testing::role_name("role"), 0, &narrowed).map(drop)
        })
        .unwrap();
    assert_eq!(principals(&issue(&mut world, ann, Ask::default()).unwrap()), ["guest"]);
}

fn numbered(number: u32) -> AgentId {
    AgentId::parse("id", &format!("{number:08}-0000-4000-8000-000000000000")).unwrap()
}

/// Writes so many SSH nodes; of each hundred, the first is `env=dev`.
fn add_fleet(world: &mut World, count: u32) {
    use store_txn::TransactionExt as _;
    world
        .run(|tx, _| {
            for number in 0..count {
                let env = if number % 100 == 0 { "dev" } else { "prod" };
                let row = NodeRow {
                    kind: NodeKind::Ssh.into(),
                    hostname: format!("web{number}"),
                    admin_labels: crate::world::labels(&[("env", env)]),
                    expires_at_ms: u64::MAX,
                    ..NodeRow::default()
                };
                tx.put(&NodeKey(numbered(number)), &row);
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn the_transaction_reads_the_nodes_that_are_granted_and_no_others() {
    let mut world = World::new();
    let ann = with_role(&mut world, &role(&["root"], &[("env", "dev")]));
    add_fleet(&mut world, 5_000);
    let named = request(Ask { node: "web0".into(), ..Ask::default() });
    let request = request(Ask::default());
    let found = world.call(ann, |view, context| candidates(view, context, &request)).unwrap();
    let (certs, keys, ranges) = world
        .call(ann, |tx, context| {
            let mut observed = Observed::new(tx);
            let certs = user_certs(&mut observed, context, &request, &found)?;
            Ok((certs, observed.keys, observed.ranges))
        })
        .unwrap();
    assert_eq!(certs.ssh[0].principals.len(), 50);
    // The row and the labels of each, and some rows of the cluster.
    assert!((100..=120).contains(&keys), "{keys} keys");
    // The logins and the nodes that are locked.
    assert_eq!(ranges, 2);

    // There is nothing to look for where the node is named.
    let none = world.call(ann, |view, context| candidates(view, context, &named)).unwrap();
    assert_eq!(none, Candidates::default());
}

#[test]
fn no_nodes_are_looked_for_where_the_roles_name_none() {
    let at_once = |labels: &[(&str, &str)], ask: Ask| {
        let mut world = World::new();
        let ann = with_role(&mut world, &role(&["root"], labels));
        add_fleet(&mut world, 5_000);
        let request = request(ask);
        let decided = world.call(ann, |tx, context| {
            let mut observed = Observed::new(tx);
            let certs = user_certs_at_once(&mut observed, context, &request)?;
            Ok((certs, observed.keys))
        });
        decided.unwrap()
    };
    let (certs, keys) = at_once(&[("*", "*")], Ask::default());
    assert_eq!(principals(&certs.unwrap()), ["root"]);
    assert!(keys < 20, "{keys} keys");
    // Where they do, nothing is issued before the nodes were looked for; but for a request that names its node.
    assert!(at_once(&[("env", "dev")], Ask::default()).0.is_none());
    let named = Ask { node: numbered(0).to_string(), ..Ask::default() };
    assert_eq!(at_once(&[("env", "dev")], named).0.unwrap().ssh[0].principals.len(), 1);
}

/// What was found is judged again by the state of the transaction.
#[test]
fn a_node_whose_labels_changed_in_between_is_not_granted() {
    let mut world = World::new();
    let ann = with_role(&mut world, &role(&["root"], &[("env", "dev")]));
    let hosts: Vec<_> = ["web1", "web2", "web3"]
        .into_iter()
        .map(|hostname| world.joined(NodeKind::Ssh, hostname, &[("env", "dev")]))
        .collect();
    let request = request(Ask::default());
    let found = world.call(ann, |view, context| candidates(view, context, &request)).unwrap();
    assert_eq!(found.0.len(), 3);
    let prod = crate::world::labels(&[("env", "prod")]);
    world.admin(|tx, context| node::update_labels(tx, context, &hosts[0].id(), prod.clone(), 0)).unwrap();
    world.admin(|tx, context| node::remove(tx, context, Some(&hosts[1].id()))).unwrap();
    let issued = |world: &mut World| world.call(ann, |tx, context| user_certs(tx, context, &request, &found));
    assert_eq!(principals(&issued(&mut world).unwrap()), [format!("root@{}", hosts[2].id())]);
    world.admin(|tx, context| node::update_labels(tx, context, &hosts[2].id(), prod, 0)).unwrap();
    assert_denied(issued(&mut world), "allow no login on any node");
}

#[test]
fn an_x509_certificate_alone_needs_no_login_and_tells_the_roles() {
    let mut world = World::new();
    world.add_role("nothing", &RoleRow::default());
    let ann = world.user_with("ann", "nothing", traits(&[]));
    assert_denied(issue(&mut world, ann, Ask::default()), "no login");
    let spki = KeyPair::generate_p256().unwrap().spki_der();
    let request = UserCertRequest::new(&[], spki, None, Vec::new(), "", || 5).unwrap();
    let certs = issue_for(&mut world, ann, &request).unwrap();
    assert!(certs.ssh.is_empty() && certs.logins.is_empty());
    assert_eq!((certs.tls_roles.as_slice(), certs.tls.is_some()), (&["nothing".to_owned()][..], true));
    let neither = UserCertRequest::new(&[], Vec::new(), None, Vec::new(), "", || 5);
    assert_invalid(neither, "ssh_public_keys");
}
