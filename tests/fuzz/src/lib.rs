//! What is read of strangers' bytes, and what must hold of it whatever they are: one function for each reader that is ours.
//!
//! `tests/fuzz/run` looks for bytes for which something does not hold (cargo-fuzz, which needs a nightly compiler); what it
//! found out about the readers is kept in `corpora/`, and each run of the tests goes through that again.
//!
//! A function panics when a promise is broken, and else says whether the bytes were taken for something good.

#![allow(clippy::panic, reason = "a broken promise is to be seen")]

mod asciicast;
mod certificates;
mod iam;
mod names;
mod recording;
mod spiffe_ids;
mod web;

/// A reader, with what must hold of it.
pub type Target = fn(&[u8]) -> bool;

/// All of them, by the names of their corpora.
pub const TARGETS: &[(&str, Target)] = &[
    ("names", names::names),
    ("spiffe_id", spiffe_ids::spiffe_id),
    ("spiffe_bundle", spiffe_ids::spiffe_bundle),
    ("jwt_svid", spiffe_ids::jwt_svid),
    ("x509", certificates::x509),
    ("ssh", certificates::ssh),
    ("iam_proof", iam::iam_proof),
    ("iam_answer", iam::iam_answer),
    ("webapi", web::webapi),
    ("credential", web::credential),
    ("recording", recording::recording),
    ("asciicast", asciicast::asciicast),
];

/// Has the target of a name look at some bytes.
///
/// # Panics
/// When a promise is broken, or there is no such target.
pub fn look(target: &str, bytes: &[u8]) -> bool {
    match TARGETS.iter().find(|(name, _)| *name == target) {
        Some((_, look)) => look(bytes),
        None => panic!("there is no target {target}"),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::PathBuf};

    use super::*;

    fn folder(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
    }

    /// The names of what is in a folder.
    fn names(folder: PathBuf) -> BTreeSet<String> {
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn all_holds_of_what_was_found_once() {
        for (name, look) in TARGETS {
            let corpus = folder("corpora").join(name);
            let (mut good, mut bad) = (0, 0);
            for entry in fs::read_dir(&corpus).unwrap_or_else(|error| panic!("{}: {error}", corpus.display()))
            {
                let count =
                    if look(&fs::read(entry.unwrap().path()).unwrap()) { &mut good } else { &mut bad };
                *count += 1;
            }
            // A target that takes nothing, or all, looks at nothing.
            assert!(good > 0 && bad > 0, "{name}: {good} good, {bad} bad");
        }
    }

    #[test]
    fn each_target_has_a_corpus_and_a_program_and_none_is_left_over() {
        let targets: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(names(folder("corpora")), targets);
        let programs = names(folder("targets/fuzz_targets"));
        assert_eq!(programs, targets.iter().map(|name| format!("{name}.rs")).collect());
        let manifest = fs::read_to_string(folder("targets/Cargo.toml")).unwrap();
        for name in &targets {
            assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
        }
    }
}
