//! Trusted clusters: other clusters, whose users are let in with the roles here that their roles there are mapped to. What
//! is mapped to nothing gives nothing.
//!
//! A user `ann` of `other` is `ann@other` here. While a cluster is trusted no local user has a name of that form, and one is
//! trusted only when none has: so a name is one user's, in the audit log, in locks and on hosts.
//!
//! When a cluster is not trusted any more, or its users may do less, all that was issued to them before is revoked.

mod input;
mod remote;

use std::collections::BTreeSet;

use prost::Message as _;
use store_txn::{Read, ReadExt, Transaction, TransactionExt, Versioned};

pub use self::input::{Authorities, NewTrustedCluster};
pub(crate) use self::remote::{admit, cluster_of};
use crate::{
    Context, CoreError,
    audit::{self, EventType},
    ca, cluster, mapped,
    names::{ClusterName, RoleName, TokenName},
    page::{Page, PageRequest},
    revocation,
    secret::SecretDigest,
    tables::{
        CaKind, JoinMethod, MapperKind, RefreshKey, RefreshRow, RoleMappingRow, TargetKind, TokenKey,
        TokenUseKey, TokenUseRow, TrustedClusterKey, TrustedClusterRow, UserKey,
    },
    token,
    trust::{self, TrustBundle},
    verdict::{Stop, Verdict, audited},
};

const KIND: &str = "trusted cluster";
/// Most trusted clusters.
const MAX_CLUSTERS: usize = 256;
/// Longest text of why a cluster could not be asked, in bytes.
const MAX_ERROR: usize = 512;
/// Rows that are looked at in one step.
const STEP: usize = 256;

/// A trusted cluster as callers see it.
#[derive(Debug, Clone, PartialEq)]
pub struct TrustedCluster {
    /// Its name.
    pub name: ClusterName,
    /// Revision that an update names.
    pub revision: u64,
    /// What it is trusted with.
    pub row: TrustedClusterRow,
    /// How it went to ask for its authorities.
    pub refresh: RefreshRow,
}

fn complete(
    state: &mut (impl Read + ?Sized),
    name: ClusterName,
    stored: Versioned<TrustedClusterRow>,
) -> Result<TrustedCluster, CoreError> {
    let refresh = state.get(&RefreshKey(name.clone()))?.map(|stored| stored.row).unwrap_or_default();
    Ok(TrustedCluster { name, revision: stored.revision, row: stored.row, refresh })
}

fn stored(
    state: &mut (impl Read + ?Sized),
    name: &ClusterName,
) -> Result<Versioned<TrustedClusterRow>, CoreError> {
    let not_found = || CoreError::NotFound { kind: KIND, name: name.to_string() };
    state.get(&TrustedClusterKey(name.clone()))?.ok_or_else(not_found)
}

/// One trusted cluster.
///
/// # Errors
/// [`CoreError::NotFound`], [`CoreError::Storage`].
pub fn get(state: &mut (impl Read + ?Sized), name: &ClusterName) -> Result<TrustedCluster, CoreError> {
    let stored = stored(state, name)?;
    complete(state, name.clone(), stored)
}

/// A page of the trusted clusters, ordered by name.
///
/// # Errors
/// [`CoreError::Invalid`] for a page token that is not of this list; [`CoreError::Storage`].
pub fn list(state: &mut (impl Read + ?Sized), page: &PageRequest) -> Result<Page<TrustedCluster>, CoreError> {
    let after = page.after(|text| ClusterName::parse("page_token", text).ok())?;
    let rows = state.scan(after.map(TrustedClusterKey).as_ref(), page.size.saturating_add(1))?;
    let clusters: Result<Vec<_>, _> =
        rows.into_iter().map(|(key, row)| complete(state, key.0, row)).collect();
    let bytes = |cluster: &TrustedCluster| cluster.row.encoded_len() + cluster.refresh.encoded_len();
    Ok(Page::cut(clusters?, page.size, bytes, |cluster| cluster.name.to_string()))
}

/// All trusted clusters, at most 256.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn all(state: &mut (impl Read + ?Sized)) -> Result<Vec<(ClusterName, TrustedClusterRow)>, CoreError> {
    let rows = state.scan::<TrustedClusterKey>(None, MAX_CLUSTERS)?;
    Ok(rows.into_iter().map(|(key, stored)| (key.0, stored.row)).collect())
}

