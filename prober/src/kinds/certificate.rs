//! What certificates say of themselves. Bytes of others: nothing here may panic.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{GeneralName, ParsedExtension, X509Certificate};

/// Certificates of a chain among which issuers are looked for: each costs a signature check at each step.
const ISSUERS_MAX: usize = 16;
/// Names of one certificate that are shown.
const NAMES_SHOWN: usize = 8;

/// The certificate among those that a server sent that issued another: by its name, and by its signature. Who is merely named so could be anybody.
pub(super) fn issuer_of<'c, 'd>(of: &X509Certificate<'_>, sent: &'c [X509Certificate<'d>]) -> Option<&'c X509Certificate<'d>> {
    sent.iter().find(|c| c.subject().as_raw() == of.issuer().as_raw() && of.verify_signature(Some(c.public_key())).is_ok())
}

/// Facts of a chain as the server sent it, the server's own certificate first.
#[derive(Debug, Default)]
pub(super) struct Chain {
    subject: String,
    issuer: String,
    names: String,
    serial: String,
    key: String,
    leaf_not_after_s: i64,
    not_before_s: i64,
    subjects: Vec<String>,
    /// The earliest end of validity in the chain.
    pub(super) not_after_us: i64,
    /// SHA-256 of the server's public key (SPKI) and of those that vouch for it, in base64. What else it sent is of no account: anybody can send it.
    pub(super) pins: Vec<String>,
    /// As blackbox prints it.
    as_go_has_it: Vec<(&'static str, String)>,
}

impl Chain {
    /// A certificate that cannot be parsed adds nothing.
    pub(super) fn read(chain: &[CertificateDer<'_>]) -> Chain {
        let mut found = Chain { not_after_us: i64::MAX, ..Chain::default() };
        for (i, der) in chain.iter().enumerate() {
            let Ok((_, certificate)) = x509_parser::parse_x509_certificate(der) else { continue };
            let not_after_s = certificate.validity().not_after.timestamp();
            found.not_after_us = found.not_after_us.min(not_after_s.saturating_mul(1_000_000));
            found.subjects.push(certificate.subject().to_string());
            if i == 0 {
                found.leaf(&certificate, not_after_s);
            }
        }
        let sent: Vec<X509Certificate<'_>> =
            chain.iter().take(ISSUERS_MAX).filter_map(|der| x509_parser::parse_x509_certificate(der).ok()).map(|(_, c)| c).collect();
        let mut next = sent.first();
        while let Some(certificate) = next.filter(|_| found.pins.len() < sent.len()) {
            let spki = ring::digest::digest(&ring::digest::SHA256, certificate.public_key().raw);
            found.pins.push(STANDARD.encode(spki));
            // One that signed itself is the end.
            next = issuer_of(certificate, &sent).filter(|c| c.subject().as_raw() != certificate.subject().as_raw());
        }
        found.as_go_has_it = super::chain::facts(chain);
        found
    }

    fn leaf(&mut self, certificate: &X509Certificate<'_>, not_after_s: i64) {
        self.subject = certificate.subject().to_string();
        self.issuer = certificate.issuer().to_string();
        self.serial = certificate.raw_serial_as_string();
        self.leaf_not_after_s = not_after_s;
        self.not_before_s = certificate.validity().not_before.timestamp();
        self.key = certificate.public_key().parsed().map_or_else(|_| "unknown".to_owned(), |key| format!("{} bits", key.key_size()));
        let names: Vec<String> = certificate
            .extensions()
            .iter()
            .flat_map(|e| match e.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(san) => san.general_names.iter().filter_map(name).collect(),
                _ => Vec::new(),
            })
            .collect();
        self.names = names.iter().take(NAMES_SHOWN).map(String::as_str).collect::<Vec<_>>().join(" ");
    }

    /// For people and traces.
    pub(super) fn facts(&self, now_us: i64) -> Vec<(&'static str, String)> {
        let mut facts = vec![
            ("tls.server.subject", self.subject.clone()),
            ("tls.server.issuer", self.issuer.clone()),
            ("tls.server.names", self.names.clone()),
            ("tls.server.serial", self.serial.clone()),
            ("tls.server.key", self.key.clone()),
            ("tls.server.not_before", self.not_before_s.to_string()),
            ("tls.server.not_after", self.leaf_not_after_s.to_string()),
            ("tls.server.days_left", (self.not_after_us.saturating_sub(now_us)).div_euclid(86_400_000_000).to_string()),
            ("tls.server.chain", self.subjects.join(" < ")),
        ];
        facts.extend(self.as_go_has_it.iter().cloned());
        facts.extend(self.pins.first().map(|pin| ("tls.server.spki_sha256", pin.clone())));
        facts
    }
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(dns) => Some((*dns).to_owned()),
        GeneralName::IPAddress(bytes) => match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
            (Ok(v4), _) => Some(std::net::Ipv4Addr::from(v4).to_string()),
            (_, Ok(v6)) => Some(std::net::Ipv6Addr::from(v6).to_string()),
            _ => None,
        },
        _ => None,
    }
}

/// Bytes in DER, read one element after the other.
#[derive(Clone, Copy)]
pub(super) struct Der<'b>(pub(super) &'b [u8]);

impl<'b> Der<'b> {
    pub(super) fn tag(self) -> Option<u8> {
        self.0.first().copied()
    }

    /// The content of an element of that tag, and what follows it.
    pub(super) fn next(self, tag: u8) -> Option<(&'b [u8], Der<'b>)> {
        let [found, first, rest @ ..] = self.0 else { return None };
        if *found != tag {
            return None;
        }
        let (length, rest) = match first {
            0..=0x7f => (usize::from(*first), rest),
            0x81..=0x84 => {
                let digits = usize::from(first & 0x7f);
                let (digits, rest) = rest.split_at_checked(digits)?;
                (digits.iter().fold(0usize, |n, d| n << 8 | usize::from(*d)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        Some((content, Der(rest)))
    }

    pub(super) fn inside(self, tag: u8) -> Option<Der<'b>> {
        self.next(tag).map(|(content, _)| Der(content))
    }
}

/// For tests/fuzz.
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz_certificate(bytes: &[u8]) {
    let chain = Chain::read(&[CertificateDer::from(bytes), CertificateDer::from(bytes)]);
    let _ = chain.facts(1_780_000_000_000_000);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_bytes_are_no_panic() {
        let whole = rcgen::generate_simple_self_signed(vec!["shop.test".to_owned()]).expect("a certificate").cert.der().to_vec();
        for i in 0..whole.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[i] ^= flip;
                let _ = Chain::read(&[CertificateDer::from(bytes)]).facts(0);
            }
        }
    }
}
