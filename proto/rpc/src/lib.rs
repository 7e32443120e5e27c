//! The gRPC services between operators, coordinators and probers: who may speak, how to reach them, what refusals look like.

pub mod access;
pub mod client;
mod connect;
pub mod enrol;
pub mod pki;
pub mod refusal;
pub mod secrets;
pub mod tls;
mod tried;

/// The services and their messages, documented in `schema/api.proto`.
#[allow(missing_docs, clippy::all, rustdoc::all)]
pub mod v1 {
    tonic::include_proto!("probity.v1");
}

/// The largest gRPC message that any part accepts, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
