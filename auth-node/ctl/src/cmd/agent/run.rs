//! `agent run`: what keeps an SSH node in the cluster, as a service.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use mezite_client::{AuthClient, Client, Retry, RetryPolicy};
use mezite_proto::v1::{self, watch_access_response::Event};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};

use super::{
    heartbeat::Reported,
    pulse::{Pulse, passes},
};
use crate::{context::Context, output};

/// Wait after a heartbeat that failed.
const AFTER_FAILURE: Duration = Duration::from_secs(5);
/// Least and longest wait between heartbeats, whatever the cluster says.
const INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

const EXAMPLES: &str = "\
Examples:
  mezctl agent run --dir /etc/mezite --reload 'systemctl reload ssh'        until SIGTERM

It reports that the host lives, keeps the files that sshd reads up to date (whose certificates to trust, and which of
them are revoked, within seconds), and renews the host's own certificates when two thirds of their life are over, or a
CA of the cluster is rotated. A rotation waits until this host has followed it. Beside them are svid.pem, svid_key.pem
and bundle.pem: the host's X.509-SVID, for whoever speaks SPIFFE.";

/// Arguments of `agent run`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Run {
    #[command(flatten)]
    reported: Reported,
    /// Shell command that has sshd read its host certificate anew; it is run after each renewal, and again until it succeeds
    #[arg(long, value_name = "COMMAND")]
    reload: Option<String>,
}

pub(crate) async fn run(context: &Context, args: Run) -> Result<()> {
    let mut pulse = args.reported.pulse(context)?.reloading_by(args.reload);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        ended = serve(&mut pulse) => ended,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// Goes on until the cluster says that the agent is no longer one.
async fn serve(pulse: &mut Pulse<'_>) -> Result<()> {
    let mut ear = Ear::deaf();
    let mut beat_at = Instant::now();
    loop {
        let done = tokio::select! {
            biased;
            news = ear.next() => pulse.follow(news).await,
            () = sleep_until(beat_at) => {
                let beat = pulse.beat().await;
                let wait = beat.as_ref().copied().unwrap_or(AFTER_FAILURE);
                beat_at = Instant::now() + wait.clamp(INTERVAL.0, INTERVAL.1);
                beat.map(drop)
            }
        };
        match done {
            Ok(()) => {}
            Err(error) if passes(&error) => {
                eprintln!("warning: {}", output::printable(&format!("{error:#}")));
                // What could not be fetched is fetched with the next heartbeat.
                beat_at = beat_at.min(Instant::now() + AFTER_FAILURE);
            }
            Err(error) => return Err(error),
        }
        if !pulse.has_client() || ear.is_deaf() {
            ear = Ear::open(pulse.client().await?);
        }
    }
}

/// Hears at once what the cluster has new, from whichever node tells it.
struct Ear {
    news: watch::Receiver<v1::AccessNews>,
    task: Option<JoinHandle<()>>,
}

impl Ear {
    fn deaf() -> Self {
        Self { news: watch::channel(v1::AccessNews::default()).1, task: None }
    }

    fn open(client: Client) -> Self {
        let (sender, news) = watch::channel(v1::AccessNews::default());
        Self { news, task: Some(tokio::spawn(listen(client, sender))) }
    }

    fn is_deaf(&self) -> bool {
        self.task.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// What is new. Never, for one that is deaf.
    async fn next(&mut self) -> v1::AccessNews {
        match self.news.changed().await {
            Ok(()) => *self.news.borrow_and_update(),
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Listens to one node after the other, until nobody hears any more.
async fn listen(client: Client, news: watch::Sender<v1::AccessNews>) {
    let once = RetryPolicy { attempts_per_address: 1, ..*client.policy() };
    let client = client.with_policy(once);
    let mut failures = 0;
    while !news.is_closed() {
        let watch = |mut auth: AuthClient, request| async move { auth.watch_access(request).await };
        if let Ok(mut told) = client.call(Retry::Idempotent, v1::WatchAccessRequest {}, watch).await {
            while let Ok(Some(message)) = told.message().await {
                failures = 0;
                if let Some(Event::News(told)) = message.event {
                    news.send_if_modified(|known| std::mem::replace(known, told) != told);
                }
            }
        }
        // Another node may do better. Heartbeats tell of what is new as well.
        client.leave_last_server();
        failures += 1;
        sleep(once.backoff(failures, rand::random())).await;
    }
}
