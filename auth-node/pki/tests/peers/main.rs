//! The certificates, keys and signatures of this crate in the hands of programs that others wrote: OpenSSH's
//! `ssh-keygen`, OpenSSL, and rustls' verifier.
#![cfg(test)]

mod openssh;
mod openssl;
mod rustls_verifier;
mod tool;
