//! Plain HTTP, for the diagnostics of the programs and for what drives a browser.

use std::io;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Fetches `path` from `address`: the status, and the body.
///
/// # Errors
/// When there is no answer.
pub async fn get(address: &str, path: &str) -> io::Result<(u16, String)> {
    ask(address, "GET", path, "").await
}

/// Sends a request with a body to `address`: the status of the answer, and its body.
///
/// # Errors
/// When there is no answer.
pub async fn ask(address: &str, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let bad = || io::Error::other(format!("not HTTP: {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(bad)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(bad)?;
    Ok((status, body.to_owned()))
}
