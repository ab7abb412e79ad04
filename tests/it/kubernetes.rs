//! `deploy/kubernetes` without a Kubernetes: its scripts as they stand there, with the programs, in pods that are processes of this machine.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use mezite_e2e::{Ctl, Port, Process, Scratch, binary, eventually, run, tied, tools};

/// A debug build on a loaded machine takes its time.
const PATIENCE: Duration = Duration::from_secs(90);

fn manifests() -> PathBuf {
    tools::repository().join("deploy/kubernetes")
}

/// What stands for the Kubernetes: folders of pods and Secrets, and a `kubectl` that knows them (`kubernetes/kubectl`).
struct Kube {
    scratch: Scratch,
}

impl Kube {
    fn new() -> Self {
        let kube = Self { scratch: Scratch::new() };
        for folder in ["pods", "secrets", "bin"] {
            fs::create_dir(kube.path(folder)).unwrap();
        }
        for program in ["auth-node", "recording-ingest", "mezctl"] {
            symlink(binary(program), kube.path("bin").join(program)).unwrap();
        }
        let kubectl = tools::repository().join("tests/it/kubernetes/kubectl");
        symlink(kubectl, kube.path("bin/kubectl")).unwrap();
        kube
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// A program that finds ours, kubectl among them, and nothing of this environment that configures them.
    fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = tied(program.as_ref());
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MEZITE_")) {
            command.env_remove(name);
        }
        let path = format!("{}:{}", self.path("bin").display(), env::var("PATH").unwrap());
        command.env("PATH", path).env("KUBE", self.scratch.path()).env("MEZITE_PATIENCE", "80");
        command
    }

    fn bootstrap(&self) -> Process {
        Process::spawn("bootstrap", self.command(manifests().join("bootstrap")), &self.path("bootstrap.log"))
    }

    /// What a Secret has under this key.
    fn secret(&self, name: &str, key: &str) -> String {
        fs::read_to_string(self.path("secrets").join(name).join(key)).unwrap()
    }

    /// The admin, at this pod, by the password of the Secret.
    fn admin(&self, pod: &Pod<'_>) -> Ctl {
        let ctl = Ctl::new(&self.path("admin"), &[pod.api.address()], &self.secret("mezite-admin", "ca-pin"));
        let _ = ctl.login("admin", &self.secret("mezite-admin", "password")).ok();
        ctl
    }
}

/// One pod: its folder has the files of `deploy/kubernetes`, with paths of this folder for those that it mounts, and its volume.
struct Pod<'a> {
    kube: &'a Kube,
    name: String,
    component: &'static str,
    api: Port,
    more: [Port; 3],
}

impl<'a> Pod<'a> {
    fn new(kube: &'a Kube, component: &'static str, number: usize) -> Self {
        let (name, api) = (format!("{component}-{number}"), Port::lease());
        let pod = Self { kube, name, component, api, more: [Port::lease(), Port::lease(), Port::lease()] };
        for folder in ["volume", "etc", "home"] {
            fs::create_dir_all(pod.path(folder)).unwrap();
        }
        let joins = if component == "auth" { "mezite-join" } else { "mezite-ingest-join" };
        let secrets = kube.path("secrets");
        let mounts = [
            ("/var/lib/mezite", pod.path("volume")),
            ("/etc/mezite", pod.path("etc")),
            ("/run/secrets/mezite/admin", secrets.join("mezite-admin")),
            ("/run/secrets/mezite/join", secrets.join(joins)),
        ];
        for file in [pod.script(), pod.config()] {
            let name = file.file_name().unwrap();
            let mut text = fs::read_to_string(manifests().join(name)).unwrap();
            for (path, folder) in &mounts {
                text = text.replace(path, folder.to_str().unwrap());
            }
            fs::write(file, text).unwrap();
        }
        fs::write(pod.path("api"), pod.api.address()).unwrap();
        fs::write(pod.path("diagnostics"), pod.more[0].address()).unwrap();
        pod
    }

    fn path(&self, name: &str) -> PathBuf {
        self.kube.path("pods").join(&self.name).join(name)
    }

    fn script(&self) -> PathBuf {
        self.path("etc").join(format!("join-{}", self.component))
    }

    fn config(&self) -> PathBuf {
        self.path("etc").join(format!("{}.toml", self.component))
    }

    /// A program in it, with the environment that its manifest gives it, and ports of this machine.
    fn command(&self, program: &str, first: &Self) -> Command {
        let mut command = self.kube.command(program);
        let [diagnostics, peer, web] = self.more.each_ref().map(Port::address);
        let (at, prefix) = (self.api.address(), format!("MEZITE_{}__", self.component.to_uppercase()));
        let mut set = |field: &str, value: &str| _ = command.env(format!("{prefix}{field}"), value);
        set("LISTEN", &at);
        set("ADVERTISE", &at);
        set("DIAGNOSTICS_LISTEN", &diagnostics);
        if self.component == "auth" {
            set("PEER_LISTEN", &peer);
            set("PEER_ADVERTISE", &peer);
            set("WEB__LISTEN", &web);
        } else {
            set("HOSTNAME", &format!("{}.ingest.mezite.svc", self.name));
            set("AUTH_SERVERS", &format!("[{:?}]", first.api.address()));
            set("STORE", &format!("file://{}", self.path("store").display()));
            set("DISK__REFUSE_NEW", "0");
            set("DISK__REFUSE_APPENDS", "0");
        }
        command.env("POD_NAME", &self.name).env("CLUSTER_NAME", "example");
        command
    }

