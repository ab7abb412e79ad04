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
    use crate::{
        role,
        testing::{Cluster, role_name, strings},
    };

    fn with(logins: &[&str], labels: &[(&str, &[&str])]) -> RoleRow {
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
        let told = with(&["root", "ann"], &[("env", &["dev", "test"]), ("os", &["*"])]);
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
        let (before, after) = (with(&["ann"], &[]), with(&["ann", "root"], &[("*", &["*"])]));
        let expected = [("allow_logins", "ann -> ann,root"), ("allow_node_labels", "unset -> *=*")];
        assert_eq!(changes(&before, &after), expected.map(|(name, value)| (name, value.to_owned())));
        assert_eq!(changes(&after, &after), []);
    }

    #[test]
    fn nothing_is_hidden_by_what_is_written_around_it() {
        let names: Vec<String> = (0..255).map(|n| format!("service-account-{n:015}")).collect();
        let mut logins: Vec<&str> = names.iter().map(String::as_str).collect();
        let before = with(&logins, &[]);
        logins.push("root");
        let after = with(&logins, &[]);
        let mut cluster = Cluster::new();
        cluster.add_role("r", &before);
        cluster.admin(|tx, context| role::update(tx, context, &role_name("r"), 0, &after)).unwrap();
        let record = cluster.last_audit();
        let (old, new) = record.fields["allow_logins"].split_once(" -> ").unwrap();
        assert_eq!((old, new), (names.join(",").as_str(), logins.join(",").as_str()));
    }
}
