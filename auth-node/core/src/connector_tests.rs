use mezite_pki::x509::X509Ca;

use super::*;
use crate::{
    role,
    tables::{GithubRow, MappedRoleKey, OidcRow, RoleRow, SamlRow},
    testing::{Cluster, assert_invalid, grants, role_name},
    world::{assert_denied, kek},
};

fn name(text: &str) -> ConnectorName {
    ConnectorName::parse("name", text).unwrap()
}

fn mapping(claim: &str, value: &str, roles: &[&str]) -> ClaimMappingRow {
    let roles = roles.iter().map(|&role| role.to_owned()).collect();
    ClaimMappingRow { claim: claim.into(), value: value.into(), roles }
}

fn oidc() -> OidcRow {
    OidcRow {
        issuer_url: "https://login.example.com".into(),
        client_id: "mezite".into(),
        username_claim: String::new(),
        scopes: vec!["profile".into()],
        ..OidcRow::default()
    }
}

fn github() -> GithubRow {
    GithubRow {
        client_id: "Iv1.0123".into(),
        organizations: vec!["mezite-io".into()],
        ..GithubRow::default()
    }
}

fn saml() -> SamlRow {
    let ca = X509Ca::generate("idp", 1, 4_000_000_000).unwrap();
    SamlRow {
        entity_id: "urn:example:idp".into(),
        sso_url: "https://idp.example.com/sso?a=b".into(),
        certificates: vec![leaf(&ca)],
    }
}

/// A certificate that may sign messages.
fn leaf(ca: &X509Ca) -> String {
    let spec = mezite_pki::x509::LeafSpec {
        public_key: mezite_pki::x509::KeyPair::generate_p256().unwrap().spki_der(),
        common_name: "idp".into(),
        identity: None,
        dns_names: vec!["idp".into()],
        ip_addresses: vec![],
        not_before: 1,
        not_after: 2,
        client_auth: true,
        server_auth: false,
    };
    ca.issue(&spec).unwrap()
}

fn connector(provider: ProviderRow, roles: &[&str]) -> NewConnector {
    NewConnector::new(name("corp"), "Corp".into(), vec![mapping("groups", "*", roles)], Some(provider))
        .unwrap()
}

fn sealed(new: &NewConnector, secret: &str) -> Secret {
    new.seal(&kek(), Some(&Zeroizing::new(secret.to_owned())), [3; NONCE_LENGTH]).unwrap()
}

fn add(cluster: &mut Cluster, provider: ProviderRow, roles: &[&str]) -> ConnectorRow {
    let new = connector(provider, roles);
    let secret = sealed(&new, "s3cret");
    cluster.admin(|tx, context| create(tx, context, &new, &secret)).unwrap()
}

fn change(
    cluster: &mut Cluster,
    provider: ProviderRow,
    revision: u64,
    secret: &str,
) -> Result<ConnectorRow, CoreError> {
    let new = connector(provider, &["access"]);
    let secret = sealed(&new, secret);
    cluster.admin(|tx, context| update(tx, context, &new, revision, &secret))
}

