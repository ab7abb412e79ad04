//! What a connector says of its provider, field by field.

use mezite_pki::{
    PkiError,
    x509::{certificate_der, signing_certificate, trust_anchor},
};
use sha2::{Digest as _, Sha256};

use crate::{
    CoreError,
    tables::{GithubRow, OidcRow, ProviderRow, SamlRow},
    web,
};

/// Longest client id, in bytes.
const MAX_CLIENT_ID: usize = 256;
/// Longest name of a claim, in bytes.
const MAX_CLAIM: usize = 256;
/// Most scopes, and the longest of them, in bytes.
const MAX_SCOPES: usize = 32;
const MAX_SCOPE: usize = 128;
/// Most organisations, and the longest name of one (GitHub's bound).
const MAX_ORGANIZATIONS: usize = 64;
const MAX_ORGANIZATION: usize = 39;
/// Longest entity id, in bytes (SAML core, section 8.3.6).
const MAX_ENTITY_ID: usize = 1024;
/// Most certificates.
const MAX_CERTIFICATES: usize = 8;

/// Name of the kind of provider, as the API has it.
pub(super) fn word(provider: &ProviderRow) -> &'static str {
    match provider {
        ProviderRow::Oidc(_) => "oidc",
        ProviderRow::Github(_) => "github",
        ProviderRow::Saml(_) => "saml",
    }
}

/// What the audit log says of it: whom it has vouch for users.
pub(super) fn record(provider: &ProviderRow) -> Vec<(&'static str, String)> {
    match provider {
        ProviderRow::Oidc(oidc) => vec![
            ("issuer_url", oidc.issuer_url.clone()),
            ("client_id", oidc.client_id.clone()),
            ("username_claim", oidc.username_claim.clone()),
            ("ca_sha256", digests(&oidc.ca_certificates)),
        ],
        ProviderRow::Github(github) => vec![
            ("client_id", github.client_id.clone()),
            ("organizations", github.organizations.join(",")),
            ("url", github.url.clone()),
            ("ca_sha256", digests(&github.ca_certificates)),
        ],
        ProviderRow::Saml(saml) => vec![
            ("entity_id", saml.entity_id.clone()),
            ("sso_url", saml.sso_url.clone()),
            ("certificates_sha256", digests(&saml.certificates)),
        ],
    }
}

/// As `openssl x509 -fingerprint -sha256` has them. What is stored was read when it was checked.
fn digests(certificates: &[String]) -> String {
    let digest = |pem: &String| certificate_der(pem).map(|der| hex::encode(Sha256::digest(der)));
    certificates.iter().filter_map(|pem| digest(pem).ok()).collect::<Vec<_>>().join(",")
}

/// The provider in the form in which it is stored, if it is within all bounds.
pub(super) fn checked(provider: ProviderRow) -> Result<ProviderRow, CoreError> {
    match provider {
        ProviderRow::Oidc(mut oidc) => {
            check_oidc(&oidc)?;
            let anchors =
                certificates("connector.oidc.ca_certificates", &oidc.ca_certificates, 0, trust_anchor);
            oidc.ca_certificates = anchors?;
            Ok(ProviderRow::Oidc(oidc))
        }
        ProviderRow::Github(mut github) => {
            check_github(&github)?;
            let anchors =
                certificates("connector.github.ca_certificates", &github.ca_certificates, 0, trust_anchor);
            github.ca_certificates = anchors?;
            Ok(ProviderRow::Github(github))
        }
        ProviderRow::Saml(saml) => checked_saml(saml).map(ProviderRow::Saml),
    }
}

