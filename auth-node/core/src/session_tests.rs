use store_txn::{Key as _, KeyWriter};

use super::{usage::NOTED_MS, *};
use crate::{
    tables::ClusterRow,
    testing::{Cluster, SESSION_TTL_MS, anonymous, assert_invalid, grants, name, new_session, session_id},
    user::Grants,
};

fn by_handle(row: &SessionRow) -> SessionRef {
    SessionRef::parse("session", &row.handle).unwrap()
}

fn page(size: u32, after: Option<&str>) -> PageRequest {
    PageRequest::new(size, after.map(str::to_owned))
}

/// The handles on a page, as the user of a session sees it.
fn handles(
    cluster: &mut Cluster,
    session: SecretDigest,
    user: Option<&str>,
    request: &PageRequest,
) -> Vec<String> {
    let owner = user.map(|user| (&name(user)).into());
    let page =
        cluster.call(session, |tx, context| list(tx, &context.caller, owner.as_ref(), request)).unwrap();
    page.items.into_iter().map(|listed| listed.session.handle).collect()
}

fn rows_of(cluster: &mut Cluster, user: &str) -> usize {
    cluster.rows(UserSessionKey::front(&name(user)))
}

fn with_ann() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.add_user("ann", grants(&["access"]));
    cluster
}

#[test]
fn a_session_lasts_as_long_as_it_says() {
    let mut cluster = with_ann();
    let (ann, row) = cluster.log_in_row("ann");
    assert_eq!((row.created_at_ms, row.expires_at_ms), (1000, 1000 + SESSION_TTL_MS));
    assert_eq!((row.client_address.as_str(), row.epoch), ("192.0.2.9", 1));
    cluster.now = row.expires_at_ms - 1;
    assert!(cluster.is_honoured(ann));
    cluster.now = row.expires_at_ms;
    assert!(!cluster.is_honoured(ann));
    assert_eq!(rows_of(&mut cluster, "ann"), 0);
}

#[test]
fn session_ids_are_stored_only_as_a_hash_and_never_listed() {
    let mut cluster = Cluster::new();
    let id = session_id(0);
    let boss = cluster.boss;
    let listed = cluster.call(boss, |tx, context| list(tx, &context.caller, None, &page(0, None))).unwrap();
    assert!(!format!("{listed:?} {:?} {:?}", new_session(0), cluster.audit()).contains(&id));
    let everything = store_txn::KeyRange { start: vec![0], end: vec![0xff] };
    let rows = cluster.run(|tx| tx.scan_raw(&everything, usize::MAX).map_err(CoreError::from)).unwrap();
    assert!(rows.len() > 5);
    let holds_id = |bytes: &[u8]| bytes.windows(id.len()).any(|window| window == id.as_bytes());
    assert!(!rows.iter().any(|(key, row)| holds_id(key) || holds_id(&row.value)));
}

#[test]
fn a_user_lists_its_own_sessions_and_an_admin_everybodys() {
    let mut cluster = with_ann();
    let boss = cluster.boss;
    let (ann, first) = cluster.log_in_row("ann");
    let (_, second) = cluster.log_in_row("ann");
    let all = page(0, None);
    let of_ann = vec![first.handle.clone(), second.handle.clone()];
    assert_eq!(handles(&mut cluster, ann, None, &all), of_ann);
    assert_eq!(handles(&mut cluster, ann, Some("ann"), &all), of_ann);
    assert_eq!(handles(&mut cluster, boss, None, &all).len(), 3);
    assert_eq!(handles(&mut cluster, boss, Some("ann"), &all), of_ann);
    // Another's sessions look like none, whether there is such a user or not.
    assert!(handles(&mut cluster, ann, Some("boss"), &all).is_empty());
    assert!(handles(&mut cluster, ann, Some("nobody"), &all).is_empty());
    let nobody = cluster.run(|tx| list(tx, &Caller::Anonymous, None, &all));
    assert!(matches!(nobody, Err(CoreError::Unauthenticated(_))));
}

