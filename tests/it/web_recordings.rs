//! Recordings by the web: as curl gets them, and as a browser plays them.

use mezite_e2e::{Agent, AgentSpec, Cluster, Ingest, PASSWORD};
use recording_format::RecordingId;
use serde_json::json;

use crate::{
    browser::{Site, log_in, photograph},
    support::{asciicast, chunk, header, metadata, recording_id, stream, upload},
    web::{Curl, Got},
};

const HEADER: &str = "{\"version\":3,\"term\":{\"cols\":80,\"rows\":24},\"timestamp\":1795512000}\n";

/// A session that somebody looks at: colours, shapes that are drawn, a long pause.
fn session() -> String {
    let events = [
        r#"[0.2,"o","\u001b[1;32malice@web1\u001b[0m:\u001b[1;34m~\u001b[0m$ "]"#,
        r#"[0.4,"o","make test\r\n"]"#,
        r#"[0.1,"o","\u001b]0;a title\u0007\u001b[33mwarning\u001b[0m: \u2588\u2588\u2591 \ue0b0 60%\r\n"]"#,
        r#"[90,"o","test result: \u001b[32mok\u001b[0m. 42 passed\r\n"]"#,
        r#"[0.1,"o","\u001b[1;32malice@web1\u001b[0m:\u001b[1;34m~\u001b[0m$ "]"#,
    ];
    format!("{HEADER}{}\n", events.join("\n"))
}

/// curl of one node, with the session of a user.
struct User {
    curl: Curl,
    bearer: String,
}

impl User {
    fn log_in(cluster: &Cluster, node: usize, name: &str) -> Self {
        let curl = Curl::named(cluster, node, name);
        let given = json!({ "username": name, "password": PASSWORD, "token": true });
        let answer = curl.post(&[], "/v1/webapi/login", &given);
        let bearer = format!("Authorization: Bearer {}", answer.body["session_id"].as_str().unwrap());
        Self { curl, bearer }
    }

    fn get(&self, args: &[&str], path: &str) -> Got {
        let args = [&["--header", self.bearer.as_str()], args].concat();
        self.curl.get(&args, &format!("/v1/webapi/recordings{path}"))
    }