fn check_oidc(oidc: &OidcRow) -> Result<(), CoreError> {
    const ISSUER: &str = "connector.oidc.issuer_url";
    web::check_https_url(ISSUER, &oidc.issuer_url)?;
    // OpenID Connect Discovery, section 2.
    if oidc.issuer_url.contains('?') {
        return Err(CoreError::invalid(ISSUER, "an issuer has no query"));
    }
    web::check_visible("connector.oidc.client_id", &oidc.client_id, MAX_CLIENT_ID)?;
    web::check_text("connector.oidc.username_claim", &oidc.username_claim, 0..=MAX_CLAIM)?;
    bounded("connector.oidc.scopes", "scopes", oidc.scopes.len(), 0..=MAX_SCOPES)?;
    for (index, scope) in oidc.scopes.iter().enumerate() {
        let field = format!("connector.oidc.scopes[{index}]");
        // RFC 6749, section 3.3.
        let good = (1..=MAX_SCOPE).contains(&scope.len())
            && scope.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"\\".contains(&byte));
        if !good {
            return Err(CoreError::invalid(
                field,
                format!("1 to {MAX_SCOPE} visible ASCII characters, no \" or \\"),
            ));
        }
        if scope == "openid" {
            return Err(CoreError::invalid(field, "openid is always asked for: leave it out"));
        }
        if oidc.scopes.iter().take(index).any(|before| before == scope) {
            return Err(CoreError::invalid(field, format!("scope {scope} is there twice")));
        }
    }
    Ok(())
}

fn check_github(github: &GithubRow) -> Result<(), CoreError> {
    const FIELD: &str = "connector.github.organizations";
    const URL: &str = "connector.github.url";
    if !github.url.is_empty() {
        web::check_https_url(URL, &github.url)?;
        if github.url.trim_start_matches("https://").contains(['/', '?']) {
            return Err(CoreError::invalid(URL, "https:// and a host, without a path"));
        }
    }
    web::check_visible("connector.github.client_id", &github.client_id, MAX_CLIENT_ID)?;
    bounded(FIELD, "organisations", github.organizations.len(), 1..=MAX_ORGANIZATIONS)?;
    for (index, name) in github.organizations.iter().enumerate() {
        let field = format!("{FIELD}[{index}]");
        let part = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if name.len() > MAX_ORGANIZATION || !name.split('-').all(part) {
            let reason =
                format!("1 to {MAX_ORGANIZATION} letters and digits, with single hyphens between them");
            return Err(CoreError::invalid(field, reason));
        }
        // GitHub's names are the same in any case.
        if github.organizations.iter().take(index).any(|before| before.eq_ignore_ascii_case(name)) {
            return Err(CoreError::invalid(field, format!("organisation {name} is there twice")));
        }
    }
    Ok(())
}

fn checked_saml(mut saml: SamlRow) -> Result<SamlRow, CoreError> {
    web::check_visible("connector.saml.entity_id", &saml.entity_id, MAX_ENTITY_ID)?;
    web::check_https_url("connector.saml.sso_url", &saml.sso_url)?;
    const FIELD: &str = "connector.saml.certificates";
    saml.certificates = certificates(FIELD, &saml.certificates, 1, signing_certificate)?;
    Ok(saml)
}

/// So many certificates at least, none twice, in the form in which they are stored.
fn certificates(
    field: &str,
    given: &[String],
    least: usize,
    read: fn(&str) -> Result<String, PkiError>,
) -> Result<Vec<String>, CoreError> {
    bounded(field, "certificates", given.len(), least..=MAX_CERTIFICATES)?;
    let mut certificates: Vec<String> = Vec::with_capacity(given.len());
    for (index, pem) in given.iter().enumerate() {
        let field = format!("{field}[{index}]");
        let refused = |error: PkiError| CoreError::invalid(field.as_str(), error.to_string());
        let certificate = read(pem).map_err(refused)?;
        if certificates.contains(&certificate) {
            return Err(CoreError::invalid(field, "this certificate is there twice"));
        }
        certificates.push(certificate);
    }
    Ok(certificates)
}

fn bounded(
    field: &str,
    what: &str,
    count: usize,
    allowed: std::ops::RangeInclusive<usize>,
) -> Result<(), CoreError> {
    if allowed.contains(&count) {
        return Ok(());
    }
    Err(CoreError::invalid(field, format!("{} to {} {what}", allowed.start(), allowed.end())))
}
