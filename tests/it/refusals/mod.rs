//! What is refused: each a flaw that a system of this kind has had.

mod bounds;
mod joining;
mod login;
mod recordings;
mod stalled;
mod tls;
mod wire;
