use super::{
    super::{make_local, testing::*},
    *,
};
use crate::{
    Credential,
    connector::{self, NewConnector, Secret},
    context,
    invite::NewInvite,
    lock::{self, NewLock, Target},
    names::LockId,
    second_factor,
    secret::SecretKind,
    tables::{ClusterConfigKey, ConnectorKey, GithubRow, OidcRow, ProviderRow, RoleMemberKey, SecondFactor},
    testing::{Cluster, anonymous, grants, hash, name, new_session, role_name},
    user::{self, Proof},
    webauthn::WebauthnSecret,
    world::assert_denied,
};

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

fn claims(user: &str, groups: &[&str]) -> Claims {
    Claims::from([
        ("preferred_username".to_owned(), vec![user.to_owned()]),
        ("groups".to_owned(), groups.iter().map(|&group| group.to_owned()).collect()),
    ])
}

fn proved(cluster: &mut Cluster, connector: &str, subject: &str, claims: Claims) -> Proved {
    let way = cluster.run(|tx| way(tx, &connector_name(connector))).unwrap();
    Proved { way, subject: subject.into(), claims }
}

fn conclude_with(cluster: &mut Cluster, proved: &Proved, next: &Next) -> Result<Done, CoreError> {
    cluster.run(|tx| conclude(tx, &anonymous(), proved, next))?.into_result()
}

/// Logs a user in that is known to a connector's provider under the name and a subject.
fn log_in_by(
    cluster: &mut Cluster,
    connector: &str,
    subject: &str,
    claims: Claims,
    number: u64,
) -> Result<(SecretDigest, SessionRow), CoreError> {
    let proved = proved(cluster, connector, subject, claims);
    let new = new_session(number);
    match conclude_with(cluster, &proved, &Next::Session(new.clone()))? {
        Done::Session(session) => Ok((new.digest, session)),
        Done::Code => panic!("a code for a session"),
    }
}

fn log_in(cluster: &mut Cluster, groups: &[&str], number: u64) -> Result<SecretDigest, CoreError> {
    log_in_by(cluster, "corp", "s1", claims("Ann", groups), number).map(|(digest, _)| digest)
}

fn stored(cluster: &mut Cluster, user: &str) -> Option<UserRow> {
    cluster.run(|tx| Ok(tx.get(&UserKey(name(user)))?.map(|user| user.row))).unwrap()
}

fn holders(cluster: &mut Cluster, role: &str) -> usize {
    cluster
        .run(|tx| Ok(tx.scan_under::<RoleMemberKey>(RoleMemberKey::front(&role_name(role)), None, 9)?.len()))
        .unwrap()
}

/// What the audit log says of the last refusal.
fn reason(cluster: &mut Cluster) -> String {
    let last = cluster.last_audit();
    assert_eq!((last.event.as_str(), last.fields["method"].as_str()), ("user.login.failed", "sso"));
    last.fields["reason"].clone()
}

#[test]
fn what_is_mapped_is_given_at_each_login_and_what_is_not_any_more_is_taken() {
    let mut cluster = cluster();
    let first = log_in(&mut cluster, &["admins", "others"], 1).unwrap();
    let user = stored(&mut cluster, "ann").unwrap();
    assert_eq!((user.connector.as_str(), user.subject.as_str()), ("corp", "s1"));
    assert_eq!(
        (user.roles, user.created_by.as_str()),
        (vec!["dev".to_owned(), "ops".into()], "connector:corp")
    );
    assert_eq!(user.traits["groups"].values, ["admins", "others"]);
    assert_eq!((holders(&mut cluster, "dev"), holders(&mut cluster, "ops")), (1, 1));
    let last = cluster.last_audit();
    let field = |name: &str| last.fields[name].as_str();
    assert_eq!(
        (last.event.as_str(), field("method"), field("connector"), field("subject")),
        ("user.login", "sso", "corp", "s1")
    );

    let second = log_in(&mut cluster, &["devs"], 2).unwrap();
    assert_eq!(stored(&mut cluster, "ann").unwrap().roles, ["dev"]);
    assert_eq!((holders(&mut cluster, "dev"), holders(&mut cluster, "ops")), (1, 0));
    // Both sessions have what the user has now.
    for session in [first, second] {
        let roles = cluster
            .call(session, |_, context| {
                Ok(context.caller.user()?.roles.iter().map(|role| role.name.clone()).collect::<Vec<_>>())
            })
            .unwrap();
        assert_eq!(roles, [role_name("dev")]);
    }

    for groups in [&[][..], &["others"], &["Devs"], &["devs "]] {
        assert_eq!(log_in(&mut cluster, groups, 3), Err(Refusal::NotLetIn.answer()), "{groups:?}");
        assert!(reason(&mut cluster).contains("mapped"));
    }
    assert_eq!(stored(&mut cluster, "ann").unwrap().roles, ["dev"], "a refusal changes nothing");
    let mut none = claims("Ann", &["devs"]);
    none.remove("groups");
    assert!(log_in_by(&mut cluster, "corp", "s1", none, 4).is_err());
}

