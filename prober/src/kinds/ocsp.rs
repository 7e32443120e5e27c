//! A stapled OCSP response (RFC 6960): what it says of the server's certificate, and whether it may say so. Bytes of others: nothing here
//! may panic.
//!
//! It holds when it is about this certificate, its time has come and is not over, and it is signed by the certificate's issuer, or by somebody
//! whom the issuer certified for that (section 4.2.2.2). No responder is asked: what is not stapled is not known.

use ring::digest;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{ASN1Time, AlgorithmIdentifier, FromDer, SubjectPublicKeyInfo, X509Certificate};
use x509_parser::verify::verify_signature;

use super::certificate::{Der, issuer_of};

/// How far the responder's clock and ours may differ, in seconds.
const SKEW_S: i64 = 300;
/// Certificates of delegates that are looked at.
const DELEGATES_MAX: usize = 4;
/// Single responses that are looked at: a staple has one.
const SINGLES_MAX: usize = 64;
const SHA1: &[u8] = &[0x2b, 0x0e, 0x03, 0x02, 0x1a];
const SHA256: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];

/// What a response says of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    None,
    Good,
    Revoked,
    Unknown,
}

impl Status {
    pub(super) fn word(self) -> &'static str {
        match self {
            Status::None => "none",
            Status::Good => "good",
            Status::Revoked => "revoked",
            Status::Unknown => "unknown",
        }
    }
}

/// A response, read and judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stapled {
    pub(super) status: Status,
    /// Why it may not say so, if it may not.
    pub(super) wrong: Option<String>,
}

/// Reads what was stapled to a chain, the server's own certificate first.
pub(super) fn stapled(response: &[u8], chain: &[CertificateDer<'_>], now_s: i64) -> Stapled {
    if response.is_empty() {
        return Stapled { status: Status::None, wrong: None };
    }
    let nothing = |why: &str| Stapled { status: Status::Unknown, wrong: Some(why.to_owned()) };
    let Some(basic) = basic(response) else { return nothing("it is no successful OCSP response") };
    let leaf = chain.first().and_then(|der| X509Certificate::from_der(der).ok()).map(|(_, leaf)| leaf);
    let serial = leaf.as_ref().map_or(&[][..], |l| l.raw_serial());
    let Some(single) = basic.singles.iter().find(|s| s.serial == serial) else {
        // That another one is revoked says nothing of this one.
        return match basic.singles.first().map(|s| s.status) {
            None | Some(Status::Revoked) => nothing("it says nothing of this certificate"),
            Some(status) => Stapled { status, wrong: Some("it is about another certificate".to_owned()) },
        };
    };
    let wrong = match &leaf {
        None => Some("the certificate cannot be read".to_owned()),
        Some(leaf) => holds(&basic, single, leaf, &chain[1..], now_s).err(),
    };
    Stapled { status: single.status, wrong }
}

/// A BasicOCSPResponse (section 4.2.1).
struct Basic<'b> {
    /// What is signed, as it came.
    signed: &'b [u8],
    algorithm: &'b [u8],
    signature: &'b [u8],
    delegates: Vec<&'b [u8]>,
    singles: Vec<Single<'b>>,
}

struct Single<'b> {
    hash: &'b [u8],
    name_hash: &'b [u8],
    key_hash: &'b [u8],
    serial: &'b [u8],
    status: Status,
    this_update: &'b [u8],
    next_update: Option<&'b [u8]>,
}

/// An element with its tag and length, and what follows it.
fn whole<'b>(der: Der<'b>, tag: u8) -> Option<(&'b [u8], Der<'b>)> {
    let (_, rest) = der.next(tag)?;
    Some((&der.0[..der.0.len() - rest.0.len()], rest))
}

fn basic(response: &[u8]) -> Option<Basic<'_>> {
    let (status, after) = Der(response).inside(0x30)?.next(0x0a)?;
    if status != [0] {
        return None;
    }
    let (_, bytes) = after.inside(0xa0)?.inside(0x30)?.next(0x06)?;
    let basic = Der(bytes.next(0x04)?.0).inside(0x30)?;
    let (signed, rest) = whole(basic, 0x30)?;
    let mut data = Der(signed).inside(0x30)?;
    // An explicit version, and who responds, come before the time.
    for _ in 0..3 {
        match data.tag()? {
            0x18 => break,
            tag => data = data.next(tag)?.1,
        }
    }
    let mut list = data.next(0x18)?.1.inside(0x30)?;
    let mut singles = Vec::new();
    while list.tag().is_some() && singles.len() < SINGLES_MAX {
        let (content, next) = list.next(0x30)?;
        singles.push(single(Der(content))?);
        list = next;
    }
    // The signature may be missing: then it is a response that does not hold.
    let (algorithm, signature, certificates) = match whole(rest, 0x30) {
        Some((algorithm, rest)) => {
            let (signature, rest) = rest.next(0x03).unwrap_or((&[], Der(&[])));
            (algorithm, signature, rest.inside(0xa0).and_then(|certificates| certificates.inside(0x30)))
        }
        None => (&[][..], &[][..], None),
    };
    let (mut left, mut delegates) = (certificates, Vec::new());
    while let Some((certificate, next)) = left.and_then(|d| whole(d, 0x30)).filter(|_| delegates.len() < DELEGATES_MAX) {
        delegates.push(certificate);
        left = Some(next);
    }
    Some(Basic { signed, algorithm, signature: signature.strip_prefix(&[0]).unwrap_or(&[]), delegates, singles })
}

