//! The demo of `up --demo`: the shop behind a fault proxy, a pager that prints, and the resources of `scenarios/demo.yaml`.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use probity_chaos::ProxyConfig;
use probity_rpc::v1::SourceFile;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::shop::Shop;
use crate::Fail;
use crate::output::{cell, paint, print_lines};

const RESOURCES: &str = include_str!("../../scenarios/demo.yaml");
/// Name of the fault proxy, in `scenarios/demo.yaml`.
const PROXY: &str = "shop-http";
/// A page is small.
const PAGE_BYTES_MAX: usize = 1 << 20;

/// Ports on loopback, none given out twice.
#[derive(Default)]
pub(super) struct Ports(BTreeSet<u16>);

impl Ports {
    /// The first free one from `wanted` on, for TCP and UDP; says so when it is another one.
    pub(super) fn free(&mut self, what: &str, wanted: u16) -> Result<SocketAddr, Fail> {
        let at = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let last = wanted.saturating_add(99);
        let free = |port: &u16| !self.0.contains(port) && TcpListener::bind(at(*port)).is_ok() && UdpSocket::bind(at(*port)).is_ok();
        let Some(port) = (wanted..=last).find(free) else { return Err(Fail::no(format!("no free port for the {what} from {wanted} to {last}"))) };
        if port != wanted {
            println!("  port {wanted} is taken: the {what} is on {port}");
        }
        self.0.insert(port);
        Ok(at(port))
    }
}

/// Where everything of the demo listens.
pub(super) struct Demo {
    proxy: SocketAddr,
    http: SocketAddr,
    tcp: SocketAddr,
    dns: SocketAddr,
    pager: SocketAddr,
}

impl Demo {
    pub(super) fn new(ports: &mut Ports) -> Result<Demo, Fail> {
        Ok(Demo {
            proxy: ports.free("shop (through the fault proxy)", 18_080)?,
            http: ports.free("shop's HTTP service", 18_070)?,
            tcp: ports.free("shop's TCP service", 18_081)?,
            dns: ports.free("shop's DNS service", 18_053)?,
            pager: ports.free("pager", 18_090)?,
        })
    }

    /// What the prober runs through which the shop is reached.
    pub(super) fn proxy(&self) -> ProxyConfig {
        ProxyConfig { name: PROXY.to_owned(), listen: self.proxy, upstream: self.http.to_string() }
    }

    /// The embedded resources, with the ports that were free.
    pub(super) fn resources(&self, web: SocketAddr) -> SourceFile {
        let addresses = [(18_080, self.proxy), (18_081, self.tcp), (18_053, self.dns), (18_090, self.pager), (7_600, web)];
        let text = addresses.iter().fold(RESOURCES.to_owned(), |text, (port, address)| text.replace(&format!("127.0.0.1:{port}"), &address.to_string()));
        SourceFile { name: "scenarios/demo.yaml".to_owned(), text }
    }

    /// Opens the shop and the pager; they serve until `stop`.
    pub(super) async fn start(&self, tasks: &TaskTracker, stop: &CancellationToken) -> Result<(), Fail> {
        let shop = Shop::bind(self.http, self.tcp, self.dns).await?;
        let listener = tokio::net::TcpListener::bind(self.pager).await;
        let listener = listener.map_err(|e| Fail::no(format!("cannot listen on {} for the pager: {e}", self.pager)))?;
        tasks.spawn(shop.serve(stop.clone()));
        tasks.spawn(pager(listener, stop.clone()));
        Ok(())
    }
}

/// A webhook that prints what it is told.
async fn pager(listener: tokio::net::TcpListener, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else { continue };
        let stop = stop.clone();
        tasks.spawn(async move {
            tokio::select! {
                _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(take_page)) => {}
                () = stop.cancelled() => {}
            }
        });
    }
    tasks.close();
    tasks.wait().await;
}

async fn take_page(request: hyper::Request<hyper::body::Incoming>) -> Result<hyper::Response<Empty<Bytes>>, hyper::http::Error> {
    let body = Limited::new(request.into_body(), PAGE_BYTES_MAX).collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let known = serde_json::from_slice::<Value>(&body).is_ok_and(|event| page(&event));
    hyper::Response::builder().status(if known { 200 } else { 400 }).body(Empty::new())
}

/// Prints a CloudEvent of an alert; false when it is none.
fn page(event: &Value) -> bool {
    let Some(status) = event["data"]["status"].as_str() else { return false };
    let summary = cell(event, "data.annotations.summary");
    let at = cell(event, "time");
    let clock = at.split('T').nth(1).and_then(|t| t.get(..8)).unwrap_or("").to_owned();
    print_lines(&[format!("pager {clock}  {}  {}  {summary}", paint(&status.to_uppercase()), cell(event, "subject"))]);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demos_resources_are_right_and_follow_the_ports() {
        let at = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let demo = Demo { proxy: at(1), http: at(2), tcp: at(3), dns: at(4), pager: at(5) };
        let file = demo.resources(at(6));
        assert!(!file.text.contains(":18") && !file.text.contains(":7600"), "{}", file.text);
        let parsed = probity_proto::resources::parse(&[probity_proto::resources::SourceFile { name: file.name, text: file.text }], "default");
        assert!(parsed.problems.is_empty(), "{:?}", parsed.problems);
        assert_eq!(parsed.resources.len(), 11);
    }
}
