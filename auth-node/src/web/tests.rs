use std::{collections::BTreeSet, time::Duration};

use axum::{
    body::{self, Body},
    http::{
        HeaderMap, Method, Request,
        header::{
            CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, COOKIE, ETAG, IF_NONE_MATCH, ORIGIN,
            RETRY_AFTER, SET_COOKIE, STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS,
        },
    },
};
use mezite_proto::{transport::ConnectionInfo, v1};
use serde_json::{Value, json};
use tonic::Code;
use tower::ServiceExt as _;

mod passkeys;
mod recordings;

use super::*;
use crate::{
    passwords,
    rpc::{
        self,
        testing::{BOSS, Node, WEB, with},
    },
};

/// Name of the server, as a client that knows no other says it.
const HOST: &str = "node.test.example:3080";

/// The web of a node, whose requests come without a connection.
struct Site {
    node: Node,
    web: Arc<Web>,
    routes: Router,
}

/// An answer that is read to its end.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        assert_eq!(self.headers[CONTENT_TYPE], "application/json");
        serde_json::from_str(&self.text).unwrap()
    }

    /// Status and code of a refusal.
    fn refusal(&self) -> (u16, String) {
        let problem = self.json();
        assert!(problem["message"].as_str().is_some_and(|message| !message.is_empty()), "{problem}");
        (self.status, problem["code"].as_str().unwrap().to_owned())
    }

    /// The session's id in the cookie.
    fn cookie(&self) -> String {
        let cookie = self.headers[SET_COOKIE].to_str().unwrap();
        let (name, rest) = cookie.split_once('=').unwrap();
        assert_eq!(name, "__Host-mezite-session");
        rest.split(';').next().unwrap().to_owned()
    }
}

