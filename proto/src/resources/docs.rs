//! What may be written: one table of fields, behind `probity explain` and the JSON Schema.

use std::borrow::Cow;
use std::fmt;

use serde_json::{Map, Value, json};

/// A field: path, type, default, what it means.
const FIELDS: &[(&str, &str, &str, &str)] = &[
    ("probe", "object", "", "What to check, how often, from where, what is good."),
    ("probe.spec.interval", "duration", "30s", "Between two runs of one prober; 100ms to 24h."),
    ("probe.spec.timeout", "duration", "min(10s, interval)", "A run that takes longer is bad; at most the interval."),
    ("probe.spec.attemptTimeout", "duration", "timeout", "Of one attempt, so that a retry has time left."),
    ("probe.spec.retries", "integer", "0", "Further attempts in one run; all must fail for a bad run."),
    ("probe.spec.invert", "boolean", "false", "Good is a target that cannot be reached: a firewall's check."),
    (
        "probe.spec.maxDuration",
        "object",
        "",
        "A slower run is bad: a duration, or one for each phase: {total, resolve, connect, tls, firstByte, transfer, ...}.",
    ),
    ("probe.spec.family", "string", "any", "any (Happy Eyeballs, RFC 8305), 4, 6, prefer4, prefer6, or both: each by itself, both must be good."),
    ("probe.spec.attemptDelay", "duration", "250ms", "Head start of an address before the next is tried beside it; 10ms to 2s."),
    ("probe.spec.source", "object", "", "address and interface of the prober's host that the probe comes from."),
    ("probe.spec.source.address", "string", "", "An IP address of the host; the family follows it."),
    ("probe.spec.source.interface", "string", "", "A network interface of the host, such as eth0."),
    ("probe.spec.resolver", "object", "the host's", "Who resolves names."),
    (
        "probe.spec.resolver.servers",
        "array",
        "",
        "udp://10.0.0.53 (TCP when truncated), tcp://, tls://1.1.1.1#NAME or https://1.1.1.1/dns-query#NAME; NAME is the one in its certificate.",
    ),
    ("probe.spec.resolver.ca", "string", "", "PEM of extra authorities for tls:// and https:// servers."),
    ("probe.spec.hosts", "object", "", "NAME: ADDRESS, as in a hosts file: such names are not asked for."),
    ("probe.spec.target", "string", "", "The one target: a URL, host or host:port; $(target.address) refers to it."),
    ("probe.spec.targets", "object", "", "Many targets of one probe; each is a check of its own."),
    ("probe.spec.targets.static", "array", "", "A list of {address, key, labels}; the key is the check's identity, by default the address."),
    (
        "probe.spec.targets.httpSD",
        "object",
        "",
        "Found by HTTP: a list of [{targets: [host:port], labels: {}}] as Prometheus' http_sd has it, in JSON or YAML.",
    ),
    ("probe.spec.targets.httpSD.url", "string", "", "Where the list is."),
    ("probe.spec.targets.httpSD.refresh", "duration", "60s", "How often it is asked for; 5s to 24h."),
    (
        "probe.spec.targets.httpSD.auth",
        "object",
        "",
        "{bearer: {secretRef: NAME}} or {basic: {username, password: {secretRef: NAME}}}: secrets of the coordinators' hosts.",
    ),
    ("probe.spec.targets.httpSD.ca", "string", "", "PEM of further authorities."),
    ("probe.spec.targets.fileSD", "object", "", "Found in files on every coordinator's host, in Prometheus' file_sd format."),
    ("probe.spec.targets.fileSD.files", "array", "", "Names of files in the coordinators' targetsDir, ending in .json, .yml or .yaml; * stands for any text."),
    ("probe.spec.targets.fileSD.refresh", "duration", "10s", "How often they are read."),
    ("probe.spec.targets.dnsSRV", "object", "", "Found in DNS: each SRV record is a target, host:port (RFC 2782)."),
    ("probe.spec.targets.dnsSRV.names", "array", "", "Names of SRV records, such as _http._tcp.example.com."),
    ("probe.spec.targets.dnsSRV.servers", "array", "the coordinator's resolver", "Servers to ask: udp://10.0.0.53 (TCP when truncated) or tcp://10.0.0.53."),
    ("probe.spec.targets.dnsSRV.refresh", "duration", "60s", "How often they are asked for."),
    ("probe.spec.targets.kubernetes", "object", "", "Found in Kubernetes (builds with the cargo feature kubernetes)."),
    ("probe.spec.targets.kubernetes.role", "string", "", "service: each port of each Service; ingress: each host and path of each Ingress."),
    ("probe.spec.targets.kubernetes.namespaces", "array", "all", "Kubernetes namespaces to list."),
    ("probe.spec.targets.kubernetes.selector", "string", "", "Kubernetes label selector, such as app=shop,tier!=test."),
    ("probe.spec.targets.kubernetes.apiServer", "string", "the coordinator's own cluster", "URL of another API server, with token and ca."),
    ("probe.spec.targets.kubernetes.token", "object", "", "{secretRef: NAME} of a bearer token for apiServer."),
    ("probe.spec.targets.kubernetes.ca", "string", "", "PEM of the authorities of apiServer."),
    ("probe.spec.targets.kubernetes.refresh", "duration", "60s", "How often it is asked for."),
    ("probe.spec.targets.key", "string", "$(target.address)", "Of what a discovered target's identity is made; labels that begin with __ may stand in it."),
    ("probe.spec.targets.labels", "array", "those without __ in front", "Labels that discovered targets keep; only these may be referred to."),
    ("probe.spec.targets.max", "integer", "1000", "More discovered targets are a failure, and the old ones stay; at most 10000."),
    ("probe.spec.http", "object", "", "An HTTP(S) request, or several in order."),
    ("probe.spec.http.url", "string", "$(target.address)", "What is requested."),
    ("probe.spec.http.method", "string", "GET, with a body POST", "GET, HEAD, POST, PUT, PATCH, DELETE or OPTIONS."),
    ("probe.spec.http.headers", "object", "", "NAME: VALUE, to send."),
    ("probe.spec.http.body", "string", "", "Body to send; at most one of body, form, json, bodyFile."),
    ("probe.spec.http.form", "object", "", "NAME: VALUE, sent as application/x-www-form-urlencoded."),
    ("probe.spec.http.json", "object", "", "Any YAML, sent as JSON."),
    ("probe.spec.http.bodyFile", "object", "", "{secretRef: NAME}: a file of the prober's secrets directory, sent as it is."),
    ("probe.spec.http.auth", "object", "", "One of bearer, basic, oauth2."),
    ("probe.spec.http.auth.bearer", "object", "", "{secretRef: NAME} of a token."),
    ("probe.spec.http.auth.basic", "object", "", "{username, password: {secretRef: NAME}}."),
    (
        "probe.spec.http.auth.oauth2",
        "object",
        "",
        "Client credentials (RFC 6749): {tokenUrl, clientId, clientSecret: {secretRef: NAME}, scopes, parameters}; tokens are cached.",
    ),
    ("probe.spec.http.expect", "object", "", "What a good answer has."),
    ("probe.spec.http.expect.status", "array", "[2xx]", "Statuses: 200, 2xx or 200-204."),
    ("probe.spec.http.expect.headers", "array", "", "Each a name with equals, matches, notMatches, present: true or absent: true; a redirect's location too."),
    (
        "probe.spec.http.expect.body",
        "array",
        "",
        "Each one of contains, notContains, matches, notMatches, schema (JSON Schema), sha256, or jsonPath (RFC 9535) with one of equals, notEquals, below, atMost, above, atLeast, matches, exists, count.",
    ),
    ("probe.spec.http.expect.size", "object", "", "{min, max} bytes of the decoded body."),
    ("probe.spec.http.expect.version", "array", "any", "HTTP versions: '1.0', '1.1', '2', '3'."),
    (
        "probe.spec.http.followRedirects",
        "integer",
        "0",
        "How many redirects are followed; 0: a redirect is an answer like any other. Who we are is told to the first host only.",
    ),
    (
        "probe.spec.http.requests",
        "array",
        "",
        "Several requests in order, in the place of the one above: each has its fields, a name, and capture. $(captures.NAME) of earlier ones may stand in url, headers, body, form and json.",
    ),
    ("probe.spec.http.requests.capture", "object", "", "NAME: {jsonPath}, {header}, {header, matches} or {matches}: the first group, or all that matches."),
    (
        "probe.spec.http.version",
        "string",
        "auto",
        "auto (2 where the server offers it by ALPN, else 1.1), 1.1, 2 (without TLS by prior knowledge) or 3 (QUIC straight to the target).",
    ),
    (
        "probe.spec.http.reuse",
        "boolean",
        "false",
        "Keep connections from one request and run to the next; a reused one has no phases resolve, connect and tls.",
    ),
    (
        "probe.spec.http.proxy",
        "object",
        "",
        "The way there: {url: http://host:port or socks5://host:port, username, password: {secretRef: NAME}}; the proxy resolves names.",
    ),
    ("probe.spec.http.compression", "array", "", "Codings that are asked for and decoded: gzip, br, zstd, deflate."),
    ("probe.spec.http.maxBodyBytes", "size", "1MiB", "A larger body is bad; at most 100MiB."),
    ("probe.spec.http.maxDecompressedBytes", "size", "10MiB", "The same once it is decoded."),
    ("probe.spec.http.tls", "object", "", "How the server is verified."),
    ("probe.spec.tcp", "object", "", "A TCP connection, with TLS and a dialogue if wanted."),
    ("probe.spec.tcp.address", "string", "$(target.address)", "host:port."),
    ("probe.spec.tcp.tls", "object", "", "TLS: its presence asks for it."),
    ("probe.spec.tcp.starttls", "string", "", "Ask for TLS as smtp, imap, pop3, ftp, ldap or postgres do it."),
    ("probe.spec.tcp.send", "string", "", "Sent once connected."),
    ("probe.spec.tcp.expect", "string", "", "Regular expression that what comes back must match."),
    (
        "probe.spec.tcp.dialogue",
        "array",
        "",
        "In the place of send and expect: steps {send}, {expect} or {startTls: true}; named groups of expect are $(captures.NAME) in later ones.",
    ),
    (
        "probe.spec.tcp.lines",
        "array",
        "",
        "A conversation line by line, in the place of send and expect: steps {expect, send, startTls}. Lines are passed over until one matches expect; then send goes out with a line feed, ${1} and ${name} being groups of that line, and startTls: true goes on in TLS.",
    ),
    ("probe.spec.tls", "object", "", "A certificate watch: a handshake, and what the certificates say."),
    ("probe.spec.tls.address", "string", "$(target.address)", "host:port."),
    ("probe.spec.tls.starttls", "string", "", "As for tcp."),
    ("probe.spec.dns", "object", "", "A DNS query straight to a server, or through this host's resolver."),
    (
        "probe.spec.dns.server",
        "string",
        "$(target.address)",
        "host or host:port of the server; system: this host's resolver, so that the target can be the name.",
    ),
    ("probe.spec.dns.name", "string", "$(target.address) when a server is given", "The name asked for."),
    ("probe.spec.dns.type", "string", "A", "Record type by name (A, HTTPS, ...) or number (65, TYPE65)."),
    ("probe.spec.dns.class", "string", "IN", "IN, CH, HS, NONE, ANY or a number."),
    ("probe.spec.dns.transport", "string", "udp", "udp (tcp when truncated), tcp, tls (RFC 7858) or https (RFC 8484)."),
    ("probe.spec.dns.path", "string", "/dns-query", "Path of the https transport."),
    ("probe.spec.dns.tls", "object", "", "Of the tls and https transports."),
    ("probe.spec.dns.recursion", "boolean", "true", "Whether recursion is desired (the RD bit)."),
    ("probe.spec.dns.checkingDisabled", "boolean", "false", "The CD bit: the server shall not validate."),
    ("probe.spec.dns.edns", "object", "", "EDNS(0), RFC 6891; or none."),
    ("probe.spec.dns.edns.size", "integer", "1232", "Bytes of an answer that may come over UDP, from 512."),
    ("probe.spec.dns.edns.dnssecOk", "boolean", "false", "The DO bit: signatures are wanted in the answer."),
    (
        "probe.spec.dns.dnssec",
        "object",
        "",
        "Validates the answer here (RFC 4035), with further queries to the same server, which must answer for the whole chain.",
    ),
    ("probe.spec.dns.dnssec.validate", "boolean", "true", "An answer that is bogus or not signed is bad."),
    ("probe.spec.dns.dnssec.anchors", "array", "the root's keys", "Trust anchors instead, each: ZONE DNSKEY FLAGS 3 ALGORITHM BASE64."),
    ("probe.spec.dns.expect", "object", "", "What a good answer has."),
    ("probe.spec.dns.expect.rcodes", "array", "[NOERROR]", "Response codes by name or number."),
    ("probe.spec.dns.expect.flags", "object", "", "aa, tc, rd, ra, ad, cd: true or false."),
    ("probe.spec.dns.expect.minAnswers", "integer", "0", "So many answers at least."),
    ("probe.spec.dns.expect.answers", "array", "", "Each must be among the answers, as dig prints them."),
    ("probe.spec.dns.expect.answer", "object", "", "The answer section: minCount, maxCount, equals, contains, matches, notMatches, ttl: {min, max}."),
    ("probe.spec.dns.expect.authority", "object", "", "The authority section, likewise."),
    ("probe.spec.dns.expect.additional", "object", "", "The additional section, likewise (without the OPT record)."),
    ("probe.spec.dns.expect.maxSize", "integer", "", "Bytes of the whole answer, at most."),
    ("probe.spec.dns.expect.sameSerialAs", "array", "", "More servers: the SOA serial of the name must be the same on all."),
    ("probe.spec.icmp", "object", "", "Echo requests (ping)."),
    ("probe.spec.icmp.host", "string", "$(target.address)", "Name or address."),
    ("probe.spec.icmp.count", "integer", "1", "Echo requests per run, at most 1000."),
    ("probe.spec.icmp.packetInterval", "duration", "200ms", "Between two of them."),
    ("probe.spec.icmp.payloadSize", "integer", "56", "Bytes of payload, 16 to 9000."),
    (
        "probe.spec.icmp.dontFragment",
        "boolean",
        "false",
        "Nobody may fragment the packets: finds a path's MTU with payloadSize (IPv4: MTU - 28, IPv6: MTU - 48).",
    ),
    ("probe.spec.icmp.tos", "integer", "0", "Type of service or traffic class, 0 to 255."),
    ("probe.spec.icmp.dscp", "string", "", "Instead of tos, its upper six bits: 0 to 63, cs0 to cs7, af11 to af43, ef, va or le."),
    ("probe.spec.icmp.maxRtt", "object", "", "Limits of the round trips: min, mean, p95, max."),
    ("probe.spec.icmp.maxRtt.min", "duration", "", "The fastest may take that long."),
    ("probe.spec.icmp.maxRtt.mean", "duration", "", "The mean may be that long."),
    ("probe.spec.icmp.maxRtt.p95", "duration", "", "19 of 20 may take that long (nearest rank)."),
    ("probe.spec.icmp.maxRtt.max", "duration", "", "The slowest may take that long."),
    ("probe.spec.icmp.maxJitter", "duration", "", "Limit of the interarrival jitter (RFC 3550)."),
    ("probe.spec.icmp.trace", "boolean", "false", "Trace the path once when a run turns bad; or {protocol, port, maxHops, queries, wait}."),
    ("probe.spec.icmp.trace.protocol", "string", "icmp", "icmp, udp or tcp."),
    ("probe.spec.icmp.trace.port", "integer", "443 of tcp, 33434 of udp", "Of tcp the port, of udp the first of several."),
    ("probe.spec.icmp.trace.maxHops", "integer", "30", "How far, at most 64."),
    ("probe.spec.icmp.trace.queries", "integer", "3", "Packets to each hop, at most 8."),
    ("probe.spec.icmp.trace.wait", "duration", "1s", "For the answers of five hops at once."),
    ("probe.spec.icmp.noDuplicates", "boolean", "false", "A reply that comes twice makes the run bad; waits packetInterval for one after the last reply."),
    ("probe.spec.icmp.noReordering", "boolean", "false", "A reply that comes after one to a later request makes the run bad (RFC 4737)."),
    ("probe.spec.icmp.ttl", "integer", "64", "Time to live, or hop limit."),
    ("probe.spec.icmp.maxLoss", "percent", "0%", "A run that loses more is bad."),
    ("probe.spec.udp", "object", "", "A datagram, and one that comes back."),
    ("probe.spec.udp.address", "string", "$(target.address)", "host:port."),
    ("probe.spec.udp.send", "string", "", "Sent; absent: an empty datagram."),
    ("probe.spec.udp.sendHex", "string", "", "Instead of send, as hexadecimal digits."),
    ("probe.spec.udp.expect", "string", "", "Regular expression that an answer must match; others are passed over. Absent: any answer."),
    ("probe.spec.grpc", "object", "", "A call of grpc.health.v1.Health/Check; the time left is the call's deadline."),
    ("probe.spec.grpc.address", "string", "$(target.address)", "host:port."),
    ("probe.spec.grpc.service", "string", "", "The service asked for; absent: the server as a whole."),
    ("probe.spec.grpc.metadata", "object", "", "Names with a text, or with {secretRef, prefix}."),
    ("probe.spec.grpc.tls", "object", "", "TLS: its presence asks for it."),
    ("probe.spec.grpc.expect", "object", "", "What is good."),
    ("probe.spec.grpc.expect.status", "array", "[SERVING]", "UNKNOWN, SERVING, NOT_SERVING, SERVICE_UNKNOWN."),
    ("probe.spec.websocket", "object", "", "A WebSocket (RFC 6455), with a dialogue if wanted."),
    ("probe.spec.websocket.url", "string", "$(target.address)", "ws:// or wss://."),
    ("probe.spec.websocket.headers", "object", "", "Headers of the upgrade: names with a text, or with {secretRef, prefix}."),
    ("probe.spec.websocket.subprotocols", "array", "", "Offered; the server must choose one."),
    ("probe.spec.websocket.tls", "object", "", "Of wss."),
    ("probe.spec.websocket.send", "string", "", "A text message to send."),
    ("probe.spec.websocket.expect", "string", "", "Regular expression that a message must match; others are passed over."),
    ("probe.spec.websocket.dialogue", "array", "", "Instead of both, steps in order: send, sendBinary, sendHex, expect or ping: true."),
    ("probe.spec.websocket.maxMessageBytes", "size", "1MiB", "A larger message is bad."),
    ("probe.spec.placement", "object", "", "Which probers run it."),
    ("probe.spec.placement.selector", "object", "", "matchLabels of probers; absent: all."),
    ("probe.spec.placement.count", "integer", "3, or as many as there are", "How many probers, or all."),
    ("probe.spec.placement.spreadBy", "string", "zone", "Prober label whose values are spread over."),
    ("probe.spec.verdict", "object", "", "When it is up or down."),
    ("probe.spec.verdict.quorum", "integer", "2 (1 when count is 1)", "This many probers must say down."),
    ("probe.spec.verdict.downAfter", "integer", "2", "Consecutive bad runs until a prober says down."),
    ("probe.spec.verdict.recoverAfter", "integer", "2", "Consecutive good runs until it says up."),
    ("slo", "object", "", "An OpenSLO v1 objective whose metric source is a probe."),
    ("slo.spec.service", "string", "", "A label of its alerts."),
    ("slo.spec.indicator", "object", "", "spec.ratioMetric with good and total of {metricSource: {type: probity, spec: {probe, outcome: good, maxDuration}}}."),
    ("slo.spec.timeWindow", "array", "", "Exactly one {duration, isRolling: true}."),
    ("slo.spec.budgetingMethod", "string", "Occurrences", "good runs / all runs."),
    ("slo.spec.objectives", "array", "", "Exactly one {displayName, target or targetPercent}."),
    ("slo.spec.alertPolicies", "array", "the SRE workbook's rules", "[{alertPolicyRef: NAME}] of a BurnRatePolicy; [] = no alerts."),
    ("burnratepolicy", "object", "", "Multiwindow, multi-burn-rate rules (SRE workbook, chapter 5)."),
    ("burnratepolicy.spec.rules", "array", "", "Each {name, severity: page|ticket, burnRate, long, short}."),
    (
        "burnratepolicy.spec.evidence",
        "object",
        "{badRuns: 2, probers: 2}",
        "An alert needs this many bad runs from this many probers (at most as many as are assigned).",
    ),
    (
        "burnratepolicy.spec.noData",
        "object",
        "{severity: ticket, missingPercent: 50, for: 5m}",
        "Alert when that share of probers reports nothing for that long.",
    ),
    ("burnratepolicy.spec.labels", "object", "", "Labels of the alerts; part of their identity."),
    ("burnratepolicy.spec.annotations", "object", "", "Annotations of the alerts, such as runbook_url."),
    ("receiver", "object", "", "Somebody who is told of alerts."),
    ("receiver.spec.webhook", "object", "", "url (text or {secretRef}), token: {secretRef}; CloudEvents 1.0, structured JSON."),
    ("receiver.spec.alertmanager", "object", "", "urls: every replica of an Alertmanager, API v2."),
    ("receiver.spec.pagerduty", "object", "", "routingKey: {secretRef}; Events API v2."),
    ("receiver.spec.slack", "object", "", "url: {secretRef} of an incoming webhook."),
    ("route", "object", "", "Which alerts go to whom; every route that matches delivers."),
    ("route.spec.match", "object", "", "Labels that must be equal: severity, service, slo, rule, or the policy's own."),
    ("route.spec.receivers", "array", "", "Names of Receivers."),
    ("scenario", "object", "", "A game day: steady state, faults, what is expected."),
    ("scenario.spec.parameters", "object", "", "NAME: {type: duration|int|percent|string|rate, default, max}; used as $(params.NAME)."),
    ("scenario.spec.maxDuration", "duration", "15m", "Longer, and it is aborted."),
    ("scenario.spec.targets", "object", "", "NAME: {selector: {matchLabels}, percent, max}: probers that inject."),
    ("scenario.spec.steadyState", "array", "", "Conditions that must hold before anything is injected."),
    ("scenario.spec.steps", "array", "", "One after the other: {name, fault, target, with, after, for, undo}."),
    ("scenario.spec.abortIf", "array", "", "Conditions that end it at once."),
    (
        "scenario.spec.expect",
        "array",
        "",
        "{alert: SLO/RULE, firesWithin, resolvesWithin | fires: never}, {probe, verdict, within, recoversWithin}, {slo, budgetSpent}.",
    ),
];

