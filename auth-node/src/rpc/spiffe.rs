//! SPIFFE: trust domains whose workloads are let in, SVIDs that are shown, and SVIDs that are issued.

use auth_core::{
    CoreError, Credential,
    names::SessionHandle,
    secret::{SecretDigest, SecretKind},
    session::{Listed, NewSession},
    spiffe::{self, Attempt, IssuedSvid, NewSpiffeDomain, SpiffeDomain, TrustDomain},
    tables::{AuthMethod, SpiffeBundleRow, SpiffeEndpointRow},
};
use mezite_proto::v1::{self, authenticate_spiffe_request::Svid};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use store_txn::UnixMillis;
use zeroize::Zeroizing;

use super::{convert, sessions};
use crate::{
    authn::Call,
    error::ApiError,
    once::Once,
    passwords,
    service::Service,
    spiffe::{bundle, jwt, x509},
};

/// Most bytes of certificates, PEM.
const MAX_CERTIFICATES: usize = 64 << 10;

/// What a workload shows.
enum Shown {
    /// A token.
    Jwt(Zeroizing<String>),
    /// What TLS has let in: its own certificate first. Its key was proved there.
    X509(Vec<Vec<u8>>),
}

impl Shown {
    fn of(request: v1::AuthenticateSpiffeRequest, call: &Call) -> Result<Self, CoreError> {
        match request.svid {
            Some(Svid::Jwt(token)) => {
                let token = Zeroizing::new(token);
                if token.len() > jwt::MAX_TOKEN {
                    let reason = format!("a JWT-SVID has at most {} bytes", jwt::MAX_TOKEN);
                    return Err(CoreError::invalid("jwt", reason));
                }
                Ok(Self::Jwt(token))
            }
            Some(Svid::X509(true)) => match &call.credential {
                Credential::Svid(chain) => Ok(Self::X509(chain.clone())),
                _ => Err(CoreError::Unauthenticated(
                    "show the X.509-SVID as the client certificate of the connection, and no session",
                )),
            },
            Some(Svid::X509(false)) | None => {
                Err(CoreError::invalid("svid", "a JWT-SVID, or x509 for the client certificate"))
            }
        }
    }

    /// The trust domain that it says it is of.
    fn domain(&self) -> Result<TrustDomain, String> {
        match self {
            Self::Jwt(token) => jwt::trust_domain(token),
            Self::X509(chain) => x509::trust_domain(chain),
        }
    }

    fn verify(
        &self,
        domain: &Result<TrustDomain, String>,
        audience: &str,
        bundle: &SpiffeBundleRow,
        now: UnixMillis,
    ) -> Result<spiffe::Attested, String> {
        let domain = domain.as_ref().map_err(Clone::clone)?;
        match self {
            Self::Jwt(token) => jwt::verify(token, domain, bundle, audience),
            Self::X509(chain) => x509::verify(chain, bundle, now),
        }
    }
}

/// Exchanges an SVID for a session. It is verified in the transaction that makes the session, by the bundle that is known there.
pub(crate) async fn authenticate(
    service: &Service,
    call: &Call,
    request: v1::AuthenticateSpiffeRequest,
) -> Result<v1::AuthenticateSpiffeResponse, ApiError> {
    let _place = service.identities.take(passwords::network(&call.origin.client_address))?;
    let shown = Shown::of(request, call)?;
    // The request is its own credential.
    let call = &Call { credential: Credential::None, ..call.clone() };
    let (domain, audience) = (shown.domain(), jwt::audience(&service.settings.cluster));
    let id = convert::secret();
    let new = NewSession {
        digest: SecretDigest::of(SecretKind::Session, &id),
        handle: SessionHandle::from_random(rand::random()),
        method: AuthMethod::Spiffe,
    };
    let decide = service.decide(call, move |tx, context| {
        let verify = |bundle: &SpiffeBundleRow, now| shown.verify(&domain, &audience, bundle, now);
        let attempt = Attempt { domain: domain.clone().ok(), verify: &verify, new: new.clone() };
        spiffe::authenticate(tx, context, &attempt)
    });
    let session = decide.await?;
    let last_used_ms = session.created_at_ms;
    let session = sessions::session(Listed { session, last_used_ms });
    Ok(v1::AuthenticateSpiffeResponse { session_id: id.as_str().to_owned(), session: Some(session) })
}

/// Issues an SVID of the cluster's own trust domain to the caller.
pub(crate) async fn issue(
    service: &Service,
    call: &Call,
    request: v1::IssueSvidRequest,
) -> Result<v1::IssueSvidResponse, ApiError> {
    let key: Vec<u8> = request.public_key.into();
    let issue = service.write(call, move |tx, context| spiffe::issue(tx, context, key.clone()));
    let IssuedSvid { spiffe_id, spec, ca, bundle, expires_at_ms } = issue.await?.value;
    let (certificate, end) = service.cas.svid(&ca, spec)?;
    Ok(v1::IssueSvidResponse {
        spiffe_id: spiffe_id.as_str().to_owned(),
        certificate,
        bundle: bundle.concat(),
        expires_at: Some(convert::timestamp(end.saturating_mul(1000).min(expires_at_ms))),
    })
}

