use std::time::Duration;

use probity_proto::resources::blackbox::{Dns, Http, Icmp, Ip, Module, Section, Tls};
use probity_proto::v1::Reason;
use probity_session::Phase;

use super::*;
use crate::blackbox::verdict;

fn render_of(prober: Prober, result: &RunResult) -> String {
    let module = Module { timeout_us: 0, prober, shown: std::sync::Arc::default() };
    let asked = Asked { name: "m", module: &module, target: "t", hostname: "", timeout_us: 9_500_000 };
    render(&asked, result, &verdict::of(&module.prober, result))
}

/// The text without its comments.
fn samples(text: &str) -> Vec<&str> {
    text.lines().filter(|l| !l.starts_with('#')).collect()
}

fn result(reason: Reason, phases: &[(&'static str, u64)], facts: &[(&'static str, &str)]) -> RunResult {
    let mut start_us = 0;
    let mut all = Vec::new();
    for (name, duration_us) in phases {
        all.push(Phase { name, start_us, duration_us: *duration_us });
        start_us += duration_us;
    }
    RunResult {
        reason,
        phases: all,
        duration: Duration::from_micros(start_us),
        peer: "127.0.0.1:80".to_owned(),
        facts: facts.iter().map(|(n, v)| (*n, (*v).to_owned())).collect(),
        ..RunResult::default()
    }
}

#[test]
fn http_with_a_redirect_and_tls() {
    let phases = [("resolve", 10), ("connect", 20), ("request", 5), ("first_byte", 100), ("transfer", 1), ("resolve", 10), ("connect", 20), ("tls", 500)];
    let phases = [&phases[..], &[("request", 5), ("first_byte", 95), ("transfer", 9)]].concat();
    let facts = [
        ("url.scheme", "https"),
        ("http.response.status_code", "200"),
        ("network.protocol.version", "1.1"),
        ("http.redirects", "1"),
        ("http.response.body.size", "12"),
        ("http.response.header.last-modified", "1700000000"),
        ("tls.server.not_after", "1800000000"),
        ("tls.protocol.version", "1.3"),
        ("tls.cipher", "TLS13_AES_128_GCM_SHA256"),
    ];
    let text = render_of(Prober::Http(Box::default()), &result(Reason::Good, &phases, &facts));
    let wanted = [
        "probe_dns_lookup_time_seconds 0.00002",
        "probe_duration_seconds 0.000775",
        "probe_failed_due_to_regex 0",
        "probe_http_content_length -1",
        "probe_http_duration_seconds{phase=\"connect\"} 0.00004",
        "probe_http_duration_seconds{phase=\"processing\"} 0.000205",
        "probe_http_duration_seconds{phase=\"resolve\"} 0.00002",
        "probe_http_duration_seconds{phase=\"tls\"} 0.0005",
        "probe_http_duration_seconds{phase=\"transfer\"} 0.00001",
        "probe_http_last_modified_timestamp_seconds 1700000000",
        "probe_http_redirects 1",
        "probe_http_ssl 1",
        "probe_http_status_code 200",
        "probe_http_uncompressed_body_length 12",
        "probe_http_version 1.1",
        "probe_ip_addr_hash 3668918509",
        "probe_ip_protocol 4",
        "probe_ssl_earliest_cert_expiry 1800000000",
        "probe_ssl_last_chain_expiry_timestamp_seconds 1800000000",
        "probe_success 1",
        "probe_timeout_seconds 9.5",
        "probe_tls_cipher_info{cipher=\"TLS_AES_128_GCM_SHA256\"} 1",
        "probe_tls_version_info{version=\"TLS 1.3\"} 1",
    ];
    assert_eq!(samples(&text), wanted);
}

#[test]
fn an_expired_certificate_still_says_when_it_expired() {
    let facts = [("tls.server.not_after", "1000000000"), ("url.scheme", "https")];
    let text = render_of(Prober::Http(Box::default()), &result(Reason::TlsExpired, &[("resolve", 1), ("connect", 2), ("tls", 3)], &facts));
    let found = samples(&text);
    for wanted in
        ["probe_success 0", "probe_ssl_earliest_cert_expiry 1000000000", "probe_http_duration_seconds{phase=\"transfer\"} 0", "probe_http_status_code 0"]
    {
        assert!(found.contains(&wanted), "{wanted} is not in {found:#?}");
    }
}

#[test]
fn a_body_that_a_pattern_fails() {
    let http = Http { fail_if_body_matches: vec!["x".to_owned()], ..Http::default() };
    let text = render_of(Prober::Http(Box::new(http)), &result(Reason::BodyMismatch, &[], &[("http.response.status_code", "200")]));
    assert!(samples(&text).contains(&"probe_failed_due_to_regex 1"));
}

#[test]
fn dns_and_its_serial() {
    let dns = Dns {
        ip: Ip::default(),
        source_address: String::new(),
        tcp: false,
        dns_over_tls: false,
        tls_config: Tls::default(),
        recursion_desired: true,
        query_class: 1,
        query_name: "example.com".to_owned(),
        query_type: "SOA".to_owned(),
        valid_rcodes: Vec::new(),
        answer: Section::default(),
        authority: Section::default(),
        additional: Section::default(),
    };
    let facts =
        [("dns.response_code", "NOERROR"), ("dns.answer_count", "1"), ("dns.authority_count", "2"), ("dns.additional_count", "3"), ("dns.soa_serial", "7")];
    let text = render_of(Prober::Dns(Box::new(dns)), &result(Reason::Good, &[("resolve", 1), ("first_byte", 2)], &facts));
    let found = samples(&text);
    for wanted in [
        "probe_dns_additional_rrs 3",
        "probe_dns_answer_rrs 1",
        "probe_dns_authority_rrs 2",
        "probe_dns_duration_seconds{phase=\"connect\"} 0",
        "probe_dns_duration_seconds{phase=\"request\"} 0.000002",
        "probe_dns_query_succeeded 1",
        "probe_dns_serial 7",
    ] {
        assert!(found.contains(&wanted), "{wanted} is not in {found:#?}");
    }
}

#[test]
fn icmp_has_a_hop_limit_when_it_had_a_reply() {
    let icmp = || Prober::Icmp(Icmp::default());
    let text = render_of(icmp(), &result(Reason::Good, &[("resolve", 1), ("rtt", 9)], &[("icmp.rtt_mean_ns", "5000"), ("icmp.reply_ttl", "64")]));
    let found = samples(&text);
    assert!(found.contains(&"probe_icmp_reply_hop_limit 64") && found.contains(&"probe_icmp_duration_seconds{phase=\"rtt\"} 0.000005"), "{found:#?}");
    let silent = render_of(icmp(), &result(Reason::IcmpNoReply, &[("resolve", 1)], &[]));
    assert!(!silent.contains("hop_limit") && silent.contains("probe_icmp_duration_seconds{phase=\"rtt\"} 0\n"));
}

#[test]
fn labels_are_escaped() {
    assert_eq!(labels(&[("a", "b\"\\\n")]), "{a=\"b\\\"\\\\\\n\"}");
    // As Go's hash/fnv has it for 127.0.0.1.
    assert_eq!(fnv1a(&[127, 0, 0, 1]), 3_668_918_509);
}
