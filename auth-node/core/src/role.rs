//! Roles: what they may say, and their life. What a set of roles means is in `evaluate`.

mod record;

use prost::Message as _;
use store_txn::{Read, ReadExt, Transaction, TransactionExt, Versioned};

use crate::{
    Context, CoreError,
    audit::{self, EventType},
    context::Role,
    evaluate::ANY,
    host_login::HostLogin,
    labels::{self, Labels},
    mapped,
    names::RoleName,
    network::{MAX_NETWORKS, Network},
    page::{Page, PageRequest},
    revocation,
    rules::{Resource, Verb},
    tables::{
        ConditionsRow, RequestRulesRow, RoleKey, RoleMemberKey, RoleOptionsRow, RoleRow, RuleRow, StringsRow,
        TargetKind,
    },
};

const KIND: &str = "role";

/// Longest description, in bytes.
const MAX_DESCRIPTION: usize = 1024;
/// Most logins on one side of a role; as many as OpenSSH reads in one certificate.
const MAX_LOGINS: usize = 256;
/// Most labels on one side of a role.
const MAX_LABELS: usize = 64;
/// Most values of one label.
const MAX_VALUES: usize = 64;
/// Most rules on one side of a role.
const MAX_RULES: usize = 64;
/// Most words in one list of a rule.
const MAX_WORDS: usize = 32;
/// Most roles in one list of a role's access requests.
const MAX_REQUEST_ROLES: usize = 64;
/// Most approvals that a role can ask for.
const MAX_APPROVALS: u32 = 16;
/// Largest role, encoded, in bytes.
const MAX_BYTES: usize = 64 * 1024;
/// Shortest and longest `max_session_ttl`, in milliseconds: a minute, 7 days.
const TTL_MS: std::ops::RangeInclusive<u64> = 60_000..=7 * 24 * 60 * 60 * 1000;
/// Holders of a role that a refusal names.
const NAMED_HOLDERS: usize = 5;

/// A role as callers see it.
pub type VersionedRole = (RoleName, Versioned<RoleRow>);

/// The roles that come with a cluster: `admin`, `auditor`, `access`. Its creation writes them.
pub fn built_ins() -> [Role; 3] {
    let everywhere = || [(ANY.to_owned(), StringsRow { values: vec![ANY.to_owned()] })].into();
    let own_logins = || vec!["{{internal.logins}}".to_owned()];
    let rule = |resources: &[&str], verbs: &[&str]| {
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        vec![RuleRow { resources: owned(resources), verbs: owned(verbs) }]
    };
    let row = |description: &str, allow: ConditionsRow, options: Option<RoleOptionsRow>| RoleRow {
        description: description.to_owned(),
        allow: Some(allow),
        deny: None,
        options,
        built_in: true,
    };

    let admin = ConditionsRow {
        logins: own_logins(),
        node_labels: everywhere(),
        rules: rule(&[ANY], &[ANY]),
        requests: None,
    };
    let seen = [Resource::Audit.word(), Resource::Sessions.word(), Resource::Recordings.word()];
    let auditor =
        ConditionsRow { rules: rule(&seen, &[Verb::List.word(), Verb::Read.word()]), ..Default::default() };
    // It reaches no node, so it must not narrow what a user's other roles allow there.
    let no_limits = RoleOptionsRow {
        max_session_ttl_ms: Some(*TTL_MS.end()),
        permit_pty: Some(true),
        permit_port_forwarding: Some(true),
        permit_agent_forwarding: Some(true),
        permit_x11_forwarding: Some(true),
        ..RoleOptionsRow::default()
    };
    let access =
        ConditionsRow { logins: own_logins(), node_labels: everywhere(), ..ConditionsRow::default() };
    let logs_in = "Logs in on every node, as the logins of the user's trait `logins`";
    [
        Role {
            name: RoleName::admin(),
            row: row("Administers the cluster; logs in on every node", admin, None),
        },
        Role {
            name: RoleName::auditor(),
            row: row("Reads audit log, sessions, recordings", auditor, Some(no_limits)),
        },
        Role { name: RoleName::access(), row: row(logs_in, access, None) },
    ]
}

/// One role.
///
/// # Errors
/// [`CoreError::NotFound`], [`CoreError::Storage`].
pub fn get(state: &mut (impl Read + ?Sized), name: &RoleName) -> Result<Versioned<RoleRow>, CoreError> {
    state.get(&RoleKey(name.clone()))?.ok_or_else(|| not_found(name))
}

/// A page of the roles, ordered by name.
///
/// # Errors
/// [`CoreError::Invalid`] for a page token that is not of this list; [`CoreError::Storage`].
pub fn list(state: &mut (impl Read + ?Sized), page: &PageRequest) -> Result<Page<VersionedRole>, CoreError> {
    let after = page.after.as_deref().map(|text| RoleName::parse("page_token", text)).transpose()?;
    let rows = state.scan(after.map(RoleKey).as_ref(), page.size.saturating_add(1))?;
    let roles = rows.into_iter().map(|(key, row)| (key.0, row)).collect();
    Ok(Page::cut(roles, page.size, |(_, role)| role.row.encoded_len(), |(name, _)| name.to_string()))
}

