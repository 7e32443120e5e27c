use super::*;

fn read(text: &str) -> Result<Config, Vec<String>> {
    let file = SourceFile { name: "b.yml".to_owned(), text: text.to_owned() };
    parse(&file).map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

fn one(options: &str) -> Prober {
    let config = read(&format!("modules:\n  m:\n{options}")).unwrap_or_else(|e| panic!("{options}: {e:?}"));
    config.modules["m"].prober.clone()
}

#[test]
fn defaults_are_blackboxes() {
    let config = read("modules:\n  h: {prober: http, timeout: 5s}\n  t: {prober: tcp}\n  i: {prober: icmp}\n").expect("fine");
    assert_eq!(config.modules["h"].timeout_us, 5_000_000);
    assert_eq!(config.modules["t"].timeout_us, 0);
    let Prober::Http(http) = &config.modules["h"].prober else { panic!("not http") };
    assert!(http.follow_redirects && http.enable_http2 && http.ip == Ip { v4: false, fallback: true } && http.method == "GET");
    let Prober::Icmp(icmp) = &config.modules["i"].prober else { panic!("not icmp") };
    assert_eq!((icmp.ttl, icmp.payload_bytes), (64, 28));
}

#[test]
fn options_of_http() {
    let Prober::Http(http) = one(
        "    prober: http\n    http:\n      valid_status_codes: [200, 404]\n      method: POST\n      headers: {Host: x, X-A: b}\n      body_size_limit: 10MB\n      no_follow_redirects: true\n      fail_if_ssl: true\n      fail_if_body_matches_regexp: ['{\"a\"']\n      fail_if_header_not_matches: [{header: Vary, regexp: '.*'}]\n      basic_auth: {username: u, password: p}\n      preferred_ip_protocol: ip4\n      ip_protocol_fallback: false\n      body: hello\n",
    ) else {
        panic!("not http")
    };
    assert_eq!(http.valid_status_codes, [200, 404]);
    assert_eq!(http.body_size_limit, 10 << 20);
    assert!(!http.follow_redirects && http.fail_if_ssl);
    assert_eq!(http.fail_if_body_matches, ["\\{\"a\""]);
    assert!(!http.fail_if_header_not_matches[0].allow_missing);
    assert_eq!(http.ip, Ip { v4: true, fallback: false });
    assert_eq!(http.body, Some(Secret::Given("hello".to_owned())));
    let shown = format!("{http:?}");
    assert!(!shown.contains("\"p\""), "a secret in debug output: {shown}");
}

#[test]
fn http3_goes_straight_to_the_target() {
    let Prober::Http(http) = one("    prober: http\n    http: {enable_http3: true, valid_http_versions: [HTTP/3.0]}") else { panic!("not http") };
    assert!(http.enable_http3 && http.valid_http_versions == ["3"]);
    let found = read("modules:\n  m: {prober: http, http: {enable_http3: true, proxy_url: 'http://p:1'}}\n").expect_err("there is a proxy");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("modules.m.http.proxy_url: HTTP/3 goes straight to the target"), "{found:?}");
}

#[test]
fn secrets_are_hidden_where_a_module_is_shown() {
    let text = "modules:\n  m: {prober: http, http: {basic_auth: {username: u, password: hush}, headers: {authorization: hush, a: b}}}\n";
    let shown = read(text).expect("fine").modules["m"].shown.to_string();
    assert!(!shown.contains("hush") && shown.contains("\"a\":\"b\""), "{shown}");
}

#[test]
fn every_mistake_at_once_with_its_place() {
    let text = "modules:\n  a:\n    prober: htp\n  b:\n    prober: http\n    timeout: 5\n    http:\n      metod: GET\n      valid_status_codes: [abc]\n      fail_if_body_matches_regexp: ['(']\n      body_size_limit: 7\n      fail_if_body_json_matches_cel: x\n      basic_auth: {password: a, password_file: b}\n  c: {prober: dns}\n  d: {prober: icmp, icmp: {ttl: 256}}\nmodule: {}\n";
    let found = read(text).expect_err("it is full of mistakes");
    for wanted in [
        "b.yml:3:13: modules.a.prober: \"htp\" is unknown",
        "b.yml:6:14: modules.b.timeout: \"5\" is no duration",
        "b.yml:8:7: modules.b.http.metod: unknown key \"metod\" (did you mean \"method\"?)",
        "b.yml:9:28: modules.b.http.valid_status_codes[0]: \"abc\" is no HTTP status",
        "b.yml:10:37: modules.b.http.fail_if_body_matches_regexp[0]: \"(\" is no regular expression",
        "b.yml:11:24: modules.b.http.body_size_limit: \"7\" has no unit",
        "b.yml:12:38: modules.b.http.fail_if_body_json_matches_cel: fail_if_body_json_matches_cel is not supported by this version",
        "modules.b.http.basic_auth.password_file: both password and password_file are given",
        "modules.c.dns.query_name: is missing",
        "modules.d.icmp.ttl: \"256\" is out of range",
        "b.yml:16:1: module: unknown key \"module\" (did you mean \"modules\"?)",
    ] {
        assert!(found.iter().any(|f| f.contains(wanted)), "{wanted} is not in\n{}", found.join("\n"));
    }
}

#[test]
fn what_is_not_yours_is_checked_and_not_used() {
    assert!(matches!(one("    prober: tcp\n    http: {compression: gzip}\n"), Prober::Tcp(_)));
    let found = read("modules:\n  m: {prober: tcp, http: {nonsense: 1}}\n").expect_err("unknown");
    assert!(found[0].contains("unknown key \"nonsense\""), "{found:?}");
}

#[test]
fn dns_and_tcp() {
    let Prober::Dns(dns) = one("    prober: dns\n    dns: {query_name: example.com, transport_protocol: tcp, valid_rcodes: [NOERROR, NXDOMAIN]}\n") else {
        panic!("not dns")
    };
    assert_eq!((dns.query_type.as_str(), dns.tcp, dns.valid_rcodes.len()), ("ANY", true, 2));
    let Prober::Tcp(tcp) = one("    prober: tcp\n    tcp: {query_response: [{expect: '^+OK'}], tls: true, source_ip_address: 10.0.0.1}\n") else {
        panic!("not tcp")
    };
    assert_eq!(tcp.query_response[0].expect, "^+OK");
    assert!(tcp.tls && tcp.source_address == "10.0.0.1");
}
