//! WebAuthn: the secret that fakes and user handles depend on, ceremonies that have begun, and devices.

use store_txn::{Key, KeyReader, KeyWriter, Row, Table, UnixMillis};

use super::MarkRow;
use crate::names::{DeviceId, UserName};

/// The one row of the secret that WebAuthn depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebauthnSecretKey;

impl Key for WebauthnSecretKey {
    type Row = WebauthnSecretRow;
    const TABLE: Table = Table { id: 80, name: "webauthn_secret" };

    fn write(&self, _out: &mut KeyWriter) {}

    fn read(_parts: &mut KeyReader<'_>) -> Option<Self> {
        Some(Self)
    }
}

/// What fake credentials, user handles and places depend on.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WebauthnSecretRow {
    /// 32 random bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub secret: Vec<u8>,
}
rows!(WebauthnSecretRow);

/// A ceremony that has begun, by its place: there are only so many, and a new one may take the place of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CeremonyKey(pub u64);

impl Key for CeremonyKey {
    type Row = CeremonyRow;
    const TABLE: Table = Table { id: 81, name: "webauthn_ceremonies" };

    fn write(&self, out: &mut KeyWriter) {
        out.number(self.0);
    }

    fn read(parts: &mut KeyReader<'_>) -> Option<Self> {
        parts.number().map(Self)
    }
}

/// What a ceremony is for. One that was begun for one purpose is of no use for another. The numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Purpose {
    /// A row that does not say: for nothing.
    Unspecified = 0,
    /// To log in with an authenticator alone.
    Login = 1,
    /// To log in with an authenticator after a password was verified.
    StepUp = 2,
    /// To register a discoverable credential.
    Passkey = 3,
    /// To register any other credential.
    SecurityKey = 4,
}

/// A ceremony that has begun.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CeremonyRow {
    /// Digest of the secret that names it.
    #[prost(bytes = "vec", tag = "1")]
    pub digest: Vec<u8>,
    /// What it is for.
    #[prost(enumeration = "Purpose", tag = "2")]
    pub purpose: i32,
    /// Canonical name of the user that it is for; empty: of nobody, or of whoever the credential says.
    #[prost(string, tag = "3")]
    pub user: String,
    /// By what a failure is counted that is nobody's.
    #[prost(bytes = "vec", tag = "4")]
    pub typed: Vec<u8>,
    /// Handle of the session that a registration was begun with.
    #[prost(string, tag = "5")]
    pub session: String,
    /// SHA-256 of the hash of the password that was verified before a step-up.
    #[prost(bytes = "vec", tag = "6")]
    pub proof: Vec<u8>,
    /// The challenge and what is asked for, as the verifier wrote it.
    #[prost(bytes = "vec", tag = "7")]
    pub state: Vec<u8>,
    /// The cluster's session epoch when it began.
    #[prost(uint64, tag = "8")]
    pub epoch: u64,
    /// When it ends.
    #[prost(uint64, tag = "9")]
    pub expires_at_ms: UnixMillis,
    /// Whether the name of a user was given: its own credentials are asked for, and no others.
    #[prost(bool, tag = "10")]
    pub named: bool,
}
ending_rows!(CeremonyRow);

text_key!(
    /// A registered WebAuthn device.
    DeviceKey(DeviceId, DeviceId::parse) -> DeviceRow, 82, "webauthn_devices"
);

/// A registered WebAuthn device: a credential, and what is known of it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeviceRow {
    /// Canonical name of the user.
    #[prost(string, tag = "1")]
    pub user: String,
    /// Name that the user gave it.
    #[prost(string, tag = "2")]
    pub name: String,
    /// The credential's id.
    #[prost(bytes = "vec", tag = "3")]
    pub credential_id: Vec<u8>,
    /// The credential's public key and properties, as the verifier wrote them.
    #[prost(bytes = "vec", tag = "4")]
    pub credential: Vec<u8>,
    /// Signature counter, as it was shown last; 0: it has none.
    #[prost(uint32, tag = "5")]
    pub counter: u32,
    /// Whether it was registered as a discoverable credential.
    #[prost(bool, tag = "6")]
    pub passkey: bool,
    /// Id of the relying party that it is for: it is of no use for another.
    #[prost(string, tag = "7")]
    pub relying_party: String,
    /// When it was registered.
    #[prost(uint64, tag = "8")]
    pub created_at_ms: UnixMillis,
    /// When its user logged in with it last; 0: never.
    #[prost(uint64, tag = "9")]
    pub last_used_at_ms: UnixMillis,
}
rows!(DeviceRow);

/// A device of a user: to find all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserDeviceKey {
    /// Whose.
    pub user: UserName,
    /// The device.
    pub device: DeviceId,
}

impl UserDeviceKey {
    /// The common front of a user's devices.
    pub fn front(user: &UserName) -> KeyWriter {
        let mut front = KeyWriter::table(Self::TABLE);
        front.text(user.as_str());
        front
    }
}

impl Key for UserDeviceKey {
    type Row = MarkRow;
    const TABLE: Table = Table { id: 83, name: "webauthn_user_devices" };

    fn write(&self, out: &mut KeyWriter) {
        out.text(self.user.as_str()).text(self.device.as_str());
    }

    fn read(parts: &mut KeyReader<'_>) -> Option<Self> {
        let user = UserName::parse("", &parts.text()?).ok()?;
        Some(Self { user, device: DeviceId::parse(&parts.text()?)? })
    }
}

/// A credential, by the SHA-256 of its id: one is of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CredentialKey(pub [u8; 32]);

impl Key for CredentialKey {
    type Row = CredentialRow;
    const TABLE: Table = Table { id: 84, name: "webauthn_credentials" };

    fn write(&self, out: &mut KeyWriter) {
        out.fixed(&self.0);
    }

    fn read(parts: &mut KeyReader<'_>) -> Option<Self> {
        parts.fixed().map(Self)
    }
}

/// Which device a credential is of.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CredentialRow {
    /// Its id.
    #[prost(string, tag = "1")]
    pub device: String,
}
rows!(CredentialRow);