#[test]
fn sessions_are_listed_by_handle_in_pages() {
    let mut cluster = with_ann();
    let boss = cluster.boss;
    let rows: Vec<_> = (0..4).map(|_| cluster.log_in_row("ann").1.handle).collect();
    for user in [None, Some("ann")] {
        let first = page(2, user.map(|_| rows[1].as_str()));
        let seen = handles(&mut cluster, boss, user, &first);
        assert_eq!(seen.len(), 2, "{user:?}");
    }
    let mut collected = Vec::new();
    let mut after = None;
    loop {
        let request = PageRequest::new(2, after);
        let page = cluster.admin(|tx, context| list(tx, &context.caller, None, &request)).unwrap();
        collected.extend(page.items.into_iter().map(|listed| listed.session.handle));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(collected.len(), 5);
    assert!(collected.is_sorted() && collected.ends_with(&rows));
    let wrong = cluster.admin(|tx, context| list(tx, &context.caller, None, &page(2, Some("ann"))));
    assert_invalid(wrong, "page_token");
}

#[test]
fn a_revoked_session_is_not_honoured_and_leaves_nothing() {
    let mut cluster = with_ann();
    let (ann, row) = cluster.log_in_row("ann");
    let (other, other_row) = cluster.log_in_row("ann");
    cluster.admin(|tx, context| revoke(tx, context, &by_handle(&row))).unwrap();
    assert!(!cluster.is_honoured(ann) && cluster.is_honoured(other));
    let record = cluster.last_audit();
    assert_eq!((record.event.as_str(), record.actor.as_str()), ("session.revoke", "user:boss"));
    assert_eq!((record.target, record.fields["user"].as_str()), (format!("session:{}", row.handle), "ann"));

    let id = SessionRef::parse("session", &session_id(2)).unwrap();
    assert_eq!(id, SessionRef::Id(other));
    cluster.admin(|tx, context| revoke(tx, context, &id)).unwrap();
    assert!(!cluster.is_honoured(other));
    assert_eq!(rows_of(&mut cluster, "ann"), 0);
    // What is left is of the admin.
    for table in [SessionKey::TABLE, SessionHandleKey::TABLE, UserSessionKey::TABLE] {
        assert_eq!(cluster.rows(KeyWriter::table(table)), 1, "{}", table.name);
    }
    for again in [by_handle(&row), by_handle(&other_row), id] {
        let refused = cluster.admin(|tx, context| revoke(tx, context, &again));
        assert!(matches!(&refused, Err(CoreError::NotFound { .. })), "{refused:?}");
        assert!(!format!("{refused:?}").contains(&session_id(2)));
    }
}

#[test]
fn session_references_are_bounded() {
    assert_invalid(SessionRef::parse("session", ""), "session");
    assert_invalid(SessionRef::parse("session", &"x".repeat(257)), "session");
    assert!(matches!(SessionRef::parse("session", &"a".repeat(32)), Ok(SessionRef::Handle(_))));
    assert!(matches!(SessionRef::parse("session", &"a".repeat(43)), Ok(SessionRef::Id(_))));
}

#[test]
fn logout_ends_the_session_of_the_call_alone() {
    let mut cluster = with_ann();
    let (ann, row) = cluster.log_in_row("ann");
    let other = cluster.log_in("ann");
    cluster.call(ann, |tx, context| logout(tx, context)).unwrap();
    assert!(!cluster.is_honoured(ann) && cluster.is_honoured(other));
    let record = cluster.last_audit();
    assert_eq!((record.event.as_str(), record.target), ("user.logout", format!("session:{}", row.handle)));
    assert!(matches!(cluster.run(|tx| logout(tx, &anonymous())), Err(CoreError::Unauthenticated(_))));
}

#[test]
fn one_session_above_the_bound_ends_the_oldest() {
    let mut cluster = with_ann();
    let mut sessions = Vec::new();
    for _ in 0..MAX_PER_USER {
        cluster.now += 1;
        sessions.push(cluster.log_in("ann"));
    }
    assert!(cluster.is_honoured(sessions[0]));
    cluster.now += 1;
    let newest = cluster.log_in("ann");
    assert!(
        !cluster.is_honoured(sessions[0]) && cluster.is_honoured(sessions[1]) && cluster.is_honoured(newest)
    );
    assert_eq!(rows_of(&mut cluster, "ann"), MAX_PER_USER);
    let boss = cluster.boss;
    assert!(cluster.is_honoured(boss));
}

#[test]
fn all_sessions_of_a_user_are_ended_but_the_one_that_stays() {
    let mut cluster = with_ann();
    cluster.add_user("an", Grants::default());
    let (other_user, kept) = (cluster.log_in("an"), cluster.log_in("ann"));
    let ended: Vec<_> = (0..3).map(|_| cluster.log_in("ann")).collect();
    assert_eq!(cluster.run(|tx| end_all_of(tx, &(&name("ann")).into(), Some(kept))), Ok(3));
    assert!(cluster.is_honoured(kept) && cluster.is_honoured(other_user));
    assert!(ended.into_iter().all(|session| !cluster.is_honoured(session)));
    assert_eq!(cluster.run(|tx| end_all_of(tx, &(&name("ann")).into(), None)), Ok(1));
    assert_eq!(rows_of(&mut cluster, "ann"), 0);
}

#[test]
fn sessions_of_another_epoch_are_neither_honoured_nor_listed() {
    let mut cluster = with_ann();
    let ann = cluster.log_in("ann");
    cluster
        .run(|tx| {
            tx.put(&ClusterKey, &ClusterRow { session_epoch: 2, ..ClusterRow::default() });
            Ok(())
        })
        .unwrap();
    assert!(!cluster.is_honoured(ann));
    let now = cluster.log_in("boss");
    assert_eq!(handles(&mut cluster, now, None, &page(0, None)).len(), 1);
}

const IDLE_MS: u64 = 100_000;

fn allow_idle(cluster: &mut Cluster, idle_ms: Option<u64>) {
    let row = crate::tables::ClusterConfigRow {
        session_ttl_ms: Some(100 * SESSION_TTL_MS),
        session_idle_timeout_ms: idle_ms,
        ..Default::default()
    };
    cluster.admin(|tx, context| cluster_config::update(tx, context, &row, 0)).unwrap();
}

/// Makes a call with a session, as a node does: a use that is due is noted. Whether it was, or that it was refused.
fn use_it(cluster: &mut Cluster, session: SecretDigest) -> Result<bool, CoreError> {
    let due = cluster.call(session, |_, context| Ok(context.caller.user()?.use_is_due))?;
    if due {
        let uses = std::collections::BTreeMap::from([(session, cluster.now)]);
        cluster.run(|tx| note_uses(tx, &uses))?;
    }
    Ok(due)
}

#[test]
fn a_session_that_is_used_goes_on_and_one_that_is_not_ends_in_time() {
    let mut cluster = with_ann();
    allow_idle(&mut cluster, Some(IDLE_MS));
    let (used, unused) = (cluster.log_in("ann"), cluster.log_in("ann"));
    let (mut last, mut notes) = (cluster.now, 0);
    // Every gap that there may be, whatever was noted last.
    for step in 0..200 {
        let gap = (step * 7919) % IDLE_MS;
        cluster.now += gap;
        notes += u32::from(use_it(&mut cluster, used).unwrap());
        last = cluster.now;
        assert_eq!(cluster.is_honoured(unused), cluster.now < 1000 + IDLE_MS + IDLE_MS / 10, "{step}");
    }
    assert!(notes < 200, "not each use is a write");
    cluster.now = last + IDLE_MS;
    assert!(cluster.is_honoured(used));
    cluster.now = last + IDLE_MS + IDLE_MS / 10;
    assert!(!cluster.is_honoured(used));
    // It stays so, also when a note comes late.
    let uses = std::collections::BTreeMap::from([(used, last + 1)]);
    cluster.run(|tx| note_uses(tx, &uses)).unwrap();
    assert!(!cluster.is_honoured(used));
    assert_eq!(cluster.rows(KeyWriter::table(SessionUseKey::TABLE)), 1);
    // Its row ends with the session.
    cluster.now += 100 * SESSION_TTL_MS;
    assert_eq!(cluster.rows(KeyWriter::table(SessionUseKey::TABLE)), 0);
}

#[test]
fn many_uses_within_a_twentieth_are_one_note() {
    let mut cluster = with_ann();
    allow_idle(&mut cluster, Some(IDLE_MS));
    let ann = cluster.log_in("ann");
    cluster.now += IDLE_MS / 20 - 1;
    assert_eq!(use_it(&mut cluster, ann), Ok(false));
    cluster.now += 1;
    assert_eq!(use_it(&mut cluster, ann), Ok(true));
    assert_eq!(use_it(&mut cluster, ann), Ok(false));
    // Two nodes may have seen the same: the later counts, in whichever order they write.
    for at in [cluster.now + 7, cluster.now + 3] {
        let uses = std::collections::BTreeMap::from([(ann, at)]);
        cluster.run(|tx| note_uses(tx, &uses)).unwrap();
    }
    let noted = cluster.run(|tx| Ok(tx.get(&SessionUseKey(ann))?.unwrap().row.last_used_ms)).unwrap();
    assert_eq!(noted, cluster.now + 7);
}

#[test]
fn a_new_timeout_counts_from_when_it_is_set() {
    let mut cluster = with_ann();
    let ann = cluster.log_in("ann");
    cluster.now += SESSION_TTL_MS / 2;
    allow_idle(&mut cluster, Some(IDLE_MS));
    assert!(cluster.is_honoured(ann), "it may have been used all the time");
    // What else is changed does not count anew.
    let set_at = cluster.now;
    cluster.now += IDLE_MS;
    allow_idle(&mut cluster, Some(IDLE_MS));
    cluster.now = set_at + IDLE_MS + IDLE_MS / 10;
    assert!(!cluster.is_honoured(ann));
}

#[test]
fn a_session_that_was_unused_for_too_long_stays_over_whatever_is_decided_next() {
    for next in [Some(3 * IDLE_MS), Some(60_000), None] {
        let mut cluster = with_ann();
        allow_idle(&mut cluster, Some(IDLE_MS));
        let ann = cluster.log_in("ann");
        cluster.now += IDLE_MS + IDLE_MS / 10;
        assert!(!cluster.is_honoured(ann));
        cluster.boss = cluster.log_in("boss");
        allow_idle(&mut cluster, next);
        assert!(!cluster.is_honoured(ann), "{next:?}");
        let again = cluster.log_in("ann");
        assert!(cluster.is_honoured(again));
    }
}

#[test]
fn lists_show_the_last_use_and_no_session_that_is_over() {
    let mut cluster = with_ann();
    allow_idle(&mut cluster, Some(IDLE_MS));
    let boss = cluster.boss;
    let ann = cluster.log_in("ann");
    let last_used = |cluster: &mut Cluster| {
        let page = cluster.call(boss, |tx, context| {
            list(tx, &context.caller, Some(&(&name("ann")).into()), &page(0, None))
        });
        page.unwrap().items.into_iter().map(|listed| listed.last_used_ms).collect::<Vec<_>>()
    };
    assert_eq!(last_used(&mut cluster), [1000]);
    cluster.now += IDLE_MS;
    for session in [boss, ann] {
        use_it(&mut cluster, session).unwrap();
    }
    assert_eq!(last_used(&mut cluster), [cluster.now]);
    cluster.now += IDLE_MS;
    use_it(&mut cluster, boss).unwrap();
    cluster.now += IDLE_MS / 10;
    assert!(last_used(&mut cluster).is_empty());
}

#[test]
fn an_ended_session_leaves_no_note_of_its_use() {
    let mut cluster = with_ann();
    let ann = cluster.log_in("ann");
    cluster.now += NOTED_MS;
    assert_eq!(use_it(&mut cluster, ann), Ok(true));
    let front = || KeyWriter::table(SessionUseKey::TABLE);
    assert_eq!(cluster.rows(front()), 1);
    cluster.call(ann, |tx, context| logout(tx, context)).unwrap();
    let uses = std::collections::BTreeMap::from([(ann, cluster.now + 1)]);
    cluster.run(|tx| note_uses(tx, &uses)).unwrap();
    assert_eq!(cluster.rows(front()), 0);
}
