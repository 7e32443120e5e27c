//! How every part of Probity reaches a coordinator: keep-alive, bounded times, and the way to the leader.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::alphabet::Alphabet;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD};
use tonic::Status;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use crate::MESSAGE_BYTES_MAX;
use crate::connect::{self, Trust, Untrusted};
use crate::refusal::{LEADER_KEY, Refusal};
use crate::tls::{TlsError, TlsFiles, is_loopback};
use crate::tried::Tried;
pub use crate::tried::broken;
use crate::v1::operator_client::OperatorClient;

/// Why an address cannot be dialled at all.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// Not host:port.
    #[error("{0:?} is no address (want host:port, for example 127.0.0.1:7601)")]
    Invalid(String),
    /// Plain text is for this host only.
    #[error("{0} is not on this host, and no TLS files are configured (plain text is allowed on loopback only)")]
    PlainText(String),
    /// The TLS files cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Sorts as what it stands for does.
const SORTED: GeneralPurpose = GeneralPurpose::new(
    &match Alphabet::new("-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz") {
        Ok(alphabet) => alphabet,
        Err(_) => panic!("64 characters"),
    },
    NO_PAD,
);

/// A fresh request id: a retry with the same one is applied once. 48 bits of this host's time in milliseconds and 80 random ones, as in a UUID of version
/// 7 (RFC 9562, section 5.7): new ids stand beside each other in a coordinator's table of them, and 22 characters are kept in place there.
pub fn request_id() -> String {
    let ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    let mut id = [0; 16];
    id[..6].copy_from_slice(&ms.to_be_bytes()[2..]);
    id[6..].copy_from_slice(&rand::random::<[u8; 10]>());
    SORTED.encode(id)
}

/// A channel to `address` (host:port) that connects when first used and again whenever it broke. The TLS files are read for each
/// connection: renewed ones are used from the next one on.
pub fn channel(address: &str, tls: Option<&TlsFiles>) -> Result<Channel, AddressError> {
    let trust = match tls {
        Some(files) => {
            // What cannot work is told before anything is dialled.
            files.client()?;
            Trust::Files(files.clone())
        }
        None => Trust::Loopback,
    };
    channel_with(address, trust)
}

fn host_and_port(address: &str) -> &str {
    address.strip_prefix("http://").or_else(|| address.strip_prefix("https://")).unwrap_or(address)
}

/// The same, for whoever trusts by other means.
pub(crate) fn channel_with(address: &str, trust: Trust) -> Result<Channel, AddressError> {
    let address = host_and_port(address);
    // The scheme is for the URI only: TLS is the connector's.
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .ok()
        .filter(|e| e.uri().port_u16().is_some() && e.uri().host().is_some())
        .ok_or_else(|| AddressError::Invalid(address.to_owned()))?
        .connect_timeout(Duration::from_secs(2))
        // A peer that vanished without a word is noticed within 3 s.
        .http2_keep_alive_interval(Duration::from_secs(1))
        .keep_alive_timeout(Duration::from_secs(2))
        .keep_alive_while_idle(true);
    if matches!(trust, Trust::Loopback) && !is_loopback(address) {
        return Err(AddressError::PlainText(address.to_owned()));
    }
    Ok(endpoint.connect_with_connector_lazy(connect::connector(address.to_owned(), trust)))
}

/// The innermost cause of a status: "Connection refused", not "transport error".
pub fn cause(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut inner = std::error::Error::source(status);
    while let Some(error) = inner {
        if let Some(untrusted) = error.downcast_ref::<Untrusted>() {
            return untrusted.to_string();
        }
        text = error.to_string();
        inner = error.source();
    }
    if text.contains("close_notify") {
        return "the connection was closed".to_owned();
    }
    connect::plain(&text).map_or(text, str::to_owned)
}

/// Whether the other side is not who it should be, or does not know us: asking again changes nothing.
pub fn untrusted(status: &Status) -> bool {
    let mut inner = std::error::Error::source(status);
    while let Some(error) = inner {
        if error.is::<Untrusted>() || connect::plain(&error.to_string()).is_some() {
            return true;
        }
        inner = error.source();
    }
    false
}

/// An operator's client that knows several coordinators and follows the leader.
///
/// A call is tried again, with the same request (and so the same request id), until `patience` has passed: during an
/// election there is no leader for a moment. One that belongs to no cluster (its data was lost, or it waits to be taken in) is
/// passed over: the others are asked.
#[derive(Debug, Clone)]
pub struct Operator {
    addresses: Vec<String>,
    tls: Option<TlsFiles>,
    /// Shown with each call, where there is no certificate.
    token: Option<tonic::metadata::AsciiMetadataValue>,
    patience: Duration,
    /// The one that answered last, with its channel.
    current: Option<(String, Via)>,
}

impl Operator {
    /// Knows these coordinators; dials none yet.
    pub fn new(addresses: Vec<String>, tls: Option<TlsFiles>, patience: Duration) -> Self {
        Operator { addresses, tls, token: None, patience, current: None }
    }

