//! Trust domains whose workloads are let in, and the bundles that they are known by.

use mezite_pki::x509::certificate_der;
use prost::Message as _;
use sha2::{Digest, Sha256};
use store_txn::{Read, ReadExt, Transaction, TransactionExt, UnixMillis, Versioned};

use super::id::{SCHEME, SpiffeId, TrustDomain};
use crate::{
    Context, CoreError,
    audit::{self, EventType},
    cluster,
    page::{Page, PageRequest},
    tables::{
        SpiffeBundleKey, SpiffeBundleRow, SpiffeDomainKey, SpiffeDomainRow, SpiffeEndpointRow, SpiffeIdKey,
        SpiffeRefreshKey, SpiffeRefreshRow,
    },
    web,
};

const KIND: &str = "SPIFFE trust domain";
/// Most trust domains.
const MAX_DOMAINS: usize = 64;
/// Most certificates of who vouches for an endpoint's name.
const MAX_WEB_AUTHORITIES: usize = 16;
/// A bundle that is fetched is believed for so long after it was told the last time.
const MAX_AGE_MS: UnixMillis = 24 * 3600 * 1000;
/// Shortest and longest time from one question for a bundle to the next, whatever it says itself, in seconds.
const REFRESH_S: std::ops::RangeInclusive<u64> = 60..=3600;
/// The same, for a bundle that says nothing (SPIFFE Federation, 5.2.1: five minutes).
const DEFAULT_REFRESH_S: u64 = 300;
/// And after a question that had no answer.
const RETRY_S: u64 = 60;
/// Longest text of why there was no answer, in characters.
const MAX_ERROR: usize = 256;

/// A trust domain as callers see it.
#[derive(Debug, Clone, PartialEq)]
pub struct SpiffeDomain {
    /// Its name.
    pub name: TrustDomain,
    /// What an admin says of it.
    pub row: SpiffeDomainRow,
    /// Who vouches for its workloads.
    pub bundle: SpiffeBundleRow,
    /// How it went to fetch that.
    pub refresh: SpiffeRefreshRow,
    /// Rises with every change that an admin makes; 0 for a write of this same transaction.
    pub revision: u64,
}

impl SpiffeDomain {
    /// From when on its bundle is believed no more; `None`: always.
    pub fn good_until_ms(&self) -> Option<UnixMillis> {
        self.row.endpoint.as_ref().map(|_| self.refresh.refreshed_at_ms.saturating_add(MAX_AGE_MS))
    }
}

/// What an admin wants of a trust domain, checked by itself.
#[derive(Debug, Clone, PartialEq)]
pub struct NewSpiffeDomain {
    name: TrustDomain,
    endpoint: Option<SpiffeEndpointRow>,
    bundle: Option<SpiffeBundleRow>,
}

impl NewSpiffeDomain {
    /// Reads it: an endpoint has an `https://` URL, and either a SPIFFE ID of the same trust domain or at most 16 PEM
    /// certificates of who vouches for its name.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] names the field.
    pub fn new(
        name: &str,
        endpoint: Option<SpiffeEndpointRow>,
        bundle: Option<SpiffeBundleRow>,
    ) -> Result<Self, CoreError> {
        let name = TrustDomain::parse("domain.trust_domain", name)?;
        if let Some(endpoint) = &endpoint {
            check_endpoint(&name, endpoint)?;
        }
        Ok(Self { name, endpoint, bundle })
    }
}

fn check_endpoint(name: &TrustDomain, endpoint: &SpiffeEndpointRow) -> Result<(), CoreError> {
    web::check_https_url("domain.endpoint.url", &endpoint.url)?;
    if !endpoint.spiffe_id.is_empty() {
        let id = SpiffeId::parse("domain.endpoint.spiffe_id", &endpoint.spiffe_id)?;
        if id.trust_domain() != *name {
            let reason = "the endpoint shows an SVID of the trust domain whose bundle it tells";
            return Err(CoreError::invalid("domain.endpoint.spiffe_id", reason));
        }
        if !endpoint.web_authorities.is_empty() {
            let reason = "an endpoint with a SPIFFE ID is known by that, and by no certificates of the web";
            return Err(CoreError::invalid("domain.endpoint.web_ca_certificates", reason));
        }
    }
    if endpoint.web_authorities.len() > MAX_WEB_AUTHORITIES {
        let reason = format!("at most {MAX_WEB_AUTHORITIES} certificates");
        return Err(CoreError::invalid("domain.endpoint.web_ca_certificates", reason));
    }
    for pem in &endpoint.web_authorities {
        certificate_der(pem).map_err(CoreError::pki("domain.endpoint.web_ca_certificates"))?;
    }
    Ok(())
}

