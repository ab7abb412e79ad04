//! Single sign-on connectors. No secret is answered.

use auth_core::{
    CoreError,
    connector::{self, NewConnector, REDACTED, Secret},
    names::ConnectorName,
    tables::{ClaimMappingRow, ConnectorRow, GithubRow, OidcRow, ProviderRow, SamlRow},
};
use mezite_proto::v1::{self, connector::Provider};
use store_txn::Versioned;
use zeroize::Zeroizing;

use super::convert;
use crate::{authn::Call, error::ApiError, once::Once, service::Service};

/// Answers one connector.
pub(crate) async fn get(
    service: &Service,
    call: &Call,
    request: v1::GetConnectorRequest,
) -> Result<v1::GetConnectorResponse, ApiError> {
    let name = ConnectorName::parse("name", &request.name)?;
    let wanted = name.clone();
    let found = service.read(call, move |view, _| connector::get(view, &wanted)).await?;
    Ok(v1::GetConnectorResponse { connector: Some(reply(name, found)) })
}

/// Lists connectors, ordered by name.
pub(crate) async fn list(
    service: &Service,
    call: &Call,
    request: v1::ListConnectorsRequest,
) -> Result<v1::ListConnectorsResponse, ApiError> {
    let page = convert::page(request.page_size, &request.page_token)?;
    let page = service.read(call, move |view, _| connector::list(view, &page)).await?;
    let page = page.map(|(name, found)| reply(name, found));
    Ok(v1::ListConnectorsResponse { connectors: page.items, next_page_token: convert::page_token(page.next) })
}

/// Creates a connector.
pub(crate) async fn create(
    service: &Service,
    call: &Call,
    request: v1::CreateConnectorRequest,
) -> Result<v1::CreateConnectorResponse, ApiError> {
    let once = Once::of(call, &request);
    let asked = parse(service, request.connector)?;
    let create = service.write_once(call, once, move |tx, context| {
        let row = connector::create(tx, context, &asked.new, &asked.secret)?;
        let made = reply(asked.new.name().clone(), Versioned { revision: 0, row });
        Ok(v1::CreateConnectorResponse { connector: Some(made) })
    });
    create.await
}

/// Replaces a connector.
pub(crate) async fn update(
    service: &Service,
    call: &Call,
    request: v1::UpdateConnectorRequest,
) -> Result<v1::UpdateConnectorResponse, ApiError> {
    let once = Once::of(call, &request);
    let asked = parse(service, request.connector)?;
    let update = service.write_once(call, once, move |tx, context| {
        let row = connector::update(tx, context, &asked.new, asked.revision, &asked.secret)?;
        let updated = reply(asked.new.name().clone(), Versioned { revision: 0, row });
        Ok(v1::UpdateConnectorResponse { connector: Some(updated) })
    });
    update.await
}

/// Deletes a connector, with its secret.
pub(crate) async fn delete(
    service: &Service,
    call: &Call,
    request: v1::DeleteConnectorRequest,
) -> Result<v1::DeleteConnectorResponse, ApiError> {
    let name = ConnectorName::parse("name", &request.name)?;
    service.write(call, move |tx, context| connector::delete(tx, context, &name)).await?;
    Ok(v1::DeleteConnectorResponse {})
}

/// A connector in a request, its secret sealed.
struct Asked {
    new: NewConnector,
    secret: Secret,
    revision: u64,
}

fn parse(service: &Service, connector: Option<v1::Connector>) -> Result<Asked, CoreError> {
    let connector = connector.ok_or_else(|| CoreError::invalid("connector", "it is needed"))?;
    let revision = connector.revision;
    let (new, secret) = read(connector)?;
    let secret = new.seal(service.cas.kek(), secret.as_ref(), rand::random())?;
    Ok(Asked { new, secret, revision })
}

/// The connector, and its secret where the provider has one. The secret is wiped in the end.
fn read(connector: v1::Connector) -> Result<(NewConnector, Option<Zeroizing<String>>), CoreError> {
    let name = ConnectorName::parse("connector.name", &connector.name)?;
    let mapping = |mapping: v1::ClaimMapping| ClaimMappingRow {
        claim: mapping.claim,
        value: mapping.value,
        roles: mapping.roles,
    };
    let mappings = connector.mappings.into_iter().map(mapping).collect();
    let (provider, secret) = match connector.provider.map(provider_in) {
        Some((provider, secret)) => (Some(provider), secret),
        None => (None, None),
    };
    let new = NewConnector::new(name, connector.display_name, mappings, provider)?;
    Ok((new.with_second_factor(connector.second_factor), secret))
}

fn provider_in(provider: Provider) -> (ProviderRow, Option<Zeroizing<String>>) {
    match provider {
        Provider::Oidc(oidc) => {
            let row = OidcRow {
                issuer_url: oidc.issuer_url,
                client_id: oidc.client_id,
                username_claim: oidc.username_claim,
                scopes: oidc.scopes,
                ca_certificates: oidc.ca_certificates,
            };
            (ProviderRow::Oidc(row), Some(Zeroizing::new(oidc.client_secret)))
        }
        Provider::Github(github) => {
            let row = GithubRow {
                client_id: github.client_id,
                organizations: github.organizations,
                url: github.url,
                ca_certificates: github.ca_certificates,
            };
            (ProviderRow::Github(row), Some(Zeroizing::new(github.client_secret)))
        }
        Provider::Saml(saml) => {
            let row =
                SamlRow { entity_id: saml.entity_id, sso_url: saml.sso_url, certificates: saml.certificates };
            (ProviderRow::Saml(row), None)
        }
    }
}

fn reply(name: ConnectorName, stored: Versioned<ConnectorRow>) -> v1::Connector {
    let Versioned { revision, row } = stored;
    let mapping = |mapping: ClaimMappingRow| v1::ClaimMapping {
        claim: mapping.claim,
        value: mapping.value,
        roles: mapping.roles,
    };
    v1::Connector {
        name: name.into(),
        display_name: row.display_name,
        mappings: row.mappings.into_iter().map(mapping).collect(),
        provider: row.provider.map(provider_out),
        revision,
        second_factor: row.second_factor,
    }
}

fn provider_out(row: ProviderRow) -> Provider {
    let client_secret = REDACTED.to_owned();
    match row {
        ProviderRow::Oidc(oidc) => Provider::Oidc(v1::OidcConnector {
            issuer_url: oidc.issuer_url,
            client_id: oidc.client_id,
            client_secret,
            username_claim: oidc.username_claim,
            scopes: oidc.scopes,
            ca_certificates: oidc.ca_certificates,
        }),
        ProviderRow::Github(github) => Provider::Github(v1::GithubConnector {
            client_id: github.client_id,
            client_secret,
            organizations: github.organizations,
            url: github.url,
            ca_certificates: github.ca_certificates,
        }),
        ProviderRow::Saml(saml) => Provider::Saml(v1::SamlConnector {
            entity_id: saml.entity_id,
            sso_url: saml.sso_url,
            certificates: saml.certificates,
        }),
    }
}

#[cfg(test)]
#[path = "connectors_tests.rs"]
mod tests;
