//! Single sign-on connectors, as data: which providers there are, and what their claims give. Nobody maps to what it may
//! not give. A client secret is stored sealed under the cluster's key-encryption key, bound to the name of the connector
//! and to whom the secret is for, and never answered: so it cannot be sent to another issuer than the one that it was
//! given for.

mod provider;

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use store_txn::{Key, KeyWriter, Read, ReadExt, Transaction, TransactionExt, Versioned};
use zeroize::Zeroizing;

use crate::{
    Context, CoreError,
    audit::{self, EventType},
    ca::{Kek, NONCE_LENGTH},
    mapped,
    names::{ConnectorName, RoleName},
    page::{Page, PageRequest},
    seal::{self, Place},
    tables::{ClaimMappingRow, ConnectorKey, ConnectorRow, MapperKind, ProviderRow},
    web,
};

const KIND: &str = "connector";
/// First part of what is authenticated beside a client secret.
const DOMAIN: &[u8] = b"mezite connector secret";

/// What is answered in place of a secret, and what in an update keeps it.
pub const REDACTED: &str = "[redacted]";

/// Longest display name, in bytes.
const MAX_DISPLAY_NAME: usize = 256;
/// Most mappings of a connector.
const MAX_MAPPINGS: usize = 64;
/// Longest name or value of a claim, in bytes.
const MAX_CLAIM: usize = 256;
/// Longest client secret, in bytes.
const MAX_SECRET: usize = 1024;
/// Largest connector, encoded, in bytes.
const MAX_BYTES: usize = 64 * 1024;

/// A connector as callers see it.
pub type VersionedConnector = (ConnectorName, Versioned<ConnectorRow>);

/// What a write says of the client secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secret {
    /// It is this one, as [`NewConnector::seal`] sealed it; empty for a provider that has none.
    Sealed(Vec<u8>),
    /// The stored one is kept.
    Kept,
}

/// A connector to write, checked but for what the state says.
#[derive(Debug, Clone, PartialEq)]
pub struct NewConnector {
    name: ConnectorName,
    row: ConnectorRow,
    roles: BTreeSet<RoleName>,
}

impl NewConnector {
    /// Reads a connector: display name, mappings and provider.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] names the field.
    pub fn new(
        name: ConnectorName,
        display_name: String,
        mappings: Vec<ClaimMappingRow>,
        provider: Option<ProviderRow>,
    ) -> Result<Self, CoreError> {
        web::check_text("connector.display_name", &display_name, 0..=MAX_DISPLAY_NAME)?;
        let (mappings, roles) = checked(mappings)?;
        let missing = || CoreError::invalid("connector.provider", "one of oidc, github and saml is needed");
        let provider = Some(provider::checked(provider.ok_or_else(missing)?)?);
        let row = ConnectorRow { display_name, mappings, provider, ..ConnectorRow::default() };
        if row.encoded_len() > MAX_BYTES {
            let reason = format!("a connector has at most {MAX_BYTES} bytes in all");
            return Err(CoreError::invalid("connector", reason));
        }
        Ok(Self { name, row, roles })
    }

    /// With what is said of a second factor: whether the provider asks its users for one.
    #[must_use]
    pub fn with_second_factor(mut self, second_factor: bool) -> Self {
        self.row.second_factor = second_factor;
        self
    }

    /// Its name.
    pub fn name(&self) -> &ConnectorName {
        &self.name
    }

    /// What a write says of the secret in a request: `None` for a provider that has none. A new one is sealed, with a
    /// nonce that is random and never used twice.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for a secret that is missing or out of bounds.
    pub fn seal(
        &self,
        kek: &Kek,
        secret: Option<&Zeroizing<String>>,
        nonce: [u8; NONCE_LENGTH],
    ) -> Result<Secret, CoreError> {
        let Some(secret) = secret else { return Ok(Secret::Sealed(Vec::new())) };
        let field = format!("connector.{}.client_secret", self.provider_word());
        if secret.as_str() == REDACTED {
            return Ok(Secret::Kept);
        }
        if !(1..=MAX_SECRET).contains(&secret.len()) || secret.chars().any(char::is_control) {
            let reason = format!("1 to {MAX_SECRET} bytes, without control characters");
            return Err(CoreError::invalid(field, reason));
        }
        let place = place(&self.name, self.row.provider.as_ref());
        let place = Place { domain: DOMAIN, within: &place };
        seal::seal(kek.bytes(), place, secret.as_bytes(), nonce).map(Secret::Sealed)
    }

