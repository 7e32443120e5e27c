//! `tls:` of a probe.

use super::super::read::{Fields, Mistakes};
use crate::v1::*;

pub(super) fn tls(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> Option<TlsOptions> {
    let mut tls = f.get("tls").and_then(|at| at.fields(mistakes))?;
    tls.not_yet(&["clientCertificate", "pin", "minDays"], mistakes);
    let options = TlsOptions {
        server_name: tls.text("serverName", mistakes).unwrap_or_default(),
        skip_verify: tls.flag("skipVerify", mistakes).unwrap_or(false),
        ca_pem: tls.get("ca").and_then(|at| at.parsed(mistakes, pem)).unwrap_or_default(),
        min_version: tls.choice("minVersion", &[("1.2", "1.2"), ("1.3", "1.3")], mistakes).unwrap_or_default().to_owned(),
    };
    tls.finish(mistakes);
    Some(options)
}

/// Certificates in PEM. Here only its outline is looked at: whether they can be used the prober says.
pub(super) fn pem(text: &str) -> Result<String, String> {
    let (begin, end) = ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----");
    let fine = text.matches(begin).count() == text.matches(end).count() && text.contains(begin);
    if fine { Ok(text.to_owned()) } else { Err(format!("is no certificate in PEM (want {begin} ... {end})")) }
}
