//! The references are generated: that of the API from the comments of its proto, those of the configurations from the structs that
//! they are read into. Each is a file of the repository, and these tests keep it as the sources say.
//!
//! `MEZITE_WRITE_REFERENCES=1 tests/run references` writes them.

mod api;
mod config;
mod defaults;

use std::{env, fs};

use mezite_e2e::tools::repository;

fn is_current(path: &str, text: &str) {
    let file = repository().join(path);
    if env::var_os("MEZITE_WRITE_REFERENCES").is_some() {
        fs::write(&file, text).unwrap();
    }
    let found = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        found == text,
        "{path} is not what its sources say: MEZITE_WRITE_REFERENCES=1 tests/run references writes it"
    );
}

#[test]
fn the_reference_of_the_api_is_that_of_its_proto() {
    is_current("proto/v1/api.md", &api::reference());
}

#[test]
fn the_reference_of_the_configuration_is_that_of_its_structs() {
    is_current("deploy/configuration.md", &config::reference());
}

#[test]
fn the_reference_of_the_configuration_has_the_defaults_of_the_programs() {
    let compared = defaults::compare();
    assert!(compared > 60, "only {compared} were compared");
}
