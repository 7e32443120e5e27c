//! Certificates made: a root that stays with the operator, issuing certificates of coordinators, and what those issue.
//!
//! A private key is made where it is used: what travels is a signing request. Nothing that a request says of its sender is taken
//! over: name, roles and hosts come from the token or from the certificate that is renewed.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams, CidrSubnet, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, NameConstraints, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::access::{Grant, Role};
use crate::tls::hex;

/// How long certificates of the system are valid that nobody asked another time for.
pub const LIFETIME: Duration = Duration::from_secs(30 * 86_400);
/// A certificate of the system is never valid for longer: what is not renewed is gone after it.
pub const LIFETIME_MAX: Duration = Duration::from_secs(3_650 * 86_400);
/// A certificate is valid from this much before it is made: clocks differ.
const BACKDATED: Duration = Duration::from_secs(300);
/// The last second that a certificate can name (RFC 5280, section 4.1.2.5).
const LAST_S: i64 = 253_402_300_799;
/// Before the seconds that a certificate was meant for, in its organisational unit, where it holds for another time.
pub(crate) const LIFETIME_WORD: &str = "lifetime:";
/// The longest signing request, in bytes: a key and a name.
const REQUEST_BYTES_MAX: usize = 16 * 1024;

/// A certificate cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The cryptography or the encoding says no.
    #[error("cannot make the certificate")]
    Make(#[from] rcgen::Error),
    /// What was sent is no signing request.
    #[error("not a certificate signing request in PEM, or its signature is wrong")]
    Request(#[source] rcgen::Error),
    /// It is too long to be one.
    #[error("a certificate signing request has at most {REQUEST_BYTES_MAX} bytes")]
    RequestTooLong,
    /// The issuing certificate cannot issue any more.
    #[error("the issuing certificate has expired at {0}")]
    IssuerExpired(String),
    /// The issuing certificate is no certificate.
    #[error("the issuing certificate cannot be read: {0}")]
    Issuer(String),
}

/// A key, and the request to sign it.
#[derive(Debug)]
pub struct KeyRequest {
    /// The private key, PEM.
    pub key_pem: String,
    /// The signing request, PEM.
    pub csr_pem: String,
}

/// A fresh key (P-256) and its signing request.
pub fn request(name: &str) -> Result<KeyRequest, PkiError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    let csr_pem = params.serialize_request(&key)?.pem()?;
    Ok(KeyRequest { key_pem: key.serialize_pem(), csr_pem })
}

/// What a certificate is to say.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Common name.
    pub name: String,
    /// Organisational unit.
    pub grants: Vec<Grant>,
    /// What a server is dialled by; empty for clients.
    pub hosts: Vec<String>,
    /// How long.
    pub lifetime: Duration,
    /// Not valid at or before this, in seconds since the epoch: when the name was revoked.
    pub after_s: i64,
    /// Valid from this on at the latest: whatever is revoked from then on is of this certificate too.
    pub owed_s: i64,
}

/// A certificate that was made.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate, and the issuing one unless that is a root.
    pub chain_pem: String,
    /// Hexadecimal.
    pub serial: String,
    /// Seconds since the epoch.
    pub not_after_s: i64,
}

/// A signing request whose signature was checked.
pub struct Checked(CertificateSigningRequestParams);

impl std::fmt::Debug for Checked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Checked")
    }
}

impl Checked {
    /// Reads a request; its sender holds the private key.
    pub fn read(csr_pem: &str) -> Result<Checked, PkiError> {
        if csr_pem.len() > REQUEST_BYTES_MAX {
            return Err(PkiError::RequestTooLong);
        }
        CertificateSigningRequestParams::from_pem(csr_pem).map(Checked).map_err(PkiError::Request)
    }

    /// SHA-256 of the public key.
    pub fn key_hash(&self) -> Vec<u8> {
        use rcgen::PublicKeyData;
        ring::digest::digest(&ring::digest::SHA256, self.0.public_key.der_bytes()).as_ref().to_vec()
    }
}

/// A random serial number, hexadecimal: known before the certificate is made, so that the log has it first.
pub fn new_serial() -> String {
    let mut bytes: [u8; 16] = rand::random();
    // Positive, and of full length.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    hex(&bytes)
}

fn serial_bytes(serial: &str) -> Vec<u8> {
    (0..serial.len() / 2).filter_map(|i| u8::from_str_radix(&serial[2 * i..2 * i + 2], 16).ok()).collect()
}

/// Whoever can sign.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    root: bool,
    not_after_s: i64,
}

