//! Agents that come and go: join tokens as joiners see them, host certificates, the registry.

use std::time::Duration;

use auth_core::{
    CoreError,
    audit::EventType,
    join::{self, HostCertRequest, HostCerts},
    names::AgentId,
    node,
    presence::Report,
    registration::{self, Registered},
    secret::{SecretDigest, SecretKind},
    token,
};
use mezite_proto::v1;
use zeroize::Zeroizing;

use super::{convert, tokens, trust};
use crate::{authn::Call, error::ApiError, service::Service};

/// Longest secret of a token that is looked at, in bytes.
const MAX_SECRET: usize = 256;

/// The digest of a join token's secret. The text is wiped.
fn secret(text: String) -> Result<SecretDigest, CoreError> {
    let text = Zeroizing::new(text);
    if text.len() > MAX_SECRET {
        return Err(CoreError::invalid("token", "it is too long to be a join token"));
    }
    Ok(SecretDigest::of(SecretKind::JoinToken, &text))
}

/// Tells whether a join token would be accepted now, without using it.
pub(crate) async fn validate_token(
    service: &Service,
    call: &Call,
    request: v1::ValidateJoinTokenRequest,
) -> Result<v1::ValidateJoinTokenResponse, ApiError> {
    let secret = secret(request.token)?;
    let row = service.decide(call, move |tx, context| token::validate(tx, context, secret)).await?;
    Ok(v1::ValidateJoinTokenResponse {
        kind: tokens::kind(&row).into(),
        expires_at: Some(convert::timestamp(row.expires_at_ms)),
    })
}

/// Issues an agent's certificates, against a join token or by its own certificate.
pub(crate) async fn generate_host_certs(
    service: &Service,
    call: &Call,
    request: v1::GenerateHostCertsRequest,
) -> Result<v1::GenerateHostCertsResponse, ApiError> {
    let secret = match request.token.is_empty() {
        true => None,
        false => Some(secret(request.token)?),
    };
    let asked = HostCertRequest::new(
        &request.ssh_public_key,
        request.tls_public_key.into(),
        &request.hostname,
        &request.additional_principals,
        convert::serial(),
    )?;
    let fresh = AgentId::from_random(rand::random());
    let decided = service.decide(call, move |tx, context| join::certify(tx, context, secret, &asked, &fresh));
    sign(service, decided.await?)
}

/// Signs what was decided, now that it is committed.
pub(super) fn sign(service: &Service, certs: HostCerts) -> Result<v1::GenerateHostCertsResponse, ApiError> {
    let ssh_certificate = match &certs.ssh {
        Some(spec) => service.cas.ssh(&certs.host_ca)?.sign_host(spec)?,
        None => String::new(),
    };
    let (tls_certificate, end) = service.cas.leaf(&certs.tls_ca, certs.tls)?;
    Ok(v1::GenerateHostCertsResponse {
        agent_id: certs.agent_id.into(),
        ssh_certificate,
        tls_certificate,
        trust_bundle: Some(trust::reply(certs.trust)?),
        expires_at: Some(convert::timestamp(end.saturating_mul(1000).min(certs.expires_at_ms))),
    })
}

/// Enters an agent in the registry.
pub(crate) async fn register(
    service: &Service,
    call: &Call,
    request: v1::RegisterAgentRequest,
) -> Result<v1::RegisterAgentResponse, ApiError> {
    let secret = secret(request.token)?;
    let report = Report::new(request.version, request.labels, request.address, 0)?;
    let entered =
        service.decide(call, move |tx, context| registration::register(tx, context, secret, &report));
    registered(service, call, entered.await?).await
}

/// What an agent is told that is in the registry.
pub(super) async fn registered(
    service: &Service,
    call: &Call,
    registered: Registered,
) -> Result<v1::RegisterAgentResponse, ApiError> {
    let ttl = service.settings.presence_ttl;
    let ingest_addresses = service.read_local(call, move |view| node::live_ingests(view, ttl)).await?;
    Ok(v1::RegisterAgentResponse {
        agent_id: registered.agent_id.into(),
        cluster_name: registered.cluster_name,
        ingest_addresses,
        heartbeat_interval: Some(convert::duration_out(with_jitter(service.settings.heartbeat_interval))),
    })
}

