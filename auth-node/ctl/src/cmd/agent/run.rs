//! `agent run`: what keeps an SSH node in the cluster, as a service.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use clap::Args;
use mezite_client::{
    AuthClient, Client, ClientError, ForwardSettings, Forwarder, NOT_REGISTERED, Notice, Retry, RetryPolicy,
    Spool,
};
use mezite_proto::v1::{self, watch_access_response::Event};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, sleep_until},
};

use super::{
    Gone,
    heartbeat::Reported,
    pulse::{Pulse, passes},
    spool::{self, Unrecorded},
};
use crate::{
    args::{byte_count, human_duration},
    context::Context,
    exit::{self, Proof},
    log,
    output::warn,
    recording::{
        desk::{Desk, Visitors},
        mode::Mode,
    },
};

/// Wait after a heartbeat that failed.
const AFTER_FAILURE: Duration = Duration::from_secs(5);
/// Least and longest wait between heartbeats, whatever the cluster says.
const INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

const EXAMPLES: &str = "\
Examples:
  mezctl agent run --dir /etc/mezite --reload 'systemctl reload ssh'        until SIGTERM
  mezctl agent run --dir /etc/mezite --spool-limit 20G

It reports that the host lives, keeps the files that sshd reads up to date (whose certificates to trust, and which of
them are revoked, within seconds), and renews the host's own certificates when two thirds of their life are over, or a
CA of the cluster is rotated. A rotation waits until this host has followed it. Beside them are svid.pem, svid_key.pem
and bundle.pem: the host's X.509-SVID, for whoever speaks SPIFFE.

Where the host joined with --spool (`mezctl agent join --out /etc/mezite --spool DIR` does that later, too), it takes in what
`mezctl record` records of sessions, and sends it to the cluster while they run. What cannot be sent stays in the spool, and
is removed against the cluster's receipt alone. When the spool is full nothing is removed for new sessions: the cluster's
recording mode says what becomes of those. What is damaged, or can never be sent as it is, is moved to `aside` there, and
the log says what to do.

Its log is lines on standard error, each with its time and level, of what is new; with --format json each is an object.";

/// Arguments of `agent run`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Run {
    #[command(flatten)]
    reported: Reported,
    /// Shell command that has sshd read its host certificate anew; it is run after each renewal, and again until it succeeds
    #[arg(long, value_name = "COMMAND")]
    reload: Option<String>,
    /// Folder of `agent join --spool`, which sshd was told of; another one is refused [default: that one]
    #[arg(long, value_name = "DIR")]
    spool: Option<PathBuf>,
    /// Most bytes in the spool, such as 500M or 4G
    #[arg(long, default_value = "4G", value_parser = byte_count, value_name = "BYTES")]
    spool_limit: u64,
    /// How long a recording whose recorder has gone may be taken up again, before it is ended as it is: more than the 30s for
    /// which a recorder looks for its agent
    #[arg(long, default_value = "60s", value_parser = human_duration, value_name = "DURATION")]
    resume_within: Duration,
}

