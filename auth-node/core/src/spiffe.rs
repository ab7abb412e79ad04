//! SPIFFE: workloads of other trust domains come with an SVID and get a session of the agent identity that has their SPIFFE
//! ID; and agents and agent identities get SVIDs of the cluster's own trust domain, which has the cluster's name.
//!
//! A trust domain is let in by an admin, with a bundle: who vouches for its workloads. Each vouches for its own alone. Nothing
//! is verified here; what verifies is given to [`authenticate`], which has it look at the bundle as it is in the transaction
//! that makes the session.

mod domain;
mod id;
mod issue;
mod login;
#[cfg(test)]
mod testing;

pub use self::{
    domain::{
        Authorities, Due, NewSpiffeDomain, Refreshed, SpiffeDomain, authorities, create, delete, due, get,
        list, refreshed, update,
    },
    id::{SpiffeId, TrustDomain},
    issue::{IssuedSvid, issue},
    login::{Attempt, Attested, authenticate},
};
