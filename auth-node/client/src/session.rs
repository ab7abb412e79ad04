//! What goes into the metadata of a call: the session, the idempotency key and the deadline.

use std::{fmt, sync::Arc, time::Duration};

use mezite_proto::{IDEMPOTENCY_KEY, v1::auth_service_client::AuthServiceClient};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};
use zeroize::Zeroizing;

use crate::ClientError;

/// The stub that [`crate::Client::call`] hands to its closure.
pub type AuthClient = AuthServiceClient<InterceptedService<Channel, CallMetadata>>;

/// A session ID. It is wiped when dropped and never shown.
#[derive(Clone)]
pub struct SessionSecret(Arc<Zeroizing<String>>);

impl SessionSecret {
    /// Takes a session ID as a login answered it.
    ///
    /// # Errors
    /// [`ClientError::Config`] when it cannot be one: it is empty or has characters that a header cannot carry.
    pub fn new(session_id: String) -> Result<Self, ClientError> {
        let session_id = Zeroizing::new(session_id);
        if session_id.is_empty() || !session_id.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ClientError::Config("that is not a session ID".into()));
        }
        Ok(Self(Arc::new(session_id)))
    }

    /// The session ID itself: for the file that keeps it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    fn header(&self) -> Result<MetadataValue<Ascii>, Status> {
        sensitive(&Zeroizing::new(format!("Bearer {}", self.expose())))
    }
}

/// A header that logs do not show.
fn sensitive(text: &str) -> Result<MetadataValue<Ascii>, Status> {
    let mut value = MetadataValue::try_from(text)
        .map_err(|_| Status::invalid_argument("a secret of the call cannot be sent"))?;
    value.set_sensitive(true);
    Ok(value)
}

impl fmt::Debug for SessionSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionSecret(redacted)")
    }
}

/// Names one call, so that a server knows its repetitions. By it, the answer that servers keep can be opened: it is
/// wiped when dropped and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct IdempotencyKey(Arc<Zeroizing<String>>);

impl IdempotencyKey {
    /// Draws one: 256 random bits.
    #[must_use]
    pub fn random() -> Self {
        let random = Zeroizing::new(rand::random::<[u8; 32]>());
        Self(Arc::new(Zeroizing::new(hex::encode(random.as_slice()))))
    }

    /// Reads one that was kept.
    ///
    /// # Errors
    /// [`ClientError::Config`] when it is not 64 hexadecimal digits in lower case.
    pub fn new(text: String) -> Result<Self, ClientError> {
        let text = Zeroizing::new(text);
        let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 64 || !text.bytes().all(digit) {
            return Err(ClientError::Config("that is not an idempotency key".into()));
        }
        Ok(Self(Arc::new(text)))
    }

    /// The key itself: for the file that keeps it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdempotencyKey(redacted)")
    }
}

/// Adds the session, the idempotency key and the deadline to a call.
#[derive(Debug, Clone)]
pub struct CallMetadata {
    pub(crate) session: Option<SessionSecret>,
    pub(crate) key: Option<IdempotencyKey>,
    pub(crate) timeout: Duration,
}

impl Interceptor for CallMetadata {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(session) = &self.session {
            request.metadata_mut().insert("authorization", session.header()?);
        }
        if let Some(key) = &self.key {
            request.metadata_mut().insert(IDEMPOTENCY_KEY, sensitive(&key.0)?);
        }
        request.set_timeout(self.timeout);
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_sent_and_never_shown() {
        let session = SessionSecret::new("c0ffee".into()).unwrap();
        let key = IdempotencyKey::random();
        let text = key.0.to_string();
        let mut metadata =
            CallMetadata { session: Some(session), key: Some(key), timeout: Duration::from_secs(1) };
        let shown = format!("{metadata:?}");
        assert!(!shown.contains("c0ffee") && !shown.contains(&text));
        let request = metadata.call(Request::new(())).unwrap();
        let header = |name| request.metadata().get(name).unwrap().to_str().unwrap().to_owned();
        assert_eq!(
            (header("authorization"), header(IDEMPOTENCY_KEY)),
            ("Bearer c0ffee".into(), text.clone())
        );
        let shown = format!("{request:?}");
        assert!(!shown.contains("c0ffee") && !shown.contains(&text));
        assert!(request.metadata().contains_key("grpc-timeout"));
    }

    #[test]
    fn a_key_is_64_hexadecimal_digits_and_never_the_same() {
        let (one, two) = (IdempotencyKey::random(), IdempotencyKey::random());
        assert!(one.0.len() == 64 && one.0.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
        assert_ne!(*one.0, *two.0);
        assert_eq!(IdempotencyKey::new(one.expose().to_owned()).unwrap(), one);
        for wrong in [String::new(), "0".repeat(63), "A".repeat(64)] {
            assert!(IdempotencyKey::new(wrong).is_err());
        }
    }

    #[test]
    fn what_a_header_cannot_carry_is_refused() {
        for wrong in ["", "a b", "a\r\nx: y", "é"] {
            assert!(SessionSecret::new(wrong.into()).is_err(), "{wrong:?}");
        }
    }
}
