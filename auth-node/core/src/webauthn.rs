//! WebAuthn: for which relying party, devices and whose they are, ceremonies that have begun, and what a finished one gives. What
//! an authenticator signed is verified elsewhere; what comes of it is decided here.
//!
//! A ceremony is begun in one call and finished in another, at whichever node. Its state is a row, under a place of which
//! there are only so many ([`ceremony`]). Whoever finishes takes the row away before anything is verified, in a transaction of
//! its own: of two who finish the same one, at two nodes, one finds it.
//!
//! Where somebody is asked for by name, the answer is a list of credentials, real or fake ([`WebauthnSecret::fakes`]): nobody
//! learns whether there is such a user, or has devices.

pub mod ceremony;
pub mod device;
pub mod login;

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use store_txn::{Read, ReadExt, Transaction, TransactionExt};

use crate::{
    CoreError, cluster_config,
    names::UserName,
    tables::{ClusterConfigRow, CredentialKey, WebauthnSecretKey, WebauthnSecretRow},
    web::check_https_url,
};

/// Longest id of a relying party, in bytes: as DNS names.
const MAX_ID: usize = 253;
/// Most origins of a relying party.
const MAX_ORIGINS: usize = 8;
/// Lengths of credentials' ids as authenticators make them: password managers, Apple's and Android's keychains, TPMs,
/// security keys of two generations. Some more often than others.
const ID_LENGTHS: [usize; 8] = [64, 32, 20, 48, 16, 64, 32, 20];

/// For whom authenticators make and use credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelyingParty {
    /// A DNS name. Credentials are for it, and for no other.
    pub id: String,
    /// Origins of the pages that ask authenticators: of the host `id`, or below it.
    pub origins: Vec<String>,
}

/// The relying party of the cluster.
///
/// # Errors
/// [`CoreError::Precondition`] where none is configured; [`CoreError::Storage`].
pub fn relying_party(state: &mut (impl Read + ?Sized)) -> Result<RelyingParty, CoreError> {
    configured(&cluster_config::get(state)?.row).ok_or_else(|| {
        let reason = "WebAuthn is not set up in this cluster: an administrator has to say of which domain its web pages \
                      are, with `mezctl config set --webauthn-rp-id example.com --webauthn-origins https://login.example.com:3080`";
        CoreError::Precondition(reason.into())
    })
}

/// The relying party that a configuration says, if it says one. Its one origin is that of its host, where none is said.
pub(crate) fn configured(row: &ClusterConfigRow) -> Option<RelyingParty> {
    let id = row.webauthn_rp_id.clone();
    let mut origins = row.webauthn_origins.clone();
    if origins.is_empty() {
        origins.push(format!("https://{id}"));
    }
    (!id.is_empty()).then_some(RelyingParty { id, origins })
}

/// Checks the relying party of a configuration, or that it says none.
///
/// # Errors
/// [`CoreError::Invalid`] for `config.webauthn_rp_id` and `config.webauthn_origins`.
pub(crate) fn check_configured(row: &ClusterConfigRow) -> Result<(), CoreError> {
    const ORIGINS: &str = "config.webauthn_origins";
    let (id, origins) = (&row.webauthn_rp_id, &row.webauthn_origins);
    if origins.len() > MAX_ORIGINS {
        return Err(CoreError::invalid(ORIGINS, format!("at most {MAX_ORIGINS}")));
    }
    origins.iter().try_for_each(|origin| check_https_url(ORIGINS, origin))?;
    if id.is_empty() && origins.is_empty() {
        return Ok(());
    }
    if !is_domain(id) {
        let reason = "a domain in lower case, such as example.com: authenticators take no IP address for one";
        return Err(CoreError::invalid("config.webauthn_rp_id", reason));
    }
    if origins.iter().all(|origin| is_origin_of(id, origin)) {
        return Ok(());
    }
    let reason = format!("origins such as https://mezite.{id}:3080: of {id} or below it, without a path");
    Err(CoreError::invalid(ORIGINS, reason))
}

