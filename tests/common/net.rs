//! Hosts of their own: network namespaces on one bridge, whose links can be cut, one way too. They need root; without it everybody lives on loopback.

use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};

/// Where packets go that must not arrive: an address that nobody has.
const NOWHERE: &str = "02:00:00:00:be:ef";

/// A small network; gone when dropped.
#[derive(Debug)]
pub struct Net {
    /// Namespace of each host; none on loopback.
    names: Vec<Option<String>>,
    bridge: String,
    subnet: u8,
}

fn ip(args: &[&str]) -> bool {
    Command::new("ip").args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

impl Net {
    /// Hosts 0, 1, ... and this process, all of which reach each other.
    pub fn start(hosts: usize) -> Net {
        let id = std::process::id() % 10_000;
        let (bridge, subnet) = (format!("pb{id}"), (id % 250) as u8);
        let mut net = Net { names: (0..hosts).map(|h| Some(format!("pb{id}h{h}"))).collect(), bridge, subnet };
        let made = nix::unistd::geteuid().is_root()
            && ip(&["link", "add", &net.bridge, "type", "bridge"])
            && ip(&["addr", "add", &format!("{}/24", net.here()), "dev", &net.bridge])
            && ip(&["link", "set", &net.bridge, "up"])
            && (0..hosts).all(|h| net.add(h));
        if !made {
            eprintln!("SKIPPED in part: no links are cut, since network namespaces cannot be made here (that needs root and iproute2)");
            net.remove();
            net.names = vec![None; hosts];
        }
        net
    }

    fn add(&self, host: usize) -> bool {
        let Some(name) = &self.names[host] else { return false };
        let (outer, address) = (format!("{name}o"), format!("{}/24", self.address(host)));
        ip(&["netns", "add", name])
            && ip(&["link", "add", &outer, "type", "veth", "peer", "name", "eth0", "netns", name])
            && ip(&["link", "set", &outer, "master", &self.bridge, "up"])
            && ip(&["-n", name, "addr", "add", &address, "dev", "eth0"])
            && ip(&["-n", name, "link", "set", "lo", "up"])
            && ip(&["-n", name, "link", "set", "eth0", "up"])
    }

    /// Whether links can be cut.
    pub fn has_links(&self) -> bool {
        self.names.iter().all(Option::is_some)
    }

    pub fn address(&self, host: usize) -> IpAddr {
        self.at(1 + host as u8)
    }

    /// This process's own.
    pub fn here(&self) -> IpAddr {
        self.at(254)
    }

    fn at(&self, last: u8) -> IpAddr {
        if self.names.iter().all(Option::is_some) { Ipv4Addr::new(10, 231, self.subnet, last).into() } else { Ipv4Addr::LOCALHOST.into() }
    }

    /// Runs a command on a host. The process keeps the id that it is started with.
    pub fn on(&self, host: usize, command: Command) -> Command {
        let Some(name) = &self.names[host] else { return command };
        let mut inside = Command::new("ip");
        inside.args(["netns", "exec", name]).arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(key, value),
                None => inside.env_remove(key),
            };
        }
        inside
    }

    /// What one host sends another gets lost, silently, or not any more.
    pub fn cut(&self, from: usize, to: usize, on: bool) {
        let Some(name) = &self.names[from] else { return };
        let to = self.address(to).to_string();
        let done = if on {
            ip(&["-n", name, "neigh", "replace", &to, "lladdr", NOWHERE, "dev", "eth0", "nud", "permanent"])
        } else {
            ip(&["-n", name, "neigh", "del", &to, "dev", "eth0"])
        };
        assert!(done, "the link of host {from} to {to}");
    }

    fn remove(&self) {
        for name in self.names.iter().flatten() {
            ip(&["netns", "del", name]);
        }
        ip(&["link", "del", &self.bridge]);
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if self.has_links() {
            self.remove();
        }
    }
}
