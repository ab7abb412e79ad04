use super::*;
use crate::{
    agent_identity,
    spiffe::testing::{ID, RED, add, admin, bundle, domain, endpoint, wanted, with_ci},
    testing::assert_invalid,
    world::World,
};

fn shown(world: &mut World, name: &str) -> SpiffeDomain {
    world.run(|tx, _| get(tx, &domain(name))).unwrap()
}

fn change(
    world: &mut World,
    endpoint: Option<SpiffeEndpointRow>,
    bundle: Option<SpiffeBundleRow>,
) -> Result<SpiffeDomain, CoreError> {
    let new = NewSpiffeDomain::new(RED, endpoint, bundle).unwrap();
    admin(world, |tx, context| update(tx, context, &new, 0))
}

fn now_due(world: &mut World) -> Vec<Due> {
    world.run(|tx, _| due(tx)).unwrap()
}

fn tell(world: &mut World, asked: &Due, told: Result<SpiffeBundleRow, String>) -> Refreshed {
    world.run(|tx, context| refreshed(tx, context, asked, &told)).unwrap()
}

#[test]
fn what_an_admin_says_is_checked_and_the_field_is_named() {
    let mut world = with_ci();
    assert_invalid(add(&mut world, "Red", None, Some(bundle(1, None))), "domain.trust_domain");
    assert_invalid(add(&mut world, "test", None, Some(bundle(1, None))), "domain.trust_domain");
    assert_invalid(add(&mut world, "blue", None, None), "domain.bundle");
    let with = |change: &dyn Fn(&mut SpiffeEndpointRow)| {
        let mut endpoint = endpoint();
        change(&mut endpoint);
        Some(endpoint)
    };
    let plain = with(&|it| it.url = "http://blue/x".into());
    assert_invalid(add(&mut world, "blue", plain, Some(bundle(1, None))), "domain.endpoint.url");
    let foreign = with(&|it| it.spiffe_id = "spiffe://red.example/server".into());
    assert_invalid(add(&mut world, "blue", foreign, Some(bundle(1, None))), "domain.endpoint.spiffe_id");
    let unnamed = with(&|it| it.spiffe_id = "spiffe://blue".into());
    assert_invalid(add(&mut world, "blue", unnamed, Some(bundle(1, None))), "domain.endpoint.spiffe_id");
    // By its SPIFFE ID it is known by the bundle alone, which then has to be there.
    let by_id = with(&|it| it.spiffe_id = "spiffe://blue/server".into());
    assert_invalid(add(&mut world, "blue", by_id.clone(), None), "domain.bundle");
    add(&mut world, "blue", by_id, Some(bundle(1, None))).unwrap();
    add(&mut world, "green", Some(endpoint()), None).unwrap();
    let unreadable = with(&|it| it.web_authorities = vec!["x".into()]);
    assert_invalid(add(&mut world, "gray", unreadable, None), "domain.endpoint.web_ca_certificates");
    let exists = add(&mut world, RED, None, Some(bundle(2, None)));
    assert!(matches!(exists, Err(CoreError::AlreadyExists { .. })), "{exists:?}");
    for number in 3..MAX_DOMAINS {
        add(&mut world, &format!("d{number}"), None, Some(bundle(1, None))).unwrap();
    }
    let full = add(&mut world, "one-more", None, Some(bundle(1, None)));
    assert!(matches!(full, Err(CoreError::Precondition(_))), "{full:?}");
    let page = world.run(|tx, _| list(tx, &PageRequest::new(2, None))).unwrap();
    assert_eq!(page.items.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["blue", "d10"]);
    assert_eq!(world.run(|tx, _| authorities(tx)).unwrap().len(), MAX_DOMAINS);
}

#[test]
fn a_trust_domain_goes_when_nobody_has_an_id_of_it() {
    let mut world = with_ci();
    // One whose name begins alike is another one.
    add(&mut world, "red.example.org", None, Some(bundle(1, None))).unwrap();
    let rm = |world: &mut World, name: &str| admin(world, |tx, context| delete(tx, context, &domain(name)));
    match rm(&mut world, RED) {
        Err(CoreError::Precondition(reason)) => assert!(reason.contains(ID) && reason.contains("ci")),
        other => panic!("{other:?}"),
    }
    rm(&mut world, "red.example.org").unwrap();
    let none = wanted("ci", &["spiffe://red.exampl/x", "spiffe://red.examplf/x"]);
    admin(&mut world, |tx, context| agent_identity::update(tx, context, &none, 0, None)).unwrap();
    rm(&mut world, RED).unwrap();
    assert_eq!(world.last_audit().event, "spiffe_domain.delete");
    assert!(matches!(rm(&mut world, RED), Err(CoreError::NotFound { .. })));
    let left = world.run(|tx, _| Ok((find(tx, &domain(RED))?, authorities(tx)?.len()))).unwrap();
    assert_eq!(left, (None, 0));
}

