//! TLS by rustls. What the certificates say is reported even when they are not trusted.
//!
//! Configurations are made once for each set of options; sessions are never resumed, because a run must see a whole handshake.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use probity_proto::units::format_duration;
use probity_proto::v1::{Reason, TlsOptions};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Attempt, Failure, certificate, net, ocsp};
use crate::cache::Cache;

/// Configurations, each some kilobytes: sets of options beyond this are made anew each time.
const CONFIGS_MAX: usize = 512;
/// Chains whose facts are remembered.
const CHAINS_MAX: usize = 2_048;

type Key = (TlsOptions, Vec<Vec<u8>>, String);

/// A configuration, and its verifier, which it does not give back.
#[derive(Debug, Clone)]
struct Made {
    config: Arc<ClientConfig>,
    verifier: Arc<Watching>,
}

/// The authorities of this host, read once, and what was made of them.
#[derive(Debug)]
pub(crate) struct Tls {
    roots: RootCertStore,
    configs: Cache<Key, Made>,
    chains: Cache<Vec<CertificateDer<'static>>, Arc<certificate::Chain>>,
}

impl Tls {
    /// The system's authorities; where it has none, Mozilla's.
    pub(crate) fn load() -> Tls {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        Tls { roots, configs: Cache::new(CONFIGS_MAX), chains: Cache::new(CHAINS_MAX) }
    }

    pub(crate) fn roots(&self) -> &RootCertStore {
        &self.roots
    }

    fn make(&self, (options, alpn, identity): &Key) -> Result<Made, Failure> {
        let failed = |message: String| Failure::new(Reason::Unsupported, message);
        let mut roots = self.roots.clone();
        add_pem(&mut roots, &options.ca_pem).map_err(|e| failed(format!("tls.ca {e}")))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().map_err(|e| failed(e.to_string()))?;
        let tls13 = options.max_version != "1.2";
        let tls12 = options.min_version != "1.3";
        let versions: Vec<&rustls::SupportedProtocolVersion> =
            [(tls13, &rustls::version::TLS13), (tls12, &rustls::version::TLS12)].into_iter().filter_map(|(wanted, v)| wanted.then_some(v)).collect();
        let verifier = Arc::new(Watching { inner, skip: options.skip_verify, tells: None });
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .map_err(|e| failed(e.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone());
        let mut config = if identity.is_empty() {
            builder.with_no_client_auth()
        } else {
            let unusable = |what: &str| Failure::new(Reason::SecretMissing, format!("the client certificate's secret {what}"));
            let chain = CertificateDer::pem_slice_iter(identity.as_bytes()).collect::<Result<Vec<_>, _>>().map_err(|_| unusable("is no PEM"))?;
            let key = PrivateKeyDer::from_pem_slice(identity.as_bytes()).map_err(|_| unusable("has no private key"))?;
            builder.with_client_auth_cert(chain, key).map_err(|_| unusable("has a certificate and a key that cannot be used together"))?
        };
        config.alpn_protocols = alpn.clone();
        config.resumption = Resumption::disabled();
        Ok(Made { config: Arc::new(config), verifier })
    }
}

/// Adds authorities in PEM.
pub(crate) fn add_pem(roots: &mut RootCertStore, pem: &str) -> Result<(), String> {
    for cert in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(cert.map_err(|e| format!("is no PEM: {e}"))?).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// What a server showed in a handshake.
#[derive(Debug)]
struct Seen {
    chain: Vec<CertificateDer<'static>>,
    ocsp: Vec<u8>,
    verified: Result<(), rustls::Error>,
}

thread_local! {
    /// From the verifier, which many handshakes share, to the one handshake that is being polled on this thread.
    static SEEN: RefCell<Option<Seen>> = const { RefCell::new(None) };
}

/// What the server of one connection showed, whichever thread its handshake was driven on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shown(Arc<Mutex<Option<Seen>>>);

impl Shown {
    fn put(&self, seen: Seen) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
    }

    fn take(&self) -> Option<Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Hands on what the server shows, then verifies it, or not if told so.
#[derive(Debug, Clone)]
struct Watching {
    inner: Arc<WebPkiServerVerifier>,
    skip: bool,
    /// Of one connection; none: to the handshake that is being polled on this thread.
    tells: Option<Shown>,
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
        let verified = self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp, now);
        let chain = std::iter::once(end_entity).chain(intermediates).map(|c| c.clone().into_owned()).collect();
        let seen = Seen { chain, ocsp: ocsp.to_vec(), verified: verified.as_ref().map(drop).map_err(Clone::clone) };
        match &self.tells {
            Some(shown) => shown.put(seen),
            None => SEEN.set(Some(seen)),
        }
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

/// TLS for QUIC connections, which drive their handshakes by themselves.
#[derive(Debug)]
pub(crate) struct QuicTls {
    made: Made,
    pub(crate) server_name: String,
}

impl QuicTls {
    /// The configuration of one connection, and where it tells what its server showed.
    pub(crate) fn for_one(&self) -> (ClientConfig, Shown) {
        let shown = Shown::default();
        let mut config = ClientConfig::clone(&self.made.config);
        config.dangerous().set_certificate_verifier(Arc::new(Watching { tells: Some(shown.clone()), ..Watching::clone(&self.made.verifier) }));
        (config, shown)
    }
}

/// Handshakes beside the one that a run times and reports.
#[derive(Debug, Clone)]
pub(crate) struct MoreTls {
    config: Arc<ClientConfig>,
    server_name: ServerName<'static>,
}

impl MoreTls {
    /// Another handshake: verified as the run's own, and nothing is told of it.
    pub(crate) async fn over<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> std::io::Result<TlsStream<S>> {
        let mut connecting = TlsConnector::from(self.config.clone()).connect(self.server_name.clone(), stream);
        poll_fn(|context| {
            let polled = Pin::new(&mut connecting).poll(context);
            // Of this server nobody asks; the next handshake on this thread must not take it for its own.
            SEEN.take();
            polled
        })
        .await
    }
}

impl Attempt<'_> {
    /// A TLS handshake over a connection, offering protocols by ALPN.
    pub(crate) async fn tls<S>(&mut self, stream: S, host: &str, options: &TlsOptions, alpn: &[&[u8]]) -> Result<TlsStream<S>, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let identity = self.client_identity(host, options).await?;
        self.phases.next("tls");
        let (config, server_name) = self.tls_config(host, options, alpn, identity)?;
        let mut connecting = TlsConnector::from(config).connect(server_name, stream);
        let mut seen = None;
        let connected = poll_fn(|context| {
            let polled = Pin::new(&mut connecting).poll(context);
            seen = SEEN.take().or(seen.take());
            polled
        })
        .await;
        let chain = seen.as_ref().map(|s| self.seen_facts(s, options));
        let stream = connected.map_err(|e| tls_failure(&e))?;
        let (_, session) = stream.get_ref();
        if let Some(version) = session.protocol_version() {
            self.fact("tls.protocol.version", format!("{version:?}").trim_start_matches("TLSv").replace('_', "."));
        }
        if let Some(suite) = session.negotiated_cipher_suite() {
            self.fact("tls.cipher", format!("{:?}", suite.suite()));
        }
        if let Some((chain, stapled)) = chain {
            judge(options, &chain, &stapled)?;
        }
        Ok(stream)
    }

