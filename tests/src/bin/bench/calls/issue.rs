//! User certificates, each of them audited on the disks of a majority before it is answered.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use mezite_e2e::{Cluster, Setup};
use mezite_pki::ssh::SshKeyPair;
use mezite_proto::v1::IssueUserCertsRequest;
use signature::Signer as _;

use super::{Stub, bearer, clients, pings, rate, row, with};
use crate::{load, report::Report};

/// What is to be measured.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Plan {
    /// Length of each row, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Clients at a time: two rows for each number.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 256, 1000])]
    clients: Vec<usize>,
}

/// The column for what the empty calls of the same run come to.
const OF_PING: &str = "of ping";

/// The column for what the certificates a second of the best row come to, beside what they are held against.
const OURS: &str = "certs to 1";

/// Goes through the rows and prints them.
pub(crate) async fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    report.part("issue")?;
    let cluster = &Cluster::start_with(&Setup { nodes: 3, tied: true, ..Setup::default() }).await;
    let time = Duration::from_secs(plan.seconds);
    cluster.add_user("carol", &["access"], &["root"]).await;
    let session = bearer(cluster.session_of("carol").await.expose())?;
    let key = SshKeyPair::generate_ed25519("")?.public_line();
    let mut best = 0.0_f64;
    for &count in &plan.clients {
        let pings = pings(cluster, count, time).await?;
        row(report, format!("ping, {count} clients"), &pings, (OF_PING, None));
        let (session, key) = (session.clone(), key.clone());
        let issue = move |mut stub: Stub| {
            let request = IssueUserCertsRequest { ssh_public_keys: vec![key.clone()], ..Default::default() };
            let request = with(request, &session);
            async move {
                let issued = stub.issue_user_certs(request).await?.into_inner();
                ensure!(issued.ssh_certificates.len() == 1, "no certificate");
                Ok(())
            }
        };
        let issued = load::closed_loop(clients(cluster, count), time, issue, async || Ok(())).await?;
        row(report, format!("certificates, {count} clients"), &issued, (OF_PING, Some(pings.rate)));
        best = best.max(issued.rate);
    }
    let time = Duration::from_secs(2);
    rate(report, "Ed25519 signatures, one thread", signatures(time)?, Some((OURS, best)));
    rate(report, "ssh-keygen -s, one after the other", ssh_keygen(cluster.dir(), time)?, Some((OURS, best)));
    Ok(())
}

/// Bare signatures a second of as many bytes as a certificate has, on one thread.
fn signatures(time: Duration) -> Result<f64> {
    let (key, message) = (SshKeyPair::generate_ed25519("")?, [7_u8; 400]);
    let (begun, mut count) = (Instant::now(), 0_u32);
    while begun.elapsed() < time {
        std::hint::black_box(key.try_sign(&message)?);
        count += 1;
    }
    Ok(f64::from(count) / begun.elapsed().as_secs_f64())
}

/// Certificates a second that OpenSSH's own program signs, one process after the other.
fn ssh_keygen(dir: &Path, time: Duration) -> Result<f64> {
    let dir = dir.join("ssh-keygen");
    fs::create_dir(&dir)?;
    let (ca, key) = (dir.join("ca"), dir.join("key"));
    for file in [&ca, &key] {
        let mut make = Command::new("ssh-keygen");
        let _ = mezite_e2e::run(make.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(file)).ok();
    }
    let (begun, mut count) = (Instant::now(), 0_u32);
    while begun.elapsed() < time {
        let mut sign = Command::new("ssh-keygen");
        sign.args(["-q", "-s"]).arg(&ca).args(["-I", "carol", "-n", "root", "-V", "+1h"]);
        let signed = sign.arg(key.with_extension("pub")).status()?;
        ensure!(signed.success(), "ssh-keygen: {signed}");
        count += 1;
    }
    Ok(f64::from(count) / begun.elapsed().as_secs_f64())
}
