//! `mezctl get`, `create` and `rm` against a real cluster: what is printed is made again from what was printed, kind by
//! kind; and what goes wrong in the middle of a file is told.

use std::{fs, path::PathBuf, process::Command};

use mezite_e2e::{Agent, AgentSpec, Cluster, Ctl, PASSWORD, Setup, run, run_on, secret_file};
use serde_json::Value;

use crate::support::{add_role, add_user};

const ROLE: &str = "
  allow:
    logins: [dev, \"{{internal.logins}}\"]
    node_labels: {env: [dev, test], tier: [web]}
    rules: [{resources: [users], verbs: [list]}]
    requests: {request_roles: [access], approvals: 2}
  deny:
    logins: [root]
  options:
    max_session_ttl: 8h
    permit_port_forwarding: true
    source_addresses: [10.0.0.0/8]
";

struct Admin {
    cluster: Cluster,
    ctl: Ctl,
}

impl Admin {
    async fn new() -> Self {
        let cluster = Cluster::start(1).await;
        let ctl = cluster.ctl().by_profile();
        Self { cluster, ctl }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let file = self.cluster.dir().join(name);
        // There may be a secret in it.
        secret_file(&file, text);
        file
    }

    /// What is printed of something, as YAML.
    #[track_caller]
    fn printed(&self, what: &str) -> String {
        self.ctl.ok(&["get", what, "-o", "yaml"])
    }

    /// What `create` does with a text.
    #[track_caller]
    fn create(&self, text: &str, args: &[&str]) -> Vec<(String, String)> {
        let file = self.file("documents.yaml", text);
        let made = self.ctl.json(&[&["create", file.to_str().unwrap()], args].concat());
        let field = |entry: &Value, name: &str| entry[name].as_str().unwrap().to_owned();
        let entries = made.as_array().unwrap().iter();
        entries
            .map(|entry| (field(entry, "action"), field(entry, "kind") + "/" + &field(entry, "name")))
            .collect()
    }

    /// What `create` says of a text that it refuses.
    #[track_caller]
    fn refused(&self, text: &str, args: &[&str], code: i32) -> String {
        let file = self.file("refused.yaml", text);
        self.ctl.run(&[&["create", file.to_str().unwrap()], args].concat()).failed(code)
    }
}

/// A document without what the cluster says of it.
fn wanted(printed: &str) -> Value {
    let mut document: Value = serde_json::from_str(printed).unwrap();
    let fields = document.as_object_mut().unwrap();
    fields.remove("status");
    for said in ["revision", "name"] {
        fields["metadata"].as_object_mut().unwrap().remove(said);
    }
    document
}

fn done(action: &str, names: &[&str]) -> Vec<(String, String)> {
    names.iter().map(|name| (action.to_owned(), (*name).to_owned())).collect()
}

/// Kinds that have names: printed, removed, and made again from what was printed.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_a_name_is_made_again_from_what_was_printed() {
    let admin = Admin::new().await;
    add_role(&admin.cluster, "developer", ROLE);
    let token = ["tokens", "add", "--name", "web", "--ttl", "90m", "--max-uses", "7", "--labels", "env=prod"];
    let secret = admin.ctl.json(&[&token[..], &["--principals", "*.example.org"]].concat())["secret"].clone();
    add_user(&admin.cluster, "alice", "developer,access", "alice,deploy");
    let names = ["role/developer", "token/web", "user/alice"];
    let all = admin.printed(&names.join(","));
    assert!(!all.contains(secret.as_str().unwrap()) && !all.contains(PASSWORD), "{all}");
    let before = names.map(|name| admin.ctl.ok(&["get", name, "-o", "json"]));

    // As it is, there is nothing to do; without --force it is there.
    assert_eq!(admin.create(&all, &["--force"]), done("unchanged", &names));
    let said = admin.refused(&all, &[], 7);
    assert!(said.contains("document 1 (role/developer)") && said.contains("--force"), "{said}");
    assert!(said.contains("0 were done and 2 were not tried"), "{said}");

    // Gone, it comes back as it was, and what is secret is new.
    for name in ["user/alice", "token/web", "role/developer"] {
        let _ = admin.ctl.ok(&["rm", name]);
        let _ = admin.ctl.run(&["get", name]).failed(4);
    }
    let file = admin.file("all.yaml", &all);
    let made = admin.ctl.json(&["create", file.to_str().unwrap()]);
    assert_eq!((&made[1]["secret_of"], &made[2]["secret_of"]), (&"secret".into(), &"invite".into()));
    for (name, before) in names.iter().zip(&before) {
        let after = admin.ctl.ok(&["get", name, "-o", "json"]);
        assert_eq!(wanted(&after), wanted(before), "{name}");
    }
    assert!(made[2]["secret"].as_str().unwrap().len() > 40);
    let _ = admin.cluster.ctl_named("alice").login("alice", PASSWORD).failed(3);
    assert_ne!(made[1]["secret"], secret);

    // A change counts under the revision that it was printed with.
    let user = admin.printed("user/alice");
    let changed = user.replace("- deploy", "- operator");
    assert_eq!(admin.create(&changed, &["-f"]), done("updated", &["user/alice"]));
    assert!(admin.printed("user/alice").contains("- operator"));
    let said = admin.refused(&user, &["-f"], 7);
    assert!(said.contains("changed meanwhile"), "{said}");
    let role = admin.printed("role/developer").replace("8h", "4h");
    assert_eq!(admin.create(&role, &["-f"]), done("updated", &["role/developer"]));
    let said = admin.refused(&admin.printed("token/web").replace("max_uses: 7", "max_uses: 8"), &["-f"], 2);
    assert!(said.contains("cannot be changed"), "{said}");

    // Every role of a cluster, those that nobody can change among them; and the file of `mezctl roles`.
    let roles = admin.printed("roles");
    assert_eq!(admin.create(&roles, &["--force"]).len(), 4);
    let file = admin.file("role.yaml", &admin.printed("role/developer"));
    let _ = admin.ctl.ok(&["roles", "update", file.to_str().unwrap()]);
    let of_roles = admin.ctl.ok(&["roles", "get", "developer", "-o", "yaml"]);
    assert_eq!(admin.create(&of_roles, &["--force"]), done("unchanged", &["role/developer"]));

    // In JSON too, one or a list, and from standard input.
    let users = admin.ctl.ok(&["get", "users", "-o", "json"]);
    assert_eq!(admin.create(&users, &["--force"]).len(), 2);
    let one = admin.file("one.json", &admin.ctl.ok(&["get", "user/alice", "-o", "json"]));
    let created = run_on(&mut admin.ctl.command(&["create", "-f", "-"]), fs::File::open(one).unwrap()).ok();
    assert_eq!(created, "unchanged user/alice\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_cluster_names_is_made_again_under_another_id() {
    let admin = Admin::new().await;
    add_role(&admin.cluster, "asker", "  allow: {requests: {request_roles: [access]}}\n");
    add_user(&admin.cluster, "alice", "asker", "alice");
    let alice = admin.cluster.ctl_named("alice");
    let _ = alice.login("alice", PASSWORD).ok();
    let alice = Admin { ctl: alice.by_profile(), ..admin };
    let admin_ctl = alice.cluster.ctl().by_profile();
    let request = ["requests", "create", "--roles", "access", "--reason", "ticket 7", "--duration", "2h"];
    let request = alice.ctl.json(&request)["id"].as_str().unwrap().to_owned();
    let lock = ["locks", "add", "login:nobody", "--message", "call 1234", "--ttl", "8h"];
    let lock = admin_ctl.json(&lock)["id"].as_str().unwrap().to_owned();

    let scenes = [("access_request", request, alice.ctl.clone()), ("lock", lock, admin_ctl)];
    let mut scene = alice;
    for (kind, id, ctl) in scenes {
        scene.ctl = ctl;
        let name = format!("{kind}/{id}");
        let printed = scene.printed(&name);
        assert_eq!(scene.create(&printed, &["-f"]), done("unchanged", &[&name]));
        let said = scene.refused(&printed, &[], 7);
        assert!(said.contains("is there already"), "{said}");
        let said = scene.refused(
            &printed.replace("  reason: ticket 7", "  reason: x").replace("1234", "5"),
            &["-f"],
            2,
        );
        assert!(said.contains("cannot be changed"), "{said}");

        let unnamed: String =
            printed.lines().filter(|line| !line.contains(&id)).map(|line| format!("{line}\n")).collect();
        let unnamed = unnamed.replace("metadata:\n", "");
        let made = scene.create(&unnamed, &[]);
        assert!(made[0].0 == "created" && made[0].1 != name, "{made:?}");
        let json = |name: &str| wanted(&scene.ctl.ok(&["get", name, "-o", "json"]));
        assert_eq!(json(&made[0].1), json(&name));
        let _ = scene.ctl.ok(&["rm", &made[0].1]);
        if kind == "lock" {
            // Gone, it is made once, and is known again by what it says.
            let _ = scene.ctl.ok(&["rm", &name]);
            let made = scene.create(&printed, &["-f"]);
            assert!(made[0].0 == "created" && made[0].1 != name, "{made:?}");
            assert_eq!(scene.create(&printed, &["-f"]), done("unchanged", &[&made[0].1]));
        }
    }
    // A request that was taken back is still told of, a lock that was removed is not.
    let states = scene.ctl.json(&["get", "access_requests"]);
    let mut states: Vec<_> = states
        .as_array()
        .unwrap()
        .iter()
        .map(|request| request["status"]["state"].as_str().unwrap())
        .collect();
    states.sort_unstable();
    assert_eq!(states, ["cancelled", "pending"]);
    assert_eq!(scene.ctl.json(&["get", "locks"]).as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_by_itself_is_changed_and_not_made() {
    let admin = Admin::new().await;
    let agent = Agent::join(
        &admin.cluster,
        AgentSpec { labels: "rack=7", admin_labels: "env=dev", ..AgentSpec::default() },
    );
    let node = format!("node/{}", agent.id);
    let printed = admin.printed(&node);
    assert_eq!(admin.create(&printed, &["-f"]), done("unchanged", &[&node]));
    assert_eq!(admin.create(&printed.replace("env: dev", "env: prod"), &["-f"]), done("updated", &[&node]));
    let labels = admin.ctl.json(&["get", &node]);
    assert_eq!(labels["spec"]["admin_labels"], serde_json::json!({"env": "prod"}));
    assert_eq!(labels["status"]["agent_labels"], serde_json::json!({"rack": "7"}));
    let _ = admin.refused(&printed.replace("env: dev", "env: test"), &["-f"], 7);
    let _ = admin.refused(&printed, &[], 7);
    let said = admin.refused("kind: node\nspec: {admin_labels: {env: dev}}\n", &[], 2);
    assert!(said.contains("mezctl agent join"), "{said}");

    let config = admin.printed("cluster_config");
    assert_eq!(admin.create(&config, &["-f"]), done("unchanged", &["cluster_config/cluster_config"]));
    let short = "kind: cluster_config\nspec: {session_ttl: 8h, audit_retention: 400days}\n";
    let _ = admin.refused(short, &[], 7);
    assert_eq!(admin.create(short, &["-f"]), done("updated", &["cluster_config/cluster_config"]));
    assert_eq!(admin.ctl.json(&["config", "show"])["session_ttl"], "8h");
    let printed = admin.printed("cluster_config");
    assert!(printed.contains("session_ttl: 8h"), "{printed}");
    assert_eq!(admin.create(&printed, &["-f"]), done("unchanged", &["cluster_config/cluster_config"]));
    let said = admin.ctl.run(&["rm", "cluster_config/cluster_config"]).failed(2);
    assert!(said.contains("cannot be removed"), "{said}");

    add_user(&admin.cluster, "alice", "access", "alice");
    let alice = admin.cluster.ctl_named("alice");
    let _ = alice.login("alice", PASSWORD).ok();
    let sessions = admin.ctl.json(&["get", "sessions"]);
    let of_alice =
        sessions.as_array().unwrap().iter().find(|session| session["spec"]["user"] == "alice").unwrap();
    let session = format!("session/{}", of_alice["metadata"]["name"].as_str().unwrap());
    let printed = admin.printed(&session);
    assert_eq!(admin.create(&printed, &["-f"]), done("unchanged", &[&session]));
    let _ = admin.refused(&printed, &[], 7);
    let _ = admin.ctl.ok(&["rm", &session]);
    let _ = alice.by_profile().run(&["get", "users"]).failed(3);
    let said = admin.refused(&printed, &[], 2);
    assert!(said.contains("mezctl login"), "{said}");

    let _ = admin.ctl.ok(&["rm", &node]);
    let _ = admin.ctl.run(&["get", &node]).failed(4);
}

const CONNECTOR: &str = "\
kind: connector
metadata: {name: corporate}
spec:
  mappings:
    - {claim: groups, value: developers, roles: [developer, access]}
    - {claim: groups, value: admins, roles: [admin]}
  oidc:
    issuer_url: https://login.example.com
    client_id: mezite
    client_secret: what the provider gave us
    scopes: [profile, groups]
";

/// Something of every kind; with the agent, which keeps its node.
async fn one_of_each(admin: &Admin) -> Agent {
    let Admin { cluster, ctl } = admin;
    add_role(cluster, "developer", ROLE);
    add_role(cluster, "asker", "  allow: {requests: {request_roles: [access, developer]}}\n");
    add_user(cluster, "alice", "developer,asker", "alice,deploy");
    add_user(cluster, "nobody", "access", "nobody");
    let principals = "*.example.org,web.example.net,192.0.2.7";
    let _ = ctl.ok(&["tokens", "add", "--name", "web", "--principals", principals]);
    let _ =
        ctl.ok(&["agent-identities", "add", "ci", "--roles", "developer,access", "--logins", "deploy,ci"]);
    let _ = ctl.ok(&["locks", "add", "user:Nobody", "--message", "call 1234"]);
    let alice = cluster.ctl_named("alice");
    let _ = alice.login("alice", PASSWORD).ok();
    let _ = alice.by_profile().ok(&["requests", "create", "--roles", "access", "--reason", "ticket 7"]);
    assert_eq!(admin.create(CONNECTOR, &[]), done("created", &["connector/corporate"]));
    let home = Cluster::start_with(&Setup { name: "home".into(), ..Setup::default() }).await;
    let token = cluster.dir().join("trust.token");
    let token = token.to_str().unwrap();
    let _ = home.ctl().ok(&["trusted-clusters", "token", "--out", token]);
    let add =
        ["trusted-clusters", "add", "home", "--addresses", &home.addresses().join(",")].map(str::to_owned);
    let maps = ["--token-file", token, "--map", "dev=developer,access", "--map", "ops=access"];
    let add: Vec<_> = add.iter().map(String::as_str).chain(maps).collect();
    let _ = ctl.ok(&add);
    Agent::join(cluster, AgentSpec { admin_labels: "env=dev,rack=7", ..AgentSpec::default() })
}

/// Turns all lists around, but for what is asked in its order.
fn turn(value: &mut Value) {
    match value {
        Value::Array(list) => {
            list.reverse();
            list.iter_mut().for_each(turn);
        }
        Value::Object(fields) => {
            fields.iter_mut().filter(|(name, _)| *name != "addresses").for_each(|(_, value)| turn(value));
        }
        _ => {}
    }
}

/// Every kind, as it is printed, and printed the other way round.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_in_another_order_and_spelling_changes_nothing() {
    let admin = Admin::new().await;
    let _agent = one_of_each(&admin).await;
    let help = admin.ctl.ok(&["create", "--help"]);
    let kinds = help.lines().find_map(|line| line.strip_prefix("Kinds: ")).unwrap();
    assert_eq!(kinds.split(", ").count(), 11, "{kinds}");
    for kind in kinds.split(", ") {
        let mut documents = admin.ctl.json(&["get", kind]);
        let list = documents.as_array_mut().unwrap();
        assert!(!list.is_empty(), "{kind}");
        let names: Vec<_> =
            list.iter().map(|it| format!("{kind}/{}", it["metadata"]["name"].as_str().unwrap())).collect();
        let expected = names.iter().map(|name| ("unchanged".to_owned(), name.clone())).collect::<Vec<_>>();
        assert_eq!(admin.create(&serde_json::to_string(&*list).unwrap(), &["-f"]), expected);
        for document in &mut *list {
            turn(document);
            if ["user", "role", "connector", "agent_identity"].contains(&kind) {
                let name = document["metadata"]["name"].as_str().unwrap().to_uppercase();
                document["metadata"]["name"] = name.into();
            }
        }
        assert_eq!(admin.create(&serde_json::to_string(&*list).unwrap(), &["-f"]), expected);
    }

    // What a person writes: without what the cluster fills in, and for a lock without its id.
    let written = "\
kind: lock
spec: {target: 'user:NOBODY', message: call 1234}
---
kind: connector
metadata: {name: Corporate}
spec:
  mappings:
    - {claim: groups, value: admins, roles: [Admin]}
    - {claim: groups, value: developers, roles: [access, developer]}
  oidc: {issuer_url: 'https://login.example.com', client_id: mezite, scopes: [groups, profile]}
---
kind: token
metadata: {name: web}
spec: {allowed_principals: [192.0.2.7, Web.Example.NET, '*.example.org']}
---
kind: cluster_config
spec: {}
";
    let actions: Vec<_> = admin.create(written, &["-f"]).into_iter().map(|(action, _)| action).collect();
    assert_eq!(actions, ["unchanged"; 4]);
    // What is not there is not made by its likeness to something else.
    let other = admin.create("kind: lock\nspec: {target: 'user:nobody'}\n", &["-f"]);
    assert_eq!(other[0].0, "created");
    assert_eq!(
        admin.create("kind: user\nmetadata: {name: Cleo}\nspec: {}\n", &[]),
        done("created", &["user/cleo"])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_read_whole_and_a_failure_in_the_middle_is_told() {
    let admin = Admin::new().await;
    let user = |name: &str, role: &str| {
        format!("kind: user\nmetadata: {{name: {name}}}\nspec: {{roles: [{role}]}}\n")
    };
    // The last is wrong: nothing was made.
    let text = [user("ann", "access"), user("bob", "access"), "kind: usr\nspec: {}\n".into()].join("---\n");
    let said = admin.refused(&text, &[], 2);
    assert!(said.contains("document 3 (usr)") && said.contains("access_request, cluster_config"), "{said}");
    let text = [user("ann", "access"), user("bob", "access").replace("roles", "rols")].join("---\n");
    let said = admin.refused(&text, &[], 2);
    assert!(
        said.contains("document 2 (user/bob)") && said.contains("`rols`") && said.contains("line 7"),
        "{said}"
    );
    let _ = admin.ctl.run(&["get", "user/ann"]).failed(4);

    // The second is refused by the cluster: the first was made, its invite is shown, the third was not tried.
    let text = [user("ann", "access"), user("bob", "nothing"), user("cleo", "access")].join("---\n");
    let file = admin.file("three.yaml", &text);
    let output = admin.ctl.run(&["create", file.to_str().unwrap()]);
    assert_eq!(output.code, 4, "{output:?}");
    assert!(output.stdout.starts_with("created user/ann\n  invite: "), "{output:?}");
    assert!(
        output.stderr.contains("document 2 (user/bob)") && output.stderr.contains("nothing"),
        "{output:?}"
    );
    assert!(output.stderr.contains("1 were done and 1 were not tried"), "{output:?}");
    let _ = admin.ctl.run(&["get", "user/cleo"]).failed(4);

    // With --force, the same file goes on where it was.
    let mended = text.replace("nothing", "auditor");
    let expected = [("unchanged", "user/ann"), ("created", "user/bob"), ("created", "user/cleo")];
    let expected = expected.map(|(action, name)| (action.to_owned(), name.to_owned()));
    assert_eq!(admin.create(&mended, &["--force"]), expected);

    // What may not be done has the codes of the other commands.
    let said = admin.ctl.run(&["get", "usrs"]).failed(2);
    assert!(said.contains("user, role, token"), "{said}");
    let said = admin.ctl.run(&["rm", "users"]).failed(2);
    assert!(said.contains("user/NAME"), "{said}");
    let password = admin.cluster.dir().join("ann.password");
    secret_file(&password, PASSWORD);
    let _ = admin.ctl.ok(&["users", "reset", "ann", "--password-file", password.to_str().unwrap()]);
    let _ = admin.cluster.ctl_named("ann").login("ann", PASSWORD).ok();
    let bob = admin.cluster.ctl_named("ann").by_profile();
    let _ = bob.run(&["get", "tokens"]).failed(3);
    let said = bob.run(&["create", "-f", file.to_str().unwrap()]).failed(3);
    assert!(said.contains("document"), "{said}");
    let output = admin.ctl.run(&["rm", "user/ann,user/nobody,user/bob"]);
    assert_eq!((output.code, output.stdout.as_str()), (4, "Removed user/ann.\n"), "{output:?}");

    // For people, a table of each kind.
    let text = admin.ctl.ok(&["get", "users,roles"]);
    assert!(text.starts_with("NAME") && text.contains("\n\nNAME") && text.contains("auditor"), "{text}");
}

/// A shell that reads the script knows the commands.
#[test]
fn bash_completes_commands_and_options() {
    let mezctl = mezite_e2e::binary("mezctl");
    let ask = "source <(\"$0\" completion bash)
        COMP_WORDS=(mezctl \"$@\"); COMP_CWORD=$#
        _mezctl mezctl \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD-1]}\"
        echo \"${COMPREPLY[@]}\"";
    let complete = |words: &[&str]| run(Command::new("bash").args(["-c", ask]).arg(&mezctl).args(words)).ok();
    assert_eq!(complete(&["compl"]).trim(), "completion");
    assert!(complete(&["users", ""]).contains("update"));
    assert!(complete(&["create", "--fo"]).contains("--force"));
    assert_eq!(run(Command::new(&mezctl).args(["completion", "tcsh"])).code, 2);
}