    /// What QUIC connections to a server need.
    pub(crate) async fn quic_tls(&self, host: &str, options: &TlsOptions, alpn: &[&[u8]]) -> Result<QuicTls, Failure> {
        let identity = self.client_identity(host, options).await?;
        let (made, server_name) = self.tls_made(host, options, alpn, identity)?;
        Ok(QuicTls { made, server_name: server_name.to_str().into_owned() })
    }

    /// A QUIC handshake's end: what its server showed, and whether that is what the probe asks.
    pub(crate) fn quic_judged<T>(&mut self, shown: &Shown, options: &TlsOptions, handshake: Result<T, Failure>) -> Result<T, Failure> {
        let seen = shown.take();
        let chain = seen.as_ref().map(|s| self.seen_facts(s, options));
        match (seen.map(|s| s.verified), &handshake) {
            // By its cause: QUIC only hands on the alert.
            (Some(Err(e)), Err(_)) if !options.skip_verify => return Err(tls_failure(&std::io::Error::new(std::io::ErrorKind::InvalidData, e))),
            _ => {}
        }
        let done = handshake?;
        // There is no other (RFC 9001, section 4.2).
        self.fact("tls.protocol.version", "1.3");
        if let Some((chain, stapled)) = chain {
            judge(options, &chain, &stapled)?;
        }
        Ok(done)
    }

    fn tls_config(&self, host: &str, options: &TlsOptions, alpn: &[&[u8]], identity: String) -> Result<(Arc<ClientConfig>, ServerName<'static>), Failure> {
        let (made, server_name) = self.tls_made(host, options, alpn, identity)?;
        Ok((made.config, server_name))
    }

    fn tls_made(&self, host: &str, options: &TlsOptions, alpn: &[&[u8]], identity: String) -> Result<(Made, ServerName<'static>), Failure> {
        let tls = &self.context.tls;
        let key = (options.clone(), alpn.iter().map(|p| p.to_vec()).collect(), identity);
        let made = tls.configs.get_or(&key, || tls.make(&key))?;
        let name = if options.server_name.is_empty() { host } else { &options.server_name };
        let name = name.trim_start_matches('[').trim_end_matches(']').to_owned();
        let server_name = ServerName::try_from(name.clone()).map_err(|_| Failure::new(Reason::TlsNameMismatch, format!("{name:?} can be no server's name")))?;
        Ok((made, server_name))
    }

