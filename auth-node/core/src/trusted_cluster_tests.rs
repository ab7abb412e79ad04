use std::time::Duration;

use mezite_pki::{
    identity::Identity,
    ssh::{SshCa, SshKeyPair},
    x509::{KeyPair, LeafSpec, X509Ca},
};

use super::*;
use crate::{
    Caller, Credential,
    issue::{self, Candidates, UserCertRequest, UserCerts},
    labels::Labels,
    lock::{self, NewLock, Target},
    names::{LockId, UserName},
    node::{self, Filter},
    presence::PresenceTtl,
    remote::RemoteCredential,
    role,
    tables::{ConditionsRow, NodeKind, RoleRow},
    testing::{assert_invalid, grants, name, role_name, strings},
    token::NewToken,
    user::{self, NewUser},
    world::{Host, World, assert_denied, new_token, secret},
};

/// Another cluster, `other`.
struct Other {
    tls: X509Ca,
    told: Authorities,
}

fn authorities(tls: &X509Ca, revision: u64) -> Authorities {
    let line = || SshCa::generate().unwrap().public_line();
    let told = vec![
        (CaKind::Tls, vec![tls.certificate_pem().to_owned()]),
        (CaKind::User, vec![line()]),
        (CaKind::Host, vec![line()]),
        (CaKind::Audit, vec!["passed over".to_owned()]),
    ];
    Authorities::new(told, revision).unwrap()
}

impl Other {
    fn new() -> Self {
        let tls = X509Ca::generate("mezite", 1, 4_000_000_000).unwrap();
        let told = authorities(&tls, 5);
        Self { tls, told }
    }

    /// What a user of it shows.
    fn shows(&self, user: &str, roles: &[&str]) -> Credential {
        shown(&self.tls, "other", user, roles)
    }
}

fn shown(tls: &X509Ca, cluster: &str, user: &str, roles: &[&str]) -> Credential {
    let roles: Vec<_> = roles.iter().map(|&role| role.to_owned()).collect();
    let spec = LeafSpec {
        public_key: KeyPair::generate_p256().unwrap().spki_der(),
        common_name: user.into(),
        identity: Some(Identity::User { cluster: cluster.into(), name: user.into() }),
        dns_names: vec![],
        ip_addresses: vec![],
        not_before: 1,
        not_after: 3_000_000_000,
        client_auth: true,
        server_auth: false,
    };
    let pem = tls.issue_to_user(&spec, &roles).unwrap();
    Credential::Remote(Box::new(RemoteCredential {
        cluster: cluster_name(cluster),
        name: name(user),
        roles,
        certificate: der(&pem),
        ends_at_ms: 3_000_000_000_000,
    }))
}

fn der(pem: &str) -> Vec<u8> {
    mezite_pki::x509::certificate_der(pem).unwrap()
}

fn cluster_name(text: &str) -> ClusterName {
    ClusterName::parse("name", text).unwrap()
}

fn wanted(mappings: &[(&str, &[&str])], disabled: bool) -> NewTrustedCluster {
    let mapping = |(remote, local): &(&str, &[&str])| RoleMappingRow {
        remote: (*remote).to_owned(),
        local: local.iter().map(|&role| role.to_owned()).collect(),
    };
    let mappings = mappings.iter().map(mapping).collect();
    NewTrustedCluster::new("other", vec!["a.example:3025".into()], mappings, disabled).unwrap()
}

/// A cluster with a role `guest` for everywhere as `visitor`, and a host.
fn world() -> (World, Host) {
    let mut world = World::new();
    let allow = ConditionsRow {
        logins: vec!["visitor".into(), "{{internal.logins}}".into()],
        node_labels: [("*".to_owned(), strings(&["*"]))].into(),
        ..ConditionsRow::default()
    };
    world.add_role("guest", &RoleRow { allow: Some(allow), ..RoleRow::default() });
    let host = world.joined(NodeKind::Ssh, "web1", &[]);
    (world, host)
}

fn trusting(other: &Other, mappings: &[(&str, &[&str])]) -> World {
    let (mut world, _) = world();
    let new = wanted(mappings, false);
    world.admin(|tx, context| create(tx, context, &new, &other.told)).unwrap();
    world
}