/// A request of a page of this origin.
fn request(method: Method, path: &str, body: Option<&Value>) -> Request<Body> {
    let mut request =
        Request::builder().method(method).uri(path).header("host", HOST).header("x-mezite-request", "1");
    if body.is_some() {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    request.body(body.map_or_else(Body::empty, |body| Body::from(body.to_string()))).unwrap()
}

fn get(path: &str) -> Request<Body> {
    request(Method::GET, path, None)
}

fn post(path: &str, body: &Value) -> Request<Body> {
    request(Method::POST, path, Some(body))
}

fn login(username: &str, password: &str) -> Request<Body> {
    post("/v1/webapi/login", &json!({ "username": username, "password": password }))
}

fn with_header(mut request: Request<Body>, name: &str, value: &str) -> Request<Body> {
    let name = axum::http::HeaderName::try_from(name).unwrap();
    request.headers_mut().append(name, value.parse().unwrap());
    request
}

fn with_cookie(request: Request<Body>, id: &str) -> Request<Body> {
    with_header(request, COOKIE.as_str(), &format!("theme=dark; __Host-mezite-session={id}; x=y"))
}

impl Site {
    async fn start() -> Self {
        Self::of(Node::start().await)
    }

    fn of(node: Node) -> Self {
        let web = Arc::new(Web::new(Arc::clone(&node.service), 8));
        Self { node, routes: router(Arc::clone(&web)), web }
    }

    async fn ask(&self, mut request: Request<Body>) -> Answer {
        request
            .extensions_mut()
            .insert(ConnectionInfo { remote_addr: ([192, 0, 2, 7], 9).into(), peer_certificates: [].into() });
        let response = self.routes.clone().oneshot(request).await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let bytes = body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        Answer { status, headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
    }

    /// Logs `boss` in, as a browser does: its cookie.
    async fn cookie(&self) -> String {
        self.ask(login("boss", BOSS)).await.cookie()
    }
}

#[tokio::test]
async fn a_browser_gets_its_session_in_a_cookie_alone_and_the_api_takes_it() {
    let site = Site::start().await;
    let answer = site.ask(login("BOSS", BOSS)).await;
    assert_eq!(answer.status, 200);
    let cookie = answer.headers[SET_COOKIE].to_str().unwrap().to_owned();
    assert!(cookie.ends_with("; Max-Age=43200; Path=/; Secure; HttpOnly; SameSite=Strict"), "{cookie}");
    let id = answer.cookie();
    assert!(id.len() >= 43 && !answer.text.contains(&id));
    assert!(answer.headers[SET_COOKIE].is_sensitive());
    let session = &answer.json()["session"];
    assert_eq!((&session["user"], &session["method"]), (&json!("boss"), &json!("password")));

    let own = site.ask(with_cookie(get("/v1/webapi/session"), &id)).await;
    assert_eq!(own.status, 200);
    assert_eq!((&own.json()["session"]["user"], &own.json()["roles"]), (&json!("boss"), &json!(["admin"])));
    assert!(!own.text.contains(&id));
    // It is a session like any.
    let call = with(&id, "ListActiveSessions");
    let (session, _) = rpc::sessions::own(&site.node.service, &call).await.unwrap();
    assert_eq!((session.user.as_str(), session.client_address.as_str()), ("boss", "192.0.2.7"));
    let audited = site.node.audited("user.login").await;
    assert!(!format!("{audited:?}").contains(&id));
}

#[tokio::test]
async fn a_program_gets_its_session_in_the_answer_and_sends_it_as_to_the_api() {
    let site = Site::start().await;
    let wanted = json!({ "username": "boss", "password": BOSS, "token": true });
    let answer = site.ask(post("/v1/webapi/login", &wanted)).await;
    assert_eq!((answer.status, answer.headers.get(SET_COOKIE)), (200, None));
    let id = answer.json()["session_id"].as_str().unwrap().to_owned();
    let asks = |header: &str| with_header(get("/v1/webapi/session"), "authorization", header);
    assert_eq!(site.ask(asks(&format!("Bearer {id}"))).await.status, 200);
    // What it says counts, and not what it has beside.
    let cookie = site.cookie().await;
    for bad in ["Bearer another", "Basic eDp5", "Bearer"] {
        let answer = site.ask(with_cookie(asks(bad), &cookie)).await;
        assert_eq!(answer.refusal(), (401, "UNAUTHENTICATED".into()), "{bad}");
    }
}

#[tokio::test]
async fn wrong_and_unknown_are_answered_alike_and_counted_as_by_the_api() {
    let site = Site::start().await;
    let mut answers = Vec::new();
    for (name, password) in [("boss", "not the password"), ("nobody", BOSS), ("not a name", BOSS), ("", "")] {
        let answer = site.ask(login(name, password)).await;
        let mut problem = answer.json();
        assert!(problem.as_object_mut().unwrap().remove("request_id").is_some());
        assert!(answer.headers.get(SET_COOKIE).is_none());
        answers.push((answer.status, problem));
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]) && answers[0].0 == 401, "{answers:?}");
    assert_eq!(site.node.audited("user.login.failed").await.len(), answers.len());
    // With those of the network that the API itself is called from, the name's logins are shut.
    for _ in 0..9 {
        let _ = site.ask(login("boss", "not the password")).await;
    }
    assert_eq!(site.ask(login("boss", BOSS)).await.refusal(), (401, "UNAUTHENTICATED".into()));
}

#[tokio::test]
async fn while_no_password_can_be_checked_the_web_waits_as_the_api_does() {
    let site = Site::start().await;
    let pool = &site.node.service.passwords;
    let network = passwords::network("192.0.2.7");
    let _turns: Vec<_> = std::iter::from_fn(|| pool.admit(network.clone()).ok()).collect();
    let answer = site.ask(login("boss", BOSS)).await;
    assert_eq!(answer.refusal(), (429, "BUSY".into()));
    assert_eq!(answer.headers[RETRY_AFTER], "1");
}