/// Below whatever takes TLS options.
const TLS_FIELDS: &[(&str, &str, &str, &str)] = &[
    ("serverName", "string", "the host", "Name that is asked for (SNI) and verified."),
    ("ca", "string", "", "PEM of further authorities."),
    ("clientCertificate", "object", "", "{secretRef: NAME} of a PEM with our chain, and the key unless clientKey has it."),
    ("clientKey", "object", "", "{secretRef: NAME} of a PEM with the key."),
    ("minVersion", "string", "'1.2'", "'1.2' or '1.3'."),
    ("maxVersion", "string", "'1.3'", "'1.2' or '1.3'."),
    ("minDays", "integer", "0; 14 of the kind tls", "Every certificate of the chain is valid for this many days more."),
    ("pins", "array", "", "sha256/BASE64 of public keys (SPKI); one of the chain must have one of them."),
    (
        "requireStaple",
        "boolean",
        "false",
        "The server must staple an OCSP response that holds: about this certificate, signed by its issuer, in its time. One that says revoked is bad in any case.",
    ),
    ("skipVerify", "boolean", "false", "Trust whoever answers; every result says so."),
];

/// Where they stand.
const TLS_AT: [&str; 6] =
    ["probe.spec.http.tls", "probe.spec.tcp.tls", "probe.spec.tls", "probe.spec.dns.tls", "probe.spec.grpc.tls", "probe.spec.websocket.tls"];