/// Lets the workloads of a trust domain in.
pub(crate) async fn create(
    service: &Service,
    call: &Call,
    request: v1::CreateSpiffeDomainRequest,
) -> Result<v1::CreateSpiffeDomainResponse, ApiError> {
    let once = Once::of(call, &request);
    let (new, _) = parse(request.domain)?;
    let create = service.write_once(call, once, move |tx, context| {
        let made = spiffe::create(tx, context, &new)?;
        Ok(v1::CreateSpiffeDomainResponse { domain: Some(reply(made)) })
    });
    create.await
}

/// Replaces where the bundle of a trust domain comes from, and the bundle.
pub(crate) async fn update(
    service: &Service,
    call: &Call,
    request: v1::UpdateSpiffeDomainRequest,
) -> Result<v1::UpdateSpiffeDomainResponse, ApiError> {
    let once = Once::of(call, &request);
    let (new, revision) = parse(request.domain)?;
    let update = service.write_once(call, once, move |tx, context| {
        let updated = spiffe::update(tx, context, &new, revision)?;
        Ok(v1::UpdateSpiffeDomainResponse { domain: Some(reply(updated)) })
    });
    update.await
}

/// Lets the workloads of a trust domain in no more.
pub(crate) async fn delete(
    service: &Service,
    call: &Call,
    request: v1::DeleteSpiffeDomainRequest,
) -> Result<v1::DeleteSpiffeDomainResponse, ApiError> {
    let name = TrustDomain::parse("trust_domain", &request.trust_domain)?;
    service.write(call, move |tx, context| spiffe::delete(tx, context, &name)).await?;
    Ok(v1::DeleteSpiffeDomainResponse {})
}

/// Answers one trust domain.
pub(crate) async fn get(
    service: &Service,
    call: &Call,
    request: v1::GetSpiffeDomainRequest,
) -> Result<v1::GetSpiffeDomainResponse, ApiError> {
    let name = TrustDomain::parse("trust_domain", &request.trust_domain)?;
    let found = service.read(call, move |view, _| spiffe::get(view, &name)).await?;
    Ok(v1::GetSpiffeDomainResponse { domain: Some(reply(found)) })
}

/// Lists trust domains, ordered by name.
pub(crate) async fn list(
    service: &Service,
    call: &Call,
    request: v1::ListSpiffeDomainsRequest,
) -> Result<v1::ListSpiffeDomainsResponse, ApiError> {
    let page = convert::page(request.page_size, &request.page_token)?;
    let page = service.read(call, move |view, _| spiffe::list(view, &page)).await?.map(reply);
    Ok(v1::ListSpiffeDomainsResponse { domains: page.items, next_page_token: convert::page_token(page.next) })
}

/// What a request wants a trust domain to be, and its revision.
fn parse(domain: Option<v1::SpiffeDomain>) -> Result<(NewSpiffeDomain, u64), CoreError> {
    let domain = domain.ok_or_else(|| CoreError::invalid("domain", "it is needed"))?;
    let bundle = match domain.bundle.as_str() {
        "" => None,
        document => {
            let read = bundle::read(document.as_bytes());
            Some(read.map_err(|reason| CoreError::invalid("domain.bundle", reason))?)
        }
    };
    let endpoint = domain.endpoint.map(endpoint_in).transpose()?;
    Ok((NewSpiffeDomain::new(&domain.trust_domain, endpoint, bundle)?, domain.revision))
}

fn endpoint_in(endpoint: v1::SpiffeBundleEndpoint) -> Result<SpiffeEndpointRow, CoreError> {
    if endpoint.web_ca_certificates.len() > MAX_CERTIFICATES {
        let reason = format!("at most {MAX_CERTIFICATES} bytes");
        return Err(CoreError::invalid("domain.endpoint.web_ca_certificates", reason));
    }
    let certificates = CertificateDer::pem_slice_iter(endpoint.web_ca_certificates.as_bytes());
    let certificates: Result<Vec<_>, _> = certificates.collect();
    let certificates = certificates.unwrap_or_default();
    if certificates.is_empty() && !endpoint.web_ca_certificates.is_empty() {
        let reason = "certificates in PEM";
        return Err(CoreError::invalid("domain.endpoint.web_ca_certificates", reason));
    }
    Ok(SpiffeEndpointRow {
        url: endpoint.url,
        spiffe_id: endpoint.spiffe_id,
        web_authorities: certificates.iter().map(|der| mezite_pki::x509::certificate_pem(der)).collect(),
    })
}

fn reply(domain: SpiffeDomain) -> v1::SpiffeDomain {
    let good_until_ms = domain.good_until_ms();
    let SpiffeDomain { name, row, bundle, refresh, revision } = domain;
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let fetched = row.endpoint.is_some();
    v1::SpiffeDomain {
        trust_domain: name.to_string(),
        bundle: String::new(),
        endpoint: row.endpoint.map(|endpoint| v1::SpiffeBundleEndpoint {
            url: endpoint.url,
            spiffe_id: endpoint.spiffe_id,
            web_ca_certificates: endpoint.web_authorities.concat(),
        }),
        x509_authorities: count(bundle.x509_authorities.len()),
        jwt_authorities: count(bundle.jwt_authorities.len()),
        sequence: bundle.sequence,
        refreshed_at: (fetched && refresh.tried_at_ms != 0)
            .then(|| convert::timestamp(refresh.refreshed_at_ms)),
        refresh_error: refresh.error,
        bundle_good_until: good_until_ms.map(convert::timestamp),
        created_at: Some(convert::timestamp(row.created_at_ms)),
        created_by: row.created_by,
        revision,
    }
}

#[cfg(test)]
#[path = "spiffe_tests.rs"]
mod tests;
