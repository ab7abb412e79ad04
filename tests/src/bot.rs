//! An agent identity, as its program speaks to the cluster: by the API alone, so that tests see what `mezctl` would not do.

use mezite_client::{Client, ClientError, ClientIdentity, IdempotencyKey, Retry, SessionSecret};
use mezite_pki::{ssh::SshKeyPair, x509::KeyPair};
use mezite_proto::v1;

use crate::{Cluster, api, call};

/// What an agent identity has.
#[derive(Debug)]
pub struct Bot {
    /// Of its certificate for ssh.
    pub ssh: SshKeyPair,
    /// Of its client certificate.
    pub tls: KeyPair,
    /// What it got last.
    pub credentials: v1::AgentIdentityCredentials,
}

/// Keys, and the idempotency key of the call that asks for their certificates.
#[derive(Debug)]
pub struct BotCall {
    /// For ssh.
    pub ssh: SshKeyPair,
    /// For the client certificate.
    pub tls: KeyPair,
    /// Of the call.
    pub key: IdempotencyKey,
}

impl BotCall {
    /// New ones.
    #[must_use]
    pub fn new() -> Self {
        Self {
            ssh: SshKeyPair::generate_ed25519("").unwrap(),
            tls: KeyPair::generate_p256().unwrap(),
            key: IdempotencyKey::random(),
        }
    }

    /// Asks for the first credentials.
    ///
    /// # Errors
    /// What the cluster answers.
    pub async fn bootstrap(
        &self,
        client: &Client,
        name: &str,
        secret: &str,
    ) -> Result<v1::AgentIdentityCredentials, ClientError> {
        let request = v1::BootstrapAgentIdentityRequest {
            name: name.into(),
            bootstrap_secret: secret.into(),
            ssh_public_key: self.ssh.public_line(),
            tls_public_key: self.tls.spki_der().into(),
        };
        let bootstrap = |mut auth: mezite_client::AuthClient, request| async move {
            auth.bootstrap_agent_identity(request).await
        };
        let reply = client.call(Retry::Keyed(self.key.clone()), request, bootstrap).await?;
        Ok(reply.credentials.unwrap())
    }

    /// Asks for the next credentials, at one node, with a generation that it says.
    ///
    /// # Errors
    /// What the cluster answers.
    pub async fn renew(
        &self,
        cluster: &Cluster,
        node: usize,
        bot: &Bot,
        generation: u64,
    ) -> Result<v1::AgentIdentityCredentials, ClientError> {
        let request = v1::RenewAgentIdentityRequest {
            generation,
            ssh_public_key: self.ssh.public_line(),
            tls_public_key: self.tls.spki_der().into(),
        };
        let renew = |mut auth: mezite_client::AuthClient, request| async move {
            auth.renew_agent_identity(request).await
        };
        let client = bot.shown_at(cluster, node);
        let reply = client.call(Retry::Keyed(self.key.clone()), request, renew).await?;
        Ok(reply.credentials.unwrap())
    }

    /// What the bot has then.
    #[must_use]
    pub fn into_bot(self, credentials: v1::AgentIdentityCredentials) -> Bot {
        Bot { ssh: self.ssh, tls: self.tls, credentials }
    }
}

impl Default for BotCall {
    fn default() -> Self {
        Self::new()
    }
}

impl Bot {
    /// Makes an agent identity with these roles, and has it get its first credentials.
    pub async fn start(cluster: &Cluster, name: &str, roles: &[&str]) -> Self {
        let secret = cluster.agent_identity(name, roles, &[]).await;
        let call = BotCall::new();
        let credentials = call.bootstrap(&cluster.anonymous_at(0), name, &secret).await.unwrap();
        call.into_bot(credentials)
    }

    /// Its session.
    #[must_use]
    pub fn session(&self) -> SessionSecret {
        SessionSecret::new(self.credentials.session_id.clone()).unwrap()
    }

    /// Certificate and key, PEM.
    #[must_use]
    pub fn pems(&self) -> (String, String) {
        (self.credentials.tls_certificate.clone(), self.tls.private_pem().to_string())
    }

    /// A client of one node with its certificate, and no session.
    #[must_use]
    pub fn shown_at(&self, cluster: &Cluster, node: usize) -> Client {
        let (certificate, key) = self.pems();
        let identity = ClientIdentity::from_pem(&certificate, &key).unwrap();
        api::client(&cluster.addresses()[node..=node], cluster.trust(), None, Some(&identity))
    }
}

impl Cluster {
    /// Makes an agent identity with these roles, which may log in as these; answers its bootstrap secret.
    pub async fn agent_identity(&self, name: &str, roles: &[&str], logins: &[&str]) -> String {
        let texts = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let identity = v1::AgentIdentity {
            name: name.into(),
            roles: texts(roles),
            traits: [("logins".to_owned(), v1::Strings { values: texts(logins) })].into(),
            ..Default::default()
        };
        let request = v1::CreateAgentIdentityRequest { identity: Some(identity), bootstrap_ttl: None };
        call!(self.admin(), create_agent_identity, request).unwrap().bootstrap_secret
    }
}
