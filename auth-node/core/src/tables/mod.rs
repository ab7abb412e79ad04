//! Every table and its keys. Rows are protobuf messages of our own: a release adds fields, and never gives a number
//! another meaning. Times are milliseconds since the Unix epoch.

use store_txn::{Row, UnixMillis};

/// Makes a protobuf message a row, which ends when `$expires_at` says.
macro_rules! row {
    ($row:ty, |$this:ident| $expires_at:expr) => {
        impl Row for $row {
            fn encode_row(&self) -> Vec<u8> {
                prost::Message::encode_to_vec(self)
            }

            fn decode_row(bytes: &[u8]) -> Result<Self, String> {
                prost::Message::decode(bytes).map_err(|error: prost::DecodeError| error.to_string())
            }

            fn expires_at(&self) -> Option<store_txn::UnixMillis> {
                let $this = self;
                $expires_at
            }
        }
    };
}

/// Makes protobuf messages rows that never end.
macro_rules! rows {
    ($($row:ty),+ $(,)?) => {$(row!($row, |_row| None);)+};
}

/// Makes protobuf messages rows that end at their `expires_at_ms`.
macro_rules! ending_rows {
    ($($row:ty),+ $(,)?) => {$(row!($row, |row| Some(row.expires_at_ms));)+};
}

/// Makes protobuf messages rows that end at their `expires_at_ms`, or never where that is 0.
macro_rules! rows_that_may_end {
    ($($row:ty),+ $(,)?) => {$(row!($row, |row| (row.expires_at_ms != 0).then_some(row.expires_at_ms));)+};
}

