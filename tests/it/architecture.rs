//! The shape of the repository: which crate may know which, what lies at the top, and that each method says who may
//! call it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, PackageId};
use mezite_e2e::{run, tools};
use mezite_proto::{DESCRIPTOR_SET, SERVICE_NAME, access};
use prost_reflect::DescriptorPool;

/// Which workspace crates a crate may depend on. A crate that is not here has no place in the design.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("mezite-proto", &[]),
    ("mezite-daemon", &[]),
    ("mezite-pki", &[]),
    ("recording-format", &[]),
    ("store-txn", &[]),
    ("raft-store", &["mezite-proto", "store-txn"]),
    ("auth-core", &["mezite-pki", "store-txn"]),
    ("mezite-client", &["mezite-daemon", "mezite-pki", "mezite-proto", "recording-format"]),
    (
        "auth-node",
        &[
            "auth-core",
            "mezite-client",
            "mezite-daemon",
            "mezite-pki",
            "mezite-proto",
            "raft-store",
            "store-txn",
        ],
    ),
    ("mezctl", &["mezite-client", "mezite-daemon", "mezite-pki", "mezite-proto", "recording-format"]),
    (
        "recording-ingest",
        &["mezite-client", "mezite-daemon", "mezite-pki", "mezite-proto", "recording-format"],
    ),
    ("mezite-test-ports", &[]),
    ("mezite-fuzz", &["auth-core", "auth-node", "mezite-pki", "mezite-proto", "recording-format"]),
    (
        "mezite-e2e",
        &[
            "mezite-client",
            "mezite-daemon",
            "mezite-pki",
            "mezite-proto",
            "mezite-test-ports",
            "raft-store",
            "recording-format",
            "store-txn",
        ],
    ),
];

/// What a crate must not reach, however far away.
const MUST_NOT_REACH: &[(&str, &[&str])] = &[
    ("auth-core", &["tokio", "tonic", "openraft", "rocksdb", "mezite-proto", "raft-store"]),
    ("store-txn", &["tokio", "tonic", "openraft", "rocksdb", "prost"]),
    // It links tonic for the exporter of traces, and has no protocol of ours to speak by it.
    ("mezite-daemon", &["mezite-proto", "openraft", "rocksdb"]),
    ("mezite-pki", &["tokio", "tonic", "openraft", "rocksdb"]),
    ("recording-format", &["tokio", "tonic", "openraft", "rocksdb", "object_store"]),
    ("recording-ingest", &["auth-node", "auth-core", "raft-store", "store-txn", "openraft", "rocksdb"]),
    ("mezite-client", &["auth-node", "auth-core", "raft-store", "store-txn", "openraft", "rocksdb"]),
    ("mezctl", &["auth-node", "auth-core", "raft-store", "store-txn", "openraft", "rocksdb"]),
];

/// What only one crate may use itself.
const ONLY: &[(&str, &str)] =
    &[("openraft", "raft-store"), ("rocksdb", "raft-store"), ("object_store", "recording-ingest")];

/// What lies at the top of the repository, and must.
const TOP: &[&str] =
    &["Cargo.toml", "README.md", "auth-node", "deploy", "proto", "raft-store", "recording-ingest", "tests"];
/// What may lie there beside it, apart from what git ignores.
const TOP_CUSTOMARY: &[&str] = &[
    ".cargo",
    ".ci",
    ".clippy.toml",
    ".config",
    ".deny.toml",
    ".git",
    ".github",
    ".gitignore",
    ".rustfmt.toml",
    "ARCHITECTURE.md",
    "Cargo.lock",
    "LICENSE",
    "target",
];

fn metadata() -> Metadata {
    // Without the other platforms' crates, which nobody has downloaded.
    let version = run(Command::new(env!("CARGO")).arg("-vV")).ok();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let options = ["--locked", "--offline", "--filter-platform", host].map(str::to_owned).to_vec();
    let manifest = tools::repository().join("Cargo.toml");
    MetadataCommand::new().manifest_path(manifest).other_options(options).exec().unwrap()
}

fn members(metadata: &Metadata) -> BTreeMap<&str, &Package> {
    metadata.workspace_packages().into_iter().map(|package| (package.name.as_str(), package)).collect()
}

/// Crates that a crate uses itself, apart from its tests and its build.
fn uses(package: &Package) -> BTreeSet<&str> {
    let normal = package.dependencies.iter().filter(|dependency| dependency.kind == DependencyKind::Normal);
    normal.map(|dependency| dependency.name.as_str()).collect()
}

