//! `certs`: certificates for ssh.

mod refresh;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use mezite_client::{Client, ClientConfig, ClientIdentity, FirstContact, Retry};
use mezite_pki::{
    ssh::{SshKeyPair, SshPublicKey, parse_certificate},
    x509::KeyPair,
};
use mezite_proto::v1;
use serde::Serialize;

use crate::{
    args::{human_duration, proto_duration},
    cmd::{call, present},
    context::Context,
    exit::Usage,
    files::{PRIVATE, PUBLIC, create_dir, read_text, write_atomic},
    output::{self, Report},
};

/// Commands on certificates.
#[derive(Debug, Subcommand)]
pub(crate) enum Certs {
    /// Get an SSH certificate, and the known_hosts lines with which ssh recognises the cluster's hosts
    Issue(Issue),
    /// Renew the certificate with which `mezctl ssh-config` has ssh log in, where it has to be
    Refresh(refresh::Refresh),
}

const ISSUE_EXAMPLES: &str = "\
Examples:
  mezctl certs issue --out ~/ci-keys
  mezctl certs issue --out ~/.ssh --public-key ~/.ssh/id_ed25519.pub --ttl 1h
  mezctl certs issue --out ~/.ssh/other --at a.other.example:3025 --at-ca-pin sha256:…

For yourself, `mezctl ssh-config --write` does all of that for good: ssh then gets its certificates by itself.";

/// Arguments of `certs issue`.
#[derive(Debug, Args)]
#[command(after_help = ISSUE_EXAMPLES)]
pub(crate) struct Issue {
    /// Folder for key, key.pub, key-cert.pub and known_hosts
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Certify this public key instead of a new one; the certificate is named after it
    #[arg(long, value_name = "FILE.pub")]
    public_key: Option<PathBuf>,
    /// Logins wanted [default: all that your roles allow]
    #[arg(long, value_delimiter = ',', value_name = "LOGIN,…")]
    logins: Vec<String>,
    /// Lifetime wanted [default: the most that your roles allow]
    #[arg(long, value_parser = human_duration, value_name = "DURATION")]
    ttl: Option<Duration>,
    /// Good for this node alone: agent id or hostname
    #[arg(long, default_value = "", hide_default_value = true)]
    node: String,
    /// Approved access requests whose roles are added
    #[arg(long, value_delimiter = ',', value_name = "ID,…")]
    requests: Vec<String>,
    /// Also get an X.509 client certificate: tls.key, tls.crt and ca.pem
    #[arg(long)]
    tls: bool,
    /// Certificates of another cluster, which trusts this one: addresses of its auth nodes
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "HOST:PORT,…",
        requires = "at_ca_pin",
        conflicts_with_all = ["requests", "tls"]
    )]
    at: Vec<String>,
    /// Pin of the TLS CA of that cluster, as its `mezctl status` prints it
    #[arg(long, value_name = "sha256:HEX", requires = "at")]
    at_ca_pin: Option<String>,
}

#[derive(Serialize)]
struct Issued {
    /// Absent when the caller brought the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<PathBuf>,
    certificate: PathBuf,
    known_hosts: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_certificate: Option<PathBuf>,
    key_id: String,
    serial: u64,
    principals: Vec<String>,
    logins: Vec<String>,
    expires_at: Option<String>,
}

impl Report for Issued {
    fn text(&self) -> String {
        let key = self.key.clone().unwrap_or_else(|| PathBuf::from("YOUR_KEY"));
        let ssh = format!(
            "ssh -i {} -o CertificateFile={} -o UserKnownHostsFile={} -o StrictHostKeyChecking=yes {}@HOST",
            key.display(),
            self.certificate.display(),
            self.known_hosts.display(),
            self.logins.first().map_or("LOGIN", String::as_str),
        );
        output::fields(&[
            ("key", self.key.as_ref().map(|path| path.display().to_string()).unwrap_or_default()),
            ("certificate", self.certificate.display().to_string()),
            ("known_hosts", self.known_hosts.display().to_string()),
            ("tls", self.tls_certificate.as_ref().map(|path| path.display().to_string()).unwrap_or_default()),
            ("user", self.key_id.clone()),
            ("serial", self.serial.to_string()),
            ("principals", self.principals.join(",")),
            ("expires", self.expires_at.clone().unwrap_or_default()),
            ("use it with", ssh),
        ])
    }
}

/// The key that is certified.
struct Subject {
    public_line: String,
    /// The private key, when it was made here.
    made: Option<SshKeyPair>,
    /// Name of the identity file.
    name: String,
}

pub(crate) async fn run(context: &Context, command: Certs) -> Result<()> {
    match command {
        Certs::Issue(args) => issue(context, args).await,
        Certs::Refresh(args) => refresh::refresh(context, &args).await,
    }
}

