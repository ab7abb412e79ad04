use store_txn::{Key as _, Row as _};

use super::*;
use crate::{
    names::{
        AgentId, ClusterName, ConnectorName, DeviceId, IdentityName, RoleName, SessionHandle, TokenName,
        UserName,
    },
    secret::SecretDigest,
    spiffe::TrustDomain,
};

/// The keys on disk are these bytes: a change here is a change of the format.
#[test]
fn golden_keys() {
    let golden = [
        (ClusterKey.encode(), "0001"),
        (AuthJoinTokenKey(SecretDigest([1; 32])).encode(), &format!("0002{}", "01".repeat(32))),
        (CaKey(CaKind::Tls).encode(), "00030000000000000003"),
        (FollowedKey(7).encode(), "00050000000000000007"),
        (UserKey(UserName::parse("", "ann").unwrap()).encode(), "000a616e6e0001"),
        (RoleKey(RoleName::parse("", "dev").unwrap()).encode(), "000b6465760001"),
        (SessionKey(SecretDigest([2; 32])).encode(), &format!("000c{}", "02".repeat(32))),
        (
            RoleMemberKey {
                role: RoleName::parse("", "dev").unwrap(),
                user: UserName::parse("", "ann").unwrap(),
            }
            .encode(),
            "000f6465760001616e6e0001",
        ),
        (TokenKey(TokenName::parse("", "t").unwrap()).encode(), "0014740001"),
        (PrincipalKey("h".into()).encode(), "0019680001"),
    ];
    for (bytes, hex) in golden {
        assert_eq!(hex::encode(bytes), hex);
    }
}

#[test]
fn golden_rows() {
    let user = UserRow {
        roles: vec!["dev".into()],
        traits: [("logins".to_owned(), StringsRow { values: vec!["root".into()] })].into(),
        password_hash: "$x".into(),
        created_at_ms: 300,
        created_by: "user:a".into(),
        ..UserRow::default()
    };
    let bytes = user.encode_row();
    assert_eq!(
        hex::encode(&bytes),
        "0a0364657612100a066c6f67696e7312060a04726f6f741a02247820ac022a06757365723a61"
    );
    assert_eq!(UserRow::decode_row(&bytes), Ok(user.clone()));
    assert_eq!(user.expires_at(), None);
    let of_connector =
        UserRow { connector: "c".into(), subject: "s".into(), expires_at_ms: 4, ..UserRow::default() };
    assert_eq!(hex::encode(of_connector.encode_row()), "3201633a01734004");
    assert_eq!(of_connector.expires_at(), Some(4));
    // As releases before wrote it, and of a user of a connector.
    assert_eq!(MemberRow::decode_row(&[]), Ok(MemberRow::default()));
    let member = MemberRow { expires_at_ms: 4 };
    assert_eq!((hex::encode(member.encode_row()), member.expires_at()), ("0804".into(), Some(4)));
    let session = SessionRow {
        user: "ann".into(),
        handle: "h".into(),
        created_at_ms: 1,
        expires_at_ms: 2,
        method: AuthMethod::Password.into(),
        client_address: "a".into(),
        epoch: 3,
        device: String::new(),
        agent_identity: String::new(),
        spiffe_id: String::new(),
        second_factor: false,
    };
    let bytes = "0a03616e6e1201681801200228013201613803";
    assert_eq!(hex::encode(session.encode_row()), bytes);
    let of_identity = SessionRow { agent_identity: "ci".into(), ..session.clone() };
    assert_eq!(hex::encode(of_identity.encode_row()), format!("{bytes}4a026369"));
    let vouched = SessionRow { second_factor: true, ..session.clone() };
    assert_eq!(hex::encode(vouched.encode_row()), format!("{bytes}5801"));
    assert_eq!(session.expires_at(), Some(2));
}

