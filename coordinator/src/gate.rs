//! Who calls, and whether they may: for every request and stream, after the handshake (rule R13).
//!
//! The state says who was revoked and which tokens hold; a copy of that is kept at hand, so that a request costs no look at the state.
//! A revocation that is applied here takes effect with the next request, and cuts the connections of whom it names.
//!
//! What only the leader can do, and this member does not lead, is handed on to it from here (see `forward`); what another member handed on is
//! judged as if its sender had come by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use probity_core::{State, access};
use probity_proto::v1::{TokenRecord, TokenUse};
use probity_rpc::access::{Caller, Grant, READ, Role, Rule, Scope, rule_of};
use probity_rpc::enrol::{READ_PREFIX, secret_hash};
use probity_rpc::tls::{Certified, written};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use crate::forward::{self, Forward, ON_BEHALF_OF};
use crate::listen::{Connections, Link};
use crate::node::Node;
use crate::openid::{OpenId, looks_like_jwt};

/// How often connections are looked at for certificates whose time is over.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A burst of commands is looked at once.
const COALESCE: Duration = Duration::from_millis(20);

/// What the state says of credentials.
#[derive(Debug, Default)]
pub(crate) struct AccessList {
    revision: u64,
    /// Name to the second of its revocation.
    names: BTreeMap<String, i64>,
    serials: BTreeSet<String>,
    readers: BTreeMap<String, TokenRecord>,
}

impl AccessList {
    fn of(state: &State) -> AccessList {
        let mut list = AccessList { revision: state.meta().access_revision, ..AccessList::default() };
        for revocation in state.revocations.iter() {
            match revocation.subject.split_once('/') {
                Some(("name", name)) => drop(list.names.insert(name.to_owned(), revocation.at_us / 1_000_000)),
                Some(("serial", serial)) => drop(list.serials.insert(serial.to_owned())),
                _ => {}
            }
        }
        let readers = state.tokens.iter().filter(|t| t.r#use() == TokenUse::Read);
        list.readers = readers.map(|t| (t.id.clone(), t.clone())).collect();
        list
    }

    /// Why a certificate is refused now, if it is.
    fn refuses(&self, certified: &Certified, now_s: i64) -> Option<String> {
        let named = self.names.get(&certified.name).is_some_and(|at| certified.not_before_s <= *at);
        if named || self.serials.contains(&certified.serial) {
            return Some(format!("the certificate of {:?} ({}) was revoked", certified.name, certified.serial));
        }
        if let Some(issuer) = certified.issuer_serials.iter().find(|s| self.serials.contains(*s)) {
            return Some(format!("the issuer ({issuer}) of the certificate of {:?} was revoked", certified.name));
        }
        (now_s > certified.not_after_s).then(|| format!("the certificate of {:?} has expired at {}", certified.name, written(certified.not_after_s)))
    }

    /// Who reads with a token.
    fn reader(&self, token: &str, now_us: i64, origin: String) -> Result<Caller, String> {
        let (id, secret) = token.split_once('.').unwrap_or((token, ""));
        let record = self.readers.get(id).filter(|t| t.hash == secret_hash(secret)).ok_or("the token is not known here")?;
        if let Some(why) = access::unusable(record, now_us) {
            return Err(why);
        }
        Ok(Caller {
            name: record.name.clone(),
            grants: readable(record.grants.iter().filter_map(|g| Grant::parse(g).ok())),
            credential: format!("token {id}"),
            origin,
        })
    }
}

/// What a bearer's roles amount to: reading, where they hold.
fn readable(grants: impl IntoIterator<Item = Grant>) -> Vec<Grant> {
    let held = grants.into_iter().filter(|g| READ.contains(&g.role));
    held.map(|g| Grant { role: Role::Viewer, namespace: g.namespace }).collect()
}

/// The decision.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    node: Node,
    /// Plain text on loopback, as asked for: everybody may do everything.
    open: bool,
    list: watch::Receiver<Arc<AccessList>>,
    openid: Option<Arc<OpenId>>,
}

