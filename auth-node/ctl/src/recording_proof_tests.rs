use mezite_pki::{
    ssh::{HostCertSpec, SshCa, SshKeyPair},
    x509::{KeyPair, LeafSpec, X509Ca},
};
use recording_format::AgentId;

use super::*;

const PAYLOAD: &[u8] = b"what was shown";
const INGEST: [u8; 16] = [3; 16];
const LIFE: (u64, u64) = (1_700_000_000, 1_700_086_400);

/// A cluster's authorities, and an ingest's keys.
struct Cluster {
    host: SshCa,
    tls: X509Ca,
    key: SshKeyPair,
}

impl Cluster {
    fn new() -> Self {
        Self {
            host: SshCa::generate().unwrap(),
            tls: X509Ca::generate("tls", 1_600_000_000, 4_000_000_000).unwrap(),
            key: SshKeyPair::generate_ed25519("").unwrap(),
        }
    }

    fn authorities(&self) -> Authorities {
        let mut authorities = Authorities::of_cluster("c");
        authorities.add_host(&self.host.public_key().line()).unwrap();
        authorities.add_tls(self.tls.certificate_pem());
        authorities
    }

    fn ssh(&self, id: AgentId, key: &SshKeyPair) -> String {
        let spec = HostCertSpec {
            public_key: key.public_key().clone(),
            key_id: id.to_string(),
            principals: vec!["ingest1".into()],
            serial: 1,
            valid_after: LIFE.0,
            valid_before: LIFE.1,
        };
        self.host.sign_host(&spec).unwrap()
    }

    fn tls(&self, identity: Identity) -> String {
        let spec = LeafSpec {
            public_key: KeyPair::generate_p256().unwrap().spki_der(),
            common_name: "ingest".into(),
            identity: Some(identity),
            dns_names: vec!["ingest.c.mezite.internal".into()],
            ip_addresses: Vec::new(),
            not_before: LIFE.0,
            not_after: LIFE.1,
            client_auth: true,
            server_auth: true,
        };
        self.tls.issue(&spec).unwrap()
    }

    /// As an ingest of it seals a recording.
    fn manifest(&self) -> Manifest {
        let ingest = AgentId::from_bytes(INGEST);
        let tls = self.tls(Identity::Ingest { cluster: "c".into(), id: ingest.to_string() });
        let (id, agent) = (RecordingId::from_bytes([1; 16]), AgentId::from_bytes([2; 16]));
        Manifest {
            ingest_id: ingest,
            ingest_certificate_sha256: fingerprint(&tls),
            ingest_certificates: Some(IngestCertificates { ssh: self.ssh(ingest, &self.key), tls }),
            sealed_at_ms: (LIFE.0 + 60) * 1000,
            ..mezite_client::testing::manifest(id, agent, PAYLOAD, &self.key)
        }
    }
}

fn fingerprint(pem: &str) -> Digest {
    Digest::from_bytes(CertificateInfo::from_pem(pem).unwrap().fingerprint_sha256)
}

/// What is found wrong with a manifest that was signed as it is.
fn problems(manifest: &Manifest, key: &SshKeyPair, authorities: &Authorities) -> Vec<String> {
    let document = manifest.encode().unwrap();
    let signature = key.sign_sshsig(MANIFEST_NAMESPACE, &document).unwrap();
    let sealed = sealed(manifest.recording_id, &document, &signature, authorities).unwrap();
    assert_eq!((&sealed.manifest, sealed.sha256), (manifest, Digest::of(&document)));
    assert_eq!(recording_of(&document), Ok(manifest.recording_id));
    sealed.problems
}

#[track_caller]
fn only(problems: &[String], wanted: &str) {
    assert!(matches!(problems, [one] if one.contains(wanted)), "{problems:?}, and not {wanted}");
}

fn certificates(manifest: &mut Manifest) -> &mut IngestCertificates {
    manifest.ingest_certificates.as_mut().unwrap()
}

