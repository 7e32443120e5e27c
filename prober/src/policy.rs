//! Which addresses may be probed. Holds after resolution, and on every redirect.

use std::net::IpAddr;

/// Where probes may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AddressPolicy {
    /// Anywhere: for one's own one-shot probes and for `up`.
    Anywhere,
    /// This host, but neither its link nor a cloud's metadata service: a prober whose owner allows loopback.
    LoopbackToo,
    /// A cluster's prober: not to this host, its link, or a cloud's metadata service.
    #[default]
    Remote,
}

impl AddressPolicy {
    /// Whether an address may be probed.
    pub fn allows(self, address: IpAddr) -> bool {
        if self == AddressPolicy::Anywhere {
            return true;
        }
        if self == AddressPolicy::LoopbackToo && address.to_canonical().is_loopback() {
            return true;
        }
        match address.to_canonical() {
            // 169.254.0.0/16 holds the clouds' metadata services.
            IpAddr::V4(v4) => !(v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || v4.is_broadcast()),
            IpAddr::V6(v6) => {
                let metadata = v6.segments()[..] == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254];
                !(v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified() || metadata)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prober_of_a_cluster_stays_outside() {
        for (address, allowed) in [
            ("127.0.0.1", false),
            ("::1", false),
            ("169.254.169.254", false),
            ("fe80::1", false),
            ("0.0.0.0", false),
            ("::ffff:127.0.0.1", false),
            ("fd00:ec2::254", false),
            ("10.0.0.1", true),
            ("192.168.1.1", true),
            ("93.184.216.34", true),
        ] {
            let ip: IpAddr = address.parse().expect("an address");
            assert_eq!(AddressPolicy::Remote.allows(ip), allowed, "{address}");
            assert!(AddressPolicy::Anywhere.allows(ip));
            assert_eq!(AddressPolicy::LoopbackToo.allows(ip), allowed || ip.to_canonical().is_loopback(), "{address}");
        }
    }
}