fn is_domain(text: &str) -> bool {
    let label = |label: &str| {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=63).contains(&label.len())
            && label.bytes().all(allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    text.len() <= MAX_ID && text.split('.').all(label) && !last.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether a URL is an origin of a host, or below it.
fn is_origin_of(id: &str, url: &str) -> bool {
    let authority = url.strip_prefix("https://").unwrap_or_default();
    let host = authority.split(':').next().unwrap_or_default();
    let below = host.strip_suffix(id).is_some_and(|front| front.is_empty() || front.ends_with('.'));
    below && is_domain(host) && !authority.contains(['/', '?'])
}

/// A credential by its id, as rows name it.
pub fn credential_key(credential_id: &[u8]) -> CredentialKey {
    CredentialKey(Sha256::digest(credential_id).into())
}

/// What fake credentials, user handles and places depend on: 256 random bits of the cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct WebauthnSecret([u8; 32]);

impl WebauthnSecret {
    /// One that is used if the cluster has none yet.
    pub fn from_random(random: [u8; 32]) -> Self {
        Self(random)
    }

    /// The cluster's; this one from now on if it has none.
    ///
    /// # Errors
    /// [`CoreError::Storage`].
    pub(crate) fn load_or_keep(&self, tx: &mut (impl Transaction + ?Sized)) -> Result<Self, CoreError> {
        if let Some(stored) = tx.get(&WebauthnSecretKey)? {
            let secret = stored.row.secret.as_slice().try_into();
            return secret
                .map(Self)
                .map_err(|_| CoreError::Internal("the secret of WebAuthn is damaged".into()));
        }
        tx.put(&WebauthnSecretKey, &WebauthnSecretRow { secret: self.0.to_vec() });
        Ok(self.clone())
    }

    fn mac(&self, domain: &str, number: u8, of: &[u8]) -> Result<[u8; 32], CoreError> {
        let mac = Hmac::<Sha256>::new_from_slice(&self.0);
        let mac = mac.map_err(|error| CoreError::Internal(format!("HMAC: {error}")))?;
        let mac = mac.chain_update(domain).chain_update([0, number]).chain_update(of);
        Ok(mac.finalize().into_bytes().into())
    }

    /// By what authenticators know a user: it tells nothing of it.
    ///
    /// # Errors
    /// [`CoreError::Internal`].
    pub(crate) fn user_handle(&self, name: &UserName) -> Result<[u8; 16], CoreError> {
        let mac = self.mac("mezite webauthn user", 0, name.as_str().as_bytes())?;
        Ok(mac.first_chunk().copied().unwrap_or_default())
    }

    /// One of so many, for a network or a user.
    ///
    /// # Errors
    /// [`CoreError::Internal`].
    pub(crate) fn slot(&self, of: &str, slots: u64) -> Result<u64, CoreError> {
        let mac = self.mac("mezite webauthn slot", 0, of.as_bytes())?;
        Ok(mac.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes)) % slots)
    }

    /// Ids of credentials that nobody has, for a name that is nobody's or whose user has none: the same always and at every
    /// node, as many and as long as real ones are.
    ///
    /// # Errors
    /// [`CoreError::Internal`].
    pub(crate) fn fakes(&self, name: &str) -> Result<Vec<Vec<u8>>, CoreError> {
        const DOMAIN: &str = "mezite webauthn fake";
        let [much, ..] = self.mac(DOMAIN, 0, name.as_bytes())?;
        let count = match much {
            ..=175 => 1,
            176..=239 => 2,
            240.. => 3,
        };
        (1..=count).map(|number| self.fake(DOMAIN, number * 4, name.as_bytes())).collect()
    }

    fn fake(&self, domain: &str, number: u8, name: &[u8]) -> Result<Vec<u8>, CoreError> {
        let [length, ..] = self.mac(domain, number, name)?;
        let length = ID_LENGTHS.get(usize::from(length) % ID_LENGTHS.len()).copied().unwrap_or(64);
        let mut id = self.mac(domain, number + 1, name)?.to_vec();
        id.extend(self.mac(domain, number + 2, name)?);
        id.truncate(length);
        Ok(id)
    }
}

impl fmt::Debug for WebauthnSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebauthnSecret(..)")
    }
}

#[cfg(test)]
#[path = "webauthn_tests.rs"]
mod tests;
