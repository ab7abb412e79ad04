//! How a node comes to be: as the first of a new cluster (`init`), by joining one (`join`), or as the first of a cluster
//! that goes on from another one's state: from a backup (`restore`), or from what the last node has on its disk
//! (`recover`).
//!
//! Each may be interrupted at any moment and run again: it goes on with the keys and secrets that are on
//! disk already. None but `recover` touches a node that belongs to a cluster, and that sets it aside first.

mod handler;
mod init;
mod join;
mod recover;
mod restore;
mod sealed;
mod succession;

pub(crate) use handler::Joiner;
pub(crate) use init::forget_init;
pub use init::{Init, Initialized, init};
pub use join::{Join, Joined, join};
pub use recover::recover;
pub use restore::{Restore, restore};
pub use succession::Succeeded;

use std::{path::Path, sync::Arc};

use mezite_daemon::files::read_secret;
use raft_store::{Clock, StoreConfig, Timing};
use zeroize::Zeroizing;

use crate::{config::Config, fault::NodeError, node::Folder};

/// What the store is told of the configuration.
pub(crate) fn store_config(config: &Config, folder: &Folder, clock: &Clock) -> StoreConfig {
    let raft = &config.raft;
    StoreConfig {
        data_dir: folder.store_dir(),
        listen: config.peer_listen,
        advertise: config.peer_advertise.clone(),
        app_address: config.advertise.clone(),
        clock: Arc::clone(clock),
        timing: Timing {
            heartbeat: raft.heartbeat,
            election_min: raft.election_min,
            election_max: raft.election_max,
            deadline: raft.deadline,
        },
        limits: raft_store::Limits {
            max_database_bytes: raft.max_database_bytes,
            ..raft_store::Limits::default()
        },
    }
}

/// Reads a secret, such as a password or a token, from a file that others cannot read; `/dev/stdin` is one.
/// The end of its line is not part of it.
///
/// # Errors
/// [`NodeError::File`].
pub fn secret_from(path: &Path) -> Result<Zeroizing<String>, NodeError> {
    let text = read_secret(path)?;
    Ok(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
}
