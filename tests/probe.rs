//! `probity probe` against services of this test: exit codes, reasons, phases that add up.

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;

use common::run;
use serde_json::Value;

/// Answers every connection with the same bytes.
fn serve(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("its address").to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4_096]);
            let _ = stream.write_all(answer);
        }
    });
    address
}

fn probe(args: &[&str]) -> (i32, Value) {
    let said = run(&[&["probe", "-o", "json"], args].concat());
    let value: Value = serde_json::from_str(&said.out).unwrap_or_else(|e| panic!("{e}: {said:?}"));
    (said.code, value["items"][0].clone())
}

#[test]
fn a_run_says_what_it_found() {
    let ok = serve(b"HTTP/1.1 200 OK\r\ncontent-length: 15\r\nconnection: close\r\n\r\n{\"status\":\"ok\"}");
    let broken = serve(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let noise = serve(b"\x00\x01\x02 this is no HTTP \xff\xfe\r\n\r\n");
    let closed = format!("127.0.0.1:{}", common::free_ports(1)[0]);
    let cases: &[(&[&str], i32, &str)] = &[
        (&[&format!("http://{ok}/")], 0, "good"),
        (&[&format!("http://{ok}/"), "--expect-body", "\"ok\""], 0, "good"),
        (&[&format!("http://{ok}/"), "--expect-body", "closed"], 1, "body_mismatch"),
        (&[&format!("http://{ok}/"), "--expect-status", "204"], 1, "status_mismatch"),
        (&[&format!("http://{broken}/")], 1, "status_mismatch"),
        (&[&format!("http://{noise}/")], 1, "protocol_error"),
        (&[&format!("http://{closed}/")], 1, "connect_refused"),
        (&[&ok], 0, "good"),
        (&[&format!("tcp://{closed}")], 1, "connect_refused"),
        (&[&format!("https://{noise}/")], 1, "tls_handshake"),
    ];
    for (args, code, reason) in cases {
        let (got, item) = probe(args);
        assert_eq!((got, item["reason"].as_str()), (*code, Some(*reason)), "{args:?}: {item}");
        let phases = item["phases"].as_array().expect("phases");
        let sum: f64 = phases.iter().map(|p| p["durationSeconds"].as_f64().expect("seconds")).sum();
        let whole = item["durationSeconds"].as_f64().expect("seconds");
        assert!((sum - whole).abs() < 1e-5 * phases.len() as f64, "phases take {sum}, the run {whole}: {item}");
    }
}

#[test]
fn the_waterfall_has_a_bar_for_each_phase() {
    let ok = serve(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok");
    let said = run(&["probe", &format!("http://{ok}/")]);
    assert_eq!(said.code, 0, "{said:?}");
    for phase in ["resolve", "connect", "request", "first_byte", "transfer"] {
        assert!(said.out.lines().any(|l| l.trim_start().starts_with(phase) && l.contains('=')), "{phase}: {said:?}");
    }
    assert!(!said.out.contains('\u{1b}'), "no colours where there is no terminal");
}

/// Answers every request with itself.
fn echo() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("its address").to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = vec![0; 4_096];
            let n = stream.read(&mut request).unwrap_or(0);
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {n}\r\nx-a: one\r\nconnection: close\r\n\r\n");
            let _ = stream.write_all(&[head.as_bytes(), &request[..n]].concat());
        }
    });
    address
}

#[test]
fn flags_as_curl_has_them() {
    let echo = echo();
    let port = echo.rsplit(':').next().expect("a port");
    let moved = serve(b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let url = format!("http://{echo}/");
    let named = format!("http://shop.test:{port}/");
    let given = format!("shop.test:{port}:127.0.0.1");
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("body");
    std::fs::write(&file, "from a file").expect("a file");
    let file = format!("@{}", file.display());
    let cases: &[(&[&str], i32, &str)] = &[
        (&[&url, "-d", "hello", "--expect-match", "^POST .*"], 0, "good"),
        (&[&url, "-d", &file, "--expect-body", "from a file"], 0, "good"),
        (&[&url, "--json", "{\"a\": 1}", "--expect-body", "content-type: application/json"], 0, "good"),
        (&[&url, "-F", "a=b c", "--expect-body", "a=b+c"], 0, "good"),
        (&[&url, "-X", "PUT", "-H", "X-B: two", "--expect-body", "x-b: two"], 0, "good"),
        (&[&url, "-u", "me:pw", "--expect-body", "Basic bWU6cHc="], 0, "good"),
        (&[&url, "--expect-header", "x-a: one", "--expect-header", "x-a"], 0, "good"),
        (&[&url, "--expect-header", "x-b"], 1, "header_mismatch"),
        (&[&url, "--max-duration", "1us"], 1, "too_slow"),
        (&[&url, "--invert"], 1, "reachable"),
        (&[&url, "-6"], 1, "dns_no_address"),
        (&[&url, "--source", "127.0.0.5", "-4"], 0, "good"),
        (&[&named, "--resolve", &given, "--expect-body", "host: shop.test"], 0, "good"),
        (&[&url, "--compressed", "--expect-body", "accept-encoding: gzip, br, zstd, deflate"], 0, "good"),
        (&[&url, "-x", &format!("http://{echo}"), "--expect-body", &format!("GET {url} HTTP/1.1")], 0, "good"),
        (&[&format!("http://{moved}/"), "-L", "--max-redirs", "2"], 1, "redirect_loop"),
        (&[&echo, "--send", "hello\\n", "--expect", "hello"], 0, "good"),
        (&[&format!("tls://{echo}"), "--min-days", "5"], 1, "tls_handshake"),
    ];
    for (args, code, reason) in cases {
        let (got, item) = probe(args);
        assert_eq!((got, item["reason"].as_str()), (*code, Some(*reason)), "{args:?}: {item}");
    }
    for wrong in [&["--json", "{"][..], &["--pin", "x"], &["--family", "5"], &["-x", "ftp://x"], &["--key", "x"], &["--cacert", "/nowhere/ca.pem"]] {
        assert_eq!(run(&[&["probe", url.as_str()], wrong].concat()).code, 2, "{wrong:?}");
    }
}
