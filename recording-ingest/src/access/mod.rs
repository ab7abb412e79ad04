//! Which agents may write: those that auth nodes say are registered, as far as this ingest knows. `roster` is what it
//! knows, without I/O; `follower` keeps it up to date; here a call is judged by it, at its begin and while it runs.
//!
//! While no auth node can be reached, what was known last goes on to count. An ingest that has not been told anything
//! since its start goes by certificates alone, and judges what it let in again once it is told.

mod follower;
mod roster;

use std::time::Duration;

use recording_format::AgentId;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use crate::{authn::Writer, error::IngestError, metrics};

pub(crate) use follower::Follower;
use roster::{Event, Roster, Standing};

/// How long a call of an agent that is not known waits to be told of it: one that registered a moment ago may be here
/// before the word of it. After a start, the longest that a call waits to be told anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// What is known of who may write.
#[derive(Debug)]
pub(crate) struct Access {
    roster: watch::Sender<Roster>,
    patience: Duration,
}

impl Access {
    /// Nothing is known yet. A call waits for at most `patience` to be told of its agent.
    pub(crate) fn new(patience: Duration) -> Self {
        metrics::roster(0, false);
        Self { roster: watch::channel(Roster::default()).0, patience }
    }

    /// Takes in what an auth node tells.
    fn take(&self, event: Event) {
        self.change(|roster| roster.take(event, Instant::now()));
    }

    /// Nobody tells anything now.
    pub(crate) fn lost(&self) {
        self.change(|roster| {
            roster.lose();
            true
        });
    }

    /// `change` answers whether anything that calls are judged by may have changed.
    fn change(&self, change: impl FnOnce(&mut Roster) -> bool) {
        self.roster.send_if_modified(|roster| {
            let changed = change(roster);
            metrics::roster(roster.len(), roster.was_told());
            changed
        });
    }

    /// Whether there was a complete listing since the start.
    fn was_told(&self) -> bool {
        self.roster.borrow().was_told()
    }

    /// Judges the agent of a call that writes. One that is not known is waited for, a short time. Where the agent is
    /// known, its hostname is the one that auth nodes tell.
    ///
    /// # Errors
    /// [`IngestError::NotRegistered`]; [`IngestError::Unconfirmed`] for an agent that is not known while nobody can
    /// tell of it; [`IngestError::Leaving`] when `leaving` resolves meanwhile.
    pub(crate) async fn admit(
        &self,
        writer: Writer,
        leaving: impl Future<Output = ()>,
    ) -> Result<Writer, IngestError> {
        let id = writer.agent_id;
        let mut roster = self.roster.subscribe();
        let settled = timeout(
            self.patience,
            roster.wait_for(|roster| roster.standing(id, Instant::now()).is_settled()),
        );
        tokio::select! {
            biased;
            // Either it is settled now, or it is decided by what is known after the wait.
            _ = settled => (),
            () = leaving => return Err(IngestError::Leaving),
        }
        let roster = self.roster.borrow();
        match roster.standing(id, Instant::now()) {
            Standing::Registered(hostname) => {
                Ok(Writer { hostnames: Some(vec![hostname.to_owned()]), ..writer })
            }
            Standing::NotTold { .. } => Ok(writer),
            Standing::Absent => Err(IngestError::NotRegistered),
            Standing::Unsure => Err(IngestError::Unconfirmed),
        }
    }

    /// Resolves when an agent is known not to be registered, or not any more.
    pub(crate) async fn revoked(&self, id: AgentId) {
        let gone = self.roster.subscribe().wait_for(|roster| roster.excludes(id)).await.is_ok();
        if !gone {
            // What is known does not change any more.
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use futures::FutureExt as _;

    use super::*;

    /// Short enough to be waited for.
    const MOMENT: Duration = Duration::from_millis(30);
    /// Nobody waits so long.
    const FAR: Duration = Duration::from_secs(3600);

    fn id(n: u8) -> AgentId {
        AgentId::from_bytes([n; 16])
    }

    fn writer(n: u8) -> Writer {
        Writer { agent_id: id(n), certificate: None, relayed_by: None, hostnames: None }
    }

    fn agents(ids: &[u8]) -> Event {
        Event::Registered(ids.iter().map(|n| (id(*n), format!("web{n}"))).collect())
    }

    fn told(ids: &[u8], patience: Duration) -> Access {
        let access = Access::new(patience);
        for event in [Event::Listing, agents(ids), Event::Listed, Event::Current] {
            access.take(event);
        }
        access
    }

    #[tokio::test]
    async fn who_is_registered_is_let_in_at_once_with_the_name_that_auth_nodes_know() {
        let writer = told(&[1], FAR).admit(writer(1), pending()).await.unwrap();
        assert_eq!(writer.hostnames, Some(vec!["web1".to_owned()]));
    }

    #[tokio::test]
    async fn who_is_not_is_waited_for_and_then_refused() {
        let access = told(&[1], MOMENT);
        let begun = Instant::now();
        assert!(matches!(access.admit(writer(2), pending()).await, Err(IngestError::NotRegistered)));
        assert!(begun.elapsed() >= MOMENT);
        let left = access.admit(writer(3), ready(())).await;
        assert!(matches!(left, Err(IngestError::Leaving)));
    }

    #[tokio::test]
    async fn a_registration_that_is_on_its_way_is_in_time() {
        let access = told(&[1], FAR);
        let mut waiting = Box::pin(access.admit(writer(2), pending()));
        assert!(waiting.as_mut().now_or_never().is_none());
        access.take(agents(&[3]));
        assert!(waiting.as_mut().now_or_never().is_none());
        access.take(agents(&[2]));
        assert_eq!(waiting.await.unwrap().hostnames, Some(vec!["web2".to_owned()]));
    }

    #[tokio::test]
    async fn while_nobody_tells_the_last_word_counts_and_others_are_put_off() {
        let access = told(&[1], MOMENT);
        access.lost();
        assert!(access.admit(writer(1), pending()).await.is_ok());
        assert!(matches!(access.admit(writer(2), pending()).await, Err(IngestError::Unconfirmed)));
    }

    #[tokio::test]
    async fn before_anything_was_told_certificates_alone_count() {
        let access = Access::new(MOMENT);
        let begun = Instant::now();
        let admitted = access.admit(writer(1), pending()).await.unwrap();
        assert!(admitted.hostnames.is_none() && begun.elapsed() >= MOMENT);
        // Once it is clear that nobody is there to tell, nobody waits for it.
        let access = Access::new(FAR);
        let mut waiting = Box::pin(access.admit(writer(1), pending()));
        assert!(waiting.as_mut().now_or_never().is_none());
        access.lost();
        assert!(waiting.await.is_ok());
    }

    #[tokio::test]
    async fn a_call_that_runs_hears_of_the_removal() {
        let access = told(&[1, 2], FAR);
        let (mut one, mut two) = (Box::pin(access.revoked(id(1))), Box::pin(access.revoked(id(2))));
        assert!(one.as_mut().now_or_never().is_none() && two.as_mut().now_or_never().is_none());
        access.take(Event::Removed(id(1)));
        assert!(one.as_mut().now_or_never().is_some() && two.as_mut().now_or_never().is_none());
        // What was let in on its certificate is judged once it is known.
        let access = Access::new(FAR);
        let mut unknown = Box::pin(access.revoked(id(2)));
        assert!(unknown.as_mut().now_or_never().is_none());
        for event in [Event::Listing, Event::Listed] {
            access.take(event);
        }
        assert!(unknown.as_mut().now_or_never().is_some());
    }
}
