//! What TLS is spoken, and how many streams a connection has.

use std::process::Command;

use mezite_e2e::{Cluster, Ingest, Setup, api, run};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

/// What an HTTP/2 client says first (RFC 9113, section 3.4), with an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// What OpenSSL says of a handshake in one version of TLS; `Err`: the server refused it.
fn handshake(address: &str, version: &str) -> Result<String, String> {
    // At its lowest level, the client itself is not what refuses.
    let arguments = ["s_client", "-brief", "-cipher", "ALL:@SECLEVEL=0", "-connect", address, version];
    let output = run(Command::new("openssl").args(arguments));
    if output.code == 0 { Ok(output.stderr) } else { Err(output.stderr) }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_port_speaks_tls_1_2_or_1_3_and_nothing_older() {
    let cluster = Cluster::start(1).await;
    let (ingests, _) = Ingest::start_all(&cluster, 1).await;
    let node = &cluster.nodes()[0];
    for (address, spoken) in [
        (node.address(), &["-tls1_2", "-tls1_3"][..]),
        (ingests[0].address(), &["-tls1_2", "-tls1_3"]),
        // Auth nodes are of one age: nothing but the newest among them.
        (node.peer_address(), &["-tls1_3"]),
    ] {
        for version in ["-tls1", "-tls1_1", "-tls1_2", "-tls1_3"] {
            match handshake(&address, version) {
                Ok(said) => assert!(spoken.contains(&version), "{address} speaks {version}: {said}"),
                Err(said) => {
                    assert!(!spoken.contains(&version), "{address} does not speak {version}: {said}");
                    let refused = ["alert protocol version", "alert handshake failure"];
                    assert!(refused.iter().any(|alert| said.contains(alert)), "{address}, {version}: {said}");
                }
            }
        }
    }
}

/// SETTINGS_MAX_CONCURRENT_STREAMS (RFC 9113, section 6.5.2) of a server.
async fn max_concurrent_streams(cluster: &Cluster, address: &str, name: ServerName<'static>) -> Option<u32> {
    let tcp = TcpStream::connect(address).await.unwrap();
    let tls = TlsConnector::from(api::tls(cluster.trust(), true, None));
    let mut stream = tls.connect(name, tcp).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(head[3], 4, "its first frame is SETTINGS: {head:?}");
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut settings = vec![0; length as usize];
    stream.read_exact(&mut settings).await.unwrap();
    let setting = settings.chunks(6).find(|setting| setting[..2] == [0, 3])?;
    Some(u32::from_be_bytes(setting[2..].try_into().unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_so_many_streams() {
    let set = vec!["limits.max_streams_per_connection=7".to_owned()];
    let cluster = Cluster::start_with(&Setup { set, ..Setup::default() }).await;
    let (ingests, _) = Ingest::start_all(&cluster, 1).await;
    let node = cluster.nodes()[0].address();
    let auth = api::auth_server_name(cluster.trust());
    assert_eq!(max_concurrent_streams(&cluster, &node, auth).await, Some(7));
    let name = format!("ingest.{}.mezite.internal", cluster.trust().cluster_name());
    let name = ServerName::try_from(name).unwrap();
    assert_eq!(max_concurrent_streams(&cluster, &ingests[0].address(), name).await, Some(1024));
}