#[test]
fn a_name_is_of_who_had_it_first() {
    let mut cluster = cluster();
    cluster.add_user("bob", grants(&["access"]));
    add(&mut cluster, "other", oidc(), vec![mapping("groups", "*", &["dev"])]);
    let refused = |cluster: &mut Cluster, connector: &str, subject: &str, user: &str| {
        let answer = log_in_by(cluster, connector, subject, claims(user, &["devs"]), 7).map(drop);
        assert_eq!(answer, Err(Refusal::NotLetIn.answer()));
        reason(cluster)
    };
    let before = stored(&mut cluster, "bob");
    assert!(refused(&mut cluster, "corp", "s1", "BOB").contains("of no connector"));
    assert_eq!(stored(&mut cluster, "bob"), before);
    log_in(&mut cluster, &["devs"], 1).unwrap();
    // The name was given to somebody else there, or somebody has it elsewhere too.
    assert!(refused(&mut cluster, "corp", "s2", "ann").contains("another account's"));
    assert!(refused(&mut cluster, "other", "s1", "ann").contains("another account's"));
    let new = user::NewUser { name: name("ann"), grants: grants(&[]), proof: hash("x").into() };
    let taken = cluster.admin(|tx, context| user::create(tx, context, &new)).unwrap_err();
    assert!(matches!(taken, CoreError::AlreadyExists { .. }));

    // Once it is forgotten it is nobody's, with all that it held.
    cluster.now += 31 * DAY_MS - 1;
    cluster.log_in("boss");
    assert!(stored(&mut cluster, "ann").is_some());
    cluster.now += 1;
    assert!(stored(&mut cluster, "ann").is_none());
    assert_eq!(holders(&mut cluster, "dev"), 0);
    log_in_by(&mut cluster, "other", "s9", claims("ann", &["x"]), 8).unwrap();
    assert_eq!(stored(&mut cluster, "ann").unwrap().connector, "other");
    for wrong in ["", "a b", "../x", "ann:root", &"a".repeat(64)] {
        assert!(log_in_by(&mut cluster, "corp", "s3", claims(wrong, &["devs"]), 9).is_err(), "{wrong}");
    }
}

#[test]
fn names_come_from_one_verified_claim() {
    let mut cluster = cluster();
    let email = OidcRow {
        username_claim: "email".into(),
        issuer_url: "https://l.example".into(),
        client_id: "c".into(),
        ..OidcRow::default()
    };
    add(&mut cluster, "mail", ProviderRow::Oidc(email), vec![mapping("email", "ann@example.com", &["dev"])]);
    let of = |values: &[&str], verified: Option<&str>| {
        let mut claims =
            Claims::from([("email".to_owned(), values.iter().map(|&value| value.to_owned()).collect())]);
        claims.extend(verified.map(|verified| ("email_verified".to_owned(), vec![verified.to_owned()])));
        claims
    };
    for (values, verified) in [
        (&["ann@example.com"][..], None),
        (&["ann@example.com"], Some("false")),
        (&["ann@example.com", "eve@example.com"], Some("true")),
        (&[], Some("true")),
    ] {
        assert!(
            log_in_by(&mut cluster, "mail", "s", of(values, verified), 1).is_err(),
            "{values:?} {verified:?}"
        );
        assert!(reason(&mut cluster).contains("email"));
    }
    log_in_by(&mut cluster, "mail", "s", of(&["Ann@Example.com"], Some("true")), 1).unwrap_err();
    assert!(reason(&mut cluster).contains("mapped"), "values are compared as they are");
    log_in_by(&mut cluster, "mail", "s", of(&["ann@example.com"], Some("true")), 1).unwrap();
    assert!(stored(&mut cluster, "ann@example.com").is_some());
}

