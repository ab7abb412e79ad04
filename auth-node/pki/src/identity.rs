//! Who a TLS certificate names: one URI, `mezite://<cluster>/<kind>/<name>`. Only the canonical form is read, so
//! that two different texts never name the same holder. What the holder may do is not decided here.

use std::{fmt, str::FromStr};

use crate::PkiError;

/// Scheme and separator that every identity begins with.
const SCHEME: &str = "mezite://";

/// Longest name of a cluster or user, in bytes.
const MAX_NAME: usize = 63;

/// The holder of a TLS certificate. Build the parts from names that are already canonical; [`Identity::check`] tells
/// whether they are, and signing refuses those that are not.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Identity {
    /// An agent on a host.
    Agent {
        /// Name of the cluster: `[a-z0-9.-]{1,63}`.
        cluster: String,
        /// Agent id: a UUID in lower case with hyphens.
        id: String,
    },
    /// A recording ingest.
    Ingest {
        /// Name of the cluster: `[a-z0-9.-]{1,63}`.
        cluster: String,
        /// Agent id: a UUID in lower case with hyphens.
        id: String,
    },
    /// An auth node.
    Auth {
        /// Name of the cluster: `[a-z0-9.-]{1,63}`.
        cluster: String,
        /// Number of the node.
        node_id: u64,
    },
    /// A user.
    User {
        /// Name of the cluster: `[a-z0-9.-]{1,63}`.
        cluster: String,
        /// Canonical name of the user: `[a-z0-9._@-]{1,63}`.
        name: String,
    },
    /// An agent identity: a bot, a CI job, an AI agent. Its names are not users'.
    Bot {
        /// Name of the cluster: `[a-z0-9.-]{1,63}`.
        cluster: String,
        /// Canonical name of the identity: `[a-z0-9._@-]{1,63}`.
        name: String,
    },
}

impl Identity {
    /// The cluster that vouches for the holder.
    pub fn cluster(&self) -> &str {
        match self {
            Self::Agent { cluster, .. }
            | Self::Ingest { cluster, .. }
            | Self::Auth { cluster, .. }
            | Self::User { cluster, .. }
            | Self::Bot { cluster, .. } => cluster,
        }
    }

    /// Checks that every part is canonical.
    ///
    /// # Errors
    /// [`PkiError::InvalidIdentity`] names the part that is not.
    pub fn check(&self) -> Result<(), PkiError> {
        check_name(self.cluster(), b".-", "the cluster's name must be [a-z0-9.-], 1 to 63 characters")?;
        match self {
            Self::Agent { id, .. } | Self::Ingest { id, .. } => check_uuid(id),
            Self::Auth { .. } => Ok(()),
            Self::User { name, .. } => {
                check_name(name, b"._@-", "the user's name must be [a-z0-9._@-], 1 to 63 characters")
            }
            Self::Bot { name, .. } => check_name(
                name,
                b"._@-",
                "the agent identity's name must be [a-z0-9._@-], 1 to 63 characters",
            ),
        }
    }
}

/// The URI.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent { cluster, id } => write!(f, "{SCHEME}{cluster}/agent/{id}"),
            Self::Ingest { cluster, id } => write!(f, "{SCHEME}{cluster}/ingest/{id}"),
            Self::Auth { cluster, node_id } => write!(f, "{SCHEME}{cluster}/auth/{node_id}"),
            Self::User { cluster, name } => write!(f, "{SCHEME}{cluster}/user/{name}"),
            Self::Bot { cluster, name } => write!(f, "{SCHEME}{cluster}/bot/{name}"),
        }
    }
}

impl FromStr for Identity {
    type Err = PkiError;

    /// Reads the URI; nothing but the canonical form is accepted.
    fn from_str(uri: &str) -> Result<Self, PkiError> {
        let shape = PkiError::InvalidIdentity("it must be mezite://<cluster>/<kind>/<name>");
        let Some(rest) = uri.strip_prefix(SCHEME) else { return Err(shape) };
        let mut parts = rest.splitn(3, '/');
        let (Some(cluster), Some(kind), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(shape);
        };
        let cluster = cluster.to_owned();
        let identity = match kind {
            "agent" => Self::Agent { cluster, id: name.to_owned() },
            "ingest" => Self::Ingest { cluster, id: name.to_owned() },
            "auth" => Self::Auth { cluster, node_id: parse_node_id(name)? },
            "user" => Self::User { cluster, name: name.to_owned() },
            "bot" => Self::Bot { cluster, name: name.to_owned() },
            _ => return Err(PkiError::InvalidIdentity("its kind must be agent, ingest, auth, user or bot")),
        };
        identity.check()?;
        Ok(identity)
    }
}

