//! How one attempt failed: whether the request can have reached the server, and what the server said.

use std::{error::Error, io};

use rustls::AlertDescription;
use tonic::{ConnectError, Status, TimeoutExpired};

use crate::StatusError;

/// The failure of one attempt at one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// There was no connection, so the request was surely not sent.
    NotSent(String),
    /// TLS refused the server, or the server refused our certificate: asking again will not help.
    Untrusted(String),
    /// The connection broke: the request may have been carried out.
    Broken(String),
    /// No answer within the deadline: the request may have been carried out.
    TimedOut,
    /// The server answered.
    Answered(Box<StatusError>),
}

impl Failure {
    /// For people.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::NotSent(reason) | Self::Untrusted(reason) | Self::Broken(reason) => reason.clone(),
            Self::TimedOut => "no answer within the deadline".into(),
            Self::Answered(status) => status.to_string(),
        }
    }

    /// How much it tells of why nobody serves: what a server says tells more than that it says nothing, and that more than
    /// that there is none.
    pub(crate) fn tells(&self) -> u8 {
        match self {
            Self::Answered(_) => 2,
            Self::Broken(_) | Self::TimedOut => 1,
            Self::NotSent(_) | Self::Untrusted(_) => 0,
        }
    }

    /// Of an error while connecting.
    pub(crate) fn connecting(error: &(dyn Error + 'static)) -> Self {
        match find::<rustls::Error>(error) {
            Some(tls) if is_lasting(tls) => Self::Untrusted(describe_tls(tls)),
            _ => Self::NotSent(format!("no connection: {}", describe(error))),
        }
    }
}

impl From<Status> for Failure {
    /// A status with a source was made on this side of the wire; one without is the server's.
    fn from(status: Status) -> Self {
        let Some(source) = status.source() else {
            return Self::Answered(Box::new(StatusError::from(&status)));
        };
        if find::<TimeoutExpired>(source).is_some() {
            return Self::TimedOut;
        }
        if find::<ConnectError>(source).is_some() {
            return Self::connecting(source);
        }
        match find::<rustls::Error>(source) {
            // TLS 1.3 lets a client write before the server has judged its certificate; the verdict is an alert, and
            // nothing that was written before it was read. Any other alert may come after a request was carried out.
            Some(tls @ rustls::Error::AlertReceived(alert)) if refuses_certificate(*alert) => {
                Self::Untrusted(describe_tls(tls))
            }
            _ => Self::Broken(format!("the connection broke: {}", describe(source))),
        }
    }
}

/// Looks for an `E` along the sources, and inside I/O errors, which hide theirs.
fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        if let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            let inner: &(dyn Error + 'static) = inner;
            if let Some(found) = find::<E>(inner) {
                return Some(found);
            }
        }
        next = error.source();
    }
    None
}

fn is_lasting(error: &rustls::Error) -> bool {
    use rustls::Error as E;
    matches!(
        error,
        E::InvalidCertificate(_)
            | E::NoCertificatesPresented
            | E::UnsupportedNameType
            | E::AlertReceived(_)
            | E::PeerIncompatible(_)
            | E::InvalidCertRevocationList(_)
            | E::InappropriateMessage { .. }
            | E::InvalidMessage(_)
            | E::NoApplicationProtocol
    )
}

/// Whether the server says that it does not take the client's certificate (RFC 8446, section 6.2).
fn refuses_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as A;
    matches!(
        alert,
        A::NoCertificate
            | A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::CertificateRequired
            | A::UnknownCA
            | A::AccessDenied
            // Its issuer's name is known, but not that key: the authority was rotated.
            | A::DecryptError
    )
}

fn describe_tls(error: &rustls::Error) -> String {
    match error {
        rustls::Error::AlertReceived(alert) => format!("it refused the connection (TLS alert {alert:?})"),
        rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) => other.to_string(),
        rustls::Error::InvalidMessage(_) => "it does not speak TLS".into(),
        other => other.to_string(),
    }
}

/// What tonic says where its source says what is the matter.
const SAYS_NOTHING: &str = "transport error";

/// The message and those of its sources, each once.
fn describe(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let message = error.to_string();
        next = error.source();
        if text.contains(&message) || message == SAYS_NOTHING && next.is_some() {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&message);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::CertificateError;

    use super::*;

    #[test]
    fn an_answer_is_not_a_broken_connection() {
        assert!(matches!(Failure::from(Status::unavailable("later")), Failure::Answered(_)));
        let local = Status::from_error(Box::new(io::Error::from(io::ErrorKind::ConnectionReset)));
        assert!(matches!(Failure::from(local), Failure::Broken(_)));
    }

    #[test]
    fn a_connection_that_could_not_be_made_sent_nothing() {
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let status = Status::from_error(Box::new(ConnectError(Box::new(refused))));
        assert!(matches!(Failure::from(status), Failure::NotSent(_)));
    }

    #[test]
    fn only_the_verdict_on_the_certificate_says_that_nothing_was_read() {
        let after = |alert| {
            let tls = io::Error::other(rustls::Error::AlertReceived(alert));
            Failure::from(Status::from_error(Box::new(tls)))
        };
        for alert in [
            AlertDescription::CertificateExpired,
            AlertDescription::UnknownCA,
            AlertDescription::DecryptError,
        ] {
            assert!(matches!(after(alert), Failure::Untrusted(_)), "{alert:?}");
        }
        // These end a connection that was good: the request may have been carried out.
        for alert in [AlertDescription::BadRecordMac, AlertDescription::InternalError] {
            assert!(matches!(after(alert), Failure::Broken(_)), "{alert:?}");
        }
    }

    #[test]
    fn a_refused_certificate_is_found_inside_io_errors() {
        let tls = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let nested = io::Error::other(io::Error::other(tls));
        assert!(matches!(Failure::connecting(&nested), Failure::Untrusted(_)));
        let other = rustls::Error::InvalidCertificate(CertificateError::Other(rustls::OtherError(Arc::new(
            io::Error::other("pin"),
        ))));
        assert_eq!(Failure::connecting(&io::Error::other(other)), Failure::Untrusted("pin".into()));
    }
}
