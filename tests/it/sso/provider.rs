//! Providers: `oidc-provider` of npm, which nobody here wrote, and a GitHub of a few recorded answers.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Form, Json, Router,
    extract::{Query, State},
    http::{HeaderMap, StatusCode},
    routing::{get, post},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use mezite_e2e::{Port, Process, eventually, tools};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::{net::TcpListener, task::AbortHandle};
use tokio_rustls::TlsAcceptor;

use crate::browser::certificate;

/// Secret that the client has at either provider.
pub(crate) const SECRET: &str = "a client secret of the tests";

/// A provider of OpenID Connect at `https://localhost:PORT`.
pub(crate) struct Oidc {
    file: PathBuf,
    settings: Value,
    /// PEM of who vouches for it.
    pub(crate) ca: PathBuf,
    pub(crate) issuer: String,
    process: Process,
    _port: Port,
}

impl Oidc {
    /// One that sends browsers back to a connector of this name, of a cluster with this URL. Its certificate is the one that
    /// [`certificate`] has made in `dir`.
    pub(crate) async fn start(dir: &Path, url: &str, connector: &str) -> Self {
        let (certificate, key) = (dir.join("web.crt"), dir.join("web.key"));
        let port = Port::lease();
        let settings = json!({
            "port": port.number(),
            "certificate": certificate,
            "key": key,
            "client": {
                "client_id": "mezite",
                "client_secret": SECRET,
                "redirect_uris": [format!("{url}/v1/webapi/sso/callback/{connector}")],
            },
            "users": {},
        });
        let file = dir.join("oidc.json");
        fs::write(&file, settings.to_string()).unwrap();
        let mut command = Command::new("node");
        command.arg(tools::repository().join("tests/node/oidc.mjs")).arg(tools::oidc_provider()).arg(&file);
        let mut process = Process::spawn("oidc-provider", command, &dir.join("oidc.log"));
        eventually("the provider serves", Duration::from_secs(60), async || {
            process.assert_running();
            process.log().contains("serving").then_some(()).ok_or("not yet")
        })
        .await;
        let issuer = format!("https://localhost:{}", port.number());
        Self { file, settings, ca: dir.join("web-ca.pem"), issuer, process, _port: port }
    }

    /// Whom it knows, and with which claims.
    pub(crate) fn knows(&mut self, users: Value) {
        self.settings["users"] = users;
        fs::write(&self.file, self.settings.to_string()).unwrap();
    }

    /// The connector to it.
    pub(crate) fn connector(&self, name: &str, mappings: &str) -> String {
        let ca = indented(&self.ca);
        format!(
            "kind: connector\nmetadata: {{name: {name}, display_name: Our provider}}\nspec:\n  mappings: {mappings}\n  oidc:\n    \
             issuer_url: {}\n    client_id: mezite\n    client_secret: {SECRET}\n    scopes: [profile, groups]\n    \
             ca_certificates:\n      - |\n{ca}",
            self.issuer
        )
    }

    /// What it has printed.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }
}

fn indented(pem: &Path) -> String {
    fs::read_to_string(pem).unwrap().lines().map(|line| format!("        {line}\n")).collect()
}

/// What GitHub Enterprise Server answers, as its API reference of 2022-11-28 has it, to a user with a code.
#[derive(Default)]
struct Recorded {
    /// Challenge of the login that each code is of.
    codes: BTreeMap<String, String>,
    organizations: Vec<&'static str>,
    teams: Vec<(&'static str, &'static str)>,
}

/// GitHub at `https://localhost:PORT`.
pub(crate) struct GitHub {
    recorded: Arc<Mutex<Recorded>>,
    pub(crate) ca: PathBuf,
    pub(crate) url: String,
    serving: AbortHandle,
    _port: Port,
}