/// Every field: path, type, default, text.
fn fields() -> impl Iterator<Item = (Cow<'static, str>, &'static str, &'static str, &'static str)> {
    let own = FIELDS.iter().map(|(path, ty, default, text)| (Cow::Borrowed(*path), *ty, *default, *text));
    let tls = TLS_AT.iter().flat_map(|at| TLS_FIELDS.iter().map(move |(field, ty, default, text)| (Cow::Owned(format!("{at}.{field}")), *ty, *default, *text)));
    own.chain(tls)
}

/// Documentation of one field, with the fields below it.
#[derive(Debug, Clone)]
pub struct FieldDoc {
    path: String,
    kind: &'static str,
    default: &'static str,
    text: &'static str,
    children: Vec<(Cow<'static, str>, &'static str, &'static str)>,
}

impl fmt::Display for FieldDoc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}  <{}>{}", self.path, self.kind, default_text(self.default))?;
        write!(f, "  {}", self.text)?;
        let width = self.children.iter().map(|(path, ..)| path.len()).max().unwrap_or(0);
        for (path, default, text) in &self.children {
            write!(f, "\n  {path:<width$}  {text}{}", default_text(default))?;
        }
        Ok(())
    }
}

fn default_text(default: &str) -> String {
    if default.is_empty() { String::new() } else { format!("  (default {default})") }
}

