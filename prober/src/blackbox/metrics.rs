//! A run in Prometheus' text format, with blackbox's names, help texts and values. A phase that was not reached is 0 here, as it is there.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use probity_proto::resources::blackbox::Prober;

use super::Asked;
use super::verdict::{Verdict, fact};
use crate::kinds::{LABELS_FACT, RunResult};

/// Name, help, and (labels, value) of each sample.
type Metric = (&'static str, &'static str, Vec<(String, f64)>);

/// Samples of one run, written in the order of their names as blackbox has it.
struct Samples(Vec<Metric>);

impl Samples {
    fn gauge(&mut self, name: &'static str, help: &'static str, value: f64) {
        self.0.push((name, help, vec![(String::new(), value)]));
    }

    fn labelled(&mut self, name: &'static str, help: &'static str, samples: impl IntoIterator<Item = (String, f64)>) {
        self.0.push((name, help, samples.into_iter().collect()));
    }

    fn text(mut self) -> String {
        self.0.sort_unstable_by_key(|(name, ..)| *name);
        let mut out = String::with_capacity(2_048);
        for (name, help, samples) in self.0 {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge");
            for (labels, value) in samples {
                let _ = writeln!(out, "{name}{labels} {value}");
            }
        }
        out
    }
}

/// `{a="x",b="y"}`, escaped.
fn labels(pairs: &[(&str, &str)]) -> String {
    let escape = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let inner: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
    format!("{{{}}}", inner.join(","))
}

/// Seconds of all phases of those names together.
fn phase(result: &RunResult, names: &[&str]) -> f64 {
    result.phases.iter().filter(|p| names.contains(&p.name)).map(|p| p.duration_us).sum::<u64>() as f64 / 1e6
}

fn phases(result: &RunResult, of: &[(&str, &[&str])]) -> Vec<(String, f64)> {
    of.iter().map(|(word, names)| (labels(&[("phase", word)]), phase(result, names))).collect()
}

fn number(result: &RunResult, name: &str) -> Option<f64> {
    fact(result, name)?.parse().ok()
}

fn flag(on: bool) -> f64 {
    f64::from(u8::from(on))
}

pub(super) fn render(asked: &Asked<'_>, result: &RunResult, verdict: &Verdict) -> String {
    let mut out = Samples(Vec::with_capacity(20));
    out.gauge("probe_success", "Displays whether or not the probe was a success", flag(verdict.success));
    out.gauge("probe_duration_seconds", "Returns how long the probe took to complete in seconds", result.duration.as_secs_f64());
    out.gauge("probe_timeout_seconds", "Returns the timeout of the probe in seconds", asked.timeout_us as f64 / 1e6);
    addresses(&mut out, result);
    match &asked.module.prober {
        Prober::Http(_) => http(&mut out, result, verdict),
        Prober::Tcp(_) => {
            out.gauge("probe_failed_due_to_regex", "Indicates if probe failed due to regex", flag(verdict.failed_due_to_regex));
            let said = fact(result, LABELS_FACT).and_then(|json| serde_json::from_str::<std::collections::BTreeMap<String, String>>(json).ok());
            if let Some(said) = said {
                let pairs: Vec<(&str, &str)> = said.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
                out.labelled("probe_expect_info", "Explicit content matched", [(labels(&pairs), 1.0)]);
            }
            tls(&mut out, result);
        }
        Prober::Dns(dns) => self::dns(&mut out, result, dns.query_type.eq_ignore_ascii_case("SOA")),
        Prober::Icmp(_) => icmp(&mut out, result),
        Prober::Grpc(grpc) => self::grpc(&mut out, result, grpc.tls),
    }
    out.text()
}

fn peer(result: &RunResult) -> Option<IpAddr> {
    result.peer.parse::<SocketAddr>().map(|a| a.ip()).or_else(|_| result.peer.parse()).ok()
}