fn change(world: &mut World, mappings: &[(&str, &[&str])], disabled: bool) -> TrustedCluster {
    let new = wanted(mappings, disabled);
    world.admin(|tx, context| update(tx, context, &new, 0)).unwrap()
}

fn ssh_request(serial: u64) -> UserCertRequest {
    let key = SshKeyPair::generate_ed25519("").unwrap().public_line();
    UserCertRequest::new(&[key], Vec::new(), None, Vec::new(), "", || serial).unwrap()
}

fn issue(
    world: &mut World,
    credential: &Credential,
    request: &UserCertRequest,
) -> Result<UserCerts, CoreError> {
    world.with(credential, |tx, context| issue::user_certs(tx, context, request, &Candidates::default()))
}

fn revoked(world: &mut World) -> Vec<u64> {
    world.run(|tx, _| revocation::serials(tx)).unwrap()
}

fn unauthenticated<T: std::fmt::Debug>(result: Result<T, CoreError>) {
    assert!(matches!(result, Err(CoreError::Unauthenticated(_))), "{result:?}");
}

#[test]
fn a_mapped_user_gets_certificates_under_its_own_name_and_others_get_nothing() {
    let other = Other::new();
    let mut world = trusting(&other, &[("developer", &["guest"])]);
    let certs = issue(&mut world, &other.shows("ann", &["developer", "admin"]), &ssh_request(7)).unwrap();
    assert_eq!((certs.ssh[0].key_id.as_str(), certs.ssh[0].serial), ("ann@other", 7));
    // Traits of another cluster fill no template here.
    assert_eq!(certs.ssh[0].principals, ["visitor"]);
    assert!(certs.tls.is_none());
    let record = world.last_audit();
    assert_eq!((record.actor.as_str(), record.target.as_str()), ("user:ann@other", "user:ann@other"));
    // Default deny: also for an admin there, and for who has no role at all.
    for roles in [&["admin", "access", "guest"][..], &[]] {
        assert_denied(issue(&mut world, &other.shows("ann", roles), &ssh_request(8)), "no login");
    }
    // What is mapped from any role is for whoever has one.
    change(&mut world, &[("*", &["guest"])], false);
    assert!(issue(&mut world, &other.shows("bob", &["whatever"]), &ssh_request(9)).is_ok());
    assert_denied(issue(&mut world, &other.shows("bob", &[]), &ssh_request(9)), "no login");
}

#[test]
fn a_certificate_ends_with_the_one_that_was_shown() {
    let other = Other::new();
    let mut world = trusting(&other, &[("developer", &["guest"])]);
    let Credential::Remote(mut shown) = other.shows("ann", &["developer"]) else { unreachable!() };
    shown.ends_at_ms = world.now + 60_000;
    let certs = issue(&mut world, &Credential::Remote(shown), &ssh_request(7)).unwrap();
    assert_eq!(certs.expires_at_ms, world.now + 60_000);
}

#[test]
fn only_the_cluster_that_is_named_vouches_for_its_users() {
    let (other, stranger) = (Other::new(), Other::new());
    let mut world = trusting(&other, &[("developer", &["guest"])]);
    let mut refused = |credential: &Credential| unauthenticated(world.with(credential, |_, _| Ok(())));
    // Signed by somebody else; of a cluster that is not trusted; of this one.
    refused(&shown(&stranger.tls, "other", "ann", &["developer"]));
    refused(&shown(&other.tls, "third", "ann", &["developer"]));
    refused(&shown(&other.tls, "test", "boss", &["admin"]));
    // A name that is too long for one user's.
    refused(&other.shows(&"a".repeat(58), &["developer"]));
    let caller =
        world.with(&other.shows(&"a".repeat(57), &["developer"]), |_, context| Ok(context.caller.actor()));
    assert_eq!(caller.unwrap(), format!("user:{}@other", "a".repeat(57)));
}

