//! Who is behind a proxy: the PROXY protocol, version 1 and 2, as HAProxy, nginx and the load balancers of clouds send it before
//! all else (<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>).

use std::{io, net::SocketAddr};

use ipnet::IpNet;
use ppp::{v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// What version 2 begins with, as long as which a whole header of version 1 is at least.
const SIGNATURE: usize = v2::PROTOCOL_PREFIX.len();
/// After the signature: version and command, families, and the length of what follows.
const V2_REST: usize = 4;
/// Longest header of version 1, with the end of its line.
const V1_MAX: usize = 107;
/// Longest that follows the head of version 2: addresses, and what else proxies have to say.
const V2_MAX: usize = 4 << 10;

/// Whether connections from there begin with a header.
pub(super) fn is_proxy(proxies: &[IpNet], peer: SocketAddr) -> bool {
    let address = peer.ip().to_canonical();
    proxies.iter().any(|network| network.contains(&address))
}

/// Takes the header off a connection of a proxy, and nothing after it: who has connected to the proxy; the proxy, where it
/// connects by itself or does not say.
///
/// # Errors
/// When what comes is no header, or the connection breaks off.
pub(super) async fn client(
    stream: &mut (impl AsyncRead + Unpin),
    proxy: SocketAddr,
) -> io::Result<SocketAddr> {
    let mut header = vec![0; SIGNATURE];
    stream.read_exact(&mut header).await?;
    let client = if header == v2::PROTOCOL_PREFIX {
        read_v2(stream, &mut header).await?
    } else if header.starts_with(v1::PROTOCOL_PREFIX.as_bytes()) {
        read_v1(stream, &mut header).await?
    } else {
        return Err(io::Error::other("the proxy sends no header of the PROXY protocol"));
    };
    Ok(client.unwrap_or(proxy))
}

async fn read_v2(
    stream: &mut (impl AsyncRead + Unpin),
    header: &mut Vec<u8>,
) -> io::Result<Option<SocketAddr>> {
    let mut head = [0; V2_REST];
    stream.read_exact(&mut head).await?;
    header.extend(head);
    let [_, _, high, low] = head;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > V2_MAX {
        return Err(io::Error::other("the header of the PROXY protocol is too long"));
    }
    let at = header.len();
    header.resize(at + length, 0);
    stream.read_exact(header.get_mut(at..).unwrap_or_default()).await?;
    let header = v2::Header::try_from(header.as_slice()).map_err(io::Error::other)?;
    Ok(match (header.command, header.addresses) {
        (v2::Command::Local, _) => None,
        (v2::Command::Proxy, v2::Addresses::IPv4(ip)) => Some((ip.source_address, ip.source_port).into()),
        (v2::Command::Proxy, v2::Addresses::IPv6(ip)) => Some((ip.source_address, ip.source_port).into()),
        (v2::Command::Proxy, v2::Addresses::Unspecified | v2::Addresses::Unix(_)) => None,
    })
}

async fn read_v1(
    stream: &mut (impl AsyncRead + Unpin),
    header: &mut Vec<u8>,
) -> io::Result<Option<SocketAddr>> {
    // Byte by byte: what follows the line is TLS's.
    while !header.ends_with(b"\r\n") {
        if header.len() == V1_MAX {
            return Err(io::Error::other("the header of the PROXY protocol is too long"));
        }
        header.push(stream.read_u8().await?);
    }
    let header = v1::Header::try_from(header.as_slice()).map_err(io::Error::other)?;
    Ok(match header.addresses {
        v1::Addresses::Unknown => None,
        v1::Addresses::Tcp4(ip) => Some((ip.source_address, ip.source_port).into()),
        v1::Addresses::Tcp6(ip) => Some((ip.source_address, ip.source_port).into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROXY: &str = "192.0.2.1:9";

    /// What `sent` says, with bytes of TLS after it that must be left.
    async fn said(sent: &[u8]) -> io::Result<SocketAddr> {
        let sent = [sent, b"\x16\x03\x01"].concat();
        let mut stream = sent.as_slice();
        let client = client(&mut stream, PROXY.parse().unwrap()).await?;
        assert_eq!(stream, b"\x16\x03\x01");
        Ok(client)
    }

    fn v2(head: [u8; 4], body: &[u8]) -> Vec<u8> {
        [v2::PROTOCOL_PREFIX, &head, body].concat()
    }

    #[tokio::test]
    async fn both_versions_say_who_is_behind_and_leave_what_follows() {
        let of = |text: &str| text.parse::<SocketAddr>().unwrap();
        let v1 = said(b"PROXY TCP4 198.51.100.7 192.0.2.2 56324 3025\r\n").await.unwrap();
        assert_eq!(v1, of("198.51.100.7:56324"));
        let v1 = said(b"PROXY TCP6 2001:db8::7 2001:db8::1 56324 3025\r\n").await.unwrap();
        assert_eq!(v1, of("[2001:db8::7]:56324"));
        let addresses = [198, 51, 100, 7, 192, 0, 2, 2, 0xdc, 4, 0x0b, 0xd1];
        let with_extra = [&addresses[..], &[4, 0, 1, 0]].concat();
        for body in [&addresses[..], &with_extra] {
            let length = u8::try_from(body.len()).unwrap();
            let sent = v2([0x21, 0x11, 0, length], body);
            assert_eq!(said(&sent).await.unwrap(), of("198.51.100.7:56324"));
        }
    }

    #[tokio::test]
    async fn a_proxy_that_does_not_say_is_its_own_client() {
        let proxy: SocketAddr = PROXY.parse().unwrap();
        assert_eq!(said(b"PROXY UNKNOWN\r\n").await.unwrap(), proxy);
        // A health check of the proxy itself, whatever addresses it names.
        let addresses = [198, 51, 100, 7, 192, 0, 2, 2, 0xdc, 4, 0x0b, 0xd1];
        assert_eq!(said(&v2([0x20, 0x11, 0, 12], &addresses)).await.unwrap(), proxy);
        assert_eq!(said(&v2([0x21, 0, 0, 0], &[])).await.unwrap(), proxy);
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        let long = [b"PROXY TCP4 ".as_slice(), &[b'1'; 200]].concat();
        let cut = v2([0x21, 0x11, 0, 12], &[198, 51]);
        for sent in [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00".as_slice(),
            b"PROXY TCP4 198.51.100.7 192.0.2.2 99999 3025\r\n",
            b"PROXY TCP4 198.51.100.7\r\n",
            &long,
            &cut,
            &v2([0x31, 0x11, 0, 0], &[]),
            &v2([0x21, 0x11, 0xff, 0xff], &[]),
        ] {
            assert!(said(sent).await.is_err(), "{sent:?}");
        }
    }

    #[test]
    fn proxies_are_known_by_their_addresses() {
        let proxies: Vec<IpNet> = ["192.0.2.0/24", "2001:db8::/32"].map(|net| net.parse().unwrap()).into();
        for (peer, expected) in [
            ("192.0.2.1:9", true),
            ("192.0.3.1:9", false),
            ("[2001:db8::1]:9", true),
            // As a socket that listens to both shows it.
            ("[::ffff:192.0.2.1]:9", true),
        ] {
            assert_eq!(is_proxy(&proxies, peer.parse().unwrap()), expected, "{peer}");
        }
    }
}
