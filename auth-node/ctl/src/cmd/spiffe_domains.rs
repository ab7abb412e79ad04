//! `spiffe-domains`: SPIFFE trust domains whose workloads are let in.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{ArgGroup, Args, Subcommand};
use mezite_client::{Client, Retry};
use mezite_proto::v1;
use serde::Serialize;
use tonic::Code;

use crate::{
    cmd::{call, list, present},
    context::Context,
    exit::Usage,
    files::read_text,
    output::{self, Done, Report, Row},
};

const ADD_EXAMPLES: &str = "\
Examples:
  # Workloads of SPIRE, whose bundle is in a file, and stays as it is:
  spire-server bundle show -format spiffe > example.org.json
  mezctl spiffe-domains add example.org --bundle example.org.json
  # The same, and followed from then on:
  mezctl spiffe-domains add example.org --bundle example.org.json \\
    --endpoint https://spire.example.org:8443 --endpoint-spiffe-id spiffe://example.org/spire/server
  # An endpoint that is known by its name on the web:
  mezctl spiffe-domains add example.org --endpoint https://spiffe.example.org/bundle.json
  # Then say which workload is which agent identity:
  mezctl agent-identities add ci --roles deployer --spiffe-ids spiffe://example.org/ns/ci/sa/runner

A workload shows an X.509-SVID as its client certificate, or a JWT-SVID with the audience mezite://<cluster>.";

/// Commands on SPIFFE trust domains.
#[derive(Debug, Subcommand)]
pub(crate) enum SpiffeDomains {
    /// Let workloads of a trust domain in, as the agent identities that have their SPIFFE IDs
    #[command(after_help = ADD_EXAMPLES, visible_alias = "create")]
    Add(Add),
    /// List trust domains
    Ls,
    /// Show a trust domain
    Get {
        /// Name of the trust domain
        name: String,
    },
    /// Change where the bundle of a trust domain comes from, or set another bundle; what is not given stays
    Update(Update),
    /// Let workloads of a trust domain in no more
    #[command(visible_alias = "delete")]
    Rm {
        /// Name of the trust domain
        name: String,
    },
}

/// Arguments of `spiffe-domains add`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("of_endpoint").multiple(true).requires("url").args(["spiffe_id", "ca"]))]
pub(crate) struct Add {
    /// Name of the trust domain, such as example.org
    name: String,
    /// File with its bundle, as SPIFFE has it in JSON; `-` reads standard input
    #[arg(long, value_name = "FILE", required_unless_present = "url")]
    bundle: Option<PathBuf>,
    #[command(flatten)]
    endpoint: EndpointArgs,
}

/// Arguments of `spiffe-domains update`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("change").required(true).multiple(true).args(["bundle", "url", "spiffe_id", "ca", "no_endpoint"]))]
pub(crate) struct Update {
    /// Name of the trust domain
    name: String,
    /// File with a bundle in place of the one that is known, older or newer; `-` reads standard input
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
    #[command(flatten)]
    endpoint: EndpointArgs,
    /// Fetch the bundle from nowhere any more: it stays what it is
    #[arg(long, conflicts_with_all = ["url", "spiffe_id", "ca"])]
    no_endpoint: bool,
}

/// Where a bundle is fetched from.
#[derive(Debug, Args)]
pub(crate) struct EndpointArgs {
    /// Fetch the bundle from here, again and again
    #[arg(long = "endpoint", value_name = "URL")]
    url: Option<String>,
    /// SPIFFE ID that the endpoint shows; without one, or with '', it is known by its name on the web
    #[arg(long = "endpoint-spiffe-id", value_name = "ID")]
    spiffe_id: Option<String>,
    /// File with PEM certificates of who vouches for the endpoint's name, in place of the auth nodes' system
    #[arg(long = "endpoint-ca", value_name = "FILE", conflicts_with = "spiffe_id")]
    ca: Option<PathBuf>,
}

