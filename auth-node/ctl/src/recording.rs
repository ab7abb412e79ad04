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

use recording_format::RecordingId;

/// The id of a new recording: a random UUID (RFC 9562, version 4).
pub(crate) fn new_id() -> RecordingId {
    let bits = u128::from_be_bytes(rand::random());
    let versioned = bits & !(0xf << 76) & !(0b11 << 62) | 0x4 << 76 | 0b10 << 62;
    RecordingId::from_bytes(versioned.to_be_bytes())
}
