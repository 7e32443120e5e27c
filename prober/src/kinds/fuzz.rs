//! Entries for tests/fuzz: parsers of what targets answer, on any bytes. Each must come to an end, and not panic.

use super as kinds;

/// A certificate that a staple may be about: it only has to be one.
const CERTIFICATE: &[u8] = include_bytes!("../../tests/fixtures/fuzz.der");

/// A DNS server's answer to a query of ours.
pub fn dns(bytes: &[u8]) {
    kinds::dns::fuzz(bytes);
}

/// An ICMP or ICMPv6 message.
pub fn icmp(bytes: &[u8]) {
    kinds::icmp::fuzz(bytes);
}

/// A server's certificate.
pub fn certificate(bytes: &[u8]) {
    kinds::certificate::fuzz_certificate(bytes);
}

/// A stapled OCSP response.
pub fn ocsp(bytes: &[u8]) {
    kinds::ocsp::fuzz(bytes, CERTIFICATE);
}

/// A body; its first byte says in what coding.
pub fn content_coding(bytes: &[u8]) {
    kinds::http::fuzz_coding(bytes);
}

/// A gRPC health answer.
pub fn grpc(bytes: &[u8]) {
    kinds::grpc::fuzz(bytes);
}

/// A redirect's `Location`, against the URL that gave it.
pub fn redirect(bytes: &[u8]) {
    kinds::http::fuzz_redirect(bytes);
}

/// What Prometheus asks `/probe` for: a line with its time-out, then the query.
pub fn blackbox_query(bytes: &[u8]) {
    crate::blackbox::fuzz(bytes);
}
