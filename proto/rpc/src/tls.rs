//! Mutual TLS from three files, and who the other side is.
//!
//! A certificate's common name is the name of the part (a prober's, a member's, a person's); its organisational unit is
//! what it may do: see [`Role`]. Both come from `probity ca init`, or from the user's own authority by the same rule.

use std::path::{Path, PathBuf};

use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

/// A directory with `ca.crt`, `tls.crt` and `tls.key`, all PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Where the three files are.
    pub dir: PathBuf,
}

/// A file is missing or no PEM.
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
}

impl TlsFiles {
    /// The files in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        TlsFiles { dir: dir.into() }
    }

    fn read(&self, name: &str, what: &'static str) -> Result<Vec<u8>, TlsError> {
        let path = self.dir.join(name);
        let bytes = std::fs::read(&path).map_err(|source| TlsError::Read { path: path.clone(), source })?;
        let marker: &[u8] = b"-----BEGIN ";
        if !bytes.windows(marker.len()).any(|w| w == marker) {
            return Err(TlsError::NotPem { path, what });
        }
        Ok(bytes)
    }

    fn parts(&self) -> Result<(Certificate, Identity), TlsError> {
        let ca = Certificate::from_pem(self.read("ca.crt", "certificate")?);
        let identity = Identity::from_pem(self.read("tls.crt", "certificate")?, self.read("tls.key", "private key")?);
        Ok((ca, identity))
    }

    /// For a server: every client must show a certificate of our authority.
    pub fn server(&self) -> Result<ServerTlsConfig, TlsError> {
        let (ca, identity) = self.parts()?;
        Ok(ServerTlsConfig::new().identity(identity).client_ca_root(ca))
    }

    /// For a client: the server must be of our authority, and bear the name or address that was dialled.
    pub fn client(&self) -> Result<ClientTlsConfig, TlsError> {
        let (ca, identity) = self.parts()?;
        Ok(ClientTlsConfig::new().identity(identity).ca_certificate(ca))
    }

    /// The name in our own certificate.
    pub fn own_name(&self) -> Result<Option<PeerIdentity>, TlsError> {
        let path = self.dir.join("tls.crt");
        let pem = self.read("tls.crt", "certificate")?;
        let (_, block) = x509_parser::pem::parse_x509_pem(&pem).map_err(|_| TlsError::NotPem { path, what: "certificate" })?;
        Ok(PeerIdentity::of_certificate(&block.contents))
    }
}

/// What the bearer of a certificate may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Member of the Raft group.
    Coordinator,
    /// Reports runs, under its own name only.
    Prober,
    /// Reads only.
    Viewer,
    /// Changes resources.
    Operator,
    /// Everything, the cluster's membership included.
    Admin,
}

impl Role {
    /// The word in a certificate's organisational unit.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Coordinator => "coordinator",
            Role::Prober => "prober",
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Admin => "admin",
        }
    }

    /// The role of that word.
    pub fn parse(word: &str) -> Option<Role> {
        [Role::Coordinator, Role::Prober, Role::Viewer, Role::Operator, Role::Admin].into_iter().find(|r| r.as_str() == word)
    }
}

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Common name.
    pub name: String,
    /// From the organisational unit.
    pub role: Role,
}

impl PeerIdentity {
    /// From a DER certificate; `None` when it bears no name or no role of ours.
    pub fn of_certificate(der: &[u8]) -> Option<PeerIdentity> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let role = subject.iter_organizational_unit().next()?.as_str().ok().and_then(Role::parse)?;
        Some(PeerIdentity { name, role })
    }

    /// Of the client that sent `request`; `None` without mutual TLS or without a role.
    pub fn of_request<T>(request: &tonic::Request<T>) -> Option<PeerIdentity> {
        let certificates = request.peer_certs()?;
        PeerIdentity::of_certificate(certificates.first()?.as_ref())
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
