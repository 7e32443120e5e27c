//! A chain of certificates as Go's crypto/x509 prints it: what blackbox's labels and expiries are made of. Bytes of others: nothing may panic.

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{GeneralName, ParsedExtension, X509Certificate};
use x509_parser::x509::X509Name;

/// Bytes of one fact: a certificate may have thousands of names.
const NAMES_BYTES_MAX: usize = 8 * 1_024;

/// Attributes under 2.5.4 in the order in which Go prints them, the last part of the identifier first.
const ATTRIBUTES: [(u64, &str); 9] = [(5, "SERIALNUMBER"), (3, "CN"), (17, "POSTALCODE"), (9, "STREET"), (8, "ST"), (7, "L"), (11, "OU"), (10, "O"), (6, "C")];

/// The first certificate is the server's own.
pub(crate) fn facts(chain: &[CertificateDer<'_>]) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let ends = chain.iter().filter_map(|der| Some(x509_parser::parse_x509_certificate(der).ok()?.1.validity().not_after.timestamp()));
    found.extend(ends.min().map(|end| ("tls.server.chain.not_after", end.to_string())));
    let Some((der, (_, leaf))) = chain.first().and_then(|der| Some((der, x509_parser::parse_x509_certificate(der).ok()?))) else { return found };
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let serial = leaf.raw_serial();
    found.push(("tls.server.hash.sha256", hex(ring::digest::digest(&ring::digest::SHA256, der).as_ref())));
    found.push(("tls.server.serial_hex", hex(&serial[serial.iter().take_while(|b| **b == 0).count()..])));
    found.push(("tls.server.subject_rfc4514", name(leaf.subject())));
    found.push(("tls.server.issuer_rfc4514", name(leaf.issuer())));
    found.push(("tls.server.dns_names", dns_names(&leaf)));
    found
}

fn dns_names(certificate: &X509Certificate<'_>) -> String {
    let mut text = String::new();
    for extension in certificate.extensions() {
        let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else { continue };
        for name in &names.general_names {
            let GeneralName::DNSName(name) = name else { continue };
            if text.len() + name.len() > NAMES_BYTES_MAX {
                return text;
            }
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(name);
        }
    }
    text
}

fn name(name: &X509Name<'_>) -> String {
    let known = |oid: &str| oid.strip_prefix("2.5.4.").and_then(|n| n.parse::<u64>().ok()).filter(|n| ATTRIBUTES.iter().any(|(known, _)| known == n));
    let mut parts: Vec<String> = Vec::new();
    for (number, word) in ATTRIBUTES {
        let of = name.iter_attributes().filter(|a| known(&a.attr_type().to_id_string()) == Some(number));
        let mut values: Vec<String> = of.filter_map(|a| a.as_str().ok().map(|v| format!("{word}={}", escaped(v)))).collect();
        if matches!(number, 3 | 5) {
            // Go keeps the last one of these.
            values.drain(..values.len().saturating_sub(1));
        }
        if !values.is_empty() {
            parts.push(values.join("+"));
        }
    }
    let others: Vec<String> = name
        .iter_attributes()
        .filter(|a| known(&a.attr_type().to_id_string()).is_none())
        .filter_map(|a| a.as_str().ok().map(|value| format!("{}=#{}", a.attr_type().to_id_string(), der_string(value))))
        .collect();
    parts.extend(others.into_iter().rev());
    parts.join(",")
}

/// A string as DER in hexadecimal: printable if it can be, else UTF-8.
fn der_string(value: &str) -> String {
    let printable = value.chars().all(|c| c.is_ascii_alphanumeric() || " '()+,-./:=?*&".contains(c));
    let mut bytes = vec![if printable { 0x13 } else { 0x0c }];
    match value.len() {
        n @ 0..0x80 => bytes.push(n as u8),
        n @ 0x80..0x100 => bytes.extend([0x81, n as u8]),
        n => bytes.extend([0x82, (n >> 8) as u8, n as u8]),
    }
    bytes.extend(value.bytes());
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// RFC 4514, section 2.4.
fn escaped(value: &str) -> String {
    let last = value.chars().count().saturating_sub(1);
    let mut out = String::with_capacity(value.len());
    for (i, c) in value.chars().enumerate() {
        let special = matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';') || c == '#' && i == 0 || c == ' ' && (i == 0 || i == last);
        if special {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SerialNumber};

    #[test]
    fn names_as_go_prints_them() {
        let mut params = CertificateParams::new(vec!["a.example".to_owned(), "b.example".to_owned()]).expect("names");
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CountryName, "DE");
        subject.push(DnType::OrganizationName, "Shop, Inc.");
        subject.push(DnType::CommonName, " a.example");
        params.distinguished_name = subject;
        params.serial_number = Some(SerialNumber::from(vec![0x00, 0x9a, 0x0b]));
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let found = facts(&[certificate.der().clone()]);
        let fact = |name: &str| found.iter().find(|(n, _)| *n == name).map_or("", |(_, v)| v.as_str());
        assert_eq!(fact("tls.server.subject_rfc4514"), r"CN=\ a.example,O=Shop\, Inc.,C=DE");
        assert_eq!(fact("tls.server.dns_names"), "a.example,b.example");
        assert_eq!(fact("tls.server.serial_hex"), "9a0b");
        assert_eq!(fact("tls.server.hash.sha256").len(), 64);
        assert_eq!(der_string("a@b"), "0c03614062");
    }

    #[test]
    fn damaged_bytes_are_no_panic() {
        let certificate = rcgen::generate_simple_self_signed(vec!["x.example".to_owned()]).expect("a certificate");
        let whole = certificate.cert.der().to_vec();
        for i in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[i] ^= 0xff;
            let _ = facts(&[CertificateDer::from(bytes), CertificateDer::from(whole[..i].to_vec())]);
        }
    }
}
