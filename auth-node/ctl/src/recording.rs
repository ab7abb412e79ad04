//! Recording a session on a host: what runs beside the user, and what runs in the agent.
//!
//! `mezctl record` runs as the login user, between sshd and the user's shell. [`run`] carries bytes between the two, and
//! puts what was seen on a [`tape`] as [`cast`] writes it; [`courier`] brings the tape to the agent over a Unix socket,
//! in the frames of [`wire`]. There, [`desk`] takes it into the spool, under the name that [`guard`] reads out of the
//! certificate of the session. The terminal never waits for any of it.

pub(crate) mod cast;
pub(crate) mod courier;
pub(crate) mod desk;
pub(crate) mod guard;
pub(crate) mod mode;
pub(crate) mod run;
pub(crate) mod tape;
pub(crate) mod wire;
