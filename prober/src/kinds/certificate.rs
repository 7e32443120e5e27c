//! What certificates say of themselves, and what an OCSP response says of one. Bytes of others: nothing here may panic.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{GeneralName, ParsedExtension, X509Certificate};

/// Names of one certificate that are shown.
const NAMES_SHOWN: usize = 8;

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
    /// SHA-256 of each public key (SPKI), in base64.
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
            let spki = ring::digest::digest(&ring::digest::SHA256, certificate.public_key().raw);
            found.pins.push(STANDARD.encode(spki));
            found.subjects.push(certificate.subject().to_string());
            if i == 0 {
                found.leaf(&certificate, not_after_s);
            }
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

/// What a stapled response says (RFC 6960). Its signature is not verified: it is what the server says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ocsp {
    None,
    Good,
    Revoked,
    Unknown,
}

impl Ocsp {
    pub(super) fn word(self) -> &'static str {
        match self {
            Ocsp::None => "none",
            Ocsp::Good => "good",
            Ocsp::Revoked => "revoked",
            Ocsp::Unknown => "unknown",
        }
    }
}

/// The status of the first single response.
pub(super) fn ocsp_status(response: &[u8]) -> Ocsp {
    if response.is_empty() {
        return Ocsp::None;
    }
    certificate_status(response).unwrap_or(Ocsp::Unknown)
}

fn certificate_status(response: &[u8]) -> Option<Ocsp> {
    let (status, after) = Der(response).inside(0x30)?.next(0x0a)?;
    if status != [0] {
        return None;
    }
    let (_, bytes) = after.inside(0xa0)?.inside(0x30)?.next(0x06)?;
    let basic = Der(bytes.next(0x04)?.0);
    let mut data = basic.inside(0x30)?.inside(0x30)?;
    // An explicit version, and who responds, come before the time.
    for _ in 0..3 {
        match data.tag()? {
            0x18 => break,
            tag => data = data.next(tag)?.1,
        }
    }
    let single = data.next(0x18)?.1.inside(0x30)?.inside(0x30)?;
    match single.next(0x30)?.1.tag()? {
        0x80 => Some(Ocsp::Good),
        0xa1 => Some(Ocsp::Revoked),
        _ => Some(Ocsp::Unknown),
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

/// For tests/fuzz.
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz_ocsp(bytes: &[u8]) {
    let _ = ocsp_status(bytes).word();
    let _ = || Der(bytes).next(0x30)?.1.inside(0x78)?.next(0x0a);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn der(tag: u8, parts: &[Vec<u8>]) -> Vec<u8> {
        let content = parts.concat();
        let mut out = vec![tag];
        match u8::try_from(content.len()) {
            Ok(n) if n < 0x80 => out.push(n),
            _ => out.extend([0x82, (content.len() >> 8) as u8, content.len() as u8]),
        }
        out.extend(content);
        out
    }

    /// As RFC 6960 has it, without a signature.
    fn response(status: Vec<u8>, version: bool) -> Vec<u8> {
        let time = || der(0x18, &[b"20260101000000Z".to_vec()]);
        let single = der(0x30, &[der(0x30, &[der(0x04, &[vec![7; 200]])]), status, time()]);
        let mut data = if version { vec![der(0xa0, &[der(0x02, &[vec![0]])])] } else { Vec::new() };
        data.extend([der(0xa2, &[der(0x04, &[vec![1; 20]])]), time(), der(0x30, &[single])]);
        let basic = der(0x30, &[der(0x30, &data)]);
        let oid = der(0x06, &[vec![0x2b, 6, 1, 5, 5, 7, 48, 1, 1]]);
        der(0x30, &[der(0x0a, &[vec![0]]), der(0xa0, &[der(0x30, &[oid, der(0x04, &[basic])])])])
    }

    #[test]
    fn what_is_stapled() {
        for version in [false, true] {
            assert_eq!(ocsp_status(&response(der(0x80, &[]), version)), Ocsp::Good);
            assert_eq!(ocsp_status(&response(der(0xa1, &[der(0x18, &[b"20260101000000Z".to_vec()])]), version)), Ocsp::Revoked);
            assert_eq!(ocsp_status(&response(der(0x82, &[]), version)), Ocsp::Unknown);
        }
        assert_eq!(ocsp_status(&[]), Ocsp::None);
        // tryLater
        assert_eq!(ocsp_status(&der(0x30, &[der(0x0a, &[vec![3]])])), Ocsp::Unknown);
    }

    #[test]
    fn damaged_bytes_are_no_panic() {
        let whole = response(der(0x80, &[]), true);
        for i in 0..whole.len() {
            let _ = ocsp_status(&whole[..i]);
            for flip in [0x01, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[i] ^= flip;
                let _ = ocsp_status(&bytes);
                let _ = Chain::read(&[CertificateDer::from(bytes)]);
            }
        }
    }
}
