//! The file form of a connector, YAML or JSON.
//!
//! ```yaml
//! kind: connector
//! version: v1
//! metadata:
//!   name: corporate
//!   display_name: Corporate login
//! spec:
//!   mappings:
//!     - {claim: groups, value: admins, roles: [admin]}
//!   oidc:
//!     issuer_url: https://login.example.com
//!     client_id: mezite
//!     scopes: [profile, groups]
//! ```
//!
//! Field names are those of the API. A field that is not known is an error. The client secret is better given by
//! `--client-secret-file`; without one, an update keeps the one that is stored.

use anyhow::Result;
use mezite_proto::v1::{
    ClaimMapping, Connector, GithubConnector, OidcConnector, SamlConnector, connector::Provider,
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{exit::Usage, normal};

/// What is answered in place of a secret, and what in an update keeps it.
pub(crate) const REDACTED: &str = "[redacted]";

/// A connector, as a file says it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConnectorFile {
    kind: Kind,
    #[serde(default)]
    version: Version,
    metadata: Metadata,
    spec: Spec,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Connector,
}

#[derive(Default, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Version {
    #[default]
    V1,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    display_name: String,
    /// In an update: the revision that it replaces; absent: whichever it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
}

/// One of the providers.
#[derive(Default, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Spec {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    mappings: Vec<Mapping>,
    /// Whether the provider asks its users for a second factor.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    second_factor: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    oidc: Option<Oidc>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    github: Option<Github>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    saml: Option<Saml>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mapping {
    claim: String,
    value: String,
    roles: Vec<String>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Oidc {
    issuer_url: String,
    client_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client_secret: Option<Zeroizing<String>>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    username_claim: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    scopes: Vec<String>,
    /// PEM.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ca_certificates: Vec<String>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Github {
    client_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client_secret: Option<Zeroizing<String>>,
    organizations: Vec<String>,
    /// A server of GitHub Enterprise.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    url: String,
    /// PEM.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ca_certificates: Vec<String>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saml {
    entity_id: String,
    sso_url: String,
    certificates: Vec<String>,
}

