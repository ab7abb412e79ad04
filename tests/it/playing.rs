//! Recordings are played in a terminal.

use std::{fs, time::Duration};

use mezite_e2e::{Agent, AgentSpec, Cluster, Ingest, Process, Session, eventually, in_terminal};
use recording_format::{PayloadHasher, asciicast::RESTORE};

use crate::support::{chunk, header, last, metadata, recording_id, stream};

const PATIENCE: Duration = Duration::from_secs(60);

const HEADER: &str = "{\"version\":3,\"term\":{\"cols\":80,\"rows\":24},\"timestamp\":1795512000}\n";

/// A session that shows a line, sets the clipboard and a title, asks the terminal who it is, and goes on after an hour.
fn cast() -> String {
    let events = [
        r#"[0.1,"o","first line\r\n"]"#,
        r#"[0.1,"o","\u001b]52;c;ZXZpbA==\u0007\u001b]0;a title\u0007\u001b[6n\u001b[31mred\u001b[0m\r\n"]"#,
        r#"[3600,"o","a nee"]"#,
        r#"[0,"o","dle here\r\n"]"#,
        r#"[3600,"o","the end\r\n"]"#,
    ];
    format!("{HEADER}{}\n", events.join("\n"))
}

/// A cluster, and what is needed that an agent sends to it.
struct Scene {
    _ingests: Vec<Ingest>,
    agent: Agent,
    // The last: the others write to its folder until they end.
    cluster: Cluster,
}

impl Scene {
    async fn start(nodes: usize) -> Self {
        let cluster = Cluster::start(nodes).await;
        let (ingests, _) = Ingest::start_all(&cluster, 1).await;
        let agent = Agent::join(&cluster, AgentSpec::default());
        Self { cluster, _ingests: ingests, agent }
    }

    /// Sends a payload, and answers its id.
    fn upload(&self, name: &str, payload: &str, args: &[&str]) -> String {
        let file = self.cluster.dir().join(name);
        fs::write(&file, payload).unwrap();
        let uploaded = self.agent.upload(&file, args);
        uploaded["recording_id"].as_str().unwrap().to_owned()
    }