#[test]
fn every_field_of_a_provider_is_checked() {
    let try_oidc = |change: &dyn Fn(&mut OidcRow)| {
        let mut row = oidc();
        change(&mut row);
        NewConnector::new(name("c"), String::new(), vec![], Some(ProviderRow::Oidc(row)))
    };
    assert!(try_oidc(&|_| {}).is_ok());
    let scopes = |scopes: &'static [&'static str]| {
        try_oidc(&|row| row.scopes = scopes.iter().map(|&scope| scope.to_owned()).collect())
    };
    assert_invalid(try_oidc(&|row| row.issuer_url = "http://a.example".into()), "connector.oidc.issuer_url");
    assert_invalid(
        try_oidc(&|row| row.issuer_url = "https://a.example/?x".into()),
        "connector.oidc.issuer_url",
    );
    assert_invalid(try_oidc(&|row| row.client_id = String::new()), "connector.oidc.client_id");
    assert_invalid(try_oidc(&|row| row.client_id = "x".repeat(257)), "connector.oidc.client_id");
    assert_invalid(try_oidc(&|row| row.username_claim = "a\n".into()), "connector.oidc.username_claim");
    assert_invalid(scopes(&["a", "b", "a"]), "connector.oidc.scopes[2]");
    assert_invalid(scopes(&["openid"]), "connector.oidc.scopes[0]");
    assert_invalid(scopes(&["a b"]), "connector.oidc.scopes[0]");
    assert_invalid(scopes(&[""; 33]), "connector.oidc.scopes");

    let organizations = |names: &[&str]| {
        let organizations = names.iter().map(|&name| name.to_owned()).collect();
        let row = GithubRow { organizations, ..github() };
        NewConnector::new(name("c"), String::new(), vec![], Some(ProviderRow::Github(row)))
    };
    assert!(organizations(&["a", "a-b", "A1-b2-C3"]).is_ok());
    assert_invalid(organizations(&[]), "connector.github.organizations");
    for bad in ["", "-a", "a-", "a--b", "a_b", "a b", "ä", "a/b", &"a".repeat(40)] {
        assert_invalid(organizations(&["x", bad]), "connector.github.organizations[1]");
    }
    assert_invalid(organizations(&["Mezite", "mezite"]), "connector.github.organizations[1]");

    let try_saml = |change: &dyn Fn(&mut SamlRow)| {
        let mut row = saml();
        change(&mut row);
        NewConnector::new(name("c"), String::new(), vec![], Some(ProviderRow::Saml(row)))
    };
    assert!(try_saml(&|_| {}).is_ok());
    assert_invalid(try_saml(&|row| row.entity_id = "a b".into()), "connector.saml.entity_id");
    assert_invalid(try_saml(&|row| row.sso_url = "ftp://x".into()), "connector.saml.sso_url");
    assert_invalid(try_saml(&|row| row.certificates.clear()), "connector.saml.certificates");
    assert_invalid(try_saml(&|row| row.certificates[0] = "x".into()), "connector.saml.certificates[0]");
    let twice = try_saml(&|row| row.certificates.push(format!("text\n{}", row.certificates[0])));
    assert_invalid(twice, "connector.saml.certificates[1]");
    // The key of an authority signs certificates, and no message.
    let ca = X509Ca::generate("ca", 1, 4_000_000_000).unwrap();
    let authority = try_saml(&|row| row.certificates[0] = ca.certificate_pem().to_owned());
    assert_invalid(authority, "connector.saml.certificates[0]");
}

#[test]
fn mappings_are_bounded_and_say_each_thing_once() {
    let with = |display: &str, mappings: Vec<ClaimMappingRow>| {
        NewConnector::new(name("c"), display.into(), mappings, Some(ProviderRow::Oidc(oidc())))
    };
    assert!(with("", vec![mapping("groups", "*", &["Access"])]).is_ok());
    assert_invalid(with(" x", vec![]), "connector.display_name");
    assert_invalid(with("", vec![mapping("", "*", &["a"])]), "connector.mappings[0].claim");
    assert_invalid(with("", vec![mapping("g", "", &["a"])]), "connector.mappings[0].value");
    assert_invalid(with("", vec![mapping("g", "*", &[])]), "connector.mappings[0].roles");
    assert_invalid(with("", vec![mapping("g", "*", &["a", "A"])]), "connector.mappings[0].roles[1]");
    assert_invalid(with("", vec![mapping("g", "*", &["a b"])]), "connector.mappings[0].roles[0]");
    let same = vec![mapping("g", "x", &["a"]), mapping("g", "y", &["a"]), mapping("g", "x", &["b"])];
    assert_invalid(with("", same), "connector.mappings[2]");
    let many = (0..65).map(|number| mapping("g", &number.to_string(), &["a"])).collect();
    assert_invalid(with("", many), "connector.mappings");
    assert_invalid(NewConnector::new(name("c"), String::new(), vec![], None), "connector.provider");
}

