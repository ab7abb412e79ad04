//! Lifetimes, by one rule for SSH and X.509.

use crate::PkiError;

/// The last second of the year 9999, the last that X.509 can write (RFC 5280, 4.1.2.5). OpenSSH's "forever" is far
/// above it.
pub(crate) const MAX_UNIX_SECONDS: u64 = 253_402_300_799;

/// Checks that something lives from `start` to a later `end`, both in Unix seconds.
///
/// # Errors
/// [`PkiError::InvalidLifetime`].
pub(crate) fn check(start: u64, end: u64) -> Result<(), PkiError> {
    if start < end && end <= MAX_UNIX_SECONDS { Ok(()) } else { Err(PkiError::InvalidLifetime) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_is_never_empty_reversed_or_endless() {
        assert_eq!(check(1, 2), Ok(()));
        assert_eq!(check(0, MAX_UNIX_SECONDS), Ok(()));
        for (start, end) in [(2, 2), (3, 2), (0, 0), (0, MAX_UNIX_SECONDS + 1), (0, u64::MAX)] {
            assert_eq!(check(start, end), Err(PkiError::InvalidLifetime), "{start} to {end}");
        }
    }
}
