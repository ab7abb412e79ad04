//! What a set of roles, together with a user's traits, allows. A pure function of a set: the order of the roles does not
//! matter, deny wins over allow, and of the options the strictest wins.
//!
//! A login is allowed on a node when some role allows the login and the node's labels, and no role denies them. The
//! deny side of a role denies its logins on the nodes that its labels match; without labels, on all nodes; without
//! logins, every login there.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use mezite_pki::ssh::UserExtensions;

use crate::{
    context::Role,
    host_login::{HostLogin, is_login},
    labels::Labels,
    network::SourceAddresses,
    rules::{self, Resource, Verb},
    tables::{ConditionsRow, RoleOptionsRow, StringsRow},
};

/// Life of a user certificate when a role does not say.
pub const DEFAULT_MAX_TTL: Duration = Duration::from_secs(12 * 60 * 60);

/// Stands for every label, and every value.
pub(crate) const ANY: &str = "*";

/// Values of a user, by name, for templates in roles.
pub type Traits = BTreeMap<String, StringsRow>;

/// What a set of roles allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    grants: BTreeSet<Grant>,
    denials: BTreeSet<Denial>,
    allowed_rules: BTreeSet<(Resource, Verb)>,
    denied_rules: BTreeSet<(Resource, Verb)>,
    options: Options,
}

/// The bounds of what certificates a set of roles gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Longest life: the shortest that a role allows.
    pub max_ttl: Duration,
    /// What a session may do: what every role permits. Without a role, nothing.
    pub extensions: UserExtensions,
    /// From where a certificate may be used: what all roles allow.
    pub source_addresses: SourceAddresses,
    /// Whether a role asks for a second factor.
    pub require_mfa: bool,
}

/// Which nodes, by their labels.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Nodes {
    None,
    All,
    /// Those that have each of these labels with one of its values.
    Labelled(BTreeMap<String, BTreeSet<String>>),
}

/// Logins that one role allows, and where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Grant {
    logins: BTreeSet<String>,
    nodes: Nodes,
    /// Only on these of them, by agent id; `None`: on all.
    only: Option<BTreeSet<String>>,
}

impl Grant {
    fn of(allow: &ConditionsRow, traits: &Traits, only: Option<BTreeSet<String>>) -> Self {
        Self { logins: logins(allow, traits), nodes: Nodes::of(&allow.node_labels), only }
    }

    fn reaches(&self, id: &str, labels: &Labels) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(id)) && self.nodes.match_labels(labels)
    }
}

/// Logins that one role denies, and where. `None`: every login.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Denial {
    logins: Option<BTreeSet<String>>,
    nodes: Nodes,
}

impl Nodes {
    fn of(labels: &BTreeMap<String, StringsRow>) -> Self {
        if labels.is_empty() {
            return Self::None;
        }
        if labels.len() == 1 && labels.get(ANY).is_some_and(|strings| strings.values == [ANY]) {
            return Self::All;
        }
        let values =
            |(key, strings): (&String, &StringsRow)| (key.clone(), strings.values.iter().cloned().collect());
        Self::Labelled(labels.iter().map(values).collect())
    }

    fn match_labels(&self, labels: &Labels) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Labelled(wanted) => {
                wanted.iter().all(|(key, values)| labels.get(key).is_some_and(|value| values.contains(value)))
            }
        }
    }
}

impl Denial {
    fn names(&self, login: &str) -> bool {
        self.logins.as_ref().is_none_or(|logins| logins.contains(login))
    }
}

impl Access {
    /// What these roles allow to somebody with these traits.
    pub fn of(roles: &[Role], traits: &Traits) -> Self {
        let mut access = Self {
            grants: BTreeSet::new(),
            denials: BTreeSet::new(),
            allowed_rules: BTreeSet::new(),
            denied_rules: BTreeSet::new(),
            options: Options::of(roles),
        };
        for role in roles {
            if let Some(allow) = &role.row.allow {
                access.grants.insert(Grant::of(allow, traits, None));
                access.allowed_rules.extend(rules::pairs(&allow.rules));
            }
            if let Some(deny) = &role.row.deny {
                access.denials.extend(denial(deny, traits));
                access.denied_rules.extend(rules::pairs(&deny.rules));
            }
        }
        access
    }

    /// The same without these logins, on any node.
    #[must_use]
    pub fn without(mut self, logins: BTreeSet<String>) -> Self {
        if !logins.is_empty() {
            self.denials.insert(Denial { logins: Some(logins), nodes: Nodes::All });
        }
        self
    }

