//! How every part of Probity reaches a coordinator: keep-alive, bounded times, and the way to the leader.

use std::time::{Duration, Instant};

use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::MESSAGE_BYTES_MAX;
use crate::refusal::Refusal;
use crate::tls::{TlsError, TlsFiles, is_loopback};
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
    /// The TLS files do not fit together.
    #[error("the TLS files do not work")]
    Config(#[source] tonic::transport::Error),
}

/// A channel to `address` (host:port) that connects when first used and again whenever it broke.
pub fn channel(address: &str, tls: Option<&TlsFiles>) -> Result<Channel, AddressError> {
    let address = address.strip_prefix("http://").or_else(|| address.strip_prefix("https://")).unwrap_or(address);
    let scheme = if tls.is_some() { "https" } else { "http" };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
        .ok()
        .filter(|e| e.uri().port_u16().is_some())
        .ok_or_else(|| AddressError::Invalid(address.to_owned()))?
        .connect_timeout(Duration::from_secs(2))
        .tcp_nodelay(true)
        // A peer that vanished without a word is noticed within 3 s.
        .http2_keep_alive_interval(Duration::from_secs(1))
        .keep_alive_timeout(Duration::from_secs(2))
        .keep_alive_while_idle(true);
    match tls {
        Some(files) => endpoint = endpoint.tls_config(files.client()?).map_err(AddressError::Config)?,
        None if !is_loopback(address) => return Err(AddressError::PlainText(address.to_owned())),
        None => {}
    }
    Ok(endpoint.connect_lazy())
}

/// An operator's client that knows several coordinators and follows the leader.
///
/// A call is tried again, with the same request (and so the same request id), until `patience` has passed: during an
/// election there is no leader for a moment.
#[derive(Debug, Clone)]
pub struct Operator {
    addresses: Vec<String>,
    tls: Option<TlsFiles>,
    patience: Duration,
    /// The one that answered last, with its channel.
    current: Option<(String, OperatorClient<Channel>)>,
}

impl Operator {
    /// Knows these coordinators; dials none yet.
    pub fn new(addresses: Vec<String>, tls: Option<TlsFiles>, patience: Duration) -> Self {
        Operator { addresses, tls, patience, current: None }
    }

    /// The address that answered last.
    pub fn address(&self) -> Option<&str> {
        self.current.as_ref().map(|(address, _)| address.as_str())
    }

    fn dial(&self, address: &str) -> Result<OperatorClient<Channel>, AddressError> {
        Ok(OperatorClient::new(channel(address, self.tls.as_ref())?).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// Makes a call at the leader: `call` may run several times, so its request must carry a request id if it changes anything.
    pub async fn call<T, F>(&mut self, call: F) -> Result<T, Status>
    where
        F: AsyncFn(OperatorClient<Channel>) -> Result<tonic::Response<T>, Status>,
    {
        let deadline = Instant::now() + self.patience;
        let mut turn = 0;
        loop {
            let (address, client) = match self.current.take() {
                Some(current) => current,
                None => {
                    let address = self.addresses[turn % self.addresses.len()].clone();
                    turn += 1;
                    let client = self.dial(&address).map_err(|e| Status::invalid_argument(describe(&e)))?;
                    (address, client)
                }
            };
            let status = match call(client.clone()).await {
                Ok(reply) => {
                    self.current = Some((address, client));
                    return Ok(reply.into_inner());
                }
                Err(status) => status,
            };
            let refusal = Refusal::of(&status);
            let again = match refusal {
                Some(Refusal::NotInitialized) => false,
                Some(_) => true,
                None => status.code() == Code::Unavailable || broken(&status),
            };
            if !again || Instant::now() >= deadline {
                return Err(status);
            }
            match refusal {
                Some(Refusal::NotLeader(Some(leader))) if leader != address => {
                    let client = self.dial(&leader).map_err(|e| Status::invalid_argument(describe(&e)))?;
                    self.current = Some((leader, client));
                }
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

/// Whether the connection broke under a call: what a server says itself has no cause on our side. The outcome is unknown then, and
/// the same request id makes a second try safe.
fn broken(status: &Status) -> bool {
    matches!(status.code(), Code::Unknown | Code::Internal | Code::Cancelled) && std::error::Error::source(status).is_some()
}

/// An error with its causes, on one line.
fn describe(error: &dyn std::error::Error) -> String {
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
    fn only_a_broken_connection_is_tried_again() {
        let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert!(broken(&Status::from_error(Box::new(reset))));
        assert!(!broken(&Status::internal("a bug")));
        assert!(!broken(&Status::unknown("no idea")));
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
