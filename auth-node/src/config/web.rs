//! The fields of the web API's configuration.

use std::{net::SocketAddr, path::PathBuf};

use axum::http::Uri;
use mezite_daemon::config::{ConfigError, check_counts};
use serde::{Deserialize, Serialize};

use super::host_of;

/// Port of a URL that names none.
const HTTPS_PORT: u16 = 443;

/// The web API, with which people log in by a browser, and its pages. Browsers that trust its certificate reach its host by TLS
/// alone from then on, at any port (HSTS, RFC 6797).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WebConfig {
    /// Whether the node serves it. Default: true.
    pub enabled: bool,
    /// Its address: HTTPS. Default: `0.0.0.0:3080`.
    pub listen: SocketAddr,
    /// URL at which browsers reach it, such as `https://login.example.com` or `https://login.example.com:3080`, without a
    /// path: the same on all nodes, of a load balancer or of one node. Invites are links then, and its host is in the
    /// node's certificate. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_url: Option<String>,
    /// File with the certificate that browsers are shown and those that lead to its root, PEM. It is read again when it
    /// changes. Default: the node's own certificate, which browsers trust once the cluster's TLS CA is imported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_file: Option<PathBuf>,
    /// File with its private key, PEM, mode 0600. Needed with `certificate_file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// Open connections, handshakes included, of which one network (a /24, for IPv6 a /64) may have a quarter. Default: 2000.
    pub max_connections: usize,
    /// Requests at a time, of which one network may have a quarter; more are 429. Default: 512.
    pub max_requests: usize,
}

impl Default for WebConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: SocketAddr::from(([0, 0, 0, 0], 3_080)),
            public_url: None,
            certificate_file: None,
            key_file: None,
            max_connections: 2_000,
            max_requests: 512,
        }
    }
}

impl WebConfig {
    /// Checks what its fields say.
    ///
    /// # Errors
    /// [`ConfigError`] names the field.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        check_counts(&[
            ("web.max_connections", self.max_connections),
            ("web.max_requests", self.max_requests),
        ])?;
        if self.public_url.is_some() && self.origin().is_none() {
            return Err(ConfigError::value(
                "web.public_url",
                "must be https:// and a host, with or without a port, and without a path, such as https://login.example.com",
            ));
        }
        if self.certificate_file.is_some() != self.key_file.is_some() {
            let field = if self.key_file.is_some() { "web.certificate_file" } else { "web.key_file" };
            return Err(ConfigError::value(
                field,
                "is needed too: web.certificate_file and web.key_file go together",
            ));
        }
        Ok(())
    }

    /// The origin (RFC 6454) of `public_url`, as browsers write it: without a port that is the scheme's own, in lower case.
    pub fn origin(&self) -> Option<String> {
        let (host, port) = self.host_and_port()?;
        let port = if port == HTTPS_PORT { String::new() } else { format!(":{port}") };
        Some(format!("https://{host}{port}"))
    }

    /// The host of `public_url`, in lower case; an IPv6 address without its brackets.
    pub(crate) fn host(&self) -> Option<String> {
        let (host, _) = self.host_and_port()?;
        Some(host.trim_matches(['[', ']']).to_owned())
    }

    fn host_and_port(&self) -> Option<(String, u16)> {
        let uri: Uri = self.public_url.as_deref()?.parse().ok()?;
        let authority = uri.authority()?;
        let whole = !self.public_url.as_deref()?.contains('#');
        let bare = whole && uri.scheme_str() == Some("https") && uri.path() == "/" && uri.query().is_none();
        let port = authority.port().map_or(Some(HTTPS_PORT), |port| port.as_str().parse().ok())?;
        let host = authority.host().to_ascii_lowercase();
        // Also without a user before the host, and without a colon that no port follows.
        let plain = authority.as_str().eq_ignore_ascii_case(&host)
            || authority.as_str().eq_ignore_ascii_case(&format!("{host}:{port}"));
        (bare && plain && host_of(&format!("{host}:{port}")).is_some()).then_some((host, port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(url: &str) -> WebConfig {
        WebConfig { public_url: Some(url.into()), ..WebConfig::default() }
    }

    #[test]
    fn an_origin_is_written_as_browsers_write_it() {
        for (url, origin, host) in [
            ("https://login.example.com", "https://login.example.com", "login.example.com"),
            ("https://Login.Example.com:443/", "https://login.example.com", "login.example.com"),
            ("https://login.example.com:3080", "https://login.example.com:3080", "login.example.com"),
            ("https://[2001:db8::1]:3080", "https://[2001:db8::1]:3080", "2001:db8::1"),
            ("https://127.0.0.1:3080", "https://127.0.0.1:3080", "127.0.0.1"),
        ] {
            let web = at(url);
            assert!(web.check().is_ok(), "{url}");
            assert_eq!(web.origin().as_deref(), Some(origin));
            assert_eq!(web.host().as_deref(), Some(host));
        }
    }

    #[test]
    fn what_is_no_origin_of_a_host_is_refused() {
        for url in [
            "",
            "login.example.com",
            "http://login.example.com",
            "https://",
            "https://0.0.0.0",
            "https://login.example.com/path",
            "https://login.example.com?a=b",
            "https://login.example.com/#x",
            "https://user@login.example.com",
            "https://login.example.com:",
            "https://login.example.com:0",
            "https://login.example.com:65536",
        ] {
            let error = at(url).check().unwrap_err();
            assert!(error.to_string().contains("web.public_url"), "{url}: {error}");
        }
    }

    #[test]
    fn a_certificate_and_its_key_go_together() {
        let certificate = WebConfig { certificate_file: Some("c".into()), ..WebConfig::default() };
        let key = WebConfig { key_file: Some("k".into()), ..WebConfig::default() };
        for (half, field) in [(&certificate, "web.key_file"), (&key, "web.certificate_file")] {
            assert!(half.check().unwrap_err().to_string().contains(field));
        }
        assert!(WebConfig { key_file: Some("k".into()), ..certificate }.check().is_ok());
    }
}
