//! `import`: another tool's configuration as resources. What cannot be carried over is said, in the file and on standard error.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use probity_prober::blackbox::load;
use probity_proto::resources::blackbox::{Authorization, Dns, Grpc, Http, Ip, Module, Prober, QueryResponse, Secret, Section, Tcp, Tls};
use probity_proto::units;
use serde_json::{Map, Value, json};

use crate::output::print_lines;
use crate::{Fail, Outcome};

#[derive(Debug, Args)]
#[command(
    after_help = "The targets of blackbox modules are in prometheus.yml: give them here, or edit what is written.\n\nExamples:\n  probity import blackbox blackbox.yml --target http_2xx=https://example.com >probes.yaml\n  probity validate -f probes.yaml"
)]
pub(crate) struct BlackboxImportArgs {
    /// The configuration
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// A target of a module, as MODULE=TARGET; may be given again. Modules without one get target.invalid
    #[arg(long = "target", value_name = "MODULE=TARGET", value_parser = target)]
    targets: Vec<(String, String)>,
    /// How often the probes run: the scrape_interval that they had
    #[arg(long, default_value = "30s", value_parser = units::parse_duration, value_name = "DURATION")]
    interval: u64,
}

fn target(text: &str) -> Result<(String, String), String> {
    let wrong = || format!("{text:?} is no target (want for example http_2xx=https://example.com)");
    let (module, target) = text.split_once('=').ok_or_else(wrong)?;
    if module.is_empty() || target.is_empty() { Err(wrong()) } else { Ok((module.to_owned(), target.to_owned())) }
}

pub(super) fn blackbox(args: BlackboxImportArgs) -> Outcome {
    let config = load(&args.file).map_err(Fail::no)?;
    if let Some((unknown, _)) = args.targets.iter().find(|(module, _)| !config.modules.contains_key(module)) {
        return Err(Fail::misuse(format!("--target: {} has no module {unknown:?}", args.file.display())));
    }
    let mut taken = BTreeSet::new();
    let mut lines = Vec::new();
    for (name, module) in &config.modules {
        let targets: Vec<&str> = args.targets.iter().filter(|(m, _)| m == name).map(|(_, t)| t.as_str()).collect();
        let mut import = Import { name: resource_name(name, &mut taken), notes: Vec::new() };
        let document = import.probe(module, &targets, args.interval);
        if !lines.is_empty() {
            lines.push("---".to_owned());
        }
        lines.push(format!("# From module {name} of {}.", args.file.display()));
        for note in &import.notes {
            eprintln!("{name}: {note}");
            lines.push(format!("# {note}"));
        }
        lines.push(serde_saphyr::to_string(&document).unwrap_or_default().trim_end().to_owned());
    }
    print_lines(&lines);
    Ok(ExitCode::SUCCESS)
}

/// Headers whose values are not shown to anybody.
const SECRET_HEADERS: [&str; 4] = ["authorization", "proxy-authorization", "cookie", "x-api-key"];

/// A module's name as a resource's: lower case, hyphens, unique.
fn resource_name(module: &str, taken: &mut BTreeSet<String>) -> String {
    let plain: String = module.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(50).collect();
    let plain = plain.trim_matches('-');
    let plain = if plain.is_empty() { "module" } else { plain };
    let name = (1..).map(|n| if n == 1 { plain.to_owned() } else { format!("{plain}-{n}") }).find(|name| !taken.contains(name)).unwrap_or_default();
    taken.insert(name.clone());
    name
}

struct Import {
    name: String,
    notes: Vec<String>,
}

