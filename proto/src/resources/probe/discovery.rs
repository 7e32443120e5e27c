//! `targets:` of a probe: a static list, or where the leader finds them.

use super::super::read::{At, Fields, Mistakes};
use super::net::resolver_server;
use super::{duration_in, http, secret_field, tls};
use crate::v1::discovery::Source;
use crate::v1::*;
use crate::{discovery, lower};

const SECOND: u64 = 1_000_000;
const REFRESH_MIN_US: u64 = 5 * SECOND;
const REFRESH_MAX_US: u64 = 24 * 3_600 * SECOND;
/// Names, files, namespaces or labels in one list.
const LIST_MAX: usize = 100;
/// How many targets a probe may have that does not say.
const MAX_DEFAULT: u64 = 1_000;
const SOURCES: [&str; 5] = ["static", "httpSD", "fileSD", "dnsSRV", "kubernetes"];

/// What `targets` holds.
#[derive(Default)]
pub(super) struct Targets {
    pub(super) fixed: Vec<Target>,
    pub(super) discovery: Option<Discovery>,
}

pub(super) fn targets(at: &At<'_>, mistakes: &mut Mistakes) -> Targets {
    let Some(mut fields) = at.fields(mistakes) else { return Targets::default() };
    let given: Vec<(&'static str, At<'_>)> = SOURCES.into_iter().filter_map(|key| Some((key, fields.get(key)?))).collect();
    if let [_, (_, second), ..] = given.as_slice() {
        mistakes.add(&second.path, second.place(), "targets come from one place", format!("keep one of {}", SOURCES.join(", ")));
    }
    let targets = match given.first() {
        None => {
            let hint = format!("want one of {}", SOURCES.join(", "));
            mistakes.add(&fields.path, fields.place(), "it is not said where targets come from", hint);
            Targets::default()
        }
        Some(("static", at)) => Targets { fixed: fixed(at, mistakes), discovery: None },
        Some((kind, at)) => Targets { fixed: Vec::new(), discovery: found(kind, at, &mut fields, mistakes) },
    };
    fields.finish(mistakes);
    targets
}

fn fixed(at: &At<'_>, mistakes: &mut Mistakes) -> Vec<Target> {
    let mut targets: Vec<Target> = Vec::new();
    for item in at.items(mistakes) {
        let Some(mut f) = item.fields(mistakes) else { continue };
        let address = f.need_text("address", mistakes);
        let key = f.text("key", mistakes).unwrap_or_else(|| address.clone());
        let labels = f.map("labels", mistakes);
        f.finish(mistakes);
        if targets.iter().any(|t| t.key == key) {
            mistakes.add(&item.path, item.place(), format!("target key {key:?} is given twice"), "each target needs its own key");
        }
        targets.push(Target { key, address, labels });
    }
    targets
}

fn found(kind: &str, at: &At<'_>, fields: &mut Fields<'_>, mistakes: &mut Mistakes) -> Option<Discovery> {
    let mut f = at.fields(mistakes)?;
    let default = if kind == "fileSD" { 10 } else { 60 } * SECOND;
    let refresh_us = duration_in(&mut f, "refresh", REFRESH_MIN_US, REFRESH_MAX_US, mistakes).unwrap_or(default);
    let source = match kind {
        "httpSD" => Source::Http(http_sd(&mut f, mistakes)),
        "fileSD" => Source::File(FileDiscovery { files: list(&mut f, "files", true, mistakes, file_name) }),
        "dnsSRV" => Source::DnsSrv(dns_srv(&mut f, mistakes)),
        _ => Source::Kubernetes(kubernetes(&mut f, mistakes)),
    };
    f.finish(mistakes);
    let key = fields.get("key").and_then(|at| {
        at.parsed(mistakes, |text| {
            let fine = |name: &String| name == "target.address" || name.strip_prefix("target.labels.").is_some_and(|l| !l.is_empty());
            match lower::references(text).iter().find(|name| !fine(name)) {
                Some(name) => Err(format!("$({name}) refers to nothing (a key is made of $(target.address) and $(target.labels.NAME))")),
                None if lower::references(text).is_empty() => Err(format!("{text:?} would be the same for every target (want for example $(target.address))")),
                None => Ok(text.to_owned()),
            }
        })
    });
    let plain_labels = !fields.has("labels");
    let labels = list(fields, "labels", false, mistakes, |text| {
        if discovery::is_label_name(text) { Ok(text.to_owned()) } else { Err(format!("{text:?} is no label name (want letters, digits and _)")) }
    });
    let max = fields.int("max", 1..=discovery::TARGETS_MAX as u64, mistakes).unwrap_or(MAX_DEFAULT) as u32;
    Some(Discovery { source: Some(source), refresh_us, key: key.unwrap_or_else(|| "$(target.address)".to_owned()), labels, plain_labels, max })
}

