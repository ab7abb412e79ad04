use store_txn::KeyWriter;

use super::*;
use crate::{
    testing::{Cluster, assert_invalid, grants, name},
    user,
};

const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
const OTHER_KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeefe";
const REQUEST: &[u8] = b"a request with a password in it";
const REPLY: &[u8] = b"a reply with a secret in it";

const GOLDEN_KEY: &str = "00285e5023e0121942e87206ea6de7539eee07e62f511ec562e80f92e0be91f29aa2";
const GOLDEN_SEALED: &str = concat!(
    "0107070707070707070707070766ae6031adb72a2dde0c303e06972423df8df3",
    "af7673e48a32156c910bc562e48643f87db0597b4cd7c3d9f395e799d3c4db31",
    "dfdf110681f5c06c77af1ac65fa12322751365de33f2ab86",
);

fn key(text: &str) -> IdempotencyKey {
    IdempotencyKey::parse(text).unwrap()
}

fn once(method: &'static str, text: &str, request: &[u8]) -> OnceCall {
    OnceCall::new(method, key(text), request)
}

fn call() -> OnceCall {
    once("CreateToken", KEY, REQUEST)
}

/// A cluster with the users `ann` and `bob`, whose admin has made [`call`].
fn answered() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.add_user("ann", grants(&["admin"]));
    cluster.admin(|tx, context| call().keep(tx, context, REPLY, [7; 12])).unwrap();
    cluster
}

fn recalled(cluster: &mut Cluster, session: SecretDigest, call: &OnceCall) -> Option<Vec<u8>> {
    let answer = cluster.call(session, |tx, context| call.recall(tx, context)).unwrap();
    answer.map(|answer| answer.reply.to_vec())
}

fn row(cluster: &mut Cluster) -> AnswerRow {
    let mut rows = cluster.run(|tx| Ok(tx.scan::<AnswerKey>(None, 10)?)).unwrap();
    assert_eq!(rows.len(), 1);
    rows.remove(0).1.row
}

#[test]
fn an_answer_is_given_again_with_the_revision_of_its_commit() {
    let mut cluster = Cluster::new();
    cluster.add_user("ann", grants(&["access"]));
    let boss = cluster.boss;
    assert_eq!(recalled(&mut cluster, boss, &call()), None);
    cluster
        .admin(|tx, context| {
            user::update(tx, context, &name("ann"), 0, &grants(&["auditor"]))?;
            call().keep(tx, context, REPLY, [7; 12])
        })
        .unwrap();
    let ann = cluster.run(|tx| user::get(tx, &name("ann"))).unwrap();
    // Later commits do not change what the call is answered.
    cluster.add_user("bob", grants(&["access"]));
    let answer = cluster.admin(|tx, context| call().recall(tx, context)).unwrap().unwrap();
    assert_eq!((answer.revision, answer.reply.as_slice()), (ann.revision, REPLY));
}

#[test]
fn an_answer_is_for_its_caller_its_method_and_its_key_alone() {
    let mut cluster = answered();
    let (boss, ann) = (cluster.boss, cluster.log_in("ann"));
    assert_eq!(recalled(&mut cluster, ann, &call()), None);
    assert_eq!(recalled(&mut cluster, boss, &once("CreateUser", KEY, REQUEST)), None);
    assert_eq!(recalled(&mut cluster, boss, &once("CreateToken", OTHER_KEY, REQUEST)), None);
    // Another session of the same user is the same caller.
    let again = cluster.log_in("boss");
    assert_eq!(recalled(&mut cluster, again, &call()).as_deref(), Some(REPLY));
    let nobody = cluster.run(|tx| call().recall(tx, &crate::testing::anonymous()));
    assert!(matches!(nobody, Err(CoreError::Unauthenticated(_))));
    let nobody = cluster.run(|tx| call().keep(tx, &crate::testing::anonymous(), REPLY, [7; 12]));
    assert!(matches!(nobody, Err(CoreError::Unauthenticated(_))));
}

