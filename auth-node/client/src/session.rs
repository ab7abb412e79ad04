//! What goes into the metadata of a call: the session and the deadline.

use std::{fmt, sync::Arc, time::Duration};

use mezite_proto::v1::auth_service_client::AuthServiceClient;
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
        let text = Zeroizing::new(format!("Bearer {}", self.expose()));
        let mut value = MetadataValue::try_from(text.as_str())
            .map_err(|_| Status::invalid_argument("the session ID cannot be sent"))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

impl fmt::Debug for SessionSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionSecret(redacted)")
    }
}

/// Adds the session and the deadline to a call.
#[derive(Debug, Clone)]
pub struct CallMetadata {
    pub(crate) session: Option<SessionSecret>,
    pub(crate) timeout: Duration,
}

impl Interceptor for CallMetadata {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(session) = &self.session {
            request.metadata_mut().insert("authorization", session.header()?);
        }
        request.set_timeout(self.timeout);
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_is_sent_and_never_shown() {
        let session = SessionSecret::new("c0ffee".into()).unwrap();
        let mut metadata = CallMetadata { session: Some(session), timeout: Duration::from_secs(1) };
        assert!(!format!("{metadata:?}").contains("c0ffee"));
        let request = metadata.call(Request::new(())).unwrap();
        let header = request.metadata().get("authorization").unwrap();
        assert_eq!(header.to_str().unwrap(), "Bearer c0ffee");
        assert!(!format!("{request:?}").contains("c0ffee"));
        assert!(request.metadata().contains_key("grpc-timeout"));
    }

    #[test]
    fn what_a_header_cannot_carry_is_refused() {
        for wrong in ["", "a b", "a\r\nx: y", "é"] {
            assert!(SessionSecret::new(wrong.into()).is_err(), "{wrong:?}");
        }
    }
}
