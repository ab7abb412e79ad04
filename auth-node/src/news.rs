//! What agents are told when it changes: that there is something new to trust, or revoked, or how sessions are recorded. One look at the state does for
//! all who listen; an agent then fetches what it lacks.

use std::time::Duration;

use auth_core::{
    CoreError, cluster_config, revocation,
    tables::{CaKey, ClusterConfigKey, RecordingMode, RevocationHeadKey},
    trust,
};
use raft_store::{Store, WatchEvent, Watcher};
use store_txn::{Key as _, KeyRange};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    error::ApiError,
    metrics,
    places::{Place, Places, Room},
};

/// From one confirmation that this node is current to the next.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(2);
/// A node that cannot confirm within this that it is current sends its listeners to another.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(3);
/// Most calls with which one agent listens: it needs one, and a new one before the old one's end is noticed.
const PER_AGENT: usize = 2;

const NOT_CURRENT: ApiError = ApiError::Unavailable("this node cannot confirm that it is current");
const ENDED: CoreError = CoreError::Unauthenticated("the client certificate is past its time");
const STOPPING: ApiError = ApiError::Unavailable("the node is stopping");

/// What is new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct News {
    /// Revision of the trust bundle.
    pub(crate) trust_bundle: u64,
    /// Revision of the last revocation.
    pub(crate) revocations: u64,
    /// What happens to a session that cannot be recorded.
    pub(crate) recording_mode: RecordingMode,
}

/// Where agents listen: so many at a time, until the node stops.
pub(crate) struct Board {
    /// `None`: this node may not be current.
    current: watch::Receiver<Option<News>>,
    places: Places,
    stopping: CancellationToken,
}

impl Board {
    /// Begins to look at the state, until the board is dropped. At most `most` listen, until `stopping` is cancelled.
    pub(crate) fn start(store: Store, most: usize, stopping: CancellationToken) -> Self {
        let (sender, current) = watch::channel(None);
        tokio::spawn(Editor::new(store).run(sender));
        let room = Room {
            most,
            each: PER_AGENT,
            full: "too many agents listen here",
            own_full: "this agent listens here too often",
            measure: metrics::news_listeners,
        };
        Self { current, places: Places::new(room), stopping }
    }

    /// A place for an agent, by the name that it has in the audit log, for as long as its certificate is good.
    ///
    /// # Errors
    /// [`ApiError::Busy`] when as many listen as may.
    pub(crate) fn listen(&self, agent: String, left: Duration) -> Result<Listener, ApiError> {
        Ok(Listener {
            _place: self.places.take(agent)?,
            until: Instant::now() + left,
            current: self.current.clone(),
            stopping: self.stopping.clone(),
            told: None,
        })
    }
}

/// An agent that listens.
pub(crate) struct Listener {
    current: watch::Receiver<Option<News>>,
    stopping: CancellationToken,
    told: Option<News>,
    until: Instant,
    _place: Place,
}

impl Listener {
    /// What is new; the first time, what there is.
    ///
    /// # Errors
    /// Why there will be no more: the node stops, or cannot confirm that it is current, or the certificate has ended.
    pub(crate) async fn next(&mut self) -> Result<News, ApiError> {
        let told = self.told;
        let is_new = |news: &Option<News>| news.is_none() || *news != told;
        let news = tokio::select! {
            biased;
            () = self.stopping.cancelled() => return Err(STOPPING),
            () = sleep_until(self.until) => return Err(ENDED.into()),
            news = self.current.wait_for(is_new) => *news.map_err(|_| STOPPING)?,
        };
        self.told = news;
        news.ok_or(NOT_CURRENT)
    }
}

/// Keeps the board up to date.
struct Editor {
    store: Store,
    authorities: Watcher,
    revocations: Watcher,
    config: Watcher,
}

impl Editor {
    fn new(store: Store) -> Self {
        // Before the state is read, so that no change is missed.
        let revision = store.status().revision;
        let authorities = store.watch(KeyRange::table(CaKey::TABLE), revision);
        let revocations = store.watch(KeyRange::table(RevocationHeadKey::TABLE), revision);
        let config = store.watch(KeyRange::table(ClusterConfigKey::TABLE), revision);
        Self { store, authorities, revocations, config }
    }

    async fn run(mut self, board: watch::Sender<Option<News>>) {
        while !board.is_closed() {
            let news = match self.look().await {
                Ok(news) => Some(news),
                Err(error) => {
                    tracing::debug!(%error, "what is new for agents could not be read");
                    None
                }
            };
            board.send_if_modified(|shown| std::mem::replace(shown, news) != news);
            if !self.changed(&board).await {
                return;
            }
        }
    }

    /// What there is, if this node can confirm that it is current.
    async fn look(&self) -> Result<News, ApiError> {
        self.store.confirm(CONFIRM_TIMEOUT).await?;
        let read = self.store.read_local(|view| {
            Ok::<_, CoreError>(News {
                trust_bundle: trust::revision(view)?,
                revocations: revocation::head(view)?,
                recording_mode: cluster_config::settings(view)?.recording_mode,
            })
        });
        Ok(read.await?)
    }

    /// Waits until it is time to look again; `false`: never.
    async fn changed(&mut self, board: &watch::Sender<Option<News>>) -> bool {
        let event: Option<WatchEvent> = tokio::select! {
            () = board.closed() => return false,
            () = sleep(CONFIRM_INTERVAL) => return true,
            event = self.authorities.next() => event,
            event = self.revocations.next() => event,
            event = self.config.next() => event,
        };
        event.is_some()
    }
}
