//! Logins with a password: failures of late, and from where users have proved themselves.

use store_txn::{Key, KeyReader, KeyWriter, Row, Table, UnixMillis};

use crate::names::UserName;

text_key!(
    /// Tries to log in as a user.
    LoginsKey(UserName, |text| UserName::parse("", text).ok()) -> LoginsRow, 60, "logins"
);

number_key!(
    /// Tries to log in under names that are nobody's: the names of a slot share a row, so that there are only so many.
    NobodysLoginsKey -> LoginsRow, 61, "nobodys_logins"
);

number_key!(
    /// Failures from networks as all users together: the networks of a slot share a row, so that there are only so many.
    NetworkLoginsKey -> NetworkLoginsRow, 68, "network_logins"
);

only_key!(
    /// The one row of the secret that slots depend on.
    SlotSecretKey -> SlotSecretRow, 69, "slot_secret"
);

/// What is known of the logins under a name. `lockout` says what comes of it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LoginsRow {
    /// Networks with failures of late.
    #[prost(message, repeated, tag = "1")]
    pub failing: Vec<FailingNetworkRow>,
    /// Networks that the user has proved itself from.
    #[prost(message, repeated, tag = "2")]
    pub known: Vec<KnownNetworkRow>,
    /// Failures of late from networks that are not known, in all.
    #[prost(uint32, tag = "3")]
    pub strange_failures: u32,
    /// When those are forgotten.
    #[prost(uint64, tag = "4")]
    pub strange_until_ms: UnixMillis,
    /// When there is nothing left to remember.
    #[prost(uint64, tag = "5")]
    pub expires_at_ms: UnixMillis,
    /// Networks from which the name was refused for what was tried there as others, and until when. How many failures those
    /// are is in the networks' own rows.
    #[prost(message, repeated, tag = "6")]
    pub shut: Vec<FailingNetworkRow>,
}
ending_rows!(LoginsRow, NetworkLoginsRow);

/// What is known of the networks of a slot.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NetworkLoginsRow {
    /// Those with failures of late, as users who are not known from them.
    #[prost(message, repeated, tag = "1")]
    pub failing: Vec<FailingNetworkRow>,
    /// When there is nothing left to remember.
    #[prost(uint64, tag = "2")]
    pub expires_at_ms: UnixMillis,
}

/// What slots of names and networks depend on.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SlotSecretRow {
    /// 32 random bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub secret: Vec<u8>,
}
rows!(SlotSecretRow);

/// A network with failures of late.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FailingNetworkRow {
    /// As `lockout` names it.
    #[prost(string, tag = "1")]
    pub network: String,
    /// How many.
    #[prost(uint32, tag = "2")]
    pub failures: u32,
    /// When they are forgotten.
    #[prost(uint64, tag = "3")]
    pub until_ms: UnixMillis,
}

/// A network that a user has proved itself from.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KnownNetworkRow {
    /// As `lockout` names it.
    #[prost(string, tag = "1")]
    pub network: String,
    /// When it did last.
    #[prost(uint64, tag = "2")]
    pub last_ms: UnixMillis,
}
