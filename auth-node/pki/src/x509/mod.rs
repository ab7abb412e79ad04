//! The X.509 side: TLS key pairs, the authority that signs leaf certificates for public keys, and what a certificate
//! says. Chains are verified by rustls where connections are made, not here.

mod ca;
mod foreign;
mod info;
mod key;
mod leaf;
mod name;
mod pem;
mod roles;
mod spki;
mod svid;

pub use ca::X509Ca;
pub use foreign::{authority_certificate, is_signed_by, signing_certificate, trust_anchor};
pub use info::{CertificateInfo, spki_pin};
pub use key::KeyPair;
pub use leaf::LeafSpec;
pub use pem::{certificate as certificate_pem, certificate_der};
pub use spki::check_public_key;
pub use svid::{AuthorityKey, Svid, SvidSpec, check_svid_authority};
