//! The pages of the web, as people meet them: in Chromium, with an authenticator of its own.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use mezite_client::SessionSecret;
use mezite_e2e::{Browser, Cluster, PASSWORD, Port, Setup, account, api, secret_file};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tonic::Code;

use crate::{
    locks::host,
    support::{server_certificate, user_certificate},
    web::Curl,
};

/// The addresses that a page has told servers: of what it asked for, and of the page that it was opened from.
const TOLD: &str =
    "return performance.getEntriesByType('resource').map(entry => entry.name).concat(document.referrer)";

/// A certificate that browsers are shown, its key in files; and by what a browser knows the key.
pub(crate) fn certificate(dir: &Path) -> (PathBuf, PathBuf, String) {
    let (ca, leaf, key) = server_certificate();
    let (certificate, key_file) = (dir.join("web.crt"), dir.join("web.key"));
    fs::write(&certificate, leaf).unwrap();
    fs::write(dir.join("web-ca.pem"), ca.certificate_pem()).unwrap();
    secret_file(&key_file, &key.private_pem());
    (certificate, key_file, STANDARD.encode(Sha256::digest(key.spki_der())))
}

/// A cluster, whose web is opened as `https://localhost`, with a certificate from files; and a browser.
pub(crate) struct Site {
    pub(crate) browser: Browser,
    pub(crate) cluster: Cluster,
    pub(crate) url: String,
    pub(crate) _port: Port,
}

impl Site {
    pub(crate) async fn start(dir: &Path) -> Self {
        let (certificate, key, believed) = certificate(dir);
        let port = Port::lease();
        let url = format!("https://localhost:{}", port.number());
        let set = vec![
            format!("web.listen={}", port.address()),
            format!("web.public_url={url}"),
            format!("web.certificate_file={}", certificate.display()),
            format!("web.key_file={}", key.display()),
        ];
        let cluster = Cluster::start_with(&Setup { set, ..Setup::default() }).await;
        Self { browser: Browser::start(dir, &believed).await, cluster, url, _port: port }
    }
}

