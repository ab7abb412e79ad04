use super::*;
use crate::{
    Credential,
    lock::{self, NewLock, Target},
    names::LockId,
    revocation,
    spiffe::{
        NewSpiffeDomain,
        testing::{
            ID, RED, add, admin, bundle, endpoint, log_in, log_in_by, session, token, wanted, with_ci,
        },
        update,
    },
    tables::AuthMethod,
    world::{World, assert_denied},
};

fn reason(world: &mut World) -> String {
    let record = world.audit().pop().unwrap();
    assert_eq!((record.event.as_str(), record.code.as_str()), ("spiffe.login.denied", "MZ1135W"));
    record.fields["reason"].clone()
}

fn honoured(world: &mut World, number: u8) -> bool {
    world.with(&Credential::Session(session(number)), |_, _| Ok(())).is_ok()
}

#[test]
fn a_token_gives_a_session_of_the_identity_that_has_its_id_once() {
    let mut world = with_ci();
    let shown = token(&world, 1);
    let made = log_in(&mut world, &shown, 1).unwrap();
    assert_eq!((made.agent_identity.as_str(), made.spiffe_id.as_str(), made.user.as_str()), ("ci", ID, ""));
    assert_eq!((made.method(), made.expires_at_ms), (AuthMethod::Spiffe, world.now + 3_600_000));
    let actor = world.with(&Credential::Session(session(1)), |_, context| Ok(context.caller.actor()));
    assert_eq!(actor.unwrap(), "bot:ci");
    let record = world.audit().pop().unwrap();
    assert_eq!((record.event.as_str(), record.actor.as_str()), ("spiffe.login", "bot:ci"));
    assert_eq!((record.fields["spiffe_id"].as_str(), record.fields["svid"].as_str()), (ID, "jwt"));

    assert_denied(log_in(&mut world, &shown, 2), "not accepted");
    assert_eq!(reason(&mut world), "it was used before");
    // Until it would not be taken any more: there is no time in which it is forgotten, and good.
    world.now = shown.ends_at_ms + LEEWAY_MS - 1;
    assert_denied(log_in(&mut world, &shown, 3), "not accepted");
    assert_eq!(reason(&mut world), "it was used before");
    world.now += 1;
    assert_denied(log_in(&mut world, &shown, 3), "not accepted");
    assert_eq!(reason(&mut world), "it has ended");
    let again = token(&world, 2);
    log_in(&mut world, &again, 3).unwrap();
}

#[test]
fn a_proven_key_may_come_again_and_its_session_ends_with_its_certificate() {
    let mut world = with_ci();
    let proven = Attested { bearer: None, issued_at_ms: None, ..token(&world, 1) };
    assert_eq!(log_in(&mut world, &proven, 1).unwrap().expires_at_ms, proven.ends_at_ms);
    log_in(&mut world, &proven, 2).unwrap();
    // One that lives long gives a session as long as the identity's credentials.
    let long = Attested { ends_at_ms: u64::MAX, ..proven.clone() };
    assert_eq!(log_in(&mut world, &long, 3).unwrap().expires_at_ms, world.now + 3_600_000);
    world.now = proven.ends_at_ms;
    assert_denied(log_in(&mut world, &proven, 4), "not accepted");
    assert_eq!(reason(&mut world), "it has ended");
    assert!(!honoured(&mut world, 1) && honoured(&mut world, 3));
}

