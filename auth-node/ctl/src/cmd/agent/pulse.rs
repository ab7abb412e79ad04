//! What an agent does again and again: report, follow what there is to trust and what is revoked, renew its certificates.

use std::{io, process::Stdio, time::Duration};

use anyhow::Result;
use mezite_client::{Client, ClientError, Retry, Route};
use mezite_daemon::{clock, files::FileError};
use mezite_proto::v1;
use rustix::io::Errno;
use serde::Serialize;
use tokio::{
    process::Command,
    sync::watch,
    time::{Instant, timeout},
};

use super::client_of;
use crate::{
    agent_dir::{AgentDir, AgentState},
    cmd::{call, present},
    context::Context,
    output::{self, Report},
    recording::mode::Mode,
};

/// Longest that the command which tells sshd, or whoever uses them, of new certificates may take.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Serialize)]
struct Beat {
    agent_id: String,
    next_interval_seconds: f64,
    ingest_addresses: Vec<String>,
    trust_bundle_revision: u64,
    revocation_revision: u64,
    /// Whether new certificates were written: sshd must be reloaded.
    certificates_renewed: bool,
}

impl Report for Beat {
    fn text(&self) -> String {
        let renewed = if self.certificates_renewed { "yes: reload sshd" } else { "" };
        output::fields(&[
            ("agent id", self.agent_id.clone()),
            ("next in", format!("{:.1} s", self.next_interval_seconds)),
            ("ingests", self.ingest_addresses.join(", ")),
            ("trust bundle", format!("revision {}", self.trust_bundle_revision)),
            ("revocations", format!("revision {}", self.revocation_revision)),
            ("renewed", renewed.into()),
        ])
    }
}

/// Whether a failure may be over at the next attempt.
pub(crate) fn passes(error: &anyhow::Error) -> bool {
    use tonic::Code;
    if error.is::<NotReloaded>() || error.is::<Behind>() {
        return true;
    }
    match error.downcast_ref::<ClientError>() {
        None => disk_passes(error),
        Some(ClientError::Config(_)) => false,
        Some(error) => !matches!(
            error.code(),
            Some(Code::Unauthenticated | Code::PermissionDenied | Code::NotFound | Code::InvalidArgument)
        ),
    }
}

/// Whether a file was refused for what passes: a disk that is full, or fails now, or too many files that are open.
fn disk_passes(error: &anyhow::Error) -> bool {
    use io::ErrorKind::{Interrupted, QuotaExceeded, ResourceBusy, StorageFull, TimedOut};
    let cause = error.chain().find_map(|error| match error.downcast_ref() {
        Some(FileError::Io { cause, .. }) => Some(cause),
        _ => error.downcast_ref::<io::Error>(),
    });
    cause.is_some_and(|cause| {
        let code = |errno: &Errno| cause.raw_os_error() == Some(errno.raw_os_error());
        [Interrupted, QuotaExceeded, ResourceBusy, StorageFull, TimedOut].contains(&cause.kind())
            || [Errno::IO, Errno::NFILE, Errno::MFILE].iter().any(code)
    })
}

/// An agent. Its client is kept from beat to beat: it knows which addresses serve.
pub(crate) struct Pulse<'a> {
    context: &'a Context,
    dir: AgentDir,
    state: AgentState,
    load: u32,
    /// Shell command that tells sshd of new certificates.
    reload: Option<String>,
    /// Absent when there is none yet for the certificate and the CAs on disk.
    client: Option<Client>,
    /// When an SVID is asked for again, at the earliest.
    svid_at: Instant,
    /// What was told of the last beat, that is told again when it has changed.
    told: Option<v1::AgentHeartbeatResponse>,
    /// By which way recordings are sent.
    route: watch::Sender<Option<Route>>,
    /// What the cluster wants of sessions that cannot be recorded.
    mode: watch::Sender<Mode>,
}

impl<'a> Pulse<'a> {
    pub(crate) fn new(context: &'a Context, dir: AgentDir, state: AgentState, load: u32) -> Self {
        let (route, mode) = (watch::channel(None).0, watch::channel(state.recording_mode).0);
        let svid_at = Instant::now();
        Self { context, dir, state, load, reload: None, client: None, svid_at, told: None, route, mode }
    }

    /// Its folder, and what it knows of itself.
    pub(crate) fn agent(&self) -> (&AgentDir, &AgentState) {
        (&self.dir, &self.state)
    }

