use store_txn::Read as _;
use tonic::Code;

use super::*;
use crate::rpc::testing::{Node, assert_invalid, with};

const SECRET: &str = "a client secret that nobody is told";

fn oidc(secret: &str) -> v1::Connector {
    let oidc = v1::OidcConnector {
        issuer_url: "https://login.example.com".into(),
        client_id: "mezite".into(),
        client_secret: secret.into(),
        username_claim: "email".into(),
        scopes: vec!["profile".into()],
        ..Default::default()
    };
    v1::Connector {
        name: "Corp".into(),
        display_name: "Corporate login".into(),
        mappings: vec![v1::ClaimMapping {
            claim: "groups".into(),
            value: "admins".into(),
            roles: vec!["admin".into()],
        }],
        provider: Some(Provider::Oidc(oidc)),
        revision: 0,
        second_factor: true,
    }
}

async fn add(node: &Node, session: &str, connector: v1::Connector) -> Result<v1::Connector, ApiError> {
    let request = v1::CreateConnectorRequest { connector: Some(connector) };
    let reply = create(&node.service, &with(session, "CreateConnector"), request).await?;
    Ok(reply.connector.unwrap())
}

async fn change(node: &Node, session: &str, connector: v1::Connector) -> Result<v1::Connector, ApiError> {
    let request = v1::UpdateConnectorRequest { connector: Some(connector) };
    let reply = update(&node.service, &with(session, "UpdateConnector"), request).await?;
    Ok(reply.connector.unwrap())
}

/// Every row and every log record, as bytes.
async fn stored(node: &Node) -> Vec<u8> {
    let everything = store_txn::KeyRange { start: Vec::new(), end: vec![0xff; 8] };
    let read = node.service.store.read(move |view| {
        let rows = view.scan_raw(&everything, usize::MAX)?;
        let records = view.log_records(auth_core::audit::LOG, 1, usize::MAX)?;
        let rows = rows.into_iter().flat_map(|(key, row)| [key, row.value]);
        Ok::<_, CoreError>(rows.chain(records.into_iter().map(|record| record.record)).flatten().collect())
    });
    read.await.map_err(ApiError::from).unwrap()
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[tokio::test]
async fn a_secret_goes_in_and_never_comes_out() {
    let node = Node::start().await;
    let boss = node.boss().await;
    assert!(!format!("{:?}", oidc(SECRET)).contains(SECRET));
    let made = add(&node, &boss, oidc(SECRET)).await.unwrap();
    let expected = v1::Connector { name: "corp".into(), revision: made.revision, ..oidc(REDACTED) };
    assert_eq!(made, expected);
    let request = v1::GetConnectorRequest { name: "CORP".into() };
    let found = get(&node.service, &with(&boss, "GetConnector"), request).await.unwrap();
    assert_eq!(found.connector, Some(expected.clone()));
    let request = v1::ListConnectorsRequest::default();
    let listed = list(&node.service, &with(&boss, "ListConnectors"), request).await.unwrap();
    assert_eq!(listed.connectors, std::slice::from_ref(&expected));

    // What was answered can be sent as an update; the stored secret opens as it was.
    let kept =
        change(&node, &boss, v1::Connector { display_name: "Login".into(), ..expected }).await.unwrap();
    assert!(kept.revision > made.revision);
    let name = ConnectorName::parse("", "corp").unwrap();
    let of = name.clone();
    let row = node.service.store.read(move |view| connector::get(view, &of)).await.map_err(ApiError::from);
    let row = row.unwrap().row;
    let opened = connector::open_secret(node.service.cas.kek(), &name, &row).unwrap();
    assert_eq!(opened.as_slice(), SECRET.as_bytes());
    let bytes = stored(&node).await;
    assert!(contains(&bytes, b"https://login.example.com"), "this is where it would be found");
    assert!(!contains(&bytes, SECRET.as_bytes()));
}

#[tokio::test]
async fn a_kept_secret_is_not_sent_to_another_issuer() {
    let node = Node::start().await;
    let boss = node.boss().await;
    add(&node, &boss, oidc(SECRET)).await.unwrap();
    let mut evil = oidc(REDACTED);
    if let Some(Provider::Oidc(oidc)) = &mut evil.provider {
        oidc.issuer_url = "https://evil.example".into();
    }
    assert_invalid(change(&node, &boss, evil).await, "connector.oidc.client_secret");
    let stale = change(&node, &boss, v1::Connector { revision: 1, ..oidc(REDACTED) }).await.unwrap_err();
    assert_eq!(stale.code(), Code::Aborted);
}

#[tokio::test]
async fn what_is_wrong_is_named_and_other_kinds_come_back_whole() {
    let node = Node::start().await;
    let boss = node.boss().await;
    assert_invalid(
        add(&node, &boss, v1::Connector { name: String::new(), ..oidc(SECRET) }).await,
        "connector.name",
    );
    assert_invalid(
        add(&node, &boss, v1::Connector { provider: None, ..oidc(SECRET) }).await,
        "connector.provider",
    );
    assert_invalid(add(&node, &boss, oidc("")).await, "connector.oidc.client_secret");
    assert_invalid(add(&node, &boss, oidc(REDACTED)).await, "connector.oidc.client_secret");

    let github = v1::GithubConnector {
        client_id: "Iv1".into(),
        client_secret: SECRET.into(),
        organizations: vec!["mezite-io".into()],
        url: "https://github.example".into(),
        ..Default::default()
    };
    let github = v1::Connector { provider: Some(Provider::Github(github)), ..oidc("") };
    let made = add(&node, &boss, github).await.unwrap();
    assert!(matches!(made.provider, Some(Provider::Github(github)) if github.client_secret == REDACTED));
    let request = v1::DeleteConnectorRequest { name: "corp".into() };
    delete(&node.service, &with(&boss, "DeleteConnector"), request.clone()).await.unwrap();
    let gone = delete(&node.service, &with(&boss, "DeleteConnector"), request).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    let events: Vec<_> = node.audit().await.into_iter().map(|row| row.event).collect();
    assert!(events.ends_with(&["connector.create".into(), "connector.delete".into()]), "{events:?}");
}