impl Import {
    fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    fn probe(&mut self, module: &Module, targets: &[&str], interval_us: u64) -> Value {
        let mut spec = Map::new();
        spec.insert("interval".to_owned(), units::format_duration(interval_us).into());
        let own_us = if module.timeout_us == 0 { 10_000_000 } else { module.timeout_us };
        spec.insert("timeout".to_owned(), units::format_duration(own_us.min(interval_us)).into());
        let (key, options, ip, source) = match &module.prober {
            Prober::Http(http) => ("http", self.http(http), http.ip, ""),
            Prober::Tcp(tcp) => ("tcp", self.tcp(tcp), tcp.ip, tcp.source_address.as_str()),
            Prober::Dns(dns) => ("dns", self.dns(dns), dns.ip, dns.source_address.as_str()),
            Prober::Icmp(icmp) => {
                let options = json!({"ttl": icmp.ttl, "payloadSize": icmp.payload_bytes.clamp(16, 9_000), "dontFragment": icmp.dont_fragment});
                ("icmp", options, icmp.ip, icmp.source_address.as_str())
            }
            Prober::Grpc(grpc) => ("grpc", self.grpc(grpc), grpc.ip, ""),
        };
        spec.insert("family".to_owned(), family(ip, !source.is_empty()).into());
        if !source.is_empty() {
            spec.insert("source".to_owned(), json!({"address": source}));
        }
        if targets.is_empty() {
            self.note("no target was given (--target): put those of prometheus.yml in the place of target.invalid");
        }
        let scheme = if key == "http" { "http://" } else { "" };
        let port = if matches!(key, "tcp" | "grpc") { ":443" } else { "" };
        let addresses: Vec<Value> = match targets {
            [] => vec![json!({"address": format!("{scheme}target.invalid{port}")})],
            targets => targets.iter().map(|t| json!({"address": if t.contains("://") { (*t).to_owned() } else { format!("{scheme}{t}") }})).collect(),
        };
        spec.insert("targets".to_owned(), json!({"static": addresses}));
        spec.insert(key.to_owned(), options);
        json!({"apiVersion": "probity/v1", "kind": "Probe", "metadata": {"name": self.name, "labels": {"imported-from": "blackbox"}}, "spec": spec})
    }

    /// The name of the secret that has it from now on.
    fn secret(&mut self, what: &str, secret: &Secret) -> Value {
        let name = format!("{}-{what}", self.name);
        let from = match secret {
            Secret::Given(_) => "the value of the module".to_owned(),
            Secret::File(path) => format!("the content of {path}"),
        };
        self.note(format!("secret {name}: put {from} into a file of that name in the probers' secretsDir"));
        json!({"secretRef": name})
    }

    fn tls(&mut self, tls: &Tls) -> Value {
        let mut found = Map::new();
        if tls.insecure_skip_verify {
            found.insert("skipVerify".to_owned(), true.into());
        }
        for (key, value) in [("serverName", tls.server_name.as_str()), ("minVersion", tls.min_version), ("maxVersion", tls.max_version)] {
            if !value.is_empty() {
                found.insert(key.to_owned(), value.into());
            }
        }
        if let (Some(cert), Some(key)) = (&tls.cert, &tls.key) {
            found.insert("clientCertificate".to_owned(), self.secret("client-certificate", cert));
            found.insert("clientKey".to_owned(), self.secret("client-key", key));
        }
        match &tls.ca {
            Some(Secret::Given(pem)) => drop(found.insert("ca".to_owned(), pem.as_str().into())),
            Some(Secret::File(path)) => match std::fs::read_to_string(path) {
                Ok(pem) => drop(found.insert("ca".to_owned(), pem.into())),
                Err(e) => self.note(format!("not carried over: tls_config.ca_file {path:?} cannot be read: {}", e.kind())),
            },
            None => {}
        }
        Value::Object(found)
    }

