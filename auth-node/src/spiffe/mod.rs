//! SPIFFE, as others speak it: bundles in their JSON form (`bundle.rs`), SVIDs that are shown (`jwt.rs`, `x509.rs`), and bundles
//! that other trust domains tell (`endpoint.rs`, `refresh.rs`). What is decided by them is decided in `auth-core`.

pub(crate) mod bundle;
mod endpoint;
pub(crate) mod jwt;
pub(crate) mod refresh;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod x509;
