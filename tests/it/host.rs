//! A host whose sessions are recorded, and what is seen of them in the cluster.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use mezite_client::Client;
use mezite_e2e::{Agent, AgentSpec, Cluster, Port, Process, Shell, Ssh, Sshd, account, call, eventually};
use mezite_proto::v1;
use serde_json::Value;

use crate::support::{EVERYWHERE, add_role, add_user, certificates, fetch};

pub(crate) const SOON: Duration = Duration::from_secs(60);

/// A host whose sessions are recorded, and a user who may log in there.
pub(crate) struct Host {
    pub(crate) agent: Agent,
    _sshd: Sshd,
    pub(crate) spool: PathBuf,
    pub(crate) ssh: Ssh,
    pub(crate) login: String,
}

impl Host {
    pub(crate) async fn of(cluster: &Cluster) -> Self {
        Self::with(cluster, None).await
    }

    /// With the `mezctl` of another build, in this folder.
    pub(crate) async fn with(cluster: &Cluster, programs: Option<&Path>) -> Self {
        let port = Port::lease();
        let spec = AgentSpec { address: &port.address(), programs, ..AgentSpec::default() };
        let agent = Agent::join(cluster, spec);
        let spool = cluster.dir().join("spool");
        agent.record_in(&spool);
        let sshd = Sshd::start(&agent, port).await;
        let login = account();
        add_role(cluster, "everywhere", EVERYWHERE);
        add_user(cluster, "alice", "everywhere", &login);
        let (folder, _) = certificates(cluster, "alice", &[]);
        let ssh = sshd.client(&folder);
        Self { agent, _sshd: sshd, spool, ssh, login }
    }

    /// The agent as a service; it takes recordings in when this returns.
    pub(crate) async fn run(&self, more: &[&str]) -> Process {
        let socket = self.spool.join("record.sock");
        let _ = fs::remove_file(&socket);
        let mut process = self.agent.run_with(more);
        eventually("the agent listens", SOON, async || {
            process.assert_running();
            socket.exists().then_some(()).ok_or("not yet")
        })
        .await;
        process
    }

    pub(crate) fn shell(&self) -> Shell {
        self.ssh.shell(&self.login)
    }

    pub(crate) fn sessions(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.spool.join("sessions")) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    pub(crate) async fn is_empty(&self) {
        eventually("all is sent", SOON, async || {
            let left = (self.sessions(), fs::read_dir(self.spool.join("events")).unwrap().count());
            if left.0.is_empty() && left.1 == 0 { Ok(()) } else { Err(format!("{left:?}")) }
        })
        .await;
    }

    /// What the agent said of the cluster's recording mode.
    pub(crate) async fn knows(&self, mode: &str) {
        let file = self.spool.join("mode");
        eventually("the agent knows the mode", SOON, async || {
            let known = fs::read_to_string(&file).unwrap_or_default();
            if known.trim() == mode { Ok(()) } else { Err(known) }
        })
        .await;
    }
}

pub(crate) async fn list(client: &Client) -> Vec<v1::Recording> {
    call!(client, list_session_recordings, v1::ListSessionRecordingsRequest::default()).unwrap().recordings
}

/// The one recording there is, once it is in this state.
pub(crate) async fn recording(client: &Client, state: v1::RecordingState) -> v1::Recording {
    eventually("the recording is so far", SOON, async || {
        let recordings = list(client).await;
        match recordings.as_slice() {
            [one] if one.state() == state => Ok(one.clone()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

/// A recording as a player reads it: the header, and each event's code and data. Every line must be one.
pub(crate) fn parse(cast: &[u8]) -> (Value, Vec<(String, String)>) {
    let text = std::str::from_utf8(cast).unwrap();
    assert!(text.ends_with('\n'), "{text}");
    let mut lines = text.lines();
    let header: Value = serde_json::from_str(lines.next().unwrap()).unwrap();
    assert_eq!(header["version"], 3);
    let events = lines.map(|line| {
        let (interval, code, data): (f64, String, String) = serde_json::from_str(line).unwrap();
        assert!(interval >= 0.0);
        (code, data)
    });
    (header, events.collect())
}

pub(crate) fn output(events: &[(String, String)]) -> String {
    events.iter().filter(|(code, _)| code == "o").map(|(_, data)| data.as_str()).collect()
}

/// The whole recording, once it is complete.
pub(crate) async fn complete(cluster: &Cluster) -> (v1::Recording, Value, Vec<(String, String)>) {
    let found = recording(&cluster.admin(), v1::RecordingState::Complete).await;
    let (found, cast) = fetch(&cluster.admin(), found.recording_id.parse().unwrap()).await.unwrap();
    let (header, events) = parse(&cast);
    (found, header, events)
}

pub(crate) fn events(cluster: &Cluster, name: &str) -> Vec<Value> {
    let found = cluster.ctl().json(&["audit", "ls", "--event", name, "--oldest-first"]);
    found.as_array().unwrap().clone()
}