/// The documentation of `probe`, `probe.spec.http`, ...
pub fn explain(path: &str) -> Option<FieldDoc> {
    let wanted = path.trim_end_matches('.').to_ascii_lowercase();
    let singular = wanted.strip_suffix('s').unwrap_or(&wanted).to_owned();
    let exact = |p: &str| p.to_ascii_lowercase() == wanted || p == singular;
    let prefix = format!("{wanted}.");
    let children: Vec<_> = fields()
        .filter(|(p, ..)| p.to_ascii_lowercase().starts_with(&prefix) || p.starts_with(&format!("{singular}.")))
        .map(|(p, _, default, text)| (p, default, text))
        .collect();
    match fields().find(|(p, ..)| exact(p)) {
        Some((p, kind, default, text)) => Some(FieldDoc { path: p.into_owned(), kind, default, text, children }),
        None if children.is_empty() => None,
        None => Some(FieldDoc { path: path.to_owned(), kind: "object", default: "", text: "", children }),
    }
}

/// A JSON Schema of all kinds (draft 2020-12), for editors.
pub fn json_schema() -> Value {
    let kinds =
        [("probe", "Probe"), ("slo", "SLO"), ("burnratepolicy", "BurnRatePolicy"), ("receiver", "Receiver"), ("route", "Route"), ("scenario", "Scenario")];
    let all: Vec<Value> = kinds.iter().map(|(path, kind)| kind_schema(path, kind)).collect();
    json!({"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Probity resources", "oneOf": all})
}