    fn provider_word(&self) -> &'static str {
        self.row.provider.as_ref().map_or("provider", provider::word)
    }

    /// The row, with the secret that the write says, or else the stored one.
    fn row(&self, secret: &Secret, before: Option<&ConnectorRow>) -> Result<ConnectorRow, CoreError> {
        let sealed_secret = match (secret, before) {
            (Secret::Sealed(sealed), _) => sealed.clone(),
            (Secret::Kept, Some(before)) if self.is_for_the_same(before) => before.sealed_secret.clone(),
            (Secret::Kept, before) => {
                let field = format!("connector.{}.client_secret", self.provider_word());
                let reason = match before {
                    Some(_) => {
                        "the stored secret is of another issuer, client or kind of provider: give it anew"
                    }
                    None => "a new connector needs the secret itself",
                };
                return Err(CoreError::invalid(field, reason));
            }
        };
        Ok(ConnectorRow { sealed_secret, ..self.row.clone() })
    }

    /// Whether the secret of another connector is for the same party.
    fn is_for_the_same(&self, other: &ConnectorRow) -> bool {
        place(&self.name, self.row.provider.as_ref()) == place(&self.name, other.provider.as_ref())
    }
}

/// Opens a client secret, for the party that it was given for.
///
/// # Errors
/// [`CoreError::Internal`], for the log: this node's key-encryption key is not the cluster's, or the row was altered.
pub fn open_secret(
    kek: &Kek,
    name: &ConnectorName,
    row: &ConnectorRow,
) -> Result<Zeroizing<Vec<u8>>, CoreError> {
    let place = place(name, row.provider.as_ref());
    seal::unseal(kek.bytes(), Place { domain: DOMAIN, within: &place }, &row.sealed_secret).map_err(|why| {
        CoreError::Internal(format!("the client secret of connector {name} cannot be opened: {why}"))
    })
}

/// What a secret is bound to: the place in the store, the kind of provider, and whom it is sent to.
fn place(name: &ConnectorName, provider: Option<&ProviderRow>) -> Vec<u8> {
    let mut place = KeyWriter::table(ConnectorKey::TABLE);
    place.text(name.as_str());
    match provider {
        Some(ProviderRow::Oidc(oidc)) => place.number(1).text(&oidc.issuer_url).text(&oidc.client_id),
        Some(ProviderRow::Github(github)) if github.url.is_empty() => place.number(2).text(&github.client_id),
        Some(ProviderRow::Github(github)) => place.number(4).text(&github.url).text(&github.client_id),
        Some(ProviderRow::Saml(saml)) => place.number(3).text(&saml.entity_id),
        None => place.number(0),
    };
    place.finish()
}

/// Mappings as they are stored, and all roles that they give.
fn checked(
    mut mappings: Vec<ClaimMappingRow>,
) -> Result<(Vec<ClaimMappingRow>, BTreeSet<RoleName>), CoreError> {
    const FIELD: &str = "connector.mappings";
    if mappings.len() > MAX_MAPPINGS {
        return Err(CoreError::invalid(FIELD, format!("at most {MAX_MAPPINGS} mappings")));
    }
    let (mut all, mut seen) = (BTreeSet::new(), BTreeMap::new());
    for (index, mapping) in mappings.iter_mut().enumerate() {
        let field = format!("{FIELD}[{index}]");
        web::check_text(&format!("{field}.claim"), &mapping.claim, 1..=MAX_CLAIM)?;
        web::check_text(&format!("{field}.value"), &mapping.value, 1..=MAX_CLAIM)?;
        if let Some(first) = seen.insert((mapping.claim.clone(), mapping.value.clone()), index) {
            let reason =
                format!("the same claim and value as in mappings[{first}]: put their roles together");
            return Err(CoreError::invalid(field, reason));
        }
        let roles = mapped::parse(&format!("{field}.roles"), &mapping.roles)?;
        mapping.roles = roles.iter().map(RoleName::to_string).collect();
        all.extend(roles);
    }
    Ok((mappings, all))
}

/// Roles that a stored connector gives.
fn roles_of(row: &ConnectorRow) -> Result<BTreeSet<RoleName>, CoreError> {
    let names = row.mappings.iter().flat_map(|mapping| &mapping.roles);
    names.map(|name| RoleName::parse("connector.mappings", name)).collect()
}

/// One connector, its secret sealed.
///
/// # Errors
/// [`CoreError::NotFound`], [`CoreError::Storage`].
pub fn get(
    state: &mut (impl Read + ?Sized),
    name: &ConnectorName,
) -> Result<Versioned<ConnectorRow>, CoreError> {
    let not_found = || CoreError::NotFound { kind: KIND, name: name.to_string() };
    state.get(&ConnectorKey(name.clone()))?.ok_or_else(not_found)
}

