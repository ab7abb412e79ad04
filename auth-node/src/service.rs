//! What handlers work with: the store, the signing keys, the password pool, and the one way to read and
//! write.
//!
//! [`Service::read`] and [`Service::write`] tell who calls and whether it may in the same view or transaction
//! as the work itself. So a handler never sees a call that is not allowed, and a session that was revoked a
//! moment ago, on whichever node, is not honoured. [`Service::write_once`] is [`Service::write`] for what must not
//! happen twice.

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use auth_core::{
    Caller, Context, CoreError, Credential, Origin, Verdict,
    audit::{self, EventType},
    context,
    presence::PresenceTtl,
    second_factor,
};
use mezite_daemon::calls::CallSpan;
use mezite_proto::{access::MethodAccess, v1::AccessClass};
use raft_store::{Clock, Committed, Store, StoreTransaction, TransactError, View};
use store_txn::Read;
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    access::Listeners,
    attendance::Attendance,
    authn::Call,
    authz,
    ca_keys::CaKeys,
    error::ApiError,
    iam::Sts,
    ingests::LiveIngests,
    news::Board,
    once::{Once, OnceReply},
    pace::Pace,
    passwords::PasswordPool,
    places::Places,
    presence::Presence,
    recent::Recent,
    refusals::{Mode, Refusals},
    relay::Relay,
    rpc::RevocationList,
    sso::Outbound,
    uses::Uses,
};

/// How long it is told why the node is not ready: below what anybody notices.
pub(crate) const PROBLEM_LIFE: Duration = Duration::from_millis(250);

/// What handlers work with.
pub(crate) struct Service {
    /// The replicated state.
    pub(crate) store: Store,
    /// Hashes and verifies passwords, so many at a time.
    pub(crate) passwords: PasswordPool,
    /// The CAs' keys, opened when they are needed.
    pub(crate) cas: Arc<CaKeys>,
    /// The ingests that live.
    pub(crate) ingests: Arc<LiveIngests>,
    /// What anybody is told of why the node is not ready; the Raft core is not asked for each who asks.
    pub(crate) problem: Recent<String>,
    /// Collects heartbeats.
    pub(crate) presence: Presence,
    /// Whether agents have had the time to report.
    pub(crate) attendance: Arc<Attendance>,
    /// Collects which sessions are used.
    pub(crate) uses: Uses,
    /// Bounds how often WebAuthn ceremonies and single sign-ons are begun.
    pub(crate) pace: Pace,
    /// Calls ingests.
    pub(crate) relay: Relay,
    /// Asks AWS who somebody is.
    pub(crate) sts: Sts,
    /// Asks single sign-on providers.
    pub(crate) outbound: Outbound,
    /// For those who ask for an agent identity's credentials, by network.
    pub(crate) identities: Places,
    /// One permit: a backup takes as much space as the state.
    pub(crate) backups: Arc<Semaphore>,
    /// Bounds the refusals that are audited.
    pub(crate) refusals: Arc<Refusals>,
    /// The list of revoked certificates that was made last.
    pub(crate) revocation_list: RevocationList,
    /// Ingests that follow who has access.
    pub(crate) access: Listeners,
    /// Agents that are told what is new.
    pub(crate) news: Board,
    /// What the node's configuration says.
    pub(crate) settings: Settings,
    /// The cluster's time.
    pub(crate) clock: Clock,
}

/// What the node's configuration and identity say.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Id of this node.
    pub(crate) node_id: u64,
    /// Identifies the cluster for good.
    pub(crate) cluster_id: String,
    /// Name of the cluster, as in certificates.
    pub(crate) cluster: String,
    /// How often an agent reports.
    pub(crate) heartbeat_interval: Duration,
    /// An agent that has not reported for so long is offline.
    pub(crate) presence_ttl: PresenceTtl,
    /// A call may take no longer, whatever its client allows.
    pub(crate) call_timeout: Duration,
    /// The longest that a read or a write waits for the cluster.
    pub(crate) store_deadline: Duration,
    /// The longest silence between two messages of a stream.
    pub(crate) message_timeout: Duration,
    /// Origin at which browsers reach the web API, if people are told of one.
    pub(crate) web_origin: Option<String>,
}

/// What is needed to admit a call, by itself, since a transaction may run more than once.
struct Admission {
    method: &'static MethodAccess,
    credential: Credential,
    origin: Origin,
    /// Where it is noted that its session is used, unless it is no new use.
    uses: Option<Uses>,
    /// Where it is noted who calls.
    span: CallSpan,
}

