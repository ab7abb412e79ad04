//! The file form of a role, YAML or JSON.
//!
//! ```yaml
//! kind: role
//! version: v1
//! metadata:
//!   name: developer
//!   description: Test systems, by day
//! spec:
//!   allow:
//!     logins: [dev, "{{internal.logins}}"]
//!     node_labels:
//!       env: [dev, test]
//!   deny:
//!     node_labels:
//!       team: secret
//!   options:
//!     max_session_ttl: 8h
//!     permit_port_forwarding: true
//! ```
//!
//! Field names are those of the API. A field that is not known is an error: a misspelt restriction must not become
//! no restriction.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use anyhow::Result;
use mezite_proto::v1::{RequestRules, Role, RoleConditions, RoleOptions, RoleRule, Strings};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, MapAccess, Visitor},
};

use crate::{
    args::{Human, proto_duration},
    exit::Usage,
    normal,
};

/// A role, as a file says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RoleFile {
    kind: Kind,
    #[serde(default)]
    version: Version,
    metadata: Metadata,
    spec: Spec,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Role,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Version {
    #[default]
    V1,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    description: String,
    /// In an update: the revision that it replaces; absent: whichever it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    /// Printed, and ignored when read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    built_in: bool,
}

#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Spec {
    #[serde(default)]
    allow: Conditions,
    #[serde(default, skip_serializing_if = "Conditions::is_empty")]
    deny: Conditions,
    #[serde(default)]
    options: Options,
}

#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Conditions {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    logins: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "unique_keys")]
    node_labels: BTreeMap<String, Values>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    rules: Vec<Rule>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    requests: Option<Requests>,
}

impl Conditions {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One value, or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
enum Values {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    resources: Vec<String>,
    verbs: Vec<String>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Requests {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    request_roles: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    review_roles: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    approvals: Option<u32>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_session_ttl: Option<Human>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    permit_pty: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    permit_port_forwarding: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    permit_agent_forwarding: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    permit_x11_forwarding: Option<bool>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    source_addresses: Vec<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    require_mfa: bool,
}

/// A map in which a key given twice is an error: which of the two would count?
pub(crate) fn unique_keys<'de, D: Deserializer<'de>, V: Deserialize<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, V>, D::Error> {
    struct Unique<V>(PhantomData<V>);
    impl<'de, V: Deserialize<'de>> Visitor<'de> for Unique<V> {
        type Value = BTreeMap<String, V>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
            let mut map = BTreeMap::new();
            while let Some((key, value)) = access.next_entry::<String, V>()? {
                if map.contains_key(&key) {
                    return Err(A::Error::custom(format_args!("`{key}` is given twice")));
                }
                map.insert(key, value);
            }
            Ok(map)
        }
    }
    deserializer.deserialize_map(Unique(PhantomData))
}

impl RoleFile {
    /// The role's name.
    pub(crate) fn name(&self) -> &str {
        &self.metadata.name
    }

    /// Reads a role, YAML or JSON.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        // JSON is read as such: its parser's messages fit it better.
        let parsed = if text.trim_start().starts_with('{') {
            serde_json::from_str(text).map_err(|error| error.to_string())
        } else {
            serde_norway::from_str(text).map_err(|error| error.to_string())
        };
        parsed.map_err(|error| Usage(format!("the role file cannot be read: {error}")).into())
    }
}

impl RoleFile {
    /// Brings it into the form in which it is compared.
    pub(crate) fn settle(&mut self) {
        self.metadata.name = normal::name(&self.metadata.name);
        self.spec.allow.settle();
        self.spec.deny.settle();
        normal::hosts(&mut self.spec.options.source_addresses);
    }
}

