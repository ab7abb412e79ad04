//! What a call brings: its method's access rule, the credential, where it comes from, by what its repetitions are
//! known, and how long it may take. Whether the credential is worth anything is decided where the work is done, on the state as it is
//! then.

use std::time::Duration;

use auth_core::{
    CoreError, Credential, Origin,
    names::{AgentId, ClusterName, IdentityName, UserName},
    remote::RemoteCredential,
    repeat::{self, IdempotencyKey},
    secret::{SecretDigest, SecretKind},
};
use mezite_daemon::calls::{self, CallSpan};
use mezite_pki::{
    identity::Identity,
    x509::{CertificateInfo, Svid},
};
use mezite_proto::{IDEMPOTENCY_KEY, access::MethodAccess, transport::ConnectionInfo};
use rustls_pki_types::CertificateDer;
use tokio::time::Instant;
use tonic::{Extensions, metadata::MetadataMap};

/// Longest session id that is looked at, in bytes.
const MAX_SESSION_ID: usize = 256;
/// Scheme of the `authorization` metadata (RFC 6750, section 2.1); case does not matter.
const BEARER: &str = "bearer ";

/// One call.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// Who may make it.
    pub(crate) method: &'static MethodAccess,
    /// What proves who makes it.
    pub(crate) credential: Credential,
    /// Through what it came.
    pub(crate) origin: Origin,
    /// By what its repetitions are known, if its client says so.
    pub(crate) key: Option<IdempotencyKey>,
    /// When it must be over; `None`: it may go on as long as messages flow.
    pub(crate) deadline: Option<Instant>,
    /// What log lines and traces say of it.
    pub(crate) span: CallSpan,
}

/// Begins what log lines and traces say of a call.
pub(crate) fn span(method: &'static str, origin: &Origin) -> CallSpan {
    CallSpan::begin(method, &origin.request_id, &origin.client_address)
}

/// Where and when a call is taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Here<'a> {
    /// Name of the cluster.
    pub(crate) cluster: &'a str,
    /// Unix seconds.
    pub(crate) now: u64,
}

/// Through what a call came.
pub(crate) fn origin(extensions: &Extensions, node_id: u64) -> Origin {
    let address =
        extensions.get::<ConnectionInfo>().map(|info| info.remote_addr.ip().to_canonical().to_string());
    Origin {
        node_id,
        request_id: calls::new_id(),
        client_address: address.unwrap_or_default(),
        ..Origin::default()
    }
}

/// What proves who makes a call: its session, or else the client certificate of its connection.
///
/// # Errors
/// [`CoreError::Unauthenticated`] for metadata that is no session, and for a certificate that is past its
/// time or of another cluster.
pub(crate) fn credential(
    metadata: &MetadataMap,
    extensions: &Extensions,
    here: Here<'_>,
) -> Result<Credential, CoreError> {
    match session(metadata)? {
        Some(digest) => Ok(Credential::Session(digest)),
        None => certificate(extensions, here),
    }
}

fn session(metadata: &MetadataMap) -> Result<Option<SecretDigest>, CoreError> {
    let malformed = CoreError::Unauthenticated("the metadata authorization must be: Bearer <session_id>");
    let mut values = metadata.get_all("authorization").iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(malformed);
    }
    let text = value.to_str().map_err(|_| malformed.clone())?;
    let (scheme, id) = text.split_at_checked(BEARER.len()).ok_or_else(|| malformed.clone())?;
    let digest = session_digest(id).filter(|_| scheme.eq_ignore_ascii_case(BEARER));
    digest.map(Some).ok_or(malformed)
}

/// The digest of a session's id. `None`: it is not one.
pub(crate) fn session_digest(id: &str) -> Option<SecretDigest> {
    let good = (1..=MAX_SESSION_ID).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    good.then(|| SecretDigest::of(SecretKind::Session, id))
}

