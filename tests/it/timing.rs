//! How long an answer takes tells nobody whether there is such a user.

use std::time::{Duration, Instant};

use mezite_e2e::{Cluster, api};
use rand::seq::SliceRandom as _;
use tonic::Code;

/// Tries of each kind.
const TRIES: usize = 500;
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
