//! What the audit log says of a role: everything that decides who gets where.

use crate::{
    audit,
    tables::{ConditionsRow, RequestRulesRow, RoleOptionsRow, RoleRow, RuleRow},
};

/// Names of the fields of one side, and of the options.
const ALLOW: [&str; 6] =
    ["allow_logins", "allow_node_labels", "allow_rules", "allow_request", "allow_review", "allow_approvals"];
const DENY: [&str; 6] =
    ["deny_logins", "deny_node_labels", "deny_rules", "deny_request", "deny_review", "deny_approvals"];

/// What a new role says; nothing of what it leaves out.
pub(super) fn content(role: &RoleRow) -> Vec<(&'static str, String)> {
    shown(role).into_iter().filter(|(_, value)| !value.is_empty()).collect()
}

/// What is different.
pub(super) fn changes(before: &RoleRow, after: &RoleRow) -> Vec<(&'static str, String)> {
    audit::changes(shown(before), shown(after))
}

fn shown(role: &RoleRow) -> Vec<(&'static str, String)> {
    let (none, unset) = (ConditionsRow::default(), RoleOptionsRow::default());
    let mut fields = vec![("description", role.description.clone())];
    fields.extend(ALLOW.into_iter().zip(conditions(role.allow.as_ref().unwrap_or(&none))));
    fields.extend(DENY.into_iter().zip(conditions(role.deny.as_ref().unwrap_or(&none))));
    fields.extend(options(role.options.as_ref().unwrap_or(&unset)));
    fields
}

/// In the order of [`ALLOW`] and [`DENY`].
fn conditions(of: &ConditionsRow) -> [String; 6] {
    let labels = of.node_labels.iter().map(|(key, values)| format!("{key}={}", values.values.join("|")));
    let rule = |rule: &RuleRow| format!("{}:{}", rule.resources.join("|"), rule.verbs.join("|"));
    let none = RequestRulesRow::default();
    let requests = of.requests.as_ref().unwrap_or(&none);
    [
        of.logins.join(","),
        labels.collect::<Vec<_>>().join(","),
        of.rules.iter().map(rule).collect::<Vec<_>>().join(","),
        requests.request_roles.join(","),
        requests.review_roles.join(","),
        if requests.approvals == 0 { String::new() } else { requests.approvals.to_string() },
    ]
}

fn options(of: &RoleOptionsRow) -> [(&'static str, String); 7] {
    let said = |value: Option<bool>| value.map(|value| value.to_string()).unwrap_or_default();
    [
        ("max_session_ttl_ms", of.max_session_ttl_ms.map(|ttl| ttl.to_string()).unwrap_or_default()),
        ("permit_pty", said(of.permit_pty)),
        ("permit_port_forwarding", said(of.permit_port_forwarding)),
        ("permit_agent_forwarding", said(of.permit_agent_forwarding)),
        ("permit_x11_forwarding", said(of.permit_x11_forwarding)),
        ("source_addresses", of.source_addresses.join(",")),
        ("require_mfa", if of.require_mfa { "true".to_owned() } else { String::new() }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::strings;

    fn role(logins: &[&str], labels: &[(&str, &[&str])]) -> RoleRow {
        let labels = labels.iter().map(|(key, values)| ((*key).to_owned(), strings(values)));
        let allow = ConditionsRow {
            logins: strings(logins).values,
            node_labels: labels.collect(),
            rules: vec![RuleRow {
                resources: strings(&["audit"]).values,
                verbs: strings(&["read", "list"]).values,
            }],
            requests: Some(RequestRulesRow {
                request_roles: strings(&["root"]).values,
                review_roles: strings(&["dev"]).values,
                approvals: 2,
            }),
        };
        RoleRow { allow: Some(allow), ..RoleRow::default() }
    }

    #[test]
    fn a_new_role_is_told_with_all_that_it_says() {
        let options = RoleOptionsRow {
            max_session_ttl_ms: Some(5),
            permit_pty: Some(false),
            permit_port_forwarding: Some(true),
            permit_agent_forwarding: Some(true),
            permit_x11_forwarding: Some(false),
            source_addresses: strings(&["10.0.0.0/8"]).values,
            require_mfa: true,
        };
        let deny = ConditionsRow { logins: strings(&["toor"]).values, ..ConditionsRow::default() };
        let told = role(&["root", "ann"], &[("env", &["dev", "test"]), ("os", &["*"])]);
        let told = RoleRow { description: "d".into(), deny: Some(deny), options: Some(options), ..told };
        let expected = [
            ("description", "d"),
            ("allow_logins", "root,ann"),
            ("allow_node_labels", "env=dev|test,os=*"),
            ("allow_rules", "audit:read|list"),
            ("allow_request", "root"),
            ("allow_review", "dev"),
            ("allow_approvals", "2"),
            ("deny_logins", "toor"),
            ("max_session_ttl_ms", "5"),
            ("permit_pty", "false"),
            ("permit_port_forwarding", "true"),
            ("permit_agent_forwarding", "true"),
            ("permit_x11_forwarding", "false"),
            ("source_addresses", "10.0.0.0/8"),
            ("require_mfa", "true"),
        ];
        assert_eq!(content(&told), expected.map(|(name, value)| (name, value.to_owned())));
        assert_eq!(content(&RoleRow::default()), []);
    }

    #[test]
    fn a_change_is_told_by_both_sides_and_what_stays_is_not() {
        let (before, after) = (role(&["ann"], &[]), role(&["ann", "root"], &[("*", &["*"])]));
        let expected = [("allow_logins", "ann -> ann,root"), ("allow_node_labels", "unset -> *=*")];
        assert_eq!(changes(&before, &after), expected.map(|(name, value)| (name, value.to_owned())));
        assert_eq!(changes(&after, &after), []);
        let long = role(&["ü".repeat(400).as_str()], &[]);
        let (_, value) = changes(&before, &long).remove(0);
        assert!(value.starts_with("ann -> üü") && value.ends_with('…') && value.len() < 1024, "{value}");
    }
}
