//! The flags of `probe` that are about the way to a target, TLS and HTTP, as curl's users know them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use probity_proto::resources::{FAMILIES, STARTTLS, coding, interface, pin, proxy_url, resolver_server, status_range};
use probity_proto::units;
use probity_proto::v1::*;

const WAY: &str = "Way to the target";
const TLS: &str = "TLS";
const HTTP: &str = "HTTP";

#[derive(Debug, Args)]
pub(super) struct NetArgs {
    /// Use IPv4 only
    #[arg(short = '4', conflicts_with_all = ["ipv6", "family"], help_heading = WAY)]
    ipv4: bool,
    /// Use IPv6 only
    #[arg(short = '6', conflicts_with = "family", help_heading = WAY)]
    ipv6: bool,
    /// any (Happy Eyeballs), 4, 6, prefer4, prefer6, or both: each by itself
    #[arg(long, value_parser = family, value_name = "FAMILY", help_heading = WAY)]
    family: Option<AddressFamily>,
    /// An address of this host to come from
    #[arg(long, value_name = "ADDRESS", help_heading = WAY)]
    source: Option<IpAddr>,
    /// A network interface of this host to come from
    #[arg(long, value_parser = interface, value_name = "NAME", help_heading = WAY)]
    interface: Option<String>,
    /// A DNS server to ask instead of the host's: udp://10.0.0.53, tcp://, tls://1.1.1.1#NAME, https://1.1.1.1/dns-query#NAME
    #[arg(long, value_parser = resolver_server, value_name = "SERVER", help_heading = WAY)]
    resolver: Vec<ResolverServer>,
    /// Give a name's address, as 'host:address' or curl's 'host:port:address'
    #[arg(long, value_parser = given_address, value_name = "HOST:ADDRESS", help_heading = WAY)]
    resolve: Vec<(String, IpAddr)>,
}

impl NetArgs {
    pub(super) fn options(&self) -> NetOptions {
        let family = match (self.ipv4, self.ipv6) {
            (true, _) => AddressFamily::V4,
            (_, true) => AddressFamily::V6,
            _ => self.family.unwrap_or_default(),
        };
        NetOptions {
            family: family as i32,
            source_address: self.source.map(|ip| ip.to_string()).unwrap_or_default(),
            source_interface: self.interface.clone().unwrap_or_default(),
            resolver_servers: self.resolver.clone(),
            hosts: self.resolve.iter().map(|(host, ip)| (host.clone(), ip.to_string())).collect(),
            ..NetOptions::default()
        }
    }
}

fn family(text: &str) -> Result<AddressFamily, String> {
    FAMILIES.iter().find(|(word, _)| *word == text).map(|(_, family)| *family).ok_or_else(|| {
        let words: Vec<&str> = FAMILIES.iter().map(|(word, _)| *word).collect();
        format!("want {}", words.join(", "))
    })
}

/// `host:address`, or `host:port:address` whose port stands for all: a run has one target.
fn given_address(text: &str) -> Result<(String, IpAddr), String> {
    let (host, rest) = text.split_once(':').unwrap_or((text, ""));
    let bare = |t: &str| t.trim_matches(['[', ']']).parse::<IpAddr>().ok();
    let after_port = || rest.split_once(':').filter(|(port, _)| port.parse::<u16>().is_ok()).and_then(|(_, address)| bare(address));
    let found = after_port().or_else(|| bare(rest)).filter(|_| !host.is_empty());
    found.map(|ip| (host.to_ascii_lowercase(), ip)).ok_or_else(|| "want host:address, for example shop.example.com:10.0.0.7".to_owned())
}

