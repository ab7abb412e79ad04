//! The client: one call, carried out at whichever address serves it.

use std::{fmt, sync::Arc, time::Duration};

use mezite_proto::{MAX_REPLY, v1};
use tokio::time::Instant;
use tonic::{Response, Status, service::interceptor::InterceptedService, transport::Channel};

use crate::{
    AuthClient, CallMetadata, ClientError, ClientIdentity, ClusterTrust, Retry, RetryPolicy, SessionSecret,
    StatusError, Target,
    failure::Failure,
    parse_addresses,
    pool::{Choice, Pool, Tried},
    retry::{ONCE_WINDOW, Verdict, is_doubtful, judge, settles},
    session::IdempotencyKey,
    tls,
};

/// Largest message that is sent, in bytes: what servers accept.
const MAX_MESSAGE: usize = 4 << 20;

/// What a [`Client`] is made of.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// host:port of auth nodes, asked in this order.
    pub addresses: Vec<String>,
    /// Which cluster it is.
    pub trust: ClusterTrust,
    /// Client certificate, for agents and ingests.
    pub identity: Option<ClientIdentity>,
    /// Session, for users.
    pub session: Option<SessionSecret>,
    /// Bounds and repetitions.
    pub policy: RetryPolicy,
}

impl ClientConfig {
    /// Of a cluster's addresses, without a credential.
    #[must_use]
    pub fn new(addresses: Vec<String>, trust: ClusterTrust) -> Self {
        Self { addresses, trust, identity: None, session: None, policy: RetryPolicy::default() }
    }
}

/// A client of the cluster. It connects when it is first used; clones share their connections.
#[derive(Clone)]
pub struct Client {
    pool: Arc<Pool>,
    trust: Option<ClusterTrust>,
    session: Option<SessionSecret>,
    policy: RetryPolicy,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("addresses", &self.addresses()).field("policy", &self.policy).finish()
    }
}

impl Client {
    /// Sets a client up; nothing is connected yet.
    ///
    /// # Errors
    /// [`ClientError::Config`] when an address, the trust or the client certificate cannot be used.
    pub fn new(config: ClientConfig) -> Result<Self, ClientError> {
        let tls = tls::config(&config.trust, config.identity.as_ref())?;
        let targets = config.trust.auth_targets(&parse_addresses(&config.addresses)?)?;
        Ok(Self {
            pool: Arc::new(Pool::new(targets, tls)),
            trust: Some(config.trust),
            session: config.session,
            policy: config.policy,
        })
    }

    /// A client that trusts as `tls` says; for the first contact alone.
    pub(crate) fn for_first_contact(
        targets: Vec<Target>,
        tls: Arc<rustls::ClientConfig>,
        policy: RetryPolicy,
    ) -> Self {
        Self { pool: Arc::new(Pool::new(targets, tls)), trust: None, session: None, policy }
    }

    /// A client for the recording RPCs, with the same credentials: it asks the ingests, and the auth nodes, which
    /// relay, only while no ingest can be used.
    ///
    /// # Errors
    /// [`ClientError::Config`] when an address cannot be used.
    pub fn for_recordings(&self, ingest_addresses: &[String]) -> Result<Self, ClientError> {
        let mut targets = match &self.trust {
            Some(trust) if !ingest_addresses.is_empty() => {
                trust.ingest_targets(&parse_addresses(ingest_addresses)?)?
            }
            _ => Vec::new(),
        };
        // The auth nodes are the highest tier there is, also in a client that was made by this method before.
        let relay_tier = self.pool.targets().map(|target| target.tier).max().unwrap_or_default();
        let relays = self.pool.targets().filter(|target| target.tier == relay_tier);
        targets.extend(relays.map(|target| Target { tier: 1, ..target.clone() }));
        let pool = Arc::new(Pool::new(targets, Arc::clone(self.pool.tls())));
        Ok(Self { pool, ..self.clone() })
    }

    /// The same connections with another session, or none.
    #[must_use]
    pub fn with_session(&self, session: Option<SessionSecret>) -> Self {
        Self { session, ..self.clone() }
    }

    /// The same connections with other bounds.
    #[must_use]
    pub fn with_policy(&self, policy: RetryPolicy) -> Self {
        Self { policy, ..self.clone() }
    }

    /// The bounds.
    #[must_use]
    pub fn policy(&self) -> &RetryPolicy {
        &self.policy
    }

