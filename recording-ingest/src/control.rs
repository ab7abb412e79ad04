//! What is exchanged with the auth nodes while the ingest serves: heartbeats, the trust bundle, and a new certificate
//! before the old one ends. None of it is needed to serve: while no auth node answers, everything stays as it is.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use mezite_client::{AuthClient, Client, Retry};
use mezite_daemon::clock;
use rustls::ServerConfig;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    identity::{Folder, IdentityError, State, generate, report},
    metrics, server,
    service::Ingest,
};

/// Least and longest wait between heartbeats, whatever the cluster says.
const BEAT_BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// How much of a wait is left to chance, so that ingests do not come together.
const JITTER: f64 = 0.1;

/// Keeps in touch with the cluster.
#[derive(Debug)]
pub(crate) struct Control {
    config: Config,
    folder: Folder,
    state: State,
    ingest: Arc<Ingest>,
    tls: Arc<ArcSwap<ServerConfig>>,
    client: Client,
    beat_interval: Duration,
    /// Revision of the trust bundle that the cluster has, as an auth node said last; 0: none has.
    told_revision: u64,
}

/// When to do what next.
struct Schedule {
    beat: Instant,
    bundle: Instant,
    renewal: Instant,
}

impl Schedule {
    fn next(&self) -> Instant {
        self.beat.min(self.bundle).min(self.renewal)
    }
}

impl Control {
    pub(crate) fn new(
        config: Config,
        folder: Folder,
        state: State,
        ingest: Arc<Ingest>,
        tls: Arc<ArcSwap<ServerConfig>>,
    ) -> Result<Self, IdentityError> {
        let client = ingest.identity().client(&config)?;
        let beat_interval = config.control.heartbeat_interval;
        Ok(Self { config, folder, state, ingest, tls, client, beat_interval, told_revision: 0 })
    }

    /// Goes on until cancelled. Files are written between two waits, never across one.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        tokio::select! {
            never = self.follow() => match never {},
            () = stop.cancelled() => (),
        }
    }

    async fn follow(&mut self) -> std::convert::Infallible {
        let now = Instant::now();
        let mut schedule =
            Schedule { beat: now, bundle: now + self.config.control.bundle_interval, renewal: now };
        loop {
            sleep_until(schedule.next()).await;
            let now = Instant::now();
            if schedule.renewal <= now {
                warn("the certificate could not be renewed", self.renew_if_due().await);
                schedule.renewal = Instant::now() + self.config.control.renewal_check_interval;
            }
            if schedule.beat <= now {
                let beat = self.beat().await;
                metrics::heartbeat(beat.is_ok());
                self.ingest.reach.note(beat.is_ok());
                if beat.as_ref().is_err_and(IdentityError::is_removal) {
                    self.ingest.remove();
                }
                warn("no auth node took the heartbeat", beat);
                if self.told_revision != self.state.followed_revision {
                    schedule.bundle = now;
                }
                schedule.beat = Instant::now() + jittered(self.beat_interval, rand::random());
            }
            if schedule.bundle <= now {
                let followed = warn("the trust bundle could not be followed", self.follow_bundle().await);
                schedule.bundle = Instant::now() + self.config.control.bundle_interval;
                if followed == Some(true) {
                    // Whoever rotates a CA waits for those who have not followed yet.
                    schedule.beat = now;
                }
            }
        }
    }

    /// Reports that this ingest lives, and hears the revision of the cluster's trust bundle.
    async fn beat(&mut self) -> Result<(), IdentityError> {
        let load = u32::try_from(self.ingest.open_streams()).unwrap_or(u32::MAX);
        let request = report(&self.config, &self.state, load);
        let call = |mut auth: AuthClient, request| async move { auth.agent_heartbeat(request).await };
        let reply = self.client.call(Retry::Idempotent, request, call).await?;
        if let Some(interval) = reply.next_interval.and_then(|interval| Duration::try_from(interval).ok()) {
            self.beat_interval = interval.clamp(BEAT_BOUNDS.0, BEAT_BOUNDS.1);
        }
        self.told_revision = reply.trust_bundle_revision;
        Ok(())
    }

    /// Takes up the trust bundle: believes what it says from now on, and shows a certificate of the key that signs now,
    /// where the TLS CA has moved on in its rotation. Answers whether there was anything to take up.
    async fn follow_bundle(&mut self) -> Result<bool, IdentityError> {
        let bundle = self.client.trust_bundle().await?;
        if bundle.revision < self.told_revision {
            self.client.leave_last_server();
            return Err(IdentityError::Answer("this node's trust bundle is an old one".to_owned()));
        }
        if bundle.revision != self.state.trust_bundle_revision {
            self.folder.keep_bundle(&mut self.state, &bundle)?;
            self.reload()?;
            // Last: what was not taken up is fetched again.
            self.folder.save(&self.state)?;
            tracing::info!(revision = bundle.revision, "the trust bundle has changed");
        }
        if self.state.followed_revision == self.state.trust_bundle_revision {
            return Ok(false);
        }
        if self.state.certificate_lags {
            self.renew().await?;
        }
        self.state.followed_revision = self.state.trust_bundle_revision;
        self.folder.save(&self.state)?;
        Ok(true)
    }

    async fn renew_if_due(&mut self) -> Result<(), IdentityError> {
        let (identity, now) = (self.ingest.identity(), clock::unix_seconds());
        if !identity.is_valid_at(now) {
            return Err(IdentityError::NotGoodNow);
        }
        if !identity.is_due_at(now) {
            return Ok(());
        }
        self.renew().await
    }

    async fn renew(&mut self) -> Result<(), IdentityError> {
        let issued = generate(&self.client, &self.folder, &self.state, "").await?;
        self.folder.keep_certificates(&mut self.state, &issued)?;
        self.reload()?;
        tracing::info!(expires_at = self.ingest.identity().expires_at(), "the certificate is renewed");
        Ok(())
    }

    /// Takes up what is in the folder now, for connections that come from now on.
    fn reload(&mut self) -> Result<(), IdentityError> {
        let identity = self.folder.identity(&self.state)?;
        let (client, tls) = (identity.client(&self.config)?, server::server_config(&identity)?);
        metrics::certificate_expires(identity.expires_at());
        self.client = client;
        self.tls.store(Arc::new(tls));
        self.ingest.replace_identity(identity);
        Ok(())
    }
}

fn warn<T>(what: &'static str, result: Result<T, IdentityError>) -> Option<T> {
    result.inspect_err(|error| tracing::warn!(%error, "{what}")).ok()
}

/// `chance` is between 0 and 1.
fn jittered(wait: Duration, chance: f64) -> Duration {
    wait.mul_f64(1.0 + JITTER * (2.0 * chance.clamp(0.0, 1.0) - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_differ_a_little() {
        let wait = Duration::from_secs(10);
        assert_eq!([0.0, 0.5, 1.0].map(|chance| jittered(wait, chance).as_secs()), [9, 10, 11]);
    }
}