#[test]
fn a_user_of_another_cluster_is_no_user_of_this_one() {
    let other = Other::new();
    let mut world = trusting(&other, &[("developer", &["guest", "admin"])]);
    let ann = other.shows("ann", &["developer"]);
    world
        .with(&ann, |_, context| {
            assert!(matches!(&context.caller, Caller::Remote(user) if user.roles.len() == 2));
            unauthenticated(context.caller.user().map(|_| ()));
            Ok(())
        })
        .unwrap();
    // No chain of trust, and no access requests.
    let tls = KeyPair::generate_p256().unwrap().spki_der();
    let request = UserCertRequest::new(&[], tls, None, Vec::new(), "", || 1).unwrap();
    assert_denied(issue(&mut world, &ann, &request), "ssh alone");
    let request = ssh_request(1).with_requests(&["0".repeat(32)]).unwrap();
    assert_denied(issue(&mut world, &ann, &request), "users of this cluster");
    // It sees where it may log in, and no ingest, whatever its role here is.
    world.joined(NodeKind::Ingest, "ingest1", &[]);
    let page = PageRequest { size: 10, after: None };
    let ttl = PresenceTtl(Duration::from_secs(60));
    let seen =
        world.with(&ann, |tx, context| node::list(tx, context, &Filter::default(), &page, ttl)).unwrap();
    let logins: Vec<_> = seen.items.iter().map(|item| item.logins.iter().collect::<Vec<_>>()).collect();
    assert_eq!(logins, [["visitor"]]);
    assert_denied(
        world.with(&ann, |tx, context| node::unfinished(tx, context, &Filter::default(), &page)),
        "joins",
    );
}

/// Something that is done in the middle of a test.
type Step = fn(&mut World);

#[test]
fn what_ends_the_trust_ends_what_was_issued() {
    let other = Other::new();
    let developers: &[(&str, &[&str])] = &[("developer", &["guest"]), ("ops", &["guest", "access"])];
    let issued = |world: &mut World| {
        issue(world, &other.shows("ann", &["developer"]), &ssh_request(7)).unwrap();
    };
    let steps: [(&str, Step); 3] = [
        ("disabled", |world| {
            let same: &[(&str, &[&str])] =
                &[("developer", &["guest"]), ("ops", &["guest", "access"]), ("x", &["guest"])];
            change(world, same, true);
        }),
        ("narrowed", |world| {
            let less: &[(&str, &[&str])] =
                &[("developer", &["guest"]), ("ops", &["guest"]), ("x", &["guest"])];
            change(world, less, false);
        }),
        ("deleted", |world| world.admin(|tx, context| delete(tx, context, &cluster_name("other"))).unwrap()),
    ];
    for (what, step) in steps {
        let mut world = trusting(&other, developers);
        issued(&mut world);
        // What only adds revokes nothing.
        let more: &[(&str, &[&str])] =
            &[("developer", &["guest"]), ("ops", &["guest", "access"]), ("x", &["guest"])];
        change(&mut world, more, false);
        assert_eq!(revoked(&mut world), [0; 0], "{what}");
        step(&mut world);
        assert_eq!(revoked(&mut world), [7], "{what}");
        let again = issue(&mut world, &other.shows("ann", &["developer"]), &ssh_request(8));
        match what {
            "narrowed" => drop(again.unwrap()),
            _ => unauthenticated(again),
        }
    }
}

#[test]
fn locks_are_for_users_of_other_clusters_too() {
    let other = Other::new();
    let mut world = trusting(&other, &[("developer", &["guest"])]);
    let (ann, bob) = (other.shows("ann", &["developer"]), other.shows("bob", &["developer"]));
    issue(&mut world, &ann, &ssh_request(7)).unwrap();
    issue(&mut world, &bob, &ssh_request(8)).unwrap();
    let add = |world: &mut World, target: Target| {
        let new = NewLock {
            id: LockId::from_random([target.kind() as u8; 16]),
            target,
            message: "stolen".into(),
            ttl: None,
        };
        world.admin(|tx, context| lock::create(tx, context, new))
    };
    add(&mut world, Target::User(name("ann@other"))).unwrap();
    assert_eq!(revoked(&mut world), [7]);
    let locked = issue(&mut world, &ann, &ssh_request(9));
    assert!(matches!(locked, Err(CoreError::Locked(_))), "{locked:?}");
    assert!(issue(&mut world, &bob, &ssh_request(10)).is_ok());
    // Of a cluster that is not trusted there are no users.
    let missing = add(&mut world, Target::User(name("ann@third")));
    assert!(matches!(missing, Err(CoreError::NotFound { .. })));
    // A lock on a role here is one on whoever is mapped to it.
    add(&mut world, Target::Role(role_name("guest"))).unwrap();
    assert!(matches!(issue(&mut world, &bob, &ssh_request(11)), Err(CoreError::Locked(_))));
}

