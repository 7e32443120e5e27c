//! `tcp:` of a probe.

use super::super::read::{Fields, Mistakes};
use super::assertion::regex;
use super::{target_or, tls};
use crate::v1::*;

pub(super) fn tcp(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> TcpCheck {
    f.not_yet(&["dialogue", "starttls"], mistakes);
    TcpCheck {
        address: target_or(f, "address", mistakes),
        tls: tls::tls(f, mistakes),
        send: f.text("send", mistakes).unwrap_or_default().into_bytes(),
        expect: f.get("expect").and_then(|at| at.parsed(mistakes, regex)).unwrap_or_default(),
    }
}
