//! What is on the disk of a node beside its database: who it is to its peers, how far it has come, and the
//! key-encryption key.

mod folder;
mod kek;

pub(crate) use folder::{Folder, NodeState, PEER_CA, PEER_CERTIFICATE, PEER_KEY, Progress, STATE, STORE};
pub(crate) use kek::{load_kek, store_kek};
