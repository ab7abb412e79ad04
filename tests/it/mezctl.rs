//! `mezctl` against a real cluster: every family of commands, its three formats, and its exit codes.

use std::fs;

use mezite_e2e::{ADMIN, Agent, AgentSpec, Cluster, PASSWORD, Port, secret_file};
use serde_json::Value;

use crate::support::{add_role, add_user, texts};

const ROLE: &str = "  allow:\n    logins: [dev]\n    node_labels: {env: [dev, test]}\n";

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_users_and_tokens_are_made_shown_changed_and_removed() {
    let cluster = Cluster::start(1).await;
    let ctl = cluster.ctl().by_profile();

    // Roles: what is printed is a file that is read back.
    add_role(&cluster, "developer", ROLE);
    assert_eq!(names(&ctl.json(&["roles", "ls"])), ["access", "admin", "auditor", "developer"]);
    for (format, file) in [("yaml", "role.yaml"), ("json", "role.json"), ("text", "role.txt")] {
        let printed = ctl.ok(&["roles", "get", "developer", "--format", format]);
        let file = cluster.dir().join(file);
        fs::write(&file, printed).unwrap();
        let _ = ctl.ok(&["roles", "update", file.to_str().unwrap()]);
        // It carries the revision that it was printed with, which is over now.
        let said = ctl.run(&["roles", "update", file.to_str().unwrap()]).failed(7);
        assert!(said.contains("changed meanwhile"), "{said}");
    }
    let file = cluster.dir().join("role-developer.yaml");
    let _ = ctl.run(&["roles", "create", file.to_str().unwrap()]).failed(7);
    fs::write(&file, fs::read_to_string(&file).unwrap().replace("logins", "lojins")).unwrap();
    let said = ctl.run(&["roles", "create", file.to_str().unwrap()]).failed(2);
    assert!(said.contains("lojins"), "{said}");

    // Users.
    add_user(&cluster, "alice", "developer,access", "alice,deploy");
    let alice = ctl.json(&["users", "get", "ALICE"]);
    assert_eq!(texts(&alice["roles"]), ["access", "developer"]);
    assert_eq!(texts(&alice["traits"]["logins"]), ["alice", "deploy"]);
    assert_eq!(alice["created_by"], format!("user:{ADMIN}"));
    assert_eq!(ctl.json(&["users", "get", ADMIN])["created_by"], "init");
    let alice = ctl.json(&["users", "update", "alice", "--roles", "developer", "--trait", "team=red"]);
    assert_eq!(texts(&alice["roles"]), ["developer"]);
    assert_eq!(texts(&alice["traits"]["logins"]), ["alice", "deploy"], "what is not given stays");
    assert_eq!(names(&ctl.json(&["users", "ls"])), ["alice", ADMIN]);
    let said = ctl.run(&["roles", "rm", "developer"]).failed(1);
    assert!(said.contains("alice"), "{said}");
    let said = ctl.run(&["users", "update", "alice", "--roles", "nowhere"]).failed(4);
    assert!(said.contains("nowhere"), "{said}");
    let _ = ctl.ok(&["users", "rm", "alice"]);
    let _ = ctl.run(&["users", "get", "alice"]).failed(4);
    let _ = ctl.run(&["users", "rm", "alice"]).failed(4);
    let _ = ctl.ok(&["roles", "rm", "developer"]);
    let _ = ctl.run(&["roles", "get", "developer"]).failed(4);

    // Tokens.
    let token = ctl.json(&["tokens", "add", "--name", "web", "--labels", "env=prod", "--ttl", "10m"]);
    let secret = token["secret"].as_str().unwrap();
    assert!(secret.len() >= 32);
    assert_eq!(token["labels"]["env"], "prod");
    let shown = ctl.ok(&["tokens", "get", "web", "--format", "yaml"]) + &ctl.ok(&["tokens", "ls"]);
    assert!(shown.contains("env: prod") && !shown.contains(secret), "{shown}");
    let _ = ctl.run(&["tokens", "add", "--name", "web"]).failed(7);
    let _ = ctl.run(&["tokens", "add", "--ttl", "31d"]).failed(2);
    let _ = ctl.ok(&["tokens", "rm", "web"]);
    let _ = ctl.run(&["tokens", "get", "web"]).failed(4);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_listed_revoked_and_ended() {
    let cluster = Cluster::start(1).await;
    add_user(&cluster, "alice", "access", "deploy");
    let admin = cluster.ctl().by_profile();
    let (here, there) = (cluster.ctl_named("here"), cluster.ctl_named("there"));
    for ctl in [&here, &there] {
        let _ = ctl.login("alice", PASSWORD).ok();
    }
    let (here, there) = (here.by_profile(), there.by_profile());
    let sessions = here.json(&["sessions", "ls"]);
    let sessions = sessions.as_array().unwrap();
    assert!(sessions.len() == 2 && sessions.iter().all(|session| session["user"] == "alice"), "{sessions:?}");
    let of_alice = admin.json(&["sessions", "ls", "--user", "alice"]);
    assert_eq!(of_alice.as_array().unwrap().len(), 2);

    // A new password leaves only the session that set it.
    let (old, new) = (cluster.dir().join("old"), cluster.dir().join("new"));
    secret_file(&old, PASSWORD);
    secret_file(&new, "another correct password");
    let passwd = [
        "passwd",
        "--old-password-file",
        old.to_str().unwrap(),
        "--new-password-file",
        new.to_str().unwrap(),
    ];
    let printed = here.ok(&passwd);
    assert!(printed.contains("1 other session"), "{printed}");
    let said = there.run(&["users", "ls"]).failed(3);
    assert!(said.contains("mezctl login"), "{said}");
    let said = here.run(&passwd).failed(2);
    assert!(said.contains("old_password"), "{said}");

    let handle = admin.json(&["sessions", "ls", "--user", "alice"])[0]["handle"].as_str().unwrap().to_owned();
    let _ = here.run(&["sessions", "revoke", &handle]).failed(3);
    let _ = admin.ok(&["sessions", "revoke", &handle]);
    let _ = here.run(&["nodes", "ls"]).failed(3);
    let _ = admin.run(&["sessions", "revoke", &handle]).failed(4);
    let _ = there.login("alice", "another correct password").ok();
    let _ = there.ok(&["logout"]);
    let _ = there.run(&["nodes", "ls"]).failed(3);
    assert_eq!(admin.json(&["sessions", "ls", "--user", "alice"]).as_array().unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_has_an_exit_code_and_says_what_to_do() {
    let mut cluster = Cluster::start(1).await;
    add_user(&cluster, "alice", "access", "deploy");
    let alice = cluster.ctl_named("alice");
    let _ = alice.login("alice", PASSWORD).ok();
    let alice = alice.by_profile();
    let nobody = cluster.ctl_named("nobody");

    let said = nobody.run(&["users", "ls"]).failed(3);
    assert!(said.contains("not logged in") && said.contains("mezctl login"), "{said}");
    let said = nobody.by_profile().run(&["login", "--user", "x", "--password-file", "/nowhere"]).failed(2);
    assert!(said.contains("--addr"), "{said}");
    let said = alice.run(&["tokens", "ls"]).failed(3);
    assert!(said.contains("admin"), "{said}");
    let _ = alice.run(&["no-such-command"]).failed(2);
    let _ = alice.run(&["users", "get", "nobody"]).failed(4);
    let wide = cluster.dir().join("wide");
    fs::write(&wide, PASSWORD).unwrap();
    let login = ["login", "--user", "alice", "--password-file", wide.to_str().unwrap()];
    let said = nobody.run(&login).failed(2);
    assert!(said.contains("chmod 600"), "{said}");

    cluster.node(0).kill();
    let said = alice.run(&["users", "ls", "--timeout", "2s"]).failed(5);
    assert!(said.contains("unavailable"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_joins_reports_renews_and_leaves() {
    let cluster = Cluster::start(1).await;
    let port = Port::lease();
    let spec = AgentSpec {
        address: &port.address(),
        labels: "env=dev,team=red",
        admin_labels: "env=prod",
        ..AgentSpec::default()
    };
    let agent = Agent::join(&cluster, spec);
    let dir = agent.dir.to_str().unwrap();
    let admin = cluster.ctl().by_profile();
    let node = || admin.json(&["nodes", "ls"])[0].clone();
    assert_eq!(node()["labels"], serde_json::json!({"env": "prod", "team": "red"}), "an admin's labels win");

    let beat = ["agent", "heartbeat", "--dir", dir, "--labels", "env=test,rack=7", "--load", "3"];
    let _ = agent.ctl().ok(&beat);
    assert_eq!(node()["labels"], serde_json::json!({"env": "prod", "rack": "7"}));
    assert_eq!(node()["load"], 3);

    let read = |name: &str| fs::read_to_string(agent.file(name)).unwrap();
    let files = ["tls.crt", "ssh_host_ed25519_key-cert.pub"];
    let before = files.map(read);
    let _ = agent.ctl().ok(&["agent", "renew", "--dir", dir]);
    let after = files.map(read);
    assert!(before.iter().zip(&after).all(|(before, after)| before != after), "there are new certificates");
    let _ = agent.heartbeat();
    assert_eq!(node()["agent_id"], agent.id.as_str());

    let _ = agent.ctl().ok(&["agent", "leave", "--dir", dir]);
    assert_eq!(admin.json(&["nodes", "ls"]).as_array().unwrap().len(), 0);
    assert!(!agent.file("tls.key").exists());
    let _ = agent.ctl().run(&["agent", "heartbeat", "--dir", dir]).failed(2);
}