#[test]
fn golden_keys_of_joining_and_calls() {
    let id = || AgentId::from_random([0xff; 16]);
    let agent = format!("{}0001", hex::encode(id().as_str()));
    let token = || TokenName::parse("", "t").unwrap();
    let golden = [
        (TokenSecretKey(SecretDigest([1; 32])).encode(), format!("0015{}", "01".repeat(32))),
        (
            TokenUseKey { token: token(), key_digest: [2; 32] }.encode(),
            format!("0016740001{}", "02".repeat(32)),
        ),
        (JoinKey(id()).encode(), format!("0017{agent}")),
        (NodeKey(id()).encode(), format!("0018{agent}")),
        (PresenceKey(id()).encode(), format!("001a{agent}")),
        (AgentLabelsKey(id()).encode(), format!("001b{agent}")),
        (IngestKey(id()).encode(), format!("001c{agent}")),
        (AnswerKey(SecretDigest([3; 32])).encode(), format!("0028{}", "03".repeat(32))),
    ];
    for (bytes, hex) in golden {
        assert_eq!(hex::encode(bytes), hex);
    }
}

#[test]
fn golden_rows_of_joining_and_calls() {
    let labels = || [("a".to_owned(), "b".to_owned())].into();
    let node = NodeRow {
        kind: NodeKind::Ssh.into(),
        hostname: "h".into(),
        principals: vec!["h".into(), "i".into()],
        admin_labels: labels(),
        registered_at_ms: 1,
        key_digest: vec![1, 2],
        token: "t".into(),
        ssh_key_digest: vec![3],
        expires_at_ms: 4,
    };
    let node_hex = "08011201681a01681a016922060a0161120162280132020102 3a017442010348 04".replace(' ', "");
    let token = TokenRow {
        kind: NodeKind::Ingest.into(),
        method: JoinMethod::Token.into(),
        expires_at_ms: 5,
        max_uses: 2,
        uses: 1,
        labels: labels(),
        allowed_principals: vec!["*.x".into()],
        created_by: "u".into(),
        created_at_ms: 6,
        secret_digest: vec![7],
        iam_rules: vec![IamRuleRow { account: "1".into(), arn: "a".into(), partition: "p".into() }],
    };
    let token_hex = "0802100118052002280132060a01611201623a032a2e7842017548065201 07";
    let token_hex = format!("{token_hex}5a090a01311201611a0170").replace(' ', "");
    let used = TokenUseRow { agent_id: "a".into(), expires_at_ms: 8, secret_digest: vec![9] };
    let presence = PresenceRow {
        last_seen_ms: 1,
        address: "h:1".into(),
        version: "2".into(),
        load: 3,
        expires_at_ms: 4,
        followed_trust: 5,
    };
    let rotation = RotationRow {
        phase: RotationPhase::UpdateServers.into(),
        phase_started_at_ms: 1,
        phase_ms: 2,
        force: true,
        switched_at: 3,
        begun_at: 4,
    };
    let ca = CaRow {
        rotation: Some(rotation),
        ..CaRow::new(CaKeyRow { public: "p".into(), ..CaKeyRow::default() })
    };
    let join = JoinRow { token: "t".into(), node: Some(node.clone()), expires_at_ms: 5 };
    let golden = [
        (node.encode_row(), node_hex.clone()),
        (token.encode_row(), token_hex),
        (used.encode_row(), "0a016110081a0109".into()),
        (presence.encode_row(), "08011203683a311a0132200328043005".into()),
        (ca.encode_row(), "0a030a01701a0c080410011802200128033004".into()),
        (FollowedRow { tls: 1, peer: 2 }.encode_row(), "08011002".into()),
        (join.encode_row(), format!("0a01741221{node_hex}1805")),
        (PrincipalRow { agent_id: "a".into(), expires_at_ms: 1 }.encode_row(), "0a01611001".into()),
        (AgentLabelsRow { labels: labels(), expires_at_ms: 1 }.encode_row(), "0a060a01611201621001".into()),
        (IngestRow { expires_at_ms: 1 }.encode_row(), "0801".into()),
        (AnswerRow { sealed: vec![1, 2], expires_at_ms: 3 }.encode_row(), "0a0201021003".into()),
    ];
    for (bytes, hex) in golden {
        assert_eq!(hex::encode(bytes), hex);
    }
    assert_eq!((node.expires_at(), token.expires_at(), presence.expires_at()), (Some(4), Some(5), Some(4)));
}