    /// Its init container.
    fn join(&self, first: &Self) -> Process {
        let mut command = self.command("sh", first);
        command.arg(self.script());
        Process::spawn(&format!("join of {}", self.name), command, &self.path("log"))
    }

    /// Runs its init container to its end, and starts what it is for.
    async fn start(&self, first: &Self) -> Process {
        assert!(self.join(first).exited(PATIENCE).await.success(), "{}", self.name);
        let program = if self.component == "auth" { "auth-node" } else { "recording-ingest" };
        let mut command = self.command(program, first);
        command.args(["run", "--config", self.config().to_str().unwrap()]);
        Process::spawn(&self.name, command, &self.path("log"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bootstrap_makes_a_cluster_of_the_pods_and_when_it_is_run_again_removes_those_that_are_gone() {
    let kube = Kube::new();
    let [first, second] = [0, 1].map(|number| Pod::new(&kube, "auth", number));
    let ingest = Pod::new(&kube, "ingest", 0);
    let mut bootstrap = kube.bootstrap();
    let (one, two, mut served, ended) = tokio::join!(
        first.start(&first),
        second.start(&first),
        ingest.start(&first),
        bootstrap.exited(PATIENCE)
    );
    let _nodes = [one, two];
    let pin = kube.secret("mezite-admin", "ca-pin");
    assert!(ended.success() && bootstrap.log().contains(&format!("--ca-pin {pin} --user admin")));
    // The tokens of auth nodes are used; that of ingests stays.
    assert!(!kube.path("secrets/mezite-join").exists());
    let admin = kube.admin(&first);
    let ingests = || admin.json(&["cluster", "status"])["ingests"].as_array().unwrap().clone();
    assert_eq!((admin.json(&["cluster", "ls"]).as_array().unwrap().len(), ingests().len()), (2, 1));

    // A pod goes, and another comes.
    served.kill();
    fs::remove_dir_all(ingest.path("")).unwrap();
    let token = kube.secret("mezite-ingest-join", "name");
    let ingest = Pod::new(&kube, "ingest", 1);
    let _served = ingest.start(&first).await;
    eventually("the first ingest is offline", PATIENCE, async || {
        let known = ingests();
        let online: Vec<_> = known.iter().filter(|ingest| ingest["online"] == true).collect();
        if (online.len(), known.len()) == (1, 2) { Ok(()) } else { Err(format!("{known:?}")) }
    })
    .await;
    let mut again = kube.bootstrap();
    assert!(again.exited(PATIENCE).await.success());
    assert!(again.log().contains("Removing the ingest of the pod ingest-0, which is gone"));
    let known = ingests();
    assert!(known.len() == 1 && known[0]["hostname"] == "ingest-1.ingest.mezite.svc", "{known:?}");
    let tokens = admin.json(&["tokens", "ls"]);
    let named = |name: &str| tokens.as_array().unwrap().iter().any(|token| token["name"] == name);
    assert!(named(&kube.secret("mezite-ingest-join", "name")) && !named(&token), "{tokens}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_volume_of_the_first_pod_makes_no_second_cluster() {
    let kube = Kube::new();
    let admin = kube.path("secrets/mezite-admin");
    fs::create_dir(&admin).unwrap();
    fs::write(admin.join("password"), "a password of the admin").unwrap();
    fs::write(admin.join("ca-pin"), "sha256:of-the-cluster").unwrap();
    let pod = Pod::new(&kube, "auth", 0);
    let join = pod.join(&pod);
    eventually("it waits for a token", PATIENCE, async || {
        let said = join.log();
        if said.contains("waiting for the Secrets") { Ok(()) } else { Err(said) }
    })
    .await;
    assert!(!pod.path("volume/node").exists());
}

#[test]
fn the_prometheus_operator_is_given_the_rules_that_prometheus_is() {
    let printed = run(&mut Command::new(manifests().join("prometheus-rule"))).ok();
    let rule = Scratch::new();
    let file = rule.path().join("rule.yaml");
    fs::write(&file, printed).unwrap();
    let same = "import sys, yaml; rule, alerts = [yaml.safe_load(open(file)) for file in sys.argv[1:]]; \
                assert rule['kind'] == 'PrometheusRule' and alerts['groups'] and rule['spec'] == alerts";
    let alerts = tools::repository().join("deploy/monitoring/alerts.yml");
    let _ = run(Command::new(tools::python()).args(["-c", same]).args([file, alerts])).ok();
}

/// A manifest that no list has is applied by nobody, and pods that the PodMonitor does not find are watched by nobody.
#[test]
fn the_list_of_manifests_is_whole_and_the_pod_monitor_finds_the_pods() {
    let prometheus = tools::repository().join("deploy/monitoring/prometheus.yml");
    let mut agrees = Command::new(tools::python());
    agrees.arg(tools::repository().join("tests/it/kubernetes/agrees")).args([manifests(), prometheus]);
    let _ = run(&mut agrees).ok();
}
