//! Access requests: a user asks for roles for a time, those who may review it, and certificates can be had by it until it
//! ends.
//!
//! A state machine: PENDING becomes APPROVED, DENIED, CANCELLED or, unreviewed for a day, EXPIRED; APPROVED becomes
//! EXPIRED when its time is over. Nothing else changes. Nobody reviews its own request, and nobody reviews one twice; one
//! review that denies is enough, and as many that approve as the strictest of the roles asks by which it was asked.

use std::{collections::BTreeSet, time::Duration};

use prost::Message as _;
use store_txn::{Read, ReadExt, Transaction, TransactionExt, UnixMillis, Versioned};

use crate::{
    Context, CoreError,
    audit::{self, EventType},
    context::{Role, UserCaller},
    evaluate::Access,
    labels, lock,
    names::{AgentId, RequestId, RoleName, UserName},
    node,
    page::{Page, PageRequest, look_through},
    rules::{Resource, Verb},
    tables::{
        ConditionsRow, MarkEndingRow, NodeKey, NodeKind, RequestKey, RequestRow, RequestRulesRow,
        RequestState, ReviewRow, RoleKey, TargetKind, UserKey, UserRequestKey,
    },
};

const KIND: &str = "access request";

/// Most roles in a request.
const MAX_ROLES: usize = 16;
/// Most nodes in a request.
const MAX_NODES: usize = 64;
/// Longest reason, in bytes.
const MAX_REASON: usize = 1024;
/// Most requests of one user that are remembered at a time.
const MAX_PER_USER: usize = 200;
/// Most reviews of one request.
const MAX_REVIEWS: usize = 64;
/// Most requests in one call for certificates.
pub const MAX_USED: usize = 16;
/// Shortest access.
const MIN_DURATION: Duration = Duration::from_secs(60);
/// A request that nobody decides ends after a day, in milliseconds.
const PENDING_MS: UnixMillis = 24 * 3600 * 1000;
/// What became of a request is shown for thirty days, in milliseconds.
const KEPT_MS: UnixMillis = 30 * 24 * 3600 * 1000;

/// A request to make.
#[derive(Debug, Clone)]
pub struct NewRequest {
    /// Its id.
    pub id: RequestId,
    /// Roles wanted, at most 16; none: those that reach the nodes.
    pub roles: BTreeSet<RoleName>,
    /// Nodes wanted, at most 64; none: wherever the roles reach.
    pub nodes: BTreeSet<AgentId>,
    /// Why; at most 1024 bytes, without control characters.
    pub reason: String,
    /// For how long, from the approval on; `None`: as long as the roles allow. More than that is cut.
    pub duration: Option<Duration>,
}

/// A request and its id, as callers see it.
pub type Request = (RequestId, Versioned<RequestRow>);

impl RequestRow {
    /// What has become of it by a time.
    pub fn state_at(&self, now: UnixMillis) -> RequestState {
        match self.state() {
            RequestState::Pending | RequestState::Approved if now >= self.ends_at_ms => RequestState::Expired,
            state => state,
        }
    }
}

