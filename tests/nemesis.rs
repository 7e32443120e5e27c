//! Real processes for a while among kills, pauses, cut links and full disks, while clients write and read and probers report. At the end the history is
//! checked by somebody else than those who made it: nothing that was acknowledged is lost or done twice, no run is invented, every slot is accounted for.
//!
//! `PROBITY_NEMESIS_SECONDS=300 PROBITY_NEMESIS_SEED=7 cargo test --test nemesis -- --nocapture` runs longer, and the same course again (as far as a
//! machine's timing lets it).

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::net::Net;
use common::small::Small;
use common::{Client, Server, assert_account, free_ports, probity, wait_for};
use nix::sys::signal::Signal;
use rand::{Rng, SeedableRng};
use serde_json::Value;

const COORDINATORS: usize = 3;
const PROBERS: usize = 2;
const HOSTS: usize = COORDINATORS + PROBERS;
const WRITERS: usize = 2;
/// Keys of one writer.
const KEYS: u64 = 5;
/// Reasons why a slot may have no run: its prober was dead, or stood still. Neither a spool that was lost nor one that dropped rows.
const EXCUSED: [&str; 6] = ["prober_off", "overloaded", "assigned_late", "prober_sick", "prober_lost", "prober_error"];

/// Five hosts: three coordinators, two probers.
struct System {
    net: Net,
    processes: Vec<Option<Server>>,
    started: Vec<Instant>,
    configs: Vec<PathBuf>,
    disks: Vec<Option<Small>>,
    client: Client,
}

impl System {
    fn start(dir: &Path) -> System {
        let net = Net::start(HOSTS);
        let ports = free_ports(2 * COORDINATORS);
        let tls = dir.join("tls");
        let server = |i: usize| SocketAddr::new(net.address(i), ports[i]).to_string();
        let mut ca = vec!["ca".to_owned(), "init".to_owned(), "--dir".to_owned(), tls.display().to_string(), "--admin".to_owned(), "me".to_owned()];
        ca.extend((0..COORDINATORS).flat_map(|i| ["--coordinator".to_owned(), format!("c{}={}", i + 1, net.address(i))]));
        ca.extend((0..PROBERS).flat_map(|i| ["--prober".to_owned(), format!("e{}", i + 1)]));
        let made = probity(&ca.iter().map(String::as_str).collect::<Vec<_>>()).output().expect("probity runs");
        assert!(made.status.success(), "{made:?}");
        let servers: Vec<String> = (0..COORDINATORS).map(server).collect();
        let members: Vec<String> = servers.iter().enumerate().map(|(i, s)| format!("c{}: \"{s}\"", i + 1)).collect();
        let (mut configs, mut disks) = (Vec::new(), Vec::new());
        for host in 0..HOSTS {
            let name = if host < COORDINATORS { format!("c{}", host + 1) } else { format!("e{}", host - COORDINATORS + 1) };
            let data = dir.join(&name);
            disks.push(if host < COORDINATORS { Small::mount(&data, "64m") } else { None });
            let common = format!("name: {name}\ndataDir: {}\ntls: {{dir: {}}}\nallowLoopback: true\n", data.display(), tls.join(&name).display());
            let text = if host < COORDINATORS {
                let (http, grpc) = (SocketAddr::new(net.address(host), ports[COORDINATORS + host]), &servers[host]);
                format!(
                    "cluster: test\nlisten: {{http: \"{http}\", grpc: \"{grpc}\"}}\nadvertise: \"{grpc}\"\ninitialMembers: {{{}}}\n{common}",
                    members.join(", ")
                )
            } else {
                format!("coordinators: [{}]\nlabels: {{zone: {name}}}\n{common}", servers.iter().map(|s| format!("\"{s}\"")).collect::<Vec<_>>().join(", "))
            };
            let path = dir.join(format!("{name}.yaml"));
            std::fs::write(&path, text).expect("a file");
            configs.push(path);
        }
        let client = Client { server: servers.join(","), tls_dir: Some(tls.join("me")) };
        let mut system = System { net, processes: (0..HOSTS).map(|_| None).collect(), started: vec![Instant::now(); HOSTS], configs, disks, client };
        (0..HOSTS).for_each(|host| system.run(host));
        wait_for("the cluster to form", || (system.client.run(&["cluster", "init"]).code == 0).then_some(()));
        system.client.wait_json("both probers", &["status"], |s| s["probers"]["alive"] == PROBERS);
        system
    }