fn stored(
    state: &mut (impl Read + ?Sized),
    name: &TrustDomain,
) -> Result<Versioned<SpiffeDomainRow>, CoreError> {
    let not_found = || CoreError::NotFound { kind: KIND, name: name.to_string() };
    state.get(&SpiffeDomainKey(name.clone()))?.ok_or_else(not_found)
}

fn complete(
    state: &mut (impl Read + ?Sized),
    name: TrustDomain,
    stored: Versioned<SpiffeDomainRow>,
) -> Result<SpiffeDomain, CoreError> {
    let bundle = state.get(&SpiffeBundleKey(name.clone()))?.map(|found| found.row).unwrap_or_default();
    let refresh = state.get(&SpiffeRefreshKey(name.clone()))?.map(|found| found.row).unwrap_or_default();
    Ok(SpiffeDomain { name, row: stored.row, bundle, refresh, revision: stored.revision })
}

/// One trust domain.
///
/// # Errors
/// [`CoreError::NotFound`], [`CoreError::Storage`].
pub fn get(state: &mut (impl Read + ?Sized), name: &TrustDomain) -> Result<SpiffeDomain, CoreError> {
    let stored = stored(state, name)?;
    complete(state, name.clone(), stored)
}

/// One trust domain, if its workloads are let in.
///
/// # Errors
/// [`CoreError::Storage`].
pub(super) fn find(
    state: &mut (impl Read + ?Sized),
    name: &TrustDomain,
) -> Result<Option<SpiffeDomain>, CoreError> {
    match state.get(&SpiffeDomainKey(name.clone()))? {
        Some(stored) => complete(state, name.clone(), stored).map(Some),
        None => Ok(None),
    }
}

/// A page of the trust domains, ordered by name.
///
/// # Errors
/// [`CoreError::Invalid`] for a page token that is not of this list; [`CoreError::Storage`].
pub fn list(state: &mut (impl Read + ?Sized), page: &PageRequest) -> Result<Page<SpiffeDomain>, CoreError> {
    let after = page.after(|text| TrustDomain::parse("page_token", text).ok())?;
    let rows = state.scan(after.map(SpiffeDomainKey).as_ref(), page.size.saturating_add(1))?;
    let domains: Result<Vec<_>, _> =
        rows.into_iter().map(|(key, stored)| complete(state, key.0, stored)).collect();
    let bytes = |domain: &SpiffeDomain| domain.row.encoded_len() + domain.bundle.encoded_len();
    Ok(Page::cut(domains?, page.size, bytes, |domain| domain.name.to_string()))
}

/// X.509 authorities of trust domains, DER.
pub type Authorities = Vec<(TrustDomain, Vec<Vec<u8>>)>;

/// The X.509 authorities of all trust domains, at most 64.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn authorities(state: &mut (impl Read + ?Sized)) -> Result<Authorities, CoreError> {
    let rows = state.scan::<SpiffeBundleKey>(None, MAX_DOMAINS)?;
    Ok(rows.into_iter().map(|(key, stored)| (key.0, stored.row.x509_authorities)).collect())
}

/// Lets the workloads of a trust domain in.
///
/// # Errors
/// [`CoreError::Invalid`] for the cluster's own trust domain, and where there is neither a bundle nor an endpoint that is known
/// without one; [`CoreError::AlreadyExists`]; [`CoreError::Precondition`] when there are too many; [`CoreError::Storage`].
pub fn create(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    new: &NewSpiffeDomain,
) -> Result<SpiffeDomain, CoreError> {
    let name = &new.name;
    if cluster::get(tx)?.row.name == name.as_str() {
        let reason = "this is the cluster's own trust domain: its agents and agent identities have certificates of it already";
        return Err(CoreError::invalid("domain.trust_domain", reason));
    }
    if tx.get(&SpiffeDomainKey(name.clone()))?.is_some() {
        return Err(CoreError::AlreadyExists { kind: KIND, name: name.to_string() });
    }
    if tx.scan::<SpiffeDomainKey>(None, MAX_DOMAINS)?.len() == MAX_DOMAINS {
        return Err(CoreError::Precondition(format!(
            "at most {MAX_DOMAINS} SPIFFE trust domains are let in"
        )));
    }
    let by_web = new.endpoint.as_ref().is_some_and(|endpoint| endpoint.spiffe_id.is_empty());
    if new.bundle.is_none() && !by_web {
        let reason = "the bundle of the trust domain is needed: without it nobody can be recognised, nor an endpoint that shows \
                      an SVID of it";
        return Err(CoreError::invalid("domain.bundle", reason));
    }
    let row = SpiffeDomainRow {
        endpoint: new.endpoint.clone(),
        created_at_ms: tx.now(),
        created_by: context.caller.actor(),
    };
    tx.put(&SpiffeDomainKey(name.clone()), &row);
    let bundle = new.bundle.clone().unwrap_or_default();
    tx.put(&SpiffeBundleKey(name.clone()), &bundle);
    let refresh = SpiffeRefreshRow { refreshed_at_ms: tx.now(), ..SpiffeRefreshRow::default() };
    tx.put(&SpiffeRefreshKey(name.clone()), &refresh);
    record(tx, context, EventType::SpiffeDomainCreate, name, &row, &bundle);
    Ok(SpiffeDomain { name: name.clone(), row, bundle, refresh, revision: 0 })
}