impl Authority {
    /// A new root: its certificate and key as PEM.
    pub fn root(lifetime: Duration) -> Result<(String, String), PkiError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("probity authority {}", hex(&rand::random::<[u8; 4]>())));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        validity(&mut params, lifetime, 0, i64::MAX, i64::MAX);
        Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
    }

    /// One that was made before.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Authority, PkiError> {
        let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(|_| PkiError::Issuer("it holds no PEM certificate".to_owned()))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|e| PkiError::Issuer(e.to_string()))?;
        if !parsed.is_ca() {
            return Err(PkiError::Issuer("it is no certificate of an authority".to_owned()));
        }
        let root = parsed.subject() == parsed.issuer();
        let not_after_s = parsed.validity().not_after.timestamp();
        let issuer = Issuer::from_ca_cert_pem(certificate_pem, KeyPair::from_pem(key_pem)?)?;
        Ok(Authority { issuer, certificate_pem: certificate_pem.to_owned(), root, not_after_s })
    }

    /// Until when it can issue, in seconds since the epoch: nothing that it issues lives longer.
    pub fn not_after_s(&self) -> i64 {
        self.not_after_s
    }

    /// A certificate for whoever made the request.
    pub fn issue(&self, request: Checked, subject: &Subject, serial: &str) -> Result<Issued, PkiError> {
        let mut params = CertificateParams::new(subject.hosts.clone())?;
        let not_after_s = validity(&mut params, subject.lifetime, subject.after_s, subject.owed_s, self.not_after_s);
        params.distinguished_name.push(DnType::CommonName, subject.name.as_str());
        let mut words: Vec<String> = subject.grants.iter().map(ToString::to_string).collect();
        let lifetime_s = subject.lifetime.min(LIFETIME_MAX).as_secs();
        if (params.not_after - params.not_before).whole_seconds().unsigned_abs() != lifetime_s {
            // Cut short by the issuer's end, say: its renewal gets what was meant.
            words.push(format!("{LIFETIME_WORD}{lifetime_s}"));
        }
        params.distinguished_name.push(DnType::OrganizationalUnitName, words.join(" "));
        params.use_authority_key_identifier_extension = true;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if subject.grants.contains(&Grant::everywhere(Role::Coordinator)) {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let certificate = self.sign(request, params, serial)?;
        let issuer = if self.root { "" } else { &self.certificate_pem };
        Ok(Issued { chain_pem: certificate.pem() + issuer, serial: serial.to_owned(), not_after_s })
    }

    /// An issuing certificate for a coordinator: it makes certificates of parts and people, and no further authorities. With `permitted`
    /// it can issue servers' certificates for these names (and what is below them) and addresses only.
    pub fn intermediate(&self, request: Checked, name: &str, permitted: &[String], lifetime: Duration) -> Result<Issued, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("probity issuer {name}"));
        params.use_authority_key_identifier_extension = true;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        if !permitted.is_empty() {
            let subtree = |text: &String| match text.parse::<std::net::IpAddr>() {
                Ok(ip) => GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(ip, if ip.is_ipv4() { 32 } else { 128 })),
                Err(_) => GeneralSubtree::DnsName(text.trim_start_matches("*.").to_owned()),
            };
            params.name_constraints = Some(NameConstraints { permitted_subtrees: permitted.iter().map(subtree).collect(), excluded_subtrees: Vec::new() });
        }
        let not_after_s = validity(&mut params, lifetime, 0, i64::MAX, self.not_after_s);
        let serial = new_serial();
        let certificate = self.sign(request, params, &serial)?;
        Ok(Issued { chain_pem: certificate.pem(), serial, not_after_s })
    }

    fn sign(&self, request: Checked, mut params: CertificateParams, serial: &str) -> Result<Certificate, PkiError> {
        let now_s = jiff::Timestamp::now().as_second();
        if self.not_after_s <= now_s {
            return Err(PkiError::IssuerExpired(crate::tls::written(self.not_after_s)));
        }
        params.serial_number = Some(SerialNumber::from_slice(&serial_bytes(serial)));
        let request = CertificateSigningRequestParams { params, public_key: request.0.public_key };
        Ok(request.signed_by(&self.issuer)?)
    }
}

