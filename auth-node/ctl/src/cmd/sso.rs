//! Logging in by single sign-on: a browser on this machine goes to the cluster's page and from there to the provider, and comes
//! back here with a code, which is good for whoever has the verifier alone. It never leaves this process.

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, Result, bail};
use mezite_client::{Client, Retry};
use mezite_proto::v1;
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    process::Command,
    sync::mpsc,
    time::timeout,
};
use zeroize::Zeroizing;

use crate::{
    cmd::{call, present},
    exit::SsoRefused,
    output,
};

/// How long a person may take: as long as the cluster gives it.
const PATIENCE: Duration = Duration::from_secs(10 * 60);
/// And the browser, for the head of its request, and its answer.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest head of a request, in bytes.
const MAX_HEAD: usize = 16 << 10;

/// Logs in by a connector: the session's id, and the session. `open`: a browser is opened, where there is a way to.
pub(super) async fn login(
    client: &Client,
    connector: &str,
    open: bool,
) -> Result<(Zeroizing<String>, v1::Session)> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("nothing can listen on 127.0.0.1")?;
    let here = Here { port: listener.local_addr()?.port(), path: hex::encode(rand::random::<[u8; 16]>()) };
    let verifier = Zeroizing::new(hex::encode(rand::random::<[u8; 32]>()));
    let request = v1::BeginSsoLoginRequest {
        connector: connector.to_owned(),
        challenge: Sha256::digest(verifier.as_bytes()).to_vec().into(),
        port: here.port.into(),
        path: here.path.clone(),
    };
    let begun = call!(client, Retry::Idempotent, begin_sso_login, request)?;
    output::say(&format!(
        "Open this page in a browser on this machine, and go on if it shows {}:\n{}",
        begun.confirmation, begun.url
    ));
    if open {
        open_browser(&begun.url);
    }
    let (answer, mut browser) = match timeout(PATIENCE, here.wait(listener)).await {
        Ok(answer) => answer?,
        Err(_) => bail!("nobody logged in within {} minutes", PATIENCE.as_secs() / 60),
    };
    let fetched = match answer {
        Answer::Code(code) => {
            let request = v1::FinishSsoLoginRequest {
                code: code.as_str().to_owned(),
                verifier: verifier.as_str().to_owned(),
            };
            // Twice, the code is used up: what is to be done then is the same.
            let fetched = call!(client, Retry::Idempotent, finish_sso_login, request);
            fetched.map_err(anyhow::Error::from)
        }
        Answer::Error(word) => Err(SsoRefused::of(&word).into()),
    };
    let said = match &fetched {
        Ok(_) => ("You are logged in", "Go on in your terminal. This page can be closed."),
        Err(_) => ("You are not logged in", "Your terminal says why. This page can be closed."),
    };
    // The browser may have gone.
    let _ = timeout(HEAD_TIMEOUT, answer_page(&mut browser, "200 OK", said)).await;
    let reply = fetched?;
    Ok((Zeroizing::new(reply.session_id), present(reply.session, "the session")?))
}

/// Opens a page, if there is a program for that; the address is printed anyway.
fn open_browser(url: &str) {
    let mut command = Command::new("xdg-open");
    command.arg(url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // Nothing waits for it: it may be the browser itself.
    let _ = command.spawn();
}

/// What a browser comes back with.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Code(Zeroizing<String>),
    Error(String),
}

/// Where a browser comes back to.
#[derive(Debug, Clone)]
struct Here {
    port: u16,
    path: String,
}

impl Here {
    /// Waits for the browser. Whatever else connects is told that there is nothing, and holds up nobody.
    async fn wait(&self, listener: TcpListener) -> Result<(Answer, TcpStream)> {
        let (found, mut first) = mpsc::channel(1);
        let accept = async {
            loop {
                let (stream, _) = listener.accept().await?;
                let (here, found) = (self.clone(), found.clone());
                tokio::spawn(async move {
                    if let Some(answer) = here.serve(stream).await {
                        let _ = found.send(answer).await;
                    }
                });
            }
        };
        tokio::select! {
            failed = accept => failed,
            answer = first.recv() => answer.context("nobody came back"),
        }
    }

    /// Reads a request. `None`: it is not the one that is waited for.
    async fn serve(&self, mut stream: TcpStream) -> Option<(Answer, TcpStream)> {
        let head = timeout(HEAD_TIMEOUT, head(&mut stream)).await.ok().flatten()?;
        match self.read(&head) {
            Some(answer) => Some((answer, stream)),
            None => {
                let nothing = ("There is nothing here", "This page can be closed.");
                let _ = timeout(HEAD_TIMEOUT, answer_page(&mut stream, "404 Not Found", nothing)).await;
                None
            }
        }
    }

