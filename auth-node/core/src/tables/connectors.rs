//! Single sign-on connectors, and which roles connectors and trusted clusters map to.

use store_txn::{Key, KeyReader, KeyWriter, Row, Table, UnixMillis};

use super::MarkRow;
use crate::names::{ConnectorName, RoleName};

text_key!(
    /// A connector.
    ConnectorKey(ConnectorName, |text| ConnectorName::parse("", text).ok()) -> ConnectorRow, 70, "connectors"
);

/// A single sign-on provider.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConnectorRow {
    /// Shown on the login page.
    #[prost(string, tag = "1")]
    pub display_name: String,
    /// Who gets which roles.
    #[prost(message, repeated, tag = "2")]
    pub mappings: Vec<ClaimMappingRow>,
    /// Which kind of provider, and how it is reached.
    #[prost(oneof = "ProviderRow", tags = "3, 4, 5")]
    pub provider: Option<ProviderRow>,
    /// The client secret, encrypted under the key-encryption key: see `connector`. Empty where there is none.
    #[prost(bytes = "vec", tag = "6")]
    pub sealed_secret: Vec<u8>,
    /// When it was made.
    #[prost(uint64, tag = "7")]
    pub created_at_ms: UnixMillis,
    /// Who made it.
    #[prost(string, tag = "8")]
    pub created_by: String,
    /// Whether the provider asks its users for a second factor.
    #[prost(bool, tag = "9")]
    pub second_factor: bool,
    /// Since when it is of this provider and client: sessions from before are over.
    #[prost(uint64, tag = "10")]
    pub since_ms: UnixMillis,
}
rows!(ConnectorRow);

/// What a claim gives.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ClaimMappingRow {
    /// Name of the claim.
    #[prost(string, tag = "1")]
    pub claim: String,
    /// Its value, or `*`.
    #[prost(string, tag = "2")]
    pub value: String,
    /// Roles.
    #[prost(string, repeated, tag = "3")]
    pub roles: Vec<String>,
}

/// A provider, without its secret.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum ProviderRow {
    /// OpenID Connect.
    #[prost(message, tag = "3")]
    Oidc(OidcRow),
    /// GitHub.
    #[prost(message, tag = "4")]
    Github(GithubRow),
    /// SAML.
    #[prost(message, tag = "5")]
    Saml(SamlRow),
}

/// An OpenID Connect provider.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OidcRow {
    /// Issuer URL.
    #[prost(string, tag = "1")]
    pub issuer_url: String,
    /// Client id.
    #[prost(string, tag = "2")]
    pub client_id: String,
    /// Claim that names the user; empty: the usual one.
    #[prost(string, tag = "3")]
    pub username_claim: String,
    /// Scopes beyond `openid`.
    #[prost(string, repeated, tag = "4")]
    pub scopes: Vec<String>,
    /// Certificates of the authorities that vouch for its host, PEM; empty: those of the system do.
    #[prost(string, repeated, tag = "5")]
    pub ca_certificates: Vec<String>,
}

/// GitHub.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GithubRow {
    /// Client id.
    #[prost(string, tag = "1")]
    pub client_id: String,
    /// Organisations whose members may log in.
    #[prost(string, repeated, tag = "2")]
    pub organizations: Vec<String>,
    /// Origin of a GitHub Enterprise Server; empty: github.com.
    #[prost(string, tag = "3")]
    pub url: String,
    /// Certificates of the authorities that vouch for its host, PEM; empty: those of the system do.
    #[prost(string, repeated, tag = "4")]
    pub ca_certificates: Vec<String>,
}

/// A SAML provider.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SamlRow {
    /// Its entity id.
    #[prost(string, tag = "1")]
    pub entity_id: String,
    /// Single sign-on URL.
    #[prost(string, tag = "2")]
    pub sso_url: String,
    /// Certificates that sign assertions, PEM.
    #[prost(string, repeated, tag = "3")]
    pub certificates: Vec<String>,
}

/// What maps to roles. The numbers are stored, in keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u64)]
pub enum MapperKind {
    /// A connector.
    Connector = 1,
    /// A trusted cluster.
    TrustedCluster = 2,
    /// An agent identity, which holds the role.
    AgentIdentity = 3,
}

/// That a connector or trusted cluster maps to a role, or an agent identity holds it: such a role cannot be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedRoleKey {
    /// Which role.
    pub role: RoleName,
    /// What kind of thing maps to it.
    pub kind: MapperKind,
    /// Its name.
    pub name: String,
}

impl MappedRoleKey {
    /// The common front of what maps to a role.
    pub fn front(role: &RoleName) -> KeyWriter {
        let mut front = KeyWriter::table(Self::TABLE);
        front.text(role.as_str());
        front
    }
}

impl Key for MappedRoleKey {
    type Row = MarkRow;
    const TABLE: Table = Table { id: 71, name: "mapped_roles" };

    fn write(&self, out: &mut KeyWriter) {
        out.text(self.role.as_str()).number(self.kind as u64).text(&self.name);
    }

    fn read(parts: &mut KeyReader<'_>) -> Option<Self> {
        let role = RoleName::parse("", &parts.text()?).ok()?;
        let kind = match parts.number()? {
            1 => MapperKind::Connector,
            2 => MapperKind::TrustedCluster,
            3 => MapperKind::AgentIdentity,
            _ => return None,
        };
        Some(Self { role, kind, name: parts.text()? })
    }
}