#[tokio::test]
async fn what_another_site_makes_a_browser_send_is_refused_before_anything_is_looked_at() {
    let site = Site::start().await;
    let id = site.cookie().await;
    let logout = || with_cookie(request(Method::POST, "/v1/webapi/logout", None), &id);
    let mut bare = logout();
    bare.headers_mut().remove("x-mezite-request");
    let crossed = [
        bare,
        with_header(logout(), ORIGIN.as_str(), "https://evil.example"),
        with_header(logout(), ORIGIN.as_str(), "null"),
        with_header(logout(), ORIGIN.as_str(), &format!("http://{HOST}")),
        with_header(logout(), ORIGIN.as_str(), "https://node.test.example"),
        with_header(with_header(logout(), ORIGIN.as_str(), WEB), ORIGIN.as_str(), "https://evil.example"),
        with_header(logout(), "sec-fetch-site", "cross-site"),
        with_header(logout(), "sec-fetch-site", "same-site"),
    ];
    for request in crossed {
        let described = format!("{:?}", request.headers());
        assert_eq!(site.ask(request).await.refusal(), (403, "CROSS_SITE".into()), "{described}");
    }
    // A login into an account of the attacker's is one of these.
    let foreign = with_header(login("boss", "not the password"), ORIGIN.as_str(), "https://evil.example");
    assert_eq!(site.ask(foreign).await.status, 403);
    assert!(site.node.audited("user.login.failed").await.is_empty());
    assert_eq!(site.ask(with_cookie(get("/v1/webapi/session"), &id)).await.status, 200);

    for ours in [WEB.to_owned(), format!("https://{HOST}")] {
        let answer = site.ask(with_header(login("boss", BOSS), ORIGIN.as_str(), &ours)).await;
        assert_eq!(answer.status, 200, "{ours}");
    }
    let fetched = with_header(logout(), "sec-fetch-site", "same-origin");
    assert_eq!(site.ask(fetched).await.status, 200);
    // Nobody else's page may read anything either.
    let preflight = with_header(
        request(Method::OPTIONS, "/v1/webapi/login", None),
        ORIGIN.as_str(),
        "https://evil.example",
    );
    let answer = site.ask(preflight).await;
    assert!(answer.status >= 400 && !format!("{:?}", answer.headers).contains("access-control"));
}

#[tokio::test]
async fn a_body_is_json_that_says_so_and_bounded() {
    let site = Site::start().await;
    let good = json!({ "username": "boss", "password": BOSS }).to_string();
    let ask = |kind: Option<&str>, text: String| {
        let mut request = request(Method::POST, "/v1/webapi/login", None);
        if let Some(kind) = kind {
            request = with_header(request, CONTENT_TYPE.as_str(), kind);
        }
        *request.body_mut() = Body::from(text);
        site.ask(request)
    };
    for kind in
        [None, Some("text/plain"), Some("application/x-www-form-urlencoded"), Some("application/jsonp")]
    {
        assert_eq!(ask(kind, good.clone()).await.refusal(), (415, "NOT_JSON".into()), "{kind:?}");
    }
    for kind in ["application/json", "Application/JSON; charset=utf-8"] {
        assert_eq!(ask(Some(kind), good.clone()).await.status, 200, "{kind}");
    }
    for text in ["", "{", "[]", "{\"username\":1}", "{\"username\":\"boss\"}"] {
        let answer = ask(Some("application/json"), text.into()).await;
        assert_eq!(answer.refusal(), (400, "MALFORMED".into()), "{text}");
    }
    let more = json!({ "username": "boss", "password": BOSS, "admin": true }).to_string();
    let answer = ask(Some("application/json"), more).await;
    assert!(answer.refusal() == (400, "MALFORMED".into()) && answer.text.contains("admin"));
    let deep = "[".repeat(MAX_BODY);
    assert_eq!(ask(Some("application/json"), deep).await.status, 400);
    let long = ask(Some("application/json"), " ".repeat(MAX_BODY + 1)).await;
    assert_eq!(long.refusal(), (413, "TOO_LARGE".into()));
    // A field that is out of bounds is named.
    let long =
        ask(Some("application/json"), json!({ "username": "u".repeat(2000), "password": "p" }).to_string());
    assert_eq!(long.await.json()["field"], "username");
}

#[tokio::test]
async fn a_request_that_does_not_arrive_is_ended() {
    let mut node = Node::start().await;
    Arc::get_mut(&mut node.service).unwrap().settings.call_timeout = Duration::from_millis(300);
    let site = Site::of(node);
    let mut stalled = login("boss", BOSS);
    *stalled.body_mut() = Body::from_stream(futures::stream::pending::<Result<&[u8], std::io::Error>>());
    assert_eq!(site.ask(stalled).await.refusal(), (408, "TOO_SLOW".into()));
    assert_eq!(site.web.places.count(), 0);
}

#[tokio::test]
async fn one_network_leaves_places_to_the_others() {
    let site = Site::start().await;
    let taken: Vec<_> = (0..2).map(|_| site.web.places.take(passwords::network("192.0.2.200"))).collect();
    assert!(taken.iter().all(Result::is_ok));
    for path in ["/v1/webapi/ping", "/web/login"] {
        let answer = site.ask(get(path)).await;
        assert_eq!(answer.refusal(), (429, "BUSY".into()));
        assert!(
            answer.headers.contains_key(RETRY_AFTER) && answer.headers.contains_key(CONTENT_SECURITY_POLICY)
        );
    }
    drop(taken);
    assert_eq!(site.ask(get("/v1/webapi/ping")).await.status, 200);
    assert_eq!(site.web.places.count(), 0);
}

