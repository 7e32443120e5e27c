//! A module and a target as a check.

use probity_proto::resources::blackbox::{Authorization, Dns, Grpc, Http, Icmp, Ip, OAuth2, Prober, QueryResponse, Secret, Section, Tcp, Tls};
use probity_proto::v1::check_kind::Kind;
use probity_proto::v1::*;

use super::Asked;
use crate::secret::Secrets;

/// Blackbox, and Go's client below it, follow ten.
const REDIRECTS_MAX: u32 = 10;
/// Where a module has no limit of its own.
const BODY_BYTES_MAX: u64 = 64 << 20;
/// A secret or body in a file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The error says why nothing could be asked: the probe has failed then.
pub(super) async fn check(secrets: &Secrets, asked: &Asked<'_>) -> Result<CheckSpec, String> {
    let (kind, ip, source) = match &asked.module.prober {
        Prober::Http(module) => (Kind::Http(http(secrets, module, asked).await?), module.ip, ""),
        Prober::Tcp(module) => (Kind::Tcp(tcp(secrets, module, asked).await?), module.ip, module.source_address.as_str()),
        Prober::Dns(module) => (Kind::Dns(dns(secrets, module, asked).await?), module.ip, module.source_address.as_str()),
        Prober::Icmp(module) => (Kind::Icmp(icmp(module, asked)), module.ip, module.source_address.as_str()),
        Prober::Grpc(module) => (Kind::Grpc(grpc(secrets, module, asked).await?), module.ip, ""),
    };
    let net = NetOptions { family: family(ip) as i32, source_address: source.to_owned(), ..NetOptions::default() };
    Ok(CheckSpec { timeout_us: asked.timeout_us.max(1_000), kind: Some(CheckKind { kind: Some(kind) }), net: Some(net), ..CheckSpec::default() })
}

/// With a fallback the other family is tried when a connection fails too, not only when there is no such address.
fn family(ip: Ip) -> AddressFamily {
    match (ip.v4, ip.fallback) {
        (true, true) => AddressFamily::PreferV4,
        (true, false) => AddressFamily::V4,
        (false, true) => AddressFamily::PreferV6,
        (false, false) => AddressFamily::V6,
    }
}

/// The value of a secret, without the line's end. The error names its file, never its content.
async fn value(secret: &Secret) -> Result<String, String> {
    let path = match secret {
        Secret::Given(value) => return Ok(value.clone()),
        Secret::File(path) => path,
    };
    let unreadable = |e: &dyn std::fmt::Display| format!("{path:?} cannot be read: {e}");
    let size = tokio::fs::metadata(path).await.map_err(|e| unreadable(&e.kind()))?.len();
    if size > FILE_BYTES_MAX {
        return Err(unreadable(&format!("it has {size} bytes")));
    }
    tokio::fs::read_to_string(path).await.map_err(|e| unreadable(&e.kind()))
}

/// The name by which a run reads a secret of the module; empty when there is none.
async fn lent(secrets: &Secrets, secret: Option<&Secret>) -> Result<String, String> {
    match secret {
        Some(secret) => Ok(secrets.lend(value(secret).await?.trim())),
        None => Ok(String::new()),
    }
}

async fn tls(secrets: &Secrets, tls: &Tls, server_name: &str) -> Result<TlsOptions, String> {
    let ca_pem = match &tls.ca {
        Some(ca) => value(ca).await?,
        None => String::new(),
    };
    Ok(TlsOptions {
        server_name: if tls.server_name.is_empty() { server_name.to_owned() } else { tls.server_name.clone() },
        skip_verify: tls.insecure_skip_verify,
        ca_pem,
        min_version: tls.min_version.to_owned(),
        max_version: tls.max_version.to_owned(),
        client_certificate_secret_ref: lent(secrets, tls.cert.as_ref()).await?,
        client_key_secret_ref: lent(secrets, tls.key.as_ref()).await?,
        ..TlsOptions::default()
    })
}

/// The URL of a target: `http://` where it has no scheme.
pub(super) fn url(target: &str) -> String {
    let lower = target.to_ascii_lowercase();
    if lower.starts_with("http://") || lower.starts_with("https://") { target.to_owned() } else { format!("http://{target}") }
}

