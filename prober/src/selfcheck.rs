//! The self-check: does this host's own network work? While it does not, what probes find says nothing of their targets.
//!
//! By default it asks for what any probe needs: a default route over an interface that is up, and a resolver that answers. Either
//! counts only once it was seen to work, so that a host that has none (an air-gapped zone, a container on loopback) is not sick for
//! it. `reach` adds addresses of the owner's choice: the prober is sick when none of them can be reached.
//! It does not look at the coordinators: a prober alone, whose targets answer, is well (rule R9).

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

/// A check that failed is tried again so often before it is believed: one lost packet is no sickness.
const TRIES: u32 = 3;
/// Between two checks, however many bad runs ask for one.
const APART: Duration = Duration::from_millis(200);
/// Name servers that are asked, as the C library does (resolv.conf(5)).
const SERVERS_MAX: usize = 3;
/// Results that wait for the driver.
pub(crate) const RESULTS: usize = 4;

/// What to check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelfCheckConfig {
    /// How often, when no run is bad; a bad run asks for one at once.
    pub every: Duration,
    /// For each answer.
    pub timeout: Duration,
    /// A default route over an interface that is up.
    pub route: bool,
    /// A name server of /etc/resolv.conf answers.
    pub resolver: bool,
    /// host:port; at least one of them accepts or refuses a connection.
    pub reach: Vec<String>,
}

impl Default for SelfCheckConfig {
    fn default() -> Self {
        SelfCheckConfig { every: Duration::from_secs(5), timeout: Duration::from_secs(1), route: true, resolver: true, reach: Vec::new() }
    }
}

impl SelfCheckConfig {
    /// No self-check: for a prober whose targets are on its own host.
    pub fn off() -> SelfCheckConfig {
        SelfCheckConfig { route: false, resolver: false, ..SelfCheckConfig::default() }
    }

    /// Whether there is anything to check.
    pub fn is_on(&self) -> bool {
        self.route || self.resolver || !self.reach.is_empty()
    }
}

/// One check is over.
#[derive(Debug)]
pub(crate) struct Checked {
    /// When it began.
    pub(crate) began: Instant,
    /// What failed.
    pub(crate) failed: Option<String>,
}

/// What was seen to work since the start.
#[derive(Debug, Default)]
struct Seen {
    route: bool,
    resolver: bool,
}

/// Checks now and then, and whenever `asked`, until `stop`.
pub(crate) async fn run(config: SelfCheckConfig, asked: Arc<Notify>, results: mpsc::Sender<Checked>, stop: CancellationToken) {
    let mut seen = Seen::default();
    loop {
        let began = Instant::now();
        let failed = tokio::select! {
            () = stop.cancelled() => return,
            failed = check(&config, &mut seen) => failed,
        };
        if results.send(Checked { began, failed }).await.is_err() {
            return;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(APART) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = asked.notified() => {}
            () = tokio::time::sleep(config.every) => {}
        }
    }
}

/// What fails, after some tries.
async fn check(config: &SelfCheckConfig, seen: &mut Seen) -> Option<String> {
    let mut failed = None;
    for _ in 0..TRIES {
        let began = Instant::now();
        failed = once(config, seen).await;
        failed.as_ref()?;
        // What fails at once gets as long as what fails by time-out.
        tokio::time::sleep(config.timeout.saturating_sub(began.elapsed())).await;
    }
    failed
}

async fn once(config: &SelfCheckConfig, seen: &mut Seen) -> Option<String> {
    if config.route {
        let up = default_route_is_up(Path::new("/"));
        if seen.route && !up {
            return Some("no default route over an interface that is up".to_owned());
        }
        seen.route |= up;
    }
    if config.resolver {
        let servers = name_servers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
        let answers = any(servers.iter().map(|s| answers(SocketAddr::new(*s, 53), config.timeout))).await;
        if seen.resolver && !answers {
            let names: Vec<String> = servers.iter().map(IpAddr::to_string).collect();
            return Some(format!("no name server answers ({})", names.join(", ")));
        }
        seen.resolver |= answers;
    }
    if !config.reach.is_empty() && !any(config.reach.iter().map(|address| reaches(address, config.timeout))).await {
        return Some(format!("none of {} can be reached", config.reach.join(", ")));
    }
    None
}

/// Whether one of them is true; the others are not waited for.
async fn any(checks: impl Iterator<Item = impl Future<Output = bool>>) -> bool {
    use futures_util::StreamExt;
    let mut checks: futures_util::stream::FuturesUnordered<_> = checks.collect();
    while let Some(one) = checks.next().await {
        if one {
            return true;
        }
    }
    false
}

/// By Linux's tables below `root`: /proc/net/route, /proc/net/ipv6_route and /sys/class/net.
fn default_route_is_up(root: &Path) -> bool {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    let v4 = read("proc/net/route");
    let v6 = read("proc/net/ipv6_route");
    let v4 = v4.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        (fields.get(1) == Some(&"00000000") && fields.get(7) == Some(&"00000000")).then(|| fields[0])
    });
    let v6 = v6.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        (fields.len() == 10 && fields[0].bytes().all(|b| b == b'0') && fields[1] == "00" && fields[9] != "lo").then(|| fields[9])
    });
    // Tunnels say "unknown", which is no "down".
    v4.chain(v6).any(|interface| read(&format!("sys/class/net/{interface}/operstate")).trim() != "down")
}