impl EndpointArgs {
    /// What becomes of an endpoint, or of none: what is not given stays. It is known by its SPIFFE ID or by its name, so
    /// that a SPIFFE ID takes the place of the CA, and the other way round.
    fn apply(self, stored: Option<v1::SpiffeBundleEndpoint>) -> Result<Option<v1::SpiffeBundleEndpoint>> {
        let Self { url, spiffe_id, ca } = self;
        let ca = ca.as_deref().map(read_text).transpose()?;
        let Some(stored) = stored.or_else(|| url.is_some().then(v1::SpiffeBundleEndpoint::default)) else {
            return match spiffe_id.is_some() || ca.is_some() {
                true => Err(Usage("the trust domain has no endpoint: give --endpoint".into()).into()),
                false => Ok(None),
            };
        };
        let (spiffe_id, web_ca_certificates) = match (spiffe_id, ca) {
            (Some(id), _) if id.is_empty() => (id, stored.web_ca_certificates),
            (Some(id), _) => (id, String::new()),
            (None, Some(ca)) => (String::new(), ca),
            (None, None) => (stored.spiffe_id, stored.web_ca_certificates),
        };
        let url = url.unwrap_or(stored.url);
        Ok(Some(v1::SpiffeBundleEndpoint { url, spiffe_id, web_ca_certificates }))
    }
}

fn read_bundle(file: Option<&Path>) -> Result<String> {
    Ok(file.map(read_text).transpose()?.unwrap_or_default())
}

#[derive(Serialize)]
struct DomainView {
    trust_domain: String,
    endpoint: String,
    endpoint_spiffe_id: String,
    /// Whether others than the auth nodes' system vouch for the endpoint's name.
    endpoint_ca: bool,
    x509_authorities: u32,
    jwt_authorities: u32,
    sequence: Option<u64>,
    /// When the endpoint last told a bundle that was taken.
    refreshed_at: Option<String>,
    /// Why it did not the last time; empty: it did.
    refresh_error: String,
    /// From when on the bundle is believed no more, unless it is told again.
    bundle_good_until: Option<String>,
    created_at: Option<String>,
    created_by: String,
    revision: u64,
}

impl From<v1::SpiffeDomain> for DomainView {
    fn from(domain: v1::SpiffeDomain) -> Self {
        let endpoint = domain.endpoint.unwrap_or_default();
        Self {
            trust_domain: domain.trust_domain,
            endpoint: endpoint.url,
            endpoint_spiffe_id: endpoint.spiffe_id,
            endpoint_ca: !endpoint.web_ca_certificates.is_empty(),
            x509_authorities: domain.x509_authorities,
            jwt_authorities: domain.jwt_authorities,
            sequence: domain.sequence,
            refreshed_at: output::time(domain.refreshed_at.as_ref()),
            refresh_error: domain.refresh_error,
            bundle_good_until: output::time(domain.bundle_good_until.as_ref()),
            created_at: output::time(domain.created_at.as_ref()),
            created_by: domain.created_by,
            revision: domain.revision,
        }
    }
}

impl DomainView {
    fn sequence(&self) -> String {
        self.sequence.map(|sequence| sequence.to_string()).unwrap_or_default()
    }
}

impl Report for DomainView {
    fn text(&self) -> String {
        let time = |time: &Option<String>| time.clone().unwrap_or_default();
        output::fields(&[
            ("trust domain", self.trust_domain.clone()),
            ("endpoint", self.endpoint.clone()),
            ("endpoint id", self.endpoint_spiffe_id.clone()),
            ("endpoint ca", if self.endpoint_ca { "set".into() } else { String::new() }),
            ("x509 authorities", self.x509_authorities.to_string()),
            ("jwt authorities", self.jwt_authorities.to_string()),
            ("sequence", self.sequence()),
            ("refreshed", time(&self.refreshed_at)),
            ("refresh error", self.refresh_error.clone()),
            ("bundle good until", time(&self.bundle_good_until)),
            ("created", time(&self.created_at)),
            ("created by", self.created_by.clone()),
            ("revision", self.revision.to_string()),
        ])
    }
}