#[derive(Debug, Args)]
pub(super) struct TlsArgs {
    /// Do not verify certificates
    #[arg(short = 'k', long, help_heading = TLS)]
    insecure: bool,
    /// Further authorities, in PEM
    #[arg(long, value_name = "FILE", help_heading = TLS)]
    cacert: Option<PathBuf>,
    /// Our certificate, in PEM, with its key unless --key has it
    #[arg(long, value_name = "FILE", help_heading = TLS)]
    cert: Option<PathBuf>,
    /// Our key, in PEM
    #[arg(long, requires = "cert", value_name = "FILE", help_heading = TLS)]
    key: Option<PathBuf>,
    /// Name to ask for and to verify, in the place of the host's
    #[arg(long, value_name = "NAME", help_heading = TLS)]
    server_name: Option<String>,
    /// 1.2 or 1.3
    #[arg(long, value_parser = ["1.2", "1.3"], value_name = "VERSION", help_heading = TLS)]
    tls_min: Option<String>,
    /// 1.2 or 1.3
    #[arg(long, value_parser = ["1.2", "1.3"], value_name = "VERSION", help_heading = TLS)]
    tls_max: Option<String>,
    /// Days that every certificate of the chain must be valid for
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=3650), value_name = "DAYS", help_heading = TLS)]
    min_days: u32,
    /// SHA-256 of a public key that the chain must have, as sha256/BASE64; may be given again
    #[arg(long, value_parser = pin, value_name = "PIN", help_heading = TLS)]
    pin: Vec<String>,
    /// The server must staple an OCSP response that holds
    #[arg(long, help_heading = TLS)]
    cert_status: bool,
    /// TLS on tcp targets
    #[arg(long, help_heading = TLS)]
    tls: bool,
    /// How tcp and tls targets are asked for TLS: smtp, imap, pop3, ftp, ldap or postgres
    #[arg(long, value_parser = starttls, value_name = "PROTOCOL", help_heading = TLS)]
    starttls: Option<String>,
}

fn starttls(text: &str) -> Result<String, String> {
    if STARTTLS.contains(&text) { Ok(text.to_owned()) } else { Err(format!("want {}", STARTTLS.join(", "))) }
}

/// A file of the person who asks, which a prober would have in its secrets directory.
fn file(path: &PathBuf) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

impl TlsArgs {
    /// The options, whether TCP targets speak TLS, and how they are asked for it.
    pub(super) fn options(&self, secrets: &mut BTreeMap<String, String>) -> Result<(TlsOptions, bool, String), String> {
        let mut secret = |path: &Option<PathBuf>, name: &str| -> Result<String, String> {
            let Some(path) = path else { return Ok(String::new()) };
            secrets.insert(name.to_owned(), file(path)?);
            Ok(name.to_owned())
        };
        let options = TlsOptions {
            server_name: self.server_name.clone().unwrap_or_default(),
            skip_verify: self.insecure,
            client_certificate_secret_ref: secret(&self.cert, "--cert")?,
            client_key_secret_ref: secret(&self.key, "--key")?,
            ca_pem: self.cacert.as_ref().map(file).transpose()?.unwrap_or_default(),
            min_version: self.tls_min.clone().unwrap_or_default(),
            max_version: self.tls_max.clone().unwrap_or_default(),
            min_days: self.min_days,
            pins: self.pin.clone(),
            require_staple: self.cert_status,
        };
        Ok((options, self.tls, self.starttls.clone().unwrap_or_default()))
    }
}

