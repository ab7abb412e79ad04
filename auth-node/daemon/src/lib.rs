//! What the programs of Mezite are made of, whatever they do.
//!
//! A program that serves has a [`config::Settings`], begins and ends by [`program`], logs by [`logging`], and shows
//! itself by [`diagnostics`], [`metrics`] and [`supervisor`], and each call by [`calls`] and [`traces`]: that is the feature `server`, and
//! it brings the allocator. [`files`], [`clock`], and the bounds [`places`] and [`pace`] are for every program. Never here: a protocol, the domain, and what only one program has.

#[cfg(feature = "server")]
pub mod calls;
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
pub mod pace;
pub mod places;
#[cfg(feature = "server")]
pub mod program;
#[cfg(feature = "server")]
pub mod supervisor;
#[cfg(feature = "server")]
pub mod traces;

/// Exit code of a program that its cluster does not have any more: it was removed, or the cluster was restored from before it joined.
/// Starting it again changes nothing, so units name it in `RestartPreventExitStatus=`. `EX_CONFIG` of sysexits(3).
pub const REMOVED: u8 = 78;

/// For what is Rust. Under load glibc's takes more processor time, since what one thread allocates another often frees: a
/// tenth more was measured beside jemalloc for everything. In place of glibc's for C++ as well it hangs at the start under
/// libfaketime, which the tests need.
#[cfg(feature = "server")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
