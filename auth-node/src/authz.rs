//! Who may call which method: one function over the access rules of `v1/auth.proto`. What has no rule, or
//! fits none of its rule's classes and is opened by none of the caller's roles, is refused. What a caller may do inside
//! a method is the domain's.

use auth_core::{
    Caller, CoreError,
    rules::{Resource, Verb},
};
use mezite_proto::{access::MethodAccess, v1::AccessClass};

/// Checks that a caller may call a method.
///
/// # Errors
/// [`CoreError::Unauthenticated`] for somebody who has not proved to be anybody, [`CoreError::NotRegistered`] for an agent
/// or ingest that is not in the registry, [`CoreError::Denied`] for everybody else.
pub(crate) fn check(rule: &MethodAccess, caller: &Caller) -> Result<(), CoreError> {
    if rule.classes.iter().any(|class| admits(*class, caller)) || is_open_to(rule, caller) {
        return Ok(());
    }
    let method = rule.method;
    match caller {
        Caller::Anonymous | Caller::Init | Caller::Cluster => {
            Err(CoreError::Unauthenticated("this call needs a session or a client certificate"))
        }
        Caller::Unregistered { .. } => Err(CoreError::NotRegistered),
        Caller::User(_) if rule.classes.contains(&AccessClass::Admin) => {
            let or = rule.rule.map(|(resource, verb)| format!(", or one with a rule to {verb} {resource}"));
            Err(CoreError::Denied(format!("{method} needs the role admin{}", or.unwrap_or_default())))
        }
        Caller::User(_) => Err(CoreError::Denied(format!("{method} is not for users"))),
        Caller::AgentIdentity(_) if rule.classes.contains(&AccessClass::Admin) => {
            let or = rule.rule.map(|(resource, verb)| format!(", or one with a rule to {verb} {resource}"));
            Err(CoreError::Denied(format!("{method} needs the role admin{}", or.unwrap_or_default())))
        }
        Caller::AgentIdentity(_) => Err(CoreError::Denied(format!("{method} is not for agent identities"))),
        Caller::Remote(_) if rule.classes.contains(&AccessClass::RemoteUser) => {
            let reason = "none of your roles in your cluster is mapped to a role of this one";
            Err(CoreError::Denied(reason.into()))
        }
        Caller::Remote(_) => Err(CoreError::Denied(format!("{method} is not for users of other clusters"))),
        Caller::Agent { .. } | Caller::Ingest { .. } => {
            Err(CoreError::Denied(format!("{method} is not for the holder of this client certificate")))
        }
    }
}

/// What a session may do that was made with a password alone where a second factor is required: what it takes to get one, and to end.
const WITHOUT_SECOND_FACTOR: &[&str] =
    &["Logout", "BeginWebAuthnRegistration", "FinishWebAuthnRegistration", "ListWebAuthnDevices"];

/// What is public for the sake of others, and what a user does there by its roles.
const PUBLIC_BY_ROLE: &[&str] = &["DeregisterAgent"];

/// What is written also while the database is over its bound: what takes access away or removes, what makes the audit log
/// shorter, and a backup.
const FROM_RESERVE: &[&str] = &[
    "ResetUserPassword",
    "UpdateUser",
    "DeleteUser",
    "DeleteWebAuthnDevice",
    "UpdateRole",
    "DeleteRole",
    "DeleteToken",
    "CreateLock",
    "DeleteLock",
    "RevokeSession",
    "DeregisterAgent",
    "UpdateAgentIdentity",
    "DeleteAgentIdentity",
    "UpdateConnector",
    "DeleteConnector",
    "UpdateTrustedCluster",
    "DeleteTrustedCluster",
    "UpdateSpiffeDomain",
    "DeleteSpiffeDomain",
    "UpdateClusterConfig",
    "RotateCA",
    "RemoveMember",
    "SaveBackup",
];

/// Whether what a method writes may take from the store's reserve.
pub(crate) fn writes_from_reserve(rule: &MethodAccess) -> bool {
    FROM_RESERVE.contains(&rule.method)
}

/// Whether a method takes a second factor of users of whom one is required.
pub(crate) fn takes_second_factor(rule: &MethodAccess) -> bool {
    let by_user = !rule.classes.contains(&AccessClass::Public) || PUBLIC_BY_ROLE.contains(&rule.method);
    by_user && !WITHOUT_SECOND_FACTOR.contains(&rule.method)
}

