//! One connection to a coordinator: TCP, then TLS with what is believed now, and plain words for what goes wrong.

use std::sync::Arc;

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::Uri;
use tower::Service;

use crate::tls::{TlsFiles, pinned_client};

/// Why the other side is believed.
#[derive(Debug, Clone)]
pub(crate) enum Trust {
    /// It is on this host, in plain text.
    Loopback,
    /// It is of the authority in these files.
    Files(TlsFiles),
    /// It shows the root with this fingerprint.
    Pinned(String),
}

/// The other side is not who it should be.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Untrusted(String);

pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A connector for tonic: it dials `address`, whatever the URI says.
pub(crate) fn connector(address: String, trust: Trust) -> impl Service<Uri, Response = TokioIo<Box<dyn Io>>, Error = Failure, Future: Send> + Send + 'static {
    tower::service_fn(move |_: Uri| dial(address.clone(), trust.clone()))
}

async fn dial(address: String, trust: Trust) -> Result<TokioIo<Box<dyn Io>>, Failure> {
    let (config, authority) = match &trust {
        Trust::Loopback => (None, String::new()),
        Trust::Files(files) => (Some(files.client()?), format!("the authority in {}", files.path("ca.crt").display())),
        Trust::Pinned(root) => (Some(pinned_client(root)), format!("the authority with the fingerprint {root:.16}...")),
    };
    let stream = TcpStream::connect(&address).await?;
    stream.set_nodelay(true)?;
    let Some(config) = config else { return Ok(TokioIo::new(Box::new(stream))) };
    let mut stream = BufReader::new(secure(&address, stream, config, &authority).await?);
    // In TLS 1.3 the other side judges our certificate after our handshake is over: its first words, which HTTP/2 says unasked, tell whether it
    // took us. Waited for here, a refusal has its reason; later it would be a stream that broke.
    match stream.fill_buf().await {
        Ok([]) => Err(format!("{address} closed the connection after the handshake; is there no room for more?").into()),
        Ok(_) => Ok(TokioIo::new(Box::new(stream))),
        Err(e) => Err(match plain(&e.to_string()) {
            Some(text) => Untrusted(format!("{address}: {text}")).into(),
            None => e.into(),
        }),
    }
}

async fn secure(address: &str, stream: TcpStream, config: ClientConfig, authority: &str) -> Result<tokio_rustls::client::TlsStream<TcpStream>, Failure> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned()).map_err(|_| Untrusted(format!("{host:?} can stand in no certificate")))?;
    match TlsConnector::from(Arc::new(config)).connect(name, stream).await {
        Ok(stream) => Ok(stream),
        Err(e) => match e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(error) => Err(Untrusted(words(address, error, authority)).into()),
            None => Err(e.into()),
        },
    }
}

/// What a failed handshake means.
fn words(address: &str, error: &rustls::Error, authority: &str) -> String {
    use rustls::Error::{AlertReceived, InvalidCertificate, InvalidMessage};
    match error {
        InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => format!("{address}: its certificate is not of {authority}"),
        InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }) => {
            format!("{address}: its certificate is for other names; dial it by one that the certificate has, or give it one (`probity ca token --coordinator`)")
        }
        InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            format!("{address}: its certificate has expired (is the clock of this host right?)")
        }
        InvalidMessage(_) => format!("{address}: does not speak TLS; is this the gRPC port of a coordinator that has tls set?"),
        AlertReceived(_) => match plain(&error.to_string()) {
            Some(text) => format!("{address}: {text}"),
            None => format!("{address}: {error}"),
        },
        other => format!("{address}: {other}"),
    }
}

/// The other side's alerts in plain words: in TLS 1.3 they come after the handshake, as text inside some other error.
pub(crate) fn plain(text: &str) -> Option<&'static str> {
    let (_, alert) = text.split_once("received fatal alert: ")?;
    Some(match alert.split_whitespace().next().unwrap_or_default() {
        "UnknownCA" => "the coordinator does not know the authority of our certificate (is it of another cluster?)",
        "CertificateExpired" => "the coordinator says that our certificate has expired (are both clocks right?)",
        "BadCertificate" | "CertificateUnknown" | "UnsupportedCertificate" | "DecryptError" | "CertificateRevoked" | "AccessDenied" => {
            "the coordinator refuses our certificate"
        }
        "NoApplicationProtocol" => "it speaks TLS and no gRPC; is this the HTTP port?",
        _ => return None,
    })
}
