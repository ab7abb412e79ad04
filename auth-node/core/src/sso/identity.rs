//! Who somebody is here, by what a provider says: its name, and what its connector gives for its claims. What is mapped to
//! nothing is nobody.

use std::collections::BTreeSet;

use super::Claims;
use crate::{
    evaluate::Traits,
    names::{RoleName, UserName},
    tables::{ClaimMappingRow, ConnectorRow, GithubRow, ProviderRow, StringsRow},
    user::{Grants, check_grants},
};

/// The claim that names a user where the connector names none (OpenID Connect Core, section 5.1).
const USERNAME: &str = "preferred_username";
/// And that of GitHub.
const GITHUB_LOGIN: &str = "login";
/// Claims of GitHub by which its connector lets somebody in.
const ORGANIZATIONS: &str = "organizations";
const TEAMS: &str = "teams";
/// A value that stands for any.
const ANY: &str = "*";
/// An address, and whether the provider has seen that it is the user's (OpenID Connect Core, section 5.1).
const EMAIL: &str = "email";
const EMAIL_VERIFIED: &str = "email_verified";
/// What is of the token, and says nothing of the user: no trait.
const OF_THE_TOKEN: [&str; 13] = [
    "iss",
    "sub",
    "aud",
    "exp",
    "nbf",
    "iat",
    "jti",
    "nonce",
    "azp",
    "auth_time",
    "at_hash",
    "c_hash",
    "sid",
];

/// Somebody, and what it gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) name: UserName,
    pub(super) grants: Grants,
    /// Claims that are too large, or have no name of a trait: they are none of its traits.
    pub(super) left_out: Vec<String>,
}

/// Tells who somebody is; or why it is nobody, for the audit log.
pub(super) fn of(connector: &ConnectorRow, claims: &Claims) -> Result<Identity, String> {
    let (claims, username) = match &connector.provider {
        Some(ProviderRow::Oidc(oidc)) => {
            let named = if oidc.username_claim.is_empty() { USERNAME } else { &oidc.username_claim };
            (of_oidc(claims), named)
        }
        Some(ProviderRow::Github(github)) => (of_github(github, claims)?, GITHUB_LOGIN),
        Some(ProviderRow::Saml(_)) | None => return Err("nobody logs in by such a connector".into()),
    };
    let name = name(&claims, username)?;
    let folded = matches!(connector.provider, Some(ProviderRow::Github(_)));
    let roles = roles(&connector.mappings, &claims, folded)?;
    let (traits, left_out) = traits(&claims);
    let grants = Grants { roles, traits };
    check_grants("user", &grants).map_err(|error| error.to_string())?;
    Ok(Identity { name, grants, left_out })
}

/// An address that is not known to be the user's says nothing: anybody can write down another's.
fn of_oidc(claims: &Claims) -> Claims {
    let mut claims = claims.clone();
    let is_verified = claims.get(EMAIL_VERIFIED).is_some_and(|values| *values == ["true"]);
    if !is_verified {
        claims.remove(EMAIL);
    }
    claims
}

/// Organisations that the connector does not name count for nothing, nor do their teams: anybody can make one. Names are the
/// same in any case.
fn of_github(github: &GithubRow, claims: &Claims) -> Result<Claims, String> {
    let named = |organization: &str| {
        github.organizations.iter().any(|known| known.eq_ignore_ascii_case(organization))
    };
    let kept = |claim: &str| {
        let values = claims.get(claim).map(Vec::as_slice).unwrap_or_default();
        let counts = |value: &&String| named(value.split('/').next().unwrap_or_default());
        values.iter().filter(counts).map(|value| value.to_ascii_lowercase()).collect::<Vec<_>>()
    };
    let (organizations, teams) = (kept(ORGANIZATIONS), kept(TEAMS));
    if organizations.is_empty() {
        return Err("it is a member of none of the connector's organisations".into());
    }
    let mut claims = claims.clone();
    claims.insert(ORGANIZATIONS.into(), organizations);
    claims.insert(TEAMS.into(), teams);
    Ok(claims)
}

fn name(claims: &Claims, claim: &str) -> Result<UserName, String> {
    let value = match claims.get(claim).map(Vec::as_slice) {
        Some([value]) => value,
        Some([_, _, ..]) => return Err(format!("claim {claim}, which names the user, has several values")),
        Some([]) | None if claim == EMAIL => {
            return Err("claim email, which names the user, is missing, or not said to be verified".into());
        }
        Some([]) | None => return Err(format!("claim {claim}, which names the user, is missing")),
    };
    UserName::parse(claim, value)
        .map_err(|_| format!("claim {claim} has {value:?}, which cannot be a name here"))
}

/// All roles that the mappings give, at least one.
fn roles(mappings: &[ClaimMappingRow], claims: &Claims, folded: bool) -> Result<BTreeSet<RoleName>, String> {
    let same = |wanted: &str, value: &String| {
        wanted == ANY || wanted == value || (folded && wanted.eq_ignore_ascii_case(value))
    };
    let matches = |mapping: &&ClaimMappingRow| {
        claims
            .get(&mapping.claim)
            .is_some_and(|values| values.iter().any(|value| same(&mapping.value, value)))
    };
    let given = mappings.iter().filter(matches).flat_map(|mapping| &mapping.roles);
    let roles: BTreeSet<_> = given
        .map(|role| RoleName::parse("connector.mappings", role).map_err(|error| error.to_string()))
        .collect::<Result<_, _>>()?;
    if roles.is_empty() {
        return Err("none of its claims is mapped to a role".into());
    }
    Ok(roles)
}

/// Claims as traits, as many as fit; and those that do not.
fn traits(claims: &Claims) -> (Traits, Vec<String>) {
    let (mut grants, mut left_out) = (Grants::default(), Vec::new());
    for (name, values) in claims.iter().filter(|(name, _)| !OF_THE_TOKEN.contains(&name.as_str())) {
        grants.traits.insert(name.clone(), StringsRow { values: values.clone() });
        if check_grants("user", &grants).is_err() {
            grants.traits.remove(name);
            left_out.push(name.clone());
        }
    }
    (grants.traits, left_out)
}