#[test]
fn a_connector_lives_and_is_told_of_without_its_secret() {
    let mut cluster = Cluster::new();
    let made = add(&mut cluster, ProviderRow::Oidc(oidc()), &["access"]);
    assert_eq!(made.created_by, "user:boss");
    assert_eq!(open_secret(&kek(), &name("corp"), &made).unwrap().as_slice(), b"s3cret");
    let record = cluster.last_audit();
    assert_eq!((record.event.as_str(), record.target.as_str()), ("connector.create", "connector:corp"));
    assert!(!format!("{record:?}").contains("s3cret"));
    assert_eq!(
        (record.fields["issuer_url"].as_str(), record.fields["provider"].as_str()),
        (oidc().issuer_url.as_str(), "oidc")
    );
    assert!(record.fields["mappings"].ends_with(":access"), "{record:?}");
    assert_eq!(record.fields["client_secret"], "new");
    let new = connector(ProviderRow::Oidc(oidc()), &["access"]);
    let again = cluster.admin(|tx, context| create(tx, context, &new, &sealed(&new, "x")));
    assert!(matches!(again, Err(CoreError::AlreadyExists { .. })));

    let found = cluster.run(|tx| get(tx, &name("corp"))).unwrap();
    assert_eq!(found.row, made);
    let stale = change(&mut cluster, ProviderRow::Oidc(oidc()), found.revision + 1, "new");
    assert!(matches!(stale, Err(CoreError::StaleRevision { .. })));
    let changed = change(&mut cluster, ProviderRow::Oidc(oidc()), found.revision, "new").unwrap();
    assert_eq!(open_secret(&kek(), &name("corp"), &changed).unwrap().as_slice(), b"new");
    assert_eq!((changed.created_at_ms, changed.created_by), (made.created_at_ms, made.created_by));
    let page = PageRequest { size: 10, after: None };
    assert_eq!(cluster.run(|tx| list(tx, &page)).unwrap().items.len(), 1);

    cluster.admin(|tx, context| delete(tx, context, &name("corp"))).unwrap();
    let gone = cluster.admin(|tx, context| delete(tx, context, &name("corp")));
    assert!(matches!(gone, Err(CoreError::NotFound { .. })));
    let front = KeyWriter::table(MappedRoleKey::TABLE);
    assert_eq!(cluster.rows(front), 0, "nothing is left");
}

#[test]
fn a_kept_secret_goes_to_whom_it_was_given_for_and_to_nobody_else() {
    let mut cluster = Cluster::new();
    let secret_field = "connector.oidc.client_secret";
    let new = connector(ProviderRow::Oidc(oidc()), &["access"]);
    let kept = cluster.admin(|tx, context| create(tx, context, &new, &Secret::Kept));
    assert_invalid(kept, secret_field);
    add(&mut cluster, ProviderRow::Oidc(oidc()), &["access"]);
    let kept =
        change(&mut cluster, ProviderRow::Oidc(OidcRow { scopes: vec![], ..oidc() }), 0, REDACTED).unwrap();
    assert_eq!(open_secret(&kek(), &name("corp"), &kept).unwrap().as_slice(), b"s3cret");

    let issuer = OidcRow { issuer_url: "https://evil.example".into(), ..oidc() };
    let client = OidcRow { client_id: "other".into(), ..oidc() };
    for other in [issuer.clone(), client] {
        assert_invalid(change(&mut cluster, ProviderRow::Oidc(other), 0, REDACTED), secret_field);
    }
    let github_kept = change(&mut cluster, ProviderRow::Github(github()), 0, REDACTED);
    assert_invalid(github_kept, "connector.github.client_secret");
    // And a row that was altered so opens nothing.
    let moved = ConnectorRow { provider: Some(ProviderRow::Oidc(issuer)), ..kept.clone() };
    assert!(open_secret(&kek(), &name("corp"), &moved).is_err());
    assert!(open_secret(&kek(), &name("corp2"), &kept).is_err());

    // A provider without a secret has none, also when it had one before.
    let new = connector(ProviderRow::Saml(saml()), &["access"]);
    let none = new.seal(&kek(), None, [0; NONCE_LENGTH]).unwrap();
    let saml = cluster.admin(|tx, context| update(tx, context, &new, 0, &none)).unwrap();
    assert!(saml.sealed_secret.is_empty() && !cluster.last_audit().fields.contains_key("client_secret"));
    let back = change(&mut cluster, ProviderRow::Oidc(oidc()), 0, REDACTED);
    assert_invalid(back, secret_field);
}

