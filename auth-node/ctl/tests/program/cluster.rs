//! A cluster that answers as a test needs, and the program to talk to it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use mezite_client::testing::{CLUSTER, Call, FakeServer, TestCa};
use mezite_daemon::clock;
use mezite_pki::{
    identity::Identity,
    ssh::{
        HostCertSpec, SshCa, SshPublicKey, UserCertSpec, UserExtensions, known_hosts_line, revocation_list,
    },
};
use mezite_proto::v1;
use prost::Message as _;
use tonic::Status;

/// The id of every agent that joins.
pub(crate) const AGENT: &str = "6f9619ff-8b86-4011-b42d-00c04fc964ff";

/// The password and the session of everybody.
const PASSWORD: &str = "correct horse";
const SESSION: &str = "c0ffee";

/// From a minute ago for ten.
pub(crate) fn lifetime() -> (u64, u64) {
    let now = clock::unix_seconds();
    (now - 60, now + 600)
}

/// What the cluster signs with.
pub(crate) struct Authorities {
    tls: TestCa,
    /// What is told of it in the middle of a rotation.
    rotation: Mutex<Option<v1::TrustedCa>>,
    /// Why the node does not serve; empty: it does.
    problem: Mutex<String>,
    pub(crate) user: SshCa,
    pub(crate) host: SshCa,
    /// From when to when host certificates are good.
    host_lifetime: (u64, u64),
}

impl Authorities {
    fn bundle(&self) -> v1::GetTrustBundleResponse {
        let plain = self.tls.bundle(&[&self.user.public_line()]);
        let authorities = match &*self.rotation.lock().unwrap() {
            Some(rotation) => vec![rotation.clone()],
            None => plain.authorities,
        };
        v1::GetTrustBundleResponse { known_hosts: vec![known_hosts(&self.host)], authorities, ..plain }
    }

    /// A user certificate for a key.
    pub(crate) fn user_certificate(
        &self,
        key: &str,
        principals: Vec<String>,
        lifetime: (u64, u64),
    ) -> String {
        user_certificate(&self.user, key, principals, lifetime)
    }

    fn host_certificates(&self, request: &v1::GenerateHostCertsRequest) -> v1::GenerateHostCertsResponse {
        let identity = Identity::Agent { cluster: CLUSTER.into(), id: AGENT.into() };
        let names = [request.hostname.as_str()];
        let tls = self.tls.issue_for(&request.tls_public_key, Some(identity), &names, lifetime(), "");
        let ssh = self.host.sign_host(&HostCertSpec {
            public_key: SshPublicKey::parse(&request.ssh_public_key).unwrap(),
            key_id: AGENT.into(),
            principals: [&request.hostname]
                .into_iter()
                .chain(&request.additional_principals)
                .cloned()
                .collect(),
            serial: 1,
            valid_after: self.host_lifetime.0,
            valid_before: self.host_lifetime.1,
        });
        v1::GenerateHostCertsResponse {
            agent_id: AGENT.into(),
            ssh_certificate: ssh.unwrap(),
            tls_certificate: tls.certificate,
            trust_bundle: Some(self.bundle()),
            expires_at: None,
        }
    }

    fn user_certificates(&self, request: v1::IssueUserCertsRequest) -> v1::IssueUserCertsResponse {
        let principal = |login: &String| match request.node.as_str() {
            "" => login.clone(),
            node => format!("{login}@{node}"),
        };
        let principals: Vec<_> = match request.logins.as_slice() {
            [] => vec!["alice".into()],
            logins => logins.iter().map(principal).collect(),
        };
        let certify = |key: &String| self.user_certificate(key, principals.clone(), lifetime());
        v1::IssueUserCertsResponse {
            ssh_certificates: request.ssh_public_keys.iter().map(certify).collect(),
            known_hosts: self.bundle().known_hosts,
            logins: request.logins,
            ..Default::default()
        }
    }

    /// Logs in, certifies, and lets agents join.
    fn answer(&self, call: &Call) -> Option<Vec<u8>> {
        Some(match call.method.as_str() {
            "GetTrustBundle" => self.bundle().encode_to_vec(),
            "GetRevocationList" => {
                let krl = revocation_list(&[], 1, 0, CLUSTER).into();
                v1::GetRevocationListResponse { krl, revision: 0 }.encode_to_vec()
            }
            "Ping" => v1::PingResponse {
                cluster_name: CLUSTER.into(),
                cluster_id: "an id".into(),
                node_id: 1,
                problem: self.problem.lock().unwrap().clone(),
                ..Default::default()
            }
            .encode_to_vec(),
            "AuthenticateLocal" if call.request::<v1::AuthenticateLocalRequest>().password == PASSWORD => {
                let session = v1::Session { handle: "h1".into(), user: "alice".into(), ..Default::default() };
                v1::AuthenticateLocalResponse { session_id: SESSION.into(), session: Some(session) }
                    .encode_to_vec()
            }
            "IssueUserCerts" => self.user_certificates(call.request()).encode_to_vec(),
            "GenerateHostCerts" => self.host_certificates(&call.request()).encode_to_vec(),
            "RegisterAgent" if call.certified => {
                v1::RegisterAgentResponse { agent_id: AGENT.into(), ..Default::default() }.encode_to_vec()
            }
            _ => return None,
        })
    }
}

/// The line by which a user trusts hosts of this CA.
pub(crate) fn known_hosts(host_ca: &SshCa) -> String {
    known_hosts_line(&["*".into()], &host_ca.public_line()).unwrap()
}