    /// The cluster that it trusts; `None` during the first contact alone.
    #[must_use]
    pub fn trust(&self) -> Option<&ClusterTrust> {
        self.trust.as_ref()
    }

    /// Whether it is a clone of the other, or was made of one with other bounds or another session.
    #[must_use]
    pub fn shares_connections_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.pool, &other.pool)
    }

    /// The addresses, in order.
    #[must_use]
    pub fn addresses(&self) -> Vec<&str> {
        self.pool.targets().map(Target::address).collect()
    }

    /// Stops asking the address that served last, for a while: it said that it is leaving.
    pub fn leave_last_server(&self) {
        self.pool.leave_last_good(Instant::now());
    }

    /// Tells which cluster it is, and where recordings may be sent.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn ping(&self) -> Result<v1::PingResponse, ClientError> {
        let ping = |mut auth: AuthClient, request| async move { auth.ping(request).await };
        self.call(Retry::Idempotent, v1::PingRequest {}, ping).await
    }

    /// Answers the public side of the cluster's CAs.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn trust_bundle(&self) -> Result<v1::GetTrustBundleResponse, ClientError> {
        let get = |mut auth: AuthClient, request| async move { auth.get_trust_bundle(request).await };
        self.call(Retry::Idempotent, v1::GetTrustBundleRequest {}, get).await
    }

    /// Calls a method: `client.call(retry, request, |mut auth, request| async move { auth.foo(request).await })`.
    ///
    /// The closure runs once per attempt, with the stub of the address chosen for it. `retry` says what may be
    /// repeated, and how; the client's [`RetryPolicy`] bounds it.
    ///
    /// # Errors
    /// [`ClientError::Status`] when the server answers an error; [`ClientError::Unavailable`] and
    /// [`ClientError::Untrusted`] when no address could serve it; [`ClientError::OutcomeUnknown`] when a
    /// [`Retry::Once`] may have taken effect, and no attempt has told whether it did.
    pub async fn call<R, T, F, Fut>(&self, retry: Retry, request: R, f: F) -> Result<T, ClientError>
    where
        R: Clone,
        F: Fn(AuthClient, R) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let mut course = Course::new(self, &retry);
        loop {
            let index = course.next().await?;
            let attempt = self.attempt(index, &course, request.clone(), &f).await;
            match attempt {
                Ok(reply) => {
                    self.pool.succeeded(index);
                    return Ok(reply);
                }
                Err(failure) => course.failed(index, failure)?,
            }
        }
    }

    async fn attempt<R, T, F, Fut>(
        &self,
        index: usize,
        course: &Course<'_>,
        request: R,
        f: &F,
    ) -> Result<T, Failure>
    where
        F: Fn(AuthClient, R) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let connection =
            self.pool.connection(index, self.policy.connect_timeout.min(course.remaining())).await?;
        let timeout = self.policy.call_timeout.min(course.remaining());
        let metadata = CallMetadata { session: self.session.clone(), key: course.key.clone(), timeout };
        let call = f(stub(connection.channel.clone(), metadata), request);
        let failure = match tokio::time::timeout(timeout, call).await {
            Ok(Ok(reply)) => return Ok(reply.into_inner()),
            Ok(Err(status)) => Failure::from(status),
            Err(_) => Failure::TimedOut,
        };
        if matches!(failure, Failure::Broken(_) | Failure::NotSent(_) | Failure::Untrusted(_)) {
            self.pool.disconnect(index, &connection).await;
        }
        Err(failure)
    }
}

fn stub(channel: Channel, metadata: CallMetadata) -> AuthClient {
    AuthClient::new(InterceptedService::new(channel, metadata))
        .max_decoding_message_size(MAX_REPLY)
        .max_encoding_message_size(MAX_MESSAGE)
}

/// One call on its way: what was tried, and how long it may go on.
struct Course<'a> {
    client: &'a Client,
    retry: &'a Retry,
    /// Of a call that must not take effect twice: the same in all attempts.
    key: Option<IdempotencyKey>,
    tried: Vec<Tried>,
    deadline: Instant,
    attempts: u32,
    /// An attempt may have taken effect.
    doubtful: bool,
    /// The last one at each address, in the order in which they came.
    failures: Vec<(usize, Failure)>,
}