fn addresses(out: &mut Samples, result: &RunResult) {
    let ip = peer(result);
    out.gauge("probe_dns_lookup_time_seconds", "Returns the time taken for probe dns lookup in seconds", phase(result, &["resolve"]));
    let protocol = ip.map_or(0.0, |ip| if ip.is_ipv4() { 4.0 } else { 6.0 });
    out.gauge("probe_ip_protocol", "Specifies whether probe ip protocol is IP4 or IP6", protocol);
    let hash = ip.map_or(0, |ip| match ip {
        IpAddr::V4(v4) => fnv1a(&v4.octets()),
        IpAddr::V6(v6) => fnv1a(&v6.octets()),
    });
    out.gauge("probe_ip_addr_hash", "Specifies the hash of IP address. It's useful to detect if the IP address changes.", f64::from(hash));
}

/// FNV-1a, 32 bits (draft-eastlake-fnv, section 2): blackbox's choice.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

fn http(out: &mut Samples, result: &RunResult, verdict: &Verdict) {
    let of = [
        ("connect", &["connect", "proxy"][..]),
        ("processing", &["request", "first_byte"]),
        ("resolve", &["resolve"]),
        ("tls", &["tls"]),
        ("transfer", &["transfer"]),
    ];
    out.labelled("probe_http_duration_seconds", "Duration of http request by phase, summed over all redirects", phases(result, &of));
    // As Go has it: -1 where the server does not say.
    let unsaid = if fact(result, "http.response.status_code").is_some() { -1.0 } else { 0.0 };
    let length = number(result, "http.response.header.content-length").unwrap_or(unsaid);
    out.gauge("probe_http_content_length", "Length of http content response", length);
    let decoded = number(result, "http.response.decoded.size").or_else(|| number(result, "http.response.body.size"));
    out.gauge("probe_http_uncompressed_body_length", "Length of uncompressed response body", decoded.unwrap_or(0.0));
    out.gauge("probe_http_redirects", "The number of redirects", number(result, "http.redirects").unwrap_or(0.0));
    out.gauge("probe_http_ssl", "Indicates if SSL was used for the final redirect", flag(fact(result, "url.scheme") == Some("https")));
    out.gauge("probe_http_status_code", "Response HTTP status code", number(result, "http.response.status_code").unwrap_or(0.0));
    out.gauge("probe_http_version", "Returns the version of HTTP of the probe response", number(result, "network.protocol.version").unwrap_or(0.0));
    out.gauge("probe_failed_due_to_regex", "Indicates if probe failed due to regex", flag(verdict.failed_due_to_regex));
    if let Some(at) = number(result, "http.response.header.last-modified") {
        out.gauge("probe_http_last_modified_timestamp_seconds", "Returns the Last-Modified HTTP response header in unixtime", at);
    }
    tls(out, result);
    if let Some(cipher) = fact(result, "tls.cipher") {
        // Go and the registry of IANA have no version in the names of TLS 1.3's suites.
        let cipher = cipher.replacen("TLS13_", "TLS_", 1);
        out.labelled("probe_tls_cipher_info", "Returns the TLS cipher negotiated during handshake", [(labels(&[("cipher", &cipher)]), 1.0)]);
    }
}

/// Whenever a certificate was seen, trusted or not: an expired one is the very case that the expiry is watched for.
fn tls(out: &mut Samples, result: &RunResult) {
    let earliest = number(result, "tls.server.chain.not_after").or_else(|| number(result, "tls.server.not_after"));
    if let Some(earliest) = earliest {
        out.gauge("probe_ssl_earliest_cert_expiry", "Returns last SSL chain expiry in unixtime", earliest);
        out.gauge("probe_ssl_last_chain_expiry_timestamp_seconds", "Returns last SSL chain expiry in timestamp", earliest);
    }
    if let Some(fingerprint) = fact(result, "tls.server.hash.sha256") {
        let text = |name| fact(result, name).unwrap_or_default();
        let info = labels(&[
            ("fingerprint_sha256", fingerprint),
            ("issuer", text("tls.server.issuer_rfc4514")),
            ("serialnumber", text("tls.server.serial_hex")),
            ("subject", text("tls.server.subject_rfc4514")),
            ("subjectalternative", text("tls.server.dns_names")),
        ]);
        out.labelled("probe_ssl_last_chain_info", "Contains SSL leaf certificate information", [(info, 1.0)]);
    }
    if let Some(version) = fact(result, "tls.protocol.version") {
        let version = format!("TLS {version}");
        out.labelled("probe_tls_version_info", "Returns the TLS version used or NaN when unknown", [(labels(&[("version", &version)]), 1.0)]);
    }
}

