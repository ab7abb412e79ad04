//! Access requests: by id, and by who asks.

use store_txn::{Key, KeyReader, KeyWriter, Row, Table, UnixMillis};

use super::MarkEndingRow;
use crate::names::{RequestId, UserName};

text_key!(
    /// An access request.
    RequestKey(RequestId, RequestId::parse) -> RequestRow, 18, "access_requests"
);

/// What became of an access request. The numbers are those of the API's `AccessRequestState`; that time is over is not
/// stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum RequestState {
    /// A row that does not say.
    Unspecified = 0,
    /// It waits for reviews.
    Pending = 1,
    /// It was granted.
    Approved = 2,
    /// It was refused.
    Denied = 3,
    /// Its owner took it back.
    Cancelled = 4,
    /// Its time is over.
    Expired = 5,
}

/// One review.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReviewRow {
    /// Who.
    #[prost(string, tag = "1")]
    pub author: String,
    /// Whether it approves.
    #[prost(bool, tag = "2")]
    pub approve: bool,
    /// Why.
    #[prost(string, tag = "3")]
    pub reason: String,
    /// When.
    #[prost(uint64, tag = "4")]
    pub created_at_ms: UnixMillis,
}

/// An access request.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RequestRow {
    /// Who asks.
    #[prost(string, tag = "1")]
    pub user: String,
    /// Roles wanted, ascending.
    #[prost(string, repeated, tag = "2")]
    pub roles: Vec<String>,
    /// Nodes on which they are wanted, ascending by id; none: wherever the roles reach.
    #[prost(string, repeated, tag = "3")]
    pub nodes: Vec<String>,
    /// Why.
    #[prost(string, tag = "4")]
    pub reason: String,
    /// What became of it.
    #[prost(enumeration = "RequestState", tag = "5")]
    pub state: i32,
    /// Reviews, in their order.
    #[prost(message, repeated, tag = "6")]
    pub reviews: Vec<ReviewRow>,
    /// When it was made.
    #[prost(uint64, tag = "7")]
    pub created_at_ms: UnixMillis,
    /// For how long access is wanted, in milliseconds.
    #[prost(uint64, tag = "8")]
    pub duration_ms: u64,
    /// Approvals that it needs.
    #[prost(uint32, tag = "9")]
    pub approvals: u32,
    /// While it waits: when it ends unreviewed. Once it is approved: when the access ends.
    #[prost(uint64, tag = "10")]
    pub ends_at_ms: UnixMillis,
    /// When the row is forgotten.
    #[prost(uint64, tag = "11")]
    pub expires_at_ms: UnixMillis,
}
ending_rows!(RequestRow);

/// A request of a user: to find all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserRequestKey {
    /// Who asks.
    pub user: UserName,
    /// Which request.
    pub id: RequestId,
}

impl UserRequestKey {
    /// The common front of a user's requests.
    pub fn front(user: &UserName) -> KeyWriter {
        let mut front = KeyWriter::table(Self::TABLE);
        front.text(user.as_str());
        front
    }
}

impl Key for UserRequestKey {
    type Row = MarkEndingRow;
    const TABLE: Table = Table { id: 19, name: "user_access_requests" };

    fn write(&self, out: &mut KeyWriter) {
        out.text(self.user.as_str()).text(self.id.as_str());
    }

    fn read(parts: &mut KeyReader<'_>) -> Option<Self> {
        let user = UserName::parse("", &parts.text()?).ok()?;
        Some(Self { user, id: RequestId::parse(&parts.text()?)? })
    }
}
