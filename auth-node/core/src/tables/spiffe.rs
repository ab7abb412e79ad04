//! SPIFFE trust domains whose workloads are let in: what an admin says of one is apart from its bundle, which changes as the
//! domain says.

use store_txn::{Key, KeyReader, KeyWriter, Row, Table, UnixMillis};

use crate::{secret::SecretDigest, spiffe::TrustDomain};

text_key!(
    /// A trust domain.
    SpiffeDomainKey(TrustDomain, |text| TrustDomain::parse("", text).ok()) -> SpiffeDomainRow, 100, "spiffe_domains"
);

/// What an admin says of a trust domain.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SpiffeDomainRow {
    /// Where its bundle is fetched from; `None`: it stays what it was set to.
    #[prost(message, optional, tag = "1")]
    pub endpoint: Option<SpiffeEndpointRow>,
    /// When it was made.
    #[prost(uint64, tag = "2")]
    pub created_at_ms: UnixMillis,
    /// Who made it.
    #[prost(string, tag = "3")]
    pub created_by: String,
}
rows!(SpiffeDomainRow);

/// Where the bundle of a trust domain is fetched from.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SpiffeEndpointRow {
    /// `https://…`.
    #[prost(string, tag = "1")]
    pub url: String,
    /// SPIFFE ID that it shows (`https_spiffe`); empty: it is known by its name (`https_web`).
    #[prost(string, tag = "2")]
    pub spiffe_id: String,
    /// PEM certificates of who vouches for its name; none: whom the auth node's system believes.
    #[prost(string, repeated, tag = "3")]
    pub web_authorities: Vec<String>,
}

text_key!(
    /// The bundle of a trust domain.
    SpiffeBundleKey(TrustDomain, |text| TrustDomain::parse("", text).ok()) -> SpiffeBundleRow, 101, "spiffe_bundles"
);

/// The bundle of a trust domain: who vouches for its workloads.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SpiffeBundleRow {
    /// Certificates of X.509 authorities, DER.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub x509_authorities: Vec<Vec<u8>>,
    /// JWT authorities, ascending by key id.
    #[prost(message, repeated, tag = "2")]
    pub jwt_authorities: Vec<JwtAuthorityRow>,
    /// `spiffe_sequence`.
    #[prost(uint64, optional, tag = "3")]
    pub sequence: Option<u64>,
    /// `spiffe_refresh_hint`, in seconds; 0: it says none.
    #[prost(uint64, tag = "4")]
    pub refresh_hint_s: u64,
}
rows!(SpiffeBundleRow);

/// A key that signs JWT-SVIDs.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct JwtAuthorityRow {
    /// By which tokens name it.
    #[prost(string, tag = "1")]
    pub key_id: String,
    /// JWK, JSON.
    #[prost(string, tag = "2")]
    pub jwk: String,
}

text_key!(
    /// How it went to fetch the bundle of a trust domain.
    SpiffeRefreshKey(TrustDomain, |text| TrustDomain::parse("", text).ok()) -> SpiffeRefreshRow, 102, "spiffe_refreshes"
);

/// How it went to fetch the bundle of a trust domain.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SpiffeRefreshRow {
    /// When it was told, or set, the last time.
    #[prost(uint64, tag = "1")]
    pub refreshed_at_ms: UnixMillis,
    /// When it was asked for the last time; 0: it was not.
    #[prost(uint64, tag = "2")]
    pub tried_at_ms: UnixMillis,
    /// Why it was not told then; empty: it was.
    #[prost(string, tag = "3")]
    pub error: String,
}
rows!(SpiffeRefreshRow);

digest_key!(
    /// A JWT-SVID that was used, by the digest of what is signed in it, until nobody would take it any more.
    UsedSvidKey -> super::MarkEndingRow, 103, "used_svids"
);
