//! Auth nodes that ask to join, as they do on the wire: who gets the key-encryption key, and who does not.

use mezite_pki::x509::{CertificateInfo, KeyPair};
use raft_store::{JoinError, JoinRequest, JoinResponse, request_join};
use rustls::crypto::{
    aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_CHACHA20_POLY1305 as SUITE,
    hpke::{EncapsulatedSecret, Hpke as _, HpkePrivateKey},
};

use super::*;

/// A key that secrets are sealed to.
struct SealingKey {
    public: Vec<u8>,
    private: Vec<u8>,
}

impl SealingKey {
    fn new() -> Self {
        let (public, private) = SUITE.generate_key_pair().unwrap();
        Self { public: public.0, private: private.secret_bytes().to_vec() }
    }

    /// What was sealed to it.
    fn open(&self, answer: &JoinResponse) -> Option<Vec<u8>> {
        let encapsulated = EncapsulatedSecret(answer.encapsulated_key.to_vec());
        let bound_to = format!("{}/{}", answer.cluster_id, answer.node_id);
        let private = HpkePrivateKey::from(self.private.clone());
        let info = b"mezite auth node join v1";
        SUITE.open(&encapsulated, info, bound_to.as_bytes(), &answer.sealed, &private).ok()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clusters_key_is_sealed_to_the_first_user_of_a_token_alone() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin().await;
    let made = call!(admin, create_auth_join_token, v1::CreateAuthJoinTokenRequest::default()).unwrap();
    let ask = async |key: &KeyPair, sealing: &SealingKey| -> Result<JoinResponse, JoinError> {
        let request = JoinRequest {
            token: made.token.clone(),
            public_key: key.spki_der().into(),
            sealing_key: sealing.public.clone().into(),
            peer_address: "127.0.0.1:1".into(),
        };
        request_join(&made.peer_addresses[0], &made.ca_pin, request).await
    };
    let kek = std::fs::read_to_string(cluster.config.kek_path()).unwrap();
    let kek = hex::decode(kek.trim().strip_prefix("mezite-kek-v1:").unwrap()).unwrap();

    let (key, sealing) = (KeyPair::generate_p256().unwrap(), SealingKey::new());
    let first = ask(&key, &sealing).await.unwrap();
    assert_eq!(sealing.open(&first).as_ref(), Some(&kek));

    // The token alone is not enough, nor with the public key, which is seen in handshakes.
    let (other_key, other_sealing) = (KeyPair::generate_p256().unwrap(), SealingKey::new());
    for (key, sealing) in [(&key, &other_sealing), (&other_key, &sealing), (&other_key, &other_sealing)] {
        let refused = ask(key, sealing).await.unwrap_err().to_string();
        assert!(refused.contains("not accepted"), "{refused}");
    }

    // As if the first answer had been lost.
    let again = ask(&key, &sealing).await.unwrap();
    assert_eq!((again.node_id, &again.cluster_id), (first.node_id, &first.cluster_id));
    assert_eq!(sealing.open(&again), Some(kek));
    assert_eq!(other_sealing.open(&again), None);
    let keys =
        [&first, &again].map(|answer| CertificateInfo::from_pem(&answer.certificate).unwrap().spki_pin);
    assert_eq!(keys[0], keys[1]);
    cluster.handle.stop().await;
}
