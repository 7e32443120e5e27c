//! Fault injection with certain undo: the engine that holds faults under leases, its journal, and the user-space fault proxy.
//!
//! Every fault ends by the engine's own timers, whether or not anybody calls again; the faults of this version live in sockets of
//! this process, so they also end with it (undo class descriptor-lifetime).

mod engine;
mod journal;
pub mod proxy;

pub use engine::{Engine, EngineConfig, EngineError, FaultEvent, FaultOrder};
pub use proxy::ProxyConfig;
