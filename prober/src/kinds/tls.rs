//! TLS by rustls. What the certificate says is reported even when it is not trusted.

use std::sync::{Arc, Mutex};

use probity_proto::v1::{Reason, TlsOptions};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Attempt, Failure, net};

/// The authorities of this host, read once.
#[derive(Debug)]
pub(crate) struct Roots {
    store: RootCertStore,
}

impl Roots {
    /// The system's; where it has none, Mozilla's.
    pub(crate) fn load() -> Roots {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if store.is_empty() {
            store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        Roots { store }
    }

    pub(crate) fn store(&self) -> &RootCertStore {
        &self.store
    }
}

/// Adds authorities in PEM.
pub(crate) fn add_pem(roots: &mut RootCertStore, pem: &str) -> Result<(), String> {
    for cert in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(cert.map_err(|e| format!("is no PEM: {e}"))?).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// Remembers the server's certificate, then verifies it, or not if told so.
#[derive(Debug)]
struct Watching {
    inner: Arc<WebPkiServerVerifier>,
    skip: bool,
    seen: Mutex<Option<CertificateDer<'static>>>,
}

impl ServerCertVerifier for Watching {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Ok(mut seen) = self.seen.lock() {
            *seen = Some(end_entity.clone().into_owned());
        }
        let verified = self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp, now);
        if self.skip { Ok(ServerCertVerified::assertion()) } else { verified }
    }

    fn verify_tls12_signature(&self, message: &[u8], cert: &CertificateDer<'_>, dss: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(&self, message: &[u8], cert: &CertificateDer<'_>, dss: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

impl Attempt<'_> {
    /// A TLS handshake over a connection.
    pub(crate) async fn tls(&mut self, stream: TcpStream, host: &str, options: &TlsOptions, alpn: &[&[u8]]) -> Result<TlsStream<TcpStream>, Failure> {
        self.phases.next("tls");
        let failed = |message: String| Failure::new(Reason::TlsHandshake, message);
        let mut roots = self.context.tls.store.clone();
        add_pem(&mut roots, &options.ca_pem).map_err(|e| failed(format!("tls.ca: {e}")))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().map_err(|e| failed(e.to_string()))?;
        let watching = Arc::new(Watching { inner, skip: options.skip_verify, seen: Mutex::new(None) });
        let versions: &[&rustls::SupportedProtocolVersion] =
            if options.min_version == "1.3" { &[&rustls::version::TLS13] } else { &[&rustls::version::TLS13, &rustls::version::TLS12] };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(|e| failed(e.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(watching.clone())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        let name = if options.server_name.is_empty() { host } else { &options.server_name };
        let name = name.trim_start_matches('[').trim_end_matches(']').to_owned();
        let server_name = ServerName::try_from(name.clone()).map_err(|_| failed(format!("{name:?} is no server name")))?;
        let connected = TlsConnector::from(Arc::new(config)).connect(server_name, stream).await;
        let certificate = watching.seen.lock().ok().and_then(|mut seen| seen.take());
        if let Some(certificate) = certificate {
            self.certificate_facts(&certificate);
        }
        let stream = connected.map_err(|e| tls_failure(&e))?;
        let (_, session) = stream.get_ref();
        if let Some(version) = session.protocol_version() {
            self.facts.push(("tls.protocol.version", format!("{version:?}").trim_start_matches("TLSv").replace('_', ".")));
        }
        if let Some(suite) = session.negotiated_cipher_suite() {
            self.facts.push(("tls.cipher", format!("{:?}", suite.suite())));
        }
        Ok(stream)
    }

    fn certificate_facts(&mut self, certificate: &CertificateDer<'_>) {
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else { return };
        self.facts.push(("tls.server.subject", parsed.subject().to_string()));
        self.facts.push(("tls.server.issuer", parsed.issuer().to_string()));
        self.facts.push(("tls.server.not_after", parsed.validity().not_after.to_datetime().unix_timestamp().to_string()));
    }
}

fn tls_failure(error: &std::io::Error) -> Failure {
    let reason = match error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) => Reason::TlsExpired,
        Some(rustls::Error::InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. })) => Reason::TlsNameMismatch,
        Some(rustls::Error::InvalidCertificate(_)) => Reason::TlsUntrusted,
        Some(_) => Reason::TlsHandshake,
        None => net::io_reason(error, Reason::TlsHandshake),
    };
    Failure::new(reason, error.to_string())
}
