//! What the programs of Mezite are made of, whatever they do.
//!
//! A program that serves has a [`config::Settings`], begins and ends by [`program`], logs by [`logging`], and shows
//! itself by [`diagnostics`] and [`metrics`]: that is the feature `server`. [`files`] and [`clock`] are for every
//! program. Never here: a protocol, the domain, and what only one program has.

pub mod clock;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod diagnostics;
pub mod files;
#[cfg(feature = "server")]
pub mod logging;
#[cfg(feature = "server")]
pub mod metrics;
#[cfg(feature = "server")]
pub mod program;