/// All trusted clusters that are not disabled.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn enabled(state: &mut (impl Read + ?Sized)) -> Result<Vec<(ClusterName, TrustedClusterRow)>, CoreError> {
    Ok(all(state)?.into_iter().filter(|(_, row)| !row.disabled).collect())
}

/// Keys of one authority of a trusted cluster: OpenSSH public key lines, or PEM certificates for TLS. All verify.
pub fn keys(row: &TrustedClusterRow, kind: CaKind) -> &[String] {
    input::keys(&row.authorities, kind)
}

/// Checks all that [`create`] refuses and that can be known before the other cluster was asked, which costs a token.
///
/// # Errors
/// As of [`create`].
pub fn may_create(
    state: &mut (impl Read + ?Sized),
    context: &Context,
    new: &NewTrustedCluster,
) -> Result<(), CoreError> {
    mapped::check(state, context.caller.holder()?, &new.roles)?;
    if cluster::get(state)?.row.name == new.name.as_str() {
        let reason = "this is the name of this cluster, which trusts neither itself nor one of the same name";
        return Err(CoreError::invalid("trusted_cluster.name", reason));
    }
    if state.get(&TrustedClusterKey(new.name.clone()))?.is_some() {
        return Err(CoreError::AlreadyExists { kind: KIND, name: new.name.to_string() });
    }
    if state.scan::<TrustedClusterKey>(None, MAX_CLUSTERS)?.len() == MAX_CLUSTERS {
        return Err(CoreError::Precondition(format!("at most {MAX_CLUSTERS} clusters are trusted")));
    }
    refuse_local_names(state, &new.name)
}

/// Refuses when a local user has a name that a user of the cluster would have here.
fn refuse_local_names(state: &mut (impl Read + ?Sized), cluster: &ClusterName) -> Result<(), CoreError> {
    let (suffix, mut after) = (format!("@{cluster}"), None);
    loop {
        let rows = state.scan::<UserKey>(after.as_ref(), STEP)?;
        let Some((last, _)) = rows.last() else { return Ok(()) };
        after = Some(last.clone());
        if let Some((UserKey(user), _)) = rows.iter().find(|(key, _)| key.0.as_str().ends_with(&suffix)) {
            return Err(CoreError::Precondition(format!(
                "there is a local user {user}, and a user of cluster {cluster} could have that name here: delete it first"
            )));
        }
    }
}

/// Trusts a cluster, whose authorities it told itself.
///
/// # Errors
/// [`CoreError::NotFound`] for a role; [`CoreError::Denied`] for one that the caller may not give; [`CoreError::Invalid`] for
/// the name or authorities of this cluster itself; [`CoreError::AlreadyExists`]; [`CoreError::Precondition`] when a local user
/// has a name as one of that cluster's would have, or too many are trusted; [`CoreError::Storage`].
pub fn create(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    new: &NewTrustedCluster,
    authorities: &Authorities,
) -> Result<TrustedCluster, CoreError> {
    may_create(tx, context, new)?;
    refuse_own(tx, authorities)?;
    let row = TrustedClusterRow {
        addresses: new.addresses.clone(),
        mappings: new.mappings.clone(),
        disabled: new.disabled,
        authorities: authorities.rows.clone(),
        bundle_revision: authorities.revision,
        created_at_ms: tx.now(),
        created_by: context.caller.actor(),
    };
    tx.put(&TrustedClusterKey(new.name.clone()), &row);
    let refresh = RefreshRow { refreshed_at_ms: tx.now(), error: String::new() };
    tx.put(&RefreshKey(new.name.clone()), &refresh);
    mapped::note(tx, MapperKind::TrustedCluster, new.name.as_str(), &BTreeSet::new(), &new.roles);
    record(tx, context, EventType::TrustedClusterCreate, &new.name, &row);
    Ok(TrustedCluster { name: new.name.clone(), revision: 0, row, refresh })
}

/// Refuses authorities that are this cluster's: whoever they let in would be everybody here.
fn refuse_own(state: &mut (impl Read + ?Sized), authorities: &Authorities) -> Result<(), CoreError> {
    let own = ca::active(state, CaKind::Tls)?.key.public;
    if authorities.keys(CaKind::Tls).iter().any(|key| key.trim() == own.trim()) {
        let reason = "its TLS CA is that of this cluster itself";
        return Err(CoreError::invalid("trusted_cluster.addresses", reason));
    }
    Ok(())
}

