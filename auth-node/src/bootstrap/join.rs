//! `auth-node join`: makes a node of a cluster that is there.
//!
//! The node's keys are on disk before the token is used, so that a join that was interrupted goes on with the
//! same keys and is still one use of the token.

use mezite_pki::x509::{CertificateInfo, spki_pin};
use raft_store::{JoinRequest, JoinResponse, request_join};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use zeroize::Zeroizing;

use super::sealed;
use crate::{
    config::{Config, host_of},
    fault::NodeError,
    node::{Folder, NodeState, Progress, store_kek},
};

/// Key that secrets are sealed to, until they are opened: private and public, hexadecimal, a line each.
const SEALING_KEY: &str = "join.sealing.key";

/// How to join.
pub struct Join {
    /// The single-use token.
    pub token: Zeroizing<String>,
    /// `sha256:` and 64 hexadecimal digits: pin of the cluster's peer CA.
    pub ca_pin: String,
    /// host:port of members' peer listeners; each is tried.
    pub peers: Vec<String>,
    /// Whether the node stays a learner, which has no vote, until an admin makes it a voter.
    pub learner: bool,
}

/// A node that belongs to a cluster.
#[derive(Debug)]
pub struct Joined {
    /// Id of the cluster.
    pub cluster_id: String,
    /// Id of the node.
    pub node_id: u64,
    /// Whether it did before.
    pub already: bool,
}

/// Joins a cluster. `how` is asked only where there is something left to do.
///
/// # Errors
/// [`NodeError::Refused`] when the data directory holds another node; [`NodeError::Removed`] when it holds one that was
/// removed from its cluster; [`NodeError::NotJoined`] when no member can be reached, or the cluster refuses;
/// [`NodeError::Answer`].
pub async fn join(
    config: &Config,
    how: impl FnOnce() -> Result<Join, NodeError>,
) -> Result<Joined, NodeError> {
    let folder = Folder::open(&config.data_dir)?;
    if let Some(state) = joined(&folder, config)? {
        // What the last steps of a join that was interrupted would have removed.
        folder.remove(SEALING_KEY)?;
        let (cluster_id, node_id) = (state.cluster_id, state.node_id);
        if folder.has_database() && raft_store::remembers_removal(&folder.store_dir())? {
            return Err(NodeError::Removed { node_id, cluster_id, data_dir: config.data_dir.clone() });
        }
        return Ok(Joined { cluster_id, node_id, already: true });
    }
    let Join { token, ca_pin, peers, learner } = how()?;
    if peers.is_empty() || peers.iter().any(|peer| host_of(peer).is_none()) {
        return Err(NodeError::Refused(
            "--peer needs host:port of at least one member's peer listener".into(),
        ));
    }
    if folder.load()?.is_none() {
        folder.save(&NodeState::joining())?;
    }
    let key = folder.peer_key()?;
    let sealing = sealing_key(&folder)?;
    let request = JoinRequest {
        token: token.trim().to_owned(),
        public_key: key.spki_der().into(),
        sealing_key: sealing.public.clone().into(),
        peer_address: config.peer_advertise.clone(),
    };
    let response = ask(&peers, &ca_pin, request).await?;
    check(&response, &key.spki_der(), &ca_pin)?;

    let kek = sealed::open(
        &sealing.private,
        &response.encapsulated_key,
        &response.sealed,
        &response.cluster_id,
        response.node_id,
    )?;
    store_kek(&config.kek_path(), &kek)?;
    folder.keep_peer_ca(&response.ca_certificates)?;
    folder.keep_peer_certificate(&response.certificate)?;
    let members = response.members.into_iter().map(|member| (member.node_id, member.peer_address));
    let mut state = NodeState::member(response.cluster_id, response.node_id, members.collect());
    state.learner = learner;
    folder.peer_identity(&state)?;
    folder.save(&state)?;
    folder.remove(SEALING_KEY)?;
    Ok(Joined { cluster_id: state.cluster_id, node_id: state.node_id, already: false })
}

/// Refuses a directory in which no join can begin or go on. The state, where all is done.
fn joined(folder: &Folder, config: &Config) -> Result<Option<NodeState>, NodeError> {
    let place = config.data_dir.display();
    match folder.load()? {
        Some(state) if state.progress == Progress::Member => Ok(Some(state)),
        Some(state) if state.progress == Progress::Joining => Ok(None),
        Some(state) => Err(NodeError::Refused(format!(
            "`auth-node {}` was interrupted in {place}: run it again, or choose another data_dir to join",
            state.progress.command()
        ))),
        None if folder.has_database() => Err(NodeError::Refused(format!(
            "{place} holds a database and no node.json: restore that file, or move the directory away"
        ))),
        None => Ok(None),
    }
}