#[tokio::test]
async fn a_logout_ends_the_session_and_the_cookie_whatever_there_was() {
    let site = Site::start().await;
    let id = site.cookie().await;
    let logout = || with_cookie(request(Method::POST, "/v1/webapi/logout", None), &id);
    for status in [200, 401] {
        let answer = site.ask(logout()).await;
        assert_eq!(answer.status, status);
        let cookie = answer.headers[SET_COOKIE].to_str().unwrap();
        assert!(cookie.starts_with("__Host-mezite-session=; Max-Age=0; Path=/; Secure;"), "{cookie}");
    }
    assert_eq!(site.ask(with_cookie(get("/v1/webapi/session"), &id)).await.status, 401);
    let refused = rpc::sessions::own(&site.node.service, &with(&id, "ListActiveSessions")).await;
    assert!(matches!(refused, Err(error) if error.code() == Code::Unauthenticated));
    // What is in a cookie, and no session, stands in nobody's way.
    let long = "x".repeat(1000);
    for bad in ["", "a b", long.as_str(), id.as_str()] {
        assert_eq!(site.ask(with_cookie(get("/v1/webapi/session"), bad)).await.status, 401);
        assert_eq!(site.ask(with_cookie(login("boss", BOSS), bad)).await.status, 200);
    }
}

#[tokio::test]
async fn an_invite_is_a_link_that_is_good_once() {
    let site = Site::start().await;
    let user = v1::User { name: "ann".into(), roles: vec!["access".into()], ..Default::default() };
    let request = v1::CreateUserRequest { user: Some(user), ..Default::default() };
    let call = with(&site.node.boss().await, "CreateUser");
    let made = rpc::users::create(&site.node.service, &call, request).await.unwrap();
    let secret = made.invite_url.strip_prefix(&format!("{WEB}/web/invite#")).unwrap();
    assert_eq!(secret, made.invite_secret);

    let accept = |secret: &str, password: &str| {
        site.ask(post("/v1/webapi/invite", &json!({ "secret": secret, "new_password": password })))
    };
    let weak = accept(secret, "short").await;
    assert_eq!((weak.status, weak.json()["field"].as_str()), (400, Some("new_password")));
    let guessed = accept("guessed", "a password of ann").await;
    assert_eq!(guessed.refusal(), (403, "DENIED".into()));
    let good = accept(secret, "a password of ann").await;
    assert_eq!((good.status, &good.json()["user"]), (200, &json!("ann")));
    assert!(good.headers.get(SET_COOKIE).is_none(), "the login that follows is like any");
    let again = accept(secret, "a password of ann").await;
    assert_eq!(again.json()["message"], guessed.json()["message"]);
    assert_eq!(site.ask(login("ann", "a password of ann")).await.status, 200);
}

#[tokio::test]
async fn anybody_is_told_what_a_login_takes_and_nothing_else() {
    let site = Site::start().await;
    let answer = site.ask(get("/v1/webapi/ping")).await.json();
    let fields: BTreeSet<_> = answer.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        fields,
        ["cluster", "connectors", "passkeys", "public_url", "relying_party_id", "second_factor", "version"]
            .into()
    );
    assert_eq!((&answer["second_factor"], &answer["passkeys"]), (&json!("off"), &json!(false)));
    for path in ["/v1/webapi/session", "/v1/webapi/devices"] {
        assert_eq!(site.ask(get(path)).await.refusal(), (401, "UNAUTHENTICATED".into()), "{path}");
    }
    for path in ["/v1/webapi/", "/v1/webapi/users", "/web/../login", "/favicon.ico"] {
        assert_eq!(site.ask(get(path)).await.refusal(), (404, "NOT_FOUND".into()), "{path}");
    }
    assert_eq!(site.ask(get("/v1/webapi/login")).await.refusal(), (405, "METHOD_NOT_ALLOWED".into()));
    assert_eq!(site.ask(get("/")).await.headers["location"], "/web/devices");
}