/// Makes a key of one text part, whose canonical form is checked when it is read back.
macro_rules! text_key {
    ($(#[$doc:meta])* $key:ident($part:ty, $parse:expr) -> $row:ty, $id:literal, $name:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $key(pub $part);

        impl Key for $key {
            type Row = $row;
            const TABLE: Table = Table { id: $id, name: $name };

            fn write(&self, out: &mut KeyWriter) {
                out.text(self.0.as_str());
            }

            fn read(parts: &mut KeyReader<'_>) -> Option<Self> {
                let parse: fn(&str) -> Option<$part> = $parse;
                parse(&parts.text()?).map(Self)
            }
        }
    };
}

/// Makes a key of a secret's digest.
macro_rules! digest_key {
    ($(#[$doc:meta])* $key:ident -> $row:ty, $id:literal, $name:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $key(pub SecretDigest);

        impl Key for $key {
            type Row = $row;
            const TABLE: Table = Table { id: $id, name: $name };

            fn write(&self, out: &mut KeyWriter) {
                out.fixed(&self.0.0);
            }

            fn read(parts: &mut KeyReader<'_>) -> Option<Self> {
                parts.fixed().map(|digest| Self(SecretDigest(digest)))
            }
        }
    };
}

/// Makes the key of a table with one row.
macro_rules! only_key {
    ($(#[$doc:meta])* $key:ident -> $row:ty, $id:literal, $name:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $key;

        impl Key for $key {
            type Row = $row;
            const TABLE: Table = Table { id: $id, name: $name };

            fn write(&self, _out: &mut KeyWriter) {}

            fn read(_parts: &mut KeyReader<'_>) -> Option<Self> {
                Some(Self)
            }
        }
    };
}

/// Makes a key of a number.
macro_rules! number_key {
    ($(#[$doc:meta])* $key:ident -> $row:ty, $id:literal, $name:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $key(pub u64);

        impl Key for $key {
            type Row = $row;
            const TABLE: Table = Table { id: $id, name: $name };

            fn write(&self, out: &mut KeyWriter) {
                out.number(self.0);
            }

            fn read(parts: &mut KeyReader<'_>) -> Option<Self> {
                parts.number().map(Self)
            }
        }
    };
}

// After the macros, which they use.
mod access;
mod agent_identities;
mod calls;
mod certificates;
mod cluster;
mod connectors;
mod invites;
mod joining;
mod logins;
mod nodes;
mod policy;
mod requests;
mod sessions;
mod spiffe;
mod sso;
#[cfg(test)]
mod tests;
mod trusted;
mod webauthn;

pub use access::{
    ConditionsRow, MemberRow, RequestRulesRow, RoleKey, RoleMemberKey, RoleOptionsRow, RoleRow, RuleRow,
    StringsRow, UserKey, UserRow,
};
pub use agent_identities::{
    AgentIdentityKey, AgentIdentityRow, AgentIdentityStateKey, AgentIdentityStateRow, BootstrapSecretKey,
    BootstrapSecretRow, IdentitySessionKey, IdentityTlsKeyKey, SpiffeIdKey, SpiffeIdRow,
};
pub use calls::{AnswerKey, AnswerRow};
pub use certificates::{IssuedKey, IssuedRow, RevocationHeadKey, RevocationKey, RevocationRow};
pub use cluster::{
    AuthJoinTokenKey, AuthJoinTokenRow, CaKey, CaKeyRow, CaKind, CaRow, ClusterKey, ClusterRow, FollowedKey,
    FollowedRow, RotationPhase, RotationRow,
};
pub use connectors::{
    ClaimMappingRow, ConnectorKey, ConnectorRow, GithubRow, MappedRoleKey, MapperKind, OidcRow, ProviderRow,
    SamlRow,
};
pub use invites::{InviteKey, InviteRow, InviteSecretKey, InviteSecretRow};
pub use joining::{
    IamRuleRow, JoinKey, JoinMethod, JoinRow, TokenKey, TokenRow, TokenSecretKey, TokenSecretRow,
    TokenUseKey, TokenUseRow,
};
pub use logins::{
    FailingNetworkRow, KnownNetworkRow, LoginsKey, LoginsRow, NetworkLoginsKey, NetworkLoginsRow,
    NobodysLoginsKey, SlotSecretKey, SlotSecretRow,
};
pub use nodes::{
    AgentLabelsKey, AgentLabelsRow, IngestKey, IngestRow, NodeKey, NodeKind, NodeRow, PresenceKey,
    PresenceRow, PrincipalKey, PrincipalRow,
};
pub use policy::{
    ClusterConfigKey, ClusterConfigRow, LockKey, LockRow, LockTargetKey, LockTargetRow, RecordingMode,
    SecondFactor, TargetKind,
};
pub use requests::{RequestKey, RequestRow, RequestState, ReviewRow, UserRequestKey};
pub use sessions::{
    AuthMethod, SessionHandleKey, SessionKey, SessionRefRow, SessionRow, SessionUseKey, SessionUseRow,
    UserSessionKey,
};
pub use spiffe::{
    JwtAuthorityRow, SpiffeBundleKey, SpiffeBundleRow, SpiffeDomainKey, SpiffeDomainRow, SpiffeEndpointRow,
    SpiffeRefreshKey, SpiffeRefreshRow, UsedSvidKey,
};
pub use sso::{ProgramRow, SsoCodeKey, SsoCodeRow, SsoLoginKey, SsoLoginRow};
pub use trusted::{
    ForeignCaRow, RefreshKey, RefreshRow, RoleMappingRow, TrustedClusterKey, TrustedClusterRow,
};
pub use webauthn::{
    CeremonyKey, CeremonyRow, CredentialKey, CredentialRow, DeviceKey, DeviceRow, Purpose, UserDeviceKey,
    WebauthnSecretKey, WebauthnSecretRow,
};

/// Nothing but the key counts.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MarkRow {}
rows!(MarkRow);

/// Nothing but the key counts, until a time.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MarkEndingRow {
    /// When it ends.
    #[prost(uint64, tag = "1")]
    pub expires_at_ms: UnixMillis,
}
ending_rows!(MarkEndingRow);