#[test]
fn golden_bytes_of_uses_and_configuration() {
    let key = SessionUseKey(SecretDigest([2; 32]));
    assert_eq!(hex::encode(key.encode()), format!("003e{}", "02".repeat(32)));
    let used = SessionUseRow { last_used_ms: 1, expires_at_ms: 2 };
    assert_eq!((hex::encode(used.encode_row()), used.expires_at()), ("08011002".into(), Some(2)));
    let config = ClusterConfigRow {
        second_factor: SecondFactor::Off.into(),
        session_ttl_ms: Some(1),
        session_idle_timeout_ms: Some(2),
        audit_retention_ms: Some(3),
        recording_mode: RecordingMode::Off.into(),
        lockout_threshold: Some(4),
        lockout_duration_ms: Some(5),
        audit_max_events: Some(6),
        session_idle_since_ms: 7,
        session_over_before_ms: 8,
        webauthn_rp_id: "a".into(),
        webauthn_origins: vec!["b".into()],
    };
    assert_eq!(
        hex::encode(config.encode_row()),
        "08011001180220032801300438054006480750085a0161620162".to_owned()
    );
}

#[test]
fn golden_bytes_of_invites() {
    assert_eq!(hex::encode(InviteKey(UserName::parse("", "ann").unwrap()).encode()), "003f616e6e0001");
    let key = InviteSecretKey(SecretDigest([2; 32]));
    assert_eq!(hex::encode(key.encode()), format!("0040{}", "02".repeat(32)));
    let invite = InviteRow { secret_digest: vec![1], expires_at_ms: 2, created_by: "u".into(), epoch: 3 };
    assert_eq!(
        (hex::encode(invite.encode_row()), invite.expires_at()),
        ("0a010110021a01752003".into(), Some(2))
    );
    let secret = InviteSecretRow { user: "a".into(), expires_at_ms: 1 };
    assert_eq!((hex::encode(secret.encode_row()), secret.expires_at()), ("0a01611001".into(), Some(1)));
}

#[test]
fn golden_bytes_of_logins() {
    assert_eq!(hex::encode(LoginsKey(UserName::parse("", "ann").unwrap()).encode()), "003c616e6e0001");
    assert_eq!(hex::encode(NobodysLoginsKey(258).encode()), "003d0000000000000102");
    let logins = LoginsRow {
        failing: vec![FailingNetworkRow { network: "n".into(), failures: 1, until_ms: 2 }],
        known: vec![KnownNetworkRow { network: "m".into(), last_ms: 3 }],
        strange_failures: 4,
        strange_until_ms: 5,
        expires_at_ms: 6,
        shut: Vec::new(),
    };
    let bytes = "0a070a016e1001180212050a016d1003180420052806";
    assert_eq!(hex::encode(logins.encode_row()), bytes);
    assert_eq!(logins.expires_at(), Some(6));
    let failing = FailingNetworkRow { network: "o".into(), failures: 7, until_ms: 8 };
    let shut = LoginsRow { shut: vec![failing.clone()], ..logins };
    assert_eq!(hex::encode(shut.encode_row()), format!("{bytes}32070a016f10071808"));

    assert_eq!(hex::encode(NetworkLoginsKey(258).encode()), "00440000000000000102");
    let network = NetworkLoginsRow { failing: vec![failing], expires_at_ms: 9 };
    assert_eq!(hex::encode(network.encode_row()), "0a070a016f100718081009");
    assert_eq!(network.expires_at(), Some(9));
    assert_eq!(hex::encode(SlotSecretKey.encode()), "0045");
    let secret = SlotSecretRow { secret: vec![1, 2] };
    assert_eq!((hex::encode(secret.encode_row()), secret.expires_at()), ("0a020102".into(), None));
}