#[test]
fn a_key_is_for_one_request() {
    let mut cluster = answered();
    let other = once("CreateToken", KEY, b"another request");
    let refused = cluster.admin(|tx, context| other.recall(tx, context));
    assert!(matches!(refused, Err(CoreError::KeyReused)));
}

#[test]
fn what_is_stored_tells_nothing() {
    let mut cluster = answered();
    let stored = row(&mut cluster).sealed;
    let holds = |part: &[u8]| stored.windows(part.len()).any(|window| window == part);
    // Nor can a password be guessed by a digest of the request.
    assert!(!holds(REPLY) && !holds(&REPLY[..8]) && !holds(&Sha256::digest(REQUEST)[..8]));
    let keys = cluster.run(|tx| Ok(tx.scan_raw(&store_txn::KeyRange::prefix(&[0, 40]), 10)?)).unwrap();
    assert!(!hex::encode(&keys[0].0).contains(&KEY[..16]));
    for text in [format!("{:?}", call()), format!("{:?}", key(KEY))] {
        assert!(!text.contains("0011") && !text.contains("[0, 17"), "{text}");
    }
    let answer = cluster.admin(|tx, context| call().recall(tx, context)).unwrap();
    assert!(!format!("{answer:?}").contains(&format!("{:?}", &REPLY[..4])[1..8]));
}

#[test]
fn an_altered_or_moved_row_is_not_opened() {
    let sealed = row(&mut answered()).sealed;
    let place = |cluster: &mut Cluster, call: &OnceCall, sealed: &[u8]| {
        cluster
            .admin(|tx, context| {
                let row = AnswerRow { sealed: sealed.to_vec(), expires_at_ms: u64::MAX };
                tx.put(&call.row_key(context)?, &row);
                Ok(())
            })
            .unwrap();
        cluster.admin(|tx, context| call.recall(tx, context))
    };
    let mut cluster = answered();
    assert!(place(&mut cluster, &call(), &sealed).unwrap().is_some());
    for index in 0..sealed.len() {
        let mut altered = sealed.clone();
        altered[index] ^= 1;
        for wrong in [&altered[..], &sealed[..index]] {
            let refused = place(&mut cluster, &call(), wrong);
            assert!(matches!(refused, Err(CoreError::Internal(_))), "byte {index}");
        }
    }
    let moved = place(&mut cluster, &once("CreateUser", KEY, REQUEST), &sealed);
    assert!(matches!(moved, Err(CoreError::Internal(_))));
}

#[test]
fn an_answer_is_kept_for_ten_minutes() {
    let mut cluster = answered();
    let (boss, kept_at) = (cluster.boss, cluster.now);
    assert_eq!(row(&mut cluster).expires_at_ms, kept_at + 600_000);
    cluster.now = kept_at + KEPT_MS - 1;
    assert!(recalled(&mut cluster, boss, &call()).is_some());
    cluster.now = kept_at + KEPT_MS;
    assert_eq!(recalled(&mut cluster, boss, &call()), None);
    assert_eq!(cluster.rows(KeyWriter::table(AnswerKey::TABLE)), 0);
}

/// The rows on disk are these bytes: a change here makes a repetition across an upgrade a second effect. Made with
/// another implementation: RFC 8439 in Python.
#[test]
fn golden_answer() {
    let mut cluster = answered();
    let rows = cluster.run(|tx| Ok(tx.scan_raw(&store_txn::KeyRange::prefix(&[0, 40]), 10)?)).unwrap();
    assert_eq!(hex::encode(&rows[0].0), GOLDEN_KEY);
    assert_eq!(hex::encode(row(&mut cluster).sealed), GOLDEN_SEALED);
}

#[test]
fn a_key_has_one_text() {
    assert!(IdempotencyKey::parse(KEY).is_ok());
    let long = format!("{KEY}00");
    for bad in
        ["", "00", &KEY[1..], &long, &KEY.to_uppercase(), &KEY.replace('0', " "), &KEY.replace('f', "g")]
    {
        assert_invalid(IdempotencyKey::parse(bad), FIELD);
    }
}
