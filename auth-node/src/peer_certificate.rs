//! The certificate that a node shows its peers: issued here, and renewed in good time, without a restart.
//!
//! Every node can sign its own, since every node opens the CAs' keys. What ends a node's membership is its removal. The
//! key stays: so a renewal replaces one file, and is whole or not there after any crash.

use std::{sync::Arc, time::Duration};

use auth_core::{
    CoreError,
    ca::{self, ActiveCa},
    tables::{CaKey, CaKind},
};
use mezite_daemon::clock;
use mezite_pki::{
    PkiError,
    x509::{CertificateInfo, LeafSpec, X509Ca},
};
use raft_store::{Clock, PeerIdentity, Store, WatchEvent, Watcher, peer_dns_name};
use store_txn::{Key as _, KeyRange, Read, ReadExt as _};

use crate::{
    ca_keys::CaKeys,
    ca_rotation::Followed,
    fault::NodeError,
    metrics,
    node::{Folder, NodeState},
};

/// Certificates begin so much in the past, for clocks that are behind.
const BACKDATE: Duration = Duration::from_secs(60);
/// Pause after a renewal, at least, so that a CA that ends soon does not keep the node busy.
const PAUSE: Duration = Duration::from_secs(2);
/// Pause after a renewal that failed.
const RETRY: Duration = Duration::from_secs(10);

/// Signs the certificate that a node proves itself to its peers with. `now` is in Unix seconds.
pub(crate) fn issue(
    authority: &X509Ca,
    public_key: Vec<u8>,
    cluster_id: &str,
    node_id: u64,
    now: u64,
    life: Duration,
) -> Result<String, PkiError> {
    authority.issue(&LeafSpec {
        public_key,
        common_name: format!("mezite auth node {node_id}"),
        identity: None,
        dns_names: vec![peer_dns_name(cluster_id, node_id)],
        ip_addresses: Vec::new(),
        not_before: now.saturating_sub(BACKDATE.as_secs()),
        not_after: (now + life.as_secs()).min(authority.info().not_after),
        client_auth: true,
        server_auth: true,
    })
}

/// The peer CA: its key that signs, and the PEM certificates of all its keys that are trusted, that one first.
///
/// # Errors
/// As [`ca::active`].
pub(crate) fn authorities(state: &mut (impl Read + ?Sized)) -> Result<(ActiveCa, String), CoreError> {
    let active = ca::active(state, CaKind::Peer)?;
    let row = state.get(&CaKey(CaKind::Peer))?;
    let trusted = row.into_iter().flat_map(|row| row.row.trusted).map(|key| key.public);
    let pem = std::iter::once(active.key.public.clone()).chain(trusted).collect();
    Ok((active, pem))
}

/// Keeps the node's peer certificate, and the peer CA that it trusts, up to date.
pub(crate) struct Renewal {
    store: Store,
    cas: Arc<CaKeys>,
    clock: Clock,
    folder: Arc<Folder>,
    node: NodeState,
    life: Duration,
    followed: Arc<Followed>,
    watcher: Watcher,
    /// Whether what is on disk is not yet what is shown.
    pending: bool,
}

impl Renewal {
    /// For a node whose certificates live for `life`. What is taken up of the CA's row is noted in `followed`.
    pub(crate) fn new(
        store: &Store,
        cas: &Arc<CaKeys>,
        clock: &Clock,
        folder: &Arc<Folder>,
        (node, life): (NodeState, Duration),
        followed: &Arc<Followed>,
    ) -> Self {
        let range = KeyRange::table(CaKey::TABLE);
        // Before the row is read, so that no change is missed.
        let watcher = store.watch(range, store.status().revision);
        Self {
            store: store.clone(),
            cas: Arc::clone(cas),
            clock: Arc::clone(clock),
            folder: Arc::clone(folder),
            node,
            life,
            followed: Arc::clone(followed),
            watcher,
            pending: false,
        }
    }

    fn now(&self) -> u64 {
        (self.clock)() / 1000
    }

