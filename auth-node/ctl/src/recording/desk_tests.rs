use std::collections::BTreeSet;

use super::{
    super::courier::{Admission, Courier},
    *,
};

const HOUR: Duration = Duration::from_secs(3600);

/// An agent's desk with these bounds, which serves until this is dropped.
struct Host {
    dir: tempfile::TempDir,
    serving: tokio::task::JoinHandle<()>,
}

impl Host {
    /// With places for all and for one account, and so many sessions that may begin at once, of which there are no more then.
    fn new(mode: Mode, places: (usize, usize), burst: u32, patience: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("spool");
        let (spool, _) = Spool::open(&folder, 1 << 30).unwrap();
        mode.keep(&folder).unwrap();
        let visitors = Visitors {
            places: Places::new(places.0, places.1, |_| ()),
            pace: Pace::new(HOUR, burst, ACCOUNTS),
            patience,
            notes: Pace::new(Duration::from_millis(20), 2, ACCOUNTS),
            missed: Mutex::default(),
        };
        let desk = Desk {
            spool,
            dir: AgentDir::create(&dir.path().join("agent")).unwrap(),
            agent_id: "agent".into(),
            hostname: "web1".into(),
            mode: watch::channel(mode).1,
            visitors,
        };
        let serving = tokio::spawn(desk.serve(Desk::listen(&folder).unwrap()));
        Self { dir, serving }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("spool").join(SOCKET)
    }

    async fn ask(&self) -> Admission {
        Courier::ask(&self.socket(), hello()).await
    }

    /// What the audit log is to be told of sessions that are not recorded: reason, whether they were refused, and how many.
    fn failed(&self) -> Vec<(String, String, u64)> {
        let files = fs::read_dir(self.dir.path().join("spool/events")).unwrap();
        let texts = files.filter_map(|file| fs::read_to_string(file.unwrap().path()).ok());
        let events = texts.filter_map(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
        let of = |event: serde_json::Value| {
            let field = |name: &str| event["fields"][name].as_str().unwrap().to_owned();
            (field("reason"), field("refused"), field("sessions").parse().unwrap())
        };
        events.filter(|event| event["event"] == "session.recording.failed").map(of).collect()
    }

    /// Waits until the audit log is told of so many sessions, and answers by how many events.
    async fn tells_of(&self, sessions: u64, reason: &str, refused: &str) -> usize {
        let all = async {
            loop {
                let failed = self.failed();
                if failed.iter().map(|(_, _, sessions)| sessions).sum::<u64>() == sessions {
                    break failed;
                }
                sleep(Duration::from_millis(2)).await;
            }
        };
        let failed = timeout(Duration::from_secs(30), all).await.unwrap();
        let kinds: BTreeSet<_> = failed.iter().map(|(reason, refused, _)| (&**reason, &**refused)).collect();
        assert_eq!(kinds, BTreeSet::from([(reason, refused)]));
        failed.len()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn hello() -> Hello {
    Hello { version: wire::VERSION, auth_info: String::new(), tty: false, command: None, resume: None }
}

fn unrecorded(admission: Admission) -> String {
    match admission {
        Admission::Unrecorded(Some(reason)) => reason,
        Admission::Unrecorded(None) => panic!("no reason is given"),
        Admission::Refused(reason) => panic!("it is refused: {reason}"),
        Admission::Recorded(_) => panic!("it is recorded"),
    }
}

#[test]
fn a_recorder_waits_longer_for_its_verdict_than_it_is_left_waiting_for_its_turn() {
    assert!(PATIENCE + Duration::from_secs(1) < VERDICT && PATIENCE > Duration::from_secs(5));
}

#[tokio::test]
async fn who_gets_no_place_is_told_why_and_so_is_the_audit_log() {
    let own = no_place(Full::Own);
    let host = Host::new(Mode::BestEffort, (9, 1), 9, HOUR);
    let first = host.ask().await;
    assert!(matches!(first, Admission::Recorded(_)));
    assert_eq!(unrecorded(host.ask().await), own);
    assert_eq!(unrecorded(host.ask().await), own);
    host.tells_of(2, own, "false").await;
    // What it has is given back when its recorder goes.
    drop(first);
    let recorded = async { while !matches!(host.ask().await, Admission::Recorded(_)) {} };
    timeout(Duration::from_secs(30), recorded).await.unwrap();

    let host = Host::new(Mode::Strict, (0, 9), 9, HOUR);
    let Admission::Refused(reason) = host.ask().await else { panic!("it goes on") };
    assert_eq!(reason, no_place(Full::All));
    host.tells_of(1, no_place(Full::All), "true").await;

    // The agent has gone before all was said that it does not hear: more than a socket holds.
    let long = Hello { auth_info: "x".repeat(250 << 10), ..hello() };
    let Admission::Refused(reason) = Courier::ask(&host.socket(), long).await else { panic!("it goes on") };
    assert_eq!(reason, no_place(Full::All));

    let host = Host::new(Mode::Off, (0, 9), 9, HOUR);
    assert!(matches!(host.ask().await, Admission::Unrecorded(None)));
    assert_eq!(host.failed(), []);
}

#[tokio::test]
async fn who_gets_no_turn_in_time_is_told_so_and_each_is_counted_for_the_audit_log() {
    const MORE: usize = 200;
    let host = Host::new(Mode::BestEffort, (MORE + 1, MORE + 1), 1, Duration::from_millis(50));
    let first = host.ask().await;
    assert!(matches!(first, Admission::Recorded(_)));
    let others = futures::future::join_all((0..MORE).map(|_| host.ask())).await;
    assert!(others.into_iter().map(unrecorded).all(|reason| reason == NO_TURN));
    let events = host.tells_of(MORE as u64, NO_TURN, "false").await;
    // It is told at its own pace, and not once for each.
    assert!(events < MORE / 2, "{events} events");
}

#[tokio::test]
async fn who_does_not_wait_for_its_turn_is_counted_for_the_audit_log() {
    let host = Host::new(Mode::BestEffort, (9, 9), 1, HOUR);
    let first = host.ask().await;
    assert!(matches!(first, Admission::Recorded(_)));
    let mut frames = wire::frames(UnixStream::connect(host.socket()).await.unwrap());
    frames.send(ToAgent::Hello(hello()).encode().unwrap()).await.unwrap();
    drop(frames);
    assert_eq!(host.tells_of(1, NO_TURN, "false").await, 1);
}

#[tokio::test]
async fn where_nobody_is_known_to_be_trusted_a_strict_session_is_refused_and_another_is_nobodys() {
    // The agent's folder is empty.
    let host = Host::new(Mode::Strict, (9, 9), 9, HOUR);
    assert!(matches!(host.ask().await, Admission::Refused(_)));
    assert_eq!(host.failed().len(), 1);
    let host = Host::new(Mode::BestEffort, (9, 9), 9, HOUR);
    assert!(matches!(host.ask().await, Admission::Recorded(_)));
}
