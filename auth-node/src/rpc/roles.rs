//! Roles.

use std::{collections::BTreeMap, time::Duration};

use auth_core::{
    CoreError,
    names::RoleName,
    role,
    tables::{ConditionsRow, RequestRulesRow, RoleOptionsRow, RoleRow, RuleRow, StringsRow},
};
use mezite_proto::v1;

use super::convert;
use crate::{authn::Call, error::ApiError, once::Once, service::Service};

/// Answers one role.
pub(crate) async fn get(
    service: &Service,
    call: &Call,
    request: v1::GetRoleRequest,
) -> Result<v1::GetRoleResponse, ApiError> {
    let name = RoleName::parse("name", &request.name)?;
    let wanted = name.clone();
    let found = service.read(call, move |view, _| role::get(view, &wanted)).await?;
    Ok(v1::GetRoleResponse { role: Some(reply(name, found.row, found.revision)) })
}

/// Lists roles, ordered by name.
pub(crate) async fn list(
    service: &Service,
    call: &Call,
    request: v1::ListRolesRequest,
) -> Result<v1::ListRolesResponse, ApiError> {
    let page = convert::page(request.page_size, &request.page_token)?;
    let page = service.read(call, move |view, _| role::list(view, &page)).await?;
    let page = page.map(|(name, found)| reply(name, found.row, found.revision));
    Ok(v1::ListRolesResponse { roles: page.items, next_page_token: convert::page_token(page.next) })
}

/// Creates a role.
pub(crate) async fn create(
    service: &Service,
    call: &Call,
    request: v1::CreateRoleRequest,
) -> Result<v1::CreateRoleResponse, ApiError> {
    let once = Once::of(call, &request);
    let (name, row, _) = parse(request.role)?;
    let create = service.write_once(call, once, move |tx, context| {
        let made = role::create(tx, context, &name, &row)?;
        Ok(v1::CreateRoleResponse { role: Some(reply(name.clone(), made, 0)) })
    });
    create.await
}

/// Replaces a role.
pub(crate) async fn update(
    service: &Service,
    call: &Call,
    request: v1::UpdateRoleRequest,
) -> Result<v1::UpdateRoleResponse, ApiError> {
    let once = Once::of(call, &request);
    let (name, row, revision) = parse(request.role)?;
    let update = service.write_once(call, once, move |tx, context| {
        let updated = role::update(tx, context, &name, revision, &row)?;
        Ok(v1::UpdateRoleResponse { role: Some(reply(name.clone(), updated, 0)) })
    });
    update.await
}

/// Deletes a role that nobody holds.
pub(crate) async fn delete(
    service: &Service,
    call: &Call,
    request: v1::DeleteRoleRequest,
) -> Result<v1::DeleteRoleResponse, ApiError> {
    let name = RoleName::parse("name", &request.name)?;
    service.write(call, move |tx, context| role::delete(tx, context, &name)).await?;
    Ok(v1::DeleteRoleResponse {})
}

/// Name, row and revision in a request. What is in bounds is the domain's to say.
fn parse(role: Option<v1::Role>) -> Result<(RoleName, RoleRow, u64), CoreError> {
    let role = role.ok_or_else(|| CoreError::invalid("role", "it is needed"))?;
    let row = RoleRow {
        description: role.description,
        allow: role.allow.map(conditions_in),
        deny: role.deny.map(conditions_in),
        options: role.options.map(options_in).transpose()?,
        built_in: false,
    };
    Ok((RoleName::parse("role.name", &role.name)?, row, role.revision))
}

fn conditions_in(conditions: v1::RoleConditions) -> ConditionsRow {
    let rule = |rule: v1::RoleRule| RuleRow { resources: rule.resources, verbs: rule.verbs };
    let requests = |rules: v1::RequestRules| RequestRulesRow {
        request_roles: rules.request_roles,
        review_roles: rules.review_roles,
        approvals: rules.approvals,
    };
    let labels = conditions.node_labels.into_iter();
    ConditionsRow {
        logins: conditions.logins,
        node_labels: labels.map(|(key, strings)| (key, StringsRow { values: strings.values })).collect(),
        rules: conditions.rules.into_iter().map(rule).collect(),
        requests: conditions.requests.map(requests),
    }
}