/// Removes the calling agent from the cluster.
pub(crate) async fn deregister(
    service: &Service,
    call: &Call,
    request: v1::DeregisterAgentRequest,
) -> Result<v1::DeregisterAgentResponse, ApiError> {
    let named = match request.agent_id.as_str() {
        "" => None,
        id => Some(AgentId::parse("agent_id", id)?),
    };
    let removed =
        service.write(call, move |tx, context| node::remove(tx, context, named.as_ref())).await.map(drop);
    audited(service, call, removed).await?;
    Ok(v1::DeregisterAgentResponse {})
}

/// Audits a denial by a public method whose transaction has not.
pub(super) async fn audited<T>(
    service: &Service,
    call: &Call,
    result: Result<T, ApiError>,
) -> Result<T, ApiError> {
    if let Err(ApiError::Core(refusal @ (CoreError::Denied(_) | CoreError::NotRegistered))) = &result {
        let target = format!("method:{}", call.method.method);
        service.audit(call, EventType::AccessDenied, target, vec![("reason", refusal.to_string())]).await?;
    }
    result
}

/// A wait of nine to eleven tenths of this, so that agents that began together do not stay together.
pub(super) fn with_jitter(interval: Duration) -> Duration {
    interval.mul_f64(rand::random_range(0.9..=1.1))
}

#[cfg(test)]
mod tests {
    use auth_core::audit::UNRECORDED;
    use tonic::Code;

    use super::*;
    use crate::{
        refusals::BURST,
        rpc::testing::{Node, anonymous, with},
    };

    /// How many refusals the records of an event tell of: each of itself, and of those that were not recorded.
    async fn told(node: &Node, event: &str) -> (usize, u64) {
        let records = node.audited(event).await;
        let beside = records.iter().filter_map(|row| row.fields.get(UNRECORDED)?.parse::<u64>().ok());
        (records.len(), records.len() as u64 + beside.sum::<u64>())
    }

    async fn refused(node: &Node) {
        let request = v1::ValidateJoinTokenRequest { token: "wrong".into() };
        let answer = validate_token(&node.service, &anonymous("ValidateJoinToken"), request).await;
        assert_eq!(answer.unwrap_err().code(), Code::PermissionDenied);
    }

    #[tokio::test]
    async fn strangers_do_not_fill_the_audit_log_and_it_says_that_there_was_more() {
        let node = Node::start().await;
        let begun = std::time::Instant::now();
        let mut made = 3 * u64::from(BURST);
        futures::future::join_all((0..made).map(|_| refused(&node))).await;
        let most = u64::from(BURST) + 10 * (begun.elapsed().as_secs() + 1);
        let (records, _) = told(&node, "agent.join.denied").await;
        assert!((u64::from(BURST)..=most).contains(&(records as u64)), "{records} of {made}");
        // Once another is recorded, every one is accounted for.
        while told(&node, "agent.join.denied").await.1 != made {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "{:?}",
                told(&node, "agent.join.denied").await
            );
            tokio::time::sleep(Duration::from_millis(150)).await;
            refused(&node).await;
            made += 1;
        }
        // What users are denied has a bound of its own.
        let boss = node.boss().await;
        let (call, denied) = (with(&boss, "AgentHeartbeat"), CoreError::Denied("no".into()));
        audited::<()>(&node.service, &call, Err(denied.into())).await.unwrap_err();
        assert_eq!(told(&node, "access.denied").await, (1, 1));
    }

    #[test]
    fn waits_are_spread_around_the_interval() {
        let waits: std::collections::BTreeSet<_> =
            (0..50).map(|_| with_jitter(Duration::from_secs(10))).collect();
        assert!(waits.len() > 10);
        assert!(waits.iter().all(|wait| (9.0..=11.0).contains(&wait.as_secs_f64())), "{waits:?}");
    }

    #[test]
    fn a_secret_is_bounded_and_of_its_kind() {
        assert_eq!(secret("x".into()).unwrap(), SecretDigest::of(SecretKind::JoinToken, "x"));
        assert!(secret("x".repeat(256)).is_ok() && secret("x".repeat(257)).is_err());
    }
}
