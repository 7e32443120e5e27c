//! Real processes on free ports, talked to as a user does; ended by their ids.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its share of it")]

pub mod group;
pub mod net;
pub mod ports;
pub mod small;

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

pub use ports::free_ports;

/// How long anything may take before a test says that it never came. Generous: nothing here measures speed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The command, with nothing of the caller's settings.
pub fn probity(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_probity"));
    for name in ["PROBITY_SERVER", "PROBITY_TLS_DIR", "PROBITY_NAMESPACE", "PROBITY_CONTEXT", "PROBITY_TOKEN", "OTEL_EXPORTER_OTLP_ENDPOINT", "RUST_LOG"] {
        command.env_remove(name);
    }
    command.env("XDG_CONFIG_HOME", "/nowhere");
    command.args(args).stdin(Stdio::null());
    command
}

/// What a finished command said.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Said {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        Said { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// Runs a command to its end.
pub fn run(args: &[&str]) -> Said {
    probity(args).output().expect("probity runs").into()
}

/// A server process; killed when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// Its standard output and error.
    log: PathBuf,
}

impl Server {
    pub fn start(args: &[&str], log: &Path) -> Server {
        Server::start_with(args, &[], log)
    }

    /// With settings in its environment.
    pub fn start_with(args: &[&str], environment: &[(String, String)], log: &Path) -> Server {
        let mut command = probity(args);
        command.envs(environment.iter().cloned());
        Server::spawn(command, log)
    }

    pub fn spawn(mut command: Command, log: &Path) -> Server {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log).expect("a log file");
        let child = command.stdout(file.try_clone().expect("a second handle")).stderr(file).spawn().expect("probity starts");
        Server { child, log: log.to_owned() }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("the signal is sent");
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it holds in memory (VmRSS), in KiB.
    pub fn memory_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or_default();
        line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
    }

    /// Ends it at once, as a crash does.
    pub fn kill9(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().expect("it ended");
    }

    /// Its exit code, once it has ended by itself.
    pub fn ended(&mut self) -> Option<i32> {
        self.child.try_wait().expect("its state").map(|status| status.code().unwrap_or(-1))
    }

    /// Asks it to end, and waits; its exit code.
    pub fn stop(&mut self) -> i32 {
        self.stop_by(Signal::SIGTERM)
    }

    /// Ends it by one signal: a second one would end it at once.
    pub fn stop_by(&mut self, signal: Signal) -> i32 {
        self.signal(signal);
        let ended = wait_for("the server to end", || self.child.try_wait().expect("its state"));
        ended.code().unwrap_or(-1)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Polls until there is something; the test fails when there never is.
pub fn wait_for<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    poll(look).unwrap_or_else(|| panic!("waited in vain for {what}"))
}

fn poll<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = look();
        if found.is_some() || Instant::now() >= deadline {
            return found;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// How to reach a system.
#[derive(Debug, Clone)]
pub struct Client {
    pub server: String,
    pub tls_dir: Option<PathBuf>,
}

impl Client {
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = probity(args);
        command.env("PROBITY_SERVER", &self.server);
        if let Some(dir) = &self.tls_dir {
            command.env("PROBITY_TLS_DIR", dir);
        }
        command
    }

    pub fn run(&self, args: &[&str]) -> Said {
        self.command(args).output().expect("probity runs").into()
    }

    /// A reading as JSON; none while nobody answers.
    pub fn json(&self, args: &[&str]) -> Option<Value> {
        let said = self.run(&[args, &["-o", "json"]].concat());
        serde_json::from_str(&said.out).ok()
    }

    /// Waits until a reading is as wanted.
    pub fn wait_json(&self, what: &str, args: &[&str], wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = None;
        let found = poll(|| {
            last = self.json(args);
            last.clone().filter(&wanted)
        });
        found.unwrap_or_else(|| panic!("waited in vain for {what}; the last was {}", last.unwrap_or_default()))
    }

    /// Applies text; it must be accepted.
    pub fn apply(&self, dir: &Path, text: &str) {
        let file = dir.join("applied.yaml");
        std::fs::write(&file, text).expect("a file");
        let said = self.run(&["apply", "-f", file.to_str().expect("a path")]);
        assert_eq!(said.code, 0, "{said:?}");
    }
}

/// The account of all runs has no hole, and adds up.
pub fn assert_account(status: &Value) {
    let runs = &status["runs"];
    let n = |v: &Value| v.as_i64().unwrap_or(-1);
    let missed: i64 = runs["missed"].as_object().map_or(0, |m| m.values().map(n).sum());
    assert_eq!(n(&runs["unexplained"]), 0, "{runs}");
    assert_eq!(n(&runs["planned"]), n(&runs["good"]) + n(&runs["bad"]) + missed + n(&runs["pending"]), "{runs}");
}

/// Whether an HTTP service answers behind an address.
pub fn answers(address: SocketAddr) -> bool {
    use std::io::Write;
    let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(2)) else { return false };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
    let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n");
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text.starts_with("HTTP/1.1 200")
}

/// What a service on this host answers to a GET, its head included.
pub fn answers_text(port: u16, path: &str) -> Option<String> {
    use std::io::Write;
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

/// A webhook that keeps the bodies it is sent.
#[derive(Debug)]
pub struct Pager {
    pub address: SocketAddr,
    pages: std::sync::Arc<std::sync::Mutex<Vec<Value>>>,
}

impl Pager {
    pub fn start() -> Pager {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let pages: std::sync::Arc<std::sync::Mutex<Vec<Value>>> = Default::default();
        let kept = pages.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Some(page) = take_page(stream) {
                    kept.lock().expect("not poisoned").push(page);
                }
            }
        });
        Pager { address, pages }
    }

    pub fn pages(&self) -> Vec<Value> {
        self.pages.lock().expect("not poisoned").clone()
    }
}

fn take_page(mut stream: TcpStream) -> Option<Value> {
    use std::io::{BufRead, BufReader, Write};
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if let Some(n) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = n.trim().parse().ok()?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").ok()?;
    serde_json::from_slice(&body).ok()
}

/// An SLO of 99 % on a probe's runs, with a policy that pages within seconds of an outage.
pub fn quick_slo(namespace: &str, name: &str, probe: &str) -> String {
    format!(
        r#"apiVersion: openslo/v1
kind: SLO
metadata: {{name: {name}, annotations: {{probity/namespace: {namespace}}}}}
spec:
  service: {name}
  indicator:
    metadata: {{name: good}}
    spec:
      ratioMetric:
        counter: true
        good: {{metricSource: {{type: probity, spec: {{probe: {probe}, outcome: good}}}}}}
        total: {{metricSource: {{type: probity, spec: {{probe: {probe}, unit: run}}}}}}
  timeWindow: [{{duration: 1d, isRolling: true}}]
  budgetingMethod: Occurrences
  objectives: [{{displayName: availability, target: 0.99}}]
  alertPolicies: [{{alertPolicyRef: quick}}]
---
apiVersion: probity/v1
kind: BurnRatePolicy
metadata: {{name: quick, namespace: {namespace}}}
spec: {{rules: [{{name: page, severity: page, burnRate: 14.4, long: 1m, short: 5s}}]}}
"#
    )
}
