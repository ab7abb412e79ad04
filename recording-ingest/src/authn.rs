//! Who calls, and what that lets them do: agents write their own recordings, auth nodes read any and write on behalf
//! of an agent that they name. Nobody else gets anything.

use std::fmt;

use mezite_pki::{identity::Identity, x509::CertificateInfo};
use mezite_proto::transport::ConnectionInfo;
use recording_format::{AgentId, Digest};
use tonic::{Extensions, metadata::MetadataMap};

use crate::error::IngestError;

/// Metadata with which an auth node names the agent whose call it relays.
pub const RELAYED_AGENT: &str = "mezite-relayed-agent";

/// A caller that proved who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// An agent of the cluster.
    Agent {
        /// Its id.
        id: AgentId,
        /// Digest of its certificate.
        certificate: Digest,
        /// DNS names in its certificate.
        dns_names: Vec<String>,
    },
    /// An auth node of the cluster, which has checked the user or agent behind it.
    Auth {
        /// Its id.
        node_id: u64,
    },
}

/// Whose recording a call may write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer {
    /// The agent.
    pub agent_id: AgentId,
    /// Digest of its certificate; unknown when relayed.
    pub certificate: Option<Digest>,
    /// The auth node that relays, such as `auth:2`.
    pub relayed_by: Option<String>,
    /// What its host may be called: the hostname that auth nodes know, or else the names in its certificate. `None`:
    /// neither is known.
    pub hostnames: Option<Vec<String>>,
}

/// Tells who calls, from the connection's certificate, which TLS has verified against the trust bundle.
///
/// # Errors
/// [`IngestError::Unauthenticated`] without a certificate that is valid at `now` (Unix seconds) and names an identity;
/// [`IngestError::Denied`] for one of another cluster, or neither an agent's nor an auth node's.
pub fn caller(extensions: &Extensions, cluster: &str, now: u64) -> Result<Caller, IngestError> {
    let info = extensions.get::<ConnectionInfo>();
    let Some(leaf) = info.and_then(|info| info.peer_certificates.first()) else {
        return Err(IngestError::Unauthenticated("no client certificate"));
    };
    let unreadable = IngestError::Unauthenticated("the client certificate names no identity");
    let Ok(certificate) = CertificateInfo::from_der(leaf) else { return Err(unreadable) };
    // A connection outlives the handshake that checked the certificate's time.
    if now > certificate.not_after || now < certificate.not_before {
        return Err(IngestError::Unauthenticated("the client certificate has expired"));
    }
    let (found, caller) = match certificate.identity {
        Some(Identity::Agent { cluster, id }) => {
            let Ok(id) = id.parse() else { return Err(unreadable) };
            let dns_names = certificate.dns_names;
            (cluster, Caller::Agent { id, certificate: Digest::of(leaf), dns_names })
        }
        Some(Identity::Auth { cluster, node_id }) => (cluster, Caller::Auth { node_id }),
        Some(Identity::Ingest { .. } | Identity::User { .. } | Identity::Bot { .. }) => {
            return Err(IngestError::Denied(
                "only agents and auth nodes may call an ingest; use an auth node",
            ));
        }
        None => return Err(unreadable),
    };
    if found == cluster {
        Ok(caller)
    } else {
        Err(IngestError::Denied("the certificate is of another cluster"))
    }
}

impl fmt::Display for Caller {
    /// As the log names it, and the audit log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent { id, .. } => write!(f, "agent:{id}"),
            Self::Auth { node_id } => write!(f, "auth:{node_id}"),
        }
    }
}

impl Caller {
    /// Whose recording this call may write. What an agent says in [`RELAYED_AGENT`] counts for nothing.
    ///
    /// # Errors
    /// [`IngestError::Denied`] for an auth node that names no agent.
    pub fn writer(self, metadata: &MetadataMap) -> Result<Writer, IngestError> {
        let name = self.to_string();
        match self {
            Self::Agent { id, certificate, dns_names } => Ok(Writer {
                agent_id: id,
                certificate: Some(certificate),
                relayed_by: None,
                hostnames: Some(dns_names),
            }),
            Self::Auth { .. } => {
                let named = metadata.get(RELAYED_AGENT).and_then(|value| value.to_str().ok()?.parse().ok());
                let agent_id =
                    named.ok_or(IngestError::Denied("an auth node must name the agent it relays"))?;
                Ok(Writer { agent_id, certificate: None, relayed_by: Some(name), hostnames: None })
            }
        }
    }

    /// Checks that the caller may read recordings.
    ///
    /// # Errors
    /// [`IngestError::Denied`] for an agent.
    pub fn reader(self) -> Result<(), IngestError> {
        match self {
            Self::Auth { .. } => Ok(()),
            Self::Agent { .. } => Err(IngestError::Denied("recordings are read through an auth node")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent() -> Caller {
        let dns_names = vec!["web1".to_owned()];
        Caller::Agent { id: AgentId::from_bytes([1; 16]), certificate: Digest::of(b""), dns_names }
    }

    fn naming(agent: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert(RELAYED_AGENT, agent.parse().unwrap());
        metadata
    }

    #[test]
    fn without_a_connection_there_is_no_caller() {
        let refused = caller(&Extensions::new(), "c", 0);
        assert!(matches!(refused, Err(IngestError::Unauthenticated(_))));
    }

    #[test]
    fn an_agent_is_itself_whatever_it_says() {
        let metadata = naming(&AgentId::from_bytes([2; 16]).to_string());
        let writer = agent().writer(&metadata).unwrap();
        assert_eq!(writer.agent_id, AgentId::from_bytes([1; 16]));
        assert_eq!(writer.hostnames, Some(vec!["web1".to_owned()]));
        assert!(matches!(agent().reader(), Err(IngestError::Denied(_))));
    }

    #[test]
    fn an_auth_node_must_name_an_agent() {
        let auth = || Caller::Auth { node_id: 7 };
        assert!(auth().reader().is_ok());
        assert!(matches!(auth().writer(&MetadataMap::new()), Err(IngestError::Denied(_))));
        assert!(matches!(auth().writer(&naming("../x")), Err(IngestError::Denied(_))));
        let writer = auth().writer(&naming(&AgentId::from_bytes([2; 16]).to_string())).unwrap();
        assert_eq!(writer.agent_id, AgentId::from_bytes([2; 16]));
        assert_eq!((writer.certificate, writer.relayed_by.as_deref()), (None, Some("auth:7")));
        assert_eq!(writer.hostnames, None);
    }
}