impl Drop for GitHub {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

type Shared = State<Arc<Mutex<Recorded>>>;
type Pairs = BTreeMap<String, String>;

fn is_known(headers: &HeaderMap) -> Result<(), StatusCode> {
    let bearer = headers.get("authorization").and_then(|value| value.to_str().ok());
    (bearer == Some("Bearer gho_token")).then_some(()).ok_or(StatusCode::UNAUTHORIZED)
}

async fn authorize(
    State(recorded): Shared,
    Query(query): Query<Pairs>,
) -> (StatusCode, [(&'static str, String); 1]) {
    assert_eq!((query["code_challenge_method"].as_str(), query["scope"].as_str()), ("S256", "read:org"));
    let code = format!("code{}", rand::random::<u64>());
    recorded.lock().unwrap().codes.insert(code.clone(), query["code_challenge"].clone());
    let back = format!("{}?code={code}&state={}", query["redirect_uri"], query["state"]);
    (StatusCode::FOUND, [("location", back)])
}

async fn exchange(State(recorded): Shared, Form(form): Form<Pairs>) -> Json<Value> {
    let challenge = recorded.lock().unwrap().codes.remove(&form["code"]);
    let verified = URL_SAFE_NO_PAD.encode(Sha256::digest(&form["code_verifier"]));
    if form["client_secret"] != SECRET || challenge != Some(verified) {
        return Json(
            json!({ "error": "bad_verification_code", "error_description": "incorrect or expired" }),
        );
    }
    Json(json!({ "access_token": "gho_token", "scope": "read:org", "token_type": "bearer" }))
}

async fn user(headers: HeaderMap) -> Result<Json<Value>, StatusCode> {
    is_known(&headers)?;
    Ok(Json(json!({ "login": "Octo-Cat", "id": 583_231, "node_id": "MDQ6VXNlcjU4MzIzMQ==", "type": "User" })))
}

async fn organizations(
    State(recorded): Shared,
    Query(query): Query<Pairs>,
    headers: HeaderMap,
) -> Result<Json<Value>, StatusCode> {
    is_known(&headers)?;
    // More than a page of others, so that the one that counts is on the second.
    let others = (0..100).map(|number| format!("other-{number}"));
    let own = recorded.lock().unwrap().organizations.clone();
    let all: Vec<_> = others.chain(own.into_iter().map(str::to_owned)).collect();
    let (size, page): (usize, usize) = (query["per_page"].parse().unwrap(), query["page"].parse().unwrap());
    let all = all.into_iter().skip(size * (page - 1)).take(size);
    Ok(Json(all.map(|login| json!({ "login": login, "id": 1, "description": null })).collect()))
}

async fn teams(State(recorded): Shared, headers: HeaderMap) -> Result<Json<Value>, StatusCode> {
    is_known(&headers)?;
    let teams = recorded.lock().unwrap().teams.clone();
    let team = |(organization, slug): (&str, &str)| json!({ "slug": slug, "name": slug, "organization": { "login": organization } });
    Ok(Json(teams.into_iter().map(team).collect()))
}

impl GitHub {
    pub(crate) async fn start(dir: &Path) -> Self {
        let dir = dir.join("github");
        fs::create_dir(&dir).unwrap();
        let (certificate, key, _) = certificate(&dir);
        let certificates = CertificateDer::pem_file_iter(certificate).unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(key).unwrap();
        let config =
            ServerConfig::builder().with_no_client_auth().with_single_cert(certificates, key).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let recorded = Arc::<Mutex<Recorded>>::default();
        let routes = Router::new()
            .route("/login/oauth/authorize", get(authorize))
            .route("/login/oauth/access_token", post(exchange))
            .route("/api/v3/user", get(user))
            .route("/api/v3/user/orgs", get(organizations))
            .route("/api/v3/user/teams", get(teams))
            .with_state(Arc::clone(&recorded));
        let port = Port::lease();
        let listener = TcpListener::bind(port.address()).await.unwrap();
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, routes) = (acceptor.clone(), routes.clone());
                tokio::spawn(async move {
                    let stream = acceptor.accept(stream).await.ok()?;
                    let service = hyper_util::service::TowerToHyperService::new(routes);
                    let builder =
                        hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
                    builder.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await.ok()
                });
            }
        });
        let url = format!("https://localhost:{}", port.number());
        let (ca, serving) = (dir.join("web-ca.pem"), serving.abort_handle());
        Self { recorded, ca, url, serving, _port: port }
    }

    /// Where its one user is a member.
    pub(crate) fn says(&self, organizations: &[&'static str], teams: &[(&'static str, &'static str)]) {
        let mut recorded = self.recorded.lock().unwrap();
        recorded.organizations = organizations.to_vec();
        recorded.teams = teams.to_vec();
    }

    /// The connector to it.
    pub(crate) fn connector(&self, name: &str, mappings: &str) -> String {
        let ca = indented(&self.ca);
        format!(
            "kind: connector\nmetadata: {{name: {name}}}\nspec:\n  mappings: {mappings}\n  second_factor: true\n  github:\n    client_id: mezite\n    \
             client_secret: {SECRET}\n    organizations: [Mezite-IO]\n    url: {}\n    ca_certificates:\n      - |\n{ca}",
            self.url
        )
    }
}