impl Gate {
    /// A gate that follows the state until `stop`, and cuts connections whose certificate is refused.
    pub(crate) async fn follow(node: Node, open: bool, openid: Option<OpenId>, connections: Arc<Connections>, stop: CancellationToken) -> Gate {
        // Before the first request: what this member knows already.
        let first = node.query(|state, _| AccessList::of(state)).await.unwrap_or_default();
        let (tx, list) = watch::channel(Arc::new(first));
        let followed = node.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = keep(followed, tx, connections) => {}
            }
        });
        Gate { node, open, list, openid: openid.map(Arc::new) }
    }

    /// Who calls; none: whoever shows nothing. The error says why a credential is refused.
    pub(crate) async fn caller(&self, link: &Link, authorization: Option<&str>) -> Result<Option<Caller>, String> {
        let origin = link.address.to_string();
        if self.open {
            return Ok(Some(Caller::local(origin)));
        }
        let now_us = self.node.now_us();
        if let Some(certified) = &link.certified {
            if let Some(why) = self.list.borrow().refuses(certified, wall_s()) {
                return Err(why);
            }
            let credential = format!("certificate {}", certified.serial);
            return Ok(Some(Caller { name: certified.name.clone(), grants: certified.grants.clone(), credential, origin }));
        }
        let Some(shown) = authorization.and_then(bearer) else { return Ok(None) };
        if let Some(token) = shown.strip_prefix(READ_PREFIX) {
            return self.list.borrow().reader(token, now_us, origin).map(Some);
        }
        if let Some(openid) = self.openid.as_ref().filter(|_| looks_like_jwt(&shown)) {
            let caller = openid.caller(&shown, wall_s(), origin).await?;
            return Ok(Some(Caller { grants: readable(caller.grants), ..caller }));
        }
        Err("the credential is no token of this cluster (`probity ca token --read NAME` makes one)".to_owned())
    }

    /// Who really sent a request that another member handed on: only a coordinator's word is taken, and who had that certificate
    /// revoked is refused here too, though the other member may not know of it yet.
    async fn sender(&self, link: &Link, header: &[u8], rule: &Rule) -> Result<(Link, String), Status> {
        let by = self.caller(link, None).await.map_err(Status::unauthenticated)?;
        let Some(by) = by.filter(|by| by.may_everywhere(&[Role::Coordinator])) else {
            tracing::warn!(address = %link.address, "somebody who is no coordinator says that a request is another's; it is refused");
            return Err(Status::permission_denied("only a coordinator hands on requests of others"));
        };
        if !rule.handed_on && rule.method != "Operator/Halt" {
            return Err(Status::permission_denied(format!("{} is not handed on", rule.method)));
        }
        let sender = forward::read(header).map_err(|e| Status::invalid_argument(format!("who it is for cannot be read: {e}")))?;
        Ok((sender, by.name))
    }

    /// Whether a gRPC request may go on, and whose it is.
    async fn admit(&self, path: &str, link: Option<&Link>, authorization: Option<&str>, on_behalf_of: Option<&[u8]>) -> Result<(Admitted, Link), Status> {
        let Some(rule) = rule_of(path) else { return Err(Status::unimplemented(format!("no method {path:?} is known here"))) };
        let Some(link) = link else { return Err(Status::internal("a request without a connection")) };
        let Some(header) = on_behalf_of else { return Ok((self.admit_sender(rule, link, authorization).await?, link.clone())) };
        let (sender, by) = self.sender(link, header, rule).await?;
        let mut admitted = self.admit_sender(rule, &sender, None).await?;
        admitted.handed_on = true;
        if sender.certified.is_some() {
            // Whose word it is that it was this one.
            admitted.caller.credential.push_str(&format!(" by way of {by}"));
        }
        Ok((admitted, sender))
    }

    async fn admit_sender(&self, rule: &'static Rule, link: &Link, authorization: Option<&str>) -> Result<Admitted, Status> {
        let caller = self.caller(link, authorization).await.map_err(Status::unauthenticated)?;
        let Some(caller) = caller else {
            if rule.scope == Scope::Open {
                let caller = Caller { name: String::new(), grants: Vec::new(), credential: String::new(), origin: link.address.to_string() };
                return Ok(Admitted { caller, rule, handed_on: false });
            }
            return Err(Status::unauthenticated(
                "a client certificate is wanted (--tls-dir or PROBITY_TLS_DIR names the directory that `probity ca init` or `probity ca enrol` wrote)",
            ));
        };
        caller.admitted(rule).map_err(Status::permission_denied)?;
        Ok(Admitted { caller, rule, handed_on: false })
    }
}