#[test]
fn an_admin_may_set_an_older_bundle_and_an_endpoint_may_not_tell_one() {
    let mut world = with_ci();
    change(&mut world, Some(endpoint()), Some(bundle(5, Some(5)))).unwrap();
    let asked = now_due(&mut world).remove(0);
    for (told, why) in [
        (bundle(4, Some(4)), "spiffe_sequence 4, and 5 is known"),
        (bundle(5, Some(0)), "spiffe_sequence 0, and 5 is known"),
        (bundle(6, Some(5)), "other keys with the same"),
        (bundle(6, None), "no spiffe_sequence"),
    ] {
        assert_eq!(tell(&mut world, &asked, Ok(told)), Refreshed::Failed, "{why}");
        let now = shown(&mut world, RED);
        assert!(now.refresh.error.contains(why), "{}", now.refresh.error);
        assert_eq!(now.bundle, bundle(5, Some(5)));
    }
    assert_eq!(tell(&mut world, &asked, Ok(bundle(5, Some(5)))), Refreshed::Same);
    assert_eq!(shown(&mut world, RED).refresh.error, "");
    let hint = SpiffeBundleRow { refresh_hint_s: 60, ..bundle(5, Some(5)) };
    assert_eq!(tell(&mut world, &asked, Ok(hint)), Refreshed::Changed);
    // The bundle is another one by now: this answers another question.
    assert_eq!(tell(&mut world, &asked, Ok(bundle(7, Some(7)))), Refreshed::Same);
    assert_eq!(shown(&mut world, RED).bundle.sequence, Some(5));

    change(&mut world, Some(endpoint()), Some(bundle(3, Some(3)))).unwrap();
    assert_eq!(shown(&mut world, RED).bundle, bundle(3, Some(3)));
    let asked = now_due(&mut world).remove(0);
    assert_eq!(tell(&mut world, &asked, Ok(bundle(6, Some(6)))), Refreshed::Changed);
    let record = world.last_audit();
    assert_eq!((record.event.as_str(), record.fields["sequence"].as_str()), ("spiffe_domain.refresh", "6"));
}

#[test]
fn an_endpoint_is_asked_when_the_bundle_says_within_bounds_and_sooner_after_a_failure() {
    let mut world = with_ci();
    assert_eq!(now_due(&mut world), [], "it is set by hand");
    change(&mut world, Some(endpoint()), None).unwrap();
    let first = now_due(&mut world).remove(0);
    assert_eq!((first.endpoint.url.as_str(), &first.bundle), (endpoint().url.as_str(), &bundle(1, Some(1))));
    let mut asked = first;
    for (sequence, (hint_s, pause_s)) in (2..).zip([(0, 300), (1, 60), (600, 600), (1_000_000, 3600)]) {
        let told = SpiffeBundleRow { refresh_hint_s: hint_s, ..bundle(1, Some(sequence)) };
        assert_eq!(tell(&mut world, &asked, Ok(told)), Refreshed::Changed);
        world.now += pause_s * 1000 - 1;
        assert_eq!(now_due(&mut world), [], "{hint_s}");
        world.now += 1;
        asked = now_due(&mut world).remove(0);
    }
    assert_eq!(tell(&mut world, &asked, Err("no route\nto host".into())), Refreshed::Failed);
    let failed = shown(&mut world, RED);
    assert_eq!(failed.refresh.error, "no routeto host");
    assert!(failed.refresh.refreshed_at_ms < world.now);
    assert_eq!(failed.good_until_ms(), Some(failed.refresh.refreshed_at_ms + MAX_AGE_MS));
    world.now += 59_999;
    assert_eq!(now_due(&mut world), []);
    world.now += 1;
    assert_eq!(now_due(&mut world).len(), 1);
    // Whatever an admin changes is asked for at once.
    assert_eq!(tell(&mut world, &asked, Ok(asked.bundle.clone())), Refreshed::Same);
    assert_eq!(now_due(&mut world), []);
    change(&mut world, Some(endpoint()), None).unwrap();
    assert_eq!(now_due(&mut world).len(), 1);
    change(&mut world, None, None).unwrap();
    assert_eq!((now_due(&mut world), shown(&mut world, RED).good_until_ms()), (vec![], None));
}

#[test]
fn what_was_asked_of_another_endpoint_or_of_a_domain_that_is_gone_counts_for_nothing() {
    let mut world = with_ci();
    change(&mut world, Some(endpoint()), None).unwrap();
    let asked = now_due(&mut world).remove(0);
    let elsewhere = SpiffeEndpointRow { url: "https://elsewhere/".into(), ..endpoint() };
    change(&mut world, Some(elsewhere), None).unwrap();
    assert_eq!(tell(&mut world, &asked, Ok(bundle(9, Some(9)))), Refreshed::Same);
    assert_eq!(shown(&mut world, RED).bundle, bundle(1, Some(1)));
    let asked = now_due(&mut world).remove(0);
    let none = wanted("ci", &[]);
    admin(&mut world, |tx, context| agent_identity::update(tx, context, &none, 0, None)).unwrap();
    admin(&mut world, |tx, context| delete(tx, context, &domain(RED))).unwrap();
    assert_eq!(tell(&mut world, &asked, Ok(bundle(9, Some(9)))), Refreshed::Same);
    assert_eq!(world.run(|tx, _| authorities(tx)).unwrap(), []);
}

#[test]
fn an_update_names_the_revision_that_was_read() {
    let mut world = with_ci();
    let revision = shown(&mut world, RED).revision;
    let new = NewSpiffeDomain::new(RED, Some(endpoint()), None).unwrap();
    admin(&mut world, |tx, context| update(tx, context, &new, revision)).unwrap();
    let stale = admin(&mut world, |tx, context| update(tx, context, &new, revision));
    assert!(matches!(stale, Err(CoreError::StaleRevision { .. })), "{stale:?}");
    // A bundle that is fetched is no change of an admin's.
    let (before, asked) = (shown(&mut world, RED).revision, now_due(&mut world).remove(0));
    assert_eq!(tell(&mut world, &asked, Ok(bundle(2, Some(2)))), Refreshed::Changed);
    assert_eq!(shown(&mut world, RED).revision, before);
    let missing = NewSpiffeDomain::new("blue", None, None).unwrap();
    let missing = admin(&mut world, |tx, context| update(tx, context, &missing, 0));
    assert!(matches!(missing, Err(CoreError::NotFound { .. })), "{missing:?}");
}
