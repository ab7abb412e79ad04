//! Calls that take effect once: by what their repetitions are known, and replies that can be given again. What is kept,
//! and how, is `auth_core::repeat`'s.

use auth_core::{
    Context, CoreError,
    repeat::{NONCE_LENGTH, OnceCall},
};
use mezite_proto::v1;
use prost::Message;
use raft_store::Committed;
use store_txn::{Read, Transaction};
use zeroize::Zeroizing;

use crate::authn::Call;

/// A call that takes effect once, if its client has given it an idempotency key; without one, it is a call like any
/// other.
#[derive(Debug, Clone)]
pub(crate) struct Once(Option<OnceCall>);

impl Once {
    /// Of a call and its request, as it came.
    pub(crate) fn of(call: &Call, request: &impl Message) -> Self {
        Self(call.key.clone().map(|key| {
            // A request may hold a password.
            let encoded = Zeroizing::new(request.encode_to_vec());
            OnceCall::new(call.method.method, key, &encoded)
        }))
    }

    /// What the call was answered, if it took effect before, and the revision of that.
    ///
    /// # Errors
    /// [`CoreError::KeyReused`] for a key that was used with another request, and as of [`OnceCall::recall`].
    pub(crate) fn recall<R: OnceReply>(
        &self,
        state: &mut (impl Read + ?Sized),
        context: &Context,
    ) -> Result<Option<Committed<R>>, CoreError> {
        let Some(call) = &self.0 else { return Ok(None) };
        let Some(answer) = call.recall(state, context)? else { return Ok(None) };
        let value = R::decode(answer.reply.as_slice())
            .map_err(|error| CoreError::Internal(format!("the answer of a call does not decode: {error}")))?;
        Ok(Some(Committed { value, revision: answer.revision }))
    }

    /// Keeps the answer, in the transaction of the effect.
    ///
    /// # Errors
    /// As of [`OnceCall::keep`].
    pub(crate) fn keep<R: OnceReply>(
        &self,
        tx: &mut (impl Transaction + ?Sized),
        context: &Context,
        reply: &R,
    ) -> Result<(), CoreError> {
        let Some(call) = &self.0 else { return Ok(()) };
        let encoded = Zeroizing::new(reply.encode_to_vec());
        // A transaction that runs again may answer otherwise, and both answers may be in the log: never the same nonce.
        call.keep(tx, context, &encoded, rand::random::<[u8; NONCE_LENGTH]>())
    }
}

/// The reply of a method that takes effect once.
pub(crate) trait OnceReply: Message + Default + 'static {
    /// The reply with the revision of its commit in the object that was written, if the reply has one.
    fn at(self, revision: u64) -> Self;
}

/// The replies with an object.
macro_rules! with_object {
    ($($reply:ident: $object:ident),+ $(,)?) => {$(
        impl OnceReply for v1::$reply {
            fn at(mut self, revision: u64) -> Self {
                if let Some(object) = &mut self.$object {
                    object.revision = revision;
                }
                self
            }
        }
    )+};
}

/// The replies without one.
macro_rules! without_object {
    ($($reply:ident),+ $(,)?) => {$(
        impl OnceReply for v1::$reply {
            fn at(self, _revision: u64) -> Self {
                self
            }
        }
    )+};
}

with_object!(
    CreateUserResponse: user,
    UpdateUserResponse: user,
    CreateAgentIdentityResponse: identity,
    UpdateAgentIdentityResponse: identity,
    CreateRoleResponse: role,
    UpdateRoleResponse: role,
    CreateTokenResponse: token,
    UpdateNodeResponse: node,
    UpdateClusterConfigResponse: config,
    RotateCaResponse: rotation,
    CreateAccessRequestResponse: request,
    ReviewAccessRequestResponse: request,
    CancelAccessRequestResponse: request,
    CreateConnectorResponse: connector,
    UpdateConnectorResponse: connector,
    CreateTrustedClusterResponse: trusted_cluster,
    UpdateTrustedClusterResponse: trusted_cluster,
    CreateSpiffeDomainResponse: domain,
    UpdateSpiffeDomainResponse: domain,
);
without_object!(
    ChangePasswordResponse,
    ResetUserPasswordResponse,
    CreateAuthJoinTokenResponse,
    CreateLockResponse,
    EmitAuditEventResponse
);