    fn run(&mut self, host: usize) {
        let what = if host < COORDINATORS { "coordinator" } else { "prober" };
        let config = self.configs[host].display().to_string();
        let command = self.net.on(host, probity(&[what, "--config", &config]));
        self.started[host] = Instant::now();
        self.processes[host] = Some(Server::spawn(command, &self.configs[host].with_extension("log")));
    }

    fn process(&mut self, host: usize) -> &mut Server {
        self.processes[host].as_mut().expect("it was started")
    }
}

/// What is done to a host, and taken back later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Harm {
    Killed,
    RestartedInOrder,
    Paused,
    CutOff,
    OneLinkCutOneWay,
    DiskFull,
}

struct Nemesis {
    rng: rand::rngs::StdRng,
    /// What is going on: the host, another one for a link, until when.
    active: Vec<(Harm, usize, usize, Instant)>,
    done: BTreeMap<Harm, u64>,
    ended_by_themselves: u64,
}

impl Nemesis {
    fn turn(&mut self, system: &mut System) {
        let now = Instant::now();
        let over: Vec<_> = self.active.iter().copied().filter(|(.., until)| *until <= now).collect();
        self.active.retain(|(.., until)| *until > now);
        for (harm, host, other, _) in over {
            Self::undo(system, harm, host, other);
        }
        self.keep_up(system);
        if self.active.len() < 2 && self.rng.random_bool(0.5) {
            self.harm(system);
        }
    }

    /// What a service manager does for a process that ended by itself.
    fn keep_up(&mut self, system: &mut System) {
        for host in 0..HOSTS {
            let down = self.active.iter().any(|(harm, h, ..)| *h == host && *harm == Harm::Killed);
            if !down && system.process(host).ended().is_some() {
                self.ended_by_themselves += 1;
                system.run(host);
            }
        }
    }

    fn harm(&mut self, system: &mut System) {
        let host = self.rng.random_range(0..HOSTS);
        let other = (host + self.rng.random_range(1..HOSTS)) % HOSTS;
        let harm = match self.rng.random_range(0..9) {
            0 | 1 => Harm::Killed,
            2 => Harm::RestartedInOrder,
            3 | 4 => Harm::Paused,
            5 => Harm::CutOff,
            6 | 7 => Harm::OneLinkCutOneWay,
            _ => Harm::DiskFull,
        };
        let possible = match harm {
            Harm::CutOff | Harm::OneLinkCutOneWay => system.net.has_links(),
            Harm::DiskFull => system.disks[host].is_some(),
            // Before it listens to it, a signal ends a process at once.
            Harm::RestartedInOrder => system.started[host].elapsed() > Duration::from_secs(3),
            _ => true,
        };
        // One thing at a time for a host: a dead process is not paused.
        if !possible || self.active.iter().any(|(_, h, o, _)| [*h, *o].contains(&host) || *h == other) {
            return;
        }
        match harm {
            Harm::Killed => system.process(host).kill9(),
            Harm::RestartedInOrder => {
                assert_eq!(system.process(host).stop(), 0, "{}", system.process(host).log());
                system.run(host);
            }
            Harm::Paused => system.process(host).signal(Signal::SIGSTOP),
            Harm::CutOff => (0..HOSTS).filter(|o| *o != host).for_each(|o| system.net.cut(host, o, true)),
            Harm::OneLinkCutOneWay => system.net.cut(host, other, true),
            Harm::DiskFull => system.disks[host].as_ref().expect("a disk of its own").fill(),
        }
        *self.done.entry(harm).or_default() += 1;
        let lasts = Duration::from_millis(self.rng.random_range(200..4_000));
        self.active.push((harm, host, other, Instant::now() + lasts));
    }

    fn undo(system: &mut System, harm: Harm, host: usize, other: usize) {
        match harm {
            Harm::Killed => system.run(host),
            Harm::RestartedInOrder => {}
            Harm::Paused => system.process(host).signal(Signal::SIGCONT),
            Harm::CutOff => (0..HOSTS).filter(|o| *o != host).for_each(|o| system.net.cut(host, o, false)),
            Harm::OneLinkCutOneWay => system.net.cut(host, other, false),
            Harm::DiskFull => system.disks[host].as_ref().expect("a disk of its own").free(),
        }
    }

    fn heal(&mut self, system: &mut System) {
        for (harm, host, other, _) in std::mem::take(&mut self.active) {
            Self::undo(system, harm, host, other);
        }
    }
}

