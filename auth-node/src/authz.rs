//! Who may call which method: one function over the access rules of `v1/auth.proto`. What has no rule, or
//! fits none of its rule's classes, is refused. What a caller may do inside a method is the domain's.

use auth_core::{Caller, CoreError};
use mezite_proto::{access::MethodAccess, v1::AccessClass};

/// Checks that a caller may call a method.
///
/// # Errors
/// [`CoreError::Unauthenticated`] for somebody who has not proved to be anybody, [`CoreError::Denied`] for
/// everybody else.
pub(crate) fn check(rule: &MethodAccess, caller: &Caller) -> Result<(), CoreError> {
    if rule.classes.iter().any(|class| admits(*class, caller)) {
        return Ok(());
    }
    let method = rule.method;
    match caller {
        Caller::Anonymous | Caller::Init => {
            Err(CoreError::Unauthenticated("this call needs a session or a client certificate"))
        }
        Caller::Unregistered { .. } => {
            Err(CoreError::Unauthenticated("this client certificate is not of a registered agent or ingest"))
        }
        Caller::User(_) if rule.classes.contains(&AccessClass::Admin) => {
            Err(CoreError::Denied(format!("{method} needs the role admin")))
        }
        Caller::User(_) => Err(CoreError::Denied(format!("{method} is not for users"))),
        Caller::Agent { .. } | Caller::Ingest { .. } => {
            Err(CoreError::Denied(format!("{method} is not for the holder of this client certificate")))
        }
    }
}

fn admits(class: AccessClass, caller: &Caller) -> bool {
    match class {
        AccessClass::Unspecified => false,
        AccessClass::Public => true,
        AccessClass::User => matches!(caller, Caller::User(_)),
        AccessClass::Admin => matches!(caller, Caller::User(user) if user.is_admin()),
        AccessClass::Agent => matches!(caller, Caller::Agent { .. }),
        AccessClass::Service => matches!(caller, Caller::Ingest { .. }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use auth_core::{
        context::{Role, UserCaller},
        names::{AgentId, RoleName, UserName},
        secret::SecretDigest,
        tables::{NodeKind, RoleRow, SessionRow, UserRow},
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
        }))
    }

    /// Every kind of caller, with the letter that the reference below has for it.
    fn callers() -> [(char, Caller); 7] {
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
        ]
    }

    /// Who may call what, by family: `*` everybody, `u` users, `a` admins, `n` agents, `i` ingests.
    const REFERENCE: &[(&str, &[&str])] = &[
        ("*", &["Ping", "AuthenticateLocal", "BeginWebAuthnLogin", "FinishWebAuthnLogin"]),
        ("ua", &["ChangePassword", "Logout", "BeginWebAuthnRegistration", "FinishWebAuthnRegistration"]),
        ("ua", &["ListWebAuthnDevices", "DeleteWebAuthnDevice"]),
        ("ua", &["IssueUserCerts"]),
        ("*", &["GetTrustBundle", "GetRevocationList", "GenerateHostCerts"]),
        ("*", &["ValidateJoinToken", "RegisterAgent", "RegisterUsingIAMMethod"]),
        ("*", &["AgentHeartbeat", "DeregisterAgent"]),
        ("ua", &["ListNodes"]),
        ("a", &["UpdateNode"]),
        ("i", &["WatchAccess"]),
        ("a", &["CreateAgentIdentity", "UpdateAgentIdentity", "DeleteAgentIdentity"]),
        ("a", &["GetAgentIdentity", "ListAgentIdentities"]),
        ("*", &["BootstrapAgentIdentity", "RenewAgentIdentity", "AuthenticateSPIFFE"]),
        ("ua", &["GetUser", "ListUsers", "GetRole", "ListRoles"]),
        ("a", &["CreateUser", "UpdateUser", "DeleteUser", "ResetUserPassword"]),
        ("a", &["CreateRole", "UpdateRole", "DeleteRole"]),
        ("a", &["CreateToken", "GetToken", "ListTokens", "DeleteToken"]),
        ("a", &["CreateLock", "GetLock", "ListLocks", "DeleteLock"]),
        ("a", &["CreateConnector", "GetConnector", "ListConnectors", "UpdateConnector", "DeleteConnector"]),
        ("a", &["CreateTrustedCluster", "GetTrustedCluster", "ListTrustedClusters"]),
        ("a", &["UpdateTrustedCluster", "DeleteTrustedCluster"]),
        ("ua", &["GetClusterConfig"]),
        ("a", &["UpdateClusterConfig", "RotateCA", "GetCARotation"]),
        ("ua", &["ListActiveSessions"]),
        ("a", &["RevokeSession"]),
        ("ani", &["EmitAuditEvent"]),
        // Whether a role allows it is for the domain to say.
        ("ua", &["QueryAuditEvents"]),
        ("ua", &["CreateAccessRequest", "GetAccessRequest", "ListAccessRequests"]),
        ("ua", &["ReviewAccessRequest", "CancelAccessRequest"]),
        ("n", &["StreamSessionRecording", "UploadSessionRecording"]),
        ("uai", &["ListSessionRecordings", "GetSessionRecording", "DownloadSessionRecording"]),
        ("a", &["ListMembers", "AddMember", "RemoveMember"]),
        ("a", &["GetClusterStatus", "SaveBackup", "CreateAuthJoinToken"]),
        ("a", &["ArchiveAuditEvents", "ConfigurePlugin", "ListPlugins", "SetPluginEnabled"]),
        ("a", &["CreateNotificationChannel", "ListNotificationChannels"]),
        ("a", &["DisableNotificationChannel", "DeleteNotificationChannel", "ValidateTOTP"]),
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

    #[test]
    fn a_rule_without_a_class_refuses_everybody() {
        for classes in [&[][..], &[AccessClass::Unspecified]] {
            let rule = MethodAccess { method: "X", classes };
            for (_, caller) in callers() {
                assert!(check(&rule, &caller).is_err(), "{}", caller.actor());
            }
        }
    }

    #[test]
    fn who_has_proved_nothing_is_unauthenticated_and_not_denied() {
        let rule = mezite_proto::access::rule("CreateUser").unwrap();
        for (letter, caller) in callers() {
            let expected = matches!(check(rule, &caller), Err(CoreError::Unauthenticated(_)));
            assert_eq!(expected, letter == '-', "{}", caller.actor());
        }
    }
}