impl Admission {
    /// Tells who calls, by what `state` says, and refuses what is not allowed.
    fn admit(&self, state: &mut (impl Read + ?Sized)) -> Result<Context, CoreError> {
        let caller = context::authenticate(state, &self.credential)?;
        self.span.note(|| caller.actor());
        if let Caller::User(user) = &caller
            && user.use_is_due
            && let Some(uses) = &self.uses
        {
            uses.note(user.digest, state.now());
        }
        authz::check(self.method, &caller)?;
        if authz::takes_second_factor(self.method) {
            second_factor::check(state, &caller)?;
        }
        Ok(Context { caller, origin: self.origin.clone() })
    }

    /// Who calls, for the audit log: also one who is refused.
    fn suspect(&self, state: &mut (impl Read + ?Sized)) -> Result<Context, CoreError> {
        let caller = match context::identify(state, &self.credential) {
            Err(CoreError::Unauthenticated(_)) => Caller::Anonymous,
            known => known?,
        };
        self.span.note(|| caller.actor());
        Ok(Context { caller, origin: self.origin.clone() })
    }
}

impl Service {
    fn admission(&self, call: &Call) -> Admission {
        let Call { method, credential, origin, span, .. } = call.clone();
        Admission { method, credential, origin, uses: Some(self.uses.clone()), span }
    }

    /// The store, for as long as the call may still take. A little is kept back, so that it is the store that says
    /// what is unknown.
    pub(crate) fn store(&self, call: &Call) -> Store {
        let left = call.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let longest = self.settings.store_deadline;
        self.store.within(left.map_or(longest, |left| longest.min(left - left / 16)))
    }

    /// Admits the call and works on one view: every write that was acknowledged before the call, by any node,
    /// is in it.
    ///
    /// # Errors
    /// What authentication, authorisation and `work` refuse; [`ApiError::Store`] when this node cannot
    /// confirm that it is current.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        call: &Call,
        work: impl FnOnce(&mut View<'_>, &Context) -> Result<T, CoreError> + Send + 'static,
    ) -> Result<T, ApiError> {
        self.read_admitted(call, self.admission(call), work).await
    }

    /// Admits a call again that goes on, which is no use of its session.
    ///
    /// # Errors
    /// As of [`Service::read`].
    pub(crate) async fn readmit(
        &self,
        call: &Call,
        may: impl FnOnce(&Context) -> Result<(), CoreError> + Send + 'static,
    ) -> Result<(), ApiError> {
        let admission = Admission { uses: None, ..self.admission(call) };
        self.read_admitted(call, admission, move |_, context| may(context)).await
    }

    async fn read_admitted<T: Send + 'static>(
        &self,
        call: &Call,
        admission: Admission,
        work: impl FnOnce(&mut View<'_>, &Context) -> Result<T, CoreError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let store = self.store(call);
        let done = store.read(move |view| {
            let context = admission.admit(view)?;
            work(view, &context)
        });
        self.refusals_audited(call, done.await).await
    }

    /// Works on this node's state as it is, which may be behind, and for anybody: for public methods that
    /// must answer without a quorum.
    ///
    /// # Errors
    /// [`CoreError::Denied`] for a method that is not public; what `work` refuses.
    pub(crate) async fn read_local<T: Send + 'static>(
        &self,
        call: &Call,
        work: impl FnOnce(&mut View<'_>) -> Result<T, CoreError> + Send + 'static,
    ) -> Result<T, ApiError> {
        authz::check(call.method, &Caller::Anonymous)?;
        Ok(self.store.read_local(work).await?)
    }

    /// Admits the call, works and commits in one transaction: what changes in between makes all of it run
    /// again. When it answers, the writes are on the disks of a majority.
    ///
    /// # Errors
    /// What authentication, authorisation and `work` refuse: then nothing is written but, for a denial, its
    /// audit record, as far as those are not too many. [`ApiError::Store`].
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        call: &Call,
        work: impl Fn(&mut StoreTransaction<'_>, &Context) -> Result<T, CoreError> + Send + Sync + 'static,
    ) -> Result<Committed<T>, ApiError> {
        let admission = self.admission(call);
        let mut store = self.store(call);
        if authz::writes_from_reserve(call.method) {
            store = store.from_reserve();
        }
        let done = store.transact(move |tx| {
            let context = admission.admit(tx)?;
            work(tx, &context)
        });
        self.refusals_audited(call, done.await).await
    }

