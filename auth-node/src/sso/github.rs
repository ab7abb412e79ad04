//! GitHub, or a server of GitHub Enterprise: OAuth 2.0 with PKCE, and what its API says of the user. It signs nothing: what
//! counts is who answers at its host.

use auth_core::tables::GithubRow;
use openidconnect::{
    HttpRequest, PkceCodeChallenge, PkceCodeVerifier,
    http::{
        Request,
        header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE},
    },
    url::form_urlencoded::Serializer,
};
use serde::{Deserialize, de::DeserializeOwned};

use super::{Claims, Flow, Said, http::Http};

/// Entries of a page of a list, the most that there can be, and the most pages that are read.
const PAGE: usize = 100;
const MAX_PAGES: usize = 10;
/// To see in which organisations and teams the user is.
const SCOPE: &str = "read:org";

/// A provider, by its connector.
pub(super) struct Provider<'a> {
    pub(super) row: &'a GithubRow,
    pub(super) http: Http,
}

/// Answer to the exchange of a code; an error has the status 200 too.
#[derive(Deserialize)]
struct Exchanged {
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    error: String,
}

#[derive(Deserialize)]
struct User {
    id: u64,
    login: String,
}

#[derive(Deserialize)]
struct Organization {
    login: String,
}

#[derive(Deserialize)]
struct Team {
    slug: String,
    organization: Organization,
}

impl Provider<'_> {
    /// Where people are.
    fn origin(&self) -> &str {
        if self.row.url.is_empty() { "https://github.com" } else { &self.row.url }
    }

    /// Where the API is.
    fn api(&self) -> String {
        if self.row.url.is_empty() {
            "https://api.github.com".into()
        } else {
            format!("{}/api/v3", self.row.url)
        }
    }

    /// Where the browser is sent.
    pub(super) fn url(&self, flow: &Flow) -> Result<String, String> {
        let verifier = PkceCodeVerifier::new(flow.verifier.as_str().to_owned());
        let challenge = PkceCodeChallenge::from_code_verifier_sha256(&verifier);
        let query = Serializer::new(String::new())
            .append_pair("client_id", &self.row.client_id)
            .append_pair("redirect_uri", &flow.redirect)
            .append_pair("scope", SCOPE)
            .append_pair("state", &flow.state)
            .append_pair("allow_signup", "false")
            .append_pair("code_challenge", challenge.as_str())
            .append_pair("code_challenge_method", challenge.method())
            .finish();
        Ok(format!("{}/login/oauth/authorize?{query}", self.origin()))
    }

    /// Exchanges a code, and asks who its user is. An error is for the audit log, and has no secret in it.
    pub(super) async fn prove(&self, flow: &Flow, secret: &str, code: &str) -> Result<Said, String> {
        let body = Serializer::new(String::new())
            .append_pair("client_id", &self.row.client_id)
            .append_pair("client_secret", secret)
            .append_pair("code", code)
            .append_pair("redirect_uri", &flow.redirect)
            .append_pair("code_verifier", &flow.verifier)
            .finish();
        let request = Request::post(format!("{}/login/oauth/access_token", self.origin()));
        let request = request
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(body.into_bytes());
        let exchanged: Exchanged = self.answer("the exchange of the code", request).await?;
        if exchanged.access_token.is_empty() {
            return Err(format!("the exchange of the code: {}", exchanged.error));
        }
        let token = &exchanged.access_token;
        let user: User = self.get(token, "/user").await?;
        let organizations: Vec<Organization> = self.list(token, "/user/orgs").await?;
        let teams: Vec<Team> = self.list(token, "/user/teams").await?;
        let team = |team: Team| format!("{}/{}", team.organization.login, team.slug);
        Ok(Said {
            subject: format!("{} {}", self.origin(), user.id),
            claims: Claims::from([
                ("login".to_owned(), vec![user.login]),
                ("organizations".to_owned(), organizations.into_iter().map(|it| it.login).collect()),
                ("teams".to_owned(), teams.into_iter().map(team).collect()),
            ]),
        })
    }

    async fn list<T: DeserializeOwned>(&self, token: &str, path: &str) -> Result<Vec<T>, String> {
        let mut all = Vec::new();
        for page in 1..=MAX_PAGES {
            let part: Vec<T> = self.get(token, &format!("{path}?per_page={PAGE}&page={page}")).await?;
            let last = part.len() < PAGE;
            all.extend(part);
            if last {
                return Ok(all);
            }
        }
        // What is not seen must not count as what is not there.
        Err(format!("{path} has more than {} entries", PAGE * MAX_PAGES))
    }

    async fn get<T: DeserializeOwned>(&self, token: &str, path: &str) -> Result<T, String> {
        let request = Request::get(format!("{}{path}", self.api()))
            .header(ACCEPT, "application/vnd.github+json")
            .header("X-GitHub-Api-Version", "2022-11-28")
            .header(AUTHORIZATION, format!("Bearer {token}"))
            .body(Vec::new());
        self.answer(path, request).await
    }

    async fn answer<T: DeserializeOwned>(
        &self,
        what: &str,
        request: Result<HttpRequest, openidconnect::http::Error>,
    ) -> Result<T, String> {
        let request = request.map_err(|error| format!("{what}: {error}"))?;
        let answer = self.http.send(request).await.map_err(|error| format!("{what}: {error}"))?;
        if !answer.status().is_success() {
            return Err(format!("{what}: status {}", answer.status()));
        }
        serde_json::from_slice(answer.body()).map_err(|error| format!("{what}: {error}"))
    }
}