async fn http(secrets: &Secrets, module: &Http, asked: &Asked<'_>) -> Result<HttpCheck, String> {
    let mut headers: Vec<Header> = module.headers.iter().map(|(name, value)| Header { name: name.clone(), value: value.clone() }).collect();
    for (name, secret) in &module.http_headers {
        headers.push(Header { name: name.clone(), value: value(secret).await?.trim().to_owned() });
    }
    let given_host = headers.iter().find(|h| h.name.eq_ignore_ascii_case("host")).map(|h| h.value.clone());
    let host = given_host.clone().unwrap_or_else(|| asked.hostname.to_owned());
    if given_host.is_none() && !asked.hostname.is_empty() {
        headers.push(Header { name: "Host".to_owned(), value: asked.hostname.to_owned() });
    }
    if let Some(value) = authorization(module).await? {
        headers.push(Header { name: "Authorization".to_owned(), value });
    }
    let body_assertion = |assertion| BodyAssertion { assertion: Some(assertion) };
    let unwanted = module.fail_if_body_matches.iter().map(|p| body_assertion(body_assertion::Assertion::NotMatches(p.clone())));
    let wanted = module.fail_if_body_not_matches.iter().map(|p| body_assertion(body_assertion::Assertion::Matches(p.clone())));
    let header = |name: &str, assertion| HeaderAssertion { name: name.to_owned(), assertion: Some(assertion) };
    let wanted_headers = module.fail_if_header_not_matches.iter().map(|m| {
        let pattern = m.pattern.clone();
        let assertion = if m.allow_missing { header_assertion::Assertion::MatchesIfPresent(pattern) } else { header_assertion::Assertion::Matches(pattern) };
        header(&m.header, assertion)
    });
    let unwanted_headers = module.fail_if_header_matches.iter().map(|m| header(&m.header, header_assertion::Assertion::NotMatches(m.pattern.clone())));
    let must_be_there = module.fail_if_header_matches.iter().filter(|m| !m.allow_missing);
    let present_headers = must_be_there.map(|m| header(&m.header, header_assertion::Assertion::Present(true)));
    let max_body_bytes = if module.body_size_limit == 0 { BODY_BYTES_MAX } else { module.body_size_limit };
    let body = match &module.body {
        Some(body) => value(body).await?,
        None => String::new(),
    };
    Ok(HttpCheck {
        url: url(asked.target),
        method: module.method.clone(),
        headers,
        body,
        expect: Some(HttpExpect {
            // Judged afterwards, see the verdict.
            status: vec![StatusRange { from: 100, to: 999 }],
            body: unwanted.chain(wanted).collect(),
            headers: present_headers.chain(unwanted_headers).chain(wanted_headers).collect(),
            versions: module.valid_http_versions.clone(),
            ..HttpExpect::default()
        }),
        tls: Some(tls(secrets, &module.tls, without_port(&host)).await?),
        follow_redirects: if module.follow_redirects { REDIRECTS_MAX } else { 0 },
        max_body_bytes,
        max_decompressed_bytes: max_body_bytes,
        compression: Some(module.compression.clone()).filter(|c| !c.is_empty() && c != "identity").into_iter().collect(),
        proxy: match &module.proxy_url {
            Some(url) => Some(proxy(secrets, &value(url).await?)),
            None => None,
        },
        auth: match &module.authorization {
            Some(Authorization::OAuth2(oauth2)) => Some(HttpAuth { auth: Some(http_auth::Auth::Oauth2(credentials(secrets, oauth2).await?)) }),
            _ => None,
        },
        version: match (module.enable_http3, module.enable_http2) {
            (true, _) => HttpVersion::HttpVersion3,
            (false, true) => HttpVersion::Auto,
            (false, false) => HttpVersion::HttpVersion11,
        } as i32,
        ..HttpCheck::default()
    })
}

/// A proxy's URL, which may have a name and a password in it.
fn proxy(secrets: &Secrets, url: &str) -> HttpProxy {
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let (user, address) = rest.rsplit_once('@').unwrap_or(("", rest));
    let (name, password) = user.split_once(':').unwrap_or((user, ""));
    let decoded = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    HttpProxy {
        url: format!("{scheme}://{address}"),
        username: decoded(name),
        password_secret_ref: if name.is_empty() { String::new() } else { secrets.lend(&decoded(password)) },
    }
}