#[derive(Debug, Args)]
pub(super) struct HttpArgs {
    /// HTTP method; GET, with a body POST
    #[arg(short = 'X', long, value_name = "METHOD", help_heading = HTTP)]
    method: Option<String>,
    /// A header to send, as 'Name: value'; to grpc and ws targets too; may be given again
    #[arg(short = 'H', long, value_parser = header, value_name = "HEADER", help_heading = HTTP)]
    header: Vec<(String, String)>,
    /// A body to send, or @FILE that has it
    #[arg(short = 'd', long, conflicts_with_all = ["json", "form"], value_name = "BODY", help_heading = HTTP)]
    data: Option<String>,
    /// A JSON body to send, or @FILE that has it
    #[arg(long, conflicts_with = "form", value_name = "JSON", help_heading = HTTP)]
    json: Option<String>,
    /// A field of a form to send, as name=value; may be given again
    #[arg(short = 'F', long, value_parser = field, value_name = "FIELD", help_heading = HTTP)]
    form: Vec<Header>,
    /// Who we are, as user:password
    #[arg(short = 'u', long, value_parser = user, value_name = "USER", help_heading = HTTP)]
    user: Option<(String, String)>,
    /// Follow redirects
    #[arg(short = 'L', long, help_heading = HTTP)]
    location: bool,
    /// How many redirects -L follows
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=50), value_name = "N", help_heading = HTTP)]
    max_redirs: u32,
    /// auto, 1.1, 2, or 3 (QUIC straight to the target)
    #[arg(long, value_parser = http_version, value_name = "VERSION", help_heading = HTTP)]
    http: Option<HttpVersion>,
    /// Ask for compressed answers, and decode them
    #[arg(long, help_heading = HTTP)]
    compressed: bool,
    /// http://host:port or socks5://host:port
    #[arg(short = 'x', long, value_parser = proxy_url, value_name = "URL", help_heading = HTTP)]
    proxy: Option<String>,
    /// Who we are to the proxy, as user:password
    #[arg(short = 'U', long, value_parser = user, requires = "proxy", value_name = "USER", help_heading = HTTP)]
    proxy_user: Option<(String, String)>,
    /// Keep the connection from one run to the next (with -c)
    #[arg(long, help_heading = HTTP)]
    reuse: bool,
    /// Statuses that are good, as 2xx, 200-204 or 301; the default is 2xx and 3xx
    #[arg(long, value_parser = status_range, value_delimiter = ',', value_name = "STATUS", help_heading = HTTP)]
    pub(super) expect_status: Vec<StatusRange>,
    /// Text that the body must contain
    #[arg(long, value_name = "TEXT", help_heading = HTTP)]
    expect_body: Vec<String>,
    /// Regular expression that the body must match
    #[arg(long, value_parser = regex, value_name = "REGEX", help_heading = HTTP)]
    expect_match: Vec<String>,
    /// A value of a JSON body, as '$.status=ok'
    #[arg(long, value_parser = json_path, value_name = "PATH=VALUE", help_heading = HTTP)]
    expect_json: Vec<JsonPathAssertion>,
    /// A header of the answer, as 'name: value' or 'name'
    #[arg(long, value_name = "HEADER", help_heading = HTTP)]
    expect_header: Vec<String>,
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((name, value)) if !name.trim().is_empty() => Ok((name.trim().to_owned(), value.trim().to_owned())),
        _ => Err("want 'Name: value'".to_owned()),
    }
}

fn field(text: &str) -> Result<Header, String> {
    let (name, value) = text.split_once('=').ok_or("want name=value")?;
    Ok(Header { name: name.to_owned(), value: value.to_owned() })
}

fn user(text: &str) -> Result<(String, String), String> {
    text.split_once(':').map(|(name, password)| (name.to_owned(), password.to_owned())).ok_or_else(|| "want user:password".to_owned())
}

fn http_version(text: &str) -> Result<HttpVersion, String> {
    match text {
        "auto" => Ok(HttpVersion::Auto),
        "1.1" => Ok(HttpVersion::HttpVersion11),
        "2" => Ok(HttpVersion::HttpVersion2),
        "3" => Ok(HttpVersion::HttpVersion3),
        _ => Err("want auto, 1.1, 2 or 3".to_owned()),
    }
}

fn regex(text: &str) -> Result<String, String> {
    probity_proto::resources::regex(text)
}

/// `$.status=ok`: the value is JSON where it is, else text.
fn json_path(text: &str) -> Result<JsonPathAssertion, String> {
    // A filter has equals signs of its own: the last one counts.
    let (path, value) = text.rsplit_once('=').ok_or("want PATH=VALUE, for example '$.status=ok'")?;
    let path = probity_proto::resources::json_path(path)?;
    let value: serde_json::Value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
    Ok(JsonPathAssertion { path, equals_json: value.to_string(), comparison: JsonComparison::Equals as i32 })
}