#[test]
fn a_name_is_one_users() {
    let other = Other::new();
    let mut world = trusting(&other, &[("developer", &["guest"])]);
    let new = |user: &str| NewUser {
        name: UserName::parse("", user).unwrap(),
        grants: grants(&["access"]),
        proof: crate::testing::hash(user).into(),
    };
    for reserved in ["ann@other", "ANN@Other", "a@b@other"] {
        let refused = world.admin(|tx, context| user::create(tx, context, &new(reserved)));
        assert_invalid(refused, "user.name");
    }
    world.admin(|tx, context| user::create(tx, context, &new("ann@example.com"))).unwrap();
    // Also while it is disabled.
    change(&mut world, &[], true);
    assert_invalid(world.admin(|tx, context| user::create(tx, context, &new("ann@other"))), "user.name");

    world.admin(|tx, context| delete(tx, context, &cluster_name("other"))).unwrap();
    world.admin(|tx, context| user::create(tx, context, &new("ann@other"))).unwrap();
    let again = wanted(&[], false);
    let refused = world.admin(|tx, context| create(tx, context, &again, &other.told));
    assert!(
        matches!(&refused, Err(CoreError::Precondition(why)) if why.contains("ann@other")),
        "{refused:?}"
    );
    world.admin(|tx, context| user::delete(tx, context, &name("ann@other"))).unwrap();
    world.admin(|tx, context| create(tx, context, &again, &other.told)).unwrap();
}

#[test]
fn nobody_is_trusted_with_more_than_an_admin_may_give_and_none_of_itself() {
    let other = Other::new();
    let (mut world, _) = world();
    let refused = |world: &mut World, new: &NewTrustedCluster, told: &Authorities| {
        world.admin(|tx, context| create(tx, context, new, told)).unwrap_err()
    };
    let ghost = refused(&mut world, &wanted(&[("x", &["ghost"])], false), &other.told);
    assert!(matches!(ghost, CoreError::NotFound { kind: "role", .. }), "{ghost:?}");
    let own = NewTrustedCluster::new("test", vec!["a:1".into()], vec![], false).unwrap();
    assert!(matches!(refused(&mut world, &own, &other.told), CoreError::Invalid { .. }));
    // A cluster of another name with this one's authority.
    let public = world.run(|tx, _| Ok(ca::active(tx, CaKind::Tls)?.key.public)).unwrap();
    let mut told = other.told.clone();
    told.rows[2].keys = vec![public];
    assert!(matches!(refused(&mut world, &wanted(&[], false), &told), CoreError::Invalid { .. }));

    world.add_user("ann", grants(&["access"]));
    let ann = world.log_in("ann");
    let more = wanted(&[("x", &["admin"])], false);
    assert_denied(world.call(ann, |tx, context| create(tx, context, &more, &other.told)), "role admin");
    world.admin(|tx, context| create(tx, context, &more, &other.told)).unwrap();
    let less = wanted(&[("x", &["access"])], false);
    assert_denied(world.call(ann, |tx, context| update(tx, context, &less, 0)), "role admin");
    assert_denied(world.call(ann, |tx, context| delete(tx, context, &cluster_name("other"))), "role admin");
    assert!(matches!(refused(&mut world, &less, &other.told), CoreError::AlreadyExists { .. }));
    let stale = world.admin(|tx, context| update(tx, context, &less, 1));
    assert!(matches!(stale, Err(CoreError::StaleRevision { .. })));
    // A role that is mapped cannot vanish, and one made later under its name is not given.
    change(&mut world, &[("x", &["guest"])], false);
    let mapped = world.admin(|tx, context| role::delete(tx, context, &role_name("guest")));
    assert!(matches!(mapped, Err(CoreError::Precondition(why)) if why.contains("trusted cluster other")));
    world.admin(|tx, context| delete(tx, context, &cluster_name("other"))).unwrap();
    world.admin(|tx, context| role::delete(tx, context, &role_name("guest"))).unwrap();
}

