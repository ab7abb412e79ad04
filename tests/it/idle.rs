//! Sessions that nobody uses end, on every node, and no sooner than the cluster's configuration says.

use std::{fs, path::Path, time::Duration};

use mezite_client::SessionSecret;
use mezite_e2e::{ADMIN, Cluster, PASSWORD, Scratch, Setup, api, call, eventually, tools};
use mezite_proto::v1;
use tonic::Code;

const PATIENCE: Duration = Duration::from_secs(30);
const IDLE: u64 = 600;

/// Sets the clocks of all nodes ahead.
fn set_ahead(offset: &Path, seconds: u64) {
    fs::write(offset, format!("+{seconds}s")).unwrap();
}

/// When the sessions of a user were used last, as a node tells an admin; Unix seconds.
async fn last_uses(cluster: &Cluster, index: usize, user: &str) -> Vec<i64> {
    let request = v1::ListActiveSessionsRequest { user: user.into(), ..Default::default() };
    let listed = call!(cluster.admin_at(index), list_active_sessions, request).unwrap().sessions;
    listed.into_iter().map(|session| session.last_used_at.unwrap().seconds).collect()
}

async fn is_good(cluster: &Cluster, index: usize, session: &SessionSecret) -> bool {
    let client = cluster.user_at(index, session);
    match call!(client, list_users, v1::ListUsersRequest::default()) {
        Ok(_) => true,
        Err(error) if error.code() == Some(Code::Unauthenticated) => false,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_used_on_whichever_node_goes_on_and_one_that_is_not_ends_on_all() {
    let scratch = Scratch::new();
    let offset = scratch.path().join("offset");
    fs::write(&offset, "+0").unwrap();
    let setup = Setup { nodes: 3, env: tools::shifted_clock(&offset), ..Setup::default() };
    let cluster = Cluster::start_with(&setup).await;
    let idle = Some(prost_types::Duration { seconds: IDLE as i64, nanos: 0 });
    let config = v1::ClusterConfig { session_idle_timeout: idle, ..Default::default() };
    call!(cluster.admin(), update_cluster_config, v1::UpdateClusterConfigRequest { config: Some(config) })
        .unwrap();
    for user in ["used", "unused"] {
        cluster.add_user(user, &["access"], &[]).await;
    }
    let (used, unused) = (cluster.session_of("used").await, cluster.session_of("unused").await);
    let began = last_uses(&cluster, 0, "used").await[0];

    let step = IDLE / 4;
    for round in 1..=6_u64 {
        set_ahead(&offset, round * step);
        let index = (round % 3) as usize;
        // Used at one node, and known to have been used at the others.
        eventually("its use is noted", PATIENCE, async || {
            assert!(is_good(&cluster, index, &used).await, "round {round}");
            let noted = last_uses(&cluster, (index + 1) % 3, "used").await;
            let after = began + (round * step) as i64 - IDLE as i64 / 20;
            if noted[0] >= after { Ok(()) } else { Err(format!("{noted:?}")) }
        })
        .await;
    }
    // By now it was unused for one and a half times as long as it may be.
    for index in 0..3 {
        assert!(!is_good(&cluster, index, &unused).await && is_good(&cluster, index, &used).await);
        assert!(last_uses(&cluster, index, "unused").await.is_empty());
    }
    // What `mezctl` had was not used for as long.
    let _ = cluster.ctl().login(ADMIN, PASSWORD).ok();
    let shown = cluster.ctl().json(&["sessions", "ls", "--user", "used"]);
    assert!(shown[0]["last_used_at"].is_string(), "{shown}");

    set_ahead(&offset, 6 * step + IDLE + IDLE / 8);
    // Each node looks at its clock in its own time.
    for index in 0..3 {
        eventually("it is over", PATIENCE, async || {
            if is_good(&cluster, index, &used).await { Err("it is still good") } else { Ok(()) }
        })
        .await;
    }
    for index in 0..3 {
        let client = cluster.user_at(index, &used);
        api::refused(call!(client, list_users, v1::ListUsersRequest::default()), Code::Unauthenticated);
    }
}