    /// What somebody with these traits is allowed by its own roles and, beside them, by roles that were granted on some
    /// nodes alone (none: wherever they reach). The granted ones open no methods of the API; what they deny, and their
    /// bounds, count like those of the own ones.
    pub fn with_granted(own: &[Role], traits: &Traits, granted: &[(&[Role], &BTreeSet<String>)]) -> Self {
        let mut access = Self::of(own, traits);
        for (roles, nodes) in granted {
            let only = (!nodes.is_empty()).then(|| (*nodes).clone());
            for role in *roles {
                let allow = role.row.allow.as_ref();
                access.grants.extend(allow.map(|allow| Grant::of(allow, traits, only.clone())));
                access.denials.extend(role.row.deny.as_ref().and_then(|deny| denial(deny, traits)));
            }
        }
        let all = own.iter().chain(granted.iter().flat_map(|(roles, _)| roles.iter()));
        access.options = Options::of(&all.cloned().collect::<Vec<_>>());
        access
    }

    /// The logins that are allowed on a node with this agent id and these labels.
    pub fn logins_on(&self, id: &str, labels: &Labels) -> BTreeSet<String> {
        let here = self.grants.iter().filter(|grant| grant.reaches(id, labels));
        let denials: Vec<_> =
            self.denials.iter().filter(|denial| denial.nodes.match_labels(labels)).collect();
        let granted = here.flat_map(|grant| &grant.logins);
        granted.filter(|login| !denials.iter().any(|denial| denial.names(login))).cloned().collect()
    }

    /// The logins that are allowed on every node, whatever its labels: some role allows them on all nodes, and none
    /// denies them on any.
    pub fn logins_everywhere(&self) -> BTreeSet<String> {
        let everywhere = self.grants.iter().filter(|grant| grant.nodes == Nodes::All && grant.only.is_none());
        let granted = everywhere.flat_map(|grant| &grant.logins);
        granted.filter(|login| !self.denials.iter().any(|denial| denial.names(login))).cloned().collect()
    }

    /// The logins that may be allowed on some node: those of all roles, without the ones that are denied on all nodes.
    pub fn all_logins(&self) -> BTreeSet<String> {
        let somewhere = self.grants.iter().filter(|grant| grant.nodes != Nodes::None);
        let denied =
            |login: &str| self.denials.iter().any(|denial| denial.nodes == Nodes::All && denial.names(login));
        somewhere.flat_map(|grant| &grant.logins).filter(|login| !denied(login)).cloned().collect()
    }

    /// The bounds of certificates.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Whether a rule allows this, and none denies it.
    pub fn may(&self, resource: Resource, verb: Verb) -> bool {
        let asked = (resource, verb);
        self.allowed_rules.contains(&asked) && !self.denied_rules.contains(&asked)
    }
}

/// The logins of one side of a role, templates filled in. A trait's value that cannot be a login is left out.
fn logins(conditions: &ConditionsRow, traits: &Traits) -> BTreeSet<String> {
    let mut logins = BTreeSet::new();
    for entry in &conditions.logins {
        match HostLogin::parse(entry) {
            Some(HostLogin::Literal(login)) => drop(logins.insert(login.to_owned())),
            Some(HostLogin::Trait(name)) => {
                let values = traits.get(name).map(|strings| strings.values.as_slice()).unwrap_or_default();
                logins.extend(values.iter().filter(|value| is_login(value)).cloned());
            }
            None => {}
        }
    }
    logins
}

fn denial(deny: &ConditionsRow, traits: &Traits) -> Option<Denial> {
    // Templates that nobody's traits fill deny no login; only a side without entries means every login.
    let named = (!deny.logins.is_empty()).then(|| logins(deny, traits));
    let nodes = if deny.node_labels.is_empty() { Nodes::All } else { Nodes::of(&deny.node_labels) };
    (named.is_some() || !deny.node_labels.is_empty()).then_some(Denial { logins: named, nodes })
}

impl Options {
    fn of(roles: &[Role]) -> Self {
        let default = RoleOptionsRow::default();
        let options = || roles.iter().map(|role| role.row.options.as_ref().unwrap_or(&default));
        let ttl = |options: &RoleOptionsRow| {
            options.max_session_ttl_ms.map_or(DEFAULT_MAX_TTL, Duration::from_millis)
        };
        let all = |permits: fn(&RoleOptionsRow) -> bool| !roles.is_empty() && options().all(permits);
        Self {
            max_ttl: options().map(ttl).min().unwrap_or(DEFAULT_MAX_TTL),
            extensions: UserExtensions {
                pty: all(|options| options.permit_pty.unwrap_or(true)),
                port_forwarding: all(|options| options.permit_port_forwarding.unwrap_or(false)),
                agent_forwarding: all(|options| options.permit_agent_forwarding.unwrap_or(false)),
                x11_forwarding: all(|options| options.permit_x11_forwarding.unwrap_or(false)),
            },
            source_addresses: options()
                .map(|options| SourceAddresses::of(&options.source_addresses))
                .fold(SourceAddresses::Anywhere, SourceAddresses::and),
            require_mfa: options().any(|options| options.require_mfa),
        }
    }
}

#[cfg(test)]
#[path = "evaluate_tests.rs"]
mod tests;
