//! DNSSEC as a real server does it: zones that knot (Debian's) signs, with a delegation that is secure, one that is not, and one that is broken.

mod common;

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::*;
use probity_proto::v1::Reason;

/// Ends with the test.
struct Knot {
    child: Child,
    address: SocketAddr,
    /// Of `example.`
    anchor: String,
    /// Of a zone that is none of its parents.
    other_anchor: String,
    _dir: tempfile::TempDir,
}

impl Drop for Knot {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const ZONES: [&str; 4] = ["example", "shop.example", "plain.example", "broken.example"];

fn keymgr(config: &Path, arguments: &[&str]) -> String {
    let ran = Command::new("keymgr").arg("-c").arg(config).args(arguments).output().expect("keymgr runs");
    assert!(ran.status.success(), "keymgr {arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).expect("text")
}

impl Knot {
    /// None where it is not installed.
    fn start() -> Option<Knot> {
        if Command::new("knotd").arg("--version").stdout(Stdio::null()).status().is_err() {
            println!("SKIPPED: knotd is not installed (Debian's package knot)");
            return None;
        }
        let address = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
        let dir = tempfile::tempdir().expect("a directory");
        let (path, config) = (dir.path().display(), dir.path().join("knot.conf"));
        let mut text = format!("server:\n  rundir: {path}\n  listen: 127.0.0.1@{}\ndatabase:\n  storage: {path}/db\n", address.port());
        text.push_str("policy:\n  - id: signed\n    algorithm: ecdsap256sha256\n    manual: on\n    nsec3: on\nzone:\n");
        for zone in ZONES {
            let signing = if zone == "plain.example" { "" } else { "    dnssec-signing: on\n    dnssec-policy: signed\n" };
            text.push_str(&format!(
                "  - domain: {zone}\n    storage: {path}\n    file: {zone}.zone\n    zonefile-sync: -1\n    zonefile-load: difference\n    journal-content: all\n{signing}"
            ));
        }
        std::fs::write(&config, text).expect("a file");
        std::fs::create_dir(dir.path().join("db")).expect("a directory");
        let signed = ["example.", "shop.example.", "broken.example."];
        for zone in signed {
            for key in ["ksk=yes", "zsk=yes"] {
                keymgr(&config, &[zone, "generate", "algorithm=ecdsap256sha256", key]);
            }
        }
        // DS records with SHA-256 (digest type 2).
        let ds = |zone: &str| keymgr(&config, &[zone, "ds"]).lines().find(|l| l.contains(" 13 2 ")).expect("a DS").to_owned();
        let anchor = |zone: &str| keymgr(&config, &[zone, "dnskey"]).lines().find(|l| l.contains(" 257 ")).expect("a key").to_owned();
        // The broken one's parent knows another key.
        let broken = ds("shop.example.").replace("shop.example.", "broken.example.");
        let delegated: String = ZONES[1..].iter().map(|zone| format!("{zone}. NS ns.example.\n")).collect();
        for zone in ZONES {
            let more = if zone == "example" { format!("{delegated}{}\n{broken}\n", ds("shop.example.")) } else { String::new() };
            let zone_file =
                format!("$TTL 300\n{zone}. SOA ns.example. host.example. 1 3600 600 86400 300\n{zone}. NS ns.example.\nwww.{zone}. A 192.0.2.1\n{more}");
            let glue = if zone == "example" { "ns.example. A 127.0.0.1\n" } else { "" };
            std::fs::write(dir.path().join(format!("{zone}.zone")), zone_file + glue).expect("a file");
        }
        let (anchor, other_anchor) = (anchor("example."), anchor("shop.example.").replace("shop.example.", "example."));
        let log = std::fs::File::create(dir.path().join("log")).expect("a file");
        let child = Command::new("knotd").arg("-c").arg(&config).stdout(log.try_clone().expect("a handle")).stderr(log).spawn().expect("knotd starts");
        Some(Knot { child, address, anchor, other_anchor, _dir: dir })
    }

    /// Until it answers.
    async fn ready(&self) {
        for _ in 0..300 {
            let spec = format!("target: {}\ndns: {{name: www.shop.example, type: RRSIG, expect: {{minAnswers: 1}}}}\ntimeout: 1s", self.address);
            if TcpStream::connect(self.address).is_ok() && probe(&spec).await.reason == Reason::Good {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("knot never answered: {}", std::fs::read_to_string(self._dir.path().join("log")).unwrap_or_default());
    }
}

#[tokio::test]
async fn zones_that_knot_signs() {
    let Some(knot) = Knot::start() else { return };
    knot.ready().await;
    let spec = |name: &str, anchor: &str, more: &str| {
        format!("target: {}\ntimeout: 10s\ndns:\n  name: {name}\n  dnssec: {{anchors: ['{anchor}']}}\n{more}", knot.address)
    };
    for (name, more, anchor, reason, proof) in [
        ("www.example", "", &knot.anchor, Reason::Good, "secure"),
        // By the DS record of its parent.
        ("www.shop.example", "", &knot.anchor, Reason::Good, "secure"),
        ("www.shop.example", "  transport: tcp\n", &knot.anchor, Reason::Good, "secure"),
        // That there is no such name, or no such record, is proven too (NSEC3).
        ("nobody.shop.example", "  expect: {rcodes: [NXDOMAIN]}\n", &knot.anchor, Reason::Good, "secure"),
        ("www.shop.example", "  type: AAAA\n", &knot.anchor, Reason::Good, "secure"),
        ("www.plain.example", "", &knot.anchor, Reason::DnssecInsecure, "insecure"),
        ("www.broken.example", "", &knot.anchor, Reason::DnssecBogus, "bogus"),
        ("www.example", "", &knot.other_anchor, Reason::DnssecBogus, "bogus"),
    ] {
        let result = probe(&spec(name, anchor, more)).await;
        assert_eq!((result.reason, fact(&result, "dns.dnssec")), (reason, proof), "{name} {more}: {}", result.message);
    }
}