    /// Shows a token with each call; the error says what is wrong with it.
    pub fn with_token(mut self, token: &str) -> Result<Self, String> {
        let value = format!("Bearer {token}").parse().map_err(|_| "the token has characters that no token has".to_owned())?;
        self.token = Some(value);
        Ok(self)
    }

    /// The address that answered last.
    pub fn address(&self) -> Option<&str> {
        self.current.as_ref().map(|(address, _)| address.as_str())
    }

    /// Those that it knows beside the one that answered last, each by itself, for what must reach more than one.
    pub fn others(&self) -> Vec<Operator> {
        let others = self.addresses.iter().filter(|address| Some(address.as_str()) != self.address());
        others.map(|address| Operator { addresses: vec![address.clone()], patience: Duration::ZERO, current: None, ..self.clone() }).collect()
    }

    fn dial(&self, address: &str) -> Result<Via, AddressError> {
        Ok(InterceptedService::new(channel(address, self.tls.as_ref())?, Shown(self.token.clone())))
    }

    /// The leader, where it handed on what another coordinator was asked: the next call saves that way. Only if it is among those that were named:
    /// they can be reached from here.
    fn straight_to(&self, leader: &str) -> Option<(String, Via)> {
        let known = self.addresses.iter().find(|address| host_and_port(address) == leader)?;
        Some((known.clone(), self.dial(known).ok()?))
    }

    /// Makes a change at the leader: `call` may run several times, so its request must carry a request id.
    pub async fn call<T, F>(&mut self, call: F) -> Result<T, Status>
    where
        F: AsyncFn(OperatorClient<Via>) -> Result<tonic::Response<T>, Status>,
    {
        self.call_via(async |via| call(operator(via)).await).await
    }

    /// The same, with any service's client.
    pub async fn call_via<T, F>(&mut self, call: F) -> Result<T, Status>
    where
        F: AsyncFn(Via) -> Result<tonic::Response<T>, Status>,
    {
        self.ask(Tried::change(), call).await
    }

    /// Asks the leader for something to look at: nothing is changed, so no outcome can be unknown.
    pub async fn look<T, F>(&mut self, call: F) -> Result<T, Status>
    where
        F: AsyncFn(OperatorClient<Via>) -> Result<tonic::Response<T>, Status>,
    {
        self.ask(Tried::look(), async |via| call(operator(via)).await).await
    }

    async fn ask<T, F>(&mut self, mut tried: Tried, call: F) -> Result<T, Status>
    where
        F: AsyncFn(Via) -> Result<tonic::Response<T>, Status>,
    {
        let deadline = Instant::now() + self.patience;
        let mut turn = 0;
        loop {
            let (address, via) = match self.current.take() {
                Some(current) => current,
                None => {
                    let address = self.addresses[turn % self.addresses.len()].clone();
                    turn += 1;
                    let via = self.dial(&address).map_err(|e| Status::invalid_argument(describe(&e)))?;
                    (address, via)
                }
            };
            let status = match call(via.clone()).await {
                Ok(reply) => {
                    let leader = reply.metadata().get(LEADER_KEY).and_then(|value| value.to_str().ok());
                    self.current = leader.and_then(|leader| self.straight_to(leader)).or(Some((address, via)));
                    return Ok(reply.into_inner());
                }
                Err(status) => status,
            };
            let refusal = Refusal::of(&status);
            tried.add(&address, status)?;
            if Instant::now() >= deadline || tried.all_outside(&self.addresses) {
                return Err(tried.told());
            }
            match refusal {
                Some(Refusal::NotLeader(Some(leader))) if leader != address => {
                    let via = self.dial(&leader).map_err(|e| Status::invalid_argument(describe(&e)))?;
                    self.current = Some((leader, via));
                }
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

fn operator(via: Via) -> OperatorClient<Via> {
    OperatorClient::new(via).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// A channel that shows what there is to show.
pub type Via = InterceptedService<Channel, Shown>;

/// Adds the token to each call.
#[derive(Debug, Clone)]
pub struct Shown(Option<tonic::metadata::AsciiMetadataValue>);

impl tonic::service::Interceptor for Shown {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// An error with its causes, on one line.
pub fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_sort_by_their_time_and_are_never_the_same() {
        let first = request_id();
        std::thread::sleep(Duration::from_millis(2));
        let later: std::collections::BTreeSet<String> = (0..1_000).map(|_| request_id()).collect();
        assert_eq!(later.len(), 1_000);
        assert!(later.iter().all(|id| id.len() == 22 && *id > first), "{first} before {later:?}");
    }

    #[tokio::test]
    async fn plain_text_stays_on_this_host() {
        assert!(channel("127.0.0.1:7601", None).is_ok());
        assert!(channel("[::1]:7601", None).is_ok());
        let refused = channel("c1.example.com:7601", None).expect_err("not loopback");
        assert!(matches!(refused, AddressError::PlainText(_)));
        assert!(matches!(channel("127.0.0.1", None), Err(AddressError::Invalid(_))));
    }
}
