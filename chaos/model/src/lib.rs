//! The fault vocabulary, and the plan of a game day.
//!
//! Architecture invariant: pure. The same scenario, fleet, parameters and seed give the same plan, always.

mod fault;
mod lease;
mod plan;
mod validate;

pub use fault::{Fault, FaultError, FaultKind, KINDS, ParamKind, kind, undo_word};
pub use lease::Lease;
pub use plan::{PlanProblem, plan};
pub use validate::{SpecProblem, validate};