impl HttpArgs {
    /// The request; secrets are put beside it.
    pub(super) fn request(&self, secrets: &mut BTreeMap<String, String>) -> Result<HttpCheck, String> {
        let content = |text: &Option<String>| match text.as_deref().map(|t| (t, t.strip_prefix('@'))) {
            Some((_, Some(path))) => file(&PathBuf::from(path)),
            Some((text, None)) => Ok(text.to_owned()),
            None => Ok(String::new()),
        };
        let (body, json_body) = (content(&self.data)?, content(&self.json)?);
        if !json_body.is_empty() && serde_json::from_str::<serde_json::Value>(&json_body).is_err() {
            return Err("--json is no JSON (want for example '{\"a\": 1}'; -d sends any text)".to_owned());
        }
        if self.http == Some(HttpVersion::HttpVersion3) && self.proxy.is_some() {
            return Err("--http 3 goes straight to the target, without --proxy".to_owned());
        }
        let mut secret = |name: &str, value: &str| {
            secrets.insert(name.to_owned(), value.to_owned());
            name.to_owned()
        };
        let auth = self.user.as_ref().map(|(username, password)| HttpAuth {
            auth: Some(http_auth::Auth::Basic(BasicAuth { username: username.clone(), password_secret_ref: secret("--user", password) })),
        });
        let proxy = self.proxy.as_ref().map(|url| {
            let (username, password) = self.proxy_user.clone().unwrap_or_default();
            HttpProxy { url: url.clone(), password_secret_ref: secret("--proxy-user", &password), username }
        });
        let has_body = self.data.is_some() || self.json.is_some() || !self.form.is_empty();
        let default = if has_body { "POST" } else { "GET" };
        Ok(HttpCheck {
            method: self.method.clone().unwrap_or_else(|| default.to_owned()),
            headers: self.header.iter().map(|(name, value)| Header { name: name.clone(), value: value.clone() }).collect(),
            body,
            json_body,
            form: self.form.clone(),
            auth,
            follow_redirects: if self.location { self.max_redirs } else { 0 },
            version: self.http.unwrap_or_default() as i32,
            compression: if self.compressed { ["gzip", "br", "zstd", "deflate"].iter().filter_map(|c| coding(c).ok()).collect() } else { Vec::new() },
            proxy,
            reuse: self.reuse,
            ..HttpCheck::default()
        })
    }

    pub(super) fn body_assertions(&self) -> Vec<BodyAssertion> {
        use body_assertion::Assertion;
        let contains = self.expect_body.iter().cloned().map(Assertion::Contains);
        let matches = self.expect_match.iter().cloned().map(Assertion::Matches);
        let json = self.expect_json.iter().cloned().map(Assertion::JsonPath);
        contains.chain(matches).chain(json).map(|assertion| BodyAssertion { assertion: Some(assertion) }).collect()
    }

    pub(super) fn header_assertions(&self) -> Vec<HeaderAssertion> {
        use header_assertion::Assertion;
        let assertion = |text: &String| match header(text) {
            Ok((name, value)) if !value.is_empty() => HeaderAssertion { name, assertion: Some(Assertion::Equals(value)) },
            _ => HeaderAssertion { name: text.trim().trim_end_matches(':').to_owned(), assertion: Some(Assertion::Present(true)) },
        };
        self.expect_header.iter().map(assertion).collect()
    }
}

/// `800ms` for the whole, or `connect=100ms` for a phase.
pub(super) fn limit(text: &str) -> Result<PhaseLimit, String> {
    let (phase, duration) = text.split_once('=').unwrap_or(("total", text));
    if phase.is_empty() || !phase.chars().all(|c| c.is_ascii_lowercase() || c == '_') {
        return Err(format!("{phase:?} is no phase (want total, resolve, connect, tls, request, first_byte, transfer or rtt)"));
    }
    Ok(PhaseLimit { phase: phase.to_owned(), max_us: units::parse_duration(duration)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_curl_gives_them() {
        let given = |text: &str| given_address(text).ok().map(|(host, ip)| format!("{host} {ip}"));
        assert_eq!(given("Shop.test:10.0.0.7").as_deref(), Some("shop.test 10.0.0.7"));
        assert_eq!(given("shop.test:443:10.0.0.7").as_deref(), Some("shop.test 10.0.0.7"));
        assert_eq!(given("shop.test:443:[::1]").as_deref(), Some("shop.test ::1"));
        assert_eq!(given("shop.test:[2001:db8::1]").as_deref(), Some("shop.test 2001:db8::1"));
        assert!(["shop.test", ":1.1.1.1", "shop.test:x"].iter().all(|t| given_address(t).is_err()));
    }

    #[test]
    fn values_and_limits() {
        let json = |text: &str| json_path(text).map(|a| (a.path, a.equals_json));
        assert_eq!(json("$.a=ok"), Ok(("$.a".to_owned(), "\"ok\"".to_owned())));
        assert_eq!(json("$.a[?@.b==1].c=5"), Ok(("$.a[?@.b==1].c".to_owned(), "5".to_owned())));
        assert!(json("a=1").is_err() && json("$.a").is_err());
        assert_eq!(limit("800ms").map(|l| (l.phase, l.max_us)), Ok(("total".to_owned(), 800_000)));
        assert_eq!(limit("first_byte=1s").map(|l| (l.phase, l.max_us)), Ok(("first_byte".to_owned(), 1_000_000)));
        assert!(limit("Connect=1s").is_err() && limit("connect=soon").is_err());
    }
}