/// Replaces where the bundle of a trust domain comes from, and the bundle, if one is given: it may be older than the one
/// before, since an admin says so.
///
/// # Errors
/// [`CoreError::NotFound`], [`CoreError::StaleRevision`], [`CoreError::Storage`].
pub fn update(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    new: &NewSpiffeDomain,
    revision: u64,
) -> Result<SpiffeDomain, CoreError> {
    let name = &new.name;
    let current = stored(tx, name)?;
    CoreError::check_revision(KIND, name.as_str(), revision, current.revision)?;
    let before = complete(tx, name.clone(), current)?;
    let row = SpiffeDomainRow { endpoint: new.endpoint.clone(), ..before.row.clone() };
    tx.put(&SpiffeDomainKey(name.clone()), &row);
    let bundle = new.bundle.clone().unwrap_or(before.bundle);
    if new.bundle.is_some() {
        tx.put(&SpiffeBundleKey(name.clone()), &bundle);
    }
    // One that was set has been told now; and so has one that is to be fetched from now on.
    let told = new.bundle.is_some() || before.row.endpoint.is_none();
    let refreshed_at_ms = if told { tx.now() } else { before.refresh.refreshed_at_ms };
    let refresh = SpiffeRefreshRow { refreshed_at_ms, ..SpiffeRefreshRow::default() };
    tx.put(&SpiffeRefreshKey(name.clone()), &refresh);
    record(tx, context, EventType::SpiffeDomainUpdate, name, &row, &bundle);
    Ok(SpiffeDomain { name: name.clone(), row, bundle, refresh, revision: 0 })
}

/// Lets the workloads of a trust domain in no more. No agent identity may have a SPIFFE ID of it: what ends with that has ended
/// by then.
///
/// # Errors
/// [`CoreError::NotFound`]; [`CoreError::Precondition`] while there is such an identity; [`CoreError::Storage`].
pub fn delete(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    name: &TrustDomain,
) -> Result<(), CoreError> {
    stored(tx, name)?;
    let front = format!("{SCHEME}{name}/");
    let mapped = tx.scan(Some(&SpiffeIdKey(front.clone())), 1)?;
    if let Some((SpiffeIdKey(id), found)) = mapped.first().filter(|(key, _)| key.0.starts_with(&front)) {
        return Err(CoreError::Precondition(format!(
            "agent identity {} has the SPIFFE ID {id}: take it away first, from each that has one of this trust domain; to let \
             nobody in at once, set an empty bundle",
            found.row.identity
        )));
    }
    tx.delete(&SpiffeDomainKey(name.clone()));
    tx.delete(&SpiffeBundleKey(name.clone()));
    tx.delete(&SpiffeRefreshKey(name.clone()));
    audit::append(tx, context, EventType::SpiffeDomainDelete, target(name), &[]);
    Ok(())
}

/// A trust domain whose bundle is to be asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Due {
    /// Its name.
    pub name: TrustDomain,
    /// Where.
    pub endpoint: SpiffeEndpointRow,
    /// By which the endpoint may be recognised.
    pub bundle: SpiffeBundleRow,
    /// Revisions of what an admin says, and of the bundle: whatever changes meanwhile makes the answer one to another question.
    revisions: (u64, u64),
}

/// The trust domains whose bundles are to be asked for now.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn due(state: &mut (impl Read + ?Sized)) -> Result<Vec<Due>, CoreError> {
    let (now, mut all) = (state.now(), Vec::new());
    for (SpiffeDomainKey(name), stored) in state.scan(None, MAX_DOMAINS)? {
        let Some(endpoint) = stored.row.endpoint else { continue };
        let refresh = state.get(&SpiffeRefreshKey(name.clone()))?.map(|it| it.row).unwrap_or_default();
        let bundle = state.get(&SpiffeBundleKey(name.clone()))?;
        let bundle = bundle.unwrap_or(Versioned { revision: 0, row: SpiffeBundleRow::default() });
        let pause_s = match (refresh.error.is_empty(), bundle.row.refresh_hint_s) {
            (false, _) => RETRY_S,
            (true, 0) => DEFAULT_REFRESH_S,
            (true, hint) => hint.clamp(*REFRESH_S.start(), *REFRESH_S.end()),
        };
        if refresh.tried_at_ms == 0 || now.saturating_sub(refresh.tried_at_ms) >= pause_s * 1000 {
            let revisions = (stored.revision, bundle.revision);
            all.push(Due { name, endpoint, bundle: bundle.row, revisions });
        }
    }
    Ok(all)
}