    /// As [`Service::write`], for what must not happen twice: `work` runs for the first of the attempts of a call, and
    /// all of them are answered the same. `work` leaves the revision out of the reply.
    ///
    /// # Errors
    /// As of [`Service::write`]; [`CoreError::KeyReused`] for an idempotency key that was used with another request.
    pub(crate) async fn write_once<R: OnceReply>(
        &self,
        call: &Call,
        once: Once,
        work: impl Fn(&mut StoreTransaction<'_>, &Context) -> Result<R, CoreError> + Send + Sync + 'static,
    ) -> Result<R, ApiError> {
        let done = self.write(call, move |tx, context| match once.recall(tx, context)? {
            Some(answered) => Ok((answered.value, Some(answered.revision))),
            None => {
                let reply = work(tx, context)?;
                once.keep(tx, context, &reply)?;
                Ok((reply, None))
            }
        });
        let Committed { value: (reply, revision), revision: committed } = done.await?;
        Ok(reply.at(revision.unwrap_or(committed)))
    }

    /// Admits a call that is to take effect once, before what is costly or would fail the second time: `Break` with
    /// the answer that it had, if it took effect, and else `Continue` with what `work` reads in the same view.
    ///
    /// # Errors
    /// As of [`Service::read`]; [`CoreError::KeyReused`] for an idempotency key that was used with another request.
    pub(crate) async fn unless_answered<R: OnceReply, T: Send + 'static>(
        &self,
        call: &Call,
        once: &Once,
        work: impl FnOnce(&mut View<'_>, &Context) -> Result<T, CoreError> + Send + 'static,
    ) -> Result<ControlFlow<R, T>, ApiError> {
        let once = once.clone();
        let read = self.read(call, move |view, context| match once.recall(view, context)? {
            Some(Committed { value, revision }) => Ok(ControlFlow::Break(OnceReply::at(value, revision))),
            None => work(view, context).map(ControlFlow::Continue),
        });
        read.await
    }

    /// As [`Service::write`], for a decision that is audited in the transaction also when it is a refusal.
    ///
    /// # Errors
    /// As of [`Service::write`], and the refusal.
    pub(crate) async fn decide<T: Send + 'static>(
        &self,
        call: &Call,
        work: impl Fn(&mut StoreTransaction<'_>, &Context) -> Result<Verdict<T>, CoreError>
        + Send
        + Sync
        + 'static,
    ) -> Result<T, ApiError> {
        let ticket = self.refusals.reserve(&call.credential);
        let origin = Origin { refusals: ticket.mode(), ..call.origin.clone() };
        match self.write(&Call { origin, ..call.clone() }, work).await {
            Ok(decided) => Ok(ticket.settle(decided.value)?),
            Err(error) => {
                // After any other failure it may be in the log.
                if matches!(error, ApiError::Core(_)) {
                    ticket.unused();
                }
                Err(error)
            }
        }
    }

    /// Appends the audit record of a refusal alone: of a login that failed, of a denial; or counts it, when there are too
    /// many, or it cannot be written. Never put a secret into `fields`.
    ///
    /// # Errors
    /// [`ApiError::Store`].
    pub(crate) async fn audit(
        &self,
        call: &Call,
        event: EventType,
        target: String,
        fields: Vec<(&'static str, String)>,
    ) -> Result<(), ApiError> {
        let ticket = self.refusals.reserve(&call.credential);
        let mut admission = self.admission(call);
        admission.origin.refusals = ticket.mode();
        if ticket.mode() != Mode::Counted {
            let store = self.store(call);
            let done = store.transact(move |tx| {
                let context = admission.suspect(tx)?;
                audit::append_refusal(tx, &context, event, target.clone(), &fields);
                Ok::<_, CoreError>(())
            });
            if let Err(error) = done.await {
                ticket.lost();
                return Err(error.into());
            }
        }
        ticket.refused();
        Ok(())
    }

    /// Audits a denial. What a public method denies has an event of its own, which its handler writes.
    async fn refusals_audited<T>(
        &self,
        call: &Call,
        result: Result<T, TransactError<CoreError>>,
    ) -> Result<T, ApiError> {
        let public = call.method.classes.contains(&AccessClass::Public);
        if let Err(TransactError::Refused(CoreError::Denied(reason) | CoreError::Locked(reason))) = &result
            && !public
        {
            let target = format!("method:{}", call.method.method);
            let audited =
                self.audit(call, EventType::AccessDenied, target, vec![("reason", reason.clone())]).await;
            if let Err(error) = audited {
                let request_id = call.origin.request_id.as_str();
                tracing::error!(request_id, %error, "a denial could not be audited");
            }
        }
        Ok(result?)
    }
}