#[test]
fn golden_keys_and_rows_of_webauthn() {
    let device = || DeviceId::from_random([1; 16]);
    let id = "3031".repeat(16);
    let keys = [
        (WebauthnSecretKey.encode(), "0050".to_owned()),
        (CeremonyKey(258).encode(), "00510000000000000102".into()),
        (DeviceKey(device()).encode(), format!("0052{id}0001")),
        (
            UserDeviceKey { user: UserName::parse("", "ann").unwrap(), device: device() }.encode(),
            format!("0053616e6e0001{id}0001"),
        ),
        (CredentialKey([3; 32]).encode(), format!("0054{}", "03".repeat(32))),
    ];
    for (bytes, hex) in keys {
        assert_eq!(hex::encode(bytes), hex);
    }
    let ceremony = CeremonyRow {
        digest: vec![1],
        purpose: Purpose::StepUp.into(),
        user: "u".into(),
        typed: vec![3],
        session: "s".into(),
        proof: vec![4],
        state: vec![5],
        epoch: 6,
        expires_at_ms: 7,
        named: true,
    };
    let row = DeviceRow {
        user: "u".into(),
        name: "n".into(),
        credential_id: vec![1],
        credential: vec![2],
        counter: 3,
        passkey: true,
        relying_party: "r".into(),
        created_at_ms: 4,
        last_used_at_ms: 5,
    };
    let rows = [
        (ceremony.encode_row(), "0a010110021a01752201032a01733201043a0105400648075001"),
        (row.encode_row(), "0a017512016e1a01012201022803300 13a017240044805"),
        (CredentialRow { device: "d".into() }.encode_row(), "0a0164"),
        (WebauthnSecretRow { secret: vec![1, 2] }.encode_row(), "0a020102"),
        (SessionRow { device: "d".into(), ..SessionRow::default() }.encode_row(), "420164"),
        (SessionRow { spiffe_id: "s".into(), ..SessionRow::default() }.encode_row(), "520173"),
    ];
    for (bytes, hex) in rows {
        assert_eq!(hex::encode(bytes), hex.replace(' ', ""));
    }
    assert_eq!((ceremony.expires_at(), row.expires_at()), (Some(7), None));
}