/// A page of the connectors, ordered by name.
///
/// # Errors
/// [`CoreError::Invalid`] for a page token that is not of this list; [`CoreError::Storage`].
pub fn list(
    state: &mut (impl Read + ?Sized),
    page: &PageRequest,
) -> Result<Page<VersionedConnector>, CoreError> {
    let after = page.after(|text| ConnectorName::parse("page_token", text).ok())?;
    let rows = state.scan(after.map(ConnectorKey).as_ref(), page.size.saturating_add(1))?;
    let connectors = rows.into_iter().map(|(key, row)| (key.0, row)).collect();
    Ok(Page::cut(
        connectors,
        page.size,
        |(_, connector)| connector.row.encoded_len(),
        |(name, _)| name.to_string(),
    ))
}

/// Creates a connector, and answers it as it is stored.
///
/// # Errors
/// [`CoreError::Invalid`] for a secret that is only kept; [`CoreError::NotFound`] for a role; [`CoreError::Denied`] for one
/// that the caller may not give; [`CoreError::AlreadyExists`]; [`CoreError::Storage`].
pub fn create(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    new: &NewConnector,
    secret: &Secret,
) -> Result<ConnectorRow, CoreError> {
    mapped::check(tx, context.caller.holder()?, &new.roles)?;
    let key = ConnectorKey(new.name.clone());
    if tx.get(&key)?.is_some() {
        return Err(CoreError::AlreadyExists { kind: KIND, name: new.name.to_string() });
    }
    let made = ConnectorRow {
        created_at_ms: tx.now(),
        created_by: context.caller.actor(),
        since_ms: tx.now(),
        ..new.row(secret, None)?
    };
    tx.put(&key, &made);
    mapped::note(tx, MapperKind::Connector, new.name.as_str(), &BTreeSet::new(), &new.roles);
    record(tx, context, EventType::ConnectorCreate, new, secret);
    Ok(made)
}

/// Replaces a connector, and answers it as it is stored. With another provider or client the sessions that were made by it end.
///
/// # Errors
/// As of [`create`], but for one that is there; [`CoreError::Invalid`] for a stored secret that is of another issuer, client
/// or kind of provider; [`CoreError::Denied`] when it maps to what the caller does not hold; [`CoreError::StaleRevision`].
pub fn update(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    new: &NewConnector,
    revision: u64,
    secret: &Secret,
) -> Result<ConnectorRow, CoreError> {
    let current = get(tx, &new.name)?;
    CoreError::check_revision(KIND, new.name.as_str(), revision, current.revision)?;
    let (caller, before) = (context.caller.holder()?, roles_of(&current.row)?);
    mapped::may_manage(caller, &before)?;
    mapped::check(tx, caller, &new.roles)?;
    let mut row = new.row(secret, Some(&current.row))?;
    row.created_at_ms = current.row.created_at_ms;
    row.since_ms = match new.is_for_the_same(&current.row) {
        true => current.row.since_ms,
        false => tx.now(),
    };
    row.created_by = current.row.created_by;
    tx.put(&ConnectorKey(new.name.clone()), &row);
    mapped::note(tx, MapperKind::Connector, new.name.as_str(), &before, &new.roles);
    record(tx, context, EventType::ConnectorUpdate, new, secret);
    Ok(row)
}

/// Deletes a connector, with its secret.
///
/// # Errors
/// [`CoreError::NotFound`], [`CoreError::Denied`] when it maps to what the caller does not hold, [`CoreError::Storage`].
pub fn delete(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    name: &ConnectorName,
) -> Result<(), CoreError> {
    let before = roles_of(&get(tx, name)?.row)?;
    mapped::may_manage(context.caller.holder()?, &before)?;
    tx.delete(&ConnectorKey(name.clone()));
    mapped::note(tx, MapperKind::Connector, name.as_str(), &before, &BTreeSet::new());
    audit::append(tx, context, EventType::ConnectorDelete, format!("connector:{name}"), &[]);
    Ok(())
}

fn record(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    event: EventType,
    new: &NewConnector,
    secret: &Secret,
) {
    let mapping = |of: &ClaimMappingRow| format!("{}={}:{}", of.claim, of.value, of.roles.join("|"));
    let mappings: Vec<_> = new.row.mappings.iter().map(mapping).collect();
    let mut fields = vec![
        ("provider", new.provider_word().to_owned()),
        ("mappings", mappings.join(",")),
        ("second_factor", new.row.second_factor.to_string()),
    ];
    fields.extend(new.row.provider.as_ref().map(provider::record).unwrap_or_default());
    if matches!(secret, Secret::Sealed(sealed) if !sealed.is_empty()) {
        fields.push(("client_secret", "new".into()));
    }
    audit::append(tx, context, event, format!("connector:{}", new.name), &fields);
}

#[cfg(test)]
#[path = "connector_tests.rs"]
mod tests;
