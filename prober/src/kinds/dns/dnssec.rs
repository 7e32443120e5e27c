//! Validation of an answer (RFC 4035), from trust anchors down: every key and delegation is asked of the same server.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt, stream};
use hickory_proto::dnssec::{Algorithm, Proof, PublicKeyBuf, TrustAnchors};
use hickory_proto::op::{DnsRequest, DnsRequestOptions, DnsResponse, Message, Query};
use hickory_proto::rr::{LowerName, Name, Record, RecordType};
use hickory_resolver::net::NetError;
use hickory_resolver::net::dnssec::DnssecDnsHandle;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::xfer::DnsHandle;
use probity_proto::v1::{DnsCheck, DnsTransport, DnssecAnchor, DnssecValidation, NetOptions, Reason};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use super::super::tls::MoreTls;
use super::super::{Attempt, Failure, net};
use super::anchored::proven;
use super::answer::{Answer, Read, read};
use super::transport::{ALPN_HTTPS, Server, exchange_udp, https, receive_framed, send_framed};

/// Signatures and keys are large.
const DATAGRAM_BYTES: usize = 4_096;

/// Asks one server, in the way that the run did; each query has a connection of its own.
#[derive(Clone)]
struct Asking {
    server: Server,
    net: Arc<NetOptions>,
    /// Of the transports that speak TLS.
    tls: Option<MoreTls>,
}

impl Asking {
    async fn ask(self, request: DnsRequest) -> Result<DnsResponse, NetError> {
        let mut query: Message = (*request).clone();
        // Over HTTPS answers may come from caches, which know one id (RFC 8484, section 4.1).
        query.metadata.id = if self.server.transport == DnsTransport::Https { 0 } else { rand::random() };
        let bytes = query.to_vec()?;
        let answer = self.exchange(bytes, &query).await?;
        match read(&answer, &query) {
            Read::Ours(answer) => {
                let Answer { message, .. } = *answer;
                Ok(DnsResponse::from_message(message)?)
            }
            Read::Foreign => Err(NetError::from("an answer to another query".to_owned())),
            Read::Malformed(e) => Err(NetError::from(e)),
        }
    }

    async fn exchange(&self, bytes: Vec<u8>, query: &Message) -> Result<Vec<u8>, NetError> {
        let address = self.server.address;
        if self.server.transport == DnsTransport::Udp {
            let socket = net::udp_socket(&self.net, address).await?;
            let answer = exchange_udp(&socket, &bytes, query, DATAGRAM_BYTES, &mut 0).await.map_err(|t| NetError::from(t.into_failure(address).message))?;
            if !answer.message.metadata.truncation {
                return Ok(answer.message.to_vec()?);
            }
        }
        let stream = net::tcp(&self.net, address).await?;
        let Some(tls) = &self.tls else { return Ok(framed(stream, &bytes).await?) };
        let stream = tls.over(stream).await?;
        if self.server.transport == DnsTransport::Https {
            let (body, _) = https(stream, &self.server, bytes, |_| {}).await.map_err(|f| NetError::from(f.message))?;
            return Ok(body.to_vec());
        }
        Ok(framed(stream, &bytes).await?)
    }
}

async fn framed(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    send_framed(&mut stream, bytes).await?;
    let length = stream.read_u16().await?;
    receive_framed(&mut stream, length).await
}

impl DnsHandle for Asking {
    type Response = Pin<Box<dyn Stream<Item = Result<DnsResponse, NetError>> + Send>>;
    type Runtime = TokioRuntimeProvider;

    fn send(&self, request: DnsRequest) -> Self::Response {
        Box::pin(stream::once(self.clone().ask(request)))
    }
}