    fn http(&mut self, http: &Http) -> Value {
        let mut found = json!({"method": http.method.to_uppercase()});
        let secret = |name: &str| SECRET_HEADERS.iter().any(|s| s.eq_ignore_ascii_case(name));
        let headers: BTreeMap<&String, &String> = http.headers.iter().filter(|(name, _)| !secret(name)).collect();
        if !headers.is_empty() {
            found["headers"] = json!(headers);
        }
        for name in http.headers.keys().filter(|name| secret(name)) {
            self.note(format!("not carried over: header {name:?}, which may be a secret (http.auth sends one by secretRef)"));
        }
        for (name, value) in &http.http_headers {
            match value {
                Secret::Given(value) if !secret(name) && found["headers"][name].is_null() => found["headers"][name] = value.as_str().into(),
                _ => self.note(format!("not carried over: a value of http_headers {name:?}")),
            }
        }
        if let Some(Secret::Given(url)) = &http.proxy_url {
            match url.split_once('@') {
                None => found["proxy"] = json!({"url": url}),
                Some(_) => self.note("not carried over: proxy_url, which has a name and a password in it (http.proxy: {url, username, password: {secretRef}})"),
            }
        }
        match &http.body {
            Some(Secret::Given(body)) => found["body"] = body.as_str().into(),
            Some(Secret::File(path)) => self.note(format!("not carried over: body_file {path:?}")),
            None => {}
        }
        match &http.authorization {
            Some(Authorization::Basic { username, password: Some(password) }) => {
                found["auth"] = json!({"basic": {"username": username, "password": self.secret("password", password)}});
            }
            Some(Authorization::Scheme { scheme, credentials }) if scheme == "Bearer" => found["auth"] = json!({"bearer": self.secret("token", credentials)}),
            Some(Authorization::OAuth2(oauth2)) => {
                let secret = oauth2.client_secret.clone().unwrap_or(Secret::Given(String::new()));
                let secret = self.secret("client-secret", &secret);
                found["auth"] = json!({"oauth2": {"tokenUrl": oauth2.token_url, "clientId": oauth2.client_id, "clientSecret": secret, "scopes": oauth2.scopes, "parameters": oauth2.endpoint_params}});
            }
            Some(Authorization::Basic { .. }) => self.note("not carried over: basic_auth without a password"),
            Some(Authorization::Scheme { scheme, .. }) => self.note(format!("not carried over: authorization of type {scheme:?}")),
            None => {}
        }
        let tls = self.tls(&http.tls);
        if tls.as_object().is_some_and(|t| !t.is_empty()) {
            found["tls"] = tls;
        }
        if http.follow_redirects {
            found["followRedirects"] = 10.into();
        }
        if http.body_size_limit > 0 {
            found["maxBodyBytes"] = http.body_size_limit.to_string().into();
        }
        if http.enable_http3 {
            found["version"] = "3".into();
        } else if !http.enable_http2 {
            found["version"] = "1.1".into();
        }
        if !http.compression.is_empty() && http.compression != "identity" {
            found["compression"] = json!([http.compression]);
        }
        for (wanted, key) in [(http.fail_if_ssl, "fail_if_ssl"), (http.fail_if_not_ssl, "fail_if_not_ssl")] {
            if wanted {
                self.note(format!("not carried over: {key}"));
            }
        }
        for m in http.fail_if_header_not_matches.iter().filter(|m| m.allow_missing) {
            self.note(format!("not carried over: fail_if_header_not_matches of {:?}, which may be missing", m.header));
        }
        found["expect"] = expect(http);
        found
    }

    fn dns(&mut self, dns: &Dns) -> Value {
        let transport = match (dns.dns_over_tls, dns.tcp) {
            (true, _) => "tls",
            (_, true) => "tcp",
            _ => "udp",
        };
        // Blackbox sends no EDNS.
        let mut found = json!({"name": dns.query_name, "type": dns.query_type, "transport": transport, "class": dns.query_class.to_string(), "edns": "none"});
        if dns.dns_over_tls {
            found["tls"] = self.tls(&dns.tls_config);
        }
        if !dns.recursion_desired {
            found["recursion"] = false.into();
        }
        if [&dns.answer, &dns.authority, &dns.additional].iter().any(|s| format!("{s:?}") != format!("{:?}", Section::default())) {
            self.note("not carried over: validate_*_rrs, which are of whole records (dns.expect.answer.matches is of their data)");
        }
        if !dns.valid_rcodes.is_empty() {
            found["expect"] = json!({"rcodes": dns.valid_rcodes});
        }
        found
    }

    fn grpc(&mut self, grpc: &Grpc) -> Value {
        let mut found = json!({"service": grpc.service});
        if grpc.tls {
            found["tls"] = self.tls(&grpc.tls_config);
        }
        if !grpc.metadata.is_empty() {
            let metadata: Map<String, Value> = grpc.metadata.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
            found["metadata"] = metadata.into();
        }
        found
    }

    fn tcp(&mut self, tcp: &Tcp) -> Value {
        let mut found = Map::new();
        if tcp.tls || tcp.query_response.iter().any(|q| q.starttls) {
            found.insert("tls".to_owned(), self.tls(&tcp.tls_config));
        }
        if !tcp.query_response.is_empty() {
            let step = |q: &QueryResponse| {
                let fields = [("expect", &q.expect), ("send", &q.send)].into_iter().filter(|(_, text)| !text.is_empty());
                let fields = fields.map(|(key, text)| (key.to_owned(), text.as_str().into()));
                fields.chain(q.starttls.then(|| ("startTls".to_owned(), true.into()))).collect::<Map<String, Value>>()
            };
            if tcp.query_response.iter().any(|q| !q.labels.is_empty()) {
                self.note("the labels of probe_expect_info are blackbox's alone");
            }
            found.insert("lines".to_owned(), tcp.query_response.iter().map(step).filter(|s| !s.is_empty()).collect::<Vec<_>>().into());
        }
        Value::Object(found)
    }
}