/// Makes a request.
///
/// # Errors
/// [`CoreError::Invalid`]; [`CoreError::Denied`] for what the caller's roles do not let it ask for, and for nodes that
/// such a role does not reach; [`CoreError::Locked`]; [`CoreError::Precondition`] for too many; [`CoreError::Storage`].
pub fn create(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    new: &NewRequest,
) -> Result<Request, CoreError> {
    let caller = context.caller.user()?;
    check(new)?;
    let may = requestable(caller);
    if let Some(other) = new.roles.difference(&may).next() {
        return Err(CoreError::Denied(format!(
            "your roles do not let you ask for role {other}, or there is no such role"
        )));
    }
    let wanted = if new.roles.is_empty() { &may } else { &new.roles };
    let mut roles = existing(tx, wanted)?;
    if !new.nodes.is_empty() {
        roles = reaching(tx, caller, roles, &new.nodes, new.roles.is_empty())?;
    } else if roles.iter().all(|role| caller.roles.contains(role)) {
        return Err(CoreError::invalid("roles", "you hold these roles already"));
    }
    for role in &roles {
        lock::check(tx, TargetKind::Role, role.name.as_str())?;
    }
    let kept = tx.scan_under::<UserRequestKey>(UserRequestKey::front(&caller.name), None, MAX_PER_USER)?;
    if kept.len() == MAX_PER_USER {
        return Err(CoreError::Precondition(format!(
            "you have made {MAX_PER_USER} requests in the last weeks, which is as many as one may"
        )));
    }
    let now = tx.now();
    let longest = Access::of(&roles, &caller.user.traits).options().max_ttl;
    let duration = new.duration.map_or(longest, |duration| duration.min(longest));
    let ends_at_ms = now.saturating_add(PENDING_MS);
    let row = RequestRow {
        user: caller.name.to_string(),
        roles: roles.iter().map(|role| role.name.to_string()).collect(),
        nodes: new.nodes.iter().map(|id| id.as_str().to_owned()).collect(),
        reason: new.reason.clone(),
        state: RequestState::Pending.into(),
        reviews: Vec::new(),
        created_at_ms: now,
        duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        approvals: approvals(caller, &roles),
        ends_at_ms,
        expires_at_ms: ends_at_ms.saturating_add(KEPT_MS),
    };
    put(tx, &new.id, &caller.name, &row);
    let fields = [
        ("roles", row.roles.join(",")),
        ("nodes", row.nodes.join(",")),
        ("reason", row.reason.clone()),
        ("approvals", row.approvals.to_string()),
    ];
    audit::append(tx, context, EventType::RequestCreate, target(&new.id), &fields);
    Ok((new.id.clone(), Versioned { revision: 0, row }))
}

fn check(new: &NewRequest) -> Result<(), CoreError> {
    if new.roles.is_empty() && new.nodes.is_empty() {
        return Err(CoreError::invalid("roles", "say which roles, or which nodes"));
    }
    if new.roles.len() > MAX_ROLES {
        return Err(CoreError::invalid("roles", format!("at most {MAX_ROLES}")));
    }
    if new.nodes.len() > MAX_NODES {
        return Err(CoreError::invalid("nodes", format!("at most {MAX_NODES}")));
    }
    check_reason(&new.reason)?;
    if new.duration.is_some_and(|duration| duration < MIN_DURATION) {
        return Err(CoreError::invalid("duration", "at least one minute"));
    }
    Ok(())
}

fn check_reason(reason: &str) -> Result<(), CoreError> {
    if reason.len() > MAX_REASON || reason.chars().any(char::is_control) {
        let says = format!("at most {MAX_REASON} bytes, without control characters");
        return Err(CoreError::invalid("reason", says));
    }
    Ok(())
}

/// The rules on requests of one side of all roles.
fn rules<'a>(
    caller: &'a UserCaller,
    side: impl Fn(&'a Role) -> Option<&'a ConditionsRow> + 'a,
) -> impl Iterator<Item = &'a RequestRulesRow> {
    caller.roles.iter().filter_map(move |role| side(role)?.requests.as_ref())
}

/// The names that a list in the rules allows, and none denies.
fn named(caller: &UserCaller, list: fn(&RequestRulesRow) -> &Vec<String>) -> BTreeSet<RoleName> {
    let names = |rules: &RequestRulesRow| -> Vec<RoleName> {
        list(rules).iter().filter_map(|name| RoleName::parse("role.requests", name).ok()).collect()
    };
    let allowed: BTreeSet<_> = rules(caller, |role| role.row.allow.as_ref()).flat_map(names).collect();
    let denied: BTreeSet<_> = rules(caller, |role| role.row.deny.as_ref()).flat_map(names).collect();
    &allowed - &denied
}