impl Row<6> for DomainView {
    const HEADER: [&'static str; 6] = ["TRUST DOMAIN", "ENDPOINT", "X509", "JWT", "REFRESHED", "ERROR"];

    fn row(&self) -> [String; 6] {
        [
            self.trust_domain.clone(),
            self.endpoint.clone(),
            self.x509_authorities.to_string(),
            self.jwt_authorities.to_string(),
            self.refreshed_at.clone().unwrap_or_default(),
            self.refresh_error.clone(),
        ]
    }
}

pub(crate) async fn run(context: &Context, command: SpiffeDomains) -> Result<()> {
    match command {
        SpiffeDomains::Add(args) => add(context, args).await,
        SpiffeDomains::Ls => ls(context).await,
        SpiffeDomains::Get { name } => {
            let domain = one(&context.user().await?, name).await?;
            context.print(&DomainView::from(domain))
        }
        SpiffeDomains::Update(args) => update(context, args).await,
        SpiffeDomains::Rm { name } => rm(context, name).await,
    }
}

async fn add(context: &Context, args: Add) -> Result<()> {
    let check = Retry::once(format!("see `mezctl spiffe-domains get {}`", args.name));
    let domain = v1::SpiffeDomain {
        trust_domain: args.name,
        bundle: read_bundle(args.bundle.as_deref())?,
        endpoint: args.endpoint.apply(None)?,
        ..v1::SpiffeDomain::default()
    };
    let client = context.user().await?;
    let request = v1::CreateSpiffeDomainRequest { domain: Some(domain) };
    let reply = call!(client, check, create_spiffe_domain, request)?;
    context.print(&DomainView::from(present(reply.domain, "the trust domain")?))
}

async fn ls(context: &Context) -> Result<()> {
    let client = context.user().await?;
    let domains = list!(client, list_spiffe_domains, domains, |page_token| {
        v1::ListSpiffeDomainsRequest { page_size: mezite_client::PAGE_SIZE, page_token }
    })?;
    context.print_list(domains.into_iter().map(DomainView::from).collect())
}

/// A trust domain.
async fn one(client: &Client, name: String) -> Result<v1::SpiffeDomain> {
    let request = v1::GetSpiffeDomainRequest { trust_domain: name };
    let reply = call!(client, Retry::Idempotent, get_spiffe_domain, request)?;
    present(reply.domain, "the trust domain")
}

async fn update(context: &Context, args: Update) -> Result<()> {
    let bundle = read_bundle(args.bundle.as_deref())?;
    let client = context.user().await?;
    let check = Retry::once(format!("see `mezctl spiffe-domains get {}`", args.name));
    // With the revision that was read: what somebody else changes meanwhile is not undone.
    let mut domain = one(&client, args.name).await?;
    domain.bundle = bundle;
    domain.endpoint = if args.no_endpoint { None } else { args.endpoint.apply(domain.endpoint)? };
    let request = v1::UpdateSpiffeDomainRequest { domain: Some(domain) };
    let reply = call!(client, check, update_spiffe_domain, request)?;
    context.print(&DomainView::from(present(reply.domain, "the trust domain")?))
}

async fn rm(context: &Context, name: String) -> Result<()> {
    let client = context.user().await?;
    let request = v1::DeleteSpiffeDomainRequest { trust_domain: name.clone() };
    match call!(client, Retry::Idempotent, delete_spiffe_domain, request) {
        Ok(v1::DeleteSpiffeDomainResponse {}) => {}
        Err(error) if error.repeated_with(Code::NotFound) => {}
        Err(error) => return Err(error.into()),
    }
    context.print(&Done::new(format!("Workloads of {name} are not let in any more.")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_endpoint_what_is_not_given_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.pem");
        std::fs::write(&file, "new ca").unwrap();
        let endpoint = |url: &str, id: &str, ca: &str| v1::SpiffeBundleEndpoint {
            url: url.into(),
            spiffe_id: id.into(),
            web_ca_certificates: ca.into(),
        };
        let (known_by_id, known_by_name) = (endpoint("u", "id", ""), endpoint("u", "", "ca"));
        let apply = |url: Option<&str>, id: Option<&str>, ca: bool, stored: Option<&_>| {
            let (url, spiffe_id) = (url.map(str::to_owned), id.map(str::to_owned));
            EndpointArgs { url, spiffe_id, ca: ca.then(|| file.clone()) }.apply(stored.cloned())
        };
        for (url, id, ca, stored, becomes) in [
            (None, None, false, &known_by_id, endpoint("u", "id", "")),
            (Some("v"), None, false, &known_by_id, endpoint("v", "id", "")),
            (Some("v"), None, false, &known_by_name, endpoint("v", "", "ca")),
            (None, Some("other"), false, &known_by_id, endpoint("u", "other", "")),
            (None, Some("id"), false, &known_by_name, endpoint("u", "id", "")),
            (None, Some(""), false, &known_by_id, endpoint("u", "", "")),
            (None, Some(""), false, &known_by_name, endpoint("u", "", "ca")),
            (None, None, true, &known_by_id, endpoint("u", "", "new ca")),
            (Some("v"), None, true, &known_by_name, endpoint("v", "", "new ca")),
        ] {
            assert_eq!(apply(url, id, ca, Some(stored)).unwrap(), Some(becomes), "{url:?} {id:?} {ca}");
        }
        assert_eq!(apply(Some("v"), Some("id"), false, None).unwrap(), Some(endpoint("v", "id", "")));
        assert_eq!(apply(None, None, false, None).unwrap(), None);
        assert!(apply(None, Some("id"), false, None).unwrap_err().is::<Usage>());
    }
}
