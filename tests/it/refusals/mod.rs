//! What is refused: each a flaw that a system of this kind has had.

mod joining;
mod login;
mod recordings;
mod stalled;
mod wire;
