//! What a data plane is told of those who call it, as long as it listens: the roster of agents, and that this node is
//! current. What is told is decided in `auth_core::roster`, how it looks on the wire in `rpc::access`.
//!
//! A listener that takes nothing holds up nobody: what it is told next is worked out when it takes it. One that falls
//! behind what the store remembers of changes is given a listing anew.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use auth_core::{
    Caller, CoreError,
    names::AgentId,
    roster::{self, Agent, Listing},
};
use futures::FutureExt as _;
use raft_store::{WatchEvent, Watcher};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    authn::Call,
    error::ApiError,
    metrics,
    places::{Place, Places, Room},
    service::Service,
};

/// From one confirmation to the next attempt.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(2);
/// A node that cannot confirm within this that it is current sends its listeners to another.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(3);
/// Most changes that are told between a confirmation and the word of it.
const BURST: usize = 1000;
/// Most calls with which one ingest listens: it needs one, and a new one before the old one's end is noticed.
pub(crate) const PER_INGEST: usize = 4;

const STOPPING: ApiError = ApiError::Unavailable("the node is stopping");
const NOT_CURRENT: ApiError = ApiError::Unavailable("this node cannot confirm that it is current");

/// Who listens: so many at a time, until the node stops.
pub(crate) struct Listeners {
    places: Places,
    stopping: CancellationToken,
}

impl Listeners {
    /// At most so many, until `stopping` is cancelled.
    pub(crate) fn new(most: usize, stopping: CancellationToken) -> Self {
        let room = Room {
            most,
            each: PER_INGEST,
            full: "too many ingests listen here",
            own_full: "this ingest listens here too often",
            measure: metrics::access_listeners,
        };
        Self { places: Places::new(room), stopping }
    }
}

/// What is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// A listing begins.
    Listing,
    /// Agents that are registered, or have changed: at least one, and at most [`roster::PAGE`].
    Registered(Vec<Agent>),
    /// It is not registered, or not any more.
    Removed(AgentId),
    /// The listing is complete.
    Listed,
    /// Every change up to this revision was told, and with it every one that was acknowledged before a quorum
    /// confirmed that this node is current.
    Current(u64),
}

enum Phase {
    /// The next page begins after this id.
    Listing(Option<AgentId>),
    Following,
}

/// What one listener is told.
pub(crate) struct Feed {
    service: Arc<Service>,
    call: Call,
    /// Last second of the listener's certificate, Unix time.
    ends: u64,
    own: AgentId,
    phase: Phase,
    listing: Listing,
    agents: Watcher,
    locks: Watcher,
    confirm_at: Instant,
    queue: VecDeque<Event>,
    _place: Place,
}

impl Feed {
    /// Begins to tell an ingest, whose certificate is good up to the second `ends` (Unix time).
    ///
    /// # Errors
    /// What authentication and authorisation refuse; [`ApiError::Busy`] when as many listen as may;
    /// [`ApiError::Store`] when this node cannot confirm that it is current.
    pub(crate) async fn begin(service: Arc<Service>, call: Call, ends: u64) -> Result<Self, ApiError> {
        let admitted = service.read(&call, |view, context| match &context.caller {
            Caller::Ingest { id, .. } => Ok((id.clone(), view.revision())),
            _ => Err(CoreError::Denied("who has access is told to ingests".into())),
        });
        let (own, revision) = admitted.await?;
        let place = service.access.places.take(format!("ingest:{own}"))?;
        // Before the first page is read, so that no change is missed.
        let [agents, locks] = roster::ranges().map(|range| service.store.watch(range, revision));
        let mut feed = Self {
            service,
            call,
            ends,
            own,
            phase: Phase::Following,
            listing: Listing::default(),
            agents,
            locks,
            confirm_at: Instant::now(),
            queue: VecDeque::new(),
            _place: place,
        };
        feed.list_anew();
        Ok(feed)
    }

