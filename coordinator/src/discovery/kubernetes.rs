//! Targets from a Kubernetes API server, by plain list calls: Services (each port) and Ingresses (each host and path).
//!
//! The `__meta_kubernetes_*` labels are those of Prometheus' kubernetes_sd, as far as the list says them. No watch is kept: a list per
//! refresh costs the server little, and needs no more rights than `list`.

use probity_proto::discovery::{ADDRESS, Found, TARGETS_MAX};
use probity_proto::v1::KubernetesDiscovery;
use serde_json::Value;

use super::Sources;
use super::http::{body, client};

/// Where a pod finds its account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Objects of one page, and pages of one list.
const PAGE: usize = 500;
const PAGES_MAX: usize = 100;
/// Labels and annotations of one object that are taken.
const LABELS_MAX: usize = 100;
/// A longer annotation is a document, and nothing to choose by.
const VALUE_BYTES_MAX: usize = 1_024;

pub(super) async fn ask(sources: &Sources, kubernetes: &KubernetesDiscovery) -> Result<Vec<Found>, String> {
    let (server, token, ca_pem) = account(sources, kubernetes).await?;
    let client = client(sources, &ca_pem)?;
    let (group, plural) = if kubernetes.role == "service" { ("api/v1", "services") } else { ("apis/networking.k8s.io/v1", "ingresses") };
    let paths: Vec<String> = match kubernetes.namespaces.as_slice() {
        [] => vec![format!("{group}/{plural}")],
        some => some.iter().map(|n| format!("{group}/namespaces/{n}/{plural}")).collect(),
    };
    let mut found = Vec::new();
    for path in paths {
        let mut next = String::new();
        for page in 0.. {
            if page == PAGES_MAX {
                return Err(format!("{path}: more than {PAGES_MAX} pages"));
            }
            let mut url = reqwest::Url::parse(&format!("{server}/{path}?limit={PAGE}")).map_err(|e| format!("{server}: {e}"))?;
            for (name, value) in [("labelSelector", &kubernetes.selector), ("continue", &next)].into_iter().filter(|(_, v)| !v.is_empty()) {
                url.query_pairs_mut().append_pair(name, value);
            }
            let request = client.get(url).bearer_auth(&token);
            let text = body(sources, request).await.map_err(|e| format!("{path}: {e}"))?;
            let list: Value = serde_json::from_str(&text).map_err(|e| format!("{path}: no JSON: {e}"))?;
            let items = list["items"].as_array().ok_or_else(|| format!("{path}: no list of objects"))?;
            for item in items {
                let targets = if kubernetes.role == "service" { service(item) } else { ingress(item) };
                found.extend(targets);
            }
            if found.len() > TARGETS_MAX {
                return Err(format!("more than {TARGETS_MAX} targets"));
            }
            next = list["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
            if next.is_empty() {
                break;
            }
        }
    }
    Ok(found)
}

/// Server, token and authorities: those that are given, or the pod's own.
async fn account(sources: &Sources, kubernetes: &KubernetesDiscovery) -> Result<(String, String, String), String> {
    if !kubernetes.api_server.is_empty() {
        let token = match kubernetes.token_secret_ref.as_str() {
            "" => String::new(),
            name => sources.secret(name, &kubernetes.api_server).await?,
        };
        return Ok((kubernetes.api_server.clone(), token, kubernetes.ca_pem.clone()));
    }
    let var = |name: &str| std::env::var(name).map_err(|_| "this coordinator runs in no Kubernetes cluster (apiServer names one)".to_owned());
    let (host, port) = (var("KUBERNETES_SERVICE_HOST")?, var("KUBERNETES_SERVICE_PORT")?);
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    // The token is renewed under us: it is read each time.
    let read =
        async |name: &str| tokio::fs::read_to_string(format!("{ACCOUNT}/{name}")).await.map_err(|e| format!("{ACCOUNT}/{name} cannot be read: {}", e.kind()));
    Ok((format!("https://{host}:{port}"), read("token").await?.trim().to_owned(), read("ca.crt").await?))
}

fn text<'v>(value: &'v Value, path: &str) -> &'v str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

/// What every object says of itself.
fn about(item: &Value, kind: &str) -> Found {
    let mut labels = Found::from([
        ("__meta_kubernetes_namespace".to_owned(), text(item, "/metadata/namespace").to_owned()),
        (format!("__meta_kubernetes_{kind}_name"), text(item, "/metadata/name").to_owned()),
    ]);
    for (field, word) in [("labels", "label"), ("annotations", "annotation")] {
        let entries = item["metadata"][field].as_object().into_iter().flatten();
        for (name, value) in entries.filter_map(|(n, v)| Some((n, v.as_str()?))).filter(|(_, v)| v.len() <= VALUE_BYTES_MAX).take(LABELS_MAX) {
            let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
            labels.insert(format!("__meta_kubernetes_{kind}_{word}_{name}"), value.to_owned());
        }
    }
    labels
}

