//! What a store node of these tests is asked and answers: a line of JSON each way, over loopback.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufStream},
    net::TcpStream,
    time::timeout,
};

/// What the program `store-node` is configured with, as a JSON file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeConfig {
    /// Id of the node.
    pub node_id: u64,
    /// Id of the cluster.
    pub cluster_id: String,
    /// Folder of the store.
    pub data_dir: PathBuf,
    /// host:port where peers connect.
    pub listen: String,
    /// host:port that peers are told.
    pub advertise: String,
    /// host:port of this protocol.
    pub control: String,
    /// Peer certificate, its key and its CA: files of PEM text.
    pub identity: [PathBuf; 3],
    /// Members that the node asks to let it vote; none for the first one.
    pub members: Vec<(u64, String)>,
    /// Log entries between two snapshots.
    pub snapshot_every: u64,
    /// Log entries that are kept although a snapshot has them.
    pub keep_entries: u64,
    /// Deadline of each call in milliseconds.
    pub deadline_ms: u64,
    /// A mutation, to see that the checks find it: reads do not ask a quorum.
    pub stale_reads: bool,
}

/// A question. Those that write are one transaction each; those that read see one state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Reads a row.
    Get {
        /// Its key.
        key: String,
    },
    /// Reads all rows whose key begins so.
    Scan {
        /// The front of their keys.
        prefix: String,
    },
    /// Writes a row, whatever is there.
    Put {
        /// Its key.
        key: String,
        /// Its value.
        value: u64,
        /// Bytes that are stored behind the value.
        padding: usize,
    },
    /// Writes a row if it has a value, or if it is not there.
    Cas {
        /// Its key.
        key: String,
        /// What must be there.
        expected: Option<u64>,
        /// What is there then.
        value: u64,
    },
    /// Moves an amount from one row to another, if there is enough.
    Transfer {
        /// Key of the row that gives.
        from: String,
        /// Key of the row that gets.
        to: String,
        /// How much.
        amount: u64,
    },
    /// Counts the rows of a list, and writes the next one.
    Append {
        /// The front of the list's keys.
        list: String,
        /// The row's value.
        element: u64,
    },
    /// Writes many rows.
    Fill {
        /// Keys and values.
        rows: Vec<(String, u64)>,
    },
    /// How the node is.
    Status,
    /// Hash of the node's state, once it is current.
    Hash,
    /// Makes the node the first of a cluster.
    Initialize,
    /// Has the cluster remove a member.
    Remove {
        /// Its id.
        node_id: u64,
    },
    /// Has a leader hand over.
    StepDown,
    /// Takes a snapshot.
    Snapshot,
}

/// How a node is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The leader that it knows.
    pub leader_id: Option<u64>,
    /// Raft term.
    pub term: u64,
    /// Last index in its log.
    pub last_log_index: u64,
    /// Last index applied.
    pub applied_index: u64,
    /// Last index in its snapshot.
    pub snapshot_index: u64,
    /// Bytes on disk and in memory tables.
    pub database_size: u64,
    /// Members, and whether each votes.
    pub members: BTreeMap<u64, bool>,
    /// Whether a change of the voters is between its two steps.
    pub joint: bool,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// What was read.
    Rows {
        /// Keys and values, in the order of keys.
        rows: Vec<(String, u64)>,
        /// Revision of the state in which they were read.
        revision: u64,
    },
    /// It is written.
    Written {
        /// Revision of the commit.
        revision: u64,
        /// Place in the list of what was appended.
        index: Option<u64>,
    },
    /// What must be there is not: nothing was written.
    Refused,
    /// How the node is.
    Status(NodeStatus),
    /// Hash of its state.
    Hash {
        /// Last log index in the state.
        applied_index: u64,
        /// SHA-256, hex.
        hash: String,
    },
    /// It is done.
    Done,
    /// Nothing was written, for certain.
    Failed {
        /// Why.
        reason: String,
    },
    /// It may have been written, or may be some day, or never.
    Unknown {
        /// Why.
        reason: String,
    },
}

impl Answer {
    fn failed(reason: impl ToString) -> Self {
        Self::Failed { reason: reason.to_string() }
    }

    fn unknown(reason: impl ToString) -> Self {
        Self::Unknown { reason: reason.to_string() }
    }
}

/// A connection to a node, one question at a time. It is made when it is needed.
#[derive(Debug)]
pub struct Control {
    address: String,
    stream: Option<BufStream<TcpStream>>,
}

impl Control {
    /// For the node that listens at `address`.
    #[must_use]
    pub fn new(address: &str) -> Self {
        Self { address: address.to_owned(), stream: None }
    }

    /// Asks once. [`Answer::Failed`] when the question was not sent, [`Answer::Unknown`] when it was and there is no
    /// answer in time; then the connection is given up.
    pub async fn ask(&mut self, request: &Request, patience: Duration) -> Answer {
        let Some(mut stream) = self.stream.take() else {
            return match timeout(patience, TcpStream::connect(&self.address)).await {
                Ok(Ok(stream)) => {
                    // Small questions, each of which somebody waits for.
                    let _ = stream.set_nodelay(true);
                    self.stream = Some(BufStream::new(stream));
                    Box::pin(self.ask(request, patience)).await
                }
                Ok(Err(error)) => Answer::failed(error),
                Err(late) => Answer::failed(late),
            };
        };
        match timeout(patience, exchange(&mut stream, request)).await {
            Ok(Ok(answer)) => {
                self.stream = Some(stream);
                answer
            }
            Ok(Err(error)) => Answer::unknown(error),
            Err(late) => Answer::unknown(late),
        }
    }
}

async fn exchange(stream: &mut BufStream<TcpStream>, request: &Request) -> std::io::Result<Answer> {
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    stream.write_all(line.as_bytes()).await?;
    stream.flush().await?;
    line.clear();
    if stream.read_line(&mut line).await? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&line)?)
}
