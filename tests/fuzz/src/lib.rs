//! Every parser of bytes from outside, by name: the one list behind the fuzz targets (`fuzz/`, cargo-fuzz) and the bounded, seeded runs that
//! `cargo test -p probity-fuzz` does.
//!
//! An entry takes any bytes, and must neither panic nor take long. [`ENTRIES`] says which parser each one covers; a new parser of outside
//! bytes gets a row there and a file in `fuzz/fuzz_targets` (a test looks). Deliberately absent: what libraries parse before our code sees
//! anything (TLS records, HTTP's framing, HTTP/2, gRPC's frames, QUIC and HTTP/3 by quinn and h3, the Kubernetes and SRV answers' HTTP and DNS), but where
//! our code reads what comes out, real sockets feed them too; HTTP/3 shares its heads, bodies, redirects and judging with the other versions.

mod answers;
mod entries;
pub mod mutate;

/// A parser that is fuzzed.
#[derive(Clone, Copy)]
pub struct Entry {
    /// Name of its target.
    pub name: &'static str,
    /// What it covers: whose bytes, read where.
    pub covers: &'static str,
    /// Takes any bytes.
    pub run: fn(&[u8]),
    /// Inputs that it takes well, to begin from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Of a thousand parts of the usual number of inputs: real sockets take longer.
    pub per_mille: usize,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

macro_rules! entries {
    ($($name:ident: $covers:literal, $run:path, $seeds:path $(, $per_mille:literal)?;)*) => {
        /// All of them.
        pub const ENTRIES: &[Entry] = &[$(Entry {
            name: stringify!($name), covers: $covers, run: $run, seeds: $seeds, per_mille: { let n = 1_000; $(let n = { let _ = n; $per_mille };)? n },
        }),*];
    };
}

entries! {
    dns_message: "answers of DNS servers: prober/src/kinds/dns/answer.rs", probity_prober::fuzz::dns, entries::dns_seeds;
    icmp_packet: "ICMP and ICMPv6 messages, and the packets that they quote: prober/src/kinds/icmp/packet.rs", probity_prober::fuzz::icmp, entries::icmp_seeds;
    certificate: "certificates of servers: prober/src/kinds/certificate.rs", probity_prober::fuzz::certificate, entries::certificate_seeds;
    ocsp: "stapled OCSP responses, and LDAP's reply to StartTLS (the same DER reader): prober/src/kinds/certificate.rs", probity_prober::fuzz::ocsp, entries::ocsp_seeds;
    content_coding: "bodies in gzip, deflate, br and zstd: prober/src/kinds/http/body.rs", probity_prober::fuzz::content_coding, entries::coding_seeds, 300;
    redirect: "redirects: the next URL, and what goes there: prober/src/kinds/http", probity_prober::fuzz::redirect, entries::redirect_seeds;
    blackbox_query: "queries of /probe and the scrape's time-out, as far as the check of each kind of module: prober/src/blackbox", probity_prober::fuzz::blackbox_query, entries::query_seeds;
    grpc_health: "answers of gRPC health: prober/src/kinds/grpc.rs", probity_prober::fuzz::grpc, entries::grpc_seeds;
    server_answers: "whole answers over real connections: HTTP, HTTP/2, proxies, token servers, STARTTLS of each protocol, dialogues, WebSocket, gRPC, DNS over TCP and HTTPS, UDP: prober/src/kinds", answers::run, answers::seeds, 100;
    target: "what a person types after `probity probe`: prober/src/oneshot.rs, typed.rs", entries::target, entries::target_seeds;
    resources: "resource YAML: proto/src/resources", entries::resources, entries::resource_seeds;
    blackbox_yml: "blackbox.yml, and Go's regular expressions in it: proto/src/resources/blackbox", entries::blackbox, entries::blackbox_seeds;
    values: "durations, sizes, JSONPath, pins, resolvers, record types...: proto/src/units.rs, proto/src/resources/probe", entries::values, entries::value_seeds;
    discovery_groups: "bodies of http_sd and file_sd, and what becomes of them: proto/src/discovery.rs", entries::discovery, entries::discovery_seeds;
    kubernetes_list: "lists of a Kubernetes API server: coordinator/src/discovery/kubernetes.rs", probity_coordinator::fuzz::kubernetes, entries::kubernetes_seeds;
    jwt: "tokens and keys of OpenID providers: coordinator/src/openid.rs", probity_coordinator::fuzz::jwt, entries::jwt_seeds;
    credentials: "Authorization headers, join tokens, grants: coordinator/src/gate.rs, proto/rpc/src/enrol.rs, access.rs", entries::credentials, entries::credential_seeds;
    forwarded: "whom a coordinator hands a request on for: coordinator/src/forward.rs", probity_coordinator::fuzz::forwarded, entries::forwarded_seeds;
    shown_certificate: "certificates of peers with their roles, and requests for one: proto/rpc/src/tls.rs, pki.rs", entries::shown_certificate, entries::shown_seeds;
    read_path: "paths and queries of the read API: coordinator/src/view", probity_coordinator::fuzz::read_path, entries::path_seeds;
    peer_message: "messages of other members, on their way to raft: coordinator/replica/src/convert.rs", probity_replica::fuzz::peer_message, entries::peer_seeds;
    raft_step: "the same, taken by a member that follows: coordinator/replica/src/node.rs and raft itself", entries::raft_step, entries::peer_seeds, 200;
    prober_message: "messages of probers, applied to a state whose rules are checked after: proto/schema/fleet.proto, coordinator/core", entries::prober_message, entries::prober_seeds, 300;
    protobufs: "all other messages between parts, and what stands in stores, spools and backups: proto/schema", entries::protobufs, entries::protobuf_seeds;
}

/// The entry of that name.
pub fn entry(name: &str) -> &'static Entry {
    ENTRIES.iter().find(|e| e.name == name).unwrap_or_else(|| panic!("no entry {name:?}"))
}