fn service(item: &Value) -> Vec<Found> {
    let mut common = about(item, "service");
    let kind = text(item, "/spec/type");
    common.insert("__meta_kubernetes_service_type".to_owned(), kind.to_owned());
    let more = if kind == "ExternalName" { ("external_name", "/spec/externalName") } else { ("cluster_ip", "/spec/clusterIP") };
    common.insert(format!("__meta_kubernetes_service_{}", more.0), text(item, more.1).to_owned());
    let host = format!("{}.{}.svc", text(item, "/metadata/name"), text(item, "/metadata/namespace"));
    let port = |port: &Value| {
        let number = port["port"].as_u64()?;
        let mut target = common.clone();
        target.insert(ADDRESS.to_owned(), format!("{host}:{number}"));
        target.insert("__meta_kubernetes_service_port_number".to_owned(), number.to_string());
        target.insert("__meta_kubernetes_service_port_name".to_owned(), text(port, "/name").to_owned());
        target.insert("__meta_kubernetes_service_port_protocol".to_owned(), text(port, "/protocol").to_owned());
        Some(target)
    };
    item["spec"]["ports"].as_array().into_iter().flatten().filter_map(port).collect()
}

fn ingress(item: &Value) -> Vec<Found> {
    let mut common = about(item, "ingress");
    common.insert("__meta_kubernetes_ingress_class_name".to_owned(), text(item, "/spec/ingressClassName").to_owned());
    let secure: Vec<&str> =
        item["spec"]["tls"].as_array().into_iter().flatten().flat_map(|t| t["hosts"].as_array().into_iter().flatten()).filter_map(Value::as_str).collect();
    let mut found = Vec::new();
    for rule in item["spec"]["rules"].as_array().into_iter().flatten() {
        let host = text(rule, "/host");
        if host.is_empty() || host.starts_with('*') {
            // Nobody could say where to ask.
            continue;
        }
        let scheme = if secure.iter().any(|s| covers(s, host)) { "https" } else { "http" };
        let paths: Vec<&str> = rule["http"]["paths"].as_array().into_iter().flatten().map(|p| text(p, "/path")).collect();
        for path in if paths.is_empty() { vec!["/"] } else { paths } {
            let mut target = common.clone();
            let path = if path.is_empty() { "/" } else { path };
            for (name, value) in [
                (ADDRESS, host),
                ("__meta_kubernetes_ingress_host", host),
                ("__meta_kubernetes_ingress_scheme", scheme),
                ("__meta_kubernetes_ingress_path", path),
            ] {
                target.insert(name.to_owned(), value.to_owned());
            }
            found.push(target);
        }
    }
    found
}

/// Whether a host of an Ingress' TLS section covers a host: a wildcard stands for one label.
fn covers(pattern: &str, host: &str) -> bool {
    pattern == host || pattern.strip_prefix("*.").is_some_and(|zone| host.split_once('.').is_some_and(|(first, rest)| !first.is_empty() && rest == zone))
}

