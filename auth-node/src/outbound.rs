//! Asks servers of others: over TLS alone, without redirects, through no proxy, each answer in bounds of time and size.

use std::time::Duration;

use reqwest::{Certificate, Client, ClientBuilder, Response, redirect, retry};

use crate::error::described;

/// A client that gives a question and its answer so long, connection included.
pub(crate) fn client(timeout: Duration) -> ClientBuilder {
    Client::builder()
        .https_only(true)
        .redirect(redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .retry(retry::never())
        .user_agent("mezite")
        .timeout(timeout)
}

/// Has a client believe these authorities (PEM) alone; or those of the system, if there are none.
///
/// # Errors
/// Which of them cannot be read.
pub(crate) fn believing(builder: ClientBuilder, authorities: &[String]) -> Result<ClientBuilder, String> {
    if authorities.is_empty() {
        return Ok(builder);
    }
    let read = |pem: &String| Certificate::from_pem(pem.as_bytes()).map_err(|error| described(&error));
    Ok(builder.tls_certs_only(authorities.iter().map(read).collect::<Result<Vec<_>, _>>()?))
}

/// Reads the body of an answer, of at most so many bytes.
///
/// # Errors
/// Why it cannot be had.
pub(crate) async fn body(response: &mut Response, most: usize) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| described(&error))? {
        if body.len() + chunk.len() > most {
            return Err(format!("the answer has more than {most} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

#[cfg(test)]
pub(crate) mod testing;
