//! What the members of a cluster trust.

use auth_core::{
    CoreError,
    tables::{CaKind, RotationPhase},
    trust::{self, Authority, TrustBundle},
};
use mezite_proto::v1;

use crate::{authn::Call, error::ApiError, service::Service};

/// Answers the trust bundle, from this node's own state: a host must be able to learn what to trust while there is no
/// quorum, the bundle changes seldom, and heartbeats tell when it does.
pub(crate) async fn get_bundle(
    service: &Service,
    call: &Call,
    _request: v1::GetTrustBundleRequest,
) -> Result<v1::GetTrustBundleResponse, ApiError> {
    let bundle = service.read_local(call, |view| trust::bundle(view)).await?;
    Ok(reply(bundle)?)
}

/// A trust bundle, as it is told.
pub(super) fn reply(bundle: TrustBundle) -> Result<v1::GetTrustBundleResponse, CoreError> {
    Ok(v1::GetTrustBundleResponse {
        known_hosts: bundle.known_hosts()?,
        trusted_user_ca_keys: bundle.trusted_user_ca_keys(),
        cluster_name: bundle.cluster_name,
        authorities: bundle.authorities.into_iter().map(authority).collect(),
        revision: bundle.revision,
    })
}

/// The public side of an authority, as it is told.
pub(super) fn authority(authority: Authority) -> v1::TrustedCa {
    let (ssh_public_keys, certificates) = match authority.kind {
        CaKind::User | CaKind::Host | CaKind::Audit => (authority.keys, Vec::new()),
        CaKind::Tls | CaKind::Peer | CaKind::Spiffe => (Vec::new(), authority.keys),
    };
    v1::TrustedCa {
        kind: kind(authority.kind).into(),
        ssh_public_keys,
        certificates,
        phase: rotation_phase(authority.phase).into(),
    }
}

/// Where the rotation of an authority stands, as agents are told.
pub(super) fn phase((of, phase): (CaKind, RotationPhase)) -> v1::CaPhase {
    v1::CaPhase { kind: kind(of).into(), phase: rotation_phase(phase).into() }
}

pub(super) fn rotation_phase(phase: RotationPhase) -> v1::RotationPhase {
    match phase {
        RotationPhase::Standby => v1::RotationPhase::Standby,
        RotationPhase::Init => v1::RotationPhase::Init,
        RotationPhase::UpdateClients => v1::RotationPhase::UpdateClients,
        RotationPhase::UpdateServers => v1::RotationPhase::UpdateServers,
        RotationPhase::Rollback => v1::RotationPhase::Rollback,
    }
}

pub(super) fn kind(kind: CaKind) -> v1::CaKind {
    match kind {
        CaKind::User => v1::CaKind::User,
        CaKind::Host => v1::CaKind::Host,
        CaKind::Tls => v1::CaKind::Tls,
        CaKind::Peer => v1::CaKind::Peer,
        CaKind::Spiffe => v1::CaKind::Spiffe,
        CaKind::Audit => v1::CaKind::Audit,
    }
}

#[cfg(test)]
mod tests {
    use mezite_pki::ssh::SshCa;

    use super::*;

    #[test]
    fn keys_and_certificates_are_told_apart() {
        let line = SshCa::generate().unwrap().public_line();
        let authority =
            |kind, key: &str| Authority { kind, keys: vec![key.to_owned()], phase: RotationPhase::Init };
        let bundle = TrustBundle {
            cluster_name: "c".into(),
            authorities: vec![
                authority(CaKind::User, "user"),
                authority(CaKind::Host, &line),
                authority(CaKind::Tls, "tls"),
            ],
            revision: 7,
        };
        let reply = reply(bundle).unwrap();
        assert_eq!((reply.cluster_name.as_str(), reply.revision), ("c", 7));
        assert_eq!(reply.known_hosts, [format!("@cert-authority * {line}")]);
        assert_eq!(reply.trusted_user_ca_keys, ["user"]);
        let kinds: Vec<_> = reply.authorities.iter().map(v1::TrustedCa::kind).collect();
        assert_eq!(kinds, [v1::CaKind::User, v1::CaKind::Host, v1::CaKind::Tls]);
        assert_eq!(reply.authorities[0].phase(), v1::RotationPhase::Init);
        assert_eq!(
            (reply.authorities[0].ssh_public_keys.len(), reply.authorities[2].certificates.len()),
            (1, 1)
        );
        assert!(
            reply.authorities[2].ssh_public_keys.is_empty() && reply.authorities[0].certificates.is_empty()
        );
    }
}
