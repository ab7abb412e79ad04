//! What `deploy/` has for an operator, looked at by the programs that it is for.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use mezite_e2e::{Scratch, all_files, binary, run, tools};

fn deploy(path: &str) -> PathBuf {
    tools::repository().join("deploy").join(path)
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units_and_little_that_they_expose() {
    // As `systemd-analyze security` counts: ten times what it shows, where 10.0 is a service that may do everything. The
    // agent is root, since host keys are root's.
    const MOST: [(&str, &str); 3] = [("auth-node", "15"), ("recording-ingest", "15"), ("mezctl-agent", "30")];
    let scratch = Scratch::new();
    for (unit, most) in MOST {
        let name = format!("{unit}.service");
        let mut text = fs::read_to_string(deploy("systemd").join(&name)).unwrap();
        for program in ["auth-node", "recording-ingest", "mezctl"] {
            text = text.replace(&format!("/usr/local/bin/{program}"), binary(program).to_str().unwrap());
        }
        let file = scratch.path().join(&name);
        fs::write(&file, text).unwrap();
        let said = run(Command::new("systemd-analyze").args(["verify", "--recursive-errors=no"]).arg(&file));
        assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{name}");
        let mut security = Command::new("systemd-analyze");
        let _ = run(security.args(["security", "--offline=true", "--threshold", most]).arg(&file)).ok();
    }
}

#[test]
fn prometheus_takes_its_configuration_and_rules_and_each_rule_fires_when_it_should() {
    for args in [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts_test.yml"],
    ] {
        let _ = run(Command::new("promtool").args(args).current_dir(deploy("monitoring"))).ok();
    }
}

#[test]
fn what_is_watched_is_counted_and_has_a_page_in_the_runbook() {
    let sources: String = ["raft-store/src", "auth-node/src", "recording-ingest/src"]
        .iter()
        .flat_map(|folder| all_files(&tools::repository().join(folder)))
        .filter(|file| file.extension().is_some_and(|extension| extension == "rs"))
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    let read = |name: &str| fs::read_to_string(deploy("monitoring").join(name)).unwrap();
    let (alerts, dashboard) = (read("alerts.yml"), read("dashboard.json"));
    let named: BTreeSet<_> = metrics(&alerts).chain(metrics(&dashboard)).collect();
    assert!(named.len() > 40, "{named:?}");
    let missing: Vec<_> = named.iter().filter(|name| !sources.contains(&format!("\"{name}\""))).collect();
    assert_eq!(missing, [] as [&&str; 0]);
    let runbook = fs::read_to_string(deploy("runbook.md")).unwrap();
    let pages = alerts.lines().filter_map(|line| line.trim().strip_prefix("runbook: deploy/runbook.md#"));
    let lost: Vec<_> = pages.filter(|page| !has_heading(&runbook, page)).collect();
    assert_eq!(lost, [] as [&str; 0]);
}

/// Names of our metrics in a text, without what histograms add to them.
fn metrics(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter_map(|word| {
        let name = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| word.strip_suffix(suffix));
        let name = name.unwrap_or(word);
        let ours = ["raft_", "mezite_", "grpc_server_"].iter().any(|prefix| name.starts_with(prefix));
        (ours && name.matches('_').count() > 1).then_some(name)
    })
}

fn has_heading(page: &str, anchor: &str) -> bool {
    let headings = page.lines().filter_map(|line| line.strip_prefix('#'));
    headings
        .map(|line| line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-"))
        .any(|own| own == anchor)
}

#[test]
fn manifests_are_what_kubernetes_takes() {
    let rendered = all_files(&deploy("kubernetes"));
    let manifests = rendered.iter().filter(|file| is_manifest(file));
    let mut validate = Command::new(tools::python());
    validate.args(["-m", "kubernetes_validate", "--strict"]).args(manifests);
    let _ = run(&mut validate).ok();
}

fn is_manifest(file: &Path) -> bool {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.ends_with(".yaml") && !["kustomization.yaml", "pod-monitor.yaml"].contains(&name)
}
