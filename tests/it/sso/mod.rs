//! Single sign-on, against a provider that nobody here wrote: in a browser, on a terminal, at any node, and attacked.

mod person;
mod provider;

use std::{fs, time::Duration};

use mezite_e2e::{
    Agent, AgentSpec, Cluster, PASSWORD, Port, Process, Setup, Sshd, account, api, call, eventually,
};
use mezite_proto::v1;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tonic::Code;

use self::{
    person::{Page, Person},
    provider::{GitHub, Oidc},
};
use crate::support::{add_role, texts};

const PATIENCE: Duration = Duration::from_secs(60);
const MAPPINGS: &str =
    "[{claim: groups, value: operators, roles: [operator]}, {claim: groups, value: staff, roles: [access]}]";
const OPERATOR: &str = "  allow:\n    logins: [\"{{external.logins}}\"]\n    node_labels: {env: [prod]}\n";

/// A cluster that browsers reach, and its provider.
struct World {
    provider: Oidc,
    url: String,
    _port: Port,
    // The last: the others write to its folder until they end.
    cluster: Cluster,
}

impl World {
    /// With a connector `corp`.
    async fn start(nodes: usize) -> Self {
        let port = Port::lease();
        let url = format!("https://localhost:{}", port.number());
        let set = vec![format!("web.public_url={url}")];
        let cluster = Cluster::start_with(&Setup { nodes, set, ..Setup::default() }).await;
        let _ = crate::browser::certificate(cluster.dir());
        let provider = Oidc::start(cluster.dir(), &url, "corp").await;
        add_role(&cluster, "operator", OPERATOR);
        let world = Self { cluster, provider, url, _port: port };
        world.connect("corp", &world.provider.connector("corp", MAPPINGS));
        world
    }

    /// Makes or replaces a connector.
    fn connect(&self, name: &str, document: &str) {
        let file = self.cluster.dir().join(format!("{name}.yaml"));
        mezite_e2e::secret_file(&file, document);
        let _ = self.cluster.ctl().ok(&["create", "--force", file.to_str().unwrap()]);
    }

    fn person(&self, name: &str) -> Person {
        Person::new(&self.cluster, name, &self.url, &self.provider.ca)
    }

    /// What the audit log says of the last login that was refused.
    async fn reason(&self) -> String {
        let events = vec!["user.login.failed".to_owned()];
        let request = v1::QueryAuditEventsRequest { events, page_size: 100, ..Default::default() };
        let events = call!(self.cluster.admin(), query_audit_events, request).unwrap().events;
        let event = events.into_iter().next().unwrap();
        assert_eq!(event.fields["method"], "sso", "{event:?}");
        event.fields["reason"].clone()
    }

    /// Checks that a browser was sent away with this word, for this reason.
    #[track_caller]
    fn is_refused(&self, page: &Page, word: &str) {
        let to = format!("{}/web/login#sso-{word}", self.url);
        assert_eq!(
            (page.status, page.location.as_str()),
            (303, to.as_str()),
            "{page:?}\n{}",
            self.provider.log()
        );
    }
}

/// What a URL's query says.
fn part(url: &str, name: &str) -> String {
    let (_, query) = url.split_once('?').unwrap();
    let found = query.split('&').find_map(|part| part.strip_prefix(&format!("{name}=")));
    found.unwrap_or_else(|| panic!("{name} in {url}")).to_owned()
}

