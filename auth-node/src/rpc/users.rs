//! Local users.

use std::ops::ControlFlow;

use auth_core::{
    CoreError,
    evaluate::Traits,
    names::{RoleName, UserName},
    secret::PasswordHash,
    tables::StringsRow,
    user::{self, Grants, NewUser, User},
};
use mezite_proto::v1;
use zeroize::Zeroizing;

use super::convert;
use crate::{
    authn::Call,
    error::ApiError,
    once::{Once, OnceReply},
    service::Service,
};

/// Answers one user.
pub(crate) async fn get(
    service: &Service,
    call: &Call,
    request: v1::GetUserRequest,
) -> Result<v1::GetUserResponse, ApiError> {
    let name = UserName::parse("name", &request.name)?;
    let found = service.read(call, move |view, _| user::get(view, &name)).await?;
    Ok(v1::GetUserResponse { user: Some(reply(found)) })
}

/// Lists users, ordered by name.
pub(crate) async fn list(
    service: &Service,
    call: &Call,
    request: v1::ListUsersRequest,
) -> Result<v1::ListUsersResponse, ApiError> {
    let page = convert::page(request.page_size, &request.page_token)?;
    let page = service.read(call, move |view, _| user::list(view, &page)).await?.map(reply);
    Ok(v1::ListUsersResponse { users: page.items, next_page_token: convert::page_token(page.next) })
}

/// Creates a local user.
pub(crate) async fn create(
    service: &Service,
    call: &Call,
    request: v1::CreateUserRequest,
) -> Result<v1::CreateUserResponse, ApiError> {
    let once = Once::of(call, &request);
    let password = Zeroizing::new(request.password);
    user::check_new_password("password", &password)?;
    let (name, grants, _) = parse(request.user)?;
    let password_hash = match hash_for(service, call, &once, &password).await? {
        ControlFlow::Break(answered) => return Ok(answered),
        ControlFlow::Continue(hash) => hash,
    };
    let new = NewUser { name, grants, password_hash };
    let create = service.write_once(call, once, move |tx, context| {
        Ok(v1::CreateUserResponse { user: Some(reply(user::create(tx, context, &new)?)) })
    });
    create.await
}

/// Replaces a user's roles and traits.
pub(crate) async fn update(
    service: &Service,
    call: &Call,
    request: v1::UpdateUserRequest,
) -> Result<v1::UpdateUserResponse, ApiError> {
    let once = Once::of(call, &request);
    let (name, grants, revision) = parse(request.user)?;
    let update = service.write_once(call, once, move |tx, context| {
        let updated = user::update(tx, context, &name, revision, &grants)?;
        Ok(v1::UpdateUserResponse { user: Some(reply(updated)) })
    });
    update.await
}

/// Deletes a user and ends its sessions.
pub(crate) async fn delete(
    service: &Service,
    call: &Call,
    request: v1::DeleteUserRequest,
) -> Result<v1::DeleteUserResponse, ApiError> {
    let name = UserName::parse("name", &request.name)?;
    let deleted = service.write(call, move |tx, context| user::delete(tx, context, &name)).await?;
    Ok(v1::DeleteUserResponse { sessions_ended: deleted.value })
}

/// Sets a user's password and ends its sessions.
pub(crate) async fn reset_password(
    service: &Service,
    call: &Call,
    request: v1::ResetUserPasswordRequest,
) -> Result<v1::ResetUserPasswordResponse, ApiError> {
    let once = Once::of(call, &request);
    let password = Zeroizing::new(request.new_password);
    user::check_new_password("new_password", &password)?;
    let name = UserName::parse("name", &request.name)?;
    let hash = match hash_for(service, call, &once, &password).await? {
        ControlFlow::Break(answered) => return Ok(answered),
        ControlFlow::Continue(hash) => hash,
    };
    let reset = service.write_once(call, once, move |tx, context| {
        let sessions_ended = user::reset_password(tx, context, &name, &hash)?;
        Ok(v1::ResetUserPasswordResponse { sessions_ended })
    });
    reset.await
}

/// Hashes a password, for those alone whose call is allowed and was not answered yet: the work is not to be had for
/// the asking.
async fn hash_for<R: OnceReply>(
    service: &Service,
    call: &Call,
    once: &Once,
    password: &Zeroizing<String>,
) -> Result<ControlFlow<R, PasswordHash>, ApiError> {
    match service.unless_answered(call, once, |_, _| Ok(())).await? {
        ControlFlow::Break(answered) => Ok(ControlFlow::Break(answered)),
        ControlFlow::Continue(()) => {
            Ok(ControlFlow::Continue(service.passwords.admit()?.hash(password).await?))
        }
    }
}

/// Name, grants and revision in a request. Times and who created it are the server's.
fn parse(user: Option<v1::User>) -> Result<(UserName, Grants, u64), CoreError> {
    let user = user.ok_or_else(|| CoreError::invalid("user", "it is needed"))?;
    let name = UserName::parse("user.name", &user.name)?;
    let roles =
        user.roles.iter().map(|role| RoleName::parse("user.roles", role)).collect::<Result<_, _>>()?;
    let values = |strings: v1::Strings| StringsRow { values: strings.values };
    let traits: Traits = user.traits.into_iter().map(|(name, strings)| (name, values(strings))).collect();
    Ok((name, Grants { roles, traits }, user.revision))
}

fn reply(user: User) -> v1::User {
    let strings = |row: StringsRow| v1::Strings { values: row.values };
    v1::User {
        name: user.name.into(),
        roles: user.roles,
        traits: user.traits.into_iter().map(|(name, row)| (name, strings(row))).collect(),
        created_at: Some(convert::timestamp(user.created_at_ms)),
        revision: user.revision,
        created_by: user.created_by,
    }
}

#[cfg(test)]
#[path = "users_tests.rs"]
mod tests;
