//! The roles of a user in its certificate, for clusters that trust the one that issued it: an extension of their names, in
//! the order of the caller, with commas between them, as one UTF8String. It is not critical: who does not know it passes
//! over it.

use rcgen::CustomExtension;
use x509_parser::{asn1_rs::Oid, certificate::X509Certificate};

use crate::{PkiError, text};

/// Object identifier of the extension: under the arc of random numbers (ITU-T X.667), one that was drawn for it.
const OID: [u64; 3] = [2, 25, 6_182_467_093_154_802_911];

/// Most roles in a certificate.
const MAX_ROLES: usize = 64;
/// Longest name of a role, in bytes.
const MAX_ROLE: usize = 63;
/// Between two roles.
const SEPARATOR: char = ',';
/// Tag of a UTF8String (X.690).
const UTF8_STRING: u8 = 0x0c;

fn is_role(role: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._@-".contains(&byte);
    (1..=MAX_ROLE).contains(&role.len()) && role.bytes().all(allowed)
}

/// The extension for these roles; none without roles.
///
/// # Errors
/// [`PkiError::TooMany`], [`PkiError::InvalidName`].
pub(super) fn extension(roles: &[String]) -> Result<Option<CustomExtension>, PkiError> {
    if roles.is_empty() {
        return Ok(None);
    }
    if roles.len() > MAX_ROLES {
        return Err(PkiError::TooMany { what: "roles in a certificate", limit: MAX_ROLES });
    }
    if let Some(role) = roles.iter().find(|role| !is_role(role)) {
        return Err(text::refused("this role", role));
    }
    let names = roles.join(&SEPARATOR.to_string());
    let length = u16::try_from(names.len()).unwrap_or(u16::MAX).to_be_bytes();
    // The long form for any length is BER; DER has the shortest.
    let header = match names.len() {
        0..=0x7f => vec![UTF8_STRING, length[1]],
        0x80..=0xff => vec![UTF8_STRING, 0x81, length[1]],
        _ => vec![UTF8_STRING, 0x82, length[0], length[1]],
    };
    Ok(Some(CustomExtension::from_oid_content(&OID, [header.as_slice(), names.as_bytes()].concat())))
}

/// The roles that a certificate names.
///
/// # Errors
/// [`PkiError::Malformed`] for an extension that this crate did not write, or for two of them.
pub(super) fn read(certificate: &X509Certificate<'_>) -> Result<Vec<String>, PkiError> {
    let malformed = || PkiError::Malformed { expected: "a list of roles in a certificate" };
    let known = Oid::from(&OID).map_err(|_| PkiError::Internal("the extension of roles has no name"))?;
    let found = certificate.get_extension_unique(&known).map_err(|_| malformed())?;
    let Some(found) = found else { return Ok(Vec::new()) };
    let text = utf8_string(found.value).ok_or_else(malformed)?;
    let roles: Vec<_> = text.split(SEPARATOR).map(str::to_owned).collect();
    if roles.len() > MAX_ROLES || !roles.iter().all(|role| is_role(role)) {
        return Err(malformed());
    }
    Ok(roles)
}

/// The text in a DER UTF8String of at most 64 KiB.
fn utf8_string(der: &[u8]) -> Option<&str> {
    let (content, length) = match der {
        [UTF8_STRING, length @ 0..=0x7f, content @ ..] => (content, usize::from(*length)),
        [UTF8_STRING, 0x81, length @ 0x80..=0xff, content @ ..] => (content, usize::from(*length)),
        [UTF8_STRING, 0x82, high @ 1..=0xff, low, content @ ..] => {
            (content, usize::from(u16::from_be_bytes([*high, *low])))
        }
        _ => return None,
    };
    std::str::from_utf8(content).ok().filter(|text| text.len() == length)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;
    use crate::x509::CertificateInfo;

    fn read_of(extensions: Vec<CustomExtension>) -> Result<Vec<String>, PkiError> {
        let mut params = CertificateParams::default();
        params.custom_extensions = extensions;
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        CertificateInfo::from_der(certificate.der()).map(|info| info.roles)
    }

    #[test]
    fn only_what_is_written_here_is_read() {
        let roles = ["access".to_owned(), "dev".to_owned()];
        let good = || extension(&roles).unwrap().unwrap();
        assert_eq!(good().content(), b"\x0c\x0aaccess,dev");
        assert_eq!(read_of(vec![good()]), Ok(roles.to_vec()));
        assert_eq!(read_of(vec![]), Ok(vec![]));
        let raw = |content: &[u8]| CustomExtension::from_oid_content(&OID, content.to_vec());
        for bad in [
            &b""[..],
            b"\x0c\x00",
            b"\x0c\x03a,",
            b"\x0c\x03,ab",
            b"\x0c\x02ab,",
            b"\x0c\x03ab",
            b"\x0c\x81\x02ab",
            b"\x0c\x82\x00\x02ab",
            b"\x13\x02ab",
            b"\x0c\x02Ab",
            b"\x0c\x02\xff\xff",
            b"\x0c\x03a,\n",
        ] {
            assert!(read_of(vec![raw(bad)]).is_err(), "{bad:?}");
        }
        assert!(read_of(vec![good(), raw(b"\x0c\x05admin")]).is_err());
    }

    #[test]
    fn what_is_no_role_is_not_written() {
        assert!(extension(&[]).unwrap().is_none());
        for bad in ["", "a,b", "A", "a b", &"a".repeat(64)] {
            assert!(extension(&[bad.to_owned()]).is_err(), "{bad}");
        }
        assert!(extension(&vec!["a".to_owned(); 65]).is_err());
    }
}
