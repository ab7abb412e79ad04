//! Calls that take effect once, however often they are made. A client gives all attempts of one call the same
//! idempotency key; the answer is kept by the same commit as the effect, and given again to the same caller for the
//! same request. An answer may hold a secret, and a request a password: so the answer, and the digest that tells one
//! request from another, are sealed under a key that is made of the client's, of which the store has only a digest.
//! Which methods are such is not said here.

use std::fmt;

use sha2::{Digest, Sha256};
use store_txn::{Key, Read, ReadExt, Transaction, TransactionExt, UnixMillis, Versioned};
use zeroize::Zeroizing;

pub use crate::seal::NONCE_LENGTH;
use crate::{
    Caller, Context, CoreError,
    seal::{self, Place},
    secret::SecretDigest,
    tables::{AnswerKey, AnswerRow},
};

/// How long an answer is kept, in milliseconds: ten minutes, which is twice as long as our client goes on with a call.
pub const KEPT_MS: UnixMillis = 10 * 60 * 1000;
/// Length of an idempotency key, in bytes. Its text has two hexadecimal digits for each.
pub const KEY_LENGTH: usize = 32;

/// Name of the metadata that carries an idempotency key: what a refusal names as the field.
pub const FIELD: &str = "mezite-idempotency-key";
/// First part of the digest under which an answer is found.
const ROW_DOMAIN: &[u8] = b"mezite answer\0";
/// First part of the digest that seals an answer.
const SEAL_DOMAIN: &[u8] = b"mezite answer key\0";
/// First part of what is authenticated beside the key.
const PLACE_DOMAIN: &[u8] = b"mezite answer row";

/// Names one call: 256 bits that its client drew at random. Who has it can open the answer, so it is wiped and never
/// shown.
#[derive(Clone)]
pub struct IdempotencyKey(Zeroizing<[u8; KEY_LENGTH]>);

impl IdempotencyKey {
    /// Reads the text of a key: 64 hexadecimal digits, lower case.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for [`FIELD`].
    pub fn parse(text: &str) -> Result<Self, CoreError> {
        let refused =
            || CoreError::invalid(FIELD, "64 hexadecimal digits, lower case, drawn at random for each call");
        let mut key = Zeroizing::new([0; KEY_LENGTH]);
        if !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(refused());
        }
        hex::decode_to_slice(text, key.as_mut_slice()).map_err(|_| refused())?;
        Ok(Self(key))
    }
}

impl IdempotencyKey {
    /// Another random value, which is the same for all attempts of the call: for what a call asks of another cluster.
    pub fn derived(&self, domain: &[u8]) -> [u8; 32] {
        let mut hasher = Sha256::new();
        hasher.update(domain);
        hasher.update(self.0.as_slice());
        hasher.finalize().into()
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdempotencyKey")
    }
}

/// A call that takes effect once: how its repetitions are known.
#[derive(Clone)]
pub struct OnceCall {
    method: &'static str,
    key: IdempotencyKey,
    request: [u8; 32],
}

impl fmt::Debug for OnceCall {
    // Without the digest of the request: a password in it could be guessed by that.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnceCall").field("method", &self.method).finish_non_exhaustive()
    }
}

/// What a call was answered when it took effect.
#[derive(Clone, PartialEq)]
pub struct Answer {
    /// Revision of the commit of its effect.
    pub revision: u64,
    /// The reply, as it was kept.
    pub reply: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("revision", &self.revision).finish_non_exhaustive()
    }
}

impl OnceCall {
    /// A call of a method with this key and this encoded request.
    pub fn new(method: &'static str, key: IdempotencyKey, request: &[u8]) -> Self {
        Self { method, key, request: Sha256::digest(request).into() }
    }

    /// What it was answered, if it took effect before. Ask this before anything that would refuse the call because it
    /// took effect already.
    ///
    /// # Errors
    /// [`CoreError::KeyReused`] when the key was used with another request, [`CoreError::Unauthenticated`] for a caller
    /// that is nobody, [`CoreError::Internal`], [`CoreError::Storage`].
    pub fn recall(
        &self,
        state: &mut (impl Read + ?Sized),
        context: &Context,
    ) -> Result<Option<Answer>, CoreError> {
        let key = self.row_key(context)?;
        let Some(Versioned { revision, row }) = state.get(&key)? else { return Ok(None) };
        let unreadable = |why| CoreError::Internal(format!("the answer of a call cannot be opened: {why}"));
        let place = key.encode();
        let place = Place { domain: PLACE_DOMAIN, within: &place };
        let opened = seal::unseal(&self.sealing_key(), place, &row.sealed).map_err(unreadable)?;
        let (request, reply) = opened.split_first_chunk().ok_or_else(|| unreadable("it is cut off"))?;
        if *request != self.request {
            return Err(CoreError::KeyReused);
        }
        Ok(Some(Answer { revision, reply: Zeroizing::new(reply.to_vec()) }))
    }

    /// Keeps the answer, in the transaction of the effect.
    ///
    /// # Errors
    /// [`CoreError::Unauthenticated`] for a caller that is nobody, [`CoreError::Internal`].
    pub fn keep(
        &self,
        tx: &mut (impl Transaction + ?Sized),
        context: &Context,
        reply: &[u8],
        nonce: [u8; NONCE_LENGTH],
    ) -> Result<(), CoreError> {
        let key = self.row_key(context)?;
        let secret = Zeroizing::new([&self.request, reply].concat());
        let place = key.encode();
        let place = Place { domain: PLACE_DOMAIN, within: &place };
        let sealed = seal::seal(&self.sealing_key(), place, &secret, nonce)?;
        tx.put(&key, &AnswerRow { sealed, expires_at_ms: tx.now().saturating_add(KEPT_MS) });
        Ok(())
    }

    /// Where the answer is kept. Neither the name of a method nor that of a caller has a zero byte.
    fn row_key(&self, context: &Context) -> Result<AnswerKey, CoreError> {
        let mut hasher = Sha256::new();
        hasher.update(ROW_DOMAIN);
        let caller = match &context.caller {
            Caller::User(user) => user.name.to_string(),
            // With its kind in front, which no name of a user can have.
            Caller::Agent { .. } | Caller::Ingest { .. } | Caller::Remote(_) | Caller::AgentIdentity(_) => {
                context.caller.actor()
            }
            Caller::Anonymous | Caller::Init | Caller::Cluster | Caller::Unregistered { .. } => {
                let reason = "this call takes effect once for a session or a registered client certificate";
                return Err(CoreError::Unauthenticated(reason));
            }
        };
        for part in [self.method, caller.as_str()] {
            hasher.update(part);
            hasher.update([0]);
        }
        hasher.update(self.key.0.as_slice());
        Ok(AnswerKey(SecretDigest(hasher.finalize().into())))
    }

    /// What the answer is sealed under. The client's key is as random as a key can be, so one digest derives another.
    fn sealing_key(&self) -> Zeroizing<[u8; seal::KEY_LENGTH]> {
        let mut hasher = Sha256::new();
        hasher.update(SEAL_DOMAIN);
        hasher.update(self.key.0.as_slice());
        Zeroizing::new(hasher.finalize().into())
    }
}

#[cfg(test)]
#[path = "repeat_tests.rs"]
mod tests;
