//! Mutual TLS from three files, and who the other side is.
//!
//! A certificate's common name is the name of the part (a prober's, a member's, a person's); its organisational units are
//! what it may do: see [`Grant`]. Both come from `probity ca init` and from join tokens, or from the user's own authority by the
//! same rule. The files are read for each new connection, so whoever replaces them needs no restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme};

use crate::access::{Grant, Role};
use crate::pki::LIFETIME_WORD;

/// A directory with `ca.crt`, `tls.crt` and `tls.key`, all PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Where the three files are.
    pub dir: PathBuf,
}

/// A file is missing, no PEM, or of no use.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// It could not be read.
    #[error("cannot read {} (`probity ca init` writes it)", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It holds no PEM block of the kind that is needed.
    #[error("{} holds no PEM {what}", path.display())]
    NotPem {
        /// Which file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// Its time is over, or has not come.
    #[error("the certificate of {name:?} in {} {when} (`probity ca token` makes a token to enrol again)", path.display())]
    NotNow {
        /// Which file.
        path: PathBuf,
        /// Its common name.
        name: String,
        /// "has expired at ..." or "is not valid before ...".
        when: String,
    },
    /// The certificate is of somebody else, or of no use.
    #[error("{}: {message}", path.display())]
    Unfit {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
}

/// What tells one state of the files from another.
pub type Stamp = Vec<Option<(SystemTime, u64)>>;

fn now_s() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

/// A time in seconds since the epoch, for a person.
pub fn written(at_s: i64) -> String {
    jiff::Timestamp::from_second(at_s).map(|t| t.to_string()).unwrap_or_else(|_| at_s.to_string())
}

impl TlsFiles {
    /// The files in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        TlsFiles { dir: dir.into() }
    }

    /// One of them.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, TlsError> {
        let path = self.path(name);
        std::fs::read(&path).map_err(|source| TlsError::Read { path, source })
    }

    fn certificates(&self, name: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.read(name)?).collect();
        found.ok().filter(|c| !c.is_empty()).ok_or_else(|| TlsError::NotPem { path: self.path(name), what: "certificate" })
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        PrivateKeyDer::from_pem_slice(&self.read("tls.key")?).map_err(|_| TlsError::NotPem { path: self.path("tls.key"), what: "private key" })
    }

    /// Whether a key is of a certificate, both by their names in the directory.
    pub(crate) fn fit(&self, certificate: &str, key: &str) -> bool {
        let key = self.read(key).ok().and_then(|pem| PrivateKeyDer::from_pem_slice(&pem).ok());
        let (Ok(chain), Some(key)) = (self.certificates(certificate), key) else { return false };
        rustls::sign::CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider()).is_ok_and(|pair| pair.keys_match().is_ok())
    }

    /// The authorities whose certificates are believed.
    pub fn roots(&self) -> Result<Arc<RootCertStore>, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates("ca.crt")? {
            roots.add(certificate).map_err(|e| TlsError::Unfit { path: self.path("ca.crt"), message: format!("is no certificate of an authority: {e}") })?;
        }
        Ok(Arc::new(roots))
    }

    /// Who our own certificate says that we are; it must be valid now.
    pub fn own(&self) -> Result<Certified, TlsError> {
        let path = self.path("tls.crt");
        let chain = self.certificates("tls.crt")?;
        let own = Certified::of_chain(&chain).map_err(|message| TlsError::Unfit { path: path.clone(), message })?;
        let now = now_s();
        if now > own.not_after_s {
            return Err(TlsError::NotNow { path, name: own.name, when: format!("has expired at {}", written(own.not_after_s)) });
        }
        if now < own.not_before_s {
            return Err(TlsError::NotNow { path, name: own.name, when: format!("is not valid before {}; is the clock right?", written(own.not_before_s)) });
        }
        Ok(own)
    }

    /// The same, and it must be of `role` and bear `name`.
    pub fn own_as(&self, role: Role, name: &str) -> Result<Certified, TlsError> {
        let own = self.own()?;
        if own.name != name || !own.grants.contains(&Grant::everywhere(role)) {
            let message = format!("the certificate is of {}, not of {} {name:?}", own.described(), role.as_str());
            return Err(TlsError::Unfit { path: self.path("tls.crt"), message });
        }
        Ok(own)
    }

    /// Whether there is a certificate of our own: a bearer of a token needs none.
    pub fn has_own(&self) -> bool {
        self.path("tls.crt").exists()
    }

    /// For a server. A client without a certificate gets through the handshake: what it may do then is decided for each request.
    pub fn server(&self, protocols: &[&str]) -> Result<ServerConfig, TlsError> {
        self.own()?;
        let verifier = WebPkiClientVerifier::builder(self.roots()?)
            .allow_unauthenticated()
            .build()
            .map_err(|e| TlsError::Unfit { path: self.path("ca.crt"), message: e.to_string() })?;
        let mut chain = self.certificates("tls.crt")?;
        // The root too: who enrols knows its fingerprint, and nothing else.
        for root in self.certificates("ca.crt")? {
            if !chain.contains(&root) {
                chain.push(root);
            }
        }
        let mut config = ServerConfig::builder()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, self.key()?)
            .map_err(|e| TlsError::Unfit { path: self.path("tls.key"), message: format!("does not fit tls.crt: {e}") })?;
        config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        // A resumed session would bring back a certificate that was checked long ago.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// For a client: the server must be of our authority, and bear the name or address that was dialled.
    pub fn client(&self) -> Result<ClientConfig, TlsError> {
        let builder = ClientConfig::builder().with_root_certificates(self.roots()?);
        let mut config = if self.has_own() {
            self.own()?;
            builder
                .with_client_auth_cert(self.certificates("tls.crt")?, self.key()?)
                .map_err(|e| TlsError::Unfit { path: self.path("tls.key"), message: format!("does not fit tls.crt: {e}") })?
        } else {
            builder.with_no_client_auth()
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    /// Changes whenever one of the files does.
    pub fn stamp(&self) -> Stamp {
        ["ca.crt", "tls.crt", "tls.key"].iter().map(|name| std::fs::metadata(self.path(name)).ok().and_then(|m| Some((m.modified().ok()?, m.len())))).collect()
    }

    /// SHA-256 of the first authority's certificate, hexadecimal.
    pub fn root_fingerprint(&self) -> Result<String, TlsError> {
        Ok(fingerprint(&self.certificates("ca.crt")?[0]))
    }
}

/// SHA-256 of a certificate, hexadecimal.
pub fn fingerprint(certificate: &[u8]) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, certificate).as_ref())
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// For who has nothing but a root's fingerprint: the server must show that root, and a chain to it.
pub fn pinned_client(root_fingerprint: &str) -> ClientConfig {
    let verifier = Arc::new(PinnedRoot(root_fingerprint.to_ascii_lowercase()));
    let mut config = ClientConfig::builder().dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

#[derive(Debug)]
struct PinnedRoot(String);

fn algorithms() -> rustls::crypto::WebPkiSupportedAlgorithms {
    rustls::crypto::ring::default_provider().signature_verification_algorithms
}

impl ServerCertVerifier for PinnedRoot {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let root = intermediates.iter().find(|c| fingerprint(c) == self.0).ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(rustls::crypto::ring::default_provider()))
            .build()
            .map_err(|e| Error::General(e.to_string()))?;
        inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(&self, message: &[u8], cert: &CertificateDer<'_>, dss: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &algorithms())
    }

    fn verify_tls13_signature(&self, message: &[u8], cert: &CertificateDer<'_>, dss: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

/// What a verified chain of certificates says of its bearer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certified {
    /// Common name.
    pub name: String,
    /// From the organisational units.
    pub grants: Vec<Grant>,
    /// Names and addresses that it may be dialled by.
    pub hosts: Vec<String>,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// Of its issuers, as far as they were shown.
    pub issuer_serials: Vec<String>,
    /// Seconds since the epoch.
    pub not_before_s: i64,
    /// Seconds since the epoch.
    pub not_after_s: i64,
    /// How long it was meant to hold: its issuer's end may have cut it short.
    pub lifetime_s: i64,
}

impl Certified {
    /// Reads a chain, the bearer's own certificate first; the error is for a person. Words that are no role of ours are skipped:
    /// an authority may use organisational units for its own ends too.
    pub fn of_chain(chain: &[CertificateDer<'_>]) -> Result<Certified, String> {
        let (leaf, issuers) = chain.split_first().ok_or("there is no certificate")?;
        let (_, leaf) = x509_parser::parse_x509_certificate(leaf).map_err(|e| format!("is no X.509 certificate: {e}"))?;
        let subject = leaf.subject();
        let name = subject.iter_common_name().next().and_then(|cn| cn.as_str().ok()).filter(|n| !n.is_empty()).ok_or("the certificate has no common name")?;
        let units = subject.iter_organizational_unit().filter_map(|ou| ou.as_str().ok());
        let words: Vec<&str> = units.flat_map(|ou| ou.split([' ', ','])).collect();
        let meant_s = words.iter().find_map(|word| word.strip_prefix(LIFETIME_WORD)?.parse::<i64>().ok());
        let mut grants: Vec<Grant> = words.iter().filter_map(|word| Grant::parse(word).ok()).collect();
        grants.sort();
        grants.dedup();
        let names = leaf.subject_alternative_name().ok().flatten().map(|n| n.value.general_names.as_slice()).unwrap_or_default();
        let hosts = names.iter().filter_map(host).collect();
        let issuer_serials = issuers.iter().filter_map(|c| x509_parser::parse_x509_certificate(c).ok()).map(|(_, c)| hex(serial(&c))).collect();
        let (not_before_s, not_after_s) = (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
        Ok(Certified {
            name: name.to_owned(),
            grants,
            hosts,
            serial: hex(serial(&leaf)),
            issuer_serials,
            not_before_s,
            not_after_s,
            lifetime_s: meant_s.filter(|s| *s > 0).unwrap_or(not_after_s.saturating_sub(not_before_s)),
        })
    }

    /// For a message: `prober "e1"`.
    pub fn described(&self) -> String {
        let grants: Vec<String> = self.grants.iter().map(ToString::to_string).collect();
        format!("{} {:?}", if grants.is_empty() { "no role,".to_owned() } else { grants.join(", ") }, self.name)
    }

    /// When it is time for a new one: from five twelfths to a third of its life is left, by the last digits of its serial number. Many
    /// that were made in one moment are not renewed in one.
    pub fn renew_at_s(&self) -> i64 {
        let life = self.not_after_s - self.not_before_s;
        let digits = self.serial.get(self.serial.len().saturating_sub(2)..).unwrap_or_default();
        let early = i64::from(u8::from_str_radix(digits, 16).unwrap_or(0));
        self.not_after_s - life / 3 - life / 12 * early / 256
    }
}

/// The digits of a serial number, without the zero that DER puts before a high bit.
fn serial<'a>(certificate: &'a x509_parser::certificate::X509Certificate<'_>) -> &'a [u8] {
    let raw = certificate.raw_serial();
    if raw.len() > 1 && raw[0] == 0 { &raw[1..] } else { raw }
}

fn host(name: &x509_parser::extensions::GeneralName<'_>) -> Option<String> {
    use x509_parser::extensions::GeneralName;
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|b| std::net::IpAddr::from(b).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|b| std::net::IpAddr::from(b).to_string()),
            _ => None,
        },
        _ => None,
    }
}

/// Whether `address` (host:port) can only be reached from this host: plain text is allowed nowhere else.
pub fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The directory as given, for messages.
impl AsRef<Path> for TlsFiles {
    fn as_ref(&self) -> &Path {
        &self.dir
    }
}