/// Everything that is linked into a crate.
fn reaches<'a>(metadata: &'a Metadata, package: &Package) -> BTreeSet<&'a str> {
    let nodes = &metadata.resolve.as_ref().unwrap().nodes;
    let edges: BTreeMap<&PackageId, Vec<&PackageId>> = nodes
        .iter()
        .map(|node| {
            let normal = node.deps.iter().filter(|dependency| {
                dependency.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal)
            });
            (&node.id, normal.map(|dependency| &dependency.pkg).collect())
        })
        .collect();
    let (mut seen, mut next) = (BTreeSet::new(), vec![&package.id]);
    while let Some(id) = next.pop() {
        next.extend(edges[id].iter().filter(|id| seen.insert(**id)));
    }
    seen.into_iter().map(|id| metadata[id].name.as_str()).collect()
}

#[test]
fn crates_depend_in_one_direction() {
    let metadata = metadata();
    let members = members(&metadata);
    let known: BTreeSet<_> = MAY_KNOW.iter().map(|(name, _)| *name).collect();
    assert_eq!(members.keys().copied().collect::<BTreeSet<_>>(), known);
    for (name, may) in MAY_KNOW {
        let ours: BTreeSet<_> =
            uses(members[name]).into_iter().filter(|name| members.contains_key(name)).collect();
        let wrong: Vec<_> = ours.into_iter().filter(|name| !may.contains(name)).collect();
        assert!(wrong.is_empty(), "{name} must not depend on {wrong:?}");
    }
}

#[test]
fn no_crate_reaches_what_it_must_not_know() {
    let metadata = metadata();
    let members = members(&metadata);
    for (name, forbidden) in MUST_NOT_REACH {
        let reached = reaches(&metadata, members[name]);
        assert!(!reached.is_empty() || *name == "store-txn", "{name} has dependencies");
        let wrong: Vec<_> = forbidden.iter().filter(|name| reached.contains(*name)).collect();
        assert!(wrong.is_empty(), "{name} must not reach {wrong:?}");
    }
    for (dependency, only) in ONLY {
        let users: Vec<_> =
            members.iter().filter(|(_, package)| uses(package).contains(dependency)).collect();
        assert!(users.iter().all(|(name, _)| *name == only), "only {only} may use {dependency}");
        assert_eq!(users.len(), 1);
    }
}

#[test]
fn the_store_knows_its_own_part_of_the_protocol_alone() {
    let metadata = metadata();
    let store = members(&metadata)["raft-store"];
    let proto = store.dependencies.iter().find(|dependency| dependency.name == "mezite-proto").unwrap();
    assert!(!proto.uses_default_features);
    assert!(!proto.features.iter().any(|feature| feature == "auth"), "{:?}", proto.features);
}

#[test]
fn every_crate_has_the_workspaces_lints() {
    for (name, package) in members(&metadata()) {
        let manifest: toml::Table = fs::read_to_string(&package.manifest_path).unwrap().parse().unwrap();
        let lints = manifest.get("lints").and_then(|lints| lints.get("workspace")?.as_bool());
        assert_eq!(lints, Some(true), "{name}");
    }
}

#[test]
fn the_top_of_the_repository_is_as_agreed() {
    let entries = fs::read_dir(tools::repository()).unwrap();
    let found: BTreeSet<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let missing: Vec<_> = TOP.iter().filter(|name| !found.contains(**name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let allowed = |name: &String| TOP.contains(&name.as_str()) || TOP_CUSTOMARY.contains(&name.as_str());
    let strange: Vec<_> = found.iter().filter(|name| !allowed(name)).collect();
    assert!(strange.is_empty(), "{strange:?}");
}

#[test]
fn every_method_says_who_may_call_it() {
    let pool = DescriptorPool::decode(DESCRIPTOR_SET).unwrap();
    let service = pool.get_service_by_name(SERVICE_NAME).unwrap();
    let extension = pool.get_extension_by_name("mezite.v1.access").unwrap();
    for method in service.methods() {
        let options = method.options();
        assert!(options.has_extension(&extension), "{}", method.name());
        let written = options.get_extension(&extension);
        let written = written.as_message().unwrap().get_field_by_name("classes").unwrap();
        let written: Vec<_> =
            written.as_list().unwrap().iter().map(|class| class.as_enum_number().unwrap()).collect();
        let rule = access::rule(method.name()).unwrap_or_else(|| panic!("{} has no rule", method.name()));
        let classes: Vec<_> = rule.classes.iter().map(|class| *class as i32).collect();
        assert_eq!(classes, written, "{}", method.name());
        assert!(!classes.is_empty() && !classes.contains(&0), "{}", method.name());
    }
    assert_eq!(service.methods().count(), access::METHODS.len());
    assert_eq!(access::rule("NoSuchMethod"), None);
}
