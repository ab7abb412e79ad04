//! Randomness, straight from the operating system, with its failure as an error.

use rand::{TryRng, rngs::SysRng};

use crate::PkiError;

/// Fills `bytes`.
///
/// # Errors
/// [`PkiError::Randomness`].
pub(crate) fn fill(bytes: &mut [u8]) -> Result<(), PkiError> {
    SysRng.try_fill_bytes(bytes).map_err(|_| PkiError::Randomness)
}
