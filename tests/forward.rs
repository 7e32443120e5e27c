//! Followers hand on what only the leader can do: with three real processes, under mutual TLS and in plain text, by a client that follows nobody.

mod common;

use std::path::Path;
use std::time::Duration;

use common::group::Group;
use common::{Client, wait_for};
use nix::sys::signal::Signal;
use probity_proto::v1::ResourceKey;
use probity_rpc::client::{Operator, channel};
use probity_rpc::refusal::Refusal;
use probity_rpc::tls::TlsFiles;
use probity_rpc::v1::access_client::AccessClient;
use probity_rpc::v1::operator_client::OperatorClient;
use probity_rpc::v1::*;
use prost::Message;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

const HEADER: &str = "probity-on-behalf-of-bin";

fn probe(namespace: &str, name: &str) -> ApplyRequest {
    let text = format!(
        "apiVersion: probity/v1\nkind: Probe\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{interval: 10s, timeout: 1s, target: \"127.0.0.1:9\", tcp: {{}}}}\n"
    );
    ApplyRequest {
        request_id: format!("apply-{namespace}-{name}"),
        files: vec![SourceFile { name: "probe.yaml".to_owned(), text }],
        default_namespace: "default".to_owned(),
        ..ApplyRequest::default()
    }
}

fn key(namespace: &str, name: &str) -> ResourceKey {
    ResourceKey { kind: "Probe".to_owned(), namespace: namespace.to_owned(), name: name.to_owned() }
}

/// One member, spoken to as it is: nobody follows a hint to the leader here.
struct Direct {
    runtime: tokio::runtime::Runtime,
    address: String,
    tls: Option<TlsFiles>,
}

impl Direct {
    fn new(group: &Group, member: usize, who: &str) -> Direct {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Direct { runtime, address: group.address(member), tls: group.tls.as_ref().map(|dir| TlsFiles::new(dir.join(who))) }
    }

    fn operator<T>(&self, call: impl AsyncFnOnce(OperatorClient<tonic::transport::Channel>) -> Result<tonic::Response<T>, Status>) -> Result<T, Status> {
        self.runtime.block_on(async {
            let client = OperatorClient::new(channel(&self.address, self.tls.as_ref()).expect("an address"));
            call(client).await.map(tonic::Response::into_inner)
        })
    }

    fn access<T>(&self, call: impl AsyncFnOnce(AccessClient<tonic::transport::Channel>) -> Result<tonic::Response<T>, Status>) -> Result<T, Status> {
        self.runtime.block_on(async {
            let client = AccessClient::new(channel(&self.address, self.tls.as_ref()).expect("an address"));
            call(client).await.map(tonic::Response::into_inner)
        })
    }

    fn apply(&self, request: ApplyRequest) -> Result<ApplyReply, Status> {
        self.operator(async |mut c| c.apply(request).await)
    }
}

/// A follower's index, and the leader's.
fn follower(group: &Group) -> (usize, usize) {
    let leader = group.leader();
    ((0..3).find(|i| *i != leader).expect("another one"), leader)
}

/// Without TLS: a follower that has handed on a change, its index and the leader's.
fn plain(dir: &Path) -> (Group, Direct, usize, usize) {
    let group = Group::start(dir, 3, 3);
    group.settled(&["c1", "c2", "c3"]);
    let (at, leader) = follower(&group);
    let one = Direct::new(&group, at, "");
    one.apply(probe("shop", "till")).expect("applied through a follower");
    (group, one, at, leader)
}

fn start(dir: &Path) -> Group {
    let group = Group::start_secure(dir, 3, 3, &["--client", "anna=operator:shop,chaos:shop", "--client", "otto=viewer:shop", "--prober", "e1"]);
    group.settled(&["c1", "c2", "c3"]);
    group
}

