//! The proof of a recording: that its manifest is whole, that the key which signed it was an ingest's of the cluster, and that
//! the payload is what the manifest says.
//!
//! A signature proves only that whoever has the key made it. So a manifest carries what the cluster certified the ingest with:
//! its host CA ties the key to an id, its TLS CA says that the id is an ingest's. Both are judged as of when the manifest was
//! sealed, so a proof holds after the ingest has renewed its certificates, or left.

use mezite_pki::{
    PkiError,
    identity::Identity,
    ssh::{CertificateKind, SshPublicKey, parse_certificate, verify_sshsig},
    x509::{self, CertificateInfo},
};
use recording_format::{
    Digest, IngestCertificates, MANIFEST_NAMESPACE, Manifest, PayloadHasher, RecordingId,
};
use serde::Deserialize;

use crate::exit::Usage;

/// What begins and ends a certificate in PEM.
const PEM: (&str, &str) = ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----");
/// What a line of known_hosts has before the key of an authority.
const KNOWN_HOSTS_MARK: &str = "@cert-authority";

/// By whom ingests are known.
#[derive(Debug, Clone, Default)]
pub(crate) struct Authorities {
    /// Name of the cluster; `None` where only its authorities are known.
    cluster: Option<String>,
    /// Fingerprints of the keys of its host CA.
    host: Vec<String>,
    /// Certificates of its TLS CA, PEM.
    tls: Vec<String>,
}

impl Authorities {
    /// Of the cluster of this name; none yet.
    pub(crate) fn of_cluster(name: &str) -> Self {
        Self { cluster: Some(name.to_owned()), ..Self::default() }
    }

    /// Adds a key of the host CA: one line, as OpenSSH writes it, or one of known_hosts.
    ///
    /// # Errors
    /// For what is no such line.
    pub(crate) fn add_host(&mut self, line: &str) -> Result<(), Usage> {
        let key = match line.trim().strip_prefix(KNOWN_HOSTS_MARK) {
            Some(rest) => rest.trim_start().split_once(' ').map_or("", |(_hosts, key)| key),
            None => line.trim(),
        };
        let key =
            SshPublicKey::parse(key).map_err(|error| Usage(format!("a key of the host CA: {error}")))?;
        self.host.push(key.fingerprint());
        Ok(())
    }

    /// Adds a certificate of the TLS CA.
    pub(crate) fn add_tls(&mut self, pem: &str) {
        self.tls.push(pem.to_owned());
    }

    /// Adds all of a file, as `mezctl auth export host` and `… tls` write them.
    ///
    /// # Errors
    /// For a line that is neither.
    pub(crate) fn add_file(&mut self, text: &str) -> Result<(), Usage> {
        let mut rest = text;
        while let Some((before, after)) = rest.split_once(PEM.0) {
            self.add_lines(before)?;
            let (body, after) =
                after.split_once(PEM.1).ok_or_else(|| Usage("a certificate has no end".into()))?;
            self.add_tls(&format!("{}{body}{}\n", PEM.0, PEM.1));
            rest = after;
        }
        self.add_lines(rest)
    }

    fn add_lines(&mut self, text: &str) -> Result<(), Usage> {
        let mut said = text.lines().filter(|line| !line.trim().is_empty() && !line.trim().starts_with('#'));
        said.try_for_each(|line| self.add_host(line))
    }
}

/// A manifest, its bytes as they were signed, and the signature.
#[derive(Debug, Clone)]
pub(crate) struct Sealed {
    pub(crate) manifest: Manifest,
    pub(crate) sha256: Digest,
    /// What is wrong with its signature, or with whose it is.
    pub(crate) problems: Vec<String>,
}

/// The recording that a manifest says it is of.
///
/// # Errors
/// When it says none.
pub(crate) fn recording_of(document: &[u8]) -> Result<RecordingId, String> {
    #[derive(Deserialize)]
    struct Said {
        recording_id: RecordingId,
    }
    let said: Said =
        serde_json::from_slice(document).map_err(|_| "it is no manifest of a recording".to_owned())?;
    Ok(said.recording_id)
}

