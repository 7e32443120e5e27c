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

#[test]
fn pings() {
    check("target: h\nicmp: {count: 0}", &[r#"2:17: spec.icmp.count: "0" is out of range (want a whole number from 1 to 1000)"#]);
    check("target: h\nicmp: {payloadSize: 8}", &[r#"2:23: spec.icmp.payloadSize: "8" is out of range (want a whole number from 16 to 9000)"#]);
    check("target: h\nicmp: {dscp: af51}", &[r#"2:16: spec.icmp.dscp: "af51" is no DSCP (want 0 to 63, cs0 to cs7, af11 to af43, ef, va or le)"#]);
    check("target: h\nicmp: {tos: 4, dscp: 1}", &["2:24: spec.icmp.dscp: both tos and dscp are given (keep one: dscp is the upper six bits of tos)"]);
    check("target: h\nicmp: {maxRtt: {p99: 1s}}", &[r#"2:19: spec.icmp.maxRtt.p99: unknown key "p99" (did you mean "p95"?)"#]);
    check("target: h\nicmp: {maxLoss: 5}", &[r#"2:19: spec.icmp.maxLoss: "5" is no percentage (want for example 50%)"#]);
    check(
        "target: h\ninterval: 5s\nicmp: {count: 6, packetInterval: 1s}",
        &[
            "1:3: spec.icmp.packetInterval: the last of 6 packets is sent after 5s, and the run's time-out is 5s (send fewer, or faster, or set a longer timeout)",
        ],
    );
    check("target: h\nicmp: {trace: maybe}", &[r#"2:17: spec.icmp.trace: "maybe" is no trace (want true, false or {protocol, port, maxHops, queries, wait})"#]);
    check("target: h\nicmp: {trace: {protocol: sctp}}", &[r#"2:28: spec.icmp.trace.protocol: "sctp" is unknown (want icmp, udp, tcp)"#]);
    check("target: h\nicmp: {trace: {wait: 1m}}", &["2:17: spec.icmp.trace.wait: 1m is out of range (want 10ms to 10s)"]);
}

#[test]
fn dns_queries() {
    check(
        "target: s\ndns: {}",
        &["2:8: spec.dns.name: is missing (the target is the server; or give a server (or `server: system`) and ask for the target's name)"],
    );
    check("target: s\ndns: {name: n, type: AXFR}", &["2:24: spec.dns.type: AXFR is no record type that can be probed"]);
    check("target: s\ndns: {name: n, class: XX}", &[r#"2:25: spec.dns.class: "XX" is no class (want IN, CH, HS, NONE, ANY or a number)"#]);
    check("target: s\ndns: {name: n, transport: quic}", &[r#"2:29: spec.dns.transport: "quic" is unknown (want udp, tcp, tls, https)"#]);
    check("target: s\ndns: {name: n, edns: {size: 100}}", &[r#"2:31: spec.dns.edns.size: "100" is out of range (want a whole number from 512 to 65535)"#]);
    check(
        "target: s\ndns: {name: n, dnssec: {anchors: [example. DS 1 2 3]}}",
        &[r#"2:37: spec.dns.dnssec.anchors[0]: "example. DS 1 2 3" is no trust anchor: DNSKEY is missing (want ZONE DNSKEY FLAGS 3 ALGORITHM BASE64)"#],
    );
    check(
        "target: s\ndns: {name: n, transport: tls, dnssec: {}}",
        &["2:42: spec.dns.dnssec: validation over tls or https is not supported by this version (want transport udp or tcp)"],
    );
    check(
        "target: s\ndns: {name: n, expect: {rcodes: [NOPE], flags: {zz: true}, answer: {matches: ['(']}}}",
        &[
            r#"2:36: spec.dns.expect.rcodes[0]: "NOPE" is no response code (want NOERROR, NXDOMAIN, SERVFAIL, REFUSED... or a number)"#,
            r#"2:51: spec.dns.expect.flags.zz: unknown key "zz" (did you mean "aa"?)"#,
            r#"2:81: spec.dns.expect.answer.matches[0]: "(" is no regular expression: error: unclosed group"#,
        ],
    );
}

#[test]
fn udp_grpc_and_websockets() {
    check("target: h:1\nudp: {send: a, sendHex: 00}", &["2:27: spec.udp.sendHex: both send and sendHex are given (keep one)"]);
    check("target: h:1\nudp: {sendHex: abc}", &[r#"2:18: spec.udp.sendHex: "abc" is not hexadecimal (want pairs of 0-9, a-f, for example 00ff)"#]);
    check(
        "target: h:1\ngrpc: {expect: {status: [UP]}}",
        &[r#"2:28: spec.grpc.expect.status[0]: "UP" is no serving status (want UNKNOWN, SERVING, NOT_SERVING, SERVICE_UNKNOWN)"#],
    );
    check("target: h:1\ngrpc: {metadata: {'a b': c}}", &[r#"2:28: spec.grpc.metadata.a b: "a b" is no header name (want a-z, 0-9, -, _ and .)"#]);
    check(
        "target: h:1\ngrpc: {metadata: {a: {secretRef: /etc/passwd}}}",
        &[r#"2:36: spec.grpc.metadata.a.secretRef: "/etc/passwd" is no name (want 1 to 63 of a-z, 0-9 and -, no - at the ends)"#],
    );
    check(
        "target: ws://h\nwebsocket: {send: a, dialogue: [{ping: true}]}",
        &["2:34: spec.websocket.dialogue: both a dialogue and send or expect are given (put them into the dialogue)"],
    );
    check(
        "target: ws://h\nwebsocket: {dialogue: [{send: a, expect: b}]}",
        &["2:26: spec.websocket.dialogue[0]: one assertion is wanted (one of send, sendBinary, sendHex, expect, ping: true)"],
    );
    check("target: ws://h\nwebsocket: {subprotocols: ['a b']}", &[r#"2:30: spec.websocket.subprotocols[0]: "a b" is no subprotocol"#]);
    check("target: h\nudp: {}\ngrpc: {}", &["3:9: spec.grpc: a probe has one kind (keep one of http, tcp, dns, icmp, udp, grpc, websocket)"]);
}