pub(crate) async fn run(context: &Context, args: Run) -> Result<()> {
    log::begin(context.format);
    let mut pulse = args.reported.pulse(context)?.reloading_by(args.reload);
    let (dir, state) = pulse.agent();
    let spool = spool::joined(args.spool.as_deref(), dir, state)?;
    let mut recordings = JoinSet::new();
    let mut unrecorded = spool.is_none().then(Unrecorded::default);
    if let Some(folder) = &spool {
        record(&pulse, folder, args.spool_limit, args.resume_within, &mut recordings)?;
        // Recordings go on without auth nodes; what is wrong with the certificate is said by the first heartbeat.
        let _ = pulse.show_route().await;
    }
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        ended = serve(&mut pulse, unrecorded.as_mut()) => match ended.map_err(gone) {
            Err(error) if error.is::<Gone>() => {
                // sshd goes on by what is on disk, and nobody fetches it again: so that has what was revoked by now.
                if let Err(error) = pulse.take_leave().await {
                    warn(&format!("what was revoked last is not known: {error:#}"));
                }
                Err(error)
            }
            ended => ended,
        },
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// What the cluster says of who is in its registry does not pass.
fn gone(error: anyhow::Error) -> anyhow::Error {
    match error.downcast::<ClientError>() {
        Ok(error) if error.has_reason(NOT_REGISTERED) => Gone(error).into(),
        Ok(error) => error.into(),
        Err(error) => error,
    }
}

/// Takes recordings in and sends them, in tasks that end with the set.
fn record(
    pulse: &Pulse<'_>,
    folder: &Path,
    limit: u64,
    grace: Duration,
    tasks: &mut JoinSet<()>,
) -> Result<()> {
    raise_open_files();
    let (spool, warnings) = Spool::open(folder, limit)?;
    warnings.iter().for_each(|text| warn(text));
    let (dir, state) = pulse.agent();
    let desk = Desk {
        spool: spool.clone(),
        dir: dir.clone(),
        agent_id: state.agent_id.clone(),
        hostname: state.hostname.clone(),
        mode: pulse.mode(),
        visitors: Visitors::default(),
    };
    // It is there before anybody can be let in.
    state.recording_mode.keep(folder)?;
    tasks.spawn(desk.serve(Desk::listen(folder)?));
    tasks.spawn(keep_mode(pulse.mode(), folder.to_owned()));
    let (settings, agent) = (ForwardSettings { grace, ..ForwardSettings::default() }, dir.path().to_owned());
    let tell = move |notice: Notice| warn(&with_remedy(&notice, &agent));
    tasks.spawn(Forwarder::new(spool, pulse.route(), settings, tell).run());
    Ok(())
}

/// What is said of recordings, with the command that sends what is not sent by itself.
fn with_remedy(notice: &Notice, agent: &Path) -> String {
    match notice {
        Notice::SetAside { path, as_new: true, .. } => format!(
            "{notice}. `mezctl recordings upload {} --agent {}` sends it as a new recording",
            path.display(),
            agent.display()
        ),
        _ => notice.to_string(),
    }
}

/// A session that is recorded takes three files of this process: as many as the host lets it have.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        warn(&format!("this process can have {:?} files open and no more: {error}", limit.current));
    }
}

/// Keeps on disk what the cluster wants, for as long as it may change.
async fn keep_mode(mut mode: watch::Receiver<Mode>, folder: PathBuf) {
    while mode.changed().await.is_ok() {
        let wanted = *mode.borrow_and_update();
        if let Err(error) = wanted.keep(&folder) {
            warn(&format!("the recording mode is not kept: {error:#}"));
        }
    }
}

/// Goes on until the cluster says that the agent is no longer one.
async fn serve(pulse: &mut Pulse<'_>, mut unrecorded: Option<&mut Unrecorded>) -> Result<()> {
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
        let done = match done {
            Err(error) if !passes(&error) => return Err(error),
            // Also after a failure: what is on disk by now is what recordings are sent with while no auth node answers.
            done => done.and(hear_again(pulse, &mut ear).await),
        };
        match done {
            Ok(()) => {
                let (dir, state) = pulse.agent();
                if let Some(unrecorded) = unrecorded.as_deref_mut() {
                    unrecorded.tell(state.recording_mode, dir);
                }
            }
            Err(error) if passes(&error) => {
                exit::warn(&error, Proof::Agent);
                pulse.tell_anew();
                // What could not be fetched is fetched with the next heartbeat.
                beat_at = beat_at.min(Instant::now() + AFTER_FAILURE);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Listens to the cluster, and sends recordings, with what the agent is by now.
async fn hear_again(pulse: &mut Pulse<'_>, ear: &mut Ear) -> Result<()> {
    if !pulse.has_client() || ear.is_deaf() {
        *ear = Ear::open(pulse.client().await?);
        pulse.show_route().await?;
    }
    Ok(())
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
