//! The coordinator: it drives the replica, speaks with probers, members and operators, and does the leader's effects.

pub mod backup;
mod clock;
pub mod config;
mod discovery;
mod disk;
mod driver;
mod effects;
mod fleet;
mod forward;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod gate;
mod gather;
mod halt;
mod heartbeat;
mod held;
mod http;
mod issue;
mod leader;
mod listen;
mod membership;
mod metrics;
pub mod node;
pub mod openid;
mod operator;
mod outside;
mod peer;
mod room;
mod secrets;
mod start;
mod telemetry;
pub mod view;
mod watches;

pub use config::CoordinatorConfig;
pub use node::{Node, ProposeError};
pub use start::{Running, StartError, start};
