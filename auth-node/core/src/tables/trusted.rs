//! Clusters whose users are let in.

use store_txn::{Key, KeyReader, KeyWriter, Row, Table, UnixMillis};

use crate::names::ClusterName;

text_key!(
    /// A trusted cluster.
    TrustedClusterKey(ClusterName, |text| ClusterName::parse("", text).ok()) -> TrustedClusterRow, 72,
    "trusted_clusters"
);

/// A cluster whose users are let in.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TrustedClusterRow {
    /// Its addresses, host:port.
    #[prost(string, repeated, tag = "1")]
    pub addresses: Vec<String>,
    /// What its roles are here.
    #[prost(message, repeated, tag = "2")]
    pub mappings: Vec<RoleMappingRow>,
    /// Off without being forgotten.
    #[prost(bool, tag = "3")]
    pub disabled: bool,
    /// Its authorities, ascending by kind: users, hosts, TLS.
    #[prost(message, repeated, tag = "4")]
    pub authorities: Vec<ForeignCaRow>,
    /// Revision of the trust bundle that they are of, there.
    #[prost(uint64, tag = "5")]
    pub bundle_revision: u64,
    /// When it was made.
    #[prost(uint64, tag = "6")]
    pub created_at_ms: UnixMillis,
    /// Who made it.
    #[prost(string, tag = "7")]
    pub created_by: String,
}
rows!(TrustedClusterRow);

/// What a role of another cluster is here.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RoleMappingRow {
    /// Role there, or `*`.
    #[prost(string, tag = "1")]
    pub remote: String,
    /// Roles here.
    #[prost(string, repeated, tag = "2")]
    pub local: Vec<String>,
}

/// The public side of an authority of another cluster.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ForeignCaRow {
    /// Which one: the number of a `CaKind`.
    #[prost(int32, tag = "1")]
    pub kind: i32,
    /// OpenSSH public key lines (user, host), or PEM certificates (TLS). All verify.
    #[prost(string, repeated, tag = "2")]
    pub keys: Vec<String>,
}

text_key!(
    /// How it went to ask a trusted cluster for its authorities.
    RefreshKey(ClusterName, |text| ClusterName::parse("", text).ok()) -> RefreshRow, 73, "trusted_cluster_refreshes"
);

/// How it went to ask a trusted cluster for its authorities.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RefreshRow {
    /// When it last answered.
    #[prost(uint64, tag = "1")]
    pub refreshed_at_ms: UnixMillis,
    /// Why it could not be asked the last time; empty: it could.
    #[prost(string, tag = "2")]
    pub error: String,
}
rows!(RefreshRow);
