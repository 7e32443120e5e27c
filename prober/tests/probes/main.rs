//! Probes as somebody writes them, each option against a real server on loopback.

mod bad_targets;
mod budget;
#[path = "../common/mod.rs"]
mod common;
mod frame;
mod http;
mod http3;
mod tcp;
mod tls;
