//! What a leaf certificate is asked to say, checked and turned into the parameters that are signed.

use std::net::IpAddr;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType,
    SerialNumber, string::Ia5String,
};
use x509_parser::time::ASN1Time;

use super::name;
use crate::{PkiError, identity::Identity, random, text, validity};

/// Most names, of either sort, in one certificate.
const MAX_NAMES: usize = 128;

/// Length of a serial number in bytes: 126 random bits (RFC 5280 allows 20 bytes, CAs must draw 64 bits).
const SERIAL_LENGTH: usize = 16;

/// A leaf certificate to sign.
#[derive(Debug, Clone)]
pub struct LeafSpec {
    /// The holder's public key: DER SubjectPublicKeyInfo, as [`super::check_public_key`] takes it.
    pub public_key: Vec<u8>,
    /// Name for people to read: 1 to 64 bytes. Nothing is decided by it.
    pub common_name: String,
    /// Who the holder is to the cluster: the one URI in the certificate.
    pub identity: Option<Identity>,
    /// Names that the holder serves: lower case, no wildcards. At most 128 with the addresses.
    pub dns_names: Vec<String>,
    /// Addresses that the holder serves.
    pub ip_addresses: Vec<IpAddr>,
    /// First second of the lifetime, Unix time.
    pub not_before: u64,
    /// Last second of the lifetime, Unix time; not after the authority's.
    pub not_after: u64,
    /// Good for TLS clients.
    pub client_auth: bool,
    /// Good for TLS servers.
    pub server_auth: bool,
}

impl LeafSpec {
    /// Checks everything but the public key.
    pub(super) fn params(&self) -> Result<CertificateParams, PkiError> {
        if !self.client_auth && !self.server_auth {
            return Err(PkiError::Incomplete("a use: client or server"));
        }
        let mut params = base_params(&self.common_name, self.not_before, self.not_after)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.subject_alt_names = self.alternative_names()?;
        let usages = [
            (self.client_auth, ExtendedKeyUsagePurpose::ClientAuth),
            (self.server_auth, ExtendedKeyUsagePurpose::ServerAuth),
        ];
        params.extended_key_usages =
            usages.into_iter().filter_map(|(set, usage)| set.then_some(usage)).collect();
        Ok(params)
    }

    fn alternative_names(&self) -> Result<Vec<SanType>, PkiError> {
        if self.dns_names.len() + self.ip_addresses.len() > MAX_NAMES {
            return Err(PkiError::TooMany { what: "names in a certificate", limit: MAX_NAMES });
        }
        let mut names = Vec::new();
        if let Some(identity) = &self.identity {
            identity.check()?;
            names.push(SanType::URI(ia5(&identity.to_string())?));
        }
        for dns_name in &self.dns_names {
            name::check_dns_name(dns_name)?;
            names.push(SanType::DnsName(ia5(dns_name)?));
        }
        names.extend(self.ip_addresses.iter().copied().map(SanType::IpAddress));
        if names.is_empty() {
            return Err(PkiError::Incomplete("an identity or a name"));
        }
        Ok(names)
    }
}

/// Name, lifetime, serial number and key identifiers, as every certificate has them.
pub(super) fn base_params(
    common_name: &str,
    not_before: u64,
    not_after: u64,
) -> Result<CertificateParams, PkiError> {
    name::check_common_name(common_name)?;
    validity::check(not_before, not_after)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = time(not_before)?.to_datetime();
    params.not_after = time(not_after)?.to_datetime();
    params.serial_number = Some(serial_number()?);
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn time(unix_seconds: u64) -> Result<ASN1Time, PkiError> {
    let seconds = i64::try_from(unix_seconds).map_err(|_| PkiError::InvalidLifetime)?;
    ASN1Time::from_timestamp(seconds).map_err(|_| PkiError::InvalidLifetime)
}

/// A positive number whose length in DER does not vary.
fn serial_number() -> Result<SerialNumber, PkiError> {
    let mut bytes = [0; SERIAL_LENGTH];
    random::fill(&mut bytes)?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

pub(super) fn ia5(value: &str) -> Result<Ia5String, PkiError> {
    Ia5String::try_from(value).map_err(|_| text::refused("this name", value))
}