fn expect(http: &Http) -> Value {
    let mut found = Map::new();
    if !http.valid_status_codes.is_empty() {
        let codes: Vec<String> = http.valid_status_codes.iter().map(u32::to_string).collect();
        found.insert("status".to_owned(), codes.into());
    }
    if !http.valid_http_versions.is_empty() {
        found.insert("version".to_owned(), http.valid_http_versions.clone().into());
    }
    let unwanted = http.fail_if_body_matches.iter().map(|p| json!({"notMatches": p}));
    let body: Vec<Value> = unwanted.chain(http.fail_if_body_not_matches.iter().map(|p| json!({"matches": p}))).collect();
    if !body.is_empty() {
        found.insert("body".to_owned(), body.into());
    }
    let must_be_there = http.fail_if_header_matches.iter().filter(|m| !m.allow_missing).map(|m| json!({"name": m.header, "present": true}));
    let unwanted = http.fail_if_header_matches.iter().map(|m| json!({"name": m.header, "notMatches": m.pattern}));
    // A header that may be missing has no word of its own in a resource.
    let wanted = http.fail_if_header_not_matches.iter().filter(|m| !m.allow_missing).map(|m| json!({"name": m.header, "matches": m.pattern}));
    let headers: Vec<Value> = must_be_there.chain(unwanted).chain(wanted).collect();
    if !headers.is_empty() {
        found.insert("headers".to_owned(), headers.into());
    }
    Value::Object(found)
}

/// As a source's address decides the family, none is written beside one.
fn family(ip: Ip, has_source: bool) -> &'static str {
    match (has_source, ip.v4, ip.fallback) {
        (true, ..) => "any",
        (_, true, true) => "prefer4",
        (_, true, false) => "4",
        (_, false, true) => "prefer6",
        (_, false, false) => "6",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use probity_proto::resources::blackbox::parse as parse_blackbox;
    use probity_proto::resources::{SourceFile, parse};

    #[test]
    fn what_is_written_is_valid() {
        let text = "modules:\n  http_2xx: {prober: http, timeout: 5s, http: {method: POST, headers: {X-A: b}, valid_status_codes: [200], body: x, basic_auth: {username: u, password: hush}, fail_if_body_matches_regexp: ['{\"x'], fail_if_header_not_matches: [{header: A, regexp: b}], fail_if_ssl: true, tls_config: {insecure_skip_verify: true, min_version: TLS12}, body_size_limit: 1MB}}\n  HTTP-2xx: {prober: http, http: {preferred_ip_protocol: ip4, ip_protocol_fallback: false, no_follow_redirects: true}}\n  pop3s: {prober: tcp, tcp: {query_response: [{expect: '^+OK ([a-z]+)$', send: 'HI ${1}'}, {send: QUIT}, {expect: bye}], tls: true, source_ip_address: 10.0.0.1, tls_config: {cert: hush, key: hush}}}\n  dns: {prober: dns, dns: {query_name: example.com, valid_rcodes: [NXDOMAIN]}}\n  icmp: {prober: icmp, timeout: 2m, icmp: {ttl: 5}}\n  z: {prober: grpc, grpc: {service: s, tls: true, metadata: {a: [b]}}}\n";
        let config = parse_blackbox(&SourceFile { name: "b.yml".to_owned(), text: text.to_owned() }).expect("it is fine");
        let mut taken = BTreeSet::new();
        let mut notes = Vec::new();
        let mut documents = Vec::new();
        for (name, module) in &config.modules {
            let mut import = Import { name: resource_name(name, &mut taken), notes: Vec::new() };
            for targets in [&[][..], &["10.0.0.1:80"]] {
                let document = import.probe(module, targets, 30_000_000);
                documents.push(serde_saphyr::to_string(&document).expect("it can be written").replace("imported-from", &format!("t{}", targets.len())));
            }
            notes.extend(import.notes);
        }
        for which in [0, 1] {
            let text: Vec<String> = documents.iter().skip(which).step_by(2).cloned().collect();
            let parsed = parse(&[SourceFile { name: "p.yaml".to_owned(), text: text.join("---\n") }], "default");
            let problems: Vec<String> = parsed.problems.iter().map(ToString::to_string).collect();
            assert!(problems.is_empty(), "{problems:#?}\n{}", text.join("---\n"));
            let names: Vec<&str> = parsed.resources.iter().map(|r| r.resource.name.as_str()).collect();
            assert_eq!(names, ["http-2xx", "dns", "http-2xx-2", "icmp", "pop3s", "z"]);
        }
        assert!(notes.iter().any(|n| n == "not carried over: fail_if_ssl"), "{notes:?}");
        assert!(documents.iter().any(|d| d.contains("lines:") && d.contains("HI ${1}") && d.contains("QUIT")), "{documents:#?}");
        assert!(!documents.join("").contains("hush") && !notes.join("").contains("hush"));
    }
}
