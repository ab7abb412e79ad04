//! The private keys of the certificate authorities at rest: sealed with ChaCha20-Poly1305 under the key-encryption
//! key, which is on each node and never in the store. Keys are opened and used elsewhere.

use std::fmt;

use store_txn::{Key, Read, ReadExt, Transaction, TransactionExt, Versioned};
use zeroize::Zeroizing;

pub use crate::seal::NONCE_LENGTH;
use crate::{
    Context, CoreError,
    audit::{self, EventType},
    cluster,
    seal::{self, KEY_LENGTH, Place},
    tables::{CaKey, CaKeyRow, CaKind, CaRow, RotationPhase},
};

/// First part of what is authenticated beside the key.
const DOMAIN: &[u8] = b"mezite ca key";
/// Length of the key-encryption key, in bytes.
pub const KEK_LENGTH: usize = KEY_LENGTH;

/// The key-encryption key of a cluster. All its nodes have the same.
pub struct Kek(Zeroizing<[u8; KEK_LENGTH]>);

impl Kek {
    /// From its bytes.
    pub fn new(bytes: Zeroizing<[u8; KEK_LENGTH]>) -> Self {
        Self(bytes)
    }

    /// The bytes, to be kept in a file of the node's own or sealed to a node that joins.
    pub fn bytes(&self) -> &[u8; KEK_LENGTH] {
        &self.0
    }
}

impl fmt::Debug for Kek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kek")
    }
}

impl CaKind {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Host => "host",
            Self::Tls => "tls",
            Self::Peer => "peer",
            Self::Spiffe => "spiffe",
            Self::Audit => "audit",
        }
    }
}

/// A new key of an authority.
#[derive(Debug, Clone, PartialEq)]
pub struct NewCa {
    /// Of which authority.
    pub kind: CaKind,
    /// Public side: an OpenSSH public key line (user, host, audit), or a PEM certificate (TLS, peer, SPIFFE).
    pub public: String,
    /// Private key, as [`seal`] made it.
    pub sealed_private: Vec<u8>,
}

/// A key of an authority that signs now.
#[derive(Debug, Clone, PartialEq)]
pub struct ActiveCa {
    /// Of which authority.
    pub kind: CaKind,
    /// Revision of the authority's row.
    pub revision: u64,
    /// The key, its private side sealed.
    pub key: CaKeyRow,
}

/// The key of an authority that signs now, for all but clients: see [`for_clients`].
///
/// # Errors
/// [`CoreError::Precondition`] before the cluster was made; [`CoreError::Storage`].
pub fn active(state: &mut (impl Read + ?Sized), kind: CaKind) -> Result<ActiveCa, CoreError> {
    let stored = row(state, kind)?;
    let key = stored.row.active.ok_or_else(|| missing(kind))?;
    Ok(ActiveCa { kind, revision: stored.revision, key })
}

/// The key of an authority that signs certificates of clients now: users, and agents towards auth nodes and ingests. A
/// rotation reaches them a phase before it reaches servers.
///
/// # Errors
/// As [`active`].
pub fn for_clients(state: &mut (impl Read + ?Sized), kind: CaKind) -> Result<ActiveCa, CoreError> {
    let Versioned { revision, row } = row(state, kind)?;
    let key =
        if row.phase() == RotationPhase::UpdateClients { row.trusted.into_iter().next() } else { row.active };
    Ok(ActiveCa { kind, revision, key: key.ok_or_else(|| missing(kind))? })
}

/// The row of an authority.
///
/// # Errors
/// As [`active`].
pub(crate) fn row(state: &mut (impl Read + ?Sized), kind: CaKind) -> Result<Versioned<CaRow>, CoreError> {
    state.get(&CaKey(kind))?.ok_or_else(|| missing(kind))
}

/// The kinds of authorities that the cluster has none of: it was made before there were any.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn kinds_missing(state: &mut (impl Read + ?Sized)) -> Result<Vec<CaKind>, CoreError> {
    let mut kinds = Vec::new();
    for kind in CaKind::ALL {
        if state.get(&CaKey(kind))?.is_none() {
            kinds.push(kind);
        }
    }
    Ok(kinds)
}

/// Gives a cluster an authority of a kind that it has none of. Answers whether it had none.
///
/// # Errors
/// [`CoreError::Precondition`] before the cluster was made; [`CoreError::Storage`].
pub fn add(tx: &mut (impl Transaction + ?Sized), context: &Context, new: &NewCa) -> Result<bool, CoreError> {
    cluster::get(tx)?;
    if tx.get(&CaKey(new.kind))?.is_some() {
        return Ok(false);
    }
    let NewCa { kind, public, sealed_private } = new.clone();
    let key = CaKeyRow { public, sealed_private, created_at_ms: tx.now() };
    tx.put(&CaKey(kind), &CaRow::new(key));
    audit::append(tx, context, EventType::CaCreate, format!("ca:{}", kind.name()), &[]);
    Ok(true)
}

