//! A coordinator's configuration: `coordinator.yaml`, or made by `up`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::openid::{OpenIdConfig, OpenIdFile};
use probity_otel::Otel;
use probity_proto::units;
use probity_rpc::tls::{TlsFiles, is_loopback};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Everything a coordinator needs to know.
#[derive(Debug, Clone)]
pub struct CoordinatorConfig {
    /// Name of the cluster, for people.
    pub cluster: String,
    /// Name of this member.
    pub name: String,
    /// Log and state.
    pub data_dir: PathBuf,
    /// Web page, read API, metrics.
    pub http: SocketAddr,
    /// Probers, members, operators.
    pub grpc: SocketAddr,
    /// host:port by which others reach `grpc`; empty: its address.
    pub advertise: String,
    /// Names and addresses of the first members; used when the cluster is formed, and to find each other.
    pub initial_members: BTreeMap<String, String>,
    /// Mutual TLS; without it plain text, on loopback only.
    pub tls: Option<TlsFiles>,
    /// Where secrets are.
    pub secrets_dir: Option<PathBuf>,
    /// A secret without `NAME.allow` beside it is for no resource.
    pub secrets_need_allow: bool,
    /// Files that probes may discover targets in.
    pub targets_dir: Option<PathBuf>,
    /// Dead man's switches.
    pub heartbeats: Vec<HeartbeatConfig>,
    /// Names that the HTTP side is called by, besides `advertise`'s and addresses.
    pub http_names: Vec<String>,
    /// An identity provider whose people may read over HTTP.
    pub openid: Option<OpenIdConfig>,
    /// Form a cluster of one when there is none: for `up`.
    pub auto_init: bool,
    /// What coordinators call may be on this host: for `up`.
    pub allow_loopback: bool,
    /// How long probers collect steady rows.
    pub flush: Duration,
    /// Share of good runs that are traced, in parts per million.
    pub trace_ppm: u32,
    /// Where spans and metrics go.
    pub otel: Otel,
}

/// A dead man's switch: a URL that is called while those can be told for whom it stands.
#[derive(Debug, Clone, Default)]
pub struct HeartbeatConfig {
    /// A secret that holds the URL.
    pub url_secret_ref: String,
    /// How often.
    pub every: Duration,
    /// Whose receivers it stands for; empty: the cluster's.
    pub namespace: String,
    /// The one receiver of `namespace` that it stands for; empty: all of them.
    pub receiver: String,
}