#[test]
fn of_github_the_named_organisations_count_in_any_case() {
    let mut cluster = cluster();
    let github =
        GithubRow { client_id: "c".into(), organizations: vec!["Acme".into()], ..GithubRow::default() };
    let mappings = vec![mapping("teams", "acme/Devs", &["dev"]), mapping("organizations", "evil", &["ops"])];
    add(&mut cluster, "github", ProviderRow::Github(github), mappings);
    let of = |organizations: &[&str], teams: &[&str]| {
        let list = |values: &[&str]| values.iter().map(|&value| value.to_owned()).collect();
        Claims::from([
            ("login".to_owned(), vec!["Ann".to_owned()]),
            ("organizations".to_owned(), list(organizations)),
            ("teams".to_owned(), list(teams)),
        ])
    };
    for (organizations, teams) in [
        (&[][..], &["acme/devs"][..]),
        (&["evil"], &["evil/devs", "acme/devs"]),
        (&["acme"], &["evil/devs"]),
        (&["acme", "evil"], &[]),
    ] {
        assert!(
            log_in_by(&mut cluster, "github", "g", of(organizations, teams), 1).is_err(),
            "{organizations:?}"
        );
    }
    log_in_by(&mut cluster, "github", "g", of(&["ACME", "evil"], &["ACME/devs", "evil/x"]), 1).unwrap();
    let user = stored(&mut cluster, "ann").unwrap();
    assert_eq!(
        (user.roles, &user.traits["teams"].values),
        (vec!["dev".to_owned()], &vec!["acme/devs".to_owned()])
    );
    assert_eq!(user.traits["organizations"].values, ["acme"]);
}

#[test]
fn claims_that_are_no_traits_are_left_out_and_it_is_said() {
    let mut cluster = cluster();
    let mut claims = claims("ann", &["devs"]);
    claims.insert("logins".into(), vec!["ann".into()]);
    claims.insert("iss".into(), vec!["https://login.example.com".into()]);
    claims.insert("https://example.com/x".into(), vec!["y".into()]);
    claims.insert("picture".into(), vec!["x".repeat(257)]);
    claims.insert("zoo".into(), (0..65).map(|number| number.to_string()).collect());
    log_in_by(&mut cluster, "corp", "s1", claims, 1).unwrap();
    let user = stored(&mut cluster, "ann").unwrap();
    let traits: Vec<_> = user.traits.keys().map(String::as_str).collect();
    assert_eq!(traits, ["groups", "logins", "preferred_username"]);
    let made = cluster.audit().into_iter().rev().find(|row| row.event == "user.create").unwrap();
    assert_eq!(made.fields["left_out"], "https://example.com/x,picture,zoo");
}

fn lock_out(cluster: &mut Cluster, target: Target) {
    let new = NewLock { id: LockId::from_random([9; 16]), target, message: "why".into(), ttl: None };
    cluster.admin(|tx, context| lock::create(tx, context, new)).unwrap();
}

#[test]
fn locks_hold_and_what_is_not_believed_any_more_has_nobody() {
    let mut cluster = cluster();
    let session = log_in(&mut cluster, &["devs"], 1).unwrap();
    assert!(cluster.is_honoured(session));
    lock_out(&mut cluster, Target::Role(role_name("dev")));
    assert!(!cluster.is_honoured(session));
    assert_eq!(log_in(&mut cluster, &["devs"], 2), Err(Refusal::NotLetIn.answer()));
    assert!(reason(&mut cluster).contains("why"));
    cluster.admin(|tx, context| lock::delete(tx, context, &LockId::from_random([9; 16]))).unwrap();
    assert!(cluster.is_honoured(session));
    // What goes does not come back with another of its name, nor with another provider.
    let corp = cluster.run(|tx| connector::get(tx, &connector_name("corp"))).unwrap().row;
    cluster.admin(|tx, context| connector::delete(tx, context, &connector_name("corp"))).unwrap();
    assert!(!cluster.is_honoured(session));
    cluster.now += 1;
    let again = ConnectorRow { since_ms: cluster.now, ..corp };
    cluster
        .run(|tx| {
            tx.put(&ConnectorKey(connector_name("corp")), &again);
            Ok(())
        })
        .unwrap();
    assert!(!cluster.is_honoured(session));
    let anew = log_in(&mut cluster, &["devs"], 3).unwrap();
    assert!(cluster.is_honoured(anew) && !cluster.is_honoured(session));
}

fn code() -> SecretDigest {
    SecretDigest::of(SecretKind::SsoCode, "code")
}

