//! HTTP from a coordinator to the outside: receivers and discovery. The address policy holds for every address that a name
//! resolves to and on each redirect, at the moment of connecting: a name that changes its mind in between gains nothing.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect;

/// How long one exchange may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where coordinators may go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy {
    pub(crate) allow_loopback: bool,
}

impl Policy {
    /// Whether an address may be talked to; the error is for a person.
    pub(crate) fn check(self, address: IpAddr) -> Result<(), String> {
        let ip = address.to_canonical();
        let near = match ip {
            // 169.254.0.0/16 holds the clouds' metadata services.
            IpAddr::V4(v4) => v4.is_link_local() || v4.is_unspecified() || v4.is_broadcast(),
            IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_unspecified() || v6.segments()[..] == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254],
        };
        match (near, ip.is_loopback() && !self.allow_loopback) {
            (false, false) => Ok(()),
            (true, _) => Err(format!("{ip} is not allowed for what a coordinator calls")),
            _ => Err(format!("{ip} is not allowed for what a coordinator calls (allowLoopback: true in its configuration allows it)")),
        }
    }

    /// The same for a URL whose host is an address; names are checked when they are resolved.
    pub(crate) fn check_url(self, url: &reqwest::Url) -> Result<(), String> {
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        host.parse().map_or(Ok(()), |ip| self.check(ip))
    }

    /// A client that keeps to it, and follows at most so many redirects. No proxy is used: it would hide where a request ends.
    pub(crate) fn client(self, redirects: usize) -> reqwest::ClientBuilder {
        let follow = redirect::Policy::custom(move |attempt| match self.check_url(attempt.url()) {
            Err(message) => attempt.error(message),
            Ok(()) if attempt.previous().len() > redirects => attempt.stop(),
            Ok(()) => attempt.follow(),
        });
        reqwest::Client::builder().timeout(TIMEOUT).no_proxy().dns_resolver(self).redirect(follow)
    }
}

impl Resolve for Policy {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = *self;
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            found.iter().try_for_each(|a| policy.check(a.ip()))?;
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// The host of a URL; empty when it has none, which no secret is for.
pub(crate) fn host_of(url: &str) -> String {
    reqwest::Url::parse(url).ok().and_then(|u| u.host_str().map(str::to_owned)).unwrap_or_default()
}

/// The innermost cause.
pub(crate) fn cause(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut inner = std::error::Error::source(error);
    while let Some(e) = inner {
        text = e.to_string();
        inner = e.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_and_addresses_of_this_host_are_refused() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let policy = Policy { allow_loopback: false };
        let client = policy.client(3).build().expect("a client");
        for url in ["http://127.0.0.1:1/", "http://[::1]:1/", "http://[::ffff:127.0.0.1]:1/", "http://169.254.169.254/"] {
            assert!(policy.check_url(&url.parse().expect("a URL")).is_err_and(|m| m.contains("is not allowed")), "{url}");
        }
        let error = client.get("http://localhost:1/").send().await.expect_err("refused");
        assert!(cause(&error).contains("is not allowed for what a coordinator calls"), "{}", cause(&error));
        let allowed = Policy { allow_loopback: true };
        assert!(allowed.check([127, 0, 0, 1].into()).is_ok() && allowed.check([169, 254, 169, 254].into()).is_err());
    }
}
