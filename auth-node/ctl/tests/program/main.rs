//! The program as its users run it: exit codes, what it prints and writes, and OpenSSH's own server and client on
//! the files that it wrote. The cluster behind it is one server that signs with real CAs and decides nothing.
#![cfg(test)]

mod cluster;
mod openssh;
mod outcome;
mod profiles;
mod recordings;
mod refresh;
mod report;
mod resources;
mod shown;
mod spool;
mod trust;
mod uploads;