fn certificate(extensions: &Extensions, here: Here<'_>) -> Result<Credential, CoreError> {
    let Some(connection) = extensions.get::<ConnectionInfo>() else { return Ok(Credential::None) };
    let Some(leaf) = connection.peer_certificates.first() else { return Ok(Credential::None) };
    let unreadable = CoreError::Unauthenticated("the client certificate names no holder");
    let Ok(info) = CertificateInfo::from_der(leaf) else {
        return workload(&connection.peer_certificates, here).ok_or(unreadable);
    };
    // A connection outlives the handshake that checked the certificate's time.
    if here.now < info.not_before || here.now > info.not_after {
        return Err(CoreError::Unauthenticated("the client certificate is past its time, or before it"));
    }
    let identity = info.identity.clone().ok_or_else(|| unreadable.clone())?;
    if identity.cluster() != here.cluster {
        return remote(&identity, &info, leaf);
    }
    let parse = |id: &str| AgentId::parse("client certificate", id).map_err(|_| unreadable.clone());
    let key_digest = || digest_of(&info.spki_pin).ok_or_else(|| unreadable.clone());
    match &identity {
        Identity::Agent { id, .. } => Ok(Credential::Agent { id: parse(id)?, key_digest: key_digest()? }),
        Identity::Ingest { id, .. } => Ok(Credential::Ingest { id: parse(id)?, key_digest: key_digest()? }),
        Identity::Bot { name, .. } => Ok(Credential::AgentIdentity {
            name: IdentityName::parse("client certificate", name).map_err(|_| unreadable.clone())?,
            key_digest: key_digest()?,
        }),
        // A user calls with a session, and auth nodes speak to each other elsewhere.
        Identity::User { .. } | Identity::Auth { .. } => Ok(Credential::None),
    }
}

/// A workload of another trust domain, with an SVID. TLS has let it in by the authorities of that domain, and had it prove that it
/// has the key; the one call that takes it verifies it again. `None`: it is none, or past its time.
fn workload(chain: &[CertificateDer<'_>], here: Here<'_>) -> Option<Credential> {
    let svid = Svid::from_der(chain.first()?).ok()?;
    let good = (svid.not_before..=svid.not_after).contains(&here.now);
    good.then(|| Credential::Svid(chain.iter().map(|certificate| certificate.to_vec()).collect()))
}

/// Of another cluster users alone are anybody here. Whether it is trusted, and signed this, is for the state to say.
fn remote(identity: &Identity, info: &CertificateInfo, leaf: &[u8]) -> Result<Credential, CoreError> {
    let Identity::User { cluster, name } = identity else {
        return Err(CoreError::Unauthenticated("the client certificate is of another cluster"));
    };
    let unreadable = |_| CoreError::Unauthenticated("the client certificate names no holder");
    Ok(Credential::Remote(Box::new(RemoteCredential {
        cluster: ClusterName::parse("client certificate", cluster).map_err(unreadable)?,
        name: UserName::parse("client certificate", name).map_err(unreadable)?,
        roles: info.roles.clone(),
        certificate: leaf.to_vec(),
        ends_at_ms: info.not_after.saturating_add(1).saturating_mul(1000),
    })))
}

/// Whether a call's connection shows a good certificate of this cluster, whoever's it is.
pub(crate) fn is_of_the_cluster(extensions: &Extensions, here: Here<'_>) -> bool {
    let leaf = extensions.get::<ConnectionInfo>().and_then(|info| info.peer_certificates.first());
    leaf.and_then(|leaf| CertificateInfo::from_der(leaf).ok()).is_some_and(|info| {
        let good = (info.not_before..=info.not_after).contains(&here.now);
        good && info.identity.is_some_and(|identity| identity.cluster() == here.cluster)
    })
}

/// Last second in which the client certificate of a call is good, Unix time; 0 without one.
pub(crate) fn certificate_ends(extensions: &Extensions) -> u64 {
    let leaf = extensions.get::<ConnectionInfo>().and_then(|info| info.peer_certificates.first());
    leaf.and_then(|leaf| CertificateInfo::from_der(leaf).ok()).map_or(0, |info| info.not_after)
}

/// The digest in a pin, `sha256:` and hexadecimal digits.
fn digest_of(pin: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    hex::decode_to_slice(pin.strip_prefix("sha256:")?, &mut digest).ok()?;
    Some(digest)
}

/// By what repetitions of the call are known: its metadata `mezite-idempotency-key`.
///
/// # Errors
/// [`CoreError::Invalid`] for one that is no key, and for more than one.
pub(crate) fn idempotency_key(metadata: &MetadataMap) -> Result<Option<IdempotencyKey>, CoreError> {
    let mut values = metadata.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(CoreError::invalid(repeat::FIELD, "one at most"));
    }
    // What is no text is refused as the empty text is.
    IdempotencyKey::parse(value.to_str().unwrap_or_default()).map(Some)
}

/// How long a call may take, as its `grpc-timeout` says; `longest` when it does not, or says more. A sixteenth is kept
/// back, so that the answer is there while its client still waits.
///
/// # Errors
/// [`CoreError::Invalid`] for one that cannot be read.
pub(crate) fn deadline(metadata: &MetadataMap, longest: Duration) -> Result<Duration, CoreError> {
    let Some(value) = metadata.get("grpc-timeout") else { return Ok(longest) };
    let parsed = value.to_str().ok().and_then(timeout);
    parsed
        .map(|asked| (asked - asked / 16).min(longest))
        .ok_or_else(|| CoreError::invalid("grpc-timeout", "1 to 8 digits and a unit"))
}

