//! A recording ingest, as an operator sets one up: a token, `join`, `run`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use mezite_pki::{identity::Identity, x509::CertificateInfo};
use mezite_proto::v1;
use nix::sys::signal::Signal;

use crate::{Cluster, Output, Port, Process, binary, ctl::run, eventually, http, secret_file};

/// An ingest that does not become ready in this time never will.
const READY: Duration = Duration::from_secs(60);
/// It is given so long to drain.
const STOPPED: Duration = Duration::from_secs(60);

/// One ingest: its ports and its folder for good, its process while it runs.
#[derive(Debug)]
pub struct Ingest {
    process: Option<Process>,
    name: String,
    recordings: Port,
    diagnostics: Port,
    dir: PathBuf,
}

impl Ingest {
    /// An ingest that has joined `cluster` and is ready; its recordings are under `store`.
    pub async fn start(cluster: &Cluster, name: &str, store: &Path) -> Self {
        let mut ingest = Self::configure(cluster, name, store);
        let token = ingest.dir.join("token");
        secret_file(&token, &cluster.token(v1::TokenKind::Ingest).await);
        let _ = ingest.run("join", &["--token-file", token.to_str().unwrap()]).ok();
        ingest.restart();
        ingest.ready().await;
        ingest
    }

    /// So many ingests over one store, known to every node of the cluster; and the store's folder.
    pub async fn start_all(cluster: &Cluster, count: usize) -> (Vec<Self>, PathBuf) {
        let store = cluster.dir().join("recordings");
        let mut ingests = Vec::new();
        for number in 1..=count {
            ingests.push(Self::start(cluster, &format!("ingest-{number}"), &store).await);
        }
        for index in 0..cluster.nodes().len() {
            let client = cluster.anonymous_at(index);
            eventually("every node knows every ingest", READY, async || {
                let known = client.ping().await.map_err(|error| error.to_string())?.ingest_addresses;
                match ingests.iter().all(|ingest| known.contains(&ingest.address())) {
                    true => Ok(()),
                    false => Err(format!("{known:?}")),
                }
            })
            .await;
        }
        (ingests, store)
    }

    /// An ingest with a configuration and nothing else.
    #[must_use]
    pub fn configure(cluster: &Cluster, name: &str, store: &Path) -> Self {
        let dir = cluster.dir().join(name);
        fs::create_dir(&dir).unwrap();
        fs::create_dir_all(store).unwrap();
        let (recordings, diagnostics) = (Port::lease(), Port::lease());
        let ingest = Self { process: None, name: name.to_owned(), recordings, diagnostics, dir };
        fs::write(ingest.config(), ingest.toml(cluster, store)).unwrap();
        ingest
    }

    fn toml(&self, cluster: &Cluster, store: &Path) -> String {
        let address = self.recordings.address();
        format!(
            "data_dir = {:?}\nstore = \"file://{}\"\nauth_servers = {:?}\nca_pin = {:?}\nlisten = {address:?}\n\
             advertise = {address:?}\nhostname = \"{}.example.org\"\ndiagnostics_listen = {:?}\n",
            self.data_dir(),
            store.display(),
            cluster.addresses(),
            cluster.ca_pin(),
            self.name,
            self.diagnostics.address()
        )
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir.join("ingest.toml")
    }

    /// Where its identity is.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// host:port of the recording RPCs.
    #[must_use]
    pub fn address(&self) -> String {
        self.recordings.address()
    }

    /// host:port of its diagnostics.
    #[must_use]
    pub fn diagnostics_address(&self) -> String {
        self.diagnostics.address()
    }

    /// `recording-ingest COMMAND --config … ARGS…`, with nothing of this environment that configures it.
    #[must_use]
    pub fn command(&self, subcommand: &str, args: &[&str]) -> Command {
        let mut command = Command::new(binary("recording-ingest"));
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MEZITE_")) {
            command.env_remove(name);
        }
        command.arg(subcommand).arg("--config").arg(self.config()).args(args);
        command
    }

    /// Runs a command of it that ends by itself.
    #[must_use]
    pub fn run(&self, subcommand: &str, args: &[&str]) -> Output {
        run(&mut self.command(subcommand, args))
    }

    /// Starts it; it need not be ready.
    ///
    /// # Panics
    /// When it runs.
    pub fn restart(&mut self) {
        assert!(self.process.is_none(), "{} runs", self.name);
        self.process = Some(Process::spawn(&self.name, self.command("run", &[]), &self.dir.join("log")));
    }

    /// Waits until it says that it is ready.
    pub async fn ready(&mut self) {
        let (what, address) = (format!("{} is ready", self.name), self.diagnostics.address());
        let process = self.process.as_mut().unwrap();
        eventually(&what, READY, async || {
            process.assert_running();
            match http::get(&address, "/readyz").await {
                Ok((200, _)) => Ok(()),
                Ok((status, body)) => Err(format!("{status} {body}")),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
    }

    /// Its id in the cluster, as its own certificate says it.
    ///
    /// # Panics
    /// When it has not joined.
    #[must_use]
    pub fn id(&self) -> String {
        let pem = fs::read_to_string(self.data_dir().join("tls.crt")).unwrap();
        match CertificateInfo::from_pem(&pem).unwrap().identity {
            Some(Identity::Ingest { id, .. }) => id,
            other => panic!("{} is {other:?}", self.name),
        }
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process.take().unwrap().kill();
    }

    /// Asks it to end, and goes on.
    pub fn terminate(&self) {
        self.process.as_ref().unwrap().signal(Signal::SIGTERM);
    }

    /// How it ended, after [`Ingest::terminate`].
    pub async fn stopped(&mut self) -> ExitStatus {
        self.process.take().unwrap().exited(STOPPED).await
    }
}
