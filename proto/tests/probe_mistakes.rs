//! Every mistake in a probe has its place and a message that mends it.

use probity_proto::resources::{SourceFile, parse};

const HEAD: &str = "apiVersion: probity/v1\nkind: Probe\nmetadata: {name: test}\nspec:\n";

/// The problems of a probe whose `spec` is this YAML, with its own lines and columns.
fn problems(spec: &str) -> Vec<String> {
    let indented: String = spec.lines().map(|l| format!("  {l}\n")).collect();
    let parsed = parse(&[SourceFile { name: "p".to_owned(), text: format!("{HEAD}{indented}") }], "default");
    let line = |p: &probity_proto::resources::Problem| {
        let hint = if p.hint.is_empty() { String::new() } else { format!(" ({})", p.hint) };
        format!("{}:{}: {}: {}{hint}", p.line - 4, p.column - 2, p.path, p.message)
    };
    parsed.problems.iter().map(line).collect()
}

#[track_caller]
fn check(spec: &str, expected: &[&str]) {
    assert_eq!(problems(spec), expected, "{spec}");
}

#[test]
fn the_frame() {
    check("target: a:1\ntcp: {}\nfamily: 5", &[r#"3:9: spec.family: "5" is unknown (want any, 4, 6, prefer4, prefer6, both)"#]);
    check("target: a:1\ntcp: {}\nattemptDelay: 1ms", &["3:15: spec.attemptDelay: 1ms is out of range (want 10ms to 2s)"]);
    check("target: a:1\ntcp: {}\ntimeout: 1s\nattemptTimeout: 2s", &["4:17: spec.attemptTimeout: 2s is out of range (want 1ms to 1s)"]);
    check("target: a:1\ntcp: {}\nsource: {address: eth0}", &[r#"3:19: spec.source.address: "eth0" is no IP address"#]);
    check("target: a:1\ntcp: {}\nsource: {interface: a/b}", &[r#"3:21: spec.source.interface: "a/b" is no network interface (want for example eth0)"#]);
    check(
        "target: a:1\ntcp: {}\nfamily: 4\nsource: {address: '::1'}",
        &["4:19: spec.source.address: ::1 cannot be the source for this family (leave family out: it follows the source)"],
    );
    check(
        "target: a:1\ntcp: {}\nresolver: {servers: [dns.example, 'udp://1.1.1.1#x']}",
        &[
            r#"3:22: spec.resolver.servers[0]: "dns.example" is no IP address: a resolver by name would need a resolver (want for example tls://1.1.1.1#cloudflare-dns.com)"#,
            r#"3:35: spec.resolver.servers[1]: "udp://1.1.1.1#x" is no DNS server (want for example udp://10.0.0.53, tls://1.1.1.1#cloudflare-dns.com, https://1.1.1.1/dns-query)"#,
        ],
    );
    check("target: a:1\ntcp: {}\nresolver: {}", &["3:11: spec.resolver.servers: is missing"]);
    check("target: a:1\ntcp: {}\nresolver: {servers: []}", &["3:21: spec.resolver.servers: 0 servers are given (want 1 to 8)"]);
    check(
        "target: a:1\ntcp: {}\nresolver: {servers: [1.1.1.1], ca: /etc/ca.pem}",
        &["3:36: spec.resolver.ca: is no certificate in PEM (want -----BEGIN CERTIFICATE----- ... -----END CERTIFICATE-----)"],
    );
    check("target: a:1\ntcp: {}\nhosts: {shop: example.com}", &[r#"3:8: spec.hosts.shop: "example.com" is no IP address"#]);
    check("target: a:1\ntcp: {}\ninvert: yes", &[r#"3:9: spec.invert: "yes" is no boolean (want true or false)"#]);
    check("target: http://a.test:1/\nhttp: {followRedirects: 0}\ninvert: true", &[]);
    for (target, kind, what) in [
        ("http://a.test/", "http: {followRedirects: 1}", "followRedirects"),
        ("http://a.test/", "http: {requests: [{url: 'http://a.test/'}]}", "requests"),
        ("a.test:53", "dns: {name: a.test, type: SOA, expect: {sameSerialAs: [b.test:53]}}", "sameSerialAs"),
    ] {
        let told = "which of the hosts must be unreachable? (leave it out, or write a probe for each)";
        check(&format!("target: {target}\n{kind}\ninvert: true"), &[&format!("3:9: spec.invert: an inverted probe cannot have {what}: {told}")]);
        check(&format!("target: {target}\n{kind}\ninvert: false"), &[]);
    }
    check("target: a:1\ntcp: {}\nmaxDuration: 5", &[r#"3:14: spec.maxDuration: "5" is no duration (want for example 300ms, 30s, 1h30m, 30d)"#]);
    check("target: a:1\ntcp: {}\nmaxDuration: {conect: 5s}", &[r#"3:15: spec.maxDuration.conect: unknown key "conect" (did you mean "connect"?)"#]);
    check("target: a:1\ntcp: {}\nretries: 11", &[r#"3:10: spec.retries: "11" is out of range (want a whole number from 0 to 10)"#]);
}

/// A probe of one kind with these fields.
#[track_caller]
fn check_kind(kind: &str, fields: &str, expected: &[&str]) {
    check(
        &format!("target: http://a.test:1/\n{kind}: {{{fields}}}").replace("http://a.test:1/", if kind == "http" { "http://a.test:1/" } else { "a.test:1" }),
        expected,
    );
}

#[test]
fn http_requests() {
    check_kind("http", "method: FETCH", &[r#"2:16: spec.http.method: "FETCH" is no method (want GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS)"#]);
    check_kind("http", "headers: {a b: x}", &[r#"2:23: spec.http.headers.a b: "a b" is no name of a header (want for example X-Request-Id)"#]);
    check_kind("http", r#"headers: {a: "x\ny"}"#, &["2:21: spec.http.headers.a: a header's value has no line breaks or control characters"]);
    check_kind("http", "body: x, json: {a: 1}", &["2:7: spec.http: several bodies are given (keep one of body, form, json, bodyFile)"]);
    check_kind("http", "bodyFile: /etc/passwd", &["2:18: spec.http.bodyFile: is a single value, want a mapping"]);
    check_kind(
        "http",
        "bodyFile: {secretRef: ../x}",
        &[r#"2:30: spec.http.bodyFile.secretRef: "../x" is no name (want 1 to 63 of a-z, 0-9 and -, no - at the ends)"#],
    );
    check_kind("http", "version: 3", &[r#"1:1: spec.targets[0]: "http://a.test:1/" cannot be asked with HTTP/3 (want https://)"#]);
    check_kind(
        "http",
        "version: 3, requests: [{url: 'http://b.test/'}]",
        &[r#"1:1: spec.targets[0]: "http://b.test/" cannot be asked with HTTP/3 (want https://)"#],
    );
    check_kind(
        "http",
        "version: 3, proxy: {url: 'socks5://p:1'}, tls: {maxVersion: '1.2'}",
        &[
            "2:7: spec.http.proxy: HTTP/3 goes straight to the target (leave the proxy out, or want version auto, 1.1 or 2)",
            "2:7: spec.http.tls.maxVersion: HTTP/3 is spoken with TLS 1.3 only (leave maxVersion out)",
        ],
    );
    check_kind("http", "version: 4", &[r#"2:17: spec.http.version: "4" is unknown (want auto, 1.1, 2, 3)"#]);
    check_kind("http", "compression: [gzip, lzma]", &[r#"2:28: spec.http.compression[1]: "lzma" is unknown (want gzip, br, zstd, deflate)"#]);
    check_kind("http", "maxBodyBytes: 1GiB", &["2:22: spec.http.maxBodyBytes: 1GiB is too much (want at most 100MiB)"]);
    check_kind(
        "http",
        "proxy: {url: 'http://me:pw@p:1'}",
        &[
            r#"2:21: spec.http.proxy.url: "http://me:pw@p:1" is no proxy (want http://host:port or socks5://host:port; who we are stands in username and password)"#,
        ],
    );
    let said = problems("target: http://me:pw@a.test:1/\nhttp: {}");
    assert!(said[0].contains("has a name or a password in it") && !said[0].contains("pw@"), "{said:?}");
    check_kind("http", "proxy: {url: 'http://p:1', username: me}", &["2:15: spec.http.proxy: username and password belong together (give both or none)"]);
    check_kind("http", "auth: {}", &["2:14: spec.http.auth: one way to authenticate is wanted (bearer, basic or oauth2)"]);
    check_kind("http", "auth: {basic: {username: me}}", &["2:22: spec.http.auth.basic.password: is missing"]);
    check_kind(
        "http",
        "auth: {oauth2: {clientId: x, clientSecret: {secretRef: s}, tokenUrl: ftp://x}}",
        &[r#"2:77: spec.http.auth.oauth2.tokenUrl: "ftp://x" is no URL (want http:// or https:// and a host)"#],
    );
    check("target: shop.test\nhttp: {}", &[r#"1:1: spec.targets[0]: "shop.test" is no URL (want http:// or https:// and a host)"#]);
    check("target: shop.test\ntcp: {}", &[r#"1:1: spec.targets[0]: "shop.test" is no address (want host:port)"#]);
}

#[test]
fn http_expectations() {
    let expect = |fields: &str, message: &str| check_kind("http", &format!("expect: {{{fields}}}"), &[message]);
    expect("status: [700]", r#"2:26: spec.http.expect.status[0]: "700" is no status (want for example 200, 2xx or 200-299)"#);
    expect("version: ['9']", r#"2:27: spec.http.expect.version[0]: "9" is no version (want 1.0, 1.1, 2, 3)"#);
    expect("size: {min: 10, max: 5}", "2:23: spec.http.expect.size: min, 10, is above max, 5");
    expect("maxDuration: 1s", "2:30: spec.http.expect.maxDuration: a limit on time is the probe's (want spec.maxDuration)");
    expect("body: [{matches: '('}]", r#"2:34: spec.http.expect.body[0].matches: "(" is no regular expression: error: unclosed group"#);
    expect(
        "body: [{contains: a, matches: b}]",
        "2:24: spec.http.expect.body[0]: one assertion is wanted (one of contains, notContains, matches, notMatches, jsonPath, schema, sha256)",
    );
    expect(
        "body: [{jsonPath: $.a}]",
        "2:24: spec.http.expect.body[0]: one comparison is wanted (one of equals, notEquals, below, atMost, above, atLeast, matches, exists, count)",
    );
    expect("body: [{jsonPath: $.a, below: x}]", r#"2:47: spec.http.expect.body[0].below: "x" cannot be compared with by below (want a number)"#);
    expect(
        "body: [{schema: {type: text}}]",
        r#"2:33: spec.http.expect.body[0].schema: "text" is no JSON Schema type (want array, boolean, integer, null, number, object, string)"#,
    );
    expect(
        "body: [{schema: {$ref: 'http://x/y'}}]",
        r##"2:33: spec.http.expect.body[0].schema: $ref "http://x/y" leads to another document, which is not fetched (want #/...)"##,
    );
    expect("body: [{sha256: abc}]", r#"2:33: spec.http.expect.body[0].sha256: "abc" is no SHA-256 (want 64 hexadecimal digits)"#);
    expect(
        "headers: [{name: a}]",
        "2:27: spec.http.expect.headers[0]: one assertion is wanted (one of equals, matches, notMatches, present: true, absent: true)",
    );
    let path = problems("target: http://a.test/\nhttp: {expect: {body: [{jsonPath: status, equals: 1}]}}");
    assert!(path.len() == 1 && path[0].starts_with(r#"2:35: spec.http.expect.body[0].jsonPath: "status" is no JSONPath (RFC 9535): "#), "{path:?}");
}

#[test]
fn sequences() {
    let requests = |r: &str| format!("target: http://a.test/\nhttp:\n  requests:\n{r}");
    check(
        &requests("  - {capture: {id: {jsonPath: $.id}}}\n  - {url: 'http://a.test/$(captures.ident)'}"),
        &["5:5: spec.http.requests[1]: $(captures.ident) refers to nothing (captured before: id)"],
    );
    check(&requests("  - {url: 'http://a.test/$(captures.x)'}"), &["4:5: spec.http.requests[0]: $(captures.x) refers to nothing (nothing is captured before)"]);
    check("target: http://a.test/\nhttp: {body: $(captures.x)}", &["2:7: spec.http: $(captures.x) refers to nothing (nothing is captured before)"]);
    check(
        &requests("  - {capture: {id: {jsonPath: $.id, header: x}}}"),
        &["4:20: spec.http.requests[0].capture.id: one source is wanted (jsonPath, header, or matches alone: the body is searched)"],
    );
    check(
        &requests("  - {capture: {a-b: {header: x}}}"),
        &[r#"4:21: spec.http.requests[0].capture.a-b: "a-b" is no name of a capture (want letters, digits and _)"#],
    );
    check("target: http://a.test/\nhttp: {requests: []}", &["2:18: spec.http.requests: 0 requests are given (want 1 to 20)"]);
    check(
        "target: http://a.test/\nhttp: {requests: [{}], method: GET}",
        &[
            r#"2:24: spec.http.method: unknown key "method" (known here: maxBodyBytes, maxDecompressedBytes, tls, version, reuse, proxy, compression, requests)"#,
        ],
    );
}

#[test]
fn tls_and_tcp() {
    let tls = |fields: &str, message: &str| check_kind("tls", fields, &[message]);
    tls("minVersion: '1.3', maxVersion: '1.2'", "2:6: spec.tls.maxVersion: 1.2 is below minVersion, 1.3");
    tls("minVersion: '1.0'", r#"2:19: spec.tls.minVersion: "1.0" is unknown (want 1.2, 1.3)"#);
    tls("minDays: 9999", r#"2:16: spec.tls.minDays: "9999" is out of range (want a whole number from 0 to 3650)"#);
    tls("pins: [abc]", r#"2:14: spec.tls.pins[0]: "abc" is no pin (want sha256/ and 44 characters of base64: the SHA-256 of a public key)"#);
    tls("clientKey: {secretRef: k}", "2:6: spec.tls.clientKey: a key without a clientCertificate");
    tls("starttls: gopher", r#"2:17: spec.tls.starttls: "gopher" is unknown (want smtp, imap, pop3, ftp, ldap, postgres)"#);
    tls("ca: /etc/ca.pem", "2:11: spec.tls.ca: is no certificate in PEM (want -----BEGIN CERTIFICATE----- ... -----END CERTIFICATE-----)");
    let tcp = |fields: &str, message: &str| check_kind("tcp", fields, &[message]);
    tcp("send: x, dialogue: [{send: y}]", "2:6: spec.tcp.dialogue: both a dialogue and send or expect are given (put them into the dialogue)");
    tcp("starttls: smtp, dialogue: [{startTls: true}]", "2:6: spec.tcp.starttls: both starttls and a startTls step are given (keep one)");
    tcp("dialogue: [{send: y, expect: z}]", "2:18: spec.tcp.dialogue[0]: one step is wanted (one of send, expect, startTls: true)");
    tcp("dialogue: [{send: $(captures.y)}]", "2:18: spec.tcp.dialogue[0]: $(captures.y) refers to nothing (nothing is captured before)");
    check("target: a:1\ntcp: {}\ntls: {}", &["3:6: spec.tls: a probe has one kind (keep one of http, tcp, dns, icmp, tls, udp, grpc, websocket)"]);
}

#[test]
fn pings() {
    check("target: h\nicmp: {count: 0}", &[r#"2:15: spec.icmp.count: "0" is out of range (want a whole number from 1 to 1000)"#]);
    check("target: h\nicmp: {payloadSize: 8}", &[r#"2:21: spec.icmp.payloadSize: "8" is out of range (want a whole number from 16 to 9000)"#]);
    check("target: h\nicmp: {dscp: af51}", &[r#"2:14: spec.icmp.dscp: "af51" is no DSCP (want 0 to 63, cs0 to cs7, af11 to af43, ef, va or le)"#]);
    check("target: h\nicmp: {tos: 4, dscp: 1}", &["2:22: spec.icmp.dscp: both tos and dscp are given (keep one: dscp is the upper six bits of tos)"]);
    check("target: h\nicmp: {maxRtt: {p99: 1s}}", &[r#"2:17: spec.icmp.maxRtt.p99: unknown key "p99" (did you mean "p95"?)"#]);
    check("target: h\nicmp: {maxLoss: 5}", &[r#"2:17: spec.icmp.maxLoss: "5" is no percentage (want for example 50%)"#]);
    check(
        "target: h\ninterval: 5s\nicmp: {count: 6, packetInterval: 1s}",
        &[
            "1:1: spec.icmp.packetInterval: the last of 6 packets is sent after 5s, and the run's time-out is 5s (send fewer, or faster, or set a longer timeout)",
        ],
    );
    check("target: h\nicmp: {trace: maybe}", &[r#"2:15: spec.icmp.trace: "maybe" is no trace (want true, false or {protocol, port, maxHops, queries, wait})"#]);
    check("target: h\nicmp: {trace: {protocol: sctp}}", &[r#"2:26: spec.icmp.trace.protocol: "sctp" is unknown (want icmp, udp, tcp)"#]);
    check("target: h\nicmp: {trace: {wait: 1m}}", &["2:15: spec.icmp.trace.wait: 1m is out of range (want 10ms to 10s)"]);
}

#[test]
fn dns_queries() {
    check(
        "target: s\ndns: {}",
        &["2:6: spec.dns.name: is missing (the target is the server; or give a server (or `server: system`) and ask for the target's name)"],
    );
    check("target: s\ndns: {name: n, type: AXFR}", &["2:22: spec.dns.type: AXFR is no record type that can be probed"]);
    check("target: s\ndns: {name: n, class: XX}", &[r#"2:23: spec.dns.class: "XX" is no class (want IN, CH, HS, NONE, ANY or a number)"#]);
    check("target: s\ndns: {name: n, transport: quic}", &[r#"2:27: spec.dns.transport: "quic" is unknown (want udp, tcp, tls, https)"#]);
    check("target: s\ndns: {name: n, edns: {size: 100}}", &[r#"2:29: spec.dns.edns.size: "100" is out of range (want a whole number from 512 to 65535)"#]);
    check(
        "target: s\ndns: {name: n, dnssec: {anchors: [example. DS 1 2 3]}}",
        &[r#"2:35: spec.dns.dnssec.anchors[0]: "example. DS 1 2 3" is no trust anchor: DNSKEY is missing (want ZONE DNSKEY FLAGS 3 ALGORITHM BASE64)"#],
    );
    check("target: s\ndns: {name: n, transport: tls, dnssec: {}}", &[]);
    check(
        "target: s\ndns: {name: n, expect: {rcodes: [NOPE], flags: {zz: true}, answer: {matches: ['(']}}}",
        &[
            r#"2:34: spec.dns.expect.rcodes[0]: "NOPE" is no response code (want NOERROR, NXDOMAIN, SERVFAIL, REFUSED... or a number)"#,
            r#"2:49: spec.dns.expect.flags.zz: unknown key "zz" (did you mean "aa"?)"#,
            r#"2:79: spec.dns.expect.answer.matches[0]: "(" is no regular expression: error: unclosed group"#,
        ],
    );
}

#[test]
fn udp_grpc_and_websockets() {
    check("target: h:1\nudp: {send: a, sendHex: 00}", &["2:25: spec.udp.sendHex: both send and sendHex are given (keep one)"]);
    check("target: h:1\nudp: {sendHex: abc}", &[r#"2:16: spec.udp.sendHex: "abc" is not hexadecimal (want pairs of 0-9, a-f, for example 00ff)"#]);
    check(
        "target: h:1\ngrpc: {expect: {status: [UP]}}",
        &[r#"2:26: spec.grpc.expect.status[0]: "UP" is no serving status (want UNKNOWN, SERVING, NOT_SERVING, SERVICE_UNKNOWN)"#],
    );
    check("target: h:1\ngrpc: {metadata: {'a b': c}}", &[r#"2:26: spec.grpc.metadata.a b: "a b" is no header name (want a-z, 0-9, -, _ and .)"#]);
    check(
        "target: h:1\ngrpc: {metadata: {a: {secretRef: /etc/passwd}}}",
        &[r#"2:34: spec.grpc.metadata.a.secretRef: "/etc/passwd" is no name (want 1 to 63 of a-z, 0-9 and -, no - at the ends)"#],
    );
    check(
        "target: ws://h\nwebsocket: {send: a, dialogue: [{ping: true}]}",
        &["2:32: spec.websocket.dialogue: both a dialogue and send or expect are given (put them into the dialogue)"],
    );
    check(
        "target: ws://h\nwebsocket: {dialogue: [{send: a, expect: b}]}",
        &["2:24: spec.websocket.dialogue[0]: one step is wanted (one of send, sendBinary, sendHex, expect, ping: true)"],
    );
    check("target: ws://h\nwebsocket: {subprotocols: ['a b']}", &[r#"2:28: spec.websocket.subprotocols[0]: "a b" is no subprotocol"#]);
    check("target: h\nudp: {}\ngrpc: {}", &["3:7: spec.grpc: a probe has one kind (keep one of http, tcp, dns, icmp, tls, udp, grpc, websocket)"]);
}

#[test]
fn discoveries() {
    check("targets: {}\ntcp: {}", &["1:10: spec.targets: it is not said where targets come from (want one of static, httpSD, fileSD, dnsSRV, kubernetes)"]);
    check(
        "targets: {static: [], fileSD: {files: [a.json]}}\ntcp: {}",
        &["1:31: spec.targets.fileSD: targets come from one place (keep one of static, httpSD, fileSD, dnsSRV, kubernetes)"],
    );
    check("targets: {httpSD: {url: inventory}}\ntcp: {}", &[r#"1:25: spec.targets.httpSD.url: "inventory" is no URL (want http:// or https:// and a host)"#]);
    check("targets: {httpSD: {url: 'http://i/', refresh: 1s}}\ntcp: {}", &["1:47: spec.targets.httpSD.refresh: 1s is out of range (want 5s to 1d)"]);
    check("targets: {httpSD: {url: 'http://i/', auth: {}}}\ntcp: {}", &["1:44: spec.targets.httpSD.auth: want one of bearer and basic"]);
    check(
        "targets: {fileSD: {files: [../secrets/a.json, a.txt]}}\ntcp: {}",
        &[
            r#"1:28: spec.targets.fileSD.files[0]: "../secrets/a.json" is no name of a file (want one of the coordinators' targetsDir, without a path; * stands for any text)"#,
            r#"1:47: spec.targets.fileSD.files[1]: "a.txt" ends in neither .json nor .yml nor .yaml"#,
        ],
    );
    check("targets: {fileSD: {files: []}}\ntcp: {}", &["1:27: spec.targets.fileSD.files: 0 are given (want 1 to 100)"]);
    check(
        "targets: {dnsSRV: {names: [shop], servers: ['tls://1.1.1.1']}}\ntcp: {}",
        &[
            r#"1:28: spec.targets.dnsSRV.names[0]: "shop" is no name of an SRV record (want for example _http._tcp.example.com)"#,
            r#"1:45: spec.targets.dnsSRV.servers[0]: "tls://1.1.1.1": a discovery asks over udp:// or tcp:// only"#,
        ],
    );
    check("targets: {kubernetes: {role: pod}}\ntcp: {}", &[r#"1:30: spec.targets.kubernetes.role: "pod" is unknown (want service, ingress)"#]);
    check(
        "targets: {kubernetes: {role: service, token: {secretRef: k8s}}}\ntcp: {}",
        &[
            "1:23: spec.targets.kubernetes: token and ca are those of apiServer, which is not given (leave them out inside the cluster: the service account's are used)",
        ],
    );
    let srv = "dnsSRV: {names: [_a._tcp.test]}";
    check(
        &format!("targets: {{{srv}, key: same}}\ntcp: {{}}"),
        &[r#"1:49: spec.targets.key: "same" would be the same for every target (want for example $(target.address))"#],
    );
    check(
        &format!("targets: {{{srv}, key: $(target.zone)}}\ntcp: {{}}"),
        &["1:49: spec.targets.key: $(target.zone) refers to nothing (a key is made of $(target.address) and $(target.labels.NAME))"],
    );
    check(&format!("targets: {{{srv}, max: 10001}}\ntcp: {{}}"), &[r#"1:49: spec.targets.max: "10001" is out of range (want a whole number from 1 to 10000)"#]);
    check(&format!("targets: {{{srv}, labels: [a-b]}}\ntcp: {{}}"), &[r#"1:53: spec.targets.labels[0]: "a-b" is no label name (want letters, digits and _)"#]);
    check(
        &format!("targets: {{{srv}, labels: [store]}}\ntcp: {{tls: {{serverName: $(target.labels.zone).test}}}}"),
        &["1:10: spec.targets: $(target.labels.zone) refers to a label that is not kept (kept: store)"],
    );
    check(
        &format!("targets: {{{srv}}}\ntcp: {{tls: {{serverName: $(target.labels.__meta_dns_name)}}}}"),
        &[
            "1:10: spec.targets: $(target.labels.__meta_dns_name) refers to a label that is not kept (name it in labels: those that begin with __ are dropped else)",
        ],
    );
    check(
        &format!("targets: {{{srv}}}\ntcp: {{address: $(target.adress)}}"),
        &["1:10: spec.targets: $(target.adress) refers to nothing (a target has address, key and labels)"],
    );
    check(
        &format!(
            "targets: {{{srv}, key: $(target.labels.__meta_dns_srv_record_target)}}\ntcp: {{}}\nplacement: {{selector: {{matchLabels: {{region: $(target.labels.region)}}}}}}"
        ),
        &[],
    );
}
