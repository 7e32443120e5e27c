//! The coordinator: it drives the replica, speaks with probers, members and operators, and does the leader's effects.

pub mod backup;
mod clock;
pub mod config;
mod disk;
mod driver;
mod effects;
mod fleet;
mod heartbeat;
mod http;
mod leader;
mod membership;
mod metrics;
pub mod node;
mod operator;
mod peer;
mod start;
mod telemetry;
pub mod view;

pub use config::CoordinatorConfig;
pub use node::{Node, ProposeError};
pub use start::{Running, StartError, start};