async fn credentials(secrets: &Secrets, oauth2: &OAuth2) -> Result<OAuth2ClientCredentials, String> {
    Ok(OAuth2ClientCredentials {
        token_url: oauth2.token_url.clone(),
        client_id: oauth2.client_id.clone(),
        client_secret_ref: lent(secrets, Some(oauth2.client_secret.as_ref().unwrap_or(&Secret::Given(String::new())))).await?,
        scopes: oauth2.scopes.clone(),
        parameters: oauth2.endpoint_params.iter().map(|(name, value)| Header { name: name.clone(), value: value.clone() }).collect(),
    })
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

async fn authorization(module: &Http) -> Result<Option<String>, String> {
    use base64::Engine;
    Ok(match &module.authorization {
        // Its token is got by the run.
        None | Some(Authorization::OAuth2(_)) => None,
        Some(Authorization::Basic { username, password }) => {
            let password = match password {
                Some(password) => value(password).await?,
                None => String::new(),
            };
            Some(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{username}:{}", password.trim()))))
        }
        Some(Authorization::Scheme { scheme, credentials }) => Some(format!("{scheme} {}", value(credentials).await?.trim())),
    })
}

async fn tcp(secrets: &Secrets, module: &Tcp, asked: &Asked<'_>) -> Result<TcpCheck, String> {
    let step = |q: &QueryResponse| LineStep {
        expect: q.expect.clone(),
        send: q.send.clone(),
        start_tls: q.starttls,
        labels: q.labels.iter().map(|(name, value)| Header { name: name.clone(), value: value.clone() }).collect(),
    };
    let secure = module.tls || module.query_response.iter().any(|q| q.starttls);
    Ok(TcpCheck {
        address: asked.target.to_owned(),
        tls: if secure { Some(tls(secrets, &module.tls_config, asked.hostname).await?) } else { None },
        lines: module.query_response.iter().map(step).collect(),
        ..TcpCheck::default()
    })
}

async fn dns(secrets: &Secrets, module: &Dns, asked: &Asked<'_>) -> Result<DnsCheck, String> {
    let transport = match (module.dns_over_tls, module.tcp) {
        (true, _) => DnsTransport::Tls,
        (_, true) => DnsTransport::Tcp,
        _ => DnsTransport::Udp,
    };
    Ok(DnsCheck {
        server: asked.target.to_owned(),
        name: module.query_name.clone(),
        record_type: module.query_type.clone(),
        transport: transport as i32,
        class: module.query_class,
        no_recursion: !module.recursion_desired,
        tls: if module.dns_over_tls { Some(tls(secrets, &module.tls_config, "").await?) } else { None },
        expect: Some(DnsExpect {
            rcodes: module.valid_rcodes.clone(),
            answer: section(&module.answer),
            authority: section(&module.authority),
            additional: section(&module.additional),
            ..DnsExpect::default()
        }),
        ..DnsCheck::default()
    })
}

fn section(section: &Section) -> Option<DnsSectionExpect> {
    let records = RecordPatterns {
        fail_if_matches: section.fail_if_matches.clone(),
        fail_if_all_match: section.fail_if_all_match.clone(),
        fail_if_not_matches: section.fail_if_not_matches.clone(),
        fail_if_none_matches: section.fail_if_none_matches.clone(),
    };
    (records != RecordPatterns::default()).then(|| DnsSectionExpect { records: Some(records), ..DnsSectionExpect::default() })
}

async fn grpc(secrets: &Secrets, module: &Grpc, asked: &Asked<'_>) -> Result<GrpcCheck, String> {
    Ok(GrpcCheck {
        address: asked.target.to_owned(),
        service: module.service.clone(),
        tls: if module.tls { Some(tls(secrets, &module.tls_config, "").await?) } else { None },
        metadata: module.metadata.iter().map(|(name, value)| Header { name: name.clone(), value: value.clone() }).collect(),
        ..GrpcCheck::default()
    })
}

fn icmp(module: &Icmp, asked: &Asked<'_>) -> IcmpCheck {
    IcmpCheck {
        host: asked.target.trim_matches(['[', ']']).to_owned(),
        count: 1,
        packet_interval_us: 1_000_000,
        payload_bytes: module.payload_bytes,
        ttl: module.ttl,
        dont_fragment: module.dont_fragment,
        ..IcmpCheck::default()
    }
}
