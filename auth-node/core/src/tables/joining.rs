//! Join tokens of agents, what they were used for, and agents that have not registered yet.

use std::collections::BTreeMap;

use store_txn::{Key, KeyReader, KeyWriter, Row, Table, UnixMillis};

use super::nodes::{NodeKind, NodeRow};
use crate::{
    names::{AgentId, TokenName},
    secret::SecretDigest,
};

text_key!(
    /// A join token.
    TokenKey(TokenName, |text| TokenName::parse("", text).ok()) -> TokenRow, 20, "tokens"
);

/// How a joiner proves that it may use a token. The numbers are those of the API's `JoinMethod`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum JoinMethod {
    /// A row that does not say.
    Unspecified = 0,
    /// It knows the secret.
    Token = 1,
    /// It signs an AWS STS request.
    Iam = 2,
    /// Nobody joins with it: another cluster knows the secret, and gets this one's authorities. The releases before it take
    /// it for no method at all, and so for no token to join with.
    Exchange = 3,
}

/// A join token.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TokenRow {
    /// What it lets join.
    #[prost(enumeration = "NodeKind", tag = "1")]
    pub kind: i32,
    /// How.
    #[prost(enumeration = "JoinMethod", tag = "2")]
    pub method: i32,
    /// When it ends.
    #[prost(uint64, tag = "3")]
    pub expires_at_ms: UnixMillis,
    /// How many joins it is good for.
    #[prost(uint32, tag = "4")]
    pub max_uses: u32,
    /// How many there were.
    #[prost(uint32, tag = "5")]
    pub uses: u32,
    /// Labels, as an admin's, of a node that joins with it.
    #[prost(btree_map = "string, string", tag = "6")]
    pub labels: BTreeMap<String, String>,
    /// Host certificate principals that it allows; empty: any ordinary one.
    #[prost(string, repeated, tag = "7")]
    pub allowed_principals: Vec<String>,
    /// Who made it.
    #[prost(string, tag = "8")]
    pub created_by: String,
    /// When.
    #[prost(uint64, tag = "9")]
    pub created_at_ms: UnixMillis,
    /// Digest of its secret; for a method without one, of a secret that nobody was told. By it a later token of the same
    /// name is another token.
    #[prost(bytes = "vec", tag = "10")]
    pub secret_digest: Vec<u8>,
    /// Of [`JoinMethod::Iam`]: whom it lets in.
    #[prost(message, repeated, tag = "11")]
    pub iam_rules: Vec<IamRuleRow>,
}
ending_rows!(TokenRow);

/// AWS identities that a token lets in.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct IamRuleRow {
    /// Twelve digits.
    #[prost(string, tag = "1")]
    pub account: String,
    /// Pattern of ARNs; empty: any identity of the account.
    #[prost(string, tag = "2")]
    pub arn: String,
    /// Partition of AWS that the account is one of.
    #[prost(string, tag = "3")]
    pub partition: String,
}

digest_key!(
    /// Which token a secret is of.
    TokenSecretKey -> TokenSecretRow, 21, "token_secrets"
);

/// Which token a secret is of.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TokenSecretRow {
    /// Name of the token.
    #[prost(string, tag = "1")]
    pub token: String,
    /// When the token ends.
    #[prost(uint64, tag = "2")]
    pub expires_at_ms: UnixMillis,
}
ending_rows!(TokenSecretRow);

/// A join that a token was used for: the same token with the same TLS key is the same join again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenUseKey {
    /// Which token.
    pub token: TokenName,
    /// SHA-256 of the joiner's TLS public key (SubjectPublicKeyInfo).
    pub key_digest: [u8; 32],
}

impl Key for TokenUseKey {
    type Row = TokenUseRow;
    const TABLE: Table = Table { id: 22, name: "token_uses" };

    fn write(&self, out: &mut KeyWriter) {
        out.text(self.token.as_str()).fixed(&self.key_digest);
    }

    fn read(parts: &mut KeyReader<'_>) -> Option<Self> {
        let token = TokenName::parse("", &parts.text()?).ok()?;
        Some(Self { token, key_digest: parts.fixed()? })
    }
}

/// Who joined by this use.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TokenUseRow {
    /// The agent's id.
    #[prost(string, tag = "1")]
    pub agent_id: String,
    /// When the token ends.
    #[prost(uint64, tag = "2")]
    pub expires_at_ms: UnixMillis,
    /// Digest of the token's secret: a later token of the same name is another token.
    #[prost(bytes = "vec", tag = "3")]
    pub secret_digest: Vec<u8>,
}
ending_rows!(TokenUseRow);

text_key!(
    /// An agent that has certificates and has not registered yet. It can register as long as its token is good, or with
/// another one; the row stays as long as it holds its names.
    JoinKey(AgentId, |text| AgentId::parse("", text).ok()) -> JoinRow, 23, "joins"
);

/// An agent that has certificates and has not registered yet. It can register as long as its token is good, or with
/// another one; the row stays as long as it holds its names.
#[derive(Clone, PartialEq, prost::Message)]
pub struct JoinRow {
    /// Name of the token that it goes on with.
    #[prost(string, tag = "1")]
    pub token: String,
    /// The node that it becomes.
    #[prost(message, optional, tag = "2")]
    pub node: Option<NodeRow>,
    /// When its certificates end.
    #[prost(uint64, tag = "3")]
    pub expires_at_ms: UnixMillis,
}
ending_rows!(JoinRow);
