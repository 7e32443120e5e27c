//! `blackbox.yml`: the configuration of prometheus/blackbox_exporter, read as it is (its CONFIGURATION.md).
//!
//! Every option is known by name. What cannot be done here is refused with its place, never ignored, and so is what is unknown. What it
//! means for a run is the prober's business; here are only its form and its defaults.

mod http;
mod net;
mod regexp;
mod values;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::read::{At, Fields, Mistakes};
use super::{Problem, SourceFile, tree};

pub use http::{Authorization, HeaderMatch, Http, OAuth2};
pub use net::{Dns, Grpc, Icmp, QueryResponse, Section, Tcp};
pub use regexp::from_go;
pub use values::{Ip, Secret, Tls};

/// Modules of one file: more is refused.
const MODULES_MAX: usize = 10_000;
/// Keys whose values are nobody's business, wherever they stand.
const SECRET_KEYS: [&str; 8] = ["password", "bearer_token", "credentials", "client_secret", "key", "secrets", "proxy_connect_header", "proxy_url"];

/// A file that was read without a problem.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// By name.
    pub modules: BTreeMap<String, Module>,
}

/// One module.
#[derive(Debug, Clone)]
pub struct Module {
    /// 0 = as long as the scrape may take.
    pub timeout_us: u64,
    /// What it does.
    pub prober: Prober,
    /// As it is written, its secrets hidden.
    pub shown: Arc<Value>,
}

/// What a module does, with its options.
#[derive(Debug, Clone)]
pub enum Prober {
    /// `http`
    Http(Box<Http>),
    /// `tcp`
    Tcp(Box<Tcp>),
    /// `dns`
    Dns(Box<Dns>),
    /// `icmp`
    Icmp(Icmp),
    /// `grpc`
    Grpc(Grpc),
}

impl Prober {
    /// As `prober:` names it.
    pub fn word(&self) -> &'static str {
        match self {
            Prober::Http(_) => "http",
            Prober::Tcp(_) => "tcp",
            Prober::Dns(_) => "dns",
            Prober::Icmp(_) => "icmp",
            Prober::Grpc(_) => "grpc",
        }
    }
}

/// Reads a file; everything that is wrong with it at once.
pub fn parse(file: &SourceFile) -> Result<Config, Vec<Problem>> {
    let problem =
        |(line, column): (u32, u32), path: String, message: String, hint: String| Problem { file: file.name.clone(), line, column, path, message, hint };
    let documents =
        tree::parse(&file.text).map_err(|b| vec![problem((b.line, b.column), String::new(), format!("no valid YAML: {}", b.message), String::new())])?;
    let mut config = Config::default();
    let mut mistakes = Mistakes::default();
    if let [_, second, ..] = documents.as_slice() {
        mistakes.add("", (second.line, second.column), "a second document", "blackbox.yml has one");
    }
    let Some(top) = documents.first() else { return Ok(config) };
    if let Some(mut fields) = (At { path: String::new(), node: top }).fields(&mut mistakes) {
        let modules = fields.get("modules").map(|_| fields.children("modules")).unwrap_or_default();
        if modules.len() > MODULES_MAX {
            mistakes.add("modules", top.place_of("modules"), format!("{} modules", modules.len()), format!("want at most {MODULES_MAX}"));
        }
        for (name, at) in modules.into_iter().take(MODULES_MAX) {
            if let Some(module) = at.fields(&mut mistakes).and_then(|f| module(f, hidden(&at.node.json()), &mut mistakes)) {
                config.modules.insert(name, module);
            }
        }
        fields.finish(&mut mistakes);
    }
    if mistakes.0.is_empty() {
        return Ok(config);
    }
    Err(mistakes.0.into_iter().map(|m| problem((m.line, m.column), m.path, m.message, m.hint)).collect())
}

fn module(mut f: Fields<'_>, shown: Value, mistakes: &mut Mistakes) -> Option<Module> {
    let words = [("http", "http"), ("tcp", "tcp"), ("dns", "dns"), ("icmp", "icmp"), ("grpc", "grpc")];
    let word = match f.has("prober") {
        true => f.choice("prober", &words, mistakes),
        false => {
            f.need("prober", mistakes);
            None
        }
    };
    let timeout_us = f.duration("timeout", mistakes).unwrap_or(0);
    // A section of another kind is read as strictly, and not used: so blackbox does it.
    let http = section(&mut f, "http", word, mistakes, http::http);
    let tcp = section(&mut f, "tcp", word, mistakes, net::tcp);
    let dns = section(&mut f, "dns", word, mistakes, net::dns);
    let icmp = section(&mut f, "icmp", word, mistakes, net::icmp);
    let grpc = section(&mut f, "grpc", word, mistakes, net::grpc);
    if word == Some("dns") && dns.is_none() {
        mistakes.add(&f.path_of("dns.query_name"), f.place(), "is missing", "");
    }
    f.finish(mistakes);
    let prober = match word? {
        "http" => Prober::Http(Box::new(http.unwrap_or_default())),
        "tcp" => Prober::Tcp(Box::new(tcp.unwrap_or_default())),
        "dns" => Prober::Dns(Box::new(dns?)),
        "icmp" => Prober::Icmp(icmp.unwrap_or_default()),
        _ => Prober::Grpc(grpc.unwrap_or_default()),
    };
    Some(Module { timeout_us, prober, shown: Arc::new(shown) })
}

fn section<T>(
    f: &mut Fields<'_>,
    key: &'static str,
    used: Option<&str>,
    mistakes: &mut Mistakes,
    read: fn(&mut Fields<'_>, bool, &mut Mistakes) -> T,
) -> Option<T> {
    let mut fields = f.get(key)?.fields(mistakes)?;
    let section = read(&mut fields, used == Some(key), mistakes);
    fields.finish(mistakes);
    Some(section)
}

/// The same without what is secret.
fn hidden(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| {
                let secret = SECRET_KEYS.contains(&key.as_str()) || key.eq_ignore_ascii_case("authorization");
                (key.clone(), if secret { Value::from("<secret>") } else { hidden(value) })
            })
            .collect::<serde_json::Map<_, _>>()
            .into(),
        Value::Array(items) => items.iter().map(hidden).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests;