/// For tests/fuzz.
#[cfg(feature = "fuzz")]
pub(super) fn fuzz(bytes: &[u8]) {
    let Ok(list) = serde_json::from_slice::<Value>(bytes) else { return };
    for item in list["items"].as_array().into_iter().flatten() {
        let _ = (service(item), ingress(item));
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::Json;
    use axum::extract::{Query, State};
    use axum::http::{HeaderMap, StatusCode, Uri};
    use probity_proto::v1::KubernetesDiscovery;
    use serde_json::json;

    use super::*;
    use crate::outside::Policy;

    type Asked = std::sync::Arc<std::sync::Mutex<Vec<String>>>;

    /// As an API server answers `list`: pages, selectors, bearer tokens.
    async fn api(
        State(asked): State<Asked>,
        uri: Uri,
        headers: HeaderMap,
        Query(query): Query<std::collections::BTreeMap<String, String>>,
    ) -> (StatusCode, Json<Value>) {
        asked.lock().expect("not poisoned").push(uri.to_string());
        if headers.get("authorization").is_none_or(|v| v != "Bearer t0ken") {
            return (StatusCode::UNAUTHORIZED, Json(json!({"kind": "Status", "code": 401})));
        }
        let port = |name: &str, port: u16| json!({"name": name, "port": port, "protocol": "TCP"});
        let service = |name: &str, ports: Value| {
            json!({"metadata": {"name": name, "namespace": "shop", "labels": {"app.kubernetes.io/name": name}, "annotations": {"probity/team": "payments"}},
                   "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.1", "ports": ports}})
        };
        let list = match (uri.path(), query.get("continue").map(String::as_str)) {
            ("/api/v1/namespaces/shop/services", None) => {
                json!({"metadata": {"continue": "page2"}, "items": [service("checkout", json!([port("http", 80), port("https", 443)]))]})
            }
            ("/api/v1/namespaces/shop/services", Some("page2")) => {
                json!({"metadata": {}, "items": [service("headless", json!(null)), service("cart", json!([port("", 8080)]))]})
            }
            ("/apis/networking.k8s.io/v1/ingresses", None) => json!({"metadata": {}, "items": [{
                "metadata": {"name": "web", "namespace": "shop"},
                "spec": {"ingressClassName": "nginx", "tls": [{"hosts": ["*.shop.test"]}], "rules": [
                    {"host": "www.shop.test", "http": {"paths": [{"path": "/"}, {"path": "/api"}]}},
                    {"host": "plain.test"}, {"host": "*.any.test"}, {"http": {}}]}}]}),
            _ => return (StatusCode::FORBIDDEN, Json(json!({"kind": "Status", "code": 403}))),
        };
        (StatusCode::OK, Json(list))
    }

    async fn server() -> (SocketAddr, Asked) {
        let asked = Asked::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let app = axum::Router::new().fallback(api).with_state(asked.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        (address, asked)
    }

    async fn ask_for(role: &str, namespaces: &[&str], token: &str) -> (Result<Vec<Found>, String>, Vec<String>) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (address, asked) = server().await;
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("k8s"), format!("{token}\n")).expect("a secret");
        let sources = Sources::new(crate::secrets::Secrets::new(Some(dir.path().to_owned()), Default::default(), false), None, Policy { allow_loopback: true });
        let kubernetes = KubernetesDiscovery {
            role: role.to_owned(),
            namespaces: namespaces.iter().map(|n| (*n).to_owned()).collect(),
            selector: "tier!=test".to_owned(),
            api_server: format!("http://{address}"),
            token_secret_ref: "k8s".to_owned(),
            ca_pem: String::new(),
        };
        let found = ask(&sources, &kubernetes).await;
        (found, asked.lock().expect("not poisoned").clone())
    }

    #[tokio::test]
    async fn services_come_page_by_page_with_their_labels() {
        let (found, asked) = ask_for("service", &["shop"], "t0ken").await;
        let found = found.expect("services");
        assert_eq!(found.iter().map(|f| f[ADDRESS].as_str()).collect::<Vec<_>>(), ["checkout.shop.svc:80", "checkout.shop.svc:443", "cart.shop.svc:8080"]);
        let first = &found[0];
        for (name, value) in [
            ("__meta_kubernetes_namespace", "shop"),
            ("__meta_kubernetes_service_name", "checkout"),
            ("__meta_kubernetes_service_label_app_kubernetes_io_name", "checkout"),
            ("__meta_kubernetes_service_annotation_probity_team", "payments"),
            ("__meta_kubernetes_service_port_name", "http"),
            ("__meta_kubernetes_service_type", "ClusterIP"),
        ] {
            assert_eq!(first.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert_eq!(
            asked,
            [
                "/api/v1/namespaces/shop/services?limit=500&labelSelector=tier%21%3Dtest",
                "/api/v1/namespaces/shop/services?limit=500&labelSelector=tier%21%3Dtest&continue=page2"
            ]
        );
    }

    #[tokio::test]
    async fn ingresses_by_host_and_path() {
        let found = ask_for("ingress", &[], "t0ken").await.0.expect("ingresses");
        let of = |f: &Found| format!("{}://{}{}", f["__meta_kubernetes_ingress_scheme"], f[ADDRESS], f["__meta_kubernetes_ingress_path"]);
        assert_eq!(found.iter().map(of).collect::<Vec<_>>(), ["https://www.shop.test/", "https://www.shop.test/api", "http://plain.test/"]);
    }

    #[tokio::test]
    async fn a_refusal_is_told() {
        assert_eq!(ask_for("service", &["shop"], "wrong").await.0, Err("api/v1/namespaces/shop/services: the server answered 401 Unauthorized".to_owned()));
        assert_eq!(ask_for("service", &["other"], "t0ken").await.0, Err("api/v1/namespaces/other/services: the server answered 403 Forbidden".to_owned()));
    }
}
