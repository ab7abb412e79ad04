//! Invites: a new user, or one that was reset, sets its password.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse as _, Response},
};
use mezite_proto::v1;
use serde::Deserialize;
use serde_json::json;

use super::{
    Web,
    call::{Asked, Body},
};
use crate::{error::Problem, rpc};

/// The secret of an invite, and what it is used for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Invite {
    secret: String,
    new_password: String,
}

/// Sets a password. It gives no session: the login that follows is like any.
pub(super) async fn accept(
    State(web): State<Arc<Web>>,
    asked: Asked,
    Body(invite): Body<Invite>,
) -> Result<Response, Problem> {
    let Invite { secret, new_password } = invite;
    let call = asked.call("AcceptInvite")?;
    let request = v1::AcceptInviteRequest { secret, new_password };
    let reply = web.carry_out(&call, rpc::login::accept_invite(&web.service, &call, request)).await?;
    Ok(Json(json!({ "user": reply.user })).into_response())
}
