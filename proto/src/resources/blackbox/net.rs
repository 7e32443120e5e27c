//! `tcp:`, `dns:`, `icmp:` and `grpc:` of a module.

use super::super::read::{At, Fields, Mistakes};
use super::values::{Ip, Tls, ip, patterns, source, texts, tls};

/// `tcp:`
#[derive(Debug, Clone, Default)]
pub struct Tcp {
    /// Families.
    pub ip: Ip,
    /// Where connections come from; empty = as the host routes.
    pub source_address: String,
    /// TLS from the first byte.
    pub tls: bool,
    /// How.
    pub tls_config: Tls,
    /// What is said.
    pub query_response: Vec<QueryResponse>,
}

/// A step of a conversation: first the line that is expected, then what is sent.
#[derive(Debug, Clone, Default)]
pub struct QueryResponse {
    /// Of a line; empty = none is expected.
    pub expect: String,
    /// Without its line's end; may have `${1}`, groups of the line that was expected.
    pub send: String,
    /// TLS from here on.
    pub starttls: bool,
    /// Of `probe_expect_info`: names, and values that may have groups of the line that was expected.
    pub labels: Vec<(String, String)>,
}

pub(super) fn tcp(f: &mut Fields<'_>, used: bool, mistakes: &mut Mistakes) -> Tcp {
    let items = f.get("query_response").map(|at| at.items(mistakes)).unwrap_or_default();
    let query_response: Vec<QueryResponse> = items.iter().filter_map(|at| step(at, used, mistakes)).collect();
    let tls_at_once = f.flag("tls", mistakes).unwrap_or(false);
    if tls_at_once && query_response.iter().any(|step| step.starttls) {
        mistakes.add(&f.path_of("tls"), f.place(), "both tls and a step with starttls are given", "keep one");
    }
    Tcp { ip: ip(f, mistakes), source_address: source(f, mistakes), tls: tls_at_once, tls_config: tls(f, mistakes), query_response }
}

fn step(at: &At<'_>, used: bool, mistakes: &mut Mistakes) -> Option<QueryResponse> {
    let mut f = at.fields(mistakes)?;
    if used {
        f.not_yet(&["expect_bytes"], mistakes);
    } else {
        let _ = f.get("expect_bytes");
    }
    let step = QueryResponse {
        expect: f.get("expect").and_then(|at| at.parsed(mistakes, super::from_go)).unwrap_or_default(),
        send: f.text("send", mistakes).unwrap_or_default(),
        starttls: f.flag("starttls", mistakes).unwrap_or(false),
        labels: f.get("labels").map(|at| labels(&at, mistakes)).unwrap_or_default(),
    };
    if !step.labels.is_empty() && step.expect.is_empty() {
        mistakes.add(&f.path_of("labels"), f.place(), "labels of a step that expects nothing", "they are made of the line that is expected");
    }
    f.finish(mistakes);
    Some(step)
}

/// `[{name, value}]`
fn labels(at: &At<'_>, mistakes: &mut Mistakes) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for item in at.items(mistakes) {
        let Some(mut f) = item.fields(mistakes) else { continue };
        let name = f.need("name", mistakes).and_then(|at| at.parsed(mistakes, label_name)).unwrap_or_default();
        if found.iter().any(|(known, _)| *known == name) {
            mistakes.add(&item.path, item.place(), format!("{name:?} is given twice"), "a label has one value");
        }
        let value = f.text("value", mistakes).unwrap_or_default();
        f.finish(mistakes);
        found.push((name, value));
    }
    found
}

fn label_name(text: &str) -> Result<String, String> {
    let good = |(i, c): (usize, char)| c == '_' || c.is_ascii_alphabetic() || i > 0 && c.is_ascii_digit();
    if !text.is_empty() && text.char_indices().all(good) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is no label's name (want [a-zA-Z_][a-zA-Z0-9_]*)"))
    }
}

/// `dns:`
#[derive(Debug, Clone)]
pub struct Dns {
    /// Families.
    pub ip: Ip,
    /// Where queries come from.
    pub source_address: String,
    /// TCP in UDP's stead.
    pub tcp: bool,
    /// TLS over it.
    pub dns_over_tls: bool,
    /// How.
    pub tls_config: Tls,
    /// The server may ask others.
    pub recursion_desired: bool,
    /// As in RFC 1035.
    pub query_class: u32,
    /// What is asked for.
    pub query_name: String,
    /// `ANY` when it is not given.
    pub query_type: String,
    /// Good codes; empty = NOERROR.
    pub valid_rcodes: Vec<String>,
    /// On the records of the answer.
    pub answer: Section,
    /// Of the authority.
    pub authority: Section,
    /// Of the additional section.
    pub additional: Section,
}

/// `validate_answer_rrs` and its like: patterns of whole records, as dig prints them.
#[derive(Debug, Clone, Default)]
pub struct Section {
    /// Bad when a record matches one.
    pub fail_if_matches: Vec<String>,
    /// Bad when all records match one.
    pub fail_if_all_match: Vec<String>,
    /// Bad when a record does not match one.
    pub fail_if_not_matches: Vec<String>,
    /// Bad when no record matches one.
    pub fail_if_none_matches: Vec<String>,
}

fn record_type(text: &str) -> Result<String, String> {
    if super::super::record_type_number(text).is_some() { Ok(text.to_owned()) } else { Err(format!("{text:?} is no type of DNS record")) }
}