fn wall_s() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// The credential of an Authorization header: a bearer's, or the password of a browser's dialog.
fn bearer(header: &str) -> Option<String> {
    use base64::Engine;
    let (scheme, rest) = header.trim().split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().to_owned());
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let bytes = base64::engine::general_purpose::STANDARD.decode(rest.trim()).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        return text.split_once(':').map(|(_, password)| password.to_owned());
    }
    None
}

/// Keeps the list as the state has it, and cuts whom it refuses.
async fn keep(node: Node, list: watch::Sender<Arc<AccessList>>, connections: Arc<Connections>) {
    let mut changed = node.changed();
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            end = changed.changed() => {
                if end.is_err() {
                    return;
                }
                let known = list.borrow().revision;
                let newer = node.query(move |state, _| (state.meta().access_revision != known).then(|| AccessList::of(state))).await;
                match newer {
                    Ok(Some(newer)) => drop(list.send_replace(Arc::new(newer))),
                    Ok(None) => {
                        tokio::time::sleep(COALESCE).await;
                        continue;
                    }
                    Err(_) => return,
                }
            }
            _ = look.tick() => {}
        }
        let now_s = wall_s();
        let current = list.borrow().clone();
        connections.cut(|certified| current.refuses(certified, now_s).is_some());
    }
}

/// A caller whose role was found good for a method.
#[derive(Debug, Clone)]
pub(crate) struct Admitted {
    pub(crate) caller: Caller,
    rule: &'static Rule,
    /// Another member sent it on: it goes no further.
    pub(crate) handed_on: bool,
}

impl Admitted {
    /// Who sent a request: the gate put it there.
    pub(crate) fn of<T>(request: &tonic::Request<T>) -> Result<Admitted, Status> {
        request.extensions().get::<Admitted>().cloned().ok_or_else(|| Status::internal("a request that passed no gate"))
    }

    /// This coordinator itself, where `up` asks for it.
    pub(crate) fn local() -> Admitted {
        let rule = rule_of("/probity.v1.Operator/InitCluster").expect("the table has it");
        Admitted { caller: Caller::local(String::new()), rule, handed_on: false }
    }

    /// Whether the caller is who it says: by its certificate, or anybody in plain text on loopback.
    pub(crate) fn is(&self, name: &str) -> bool {
        self.caller.credential == "local" || self.caller.name == name
    }

    /// Whether it may be done in a namespace that the message names.
    pub(crate) fn in_namespace(&self, namespace: &str) -> Result<(), Status> {
        self.caller.admitted_in(self.rule, namespace).map_err(Status::permission_denied)
    }
}

/// A credential that was good when its request began: whoever answers for long looks at it again.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    gate: Gate,
    link: Link,
    authorization: Option<String>,
}

impl Standing {
    /// Waits until it is good no more: it was revoked, or its time is over. Why, for its bearer.
    pub(crate) async fn lost(mut self) -> String {
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                end = self.gate.list.changed() => if end.is_err() { return "the coordinator is stopping".to_owned() },
                _ = look.tick() => {}
            }
            match self.gate.caller(&self.link, self.authorization.as_deref()).await {
                Ok(Some(_)) => {}
                Ok(None) => return "a credential is wanted".to_owned(),
                Err(why) => return why,
            }
        }
    }
}

/// Puts the gate before every service.
#[derive(Debug, Clone)]
pub(crate) struct GateLayer(pub(crate) Gate, pub(crate) Forward);

impl<S> Layer<S> for GateLayer {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated { gate: self.0.clone(), forward: self.1.clone(), inner }
    }
}

/// A service behind the gate.
#[derive(Debug, Clone)]
pub(crate) struct Gated<S> {
    gate: Gate,
    forward: Forward,
    inner: S,
}