    /// What a request's head says, if it is for this address and path, which nobody else knows. A page of another name that
    /// leads here is not.
    fn read(&self, head: &str) -> Option<Answer> {
        let mut lines = head.split("\r\n");
        let target = lines.next()?.strip_prefix("GET ")?.strip_suffix(" HTTP/1.1")?;
        let mut hosts = lines.filter_map(|line| line.split_once(':'));
        let host = hosts.find(|(name, _)| name.eq_ignore_ascii_case("host")).map(|(_, host)| host.trim())?;
        if host != format!("127.0.0.1:{}", self.port) {
            return None;
        }
        let query = target.strip_prefix('/')?.strip_prefix(&self.path)?.strip_prefix('?')?;
        match query.split_once('=')? {
            ("code", code) if !code.is_empty() => Some(Answer::Code(Zeroizing::new(code.to_owned()))),
            ("error", word) => Some(Answer::Error(word.to_owned())),
            _ => None,
        }
    }
}

/// The head of a request of HTTP/1.1; `None` for what is too long or breaks off.
async fn head(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let read = stream.read_buf(&mut bytes).await.ok()?;
        if read == 0 || bytes.len() > MAX_HEAD {
            return None;
        }
    }
    String::from_utf8(bytes).ok()
}

async fn answer_page(
    stream: &mut TcpStream,
    status: &str,
    (title, text): (&str, &str),
) -> std::io::Result<()> {
    let page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{title}</title><style>body{{font:1.1rem/1.5 system-ui,sans-serif;\
         max-width:28rem;margin:20vh auto;padding:0 1rem;color-scheme:light dark}}</style>\
         <h1>{title}</h1><p>{text}</p></html>\n"
    );
    let length = page.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {length}\r\nCache-Control: no-store\r\n\
         Referrer-Policy: no-referrer\r\nContent-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; \
         frame-ancestors 'none'\r\nConnection: close\r\n\r\n{page}"
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "00112233445566778899aabbccddeeff";

    fn read(target: &str, host: &str) -> Option<Answer> {
        let here = Here { port: 4321, path: PATH.into() };
        here.read(&format!("GET {target} HTTP/1.1\r\nAccept: */*\r\nHOST: {host}\r\n\r\n"))
    }

    #[test]
    fn a_code_is_taken_at_the_path_and_host_that_nobody_else_knows() {
        let host = "127.0.0.1:4321";
        let code = read(&format!("/{PATH}?code=abc"), host);
        assert_eq!(code, Some(Answer::Code(Zeroizing::new("abc".into()))));
        assert_eq!(read(&format!("/{PATH}?error=anew"), host), Some(Answer::Error("anew".into())));
        for (target, host) in [
            (format!("/{PATH}?code=abc"), "localhost:4321"),
            (format!("/{PATH}?code=abc"), "evil.example:4321"),
            (format!("/{PATH}?code=abc"), "127.0.0.1"),
            (format!("/{PATH}?code="), host),
            (format!("/{PATH}?session=abc"), host),
            (format!("/{PATH}"), host),
            (format!("/{}?code=abc", "0".repeat(32)), host),
            (format!("{PATH}?code=abc"), host),
            ("/?code=abc".to_owned(), host),
        ] {
            assert_eq!(read(&target, host), None, "{target} of {host}");
        }
        let here = Here { port: 4321, path: PATH.into() };
        assert_eq!(here.read(&format!("POST /{PATH}?code=a HTTP/1.1\r\nHost: {host}\r\n\r\n")), None);
        assert_eq!(here.read(""), None);
    }

    #[tokio::test]
    async fn who_connects_and_says_nothing_holds_up_nobody() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let here = Here { port: address.port(), path: PATH.into() };
        let browser = async {
            let _silent = TcpStream::connect(address).await.unwrap();
            let mut wrong = TcpStream::connect(address).await.unwrap();
            wrong.write_all(b"GET /favicon.ico HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            let mut said = String::new();
            wrong.read_to_string(&mut said).await.unwrap();
            assert!(said.starts_with("HTTP/1.1 404 "), "{said}");
            let mut right = TcpStream::connect(address).await.unwrap();
            let request = format!("GET /{PATH}?code=abc HTTP/1.1\r\nHost: {address}\r\n\r\n");
            right.write_all(request.as_bytes()).await.unwrap();
            right
        };
        let (answer, _right) = tokio::join!(here.wait(listener), browser);
        assert_eq!(answer.unwrap().0, Answer::Code(Zeroizing::new("abc".into())));
    }
}