fn dns(out: &mut Samples, result: &RunResult, soa: bool) {
    let of = [("connect", &["connect", "tls"][..]), ("request", &["request", "first_byte", "transfer"]), ("resolve", &["resolve"])];
    out.labelled("probe_dns_duration_seconds", "Duration of DNS request by phase", phases(result, &of));
    for (name, help, of) in [
        ("probe_dns_answer_rrs", "Returns number of entries in the answer resource record list", "dns.answer_count"),
        ("probe_dns_authority_rrs", "Returns number of entries in the authority resource record list", "dns.authority_count"),
        ("probe_dns_additional_rrs", "Returns number of entries in the additional resource record list", "dns.additional_count"),
    ] {
        out.gauge(name, help, number(result, of).unwrap_or(0.0));
    }
    let answered = fact(result, "dns.response_code").is_some();
    out.gauge("probe_dns_query_succeeded", "Displays whether or not the query was executed successfully", flag(answered));
    if let Some(serial) = number(result, "dns.soa_serial").filter(|_| soa) {
        out.gauge("probe_dns_serial", "Returns the serial number of the zone", serial);
    }
}

fn icmp(out: &mut Samples, result: &RunResult) {
    let measured = number(result, "icmp.rtt_mean_ns").map(|ns| ns / 1e9).or_else(|| number(result, "icmp.rtt_mean_us").map(|us| us / 1e6));
    let samples = [("resolve", phase(result, &["resolve"])), ("rtt", measured.unwrap_or(0.0)), ("setup", phase(result, &["connect"]))];
    out.labelled("probe_icmp_duration_seconds", "Duration of icmp request by phase", samples.map(|(word, value)| (labels(&[("phase", word)]), value)));
    if let Some(limit) = number(result, "icmp.reply_ttl") {
        out.gauge("probe_icmp_reply_hop_limit", "Replied packet hop limit (TTL for ipv4)", limit);
    }
}

/// The states of grpc.health.v1.HealthCheckResponse, each with a series.
const SERVING_STATUSES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];

fn grpc(out: &mut Samples, result: &RunResult, secure: bool) {
    let of = [("check", &["connect", "tls", "request", "first_byte", "transfer"][..]), ("resolve", &["resolve"])];
    out.labelled("probe_grpc_duration_seconds", "Duration of gRPC request by phase", phases(result, &of));
    let answered = fact(result, "rpc.grpc.status_code").is_some();
    out.gauge("probe_grpc_ssl", "Indicates if SSL was used for the connection", flag(answered && secure));
    // Where there was no answer, what a client of gRPC would make of it: DEADLINE_EXCEEDED, else UNAVAILABLE.
    let unanswered = if result.reason.label().ends_with("_timeout") { 4.0 } else { 14.0 };
    out.gauge("probe_grpc_status_code", "Response gRPC status code", number(result, "rpc.grpc.status_code").unwrap_or(unanswered));
    let found = fact(result, "grpc.health.status");
    let each = SERVING_STATUSES.map(|word| (labels(&[("serving_status", word)]), flag(found == Some(word))));
    out.labelled("probe_grpc_healthcheck_response", "Response HealthCheck response", each);
    tls(out, result);
}

/// `/metrics`
pub(super) fn own(reload_successful: bool, reload_success_at_s: f64, unknown_modules: u64) -> String {
    let mut out = Samples(Vec::new());
    let version = labels(&[("version", env!("CARGO_PKG_VERSION"))]);
    out.labelled("blackbox_exporter_build_info", "The version of Probity that stands in for blackbox_exporter.", [(version, 1.0)]);
    out.gauge("blackbox_exporter_config_last_reload_successful", "Blackbox exporter config loaded successfully.", flag(reload_successful));
    out.gauge("blackbox_exporter_config_last_reload_success_timestamp_seconds", "Timestamp of the last successful configuration reload.", reload_success_at_s);
    let name = "blackbox_module_unknown_total";
    format!("{}# HELP {name} Count of unknown modules requested by probes\n# TYPE {name} counter\n{name} {unknown_modules}\n", out.text())
}

#[cfg(test)]
mod tests;