fn missing(kind: CaKind) -> CoreError {
    CoreError::Precondition(format!("the cluster has no {} CA yet", kind.name()))
}

/// Seals a private key. It opens again only under the same key-encryption key, as the key of the same kind of authority
/// and with the same public side. A nonce is random and never used twice.
///
/// # Errors
/// [`CoreError::Internal`] for a key of an absurd length.
pub fn seal(
    kek: &Kek,
    kind: CaKind,
    public: &str,
    private: &[u8],
    nonce: [u8; NONCE_LENGTH],
) -> Result<Vec<u8>, CoreError> {
    seal::seal(kek.bytes(), Place { domain: DOMAIN, within: &place(kind, public) }, private, nonce)
}

/// Opens a sealed private key.
///
/// # Errors
/// [`CoreError::Internal`], for the log: this node's key-encryption key is not the cluster's, or the row was altered.
pub fn unseal(kek: &Kek, kind: CaKind, public: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, CoreError> {
    let place = place(kind, public);
    seal::unseal(kek.bytes(), Place { domain: DOMAIN, within: &place }, sealed).map_err(|why| {
        let hint = "this node's key-encryption key is not the cluster's, or the stored key was altered";
        CoreError::Internal(format!("the key of the {} CA cannot be opened: {why} ({hint})", kind.name()))
    })
}

/// What a sealed key is bound to: the place in the store, and the public side, last and so unambiguous.
fn place(kind: CaKind, public: &str) -> Vec<u8> {
    [&CaKey(kind).encode(), public.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;

    fn kek(byte: u8) -> Kek {
        Kek::new(Zeroizing::new([byte; KEK_LENGTH]))
    }

    /// Made with another implementation: Python `cryptography`, ChaCha20Poly1305.
    #[test]
    fn golden_sealed_key() {
        let sealed = seal(&kek(1), CaKind::Host, "ssh-ed25519 AAAA", b"private", [2; 12]).unwrap();
        assert_eq!(
            hex::encode(&sealed),
            "01020202020202020202020202966e9b58ecd78d1e125e0923b576edbea64904843c0b8f"
        );
        assert_eq!(&*unseal(&kek(1), CaKind::Host, "ssh-ed25519 AAAA", &sealed).unwrap(), b"private");
    }

    #[test]
    fn a_key_opens_only_in_its_place_and_unaltered() {
        let sealed = seal(&kek(1), CaKind::Host, "public", b"private", [2; 12]).unwrap();
        let opens = |kek: &Kek, kind, public, sealed: &[u8]| unseal(kek, kind, public, sealed).is_ok();
        assert!(opens(&kek(1), CaKind::Host, "public", &sealed));
        assert!(!opens(&kek(2), CaKind::Host, "public", &sealed));
        assert!(!opens(&kek(1), CaKind::User, "public", &sealed));
        assert!(!opens(&kek(1), CaKind::Host, "publix", &sealed));
        for index in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[index] ^= 1;
            assert!(!opens(&kek(1), CaKind::Host, "public", &altered), "byte {index}");
            assert!(!opens(&kek(1), CaKind::Host, "public", &sealed[..index]), "cut to {index}");
        }
    }

    #[test]
    fn an_authority_that_is_missing_is_made_once_and_none_is_replaced() {
        let mut world = World::new();
        assert_eq!(world.run(|tx, _| kinds_missing(tx)).unwrap(), []);
        let new = |kind| NewCa { kind, public: "another".into(), sealed_private: vec![1] };
        let (tls, spiffe) = (new(CaKind::Tls), new(CaKind::Spiffe));
        assert_eq!(world.run(|tx, context| add(tx, context, &tls)), Ok(false));
        let deleted = world.run(|tx, _| {
            tx.delete(&CaKey(CaKind::Spiffe));
            Ok(())
        });
        deleted.unwrap();
        assert_eq!(world.run(|tx, _| kinds_missing(tx)).unwrap(), [CaKind::Spiffe]);
        let before = world.audit().len();
        assert_eq!(world.run(|tx, context| add(tx, context, &spiffe)), Ok(true));
        assert_eq!(world.run(|tx, context| add(tx, context, &spiffe)), Ok(false));
        assert_eq!(world.run(|tx, _| active(tx, CaKind::Spiffe)).unwrap().key.public, "another");
        assert_ne!(world.run(|tx, _| active(tx, CaKind::Tls)).unwrap().key.public, "another");
        assert_eq!(world.events(before), ["ca.create"]);
    }

    #[test]
    fn secrets_are_absent_from_debug_and_errors() {
        assert_eq!(format!("{:?}", kek(7)), "Kek");
        let error = unseal(&kek(7), CaKind::Tls, "public", b"\x01short").unwrap_err();
        assert!(!error.to_string().contains("short"));
    }
}
