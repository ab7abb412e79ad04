//! Joining by an AWS identity: AWS is asked who has signed a request.
//!
//! A joiner does not send a request, but the parts of one that only it can make. From these, and from what is fixed here,
//! the request is built anew: so whatever is asked, of whom, and how, is this node's choice, and all that a joiner can
//! choose is a region, an access key and a signature. What is signed has the challenge of this one call in it.
//!
//! `request` builds it, `regions` says where AWS is, `answer` reads what it says, and `sts` does the asking. Whom a token
//! lets in is decided by `auth_core::iam`.

pub(crate) mod answer;
mod regions;
mod request;
mod sts;

pub(crate) use request::{Endpoints, Proof};
pub(crate) use sts::{Sts, authority};