#[test]
fn what_an_ingest_of_the_cluster_sealed_is_proven_while_its_authorities_are_known() {
    let cluster = Cluster::new();
    let manifest = cluster.manifest();
    assert_eq!(problems(&manifest, &cluster.key, &cluster.authorities()), Vec::<String>::new());
    let nobody = Authorities::of_cluster("c");
    assert_eq!(problems(&manifest, &cluster.key, &nobody).len(), 2);

    // Those of before a rotation come from files, in whatever order.
    let mut kept = Cluster::new().authorities();
    let file = format!(
        "# kept\n{}\n@cert-authority * {}\n{}",
        cluster.tls.certificate_pem(),
        cluster.host.public_key().line(),
        Cluster::new().tls.certificate_pem()
    );
    kept.add_file(&file).unwrap();
    assert_eq!(problems(&manifest, &cluster.key, &kept), Vec::<String>::new());
    for wrong in ["x", "@cert-authority *", PEM.0] {
        assert!(Authorities::default().add_file(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_byte_that_was_changed_is_found() {
    let cluster = Cluster::new();
    let (manifest, authorities) = (cluster.manifest(), cluster.authorities());
    let document = manifest.encode().unwrap();
    let signature = cluster.key.sign_sshsig(MANIFEST_NAMESPACE, &document).unwrap();
    let judge = |document: &[u8]| sealed(manifest.recording_id, document, &signature, &authorities);
    for at in (0..document.len()).step_by(7) {
        let mut changed = document.clone();
        changed[at] ^= 1;
        assert!(judge(&changed).map_or(true, |sealed| !sealed.problems.is_empty()), "byte {at}");
    }
    let spaced = [document.as_slice(), b" "].concat();
    only(&judge(&spaced).unwrap().problems, "not what was signed");
    let other = RecordingId::from_bytes([9; 16]);
    assert!(sealed(other, &document, &signature, &authorities).is_err());
}

#[test]
fn a_key_that_is_no_ingests_of_the_cluster_proves_nothing() {
    let cluster = Cluster::new();
    let authorities = cluster.authorities();
    let judge = |change: &dyn Fn(&mut Manifest)| {
        let mut manifest = cluster.manifest();
        change(&mut manifest);
        problems(&manifest, &cluster.key, &authorities)
    };
    let ingest = AgentId::from_bytes(INGEST);
    only(&judge(&|m| m.ingest_certificates = None), "proves nobody");
    only(&judge(&|m| m.ingest_certificates.as_mut().unwrap().ssh = "x".into()), "SSH certificate");
    only(&judge(&|m| certificates(m).tls = "x".into()), "TLS certificate");

    // A host of the cluster, which has a certificate of the host CA too, but none of an ingest.
    let node = AgentId::from_bytes([7; 16]);
    let as_node = |m: &mut Manifest| {
        let tls = cluster.tls(Identity::Agent { cluster: "c".into(), id: node.to_string() });
        (m.ingest_id, m.ingest_certificate_sha256) = (node, fingerprint(&tls));
        m.ingest_certificates = Some(IngestCertificates { ssh: cluster.ssh(node, &cluster.key), tls });
    };
    only(&judge(&as_node), "nobody that is an ingest");
    // The same host, with what an ingest shows everybody who connects.
    only(&judge(&|m| certificates(m).ssh = cluster.ssh(node, &cluster.key)), "somebody else");
    let other_key = SshKeyPair::generate_ed25519("").unwrap();
    only(&judge(&|m| certificates(m).ssh = cluster.ssh(ingest, &other_key)), "another key");
    let mut manifest = cluster.manifest();
    manifest.signing_key = other_key.public_line();
    only(&problems(&manifest, &other_key, &authorities), "another key");

    // Of another cluster, by its own authorities or by ours.
    let foreign = Cluster::new();
    assert_eq!(problems(&foreign.manifest(), &foreign.key, &authorities).len(), 2);
    let elsewhere = |m: &mut Manifest| {
        let tls = cluster.tls(Identity::Ingest { cluster: "d".into(), id: ingest.to_string() });
        m.ingest_certificate_sha256 = fingerprint(&tls);
        certificates(m).tls = tls;
    };
    only(&judge(&elsewhere), "nobody that is an ingest");
    only(&judge(&|m| m.ingest_certificate_sha256 = Digest::of(b"other")), "than the manifest names");
    for at in [LIFE.0 - 1, LIFE.1 + 1] {
        assert_eq!(judge(&|m| m.sealed_at_ms = at * 1000).len(), 2);
    }
}

#[test]
fn a_payload_is_as_long_as_it_was_and_has_its_digest() {
    let manifest = Cluster::new().manifest();
    let judge = |bytes: &[u8]| {
        let mut hasher = PayloadHasher::default();
        hasher.update(bytes);
        payload(&manifest, bytes.len() as u64, &hasher)
    };
    assert_eq!(judge(PAYLOAD), None);
    assert!(judge(&PAYLOAD[1..]).unwrap().contains("13 bytes"));
    assert!(judge(b"What was shown").unwrap().contains("not what was recorded"));
}