/// What a writer knows of one key.
#[derive(Debug, Default, Clone)]
struct Key {
    acknowledged: u64,
    /// Written, and never answered: may be there, now or later.
    unknown: BTreeSet<u64>,
}

impl Key {
    fn may_hold(&self, value: u64, since: u64) -> bool {
        value >= since || self.unknown.contains(&value)
    }
}

type History = Arc<Mutex<BTreeMap<String, Key>>>;

/// Everything that ever was acknowledged.
#[derive(Debug, Default)]
struct Written {
    acknowledged: BTreeSet<(String, u64)>,
    unknown: u64,
}

fn write(client: &Client, dir: &Path, writer: usize, history: &History, stop: &AtomicBool) -> Written {
    let file = dir.join(format!("writer-{writer}.yaml"));
    let mut written = Written::default();
    for n in 1.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("w{writer}-{}", n % KEYS);
        let text = format!("apiVersion: probity/v1\nkind: Receiver\nmetadata: {{name: {name}}}\nspec: {{webhook: {{url: \"http://127.0.0.1:9/{n}\"}}}}\n");
        std::fs::write(&file, text).expect("a file");
        history.lock().expect("whole").entry(name.clone()).or_default().unknown.insert(n);
        let said = client.run(&["apply", "-f", &file.display().to_string()]);
        assert!([0, 1, 3].contains(&said.code), "{said:?}");
        if said.code == 0 {
            let mut history = history.lock().expect("whole");
            let key = history.get_mut(&name).expect("it was noted");
            key.unknown.remove(&n);
            key.acknowledged = n;
            written.acknowledged.insert((name, n));
        } else {
            written.unknown += 1;
        }
    }
    written
}

fn values(receivers: &Value) -> BTreeMap<String, u64> {
    let items = receivers["items"].as_array().cloned().unwrap_or_default();
    let value = |item: &Value| {
        let name = item["metadata"]["name"].as_str()?.to_owned();
        let n = item["spec"]["webhook"]["url"].as_str()?.rsplit('/').next()?.parse().ok()?;
        Some((name, n))
    };
    items.iter().filter_map(value).collect()
}