    /// What comes next; it waits until there is something.
    ///
    /// # Errors
    /// Why the feed ends: the listener is not the ingest that it was, the node stops, or it cannot confirm that it is
    /// current.
    pub(crate) async fn next(&mut self) -> Result<Event, ApiError> {
        let stopping = self.service.access.stopping.clone();
        tokio::select! {
            biased;
            () = stopping.cancelled() => Err(STOPPING),
            event = self.advance() => event,
        }
    }

    async fn advance(&mut self) -> Result<Event, ApiError> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Ok(event);
            }
            match &self.phase {
                Phase::Listing(after) => self.list(after.clone()).await?,
                Phase::Following => self.follow().await?,
            }
        }
    }

    fn list_anew(&mut self) {
        self.phase = Phase::Listing(None);
        self.listing = Listing::default();
        self.queue.push_back(Event::Listing);
    }

    async fn list(&mut self, after: Option<AgentId>) -> Result<(), ApiError> {
        let read = self
            .service
            .read(&self.call, move |view, _| Ok((roster::page(view, after.as_ref())?, view.revision())));
        let (page, revision) = read.await?;
        self.listing.read(&page, revision);
        if !page.agents.is_empty() {
            self.queue.push_back(Event::Registered(page.agents));
        }
        match page.next {
            Some(last) => self.phase = Phase::Listing(Some(last)),
            None => {
                self.phase = Phase::Following;
                self.queue.push_back(Event::Listed);
                self.confirm_at = Instant::now();
            }
        }
        Ok(())
    }

    async fn follow(&mut self) -> Result<(), ApiError> {
        tokio::select! {
            biased;
            () = sleep_until(self.confirm_at) => self.confirm().await,
            event = self.agents.next() => self.take(event).await,
            event = self.locks.next() => self.take(event).await,
        }
    }

    /// Confirms that this node is current and that the listener may still listen, and tells both after every change
    /// that was there by then.
    async fn confirm(&mut self) -> Result<(), ApiError> {
        if (self.service.clock)() / 1000 > self.ends {
            return Err(CoreError::Unauthenticated("the client certificate is past its time").into());
        }
        // Looked up before: what can be seen now is announced to watchers once a read is confirmed that began later.
        let seen = self.service.store.read_local(|view| Ok::<_, CoreError>(view.revision()));
        let revision = seen.await.map_err(ApiError::from)?;
        let read = self.service.read(&self.call, |_, _| Ok(()));
        timeout(CONFIRM_TIMEOUT, read).await.unwrap_or(Err(NOT_CURRENT))?;
        self.confirm_at = Instant::now() + CONFIRM_INTERVAL;
        for _ in 0..BURST {
            let waiting = self.agents.next().now_or_never();
            let Some(event) = waiting.or_else(|| self.locks.next().now_or_never()) else {
                self.queue.push_back(Event::Current(revision));
                return Ok(());
            };
            self.take(event).await?;
            if matches!(self.phase, Phase::Listing(_)) {
                return Ok(());
            }
        }
        self.confirm_at = Instant::now();
        Ok(())
    }

    /// Tells what a change has come to: as the state is now, which is not before the change.
    async fn take(&mut self, event: Option<WatchEvent>) -> Result<(), ApiError> {
        match event {
            None => return Err(STOPPING),
            Some(WatchEvent::Resync { .. }) => self.list_anew(),
            Some(WatchEvent::Change { revision, key, .. }) => {
                let id = roster::whose(&key)?;
                if id == self.own {
                    // It may have been removed, or locked.
                    self.confirm_at = Instant::now();
                }
                if !self.listing.holds(&id, revision) {
                    let wanted = id.clone();
                    let found = self.service.store.read_local(move |view| roster::find(view, &wanted));
                    let found = found.await.map_err(ApiError::from)?;
                    self.queue
                        .push_back(found.map_or(Event::Removed(id), |agent| Event::Registered(vec![agent])));
                }
            }
        }
        Ok(())
    }
}
