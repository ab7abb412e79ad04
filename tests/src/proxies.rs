//! nginx and HAProxy before a cluster, with the configurations that `deploy/proxy` has for them.

use std::{fs, path::Path, process::Command, time::Duration};

use tokio::net::TcpStream;

use crate::{Cluster, Port, Process, ctl::run, eventually, tools};

/// Where the proxies connect from: the address that a cluster trusts as a proxy's, so that nothing else here is taken for one.
pub const PROXY_ADDRESS: &str = "127.0.0.2";

/// A proxy that listens within this has started.
const READY: Duration = Duration::from_secs(30);

/// A program that stands before a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyKind {
    /// nginx, with its module stream.
    Nginx,
    /// `HAProxy`.
    HaProxy,
}

/// One that runs. What it listens on was leased before, since ingests advertise it.
#[derive(Debug)]
pub struct LoadBalancer {
    _process: Process,
}

impl LoadBalancer {
    /// Starts one that listens on `api` and `web` for a cluster and its ingests.
    ///
    /// # Panics
    /// When the program is not installed, or finds something wrong with its configuration.
    pub async fn start(
        kind: ProxyKind,
        cluster: &Cluster,
        ingests: &[(String, String)],
        api: &Port,
        web: &Port,
    ) -> Self {
        let dir = cluster.dir().join("proxy");
        fs::create_dir(&dir).unwrap();
        let file = match kind {
            ProxyKind::Nginx => "nginx.conf",
            ProxyKind::HaProxy => "haproxy.cfg",
        };
        let deployed = fs::read_to_string(tools::repository().join("deploy/proxy").join(file)).unwrap();
        let config = dir.join(file);
        fs::write(&config, for_this_machine(kind, &deployed, cluster, ingests, api, web)).unwrap();
        let (check, start) = match kind {
            ProxyKind::Nginx => (nginx(&dir, &config, &["-t"]), nginx(&dir, &config, &[])),
            ProxyKind::HaProxy => (haproxy(&config, &["-c"]), haproxy(&config, &["-db"])),
        };
        let _ = run(&mut { check }).ok();
        let mut process = Process::spawn(file, start, &dir.join("log"));
        for port in [api, web] {
            eventually("the proxy listens", READY, async || {
                process.assert_running();
                TcpStream::connect(port.address()).await.map(drop).map_err(|error| error.to_string())
            })
            .await;
        }
        Self { _process: process }
    }
}

/// Debian's: the module is loaded as its package has it loaded. In one process, which dies as a whole when it is killed.
fn nginx(dir: &Path, config: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("/usr/sbin/nginx");
    let global =
        format!("daemon off; master_process off; pid {0}/pid; error_log {0}/errors notice;", dir.display());
    command.arg("-c").arg(config).args(["-g", &global]).args(args);
    command
}

fn haproxy(config: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("/usr/sbin/haproxy");
    command.args(args).arg("-f").arg(config);
    command
}

/// The deployed configuration with the addresses of this cluster in place of its examples; and as many servers as there are.
fn for_this_machine(
    kind: ProxyKind,
    deployed: &str,
    cluster: &Cluster,
    ingests: &[(String, String)],
    api: &Port,
    web: &Port,
) -> String {
    let mut config = deployed.to_owned();
    let mut put = |from: &str, to: &str| {
        assert!(config.contains(from), "deploy/proxy has no {from:?}");
        config = config.replace(from, to);
    };
    for (index, node) in cluster.nodes().iter().enumerate() {
        let name = format!("auth-{}.example.com", index + 1);
        let diagnostics = node.diagnostics_address();
        let (_, port) = diagnostics.rsplit_once(':').unwrap();
        if kind == ProxyKind::HaProxy {
            put(&format!("{name}:3025 check port 3081"), &format!("{name}:3025 check port {port}"));
            put(&format!("{name}:3080 check port 3081"), &format!("{name}:3080 check port {port}"));
        }
        put(&format!("{name}:3025"), &node.address());
        put(&format!("{name}:3080"), &node.web_address());
    }
    for (index, (address, diagnostics)) in ingests.iter().enumerate() {
        let name = format!("ingest-{}.example.com:3027", index + 1);
        let (_, port) = diagnostics.rsplit_once(':').unwrap();
        if kind == ProxyKind::HaProxy {
            put(&format!("{name} check port 3082"), &format!("{name} check port {port}"));
        }
        put(&name, address);
    }
    match kind {
        ProxyKind::Nginx => {
            put("listen 3025", &format!("listen {}", api.address()));
            put("listen 3080", &format!("listen {}", web.address()));
            put("proxy_protocol on;", &format!("proxy_protocol on;\n    proxy_bind {PROXY_ADDRESS};"));
        }
        ProxyKind::HaProxy => {
            put("bind :3025", &format!("bind {}", api.address()));
            put("bind :3080", &format!("bind {}", web.address()));
            // It does not start where it may not open as many files.
            put("maxconn 32768", "maxconn 256");
            put("send-proxy-v2", &format!("send-proxy-v2 source {PROXY_ADDRESS}"));
        }
    }
    let mut servers = config.lines().filter(|line| !line.trim_start().starts_with('#'));
    assert!(!servers.any(|line| line.contains("example.com")), "not all servers were replaced: {config}");
    config
}