fn kind_schema(path: &str, kind: &str) -> Value {
    let api = if kind == "SLO" { super::OPENSLO_VERSION } else { super::API_VERSION };
    let mut spec = Map::new();
    let prefix = format!("{path}.spec.");
    for (field, ty, default, text) in fields().filter(|(p, ..)| p.starts_with(&prefix)) {
        let json_type = match ty {
            // A duration, or one for each phase.
            "object" if field.ends_with(".maxDuration") => json!(["object", "string", "integer"]),
            "object" | "array" | "integer" => json!(ty),
            "duration" | "percent" | "size" => json!(["string", "integer"]),
            _ => json!(["string", "number", "boolean"]),
        };
        let entry = json!({"type": json_type, "description": format!("{text}{}", default_text(default))});
        let parts: Vec<&str> = field[prefix.len()..].split('.').collect();
        insert(&mut spec, &parts, entry);
    }
    json!({
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"const": api},
            "kind": {"const": kind},
            "metadata": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "namespace": {"type": "string"}, "labels": {"type": "object"}, "annotations": {"type": "object"}}},
            "spec": {"type": "object", "properties": spec},
        },
    })
}

/// Puts a field's schema at its path, below the `properties` of its parents.
fn insert(map: &mut Map<String, Value>, parts: &[&str], entry: Value) {
    match parts {
        [] => {}
        [last] => {
            map.insert((*last).to_owned(), entry);
        }
        [first, rest @ ..] => {
            let parent = map.entry(*first).or_insert_with(|| json!({"type": "object"}));
            let Some(parent) = parent.as_object_mut() else { return };
            if let Some(properties) = parent.entry("properties").or_insert_with(|| json!({})).as_object_mut() {
                insert(properties, rest, entry);
            }
        }
    }
}
