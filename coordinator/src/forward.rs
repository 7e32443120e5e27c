//! A follower hands on what only the leader can do: the request itself, unread, and who sent it.
//!
//! Nothing is judged here but who may call: resources are judged by the leader, against its state. The request id goes with the request, so a
//! client that asks again, here or elsewhere, changes nothing twice. One hop only: what was handed on is not handed on again. The leader takes
//! the word of a coordinator for who asked, and of nobody else, and looks at that certificate's revocation itself (see `gate`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use probity_rpc::access::Grant;
use probity_rpc::client::{broken, cause, channel};
use probity_rpc::refusal::{LEADER_KEY, Refusal};
use probity_rpc::tls::{Certified, Stamp, TlsFiles};
use probity_rpc::v1::operator_client::OperatorClient;
use probity_rpc::v1::{HaltReply, HaltRequest, OnBehalfOf, ShownCertificate};
use prost::Message;
use tokio::sync::Semaphore;
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tower::ServiceExt;

use crate::listen::Link;
use crate::node::Node;

/// The header that says for whom a request is; gRPC's rule for bytes: base64, and a name that ends so.
pub(crate) const ON_BEHALF_OF: &str = "probity-on-behalf-of-bin";
/// The leader's answer is waited for so long: a commit, and a call to another member before it.
const ANSWER: Duration = Duration::from_secs(15);
/// Channels that are kept: those to the leaders of late.
const CHANNELS_MAX: usize = 8;

/// Requests under way of those who showed no certificate (they enrol): whoever keeps them open keeps nobody out whom we know.
const STRANGERS_MAX: usize = 32;

/// Who sent a request, for the leader.
fn described(link: &Link) -> OnBehalfOf {
    let certificate = link.certified.as_ref().map(|c| ShownCertificate {
        name: c.name.clone(),
        grants: c.grants.iter().map(ToString::to_string).collect(),
        hosts: c.hosts.clone(),
        serial: c.serial.clone(),
        issuer_serials: c.issuer_serials.clone(),
        not_before_s: c.not_before_s,
        not_after_s: c.not_after_s,
        lifetime_s: c.lifetime_s,
    });
    OnBehalfOf { origin: link.address.to_string(), certificate }
}

/// Who sent a request, as a coordinator says; the error is for a log.
pub(crate) fn read(header: &[u8]) -> Result<Link, String> {
    let bytes = STANDARD_NO_PAD.decode(header).or_else(|_| STANDARD.decode(header)).map_err(|e| e.to_string())?;
    let said = OnBehalfOf::decode(bytes.as_slice()).map_err(|e| e.to_string())?;
    let address: SocketAddr = said.origin.parse().map_err(|_| format!("{:?} is no address", said.origin))?;
    let certified = said.certificate.map(|c| {
        // A role that this build does not know is none.
        let grants = c.grants.iter().filter_map(|g| Grant::parse(g).ok()).collect();
        Arc::new(Certified {
            name: c.name,
            grants,
            hosts: c.hosts,
            serial: c.serial,
            issuer_serials: c.issuer_serials,
            not_before_s: c.not_before_s,
            not_after_s: c.not_after_s,
            lifetime_s: c.lifetime_s,
        })
    });
    Ok(Link { address, certified })
}

/// A channel, and the TLS files that it was made with.
type Dialled = (Option<Stamp>, Channel);

/// The way to the leader.
#[derive(Debug, Clone)]
pub(crate) struct Forward {
    node: Node,
    tls: Option<TlsFiles>,
    channels: Arc<Mutex<BTreeMap<String, Dialled>>>,
    strangers: Arc<Semaphore>,
}

impl Forward {
    pub(crate) fn new(node: Node, tls: Option<TlsFiles>) -> Forward {
        Forward { node, tls, channels: Arc::default(), strangers: Arc::new(Semaphore::new(STRANGERS_MAX)) }
    }

