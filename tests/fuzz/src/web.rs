//! What browsers send.

use auth_node::untrusted;

/// Bytes are the body of a request, or what is behind the `?` of one, or cookies.
pub(crate) fn webapi(bytes: &[u8]) -> bool {
    untrusted::webapi(bytes)
}

/// Bytes are an authenticator's answer.
pub(crate) fn credential(bytes: &[u8]) -> bool {
    untrusted::credential(bytes)
}