/// A user certificate for a key, by this CA.
pub(crate) fn user_certificate(
    ca: &SshCa,
    key: &str,
    principals: Vec<String>,
    (valid_after, valid_before): (u64, u64),
) -> String {
    ca.sign_user(&UserCertSpec {
        public_key: SshPublicKey::parse(key).unwrap(),
        key_id: "alice".into(),
        principals,
        serial: 7,
        valid_after,
        valid_before,
        extensions: UserExtensions::default(),
        source_addresses: Vec::new(),
    })
    .unwrap()
}

/// A cluster, and the folder of who talks to it.
pub(crate) struct Cluster {
    dir: tempfile::TempDir,
    pub(crate) authorities: Arc<Authorities>,
    pub(crate) server: FakeServer,
}

/// How a run of the program ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// The output of a success.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        assert_eq!(self.stderr, "");
        self.stdout
    }

    /// The error of a failure with this code.
    #[track_caller]
    pub(crate) fn fails(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.stdout, "");
        self.stderr
    }
}

impl Cluster {
    /// Logs in, certifies and lets agents join; denies the rest.
    pub(crate) fn start() -> Self {
        Self::answering(|_| Err(Status::permission_denied("not for you")))
    }

    /// As [`Cluster::start`], with host certificates for a time.
    pub(crate) fn with_host_lifetime(lifetime: (u64, u64)) -> Self {
        Self::new(lifetime, |_| Err(Status::permission_denied("not for you")))
    }

    /// Answers `rest` to what [`Cluster::start`] denies.
    pub(crate) fn answering(rest: impl Fn(&Call) -> Result<Vec<u8>, Status> + Send + Sync + 'static) -> Self {
        Self::new(lifetime(), rest)
    }

    fn new(
        host_lifetime: (u64, u64),
        rest: impl Fn(&Call) -> Result<Vec<u8>, Status> + Send + Sync + 'static,
    ) -> Self {
        let (user, host) = (SshCa::generate().unwrap(), SshCa::generate().unwrap());
        let authorities = Arc::new(Authorities {
            tls: TestCa::new(),
            rotation: Mutex::default(),
            problem: Mutex::default(),
            user,
            host,
            host_lifetime,
        });
        let shared = Arc::clone(&authorities);
        let server = FakeServer::start(&authorities.tls.auth_node(), &authorities.tls, move |call| {
            let answer = match shared.answer(&call) {
                Some(reply) => Ok(reply),
                None if call.method == "AuthenticateLocal" => Err(Status::unauthenticated("wrong password")),
                None => rest(&call),
            };
            async move { answer }
        });
        let cluster = Self { dir: tempfile::tempdir().unwrap(), authorities, server };
        cluster.secret("password", PASSWORD);
        cluster.secret("token", "t0ken");
        cluster
    }

    /// Tells from now on of a rotation between the TLS CA that servers are known by and another. The one that is first is said
    /// to be the one that servers are known by.
    pub(crate) fn rotate(&self, other: &TestCa, other_is_first: bool, phase: v1::RotationPhase) {
        let mut certificates = vec![self.authorities.tls.pem(), other.pem()];
        if other_is_first {
            certificates.reverse();
        }
        let kind = v1::CaKind::Tls.into();
        let told = v1::TrustedCa { kind, certificates, phase: phase.into(), ..Default::default() };
        self.authorities.rotation.lock().unwrap().replace(told);
    }

    /// Says from now on that it does not serve.
    pub(crate) fn fail(&self, problem: &str) {
        problem.clone_into(&mut self.authorities.problem.lock().unwrap());
    }

    /// A file or folder of who talks to it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file that its owner alone can read.
    pub(crate) fn secret(&self, name: &str, line: &str) {
        private(&self.path(name), &format!("{line}\n"));
    }

    /// Arguments by which it is recognised at first.
    pub(crate) fn first_contact(&self) -> [String; 4] {
        let pin = self.authorities.tls.pin().to_string();
        ["--addr".into(), self.server.address(), "--ca-pin".into(), pin]
    }

    /// Runs the program in the folder, with nothing in its environment but a home.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        self.run_with(arguments, &BTreeMap::new())
    }

    /// The program in the folder, not started yet.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mezctl"));
        let home = self.dir.path();
        command.args(arguments).current_dir(home).env_clear().env("HOME", home).stdin(Stdio::null());
        command
    }

    pub(crate) fn run_with(&self, arguments: &[&str], environment: &BTreeMap<&str, String>) -> Ran {
        let output = self.command(arguments).envs(environment).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// As [`Cluster::run`], as the first contact.
    pub(crate) fn first(&self, arguments: &[&str]) -> Ran {
        let contact = self.first_contact();
        let contact: Vec<_> = contact.iter().map(String::as_str).collect();
        self.run(&[arguments, &contact].concat())
    }

    /// Logs alice in.
    #[track_caller]
    pub(crate) fn log_in(&self) {
        self.first(&["login", "--user", "alice", "--password-file", "password"]).ok();
    }

    /// Methods that were called, but for those by which the program finds its way.
    pub(crate) fn calls(&self) -> Vec<String> {
        let calls = self.server.calls().into_iter().map(|call| call.method);
        calls.filter(|method| !["GetTrustBundle", "AuthenticateLocal"].contains(&method.as_str())).collect()
    }
}

/// Writes a file that its owner alone can read.
pub(crate) fn private(path: &Path, text: &str) {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path).unwrap().write_all(text.as_bytes()).unwrap();
}