/// Replaces addresses, mappings and the switch of a trusted cluster. If its users may do less than before, what was issued to
/// them is revoked.
///
/// # Errors
/// [`CoreError::NotFound`] for the cluster or a role; [`CoreError::StaleRevision`]; [`CoreError::Denied`] when roles are
/// mapped, or were, that the caller may not give; [`CoreError::Storage`].
pub fn update(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    new: &NewTrustedCluster,
    revision: u64,
) -> Result<TrustedCluster, CoreError> {
    let current = stored(tx, &new.name)?;
    CoreError::check_revision(KIND, new.name.as_str(), revision, current.revision)?;
    let (caller, before) = (context.caller.holder()?, roles_of(&current.row)?);
    mapped::may_manage(caller, &before)?;
    mapped::check(tx, caller, &new.roles)?;
    let row = TrustedClusterRow {
        addresses: new.addresses.clone(),
        mappings: new.mappings.clone(),
        disabled: new.disabled,
        ..current.row.clone()
    };
    tx.put(&TrustedClusterKey(new.name.clone()), &row);
    mapped::note(tx, MapperKind::TrustedCluster, new.name.as_str(), &before, &new.roles);
    if (row.disabled && !current.row.disabled) || !pairs(&current.row).is_subset(&pairs(&row)) {
        revocation::revoke(tx, TargetKind::TrustedCluster, new.name.as_str());
    }
    record(tx, context, EventType::TrustedClusterUpdate, &new.name, &row);
    complete(tx, new.name.clone(), Versioned { revision: 0, row })
}

/// Ends the trust in a cluster: nobody of it is let in any more, and what was issued to its users is revoked.
///
/// # Errors
/// [`CoreError::NotFound`]; [`CoreError::Denied`] when roles are mapped that the caller may not give;
/// [`CoreError::Storage`].
pub fn delete(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    name: &ClusterName,
) -> Result<(), CoreError> {
    let before = roles_of(&stored(tx, name)?.row)?;
    mapped::may_manage(context.caller.holder()?, &before)?;
    tx.delete(&TrustedClusterKey(name.clone()));
    tx.delete(&RefreshKey(name.clone()));
    mapped::note(tx, MapperKind::TrustedCluster, name.as_str(), &before, &BTreeSet::new());
    revocation::revoke(tx, TargetKind::TrustedCluster, name.as_str());
    audit::append(tx, context, EventType::TrustedClusterDelete, target(name), &[]);
    Ok(())
}

/// What came of asking a trusted cluster for its authorities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refreshed {
    /// They are as they were; or the cluster is not trusted any more.
    Same,
    /// They are others than before.
    Changed,
    /// It could not be asked, or its answer is of no use.
    Failed,
}

/// Takes in what a trusted cluster answered when it was asked for its authorities, or why it did not. `known` is the row by
/// which it was recognised.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn refreshed(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    name: &ClusterName,
    known: &TrustedClusterRow,
    asked: &Result<Authorities, String>,
) -> Result<Refreshed, CoreError> {
    let Some(current) = tx.get(&TrustedClusterKey(name.clone()))? else { return Ok(Refreshed::Same) };
    // What was believed by other keys says nothing of a cluster that was trusted anew since.
    if (&current.row.authorities, current.row.created_at_ms) != (&known.authorities, known.created_at_ms) {
        return Ok(Refreshed::Same);
    }
    let before = tx.get(&RefreshKey(name.clone()))?.map(|stored| stored.row).unwrap_or_default();
    let told = asked.as_ref().map_err(|error| cut(error)).and_then(|told| newer(told, &current.row));
    let now = match &told {
        Ok(_) => RefreshRow { refreshed_at_ms: tx.now(), error: String::new() },
        Err(error) => RefreshRow { refreshed_at_ms: before.refreshed_at_ms, error: error.clone() },
    };
    if now != before {
        tx.put(&RefreshKey(name.clone()), &now);
    }
    let Ok(told) = told else { return Ok(Refreshed::Failed) };
    if told.rows != current.row.authorities {
        let row = TrustedClusterRow {
            authorities: told.rows.clone(),
            bundle_revision: told.revision,
            ..current.row
        };
        tx.put(&TrustedClusterKey(name.clone()), &row);
        let fields = [("authorities", told.fingerprints()?.join(","))];
        audit::append(tx, context, EventType::TrustedClusterRefresh, target(name), &fields);
        return Ok(Refreshed::Changed);
    }
    Ok(Refreshed::Same)
}

