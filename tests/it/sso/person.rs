//! Somebody with a browser that runs no scripts: curl, with cookies of its own. It does what the pages' scripts do.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use mezite_e2e::{Cluster, run};
use serde_json::{Value, json};

/// What it got.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) status: u16,
    /// Where it is sent.
    pub(crate) location: String,
    pub(crate) body: String,
}

/// Somebody in front of a machine.
pub(crate) struct Person {
    dir: PathBuf,
    /// Where the cluster is, to browsers.
    url: String,
    /// host:port of the node that is reached there.
    node: String,
}

impl Person {
    /// Somebody who believes the cluster, and the authority in this file.
    pub(crate) fn new(cluster: &Cluster, name: &str, url: &str, ca: &Path) -> Self {
        let dir = cluster.dir().join(format!("person-{name}"));
        fs::create_dir(&dir).unwrap();
        let believed = format!("{}\n{}", cluster.trust().ca_pem(), fs::read_to_string(ca).unwrap());
        fs::write(dir.join("ca.pem"), believed).unwrap();
        Self { dir, url: url.to_owned(), node: cluster.nodes()[0].web_address() }
    }

    /// From now on another node is reached.
    pub(crate) fn at(&mut self, cluster: &Cluster, node: usize) {
        self.node = cluster.nodes()[node].web_address();
    }

    fn ask(&self, url: &str, args: &[&str]) -> Page {
        let file = |name: &str| self.dir.join(name);
        let host = self.url.trim_start_matches("https://");
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "60"]);
        command.args(["--connect-to", &format!("{host}:{}", self.node)]);
        command.args(["--write-out", "%{http_code} %{redirect_url}"]);
        command.arg("--cacert").arg(file("ca.pem")).arg("--output").arg(file("body"));
        command.arg("--cookie").arg(file("jar")).arg("--cookie-jar").arg(file("jar"));
        let said = run(command.args(args).arg(url)).ok();
        let (status, location) = said.split_once(' ').unwrap();
        let body = fs::read_to_string(file("body")).unwrap_or_default();
        Page { status: status.parse().unwrap(), location: location.trim().to_owned(), body }
    }

    pub(crate) fn get(&self, url: &str) -> Page {
        self.ask(url, &[])
    }

    /// A path of the cluster's.
    pub(crate) fn api(&self, path: &str) -> Page {
        self.get(&format!("{}/v1/webapi{path}", self.url))
    }

    fn post_form(&self, url: &str, form: &str) -> Page {
        self.ask(url, &["--data", form])
    }

    /// Has the cluster begin a login, as its pages do: where the provider is, or the refusal.
    pub(crate) fn begin(&self, connector: &str, program: Option<Value>) -> Result<String, Page> {
        let mut body = json!({ "connector": connector });
        body.as_object_mut().unwrap().extend(program.map(|program| ("program".to_owned(), program)));
        let body = body.to_string();
        let args = [
            "--header",
            "X-Mezite-Request: 1",
            "--header",
            "Content-Type: application/json",
            "--data",
            &body,
        ];
        let page = self.ask(&format!("{}/v1/webapi/sso/login", self.url), &args);
        let answer: Value = serde_json::from_str(&page.body).unwrap_or_default();
        match answer["url"].as_str() {
            Some(url) if page.status == 200 => Ok(url.to_owned()),
            _ => Err(page),
        }
    }

    /// Goes where a provider sends it, as this user, up to where it is sent back to the cluster.
    pub(crate) fn at_provider(&self, url: &str, user: &str) -> String {
        let mut page = self.get(url);
        for _ in 0..20 {
            if page.location.starts_with(&self.url) {
                return page.location;
            }
            page = match (page.status, form(&page.body)) {
                (302 | 303, _) => self.get(&page.location),
                (200, Some((to, "login"))) => {
                    self.post_form(&to, &format!("prompt=login&login={user}&password=any"))
                }
                (200, Some((to, prompt))) => self.post_form(&to, &format!("prompt={prompt}")),
                _ => panic!("{page:?}"),
            };
        }
        panic!("{page:?}");
    }

    /// Logs in in the browser: where it is sent in the end.
    pub(crate) fn log_in(&self, connector: &str, user: &str) -> Page {
        let url = self.begin(connector, None).unwrap();
        self.get(&self.at_provider(&url, user))
    }

    /// Who it is now, and how it has proved that.
    pub(crate) fn session(&self) -> Option<(String, String)> {
        let page = self.api("/session");
        let answer: Value = serde_json::from_str(&page.body).unwrap_or_default();
        let text = |field: &str| answer["session"][field].as_str().map(str::to_owned);
        (page.status == 200).then(|| (text("user").unwrap(), text("method").unwrap()))
    }
}

/// The form of a provider's page: where it is sent, and what it asks for.
fn form(body: &str) -> Option<(String, &'static str)> {
    let (_, rest) = body.split_once("action=\"")?;
    let (to, rest) = rest.split_once('"')?;
    let prompt = if rest.contains("value=\"login\"") { "login" } else { "consent" };
    Some((to.to_owned(), prompt))
}