impl Conditions {
    fn settle(&mut self) {
        normal::set(&mut self.logins);
        for values in self.node_labels.values_mut() {
            let mut all = match std::mem::replace(values, Values::Many(Vec::new())) {
                Values::One(value) => vec![value],
                Values::Many(values) => values,
            };
            normal::set(&mut all);
            *values = Values::Many(all);
        }
        for rule in &mut self.rules {
            normal::set(&mut rule.resources);
            normal::set(&mut rule.verbs);
        }
        normal::set(&mut self.rules);
        if let Some(requests) = &mut self.requests {
            normal::names(&mut requests.request_roles);
            normal::names(&mut requests.review_roles);
            requests.approvals = requests.approvals.filter(|approvals| *approvals > 0);
        }
        self.requests = self.requests.take().filter(|requests| *requests != Requests::default());
    }
}

impl From<RoleFile> for Role {
    fn from(file: RoleFile) -> Self {
        Self {
            name: file.metadata.name,
            description: file.metadata.description,
            allow: Some(file.spec.allow.into()),
            deny: Some(file.spec.deny.into()),
            options: Some(file.spec.options.into()),
            built_in: false,
            revision: file.metadata.revision.unwrap_or_default(),
        }
    }
}

impl From<Role> for RoleFile {
    fn from(role: Role) -> Self {
        Self {
            kind: Kind::Role,
            version: Version::V1,
            metadata: Metadata {
                name: role.name,
                description: role.description,
                revision: Some(role.revision),
                built_in: role.built_in,
            },
            spec: Spec {
                allow: role.allow.unwrap_or_default().into(),
                deny: role.deny.unwrap_or_default().into(),
                options: role.options.unwrap_or_default().into(),
            },
        }
    }
}

impl From<Conditions> for RoleConditions {
    fn from(conditions: Conditions) -> Self {
        let values = |values| match values {
            Values::One(value) => Strings { values: vec![value] },
            Values::Many(values) => Strings { values },
        };
        let rule = |rule: Rule| RoleRule { resources: rule.resources, verbs: rule.verbs };
        Self {
            logins: conditions.logins,
            node_labels: conditions.node_labels.into_iter().map(|(key, some)| (key, values(some))).collect(),
            rules: conditions.rules.into_iter().map(rule).collect(),
            requests: conditions.requests.map(|requests| RequestRules {
                request_roles: requests.request_roles,
                review_roles: requests.review_roles,
                approvals: requests.approvals.unwrap_or_default(),
            }),
        }
    }
}

impl From<RoleConditions> for Conditions {
    fn from(conditions: RoleConditions) -> Self {
        let rule = |rule: RoleRule| Rule { resources: rule.resources, verbs: rule.verbs };
        let labels = conditions.node_labels.into_iter();
        Self {
            logins: conditions.logins,
            node_labels: labels.map(|(key, strings)| (key, Values::Many(strings.values))).collect(),
            rules: conditions.rules.into_iter().map(rule).collect(),
            requests: conditions.requests.filter(|requests| *requests != RequestRules::default()).map(
                |requests| Requests {
                    request_roles: requests.request_roles,
                    review_roles: requests.review_roles,
                    approvals: Some(requests.approvals).filter(|approvals| *approvals > 0),
                },
            ),
        }
    }
}

impl From<Options> for RoleOptions {
    fn from(options: Options) -> Self {
        Self {
            max_session_ttl: options.max_session_ttl.map(|ttl| proto_duration(ttl.0)),
            permit_pty: options.permit_pty,
            permit_port_forwarding: options.permit_port_forwarding,
            permit_agent_forwarding: options.permit_agent_forwarding,
            permit_x11_forwarding: options.permit_x11_forwarding,
            source_addresses: options.source_addresses,
            require_mfa: options.require_mfa,
        }
    }
}

impl From<RoleOptions> for Options {
    fn from(options: RoleOptions) -> Self {
        Self {
            max_session_ttl: Human::of(options.max_session_ttl),
            permit_pty: options.permit_pty,
            permit_port_forwarding: options.permit_port_forwarding,
            permit_agent_forwarding: options.permit_agent_forwarding,
            permit_x11_forwarding: options.permit_x11_forwarding,
            source_addresses: options.source_addresses,
            require_mfa: options.require_mfa,
        }
    }
}

#[cfg(test)]
#[path = "role_file_tests.rs"]
mod tests;