impl<'a> Course<'a> {
    fn new(client: &'a Client, retry: &'a Retry) -> Self {
        let tried = client.pool.targets().map(|_| Tried::default()).collect();
        let (key, longest) = match retry {
            Retry::Idempotent => (None, Duration::MAX),
            Retry::Keyed(key) => (Some(key.clone()), Duration::MAX),
            Retry::Once { .. } => (Some(IdempotencyKey::random()), ONCE_WINDOW),
        };
        let deadline = Instant::now() + client.policy.overall_timeout.min(longest);
        Self { client, retry, key, tried, deadline, attempts: 0, doubtful: false, failures: Vec::new() }
    }

    fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// The address to ask now, after waiting if there must be a wait.
    async fn next(&mut self) -> Result<usize, ClientError> {
        loop {
            let now = Instant::now();
            match self.client.pool.choose(&self.tried, now) {
                Choice::Ask(index) if now < self.deadline => {
                    self.attempts += 1;
                    return Ok(index);
                }
                Choice::Wait(until) if until < self.deadline => tokio::time::sleep_until(until).await,
                Choice::Ask(_) | Choice::Wait(_) | Choice::Exhausted => return Err(self.give_up()),
            }
        }
    }

    /// Takes note of a failure, or ends the call with it.
    fn failed(&mut self, index: usize, failure: Failure) -> Result<(), ClientError> {
        let now = Instant::now();
        let pool = &self.client.pool;
        let verdict = judge(self.retry, &failure);
        tracing::debug!(
            address = pool.address(index),
            reason = failure.reason(),
            ?verdict,
            "an attempt failed"
        );
        match verdict {
            Verdict::Fail => pool.succeeded(index),
            Verdict::Exclude | Verdict::MoveOn(_) => pool.failed(index, now),
        }
        self.note(index, verdict, now);
        let result = match (verdict, &failure) {
            (Verdict::Fail, Failure::Answered(status)) if !self.doubtful || settles(status) => {
                Err(self.answered(status))
            }
            (Verdict::Fail, Failure::Answered(status)) => {
                Err(self.unknown(&failure).unwrap_or_else(|| self.answered(status)))
            }
            _ => Ok(()),
        };
        self.doubtful |= is_doubtful(&failure);
        self.failures.retain(|(at, _)| *at != index);
        self.failures.push((index, failure));
        result
    }

    fn answered(&self, status: &StatusError) -> ClientError {
        ClientError::Status(Box::new(StatusError { repeated: self.doubtful, ..status.clone() }))
    }

    /// What is to be said at the end of a call that may have taken effect, where that matters.
    fn unknown(&self, failure: &Failure) -> Option<ClientError> {
        let check = self.retry.check()?.to_owned();
        Some(ClientError::OutcomeUnknown { check, reason: failure.reason() })
    }

    fn note(&mut self, index: usize, verdict: Verdict, now: Instant) {
        let policy = &self.client.policy;
        if let Some(tried) = self.tried.get_mut(index) {
            tried.attempts += 1;
            tried.exhausted |= verdict == Verdict::Exclude || tried.attempts >= policy.attempts_per_address;
            let usual = policy.backoff(tried.attempts, rand::random());
            if let Verdict::MoveOn(wait) = verdict {
                // A hint of the server's is the least; the jitter keeps its clients from coming back together.
                tried.not_before = Some(now + wait.map_or(usual, |wait| wait + usual / 4));
            }
        }
    }

    fn give_up(&mut self) -> ClientError {
        // Of those that tell as much, the last one.
        let telling =
            std::mem::take(&mut self.failures).into_iter().max_by_key(|(_, failure)| failure.tells());
        if self.doubtful
            && let Some((_, failure)) = &telling
            && let Some(unknown) = self.unknown(failure)
        {
            return unknown;
        }
        let addresses = self.client.addresses().join(", ");
        match telling {
            Some((index, Failure::Untrusted(reason))) => {
                ClientError::Untrusted { address: self.client.pool.address(index).to_owned(), reason }
            }
            Some((_, Failure::Answered(status))) if status.code != tonic::Code::Unavailable => {
                self.answered(&status)
            }
            Some((_, failure)) => ClientError::Unavailable {
                addresses,
                attempts: self.attempts,
                retry_after: match &failure {
                    Failure::Answered(status) => status.retry_after,
                    _ => None,
                },
                reason: failure.reason(),
            },
            None => ClientError::Unavailable {
                addresses,
                attempts: self.attempts,
                reason: "there was no time for an attempt".into(),
                retry_after: None,
            },
        }
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
