//! What an agent gets: what is to be signed for it, by which keys. Whoever calls has decided that it may have it.

use mezite_pki::{identity::Identity, ssh::HostCertSpec, x509::LeafSpec};
use store_txn::{Transaction, TransactionExt, UnixMillis};

use super::{HOST_CERT_TTL_MS, HostCertRequest, target};
use crate::{
    Context,
    audit::{self, EventType},
    ca::{self, ActiveCa},
    names::AgentId,
    principal::Principal,
    revocation,
    tables::{CaKind, IssuedRow, NodeKind, PrincipalKey, PrincipalRow, TargetKind},
    trust::{self, TrustBundle},
    verdict::Stop,
};

/// Certificates are good from so long before they are issued, in seconds, for clocks that are behind.
pub(crate) const BACKDATE_SECONDS: u64 = 60;
/// What is to be signed for an agent, once the transaction has committed.
#[derive(Debug, Clone)]
pub struct HostCerts {
    /// The agent's id.
    pub agent_id: AgentId,
    /// SSH host certificate; an ingest may do without.
    pub ssh: Option<HostCertSpec>,
    /// The agent's identity.
    pub tls: LeafSpec,
    /// Signs the SSH certificate.
    pub host_ca: ActiveCa,
    /// Signs the identity.
    pub tls_ca: ActiveCa,
    /// What the agent trusts.
    pub trust: TrustBundle,
    /// When the certificates end.
    pub expires_at_ms: UnixMillis,
}

/// Says what to sign, and holds its names until it ends.
pub(super) fn issue(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    id: &AgentId,
    kind: NodeKind,
    request: &HostCertRequest,
    by: &str,
) -> Result<HostCerts, Stop> {
    let expires_at_ms = tx.now().saturating_add(HOST_CERT_TTL_MS);
    let names = request.names();
    for name in &names {
        let row = PrincipalRow { agent_id: id.as_str().to_owned(), expires_at_ms };
        tx.put(&PrincipalKey(name.clone()), &row);
    }
    let fields = [
        ("by", by.to_owned()),
        ("principals", names.join(",")),
        ("serial", request.serial.to_string()),
        ("expires_at_ms", expires_at_ms.to_string()),
        ("tls_key_sha256", hex::encode(request.key_digest)),
    ];
    audit::append(tx, context, EventType::HostCertIssue, target(kind, id), &fields);
    let issued = IssuedRow {
        kind: TargetKind::Node.into(),
        holder: id.as_str().to_owned(),
        expires_at_ms,
        ..IssuedRow::default()
    };
    if request.ssh_public_key.is_some() {
        revocation::note(tx, request.serial, &issued);
    }

    let trust = trust::bundle(tx)?;
    let lifetime = (tx.now() / 1000).saturating_sub(BACKDATE_SECONDS)..expires_at_ms / 1000;
    let ssh = request.ssh_public_key.clone().map(|public_key| HostCertSpec {
        public_key,
        key_id: id.as_str().to_owned(),
        principals: names,
        serial: request.serial,
        valid_after: lifetime.start,
        valid_before: lifetime.end,
    });
    let tls = leaf(id, kind, request, &trust.cluster_name, lifetime);
    // An ingest serves with its certificate; an SSH node is but a client.
    let tls_ca = match kind {
        NodeKind::Ingest => ca::active(tx, CaKind::Tls)?,
        NodeKind::Ssh | NodeKind::Unspecified => ca::for_clients(tx, CaKind::Tls)?,
    };
    let host_ca = ca::active(tx, CaKind::Host)?;
    Ok(HostCerts { agent_id: id.clone(), ssh, tls, host_ca, tls_ca, trust, expires_at_ms })
}

fn leaf(
    id: &AgentId,
    kind: NodeKind,
    request: &HostCertRequest,
    cluster: &str,
    lifetime: std::ops::Range<u64>,
) -> LeafSpec {
    let (mut dns_names, mut ip_addresses) = (Vec::new(), Vec::new());
    for principal in &request.principals {
        match principal {
            Principal::Dns(name) => dns_names.push(name.clone()),
            Principal::Ip(address) => ip_addresses.push(*address),
        }
    }
    let (cluster, holder) = (cluster.to_owned(), id.as_str().to_owned());
    let identity = if kind == NodeKind::Ingest {
        dns_names.push(format!("ingest.{cluster}.mezite.internal"));
        Identity::Ingest { cluster, id: holder.clone() }
    } else {
        Identity::Agent { cluster, id: holder.clone() }
    };
    LeafSpec {
        public_key: request.tls_public_key.clone(),
        common_name: holder,
        identity: Some(identity),
        dns_names,
        ip_addresses,
        not_before: lifetime.start,
        // The last second of the lifetime here, the first one after it in SSH's.
        not_after: lifetime.end.saturating_sub(1),
        client_auth: true,
        server_auth: true,
    }
}