fn options_in(options: v1::RoleOptions) -> Result<RoleOptionsRow, CoreError> {
    let ttl = options.max_session_ttl.map(|ttl| convert::duration_in("role.options.max_session_ttl", ttl));
    let milliseconds = |ttl: Duration| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    Ok(RoleOptionsRow {
        max_session_ttl_ms: ttl.transpose()?.map(milliseconds),
        permit_pty: options.permit_pty,
        permit_port_forwarding: options.permit_port_forwarding,
        permit_agent_forwarding: options.permit_agent_forwarding,
        permit_x11_forwarding: options.permit_x11_forwarding,
        source_addresses: options.source_addresses,
        require_mfa: options.require_mfa,
    })
}

fn reply(name: RoleName, row: RoleRow, revision: u64) -> v1::Role {
    v1::Role {
        name: name.into(),
        description: row.description,
        allow: row.allow.map(conditions_out),
        deny: row.deny.map(conditions_out),
        options: row.options.map(options_out),
        built_in: row.built_in,
        revision,
    }
}

fn conditions_out(row: ConditionsRow) -> v1::RoleConditions {
    let rule = |rule: RuleRow| v1::RoleRule { resources: rule.resources, verbs: rule.verbs };
    let requests = |rules: RequestRulesRow| v1::RequestRules {
        request_roles: rules.request_roles,
        review_roles: rules.review_roles,
        approvals: rules.approvals,
    };
    let labels = row.node_labels.into_iter();
    let node_labels: BTreeMap<_, _> =
        labels.map(|(key, strings)| (key, v1::Strings { values: strings.values })).collect();
    v1::RoleConditions {
        logins: row.logins,
        node_labels,
        rules: row.rules.into_iter().map(rule).collect(),
        requests: row.requests.map(requests),
    }
}

fn options_out(row: RoleOptionsRow) -> v1::RoleOptions {
    v1::RoleOptions {
        max_session_ttl: row.max_session_ttl_ms.map(|ttl| convert::duration_out(Duration::from_millis(ttl))),
        permit_pty: row.permit_pty,
        permit_port_forwarding: row.permit_port_forwarding,
        permit_agent_forwarding: row.permit_agent_forwarding,
        permit_x11_forwarding: row.permit_x11_forwarding,
        source_addresses: row.source_addresses,
        require_mfa: row.require_mfa,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conditions(mark: &str) -> v1::RoleConditions {
        v1::RoleConditions {
            logins: vec![format!("{mark}-login")],
            node_labels: [("env".to_owned(), v1::Strings { values: vec![format!("{mark}-env")] })].into(),
            rules: vec![v1::RoleRule {
                resources: vec![format!("{mark}-resource")],
                verbs: vec!["list".into()],
            }],
            requests: Some(v1::RequestRules {
                request_roles: vec![format!("{mark}-request")],
                review_roles: vec![format!("{mark}-review")],
                approvals: 2,
            }),
        }
    }

    fn role() -> v1::Role {
        v1::Role {
            name: "dev".into(),
            description: "for people".into(),
            allow: Some(conditions("allow")),
            deny: Some(conditions("deny")),
            options: Some(v1::RoleOptions {
                max_session_ttl: Some(prost_types::Duration { seconds: 61, nanos: 5_000_000 }),
                permit_pty: Some(false),
                permit_port_forwarding: Some(true),
                permit_agent_forwarding: None,
                permit_x11_forwarding: Some(true),
                source_addresses: vec!["10.0.0.0/8".into()],
                require_mfa: true,
            }),
            built_in: false,
            revision: 9,
        }
    }

    #[test]
    fn every_field_of_a_role_comes_back() {
        let (name, row, revision) = parse(Some(role())).unwrap();
        assert_eq!(row.options.as_ref().unwrap().max_session_ttl_ms, Some(61_005));
        assert_eq!(reply(name, row, revision), role());
        let (name, row, revision) =
            parse(Some(v1::Role { name: "dev".into(), ..v1::Role::default() })).unwrap();
        assert_eq!(reply(name, row, revision), v1::Role { name: "dev".into(), ..v1::Role::default() });
    }

    #[test]
    fn nobody_makes_a_role_built_in() {
        let (_, row, _) = parse(Some(v1::Role { built_in: true, ..role() })).unwrap();
        assert!(!row.built_in);
    }

    #[test]
    fn what_is_wrong_with_a_role_is_named() {
        let field = |role| match parse(role) {
            Err(CoreError::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(field(None), "role");
        assert_eq!(field(Some(v1::Role::default())), "role.name");
        let ttl = Some(prost_types::Duration { seconds: -1, nanos: 0 });
        let options = Some(v1::RoleOptions { max_session_ttl: ttl, ..v1::RoleOptions::default() });
        assert_eq!(field(Some(v1::Role { options, ..role() })), "role.options.max_session_ttl");
    }
}