#[tokio::test]
async fn every_answer_tells_browsers_what_to_refuse() {
    let site = Site::start().await;
    let mut foreign = login("boss", BOSS);
    foreign.headers_mut().remove("x-mezite-request");
    let api = [
        get("/v1/webapi/ping"),
        get("/v1/webapi/session"),
        get("/v1/webapi/nothing"),
        get("/v1/webapi/login"),
        login("boss", BOSS),
        login("boss", "wrong"),
        foreign,
    ];
    for request in api {
        let (path, answer) = (request.uri().path().to_owned(), site.ask(request).await);
        assert_eq!(answer.headers[CACHE_CONTROL], "no-store", "{path}");
        hardened(&path, &answer.headers);
    }
    for path in ["/", "/web/login", "/web/style.css", "/web/login.js", "/web/icon.svg"] {
        hardened(path, &site.ask(get(path)).await.headers);
    }
}

#[track_caller]
fn hardened(path: &str, headers: &HeaderMap) {
    let policy = headers[CONTENT_SECURITY_POLICY].to_str().unwrap();
    for part in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "form-action 'none'"] {
        assert!(policy.split("; ").any(|said| said == part), "{path}: {policy}");
    }
    assert!(!policy.contains("unsafe"), "{path}: {policy}");
    assert_eq!(headers[X_CONTENT_TYPE_OPTIONS], "nosniff", "{path}");
    assert_eq!(headers["referrer-policy"], "no-referrer", "{path}");
    assert!(headers[STRICT_TRANSPORT_SECURITY].to_str().unwrap().starts_with("max-age=63072000"), "{path}");
}

#[tokio::test]
async fn a_page_is_sent_once_until_it_changes() {
    let site = Site::start().await;
    for (path, kind) in [
        ("/web/login", "text/html"),
        ("/web/recordings/x", "text/html"),
        ("/web/style.css", "text/css"),
        ("/web/api.js", "text/javascript"),
    ] {
        let first = site.ask(get(path)).await;
        assert!(first.status == 200 && first.headers[CONTENT_TYPE].to_str().unwrap().starts_with(kind));
        assert_eq!(first.headers[CACHE_CONTROL], "no-cache");
        let tag = first.headers[ETAG].to_str().unwrap();
        for known in [tag.to_owned(), format!("\"other\", W/{tag}")] {
            let again = site.ask(with_header(get(path), IF_NONE_MATCH.as_str(), &known)).await;
            // With the policy of the page, which this answer's replaces.
            let policies = [&first, &again].map(|answer| answer.headers[CONTENT_SECURITY_POLICY].clone());
            assert_eq!(policies[0], policies[1], "{path}");
            assert_eq!((again.status, again.text.as_str()), (304, ""));
            assert_eq!(again.headers[ETAG], first.headers[ETAG]);
        }
        let changed = site.ask(with_header(get(path), IF_NONE_MATCH.as_str(), "\"other\"")).await;
        assert_eq!(changed.text, first.text);
    }
}

/// What the policy would have a browser refuse, and what somebody who does not see a page needs.
#[test]
fn pages_have_nothing_inline_and_every_field_has_a_label() {
    let paths: BTreeSet<_> = pages::FILES.iter().map(|(path, ..)| *path).collect();
    for (path, kind, text) in pages::FILES {
        for part in text.split(['"', '`']).filter(|part| part.starts_with("/web/")) {
            let target = part.split('#').next().unwrap();
            // A page of one of many names which in its address.
            let one_of_many = target.split_once("${").map(|(front, _)| format!("{front}{{id}}"));
            assert!(paths.contains(one_of_many.as_deref().unwrap_or(target)), "{path} refers to {part}");
        }
        // The player is as it was published, and what it makes of markup is what `recording.js` lets it.
        if path.starts_with("/web/asciinema-player.") {
            continue;
        }
        assert!(!text.contains("innerHTML") && !text.contains("eval("), "{path}");
        if !kind.starts_with("text/html") {
            continue;
        }
        assert!(!text.contains("<script>") && !text.contains("<style") && !text.contains("style="), "{path}");
        assert!(!text.contains(" onclick") && !text.contains("javascript:"), "{path}");
        assert!(text.contains("<html lang=\"en\">") && text.contains("width=device-width"), "{path}");
        for input in text.split("<input id=\"").skip(1) {
            let id = input.split('"').next().unwrap();
            assert!(text.contains(&format!("<label for=\"{id}\"")), "{path}: {id}");
            assert!(text.contains(&format!("id=\"{id}-wrong\"")), "{path}: {id}");
        }
        assert_eq!(text.matches("<input").count(), text.matches("<input id=\"").count(), "{path}");
    }
}
