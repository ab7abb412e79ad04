//! The web API and its pages, as curl and a browser meet them.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use mezite_client::SessionSecret;
use mezite_e2e::{Browser, Cluster, PASSWORD, Port, Setup, api, call, run, secret_file};
use mezite_pki::x509::{KeyPair, LeafSpec, X509Ca};
use mezite_proto::v1;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::Code;

const PATIENCE: Duration = Duration::from_secs(60);

/// What curl got.
#[derive(Debug)]
pub(crate) struct Got {
    pub(crate) status: u16,
    /// Of HTTP.
    version: String,
    headers: String,
    pub(crate) body: Value,
}

/// curl, of one node.
pub(crate) struct Curl {
    dir: PathBuf,
    base: String,
}

impl Curl {
    pub(crate) fn new(cluster: &Cluster, node: usize) -> Self {
        let dir = cluster.dir().join(format!("curl-{node}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("ca.pem"), cluster.trust().ca_pem()).unwrap();
        Self { dir, base: format!("https://{}", cluster.nodes()[node].web_address()) }
    }

    fn run(&self, args: &[&str], path: &str) -> Got {
        let file = |name: &str| self.dir.join(name);
        let mut command = Command::new("curl");
        command.args([
            "--silent",
            "--show-error",
            "--noproxy",
            "*",
            "--max-time",
            "60",
            "--write-out",
            "%{http_code} %{http_version}",
        ]);
        command.arg("--cacert").arg(file("ca.pem")).arg("--output").arg(file("body"));
        command.arg("--dump-header").arg(file("headers")).args(args).arg(format!("{}{path}", self.base));
        let said = run(&mut command).ok();
        let (status, version) = said.split_once(' ').unwrap();
        let read = |name: &str| fs::read_to_string(file(name)).unwrap_or_default();
        Got {
            status: status.parse().unwrap(),
            version: version.to_owned(),
            headers: read("headers"),
            body: serde_json::from_str(&read("body")).unwrap_or_default(),
        }
    }

    pub(crate) fn get(&self, args: &[&str], path: &str) -> Got {
        self.run(args, path)
    }

    pub(crate) fn post(&self, args: &[&str], path: &str, body: &Value) -> Got {
        let body = body.to_string();
        let ours = [
            "--header",
            "X-Mezite-Request: 1",
            "--header",
            "Content-Type: application/json",
            "--data",
            &body,
        ];
        self.run(&[&ours[..], args].concat(), path)
    }
}

/// Whether a node honours a session.
async fn is_honoured(cluster: &Cluster, node: usize, session: &SessionSecret) -> bool {
    let client = cluster.user_at(node, session);
    match call!(client, list_users, v1::ListUsersRequest::default()) {
        Ok(_) => true,
        refused => {
            api::refused(refused, Code::Unauthenticated);
            false
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_logs_in_by_the_web_of_one_node_is_known_to_the_api_of_the_others_until_the_logout() {
    let cluster = Cluster::start(3).await;
    cluster.add_user("alice", &["access"], &[]).await;
    let (here, there) = (Curl::new(&cluster, 0), Curl::new(&cluster, 2));
    let ping = here.get(&[], "/v1/webapi/ping");
    assert_eq!((ping.status, &ping.body["cluster"]), (200, &json!(cluster.trust().cluster_name())));

    let jar = cluster.dir().join("jar");
    let jar = jar.to_str().unwrap();
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let wanted = json!({ "username": "Alice", "password": PASSWORD });
        let cookie = here.post(&[flag, "--cookie-jar", jar], "/v1/webapi/login", &wanted);
        assert_eq!((cookie.status, cookie.version.as_str()), (200, version), "{cookie:?}");
        let own = there.get(&[flag, "--cookie", jar], "/v1/webapi/session");
        assert_eq!((own.status, &own.body["session"]["user"]), (200, &json!("alice")), "{own:?}");
        assert!(own.headers.contains("strict-transport-security"), "{own:?}");
        let out = there.post(&[flag, "--cookie", jar], "/v1/webapi/logout", &json!({}));
        assert_eq!(out.status, 200, "{out:?}");
        assert_eq!(here.get(&[flag, "--cookie", jar], "/v1/webapi/session").status, 401);

        let wanted = json!({ "username": "alice", "password": PASSWORD, "token": true });
        let token = here.post(&[flag], "/v1/webapi/login", &wanted);
        assert!(!token.headers.to_lowercase().contains("set-cookie"), "{token:?}");
        let session = SessionSecret::new(token.body["session_id"].as_str().unwrap().to_owned()).unwrap();
        for node in 0..3 {
            assert!(is_honoured(&cluster, node, &session).await);
        }
        let bearer = format!("Authorization: Bearer {}", token.body["session_id"].as_str().unwrap());
        let out = there.post(&[flag, "--header", &bearer], "/v1/webapi/logout", &json!({}));
        assert_eq!(out.status, 200, "{out:?}");
        for node in 0..3 {
            assert!(!is_honoured(&cluster, node, &session).await);
        }
    }

    // A session of the API is one of the web, and ends with it.
    let session = cluster.session_of("alice").await;
    let bearer = format!("Authorization: Bearer {}", session.expose());
    assert_eq!(here.get(&["--header", &bearer], "/v1/webapi/session").status, 200);
    let client = cluster.user_at(1, &session);
    call!(client, logout, v1::LogoutRequest {}).unwrap();
    assert_eq!(here.get(&["--header", &bearer], "/v1/webapi/session").status, 401);

    // Whoever is not let in learns nothing of why.
    let mut refused = Vec::new();
    for (name, password) in [("alice", "not the password"), ("nobody", PASSWORD)] {
        let mut got = here.post(&[], "/v1/webapi/login", &json!({ "username": name, "password": password }));
        assert!(got.body.as_object_mut().unwrap().remove("request_id").is_some());
        refused.push((got.status, got.body));
    }
    assert!(refused[0].0 == 401 && refused[0] == refused[1], "{refused:?}");
}

/// A connection of HTTP/1.1 to the web of the first node.
async fn dial(cluster: &Cluster) -> TlsStream<TcpStream> {
    let address = cluster.nodes()[0].web_address();
    let tcp = TcpStream::connect(&address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(api::tls(cluster.trust(), false, None)).connect(name, tcp).await.unwrap()
}

/// What comes until the server closes the connection.
async fn rest(stream: &mut TlsStream<TcpStream>) -> String {
    let mut said = Vec::new();
    // Also when it is closed without ceremony.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut said)).await.expect("it is closed");
    String::from_utf8_lossy(&said).into_owned()
}

const HEAD: &str = "POST /v1/webapi/login HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Mezite-Request: 1\r\n\
                    Content-Type: application/json\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_slow_or_too_large_is_cut_and_gives_its_place_back() {
    let set = ["limits.handshake_timeout=2s", "limits.call_timeout=3s", "web.max_connections=12"];
    let set = set.map(str::to_owned).to_vec();
    let cluster = Cluster::start_with(&Setup { set, ..Setup::default() }).await;
    let began = Instant::now();
    let (mut silent, mut dripping, mut stalled) =
        (dial(&cluster).await, dial(&cluster).await, dial(&cluster).await);
    let drip = async {
        for byte in HEAD.as_bytes() {
            if dripping.write_all(&[*byte]).await.is_err() || began.elapsed() > PATIENCE {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        rest(&mut dripping).await
    };
    let stall = async {
        stalled.write_all(format!("{HEAD}Content-Length: 100\r\n\r\n{{\"user").as_bytes()).await.unwrap();
        rest(&mut stalled).await
    };
    let (nothing, dripped, stalled) = tokio::join!(rest(&mut silent), drip, stall);
    assert_eq!(nothing, "");
    assert!(!dripped.contains(" 200 "), "{dripped}");
    assert!(stalled.starts_with("HTTP/1.1 408 ") && stalled.contains("TOO_SLOW"), "{stalled}");
    // All three that one network may have are free again. One that was used stays open for a while, and not for ever.
    let mut used = dial(&cluster).await;
    used.write_all(b"GET /v1/webapi/ping HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").await.unwrap();
    let said = rest(&mut used).await;
    assert!(said.starts_with("HTTP/1.1 200 "), "{said}");

    let curl = Curl::new(&cluster, 0);
    for flag in ["--http1.1", "--http2"] {
        let long = curl.post(&[flag], "/v1/webapi/login", &json!({ "username": "u".repeat(70_000) }));
        assert_eq!((long.status, &long.body["code"]), (413, &json!("TOO_LARGE")), "{flag}");
        let fat = format!("X-Fat: {}", "x".repeat(40_000));
        let fat = curl.get(&[flag, "--header", &fat], "/v1/webapi/ping");
        assert_eq!(fat.status, 431, "{flag}: {fat:?}");
        assert_eq!(curl.get(&[flag], "/v1/webapi/ping").status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_web_is_switched_off_nothing_listens() {
    let set = vec!["web.enabled=false".to_owned(), "web.public_url=https://login.example.com".to_owned()];
    let cluster = Cluster::start_with(&Setup { set, ..Setup::default() }).await;
    let refused = TcpStream::connect(cluster.nodes()[0].web_address()).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let added = cluster.ctl().json(&["users", "add", "alice"]);
    assert!(added["invite"]["secret"].is_string() && added["invite"].get("link").is_none(), "{added}");
}

/// A certificate that browsers are shown, its key in files; and by what a browser knows the key.
pub(crate) fn certificate(dir: &Path) -> (PathBuf, PathBuf, String) {
    let ca = X509Ca::generate("web", 1_000, 4_000_000_000).unwrap();
    let key = KeyPair::generate_p256().unwrap();
    let leaf = ca.issue(&LeafSpec {
        public_key: key.spki_der(),
        common_name: "localhost".into(),
        identity: None,
        dns_names: vec!["localhost".into()],
        ip_addresses: vec![],
        not_before: 1_000,
        not_after: 4_000_000_000,
        client_auth: false,
        server_auth: true,
    });
    let (certificate, key_file) = (dir.join("web.crt"), dir.join("web.key"));
    fs::write(&certificate, leaf.unwrap()).unwrap();
    fs::write(dir.join("web-ca.pem"), ca.certificate_pem()).unwrap();
    secret_file(&key_file, &key.private_pem());
    (certificate, key_file, STANDARD.encode(Sha256::digest(key.spki_der())))
}

/// A cluster of one node, whose web is opened as `https://localhost`, with a certificate from files; and a browser.
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

    // A page of the same address loads nothing anew for another fragment.
    browser.open("about:blank").await;
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
    photograph(&browser, dir.path(), "invite").await;
    browser.fill("#again", PASSWORD).await;
    browser.click("button[type=submit]").await;
    browser.sees("#user", "alice").await;
    browser.sees("#roles", "access").await;
    assert_eq!(browser.url().await, format!("{url}/web/devices"));
    photograph(&browser, dir.path(), "devices").await;
    assert_eq!(browser.run("return document.cookie").await, "", "no script reads the session");
    let log = cluster.nodes()[0].log();
    assert!(!log.contains(secret), "what is behind the # is sent to nobody");

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
async fn log_in(browser: &Browser, url: &str, user: &str) {
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
    let curl = Curl::new(&cluster, 0);
    // Whoever has the password alone is asked for the other half, and has no session.
    let given = json!({ "username": "alice", "password": PASSWORD, "token": true });
    let half = Curl { base: url.clone(), ..curl }.post(&["--insecure"], "/v1/webapi/login", &given);
    assert!(
        half.body["step_up"]["challenge_id"].is_string() && half.body.get("session_id").is_none(),
        "{half:?}"
    );

    browser.click("#logout").await;
    browser.sees("h1", "Log in").await;
    photograph(&browser, dir.path(), "login-passkey").await;
    browser.click("#with-passkey").await;
    browser.sees("#user", "alice").await;
    let _ = set("off");
    browser.click("#devices button.danger").await;
    browser.click("#remove button[value=remove]").await;
    browser.sees("#none", "no passkey yet").await;
    let refused = browser.complaints().await;
    assert!(
        refused.iter().all(|line| !line.contains("Security Policy") && !line.contains("Uncaught")),
        "{refused:?}"
    );
}