impl ConnectorFile {
    /// Reads a connector, YAML or JSON.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let parsed: Result<Self, String> = if text.trim_start().starts_with('{') {
            serde_json::from_str(text).map_err(|error| error.to_string())
        } else {
            serde_norway::from_str(text).map_err(|error| error.to_string())
        };
        let wrong = |why| anyhow::Error::from(Usage(format!("the connector file cannot be read: {why}")));
        let file = parsed.map_err(wrong)?;
        file.check()?;
        Ok(file)
    }

    /// Refuses what no connector can be.
    pub(crate) fn check(&self) -> Result<()> {
        let spec = &self.spec;
        let given = [spec.oidc.is_some(), spec.github.is_some(), spec.saml.is_some()];
        match given.into_iter().filter(|given| *given).count() {
            1 => Ok(()),
            _ => Err(Usage("spec of a connector has one of oidc, github and saml".into()).into()),
        }
    }

    /// Name of the connector.
    pub(crate) fn name(&self) -> &str {
        &self.metadata.name
    }

    /// Whether it has a client secret itself.
    pub(crate) fn has_secret(&self) -> bool {
        let oidc = self.spec.oidc.as_ref().and_then(|oidc| oidc.client_secret.as_ref());
        let github = self.spec.github.as_ref().and_then(|github| github.client_secret.as_ref());
        oidc.or(github).is_some_and(|secret| secret.as_str() != REDACTED)
    }

    /// Brings it into the form in which it is compared.
    pub(crate) fn settle(&mut self) {
        self.metadata.name = normal::name(&self.metadata.name);
        let Spec { mappings, second_factor: _, oidc, github, saml } = &mut self.spec;
        // Lines of PEM may be of any length.
        let bare = |certificates: &mut Vec<String>| {
            *certificates = certificates.iter().map(|pem| pem.split_whitespace().collect()).collect();
            normal::set(certificates);
        };
        mappings.iter_mut().for_each(|mapping| normal::names(&mut mapping.roles));
        normal::set(mappings);
        if let Some(oidc) = oidc {
            normal::set(&mut oidc.scopes);
            bare(&mut oidc.ca_certificates);
        }
        if let Some(github) = github {
            normal::set(&mut github.organizations);
            bare(&mut github.ca_certificates);
        }
        if let Some(saml) = saml {
            bare(&mut saml.certificates);
        }
    }

    /// Takes over what another says of its client secret, where it says nothing itself.
    pub(crate) fn keep_secret_of(&mut self, other: &Self) {
        if let (Some(own), Some(other)) = (&mut self.spec.oidc, &other.spec.oidc)
            && own.client_secret.is_none()
        {
            own.client_secret.clone_from(&other.client_secret);
        }
        if let (Some(own), Some(other)) = (&mut self.spec.github, &other.spec.github)
            && own.client_secret.is_none()
        {
            own.client_secret.clone_from(&other.client_secret);
        }
    }

    /// The connector, with a client secret from elsewhere; `without` is sent where there is none at all.
    pub(crate) fn connector(
        self,
        secret: Option<&Zeroizing<String>>,
        without: Option<&str>,
    ) -> Result<Connector> {
        if secret.is_some() && self.has_secret() {
            return Err(Usage("the connector file has a client secret already".into()).into());
        }
        let choose = |own: Option<Zeroizing<String>>| {
            let chosen = secret.cloned().or(own).map(|secret| secret.as_str().to_owned());
            let missing = || Usage("give the client secret by --client-secret-file".into());
            chosen.or(without.map(str::to_owned)).ok_or_else(missing)
        };
        let provider = match (self.spec.oidc, self.spec.github, self.spec.saml) {
            (Some(oidc), ..) => Provider::Oidc(OidcConnector {
                issuer_url: oidc.issuer_url,
                client_id: oidc.client_id,
                client_secret: choose(oidc.client_secret)?,
                username_claim: oidc.username_claim,
                scopes: oidc.scopes,
                ca_certificates: oidc.ca_certificates,
            }),
            (_, Some(github), _) => Provider::Github(GithubConnector {
                client_id: github.client_id,
                client_secret: choose(github.client_secret)?,
                organizations: github.organizations,
                url: github.url,
                ca_certificates: github.ca_certificates,
            }),
            (.., Some(_)) if secret.is_some() => {
                return Err(Usage("a SAML provider has no client secret".into()).into());
            }
            (.., Some(saml)) => Provider::Saml(SamlConnector {
                entity_id: saml.entity_id,
                sso_url: saml.sso_url,
                certificates: saml.certificates,
            }),
            (None, None, None) => return Err(Usage("the connector has no provider".into()).into()),
        };
        let mapping = |mapping: Mapping| ClaimMapping {
            claim: mapping.claim,
            value: mapping.value,
            roles: mapping.roles,
        };
        Ok(Connector {
            name: self.metadata.name,
            display_name: self.metadata.display_name,
            mappings: self.spec.mappings.into_iter().map(mapping).collect(),
            provider: Some(provider),
            revision: self.metadata.revision.unwrap_or_default(),
            second_factor: self.spec.second_factor,
        })
    }
}

