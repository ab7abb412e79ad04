//! Local users.

use std::ops::ControlFlow;

use auth_core::{
    Context, CoreError,
    evaluate::Traits,
    invite::{self, NewInvite},
    lockout::{self, Lockout},
    names::{RoleName, UserName},
    page::Page,
    password,
    rules::{Resource, Verb},
    secret::{SecretDigest, SecretKind},
    sso,
    tables::StringsRow,
    user::{self, Grants, NewUser, Proof, User},
};
use mezite_proto::v1;
use store_txn::Read;
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
    let found = service.read(call, move |view, context| {
        let found = user::get(view, &name)?;
        shown(view, manages(context), found)
    });
    Ok(v1::GetUserResponse { user: Some(found.await?) })
}

/// Lists users, ordered by name.
pub(crate) async fn list(
    service: &Service,
    call: &Call,
    request: v1::ListUsersRequest,
) -> Result<v1::ListUsersResponse, ApiError> {
    let page = convert::page(request.page_size, &request.page_token)?;
    let page = service.read(call, move |view, context| {
        let Page { items, next } = user::list(view, &page)?;
        let manages = manages(context);
        let items = items.into_iter().map(|found| shown(view, manages, found)).collect::<Result<_, _>>()?;
        Ok(Page { items, next })
    });
    let page = page.await?;
    Ok(v1::ListUsersResponse { users: page.items, next_page_token: convert::page_token(page.next) })
}