/// Roles that a user may ask for.
fn requestable(caller: &UserCaller) -> BTreeSet<RoleName> {
    named(caller, |rules| &rules.request_roles)
}

/// How many approvals the strictest role asks for by which one of these may be asked for.
fn approvals(caller: &UserCaller, roles: &[Role]) -> u32 {
    let concerns = |rules: &&RequestRulesRow| {
        roles.iter().any(|role| rules.request_roles.iter().any(|name| name == role.name.as_str()))
    };
    let rules = rules(caller, |role| role.row.allow.as_ref()).filter(concerns);
    rules.map(|rules| rules.approvals).max().unwrap_or_default().max(1)
}

fn existing(state: &mut (impl Read + ?Sized), names: &BTreeSet<RoleName>) -> Result<Vec<Role>, CoreError> {
    let mut roles = Vec::with_capacity(names.len());
    for name in names {
        let row = state.get(&RoleKey(name.clone()))?;
        roles.extend(row.map(|stored| Role { name: name.clone(), row: stored.row }));
    }
    Ok(roles)
}

/// Of these roles those that allow a login on one of the nodes, if it is not said which; each node must be reached.
fn reaching(
    state: &mut (impl Read + ?Sized),
    caller: &UserCaller,
    roles: Vec<Role>,
    nodes: &BTreeSet<AgentId>,
    choose: bool,
) -> Result<Vec<Role>, CoreError> {
    let mut useful = BTreeSet::new();
    for id in nodes {
        let unreached = || {
            CoreError::Denied(format!(
                "no role that you ask for allows a login on node {id}, or there is no such node"
            ))
        };
        let stored = state.get(&NodeKey(id.clone()))?.filter(|stored| stored.row.kind() == NodeKind::Ssh);
        let stored = stored.ok_or_else(unreached)?;
        let agent_labels = node::agent_labels(state, id)?;
        let labels = labels::effective(&agent_labels, &stored.row.admin_labels);
        let allows = |role: &&Role| {
            let alone = Access::of(std::slice::from_ref(*role), &caller.user.traits);
            !alone.logins_on(id.as_str(), &labels).is_empty()
        };
        let here: Vec<_> = roles.iter().filter(allows).map(|role| role.name.clone()).collect();
        if here.is_empty() {
            return Err(unreached());
        }
        useful.extend(here);
    }
    Ok(if choose { roles.into_iter().filter(|role| useful.contains(&role.name)).collect() } else { roles })
}

/// One request, for who asked, who may review it, and who may read all.
///
/// # Errors
/// [`CoreError::NotFound`], also for whom it is none of its business; [`CoreError::Storage`].
pub fn get(
    state: &mut (impl Read + ?Sized),
    context: &Context,
    id: &RequestId,
) -> Result<Request, CoreError> {
    let caller = context.caller.user()?;
    let stored =
        state.get(&RequestKey(id.clone()))?.filter(|stored| concerns(caller, &stored.row, Verb::Read));
    Ok((id.clone(), stored.ok_or_else(|| not_found(id))?))
}

/// A page of the requests that concern the caller, by id; in one state, if given.
///
/// # Errors
/// [`CoreError::Invalid`] for a page token of another list; [`CoreError::Storage`].
pub fn list(
    state: &mut (impl Read + ?Sized),
    context: &Context,
    wanted: Option<RequestState>,
    page: &PageRequest,
) -> Result<Page<Request>, CoreError> {
    let caller = context.caller.user()?;
    let now = state.now();
    let read = |after: Option<&RequestId>, most| {
        let rows = state.scan(after.cloned().map(RequestKey).as_ref(), most)?;
        Ok(rows.into_iter().map(|(key, stored)| (key.0, stored)).collect())
    };
    look_through(
        page,
        RequestId::parse,
        read,
        |id, stored| {
            let is_wanted = wanted.is_none_or(|wanted| stored.row.state_at(now) == wanted);
            (is_wanted && concerns(caller, &stored.row, Verb::List)).then_some((id, stored))
        },
        |(_, request)| request.row.encoded_len(),
    )
}

