//! What `restore` and `recover` share: a cluster that goes on from the state of another, with this node as its first.
//!
//! The new cluster has the users, roles, nodes and CAs of the old one, and its audit log. It has an id and a peer CA of
//! its own, so no node of the old one is one of it; a new session epoch, so no session of the old one counts, revoked
//! or not; and no join tokens.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use auth_core::{
    Caller, Context, CoreError, Origin,
    audit::EventType,
    ca::{self, Kek},
    cluster::{self, FIRST_NODE, Succession},
    tables::CaKind,
    trust,
};
use mezite_daemon::{clock, files::failed};
use mezite_pki::x509::{CertificateInfo, X509Ca};
use raft_store::{Clock, Fatal, Store, TransactError};
use sha2::{Digest as _, Sha256};

use super::init;
use crate::{
    bootstrap::store_config,
    config::Config,
    fault::NodeError,
    new_ca,
    node::{Folder, NodeState, Progress, store_kek},
    peer_certificate,
};

/// A cluster that goes on from the state of another.
#[derive(Debug)]
pub struct Succeeded {
    /// Identifies the new cluster for good.
    pub cluster_id: String,
    /// Its name, as it was.
    pub cluster_name: String,
    /// Pin of its TLS CA, as it was.
    pub ca_pin: String,
    /// SHA-256 of the backup, hexadecimal.
    pub backup_sha256: String,
    /// Where what a recovery began from is kept.
    pub aside: Option<PathBuf>,
}

/// Makes the node, or goes on with it.
pub(super) async fn carry_out(
    config: &Config,
    folder: &Folder,
    mut state: NodeState,
    backup: &Path,
    kek: &Kek,
) -> Result<Succeeded, NodeError> {
    let clock: Clock = Arc::new(clock::unix_ms);
    let now = clock() / 1000;
    let peer_ca = init::peer_ca(folder, now)?;
    let (key, life) = (folder.peer_key()?.spki_der(), config.raft.peer_certificate_life);
    let certificate = peer_certificate::issue(&peer_ca, key, &state.cluster_id, FIRST_NODE, now, life)?;
    folder.keep_peer_certificate(&certificate)?;
    folder.keep_peer_ca(peer_ca.certificate_pem())?;

    let store = store_config(config, folder, &clock);
    if !folder.database().exists() {
        let (config, id, backup) = (store.clone(), state.cluster_id.clone(), backup.to_owned());
        let restored = blocking(move || raft_store::restore(&config, &id, FIRST_NODE, &backup)).await??;
        tracing::info!(revision = restored.revision, "the backup's state is in place");
    }
    let store = Store::open(store, folder.peer_identity(&state)?, Fatal::abort()).await?;
    let rewritten = rewrite(config, &store, &state, &peer_ca, kek).await;
    store.shutdown().await;
    let (cluster_name, ca_pin) = rewritten?;

    let aside = Some(&state.aside).filter(|aside| !aside.is_empty()).map(|aside| folder.file(aside));
    state.progress = Progress::Member;
    state.store_made = true;
    folder.save(&state)?;
    init::forget_init(folder)?;
    Ok(Succeeded {
        cluster_id: state.cluster_id,
        cluster_name,
        ca_pin,
        backup_sha256: state.backup_sha256,
        aside,
    })
}

/// Makes the state the new cluster's: answers its name, and the pin of its TLS CA.
async fn rewrite(
    config: &Config,
    store: &Store,
    state: &NodeState,
    peer_ca: &X509Ca,
    kek: &Kek,
) -> Result<(String, String), NodeError> {
    store.initialize().await?;
    check_kek(store, kek).await?;
    store_kek(&config.kek_path(), kek)?;
    while store.transact(|tx| cluster::end_join_tokens(tx)).await?.value > 0 {}

    let peer_ca = new_ca::x509_sealed(kek, CaKind::Peer, peer_ca)?;
    let (event, request_id) = match state.progress {
        Progress::Recovering => (EventType::ClusterRecover, "recover"),
        _ => (EventType::ClusterRestore, "restore"),
    };
    let succession = Succession {
        cluster_id: state.cluster_id.clone(),
        peer_ca,
        event,
        backup_sha256: state.backup_sha256.clone(),
    };
    let origin = Origin { node_id: FIRST_NODE, request_id: request_id.into(), ..Origin::default() };
    let context = Context { caller: Caller::Anonymous, origin };
    let succeeded = store.transact(move |tx| {
        cluster::succeed(tx, &context, succession.clone())?;
        Ok::<_, CoreError>((cluster::get(tx)?.row.name, ca::active(tx, CaKind::Tls)?.key.public))
    });
    let (name, tls_ca) = succeeded.await?.value;
    Ok((name, CertificateInfo::from_pem(&tls_ca)?.spki_pin))
}

/// Refuses a key-encryption key that is not the one of the CA keys in the state.
async fn check_kek(store: &Store, kek: &Kek) -> Result<(), NodeError> {
    let read = store.read_local(|view| {
        // Those of clusters that were made before there were authorities of these kinds have none.
        let there = trust::phases(view)?;
        let later = |kind: &CaKind| matches!(kind, CaKind::Audit | CaKind::Spiffe);
        let needed = |kind: &CaKind| !later(kind) || there.iter().any(|(there, _)| there == kind);
        let kinds = CaKind::ALL.into_iter().filter(needed);
        kinds.map(|kind| ca::active(view, kind)).collect::<Result<Vec<_>, CoreError>>()
    });
    let keys = read.await.map_err(|error| match error {
        TransactError::Refused(CoreError::Precondition(_)) => NodeError::Refused(
            "the backup is not of a Mezite cluster: it has no certificate authorities".into(),
        ),
        other => other.into(),
    })?;
    for key in keys {
        ca::unseal(kek, key.kind, &key.key.public, &key.key.sealed_private).map_err(|_| {
            let what = format!(
                "the key of the backup's {} CA does not open under this key-encryption key: run the command again \
                 with the key of the cluster that the backup is of",
                key.kind.name()
            );
            NodeError::Refused(what)
        })?;
    }
    Ok(())
}

/// SHA-256 of a file, hexadecimal.
pub(super) async fn digest_of(path: &Path) -> Result<String, NodeError> {
    let path = path.to_owned();
    let digest = move || {
        let hash = || -> io::Result<String> {
            let (mut file, mut hasher, mut buffer) = (File::open(&path)?, Sha256::new(), vec![0; 1 << 20]);
            loop {
                match file.read(&mut buffer)? {
                    0 => return Ok(hex::encode(hasher.finalize())),
                    length => hasher.update(buffer.get(..length).unwrap_or_default()),
                }
            }
        };
        hash().map_err(failed(&path))
    };
    Ok(blocking(digest).await??)
}

/// Does what takes its time on the disk away from the async workers.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NodeError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| NodeError::Failed(error.to_string()))
}
