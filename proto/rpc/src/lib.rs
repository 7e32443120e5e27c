//! The gRPC services between operators, coordinators and probers, and the clients that speak them.

/// The services and their messages, documented in `schema/api.proto`.
#[allow(missing_docs, clippy::all, rustdoc::all)]
pub mod v1 {
    tonic::include_proto!("probity.v1");
}