fn concerns(caller: &UserCaller, row: &RequestRow, verb: Verb) -> bool {
    row.user == caller.name.as_str() || may_review(caller, row) || caller.may(Resource::AccessRequests, verb)
}

/// Whether a user may review requests for all of these roles. Its own is another question.
fn may_review(caller: &UserCaller, row: &RequestRow) -> bool {
    let reviewed = named(caller, |rules| &rules.review_roles);
    caller.is_admin() || row.roles.iter().all(|role| reviewed.iter().any(|name| name.as_str() == role))
}

/// Adds a review, and decides if it was the last that was missing.
///
/// # Errors
/// [`CoreError::NotFound`], also for whom the request is none of its business; [`CoreError::Denied`] for its owner and for
/// who may not review it; [`CoreError::Precondition`] for one that is decided or over, or that the caller has reviewed;
/// [`CoreError::Invalid`]; [`CoreError::Storage`].
pub fn review(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    id: &RequestId,
    approve: bool,
    reason: &str,
) -> Result<Request, CoreError> {
    check_reason(reason)?;
    let caller = context.caller.user()?;
    let (_, Versioned { mut row, .. }) = get(tx, context, id)?;
    if row.user == caller.name.as_str() {
        return Err(CoreError::Denied("nobody reviews its own request".into()));
    }
    if !may_review(caller, &row) {
        return Err(CoreError::Denied("your roles do not let you review this request".into()));
    }
    pending(tx.now(), &row)?;
    if row.reviews.iter().any(|review| review.author == caller.name.as_str()) {
        return Err(CoreError::Precondition("you have reviewed this request already".into()));
    }
    if row.reviews.len() >= MAX_REVIEWS {
        return Err(CoreError::Precondition("this request has as many reviews as one may have".into()));
    }
    let owner = UserName::parse("access request", &row.user)?;
    if approve && tx.get(&UserKey(owner.clone()))?.is_none() {
        return Err(CoreError::Precondition("who asked is no user any more".into()));
    }
    let now = tx.now();
    row.reviews.push(ReviewRow {
        author: caller.name.to_string(),
        approve,
        reason: reason.to_owned(),
        created_at_ms: now,
    });
    let approved = row.reviews.iter().filter(|review| review.approve).count();
    let enough = approved >= usize::try_from(row.approvals).unwrap_or(usize::MAX);
    let event = match (approve, enough) {
        (false, _) => {
            decide(&mut row, RequestState::Denied, now, now);
            EventType::RequestDeny
        }
        (true, true) => {
            let ends_at_ms = now.saturating_add(row.duration_ms);
            decide(&mut row, RequestState::Approved, now, ends_at_ms);
            EventType::RequestApprove
        }
        (true, false) => EventType::RequestReview,
    };
    put(tx, id, &owner, &row);
    let fields = [
        ("user", row.user.clone()),
        ("roles", row.roles.join(",")),
        ("nodes", row.nodes.join(",")),
        ("reason", reason.to_owned()),
        ("ends_at_ms", row.ends_at_ms.to_string()),
    ];
    audit::append(tx, context, event, target(id), &fields);
    Ok((id.clone(), Versioned { revision: 0, row }))
}

/// Takes a request of the caller's own back.
///
/// # Errors
/// [`CoreError::NotFound`], also for somebody else's; [`CoreError::Precondition`] for one that is decided or over;
/// [`CoreError::Storage`].
pub fn cancel(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    id: &RequestId,
) -> Result<Request, CoreError> {
    let caller = context.caller.user()?;
    let stored = tx.get(&RequestKey(id.clone()))?.filter(|stored| stored.row.user == caller.name.as_str());
    let mut row = stored.ok_or_else(|| not_found(id))?.row;
    let now = tx.now();
    pending(now, &row)?;
    decide(&mut row, RequestState::Cancelled, now, now);
    put(tx, id, &caller.name, &row);
    audit::append(tx, context, EventType::RequestCancel, target(id), &[]);
    Ok((id.clone(), Versioned { revision: 0, row }))
}