#[test]
fn a_client_that_knows_one_follower_changes_what_it_may() {
    let dir = tempfile::tempdir().expect("a directory");
    let group = start(dir.path());
    let (at, _) = follower(&group);
    let anna = Direct::new(&group, at, "anna");

    // Retried with the same request id it is done once.
    for _ in 0..2 {
        let reply = anna.apply(probe("shop", "till")).expect("applied through a follower");
        assert_eq!((reply.problems.len(), reply.changes[0].action.as_str()), (0, "created"), "{reply:?}");
    }
    // The leader judges: mistakes come back with their place, and roles hold as they do there.
    let mut wrong = probe("shop", "wrong");
    wrong.files[0].text = wrong.files[0].text.replace("10s", "never");
    let problems = anna.apply(wrong).expect("an answer").problems;
    assert!(problems.len() == 1 && problems[0].line == 4, "{problems:?}");
    let refused = anna.apply(probe("search", "till")).expect_err("not hers");
    assert!(refused.code() == Code::PermissionDenied && refused.message().contains("in namespace \"search\""), "{refused:?}");
    let refused = Direct::new(&group, at, "otto").apply(probe("shop", "other")).expect_err("he reads");
    assert!(refused.message().contains("otto (viewer:shop) may not do this"), "{refused:?}");

    // Everything that changes something.
    let me = Direct::new(&group, at, "me");
    let deleted = anna.operator(async |mut c| c.delete(DeleteRequest { request_id: "d".to_owned(), key: Some(key("shop", "till")), purge: false }).await);
    assert_eq!(deleted.expect("deleted").changes[0].action, "deleted");
    let halted = anna.operator(async |mut c| c.halt(HaltRequest { request_id: "h".to_owned(), reason: "drill".to_owned() }).await).expect("halted");
    assert!(halted.committed);
    me.operator(async |mut c| c.lift_halt(LiftHaltRequest { request_id: "l".to_owned() }).await).expect("lifted");
    let token = CreateTokenRequest {
        request_id: "t".to_owned(),
        name: "bob".to_owned(),
        grants: vec!["viewer".to_owned()],
        valid_us: 60_000_000,
        id: "t-1".to_owned(),
        hash: vec![7; 32],
        ..CreateTokenRequest::default()
    };
    me.access(async |mut c| c.create_token(token).await).expect("a token");
    let revoke = |what: &str| RevokeRequest { request_id: format!("r-{what}"), what: what.to_owned(), reason: "test".to_owned(), ..RevokeRequest::default() };
    me.access(async |mut c| c.revoke(revoke("t-1")).await).expect("revoked");
    let csr = probity_rpc::pki::request("anna").expect("a key").csr_pem;
    let renewed = anna.access(async |mut c| c.renew(RenewRequest { csr_pem: csr }).await).expect("renewed through a follower");
    assert_eq!((renewed.name.as_str(), renewed.grants.len()), ("anna", 2));

    // The audit names who it was, and from where: not the follower.
    let audit = group.client.json(&["audit"]).expect("the audit");
    let items: Vec<_> = audit["items"].as_array().expect("items").iter().map(|i| i["status"].clone()).collect();
    let by = |action: &str| items.iter().filter(|i| i["action"] == action).cloned().collect::<Vec<_>>();
    for (action, actor) in [("created", "anna"), ("deleted", "anna"), ("halt", "anna"), ("lift halt", "me"), ("create", "me"), ("renew", "anna")] {
        let found = by(action);
        assert_eq!(found.len(), 1, "{action}: {items:?}");
        assert_eq!(found[0]["actor"], actor, "{action}");
        assert!(found[0]["origin"].as_str().is_some_and(|o| o.starts_with("127.0.0.1:")), "{}", found[0]);
        let credential = found[0]["credential"].as_str().unwrap_or_default();
        assert!(credential.starts_with("certificate ") && credential.ends_with(&format!(" by way of c{}", at + 1)), "{credential}");
    }

    // A revocation holds by this way too.
    me.access(async |mut c| c.revoke(revoke("anna")).await).expect("revoked");
    // Her connections are cut, too: some calls break before they are refused.
    let refused = wait_for("the refusal", || anna.apply(probe("shop", "late")).err().filter(|s| s.message().contains("was revoked")));
    assert_eq!(refused.code(), Code::Unauthenticated);
    let kept = group.client.json(&["get", "probes", "-A"]).expect("a list");
    assert_eq!(kept["items"].as_array().map(Vec::len), Some(0), "{kept}");
}

/// Only a coordinator's word is taken for who asked.
#[test]
fn a_forged_name_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let group = start(dir.path());
    let (at, leader) = follower(&group);
    let as_admin = OnBehalfOf {
        origin: "192.0.2.1:1".to_owned(),
        certificate: Some(ShownCertificate {
            name: "me".to_owned(),
            grants: vec!["admin".to_owned()],
            serial: "5f5f".to_owned(),
            not_after_s: i64::MAX,
            ..ShownCertificate::default()
        }),
    };
    let forged = |request: ApplyRequest| {
        let mut request = Request::new(request);
        request.metadata_mut().insert_bin(HEADER, MetadataValue::from_bytes(&as_admin.encode_to_vec()));
        request
    };
    for member in [at, leader] {
        for who in ["otto", "anna", "me", "e1"] {
            let refused = Direct::new(&group, member, who).operator(async |mut c| c.apply(forged(probe("search", "forged"))).await).expect_err("forged");
            assert!(refused.code() == Code::PermissionDenied, "{who}: {refused:?}");
            assert!(refused.message().contains("only a coordinator hands on requests of others"), "{who}: {refused:?}");
        }
    }
    // A coordinator's is taken, by the leader alone: it goes one hop.
    let by_c = |member: usize| Direct::new(&group, member, "c1").operator(async |mut c| c.apply(forged(probe("search", "till"))).await);
    let refused = by_c(at).expect_err("a second hop");
    assert!(refused.message().contains("not the leader"), "{refused:?}");
    assert_eq!(by_c(leader).expect("its word").changes[0].action, "created");
    // And for writes alone.
    let mut read = Request::new(ReadRequest { path: "/api/v1/probes".to_owned(), stale: false });
    read.metadata_mut().insert_bin(HEADER, MetadataValue::from_bytes(&as_admin.encode_to_vec()));
    let refused = Direct::new(&group, leader, "c1").operator(async |mut c| c.read(read).await).expect_err("a read");
    assert!(refused.message().contains("is not handed on"), "{refused:?}");
    assert!(!(0..3).any(|i| group.servers[i].as_ref().is_some_and(|s| s.log().contains("panicked"))));
}

