//! How long an answer takes tells nobody whether there is such a user, or whether a password is right that logs nobody in.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use mezite_client::testing::Authenticator;
use mezite_e2e::{Cluster, PASSWORD, api};
use rand::seq::SliceRandom as _;
use serde_json::{Value, json};
use tonic::Code;

use crate::{support::seen_at, web::Curl, webauthn};

/// Tries of each kind.
const TRIES: usize = 500;
/// Networks that logins with a passkey come from: each may begin a hundred at once at a node.
const NETWORKS: u8 = 24;
/// How far the chance that a try of one kind takes longer than one of another may be from even. With 500 of each its standard
/// deviation is 0.018 where there is no difference; with distributions that do not overlap the chance is 0 or 1.
const BIAS: f64 = 0.1;

/// Takes the time of so many tries of each kind, in an order that is random, and compares the kinds.
async fn compare(kinds: [&str; 2], mut attempt: impl AsyncFnMut(&str)) {
    let mut order: Vec<usize> = (0..2 * TRIES).map(|number| number % 2).collect();
    order.shuffle(&mut rand::rng());
    // What only the first tries meet, such as connecting.
    for kind in kinds.iter().cycle().take(20) {
        attempt(kind).await;
    }
    let mut took = [Vec::new(), Vec::new()];
    for kind in order {
        let since = Instant::now();
        attempt(kinds[kind]).await;
        took[kind].push(since.elapsed());
    }
    let chance = slower(&took[0], &took[1]);
    let middles = took.map(|mut took| {
        took.sort_unstable();
        took[TRIES / 2]
    });
    println!("{kinds:?}: medians {middles:?}, the first is slower in {:.1} % of pairs", 100.0 * chance);
    assert!((chance - 0.5).abs() < BIAS, "{kinds:?}: {middles:?}, {chance}");
}

/// The part of all pairs in which the first took longer.
fn slower(first: &[Duration], second: &[Duration]) -> f64 {
    let mut second = second.to_vec();
    second.sort_unstable();
    let faster = first.iter().map(|took| second.partition_point(|other| other < took));
    f64::from(u32::try_from(faster.sum::<usize>()).unwrap())
        / f64::from(u32::try_from(first.len() * second.len()).unwrap())
}

/// A cluster with a user `alice` who has a passkey, whose logins so many failures shut.
async fn with_passkey(lockout_threshold: &str) -> Cluster {
    let cluster = Cluster::start(1).await;
    let _ = cluster.ctl().ok(&["config", "set", "--lockout-threshold", lockout_threshold]);
    webauthn::configure(&cluster);
    cluster.add_user("alice", &["access"], &[]).await;
    let mut own = Authenticator::new(webauthn::ORIGIN);
    webauthn::register(&cluster, &cluster.session_of("alice").await, &mut own, true).await.unwrap();
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_takes_as_long_whether_there_is_such_a_user_or_not() {
    let cluster = Cluster::start(1).await;
    let _ = cluster.ctl().ok(&["config", "set", "--lockout-threshold", "1000"]);
    cluster.add_user("alice", &["access"], &[]).await;
    let client = cluster.anonymous_at(0);
    let attempt = async |name: &str| {
        let refused = api::log_in(&client, name, "wrong horse battery staple").await;
        api::refused(refused, Code::Unauthenticated);
    };
    compare(["alice", "nobody"], attempt).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_passkey_takes_as_long_whether_there_is_such_a_user_or_not() {
    let cluster = with_passkey("1000").await;
    let mut other = Authenticator::new(webauthn::ORIGIN);
    webauthn::register(&cluster, cluster.session(), &mut other, true).await.unwrap();
    // One network alone may not begin so many.
    let mut clients = Vec::new();
    for number in 1..=NETWORKS {
        let at = seen_at(Ipv4Addr::new(127, 0, number, 1), &cluster.nodes()[0].address()).await;
        clients.push(api::client(&[at], cluster.trust(), None, None));
    }

    let mut next = clients.iter().cycle();
    let begin = async |name: &str| drop(webauthn::begin(next.next().unwrap(), name).await);
    compare(["alice", "nobody"], begin).await;
    let mut next = clients.iter().cycle();
    // By the credential that is asked for, as far as a stranger can answer.
    let log_in = async |name: &str| {
        let client = next.next().unwrap();
        let begun = webauthn::begin(client, name).await;
        let mut answer: Value = serde_json::from_str(&other.force(&begun.options_json)).unwrap();
        let asked = Value::from(webauthn::ids(&begun)[0].as_str());
        (answer["id"], answer["rawId"]) = (asked.clone(), asked);
        let refused = webauthn::finish(client, begun.challenge_id, answer.to_string()).await;
        api::refused(refused, Code::Unauthenticated);
    };
    compare(["alice", "nobody"], log_in).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_password_takes_as_long_as_a_wrong_one_while_the_logins_are_shut() {
    const WRONG: &str = "wrong horse battery staple";
    let cluster = with_passkey("3").await;
    for _ in 0..3 {
        api::log_in(&cluster.anonymous_at(0), "alice", WRONG).await.unwrap_err();
    }
    // By the web, where the right one would begin the login's second half.
    let curl = Curl::new(&cluster, 0);
    let attempt = async |password: &str| {
        let refused =
            curl.post(&[], "/v1/webapi/login", &json!({ "username": "alice", "password": password }));
        assert_eq!(refused.status, 401, "{refused:?}");
    };
    compare([PASSWORD, WRONG], attempt).await;
}