fn section(f: &mut Fields<'_>, key: &'static str, mistakes: &mut Mistakes) -> Section {
    let Some(mut s) = f.get(key).and_then(|at| at.fields(mistakes)) else { return Section::default() };
    let found = Section {
        fail_if_matches: patterns(&mut s, "fail_if_matches_regexp", mistakes),
        fail_if_all_match: patterns(&mut s, "fail_if_all_match_regexp", mistakes),
        fail_if_not_matches: patterns(&mut s, "fail_if_not_matches_regexp", mistakes),
        fail_if_none_matches: patterns(&mut s, "fail_if_none_matches_regexp", mistakes),
    };
    s.finish(mistakes);
    found
}

pub(super) fn dns(f: &mut Fields<'_>, used: bool, mistakes: &mut Mistakes) -> Dns {
    let tcp = f.choice("transport_protocol", &[("udp", false), ("tcp", true)], mistakes).unwrap_or(false);
    let over_tls = f.get("dns_over_tls");
    let dns_over_tls = over_tls.as_ref().is_some_and(|at| at.text(mistakes).as_deref() == Some("true"));
    if let Some(at) = over_tls.filter(|_| dns_over_tls && !tcp) {
        mistakes.add(&at.path, at.place(), "DNS over TLS is over TCP", "set transport_protocol: tcp");
    }
    Dns {
        ip: ip(f, mistakes),
        source_address: source(f, mistakes),
        tcp,
        dns_over_tls,
        tls_config: tls(f, mistakes),
        recursion_desired: f.flag("recursion_desired", mistakes).unwrap_or(true),
        // RFC 1035, section 3.2.4; RFC 2136, section 1.3
        query_class: f.choice("query_class", &[("IN", 1), ("CH", 3), ("HS", 4), ("NONE", 254), ("ANY", 255)], mistakes).unwrap_or(1),
        query_name: if used { f.need_text("query_name", mistakes) } else { f.text("query_name", mistakes).unwrap_or_default() },
        query_type: f.get("query_type").and_then(|at| at.parsed(mistakes, record_type)).unwrap_or_else(|| "ANY".to_owned()),
        valid_rcodes: texts(f, "valid_rcodes", mistakes),
        answer: section(f, "validate_answer_rrs", mistakes),
        authority: section(f, "validate_authority_rrs", mistakes),
        additional: section(f, "validate_additional_rrs", mistakes),
    }
}

/// `icmp:`
#[derive(Debug, Clone)]
pub struct Icmp {
    /// Families.
    pub ip: Ip,
    /// Where packets come from.
    pub source_address: String,
    /// The don't-fragment bit.
    pub dont_fragment: bool,
    /// Bytes after the header.
    pub payload_bytes: u32,
    /// Time to live, hop limit.
    pub ttl: u32,
}

/// As long as blackbox's own payload, "Prometheus Blackbox Exporter".
const PAYLOAD_BYTES: u32 = 28;
/// Of an IPv4 packet.
const PAYLOAD_BYTES_MAX: u64 = 65_507;

impl Default for Icmp {
    fn default() -> Icmp {
        Icmp { ip: Ip::default(), source_address: String::new(), dont_fragment: false, payload_bytes: PAYLOAD_BYTES, ttl: 64 }
    }
}

pub(super) fn icmp(f: &mut Fields<'_>, _used: bool, mistakes: &mut Mistakes) -> Icmp {
    let payload = f.int("payload_size", 0..=PAYLOAD_BYTES_MAX, mistakes).unwrap_or(0) as u32;
    // 0 is "as the system has it" there; its own default is 64.
    let ttl = f.int("ttl", 0..=255, mistakes).map_or(64, |ttl| ttl as u32);
    Icmp {
        ip: ip(f, mistakes),
        source_address: source(f, mistakes),
        dont_fragment: f.flag("dont_fragment", mistakes).unwrap_or(false),
        payload_bytes: if payload == 0 { PAYLOAD_BYTES } else { payload },
        ttl: if ttl == 0 { 64 } else { ttl },
    }
}

/// `grpc:`
#[derive(Debug, Clone, Default)]
pub struct Grpc {
    /// Families.
    pub ip: Ip,
    /// Empty = the server as a whole.
    pub service: String,
    /// Sent along.
    pub metadata: Vec<(String, String)>,
    /// TLS.
    pub tls: bool,
    /// How.
    pub tls_config: Tls,
}

pub(super) fn grpc(f: &mut Fields<'_>, _used: bool, mistakes: &mut Mistakes) -> Grpc {
    Grpc {
        ip: ip(f, mistakes),
        service: f.text("service", mistakes).unwrap_or_default(),
        metadata: metadata(f, mistakes),
        tls: f.flag("tls", mistakes).unwrap_or(false),
        tls_config: tls(f, mistakes),
    }
}

/// A name with its values, or with one.
fn metadata(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> Vec<(String, String)> {
    let Some(at) = f.get("metadata") else { return Vec::new() };
    if !at.is_mapping() {
        mistakes.add(&at.path, at.place(), "is no mapping", "want for example {name: [value]}");
    }
    let children = f.children("metadata");
    let mut pairs = Vec::new();
    for (name, at) in children {
        let values = if at.is_sequence() { at.items(mistakes) } else { vec![at] };
        pairs.extend(values.iter().filter_map(|at| Some((name.clone(), at.text(mistakes)?))));
    }
    pairs
}