    fn play(&self, args: &[&str], steps: &[(&str, &str)]) -> Session {
        in_terminal(&self.cluster.ctl().command(&[&["recordings", "play"], args].concat()), steps)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_is_played_sought_and_left_and_the_terminal_is_as_before() {
    let scene = Scene::start(3).await;
    let id = scene.upload("session.cast", &cast(), &[]);

    // To where a text is shown, which two outputs show together; it stays there. To the end, back to the beginning.
    let patient = ["--idle-limit", "2h", id.as_str()];
    let steps = [
        ("red", "/nothing\r"),
        ("press a key", "x"),
        ("red", "/a needle\r"),
        ("a needle here", "G"),
        ("the end", "q"),
    ];
    let searched = scene.play(&patient, &steps);
    assert_eq!((searched.code, searched.restored), (0, true), "{searched:?}");
    assert!(searched.output.ends_with(&format!("{RESTORE}\r\n")), "{searched:?}");
    for outside in ["52;c;", "a title", "\u{1b}[6n"] {
        assert!(!searched.output.contains(outside), "{searched:?}");
    }
    assert!(searched.output.contains("\u{1b}[31mred\u{1b}[0m"), "{searched:?}");
    let steps = [("a needle here", "\u{1b}[D"), ("red", "q")];
    let back = scene.play(&["--idle-limit", "2h", "--from", "90m", &id], &steps);
    assert_eq!((back.code, back.restored), (0, true), "{back:?}");
    assert!(!back.output.contains("the end"), "{back:?}");

    // However it ends: by itself, where pauses are short; by a signal; by Ctrl-C.
    let whole = scene.play(&["--speed", "20", &id], &[]);
    assert_eq!((whole.code, whole.restored), (0, true), "{whole:?}");
    assert!(whole.output.contains("the end"), "{whole:?}");
    for end in ["SIGTERM", "SIGINT", "\u{3}"] {
        let ended = scene.play(&patient, &[("red", end)]);
        assert_eq!((ended.code, ended.restored), (0, true), "{end}: {ended:?}");
        assert!(ended.output.ends_with(&format!("{RESTORE}\r\n")), "{end}: {ended:?}");
    }
    // And by an error in the middle of it.
    let broken = format!("{}[1,\"o\"]\n", cast());
    let file = scene.cluster.dir().join("broken.cast");
    fs::write(&file, broken).unwrap();
    let broken = scene.play(&["--speed", "50", file.to_str().unwrap()], &[]);
    assert_eq!((broken.code, broken.restored), (1, true), "{broken:?}");
    assert!(broken.output.contains(RESTORE) && broken.output.contains("line 7 is no event"), "{broken:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_terminal_there_is_text_and_what_is_no_asciicast_is_told() {
    let scene = Scene::start(1).await;
    let id = scene.upload("session.cast", &cast(), &[]);
    let ctl = scene.cluster.ctl();
    let plain = ctl.run(&["recordings", "play", &id]);
    assert!(plain.stderr.contains("no terminal"), "{plain:?}");
    assert_eq!(plain.ok(), "first line\nred\na needle here\nthe end\n");
    let file = scene.cluster.dir().join("session.cast");
    let from = ["recordings", "play", file.to_str().unwrap(), "--from", "30m"];
    assert_eq!(ctl.ok(&from), "a needle here\nthe end\n");

    let other = scene.upload("notes", "just some text\n", &["--payload-format", "text"]);
    let refused = ctl.run(&["recordings", "play", &other]).failed(1);
    assert!(refused.contains("no asciicast") && refused.contains("--out"), "{refused}");
    assert!(ctl.run(&["recordings", "play", "nowhere.cast"]).failed(2).contains("neither"));
    let follow = ["recordings", "play", file.to_str().unwrap(), "--follow"];
    assert!(ctl.run(&follow).failed(2).contains("--follow"));
    let nowhere = recording_id().to_string();
    let _ = ctl.run(&["recordings", "play", &nowhere]).failed(4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_goes_on_is_followed_to_its_end() {
    let scene = Scene::start(1).await;
    let (client, id, cast) = (scene.agent.client(&scene.cluster), recording_id(), cast());
    // It breaks off in the middle of a line.
    let (head, tail) = cast.as_bytes().split_at(cast.find("red").unwrap());
    let begun = vec![header(id, 0, Some(metadata("alice"))), chunk(0, head)];
    assert_eq!(stream(&client, begun).await.unwrap().committed_offset, head.len() as u64);
    let ctl = scene.cluster.ctl();
    let so_far = ctl.run(&["recordings", "play", &id.to_string()]);
    assert!(so_far.stderr.contains("goes on"), "{so_far:?}");
    assert_eq!(so_far.ok(), "first line\n");

    let log = scene.cluster.dir().join("followed");
    let play = ctl.command(&["recordings", "play", &id.to_string(), "--follow"]);
    let mut followed = Process::spawn("play", play, &log);
    let shows = async |text: &str| {
        eventually(&format!("{text:?} is shown"), PATIENCE, async || {
            let shown = fs::read_to_string(&log).unwrap();
            if shown.contains(text) { Ok(()) } else { Err(shown) }
        })
        .await;
    };
    shows("first line").await;
    followed.assert_running();
    let mut hasher = PayloadHasher::default();
    hasher.update(cast.as_bytes());
    let end = last(cast.len() as u64, hasher.digest());
    let at = head.len() as u64;
    stream(&client, vec![header(id, at, None), chunk(at, tail), end]).await.unwrap();
    assert_eq!(followed.exited(PATIENCE).await.code(), Some(0));
    shows("first line\nred\na needle here\nthe end\n").await;
}
