//! `mezctl` in a terminal: what is kept up to date there, and that the terminal is given back.

use std::time::{Duration, Instant};

use mezite_e2e::{Agent, AgentSpec, Cluster, Ingest, eventually, http, in_terminal};
use tokio::task;

/// What enters, and what leaves, a screen of one's own.
const ENTER: &str = "\x1b[?1049h";
const LEAVE: &str = "\x1b[?1049l";

#[tokio::test(flavor = "multi_thread")]
async fn top_shows_the_cluster_and_gives_the_terminal_back() {
    let cluster = Cluster::start(1).await;
    let (_ingests, _) = Ingest::start_all(&cluster, 1).await;
    let agent = Agent::join(&cluster, AgentSpec::default());
    let _ = agent.heartbeat();
    let ctl = cluster.ctl().by_profile();
    for (key, code) in [("q", 0), ("\x03", 0), ("SIGTERM", 0)] {
        let mut command = ctl.command(&["top"]);
        command.env("TERM", "xterm-256color").env_remove("NO_COLOR");
        let seen =
            in_terminal(&command, &[("leader 1", ""), ("NEWEST HOSTS", ""), ("web1.example.org", key)]);
        assert!(seen.restored && seen.code == code, "{key:?}: {seen:?}");
        let (before, after) = seen.output.split_once(ENTER).unwrap();
        assert!(before.is_empty() && after.contains(LEAVE) && after.contains("\x1b[?25h"), "{seen:?}");
        assert!(seen.output.contains("1 online, 0 offline"), "{seen:?}");
    }
    // Where it is no terminal, once.
    let top = ctl.json(&["top"]);
    assert_eq!((&top["leader_id"], &top["nodes_online"]), (&1.into(), &1.into()), "{top}");
    assert_eq!(top["newest_nodes"][0]["hostname"], "web1.example.org");
    assert_eq!(top["ingests"].as_array().unwrap().len(), 1);
    assert!(ctl.ok(&["top"]).contains("NEWEST HOSTS"));
}

/// How often a node was asked for the state of the cluster.
async fn looks(diagnostics: &str) -> u64 {
    let (_, page) = http::get(diagnostics, "/metrics").await.unwrap();
    let of_it =
        |line: &&str| line.starts_with("grpc_server_handled_total") && line.contains("GetClusterStatus");
    page.lines().filter(of_it).filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn top_says_soon_that_the_cluster_is_away_and_what_it_shows_is_old() {
    let mut cluster = Cluster::start(1).await;
    let ctl = cluster.ctl().by_profile();
    let top = || {
        let mut command = ctl.command(&["top"]);
        command.env("TERM", "xterm-256color").env("NO_COLOR", "1");
        command
    };
    let diagnostics = cluster.node(0).diagnostics_address();
    let before = looks(&diagnostics).await;
    let live = top();
    let shown =
        task::spawn_blocking(move || in_terminal(&live, &[("leader 1", ""), ("OLD: as it was at", "q")]));
    // It looks again only when it has shown what it saw.
    eventually("a second look", Duration::from_secs(60), async || match looks(&diagnostics).await - before {
        0 | 1 => Err("not yet"),
        _ => Ok(()),
    })
    .await;
    cluster.node(0).kill();
    let seen = shown.await.unwrap();
    assert!(seen.restored && seen.code == 0, "{seen:?}");
    // From the start: what there is to say is there, and whole.
    let began = Instant::now();
    let seen = in_terminal(&top(), &[("connecting", ""), ("ADDRESS", ""), ("unavailable", "q")]);
    assert!(seen.restored && seen.code == 0 && began.elapsed() < Duration::from_secs(15), "{seen:?}");
    assert!(seen.output.contains(&cluster.addresses()[0]), "{seen:?}");
    // And where it is no terminal.
    let said = ctl.run(&["top"]).failed(5);
    assert!(said.contains("`mezctl status`") && began.elapsed() < Duration::from_secs(25), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_removed_in_a_terminal_only_when_that_is_meant() {
    let cluster = Cluster::start(3).await;
    let ctl = cluster.ctl().by_profile();
    let rm = ctl.command(&["cluster", "rm", "3"]);
    let seen = in_terminal(&rm, &[("2 voters (1, 2): when one of them fails", ""), ("[y/N]", "\r")]);
    assert!(seen.code == 1 && seen.output.contains("node 3 is not removed"), "{seen:?}");
    assert_eq!(ctl.json(&["cluster", "ls"]).as_array().unwrap().len(), 3);
    let seen = in_terminal(&rm, &[("[y/N]", "y\r")]);
    assert!(seen.code == 0 && seen.output.contains("node 3 is removed"), "{seen:?}");
    let seen = in_terminal(&ctl.command(&["cluster", "rm", "2", "--yes"]), &[]);
    assert!(seen.code == 0 && !seen.output.contains("[y/N]"), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_watched_is_redrawn_and_what_is_printed_fits() {
    let cluster = Cluster::start(1).await;
    let spec =
        AgentSpec { labels: "env=production,team=platform,region=eu-central-1", ..AgentSpec::default() };
    let agent = Agent::join(&cluster, spec);
    let ctl = cluster.ctl().by_profile();
    let in_colour = |args: &[&str]| {
        let mut command = ctl.command(args);
        command.env("TERM", "xterm-256color").env_remove("NO_COLOR");
        command
    };
    let watch = in_colour(&["nodes", "ls", "--watch", "1"]);
    let seen = in_terminal(&watch, &[("HOSTNAME", ""), ("HOSTNAME", "\x03")]);
    assert!(seen.restored && seen.code == 0, "{seen:?}");
    assert!(!seen.output.split_once(LEAVE).unwrap().1.contains("HOSTNAME"), "{seen:?}");

    let seen = in_terminal(&in_colour(&["nodes", "ls"]), &[]);
    assert!(seen.output.contains("\x1b[1mHOSTNAME"), "{seen:?}");
    for (name, value) in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let mut plain = in_colour(&["nodes", "ls"]);
        plain.env(name, value);
        let seen = in_terminal(&plain, &[]);
        assert!(!seen.output.contains('\x1b'), "{name}: {seen:?}");
        // An id is whole, so that it can be copied, whatever that takes; what is before it makes room.
        let before_ids =
            |line: &str| line.replace(&agent.id, "").replace("AGENT ID", "").trim_end().chars().count();
        assert!(seen.output.lines().all(|line| before_ids(line) <= 72), "{seen:?}");
        assert!(seen.output.lines().count() > 2 && seen.output.contains(&agent.id), "{seen:?}");
    }
    // A program gets it as it is, wherever it runs.
    assert_eq!(ctl.ok(&["nodes", "ls"]).lines().count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn long_work_shows_how_far_it_is_and_leaves_nothing_behind() {
    let cluster = Cluster::start(1).await;
    let ctl = cluster.ctl().by_profile();
    let out = cluster.dir().join("audit.jsonl");
    let export = ["audit", "export", "--out", out.to_str().unwrap()];
    let mut command = ctl.command(&export);
    command.env("TERM", "xterm-256color");
    let seen = in_terminal(&command, &[]);
    assert!(seen.code == 0 && seen.output.contains("events exported:"), "{seen:?}");
    assert!(seen.output.trim_end().lines().last().unwrap().contains("Wrote"), "{seen:?}");
    // A pipe sees nothing of it.
    let said = ctl.run(&export);
    assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{said:?}");
}
