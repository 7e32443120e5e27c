//! Every mistake in a probe has its place and a message that mends it.

use probity_proto::resources::{SourceFile, parse};

const HEAD: &str = "apiVersion: probity/v1\nkind: Probe\nmetadata: {name: test}\nspec:\n";

/// The problems of a probe whose `spec` is this YAML, with lines from 1.
fn problems(spec: &str) -> Vec<String> {
    let indented: String = spec.lines().map(|l| format!("  {l}\n")).collect();
    let parsed = parse(&[SourceFile { name: "p".to_owned(), text: format!("{HEAD}{indented}") }], "default");
    let line = |p: &probity_proto::resources::Problem| {
        let hint = if p.hint.is_empty() { String::new() } else { format!(" ({})", p.hint) };
        format!("{}:{}: {}: {}{hint}", p.line as i64 - 4, p.column, p.path, p.message)
    };
    parsed.problems.iter().map(line).collect()
}

#[track_caller]
fn check(spec: &str, expected: &[&str]) {
    assert_eq!(problems(spec), expected, "{spec}");
}

#[test]
fn the_frame() {
    check("target: a:1\ntcp: {}\nfamily: 5", &[r#"3:11: spec.family: "5" is unknown (want any, 4, 6, prefer4, prefer6, both)"#]);
    check("target: a:1\ntcp: {}\nattemptDelay: 1ms", &["3:17: spec.attemptDelay: 1ms is out of range (want 10ms to 2s)"]);
    check("target: a:1\ntcp: {}\ntimeout: 1s\nattemptTimeout: 2s", &["4:19: spec.attemptTimeout: 2s is out of range (want 1ms to 1s)"]);
    check("target: a:1\ntcp: {}\nsource: {address: eth0}", &[r#"3:21: spec.source.address: "eth0" is no IP address"#]);
    check("target: a:1\ntcp: {}\nsource: {interface: a/b}", &[r#"3:23: spec.source.interface: "a/b" is no network interface (want for example eth0)"#]);
    check(
        "target: a:1\ntcp: {}\nfamily: 4\nsource: {address: '::1'}",
        &["4:21: spec.source.address: ::1 cannot be the source for this family (leave family out: it follows the source)"],
    );
    check(
        "target: a:1\ntcp: {}\nresolver: {servers: [dns.example, 'udp://1.1.1.1#x']}",
        &[
            r#"3:24: spec.resolver.servers[0]: "dns.example" is no IP address: a resolver by name would need a resolver (want for example tls://1.1.1.1#cloudflare-dns.com)"#,
            r#"3:37: spec.resolver.servers[1]: "udp://1.1.1.1#x" is no DNS server (want for example udp://10.0.0.53, tls://1.1.1.1#cloudflare-dns.com, https://1.1.1.1/dns-query)"#,
        ],
    );
    check("target: a:1\ntcp: {}\nresolver: {}", &["3:13: spec.resolver.servers: is missing"]);
    check("target: a:1\ntcp: {}\nresolver: {servers: []}", &["3:23: spec.resolver.servers: 0 servers are given (want 1 to 8)"]);
    check(
        "target: a:1\ntcp: {}\nresolver: {servers: [1.1.1.1], ca: /etc/ca.pem}",
        &["3:38: spec.resolver.ca: is no certificate in PEM (want -----BEGIN CERTIFICATE----- ... -----END CERTIFICATE-----)"],
    );
    check("target: a:1\ntcp: {}\nhosts: {shop: example.com}", &[r#"3:10: spec.hosts.shop: "example.com" is no IP address"#]);
    check("target: a:1\ntcp: {}\ninvert: yes", &[r#"3:11: spec.invert: "yes" is no boolean (want true or false)"#]);
    check("target: a:1\ntcp: {}\nmaxDuration: 5", &[r#"3:16: spec.maxDuration: "5" is no duration (want for example 300ms, 30s, 1h30m, 30d)"#]);
    check("target: a:1\ntcp: {}\nmaxDuration: {conect: 5s}", &[r#"3:17: spec.maxDuration.conect: unknown key "conect" (did you mean "connect"?)"#]);
    check("target: a:1\ntcp: {}\nretries: 11", &[r#"3:12: spec.retries: "11" is out of range (want a whole number from 0 to 10)"#]);
}
