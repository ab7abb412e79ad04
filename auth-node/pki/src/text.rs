//! Checks of short texts that end up in certificates, and how a refused one is shown.

use crate::PkiError;

/// Characters of a refused value that an error shows.
const SHOWN_CHARACTERS: usize = 80;

/// The value as an error may show it: escaped and cut.
pub(crate) fn shown(value: &str) -> String {
    let mut shown: String = value.chars().take(SHOWN_CHARACTERS).flat_map(char::escape_debug).collect();
    if value.chars().nth(SHOWN_CHARACTERS).is_some() {
        shown.push('…');
    }
    shown
}

/// The error for a refused name.
pub(crate) fn refused(what: &'static str, value: &str) -> PkiError {
    PkiError::InvalidName { what, value: shown(value) }
}

/// Checks that `value` has 1 to `limit` bytes and no control character.
///
/// # Errors
/// [`PkiError::InvalidName`].
pub(crate) fn check(what: &'static str, value: &str, limit: usize) -> Result<(), PkiError> {
    let good = (1..=limit).contains(&value.len()) && !value.chars().any(char::is_control);
    if good { Ok(()) } else { Err(refused(what, value)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_value_is_escaped_and_cut() {
        assert_eq!(shown("a\nb"), "a\\nb");
        assert_eq!(shown(&"x".repeat(81)), format!("{}…", "x".repeat(80)));
        assert_eq!(shown(&"x".repeat(80)), "x".repeat(80));
    }

    #[test]
    fn control_characters_and_wrong_lengths_are_refused() {
        assert_eq!(check("a name", "ä b", 4), Ok(()));
        for bad in ["", "12345", "a\0", "a\u{85}", "\x1b[2J"] {
            assert!(check("a name", bad, 4).is_err(), "{bad:?}");
        }
    }
}
