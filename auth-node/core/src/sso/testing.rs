//! What tests of single sign-on share: a cluster with a connector.

use super::*;
use crate::{
    connector::{NewConnector, Secret},
    tables::{ClaimMappingRow, OidcRow},
    testing::Cluster,
};

pub(super) fn connector_name(text: &str) -> ConnectorName {
    ConnectorName::parse("", text).unwrap()
}

pub(super) fn mapping(claim: &str, value: &str, roles: &[&str]) -> ClaimMappingRow {
    let roles = roles.iter().map(|&role| role.to_owned()).collect();
    ClaimMappingRow { claim: claim.into(), value: value.into(), roles }
}

pub(super) fn oidc() -> ProviderRow {
    ProviderRow::Oidc(OidcRow {
        issuer_url: "https://login.example.com".into(),
        client_id: "mezite".into(),
        ..OidcRow::default()
    })
}

pub(super) fn add(cluster: &mut Cluster, name: &str, provider: ProviderRow, mappings: Vec<ClaimMappingRow>) {
    let new = NewConnector::new(connector_name(name), String::new(), mappings, Some(provider)).unwrap();
    let secret = Secret::Sealed(vec![1]);
    cluster.admin(|tx, context| connector::create(tx, context, &new, &secret)).unwrap();
}

/// A cluster with the roles `dev` and `ops`, and the connector `corp`, which gives them for groups.
pub(super) fn cluster() -> Cluster {
    let mut cluster = Cluster::new();
    for role in ["dev", "ops"] {
        cluster.add_role(role, &Default::default());
    }
    let mappings = vec![mapping("groups", "devs", &["dev"]), mapping("groups", "admins", &["dev", "ops"])];
    add(&mut cluster, "corp", oidc(), mappings);
    cluster
}

pub(super) fn program() -> Program {
    Program::new(vec![5; 32], 4321, "0123456789abcdef".into()).unwrap()
}
