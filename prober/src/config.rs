//! A prober's configuration: `prober.yaml`, or made by `up`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use probity_chaos::ProxyConfig;
use probity_otel::Otel;
use probity_proto::units;
use probity_rpc::tls::{TlsFiles, is_loopback};
use serde::Deserialize;

use crate::kinds::BODIES_BYTES_MAX;
use crate::policy::AddressPolicy;
use crate::selfcheck::SelfCheckConfig;

/// Coordinators wait no longer for a run.
pub const SPOOL_AGE_MAX: Duration = Duration::from_secs(24 * 3_600);

/// One body with the default of `maxBodyBytes` fits.
const BODIES_BYTES_LEAST: u64 = 1 << 20;

/// Everything a prober needs to know.
#[derive(Debug, Clone)]
pub struct ProberConfig {
    /// Unique in the fleet; with TLS the name in its certificate.
    pub name: String,
    /// gRPC addresses of coordinators.
    pub coordinators: Vec<String>,
    /// For placement: zone, region, role...
    pub labels: BTreeMap<String, String>,
    /// Spool, assignments, fault journal.
    pub data_dir: PathBuf,
    /// Where /metrics and /healthz are served.
    pub http: Option<SocketAddr>,
    /// Mutual TLS; without it plain text, on loopback only.
    pub tls: Option<TlsFiles>,
    /// Where secrets are.
    pub secrets_dir: Option<PathBuf>,
    /// A secret without `NAME.allow` beside it is for no probe.
    pub secrets_need_allow: bool,
    /// Bytes of the spool.
    pub spool_bytes_max: u64,
    /// How long a row is kept for a coordinator.
    pub spool_age_max: Duration,
    /// Bytes of answers' bodies that all runs may hold together.
    pub bodies_bytes_max: u64,
    /// Whether its own network works.
    pub self_check: SelfCheckConfig,
    /// Kinds of fault that the host's owner allows.
    pub faults_allow: Vec<String>,
    /// Fault proxies to run.
    pub proxies: Vec<ProxyConfig>,
    /// Where probes may go.
    pub address_policy: AddressPolicy,
    /// Where spans and metrics go.
    pub otel: Otel,
    /// A `blackbox.yml` whose modules are served at `/probe` on the HTTP side; without it there is no such path.
    pub blackbox: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    name: Option<String>,
    coordinators: Vec<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    data_dir: PathBuf,
    listen: Option<Listen>,
    tls: Option<Tls>,
    secrets_dir: Option<PathBuf>,
    #[serde(default)]
    secrets_need_allow: bool,
    #[serde(default)]
    spool: Spool,
    #[serde(default)]
    bodies: Bodies,
    #[serde(default)]
    self_check: SelfCheck,
    #[serde(default)]
    faults: Faults,
    #[serde(default)]
    proxies: Vec<Proxy>,
    #[serde(default)]
    allow_loopback: bool,
    blackbox: Option<Blackbox>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Blackbox {
    config: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listen {
    http: SocketAddr,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tls {
    dir: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spool {
    max_bytes: Option<String>,
    max_age: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Bodies {
    max_bytes: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SelfCheck {
    every: Option<String>,
    timeout: Option<String>,
    route: Option<bool>,
    resolver: Option<bool>,
    #[serde(default)]
    reach: Vec<String>,
}

impl SelfCheck {
    fn into_config(self) -> Result<SelfCheckConfig, String> {
        let default = SelfCheckConfig::default();
        let time = |text: Option<String>, name: &str, default: Duration| {
            let read = text.map(|t| units::parse_duration(&t).map(Duration::from_micros).map_err(|m| format!("selfCheck.{name}: {m}")));
            read.unwrap_or(Ok(default))
        };
        Ok(SelfCheckConfig {
            every: time(self.every, "every", default.every)?,
            timeout: time(self.timeout, "timeout", default.timeout)?,
            route: self.route.unwrap_or(default.route),
            resolver: self.resolver.unwrap_or(default.resolver),
            reach: self.reach,
        })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Faults {
    #[serde(default)]
    allow: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Proxy {
    name: String,
    listen: SocketAddr,
    upstream: String,
}

impl ProberConfig {
    /// Reads a file; the error is one or more lines for a person, each with its place where it has one. Plain text must be asked for by
    /// name (`--insecure`).
    pub fn load(path: &Path, insecure: bool) -> Result<ProberConfig, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
        let file: File = serde_saphyr::from_str(&text).map_err(|e| {
            let place = e.location().map(|l| format!("{}:{}", l.line(), l.column())).unwrap_or_else(|| "1:1".to_owned());
            format!("{}:{place}: {}", path.display(), e.without_snippet())
        })?;
        let config = file.into_config().map_err(|m| format!("{}: {m}", path.display()))?;
        let problems = config.problems(insecure);
        if problems.is_empty() {
            return Ok(config);
        }
        let lines: Vec<String> = problems.into_iter().map(|p| format!("{}: {p}", path.display())).collect();
        Err(lines.join("\n"))
    }

    /// What is wrong with it beyond its form.
    fn problems(&self, insecure: bool) -> Vec<String> {
        let mut found = Vec::new();
        if self.name.is_empty() {
            found.push("name is empty".to_owned());
        }
        if self.coordinators.is_empty() {
            found.push("coordinators is empty (want at least one host:port)".to_owned());
        }
        if self.tls.is_none() && !insecure {
            found.push("tls is not set (`probity ca token --prober NAME` lets it in; --insecure allows plain text on loopback)".to_owned());
        }
        for address in &self.coordinators {
            if self.tls.is_none() && insecure && !is_loopback(address) {
                found.push(format!("coordinators: {address:?} is not on this host (plain text is allowed on loopback only)"));
            }
        }
        if self.bodies_bytes_max < BODIES_BYTES_LEAST {
            found.push("bodies.maxBytes is below 1MiB: one body of the usual bound would not fit".to_owned());
        }
        if self.spool_age_max > SPOOL_AGE_MAX {
            found.push("spool.maxAge is above 24h: coordinators give older runs up as lost".to_owned());
        }
        let check = &self.self_check;
        if !(Duration::from_millis(100)..=Duration::from_secs(60)).contains(&check.timeout) || check.every < check.timeout {
            found.push("selfCheck: timeout must be between 100ms and 60s, and every at least as long".to_owned());
        }
        for address in &check.reach {
            if address.rsplit_once(':').is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err()) {
                found.push(format!("selfCheck.reach: {address:?} is no host:port"));
            }
        }
        if let Some(file) = &self.blackbox {
            if self.http.is_none() {
                found.push("blackbox: nothing serves it without listen.http".to_owned());
            }
            found.extend(crate::blackbox::load(file).err().map(|e| format!("blackbox.config: {e}")));
        }
        found
    }
}

impl File {
    fn into_config(self) -> Result<ProberConfig, String> {
        let spool_bytes_max = match &self.spool.max_bytes {
            Some(text) => units::parse_bytes(text).map_err(|m| format!("spool.maxBytes: {m}"))?,
            None => 256 << 20,
        };
        let bodies_bytes_max = match &self.bodies.max_bytes {
            Some(text) => units::parse_bytes(text).map_err(|m| format!("bodies.maxBytes: {m}"))?,
            None => BODIES_BYTES_MAX,
        };
        let spool_age_max = match &self.spool.max_age {
            Some(text) => units::parse_duration(text).map(Duration::from_micros).map_err(|m| format!("spool.maxAge: {m}"))?,
            None => SPOOL_AGE_MAX,
        };
        let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        Ok(ProberConfig {
            name: self.name.unwrap_or_else(host),
            coordinators: self.coordinators,
            labels: self.labels,
            data_dir: self.data_dir,
            http: self.listen.map(|l| l.http),
            tls: self.tls.map(|t| TlsFiles::new(t.dir)),
            secrets_dir: self.secrets_dir,
            secrets_need_allow: self.secrets_need_allow,
            spool_bytes_max,
            spool_age_max,
            bodies_bytes_max,
            self_check: self.self_check.into_config()?,
            faults_allow: self.faults.allow,
            proxies: self.proxies.into_iter().map(|p| ProxyConfig { name: p.name, listen: p.listen, upstream: p.upstream }).collect(),
            address_policy: if self.allow_loopback { AddressPolicy::LoopbackToo } else { AddressPolicy::Remote },
            otel: Otel::default(),
            blackbox: self.blackbox.map(|b| b.config),
        })
    }
}
