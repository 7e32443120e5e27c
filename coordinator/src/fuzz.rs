//! Entries for tests/fuzz: what people, identity providers and API servers send, on any bytes. Each must come to an end, and not panic.

use std::collections::BTreeMap;

use probity_core::State;
use probity_replica::{Identity, Role, Status};
use probity_rpc::access::Caller;

use crate::node::Live;
use crate::view;

/// A list of a Kubernetes API server.
pub fn kubernetes(bytes: &[u8]) {
    crate::discovery::fuzz_kubernetes(bytes);
}

/// A token, a key or claims.
pub fn jwt(bytes: &[u8]) {
    crate::openid::fuzz(bytes);
}

/// What a coordinator says of whom it hands a request on for.
pub fn forwarded(bytes: &[u8]) {
    let _ = crate::forward::read(bytes);
}

/// An Authorization header.
pub fn authorization(text: &str) {
    crate::gate::fuzz_authorization(text);
}

/// A path of the read API, on an empty state.
pub fn read_path(bytes: &[u8]) {
    let path = String::from_utf8_lossy(bytes);
    let (conditions, fleet) = (BTreeMap::new(), BTreeMap::new());
    let status = Status {
        identity: Identity { id: 1, cluster_id: "c".to_owned() },
        role: Role::Follower,
        term: 1,
        leader: None,
        commit: 1,
        applied: 1,
        hashed: 1,
        last: 1,
        voters: Vec::new(),
        voters_outgoing: Vec::new(),
        learners: Vec::new(),
        disk_full: false,
        progress: BTreeMap::new(),
    };
    let live = Live { status: &status, now_us: 1, age_us: 0, conditions: &conditions, fleet: &fleet, violations: 0 };
    let _ = view::read(&State::new(), &live, &path, &view::Scope::of(&Caller::local("fuzz".to_owned())));
}