fn single(der: Der<'_>) -> Option<Single<'_>> {
    let (id, rest) = der.next(0x30)?;
    let (algorithm, id) = field_of(Der(id), 0x30);
    let (name_hash, id) = field_of(id, 0x04);
    let (key_hash, id) = field_of(id, 0x04);
    let (serial, _) = field_of(id, 0x02);
    let tag = rest.tag()?;
    let status = match tag {
        0x80 => Status::Good,
        0xa1 => Status::Revoked,
        _ => Status::Unknown,
    };
    let rest = rest.next(tag)?.1;
    let (this_update, rest) = whole(rest, 0x18).unwrap_or((&[], Der(&[])));
    let next_update = rest.inside(0xa0).and_then(|next| whole(next, 0x18)).map(|(next, _)| next);
    Some(Single { hash: field_of(Der(algorithm), 0x06).0, name_hash, key_hash, serial, status, this_update, next_update })
}

/// The content of an element, or nothing.
fn field_of(der: Der<'_>, tag: u8) -> (&[u8], Der<'_>) {
    der.next(tag).unwrap_or((&[], Der(&[])))
}

fn holds(basic: &Basic<'_>, single: &Single<'_>, leaf: &X509Certificate<'_>, others: &[CertificateDer<'_>], now_s: i64) -> Result<(), String> {
    let parsed = others.iter().filter_map(|der| X509Certificate::from_der(der).ok()).map(|(_, c)| c);
    let sent: Vec<X509Certificate<'_>> = parsed.chain([leaf.clone()]).collect();
    let issuer = issuer_of(leaf, &sent).ok_or("the server sent no certificate of its issuer")?;
    let hash = match single.hash {
        SHA1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
        SHA256 => &digest::SHA256,
        _ => return Err("it names the certificate by an unknown hash".to_owned()),
    };
    let same = |bytes: &[u8], found: &[u8]| digest::digest(hash, bytes).as_ref() == found;
    if !same(leaf.issuer().as_raw(), single.name_hash) || !same(&issuer.public_key().subject_public_key.data, single.key_hash) {
        return Err("it is about a certificate of another issuer".to_owned());
    }
    let at = |time: &[u8]| ASN1Time::from_der(time).map(|(_, t)| t.timestamp()).map_err(|_| "it has no time that can be read".to_owned());
    if at(single.this_update)? > now_s + SKEW_S {
        return Err("its time has not come".to_owned());
    }
    if let Some(next) = single.next_update
        && at(next)? < now_s - SKEW_S
    {
        return Err("its time is over".to_owned());
    }
    let delegates = basic.delegates.iter().filter_map(|der| X509Certificate::from_der(der).ok()).map(|(_, c)| c);
    let signers = delegates.filter(|c| may_sign(c, issuer, now_s)).collect::<Vec<_>>();
    let signed = std::iter::once(issuer).chain(&signers).any(|signer| signed_by(basic, signer.public_key()));
    if signed { Ok(()) } else { Err("its signature is not of the certificate's issuer".to_owned()) }
}

/// Whether the issuer certified somebody for OCSP (section 4.2.2.2).
fn may_sign(delegate: &X509Certificate<'_>, issuer: &X509Certificate<'_>, now_s: i64) -> bool {
    let for_ocsp = delegate.extended_key_usage().is_ok_and(|usage| usage.is_some_and(|u| u.value.ocsp_signing));
    let validity = delegate.validity();
    let valid = validity.not_before.timestamp() <= now_s + SKEW_S && now_s - SKEW_S <= validity.not_after.timestamp();
    for_ocsp && valid && delegate.issuer().as_raw() == issuer.subject().as_raw() && delegate.verify_signature(Some(issuer.public_key())).is_ok()
}

fn signed_by(basic: &Basic<'_>, key: &SubjectPublicKeyInfo<'_>) -> bool {
    let Ok((_, algorithm)) = AlgorithmIdentifier::from_der(basic.algorithm) else { return false };
    let signature = x509_parser::asn1_rs::BitString::new(0, basic.signature);
    verify_signature(key, &algorithm, &signature, basic.signed).is_ok()
}

/// For tests/fuzz.
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz(bytes: &[u8], certificate: &[u8]) {
    let chain = [CertificateDer::from(certificate), CertificateDer::from(certificate)];
    let _ = stapled(bytes, &chain, 1_780_000_000).status.word();
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

    fn status(response: &[u8]) -> Status {
        stapled(response, &[], 0).status
    }

    #[test]
    fn what_is_stapled() {
        for version in [false, true] {
            assert_eq!(status(&response(der(0x80, &[]), version)), Status::Good);
            assert_eq!(status(&response(der(0xa1, &[der(0x18, &[b"20260101000000Z".to_vec()])]), version)), Status::Revoked);
            assert_eq!(status(&response(der(0x82, &[]), version)), Status::Unknown);
        }
        assert_eq!(stapled(&[], &[], 0), Stapled { status: Status::None, wrong: None });
        // tryLater
        assert_eq!(status(&der(0x30, &[der(0x0a, &[vec![3]])])), Status::Unknown);
        assert!(stapled(&response(der(0x80, &[]), true), &[], 0).wrong.is_some(), "of nobody it holds for nobody");
    }

    #[test]
    fn damaged_bytes_are_no_panic() {
        let whole = response(der(0x80, &[]), true);
        for i in 0..whole.len() {
            let _ = status(&whole[..i]);
            for flip in [0x01, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[i] ^= flip;
                let _ = status(&bytes);
            }
        }
    }
}