/// What came of asking for a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refreshed {
    /// It is as it was; or the question was another one by now.
    Same,
    /// It is another one.
    Changed,
    /// There was none, or none that may be taken.
    Failed,
}

/// Takes in the bundle that an endpoint told, or why it told none. One that is older than what is known is not taken.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn refreshed(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    asked: &Due,
    told: &Result<SpiffeBundleRow, String>,
) -> Result<Refreshed, CoreError> {
    let name = &asked.name;
    let domain = tx.get(&SpiffeDomainKey(name.clone()))?;
    let known = tx.get(&SpiffeBundleKey(name.clone()))?;
    let (Some(domain), Some(known)) = (domain, known) else { return Ok(Refreshed::Same) };
    if (domain.revision, known.revision) != asked.revisions {
        return Ok(Refreshed::Same);
    }
    let before = tx.get(&SpiffeRefreshKey(name.clone()))?.map(|stored| stored.row).unwrap_or_default();
    let told = told.as_ref().map_err(|error| cut(error)).and_then(|told| newer(told, &known.row));
    let refresh = match &told {
        Ok(_) => SpiffeRefreshRow { refreshed_at_ms: tx.now(), tried_at_ms: tx.now(), error: String::new() },
        Err(error) => SpiffeRefreshRow { tried_at_ms: tx.now(), error: error.clone(), ..before },
    };
    tx.put(&SpiffeRefreshKey(name.clone()), &refresh);
    let Ok(told) = told else { return Ok(Refreshed::Failed) };
    if *told == known.row {
        return Ok(Refreshed::Same);
    }
    tx.put(&SpiffeBundleKey(name.clone()), told);
    record(tx, context, EventType::SpiffeDomainRefresh, name, &domain.row, told);
    Ok(Refreshed::Changed)
}

/// The bundle, unless it is older than what is known, or not the one that it says it is.
fn newer<'a>(told: &'a SpiffeBundleRow, known: &SpiffeBundleRow) -> Result<&'a SpiffeBundleRow, String> {
    let same_keys =
        told.x509_authorities == known.x509_authorities && told.jwt_authorities == known.jwt_authorities;
    match (known.sequence, told.sequence) {
        (None, _) => Ok(told),
        (Some(known), Some(told_sequence)) if told_sequence > known => Ok(told),
        (Some(known), Some(told_sequence)) if told_sequence == known && same_keys => Ok(told),
        (Some(known), Some(told_sequence)) if told_sequence == known => {
            Err(format!("it told other keys with the same spiffe_sequence {known}"))
        }
        (Some(known), Some(told_sequence)) => Err(format!(
            "it told spiffe_sequence {told_sequence}, and {known} is known: if that is right, set the bundle by hand"
        )),
        (Some(known), None) => Err(format!(
            "it told no spiffe_sequence, and {known} is known: if that is right, set the bundle by hand"
        )),
    }
}

fn cut(error: &str) -> String {
    error.chars().filter(|c| !c.is_control()).take(MAX_ERROR).collect()
}

fn target(name: &TrustDomain) -> String {
    format!("spiffe_domain:{name}")
}

/// Tells the audit log of a trust domain and its bundle: the keys by their digests.
fn record(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    event: EventType,
    name: &TrustDomain,
    row: &SpiffeDomainRow,
    bundle: &SpiffeBundleRow,
) {
    let endpoint = row.endpoint.clone().unwrap_or_default();
    let digest = |der: &Vec<u8>| hex::encode(Sha256::digest(der));
    let key_ids = bundle.jwt_authorities.iter().map(|authority| authority.key_id.as_str());
    let fields = [
        ("endpoint", endpoint.url),
        ("endpoint_spiffe_id", endpoint.spiffe_id),
        ("x509_sha256", bundle.x509_authorities.iter().map(digest).collect::<Vec<_>>().join(",")),
        ("jwt_key_ids", key_ids.collect::<Vec<_>>().join(",")),
        ("sequence", bundle.sequence.map(|sequence| sequence.to_string()).unwrap_or_default()),
    ];
    audit::append(tx, context, event, target(name), &fields);
}

#[cfg(test)]
#[path = "domain_tests.rs"]
mod tests;
