//! What several sections share: secrets, TLS, the two options on IP families.

use std::fmt;

use super::super::read::{Fields, Mistakes};

/// A value that is nobody's business, given in the file or in one of its own.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// In the file.
    Given(String),
    /// The path of a file that has it.
    File(String),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Secret::Given(_) => f.write_str("Given(<secret>)"),
            Secret::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// `key`, or `key_file`; not both.
pub(super) fn secret(f: &mut Fields<'_>, key: &'static str, file_key: &'static str, mistakes: &mut Mistakes) -> Option<Secret> {
    let given = f.text(key, mistakes).map(Secret::Given);
    let file = f.get(file_key);
    match (given, file) {
        (Some(_), Some(at)) => {
            mistakes.add(&at.path, at.place(), format!("both {key} and {file_key} are given"), "keep one");
            None
        }
        (None, Some(at)) => at.text(mistakes).map(Secret::File),
        (given, None) => given,
    }
}

/// `tls_config`
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// Whoever answers is believed.
    pub insecure_skip_verify: bool,
    /// Authorities, besides the host's.
    pub ca: Option<Secret>,
    /// The client's certificate.
    pub cert: Option<Secret>,
    /// Its key.
    pub key: Option<Secret>,
    /// In the server's certificate; empty = as the target says.
    pub server_name: String,
    /// "1.2", "1.3" or empty.
    pub min_version: &'static str,
    /// The same.
    pub max_version: &'static str,
}

pub(super) fn tls(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> Tls {
    let Some(mut t) = f.get("tls_config").and_then(|at| at.fields(mistakes)) else { return Tls::default() };
    t.not_yet(&["ca_ref", "cert_ref", "key_ref"], mistakes);
    // TLS 1.0 and 1.1 (RFC 8996) are spoken by nothing here: as a least version they ask for no more than 1.2.
    let oldest = [("TLS10", ""), ("TLS11", ""), ("TLS12", "1.2"), ("TLS13", "1.3")];
    let newest = [("TLS12", "1.2"), ("TLS13", "1.3")];
    let tls = Tls {
        insecure_skip_verify: t.flag("insecure_skip_verify", mistakes).unwrap_or(false),
        ca: secret(&mut t, "ca", "ca_file", mistakes),
        cert: secret(&mut t, "cert", "cert_file", mistakes),
        key: secret(&mut t, "key", "key_file", mistakes),
        server_name: t.text("server_name", mistakes).unwrap_or_default(),
        min_version: t.choice("min_version", &oldest, mistakes).unwrap_or_default(),
        max_version: t.choice("max_version", &newest, mistakes).unwrap_or_default(),
    };
    if tls.cert.is_some() != tls.key.is_some() {
        mistakes.add(&t.path, t.place(), "a client certificate needs both cert_file and key_file", "");
    }
    t.finish(mistakes);
    tls
}

/// `preferred_ip_protocol` and `ip_protocol_fallback`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ip {
    /// IPv4 rather than IPv6.
    pub v4: bool,
    /// The other family will do.
    pub fallback: bool,
}

impl Default for Ip {
    fn default() -> Ip {
        Ip { v4: false, fallback: true }
    }
}

pub(super) fn ip(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> Ip {
    Ip {
        v4: f.choice("preferred_ip_protocol", &[("ip4", true), ("ip6", false)], mistakes).unwrap_or(false),
        fallback: f.flag("ip_protocol_fallback", mistakes).unwrap_or(true),
    }
}

pub(super) fn source(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> String {
    let ip = |text: &str| text.parse::<std::net::IpAddr>().map(|ip| ip.to_string()).map_err(|_| format!("{text:?} is no IP address"));
    f.get("source_ip_address").and_then(|at| at.parsed(mistakes, ip)).unwrap_or_default()
}

/// A list of texts.
pub(super) fn texts(f: &mut Fields<'_>, key: &'static str, mistakes: &mut Mistakes) -> Vec<String> {
    let items = f.get(key).map(|at| at.items(mistakes)).unwrap_or_default();
    items.iter().filter_map(|at| at.text(mistakes)).collect()
}

/// A list of Go's regular expressions, translated.
pub(super) fn patterns(f: &mut Fields<'_>, key: &'static str, mistakes: &mut Mistakes) -> Vec<String> {
    let items = f.get(key).map(|at| at.items(mistakes)).unwrap_or_default();
    items.iter().filter_map(|at| at.parsed(mistakes, super::from_go)).collect()
}