fn exchange_token(name: &str) -> NewToken {
    NewToken { method: JoinMethod::Exchange, ..new_token(name, NodeKind::Unspecified) }
}

fn give(world: &mut World, text: &str, id: u8, asker: &str) -> Result<TrustBundle, CoreError> {
    let asker = cluster_name(asker);
    world
        .run(|tx, context| exchange(tx, context, secret(text), [id; 32], &asker))
        .and_then(Verdict::into_result)
}

#[test]
fn a_token_is_for_one_exchange_and_for_nothing_else() {
    let mut world = World::new();
    world.add_token(exchange_token("home"));
    let bundle = give(&mut world, "home", 1, "there").unwrap();
    assert_eq!(bundle.cluster_name, "test");
    assert_eq!(world.last_audit().fields["cluster"], "there");
    // A lost answer is given again, and nobody else gets one.
    assert_eq!(give(&mut world, "home", 1, "there").unwrap(), bundle);
    assert_denied(give(&mut world, "home", 2, "there"), "not accepted");
    let denied = world.last_audit();
    assert_eq!((denied.event.as_str(), denied.target.as_str()), ("trust.exchange.denied", "token:home"));
    assert_denied(give(&mut world, "guessed", 3, "there"), "not accepted");

    // Nobody joins with it, and a join token exchanges nothing.
    world.add_token(exchange_token("second"));
    for kind in [NodeKind::Ssh, NodeKind::Ingest] {
        let refused = world.ask(&mut Host::new(kind), "second", "web1", &[]);
        assert_denied(refused.map(|_| ()), "not accepted");
    }
    let validated = world.run(|tx, context| token::validate(tx, context, secret("second")));
    assert_denied(validated.and_then(Verdict::into_result), "not accepted");
    world.add_token(new_token("node", NodeKind::Ssh));
    assert_denied(give(&mut world, "node", 4, "there"), "not accepted");
    assert_denied(give(&mut world, "second", 5, "test"), "does not trust itself");
    give(&mut world, "second", 5, "there").unwrap();
    // It ends.
    world.add_token(exchange_token("third"));
    world.now += 3_600_001;
    assert_denied(give(&mut world, "third", 6, "there"), "not accepted");
    // Its name is free, and a later one is another token.
    world.add_token(exchange_token("third"));
    give(&mut world, "third", 6, "there").unwrap();
}

#[test]
fn a_token_for_an_exchange_has_nothing_of_a_join() {
    let mut world = World::new();
    let mut refused = |new: NewToken, field: &str| {
        assert_invalid(world.admin(|tx, context| token::create(tx, context, new)), field);
    };
    refused(NewToken { max_uses: 2, ..exchange_token("a") }, "max_uses");
    refused(NewToken { labels: Labels::from([("a".into(), "b".into())]), ..exchange_token("a") }, "labels");
    refused(NewToken { allowed_principals: vec!["a".into()], ..exchange_token("a") }, "allowed_principals");
    refused(NewToken { ttl: Some(Duration::from_secs(1)), ..exchange_token("a") }, "ttl");
}

