//! Whose a session is: a user's, or an agent identity's.

use std::fmt;

use crate::{
    CoreError,
    names::{IdentityName, UserName},
    tables::SessionRow,
};

/// Whose a session is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// A user's.
    User(UserName),
    /// An agent identity's.
    AgentIdentity(IdentityName),
}

impl From<&UserName> for Owner {
    fn from(name: &UserName) -> Self {
        Self::User(name.clone())
    }
}

impl Owner {
    /// Reads the name of a user, or that of an agent identity with `bot:` in front.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for `field`.
    pub fn parse(field: &str, text: &str) -> Result<Self, CoreError> {
        match text.strip_prefix(IdentityName::FRONT) {
            Some(name) => IdentityName::parse(field, name).map(Self::AgentIdentity),
            None => UserName::parse(field, text).map(Self::User),
        }
    }

    /// Whose a stored session is.
    pub(super) fn of(session: &SessionRow) -> Result<Self, CoreError> {
        if session.agent_identity.is_empty() {
            return UserName::parse("session.user", &session.user).map(Self::User);
        }
        IdentityName::parse("session.agent_identity", &session.agent_identity).map(Self::AgentIdentity)
    }
}

/// As [`Owner::parse`] reads it, and certificates for ssh have it.
impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => name.fmt(f),
            Self::AgentIdentity(name) => f.write_str(&name.principal()),
        }
    }
}

impl SessionRow {
    /// Whose it is, as [`Owner::parse`] reads it.
    pub fn owner_text(&self) -> String {
        match self.agent_identity.as_str() {
            "" => self.user.clone(),
            name => format!("{}{name}", IdentityName::FRONT),
        }
    }
}