/// Creates a local user, with a password or an invite.
pub(crate) async fn create(
    service: &Service,
    call: &Call,
    request: v1::CreateUserRequest,
) -> Result<v1::CreateUserResponse, ApiError> {
    let once = Once::of(call, &request);
    let (name, grants, _) = parse(request.user)?;
    let names = [name.as_str(), service.settings.cluster.as_str()];
    let given = Given::read("password", request.password, &names, request.invite_ttl)?;
    let (proof, secret) = match given.proof(service, call, &once).await? {
        ControlFlow::Break(answered) => return Ok(answered),
        ControlFlow::Continue(proof) => proof,
    };
    let new = NewUser { name, grants, proof };
    let url = invite_url(service, &secret);
    let create = service.write_once(call, once, move |tx, context| {
        let made = user::create(tx, context, &new)?;
        Ok(v1::CreateUserResponse {
            user: Some(shown(tx, manages(context), made)?),
            invite_secret: secret.as_str().to_owned(),
            invite_expires_at: invite::ends_at(tx, &new.name)?.map(convert::timestamp),
            invite_url: url.as_str().to_owned(),
        })
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
        Ok(v1::UpdateUserResponse { user: Some(shown(tx, manages(context), updated)?) })
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

/// Sets a user's password, or makes an invite and the password no good, and ends its sessions.
pub(crate) async fn reset_password(
    service: &Service,
    call: &Call,
    request: v1::ResetUserPasswordRequest,
) -> Result<v1::ResetUserPasswordResponse, ApiError> {
    let once = Once::of(call, &request);
    let name = UserName::parse("name", &request.name)?;
    let names = [name.as_str(), service.settings.cluster.as_str()];
    let given = Given::read("new_password", request.new_password, &names, request.invite_ttl)?;
    let (proof, secret) = match given.proof(service, call, &once).await? {
        ControlFlow::Break(answered) => return Ok(answered),
        ControlFlow::Continue(proof) => proof,
    };
    let url = invite_url(service, &secret);
    let (remove_devices, make_local) = (request.remove_devices, request.make_local);
    let reset = service.write_once(call, once, move |tx, context| {
        if make_local {
            sso::make_local(tx, context, &name)?;
        }
        let sessions_ended = user::reset_password(tx, context, &name, &proof)?;
        let removed = remove_devices.then(|| user::remove_devices(tx, context, &name)).transpose()?;
        Ok(v1::ResetUserPasswordResponse {
            sessions_ended,
            devices_removed: removed.unwrap_or_default(),
            invite_secret: secret.as_str().to_owned(),
            invite_expires_at: invite::ends_at(tx, &name)?.map(convert::timestamp),
            invite_url: url.as_str().to_owned(),
        })
    });
    reset.await
}

/// Ends the lockouts of a user.
pub(crate) async fn clear_lockout(
    service: &Service,
    call: &Call,
    request: v1::ClearUserLockoutRequest,
) -> Result<v1::ClearUserLockoutResponse, ApiError> {
    let name = UserName::parse("name", &request.name)?;
    service.write(call, move |tx, context| lockout::clear(tx, context, &name)).await?;
    Ok(v1::ClearUserLockoutResponse {})
}

/// What a request gives a user to prove itself with: a password, or else an invite.
enum Given {
    Password(Zeroizing<String>),
    Invite(NewInvite, Zeroizing<String>),
}

impl Given {
    fn read(
        field: &str,
        password: String,
        names: &[&str],
        invite_ttl: Option<prost_types::Duration>,
    ) -> Result<Self, CoreError> {
        let password = Zeroizing::new(password);
        let ttl = invite_ttl.map(|ttl| convert::duration_in("invite_ttl", ttl)).transpose()?;
        if password.is_empty() {
            let secret = convert::secret();
            let digest = SecretDigest::of(SecretKind::Invite, &secret);
            return Ok(Self::Invite(NewInvite::new(digest, ttl)?, secret));
        }
        if ttl.is_some() {
            return Err(CoreError::invalid("invite_ttl", "an invite is made where no password is given"));
        }
        password::check_new(field, &password, names)?;
        Ok(Self::Password(password))
    }

    /// Hashes a password, for those alone whose call is allowed and was not answered yet: the work is not to be had for
    /// the asking. With the secret of the invite, which is empty without one.
    async fn proof<R: OnceReply>(
        self,
        service: &Service,
        call: &Call,
        once: &Once,
    ) -> Result<ControlFlow<R, (Proof, Zeroizing<String>)>, ApiError> {
        let password = match self {
            Self::Invite(new, secret) => return Ok(ControlFlow::Continue((Proof::Invite(new), secret))),
            Self::Password(password) => password,
        };
        match service.unless_answered(call, once, |_, context| Ok(context.caller.actor())).await? {
            ControlFlow::Break(answered) => Ok(ControlFlow::Break(answered)),
            ControlFlow::Continue(caller) => {
                let hash = service.passwords.admit(caller)?.hash(&password).await?;
                Ok(ControlFlow::Continue((hash.into(), Zeroizing::default())))
            }
        }
    }
}

/// The page on which an invite is used; empty where there is none. The secret is behind the `#`, which browsers send to nobody.
fn invite_url(service: &Service, secret: &str) -> Zeroizing<String> {
    let origin = service.settings.web_origin.as_deref().filter(|_| !secret.is_empty());
    Zeroizing::new(origin.map(|origin| format!("{origin}/web/invite#{secret}")).unwrap_or_default())
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

/// Whether the caller manages users.
fn manages(context: &Context) -> bool {
    context.caller.holder().is_ok_and(|caller| caller.may(Resource::Users, Verb::Update))
}

/// A user, with what is shown to those alone who manage users.
fn shown(state: &mut (impl Read + ?Sized), manages: bool, found: User) -> Result<v1::User, CoreError> {
    if !manages {
        return Ok(reply(found));
    }
    let lockout = |lockout: Lockout| v1::Lockout {
        network: lockout.network.unwrap_or_default(),
        of_all_users: lockout.of_all_users,
        failures: lockout.failures,
        ends_at: Some(convert::timestamp(lockout.until_ms)),
    };
    Ok(v1::User {
        lockouts: lockout::of(state, &found.name)?.into_iter().map(lockout).collect(),
        without_password: !found.has_password,
        invite_expires_at: invite::ends_at(state, &found.name)?.map(convert::timestamp),
        ..reply(found)
    })
}

/// A user, as everybody sees it.
fn reply(user: User) -> v1::User {
    let strings = |row: StringsRow| v1::Strings { values: row.values };
    v1::User {
        name: user.name.into(),
        roles: user.roles,
        traits: user.traits.into_iter().map(|(name, row)| (name, strings(row))).collect(),
        created_at: Some(convert::timestamp(user.created_at_ms)),
        revision: user.revision,
        created_by: user.created_by,
        lockouts: Vec::new(),
        without_password: false,
        invite_expires_at: None,
        connector: user.connector,
        expires_at: user.expires_at_ms.map(convert::timestamp),
    }
}

#[cfg(test)]
#[path = "users_tests.rs"]
mod tests;