    /// Renews what is due, for good.
    pub(crate) async fn run(mut self) {
        loop {
            let due = match self.renew().await {
                Ok(due) => due,
                Err(error) => {
                    tracing::error!(%error, "the node's peer certificate could not be renewed");
                    self.now() + RETRY.as_secs()
                }
            };
            let left = clock::pause(due, self.now()).max(PAUSE);
            tokio::select! {
                () = tokio::time::sleep(left) => (),
                event = self.watcher.next() => match event {
                    Some(WatchEvent::Change { .. } | WatchEvent::Resync { .. }) => (),
                    None => return,
                },
            }
        }
    }

    /// Renews what is due: answers when the certificate is due next, in Unix seconds.
    async fn renew(&mut self) -> Result<u64, NodeError> {
        let now = self.now();
        let shown = CertificateInfo::from_pem(&self.folder.peer_certificate()?)?;
        metrics::certificate_expires("peer", shown.not_after);
        let due = shown.not_after.saturating_sub(self.life.as_secs() / 3);
        let read = self.store.read_local(|view| authorities(view)).await;
        let (active, trusted) = match read {
            Ok(authorities) => authorities,
            // A node that has just joined has no rows yet.
            Err(_) if now < due => return Ok(due),
            Err(error) => return Err(error.into()),
        };
        let authority = self.cas.x509(&active)?;
        // A crash between the two files of a renewal leaves a certificate of the key that signed before.
        let current = shown.names_authority(authority.info()) && self.folder.peer_ca()? == trusted;
        if now < due && !self.pending && current {
            self.followed.peer(active.revision);
            return Ok(due);
        }
        let (folder, node, life) = (Arc::clone(&self.folder), self.node.clone(), self.life);
        self.pending = true;
        let replace = move || replace(&folder, &node, &authority, &trusted, now, life);
        let replaced = tokio::task::spawn_blocking(replace).await;
        let (identity, ends) = replaced.map_err(|error| NodeError::Failed(error.to_string()))??;
        self.store.set_identity(identity)?;
        metrics::certificate_expires("peer", ends);
        self.pending = false;
        self.followed.peer(active.revision);
        tracing::info!(ends, "the node's peer certificate was renewed");
        Ok(now + ends.saturating_sub(now) * 2 / 3)
    }
}

/// Keeps a new certificate, and whom to trust: answers the identity with it, and when it ends. The CAs go first: a node
/// that trusts more than it need is well after a crash.
fn replace(
    folder: &Folder,
    node: &NodeState,
    authority: &X509Ca,
    trusted: &str,
    now: u64,
    life: Duration,
) -> Result<(PeerIdentity, u64), NodeError> {
    let key = folder.peer_key()?.spki_der();
    let certificate = issue(authority, key, &node.cluster_id, node.node_id, now, life)?;
    folder.keep_peer_ca(trusted)?;
    folder.keep_peer_certificate(&certificate)?;
    Ok((folder.peer_identity(node)?, CertificateInfo::from_pem(&certificate)?.not_after))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000;

    #[test]
    fn a_renewal_replaces_the_certificate_and_keeps_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let (old, new) =
            (X509Ca::generate("a", 1, NOW * 2).unwrap(), X509Ca::generate("b", 1, NOW + 50).unwrap());
        let node = NodeState::member("c".into(), 2, Default::default());
        let life = Duration::from_secs(100);
        let (_, ends) = replace(&folder, &node, &old, old.certificate_pem(), NOW, life).unwrap();
        assert_eq!(ends, NOW + 100);
        let before = CertificateInfo::from_pem(&folder.peer_certificate().unwrap()).unwrap();

        // A node that signs with a new CA goes on trusting the old one, for as long as the cluster does.
        let both = format!("{}{}", new.certificate_pem(), old.certificate_pem());
        let (identity, ends) = replace(&folder, &node, &new, &both, NOW + 10, life).unwrap();
        assert_eq!((identity.node_id, ends), (2, NOW + 50), "no certificate outlives its CA");
        let after = CertificateInfo::from_pem(&folder.peer_certificate().unwrap()).unwrap();
        assert_eq!(after.spki_pin, before.spki_pin);
        assert_eq!(folder.peer_ca().unwrap(), both);
    }
}