fn pending(now: UnixMillis, row: &RequestRow) -> Result<(), CoreError> {
    let state = match row.state_at(now) {
        RequestState::Pending => return Ok(()),
        RequestState::Approved => "approved",
        RequestState::Denied => "denied",
        RequestState::Cancelled => "cancelled",
        RequestState::Expired | RequestState::Unspecified => "over",
    };
    Err(CoreError::Precondition(format!("this request is {state} already")))
}

fn decide(row: &mut RequestRow, state: RequestState, now: UnixMillis, ends_at_ms: UnixMillis) {
    row.state = state.into();
    row.ends_at_ms = ends_at_ms;
    row.expires_at_ms = ends_at_ms.max(now).saturating_add(KEPT_MS);
}

/// What an approved request gives its owner.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Granted {
    /// The roles.
    pub(crate) roles: Vec<Role>,
    /// The nodes on which they count; none: all.
    pub(crate) nodes: BTreeSet<String>,
    /// When that ends.
    pub(crate) ends_at_ms: UnixMillis,
}

/// What a request gives the caller now.
///
/// # Errors
/// [`CoreError::Denied`] for one that is not the caller's, or not approved, or over; [`CoreError::Locked`] for a role;
/// [`CoreError::Storage`].
pub(crate) fn granted(
    state: &mut (impl Read + ?Sized),
    caller: &UserCaller,
    id: &RequestId,
) -> Result<Granted, CoreError> {
    let now = state.now();
    let stored = state.get(&RequestKey(id.clone()))?;
    let own = stored.map(|stored| stored.row).filter(|row| row.user == caller.name.as_str());
    let Some(row) = own.filter(|row| row.state_at(now) == RequestState::Approved) else {
        return Err(CoreError::Denied(format!(
            "access request {id} is not an approved one of yours, or it is over"
        )));
    };
    let names = row.roles.iter().map(|name| RoleName::parse("access request", name));
    let roles = existing(state, &names.collect::<Result<_, _>>()?)?;
    for role in &roles {
        lock::check(state, TargetKind::Role, role.name.as_str())?;
    }
    Ok(Granted { roles, nodes: row.nodes.into_iter().collect(), ends_at_ms: row.ends_at_ms })
}

/// Forgets what a user asked for, when the user goes: somebody else of the same name has not asked for it. The audit log
/// keeps what became of it.
///
/// # Errors
/// [`CoreError::Storage`].
pub(crate) fn forget_all_of(tx: &mut (impl Transaction + ?Sized), user: &UserName) -> Result<(), CoreError> {
    for (key, _) in tx.scan_under::<UserRequestKey>(UserRequestKey::front(user), None, MAX_PER_USER)? {
        tx.delete(&RequestKey(key.id.clone()));
        tx.delete(&key);
    }
    Ok(())
}

fn put(tx: &mut (impl Transaction + ?Sized), id: &RequestId, owner: &UserName, row: &RequestRow) {
    tx.put(&RequestKey(id.clone()), row);
    let of_user = UserRequestKey { user: owner.clone(), id: id.clone() };
    tx.put(&of_user, &MarkEndingRow { expires_at_ms: row.expires_at_ms });
}

fn target(id: &RequestId) -> String {
    format!("access_request:{id}")
}

fn not_found(id: &RequestId) -> CoreError {
    CoreError::NotFound { kind: KIND, name: id.to_string() }
}

#[cfg(test)]
#[path = "access_request_tests.rs"]
mod tests;