/// Photographs a page as it is on a desktop and on a phone, and looks that all of it fits.
pub(crate) async fn photograph(browser: &Browser, dir: &Path, name: &str) {
    let dir = env::var_os("MEZITE_SCREENSHOTS").map_or_else(|| dir.to_owned(), PathBuf::from);
    for (kind, width, height, dark) in
        [("desktop", 1280, 800, false), ("desktop-dark", 1280, 800, true), ("phone", 360, 740, false)]
    {
        browser.looks_like(width, height, dark).await;
        let wide = browser.run("return document.documentElement.scrollWidth").await;
        assert!(wide.as_u64().unwrap() <= u64::from(width), "{name} on a {kind} is {wide} pixels wide");
        browser.screenshot(&dir.join(format!("{name}-{kind}.png"))).await;
    }
    browser.looks_like(1280, 800, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_browser_a_user_takes_an_invite_and_logs_in_and_out() {
    let dir = tempfile::tempdir().unwrap();
    let Site { browser, cluster, url, _port } = Site::start(dir.path()).await;
    let added = cluster.ctl().json(&["users", "add", "alice", "--roles", "access"]);
    let link = added["invite"]["link"].as_str().unwrap();
    assert!(link.starts_with(&format!("{url}/web/invite#")), "{link}");
    let secret = added["invite"]["secret"].as_str().unwrap();

    browser.open(&format!("{url}/")).await;
    browser.sees("h1", "Log in").await;
    browser.sees("#cluster", cluster.trust().cluster_name()).await;
    photograph(&browser, dir.path(), "login").await;
    browser.open(&format!("{url}/web/invite")).await;
    browser.sees("#without h1", "There is no invite").await;
    photograph(&browser, dir.path(), "no-invite").await;

    browser.open(link).await;
    browser.sees("#with h1", "Choose your password").await;
    assert_eq!(browser.url().await, format!("{url}/web/invite"), "the secret is not left to be seen");
    browser.fill("#password", "short").await;
    browser.fill("#again", "short").await;
    browser.click("button[type=submit]").await;
    browser.sees("#password-wrong", "12").await;
    browser.fill("#password", PASSWORD).await;
    browser.fill("#again", "another one").await;
    browser.click("button[type=submit]").await;
    browser.sees("#again-wrong", "not the same").await;
    let told = browser.run(TOLD).await.to_string();
    assert!(told.contains("/v1/webapi/invite") && !told.contains(secret), "{told}");
    photograph(&browser, dir.path(), "invite").await;
    browser.fill("#again", PASSWORD).await;
    browser.click("button[type=submit]").await;
    browser.sees("#user", "alice").await;
    browser.sees("#roles", "access").await;
    browser.sees("#none-to-add", "not set up").await;
    assert_eq!(browser.url().await, format!("{url}/web/devices"));
    photograph(&browser, dir.path(), "devices").await;
    assert_eq!(browser.run("return document.cookie").await, "", "no script reads the session");
    let told = browser.run(TOLD).await.to_string();
    assert!(told.contains("/web/devices.js") && !told.contains(secret), "{told}");

    browser.click("#logout").await;
    browser.sees("h1", "Log in").await;
    browser.fill("#username", "alice").await;
    browser.fill("#password", "not the password").await;
    browser.click("button[type=submit]").await;
    browser.sees("[role=alert]", "Wrong username or password").await;
    photograph(&browser, dir.path(), "login-wrong").await;
    let refused: Vec<_> = browser.complaints().await;
    assert!(
        refused.iter().all(|line| !line.contains("Security Policy") && !line.contains("Uncaught")),
        "{refused:?}"
    );
    browser.fill("#username", " ALICE").await;
    browser.fill("#password", PASSWORD).await;
    browser.click("button[type=submit]").await;
    browser.sees("#user", "alice").await;
    // The same as any other: an admin sees it, and ends it.
    let sessions = cluster.ctl().json(&["sessions", "ls"]);
    let own = sessions.as_array().unwrap().iter().find(|session| session["user"] == "alice").unwrap();
    let _ = cluster.ctl().ok(&["sessions", "revoke", own["handle"].as_str().unwrap()]);
    browser.open(&format!("{url}/web/devices")).await;
    browser.sees("h1", "Log in").await;
}

/// Logs in with a password, up to where the page says who it is.
pub(crate) async fn log_in(browser: &Browser, url: &str, user: &str) {
    browser.open(&format!("{url}/web/login")).await;
    browser.fill("#username", user).await;
    browser.fill("#password", PASSWORD).await;
    browser.click("button[type=submit]").await;
    browser.sees("#user", user).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_browser_a_passkey_is_added_then_asked_for_and_logs_in_alone() {
    let dir = tempfile::tempdir().unwrap();
    let Site { browser, cluster, url, _port } = Site::start(dir.path()).await;
    let set = |factor: &str| {
        let origin = url.as_str();
        let relying_party = ["--webauthn-rp-id", "localhost", "--webauthn-origins", origin];
        cluster.ctl().ok(&[&["config", "set", "--second-factor", factor][..], &relying_party].concat())
    };
    let _ = set("optional");
    cluster.add_user("alice", &["access"], &[]).await;
    browser.add_authenticator().await;
    log_in(&browser, &url, "alice").await;
    browser.sees("#none", "no passkey yet").await;
    browser.fill("#name", "Work laptop").await;
    browser.click("#add button[type=submit]").await;
    browser.sees("#devices", "Work laptop").await;
    browser.sees("#said", "was added").await;
    photograph(&browser, dir.path(), "devices-one").await;

    // From now on the password is one half of a login.
    let session = |method: &'static str| {
        let sessions = cluster.ctl().json(&["sessions", "ls", "--user", "alice"]);
        sessions.as_array().unwrap().iter().filter(|session| session["method"] == method).count()
    };
    assert_eq!((session("password"), session("webauthn")), (1, 0));
    browser.click("#logout").await;
    browser.sees("h1", "Log in").await;
    log_in(&browser, &url, "alice").await;
    assert_eq!((session("password"), session("webauthn")), (0, 1));
    let mut curl = Curl::new(&cluster, 0);
    curl.base.clone_from(&url);
    // Whoever has the password alone is asked for the other half, and has no session.
    let given = json!({ "username": "alice", "password": PASSWORD, "token": true });
    let half = curl.post(&["--insecure"], "/v1/webapi/login", &given);
    assert!(
        half.body["step_up"]["challenge_id"].is_string() && half.body.get("session_id").is_none(),
        "{half:?}"
    );

    browser.click("#logout").await;
    browser.sees("h1", "Log in").await;
    photograph(&browser, dir.path(), "login-passkey").await;
    browser.click("#with-passkey").await;
    browser.sees("#user", "alice").await;
    // Nobody must have one: the last may go.
    browser.click("#devices button.danger").await;
    browser.click("#remove button[value=remove]").await;
    browser.sees("#none", "no passkey yet").await;
    let refused = browser.complaints().await;
    assert!(
        refused.iter().all(|line| !line.contains("Security Policy") && !line.contains("Uncaught")),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_browser_a_passkey_follows_an_invite_and_steps_a_login_up_on_another_node_that_opens_a_host() {
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key, believed) = certificate(dir.path());
    let set = vec![
        format!("web.certificate_file={}", certificate.display()),
        format!("web.key_file={}", key.display()),
    ];
    let cluster = Cluster::start_with(&Setup { nodes: 3, set, ..Setup::default() }).await;
    let browser = Browser::start(dir.path(), &believed).await;
    let urls: Vec<_> = cluster
        .nodes()
        .iter()
        .map(|node| node.web_address().replace("127.0.0.1", "https://localhost"))
        .collect();
    let origins = urls.join(",");
    let webauthn =
        ["--webauthn-rp-id", "localhost", "--webauthn-origins", &origins, "--second-factor", "optional"];
    let _ = cluster.ctl().ok(&[&["config", "set"][..], &webauthn].concat());
    let (_agent, sshd, _service) = host(&cluster).await;
    let login = account();
    let added = cluster.ctl().json(&["users", "add", "alice", "--roles", "access", "--logins", &login]);

    browser.add_authenticator().await;
    browser.open(&format!("{}/web/invite#{}", urls[0], added["invite"]["secret"].as_str().unwrap())).await;
    browser.fill("#password", PASSWORD).await;
    browser.fill("#again", PASSWORD).await;
    browser.click("button[type=submit]").await;
    browser.sees("#user", "alice").await;
    browser.fill("#name", "Work laptop").await;
    browser.click("#add button[type=submit]").await;
    browser.sees("#devices", "Work laptop").await;
    let first = browser.cookie("__Host-mezite-session").await;
    browser.click("#logout").await;
    browser.sees("h1", "Log in").await;

    log_in(&browser, &urls[1], "alice").await;
    let second = browser.cookie("__Host-mezite-session").await;
    let sessions = cluster.ctl().json(&["sessions", "ls", "--user", "alice"]);
    assert_eq!((sessions.as_array().unwrap().len(), &sessions[0]["method"]), (1, &json!("webauthn")));
    let client = |session: String| cluster.user_at(2, &SessionSecret::new(session).unwrap());
    let folder = dir.path().join("certificates");
    user_certificate(&client(second), &folder).await.unwrap();
    assert_eq!(sshd.client(&folder).run(&login, "id -un").ok(), format!("{login}\n"));
    sshd.says("ID alice ").await;
    let ended = user_certificate(&client(first), &dir.path().join("none")).await;
    api::refused(ended, Code::Unauthenticated);
}