    /// Where another member leads, if one does.
    pub(crate) async fn leader(&self) -> Option<String> {
        if self.node.leadership.borrow().leading {
            return None;
        }
        let look = |state: &probity_core::State, live: &crate::node::Live<'_>| {
            let other = live.status.leader.filter(|id| *id != live.status.identity.id && !live.status.disk_full)?;
            state.members.get(&probity_core::number_key(other)).map(|m| m.address.clone())
        };
        self.node.query(look).await.ok().flatten().filter(|address| !address.is_empty())
    }

    /// A renewed certificate is used before the old one ends.
    fn channel(&self, address: &str) -> Result<Channel, Status> {
        let stamp = self.tls.as_ref().map(TlsFiles::stamp);
        let mut channels = self.channels.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some((known, channel)) = channels.get(address)
            && *known == stamp
        {
            return Ok(channel.clone());
        }
        let fresh = channel(address, self.tls.as_ref()).map_err(|e| Status::unavailable(format!("cannot reach the leader at {address}: {e}")))?;
        if channels.len() >= CHANNELS_MAX {
            channels.clear();
        }
        channels.insert(address.to_owned(), (stamp, fresh.clone()));
        Ok(fresh)
    }

    /// The leader's answer to a request of `link`. What does not reach it is told as such, and so is what may have: asking again is safe.
    pub(crate) async fn hand_on(&self, leader: &str, link: &Link, request: http::Request<Body>) -> http::Response<Body> {
        match self.answer(leader, link, request).await {
            Ok(mut response) => {
                // Who asks for more may spare it the way; a refusal may name another leader itself.
                if !response.headers().contains_key("grpc-status")
                    && let Ok(value) = leader.parse()
                {
                    response.headers_mut().insert(LEADER_KEY, value);
                }
                response
            }
            Err(status) => status.into_http(),
        }
    }

    async fn answer(&self, leader: &str, link: &Link, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        let _place = match &link.certified {
            Some(_) => None,
            None => Some(self.strangers.try_acquire().map_err(|_| Status::unavailable("too many enrol at a time here: try again"))?),
        };
        let channel = self.channel(leader)?;
        let (mut parts, body) = request.into_parts();
        parts.extensions = http::Extensions::new();
        parts.version = http::Version::HTTP_2;
        parts.headers.remove(http::header::AUTHORIZATION);
        let value = http::HeaderValue::from_str(&STANDARD_NO_PAD.encode(described(link).encode_to_vec()));
        parts.headers.insert(ON_BEHALF_OF, value.map_err(|_| Status::internal("base64 is a header"))?);
        match tokio::time::timeout(ANSWER, channel.oneshot(http::Request::from_parts(parts, body))).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(e)) => Err(lost(leader, &Status::from_error(Box::new(e)))),
            Err(_) => Err(Refusal::Unknown.status()),
        }
    }

    /// A halt that was taken here already.
    pub(crate) async fn halt(&self, leader: &str, link: &Link, asked: HaltRequest) -> Result<HaltReply, Status> {
        let mut request = tonic::Request::new(asked);
        request.metadata_mut().insert_bin(ON_BEHALF_OF, MetadataValue::from_bytes(&described(link).encode_to_vec()));
        match tokio::time::timeout(ANSWER, OperatorClient::new(self.channel(leader)?).halt(request)).await {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            Ok(Err(status)) if std::error::Error::source(&status).is_some() => Err(lost(leader, &status)),
            Ok(Err(status)) => Err(status),
            Err(_) => Err(Refusal::Unknown.status()),
        }
    }
}

/// What never left is told as such; what the leader may have taken before it went has an unknown outcome.
fn lost(leader: &str, status: &Status) -> Status {
    match broken(status) {
        true => Refusal::Unknown.status(),
        false => Status::unavailable(format!("the leader ({leader}) cannot be reached from here: {}", cause(status))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asked_arrives_as_it_was() {
        let certified = Certified {
            name: "anna".to_owned(),
            grants: vec![Grant::parse("operator:shop").expect("a grant"), Grant::parse("viewer").expect("a grant")],
            hosts: vec!["c9.example.com".to_owned()],
            serial: "5f0c".to_owned(),
            issuer_serials: vec!["1551".to_owned()],
            not_before_s: 100,
            not_after_s: 200,
            lifetime_s: 3_600,
        };
        for certified in [None, Some(Arc::new(certified))] {
            let link = Link { address: "192.0.2.7:4711".parse().expect("an address"), certified };
            for engine in [&STANDARD, &STANDARD_NO_PAD] {
                let back = read(engine.encode(described(&link).encode_to_vec()).as_bytes()).expect("it is one");
                assert_eq!((back.address, &back.certified), (link.address, &link.certified));
            }
        }
        for bad in ["", "!", "AAAA", &STANDARD.encode(OnBehalfOf { origin: "here".to_owned(), certificate: None }.encode_to_vec())] {
            assert!(read(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
