//! A recording ingest, as an operator sets one up: a token, `join`, `run`.

use std::{
    fs,
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    time::Duration,
};

use mezite_pki::{identity::Identity, x509::CertificateInfo};
use mezite_proto::v1;

use crate::{Cluster, Port, Program, eventually, program::READY, secret_file};

/// One ingest: a [`Program`], and the port of the recording RPCs.
#[derive(Debug)]
pub struct Ingest {
    program: Program,
    recordings: Port,
}

/// How ingests are set up.
#[derive(Debug, Clone)]
pub struct IngestSpec {
    /// What the names of their folders begin with: `ingest`.
    pub name: &'static str,
    /// URL of the store that they share.
    pub store: String,
    /// `--set` options.
    pub set: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// host:port that agents and auth nodes are told instead of its own.
    pub advertise: Option<String>,
    /// How long one may take until it is ready.
    pub patience: Duration,
    /// Folder of the programs of another build, which they begin with.
    pub programs: Option<PathBuf>,
}

impl Default for IngestSpec {
    fn default() -> Self {
        Self {
            name: "ingest",
            store: String::new(),
            set: Vec::new(),
            env: Vec::new(),
            advertise: None,
            patience: READY,
            programs: None,
        }
    }
}

impl IngestSpec {
    /// With a folder for a store.
    #[must_use]
    pub fn local(store: &Path) -> Self {
        Self { store: format!("file://{}", store.display()), ..Self::default() }
    }
}

impl Ingest {
    /// An ingest that has joined `cluster` and is ready.
    async fn joined(cluster: &Cluster, name: &str, spec: &IngestSpec) -> Self {
        let mut ingest = Self::configure(cluster, name, spec);
        let token = ingest.dir().join("token");
        secret_file(&token, &cluster.token(v1::TokenKind::Ingest).await);
        let _ = ingest.run("join", &["--token-file", token.to_str().unwrap()]).ok();
        ingest.start();
        ingest.ready_within(spec.patience).await;
        ingest
    }

    /// So many ingests over one store, known to every node of the cluster; and the store's folder.
    pub async fn start_all(cluster: &Cluster, count: usize) -> (Vec<Self>, PathBuf) {
        let store = cluster.dir().join("recordings");
        (Self::start_all_with(cluster, count, &IngestSpec::local(&store)).await, store)
    }

    /// So many ingests of this kind, known to every node of the cluster.
    pub async fn start_all_with(cluster: &Cluster, count: usize, spec: &IngestSpec) -> Vec<Self> {
        let mut ingests = Vec::new();
        for number in 1..=count {
            ingests.push(Self::joined(cluster, &format!("{}-{number}", spec.name), spec).await);
        }
        for index in 0..cluster.nodes().len() {
            let client = cluster.anonymous_at(index);
            eventually("every node knows every ingest", READY, async || {
                let known = client.ping().await.map_err(|error| error.to_string())?.ingest_addresses;
                let told = |ingest: &Self| spec.advertise.clone().unwrap_or_else(|| ingest.address());
                match ingests.iter().all(|ingest| known.contains(&told(ingest))) {
                    true => Ok(()),
                    false => Err(format!("{known:?}")),
                }
            })
            .await;
        }
        ingests
    }

    /// An ingest with a configuration and nothing else.
    #[must_use]
    pub fn configure(cluster: &Cluster, name: &str, spec: &IngestSpec) -> Self {
        let mut program = Program::new("recording-ingest", name, cluster.dir(), &spec.set, &spec.env);
        program.exchange(spec.programs.as_deref());
        let recordings = Port::lease();
        let address = recordings.address();
        let advertise = spec.advertise.as_ref().unwrap_or(&address);
        program.write_config(&format!(
            "store = {:?}\nauth_servers = {:?}\nca_pin = {:?}\nlisten = {address:?}\n\
             advertise = {advertise:?}\nhostname = \"{name}.example.org\"\n\
             disk.refuse_new = 0\ndisk.refuse_appends = 0\n",
            spec.store,
            cluster.addresses(),
            cluster.ca_pin()
        ));
        Self { program, recordings }
    }

    /// host:port of the recording RPCs.
    #[must_use]
    pub fn address(&self) -> String {
        self.recordings.address()
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
            other => panic!("{} is {other:?}", self.name()),
        }
    }
}

impl Deref for Ingest {
    type Target = Program;

    fn deref(&self) -> &Program {
        &self.program
    }
}

impl DerefMut for Ingest {
    fn deref_mut(&mut self) -> &mut Program {
        &mut self.program
    }
}
