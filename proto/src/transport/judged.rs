//! A client's connection, whose errors say how the server has judged its certificate. TLS 1.3 lets a client write before that; the
//! server then closes, and a write fails by a broken pipe while the alert that says why waits to be read.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{client::TlsStream, rustls};

/// A connection of which a failed write is told as the alert that the server has sent, if it has.
#[derive(Debug)]
pub(super) struct Judged(pub(super) TlsStream<TcpStream>);

impl Judged {
    fn told<T>(&mut self, cx: &mut Context<'_>, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let Poll::Ready(Err(error)) = done else { return done };
        // What comes before the alert is for nobody any more.
        let mut bytes = [0; 1024];
        loop {
            let mut unread = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.0).poll_read(cx, &mut unread) {
                Poll::Ready(Ok(())) if !unread.filled().is_empty() => {}
                Poll::Ready(Err(why)) if why.get_ref().is_some_and(|why| why.is::<rustls::Error>()) => {
                    return Poll::Ready(Err(why));
                }
                _ => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncRead for Judged {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Judged {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.0).poll_write(cx, bytes);
        self.told(cx, done)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.0).poll_write_vectored(cx, slices);
        self.told(cx, done)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.0).poll_flush(cx);
        self.told(cx, done)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{
        AlertDescription, ClientConfig, RootCertStore, ServerConfig, crypto::aws_lc_rs::default_provider,
        server::WebPkiClientVerifier,
    };
    use tokio::{io::AsyncWriteExt as _, net::TcpListener};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;

    #[tokio::test]
    async fn a_write_to_whoever_has_refused_the_client_says_that() {
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let certificate = own.cert.der().clone();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let (roots, provider) = (Arc::new(roots), Arc::new(default_provider()));
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider)).build();
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.unwrap())
            .with_single_cert(vec![certificate], own.signing_key.serialize_der().try_into().unwrap())
            .unwrap();
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let refused = tokio::spawn(TlsAcceptor::from(Arc::new(server)).accept(accepted));
        let stream = TlsConnector::from(Arc::new(client)).connect("localhost".try_into().unwrap(), tcp).await;
        let mut stream = Judged(stream.unwrap());
        assert!(refused.await.unwrap().is_err(), "the server takes a client without a certificate");
        // The first one that comes after the server has closed is answered by a reset, and those after it fail.
        let error = loop {
            match stream.write_all(b"x").await {
                Ok(()) => tokio::task::yield_now().await,
                Err(error) => break error,
            }
        };
        let why = error.get_ref().and_then(|why| why.downcast_ref::<rustls::Error>());
        assert_eq!(
            why,
            Some(&rustls::Error::AlertReceived(AlertDescription::CertificateRequired)),
            "{error}"
        );
    }
}