    /// By which way recordings are sent, now and later.
    pub(crate) fn route(&self) -> watch::Receiver<Option<Route>> {
        self.route.subscribe()
    }

    /// What the cluster wants of sessions that cannot be recorded, now and later.
    pub(crate) fn mode(&self) -> watch::Receiver<Mode> {
        self.mode.subscribe()
    }

    /// Has recordings sent with the certificate on disk, to the ingests that the cluster named last.
    pub(crate) async fn show_route(&mut self) -> Result<()> {
        let auth = self.client().await?;
        let recordings = auth.for_recordings(&self.state.ingest_addresses)?;
        self.route.send_if_modified(|shown| {
            let is_same = shown.as_ref().is_some_and(|shown| {
                shown.auth.shares_connections_with(&auth)
                    && shown.recordings.addresses() == recordings.addresses()
            });
            if !is_same {
                *shown = Some(Route { auth, recordings });
            }
            !is_same
        });
        Ok(())
    }

    /// One that runs a shell command when there are new certificates.
    #[must_use]
    pub(crate) fn reloading_by(self, reload: Option<String>) -> Self {
        Self { reload, ..self }
    }

    /// A client for the certificate and the CAs on disk.
    pub(crate) async fn client(&mut self) -> Result<Client> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let client = client_of(self.context, &self.dir, &self.state).await?;
        self.client = Some(client.clone());
        Ok(client)
    }

    /// Whether there is still the same client as after the last beat.
    pub(crate) fn has_client(&self) -> bool {
        self.client.is_some()
    }

    /// Reports, and does what the answer calls for; answers when to report again.
    pub(crate) async fn beat(&mut self) -> Result<Duration> {
        let certificates_renewed = self.renew_if_due().await?;
        self.renew_svid_if_due().await;
        let mut reply = self.report().await?;
        // Whoever rotates a CA waits for those who have not followed yet.
        let taken_up = self.take_up().await?;
        if taken_up.is_some() {
            reply = self.report().await?;
        }
        let interval = Duration::try_from(present(reply.next_interval, "the interval")?).unwrap_or_default();
        if reply.ingest_addresses != self.state.ingest_addresses {
            self.state.ingest_addresses.clone_from(&reply.ingest_addresses);
            self.dir.save(&self.state)?;
        }
        self.show_route().await?;
        let news = news(&reply);
        let renewed = certificates_renewed || taken_up == Some(true);
        if self.told.as_ref() == Some(&news) && !renewed {
            return Ok(interval);
        }
        self.told = Some(news);
        self.context.print(&Beat {
            agent_id: self.state.agent_id.clone(),
            next_interval_seconds: interval.as_secs_f64(),
            ingest_addresses: reply.ingest_addresses,
            trust_bundle_revision: self.state.trust_bundle_revision,
            revocation_revision: self.state.revocation_revision,
            certificates_renewed: renewed,
        })?;
        Ok(interval)
    }

    /// Has the next beat told, also where nothing is new.
    pub(crate) fn tell_anew(&mut self) {
        self.told = None;
    }

    /// Reports once, and fetches what the answer says to be new.
    async fn report(&mut self) -> Result<v1::AgentHeartbeatResponse> {
        let client = self.client().await?;
        let request = v1::AgentHeartbeatRequest {
            version: env!("CARGO_PKG_VERSION").into(),
            labels: self.state.labels.clone(),
            address: self.state.address.clone(),
            load: self.load,
            followed_trust_revision: self.state.followed_revision,
        };
        let reply = call!(client, Retry::Idempotent, agent_heartbeat, request)?;
        self.follow(v1::AccessNews {
            trust_bundle_revision: reply.trust_bundle_revision,
            revocation_revision: reply.revocation_revision,
            recording_mode: reply.recording_mode,
        })
        .await?;
        Ok(reply)
    }

    /// Fetches what is new to trust, and what is newly revoked; takes up what is wanted of recordings.
    pub(crate) async fn follow(&mut self, news: v1::AccessNews) -> Result<()> {
        let mode = Mode::of(news.recording_mode);
        if mode != self.state.recording_mode {
            self.state.recording_mode = mode;
            self.dir.save(&self.state)?;
            self.mode.send_replace(mode);
        }
        // sshd refuses everybody while the file is missing.
        if news.revocation_revision != self.state.revocation_revision || !self.dir.has_revocations() {
            let client = self.client().await?;
            keep_revocations(&self.dir, &mut self.state, &client).await?;
        }
        if news.trust_bundle_revision != self.state.trust_bundle_revision {
            let client = self.client().await?;
            let bundle = client.trust_bundle().await?;
            if bundle.revision < news.trust_bundle_revision {
                client.leave_last_server();
                return Err(Behind.into());
            }
            self.dir.keep_bundle(&mut self.state, &bundle)?;
            self.dir.save(&self.state)?;
            self.client = None;
        }
        Ok(())
    }

    /// Takes up in full what there is to trust: where a CA has moved on in its rotation, with certificates of the key that
    /// signs now, and sshd told of them. Answers, if there was anything to take up, whether that was new certificates.
    async fn take_up(&mut self) -> Result<Option<bool>> {
        if self.state.followed_revision == self.state.trust_bundle_revision {
            return Ok(None);
        }
        let lag = self.state.certificates_lag;
        if lag {
            let client = self.client().await?;
            certify(&self.dir, &mut self.state, &client).await?;
            self.client = None;
        }
        if self.state.has_svids() {
            // Of the key that signs now, and beside it the authorities that there are now.
            let client = self.client().await?;
            self.dir.svid().renew(&client).await?;
        }
        self.reload_if_pending().await?;
        self.state.followed_revision = self.state.trust_bundle_revision;
        self.dir.save(&self.state)?;
        Ok(Some(lag))
    }

    /// Keeps what is revoked by now: the last that an agent does which the cluster does not have any more.
    pub(super) async fn take_leave(&mut self) -> Result<()> {
        let client = self.client().await?;
        keep_revocations(&self.dir, &mut self.state, &client).await
    }

    /// Tells sshd that it has new certificates, by the command that was given.
    async fn reload_if_pending(&mut self) -> Result<()> {
        if !self.state.reload_pending {
            return Ok(());
        }
        if let Some(command) = &self.reload {
            reload(command).await?;
        }
        self.state.reload_pending = false;
        self.dir.save(&self.state)
    }

    /// Renews the SVID, if there are any. Nothing else waits for it, and it is tried again before long.
    async fn renew_svid_if_due(&mut self) {
        let svid = self.dir.svid();
        if !self.state.has_svids() || !svid.is_due() || Instant::now() < self.svid_at {
            return;
        }
        let renewed = match self.client().await {
            Ok(client) => svid.renew(&client).await,
            Err(error) => Err(error),
        };
        if let Err(error) = renewed {
            self.svid_at = Instant::now() + SVID_PAUSE;
            output::warn(&format!("no SVID yet: {error:#}"));
        }
    }

    async fn renew_if_due(&mut self) -> Result<bool> {
        let (lifetime, now) = (self.dir.lifetime()?, clock::unix_seconds());
        if now >= lifetime.1 {
            // A connection that was made before the end would hide it.
            self.client = None;
        }
        if !is_due(lifetime, now) {
            return Ok(false);
        }
        let client = self.client().await?;
        match certify(&self.dir, &mut self.state, &client).await {
            Ok(()) => {
                self.client = None;
                self.reload_if_pending().await?;
                Ok(true)
            }
            // There is a third of the old one's life left to try again in; presence does not wait for it.
            Err(error) if passes(&error) => {
                output::warn(&format!("not renewed yet: {error:#}"));
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

/// What is worth telling of an answer: neither when the next report is due, nor how busy the ingests are, which is their order.
fn news(reply: &v1::AgentHeartbeatResponse) -> v1::AgentHeartbeatResponse {
    let mut news = v1::AgentHeartbeatResponse { next_interval: None, ..reply.clone() };
    news.ingest_addresses.sort();
    news
}

/// So long it is not asked for an SVID again that the cluster did not issue.
pub(crate) const SVID_PAUSE: Duration = Duration::from_secs(60);

/// Certificates are renewed when two thirds of their life are over, and never after it: then they are no credential.
pub(crate) fn is_due((not_before, not_after): (u64, u64), now: u64) -> bool {
    let due = not_after.saturating_sub(not_after.saturating_sub(not_before) / 3);
    now >= due && now < not_after
}

/// Another node has told of a newer trust bundle.
#[derive(Debug, thiserror::Error)]
#[error("the auth node that was asked has an old trust bundle; another is asked")]
struct Behind;

/// Why sshd, or whoever uses them, was not told of new certificates. It is tried again before long.
#[derive(Debug, thiserror::Error)]
#[error("`{command}` {reason}; the new certificates are on disk, and it is run again")]
pub(crate) struct NotReloaded {
    command: String,
    reason: String,
}

/// Runs the shell command that tells of new certificates.
pub(crate) async fn reload(command: &str) -> Result<(), NotReloaded> {
    let failed = |reason: String| NotReloaded { command: command.to_owned(), reason };
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", command]).stdin(Stdio::null()).kill_on_drop(true);
    match timeout(RELOAD_TIMEOUT, shell.output()).await {
        Err(_) => Err(failed(format!("takes longer than {RELOAD_TIMEOUT:?}"))),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(failed(format!("failed ({}): {}", output.status, said.trim())))
        }
    }
}

/// Fetches the revocation list, unless the one on disk is current.
pub(crate) async fn keep_revocations(dir: &AgentDir, state: &mut AgentState, client: &Client) -> Result<()> {
    let known_revision = if dir.has_revocations() { state.revocation_revision } else { 0 };
    let request = v1::GetRevocationListRequest { known_revision };
    let reply = call!(client, Retry::Idempotent, get_revocation_list, request)?;
    if !reply.krl.is_empty() {
        dir.keep_revocations(&reply.krl)?;
    }
    state.revocation_revision = reply.revision;
    dir.save(state)
}

/// Gets new certificates for the same keys, by the certificate that the client shows.
pub(crate) async fn certify(dir: &AgentDir, state: &mut AgentState, client: &Client) -> Result<()> {
    let request = v1::GenerateHostCertsRequest {
        token: String::new(),
        ssh_public_key: dir.ssh_key()?.public_line(),
        tls_public_key: dir.tls_key()?.spki_der().into(),
        hostname: state.hostname.clone(),
        additional_principals: state.principals.clone(),
    };
    let issued = call!(client, Retry::Idempotent, generate_host_certs, request)?;
    if issued.agent_id != state.agent_id {
        anyhow::bail!("the cluster renewed another agent, {}", issued.agent_id);
    }
    dir.keep_certificates(state, &issued)?;
    dir.save(state)
}

#[cfg(test)]
mod tests {
    use mezite_daemon::files;

    use super::*;

    #[test]
    fn when_to_report_again_and_how_busy_ingests_are_is_no_news() {
        let reply = |seconds, ingests: [&str; 2], revocation_revision| v1::AgentHeartbeatResponse {
            next_interval: Some(prost_types::Duration { seconds, nanos: 0 }),
            ingest_addresses: ingests.map(str::to_owned).into(),
            revocation_revision,
            ..Default::default()
        };
        let told = news(&reply(9, ["a:1", "b:1"], 1));
        assert_eq!(news(&reply(11, ["b:1", "a:1"], 1)), told);
        assert_ne!(news(&reply(9, ["a:1", "b:1"], 2)), told);
        assert_ne!(news(&reply(9, ["a:1", "c:1"], 1)), told);
    }

    #[test]
    fn renewal_is_due_in_the_last_third() {
        assert!(!is_due((0, 300), 199));
        assert!(is_due((0, 300), 200));
        assert!(is_due((0, 300), 299));
        assert!(!is_due((0, 300), 300));
        assert!(!is_due((300, 0), 100));
    }

    #[test]
    fn a_watch_ends_only_when_the_agent_is_none_any_more() {
        let unavailable = ClientError::Unavailable {
            addresses: String::new(),
            attempts: 1,
            reason: String::new(),
            retry_after: None,
        };
        assert!(passes(&unavailable.into()));
        assert!(!passes(&ClientError::Config("no such key".into()).into()));
        let refused = |kind: io::ErrorKind| files::failed("state.json".as_ref())(kind.into());
        let full = anyhow::Error::new(refused(io::ErrorKind::StorageFull));
        assert!(passes(&full) && passes(&full.context("cannot keep what is known")));
        let too_many = io::Error::from_raw_os_error(Errno::MFILE.raw_os_error());
        assert!(passes(&files::failed("state.json".as_ref())(too_many).into()));
        for lasts in [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied, io::ErrorKind::InvalidData] {
            assert!(!passes(&refused(lasts).into()), "{lasts}");
        }
        assert!(!passes(&anyhow::anyhow!("the cluster renewed another agent")));
    }
}
