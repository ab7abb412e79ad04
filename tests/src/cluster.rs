//! A cluster of auth nodes, as an operator sets one up: `init`, `run`, a token for each further node, `join`, `run`.

use std::{
    collections::BTreeMap,
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
};

use mezite_client::{Client, ClusterTrust, FirstContact, RetryPolicy, SessionSecret};
use mezite_proto::v1;

use crate::{Ctl, Port, Program, Scratch, api, call, eventually, program::READY, secret_file};

/// Name of every cluster here that has no other.
pub const CLUSTER: &str = "e2e";
/// Name of its first admin.
pub const ADMIN: &str = "root-admin";
/// Password of every user here.
pub const PASSWORD: &str = "correct horse battery staple";

/// How a cluster is made.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Name of the cluster.
    pub name: String,
    /// How many auth nodes.
    pub nodes: usize,
    /// `--set` options of every node.
    pub set: Vec<String>,
    /// Environment of every node.
    pub env: Vec<(String, String)>,
    /// Whether its nodes are killed when the thread that starts them has ended, as when its process is killed.
    pub tied: bool,
    /// Folder of the programs of another build, which its nodes begin with.
    pub programs: Option<PathBuf>,
}

impl Default for Setup {
    fn default() -> Self {
        Self { name: CLUSTER.into(), nodes: 1, set: Vec::new(), env: Vec::new(), tied: false, programs: None }
    }
}

/// One auth node: a [`Program`], and its further ports.
#[derive(Debug)]
pub struct AuthNode {
    program: Program,
    api: Port,
    peer: Port,
    web: Port,
}

impl AuthNode {
    /// A node with a configuration and nothing else.
    #[must_use]
    pub fn configure(name: &str, dir: &Path, setup: &Setup) -> Self {
        let mut program = Program::new("auth-node", name, dir, &setup.set, &setup.env);
        program.tied = setup.tied;
        program.exchange(setup.programs.as_deref());
        let (api, peer, web) = (Port::lease(), Port::lease(), Port::lease());
        let (at, peer_at, web_at) = (api.address(), peer.address(), web.address());
        program.write_config(&format!(
            "listen = {at:?}\nadvertise = {at:?}\npeer_listen = {peer_at:?}\npeer_advertise = {peer_at:?}\n\
             web.listen = {web_at:?}\n"
        ));
        Self { program, api, peer, web }
    }

    /// host:port of its API.
    #[must_use]
    pub fn address(&self) -> String {
        self.api.address()
    }

    /// host:port of its web API.
    #[must_use]
    pub fn web_address(&self) -> String {
        self.web.address()
    }

    /// host:port of its peer listener.
    #[must_use]
    pub fn peer_address(&self) -> String {
        self.peer.address()
    }
}

impl Deref for AuthNode {
    type Target = Program;

    fn deref(&self) -> &Program {
        &self.program
    }
}

impl DerefMut for AuthNode {
    fn deref_mut(&mut self) -> &mut Program {
        &mut self.program
    }
}

/// A cluster, with its first admin logged in.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<AuthNode>,
    /// Raft ids, in the order of the nodes.
    ids: Vec<u64>,
    trust: ClusterTrust,
    ca_pin: String,
    session: SessionSecret,
    // Last: the programs go before their folders.
    scratch: Scratch,
}

impl Cluster {
    /// A cluster of so many nodes, all of them ready and voting.
    pub async fn start(nodes: usize) -> Self {
        Self::start_with(&Setup { nodes, ..Setup::default() }).await
    }

    /// A cluster that is made as `setup` says.
    pub async fn start_with(setup: &Setup) -> Self {
        let scratch = Scratch::new();
        let mut first = AuthNode::configure("auth-1", scratch.path(), setup);
        let ca_pin = init(&first, &setup.name, scratch.path());
        first.start();
        first.ready().await;
        let contact = FirstContact::Pin(ca_pin.parse().unwrap());
        let established = contact.establish(&[first.address()], RetryPolicy::default()).await.unwrap();
        let trust = established.trust;
        let client = api::client(&[first.address()], &trust, None, None);
        let session = api::log_in(&client, ADMIN, PASSWORD).await.unwrap();
        let mut cluster = Self { nodes: vec![first], ids: Vec::new(), trust, ca_pin, session, scratch };
        assert!(cluster.ctl().login(ADMIN, PASSWORD).code == 0);
        for number in 2..=setup.nodes {
            cluster.join(&format!("auth-{number}"), setup).await;
        }
        cluster.all_vote().await;
        cluster
    }

