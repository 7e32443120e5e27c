//! QUIC servers of a test, as far as HTTP/3 begins: what a connection says is the test's.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Connection, Endpoint, TransportConfig};
use rustls::ServerConfig;

use super::tls::{Authority, Identity};

/// Bytes that a connection keeps for sending: tests measure the memory of both sides.
const SEND_WINDOW_BYTES: u64 = 256 << 10;

pub(crate) fn tls(identity: Identity, alpn: &[u8]) -> ServerConfig {
    let mut config = ServerConfig::builder().with_no_client_auth().with_single_cert(identity.chain, identity.key).expect("a configuration");
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

/// A QUIC server on loopback whose every connection is handled by a function.
pub(crate) async fn quic<F, Fut>(config: ServerConfig, handler: F) -> SocketAddr
where
    F: Fn(Connection) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config).expect("a configuration")));
    let mut transport = TransportConfig::default();
    transport.send_window(SEND_WINDOW_BYTES);
    config.transport_config(Arc::new(transport));
    let endpoint = Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
    let address = endpoint.local_addr().expect("its address");
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            if let Ok(connection) = incoming.await {
                tokio::spawn(handler(connection));
            }
        }
    });
    address
}

/// What is written on the stream of the request, after the settings.
pub(crate) async fn raw(authority: &Authority, head: &[u8], then: &'static [u8]) -> SocketAddr {
    let head = Bytes::copy_from_slice(head);
    quic(tls(authority.issue("shop.test"), b"h3"), move |connection| {
        let head = head.clone();
        async move {
            let Ok(mut control) = connection.open_uni().await else { return };
            // A control stream with empty SETTINGS (RFC 9114, sections 6.2.1 and 7.2.4).
            let _ = control.write_all(&[0x00, 0x04, 0x00]).await;
            let Ok((mut to, _from)) = connection.accept_bi().await else { return };
            let _ = to.write_all(&head).await;
            while !then.is_empty() && to.write_all(then).await.is_ok() {}
            let _ = to.finish();
            drop(connection.closed().await);
        }
    })
    .await
}
