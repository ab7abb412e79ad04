//! SSH and X.509 certificates of a cluster: key pairs, the authorities that sign, and the parsers that read back
//! what was signed. Every refusal that protects a signature lives here, beside the signing.
//!
//! What never lives here: the clock (times are arguments, in Unix seconds), storage, and the policy that decides
//! who gets which certificate. Randomness is drawn from the operating system, for new keys, nonces and X.509
//! serial numbers only.

mod error;
pub mod identity;
mod public_key;
mod random;
pub mod ssh;
mod text;
mod validity;
pub mod x509;

pub use error::PkiError;