struct SealingKey {
    private: Zeroizing<Vec<u8>>,
    public: Vec<u8>,
}

/// The key that secrets are sealed to, made and kept now if there is none.
fn sealing_key(folder: &Folder) -> Result<SealingKey, NodeError> {
    let text = folder.secret(SEALING_KEY, || {
        let (public, private) = sealed::generate()?;
        let digits = Zeroizing::new(hex::encode(private.as_slice()));
        // Room for everything at once: a string that grows would leave copies.
        let mut text = Zeroizing::new(String::with_capacity(2 * digits.len() + 2));
        for line in [digits.as_str(), hex::encode(public).as_str()] {
            text.push_str(line);
            text.push('\n');
        }
        Ok(text)
    })?;
    let mut lines = text.lines().map(hex::decode);
    match (lines.next(), lines.next()) {
        (Some(Ok(private)), Some(Ok(public))) => Ok(SealingKey { private: Zeroizing::new(private), public }),
        _ => Err(NodeError::Malformed {
            file: folder.file(SEALING_KEY),
            reason: "is damaged: remove it".into(),
        }),
    }
}

/// Asks one member after the other.
async fn ask(peers: &[String], ca_pin: &str, request: JoinRequest) -> Result<JoinResponse, NodeError> {
    let mut failures = Vec::new();
    for peer in peers {
        match request_join(peer, ca_pin, request.clone()).await {
            Ok(response) => return Ok(response),
            Err(error) => failures.push(error.to_string()),
        }
    }
    Err(NodeError::NotJoined(failures.join("; ")))
}

/// Checks that the answer is this node's, and of the cluster that was asked for.
fn check(response: &JoinResponse, public_key: &[u8], ca_pin: &str) -> Result<(), NodeError> {
    let refused = |what: &str| Err(NodeError::Answer(what.into()));
    let authorities: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(response.ca_certificates.as_bytes()).collect();
    let authorities = authorities.map_err(|error| NodeError::Answer(error.to_string()))?;
    if !authorities.iter().any(|der| spki_pin(der).is_ok_and(|pin| pin == ca_pin)) {
        return refused("the peer CA with the given pin is not among the certificates");
    }
    let own = pin_of(public_key);
    if CertificateInfo::from_pem(&response.certificate)?.spki_pin != own {
        return refused("the certificate is not of this node's key");
    }
    if response.cluster_id.is_empty() || response.members.is_empty() {
        return refused("it names no cluster, or no members");
    }
    Ok(())
}

/// The pin of a SubjectPublicKeyInfo.
fn pin_of(public_key: &[u8]) -> String {
    use sha2::Digest as _;
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(public_key)))
}

#[cfg(test)]
mod tests {
    use mezite_pki::x509::{KeyPair, X509Ca};

    use super::*;
    use crate::peer_certificate;

    #[test]
    fn an_answer_is_of_the_pinned_ca_and_for_this_key() {
        let ca = X509Ca::generate("peer", 1_600_000_000, 4_000_000_000).unwrap();
        let key = KeyPair::generate_p256().unwrap().spki_der();
        let certificate = peer_certificate::issue(
            &ca,
            key.clone(),
            "c",
            2,
            1_700_000_000,
            std::time::Duration::from_secs(60),
        )
        .unwrap();
        let response = JoinResponse {
            node_id: 2,
            cluster_id: "c".into(),
            certificate,
            ca_certificates: ca.certificate_pem().into(),
            members: vec![raft_store::Member::default()],
            ..JoinResponse::default()
        };
        let pin = ca.info().spki_pin.clone();
        check(&response, &key, &pin).unwrap();
        let other = KeyPair::generate_p256().unwrap().spki_der();
        assert!(check(&response, &other, &pin).is_err(), "another key");
        assert!(check(&response, &key, "sha256:00").is_err(), "another CA");
        assert!(check(&JoinResponse { members: vec![], ..response }, &key, &pin).is_err(), "no members");
    }

    #[test]
    fn keys_are_on_disk_before_the_token_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let first = sealing_key(&folder).unwrap();
        let again = sealing_key(&folder).unwrap();
        assert_eq!((first.public, first.private), (again.public, again.private));
    }
}