/// Good only when every record of the answer, or the proof that there is none, is secure.
pub(super) async fn validate(
    attempt: &mut Attempt<'_>,
    server: &Server,
    check: &DnsCheck,
    query: &Message,
    validation: &DnssecValidation,
) -> Result<(), Failure> {
    let options = check.tls.clone().unwrap_or_default();
    let tls = match server.transport {
        DnsTransport::Tls => Some(attempt.more_tls(&server.host, &options, &[]).await?),
        DnsTransport::Https => Some(attempt.more_tls(&server.host, &options, ALPN_HTTPS).await?),
        _ => None,
    };
    let asking = Asking { server: server.clone(), net: Arc::new(attempt.net.clone()), tls };
    let Some(question) = query.queries.first().cloned() else { return Ok(()) };
    let anchors = with_their_zones(&asking, &validation.anchors, question.name()).await?;
    let handle = DnssecDnsHandle::with_trust_anchor(asking, Arc::new(anchors));
    let bogus = |why: String| Failure::new(Reason::DnssecBogus, format!("the answer is not proven: {why}"));
    let response = match handle.lookup(question, DnsRequestOptions::default()).next().await {
        Some(Ok(response)) => response,
        Some(Err(e)) => return Err(bogus(e.to_string())),
        None => return Err(bogus("no answer".to_owned())),
    };
    let records = if response.answers.is_empty() { &response.authorities } else { &response.answers };
    let worst = records.iter().filter(|r| r.record_type() != RecordType::RRSIG).min_by_key(|r| rank(r.proof));
    let proof = worst.map_or(Proof::Indeterminate, |r| r.proof);
    attempt.fact("dns.dnssec", proof.to_string().to_lowercase());
    let about = worst.map(|r: &Record| format!("{} {}", r.name, r.record_type())).unwrap_or_default();
    match proof {
        Proof::Secure => Ok(()),
        Proof::Bogus => Err(bogus(format!("the signatures of {about} do not hold"))),
        Proof::Insecure | Proof::Indeterminate => {
            Err(Failure::new(Reason::DnssecInsecure, format!("{about} is not signed, or not by a chain from the trust anchor")))
        }
    }
}

fn rank(proof: Proof) -> u8 {
    match proof {
        Proof::Bogus => 0,
        Proof::Indeterminate => 1,
        Proof::Insecure => 2,
        Proof::Secure => 3,
    }
}

/// The anchors, and the keys that they prove of their zones.
async fn with_their_zones(asking: &Asking, given: &[DnssecAnchor], name: &Name) -> Result<TrustAnchors, Failure> {
    let mut anchors = anchors(given)?;
    let mut zones = given.iter().map(|anchor| super::name_of(&anchor.zone)).collect::<Result<Vec<Name>, Failure>>()?;
    zones.sort();
    zones.dedup();
    // The validator knows no parent of the root, and needs no help there.
    for zone in zones.into_iter().filter(|zone| !zone.is_root() && zone.zone_of(name)) {
        let query = Query::query(zone.clone(), RecordType::DNSKEY);
        let mut options = DnsRequestOptions::default();
        (options.use_edns, options.edns_set_dnssec_ok) = (true, true);
        // What goes wrong here goes wrong again where it is judged.
        let Ok(response) = asking.clone().ask(DnsRequest::from_query(query, options)).await else { continue };
        let now_s = jiff::Timestamp::now().as_second() as u32;
        let proven = proven(&zone, &response.answers, &anchors, now_s);
        for key in proven {
            anchors.insert_with_name(key.public_key(), LowerName::from(&zone));
        }
    }
    Ok(anchors)
}

/// Those given; else the root's.
fn anchors(given: &[DnssecAnchor]) -> Result<TrustAnchors, Failure> {
    if given.is_empty() {
        return Ok(TrustAnchors::default());
    }
    let mut anchors = TrustAnchors::empty();
    for anchor in given {
        let key = PublicKeyBuf::new(anchor.public_key.clone(), Algorithm::from_u8(anchor.algorithm as u8));
        anchors.insert_with_name(&key, LowerName::from(super::name_of(&anchor.zone)?));
    }
    Ok(anchors)
}