#[test]
fn golden_keys_and_rows_of_connectors_and_trusted_clusters() {
    let mapped = |kind| MappedRoleKey { role: RoleName::parse("", "dev").unwrap(), kind, name: "c".into() };
    let cluster = || ClusterName::parse("", "b").unwrap();
    let keys = [
        (ConnectorKey(ConnectorName::parse("", "c").unwrap()).encode(), "0046630001"),
        (mapped(MapperKind::Connector).encode(), "0047646576000100000000000000016300 01"),
        (mapped(MapperKind::TrustedCluster).encode(), "0047646576000100000000000000026300 01"),
        (mapped(MapperKind::AgentIdentity).encode(), "0047646576000100000000000000036300 01"),
        (TrustedClusterKey(cluster()).encode(), "0048620001"),
        (RefreshKey(cluster()).encode(), "0049620001"),
    ];
    for (bytes, hex) in keys {
        assert_eq!(hex::encode(bytes), hex.replace(' ', ""));
    }
    let mapping = ClaimMappingRow { claim: "g".into(), value: "*".into(), roles: vec!["r".into()] };
    let connector = |provider| ConnectorRow {
        display_name: "d".into(),
        mappings: vec![mapping.clone()],
        provider: Some(provider),
        sealed_secret: vec![1],
        created_at_ms: 2,
        created_by: "u".into(),
        second_factor: false,
        since_ms: 0,
    };
    let oidc = OidcRow {
        issuer_url: "i".into(),
        client_id: "c".into(),
        username_claim: "n".into(),
        scopes: vec!["s".into()],
        ca_certificates: vec![],
    };
    let github = GithubRow { client_id: "c".into(), organizations: vec!["o".into()], ..GithubRow::default() };
    let anchored = OidcRow { ca_certificates: vec!["p".into()], ..OidcRow::default() };
    let enterprise = GithubRow { url: "u".into(), ca_certificates: vec!["p".into()], ..GithubRow::default() };
    let saml = SamlRow { entity_id: "e".into(), sso_url: "u".into(), certificates: vec!["p".into()] };
    let front = "0a016412090a016712012a1a0172";
    let back = "3201013802420175";
    let trusted = TrustedClusterRow {
        addresses: vec!["a:1".into()],
        mappings: vec![RoleMappingRow { remote: "r".into(), local: vec!["l".into()] }],
        disabled: true,
        authorities: vec![ForeignCaRow { kind: CaKind::Tls.into(), keys: vec!["k".into()] }],
        bundle_revision: 5,
        created_at_ms: 6,
        created_by: "u".into(),
    };
    let rows = [
        (
            connector(ProviderRow::Oidc(oidc)).encode_row(),
            format!("{front}1a0c0a01691201631a016e220173{back}"),
        ),
        (connector(ProviderRow::Github(github)).encode_row(), format!("{front}22060a016312016f{back}")),
        (connector(ProviderRow::Oidc(anchored)).encode_row(), format!("{front}1a032a0170{back}")),
        (connector(ProviderRow::Github(enterprise)).encode_row(), format!("{front}22061a0175220170{back}")),
        (
            ConnectorRow { second_factor: true, since_ms: 5, ..ConnectorRow::default() }.encode_row(),
            "48015005".into(),
        ),
        (connector(ProviderRow::Saml(saml)).encode_row(), format!("{front}2a090a01651201751a0170{back}")),
        (
            trusted.encode_row(),
            "0a03613a3112060a01721201 6c1801220508031201 6b280530063a0175".replace(' ', ""),
        ),
        (RefreshRow { refreshed_at_ms: 1, error: "e".into() }.encode_row(), "0801120165".into()),
        (IssuedRow { cluster: "b".into(), ..IssuedRow::default() }.encode_row(), "4a0162".into()),
    ];
    for (bytes, hex) in rows {
        assert_eq!(hex::encode(bytes), hex);
    }
}

#[test]
fn golden_keys_and_rows_of_agent_identities() {
    let ci = || IdentityName::parse("", "ci").unwrap();
    let handle = SessionHandle::from_random([0xff; 16]);
    let keys = [
        (AgentIdentityKey(ci()).encode(), "005a63690001".to_owned()),
        (AgentIdentityStateKey(ci()).encode(), "005b63690001".to_owned()),
        (BootstrapSecretKey(SecretDigest([2; 32])).encode(), format!("005c{}", "02".repeat(32))),
        (
            IdentityTlsKeyKey { identity: ci(), key_digest: [3; 32] }.encode(),
            format!("005d63690001{}", "03".repeat(32)),
        ),
        (
            IdentitySessionKey { identity: ci(), handle }.encode(),
            format!("005e63690001{}0001", "66".repeat(32)),
        ),
        (SpiffeIdKey("s".into()).encode(), "005f730001".to_owned()),
    ];
    for (bytes, hex) in keys {
        assert_eq!(hex::encode(bytes), hex);
    }
    let identity = AgentIdentityRow {
        roles: vec!["r".into()],
        traits: [("l".to_owned(), StringsRow { values: vec!["v".into()] })].into(),
        max_ttl_ms: 1,
        spiffe_ids: vec!["s".into()],
        created_at_ms: 2,
        created_by: "u".into(),
    };
    let state = AgentIdentityStateRow {
        generation: 1,
        key_digest: vec![2],
        session: "s".into(),
        last_call: vec![3],
        ends_at_ms: 4,
        secret_digest: vec![5],
        secret_ends_at_ms: 6,
        epoch: 7,
    };
    let secret = BootstrapSecretRow { identity: "a".into(), expires_at_ms: 1 };
    assert_eq!((secret.expires_at(), state.expires_at(), identity.expires_at()), (Some(1), None, None));
    let rows = [
        (identity.encode_row(), "0a017212080a016c12030a0176180122017328023201 75".replace(' ', "")),
        (state.encode_row(), "08011201021a0173220103280432010538064007".to_owned()),
        (secret.encode_row(), "0a01611001".to_owned()),
        (MarkEndingRow { expires_at_ms: 1 }.encode_row(), "0801".to_owned()),
        (SpiffeIdRow { identity: "a".into() }.encode_row(), "0a0161".to_owned()),
    ];
    for (bytes, hex) in rows {
        assert_eq!(hex::encode(bytes), hex);
    }
}

