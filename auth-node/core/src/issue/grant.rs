//! What certificates let their holder do: logins, on all nodes or on those that they name.

use std::collections::BTreeSet;

use store_txn::{Read, ReadExt as _};

use super::{Allowed, Candidates, MAX_PRINCIPALS, UserCertRequest, Wanted};
use crate::{
    CoreError,
    names::AgentId,
    tables::{NodeKey, NodeRow, PrincipalKey},
};

/// What the certificates let their holder do.
#[derive(Debug, Default)]
pub(super) struct Grant {
    pub(super) principals: BTreeSet<String>,
    pub(super) logins: BTreeSet<String>,
    /// Nodes that the principals name.
    pub(super) nodes: BTreeSet<AgentId>,
}

impl Grant {
    fn everywhere(&mut self, login: &str) {
        self.principals.insert(login.to_owned());
        self.logins.insert(login.to_owned());
    }

    fn on(&mut self, login: &str, id: &AgentId) {
        self.principals.insert(format!("{login}@{id}"));
        self.logins.insert(login.to_owned());
        self.nodes.insert(id.clone());
    }
}

pub(super) fn grant(
    state: &mut (impl Read + ?Sized),
    allowed: &Allowed,
    request: &UserCertRequest,
    candidates: &Candidates,
) -> Result<Grant, CoreError> {
    let grant = match &request.node {
        Some(node) => grant_on_one(state, allowed, request, node)?,
        None => grant_on_all(state, allowed, request, candidates)?,
    };
    let place = match &request.node {
        Some(_) => "that node, or there is no such node",
        None => "any node that has joined",
    };
    if let Some(login) = request.logins.difference(&grant.logins).next() {
        return Err(CoreError::Denied(format!("your roles do not allow the login {login} on {place}")));
    }
    if grant.principals.is_empty() {
        return Err(CoreError::Denied(format!("your roles allow no login on {place}")));
    }
    Ok(grant)
}

fn grant_on_one(
    state: &mut (impl Read + ?Sized),
    allowed: &Allowed,
    request: &UserCertRequest,
    node: &Wanted,
) -> Result<Grant, CoreError> {
    let mut grant = Grant::default();
    if let Some((id, node)) = find_node(state, node)? {
        for login in request.wanted(allowed.logins_on(state, &id, &node)?) {
            grant.on(&login, &id);
        }
    }
    bounded(grant)
}

fn grant_on_all(
    state: &mut (impl Read + ?Sized),
    allowed: &Allowed,
    request: &UserCertRequest,
    candidates: &Candidates,
) -> Result<Grant, CoreError> {
    let mut grant = Grant::default();
    let (everywhere, somewhere) = request.wanted_logins(&allowed.access);
    for login in &everywhere {
        grant.everywhere(login);
    }
    for id in candidates.0.iter().filter(|_| !somewhere.is_empty()) {
        let Some(node) = state.get(&NodeKey(id.clone()))? else { continue };
        for login in &allowed.logins_on(state, id, &node.row)? & &somewhere {
            grant.on(&login, id);
        }
    }
    bounded(grant)
}

fn bounded(grant: Grant) -> Result<Grant, CoreError> {
    if grant.principals.len() <= MAX_PRINCIPALS { Ok(grant) } else { Err(too_many()) }
}

pub(super) fn too_many() -> CoreError {
    CoreError::Precondition(format!(
        "a certificate names at most {MAX_PRINCIPALS} logins on nodes, and your roles allow more: say which node it \
         is for, or which logins"
    ))
}

fn find_node(
    state: &mut (impl Read + ?Sized),
    wanted: &Wanted,
) -> Result<Option<(AgentId, NodeRow)>, CoreError> {
    let id = match wanted {
        Wanted::Id(id) => id.clone(),
        Wanted::Name(name) => match state.get(&PrincipalKey(name.to_string()))? {
            Some(holder) => AgentId::parse("principal", &holder.row.agent_id)?,
            None => return Ok(None),
        },
    };
    Ok(state.get(&NodeKey(id.clone()))?.map(|node| (id, node.row)))
}
