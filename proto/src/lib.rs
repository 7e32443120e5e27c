//! What two parties of Probity must agree on: messages, resources, reasons, ids.
//!
//! Architecture invariant: this crate is pure. It never reads a clock, a file or a socket, and it knows no async runtime.

/// The prost messages of `schema/`, documented there.
#[allow(missing_docs, clippy::all, rustdoc::all)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/probity.v1.rs"));
}

pub mod bugs;
pub mod check;
pub mod discovery;
pub mod lower;
pub mod reason;
pub mod resources;
pub mod slots;
pub mod units;
