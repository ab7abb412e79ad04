//! What every family of methods needs: times, durations, pages, new secrets.

use std::time::Duration;

use auth_core::{CoreError, page::PageRequest};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use store_txn::UnixMillis;
use zeroize::Zeroizing;

/// Longest page token that is looked at, in bytes.
const MAX_PAGE_TOKEN: usize = 1024;

/// A time.
pub(crate) fn timestamp(time: UnixMillis) -> prost_types::Timestamp {
    let (seconds, milliseconds) = (time / 1000, time % 1000);
    prost_types::Timestamp {
        seconds: i64::try_from(seconds).unwrap_or(i64::MAX),
        nanos: i32::try_from(milliseconds * 1_000_000).unwrap_or_default(),
    }
}

/// A duration.
pub(crate) fn duration_out(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or_default(),
    }
}

/// Reads a duration that must not be negative.
///
/// # Errors
/// [`CoreError::Invalid`] for `field`.
pub(crate) fn duration_in(field: &str, duration: prost_types::Duration) -> Result<Duration, CoreError> {
    let refused = |_| CoreError::invalid(field, "a duration must not be negative");
    let seconds = u64::try_from(duration.seconds).map_err(refused)?;
    let nanos = u32::try_from(duration.nanos).map_err(refused)?;
    if nanos >= 1_000_000_000 {
        return Err(CoreError::invalid(field, "a duration's nanos are below 1000000000"));
    }
    Ok(Duration::new(seconds, nanos))
}

/// Which page a request asks for. A page token is the cursor in base64, so that nobody reads meaning into it.
///
/// # Errors
/// [`CoreError::Invalid`] for a token that no list answered.
pub(crate) fn page(page_size: u32, page_token: &str) -> Result<PageRequest, CoreError> {
    if page_token.is_empty() {
        return Ok(PageRequest::new(page_size, None));
    }
    let refused = || CoreError::invalid("page_token", "use next_page_token of the page before, unchanged");
    if page_token.len() > MAX_PAGE_TOKEN {
        return Err(refused());
    }
    let cursor = URL_SAFE_NO_PAD.decode(page_token).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    Ok(PageRequest::new(page_size, Some(cursor.ok_or_else(refused)?)))
}

/// A new secret for a caller: 32 random bytes in base64, without characters that need quoting.
pub(crate) fn secret() -> Zeroizing<String> {
    let random = Zeroizing::new(rand::random::<[u8; 32]>());
    // Room for everything at once: a string that grows would leave copies.
    let mut text = Zeroizing::new(String::with_capacity(64));
    URL_SAFE_NO_PAD.encode_string(random.as_slice(), &mut text);
    text
}

/// A random serial number for an SSH certificate: 63 bits, so that no reader takes it for a negative one.
pub(crate) fn serial() -> u64 {
    rand::random::<u64>() >> 1
}

/// The token of the next page; empty: there is none.
pub(crate) fn page_token(next: Option<String>) -> String {
    next.map(|cursor| URL_SAFE_NO_PAD.encode(cursor)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_token_comes_back() {
        let token = page_token(Some("ann@example.com".into()));
        assert_eq!(page(7, &token).unwrap(), PageRequest { size: 7, after: Some("ann@example.com".into()) });
        assert_eq!(page(0, "").unwrap(), PageRequest { size: 100, after: None });
        assert_eq!(page_token(None), "");
        for bad in ["%", "_w", &"A".repeat(2000)] {
            assert!(page(0, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_secret_has_256_random_bits() {
        let secret = secret();
        assert_eq!(URL_SAFE_NO_PAD.decode(secret.as_str()).unwrap().len(), 32);
        assert_ne!(super::secret(), secret);
    }

    #[test]
    fn durations_are_never_negative() {
        let proto = |seconds, nanos| prost_types::Duration { seconds, nanos };
        assert_eq!(duration_in("ttl", proto(1, 500)).unwrap(), Duration::new(1, 500));
        for bad in [proto(-1, 0), proto(0, -1), proto(0, 1_000_000_000)] {
            assert!(duration_in("ttl", bad).is_err(), "{bad:?}");
        }
        assert_eq!(duration_out(Duration::new(3, 9)), proto(3, 9));
    }

    #[test]
    fn times_keep_their_milliseconds() {
        assert_eq!(timestamp(1_234), prost_types::Timestamp { seconds: 1, nanos: 234_000_000 });
    }
}
