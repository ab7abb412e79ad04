//! Login sessions: by the digest of their id, by their public handle, and by user.

use store_txn::{Key, KeyReader, KeyWriter, Row, Table, UnixMillis};

use crate::{
    names::{SessionHandle, UserName},
    secret::SecretDigest,
};

digest_key!(
    /// A session, by its id's digest.
    SessionKey -> SessionRow, 12, "sessions"
);

/// How a user proved itself. The numbers are those of the API's `AuthMethod`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum AuthMethod {
    /// A row that does not say.
    Unspecified = 0,
    /// A password alone.
    Password = 1,
    /// A WebAuthn authenticator.
    Webauthn = 2,
    /// A single sign-on provider.
    Sso = 3,
    /// A SPIFFE SVID.
    Spiffe = 4,
    /// The bootstrap secret or certificate of an agent identity.
    AgentIdentity = 5,
}

/// A session.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SessionRow {
    /// Canonical name of the user; empty for the session of an agent identity, so that nobody takes it for one of a user.
    #[prost(string, tag = "1")]
    pub user: String,
    /// Public handle.
    #[prost(string, tag = "2")]
    pub handle: String,
    /// When the user logged in.
    #[prost(uint64, tag = "3")]
    pub created_at_ms: UnixMillis,
    /// When it ends.
    #[prost(uint64, tag = "4")]
    pub expires_at_ms: UnixMillis,
    /// How the user proved itself.
    #[prost(enumeration = "AuthMethod", tag = "5")]
    pub method: i32,
    /// Address that the login came from.
    #[prost(string, tag = "6")]
    pub client_address: String,
    /// The cluster's session epoch at login.
    #[prost(uint64, tag = "7")]
    pub epoch: u64,
    /// Id of the WebAuthn device that the user proved itself with; empty without one.
    #[prost(string, tag = "8")]
    pub device: String,
    /// Canonical name of the agent identity that it is of; empty: it is a user's.
    #[prost(string, tag = "9")]
    pub agent_identity: String,
    /// SPIFFE ID of the SVID that it was made by; empty: by none.
    #[prost(string, tag = "10")]
    pub spiffe_id: String,
    /// Whether the connector of a single sign-on vouches for a second factor.
    #[prost(bool, tag = "11")]
    pub second_factor: bool,
}
ending_rows!(SessionRow);

digest_key!(
    /// The use of a session, by its id's digest. Apart from the session, which nothing then changes while it lasts.
    SessionUseKey -> SessionUseRow, 62, "session_uses"
);

/// When a session was used last, as far as that was noted.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SessionUseRow {
    /// When.
    #[prost(uint64, tag = "1")]
    pub last_used_ms: UnixMillis,
    /// When the session ends.
    #[prost(uint64, tag = "2")]
    pub expires_at_ms: UnixMillis,
}
ending_rows!(SessionUseRow);

text_key!(
    /// A session's public handle.
    SessionHandleKey(SessionHandle, SessionHandle::parse) -> SessionRefRow, 13, "session_handles"
);

/// Which session a handle names.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SessionRefRow {
    /// Digest of the session's id.
    #[prost(bytes = "vec", tag = "1")]
    pub digest: Vec<u8>,
    /// When the session ends.
    #[prost(uint64, tag = "2")]
    pub expires_at_ms: UnixMillis,
}
ending_rows!(SessionRefRow);

/// A session of a user: to find all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserSessionKey {
    /// Whose.
    pub user: UserName,
    /// Its handle.
    pub handle: SessionHandle,
}

impl UserSessionKey {
    /// The common front of a user's sessions.
    pub fn front(user: &UserName) -> KeyWriter {
        let mut front = KeyWriter::table(Self::TABLE);
        front.text(user.as_str());
        front
    }
}

impl Key for UserSessionKey {
    type Row = SessionRefRow;
    const TABLE: Table = Table { id: 14, name: "user_sessions" };

    fn write(&self, out: &mut KeyWriter) {
        out.text(self.user.as_str()).text(self.handle.as_str());
    }

    fn read(parts: &mut KeyReader<'_>) -> Option<Self> {
        let user = UserName::parse("", &parts.text()?).ok()?;
        Some(Self { user, handle: SessionHandle::parse(&parts.text()?)? })
    }
}
