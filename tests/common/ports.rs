//! Ports for servers that are started later. The benchmarks take this file too.

use std::net::TcpListener;

/// Free ports on loopback, none given out twice by this process. Below the kernel's ephemeral range (ip_local_port_range, from 32768 on), or somebody's
/// outgoing connection would take one before its server does.
pub fn free_ports(count: usize) -> Vec<u16> {
    static NEXT: std::sync::Mutex<u16> = std::sync::Mutex::new(0);
    let mut next = NEXT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if *next == 0 {
        // Test binaries run one after the other; another checkout's may run beside them.
        *next = 20_000 + (std::process::id() % 10_000) as u16;
    }
    let mut found = Vec::new();
    while found.len() < count {
        *next = if *next >= 32_000 { 20_000 } else { *next + 1 };
        let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok() && std::net::UdpSocket::bind(("127.0.0.1", port)).is_ok();
        if free(*next) {
            found.push(*next);
        }
    }
    found
}
