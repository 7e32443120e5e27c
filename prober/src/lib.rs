//! The prober: it runs probes on their slots, reports what they found, and holds faults where its owner allows them.

mod alarm;
pub mod blackbox;
mod cache;
pub mod config;
mod disk;
mod driver;
mod faults;
mod health;
pub mod kinds;
mod lanes;
pub mod oneshot;
pub mod policy;
mod resolve;
mod runs;
mod secret;
pub mod selfcheck;
mod stream;
mod trace;
mod typed;

pub use config::ProberConfig;
pub use driver::{Error, run};
#[cfg(feature = "fuzz")]
pub use kinds::fuzz;
pub use kinds::{ProbeContext, RunInfo, RunResult};