    fn ids(&self, query: &str) -> Vec<String> {
        let got = self.get(&[], query);
        assert_eq!(got.status, 200, "{got:?}");
        let listed = got.body["recordings"].as_array().unwrap();
        listed.iter().map(|recording| recording["recording_id"].as_str().unwrap().to_owned()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn by_the_web_as_much_is_seen_as_by_grpc_and_payloads_come_in_ranges() {
    let cluster = Cluster::start(2).await;
    let (ingests, _) = Ingest::start_all(&cluster, 1).await;
    let agent = Agent::join(&cluster, AgentSpec::default());
    for (name, role) in [("alice", "access"), ("bob", "access"), ("carol", "auditor")] {
        cluster.add_user(name, &[role], &[]).await;
    }
    let client = agent.client(&cluster).for_recordings(&[ingests[0].address()]).unwrap();
    let cast = asciicast(3 << 20);
    let of_alice: Vec<RecordingId> = (0..3).map(|_| recording_id()).collect();
    for id in &of_alice {
        upload(&client, *id, &metadata("alice"), &cast).await.unwrap();
    }
    let open = recording_id();
    let begun = vec![header(open, 0, Some(metadata("bob"))), chunk(0, HEADER.as_bytes())];
    stream(&client, begun).await.unwrap();

    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|name| User::log_in(&cluster, 1, name));
    assert_eq!((alice.ids("").len(), bob.ids(""), carol.ids("").len()), (3, vec![open.to_string()], 4));
    assert_eq!((bob.ids("?user=alice").len(), carol.ids("?user=alice&state=complete").len()), (0, 3));
    assert_eq!(carol.ids("?state=in-progress"), [open.to_string()]);
    assert_eq!(carol.ids("?to=2001-01-01T00:00:00Z").len(), 0);
    // Page by page, with the cursor of the one before.
    let first = carol.get(&[], "?user=alice&page_size=2");
    assert_eq!(first.body["recordings"].as_array().unwrap().len(), 2, "{first:?}");
    let token = first.body["next_page_token"].as_str().unwrap();
    assert_eq!(carol.ids(&format!("?user=alice&page_size=2&page_token={token}")).len(), 1);

    let path = format!("/{}", of_alice[0]);
    let about = alice.get(&[], &path);
    let recording = &about.body["recording"];
    assert_eq!((&recording["state"], &recording["size"]), (&json!("complete"), &json!(cast.len())));
    assert_eq!(recording["started_at"], "2026-11-24T09:20:00Z", "{about:?}");
    // Another's looks like none.
    let foreign = bob.get(&[], &path);
    let none = bob.get(&[], &format!("/{}", recording_id()));
    assert_eq!((foreign.status, &foreign.body["code"]), (404, &none.body["code"]), "{foreign:?}");

    let payload = format!("{path}/payload");
    for version in ["--http1.1", "--http2"] {
        let whole = alice.get(&[version], &payload);
        assert!(whole.status == 200 && alice.curl.bytes() == cast, "{version}");
        assert!(whole.headers.to_lowercase().contains("attachment; filename="), "{whole:?}");
        for (range, wanted, said) in [
            ("0-0", 0..1, format!("bytes 0-0/{}", cast.len())),
            ("1000000-2999999", 1_000_000..3_000_000, format!("bytes 1000000-2999999/{}", cast.len())),
            ("-10", cast.len() - 10..cast.len(), format!("bytes {}-", cast.len() - 10)),
        ] {
            let part = alice.get(&[version, "--range", range], &payload);
            assert_eq!(part.status, 206, "{part:?}");
            assert!(alice.curl.bytes() == cast[wanted], "{version} {range}");
            assert!(part.headers.to_lowercase().contains(&format!("content-range: {said}")), "{part:?}");
        }
    }
    let beyond = alice.get(&["--range", &format!("{}-", cast.len())], &payload);
    assert_eq!((beyond.status, alice.curl.bytes().len()), (416, 0), "{beyond:?}");
    let head = alice.get(&["--head"], &payload);
    assert!(head.status == 200 && head.headers.contains(&cast.len().to_string()), "{head:?}");
    assert_eq!(bob.get(&[], &payload).status, 404);
    assert_eq!(bob.get(&[], &format!("/{open}/payload")).status, 200);
    assert_eq!(bob.curl.bytes(), HEADER.as_bytes());
    assert_eq!(carol.get(&["--range", "5-9"], &payload).status, 206);
    // Not without a session, and by no other method.
    for path in ["", &path, &payload] {
        assert_eq!(alice.curl.get(&[], &format!("/v1/webapi/recordings{path}")).status, 401, "{path}");
        let posted = alice.get(&["--request", "POST", "--header", "X-Mezite-Request: 1"], path);
        assert_eq!(posted.status, 405, "{posted:?}");
    }
    assert_eq!(alice.get(&[], "/..%2f..%2fetc/payload").status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_browser_a_user_finds_a_recording_and_plays_it() {
    let dir = tempfile::tempdir().unwrap();
    let Site { browser, cluster, url, _port } = Site::start(dir.path()).await;
    let (_ingests, _) = Ingest::start_all(&cluster, 1).await;
    let agent = Agent::join(&cluster, AgentSpec::default());
    cluster.add_user("alice", &["access"], &[]).await;
    cluster.add_user("bob", &["access"], &[]).await;
    let (client, cast) = (agent.client(&cluster), session());
    let (whole, open, other) = (recording_id(), recording_id(), recording_id());
    upload(&client, whole, &metadata("alice"), cast.as_bytes()).await.unwrap();
    let cut = cast.find("42 passed").unwrap();
    let begun = vec![header(open, 0, Some(metadata("alice"))), chunk(0, &cast.as_bytes()[..cut])];
    stream(&client, begun).await.unwrap();
    upload(&client, other, &metadata("bob"), b"no terminal session").await.unwrap();

    log_in(&browser, &url, "alice").await;
    browser.click(".pages a[href='/web/recordings']").await;
    browser.sees("#recordings", "alice as root on web1.example.org").await;
    browser.sees("#recordings", "In progress").await;
    browser.sees("#count", "2, the newest first").await;
    photograph(&browser, dir.path(), "recordings").await;
    let _ = browser.run("document.getElementById('state').value = 'complete'").await;
    browser.click("#filter button[type=submit]").await;
    browser.sees("#count", "1, the newest first").await;
    browser.sees("#recordings", "Complete").await;

    browser.click("#recordings a").await;
    browser.sees("#title", "alice as root on web1.example.org").await;
    browser.sees("#facts", &whole.to_string()).await;
    assert_eq!(browser.url().await, format!("{url}/web/recordings/{whole}"));
    photograph(&browser, dir.path(), "recording").await;
    browser.click(".ap-overlay-start").await;
    // The pause of a minute and a half is played as one of two seconds.
    browser.sees(".ap-term-text", "42 passed").await;
    browser.sees(".ap-term-text", "alice@web1").await;
    photograph(&browser, dir.path(), "recording-played").await;
    assert_eq!(browser.run("return document.title").await, "alice as root on web1.example.org · Mezite");

    browser.open(&format!("{url}/web/recordings/{open}")).await;
    browser.sees("#state", "In progress").await;
    browser.sees("#part", "goes on").await;
    browser.click(".ap-overlay-start").await;
    browser.sees(".ap-term-text", "make test").await;
    let rest = &cast.as_bytes()[cut..];
    stream(&client, vec![header(open, cut as u64, None), chunk(cut as u64, rest)]).await.unwrap();
    browser.click("#refresh").await;
    browser.sees("#about", &format!("{} bytes", cast.len())).await;
    browser.click(".ap-overlay-start").await;
    browser.sees(".ap-term-text", "42 passed").await;

    // Another's is none; and who has one that is no terminal session is told.
    browser.open(&format!("{url}/web/recordings/{other}")).await;
    browser.sees("#missing", "no such recording").await;
    photograph(&browser, dir.path(), "recording-missing").await;
    browser.open(&format!("{url}/web/devices")).await;
    browser.click("#logout").await;
    browser.sees("h1", "Log in").await;
    log_in(&browser, &url, "bob").await;
    browser.open(&format!("{url}/web/recordings/{other}")).await;
    browser.sees("#unplayed", "no terminal session").await;
    let complaints = browser.complaints().await;
    assert!(
        complaints
            .iter()
            .all(|line| ["Security Policy", "Uncaught", "Trusted"].iter().all(|bad| !line.contains(bad))),
        "{complaints:?}"
    );
    // Without a session there is none; whoever logs in then sees what was asked for, once.
    browser.click(".pages a[href='/web/recordings']").await;
    browser.sees("#recordings", "bob as root").await;
    browser.click("#logout").await;
    browser.sees("h1", "Log in").await;
    browser.open(&format!("{url}/web/recordings/{other}")).await;
    browser.sees("h1", "Log in").await;
    browser.fill("#username", "bob").await;
    browser.fill("#password", PASSWORD).await;
    browser.click("button[type=submit]").await;
    browser.sees("#unplayed", "no terminal session").await;
    assert_eq!(browser.url().await, format!("{url}/web/recordings/{other}"));
    browser.open(&format!("{url}/web/devices")).await;
    browser.sees("#user", "bob").await;
}
