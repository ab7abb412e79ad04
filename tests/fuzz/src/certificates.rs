//! Keys and certificates that are offered.

use std::str;

use mezite_pki::{
    ssh::{SshPublicKey, parse_certificate},
    x509::{CertificateInfo, Svid, check_svid_authority},
};

/// Bytes are a certificate of somebody. Its identity is in its one form; and whoever is somebody of a cluster is no workload
/// of another trust domain.
pub(crate) fn x509(bytes: &[u8]) -> bool {
    let (info, svid) = (CertificateInfo::from_der(bytes), Svid::from_der(bytes));
    if let Ok(svid) = &svid {
        assert!(svid.spiffe_id.starts_with("spiffe://"), "{}", svid.spiffe_id);
        assert!(check_svid_authority(bytes).is_err(), "a workload that is an authority");
    }
    let identity = info.as_ref().ok().and_then(|info| info.identity.clone());
    if let Some(identity) = &identity {
        assert_eq!(identity.to_string().parse().as_ref(), Ok(identity));
        assert!(svid.is_err(), "{identity} and a workload at once");
    }
    if let Ok(text) = str::from_utf8(bytes) {
        // What is around it, as files have it.
        let _ = CertificateInfo::from_pem(text);
    }
    identity.is_some() || svid.is_ok()
}

/// Bytes are a public key for ssh, or a certificate, in their one line. A certificate is no key; and a key is read as it is
/// written.
pub(crate) fn ssh(bytes: &[u8]) -> bool {
    let Ok(line) = str::from_utf8(bytes) else { return false };
    let (key, certificate) = (SshPublicKey::parse(line), parse_certificate(line));
    assert!(key.is_err() || certificate.is_err(), "a key and a certificate at once");
    if let Ok(key) = &key {
        assert_eq!(SshPublicKey::parse(&key.line()).as_ref(), Ok(key));
        assert!(!key.line().contains(['\n', '\r', '\0']));
    }
    key.is_ok() || certificate.is_ok()
}