fn parse_node_id(text: &str) -> Result<u64, PkiError> {
    text.parse()
        .ok()
        .filter(|id: &u64| id.to_string() == text)
        .ok_or(PkiError::InvalidIdentity("the node's id must be a decimal number"))
}

fn check_name(name: &str, also: &[u8], rule: &'static str) -> Result<(), PkiError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || also.contains(&byte);
    let good = (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(allowed);
    if good { Ok(()) } else { Err(PkiError::InvalidIdentity(rule)) }
}

/// RFC 9562's text form, in lower case.
fn check_uuid(text: &str) -> Result<(), PkiError> {
    let good = text.len() == 36
        && text.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        });
    if good {
        Ok(())
    } else {
        Err(PkiError::InvalidIdentity("the id must be a UUID in lower case with hyphens"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "6f9619ff-8b86-4011-b42d-00c04fc964ff";

    #[test]
    fn the_uris_are_pinned() {
        let cluster = || "prod.example".to_owned();
        let pinned = [
            (
                Identity::Agent { cluster: cluster(), id: ID.into() },
                "mezite://prod.example/agent/6f9619ff-8b86-4011-b42d-00c04fc964ff",
            ),
            (
                Identity::Ingest { cluster: cluster(), id: ID.into() },
                "mezite://prod.example/ingest/6f9619ff-8b86-4011-b42d-00c04fc964ff",
            ),
            (Identity::Auth { cluster: cluster(), node_id: 7 }, "mezite://prod.example/auth/7"),
            (
                Identity::User { cluster: cluster(), name: "ann_b@example.com".into() },
                "mezite://prod.example/user/ann_b@example.com",
            ),
            (Identity::Bot { cluster: cluster(), name: "ann".into() }, "mezite://prod.example/bot/ann"),
        ];
        for (identity, uri) in pinned {
            assert_eq!(identity.to_string(), uri);
            assert_eq!(uri.parse(), Ok(identity));
        }
    }

    #[test]
    fn only_the_canonical_form_is_read() {
        let long = "a".repeat(64);
        let bad = [
            String::new(),
            "mezite://".into(),
            "mezite://c".into(),
            "mezite://c/user".into(),
            "mezite://c/user/".into(),
            "mezite:///user/ann".into(),
            "MEZITE://c/user/ann".into(),
            "spiffe://c/user/ann".into(),
            "mezite://C/user/ann".into(),
            "mezite://c/User/ann".into(),
            "mezite://c/user/Ann".into(),
            "mezite://c/user/ann/".into(),
            "mezite://c/user/ann/agent/x".into(),
            "mezite://c/user/an%6e".into(),
            "mezite://c/user/ann?x".into(),
            "mezite://c/user/ann#x".into(),
            "mezite://c/user/ann ".into(),
            " mezite://c/user/ann".into(),
            "mezite://c/user/ann\0".into(),
            "mezite://c/user/änn".into(),
            "mezite://c:1/user/ann".into(),
            "mezite://u@c/user/ann".into(),
            "mezite://c_d/user/ann".into(),
            format!("mezite://{long}/user/ann"),
            format!("mezite://c/user/{long}"),
            "mezite://c/root/ann".into(),
            "mezite://c/auth/".into(),
            "mezite://c/auth/+1".into(),
            "mezite://c/auth/01".into(),
            "mezite://c/auth/-1".into(),
            "mezite://c/auth/18446744073709551616".into(),
            "mezite://c/agent/1".into(),
            "mezite://c/bot/Ann".into(),
            "mezite://c/bot/".into(),
            format!("mezite://c/agent/{}", ID.to_uppercase()),
            format!("mezite://c/agent/{{{ID}}}"),
            format!("mezite://c/ingest/{}", ID.replace('-', "")),
            format!("mezite://c/agent/{}", ID.replace("-b", "b-")),
        ];
        for uri in bad {
            assert!(uri.parse::<Identity>().is_err(), "{uri:?}");
        }
    }

    #[test]
    fn parts_that_were_not_parsed_are_checked() {
        let cluster = || "c".to_owned();
        assert!(Identity::User { cluster: cluster(), name: "a/../b".into() }.check().is_err());
        assert!(Identity::Agent { cluster: cluster(), id: "../user/root".into() }.check().is_err());
        assert!(Identity::Auth { cluster: "c/user".into(), node_id: 1 }.check().is_err());
        assert_eq!(Identity::Auth { cluster: cluster(), node_id: u64::MAX }.check(), Ok(()));
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_back(uri in "mezite://[a-z.-]{0,3}/(agent|auth|user|ingest|bot)/[ -~]{0,6}") {
            if let Ok(identity) = uri.parse::<Identity>() {
                prop_assert_eq!(identity.to_string(), uri);
            }
        }
    }
}
