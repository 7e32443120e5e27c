//! `tls:` of a probe: as options of other kinds, and as a kind of its own.

use super::super::read::{Fields, Mistakes};
use super::{secret_field, target_or};
use crate::v1::*;

/// Days that a certificate watch wants, unless it says otherwise: time for a person to renew it.
const WATCH_DAYS: u32 = 14;
/// Public keys that one probe pins.
const PINS_MAX: usize = 16;

/// The words of `starttls`.
pub const STARTTLS: &[&str] = &["smtp", "imap", "pop3", "ftp", "ldap", "postgres"];

/// `tls:` among the fields of another kind.
pub(super) fn tls(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> Option<TlsOptions> {
    let mut tls = f.get("tls").and_then(|at| at.fields(mistakes))?;
    let options = options(&mut tls, mistakes);
    tls.finish(mistakes);
    Some(options)
}

/// `tls:` as a kind.
pub(super) fn watch(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> TlsCheck {
    let address = target_or(f, "address", mistakes);
    let starttls = starttls(f, mistakes);
    let mut options = options(f, mistakes);
    if !f.has("minDays") {
        options.min_days = WATCH_DAYS;
    }
    TlsCheck { address, options: Some(options), starttls }
}

fn options(tls: &mut Fields<'_>, mistakes: &mut Mistakes) -> TlsOptions {
    let versions = [("1.2", "1.2"), ("1.3", "1.3")];
    let min_version = tls.choice("minVersion", &versions, mistakes).unwrap_or_default();
    let max_version = tls.choice("maxVersion", &versions, mistakes).unwrap_or_default();
    if (min_version, max_version) == ("1.3", "1.2") {
        mistakes.add(&tls.path_of("maxVersion"), tls.place(), "1.2 is below minVersion, 1.3", "");
    }
    let pins = tls.get("pins").map(|at| {
        let items = at.items(mistakes);
        if items.len() > PINS_MAX {
            mistakes.add(&at.path, at.place(), format!("{} pins are given", items.len()), format!("want at most {PINS_MAX}"));
        }
        items.iter().filter_map(|at| at.parsed(mistakes, pin)).collect()
    });
    let client_certificate_secret_ref = secret_field(tls, "clientCertificate", mistakes);
    let client_key_secret_ref = secret_field(tls, "clientKey", mistakes);
    if client_certificate_secret_ref.is_empty() && !client_key_secret_ref.is_empty() {
        mistakes.add(&tls.path_of("clientKey"), tls.place(), "a key without a clientCertificate", "");
    }
    TlsOptions {
        server_name: tls.text("serverName", mistakes).unwrap_or_default(),
        skip_verify: tls.flag("skipVerify", mistakes).unwrap_or(false),
        ca_pem: ca(tls, mistakes),
        min_version: min_version.to_owned(),
        max_version: max_version.to_owned(),
        client_certificate_secret_ref,
        client_key_secret_ref,
        min_days: tls.int("minDays", 0..=3_650, mistakes).unwrap_or(0) as u32,
        pins: pins.unwrap_or_default(),
        require_staple: tls.flag("requireStaple", mistakes).unwrap_or(false),
    }
}

/// `ca:` of further authorities.
pub(super) fn ca(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> String {
    f.get("ca").and_then(|at| at.parsed(mistakes, pem)).unwrap_or_default()
}

pub(super) fn starttls(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> String {
    let words: Vec<(&str, &str)> = STARTTLS.iter().map(|word| (*word, *word)).collect();
    f.choice("starttls", &words, mistakes).unwrap_or_default().to_owned()
}

/// Certificates in PEM. Here only its outline is looked at: whether they can be used the prober says.
pub(super) fn pem(text: &str) -> Result<String, String> {
    let (begin, end) = ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----");
    let fine = text.matches(begin).count() == text.matches(end).count() && text.contains(begin);
    if fine { Ok(text.to_owned()) } else { Err(format!("is no certificate in PEM (want {begin} ... {end})")) }
}

/// A public key's SHA-256 in base64, as in RFC 7469 and curl: `sha256/47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=`.
pub fn pin(text: &str) -> Result<String, String> {
    let digits = text.strip_prefix("sha256/").or_else(|| text.strip_prefix("sha256//")).unwrap_or(text);
    let base64 = |c: char| c.is_ascii_alphanumeric() || c == '+' || c == '/';
    match digits.strip_suffix('=') {
        Some(body) if body.len() == 43 && body.chars().all(base64) => Ok(digits.to_owned()),
        _ => Err(format!("{text:?} is no pin (want sha256/ and 44 characters of base64: the SHA-256 of a public key)")),
    }
}