fn name_servers(resolv_conf: &str) -> Vec<IpAddr> {
    let servers = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok());
    servers.take(SERVERS_MAX).collect()
}

/// Whether a name server answers a question for the root's NS records (RFC 1035, section 4.1). A failure of its own is no answer.
async fn answers(server: SocketAddr, timeout: Duration) -> bool {
    let id: [u8; 2] = rand::random::<u16>().to_be_bytes();
    let question = [id[0], id[1], 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
    let ask = async {
        let local = SocketAddr::new(if server.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) }, 0);
        let socket = UdpSocket::bind(local).await.ok()?;
        socket.connect(server).await.ok()?;
        socket.send(&question).await.ok()?;
        let mut answer = [0; 512];
        loop {
            let length = socket.recv(&mut answer).await.ok()?;
            // Its id, a response, and any code but SERVFAIL.
            if length >= 12 && answer[..2] == id && answer[2] & 0x80 != 0 {
                return Some(answer[3] & 0x0f != 2);
            }
        }
    };
    tokio::time::timeout(timeout, ask).await.ok().flatten().unwrap_or(false)
}

/// Whether somebody is there: a refusal comes from the other end, too.
async fn reaches(address: &str, timeout: Duration) -> bool {
    match tokio::time::timeout(timeout, TcpStream::connect(address)).await {
        Ok(Ok(_)) => true,
        Ok(Err(e)) => e.kind() == std::io::ErrorKind::ConnectionRefused,
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(v4: &str, v6: &str, states: &[(&str, &str)]) -> bool {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("below the root")).expect("a directory");
            std::fs::write(path, text).expect("a file");
        };
        write("proc/net/route", &format!("Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n{v4}"));
        write("proc/net/ipv6_route", v6);
        states.iter().for_each(|(interface, state)| write(&format!("sys/class/net/{interface}/operstate"), state));
        default_route_is_up(dir.path())
    }

    #[test]
    fn a_default_route_needs_an_interface_that_is_up() {
        let v4 = "eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\neth0\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let zero = "0".repeat(32);
        let v6 = |interface: &str| format!("{zero} 00 {zero} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003 {interface}\n");
        assert!(tables(v4, "", &[("eth0", "up\n")]));
        assert!(tables(v4, "", &[("eth0", "unknown\n")]));
        assert!(!tables(v4, "", &[("eth0", "down\n")]));
        assert!(!tables(v4.lines().nth(1).expect("a line"), "", &[("eth0", "up\n")]), "a route to one network");
        assert!(tables("", &v6("eth1"), &[("eth1", "up\n")]));
        assert!(!tables("", &v6("lo"), &[("lo", "unknown\n")]), "the kernel's own unreachable route");
        assert!(!tables("", "", &[]));
    }

    #[test]
    fn name_servers_are_read_as_the_c_library_does() {
        let text =
            "# nameserver 9.9.9.9\nsearch example.com\nnameserver 10.0.0.2\n nameserver\t::1 \nnameserver nonsense\nnameserver 1.1.1.1\nnameserver 8.8.8.8\n";
        assert_eq!(name_servers(text).iter().map(IpAddr::to_string).collect::<Vec<_>>(), ["10.0.0.2", "::1", "1.1.1.1"]);
    }

    /// A name server that answers with this code, and with nonsense before.
    async fn server(code: u8) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let address = socket.local_addr().expect("its address");
        tokio::spawn(async move {
            let mut question = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut question).await {
                let mut answer = question[..length].to_vec();
                let _ = socket.send_to(&[1, 2, 3], from).await;
                answer[2] |= 0x80;
                answer[3] = code;
                let _ = socket.send_to(&answer, from).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn an_answer_is_any_but_a_failure() {
        let patience = Duration::from_secs(5);
        assert!(answers(server(0).await, patience).await);
        assert!(answers(server(5).await, patience).await, "refused: it is there");
        assert!(!answers(server(2).await, patience).await, "it cannot resolve anything itself");
        let nobody = UdpSocket::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("its address");
        assert!(!answers(nobody, Duration::from_millis(200)).await);
    }

    #[tokio::test]
    async fn none_of_several_addresses_is_a_sickness() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address").to_string();
        let config = |reach: &[&str]| SelfCheckConfig {
            reach: reach.iter().map(|r| (*r).to_owned()).collect(),
            timeout: Duration::from_millis(200),
            ..SelfCheckConfig::off()
        };
        let mut seen = Seen::default();
        assert_eq!(check(&config(&["name.invalid:1", &closed]), &mut seen).await, None, "a refusal is an answer");
        let failed = check(&config(&["name.invalid:1"]), &mut seen).await;
        assert_eq!(failed.as_deref(), Some("none of name.invalid:1 can be reached"));
    }
}