#[test]
fn with_another_provider_or_client_it_is_what_it_is_since_then() {
    let mut cluster = Cluster::new();
    let first = add(&mut cluster, ProviderRow::Oidc(oidc()), &["access"]);
    assert_eq!(first.since_ms, cluster.now);
    let issuer = OidcRow { issuer_url: "https://other.example".into(), ..oidc() };
    let client = OidcRow { client_id: "other".into(), ..issuer.clone() };
    for other in [ProviderRow::Oidc(issuer), ProviderRow::Oidc(client), ProviderRow::Github(github())] {
        cluster.now += 1000;
        let changed = change(&mut cluster, other.clone(), 0, "s3cret").unwrap();
        assert_eq!((changed.since_ms, changed.created_at_ms), (cluster.now, first.created_at_ms));
        cluster.now += 1000;
        // What else is changed changes nothing of that.
        let same = change(&mut cluster, other, 0, "another secret").unwrap();
        assert_eq!(same.since_ms, changed.since_ms);
    }
}

#[test]
fn a_secret_is_bounded() {
    let new = connector(ProviderRow::Oidc(oidc()), &["access"]);
    for bad in ["", "a\nb", &"x".repeat(1025)] {
        let refused = new.seal(&kek(), Some(&Zeroizing::new(bad.to_owned())), [0; NONCE_LENGTH]);
        assert_invalid(refused, "connector.oidc.client_secret");
    }
    assert_eq!(sealed(&new, REDACTED), Secret::Kept);
    let shown = format!("{:?}", sealed(&new, "s3cret"));
    assert!(!shown.contains("s3cret") && !shown.contains(&hex::encode("s3cret")));
}

#[test]
fn nobody_maps_to_what_it_may_not_give() {
    let mut cluster = Cluster::new();
    let ghost = connector(ProviderRow::Oidc(oidc()), &["ghost"]);
    let missing = cluster.admin(|tx, context| create(tx, context, &ghost, &sealed(&ghost, "x")));
    assert!(matches!(missing, Err(CoreError::NotFound { kind: "role", .. })));

    cluster.add_user("ann", grants(&["access"]));
    let ann = cluster.log_in("ann");
    let admins = connector(ProviderRow::Oidc(oidc()), &["access", "admin"]);
    let mine = connector(ProviderRow::Oidc(oidc()), &["access"]);
    let refused = cluster.call(ann, |tx, context| create(tx, context, &admins, &sealed(&admins, "x")));
    assert_denied(refused, "you do not hold role admin");
    cluster.call(ann, |tx, context| create(tx, context, &mine, &sealed(&mine, "x"))).unwrap();
    let refused = cluster.call(ann, |tx, context| update(tx, context, &admins, 0, &sealed(&admins, "x")));
    assert_denied(refused, "you do not hold role admin");
    cluster.admin(|tx, context| update(tx, context, &admins, 0, &sealed(&admins, "x"))).unwrap();
    // Else whoever may write connectors would point one of admins to a provider of its own.
    let refused = cluster.call(ann, |tx, context| update(tx, context, &mine, 0, &sealed(&mine, "x")));
    assert_denied(refused, "you do not hold role admin");
    assert_denied(cluster.call(ann, |tx, context| delete(tx, context, &name("corp"))), "you do not hold");
}

#[test]
fn a_role_that_is_mapped_cannot_vanish() {
    let mut cluster = Cluster::new();
    cluster.add_role("dev", &RoleRow::default());
    add(&mut cluster, ProviderRow::Oidc(oidc()), &["dev"]);
    let remove =
        |cluster: &mut Cluster| cluster.admin(|tx, context| role::delete(tx, context, &role_name("dev")));
    let refused = remove(&mut cluster);
    assert!(
        matches!(&refused, Err(CoreError::Precondition(why)) if why.contains("connector corp")),
        "{refused:?}"
    );
    change(&mut cluster, ProviderRow::Oidc(oidc()), 0, REDACTED).unwrap();
    remove(&mut cluster).unwrap();
}