/// What was handed on says who leads: a client that knows that one goes straight to it from then on, and one that does not stays.
#[test]
fn a_client_that_knows_the_leader_goes_there() {
    let dir = tempfile::tempdir().expect("a directory");
    let group = start(dir.path());
    let (at, leader) = follower(&group);
    let one = Direct::new(&group, at, "anna");
    for (known, then) in [(vec![at], at), (vec![at, leader], leader)] {
        let addresses = known.iter().map(|i| group.address(*i)).collect();
        let mut operator = Operator::new(addresses, one.tls.clone(), Duration::from_secs(10));
        for name in ["till", "basket"] {
            let asked = probe("shop", name);
            one.runtime.block_on(operator.call(async |mut c| c.apply(asked.clone()).await)).expect("applied");
            assert_eq!(operator.address(), Some(group.address(then).as_str()));
        }
    }
}

/// In plain text on loopback; and a leader that is gone is told as such.
#[test]
fn a_leader_that_is_gone_is_told_as_such() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut group, one, at, leader) = plain(dir.path());
    // Without a quorum nothing is changed, and the answer is one that a client tries again.
    for i in (0..3).filter(|i| *i != at) {
        group.server(i).kill9();
    }
    let refused = one.apply(probe("shop", "lost")).expect_err("no leader");
    assert!(matches!(refused.code(), Code::Unavailable | Code::DeadlineExceeded), "{refused:?}");
    let refused =
        wait_for("it to know that there is none", || one.apply(probe("shop", "lost")).err().filter(|s| s.message().contains("there is no quorum now")));
    assert_eq!(refused.code(), Code::Unavailable);
    // A halt is taken all the same, and committed by whoever leads when there is a leader again.
    let halted = one.operator(async |mut c| c.halt(HaltRequest { request_id: "h".to_owned(), reason: "alone".to_owned() }).await).expect("taken");
    assert!(!halted.committed);
    group.run(leader);
    let everybody = Client { server: group.client.server.clone(), tls_dir: None };
    everybody.wait_json("the halt", &["status"], |s| s["halt"]["reason"] == "alone");
    let reply = wait_for("the change", || one.apply(probe("shop", "late")).ok());
    assert_eq!(reply.changes.len(), 1);
}

/// What it had in hand may have been done: nobody says that it was not, and the same request id does it once.
#[test]
fn a_leader_that_dies_with_a_change_in_hand_leaves_its_outcome_unknown() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut group, one, at, leader) = plain(dir.path());
    group.server(leader).signal(Signal::SIGSTOP);
    let asked = std::thread::scope(|scope| {
        let asked = scope.spawn(|| Direct::new(&group, at, "").apply(probe("shop", "late")));
        // It lies at the leader by then; were it not handed on yet, there would be nobody to hand it to.
        std::thread::sleep(Duration::from_millis(300));
        group.servers[leader].as_ref().expect("it was started").signal(Signal::SIGKILL);
        asked.join().expect("no panic")
    });
    let refused = asked.expect_err("nobody answered");
    assert_eq!(Refusal::of(&refused), Some(Refusal::Unknown), "{refused:?}");
    let reply = wait_for("the change", || one.apply(probe("shop", "late")).ok());
    assert_eq!((reply.changes.len(), reply.changes[0].action.as_str()), (1, "created"));
    let everybody = Client { server: group.client.server.clone(), tls_dir: None };
    let audit = everybody.json(&["audit", "--for", "Probe/late"]).expect("the audit");
    assert_eq!(audit["items"].as_array().map(Vec::len), Some(1), "{audit}");
}

/// A delete whose answer was lost is asked for again: it was done, and that is the answer.
#[test]
fn a_delete_that_is_asked_for_again_was_done() {
    let dir = tempfile::tempdir().expect("a directory");
    let (group, one, _, leader) = plain(dir.path());
    let straight = Direct::new(&group, leader, "");
    let asked = DeleteRequest { request_id: "once".to_owned(), key: Some(key("shop", "till")), purge: false };
    for at in [&one, &straight, &one] {
        let reply = at.operator(async |mut c| c.delete(asked.clone()).await).expect("done");
        assert_eq!(reply.changes.iter().map(|c| c.action.as_str()).collect::<Vec<_>>(), ["deleted"], "{reply:?}");
    }
    let other = DeleteRequest { request_id: "twice".to_owned(), ..asked };
    let refused = one.operator(async |mut c| c.delete(other).await).expect_err("it is gone");
    assert_eq!(refused.code(), Code::NotFound);
}
