//! `auth-node init`: makes the first node of a new cluster.
//!
//! Every secret is on disk before it is used, the cluster's rows are written in one transaction, and the
//! state says that it is done only after the operator was told: an `init` that was interrupted is run again,
//! goes on with the same keys and the same password, and tells all of it.

use std::sync::Arc;

use auth_core::{
    Caller, Context, CoreError, Origin,
    ca::{self, KEK_LENGTH, Kek, NewCa},
    cluster::{self, FIRST_NODE, NewCluster},
    names::{ClusterName, UserName},
    password,
    tables::{CaKeyRow, CaKind, ClusterKey, UserKey},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use mezite_daemon::{
    clock,
    files::{PUBLIC, read_text, write_atomic},
};
use mezite_pki::x509::{CertificateInfo, X509Ca};
use raft_store::{Clock, Fatal, Store};
use store_txn::{Read, ReadExt as _};
use zeroize::Zeroizing;

use crate::{
    bootstrap::store_config,
    config::Config,
    fault::NodeError,
    new_ca,
    node::{Folder, NodeState, Progress, load_kek, store_kek},
    passwords::PasswordPool,
    peer_certificate,
};

/// Private key of the peer CA, until it is in the store.
const PEER_CA_KEY: &str = "init.peer-ca.key";
/// Certificate of the peer CA, until its key is in the store.
const PEER_CA_CERTIFICATE: &str = "init.peer-ca.crt";
/// The first user's password that was made, until the operator was told.
const ADMIN_PASSWORD: &str = "init.admin-password";

/// Random bytes of a password that is made.
const PASSWORD_BYTES: usize = 18;

/// A cluster to make.
pub struct Init {
    /// Its name, `[a-z0-9.-]`, 1 to 63 bytes.
    pub cluster_name: String,
    /// Name of the first user, who administers it.
    pub admin_user: String,
    /// The first user's password; `None`: one is made.
    pub admin_password: Option<Zeroizing<String>>,
}

/// A cluster that was made. Tell the operator, then call [`Initialized::finish`].
pub struct Initialized {
    /// Identifies the cluster for good.
    pub cluster_id: String,
    /// Its name.
    pub cluster_name: String,
    /// Pin of its TLS CA, by which clients recognise it.
    pub ca_pin: String,
    /// Canonical name of the first user.
    pub admin_user: String,
    /// The first user's password, if it was made.
    pub admin_password: Option<Zeroizing<String>>,
    /// The cluster had been made by an earlier `init`, which was interrupted: a password given now was not
    /// used.
    pub resumed: bool,
    folder: Folder,
    state: NodeState,
}

impl Initialized {
    /// The operator was told: forgets the password that was made.
    ///
    /// # Errors
    /// When the data directory cannot be written; `init` is then run again.
    pub fn finish(mut self) -> Result<(), NodeError> {
        self.state.progress = Progress::Member;
        self.state.store_made = true;
        self.folder.save(&self.state)?;
        forget_init(&self.folder)
    }
}

/// Makes the first node of a new cluster, and the cluster.
///
/// # Errors
/// [`NodeError::Member`] when there is a node in the data directory, and [`NodeError::Refused`] when there is something else: it is
/// left as it is.
/// [`NodeError::Core`] for what is wrong with `new`. Anything else may be tried again.
pub async fn init(config: &Config, new: Init) -> Result<Initialized, NodeError> {
    let clock: Clock = Arc::new(clock::unix_ms);
    let name = ClusterName::parse("--cluster-name", &new.cluster_name)?;
    let admin = UserName::parse("--admin-user", &new.admin_user)?;
    if let Some(password) = &new.admin_password {
        password::check_new("--admin-password-file", password, &[admin.as_str(), name.as_str()])?;
    }
    let folder = Folder::open(&config.data_dir)?;
    let state = begin(&folder, config)?;
    let kek = make_kek(config)?;
    let now = clock() / 1000;
    let peer_ca = peer_ca(&folder, now)?;
    let key = folder.peer_key()?;
    folder.keep_peer_certificate(&peer_certificate::issue(
        &peer_ca,
        key.spki_der(),
        &state.cluster_id,
        FIRST_NODE,
        now,
        config.raft.peer_certificate_life,
    )?)?;
    folder.keep_peer_ca(peer_ca.certificate_pem())?;

    // One that an interrupted `init` made may be in use already.
    let generated = match &new.admin_password {
        Some(_) if !folder.file(ADMIN_PASSWORD).exists() => None,
        _ => Some(folder.secret(ADMIN_PASSWORD, || Ok(generate_password()))?),
    };
    let password = generated.as_ref().or(new.admin_password.as_ref()).cloned().unwrap_or_default();
    let hash = PasswordPool::new(1, 0)?.admit(Caller::Init.actor())?.hash(&password).await?;
    let cluster = NewCluster {
        cluster_id: state.cluster_id.clone(),
        cas: authorities(&kek, &name, &peer_ca, now)?,
        name,
        admin,
        admin_password_hash: hash,
    };

    let store = store_config(config, &folder, &clock);
    let store = Store::open(store, folder.peer_identity(&state)?, Fatal::abort()).await?;
    let made = make_cluster(&store, cluster.clone()).await;
    store.shutdown().await;
    let Made { tls_ca, resumed } = made?;
    // A key-encryption key that was lost in between must not be noticed only when it is needed.
    ca::unseal(&kek, CaKind::Tls, &tls_ca.public, &tls_ca.sealed_private)?;
    Ok(Initialized {
        cluster_id: state.cluster_id.clone(),
        cluster_name: cluster.name.to_string(),
        ca_pin: CertificateInfo::from_pem(&tls_ca.public)?.spki_pin,
        resumed,
        admin_user: cluster.admin.to_string(),
        admin_password: generated,
        folder,
        state,
    })
}

/// Begins, or goes on with what was interrupted.
fn begin(folder: &Folder, config: &Config) -> Result<NodeState, NodeError> {
    let place = config.data_dir.display();
    match folder.load()? {
        Some(state) if state.progress == Progress::Initializing => Ok(state),
        Some(state) if state.progress == Progress::Member => {
            forget_init(folder)?;
            Err(NodeError::Member {
                node_id: state.node_id,
                cluster_id: state.cluster_id,
                data_dir: config.data_dir.clone(),
            })
        }
        Some(state) => Err(NodeError::Refused(format!(
            "`auth-node {}` was interrupted in {place}: run it again, or choose another data_dir for a new cluster",
            state.progress.command()
        ))),
        None if folder.has_database() => Err(NodeError::Refused(format!(
            "{place} holds a database and no node.json: restore that file, or move the directory away"
        ))),
        None => {
            let state = NodeState::initializing(uuid());
            folder.save(&state)?;
            Ok(state)
        }
    }
}

/// Removes what only an `init` in progress needs: also where the last one ended just before it had done so.
pub(crate) fn forget_init(folder: &Folder) -> Result<(), NodeError> {
    [ADMIN_PASSWORD, PEER_CA_KEY, PEER_CA_CERTIFICATE].into_iter().try_for_each(|name| folder.remove(name))
}

/// A random UUID, version 4.
pub(super) fn uuid() -> String {
    auth_core::names::AgentId::from_random(rand::random()).into()
}

fn generate_password() -> Zeroizing<String> {
    let random = Zeroizing::new(rand::random::<[u8; PASSWORD_BYTES]>());
    let mut text = Zeroizing::new(String::with_capacity(PASSWORD_BYTES * 2));
    URL_SAFE_NO_PAD.encode_string(random.as_slice(), &mut text);
    text
}

/// The key-encryption key: the one that is there, or else a new one.
fn make_kek(config: &Config) -> Result<Kek, NodeError> {
    let path = config.kek_path();
    if !path.exists() {
        store_kek(&path, &Kek::new(Zeroizing::new(rand::random::<[u8; KEK_LENGTH]>())))?;
    }
    load_kek(&path)
}

/// The peer CA, made and kept now if there is none. Its key is written last.
pub(super) fn peer_ca(folder: &Folder, now: u64) -> Result<X509Ca, NodeError> {
    let certificate = folder.file(PEER_CA_CERTIFICATE);
    let key = folder.secret(PEER_CA_KEY, || {
        let ca = new_ca::peer_ca(now)?;
        write_atomic(&certificate, ca.certificate_pem().as_bytes(), PUBLIC)?;
        Ok(ca.private_pem())
    })?;
    let certificate = read_text(&certificate)?.unwrap_or_default();
    Ok(X509Ca::from_pems(&certificate, &key)?)
}

/// The keys of all authorities, sealed.
fn authorities(kek: &Kek, name: &ClusterName, peer_ca: &X509Ca, now: u64) -> Result<Vec<NewCa>, CoreError> {
    let authority = |kind| match kind {
        CaKind::Peer => new_ca::x509_sealed(kek, kind, peer_ca),
        kind => new_ca::generate(kek, kind, name.as_str(), now),
    };
    CaKind::ALL.into_iter().map(authority).collect()
}

/// What is in the store.
struct Made {
    tls_ca: CaKeyRow,
    resumed: bool,
}

/// Writes the cluster's rows, unless they are there: then they were written by an `init` that was
/// interrupted.
async fn make_cluster(store: &Store, new: NewCluster) -> Result<Made, NodeError> {
    store.initialize().await?;
    let origin = Origin { node_id: FIRST_NODE, request_id: "init".into(), ..Origin::default() };
    let context = Context { caller: Caller::Init, origin };
    let made = store.transact(move |tx| {
        let resumed = tx.get(&ClusterKey)?.is_some();
        if resumed {
            check_resumed(tx, &new)?;
        } else {
            cluster::create(tx, &context, new.clone())?;
        }
        Ok::<_, CoreError>(Made { tls_ca: ca::active(tx, CaKind::Tls)?.key, resumed })
    });
    Ok(made.await?.value)
}

/// Checks that the cluster that an interrupted `init` made is the one that is wanted.
fn check_resumed(state: &mut (impl Read + ?Sized), new: &NewCluster) -> Result<(), CoreError> {
    let name = cluster::get(state)?.row.name;
    if name != new.name.as_str() {
        let what =
            format!("an interrupted `auth-node init` has made cluster {name}: run it again with that name");
        return Err(CoreError::Precondition(what));
    }
    if state.get(&UserKey(new.admin.clone()))?.is_none() {
        let what = "an interrupted `auth-node init` has made another first user: run it again with that name";
        return Err(CoreError::Precondition(what.into()));
    }
    Ok(())
}
