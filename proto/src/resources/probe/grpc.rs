//! `grpc:` of a probe: the health checking protocol.

use super::super::read::{Fields, Mistakes};
use super::{secret_ref, target_or, tls};
use crate::v1::*;

const STATUSES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];

pub(super) fn grpc(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> GrpcCheck {
    let (metadata, secret_metadata) = headers(f, "metadata", mistakes);
    let statuses = f.get("expect").and_then(|at| at.fields(mistakes)).map(|mut e| {
        let items = e.get("status").map(|at| at.items(mistakes)).unwrap_or_default();
        e.finish(mistakes);
        items.iter().filter_map(|at| at.parsed(mistakes, status)).collect()
    });
    GrpcCheck {
        address: target_or(f, "address", mistakes),
        service: f.text("service", mistakes).unwrap_or_default(),
        tls: tls::tls(f, mistakes),
        metadata,
        secret_metadata,
        statuses: statuses.unwrap_or_default(),
    }
}

fn status(text: &str) -> Result<String, String> {
    if STATUSES.contains(&text) { Ok(text.to_owned()) } else { Err(format!("{text:?} is no serving status (want {})", STATUSES.join(", "))) }
}

/// A mapping of names to texts, or to `{secretRef, prefix}`.
pub(super) fn headers(f: &mut Fields<'_>, key: &'static str, mistakes: &mut Mistakes) -> (Vec<Header>, Vec<SecretHeader>) {
    let (mut plain, mut secret) = (Vec::new(), Vec::new());
    if f.get(key).is_some_and(|at| at.fields(mistakes).is_none()) {
        return (plain, secret);
    }
    for (name, at) in f.children(key) {
        let right = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
        let name = name.to_ascii_lowercase();
        if name.is_empty() || !name.chars().all(right) {
            mistakes.add(&at.path, at.place(), format!("{name:?} is no header name"), "want a-z, 0-9, -, _ and .");
        }
        if at.text(&mut Mistakes::default()).is_some() {
            let visible = |t: &str| if t.chars().all(|c| (' '..='~').contains(&c)) { Ok(t.to_owned()) } else { Err(format!("{t:?} cannot stand in a header")) };
            plain.extend(at.parsed(mistakes, visible).map(|value| Header { name, value }));
        } else if let Some(mut of) = at.fields(mistakes) {
            let secret_ref = secret_ref(&mut of, "secretRef", mistakes);
            secret.push(SecretHeader { name, secret_ref, prefix: of.text("prefix", mistakes).unwrap_or_default() });
            of.finish(mistakes);
        }
    }
    (plain, secret)
}