#[test]
fn authorities_that_change_are_followed_and_users_with_them() {
    let other = Other::new();
    let mut world = trusting(&other, &[("developer", &["guest"])]);
    let take = |world: &mut World, asked: Result<Authorities, String>| {
        let of = cluster_name("other");
        world
            .run(|tx, context| {
                let known =
                    tx.get(&TrustedClusterKey(of.clone()))?.map(|stored| stored.row).unwrap_or_default();
                refreshed(tx, context, &of, &known, &asked)
            })
            .unwrap()
    };
    let status = |world: &mut World| world.run(|tx, _| get(tx, &cluster_name("other"))).unwrap();
    let records = world.audit().len();
    world.now += 1000;
    assert_eq!(take(&mut world, Ok(other.told.clone())), Refreshed::Same);
    assert_eq!((status(&mut world).refresh.refreshed_at_ms, world.audit().len()), (world.now, records));

    let revision = status(&mut world).revision;
    assert_eq!(take(&mut world, Err("no route\n".into())), Refreshed::Failed);
    let failed = status(&mut world);
    assert_eq!((failed.refresh.error.as_str(), failed.refresh.refreshed_at_ms), ("no route", world.now));
    assert_eq!(failed.revision, revision, "an admin's update is not disturbed");

    // A rotation: both, and then the new one alone.
    let new = X509Ca::generate("mezite", 1, 4_000_000_000).unwrap();
    let pems = [other.tls.certificate_pem(), new.certificate_pem()].map(str::to_owned);
    let with = |keys: &[String], revision| {
        let mut told = other.told.clone();
        told.rows[2].keys = keys.to_vec();
        told.revision = revision;
        Ok(told)
    };
    assert_eq!(take(&mut world, with(&pems, 6)), Refreshed::Changed);
    assert_eq!(world.last_audit().event, "trusted_cluster.refresh");
    assert_eq!(status(&mut world).refresh.error, "");
    let (old_user, new_user) =
        (other.shows("ann", &["developer"]), shown(&new, "other", "ann", &["developer"]));
    assert!(issue(&mut world, &old_user, &ssh_request(1)).is_ok());
    assert!(issue(&mut world, &new_user, &ssh_request(2)).is_ok());
    assert_eq!(take(&mut world, with(&pems[1..], 7)), Refreshed::Changed);
    unauthenticated(issue(&mut world, &old_user, &ssh_request(3)));
    assert!(issue(&mut world, &new_user, &ssh_request(4)).is_ok());

    // A node there that is behind brings nothing back.
    assert_eq!(take(&mut world, with(&pems, 6)), Refreshed::Failed);
    assert!(status(&mut world).refresh.error.contains("revision 6"));
    unauthenticated(issue(&mut world, &old_user, &ssh_request(5)));

    world.admin(|tx, context| delete(tx, context, &cluster_name("other"))).unwrap();
    assert_eq!(take(&mut world, with(&pems, 9)), Refreshed::Same, "what is gone stays so");
    let gone = world.run(|tx, _| get(tx, &cluster_name("other")));
    assert!(matches!(gone, Err(CoreError::NotFound { .. })));
}

#[test]
fn an_answer_counts_for_the_row_that_was_asked_and_for_a_revision_once() {
    let other = Other::new();
    let mut world = trusting(&other, &[("developer", &["guest"])]);
    let of = cluster_name("other");
    let row = |world: &mut World| {
        world.run(|tx, _| Ok(tx.get(&TrustedClusterKey(of.clone()))?.unwrap().row)).unwrap()
    };
    let take = |world: &mut World, known: &TrustedClusterRow, told: &Authorities| {
        world.run(|tx, context| refreshed(tx, context, &of, known, &Ok(told.clone()))).unwrap()
    };
    let (asked, records) = (row(&mut world), world.audit().len());
    let mut told = other.told.clone();
    told.rows[2].keys =
        vec![X509Ca::generate("mezite", 1, 4_000_000_000).unwrap().certificate_pem().to_owned()];

    // Others under a revision that was told before: whoever answers so could change them back and forth.
    assert_eq!(take(&mut world, &asked, &told), Refreshed::Failed);
    assert!(world.run(|tx, _| get(tx, &of)).unwrap().refresh.error.contains("same revision"));

    // The cluster was removed and trusted anew, or has other keys, since it was asked.
    told.revision += 1;
    let earlier = TrustedClusterRow { created_at_ms: asked.created_at_ms + 1, ..asked.clone() };
    let with_others = TrustedClusterRow { authorities: told.rows.clone(), ..asked.clone() };
    for known in [earlier, with_others] {
        assert_eq!(take(&mut world, &known, &told), Refreshed::Same);
    }
    assert_eq!((row(&mut world), world.audit().len()), (asked.clone(), records));
    assert_eq!(take(&mut world, &asked, &told), Refreshed::Changed);
}