fn admits(class: AccessClass, caller: &Caller) -> bool {
    match class {
        AccessClass::Unspecified => false,
        AccessClass::Public => true,
        AccessClass::User => matches!(caller, Caller::User(_)),
        AccessClass::Admin => caller.holder().is_ok_and(|holder| holder.is_admin()),
        AccessClass::Agent => matches!(caller, Caller::Agent { .. }),
        AccessClass::Service => matches!(caller, Caller::Ingest { .. }),
        // Not even an admin's role opens more to it.
        AccessClass::RemoteUser => matches!(caller, Caller::Remote(user) if !user.roles.is_empty()),
        AccessClass::AgentIdentity => matches!(caller, Caller::AgentIdentity(_)),
    }
}

/// Whether a role of the caller opens the method.
fn is_open_to(rule: &MethodAccess, caller: &Caller) -> bool {
    let (Some((resource, verb)), Ok(holder)) = (rule.rule, caller.holder()) else { return false };
    let pair = Resource::named(resource).first().zip(Verb::named(verb).first());
    pair.is_some_and(|(resource, verb)| holder.may(*resource, *verb))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use auth_core::{
        context::{IdentityCaller, Role, UserCaller},
        names::{AgentId, ClusterName, IdentityName, RoleName, UserName},
        remote::RemoteCaller,
        secret::SecretDigest,
        tables::{AgentIdentityRow, ConditionsRow, NodeKind, RoleRow, RuleRow, SessionRow, UserRow},
    };
    use mezite_proto::access::METHODS;

    use super::*;

    fn user(roles: &[&str]) -> Caller {
        let role = |name: &&str| Role { name: RoleName::parse("", name).unwrap(), row: RoleRow::default() };
        Caller::User(Box::new(UserCaller {
            name: UserName::parse("", "ann").unwrap(),
            user: UserRow::default(),
            roles: roles.iter().map(role).collect(),
            digest: SecretDigest([0; 32]),
            session: SessionRow::default(),
            use_is_due: false,
        }))
    }

    fn bot(roles: &[&str]) -> Caller {
        let role = |name: &&str| Role { name: RoleName::parse("", name).unwrap(), row: RoleRow::default() };
        Caller::AgentIdentity(Box::new(IdentityCaller {
            name: IdentityName::parse("", "ann").unwrap(),
            identity: AgentIdentityRow::default(),
            roles: roles.iter().map(role).collect(),
            digest: SecretDigest([0; 32]),
            session: SessionRow::default(),
        }))
    }

    fn remote(roles: &[&str]) -> Caller {
        let role = |name: &&str| Role { name: RoleName::parse("", name).unwrap(), row: RoleRow::default() };
        Caller::Remote(Box::new(RemoteCaller {
            name: UserName::parse("", "ann@other").unwrap(),
            cluster: ClusterName::parse("", "other").unwrap(),
            roles: roles.iter().map(role).collect(),
            ends_at_ms: 0,
        }))
    }

    /// Every kind of caller, with the letter that the reference below has for it.
    fn callers() -> [(char, Caller); 11] {
        let id = || AgentId::from_random([1; 16]);
        let unregistered = |kind| Caller::Unregistered { id: id(), kind, key_digest: [0; 32] };
        [
            ('-', Caller::Anonymous),
            ('-', unregistered(NodeKind::Ssh)),
            ('-', unregistered(NodeKind::Ingest)),
            ('u', user(&["access", "auditor"])),
            ('a', user(&["access", "admin"])),
            ('n', Caller::Agent { id: id(), node: Box::default() }),
            ('i', Caller::Ingest { id: id(), node: Box::default() }),
            ('r', remote(&["admin"])),
            // Mapped to no role.
            ('x', remote(&[])),
            ('b', bot(&["access", "auditor"])),
            // Whatever an admin may, unless it is for people alone: what is for users, and no admin's, is not in the class.
            ('B', bot(&["access", "admin"])),
        ]
    }

    /// Who may call what, by family: `*` everybody, `u` users, `a` admins, `n` agents, `i` ingests, `r` users of trusted
    /// clusters, `b` agent identities, `B` those that are admins.
    const REFERENCE: &[(&str, &[&str])] = &[
        ("*", &["Ping", "AuthenticateLocal", "BeginWebAuthnLogin", "FinishWebAuthnLogin"]),
        ("*", &["BeginSSOLogin", "FinishSSOLogin"]),
        ("*", &["AcceptInvite"]),
        ("ua", &["ChangePassword", "BeginWebAuthnRegistration", "FinishWebAuthnRegistration"]),
        ("uabB", &["Logout"]),
        ("ua", &["ListWebAuthnDevices", "DeleteWebAuthnDevice"]),
        ("uarbB", &["IssueUserCerts"]),
        ("*", &["GetTrustBundle", "GetRevocationList", "GenerateHostCerts"]),
        ("*", &["ValidateJoinToken", "RegisterAgent", "RegisterUsingIAMMethod"]),
        ("*", &["AgentHeartbeat", "DeregisterAgent"]),
        ("uarbB", &["ListNodes"]),
        ("aB", &["UpdateNode"]),
        ("ni", &["WatchAccess"]),
        ("aB", &["CreateAgentIdentity", "UpdateAgentIdentity", "DeleteAgentIdentity"]),
        ("aB", &["GetAgentIdentity", "ListAgentIdentities"]),
        ("*", &["BootstrapAgentIdentity", "RenewAgentIdentity", "AuthenticateSPIFFE"]),
        ("aB", &["CreateSpiffeDomain", "GetSpiffeDomain", "ListSpiffeDomains"]),
        ("aB", &["UpdateSpiffeDomain", "DeleteSpiffeDomain"]),
        ("nbB", &["IssueSVID"]),
        ("uabB", &["GetUser", "ListUsers", "GetRole", "ListRoles"]),
        ("aB", &["CreateUser", "UpdateUser", "DeleteUser", "ResetUserPassword"]),
        ("aB", &["ClearUserLockout"]),
        ("aB", &["CreateRole", "UpdateRole", "DeleteRole"]),
        ("aB", &["CreateToken", "GetToken", "ListTokens", "DeleteToken"]),
        ("aB", &["CreateLock", "GetLock", "ListLocks", "DeleteLock"]),
        ("aB", &["CreateConnector", "GetConnector", "ListConnectors", "UpdateConnector", "DeleteConnector"]),
        ("aB", &["CreateTrustedCluster", "GetTrustedCluster", "ListTrustedClusters"]),
        ("aB", &["UpdateTrustedCluster", "DeleteTrustedCluster"]),
        ("*", &["ExchangeTrust"]),
        ("uabB", &["GetClusterConfig"]),
        ("aB", &["UpdateClusterConfig", "RotateCA", "GetCARotation"]),
        ("uabB", &["ListActiveSessions"]),
        ("aB", &["RevokeSession"]),
        ("aBni", &["EmitAuditEvent"]),
        ("aB", &["QueryAuditEvents"]),
        ("ua", &["CreateAccessRequest", "GetAccessRequest", "ListAccessRequests"]),
        ("ua", &["ReviewAccessRequest", "CancelAccessRequest"]),
        ("n", &["StreamSessionRecording", "UploadSessionRecording"]),
        ("uaibB", &["ListSessionRecordings", "GetSessionRecording", "DownloadSessionRecording"]),
        ("aB", &["ListMembers", "AddMember", "RemoveMember"]),
        ("aB", &["GetClusterStatus", "SaveBackup", "CreateAuthJoinToken"]),
        ("aB", &["ArchiveAuditEvents", "ConfigurePlugin", "ListPlugins", "SetPluginEnabled"]),
        ("aB", &["CreateNotificationChannel", "ListNotificationChannels"]),
        ("aB", &["DisableNotificationChannel", "DeleteNotificationChannel", "ValidateTOTP"]),
    ];

    #[test]
    fn one_table_default_deny_every_rpc_times_caller_kind() {
        let mut reference: BTreeMap<_, _> = REFERENCE
            .iter()
            .flat_map(|(who, methods)| methods.iter().map(|method| (*method, *who)))
            .collect();
        for rule in METHODS {
            let who =
                reference.remove(rule.method).unwrap_or_else(|| panic!("{} has no reference", rule.method));
            for (letter, caller) in callers() {
                let expected = who == "*" || who.contains(letter);
                let found = check(rule, &caller);
                assert_eq!(found.is_ok(), expected, "{} by {}: {found:?}", rule.method, caller.actor());
            }
        }
        assert!(reference.is_empty(), "not in the API: {reference:?}");
    }

    /// A user whose one role allows some pairs, and denies others.
    fn with_rules(allow: &[(Resource, Verb)], deny: &[(Resource, Verb)]) -> Caller {
        let side = |pairs: &[(Resource, Verb)]| {
            let rule = |(resource, verb): &(Resource, Verb)| RuleRow {
                resources: vec![resource.word().into()],
                verbs: vec![verb.word().into()],
            };
            Some(ConditionsRow { rules: pairs.iter().map(rule).collect(), ..ConditionsRow::default() })
        };
        let mut caller = user(&["reviewer"]);
        if let Caller::User(user) = &mut caller {
            user.roles[0].row = RoleRow { allow: side(allow), deny: side(deny), ..RoleRow::default() };
        }
        caller
    }

    /// What rules open, by resource; what is missing here is opened by none.
    const OPENED: &[(&str, &[(&str, &str)])] = &[
        ("nodes", &[("UpdateNode", "update")]),
        (
            "agent_identities",
            &[
                ("CreateAgentIdentity", "create"),
                ("UpdateAgentIdentity", "update"),
                ("DeleteAgentIdentity", "delete"),
                ("GetAgentIdentity", "read"),
                ("ListAgentIdentities", "list"),
            ],
        ),
        (
            "users",
            &[
                ("CreateUser", "create"),
                ("UpdateUser", "update"),
                ("DeleteUser", "delete"),
                ("ResetUserPassword", "update"),
                ("ClearUserLockout", "update"),
            ],
        ),
        (
            "tokens",
            &[
                ("CreateToken", "create"),
                ("GetToken", "read"),
                ("ListTokens", "list"),
                ("DeleteToken", "delete"),
            ],
        ),
        (
            "locks",
            &[("CreateLock", "create"), ("GetLock", "read"), ("ListLocks", "list"), ("DeleteLock", "delete")],
        ),
        (
            "connectors",
            &[
                ("CreateConnector", "create"),
                ("GetConnector", "read"),
                ("ListConnectors", "list"),
                ("UpdateConnector", "update"),
                ("DeleteConnector", "delete"),
            ],
        ),
        (
            "trusted_clusters",
            &[
                ("CreateTrustedCluster", "create"),
                ("GetTrustedCluster", "read"),
                ("ListTrustedClusters", "list"),
                ("UpdateTrustedCluster", "update"),
                ("DeleteTrustedCluster", "delete"),
            ],
        ),
        ("cluster_config", &[("UpdateClusterConfig", "update")]),
        ("cas", &[("RotateCA", "update"), ("GetCARotation", "read")]),
        ("sessions", &[("RevokeSession", "delete")]),
        ("audit", &[("QueryAuditEvents", "list")]),
    ];

    #[test]
    fn rules_in_roles_open_single_methods_and_deny_wins() {
        let mut opened: BTreeMap<_, _> = OPENED
            .iter()
            .flat_map(|(resource, methods)| {
                methods.iter().map(|(method, verb)| (*method, (*resource, *verb)))
            })
            .collect();
        let all: Vec<_> = Resource::ALL
            .iter()
            .flat_map(|resource| Verb::ALL.iter().map(|verb| (*resource, *verb)))
            .collect();
        for rule in METHODS {
            assert_eq!(rule.rule, opened.remove(rule.method), "{}", rule.method);
            let Some((resource, verb)) = rule.rule else { continue };
            let pair = (Resource::named(resource)[0], Verb::named(verb)[0]);
            assert_eq!((pair.0.word(), pair.1.word()), (resource, verb), "one, and not all");
            let others: Vec<_> = all.iter().copied().filter(|other| *other != pair).collect();
            assert!(check(rule, &with_rules(&[pair], &others)).is_ok(), "{}", rule.method);
            assert!(check(rule, &with_rules(&others, &[])).is_err(), "{}", rule.method);
            assert!(check(rule, &with_rules(&all, &[pair])).is_err(), "{}", rule.method);
        }
        assert!(opened.is_empty(), "not in the API: {opened:?}");
        // Roles are what everything is given by: no rule lets a user write them.
        for method in ["CreateRole", "UpdateRole", "DeleteRole"] {
            let rule = mezite_proto::access::rule(method).unwrap();
            assert!(check(rule, &with_rules(&all, &[])).is_err(), "{method}");
        }
    }

    #[test]
    fn a_rule_without_a_class_refuses_everybody() {
        for classes in [&[][..], &[AccessClass::Unspecified]] {
            let rule = MethodAccess { method: "X", classes, rule: None };
            for (_, caller) in callers() {
                assert!(check(&rule, &caller).is_err(), "{}", caller.actor());
            }
        }
    }

    #[test]
    fn who_has_proved_nothing_is_unauthenticated_and_not_denied() {
        let rule = mezite_proto::access::rule("CreateUser").unwrap();
        for (letter, caller) in callers() {
            let refused = check(rule, &caller);
            let nobody = matches!(refused, Err(CoreError::Unauthenticated(_) | CoreError::NotRegistered));
            assert_eq!(nobody, letter == '-', "{}", caller.actor());
            let unregistered = matches!(caller, Caller::Unregistered { .. });
            assert_eq!(matches!(refused, Err(CoreError::NotRegistered)), unregistered);
        }
    }
}