/// The authorities, unless they are older than what is known: a node that is behind may have told them.
fn newer<'a>(told: &'a Authorities, known: &TrustedClusterRow) -> Result<&'a Authorities, String> {
    let (revision, known_revision) = (told.revision, known.bundle_revision);
    if revision > known_revision || (revision == known_revision && told.rows == known.authorities) {
        return Ok(told);
    }
    if revision == known_revision {
        return Err(format!("it told different authorities of the same revision {revision}"));
    }
    Err(format!(
        "it told authorities of revision {revision}, and those of revision {known_revision} are known: if it was restored from \
         a backup, remove it and trust it anew"
    ))
}

fn cut(error: &str) -> String {
    error.chars().filter(|c| !c.is_control()).take(MAX_ERROR / 4).collect()
}

/// Answers this cluster's authorities to another cluster, which lets the users of this one in: one use of a token that was made for
/// it. The same exchange, by its digest, is answered again as long as the token lasts. A refusal is audited.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn exchange(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    secret: SecretDigest,
    exchange: [u8; 32],
    asker: &ClusterName,
) -> Result<Verdict<TrustBundle>, CoreError> {
    let decision = use_token(tx, context, secret, exchange, asker);
    audited(tx, context, EventType::TrustExchangeDenied, decision)
}

fn use_token(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    secret: SecretDigest,
    exchange: [u8; 32],
    asker: &ClusterName,
) -> Result<TrustBundle, Stop> {
    let bundle = trust::bundle(tx)?;
    let (name, mut row) = token::find_for(tx, secret, JoinMethod::Exchange)?;
    if bundle.cluster_name == asker.as_str() {
        let reason = "a cluster does not trust itself, nor another of the same name";
        return Err(Stop::denied(format!("token:{name}"), reason));
    }
    let key = TokenUseKey { token: name.clone(), key_digest: exchange };
    let again = tx.get(&key)?.is_some_and(|used| used.row.secret_digest == row.secret_digest);
    if !again {
        token::check_unused(&name, &row)?;
        row.uses = row.uses.saturating_add(1);
        let used = TokenUseRow {
            agent_id: String::new(),
            expires_at_ms: row.expires_at_ms,
            secret_digest: row.secret_digest.clone(),
        };
        tx.put(&key, &used);
        tx.put(&TokenKey(name.clone()), &row);
    }
    record_exchange(tx, context, &name, asker, again);
    Ok(bundle)
}

fn record_exchange(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    token: &TokenName,
    asker: &ClusterName,
    again: bool,
) {
    let fields = [("cluster", asker.to_string()), ("again", again.to_string())];
    audit::append(tx, context, EventType::TrustExchange, format!("token:{token}"), &fields);
}

/// Roles that a stored cluster's are mapped to.
fn roles_of(row: &TrustedClusterRow) -> Result<BTreeSet<RoleName>, CoreError> {
    let names = row.mappings.iter().flat_map(|mapping| &mapping.local);
    names.map(|name| RoleName::parse("trusted_cluster.role_mappings", name)).collect()
}

/// What a row gives: each role there with each role here.
fn pairs(row: &TrustedClusterRow) -> BTreeSet<(&str, &str)> {
    let mut pairs = BTreeSet::new();
    for RoleMappingRow { remote, local } in &row.mappings {
        pairs.extend(local.iter().map(|local| (remote.as_str(), local.as_str())));
    }
    pairs
}

fn target(name: &ClusterName) -> String {
    format!("trusted_cluster:{name}")
}

fn record(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    event: EventType,
    name: &ClusterName,
    row: &TrustedClusterRow,
) {
    let mapping = |mapping: &RoleMappingRow| format!("{}={}", mapping.remote, mapping.local.join(" "));
    let fields = [
        ("addresses", row.addresses.join(",")),
        ("role_mappings", row.mappings.iter().map(mapping).collect::<Vec<_>>().join(",")),
        ("disabled", row.disabled.to_string()),
    ];
    audit::append(tx, context, event, target(name), &fields);
}

#[cfg(test)]
#[path = "trusted_cluster_tests.rs"]
mod tests;