    /// Adds a node; it is ready afterwards.
    async fn join(&mut self, name: &str, setup: &Setup) {
        self.join_with(name, setup, &[]).await;
    }

    /// Adds a node that has no vote, as the last one of the cluster; it is ready afterwards. Its id.
    pub async fn add_learner(&mut self, name: &str) -> u64 {
        self.join_with(name, &Setup::default(), &["--learner"]).await;
        let node = self.nodes.last().unwrap();
        let address = node.address();
        let id = eventually("the learner is a member", READY, async || {
            let members = self.status_of(0).await?.members;
            let found = members.iter().find(|member| member.api_address == address);
            found.map(|member| member.node_id).ok_or_else(|| format!("{members:?}"))
        })
        .await;
        self.ids.push(id);
        id
    }

    /// A node that is of the cluster no more.
    pub fn forget(&mut self, index: usize) -> AuthNode {
        self.ids.remove(index);
        self.nodes.remove(index)
    }

    /// The Raft id of a node, counted from 0.
    #[must_use]
    pub fn id(&self, index: usize) -> u64 {
        self.ids[index]
    }

    async fn join_with(&mut self, name: &str, setup: &Setup, more: &[&str]) {
        let mut node = AuthNode::configure(name, self.scratch.path(), setup);
        let file = self.scratch.path().join(format!("{name}.token"));
        let file = file.to_str().unwrap();
        let token = self.ctl().json(&["cluster", "token", "--out", file]);
        let peers: Vec<_> =
            token["peer_addresses"].as_array().unwrap().iter().map(|peer| peer.as_str().unwrap()).collect();
        let pin = token["ca_pin"].as_str().unwrap();
        let args = ["--token-file", file, "--ca-pin", pin, "--peer", &peers.join(",")];
        let _ = node.run("join", &[&args, more].concat()).ok();
        node.start();
        node.ready().await;
        self.nodes.push(node);
    }

    async fn all_vote(&mut self) {
        let voters = eventually("every node votes", READY, async || {
            let status = self.status_of(0).await?;
            let voters: BTreeMap<_, _> = status
                .members
                .into_iter()
                .filter(|member| member.voter)
                .map(|member| (member.api_address, member.node_id))
                .collect();
            match voters.len() == self.nodes.len() {
                true => Ok(voters),
                false => Err(format!("{voters:?}")),
            }
        })
        .await;
        self.ids = self.nodes.iter().map(|node| voters[&node.address()]).collect();
    }

