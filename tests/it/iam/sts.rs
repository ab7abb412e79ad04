//! AWS's STS: moto, which checks signatures as AWS does, behind a TLS port of its own. moto answers in XML alone; what it says
//! is put in the JSON that AWS answers to whoever accepts that. And a port may misbehave.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use mezite_e2e::{Moto, Port, run, run_on, tools};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};
use tokio_rustls::TlsAcceptor;

use crate::support::server_certificate;

/// Account that moto's identities are of.
pub(crate) const ACCOUNT: &str = "123456789012";

/// What the port does.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Mode {
    /// It has moto say who has signed.
    Honest,
    /// It answers this, whatever it is asked.
    Says(Vec<u8>),
    /// It answers nothing.
    Silent,
}

/// Credentials of an identity.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) key: String,
    pub(crate) secret: String,
    pub(crate) token: String,
}

/// STS with a user and a role.
pub(crate) struct Sts {
    port: Port,
    ca_file: PathBuf,
    mode: Arc<Mutex<Mode>>,
    asked: Arc<Mutex<Vec<String>>>,
    /// `arn:aws:iam::123456789012:user/team/joiner`.
    pub(crate) user: Identity,
    /// `arn:aws:sts::123456789012:assumed-role/web/i-0abc`.
    pub(crate) role: Identity,
    serving: AbortHandle,
    _moto: Moto,
}

impl Drop for Sts {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn script() -> Command {
    let mut command = Command::new(tools::python());
    command.arg(tools::repository().join("tests/python/aws.py"));
    command
}

impl Sts {
    /// Starts one; its files are in `dir`.
    pub(crate) async fn start(dir: &Path) -> Self {
        let (moto, port) = (Moto::start(dir).await, Port::lease());
        let endpoint = format!("http://{}", moto.address());
        let printed = run(script().args(["identities", &endpoint])).ok();
        let printed: Value = serde_json::from_str(&printed).unwrap();
        let identity = |name: &str| {
            let text = |field: &str| printed[name][field].as_str().unwrap().to_owned();
            Identity { key: text("key"), secret: text("secret"), token: text("token") }
        };

        let ca_file = dir.join("sts-ca.pem");
        let acceptor = certified(&ca_file);
        let listener = TcpListener::bind(port.address()).await.unwrap();
        let (mode, asked) = (Arc::new(Mutex::new(Mode::Honest)), Arc::<Mutex<Vec<_>>>::default());
        let (now, seen, address) = (Arc::clone(&mode), Arc::clone(&asked), moto.address());
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, mode, seen) = (acceptor.clone(), Arc::clone(&now), Arc::clone(&seen));
                let moto = address.clone();
                tokio::spawn(async move {
                    let stream = acceptor.accept(stream).await.ok()?;
                    serve(stream, &mode, &seen, &moto).await
                });
            }
        });
        let serving = serving.abort_handle();
        let (user, role) = (identity("user"), identity("role"));
        Self { port, ca_file, mode, asked, user, role, serving, _moto: moto }
    }

    /// host:port of it.
    pub(crate) fn host(&self) -> String {
        self.port.address()
    }

    /// URL of it.
    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.host())
    }

    /// `--set` options of auth nodes that ask it.
    pub(crate) fn settings(&self) -> Vec<String> {
        let file = self.ca_file.display();
        vec![format!("iam.sts_endpoint={}", self.url()), format!("iam.sts_ca_file={file}")]
    }

    /// What it does from now on.
    pub(crate) fn set_mode(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    /// What it was asked since this was asked last, each request as text.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    /// What an identity sends that signs for this challenge; `wrong` is what it does otherwise than it should.
    pub(crate) fn sign(&self, identity: &Identity, challenge: &str, wrong: Value) -> (String, String) {
        let Identity { key, secret, token } = identity;
        let mut wanted = json!({
            "host": self.host(), "region": "us-east-1", "challenge": challenge,
            "key": key, "secret": secret, "token": token,
        });
        for (name, value) in wrong.as_object().into_iter().flatten() {
            wanted[name] = value.clone();
        }
        let input = tempfile::NamedTempFile::new().unwrap();
        fs::write(input.path(), wanted.to_string()).unwrap();
        let printed = run_on(script().arg("sign"), Stdio::from(input.reopen().unwrap())).ok();
        let printed: Value = serde_json::from_str(&printed).unwrap();
        let text = |field: &str| printed[field].as_str().unwrap().to_owned();
        (text("authorization"), text("amz_date"))
    }
}

/// TLS with a certificate for 127.0.0.1, by a new authority that is written to `file`.
fn certified(file: &Path) -> TlsAcceptor {
    let (ca, leaf, key) = server_certificate();
    fs::write(file, ca.certificate_pem()).unwrap();
    let leaf = CertificateDer::from_pem_slice(leaf.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.private_pem().as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let tls = tls.with_no_client_auth().with_single_cert(vec![leaf], key).unwrap();
    TlsAcceptor::from(Arc::new(tls))
}

/// One connection, and one request over it.
async fn serve(
    mut stream: tokio_rustls::server::TlsStream<TcpStream>,
    mode: &Mutex<Mode>,
    seen: &Mutex<Vec<String>>,
    moto: &str,
) -> Option<()> {
    let mut request = Vec::new();
    while !is_whole(&request) {
        let mut chunk = [0; 4096];
        let read = stream.read(&mut chunk).await.ok().filter(|read| *read > 0)?;
        request.extend_from_slice(&chunk[..read]);
    }
    seen.lock().unwrap().push(String::from_utf8_lossy(&request).into_owned());
    let mode = mode.lock().unwrap().clone();
    let answer = match mode {
        Mode::Honest => honest(&request, moto).await,
        Mode::Says(bytes) => bytes,
        // Until the other side has gone.
        Mode::Silent => return stream.read(&mut [0; 1]).await.ok().map(drop),
    };
    stream.write_all(&answer).await.ok()?;
    stream.shutdown().await.ok()
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    body.len() >= length.unwrap_or_default()
}

/// What moto says to the very bytes of a request, as AWS would say it.
async fn honest(request: &[u8], moto: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(moto).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let element = |name: &str| {
        let (_, rest) = answer.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(text, _)| text.to_owned())
    };
    let status = answer.split(' ').nth(1).unwrap_or_default();
    let body = match status {
        "200" => json!({"GetCallerIdentityResponse": {
            "GetCallerIdentityResult": {
                "Account": element("Account"), "Arn": element("Arn"), "UserId": element("UserId"),
            },
            "ResponseMetadata": {"RequestId": element("RequestId")},
        }}),
        _ => json!({"Error": {
            "Code": element("Code"), "Message": element("Message"), "Type": "Sender",
        }, "RequestId": "none"}),
    };
    says(&format!("{status} as moto says"), "", &body.to_string())
}

/// An HTTP answer.
pub(crate) fn says(status: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    )
    .into_bytes()
}
