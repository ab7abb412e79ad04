//! What `deploy/` has for an operator, looked at by the programs that it is for.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use mezite_e2e::{Scratch, all_files, binary, run, tools};
use mezite_proto::access;
use serde_json::{Value, json};
use tonic::Code;

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
    let sources = sources();
    let (alerts, dashboard) = (monitoring("alerts.yml"), monitoring("dashboard.json"));
    let named: BTreeSet<_> = metrics(&alerts).chain(metrics(&dashboard)).collect();
    assert!(named.len() > 40, "{named:?}");
    let missing: Vec<_> = named.iter().filter(|name| !sources.contains(&format!("\"{name}\""))).collect();
    assert_eq!(missing, [] as [&&str; 0]);
    let runbook = fs::read_to_string(deploy("runbook.md")).unwrap();
    let pages = alerts.lines().filter_map(|line| line.trim().strip_prefix("runbook: deploy/runbook.md#"));
    let lost: Vec<_> = pages.filter(|page| !has_heading(&runbook, page)).collect();
    assert_eq!(lost, [] as [&str; 0]);
}

/// The programs that are watched.
fn sources() -> String {
    ["raft-store/src", "auth-node/src", "auth-node/daemon/src", "recording-ingest/src"]
        .iter()
        .flat_map(|folder| all_files(&tools::repository().join(folder)))
        .filter(|file| file.extension().is_some_and(|extension| extension == "rs"))
        .map(|file| fs::read_to_string(file).unwrap())
        .collect()
}

fn monitoring(name: &str) -> String {
    fs::read_to_string(deploy("monitoring").join(name)).unwrap()
}

/// Names of our metrics in a text, without what histograms add to them.
fn metrics(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter_map(|word| {
        let name = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| word.strip_suffix(suffix));
        let name = name.unwrap_or(word);
        let ours = ["raft_", "mezite_", "grpc_server_"].iter().any(|prefix| name.starts_with(prefix));
        ours.then_some(name)
    })
}

#[test]
fn prometheus_takes_each_expression_of_the_dashboard() {
    let expressions = expressions();
    assert!(expressions.len() > 60, "{expressions:?}");
    let rules = expressions.iter().enumerate().map(|(number, expression)| {
        let expression = expression.replace("$__rate_interval", "5m").replace("$method", ".*");
        let expression = expression.replace("$ingest", ".*");
        assert!(!expression.contains('$'), "{expression}");
        json!({ "record": format!("dashboard:{number}"), "expr": expression })
    });
    let scratch = Scratch::new();
    let file = scratch.path().join("dashboard.yml");
    let groups = json!({ "groups": [{ "name": "dashboard", "rules": rules.collect::<Vec<_>>() }] });
    fs::write(&file, groups.to_string()).unwrap();
    let _ = run(Command::new("promtool").args(["check", "rules"]).arg(&file)).ok();
}

/// What the dashboard asks Prometheus.
fn expressions() -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![serde_json::from_str(&monitoring("dashboard.json")).unwrap()];
    while let Some(value) = left.pop() {
        match value {
            Value::Array(values) => left.extend(values),
            Value::Object(mut fields) => {
                if let Some(Value::String(expression)) = fields.remove("expr") {
                    found.push(expression);
                }
                left.extend(fields.into_iter().map(|(_, value)| value));
            }
            _ => {}
        }
    }
    found
}

/// A method that is misspelt in an expression is one that nobody watches.
#[test]
fn each_method_code_and_reason_that_an_expression_names_is_there() {
    let methods: Vec<_> = access::METHODS.iter().map(|rule| rule.method.to_owned()).collect();
    let codes: Vec<_> = (0..=16).map(|code| format!("{:?}", Code::from(code))).collect();
    let literals: Vec<_> = sources().split('"').map(str::to_owned).collect();
    let text = [monitoring("alerts.yml"), expressions().join("\n")].join("\n");
    let named: BTreeSet<_> = matchers(&text).collect();
    assert!(named.len() > 20, "{named:?}");
    for (label, pattern) in named {
        let values = match label {
            "method" => &methods,
            "code" => &codes,
            _ => &literals,
        };
        let lost: Vec<_> = alternatives(pattern).into_iter().filter(|one| !is_met(one, values)).collect();
        assert!(lost.is_empty(), "no {label} is {lost:?}");
    }
}

/// Labels that our programs give, and what an expression wants of them.
fn matchers(text: &str) -> impl Iterator<Item = (&str, &str)> {
    const OURS: [&str; 7] = ["method", "code", "reason", "kind", "state", "result", "mark"];
    let before = text.split('"').zip(text.split('"').skip(1));
    before.filter_map(|(before, pattern)| {
        let name = before.trim_end_matches(['=', '~', '!']);
        let label = name.rsplit(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).next()?;
        let is_one = name.len() < before.len() && OURS.contains(&label) && !pattern.starts_with('$');
        is_one.then_some((label, pattern))
    })
}

/// What a regular expression allows, one by one; its groups are not nested.
fn alternatives(pattern: &str) -> Vec<String> {
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for c in pattern.chars() {
        match c {
            '|' if depth == 0 => parts.push(String::new()),
            c => {
                depth += i32::from(c == '(') - i32::from(c == ')');
                parts.last_mut().unwrap().push(c);
            }
        }
    }
    let each = |part: String| match part.split_once('(') {
        None => vec![part],
        Some((before, rest)) => {
            let (group, after) = rest.split_once(')').unwrap();
            group.split('|').flat_map(|one| alternatives(&format!("{before}{one}{after}"))).collect()
        }
    };
    parts.into_iter().flat_map(each).collect()
}

#[test]
fn alternatives_of_a_regular_expression_are_told() {
    assert_eq!(alternatives(".*Keys?"), [".*Keys?"]);
    assert_eq!(alternatives("Get|(A|B)(C|D)x|Z"), ["Get", "ACx", "ADx", "BCx", "BDx", "Z"]);
}

/// Whether one of the values is all of what a regular expression wants.
fn is_met(pattern: &str, values: &[String]) -> bool {
    let mut grep = Command::new("grep");
    grep.args(["-Exq", "-e", pattern]).stdin(Stdio::piped());
    let mut grep = grep.spawn().unwrap();
    // It ends with the first that it finds.
    let _ = grep.stdin.take().unwrap().write_all(values.join("\n").as_bytes());
    grep.wait().unwrap().success()
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
