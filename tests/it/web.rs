//! The web API, as curl meets it.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use futures::future::join_all;
use mezite_client::SessionSecret;
use mezite_e2e::{Cluster, PASSWORD, Setup, api, call, run};
use mezite_proto::v1;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
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
    pub(crate) headers: String,
    pub(crate) body: Value,
}

/// curl, of one node.
pub(crate) struct Curl {
    dir: PathBuf,
    pub(crate) base: String,
}

impl Curl {
    pub(crate) fn new(cluster: &Cluster, node: usize) -> Self {
        Self::named(cluster, node, "anybody")
    }

    /// Of somebody who has it beside others.
    pub(crate) fn named(cluster: &Cluster, node: usize, name: &str) -> Self {
        let dir = cluster.dir().join(format!("curl-{node}-{name}"));
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
        // One without a body leaves that of the answer before.
        let _ = fs::remove_file(file("body"));
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

    /// What the last answer brought, as it came; nothing where it brought nothing.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        fs::read(self.dir.join("body")).unwrap_or_default()
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

/// What comes until the server closes the connection, which is then closed from this side, too.
async fn rest(mut stream: TlsStream<TcpStream>) -> String {
    let mut said = Vec::new();
    // Also when it is closed without ceremony.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut said)).await.expect("it is closed");
    String::from_utf8_lossy(&said).into_owned()
}

const HEAD: &str = "POST /v1/webapi/login HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Mezite-Request: 1\r\n\
                    Content-Type: application/json\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_slow_is_cut_and_gives_its_place_back() {
    let set = ["limits.handshake_timeout=2s", "limits.call_timeout=3s", "web.max_connections=12"];
    let set = set.map(str::to_owned).to_vec();
    let cluster = Cluster::start_with(&Setup { set, ..Setup::default() }).await;
    let began = Instant::now();
    let (silent, mut dripping, mut stalled) =
        (dial(&cluster).await, dial(&cluster).await, dial(&cluster).await);
    let drip = async {
        for byte in HEAD.as_bytes() {
            if dripping.write_all(&[*byte]).await.is_err() || began.elapsed() > PATIENCE {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        rest(dripping).await
    };
    let stall = async {
        stalled.write_all(format!("{HEAD}Content-Length: 100\r\n\r\n{{\"user").as_bytes()).await.unwrap();
        rest(stalled).await
    };
    let (nothing, dripped, stalled) = tokio::join!(rest(silent), drip, stall);
    assert_eq!(nothing, "");
    assert!(!dripped.contains(" 200 "), "{dripped}");
    assert!(stalled.starts_with("HTTP/1.1 408 ") && stalled.contains("TOO_SLOW"), "{stalled}");
    // All three that one network may have are free again. One that was used stays open for a while, and not for ever.
    let dial_and_ask = async || {
        let mut used = dial(&cluster).await;
        // Whoever has no place yet is cut off, be it before or after this.
        let _ = used.write_all(b"GET /v1/webapi/ping HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").await;
        used
    };
    let freed = Instant::now();
    loop {
        let used = join_all([dial_and_ask(), dial_and_ask(), dial_and_ask()]).await;
        let said = join_all(used.into_iter().map(rest)).await;
        if said.iter().all(|said| said.starts_with("HTTP/1.1 200 ")) {
            break;
        }
        assert!(freed.elapsed() < PATIENCE, "{said:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_told_so_before_it_is_cut() {
    let cluster = Cluster::start(1).await;
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