/// Creates a role, and answers it as it is stored.
///
/// # Errors
/// [`CoreError::Invalid`], [`CoreError::AlreadyExists`], [`CoreError::Storage`].
pub fn create(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    name: &RoleName,
    row: &RoleRow,
) -> Result<RoleRow, CoreError> {
    let row = checked(row)?;
    let key = RoleKey(name.clone());
    if tx.get(&key)?.is_some() {
        return Err(CoreError::AlreadyExists { kind: KIND, name: name.to_string() });
    }
    tx.put(&key, &row);
    audit::append(tx, context, EventType::RoleCreate, target(name), &record::content(&row));
    Ok(row)
}

/// Replaces a role, and answers it as it is stored. What it allows counts at once; certificates that were issued by it are
/// revoked if it may allow less than before.
///
/// # Errors
/// [`CoreError::Invalid`], [`CoreError::NotFound`], [`CoreError::Precondition`] for a built-in role,
/// [`CoreError::StaleRevision`], [`CoreError::Storage`].
pub fn update(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    name: &RoleName,
    revision: u64,
    row: &RoleRow,
) -> Result<RoleRow, CoreError> {
    let row = checked(row)?;
    let current = get(tx, name)?;
    refuse_built_in(name, &current.row, "changed")?;
    CoreError::check_revision(KIND, name.as_str(), revision, current.revision)?;
    tx.put(&RoleKey(name.clone()), &row);
    if narrows(&current.row, &row) {
        revocation::revoke(tx, TargetKind::Role, name.as_str());
    }
    audit::append(tx, context, EventType::RoleUpdate, target(name), &record::changes(&current.row, &row));
    Ok(row)
}

/// Deletes a role that nobody holds and nothing maps to, and revokes what was issued by it.
///
/// # Errors
/// [`CoreError::NotFound`]; [`CoreError::Precondition`] for a built-in role, or when a user holds it, or a connector or
/// trusted cluster maps to it;
/// [`CoreError::Storage`].
pub fn delete(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    name: &RoleName,
) -> Result<(), CoreError> {
    let current = get(tx, name)?;
    refuse_built_in(name, &current.row, "deleted")?;
    let holders = tx.scan_under::<RoleMemberKey>(RoleMemberKey::front(name), None, NAMED_HOLDERS + 1)?;
    if !holders.is_empty() {
        let named: Vec<_> = holders.iter().take(NAMED_HOLDERS).map(|(key, _)| key.user.as_str()).collect();
        let more = if holders.len() > NAMED_HOLDERS { " and others" } else { "" };
        let reason = format!("role {name} is held by {}{more}: take it from them first", named.join(", "));
        return Err(CoreError::Precondition(reason));
    }
    mapped::refuse_if_mapped(tx, name)?;
    tx.delete(&RoleKey(name.clone()));
    // Access requests give roles to those who do not hold them.
    revocation::revoke(tx, TargetKind::Role, name.as_str());
    audit::append(tx, context, EventType::RoleDelete, target(name), &[]);
    Ok(())
}

/// Whether a certificate may have been issued by one that would not be by the other: unless logins were only added, it is
/// taken to be so.
fn narrows(before: &RoleRow, after: &RoleRow) -> bool {
    let empty = ConditionsRow::default();
    let (old, new) = (before.allow.as_ref().unwrap_or(&empty), after.allow.as_ref().unwrap_or(&empty));
    let fewer_logins = old.logins.iter().any(|login| !new.logins.contains(login));
    let denies = |row: &RoleRow| row.deny.clone().map(|deny| (deny.logins, deny.node_labels));
    fewer_logins
        || old.node_labels != new.node_labels
        || denies(before) != denies(after)
        || before.options != after.options
}

fn target(name: &RoleName) -> String {
    format!("role:{name}")
}

/// The refusal for a role that is not there.
pub(crate) fn not_found(name: &RoleName) -> CoreError {
    CoreError::NotFound { kind: KIND, name: name.to_string() }
}

fn refuse_built_in(name: &RoleName, row: &RoleRow, done: &str) -> Result<(), CoreError> {
    if row.built_in {
        return Err(CoreError::Precondition(format!(
            "role {name} comes with the cluster and cannot be {done}"
        )));
    }
    Ok(())
}

/// The role in the form in which it is stored, if it is within all bounds. A caller cannot make a role built-in.
fn checked(row: &RoleRow) -> Result<RoleRow, CoreError> {
    let mut row = RoleRow { built_in: false, ..row.clone() };
    // Line ends and tabs are for people; other control characters are for terminals.
    let control = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if row.description.len() > MAX_DESCRIPTION || row.description.chars().any(control) {
        let reason = format!("at most {MAX_DESCRIPTION} bytes, without control characters");
        return Err(CoreError::invalid("role.description", reason));
    }
    for (side, conditions) in [("allow", &mut row.allow), ("deny", &mut row.deny)] {
        if let Some(conditions) = conditions {
            check_conditions(&format!("role.{side}"), conditions)?;
        }
    }
    if let Some(options) = &mut row.options {
        check_options(options)?;
    }
    if row.encoded_len() > MAX_BYTES {
        return Err(CoreError::invalid("role", format!("a role has at most {MAX_BYTES} bytes in all")));
    }
    Ok(row)
}