/// Reads a receipt, and judges who signed it.
///
/// # Errors
/// When its manifest is none of this recording, or contradicts itself.
pub(crate) fn sealed(
    id: RecordingId,
    document: &[u8],
    signature: &str,
    authorities: &Authorities,
) -> Result<Sealed, String> {
    let manifest = Manifest::decode(id, document).map_err(|error| format!("the manifest: {error}"))?;
    let mut problems = Vec::new();
    match SshPublicKey::parse(&manifest.signing_key) {
        Ok(key) => {
            if let Err(error) = verify_sshsig(signature, MANIFEST_NAMESPACE, document, &key) {
                problems.push(format!("the manifest is not what was signed: {error}"));
            }
            match &manifest.ingest_certificates {
                Some(certificates) => {
                    let ssh = by_host_ca(&manifest, &key, certificates, authorities);
                    let tls = by_tls_ca(&manifest, certificates, authorities);
                    problems.extend([ssh, tls].into_iter().filter_map(Result::err));
                }
                None => problems.push(
                    "the manifest has no certificates of the ingest, as those of older releases: its signature \
                     proves nobody"
                        .to_owned(),
                ),
            }
        }
        Err(error) => problems.push(format!("the key that signed the manifest: {error}")),
    }
    Ok(Sealed { manifest, sha256: Digest::of(document), problems })
}

/// The host CA says that the key is of the id that the manifest names.
fn by_host_ca(
    manifest: &Manifest,
    key: &SshPublicKey,
    certificates: &IngestCertificates,
    authorities: &Authorities,
) -> Result<(), String> {
    let found = parse_certificate(&certificates.ssh)
        .map_err(|error| format!("the ingest's SSH certificate: {error}"))?;
    let at = manifest.sealed_at_ms / 1000;
    let problem = if !authorities.host.contains(&found.ca_fingerprint) {
        "the ingest's SSH certificate is by none of the cluster's host CAs"
    } else if found.kind != CertificateKind::Host || found.key_id != manifest.ingest_id.to_string() {
        "the ingest's SSH certificate is of somebody else"
    } else if found.public_key.fingerprint() != key.fingerprint() {
        "the ingest's SSH certificate is of another key than the one that signed"
    } else if !(found.valid_after..found.valid_before).contains(&at) {
        "the ingest's SSH certificate was not good when the manifest was sealed"
    } else {
        return Ok(());
    };
    Err(problem.to_owned())
}

/// The TLS CA says that the id is an ingest's.
fn by_tls_ca(
    manifest: &Manifest,
    certificates: &IngestCertificates,
    authorities: &Authorities,
) -> Result<(), String> {
    let bad = |error: PkiError| format!("the ingest's TLS certificate: {error}");
    let der = x509::certificate_der(&certificates.tls).map_err(bad)?;
    let found = CertificateInfo::from_der(&der).map_err(bad)?;
    let signed = authorities.tls.iter().any(|authority| x509::is_signed_by(&der, authority).unwrap_or(false));
    let is_ingest = match &found.identity {
        Some(Identity::Ingest { cluster, id }) => {
            *id == manifest.ingest_id.to_string()
                && authorities.cluster.as_ref().is_none_or(|known| known == cluster)
        }
        _ => false,
    };
    let at = manifest.sealed_at_ms / 1000;
    let problem = if !signed {
        "the ingest's TLS certificate is by none of the cluster's TLS CAs"
    } else if !is_ingest || found.is_ca {
        "the ingest's TLS certificate is of nobody that is an ingest, or of another one"
    } else if Digest::from_bytes(found.fingerprint_sha256) != manifest.ingest_certificate_sha256 {
        "the ingest's TLS certificate is another one than the manifest names"
    } else if !(found.not_before..=found.not_after).contains(&at) {
        "the ingest's TLS certificate was not good when the manifest was sealed"
    } else {
        return Ok(());
    };
    Err(problem.to_owned())
}

/// What is wrong with a payload of this length, of which as much was hashed as the manifest is about.
pub(crate) fn payload(manifest: &Manifest, length: u64, hasher: &PayloadHasher) -> Option<String> {
    if length < manifest.length {
        return Some(format!("the payload has {length} bytes, and had {}", manifest.length));
    }
    let digest = hasher.digest();
    (digest != manifest.payload_sha256)
        .then(|| format!("the payload is not what was recorded: its SHA-256 is {digest}"))
}

#[cfg(test)]
#[path = "recording_proof_tests.rs"]
mod tests;
