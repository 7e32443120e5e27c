//! OCSP responses (RFC 6960) as a test wants them.

use rustls::pki_types::CertificateDer;

/// An element in DER.
pub(crate) fn der(tag: u8, parts: &[Vec<u8>]) -> Vec<u8> {
    let content = parts.concat();
    let length = match content.len() {
        n @ 0..=0x7f => vec![n as u8],
        n @ 0x80..=0xff => vec![0x81, n as u8],
        n => vec![0x82, (n >> 8) as u8, n as u8],
    };
    [vec![tag], length, content].concat()
}

/// A response of that status on the first certificate of a chain, whose time ends then, with the certificates of delegates, signed by whoever signs.
pub(crate) fn response(chain: &[CertificateDer<'_>], status: &[u8], until: &str, delegates: &[CertificateDer<'_>], sign: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).expect("a certificate");
    let (_, issuer) = x509_parser::parse_x509_certificate(&chain[1]).expect("a certificate");
    let sha256 = |bytes: &[u8]| ring::digest::digest(&ring::digest::SHA256, bytes).as_ref().to_vec();
    let time = |text: &str| der(0x18, &[text.as_bytes().to_vec()]);
    let algorithm = der(0x30, &[der(0x06, &[vec![0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01]])]);
    let name_hash = der(0x04, &[sha256(leaf.issuer().as_raw())]);
    let key_hash = der(0x04, &[sha256(&issuer.public_key().subject_public_key.data)]);
    let id = der(0x30, &[algorithm, name_hash, key_hash, der(0x02, &[leaf.raw_serial().to_vec()])]);
    let single = der(0x30, &[id, status.to_vec(), time("20260101000000Z"), der(0xa0, &[time(until)])]);
    let data = der(0x30, &[der(0xa2, &[der(0x04, &[vec![1; 20]])]), time("20260101000000Z"), der(0x30, &[single])]);
    let ecdsa_with_sha256 = der(0x30, &[der(0x06, &[vec![0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02]])]);
    let signature = der(0x03, &[vec![0], sign(&data)]);
    let certificates = match delegates {
        [] => Vec::new(),
        some => der(0xa0, &[der(0x30, &some.iter().map(|c| c.to_vec()).collect::<Vec<_>>())]),
    };
    let basic = der(0x30, &[data, ecdsa_with_sha256, signature, certificates]);
    let oid = der(0x06, &[vec![0x2b, 6, 1, 5, 5, 7, 48, 1, 1]]);
    der(0x30, &[der(0x0a, &[vec![0]]), der(0xa0, &[der(0x30, &[oid, der(0x04, &[basic])])])])
}
