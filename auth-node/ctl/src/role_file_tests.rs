use super::*;

const FULL: &str = r#"
kind: role
version: v1
metadata:
  name: developer
  description: Test systems
  revision: 7
spec:
  allow:
    logins: [dev, "{{internal.logins}}"]
    node_labels:
      env: [dev, test]
      team: red
      "*": "*"
    rules:
      - resources: [users]
        verbs: [list, read]
    requests:
      request_roles: [admin]
      approvals: 2
  deny:
    logins: [root]
  options:
    max_session_ttl: 8h
    permit_pty: false
    permit_port_forwarding: true
    source_addresses: [10.0.0.0/8]
    require_mfa: true
"#;

fn refused(text: &str) -> String {
    let error = RoleFile::parse(text).unwrap_err();
    assert!(error.is::<Usage>());
    error.to_string()
}

fn minimal(spec: &str) -> String {
    format!("kind: role\nmetadata: {{name: r}}\nspec: {spec}\n")
}

#[test]
fn every_field_arrives() {
    let role = Role::from(RoleFile::parse(FULL).unwrap());
    assert_eq!((role.name.as_str(), role.revision, role.built_in), ("developer", 7, false));
    let allow = role.allow.unwrap();
    assert_eq!(allow.logins, ["dev", "{{internal.logins}}"]);
    assert_eq!(allow.node_labels["env"].values, ["dev", "test"]);
    assert_eq!(allow.node_labels["team"].values, ["red"]);
    assert_eq!(allow.node_labels["*"].values, ["*"]);
    assert_eq!(allow.rules[0].verbs, ["list", "read"]);
    assert_eq!(allow.requests.unwrap().approvals, 2);
    assert_eq!(role.deny.unwrap().logins, ["root"]);
    let options = role.options.unwrap();
    assert_eq!(options.max_session_ttl.unwrap().seconds, 8 * 3600);
    assert_eq!((options.permit_pty, options.permit_port_forwarding), (Some(false), Some(true)));
    assert_eq!((options.permit_agent_forwarding, options.require_mfa), (None, true));
    assert_eq!(options.source_addresses, ["10.0.0.0/8"]);
}

#[test]
fn what_is_printed_can_be_read_again() {
    let role = Role::from(RoleFile::parse(FULL).unwrap());
    let printed = serde_norway::to_string(&RoleFile::from(role.clone())).unwrap();
    assert_eq!(Role::from(RoleFile::parse(&printed).unwrap()), role);
    let json = serde_json::to_string(&RoleFile::from(role.clone())).unwrap();
    assert_eq!(Role::from(RoleFile::parse(&json).unwrap()), role);
}

#[test]
fn a_misspelt_field_is_refused_wherever_it_stands() {
    for spec in [
        "{alow: {}}",
        "{allow: {login: [root]}}",
        "{deny: {nodelabels: {a: b}}}",
        "{options: {max_ttl: 8h}}",
        "{allow: {rules: [{resources: [users], verbs: [read], when: never}]}}",
        "{allow: {requests: {roles: [a]}}}",
    ] {
        assert!(refused(&minimal(spec)).contains("unknown field"), "{spec}");
    }
    assert!(refused("kind: role\nmetadata: {name: r}\nspec: {}\nstatus: {}\n").contains("unknown field"));
}

#[test]
fn another_kind_or_version_is_refused() {
    assert!(RoleFile::parse(&minimal("{}")).is_ok());
    refused("kind: user\nmetadata: {name: r}\nspec: {}\n");
    refused("kind: role\nversion: v2\nmetadata: {name: r}\nspec: {}\n");
    refused("kind: role\nspec: {}\n");
    refused("kind: role\nmetadata: {}\nspec: {}\n");
    refused("");
    refused("[]");
    refused("{\"kind\": \"role\"");
}

#[test]
fn a_label_given_twice_is_refused() {
    let twice = refused(&minimal("{deny: {node_labels: {env: dev, env: prod}}}"));
    assert!(twice.contains("twice") || twice.contains("duplicate"), "{twice}");
    refused(
        r#"{"kind":"role","metadata":{"name":"r"},"spec":{"deny":{"node_labels":{"env":"a","env":"b"}}}}"#,
    );
}

#[test]
fn durations_are_human_and_positive() {
    for wrong in ["0s", "8", "-1h", "forever", "[]"] {
        refused(&minimal(&format!("{{options: {{max_session_ttl: {wrong}}}}}")));
    }
}

#[test]
fn a_value_of_the_wrong_type_is_refused() {
    refused(&minimal("{allow: {logins: root}}"));
    refused(&minimal("{allow: {node_labels: {env: {a: b}}}}"));
    refused(&minimal("{options: {permit_pty: sometimes}}"));
}

/// What is printed is a file, also of a role with a text that is not to be seen as it is.
#[test]
fn a_role_with_hidden_characters_is_read_again_as_it_was() {
    let role = Role { name: "dev".into(), description: "a\u{202e}b\u{e0041}c".into(), ..Default::default() };
    let file = RoleFile::from(role);
    for printed in [crate::output::yaml(&file).unwrap(), crate::output::json(&file).unwrap()] {
        assert!(!printed.chars().any(crate::hidden::is_hidden), "{printed}");
        assert_eq!(RoleFile::parse(&printed).unwrap(), file);
    }
}