/// As of the gRPC protocol: at most 8 digits and one of H, M, S, m, u, n.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use mezite_pki::x509::{KeyPair, LeafSpec, X509Ca};
    use rustls_pki_types::{CertificateDer, pem::PemObject as _};
    use sha2::{Digest as _, Sha256};

    use super::*;

    const HERE: Here<'static> = Here { cluster: "c", now: 1_700_000_000 };
    const ID: &str = "6f9619ff-8b86-4011-b42d-00c04fc964ff";

    fn metadata(values: &[&str]) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        for value in values {
            metadata.append("authorization", value.parse().unwrap());
        }
        metadata
    }

    /// A connection whose client showed a certificate of this holder, and the digest of its key.
    fn shown(identity: Identity, life: (u64, u64)) -> (Extensions, [u8; 32]) {
        let ca = X509Ca::generate("ca", 1_600_000_000, 4_000_000_000).unwrap();
        let key = KeyPair::generate_p256().unwrap().spki_der();
        let leaf = ca.issue(&LeafSpec {
            public_key: key.clone(),
            common_name: "x".into(),
            identity: Some(identity),
            dns_names: vec![],
            ip_addresses: vec![],
            not_before: life.0,
            not_after: life.1,
            client_auth: true,
            server_auth: false,
        });
        let der = CertificateDer::from_pem_slice(leaf.unwrap().as_bytes()).unwrap();
        let mut extensions = Extensions::new();
        extensions.insert(ConnectionInfo {
            remote_addr: "[::ffff:192.0.2.7]:9".parse().unwrap(),
            peer_certificates: [der].into(),
        });
        (extensions, Sha256::digest(&key).into())
    }

    fn agent(cluster: &str) -> Identity {
        Identity::Agent { cluster: cluster.into(), id: ID.into() }
    }

    const LIFE: (u64, u64) = (HERE.now - 60, HERE.now + 60);

    #[test]
    fn a_session_is_taken_by_its_digest_and_wins_over_a_certificate() {
        let (extensions, _) = shown(agent("c"), LIFE);
        for value in ["Bearer s3cret", "bearer s3cret", "BEARER s3cret"] {
            let found = credential(&metadata(&[value]), &extensions, HERE).unwrap();
            assert_eq!(found, Credential::Session(SecretDigest::of(SecretKind::Session, "s3cret")));
            assert!(!format!("{found:?}").contains("s3cret"));
        }
    }

    #[test]
    fn what_is_no_session_is_refused_also_beside_a_certificate() {
        let (extensions, _) = shown(agent("c"), LIFE);
        let long = format!("Bearer {}", "a".repeat(257));
        for bad in [
            &["Basic eDp5"][..],
            &["Bearer"],
            &["Bearer "],
            &["Bearer a b"],
            &["s3cret"],
            &[&long],
            &["Bearer a", "Bearer b"],
        ] {
            let found = credential(&metadata(bad), &extensions, HERE);
            assert!(matches!(found, Err(CoreError::Unauthenticated(_))), "{bad:?}");
        }
    }

    #[test]
    fn a_certificate_names_an_agent_or_ingest_and_its_key() {
        let id = || AgentId::parse("", ID).unwrap();
        let none = MetadataMap::new();
        let (extensions, key_digest) = shown(agent("c"), LIFE);
        assert_eq!(credential(&none, &extensions, HERE), Ok(Credential::Agent { id: id(), key_digest }));
        let ingest = Identity::Ingest { cluster: "c".into(), id: ID.into() };
        let (extensions, key_digest) = shown(ingest, LIFE);
        assert_eq!(credential(&none, &extensions, HERE), Ok(Credential::Ingest { id: id(), key_digest }));
        assert_eq!(credential(&none, &Extensions::new(), HERE), Ok(Credential::None));
        assert_eq!((certificate_ends(&extensions), certificate_ends(&Extensions::new())), (LIFE.1, 0));
    }

    #[test]
    fn users_and_auth_nodes_prove_nothing_by_a_certificate() {
        let user = Identity::User { cluster: "c".into(), name: "ann".into() };
        for identity in [user, Identity::Auth { cluster: "c".into(), node_id: 1 }] {
            let (extensions, _) = shown(identity, LIFE);
            assert_eq!(credential(&MetadataMap::new(), &extensions, HERE), Ok(Credential::None));
        }
    }

    #[test]
    fn the_certificate_of_a_bot_is_no_users() {
        let bot = |cluster: &str| Identity::Bot { cluster: cluster.into(), name: "ann".into() };
        let (extensions, key_digest) = shown(bot("c"), LIFE);
        let name = IdentityName::parse("", "ann").unwrap();
        let found = credential(&MetadataMap::new(), &extensions, HERE);
        assert_eq!(found, Ok(Credential::AgentIdentity { name, key_digest }));
        let (extensions, _) = shown(bot("d"), LIFE);
        let refused = credential(&MetadataMap::new(), &extensions, HERE);
        assert!(matches!(refused, Err(CoreError::Unauthenticated(_))), "{refused:?}");
    }

    #[test]
    fn of_another_cluster_a_user_is_somebody_and_nobody_else() {
        let none = MetadataMap::new();
        let user = Identity::User { cluster: "d".into(), name: "ann".into() };
        let (extensions, _) = shown(user, LIFE);
        let found = credential(&none, &extensions, HERE).unwrap();
        let Credential::Remote(found) = found else { panic!("{found:?}") };
        assert_eq!((found.cluster.as_str(), found.name.as_str()), ("d", "ann"));
        assert_eq!((found.ends_at_ms, found.roles.len()), ((LIFE.1 + 1) * 1000, 0));
        for identity in [
            agent("d"),
            Identity::Ingest { cluster: "d".into(), id: ID.into() },
            Identity::Auth { cluster: "d".into(), node_id: 1 },
        ] {
            let (extensions, _) = shown(identity, LIFE);
            let refused = credential(&none, &extensions, HERE);
            assert!(matches!(refused, Err(CoreError::Unauthenticated(_))), "{refused:?}");
        }
    }

    #[test]
    fn a_certificate_counts_within_its_time_and_in_its_cluster() {
        let none = MetadataMap::new();
        for (identity, life) in [
            (agent("d"), LIFE),
            (agent("c"), (HERE.now - 60, HERE.now - 1)),
            (agent("c"), (HERE.now + 1, HERE.now + 60)),
        ] {
            let (extensions, _) = shown(identity, life);
            assert!(matches!(credential(&none, &extensions, HERE), Err(CoreError::Unauthenticated(_))));
        }
    }

    #[test]
    fn of_the_cluster_is_who_shows_a_certificate_of_it_within_its_time() {
        let user = Identity::User { cluster: "c".into(), name: "ann".into() };
        for identity in [agent("c"), user] {
            assert!(is_of_the_cluster(&shown(identity, LIFE).0, HERE));
        }
        let stranger = Identity::User { cluster: "d".into(), name: "ann".into() };
        for (identity, life) in
            [(agent("d"), LIFE), (stranger, LIFE), (agent("c"), (HERE.now - 60, HERE.now - 1))]
        {
            assert!(!is_of_the_cluster(&shown(identity, life).0, HERE));
        }
        assert!(!is_of_the_cluster(&Extensions::new(), HERE));
    }

    #[test]
    fn an_origin_has_the_plain_address_and_an_id_of_its_own() {
        let (extensions, _) = shown(agent("c"), LIFE);
        let (one, two) = (origin(&extensions, 3), origin(&extensions, 3));
        assert_eq!((one.node_id, one.client_address.as_str()), (3, "192.0.2.7"));
        assert!(one.request_id.len() == 16 && one.request_id != two.request_id);
    }

    #[test]
    fn a_call_has_one_idempotency_key_or_none() {
        assert_eq!(repeat::FIELD, IDEMPOTENCY_KEY);
        let key = |values: &[&str]| {
            let mut metadata = MetadataMap::new();
            for value in values {
                metadata.append(IDEMPOTENCY_KEY, value.parse().unwrap());
            }
            idempotency_key(&metadata)
        };
        let good = "0a".repeat(32);
        assert!(key(&[]).unwrap().is_none() && key(&[&good]).unwrap().is_some());
        let long = "0a".repeat(33);
        for bad in [&[""][..], &["0a"], &[&long], &[&good, &good]] {
            assert!(matches!(key(bad), Err(CoreError::Invalid { field, .. }) if field == IDEMPOTENCY_KEY));
        }
    }

    #[test]
    fn deadlines_are_read_and_bounded() {
        let longest = Duration::from_secs(30);
        let asked = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            deadline(&metadata, longest)
        };
        assert_eq!(deadline(&MetadataMap::new(), longest), Ok(longest));
        assert_eq!(asked("160m"), Ok(Duration::from_millis(150)));
        assert_eq!(asked("32u"), Ok(Duration::from_micros(30)));
        assert_eq!((asked("2H"), asked("99999999S")), (Ok(longest), Ok(longest)));
        for bad in ["", "S", "1", "1x", "-1S", "123456789S", "1 S"] {
            assert!(asked(bad).is_err(), "{bad:?}");
        }
    }
}
