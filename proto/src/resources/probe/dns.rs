//! `dns:` of a probe.

use super::super::read::{Fields, Mistakes};
use super::assertion::regex;
use super::{dns_types, target_or, tls};
use crate::v1::*;

/// What RFC 9715 recommends, so that answers are not fragmented.
const EDNS_BYTES: u64 = 1_232;
const FLAGS: [&str; 6] = ["aa", "tc", "rd", "ra", "ad", "cd"];
const CLASSES: [(&str, u32); 5] = [("IN", 1), ("CH", 3), ("HS", 4), ("NONE", 254), ("ANY", 255)];

pub(super) fn dns(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> DnsCheck {
    let server = match f.text("server", mistakes).as_deref() {
        None => "$(target.address)".to_owned(),
        Some("system") => String::new(),
        Some(server) => server.to_owned(),
    };
    let name = target_or(f, "name", mistakes);
    if !f.has("server") && !f.has("name") {
        mistakes.add(
            &f.path_of("name"),
            f.place(),
            "is missing",
            "the target is the server; or give a server (or `server: system`) and ask for the target's name",
        );
    }
    let record_type = f.get("type").and_then(|at| at.parsed(mistakes, dns_types::canonical)).unwrap_or_else(|| "A".to_owned());
    let transports = [("udp", DnsTransport::Udp), ("tcp", DnsTransport::Tcp), ("tls", DnsTransport::Tls), ("https", DnsTransport::Https)];
    let transport = f.choice("transport", &transports, mistakes).unwrap_or_default();
    let (edns_bytes, dnssec_ok) = edns(f, mistakes);
    let validate = f.get("dnssec").and_then(|at| at.fields(mistakes)).and_then(|d| dnssec(d, mistakes));
    DnsCheck {
        server,
        name,
        record_type,
        tcp: false,
        expect: f.get("expect").and_then(|at| at.fields(mistakes)).map(|e| expect(e, mistakes)),
        transport: transport.into(),
        class: f.get("class").and_then(|at| at.parsed(mistakes, class)).unwrap_or(0),
        no_recursion: !f.flag("recursion", mistakes).unwrap_or(true),
        edns_bytes,
        dnssec_ok,
        checking_disabled: f.flag("checkingDisabled", mistakes).unwrap_or(false),
        tls: tls::tls(f, mistakes),
        https_path: f.text("path", mistakes).unwrap_or_default(),
        validate,
    }
}

fn class(text: &str) -> Result<u32, String> {
    let upper = text.to_ascii_uppercase();
    let known = CLASSES.iter().find(|(name, _)| *name == upper).map(|(_, n)| *n);
    let number = || upper.strip_prefix("CLASS").unwrap_or(&upper).parse::<u16>().ok().map(u32::from);
    known.or_else(number).ok_or_else(|| format!("{text:?} is no class (want IN, CH, HS, NONE, ANY or a number)"))
}

/// The size, and the DO bit.
fn edns(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> (u32, bool) {
    let Some(at) = f.get("edns") else { return (EDNS_BYTES as u32, false) };
    if at.text(&mut Mistakes::default()).as_deref() == Some("none") {
        return (0, false);
    }
    let Some(mut edns) = at.fields(mistakes) else { return (0, false) };
    let size = edns.int("size", 512..=65_535, mistakes).unwrap_or(EDNS_BYTES);
    let dnssec_ok = edns.flag("dnssecOk", mistakes).unwrap_or(false);
    edns.finish(mistakes);
    (size as u32, dnssec_ok)
}

fn dnssec(mut f: Fields<'_>, mistakes: &mut Mistakes) -> Option<DnssecValidation> {
    let validate = f.flag("validate", mistakes).unwrap_or(true);
    let anchors = f.get("anchors").map(|at| at.items(mistakes)).unwrap_or_default();
    let anchors = anchors.iter().filter_map(|at| at.parsed(mistakes, anchor)).collect();
    f.finish(mistakes);
    validate.then_some(DnssecValidation { anchors })
}

/// A DNSKEY in presentation form (RFC 4034, section 2.2): `example. [TTL] [IN] DNSKEY 257 3 13 BASE64`.
fn anchor(text: &str) -> Result<DnssecAnchor, String> {
    let wrong = |what: &str| format!("{text:?} is no trust anchor: {what} (want ZONE DNSKEY FLAGS 3 ALGORITHM BASE64)");
    let words: Vec<&str> = text.split_whitespace().collect();
    let at = words.iter().position(|w| w.eq_ignore_ascii_case("DNSKEY")).filter(|at| (1..=3).contains(at)).ok_or_else(|| wrong("DNSKEY is missing"))?;
    let [flags, protocol, algorithm, key @ ..] = &words[at + 1..] else { return Err(wrong("it is too short")) };
    if *protocol != "3" {
        return Err(wrong("the protocol is not 3"));
    }
    let flags = flags.parse::<u16>().map_err(|_| wrong("the flags are no number"))?;
    let algorithm = algorithm.parse::<u8>().map_err(|_| wrong("the algorithm is no number"))?;
    let public_key = base64(&key.concat()).filter(|k| !k.is_empty()).ok_or_else(|| wrong("the key is not base64"))?;
    Ok(DnssecAnchor { zone: words[0].to_owned(), flags: flags.into(), algorithm: algorithm.into(), public_key })
}

/// RFC 4648, section 4.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 {
        return None;
    }
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0u32, 0);
    for c in digits.bytes() {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    Some(out)
}