/// As the cluster answers it: the secret redacted.
impl From<Connector> for ConnectorFile {
    fn from(connector: Connector) -> Self {
        let mapping = |it: ClaimMapping| Mapping { claim: it.claim, value: it.value, roles: it.roles };
        let mut spec = Spec {
            mappings: connector.mappings.into_iter().map(mapping).collect(),
            second_factor: connector.second_factor,
            ..Spec::default()
        };
        match connector.provider {
            Some(Provider::Oidc(oidc)) => {
                spec.oidc = Some(Oidc {
                    issuer_url: oidc.issuer_url,
                    client_id: oidc.client_id,
                    client_secret: Some(Zeroizing::new(oidc.client_secret)),
                    username_claim: oidc.username_claim,
                    scopes: oidc.scopes,
                    ca_certificates: oidc.ca_certificates,
                });
            }
            Some(Provider::Github(github)) => {
                spec.github = Some(Github {
                    client_id: github.client_id,
                    client_secret: Some(Zeroizing::new(github.client_secret)),
                    organizations: github.organizations,
                    url: github.url,
                    ca_certificates: github.ca_certificates,
                });
            }
            Some(Provider::Saml(saml)) => {
                spec.saml = Some(Saml {
                    entity_id: saml.entity_id,
                    sso_url: saml.sso_url,
                    certificates: saml.certificates,
                });
            }
            None => {}
        }
        let metadata = Metadata {
            name: connector.name,
            display_name: connector.display_name,
            revision: Some(connector.revision),
        };
        Self { kind: Kind::Connector, version: Version::V1, metadata, spec }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OIDC: &str = "
kind: connector
metadata: {name: corporate, display_name: Corporate login, revision: 7}
spec:
  mappings:
    - {claim: groups, value: admins, roles: [admin, dev]}
  second_factor: true
  oidc:
    issuer_url: https://login.example.com
    client_id: mezite
    username_claim: email
    scopes: [profile]
";

    fn refused(result: Result<Connector>) -> String {
        let error = result.unwrap_err();
        assert!(error.is::<Usage>(), "{error}");
        error.to_string()
    }

    fn secret() -> Zeroizing<String> {
        Zeroizing::new("s3cret".to_owned())
    }

    fn sent(connector: &Connector) -> &str {
        match connector.provider.as_ref().unwrap() {
            Provider::Oidc(oidc) => &oidc.client_secret,
            Provider::Github(github) => &github.client_secret,
            Provider::Saml(_) => panic!("a SAML provider has none"),
        }
    }

    #[test]
    fn every_field_arrives_and_what_is_printed_can_be_read_again() {
        let file = || ConnectorFile::parse(OIDC).unwrap();
        let connector = file().connector(Some(&secret()), None).unwrap();
        assert_eq!(
            (connector.name.as_str(), connector.revision, sent(&connector)),
            ("corporate", 7, "s3cret")
        );
        assert_eq!(connector.mappings[0].roles, ["admin", "dev"]);
        let printed = serde_norway::to_string(&ConnectorFile::from(connector.clone())).unwrap();
        assert_eq!(ConnectorFile::parse(&printed).unwrap().connector(None, None).unwrap(), connector);
        for text in [
            "kind: connector\nmetadata: {name: g}\nspec: {github: {client_id: a, organizations: [o], url: u, ca_certificates: [c]}}\n",
            "kind: connector\nmetadata: {name: s}\nspec: {saml: {entity_id: e, sso_url: u, certificates: [c]}}\n",
        ] {
            let connector = ConnectorFile::parse(text).unwrap().connector(None, Some(REDACTED)).unwrap();
            let printed = serde_json::to_string(&ConnectorFile::from(connector.clone())).unwrap();
            assert_eq!(ConnectorFile::parse(&printed).unwrap().connector(None, None).unwrap(), connector);
        }
    }

    #[test]
    fn a_secret_comes_from_one_place() {
        let own = OIDC.replace("    username_claim", "    client_secret: own\n    username_claim");
        let parse = |text: &str| ConnectorFile::parse(text).unwrap();
        assert!(parse(&own).has_secret() && !parse(OIDC).has_secret());
        assert_eq!(sent(&parse(&own).connector(None, Some(REDACTED)).unwrap()), "own");
        assert!(refused(parse(&own).connector(Some(&secret()), None)).contains("already"));
        assert!(refused(parse(OIDC).connector(None, None)).contains("--client-secret-file"));
        assert_eq!(sent(&parse(OIDC).connector(None, Some(REDACTED)).unwrap()), REDACTED);
        let kept = own.replace("own", "'[redacted]'");
        assert!(!parse(&kept).has_secret());
        assert_eq!(sent(&parse(&kept).connector(Some(&secret()), None).unwrap()), "s3cret");
    }

    #[test]
    fn what_is_unknown_or_ambiguous_is_refused() {
        for wrong in [
            "kind: connector\nmetadata: {name: x}\nspec: {}\n".to_owned(),
            OIDC.replace("  oidc:", "  github: {client_id: a, organizations: [o]}\n  oidc:"),
            OIDC.replace("scopes", "scope"),
            OIDC.replace("kind: connector", "kind: role"),
        ] {
            assert!(ConnectorFile::parse(&wrong).is_err_and(|error| error.is::<Usage>()), "{wrong}");
        }
    }
}