    /// What further connections to the same server need, which are no phases of the run.
    pub(crate) async fn more_tls(&self, host: &str, options: &TlsOptions, alpn: &[&[u8]]) -> Result<MoreTls, Failure> {
        let identity = self.client_identity(host, options).await?;
        let (config, server_name) = self.tls_config(host, options, alpn, identity)?;
        Ok(MoreTls { config, server_name })
    }

    async fn client_identity(&self, host: &str, options: &TlsOptions) -> Result<String, Failure> {
        let mut pem = String::new();
        for name in [&options.client_certificate_secret_ref, &options.client_key_secret_ref] {
            if !name.is_empty() {
                pem.push_str(&self.secret(name, host).await?);
                pem.push('\n');
            }
        }
        Ok(pem)
    }

    fn seen_facts(&mut self, seen: &Seen, options: &TlsOptions) -> (Arc<certificate::Chain>, ocsp::Stapled) {
        if options.skip_verify {
            // Loud: a run that trusts whoever answers must say so.
            let found = seen.verified.as_ref().map_or_else(|e| format!("skipped: {e}"), |()| "skipped".to_owned());
            self.fact("tls.verification", found);
        }
        self.chain_facts(seen)
    }

    fn chain_facts(&mut self, seen: &Seen) -> (Arc<certificate::Chain>, ocsp::Stapled) {
        let chains = &self.context.tls.chains;
        let chain = chains.get(&seen.chain).unwrap_or_else(|| {
            let chain = Arc::new(certificate::Chain::read(&seen.chain));
            chains.put(seen.chain.clone(), chain.clone());
            chain
        });
        for (name, value) in chain.facts(now_us()) {
            self.fact(name, value);
        }
        let stapled = ocsp::stapled(&seen.ocsp, &seen.chain, now_us() / 1_000_000);
        self.fact("tls.server.ocsp", stapled.status.word());
        if stapled.status != ocsp::Status::None {
            self.fact("tls.server.ocsp_signature", stapled.wrong.as_ref().map_or_else(|| "valid".to_owned(), |why| format!("invalid: {why}")));
        }
        (chain, stapled)
    }
}

fn now_us() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_micros() as i64
}

/// What the probe asks of a certificate beyond that it is trusted.
fn judge(options: &TlsOptions, chain: &certificate::Chain, stapled: &ocsp::Stapled) -> Result<(), Failure> {
    let fail = |reason, message: String| Err(Failure::new(reason, message));
    if !options.pins.is_empty() && !chain.pins.iter().any(|pin| options.pins.contains(pin)) {
        return fail(Reason::TlsPinMismatch, format!("no public key of the chain is pinned; the server's is sha256/{}", chain.pins.first().map_or("?", |p| p)));
    }
    match (stapled.status, &stapled.wrong) {
        // Whoever staples that says so of itself, signed or not.
        (ocsp::Status::Revoked, _) => return fail(Reason::TlsRevoked, "the server staples that its certificate is revoked".to_owned()),
        _ if !options.require_staple => {}
        (ocsp::Status::None, _) => return fail(Reason::TlsNotStapled, "the server staples no OCSP response".to_owned()),
        (_, Some(why)) => return fail(Reason::TlsNotStapled, format!("the stapled OCSP response does not hold: {why}")),
        (ocsp::Status::Unknown, _) => return fail(Reason::TlsNotStapled, "the stapled OCSP response does not know the certificate".to_owned()),
        (ocsp::Status::Good, None) => {}
    }
    let left = Duration::from_micros((chain.not_after_us - now_us()).max(0) as u64);
    if options.min_days > 0 && left < Duration::from_secs(86_400 * u64::from(options.min_days)) {
        let left = format_duration(left.as_secs() / 60 * 60_000_000);
        return fail(Reason::TlsExpiresSoon, format!("a certificate of the chain expires in {left}, want at least {}d", options.min_days));
    }
    Ok(())
}

/// A handshake's error by its cause.
pub(super) fn tls_failure(error: &std::io::Error) -> Failure {
    let reason = match error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) => Reason::TlsExpired,
        Some(rustls::Error::InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. })) => Reason::TlsNameMismatch,
        Some(rustls::Error::InvalidCertificate(CertificateError::Revoked)) => Reason::TlsRevoked,
        Some(rustls::Error::InvalidCertificate(_)) => Reason::TlsUntrusted,
        Some(_) => Reason::TlsHandshake,
        // Closed or reset in the middle of it.
        None => match net::io_reason(error, Reason::TlsHandshake) {
            Reason::ConnectionClosed => Reason::TlsHandshake,
            reason => reason,
        },
    };
    Failure::new(reason, error.to_string())
}
