//! What is known of other services on the web: their URLs, and texts that they name things by.

use crate::{CoreError, principal::check_address};

/// Longest URL, in bytes.
pub(crate) const MAX_URL: usize = 1024;

/// Checks a URL with scheme https, and a host with or without a port: no user, no fragment.
///
/// # Errors
/// [`CoreError::Invalid`] for `field`.
pub(crate) fn check_https_url(field: &str, url: &str) -> Result<(), CoreError> {
    let refused = || {
        let reason = format!("a URL such as https://login.example.com/path, at most {MAX_URL} bytes");
        CoreError::invalid(field, reason)
    };
    let rest = url.strip_prefix("https://").filter(|_| url.len() <= MAX_URL).ok_or_else(refused)?;
    let visible = rest.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"<>\\^`{|}#".contains(&byte));
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let host = |address: &str| check_address(field, address).is_ok();
    if visible && (host(authority) || host(&format!("{authority}:443"))) { Ok(()) } else { Err(refused()) }
}

/// Checks a text of 1 to `limit` visible ASCII characters.
///
/// # Errors
/// [`CoreError::Invalid`] for `field`.
pub(crate) fn check_visible(field: &str, text: &str, limit: usize) -> Result<(), CoreError> {
    if (1..=limit).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(());
    }
    Err(CoreError::invalid(field, format!("1 to {limit} visible ASCII characters")))
}

/// Checks a text for people or another service: at most `limit` bytes, without control characters and without spaces
/// around it.
///
/// # Errors
/// [`CoreError::Invalid`] for `field`.
pub(crate) fn check_text(
    field: &str,
    text: &str,
    length: std::ops::RangeInclusive<usize>,
) -> Result<(), CoreError> {
    let good = length.contains(&text.len())
        && !text.chars().any(char::is_control)
        && text.trim().len() == text.len();
    if good {
        return Ok(());
    }
    let (least, most) = (length.start(), length.end());
    let reason = format!("{least} to {most} bytes, without control characters and without spaces around it");
    Err(CoreError::invalid(field, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_urls_of_a_host_are_taken() {
        for good in [
            "https://login.example.com",
            "https://login.example.com/",
            "https://login.example.com:8443/a/b?c=d&e",
            "https://192.0.2.1/x",
            "https://[2001:db8::1]:444/x",
            "https://[2001:db8::1]",
        ] {
            assert!(check_https_url("u", good).is_ok(), "{good}");
        }
        let long = format!("https://a.example/{}", "x".repeat(MAX_URL));
        for bad in [
            "",
            "https://",
            "https:///x",
            "http://a.example",
            "HTTPS://a.example",
            "ftp://a.example",
            "a.example",
            "https://user@a.example",
            "https://user:word@a.example",
            "https://a.example#x",
            "https://a.example/\n",
            "https://a.example/ b",
            "https://ä.example",
            "https://a.example:0",
            "https://a.example:65536",
            "https://127.1",
            "https://a.example\\@b.example",
            "https://a..example",
            &long,
        ] {
            crate::testing::assert_invalid(check_https_url("u", bad), "u");
        }
    }

    #[test]
    fn texts_are_bounded_and_plain() {
        assert!(check_visible("t", "a-b_c.d", 7).is_ok() && check_text("t", "A ä b", 1..=9).is_ok());
        for bad in ["", "a b", "ä", "a\n", "12345678"] {
            assert!(check_visible("t", bad, 7).is_err(), "{bad:?}");
        }
        for bad in ["", " a", "a ", "a\nb", "1234567890"] {
            assert!(check_text("t", bad, 1..=9).is_err(), "{bad:?}");
        }
        assert!(check_text("t", "", 0..=9).is_ok());
    }
}