async fn issue(context: &Context, args: Issue) -> Result<()> {
    let home = context.user().await?;
    let client = match &args.at_ca_pin {
        Some(pin) => guest(context, &home, &args, pin).await?,
        None => home.clone(),
    };
    let comment = context.login()?.map(|login| login.user).unwrap_or_default();
    let subject = subject(args.public_key.as_deref(), &comment)?;
    create_dir(&args.out)?;
    let tls = if args.tls { Some(KeyPair::generate_p256()?) } else { None };
    let request = v1::IssueUserCertsRequest {
        ssh_public_keys: vec![subject.public_line.clone()],
        tls_public_key: tls.as_ref().map(|key| key.spki_der().into()).unwrap_or_default(),
        ttl: args.ttl.map(proto_duration),
        access_request_ids: args.requests,
        logins: args.logins,
        node: args.node,
    };
    // A certificate that nobody received is of use to nobody: its key is here.
    let reply = call!(client, Retry::Idempotent, issue_user_certs, request)?;
    let issued = write(&args.out, &subject, tls.as_ref(), reply)?;
    // What another cluster says of this one counts for nothing.
    context.follow_trust(&home).await;
    context.print(&issued)
}

/// A client of another cluster, which knows the user by a certificate of this one.
async fn guest(context: &Context, home: &Client, args: &Issue, pin: &str) -> Result<Client> {
    let there = FirstContact::Pin(pin.parse()?).establish(&args.at, context.policy).await?;
    let key = KeyPair::generate_p256()?;
    let request = v1::IssueUserCertsRequest {
        tls_public_key: key.spki_der().into(),
        ttl: args.ttl.map(proto_duration),
        ..v1::IssueUserCertsRequest::default()
    };
    let reply = call!(home, Retry::Idempotent, issue_user_certs, request)?;
    let identity = ClientIdentity::from_pem(&reply.tls_certificate, &key.private_pem())?;
    let config = ClientConfig::new(args.at.clone(), there.trust);
    Ok(Client::new(ClientConfig { identity: Some(identity), policy: context.policy, ..config })?)
}

fn subject(public_key: Option<&Path>, comment: &str) -> Result<Subject> {
    let Some(path) = public_key else {
        let key = SshKeyPair::generate_ed25519(comment)?;
        return Ok(Subject { public_line: key.public_line(), made: Some(key), name: "key".into() });
    };
    let wrong = |why: String| Usage(format!("{}: {why}", path.display()));
    let key = SshPublicKey::parse(read_text(path)?.trim()).map_err(|error| wrong(error.to_string()))?;
    let name =
        path.file_name().and_then(|name| name.to_str()).map(|name| name.strip_suffix(".pub").unwrap_or(name));
    let name = name.filter(|name| !name.is_empty()).ok_or_else(|| wrong("it has no usable name".into()))?;
    Ok(Subject { public_line: key.line(), made: None, name: name.to_owned() })
}

/// Writes what was issued. The certificate comes last: once it is there, so is all that it needs.
fn write(
    out: &Path,
    subject: &Subject,
    tls: Option<&KeyPair>,
    reply: v1::IssueUserCertsResponse,
) -> Result<Issued> {
    let certificate = present(reply.ssh_certificates.into_iter().next(), "the certificate")?;
    let info = parse_certificate(&certificate).context("the cluster's certificate cannot be read")?;
    let path = |name: &str| out.join(name);
    write_atomic(&path("known_hosts"), lines(&reply.known_hosts).as_bytes(), PUBLIC)?;
    if let Some(key) = tls {
        write_atomic(&path("tls.key"), key.private_pem().as_bytes(), PRIVATE)?;
        write_atomic(&path("ca.pem"), reply.tls_ca_certificates.as_bytes(), PUBLIC)?;
        write_atomic(&path("tls.crt"), reply.tls_certificate.as_bytes(), PUBLIC)?;
    }
    if let Some(key) = &subject.made {
        write_atomic(&path(&subject.name), key.private_openssh()?.as_bytes(), PRIVATE)?;
        let public = format!("{}\n", subject.public_line);
        write_atomic(&path(&format!("{}.pub", subject.name)), public.as_bytes(), PUBLIC)?;
    }
    let certificate_path = path(&format!("{}-cert.pub", subject.name));
    write_atomic(&certificate_path, format!("{certificate}\n").as_bytes(), PUBLIC)?;
    Ok(Issued {
        key: subject.made.as_ref().map(|_| path(&subject.name)),
        certificate: certificate_path,
        known_hosts: path("known_hosts"),
        tls_certificate: tls.map(|_| path("tls.crt")),
        key_id: info.key_id,
        serial: info.serial,
        principals: info.principals,
        logins: reply.logins,
        expires_at: output::time(reply.expires_at.as_ref()),
    })
}

/// One a line.
pub(crate) fn lines(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
}
