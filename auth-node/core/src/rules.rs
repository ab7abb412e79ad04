//! What rules in roles speak of: resources of the API, and what may be done with them.

use std::collections::BTreeSet;

use crate::tables::RuleRow;

/// Stands for all resources, or all verbs.
const ALL: &str = "*";

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The word for it in a role.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            /// What a word in a role stands for: one, all, or, when it is not known here, none.
            pub fn named(word: &str) -> &'static [Self] {
                match word {
                    ALL => Self::ALL,
                    $($word => &[Self::$variant],)+
                    _ => &[],
                }
            }
        }
    };
}

words!(
    /// A resource of the API.
    Resource {
        /// Local users.
        Users = "users",
        /// Roles.
        Roles = "roles",
        /// Join tokens.
        Tokens = "tokens",
        /// Nodes.
        Nodes = "nodes",
        /// Login sessions.
        Sessions = "sessions",
        /// Session recordings.
        Recordings = "recordings",
        /// The audit log.
        Audit = "audit",
        /// Locks.
        Locks = "locks",
        /// Single sign-on connectors.
        Connectors = "connectors",
        /// Trusted clusters.
        TrustedClusters = "trusted_clusters",
        /// Agent identities.
        AgentIdentities = "agent_identities",
        /// Access requests.
        AccessRequests = "access_requests",
        /// The cluster's configuration.
        ClusterConfig = "cluster_config",
        /// Certificate authorities.
        Cas = "cas",
    }
);

words!(
    /// What is done with a resource.
    Verb {
        /// See which there are.
        List = "list",
        /// See one.
        Read = "read",
        /// Make one.
        Create = "create",
        /// Change one.
        Update = "update",
        /// Remove one.
        Delete = "delete",
    }
);

/// Every pair that rules name.
pub(crate) fn pairs(rules: &[RuleRow]) -> BTreeSet<(Resource, Verb)> {
    let of_rule = |rule: &RuleRow| {
        let verbs: BTreeSet<_> = rule.verbs.iter().flat_map(|word| Verb::named(word)).copied().collect();
        let resources: BTreeSet<_> =
            rule.resources.iter().flat_map(|word| Resource::named(word)).copied().collect();
        resources
            .into_iter()
            .flat_map(move |resource| verbs.clone().into_iter().map(move |verb| (resource, verb)))
    };
    rules.iter().flat_map(of_rule).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(resources: &[&str], verbs: &[&str]) -> RuleRow {
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        RuleRow { resources: owned(resources), verbs: owned(verbs) }
    }

    #[test]
    fn words_are_read_back_and_unknown_ones_name_nothing() {
        for &resource in Resource::ALL {
            assert_eq!(Resource::named(resource.word()), [resource]);
        }
        for &verb in Verb::ALL {
            assert_eq!(Verb::named(verb.word()), [verb]);
        }
        assert!(
            Resource::named("user").is_empty()
                && Resource::named("").is_empty()
                && Verb::named("LIST").is_empty()
        );
    }

    #[test]
    fn a_rule_is_every_pair_of_its_resources_and_verbs() {
        let audit = pairs(&[rule(&["audit", "sessions"], &["list", "read"])]);
        let expected = [
            (Resource::Sessions, Verb::List),
            (Resource::Sessions, Verb::Read),
            (Resource::Audit, Verb::List),
            (Resource::Audit, Verb::Read),
        ];
        assert_eq!(audit, expected.into());
        assert_eq!(pairs(&[rule(&["*"], &["*"])]).len(), Resource::ALL.len() * Verb::ALL.len());
        assert!(pairs(&[rule(&["audit"], &[]), rule(&["later"], &["list"])]).is_empty());
    }
}