impl<S> Service<http::Request<Body>> for Gated<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let (gate, forward) = (self.gate.clone(), self.forward.clone());
        // The one that is ready goes with the request.
        let waiting = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, waiting);
        Box::pin(async move {
            let link = request.extensions().get::<Link>().cloned();
            let authorization = request.headers().get(http::header::AUTHORIZATION).and_then(|h| h.to_str().ok()).map(str::to_owned);
            let on_behalf_of = request.headers().get(ON_BEHALF_OF).map(|h| h.as_bytes().to_vec());
            match gate.admit(request.uri().path(), link.as_ref(), authorization.as_deref(), on_behalf_of.as_deref()).await {
                Ok((admitted, link)) => {
                    if admitted.rule.handed_on
                        && !admitted.handed_on
                        && let Some(leader) = forward.leader().await
                    {
                        return Ok(forward.hand_on(&leader, &link, request).await);
                    }
                    request.extensions_mut().insert(Standing { gate, link: link.clone(), authorization });
                    request.extensions_mut().insert(link);
                    request.extensions_mut().insert(admitted);
                    inner.call(request).await
                }
                Err(status) => Ok(status.into_http()),
            }
        })
    }
}

/// For tests/fuzz.
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz_authorization(text: &str) {
    let _ = bearer(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certified(name: &str, serial: &str, not_before_s: i64) -> Certified {
        Certified {
            name: name.to_owned(),
            grants: Vec::new(),
            hosts: Vec::new(),
            serial: serial.to_owned(),
            issuer_serials: vec!["1551".to_owned()],
            not_before_s,
            not_after_s: not_before_s + 1_000,
            lifetime_s: 1_000,
        }
    }

    #[test]
    fn who_was_revoked_is_refused_and_who_came_later_is_not() {
        let mut list = AccessList::default();
        assert_eq!(list.refuses(&certified("e1", "5f", 100), 200), None);
        assert!(list.refuses(&certified("e1", "5f", 100), 1_101).is_some_and(|why| why.contains("has expired at 1970-01-01T00:18:20Z")));
        list.names.insert("e1".to_owned(), 150);
        assert!(list.refuses(&certified("e1", "5f", 100), 200).is_some_and(|why| why.contains("was revoked")));
        assert!(list.refuses(&certified("e1", "5f", 150), 200).is_some());
        assert_eq!(list.refuses(&certified("e1", "60", 151), 200), None, "enrolled again after it");
        assert_eq!(list.refuses(&certified("e2", "61", 100), 200), None);
        list.serials.insert("61".to_owned());
        assert!(list.refuses(&certified("e2", "61", 100), 200).is_some());
        list.serials.insert("1551".to_owned());
        assert!(list.refuses(&certified("e3", "62", 100), 200).is_some_and(|why| why.contains("issuer (1551)")), "what it issued goes with it");
    }

    #[test]
    fn a_reader_reads_and_nothing_else() {
        let grants = vec!["admin".to_owned(), "operator:shop".to_owned(), "prober".to_owned()];
        let token =
            TokenRecord { id: "t-1".to_owned(), hash: secret_hash("s"), name: "grafana".to_owned(), grants, expires_at_us: 100, ..TokenRecord::default() };
        let mut list = AccessList::default();
        list.readers.insert("t-1".to_owned(), token);
        let caller = list.reader("t-1.s", 50, String::new()).expect("known");
        assert_eq!(caller.described(), "grafana (viewer, viewer:shop)");
        for (shown, now, why) in [("t-1.x", 50, "not known"), ("t-2.s", 50, "not known"), ("t-1", 50, "not known"), ("t-1.s", 100, "has expired")] {
            assert!(list.reader(shown, now, String::new()).expect_err(shown).contains(why), "{shown}");
        }
    }

    #[test]
    fn credentials_of_programs_and_of_browsers() {
        assert_eq!(bearer("Bearer abc"), Some("abc".to_owned()));
        assert_eq!(bearer("bearer  abc "), Some("abc".to_owned()));
        assert_eq!(bearer("Basic bWU6YWJj"), Some("abc".to_owned()));
        for bad in ["", "abc", "Basic !!!", "Basic YWJj", "Digest x"] {
            assert_eq!(bearer(bad), None, "{bad}");
        }
    }
}