fn user(logins: &[&str], groups: &[&str], name: &str) -> Value {
    json!({ "preferred_username": name, "groups": groups, "logins": logins })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_logs_in_at_any_node_and_what_is_forged_or_repeated_is_refused() {
    let mut world = World::start(3).await;
    world.provider.knows(json!({
        "ann": user(&[], &["staff"], "Ann"),
        "eve": user(&[], &["staff"], "eve"),
        "idle": user(&[], &["others"], "idle"),
    }));
    let mut ann = world.person("ann");
    // Begun at one node, finished at another.
    let url = ann.begin("corp", None).unwrap();
    let back = ann.at_provider(&url, "ann");
    ann.at(&world.cluster, 1);
    let home = ann.get(&back);
    assert_eq!(
        (home.status, home.location),
        (303, format!("{}/web/devices", world.url)),
        "{}",
        world.provider.log()
    );
    ann.at(&world.cluster, 2);
    assert_eq!(ann.session(), Some(("ann".into(), "sso".into())));
    let sessions = world.cluster.ctl().json(&["sessions", "ls", "--user", "ann"]);
    assert_eq!((&sessions[0]["method"], sessions.as_array().unwrap().len()), (&json!("sso"), 1));

    // A second time it is nobody's, at no node; nor with another state.
    for node in [1, 0] {
        ann.at(&world.cluster, node);
        world.is_refused(&ann.get(&back), "anew");
    }
    assert!(world.reason().await.contains("state"));
    let url = ann.begin("corp", None).unwrap();
    let back = ann.at_provider(&url, "ann");
    let state = part(&back, "state");
    world.is_refused(&ann.get(&back.replace(&state, &format!("{state}x"))), "anew");

    // A link that another has begun logs nobody in as that other; it is used up by that.
    let eve = world.person("eve");
    let theirs = eve.at_provider(&eve.begin("corp", None).unwrap(), "eve");
    let fresh = world.person("fresh");
    world.is_refused(&fresh.get(&theirs), "anew");
    assert!(world.reason().await.contains("another browser"));
    world.is_refused(&eve.get(&theirs), "anew");
    assert_eq!((fresh.session(), eve.session()), (None, None));
    // Nor does the code of another login, with a state of one's own: the provider wants the verifier of that one.
    let theirs = eve.at_provider(&eve.begin("corp", None).unwrap(), "eve");
    let own = fresh.at_provider(&fresh.begin("corp", None).unwrap(), "ann");
    let mixed = own.replace(&part(&own, "code"), &part(&theirs, "code"));
    world.is_refused(&fresh.get(&mixed), "unproved");
    assert!(world.reason().await.contains("exchange of the code"));
    // What another provider would say, and what says no.
    for (change, wanted) in
        [("&iss=https%3A%2F%2Fevil.example", "another provider"), ("&error=access_denied", "access_denied")]
    {
        let own = fresh.at_provider(&fresh.begin("corp", None).unwrap(), "ann");
        let own = own.split("&iss=").next().unwrap().to_owned();
        world.is_refused(&fresh.get(&format!("{own}{change}")), "unproved");
        assert!(world.reason().await.contains(wanted), "{wanted}");
    }

    // Who is mapped to nothing is nobody, and so is who has the name of a user of the cluster alone.
    world.is_refused(&world.person("idle").log_in("corp", "idle"), "not-let-in");
    assert!(world.reason().await.contains("mapped"));
    world.cluster.add_user("local", &["admin"], &[]).await;
    world
        .provider
        .knows(json!({ "thief": user(&[], &["staff"], "LOCAL"), "other": user(&[], &["staff"], "ann") }));
    world.is_refused(&world.person("thief").log_in("corp", "thief"), "not-let-in");
    assert!(world.reason().await.contains("of no connector"));
    world.is_refused(&world.person("other").log_in("corp", "other"), "not-let-in");
    assert!(world.reason().await.contains("another account's"));
    let local = world.cluster.ctl().json(&["users", "get", "local"]);
    assert_eq!((texts(&local["roles"]), &local["connector"]), (vec!["admin"], &json!("")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_provider_says_counts_at_each_login_and_the_connector_while_it_is_there() {
    let mut world = World::start(1).await;
    let corp = "corp";
    world.provider.knows(json!({ "ann": user(&["deploy"], &["operators", "staff"], "ann") }));
    let ann = world.person("ann");
    assert_eq!(ann.log_in(corp, "ann").status, 303);
    let stored = |world: &World| world.cluster.ctl().json(&["users", "get", "ann"]);
    let first = stored(&world);
    assert_eq!(texts(&first["roles"]), ["access", "operator"]);
    assert_eq!((&first["connector"], texts(&first["traits"]["logins"])), (&json!("corp"), vec!["deploy"]));
    assert!(first["expires_at"].is_string(), "{first}");

    world.provider.knows(json!({ "ann": user(&[], &["staff"], "ann") }));
    assert_eq!(world.person("again").log_in(corp, "ann").status, 303);
    assert_eq!(texts(&stored(&world)["roles"]), ["access"]);
    assert_eq!(ann.session(), Some(("ann".into(), "sso".into())), "its sessions go on");

    // A password of its own it has none, and gets none.
    let ctl = world.cluster.ctl();
    let said = ctl.run(&["users", "reset", "ann"]).failed(1);
    assert!(said.contains("--make-local"), "{said}");
    let said = ctl.run(&["users", "update", "ann", "--roles", "admin"]).failed(1);
    assert!(said.contains("mappings"), "{said}");
    let anonymous = world.cluster.anonymous_at(0);
    let mut answers = Vec::new();
    for name in ["ann", "nobody"] {
        let refused = api::log_in(&anonymous, name, PASSWORD).await.unwrap_err();
        answers.push(refused.to_string());
    }
    assert_eq!(answers[0], answers[1], "who has no password is answered like who is nobody");

    // A lock holds, and ends.
    let _ = ctl.ok(&["locks", "add", "user:ann"]);
    assert_eq!(ann.session(), None);
    world.is_refused(&world.person("locked").log_in(corp, "ann"), "not-let-in");
    let locks = ctl.json(&["locks", "ls"]);
    let _ = ctl.ok(&["locks", "rm", locks[0]["id"].as_str().unwrap()]);
    assert!(ann.session().is_some());

    // What the connector is changed to, or that it goes, ends logins that are under way, and its users' sessions.
    let late = world.person("late");
    let back = late.at_provider(&late.begin(corp, None).unwrap(), "ann");
    world.connect(
        "corp",
        &world.provider.connector("corp", "[{claim: groups, value: staff, roles: [auditor]}]"),
    );
    world.is_refused(&late.get(&back), "anew");
    assert_eq!(late.log_in(corp, "ann").status, 303);
    assert_eq!(texts(&stored(&world)["roles"]), ["auditor"]);
    let back = late.at_provider(&late.begin(corp, None).unwrap(), "ann");
    let _ = ctl.ok(&["connectors", "rm", "corp"]);
    world.is_refused(&late.get(&back), "anew");
    assert_eq!((late.session(), ann.session()), (None, None));

    // An admin makes it a user of the cluster alone; then it is nobody's of the provider.
    let file = world.cluster.dir().join("ann.password");
    mezite_e2e::secret_file(&file, PASSWORD);
    let _ = ctl.ok(&["users", "reset", "ann", "--make-local", "--password-file", file.to_str().unwrap()]);
    let _ = api::log_in(&anonymous, "ann", PASSWORD).await.unwrap();
    world.connect("corp", &world.provider.connector("corp", MAPPINGS));
    world.is_refused(&world.person("former").log_in(corp, "ann"), "not-let-in");
}

/// `mezctl login --sso`, which waits for its browser.
struct Waiting {
    process: Process,
    /// The page that it wants opened.
    url: String,
    /// What is behind the `#` of that.
    program: Value,
}

async fn waiting(world: &World, home: &str, connector: &str) -> Waiting {
    let ctl = world.cluster.ctl_named(home);
    fs::create_dir_all(ctl.home()).unwrap();
    let command = ctl.command(&["login", "--sso", connector, "--no-browser"]);
    let process = Process::spawn("mezctl", command, &world.cluster.dir().join(format!("{home}.log")));
    let url = eventually("the address is printed", PATIENCE, async || {
        let log = process.log();
        log.split_whitespace().find(|word| word.starts_with("https://")).map(str::to_owned).ok_or(log.clone())
    })
    .await;
    let (page, fragment) = url.split_once('#').unwrap();
    assert!(page.ends_with("/web/sso"), "{page}");
    let part = |name: &str| {
        let found = fragment.split('&').find_map(|part| part.strip_prefix(&format!("{name}=")));
        found.unwrap().to_owned()
    };
    let (challenge, port) = (part("challenge"), part("port").parse::<u16>().unwrap());
    let shown = challenge[..8].to_uppercase();
    assert!(process.log().contains(&format!("{}-{}", &shown[..4], &shown[4..])), "{}", process.log());
    let program = json!({ "challenge": challenge, "port": port, "path": part("path") });
    Waiting { process, url, program }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_logs_in_through_the_browser_beside_it_and_gets_a_certificate_that_opens_a_host() {
    let mut world = World::start(3).await;
    let login = account();
    world.provider.knows(json!({ "ann": user(&[&login], &["operators"], "Ann") }));
    let port = Port::lease();
    let spec = AgentSpec { address: &port.address(), labels: "env=prod", ..AgentSpec::default() };
    let agent = Agent::join(&world.cluster, spec);
    let _ = agent.heartbeat();
    let sshd = Sshd::start(&agent, port).await;

    let mut ann = world.person("ann");
    let Waiting { mut process, program, .. } = waiting(&world, "ann", "corp").await;
    let back = ann.at_provider(&ann.begin("corp", Some(program.clone())).unwrap(), "ann");
    ann.at(&world.cluster, 2);
    let on = ann.get(&back);
    let (to, code) = on.location.split_once("?code=").unwrap();
    assert_eq!(to, format!("http://127.0.0.1:{}/{}", program["port"], program["path"].as_str().unwrap()));
    assert_eq!(ann.session(), None, "the browser gets no session of the program's");
    // With the code the program logs in, and its log has it not.
    let done = ann.get(&on.location);
    assert!(done.status == 200 && done.body.contains("You are logged in"), "{done:?}");
    assert_eq!(process.exited(PATIENCE).await.code(), Some(0), "{}", process.log());
    assert!(process.log().contains("as ann"), "{}", process.log());
    assert!(!process.log().contains(code));

    let ctl = world.cluster.ctl_named("ann").by_profile();
    let folder = world.cluster.dir().join("certificates");
    let issued = ctl.json(&["certs", "issue", "--out", folder.to_str().unwrap()]);
    assert_eq!(issued["key_id"], "ann");
    assert_eq!(sshd.client(&folder).run(&login, "id -un").ok(), format!("{login}\n"));
    let sessions = ctl.json(&["sessions", "ls"]);
    assert_eq!((&sessions[0]["method"], &sessions[0]["user"]), (&json!("sso"), &json!("ann")));
    let _ = ctl.ok(&["logout"]);
    for log in world.cluster.nodes().iter().map(|node| node.log()) {
        assert!(!log.contains(code) && !log.contains(provider::SECRET));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_is_good_once_and_for_the_program_that_began_alone() {
    let mut world = World::start(1).await;
    world.provider.knows(json!({
        "ann": user(&[], &["staff"], "ann"),
        "idle": user(&[], &["others"], "idle"),
    }));
    let anonymous = world.cluster.anonymous_at(0);
    let verifier = "a verifier that nobody else has, of 43 or more".replace(' ', "-");
    let challenge = Sha256::digest(&verifier);
    let person = world.person("ann");
    let code = || {
        let program = json!({
            "challenge": challenge.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
            "port": 9,
            "path": "0123456789abcdef",
        });
        let on = person.get(&person.at_provider(&person.begin("corp", Some(program)).unwrap(), "ann"));
        on.location.split_once("?code=").unwrap().1.to_owned()
    };
    let redeem = async |code: &str, verifier: &str| {
        let request = v1::FinishSsoLoginRequest { code: code.into(), verifier: verifier.into() };
        call!(anonymous, finish_sso_login, request)
    };
    let good = code();
    let session = redeem(&good, &verifier).await.unwrap().session.unwrap();
    assert_eq!((session.user.as_str(), session.method()), ("ann", v1::AuthMethod::Sso));
    api::refused(redeem(&good, &verifier).await, Code::Unauthenticated);
    let stolen = code();
    api::refused(redeem(&stolen, &verifier.replace('a', "b")).await, Code::Unauthenticated);
    assert!(world.reason().await.contains("another program"));
    api::refused(redeem(&stolen, &verifier).await, Code::Unauthenticated);

    // A program hears what became of it, and its browser sees that too.
    let Waiting { mut process, program, .. } = waiting(&world, "idle", "corp").await;
    let idle = world.person("idle");
    let on = idle.get(&idle.at_provider(&idle.begin("corp", Some(program)).unwrap(), "idle"));
    assert!(on.location.ends_with("?error=not-let-in"), "{on:?}");
    assert!(idle.get(&on.location).body.contains("not logged in"));
    assert_eq!(process.exited(PATIENCE).await.code(), Some(3));
    assert!(process.log().contains("does not let you in"), "{}", process.log());

    // What cannot be begun is said at once.
    let ctl = world.cluster.ctl_named("other");
    let said = ctl.run(&["login", "--sso", "none", "--no-browser"]).failed(4);
    assert!(said.contains("none"), "{said}");
    let certificate = fs::read_to_string(world.cluster.dir().join("web.crt")).unwrap();
    let certificate: String = certificate.lines().map(|line| format!("        {line}\n")).collect();
    let saml = format!(
        "kind: connector\nmetadata: {{name: old}}\nspec:\n  saml:\n    entity_id: urn:x\n    sso_url: https://idp.example\n    certificates:\n      - |\n{certificate}"
    );
    world.connect("old", &saml);
    let said = ctl.run(&["login", "--sso", "old", "--no-browser"]).failed(1);
    assert!(said.contains("SAML"), "{said}");
    let refused = person.begin("old", None).unwrap_err();
    assert!(refused.status == 400 && refused.body.contains("SAML"), "{refused:?}");
    // The path of a program is one that it drew: hexadecimal digits, which lead nowhere else.
    let other = v1::BeginSsoLoginRequest {
        connector: "corp".into(),
        challenge: vec![0; 32].into(),
        port: 80,
        path: "../".into(),
    };
    api::refused(call!(anonymous, begin_sso_login, other), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_an_organisation_of_github_log_in_with_what_their_teams_give() {
    let world = World::start(1).await;
    let github = GitHub::start(world.cluster.dir()).await;
    world.connect(
        "github",
        &github.connector("github", "[{claim: teams, value: mezite-io/operators, roles: [operator]}]"),
    );
    let person = |name: &str| Person::new(&world.cluster, name, &world.url, &github.ca);
    for (number, (organizations, teams)) in [
        (&["evil"][..], &[("evil", "operators"), ("mezite-io", "operators")][..]),
        (&["mezite-io"], &[("evil", "operators")]),
        (&["mezite-io"], &[("mezite-io", "others")]),
    ]
    .into_iter()
    .enumerate()
    {
        github.says(organizations, teams);
        world.is_refused(&person(&format!("refused-{number}")).log_in("github", ""), "not-let-in");
    }
    github.says(&["mezite-io"], &[("Mezite-IO", "operators")]);
    let octocat = person("octocat");
    let home = octocat.log_in("github", "");
    assert!(home.location.ends_with("/web/devices"), "{home:?}");
    assert_eq!(octocat.session(), Some(("octo-cat".into(), "sso".into())));
    let stored = world.cluster.ctl().json(&["users", "get", "octo-cat"]);
    assert_eq!(texts(&stored["roles"]), ["operator"]);
    // A code of a login that was not this one's is of no use, though GitHub signs nothing.
    let (one, two) = (person("one"), person("two"));
    let ours = one.at_provider(&one.begin("github", None).unwrap(), "");
    let theirs = two.at_provider(&two.begin("github", None).unwrap(), "");
    world.is_refused(&one.get(&ours.replace(&part(&ours, "code"), &part(&theirs, "code"))), "unproved");
    assert!(world.reason().await.contains("bad_verification_code"));
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_browser_a_person_compares_the_code_and_logs_a_terminal_in() {
    let dir = tempfile::tempdir().unwrap();
    let site = crate::browser::Site::start(dir.path()).await;
    let mut provider = Oidc::start(dir.path(), &site.url, "corp").await;
    provider.knows(json!({ "ann": user(&[], &["staff"], "Ann"), "idle": user(&[], &["others"], "idle") }));
    let world = World { cluster: site.cluster, provider, url: site.url, _port: site._port };
    world.connect(
        "corp",
        &world.provider.connector("corp", "[{claim: groups, value: staff, roles: [access]}]"),
    );
    let browser = site.browser;
    let Waiting { mut process, url, program } = waiting(&world, "ann", "corp").await;
    browser.open(&url).await;
    browser.sees("h1", "Log in on a terminal").await;
    browser.sees("#connector", "Our provider").await;
    let shown = program["challenge"].as_str().unwrap()[..4].to_uppercase();
    browser.sees("#confirmation", &shown).await;
    crate::browser::photograph(&browser, dir.path(), "sso").await;
    let at_provider = async |user: &str| {
        browser.fill("input[name=login]", user).await;
        browser.fill("input[name=password]", "any").await;
        browser.click("button[type=submit]").await;
        browser.click("button[autofocus]").await;
    };
    browser.click("#go button").await;
    at_provider("ann").await;
    browser.sees("h1", "You are logged in").await;
    assert_eq!(process.exited(PATIENCE).await.code(), Some(0), "{}", process.log());

    // The provider knows it by now: the browser itself is logged in without a word.
    browser.open(&format!("{}/web/login", world.url)).await;
    crate::browser::photograph(&browser, dir.path(), "login-sso").await;
    browser.click("button[data-connector=corp]").await;
    browser.sees("#user", "ann").await;
    assert_eq!(browser.run("return document.cookie").await, "", "no script reads the session");
    browser.click("#logout").await;
    browser.sees("h1", "Log in").await;
    browser.open(&format!("{}/v1/webapi/sso/callback/corp?code=x&state=1.x", world.url)).await;
    browser.sees("[role=alert]", "begun in another window").await;
    assert_eq!(browser.url().await, format!("{}/web/login", world.url));
    let refused = browser.complaints().await;
    assert!(
        refused.iter().all(|line| !line.contains("Security Policy") && !line.contains("Uncaught")),
        "{refused:?}"
    );
}