fn check_conditions(side: &str, conditions: &mut ConditionsRow) -> Result<(), CoreError> {
    let field = format!("{side}.logins");
    bounded(&field, "logins", conditions.logins.len(), MAX_LOGINS)?;
    if conditions.logins.iter().any(|login| HostLogin::parse(login).is_none()) {
        let reason = "a login has 1 to 128 visible ASCII characters, none of ,*?!\"'\\@{} and no - in front; \
                      a template is {{internal.NAME}} or {{external.NAME}}";
        return Err(CoreError::invalid(field, reason));
    }
    check_node_labels(&format!("{side}.node_labels"), conditions)?;
    check_rules(&format!("{side}.rules"), &conditions.rules)?;
    if let Some(requests) = &mut conditions.requests {
        check_requests(&format!("{side}.requests"), requests)?;
    }
    Ok(())
}

fn check_node_labels(field: &str, conditions: &ConditionsRow) -> Result<(), CoreError> {
    let wanted = &conditions.node_labels;
    bounded(field, "labels", wanted.len(), MAX_LABELS)?;
    for (key, strings) in wanted {
        if strings.values.is_empty() {
            return Err(CoreError::invalid(field, "a label needs a value: without one it matches no node"));
        }
        bounded(field, "values of one label", strings.values.len(), MAX_VALUES)?;
        let starred = key == ANY || strings.values.iter().any(|value| value == ANY);
        if starred && (wanted.len() > 1 || key != ANY || strings.values != [ANY]) {
            let reason = "`*` stands for every node, as the only label with `*` as its only value, and for nothing else";
            return Err(CoreError::invalid(field, reason));
        }
        if !starred {
            for value in &strings.values {
                labels::check(field, &Labels::from([(key.clone(), value.clone())]))?;
            }
        }
    }
    Ok(())
}

fn check_rules(field: &str, rules: &[RuleRow]) -> Result<(), CoreError> {
    bounded(field, "rules", rules.len(), MAX_RULES)?;
    for rule in rules {
        for (list, words) in [("resources", &rule.resources), ("verbs", &rule.verbs)] {
            let field = format!("{field}.{list}");
            if words.is_empty() {
                return Err(CoreError::invalid(
                    field,
                    "a rule needs resources and verbs: without them it says nothing",
                ));
            }
            bounded(&field, "words", words.len(), MAX_WORDS)?;
        }
        // A misspelt restriction must not become no restriction.
        if rule.resources.iter().any(|word| Resource::named(word).is_empty()) {
            let known: Vec<_> = Resource::ALL.iter().map(|resource| resource.word()).collect();
            return Err(CoreError::invalid(
                format!("{field}.resources"),
                format!("one of {}, or *", known.join(", ")),
            ));
        }
        if rule.verbs.iter().any(|word| Verb::named(word).is_empty()) {
            let known: Vec<_> = Verb::ALL.iter().map(|verb| verb.word()).collect();
            return Err(CoreError::invalid(
                format!("{field}.verbs"),
                format!("one of {}, or *", known.join(", ")),
            ));
        }
    }
    Ok(())
}

fn check_requests(field: &str, requests: &mut RequestRulesRow) -> Result<(), CoreError> {
    let lists =
        [("request_roles", &mut requests.request_roles), ("review_roles", &mut requests.review_roles)];
    for (list, names) in lists {
        let field = format!("{field}.{list}");
        bounded(&field, "roles", names.len(), MAX_REQUEST_ROLES)?;
        for name in names {
            *name = RoleName::parse(&field, name)?.into();
        }
    }
    if requests.approvals > MAX_APPROVALS {
        return Err(CoreError::invalid(
            format!("{field}.approvals"),
            format!("at most {MAX_APPROVALS} approvals"),
        ));
    }
    Ok(())
}

fn check_options(options: &mut RoleOptionsRow) -> Result<(), CoreError> {
    if options.max_session_ttl_ms.is_some_and(|ttl| !TTL_MS.contains(&ttl)) {
        return Err(CoreError::invalid("role.options.max_session_ttl", "from 1 minute to 7 days"));
    }
    let field = "role.options.source_addresses";
    bounded(field, "source addresses", options.source_addresses.len(), MAX_NETWORKS)?;
    for entry in &mut options.source_addresses {
        let reason = "an IP address, or a network such as 10.0.0.0/8 with zero host bits";
        *entry = Network::parse(entry).ok_or_else(|| CoreError::invalid(field, reason))?.to_string();
    }
    Ok(())
}

fn bounded(field: &str, what: &str, count: usize, limit: usize) -> Result<(), CoreError> {
    if count > limit { Err(CoreError::invalid(field, format!("at most {limit} {what}"))) } else { Ok(()) }
}

#[cfg(test)]
#[path = "role_tests.rs"]
mod tests;