fn redeem_with(cluster: &mut Cluster, verifier: [u8; 32], new: &NewSession) -> Result<SessionRow, CoreError> {
    cluster.run(|tx| redeem(tx, &anonymous(), code(), verifier, new))?.into_result()
}

#[test]
fn a_program_gets_its_session_once_with_its_verifier_within_a_minute() {
    let mut cluster = cluster();
    let begin = |cluster: &mut Cluster| {
        let proved = proved(cluster, "corp", "s1", claims("ann", &["devs"]));
        assert_eq!(conclude_with(cluster, &proved, &Next::Code(code(), program())), Ok(Done::Code));
    };
    let new = new_session(3);
    begin(&mut cluster);
    let session = redeem_with(&mut cluster, [5; 32], &new).unwrap();
    assert_eq!((session.user.as_str(), session.method()), ("ann", AuthMethod::Sso));
    assert!(cluster.is_honoured(new.digest));
    let anew = Err(Refusal::Anew.answer());
    assert_eq!(redeem_with(&mut cluster, [5; 32], &new_session(4)), anew);
    // A wrong verifier uses it up.
    begin(&mut cluster);
    assert_eq!(redeem_with(&mut cluster, [6; 32], &new_session(4)), anew);
    assert!(reason(&mut cluster).contains("another program"));
    assert_eq!(redeem_with(&mut cluster, [5; 32], &new_session(4)), anew);
    begin(&mut cluster);
    cluster.now += 60_000;
    assert_eq!(redeem_with(&mut cluster, [5; 32], &new_session(4)), anew);

    begin(&mut cluster);
    cluster
        .run(|tx| {
            let key = ConnectorKey(connector_name("corp"));
            let row = tx.get(&key)?.unwrap().row;
            tx.put(&key, &ConnectorRow { second_factor: true, ..row });
            Ok(())
        })
        .unwrap();
    assert_eq!(redeem_with(&mut cluster, [5; 32], &new_session(4)), anew);
    assert!(reason(&mut cluster).contains("changed meanwhile"));

    begin(&mut cluster);
    lock_out(&mut cluster, Target::User(name("ann")));
    assert_eq!(redeem_with(&mut cluster, [5; 32], &new_session(4)), Err(Refusal::NotLetIn.answer()));
    cluster.admin(|tx, context| lock::delete(tx, context, &LockId::from_random([9; 16]))).unwrap();
    // Somebody else has the name by now.
    begin(&mut cluster);
    cluster.admin(|tx, context| user::delete(tx, context, &name("ann"))).unwrap();
    log_in_by(&mut cluster, "corp", "s2", claims("ann", &["devs"]), 8).unwrap();
    assert_eq!(redeem_with(&mut cluster, [5; 32], &new_session(4)), anew);
    assert_eq!(cluster.run(|tx| Ok(tx.get(&SsoCodeKey(code()))?.is_some())), Ok(false));
}

#[test]
fn a_connector_that_was_changed_while_its_provider_was_asked_lets_nobody_in() {
    let mut cluster = cluster();
    let proved = proved(&mut cluster, "corp", "s1", claims("ann", &["devs"]));
    cluster.admin(|tx, context| connector::delete(tx, context, &connector_name("corp"))).unwrap();
    let anew = Err(Refusal::Anew.answer());
    assert_eq!(conclude_with(&mut cluster, &proved, &Next::Session(new_session(1))), anew);
    add(&mut cluster, "corp", oidc(), vec![mapping("groups", "*", &["ops"])]);
    assert_eq!(conclude_with(&mut cluster, &proved, &Next::Session(new_session(1))), anew);
    assert_eq!(stored(&mut cluster, "ann"), None);
}