#[test]
fn whatever_is_wrong_is_answered_alike_and_told_to_the_audit_log() {
    let mut world = with_ci();
    add(&mut world, "blue.example", None, Some(bundle(2, None))).unwrap();
    let good = token(&world, 1);
    let id = |id: &str| Attested { spiffe_id: id.into(), ..good.clone() };
    let ends = |ends_at_ms| Attested { ends_at_ms, ..good.clone() };
    let issued = |issued| Attested { issued_at_ms: Some(issued), ..good.clone() };
    let (now, hour) = (world.now, MAX_TOKEN_LIFE_MS);
    let unknown = Attested { issued_at_ms: None, ..ends(now + hour + LEEWAY_MS + 1) };
    let red = Some(RED);
    let mut answers = std::collections::BTreeSet::new();
    for (named, vouching, says, why) in [
        (None, 1, good.clone(), "no authority has signed it"),
        (Some("green.example"), 1, good.clone(), "not let in"),
        (red, 9, good.clone(), "no authority has signed it"),
        (red, 2, good.clone(), "no authority has signed it"),
        // Blue's key vouches for a workload of red.
        (Some("blue.example"), 2, good.clone(), "of another trust domain: spiffe://red.example/ns/ci"),
        (red, 1, id("spiffe://blue.example/ns/ci"), "of another trust domain"),
        (red, 1, id("spiffe://red.example"), "no workload"),
        (red, 1, id("spiffe://Red.example/ns/ci"), "no workload"),
        (red, 1, id("spiffe://red.example/ns/../ns/ci"), "no workload"),
        (red, 1, id("spiffe://red.example/ns/ci/"), "no workload"),
        (red, 1, id("spiffe://red.example/ns/CI"), "no agent identity has"),
        (red, 1, id("spiffe://red.example/ns"), "no agent identity has"),
        (red, 1, ends(now - LEEWAY_MS), "it has ended"),
        (red, 1, issued(now + LEEWAY_MS + 1), "in the future"),
        (red, 1, unknown, "longer than an hour"),
        (red, 1, Attested { ends_at_ms: now + 1, ..issued(now - hour - LEEWAY_MS) }, "longer than an hour"),
        (
            red,
            1,
            Attested { ends_at_ms: now + hour + LEEWAY_MS + 1, ..issued(now + 1) },
            "longer than an hour",
        ),
    ] {
        match log_in_by(&mut world, named, vouching, &says, 1) {
            Err(CoreError::Denied(answer)) => drop(answers.insert(answer)),
            other => panic!("{why}: {other:?}"),
        }
        let told = reason(&mut world);
        assert!(told.contains(why), "{told} is not {why}");
    }
    let lock = NewLock {
        id: LockId::from_random([7; 16]),
        target: Target::AgentIdentity(IdentityName::parse("", "ci").unwrap()),
        message: "gone".into(),
        ttl: None,
    };
    admin(&mut world, |tx, context| lock::create(tx, context, lock)).unwrap();
    match log_in(&mut world, &good, 1) {
        Err(CoreError::Denied(answer)) => drop(answers.insert(answer)),
        other => panic!("{other:?}"),
    }
    assert!(reason(&mut world).contains("gone"));
    assert_eq!(answers.len(), 1, "{answers:?}");
    // None of them used the token up.
    admin(&mut world, |tx, context| lock::delete(tx, context, &LockId::from_random([7; 16]))).unwrap();
    log_in(&mut world, &good, 1).unwrap();
}

#[test]
fn clocks_of_issuers_may_be_a_minute_off() {
    let mut world = with_ci();
    let ended = Attested { ends_at_ms: world.now - LEEWAY_MS + 1, ..token(&world, 1) };
    log_in(&mut world, &Attested { issued_at_ms: None, ..ended }, 1).unwrap();
    let ahead = Attested { issued_at_ms: Some(world.now + LEEWAY_MS), ..token(&world, 2) };
    let ahead = Attested { ends_at_ms: world.now + MAX_TOKEN_LIFE_MS, ..ahead };
    log_in(&mut world, &ahead, 2).unwrap();
}

#[test]
fn a_bundle_that_was_not_told_for_a_day_lets_nobody_in_and_one_that_was_set_does() {
    let mut world = with_ci();
    let day = 24 * 3600 * 1000;
    let follow = NewSpiffeDomain::new(RED, Some(endpoint()), None).unwrap();
    admin(&mut world, |tx, context| update(tx, context, &follow, 0)).unwrap();
    world.now += day - 1;
    let shown = token(&world, 1);
    log_in(&mut world, &shown, 1).unwrap();
    world.now += 1;
    let shown = token(&world, 2);
    assert_denied(log_in(&mut world, &shown, 2), "not accepted");
    assert!(reason(&mut world).contains("was not told for too long"));
    let set = NewSpiffeDomain::new(RED, None, Some(bundle(1, None))).unwrap();
    admin(&mut world, |tx, context| update(tx, context, &set, 0)).unwrap();
    world.now += 2 * day;
    let shown = token(&world, 3);
    log_in(&mut world, &shown, 3).unwrap();
}

#[test]
fn who_loses_an_id_loses_the_sessions_by_it_and_certificates_and_no_others() {
    let mut world = with_ci();
    let other = "spiffe://red.example/ns/other";
    let both = wanted("ci", &[ID, other]);
    let change = |world: &mut World, wanted: &agent_identity::Wanted| {
        admin(world, |tx, context| agent_identity::update(tx, context, wanted, 0, None)).map(drop)
    };
    change(&mut world, &both).unwrap();
    let (first, second) = (token(&world, 1), token(&world, 2));
    log_in(&mut world, &first, 1).unwrap();
    log_in(&mut world, &Attested { spiffe_id: other.into(), ..second }, 2).unwrap();
    let head = |world: &mut World| world.run(|tx, _| revocation::head(tx)).unwrap();
    let before = head(&mut world);
    change(&mut world, &wanted("ci", &[ID, other, "spiffe://red.example/more"])).unwrap();
    assert_eq!(head(&mut world), before, "who gets more loses nothing");
    change(&mut world, &wanted("ci", &[other])).unwrap();
    assert!(head(&mut world) > before);
    assert!(!honoured(&mut world, 1) && honoured(&mut world, 2));
    let shown = token(&world, 3);
    assert_denied(log_in(&mut world, &shown, 3), "not accepted");
    // Back again, it is not as it was.
    change(&mut world, &wanted("ci", &[ID, other])).unwrap();
    assert!(!honoured(&mut world, 1) && honoured(&mut world, 2));
}