fn http_sd(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> HttpDiscovery {
    let url = f.need("url", mistakes).and_then(|at| at.parsed(mistakes, |text| http::url(text).map(|_| text.to_owned()))).unwrap_or_default();
    let ca_pem = tls::ca(f, mistakes);
    let mut found = HttpDiscovery { url, ca_pem, ..HttpDiscovery::default() };
    let Some(mut auth) = f.get("auth").and_then(|at| at.fields(mistakes)) else { return found };
    found.bearer_secret_ref = secret_field(&mut auth, "bearer", mistakes);
    if let Some(mut basic) = auth.get("basic").and_then(|at| at.fields(mistakes)) {
        found.username = basic.need_text("username", mistakes);
        found.password_secret_ref = secret_field(&mut basic, "password", mistakes);
        if !basic.has("password") {
            mistakes.add(&basic.path_of("password"), basic.place(), "is missing", "{secretRef: NAME}");
        }
        basic.finish(mistakes);
    }
    if auth.has("bearer") == auth.has("basic") {
        mistakes.add(&auth.path, auth.place(), "want one of bearer and basic", "");
    }
    auth.finish(mistakes);
    found
}

fn dns_srv(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> DnsSrvDiscovery {
    let names = list(f, "names", true, mistakes, |text| {
        let labels = text.trim_end_matches('.').split('.');
        let fine = text.len() <= 253
            && labels.clone().count() > 1
            && labels.clone().all(|l| !l.is_empty() && l.len() <= 63 && l.bytes().all(|b| b.is_ascii_graphic()));
        if fine { Ok(text.to_owned()) } else { Err(format!("{text:?} is no name of an SRV record (want for example _http._tcp.example.com)")) }
    });
    let servers = f.get("servers").map(|at| at.items(mistakes)).unwrap_or_default();
    let servers = servers
        .iter()
        .filter_map(|at| {
            at.parsed(mistakes, |text| {
                let server = resolver_server(text)?;
                match server.transport() {
                    ResolverTransport::Udp | ResolverTransport::Tcp => Ok(server),
                    _ => Err(format!("{text:?}: a discovery asks over udp:// or tcp:// only")),
                }
            })
        })
        .collect::<Vec<_>>();
    if servers.len() > 8 {
        mistakes.add(&f.path_of("servers"), f.place(), format!("{} servers are given", servers.len()), "want at most 8");
    }
    DnsSrvDiscovery { names, servers }
}

fn kubernetes(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> KubernetesDiscovery {
    let role = f.choice("role", &[("service", "service"), ("ingress", "ingress")], mistakes);
    if !f.has("role") {
        mistakes.add(&f.path_of("role"), f.place(), "is missing", "want service or ingress");
    }
    let namespaces = list(f, "namespaces", false, mistakes, super::super::name);
    let selector = f.text("selector", mistakes).unwrap_or_default();
    let api_server = f.get("apiServer").and_then(|at| at.parsed(mistakes, |text| http::url(text).map(|_| text.trim_end_matches('/').to_owned())));
    let token_secret_ref = secret_field(f, "token", mistakes);
    let ca_pem = tls::ca(f, mistakes);
    if api_server.is_none() && (f.has("token") || f.has("ca")) {
        mistakes.add(
            &f.path,
            f.place(),
            "token and ca are those of apiServer, which is not given",
            "leave them out inside the cluster: the service account's are used",
        );
    }
    KubernetesDiscovery {
        role: role.unwrap_or_default().to_owned(),
        namespaces,
        selector,
        api_server: api_server.unwrap_or_default(),
        token_secret_ref,
        ca_pem,
    }
}

fn list(f: &mut Fields<'_>, key: &'static str, needed: bool, mistakes: &mut Mistakes, parse: impl Fn(&str) -> Result<String, String>) -> Vec<String> {
    let at = if needed { f.need(key, mistakes) } else { f.get(key) };
    let Some(at) = at else { return Vec::new() };
    let items = at.items(mistakes);
    if at.is_sequence() && (items.is_empty() && needed || items.len() > LIST_MAX) {
        mistakes.add(&at.path, at.place(), format!("{} are given", items.len()), format!("want {} to {LIST_MAX}", usize::from(needed)));
    }
    items.iter().filter_map(|item| item.parsed(mistakes, &parse)).collect()
}

/// A file of the coordinators' targetsDir: a name, never a path.
fn file_name(text: &str) -> Result<String, String> {
    let fine = !text.starts_with('.') && !text.is_empty() && text.len() <= 255 && !text.contains(['/', '\\', '\0']);
    let known = [".json", ".yml", ".yaml"].iter().any(|ending| text.ends_with(ending));
    match (fine, known) {
        (false, _) => Err(format!("{text:?} is no name of a file (want one of the coordinators' targetsDir, without a path; * stands for any text)")),
        (_, false) => Err(format!("{text:?} ends in neither .json nor .yml nor .yaml")),
        _ => Ok(text.to_owned()),
    }
}

/// References of a probe to labels that its discovery does not keep.
pub(super) fn dropped_labels(spec: &ProbeSpec, at: &At<'_>, mistakes: &mut Mistakes) {
    let Some(discovery) = &spec.discovery else { return };
    let kept = |name: &str| if discovery.plain_labels { !name.starts_with("__") } else { discovery.labels.iter().any(|l| l == name) };
    let names = match lower::target_labels(spec) {
        Ok(names) => names,
        Err(message) => {
            let hint = if message.ends_with("refers to nothing") { "a target has address, key and labels" } else { "" };
            return mistakes.add(&at.path, at.place(), message, hint);
        }
    };
    for name in names {
        if !kept(&name) {
            let hint = if discovery.plain_labels {
                "name it in labels: those that begin with __ are dropped else".to_owned()
            } else {
                format!("kept: {}", discovery.labels.join(", "))
            };
            mistakes.add(&at.path, at.place(), format!("$(target.labels.{name}) refers to a label that is not kept"), hint);
        }
    }
}