#[test]
fn a_user_of_a_connector_has_no_password_and_no_device_until_it_is_made_local() {
    let mut cluster = cluster();
    let session = log_in(&mut cluster, &["devs"], 1).unwrap();
    let invite = || Proof::Invite(NewInvite::new(SecretDigest::of(SecretKind::Invite, "i"), None).unwrap());
    let precondition = |refused: Result<(), CoreError>, wanted: &str| {
        assert!(
            matches!(&refused, Err(CoreError::Precondition(reason)) if reason.contains(wanted)),
            "{refused:?}"
        );
    };
    for proof in [invite(), hash("x").into()] {
        let reset = cluster.admin(|tx, context| user::reset_password(tx, context, &name("ann"), &proof));
        precondition(reset.map(drop), "--make-local");
    }
    let given = cluster.admin(|tx, context| user::update(tx, context, &name("ann"), 0, &grants(&["ops"])));
    precondition(given.map(drop), "its mappings");
    cluster
        .run(|tx| {
            let mut row = tx.get(&ClusterConfigKey)?.unwrap_or_else(|| panic!("a configuration")).row;
            row.webauthn_rp_id = "example.com".into();
            tx.put(&ClusterConfigKey, &row);
            Ok(())
        })
        .unwrap();
    let device = cluster.call(session, |tx, context| {
        crate::webauthn::device::registrant(tx, context, &WebauthnSecret::from_random([1; 32]))
    });
    precondition(device.map(drop), "single sign-on");

    cluster.add_user("lead", grants(&["access"]));
    let lead = cluster.log_in("lead");
    assert_denied(cluster.call(lead, |tx, context| make_local(tx, context, &name("ann"))), "dev");
    let ended = cluster.admin(|tx, context| {
        make_local(tx, context, &name("ann"))?;
        user::reset_password(tx, context, &name("ann"), &hash("ann").into())
    });
    assert_eq!(ended, Ok(1));
    let events: Vec<_> = cluster.audit().into_iter().map(|row| row.event).collect();
    assert!(events.ends_with(&["user.make_local".into(), "user.password.reset".into()]), "{events:?}");
    let local = stored(&mut cluster, "ann").unwrap();
    assert_eq!((local.connector.as_str(), local.expires_at_ms, local.roles), ("", 0, vec!["dev".to_owned()]));
    cluster.log_in("ann");
    assert_eq!(log_in(&mut cluster, &["devs"], 9), Err(Refusal::NotLetIn.answer()));
    // It stays, and so does what it holds.
    cluster.now += 40 * DAY_MS;
    assert!(stored(&mut cluster, "ann").is_some());
    assert_eq!(holders(&mut cluster, "dev"), 1);
}

#[test]
fn a_second_factor_is_what_the_connector_vouches_for() {
    let mut cluster = cluster();
    let vouching = NewConnector::new(
        connector_name("strong"),
        String::new(),
        vec![mapping("groups", "*", &["dev"])],
        Some(oidc()),
    );
    let vouching = vouching.unwrap().with_second_factor(true);
    cluster.admin(|tx, context| connector::create(tx, context, &vouching, &Secret::Sealed(vec![1]))).unwrap();
    let weak = log_in(&mut cluster, &["devs"], 1).unwrap();
    let (strong, row) = log_in_by(&mut cluster, "strong", "s", claims("bob", &["x"]), 2).unwrap();
    assert!(row.second_factor);
    let checked = |cluster: &mut Cluster, session| {
        cluster.run(|tx| {
            let caller = context::authenticate(tx, &Credential::Session(session))?;
            second_factor::check(tx, &caller)
        })
    };
    for (factor, is_denied) in
        [(SecondFactor::Off, false), (SecondFactor::Optional, false), (SecondFactor::Webauthn, true)]
    {
        cluster
            .run(|tx| {
                let mut row = tx.get(&ClusterConfigKey)?.unwrap_or_else(|| panic!("a configuration")).row;
                row.second_factor = factor.into();
                tx.put(&ClusterConfigKey, &row);
                Ok(())
            })
            .unwrap();
        assert_eq!(checked(&mut cluster, weak).is_err(), is_denied, "{factor:?}");
        checked(&mut cluster, strong).unwrap();
    }
    assert_denied(checked(&mut cluster, weak), "its connector");
    let factors = |cluster: &mut Cluster, session| {
        cluster.call(session, |_, context| Ok(context.caller.user()?.has_second_factor())).unwrap()
    };
    assert_eq!((factors(&mut cluster, weak), factors(&mut cluster, strong)), (false, true));
}

#[test]
fn a_user_of_a_connector_has_no_password_to_verify_and_is_answered_as_any() {
    let mut cluster = cluster();
    log_in(&mut cluster, &["devs"], 1).unwrap();
    for user in ["ann", "nobody"] {
        assert_eq!(cluster.run(|tx| crate::login::lookup(tx, &name(user))), Ok(None), "{user}");
        let tried = cluster.try_log_in(&anonymous(), user, None, new_session(2));
        assert_eq!(tried, Err(crate::login::WRONG), "{user}");
        // Nor does an empty hash pass for its password.
        let tried = cluster.try_log_in(
            &anonymous(),
            user,
            Some(crate::secret::PasswordHash::new(String::new())),
            new_session(3),
        );
        assert_eq!(tried, Err(crate::login::WRONG), "{user}");
    }
}
