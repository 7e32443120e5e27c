//! Entries for tests/fuzz: what people, identity providers and API servers send, on any bytes. Each must come to an end, and not panic.

use probity_core::State;
use probity_rpc::access::Caller;

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
    let _ = view::Still::of(State::new()).read(&path, &view::Scope::of(&Caller::local("fuzz".to_owned())));
}