/// Reads are linearizable: what was acknowledged before one began is in it. How many there were.
fn read(client: &Client, history: &History, stop: &AtomicBool) -> u64 {
    let mut reads = 0;
    while !stop.load(Ordering::Relaxed) {
        let before = history.lock().expect("whole").clone();
        if let Some(receivers) = client.json(&["get", "receivers"]).filter(|r| r["items"].is_array()) {
            let (found, after) = (values(&receivers), history.lock().expect("whole").clone());
            for (name, key) in before.iter().filter(|(_, k)| k.acknowledged > 0) {
                let value = found.get(name).copied().unwrap_or(0);
                assert!(after[name].may_hold(value, key.acknowledged) || key.may_hold(value, key.acknowledged), "{name} is {value}, after {key:?}");
            }
            reads += 1;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    reads
}

/// A target that counts who came.
fn target(at: IpAddr) -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind((at, 0)).expect("a free port");
    let (address, seen) = (listener.local_addr().expect("its address"), Arc::new(AtomicU64::new(0)));
    let count = seen.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            count.fetch_add(u64::from(stream.is_ok()), Ordering::Relaxed);
        }
    });
    (address, seen)
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn among_kills_pauses_cuts_and_full_disks_nothing_is_lost() {
    let seconds = setting("PROBITY_NEMESIS_SECONDS").unwrap_or(30);
    let seed = setting("PROBITY_NEMESIS_SEED").unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    eprintln!("PROBITY_NEMESIS_SEED={seed}, {seconds} s");
    let dir = tempfile::tempdir().expect("a directory");
    let mut system = System::start(dir.path());
    let client = system.client.clone();
    let (target, seen) = target(system.net.here());
    client.apply(
        dir.path(),
        &format!(
            "apiVersion: probity/v1\nkind: Probe\nmetadata: {{name: target}}\nspec: {{interval: 200ms, timeout: 150ms, target: \"{target}\", tcp: {{}}, placement: {{count: {PROBERS}}}}}\n"
        ),
    );
    let (history, stop) = (History::default(), Arc::new(AtomicBool::new(false)));
    let writers: Vec<_> = (0..WRITERS)
        .map(|w| {
            let (client, dir, history, stop) = (client.clone(), dir.path().to_owned(), history.clone(), stop.clone());
            std::thread::spawn(move || write(&client, &dir, w, &history, &stop))
        })
        .collect();
    let reader = {
        let (client, history, stop) = (client.clone(), history.clone(), stop.clone());
        std::thread::spawn(move || read(&client, &history, &stop))
    };
    let mut nemesis = Nemesis { rng: rand::rngs::StdRng::seed_from_u64(seed), active: Vec::new(), done: BTreeMap::new(), ended_by_themselves: 0 };
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end && !reader.is_finished() {
        nemesis.turn(&mut system);
        std::thread::sleep(Duration::from_millis(200));
    }
    nemesis.heal(&mut system);
    let healed = |s: &Value| {
        s["probers"]["alive"] == PROBERS
            && s["members"].as_array().is_some_and(|m| m.len() == COORDINATORS && m.iter().all(|m| m["lagEntries"].as_u64() < Some(50)))
    };
    let deadline = Instant::now() + common::PATIENCE;
    while !client.json(&["status"]).is_some_and(|s| healed(&s)) {
        assert!(Instant::now() < deadline, "healed, and not whole again: {:?}", client.run(&["status"]));
        nemesis.keep_up(&mut system);
        std::thread::sleep(Duration::from_millis(200));
    }
    stop.store(true, Ordering::Relaxed);
    let written: Vec<Written> = writers.into_iter().map(|w| w.join().expect("a writer that saw nothing wrong")).collect();
    let reads = reader.join().expect("a reader that saw nothing wrong");

    // What was acknowledged is there, and was done once.
    let found = values(&client.wait_json("the receivers", &["get", "receivers"], |r| r["items"].is_array()));
    for (name, key) in history.lock().expect("whole").iter().filter(|(_, k)| k.acknowledged > 0) {
        let value = found.get(name).copied().unwrap_or(0);
        assert!(value == key.acknowledged || key.unknown.contains(&value), "{name} is {value}, {key:?}");
    }
    let audit = client.wait_json("the audit", &["audit"], |a| a["items"].is_array());
    let mut recorded: BTreeMap<(String, u64), u64> = BTreeMap::new();
    for item in audit["items"].as_array().expect("items") {
        let name = item["status"]["subject"].as_str().and_then(|s| s.strip_prefix("Receiver/"));
        let after = item["status"]["after"].to_string();
        let value = after.split("http://127.0.0.1:9/").nth(1).and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()).and_then(|n| n.parse().ok());
        if let (Some(name), Some(value)) = (name, value) {
            *recorded.entry((name.to_owned(), value)).or_default() += 1;
        }
    }
    let acknowledged: BTreeSet<_> = written.iter().flat_map(|w| w.acknowledged.iter().cloned()).collect();
    assert!(acknowledged.len() > 10, "little was written: {written:?}");
    for change in &acknowledged {
        assert_eq!(recorded.get(change), Some(&1), "{change:?} was acknowledged");
    }
    assert!(recorded.values().all(|n| *n == 1), "done twice: {recorded:?}");

    // Every slot is accounted for, and no run is invented.
    let status = client.wait_json("the last rows", &["status"], |s| s["runs"]["pending"].as_u64() < Some(120));
    assert_account(&status);
    let runs = &status["runs"];
    let good = runs["good"].as_u64().unwrap_or(0);
    assert!(good > 0 && good <= seen.load(Ordering::Relaxed), "{good} good runs, {} came", seen.load(Ordering::Relaxed));
    for reason in runs["missed"].as_object().into_iter().flat_map(|m| m.keys()) {
        assert!(EXCUSED.contains(&reason.as_str()), "{runs}");
    }
    wait_for("equal states", || {
        let mut hashes = BTreeSet::new();
        for server in client.server.split(',') {
            let one = Client { server: server.to_owned(), ..client.clone() };
            let status = one.json(&["status", "--stale"])?;
            hashes.insert((status["stateHashIndex"].as_u64()?, status["stateHash"].as_str()?.to_owned()));
        }
        (hashes.len() == 1).then_some(())
    });
    for host in 0..HOSTS {
        let log = system.process(host).log();
        assert!(!log.contains("panicked"), "{log}");
    }
    let unknown: u64 = written.iter().map(|w| w.unknown).sum();
    eprintln!("{:?}, {} ended by themselves", nemesis.done, nemesis.ended_by_themselves);
    eprintln!("{} writes acknowledged, {unknown} unknown, {reads} reads, runs {runs}", acknowledged.len());
}