fn texts(f: &mut Fields<'_>, key: &'static str, mistakes: &mut Mistakes) -> Vec<String> {
    f.get(key).map(|at| at.items(mistakes)).unwrap_or_default().iter().filter_map(|at| at.text(mistakes)).collect()
}

fn expect(mut f: Fields<'_>, mistakes: &mut Mistakes) -> DnsExpect {
    let rcodes = f.get("rcodes").map(|at| at.items(mistakes)).unwrap_or_default();
    let rcodes = rcodes.iter().filter_map(|at| at.parsed(mistakes, dns_types::rcode)).collect();
    let (mut flags_set, mut flags_clear) = (Vec::new(), Vec::new());
    if let Some(mut flags) = f.get("flags").and_then(|at| at.fields(mistakes)) {
        for flag in FLAGS {
            match flags.flag(flag, mistakes) {
                Some(true) => flags_set.push(flag.to_owned()),
                Some(false) => flags_clear.push(flag.to_owned()),
                None => {}
            }
        }
        flags.finish(mistakes);
    }
    let mut section = |key, mistakes: &mut Mistakes| f.get(key).and_then(|at| at.fields(mistakes)).map(|s| self::section(s, mistakes));
    let (answer, authority, additional) = (section("answer", mistakes), section("authority", mistakes), section("additional", mistakes));
    let expect = DnsExpect {
        rcodes,
        min_answers: f.int("minAnswers", 0..=1_000, mistakes).unwrap_or(0) as u32,
        answers: texts(&mut f, "answers", mistakes),
        flags_set,
        flags_clear,
        answer,
        authority,
        additional,
        max_bytes: f.int("maxSize", 12..=65_535, mistakes).unwrap_or(0) as u32,
        same_serial_as: texts(&mut f, "sameSerialAs", mistakes),
    };
    f.finish(mistakes);
    expect
}

fn section(mut f: Fields<'_>, mistakes: &mut Mistakes) -> DnsSectionExpect {
    let mut patterns = |key, mistakes: &mut Mistakes| -> Vec<String> {
        f.get(key).map(|at| at.items(mistakes)).unwrap_or_default().iter().filter_map(|at| at.parsed(mistakes, regex)).collect()
    };
    let (matches, not_matches) = (patterns("matches", mistakes), patterns("notMatches", mistakes));
    let (mut ttl_min_s, mut ttl_max_s) = (0, 0);
    if let Some(mut ttl) = f.get("ttl").and_then(|at| at.fields(mistakes)) {
        let mut seconds = |key, mistakes: &mut Mistakes| ttl.duration(key, mistakes).map_or(0, |us| u32::try_from(us / 1_000_000).unwrap_or(u32::MAX));
        (ttl_min_s, ttl_max_s) = (seconds("min", mistakes), seconds("max", mistakes));
        ttl.finish(mistakes);
    }
    let section = DnsSectionExpect {
        min_count: f.int("minCount", 0..=1_000, mistakes).unwrap_or(0) as u32,
        count_below: f.int("maxCount", 0..=1_000, mistakes).map_or(0, |n| n as u32 + 1),
        equals_given: f.has("equals"),
        equals: texts(&mut f, "equals", mistakes),
        contains: texts(&mut f, "contains", mistakes),
        matches,
        not_matches,
        ttl_min_s,
        ttl_max_s,
        records: None,
    };
    f.finish(mistakes);
    section
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_are_read_as_zone_files_write_them() {
        let anchor = anchor(". 172800 IN DNSKEY 257 3 8 AwEA AQ==").expect("an anchor");
        assert_eq!(anchor, DnssecAnchor { zone: ".".to_owned(), flags: 257, algorithm: 8, public_key: vec![3, 1, 0, 1] });
        for wrong in
            ["", "example. DS 1 2 3 4", "example. DNSKEY 257 4 8 AAAA", "example. DNSKEY 257 3 8", "example. DNSKEY 257 3 8 A*==", "DNSKEY 257 3 8 AAAA"]
        {
            assert!(super::anchor(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn base64_of_every_length() {
        for (text, bytes) in [("", &b""[..]), ("Zg==", b"f"), ("Zm8=", b"fo"), ("Zm9v", b"foo"), ("Zm9vYmE=", b"fooba"), ("+/+/", &[0xfb, 0xff, 0xbf])] {
            assert_eq!(base64(text).as_deref(), Some(bytes), "{text}");
        }
        assert_eq!(base64("Zg="), None);
    }

    #[test]
    fn classes() {
        assert_eq!((class("ch"), class("CLASS32"), class("7")), (Ok(3), Ok(32), Ok(7)));
        assert!(class("XX").is_err());
    }
}