impl HeartbeatConfig {
    /// For a log.
    pub(crate) fn stands_for(&self) -> String {
        match (self.namespace.as_str(), self.receiver.as_str()) {
            ("", _) => "cluster".to_owned(),
            (namespace, "") => namespace.to_owned(),
            (namespace, receiver) => format!("{namespace}/{receiver}"),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    cluster: String,
    name: String,
    data_dir: PathBuf,
    listen: Listen,
    advertise: Option<String>,
    #[serde(default)]
    initial_members: BTreeMap<String, String>,
    tls: Option<Tls>,
    secrets_dir: Option<PathBuf>,
    #[serde(default)]
    secrets_need_allow: bool,
    targets_dir: Option<PathBuf>,
    #[serde(default)]
    heartbeat: Heartbeats,
    #[serde(default)]
    http_names: Vec<String>,
    openid: Option<OpenIdFile>,
    #[serde(default)]
    allow_loopback: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listen {
    http: SocketAddr,
    grpc: SocketAddr,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tls {
    dir: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Heartbeat {
    url: SecretUrl,
    every: Option<String>,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    receiver: String,
}

impl Heartbeat {
    fn checked(&self, problems: &mut Vec<String>) -> HeartbeatConfig {
        let every = match self.every.as_deref().map_or(Ok(60_000_000), units::parse_duration) {
            Ok(every) if every >= 1_000_000 => every,
            Ok(_) => {
                problems.push(format!("heartbeat.every: {:?} is too often (want 1s or more)", self.every.as_deref().unwrap_or_default()));
                1_000_000
            }
            Err(m) => {
                problems.push(format!("heartbeat.every: {m}"));
                1_000_000
            }
        };
        if self.namespace.is_empty() && !self.receiver.is_empty() {
            problems.push(format!("heartbeat.receiver: {:?} is of no namespace (set namespace beside it)", self.receiver));
        }
        HeartbeatConfig {
            url_secret_ref: self.url.secret_ref.clone(),
            every: Duration::from_micros(every),
            namespace: self.namespace.clone(),
            receiver: self.receiver.clone(),
        }
    }
}

/// One, or a list.
#[derive(Debug, Default)]
struct Heartbeats(Vec<Heartbeat>);

impl<'de> Deserialize<'de> for Heartbeats {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMore;
        impl<'de> Visitor<'de> for OneOrMore {
            type Value = Heartbeats;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("{url: {secretRef: NAME}, every: 60s}, or a list of such")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Heartbeats, A::Error> {
                Heartbeat::deserialize(MapAccessDeserializer::new(map)).map(|one| Heartbeats(vec![one]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Heartbeats, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(Heartbeats)
            }
        }
        deserializer.deserialize_any(OneOrMore)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SecretUrl {
    secret_ref: String,
}

impl CoordinatorConfig {
    /// Reads a file; the error is one or more lines for a person. Plain text must be asked for by name (`--insecure`).
    pub fn load(path: &Path, insecure: bool) -> Result<CoordinatorConfig, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
        let file: File = serde_saphyr::from_str(&text).map_err(|e| {
            let place = e.location().map(|l| format!("{}:{}", l.line(), l.column())).unwrap_or_else(|| "1:1".to_owned());
            format!("{}:{place}: {}", path.display(), e.without_snippet())
        })?;
        let mut problems = Vec::new();
        let heartbeats = file.heartbeat.0.iter().map(|h| h.checked(&mut problems)).collect();
        let openid = file.openid.map(|o| o.checked(&mut problems));
        let advertise = file.advertise.unwrap_or_else(|| file.listen.grpc.to_string());
        let config = CoordinatorConfig {
            cluster: file.cluster,
            name: file.name,
            data_dir: file.data_dir,
            http: file.listen.http,
            grpc: file.listen.grpc,
            advertise,
            initial_members: file.initial_members,
            tls: file.tls.map(|t| TlsFiles::new(t.dir)),
            secrets_dir: file.secrets_dir,
            secrets_need_allow: file.secrets_need_allow,
            targets_dir: file.targets_dir,
            heartbeats,
            http_names: file.http_names,
            openid,
            auto_init: false,
            allow_loopback: file.allow_loopback,
            flush: Duration::from_secs(10),
            trace_ppm: probity_core::desired::TRACE_PPM,
            otel: Otel::default(),
        };
        problems.extend(config.problems(insecure));
        if problems.is_empty() {
            return Ok(config);
        }
        Err(problems.into_iter().map(|p| format!("{}: {p}", path.display())).collect::<Vec<_>>().join("\n"))
    }

    fn problems(&self, insecure: bool) -> Vec<String> {
        let mut found = Vec::new();
        if self.tls.is_none() {
            let open: Vec<&str> = self.initial_members.values().map(String::as_str).chain([self.advertise.as_str()]).filter(|a| !is_loopback(a)).collect();
            if !insecure {
                found.push("tls is not set (`probity ca init` writes the files; --insecure allows plain text on loopback)".to_owned());
            } else {
                let listens = [("listen.grpc", self.grpc), ("listen.http", self.http)].into_iter().filter(|(_, a)| !a.ip().is_loopback());
                let far: Vec<String> = listens.map(|(key, a)| format!("{key} {a}")).chain(open.iter().map(|a| format!("{a:?}"))).collect();
                if !far.is_empty() {
                    found.push(format!("plain text is allowed on loopback only, and these are not: {}", far.join(", ")));
                }
            }
        }
        match self.initial_members.get(&self.name) {
            Some(own) if own != &self.advertise => {
                found.push(format!("initialMembers: {} is {own:?}, but advertise is {:?} (they must be the same)", self.name, self.advertise));
            }
            None if !self.initial_members.is_empty() => {
                let names: Vec<&str> = self.initial_members.keys().map(String::as_str).collect();
                found.push(format!("initialMembers: this member, {:?}, is not among {}", self.name, names.join(", ")));
            }
            _ => {}
        }
        if self.initial_members.len() > 1 && self.initial_members.len().is_multiple_of(2) {
            let n = self.initial_members.len();
            found.push(format!("initialMembers: {n} members survive the loss of no more than {} do (want 1, 3 or 5)", n - 1));
        }
        found
    }
}