#[test]
fn golden_keys_and_rows_of_spiffe() {
    let red = || TrustDomain::parse("", "red").unwrap();
    let keys = [
        (SpiffeDomainKey(red()).encode(), "00647265640001".to_owned()),
        (SpiffeBundleKey(red()).encode(), "00657265640001".to_owned()),
        (SpiffeRefreshKey(red()).encode(), "00667265640001".to_owned()),
        (UsedSvidKey(SecretDigest([2; 32])).encode(), format!("0067{}", "02".repeat(32))),
    ];
    for (bytes, hex) in keys {
        assert_eq!(hex::encode(bytes), hex);
    }
    let endpoint =
        SpiffeEndpointRow { url: "u".into(), spiffe_id: "i".into(), web_authorities: vec!["w".into()] };
    let domain = SpiffeDomainRow { endpoint: Some(endpoint), created_at_ms: 1, created_by: "b".into() };
    let bundle = SpiffeBundleRow {
        x509_authorities: vec![vec![1]],
        jwt_authorities: vec![JwtAuthorityRow { key_id: "k".into(), jwk: "j".into() }],
        sequence: Some(0),
        refresh_hint_s: 2,
    };
    let refresh = SpiffeRefreshRow { refreshed_at_ms: 1, tried_at_ms: 2, error: "e".into() };
    let rows = [
        (domain.encode_row(), "0a090a01751201691a017710011a0162"),
        (bundle.encode_row(), "0a010112060a016b12016a18002002"),
        (refresh.encode_row(), "080110021a0165"),
    ];
    for (bytes, hex) in rows {
        assert_eq!(hex::encode(bytes), hex);
    }
}

#[test]
fn no_password_hash_is_shown() {
    let user = UserRow { password_hash: "$argon2id$secret".into(), ..UserRow::default() };
    assert!(!format!("{user:?}").contains("secret"));
}

#[test]
fn golden_keys_and_rows_of_single_sign_on() {
    assert_eq!(hex::encode(SsoLoginKey(7).encode()), "00600000000000000007");
    assert_eq!(hex::encode(SsoCodeKey(SecretDigest([1; 32])).encode()), format!("0061{}", "01".repeat(32)));
    let login = SsoLoginRow {
        digest: vec![1],
        browser: vec![2],
        connector: "c".into(),
        connector_revision: 3,
        program: Some(ProgramRow { challenge: vec![4], port: 5, path: "p".into() }),
        epoch: 6,
        expires_at_ms: 7,
    };
    let bytes = "0a01011201021a016320032a080a010410051a017030063807";
    assert_eq!((hex::encode(login.encode_row()), login.expires_at()), (bytes.into(), Some(7)));
    let code = SsoCodeRow {
        user: "u".into(),
        connector: "c".into(),
        subject: "s".into(),
        challenge: vec![1],
        epoch: 2,
        expires_at_ms: 3,
        connector_revision: 4,
    };
    let bytes = "0a01751201631a0173220101280230033804";
    assert_eq!((hex::encode(code.encode_row()), code.expires_at()), (bytes.into(), Some(3)));
}