/// Sets the times, and returns the end in seconds since the epoch.
fn validity(params: &mut CertificateParams, lifetime: Duration, after_s: i64, owed_s: i64, at_most_s: i64) -> i64 {
    let now = SystemTime::now();
    let at = |s: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(s).unwrap_or(0));
    // A short-lived one is backdated by little: its age decides when it is renewed.
    let begin = (now - BACKDATED.min(lifetime / 10)).max(at(after_s.saturating_add(1)));
    let from = begin.min(at(owed_s.min(LAST_S))).max(at(after_s.saturating_add(1)));
    let until = (begin + lifetime.min(LIFETIME_MAX)).min(at(at_most_s.min(LAST_S)));
    params.not_before = from.into();
    params.not_after = until.into();
    until.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{Certified, TlsFiles};

    fn subject(name: &str, grants: &[&str], hosts: &[&str]) -> Subject {
        Subject {
            name: name.to_owned(),
            grants: grants.iter().map(|g| Grant::parse(g).expect("a grant")).collect(),
            hosts: hosts.iter().map(|h| (*h).to_owned()).collect(),
            lifetime: Duration::from_secs(3_600),
            after_s: 0,
            owed_s: i64::MAX,
        }
    }

    fn certified(pem: &str) -> Certified {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().expect("PEM");
        Certified::of_chain(&chain).expect("a chain")
    }

    fn authorities(permitted: &[&str]) -> (String, Authority, Authority) {
        let (root_pem, root_key) = Authority::root(LIFETIME_MAX).expect("a root");
        let root = Authority::load(&root_pem, &root_key).expect("the root");
        let keys = request("c1").expect("a key");
        let permitted: Vec<String> = permitted.iter().map(|p| (*p).to_owned()).collect();
        let made = root.intermediate(Checked::read(&keys.csr_pem).expect("a request"), "c1", &permitted, LIFETIME).expect("an issuer");
        let issuer = Authority::load(&made.chain_pem, &keys.key_pem).expect("the issuer");
        (root_pem, root, issuer)
    }

    #[test]
    fn what_is_issued_says_what_was_asked_by_us_and_not_by_the_request() {
        let (_, _, issuer) = authorities(&[]);
        let keys = request("somebody-else").expect("a key");
        let serial = new_serial();
        let issued = issuer.issue(
            Checked::read(&keys.csr_pem).expect("a request"),
            &subject("me", &["viewer", "operator:shop"], &["127.0.0.1", "c1.example.com"]),
            &serial,
        );
        let read = certified(&issued.expect("a certificate").chain_pem);
        assert_eq!((read.name.as_str(), read.described()), ("me", "viewer, operator:shop \"me\"".to_owned()));
        assert_eq!(read.hosts, ["127.0.0.1", "c1.example.com"]);
        assert_eq!(read.serial, serial);
        assert_eq!(read.issuer_serials.len(), 1, "the issuer's is shown too");
        assert!(read.renew_at_s() > read.not_before_s && read.renew_at_s() < read.not_after_s);
    }

    #[test]
    fn a_request_that_was_tampered_with_is_refused() {
        let keys = request("e1").expect("a key");
        let other = request("e1").expect("a key");
        for bad in ["", "nonsense", &keys.key_pem, &keys.csr_pem.replace("BEGIN CERTIFICATE", "BEGIN"), &"x".repeat(REQUEST_BYTES_MAX + 1)] {
            assert!(Checked::read(bad).is_err(), "{bad:.40}");
        }
        let (a, b) = (Checked::read(&keys.csr_pem).expect("one"), Checked::read(&other.csr_pem).expect("two"));
        assert_ne!(a.key_hash(), b.key_hash());
    }

    /// The names that an issuer is constrained to hold for whoever verifies.
    #[test]
    fn an_issuer_is_bound_to_its_names_and_makes_no_authorities() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (root_pem, _, issuer) = authorities(&["example.com", "127.0.0.1"]);
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("ca.crt"), &root_pem).expect("a file");
        let roots = TlsFiles::new(dir.path()).roots().expect("roots");
        let verifier = rustls::client::WebPkiServerVerifier::builder(roots).build().expect("a verifier");
        let verify = |host: &str| {
            let keys = request("c1").expect("a key");
            let issued = issuer.issue(Checked::read(&keys.csr_pem).expect("a request"), &subject("c1", &["coordinator"], &[host]), &new_serial());
            let chain: Vec<_> = CertificateDer::pem_slice_iter(issued.expect("issued").chain_pem.as_bytes()).collect::<Result<_, _>>().expect("PEM");
            let name = rustls::pki_types::ServerName::try_from(host.to_owned()).expect("a name");
            use rustls::client::danger::ServerCertVerifier;
            verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], rustls::pki_types::UnixTime::now()).is_ok()
        };
        assert!(verify("c1.example.com"));
        assert!(verify("127.0.0.1"));
        assert!(!verify("c1.example.org"));
        assert!(!verify("10.0.0.1"));
    }

    #[test]
    fn a_revoked_name_gets_a_later_certificate() {
        let (_, root, _) = authorities(&[]);
        let keys = request("e1").expect("a key");
        let now = jiff::Timestamp::now().as_second();
        let asked = Subject { after_s: now - 10, ..subject("e1", &["prober"], &[]) };
        let issued = root.issue(Checked::read(&keys.csr_pem).expect("a request"), &asked, &new_serial()).expect("issued");
        assert!(certified(&issued.chain_pem).not_before_s > now - 10);
    }

    #[test]
    fn a_certificate_begins_when_it_was_owed() {
        let (_, root, _) = authorities(&[]);
        let keys = request("e1").expect("a key");
        let now = jiff::Timestamp::now().as_second();
        let issue = |after_s: i64, owed_s: i64| {
            let asked = Subject { after_s, owed_s, ..subject("e1", &["prober"], &[]) };
            certified(&root.issue(Checked::read(&keys.csr_pem).expect("a request"), &asked, &new_serial()).expect("issued").chain_pem)
        };
        let late = issue(0, now - 900);
        assert_eq!(late.not_before_s, now - 900, "the answer to a retry is of the first try");
        assert!(late.not_after_s > now + 3_000 && late.lifetime_s == 3_600, "and lives as long as any: {late:?}");
        assert_eq!(issue(now - 10, now - 5).not_before_s, now - 9);
    }

    /// What is cut short by its issuer's end is renewed for what was meant, and not for what was left.
    #[test]
    fn an_issuer_that_ends_soon_shortens_no_renewal() {
        let (_, root, _) = authorities(&[]);
        let keys = request("c1").expect("a key");
        let made = root.intermediate(Checked::read(&keys.csr_pem).expect("a request"), "c1", &[], Duration::from_secs(600)).expect("an issuer");
        let ending = Authority::load(&made.chain_pem, &keys.key_pem).expect("the issuer");
        let issue = |by: &Authority, lifetime_s: i64| {
            let lifetime = Duration::from_secs(lifetime_s.unsigned_abs());
            let asked = Subject { lifetime, ..subject("e1", &["prober"], &[]) };
            certified(&by.issue(Checked::read(&request("e1").expect("a key").csr_pem).expect("a request"), &asked, &new_serial()).expect("issued").chain_pem)
        };
        let cut = issue(&ending, 3_600);
        assert_eq!((cut.not_after_s, cut.lifetime_s, cut.described().as_str()), (ending.not_after_s(), 3_600, "prober \"e1\""));
        let whole = issue(&root, cut.lifetime_s);
        assert_eq!((whole.not_after_s - whole.not_before_s, whole.lifetime_s), (3_600, 3_600));
    }

    /// Certificates of one moment are not renewed in one moment.
    #[test]
    fn renewals_are_spread() {
        let (_, root, _) = authorities(&[]);
        let due: Vec<i64> = (0..32)
            .map(|_| {
                let issued =
                    root.issue(Checked::read(&request("e1").expect("a key").csr_pem).expect("a request"), &subject("e1", &["prober"], &[]), &new_serial());
                let read = certified(&issued.expect("issued").chain_pem);
                let left = read.not_after_s - read.renew_at_s();
                assert!((1_200..=1_500).contains(&left), "from five twelfths to a third of its life: {left}");
                left
            })
            .collect();
        let distinct: std::collections::BTreeSet<i64> = due.iter().copied().collect();
        assert!(distinct.len() > 8, "{due:?}");
    }

    #[test]
    fn files_that_are_of_no_use_say_why() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (root_pem, root, _) = authorities(&[]);
        let dir = tempfile::tempdir().expect("a directory");
        let files = TlsFiles::new(dir.path());
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("a file");
        let said = |files: &TlsFiles| files.server(&["h2"]).map(|_| ()).expect_err("of no use").to_string();
        assert!(said(&files).contains("cannot read"));
        write("tls.crt", "nonsense");
        assert!(said(&files).contains("holds no PEM certificate"), "{}", said(&files));
        write("ca.crt", &root_pem);
        let keys = request("c1").expect("a key");
        let old = Subject { lifetime: Duration::ZERO, ..subject("c1", &["coordinator"], &["127.0.0.1"]) };
        let issued = root.issue(Checked::read(&keys.csr_pem).expect("a request"), &old, &new_serial()).expect("issued");
        write("tls.crt", &issued.chain_pem);
        write("tls.key", &request("x").expect("a key").key_pem);
        std::thread::sleep(Duration::from_millis(1_100));
        assert!(said(&files).contains("has expired at 20"), "{}", said(&files));
        let fresh = subject("c1", &["coordinator"], &["127.0.0.1"]);
        let issued = root.issue(Checked::read(&keys.csr_pem).expect("a request"), &fresh, &new_serial()).expect("issued");
        write("tls.crt", &issued.chain_pem);
        assert!(said(&files).contains("does not fit tls.crt"), "{}", said(&files));
        write("tls.key", &keys.key_pem);
        assert!(files.server(&["h2"]).is_ok());
        let other = files.own_as(Role::Coordinator, "c2").expect_err("another name").to_string();
        assert!(other.ends_with("the certificate is of coordinator \"c1\", not of coordinator \"c2\""), "{other}");
    }
}
