//! PEM (RFC 7468), with private keys kept in memory that is zeroized.

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject};
use zeroize::Zeroizing;

use crate::PkiError;

/// Characters of base64 in one line.
const LINE: usize = 64;

/// Longest text that is read, in bytes: a chain of a few certificates.
const MAX_TEXT: usize = 256 * 1024;

/// A certificate as PEM.
pub fn certificate(der: &[u8]) -> String {
    let mut text = String::new();
    write(&mut text, "CERTIFICATE", &STANDARD.encode(der));
    text
}

/// A PKCS#8 private key as PEM. No copy of it stays behind in memory.
pub(super) fn private_key(pkcs8: &[u8]) -> Zeroizing<String> {
    // Room for everything at once: a string that grows would leave copies.
    let base64_length = pkcs8.len().div_ceil(3) * 4;
    let mut body = Zeroizing::new(String::with_capacity(base64_length));
    STANDARD.encode_string(pkcs8, &mut body);
    let mut text = Zeroizing::new(String::with_capacity(base64_length + base64_length / LINE + 80));
    write(&mut text, "PRIVATE KEY", &body);
    text
}

fn write(text: &mut String, label: &str, body: &str) {
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    let mut rest = body;
    while !rest.is_empty() {
        // Base64 is ASCII, so any index is between characters.
        let (line, after) = rest.split_at(rest.len().min(LINE));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
}

/// The first certificate of a text, in DER.
///
/// # Errors
/// [`PkiError::TooLong`] above 256 KiB, [`PkiError::Malformed`].
pub(super) fn read_certificate(text: &str) -> Result<CertificateDer<'static>, PkiError> {
    check_length(text)?;
    CertificateDer::from_pem_slice(text.as_bytes())
        .map_err(|_| PkiError::Malformed { expected: "a certificate in PEM" })
}

/// The first certificate of a PEM text, in DER.
///
/// # Errors
/// [`PkiError::TooLong`] above 256 KiB, [`PkiError::Malformed`].
pub fn certificate_der(text: &str) -> Result<Vec<u8>, PkiError> {
    read_certificate(text).map(|certificate| certificate.to_vec())
}

/// The certificate of a text that has one and no other, in DER.
///
/// # Errors
/// As [`read_certificate`].
pub(super) fn read_single(text: &str) -> Result<CertificateDer<'static>, PkiError> {
    check_length(text)?;
    let expected = PkiError::Malformed { expected: "one certificate in PEM" };
    let mut all = CertificateDer::pem_slice_iter(text.as_bytes());
    match (all.next(), all.next()) {
        (Some(Ok(certificate)), None) => Ok(certificate),
        _ => Err(expected),
    }
}

/// The first PKCS#8 private key of a text, in DER.
///
/// # Errors
/// [`PkiError::TooLong`] above 256 KiB, [`PkiError::Malformed`].
pub(super) fn read_private_key(text: &str) -> Result<Zeroizing<PrivatePkcs8KeyDer<'static>>, PkiError> {
    check_length(text)?;
    PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes())
        .map(Zeroizing::new)
        .map_err(|_| PkiError::Malformed { expected: "a PKCS#8 private key in PEM" })
}

fn check_length(text: &str) -> Result<(), PkiError> {
    if text.len() > MAX_TEXT {
        return Err(PkiError::TooLong { what: "a PEM text", limit: MAX_TEXT });
    }
    Ok(())
}
