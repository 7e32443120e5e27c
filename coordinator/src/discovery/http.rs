//! Targets over HTTP, as Prometheus' http_sd asks for them.

use std::time::Duration;

use probity_proto::discovery::{Found, parse_groups};
use probity_proto::v1::HttpDiscovery;
use reqwest::{RequestBuilder, Response};

use super::{BODY_BYTES_MAX, Sources};
use crate::outside::cause;

const REDIRECTS_MAX: usize = 5;

pub(super) async fn ask(sources: &Sources, http: &HttpDiscovery, refresh: Duration) -> Result<Vec<Found>, String> {
    let client = client(sources, &http.ca_pem)?;
    let mut request = client.get(&http.url).header("accept", "application/json").header("x-prometheus-refresh-interval-seconds", refresh.as_secs());
    if !http.bearer_secret_ref.is_empty() {
        request = request.bearer_auth(sources.secret(&http.bearer_secret_ref, &http.url).await?);
    } else if !http.password_secret_ref.is_empty() {
        request = request.basic_auth(&http.username, Some(sources.secret(&http.password_secret_ref, &http.url).await?));
    }
    let body = body(sources, request).await?;
    let mut found = parse_groups(&body)?;
    for target in &mut found {
        target.insert("__meta_url".to_owned(), http.url.clone());
    }
    Ok(found)
}

/// A client with further authorities.
pub(super) fn client(sources: &Sources, ca_pem: &str) -> Result<reqwest::Client, String> {
    let mut builder = sources.policy.client(REDIRECTS_MAX);
    if !ca_pem.is_empty() {
        let certificates = reqwest::Certificate::from_pem_bundle(ca_pem.as_bytes()).map_err(|_| "ca is no PEM of certificates".to_owned())?;
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(|e| cause(&e))
}

/// The body of a good answer, within its bound.
pub(super) async fn body(sources: &Sources, request: RequestBuilder) -> Result<String, String> {
    let (client, request) = request.build_split();
    let request = request.map_err(|e| cause(&e))?;
    sources.policy.check_url(request.url())?;
    let mut response: Response = client.execute(request).await.map_err(|e| cause(&e))?;
    if !response.status().is_success() {
        return Err(format!("the server answered {}", response.status()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| cause(&e))? {
        if body.len() + chunk.len() > BODY_BYTES_MAX {
            return Err(format!("the answer has more than {} MiB", BODY_BYTES_MAX >> 20));
        }
        body.extend_from_slice(&chunk);
    }
    String::from_utf8(body).map_err(|_| "the answer is no UTF-8".to_owned())
}
