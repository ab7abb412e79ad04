//! Recordings, and the page that plays them.

use super::*;

/// The player is WebAssembly, and makes its controls of strings: that page alone may do so, and nothing else more.
#[tokio::test]
async fn the_page_that_plays_recordings_may_do_no_more_than_the_player_needs() {
    let site = Site::start().await;
    let policy = async |path: &str| {
        let answer = site.ask(get(path)).await;
        assert!(answer.status == 200 && answer.headers[CONTENT_TYPE] == "text/html; charset=utf-8", "{path}");
        let policy = answer.headers[CONTENT_SECURITY_POLICY].to_str().unwrap();
        policy.split("; ").map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let (usual, player) = (policy("/web/recordings").await, policy("/web/recordings/x").await);
    let only = |one: &BTreeSet<String>, other| one.difference(other).cloned().collect::<Vec<_>>();
    assert_eq!(only(&usual, &player), ["script-src 'self'", "trusted-types 'none'"]);
    assert_eq!(only(&player, &usual), ["script-src 'self' 'wasm-unsafe-eval'", "trusted-types default"]);
    for path in ["/web/asciinema-player.js", "/web/asciinema-player.css", "/web/recording.js"] {
        hardened(path, &site.ask(get(path)).await.headers);
    }
}

#[tokio::test]
async fn recordings_are_for_whoever_is_logged_in_and_are_where_ingests_are() {
    let site = Site::start().await;
    let id = site.cookie().await;
    for path in ["", "?user=boss", "/0190a1b2-0000-4000-8000-000000000001", "/x/payload"] {
        let path = format!("/v1/webapi/recordings{path}");
        assert_eq!(site.ask(get(&path)).await.refusal(), (401, "UNAUTHENTICATED".into()), "{path}");
        // The node has no ingest.
        assert_eq!(site.ask(with_cookie(get(&path), &id)).await.status, 503, "{path}");
    }
    for (query, code) in [
        ("colour=green", "MALFORMED"),
        ("page_size=-1", "MALFORMED"),
        ("state=open", "INVALID_FIELD"),
        ("from=yesterday", "INVALID_FIELD"),
        ("labels=a", "INVALID_FIELD"),
    ] {
        let answer = site.ask(with_cookie(get(&format!("/v1/webapi/recordings?{query}")), &id)).await;
        assert_eq!(answer.refusal(), (400, code.into()), "{query}");
    }
}
