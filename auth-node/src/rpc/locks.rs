//! Locks.

use auth_core::{
    CoreError,
    lock::{self, NewLock, Target},
    names::{AgentId, DeviceId, IdentityName, LockId, RoleName, UserName},
    tables::{LockRow, TargetKind},
};
use mezite_proto::v1::{self, lock_target::Target as Told};

use super::convert;
use crate::{authn::Call, error::ApiError, once::Once, service::Service};

/// Locks a user, role, login, node or device out. When this answers, no node lets it in.
pub(crate) async fn create(
    service: &Service,
    call: &Call,
    request: v1::CreateLockRequest,
) -> Result<v1::CreateLockResponse, ApiError> {
    let once = Once::of(call, &request);
    let new = parse(request)?;
    let create = service.write_once(call, once, move |tx, context| {
        let row = lock::create(tx, context, new.clone())?;
        Ok(v1::CreateLockResponse { lock: Some(reply(new.id.clone(), row)) })
    });
    create.await
}

/// Answers one lock.
pub(crate) async fn get(
    service: &Service,
    call: &Call,
    request: v1::GetLockRequest,
) -> Result<v1::GetLockResponse, ApiError> {
    let id = id(&request.lock_id)?;
    let found = service.read(call, move |view, _| Ok(reply(id.clone(), lock::get(view, &id)?)));
    Ok(v1::GetLockResponse { lock: Some(found.await?) })
}

/// Lists locks, ordered by id.
pub(crate) async fn list(
    service: &Service,
    call: &Call,
    request: v1::ListLocksRequest,
) -> Result<v1::ListLocksResponse, ApiError> {
    let page = convert::page(request.page_size, &request.page_token)?;
    let page = service.read(call, move |view, _| lock::list(view, &page)).await?;
    let page = page.map(|(id, stored)| reply(id, stored.row));
    Ok(v1::ListLocksResponse { locks: page.items, next_page_token: convert::page_token(page.next) })
}

/// Removes a lock.
pub(crate) async fn delete(
    service: &Service,
    call: &Call,
    request: v1::DeleteLockRequest,
) -> Result<v1::DeleteLockResponse, ApiError> {
    let id = id(&request.lock_id)?;
    service.write(call, move |tx, context| lock::delete(tx, context, &id)).await?;
    Ok(v1::DeleteLockResponse {})
}

fn id(text: &str) -> Result<LockId, CoreError> {
    LockId::parse(text)
        .ok_or_else(|| CoreError::invalid("lock_id", "32 hexadecimal digits, as lists show it"))
}

fn parse(request: v1::CreateLockRequest) -> Result<NewLock, CoreError> {
    let needed = || CoreError::invalid("target", "say what to lock");
    let target = match request.target.and_then(|target| target.target).ok_or_else(needed)? {
        Told::User(name) => Target::User(UserName::parse("target.user", &name)?),
        Told::Role(name) => Target::Role(RoleName::parse("target.role", &name)?),
        Told::Login(login) => Target::login("target.login", &login)?,
        Told::Node(id) => Target::Node(AgentId::parse("target.node", &id)?),
        Told::Device(id) => {
            let refused = || CoreError::invalid("target.device", "32 hexadecimal digits, as lists show it");
            Target::Device(DeviceId::parse(&id).ok_or_else(refused)?)
        }
        Told::AgentIdentity(name) => {
            Target::AgentIdentity(IdentityName::parse("target.agent_identity", &name)?)
        }
    };
    let ttl = request.ttl.map(|ttl| convert::duration_in("ttl", ttl)).transpose()?;
    Ok(NewLock { id: LockId::from_random(rand::random()), target, message: request.message, ttl })
}

fn reply(id: LockId, row: LockRow) -> v1::Lock {
    let target = match row.kind() {
        TargetKind::User => Some(Told::User(row.name)),
        TargetKind::Role => Some(Told::Role(row.name)),
        TargetKind::Login => Some(Told::Login(row.name)),
        TargetKind::Node => Some(Told::Node(row.name)),
        TargetKind::Device => Some(Told::Device(row.name)),
        TargetKind::AgentIdentity => Some(Told::AgentIdentity(row.name)),
        TargetKind::Session
        | TargetKind::TrustedCluster
        | TargetKind::NodeLabels
        | TargetKind::Unspecified => None,
    };
    v1::Lock {
        lock_id: id.into(),
        target: Some(v1::LockTarget { target }),
        message: row.message,
        expires_at: (row.expires_at_ms != 0).then(|| convert::timestamp(row.expires_at_ms)),
        created_at: Some(convert::timestamp(row.created_at_ms)),
        created_by: row.created_by,
    }
}

#[cfg(test)]
#[path = "locks_tests.rs"]
mod tests;