    /// Where tests may put files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &[AuthNode] {
        &self.nodes
    }

    /// A node, counted from 0.
    pub fn node(&mut self, index: usize) -> &mut AuthNode {
        &mut self.nodes[index]
    }

    /// Addresses of the API, of every node.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(AuthNode::address).collect()
    }

    /// What clients know of it.
    #[must_use]
    pub fn trust(&self) -> &ClusterTrust {
        &self.trust
    }

    /// Pin of its TLS CA, as `auth-node init` printed it.
    #[must_use]
    pub fn ca_pin(&self) -> &str {
        &self.ca_pin
    }

    /// The admin's session.
    #[must_use]
    pub fn session(&self) -> &SessionSecret {
        &self.session
    }

    /// The admin's client, with every address.
    #[must_use]
    pub fn admin(&self) -> Client {
        api::client(&self.addresses(), &self.trust, Some(&self.session), None)
    }

    /// The admin's client of one node alone.
    #[must_use]
    pub fn admin_at(&self, index: usize) -> Client {
        api::client(&[self.nodes[index].address()], &self.trust, Some(&self.session), None)
    }

    /// A client of one node alone, without a credential.
    #[must_use]
    pub fn anonymous_at(&self, index: usize) -> Client {
        api::client(&[self.nodes[index].address()], &self.trust, None, None)
    }

    /// A client of one node alone, with a session.
    #[must_use]
    pub fn user_at(&self, index: usize, session: &SessionSecret) -> Client {
        api::client(&[self.nodes[index].address()], &self.trust, Some(session), None)
    }

    /// The admin's `mezctl`.
    #[must_use]
    pub fn ctl(&self) -> Ctl {
        self.ctl_named("admin")
    }

    /// A `mezctl` with a home of this name.
    #[must_use]
    pub fn ctl_named(&self, home: &str) -> Ctl {
        Ctl::new(&self.scratch.path().join(format!("home-{home}")), &self.addresses(), &self.ca_pin)
    }

    /// Creates a user with [`PASSWORD`], whose trait `logins` has these values.
    pub async fn add_user(&self, name: &str, roles: &[&str], logins: &[&str]) {
        let logins = v1::Strings { values: logins.iter().map(|&login| login.to_owned()).collect() };
        let user = v1::User {
            name: name.into(),
            roles: roles.iter().map(|&role| role.to_owned()).collect(),
            traits: [("logins".to_owned(), logins)].into(),
            ..Default::default()
        };
        let request =
            v1::CreateUserRequest { user: Some(user), password: PASSWORD.into(), ..Default::default() };
        call!(self.admin(), create_user, request).unwrap();
    }

    /// Logs a user in, at whichever node.
    pub async fn session_of(&self, user: &str) -> SessionSecret {
        let client = api::client(&self.addresses(), &self.trust, None, None);
        api::log_in(&client, user, PASSWORD).await.unwrap()
    }

    /// Creates a join token: its secret.
    pub async fn token(&self, kind: v1::TokenKind) -> String {
        self.token_for(kind, &[]).await
    }

    /// Creates a join token that allows these principals: its secret.
    pub async fn token_for(&self, kind: v1::TokenKind, principals: &[&str]) -> String {
        let request = v1::CreateTokenRequest {
            kind: kind.into(),
            allowed_principals: principals.iter().map(|&name| name.to_owned()).collect(),
            ..Default::default()
        };
        call!(self.admin(), create_token, request).unwrap().secret
    }

    /// The state of the cluster as a node sees it.
    ///
    /// # Errors
    /// Why it cannot be had, as a text.
    pub async fn status_of(&self, index: usize) -> Result<v1::GetClusterStatusResponse, String> {
        let client = self.admin_at(index);
        call!(client, get_cluster_status, v1::GetClusterStatusRequest {}).map_err(|error| error.to_string())
    }

    /// The node that leads, counted from 0, once the nodes that run agree on it.
    pub async fn leader(&self) -> usize {
        eventually("a leader", READY, async || {
            let mut leaders = Vec::new();
            for index in (0..self.nodes.len()).filter(|&index| self.nodes[index].is_running()) {
                leaders.push(self.status_of(index).await?.leader_id);
            }
            leaders.dedup();
            let leader = self.ids.iter().position(|id| leaders == [*id]);
            leader.filter(|&leader| self.nodes[leader].is_running()).ok_or_else(|| format!("{leaders:?}"))
        })
        .await
    }
}

/// `auth-node init`: the pin of the TLS CA that it prints.
fn init(node: &AuthNode, name: &str, dir: &Path) -> String {
    let password = dir.join("admin.password");
    secret_file(&password, PASSWORD);
    let password = password.to_str().unwrap();
    let args = ["--cluster-name", name, "--admin-user", ADMIN, "--admin-password-file", password];
    let printed = node.run("init", &args).ok();
    pin(&printed).unwrap_or_else(|| panic!("no pin: {printed}"))
}

/// The first `sha256:` pin in a text.
fn pin(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("sha256:")?;
    let digits: String = rest.chars().take_while(char::is_ascii_hexdigit).collect();
    (digits.len() == 64).then(|| format!("sha256:{digits}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pin_is_found() {
        let digits = "0a".repeat(32);
        assert_eq!(pin(&format!("id x\npin  sha256:{digits}\nnext")), Some(format!("sha256:{digits}")));
        assert_eq!(pin("sha256:0a"), None);
    }
}
