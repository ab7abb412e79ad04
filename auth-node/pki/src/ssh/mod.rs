//! The SSH side: public keys as clients send them, key pairs, the authority that signs OpenSSH certificates, and
//! SSHSIG signatures over documents.
//!
//! A key is checked once, when it becomes an [`SshPublicKey`]; everything after that takes the type. Formats are
//! OpenSSH's own (PROTOCOL.certkeys, PROTOCOL.key, PROTOCOL.sshsig).

mod ca;
mod certificate;
mod key;
mod known_hosts;
mod krl;
mod pair;
mod principal;
mod source_address;
mod sshsig;

pub use ca::{HostCertSpec, SshCa, UserCertSpec, UserExtensions};
pub use certificate::{CertificateInfo, CertificateKind, parse_certificate};
pub use key::SshPublicKey;
pub use known_hosts::known_hosts_line;
pub use krl::revocation_list;
pub use pair::SshKeyPair;
pub use sshsig::verify_sshsig;
