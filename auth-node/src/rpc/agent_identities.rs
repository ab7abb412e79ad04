//! Agent identities, and the credentials that they get.

use std::collections::BTreeSet;

use auth_core::{
    CoreError, Credential,
    agent_identity::{self, AgentIdentity, CredentialRequest, Credentials, Fresh, NewSecret, Shown, Wanted},
    evaluate::Traits,
    issue::Candidates,
    names::{IdentityName, LockId, RoleName, SessionHandle},
    repeat::IdempotencyKey,
    secret::{SecretDigest, SecretKind},
    tables::StringsRow,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use mezite_proto::v1;
use zeroize::Zeroizing;

use super::{convert, trust};
use crate::{
    authn::Call,
    error::ApiError,
    once::Once,
    passwords,
    places::{Place, Room},
    service::Service,
};

/// Longest name that is looked at, in bytes: far longer than any, in whatever spelling.
const MAX_SPELLING: usize = 1024;
/// Longest secret that is looked at, in bytes.
const MAX_SECRET: usize = 256;
/// From what the id of a session is derived, beside the idempotency key of the call that makes it.
const SESSION_DOMAIN: &[u8] = b"mezite agent identity session\0";

/// Requests for credentials that are worked on at a time: they sign, and look through all nodes.
pub(crate) const ROOM: Room = Room {
    most: 64,
    each: 16,
    full: "too many agent identities ask for credentials at a time",
    own_full: "too many agent identities of your network ask for credentials at a time",
    measure: |_| (),
};

/// Creates an agent identity. Its bootstrap secret is in the reply and nowhere else.
pub(crate) async fn create(
    service: &Service,
    call: &Call,
    request: v1::CreateAgentIdentityRequest,
) -> Result<v1::CreateAgentIdentityResponse, ApiError> {
    let once = Once::of(call, &request);
    let (wanted, _) = parse(request.identity)?;
    let (secret, text) = new_secret(request.bootstrap_ttl)?;
    let create = service.write_once(call, once, move |tx, context| {
        let made = agent_identity::create(tx, context, &wanted, &secret)?;
        let bootstrap_secret = text.as_str().to_owned();
        Ok(v1::CreateAgentIdentityResponse { identity: Some(reply(made)), bootstrap_secret })
    });
    create.await
}

/// Replaces what an agent identity is; has it begin anew, if that is wanted.
pub(crate) async fn update(
    service: &Service,
    call: &Call,
    request: v1::UpdateAgentIdentityRequest,
) -> Result<v1::UpdateAgentIdentityResponse, ApiError> {
    let once = Once::of(call, &request);
    let (wanted, revision) = parse(request.identity)?;
    if !request.reset && request.bootstrap_ttl.is_some() {
        return Err(CoreError::invalid("bootstrap_ttl", "a bootstrap secret is made by a reset alone").into());
    }
    let secret = request.reset.then(|| new_secret(request.bootstrap_ttl)).transpose()?;
    let update = service.write_once(call, once, move |tx, context| {
        let new = secret.as_ref().map(|(new, _)| new);
        let updated = agent_identity::update(tx, context, &wanted, revision, new)?;
        let bootstrap_secret = secret.as_ref().map(|(_, text)| text.as_str().to_owned()).unwrap_or_default();
        Ok(v1::UpdateAgentIdentityResponse { identity: Some(reply(updated)), bootstrap_secret })
    });
    update.await
}

/// Deletes an agent identity, and ends what it has.
pub(crate) async fn delete(
    service: &Service,
    call: &Call,
    request: v1::DeleteAgentIdentityRequest,
) -> Result<v1::DeleteAgentIdentityResponse, ApiError> {
    let name = IdentityName::parse("name", &request.name)?;
    let deleted = service.write(call, move |tx, context| agent_identity::delete(tx, context, &name)).await?;
    Ok(v1::DeleteAgentIdentityResponse { sessions_ended: deleted.value })
}

/// Answers one agent identity.
pub(crate) async fn get(
    service: &Service,
    call: &Call,
    request: v1::GetAgentIdentityRequest,
) -> Result<v1::GetAgentIdentityResponse, ApiError> {
    let name = IdentityName::parse("name", &request.name)?;
    let found = service.read(call, move |view, _| agent_identity::get(view, &name)).await?;
    Ok(v1::GetAgentIdentityResponse { identity: Some(reply(found)) })
}

/// Lists agent identities, ordered by name.
pub(crate) async fn list(
    service: &Service,
    call: &Call,
    request: v1::ListAgentIdentitiesRequest,
) -> Result<v1::ListAgentIdentitiesResponse, ApiError> {
    let page = convert::page(request.page_size, &request.page_token)?;
    let page = service.read(call, move |view, _| agent_identity::list(view, &page)).await?.map(reply);
    Ok(v1::ListAgentIdentitiesResponse {
        identities: page.items,
        next_page_token: convert::page_token(page.next),
    })
}

/// Exchanges a bootstrap secret for the first credentials of an agent identity.
pub(crate) async fn bootstrap(
    service: &Service,
    call: &Call,
    request: v1::BootstrapAgentIdentityRequest,
) -> Result<v1::BootstrapAgentIdentityResponse, ApiError> {
    let secret = Zeroizing::new(request.bootstrap_secret);
    if request.name.len() > MAX_SPELLING {
        return Err(CoreError::invalid("name", "it is too long to be a name").into());
    }
    if secret.len() > MAX_SECRET {
        return Err(CoreError::invalid("bootstrap_secret", "it is too long to be one").into());
    }
    let asked = ask(call, &request.ssh_public_key, request.tls_public_key.into())?;
    let _place = place(service, call)?;
    // The request is its own credential.
    let call = &Call { credential: Credential::None, ..call.clone() };
    // What has no canonical form is nobody's name, and goes the way of all unknown names.
    let name = IdentityName::parse("name", &request.name).ok();
    let secret = SecretDigest::of(SecretKind::Bootstrap, &secret);
    let wanted = asked.clone();
    let found = service.read(call, move |view, context| match agent_identity::holder(view, secret)? {
        Some(name) => agent_identity::candidates(view, context, &name, &wanted),
        None => Ok(Candidates::default()),
    });
    let candidates = found.await?;
    let (fresh, session) = fresh(call.key.as_ref());
    let decide = service.decide(call, move |tx, context| {
        agent_identity::bootstrap(tx, context, name.as_ref(), secret, &asked, &candidates, &fresh)
    });
    let credentials = sign(service, decide.await?, &session)?;
    Ok(v1::BootstrapAgentIdentityResponse { credentials: Some(credentials) })
}

/// Gives an agent identity its next credentials, by the client certificate of the connection.
pub(crate) async fn renew(
    service: &Service,
    call: &Call,
    request: v1::RenewAgentIdentityRequest,
) -> Result<v1::RenewAgentIdentityResponse, ApiError> {
    let asked = ask(call, &request.ssh_public_key, request.tls_public_key.into())?;
    let Credential::AgentIdentity { name, key_digest } = call.credential.clone() else {
        let reason =
            "show the client certificate of the agent identity that is to be renewed, and no session";
        return Err(CoreError::Unauthenticated(reason).into());
    };
    let _place = place(service, call)?;
    let (whose, wanted) = (name.clone(), asked.clone());
    let found = service
        .read(call, move |view, context| agent_identity::candidates(view, context, &whose, &wanted))
        .await?;
    let shown = Shown { name, key_digest, generation: request.generation };
    let (fresh, session) = fresh(call.key.as_ref());
    let decide = service
        .decide(call, move |tx, context| agent_identity::renew(tx, context, &shown, &asked, &found, &fresh));
    let credentials = sign(service, decide.await?, &session)?;
    Ok(v1::RenewAgentIdentityResponse { credentials: Some(credentials) })
}

/// A place of the client's network.
fn place(service: &Service, call: &Call) -> Result<Place, ApiError> {
    service.identities.take(passwords::network(&call.origin.client_address))
}

fn ask(call: &Call, ssh_public_key: &str, tls_public_key: Vec<u8>) -> Result<CredentialRequest, CoreError> {
    CredentialRequest::new(ssh_public_key, tls_public_key, call.key.as_ref(), convert::serial())
}

/// What is random of an answer, and the id of its session: with an idempotency key the same for all repetitions of a call.
fn fresh(key: Option<&IdempotencyKey>) -> (Fresh, Zeroizing<String>) {
    let session = match key {
        Some(key) => {
            let derived = Zeroizing::new(key.derived(SESSION_DOMAIN));
            // Room for everything at once: a string that grows would leave copies.
            let mut text = Zeroizing::new(String::with_capacity(64));
            URL_SAFE_NO_PAD.encode_string(derived.as_slice(), &mut text);
            text
        }
        None => convert::secret(),
    };
    let fresh = Fresh {
        session: SecretDigest::of(SecretKind::Session, &session),
        handle: SessionHandle::from_random(rand::random()),
        serial: convert::serial(),
        lock: LockId::from_random(rand::random()),
    };
    (fresh, session)
}

/// Signs what was decided, now that it is committed.
fn sign(
    service: &Service,
    credentials: Credentials,
    session: &str,
) -> Result<v1::AgentIdentityCredentials, ApiError> {
    let ssh_certificate = match &credentials.ssh {
        Some((spec, user_ca)) => service.cas.ssh(user_ca)?.sign_user(spec)?,
        None => String::new(),
    };
    let (tls_certificate, end) = service.cas.leaf(&credentials.tls_ca, credentials.tls)?;
    let expires_at_ms = end.saturating_mul(1000).min(credentials.expires_at_ms);
    Ok(v1::AgentIdentityCredentials {
        ssh_certificate,
        tls_certificate,
        session_id: session.to_owned(),
        generation: credentials.generation,
        expires_at: Some(convert::timestamp(expires_at_ms)),
        trust_bundle: Some(trust::reply(credentials.trust)?),
        ssh_refusal: credentials.ssh_refusal,
    })
}

/// A new bootstrap secret, and its text.
fn new_secret(ttl: Option<prost_types::Duration>) -> Result<(NewSecret, Zeroizing<String>), CoreError> {
    let ttl = ttl.map(|ttl| convert::duration_in("bootstrap_ttl", ttl)).transpose()?;
    let text = convert::secret();
    Ok((NewSecret::new(SecretDigest::of(SecretKind::Bootstrap, &text), ttl)?, text))
}

/// What a request wants an identity to be, and its revision. Generation, times and who made it are the server's.
fn parse(identity: Option<v1::AgentIdentity>) -> Result<(Wanted, u64), CoreError> {
    let identity = identity.ok_or_else(|| CoreError::invalid("identity", "it is needed"))?;
    let role = |role: &String| RoleName::parse("identity.roles", role);
    let roles: BTreeSet<_> = identity.roles.iter().map(role).collect::<Result<_, _>>()?;
    let values = |strings: v1::Strings| StringsRow { values: strings.values };
    let traits: Traits = identity.traits.into_iter().map(|(name, strings)| (name, values(strings))).collect();
    let max_ttl = identity.max_ttl.map(|ttl| convert::duration_in("identity.max_ttl", ttl)).transpose()?;
    let name = IdentityName::parse("identity.name", &identity.name)?;
    Ok((Wanted::new(name, roles, traits, max_ttl, identity.spiffe_ids)?, identity.revision))
}

fn reply(identity: AgentIdentity) -> v1::AgentIdentity {
    let AgentIdentity { name, row, generation, ends_at_ms, secret_ends_at_ms, revision } = identity;
    let strings = |row: StringsRow| v1::Strings { values: row.values };
    let time = |at_ms: u64| (at_ms != 0).then(|| convert::timestamp(at_ms));
    v1::AgentIdentity {
        name: name.into(),
        roles: row.roles,
        max_ttl: Some(convert::duration_out(std::time::Duration::from_millis(row.max_ttl_ms))),
        traits: row.traits.into_iter().map(|(name, row)| (name, strings(row))).collect(),
        generation,
        bootstrapped: generation != 0,
        spiffe_ids: row.spiffe_ids,
        created_at: Some(convert::timestamp(row.created_at_ms)),
        revision,
        created_by: row.created_by,
        credentials_expire_at: time(ends_at_ms),
        bootstrap_expires_at: time(secret_ends_at_ms),
    }
}

#[cfg(test)]
#[path = "agent_identities_tests.rs"]
mod tests;
