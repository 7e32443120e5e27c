//! HTTP: requests, answers, assertions, sequences, ways there.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;

use super::common::tls::Authority;
use super::common::*;
use probity_prober::ProbeContext;
use probity_prober::kinds::ContextConfig;
use probity_prober::policy::AddressPolicy;
use probity_proto::v1::Reason;

/// A server whose answer is a function of the request's text; connections are kept as long as the client likes.
async fn server(handler: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> SocketAddr {
    let handler = Arc::new(handler);
    serve(move |mut stream, _| {
        let handler = handler.clone();
        async move {
            loop {
                let request = read_request(&mut stream).await;
                if request.is_empty() || stream.write_all(&handler(&request)).await.is_err() {
                    return;
                }
                if request.to_ascii_lowercase().contains("connection: close") {
                    let _ = stream.shutdown().await;
                    return;
                }
            }
        }
    })
    .await
}

/// Sends the request back as the body.
async fn echo() -> SocketAddr {
    server(|request| keep(request.as_bytes(), "")).await
}

/// Status 200 with a body and more headers, each with its line's end.
fn keep(body: &[u8], headers: &str) -> Vec<u8> {
    [format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n{headers}\r\n", body.len()).as_bytes(), body].concat()
}

fn status(line: &str, headers: &str) -> Vec<u8> {
    format!("HTTP/1.1 {line}\r\ncontent-length: 0\r\n{headers}\r\n").into_bytes()
}

async fn check_all(cases: &[(String, Reason)]) {
    let context = context();
    for (spec, reason) in cases {
        let result = probe_in(&context, spec).await;
        assert_eq!(result.reason, *reason, "{spec}\n{result:#?}");
    }
}

fn body_is(address: SocketAddr, http: &str, contains: &[&str]) -> String {
    let asserts: Vec<String> = contains.iter().map(|c| format!("{{contains: {c:?}}}")).collect();
    format!("http:\n  url: http://{address}/p\n{}  expect: {{body: [{}]}}", http.lines().map(|l| format!("  {l}\n")).collect::<String>(), asserts.join(", "))
}

#[tokio::test]
async fn what_is_sent() {
    let a = echo().await;
    check_all(&[
        (body_is(a, "", &["GET /p HTTP/1.1\r\n", &format!("host: {a}\r\n"), "user-agent: probity/", "traceparent: 00-", "connection: close"]), Reason::Good),
        (
            body_is(a, "method: PUT\nbody: 'a b'\nheaders: {X-A: one, Host: other.test}", &["PUT /p ", "x-a: one", "host: other.test", "\r\n\r\na b"]),
            Reason::Good,
        ),
        (body_is(a, "form: {a: 'x y', b: 'ü&='}", &["POST /p ", "content-type: application/x-www-form-urlencoded", "a=x+y&b=%C3%BC%26%3D"]), Reason::Good),
        (body_is(a, "json: {n: 1, s: [true, null]}", &["POST", "content-type: application/json", r#"{"n":1,"s":[true,null]}"#]), Reason::Good),
        (body_is(a, "headers: {User-Agent: me}", &["user-agent: me"]), Reason::Good),
    ])
    .await;
}

#[tokio::test]
async fn who_is_asking() {
    let secrets = tempfile::tempdir().expect("a directory");
    for (name, value) in [("token", "t0p\n"), ("password", "pw"), ("body", "from the host"), ("bad", "a\u{1}b")] {
        std::fs::write(secrets.path().join(name), value).expect("a file");
    }
    let context = context_with(AddressPolicy::Anywhere, Some(secrets.path().to_owned()));
    let a = echo().await;
    let basic = STANDARD.encode("me:pw");
    for (spec, reason) in [
        (body_is(a, "auth: {bearer: {secretRef: token}}", &["authorization: Bearer t0p\r\n"]), Reason::Good),
        (body_is(a, "auth: {basic: {username: me, password: {secretRef: password}}}", &[&format!("authorization: Basic {basic}\r\n")]), Reason::Good),
        (body_is(a, "bodyFile: {secretRef: body}", &["POST", "\r\n\r\nfrom the host"]), Reason::Good),
        (body_is(a, "auth: {bearer: {secretRef: none}}", &[]), Reason::SecretMissing),
        (body_is(a, "auth: {bearer: {secretRef: bad}}", &[]), Reason::SecretMissing),
    ] {
        let result = probe_in(&context, &spec).await;
        assert_eq!(result.reason, reason, "{spec}\n{result:#?}");
        assert!(!format!("{result:?}").contains("t0p") && !result.message.contains("a\u{1}b"), "no secret in a result: {result:?}");
    }
}

/// Whoever may apply a probe could have a secret sent to himself: its host says for whom it is.
#[tokio::test]
async fn a_secret_goes_where_its_host_allows() {
    let secrets = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| std::fs::write(secrets.path().join(name), text).expect("a file");
    for name in ["shop", "open", "away"] {
        write(name, "t0p");
    }
    write("shop.allow", "{namespaces: [shop], hosts: ['127.0.0.1', '*.shop.test']}");
    write("away.allow", "{hosts: [hooks.shop.test]}");
    let context = context_with(AddressPolicy::Anywhere, Some(secrets.path().to_owned()));
    let a = echo().await;
    let ways = |name: &str| {
        [
            body_is(a, &format!("auth: {{bearer: {{secretRef: {name}}}}}"), &["authorization: Bearer t0p\r\n"]),
            body_is(a, &format!("auth: {{basic: {{username: me, password: {{secretRef: {name}}}}}}}"), &["authorization: Basic"]),
            body_is(a, &format!("bodyFile: {{secretRef: {name}}}"), &["t0p"]),
        ]
    };
    for (name, namespace, refused) in
        [("shop", "shop", ""), ("shop", "search", "is not for this namespace"), ("open", "search", ""), ("away", "shop", "may not be sent to this host")]
    {
        for spec in ways(name) {
            let result = probe_of(&context, namespace, &spec).await;
            assert_eq!(result.reason, if refused.is_empty() { Reason::Good } else { Reason::SecretMissing }, "{name} {namespace}\n{result:#?}");
            assert!(result.message.contains(refused), "{result:#?}");
        }
    }
    let context =
        ContextConfig { address_policy: AddressPolicy::Anywhere, secrets_dir: Some(secrets.path().to_owned()), secrets_need_allow: true, ..Default::default() };
    let strict = ProbeContext::new(context);
    for (name, reason) in [("shop", Reason::Good), ("open", Reason::SecretMissing)] {
        let result = probe_of(&strict, "shop", &ways(name)[0]).await;
        assert_eq!(result.reason, reason, "{result:#?}");
    }
}

/// A body that is a secret is for the first host alone, as who we are is.
#[tokio::test]
async fn a_secret_body_is_not_redirected_elsewhere() {
    let secrets = tempfile::tempdir().expect("a directory");
    std::fs::write(secrets.path().join("body"), "from the host").expect("a file");
    let context = context_with(AddressPolicy::Anywhere, Some(secrets.path().to_owned()));
    let other = echo().await;
    let a = server(move |request| match request.split(' ').nth(1).unwrap_or_default() {
        "/here" => status("307 Temporary Redirect", "location: /echo\r\n"),
        "/away" => status("307 Temporary Redirect", &format!("location: http://{other}/echo\r\n")),
        _ => keep(request.as_bytes(), ""),
    })
    .await;
    for (path, expected) in [("here", "contains"), ("away", "notContains")] {
        let spec = format!(
            "http:\n  url: http://{a}/{path}\n  method: POST\n  bodyFile: {{secretRef: body}}\n  followRedirects: 1\n  expect: {{body: [{{contains: POST /echo}}, {{{expected}: from the host}}]}}"
        );
        assert_reason(&probe_in(&context, &spec).await, Reason::Good);
    }
}

#[tokio::test]
async fn assertions() {
    let body = br#"{"status": "ok", "items": [{"price": 5}, {"price": 9}], "text": "abc"}"#;
    let a = server(|_| keep(br#"{"status": "ok", "items": [{"price": 5}, {"price": 9}], "text": "abc"}"#, "x-a: one\r\nx-a: two\r\n")).await;
    let sha = ring::digest::digest(&ring::digest::SHA256, body).as_ref().iter().map(|b| format!("{b:02x}")).collect::<String>();
    let expect = |e: &str| format!("target: http://{a}/\nhttp: {{expect: {{{e}}}}}");
    let mut cases = Vec::new();
    for (good, bad, reason) in [
        ("status: [200-204]", "status: [204, 3xx]", Reason::StatusMismatch),
        ("headers: [{name: x-a, equals: two}]", "headers: [{name: x-a, equals: three}]", Reason::HeaderMismatch),
        ("headers: [{name: x-a, matches: ^t}]", "headers: [{name: x-a, matches: ^x}]", Reason::HeaderMismatch),
        ("headers: [{name: x-a, notMatches: ^x}]", "headers: [{name: x-a, notMatches: ^o}]", Reason::HeaderMismatch),
        ("headers: [{name: x-a, present: true}]", "headers: [{name: x-b, present: true}]", Reason::HeaderMismatch),
        ("headers: [{name: x-b, absent: true}]", "headers: [{name: x-a, absent: true}]", Reason::HeaderMismatch),
        ("body: [{contains: ok}]", "body: [{contains: no}]", Reason::BodyMismatch),
        ("body: [{notContains: no}]", "body: [{notContains: ok}]", Reason::BodyMismatch),
        ("body: [{matches: 'o.\"'}]", "body: [{matches: ^ok}]", Reason::BodyMismatch),
        ("body: [{notMatches: ^ok}]", "body: [{notMatches: ok}]", Reason::BodyMismatch),
        ("body: [{jsonPath: $.status, equals: ok}]", "body: [{jsonPath: $.status, equals: no}]", Reason::BodyMismatch),
        ("body: [{jsonPath: '$.items[*].price', below: 10}]", "body: [{jsonPath: '$.items[*].price', atLeast: 6}]", Reason::BodyMismatch),
        ("body: [{jsonPath: '$.items[?@.price>5]', count: 1}]", "body: [{jsonPath: '$.items', count: 2}]", Reason::BodyMismatch),
        ("body: [{jsonPath: $.none, exists: false}]", "body: [{jsonPath: $.none, exists: true}]", Reason::BodyMismatch),
        ("body: [{jsonPath: $.text, matches: ^a}]", "body: [{jsonPath: $.text, matches: ^b}]", Reason::BodyMismatch),
        ("body: [{schema: {type: object, required: [status]}}]", "body: [{schema: {properties: {status: {type: integer}}}}]", Reason::BodyMismatch),
        ("size: {min: 10, max: 1KiB}", "size: {max: 10}", Reason::BodyMismatch),
        ("version: ['1.1']", "version: ['2']", Reason::VersionMismatch),
    ] {
        cases.push((expect(good), Reason::Good));
        cases.push((expect(bad), reason));
    }
    cases.push((expect(&format!("body: [{{sha256: {sha}}}]")), Reason::Good));
    cases.push((expect(&format!("body: [{{sha256: {}}}]", "0".repeat(64))), Reason::BodyMismatch));
    // A server that knows no later version.
    let old = serve(|mut stream, _| async move {
        read_request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nuntil it closes").await;
    })
    .await;
    let of_old = |e: &str| format!("target: http://{old}/\nhttp: {{expect: {{{e}}}}}");
    cases.push((of_old("version: ['1.0'], body: [{contains: closes}]"), Reason::Good));
    cases.push((of_old("version: ['1.1', '2']"), Reason::VersionMismatch));
    check_all(&cases).await;
    let result = probe(&expect("body: [{schema: {properties: {status: {type: integer}}}}]")).await;
    assert!(result.message.contains("/status"), "it says where: {}", result.message);
}

#[tokio::test]
async fn a_large_body_is_judged_as_a_small_one_is() {
    let a = server(|_| {
        let rows: Vec<String> = (0..20_000).map(|n| format!("{{\"id\": {n}, \"status\": \"ok\"}}")).collect();
        keep(format!("[{}]", rows.join(",")).as_bytes(), "")
    })
    .await;
    let expect = |body: &str| format!("http:\n  url: http://{a}/\n  expect: {{body: [{body}]}}\ntimeout: 30s");
    let cases = [
        (expect("{jsonPath: '$[19999].status', equals: ok}, {schema: {type: array, items: {required: [id]}}}"), Reason::Good),
        (expect("{schema: {type: array, items: {properties: {id: {maximum: 19998}}}}}"), Reason::BodyMismatch),
        (expect("{matches: '\"id\": 19999,'}"), Reason::Good),
        (expect("{notContains: '\"id\": 19999,'}"), Reason::BodyMismatch),
    ];
    check_all(&cases).await;
}

#[tokio::test]
async fn redirects() {
    let other = echo().await;
    let a = server(move |request| match request.split(' ').nth(1).unwrap_or_default() {
        "/one" => status("302 Found", "location: two?x\r\n"),
        "/two?x" => keep(request.as_bytes(), ""),
        "/away" => status("307 Temporary Redirect", &format!("location: http://{other}/there\r\n")),
        "/see" => status("303 See Other", "location: /two?x\r\n"),
        "/loop" => status("301 Moved", "location: /loop2\r\n"),
        "/loop2" => status("301 Moved", "location: /loop\r\n"),
        "/nowhere" => status("301 Moved", "location: ftp://x/\r\n"),
        path => status("302 Found", &format!("location: {path}x\r\n")),
    })
    .await;
    let get = |path: &str, more: &str| format!("http:\n  url: http://{a}{path}\n{}", more.lines().map(|l| format!("  {l}\n")).collect::<String>());
    let result = probe(&get("/one", "followRedirects: 3")).await;
    assert_reason(&result, Reason::Good);
    assert_eq!((fact(&result, "http.redirects"), phase_names(&result.phases).len()), ("1", 10));
    let secret = "headers: {Authorization: secret, Cookie: c=1, X-Plain: yes}\nfollowRedirects: 3\n";
    check_all(&[
        (get("/one", "expect: {status: [302], headers: [{name: location, equals: 'two?x'}]}"), Reason::Good),
        (get("/one", ""), Reason::StatusMismatch),
        (get("/ten", "followRedirects: 5"), Reason::RedirectLimit),
        (get("/loop", "followRedirects: 20"), Reason::RedirectLoop),
        (get("/nowhere", "followRedirects: 5"), Reason::ProtocolError),
        // Who we are is for the first host alone; a 307 keeps method and body, a 303 does not.
        (get("/away", &format!("{secret}method: POST\nbody: data\nexpect: {{body: [{{matches: '^POST /there'}}, {{contains: 'x-plain: yes'}}, {{contains: data}}, {{notContains: secret}}, {{notContains: 'c=1'}}]}}")), Reason::Good),
        (get("/see", &format!("{secret}method: POST\nbody: data\nexpect: {{body: [{{matches: '^GET /two'}}, {{contains: secret}}, {{notContains: data}}]}}")), Reason::Good),
    ])
    .await;
}

#[tokio::test]
async fn the_policy_holds_on_every_redirect() {
    // The policy of a cluster's prober, but for loopback, where the servers of this test are.
    let context = context_with(AddressPolicy::LoopbackToo, None);
    let a = server(|_| status("302 Found", "location: http://169.254.169.254/latest\r\n")).await;
    let result = probe_in(&context, &format!("http: {{url: 'http://{a}/', followRedirects: 2}}")).await;
    assert_reason(&result, Reason::AddressForbidden);
    assert!(result.message.starts_with("169.254.169.254 "), "{}", result.message);
    let context = context_with(AddressPolicy::Remote, None);
    for literal in ["http://169.254.169.254/", "http://[::1]/", "http://localhost/", "http://127.0.0.1:1/"] {
        let result = probe_in(&context, &format!("http: {{url: '{literal}', proxy: {{url: 'http://10.255.255.1:1'}}}}\ntimeout: 100ms")).await;
        assert!(matches!(result.reason, Reason::AddressForbidden), "by a proxy too, {literal}: {result:?}");
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

/// A zstd frame of one run-length block after the other (RFC 8878), each 100 kB of `x`.
fn zstd_bomb(blocks: usize) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58];
    for i in 0..blocks {
        let header = (100_000u32 << 3) | 1 << 1 | u32::from(i + 1 == blocks);
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.push(b'x');
    }
    frame
}

#[tokio::test]
async fn compression() {
    let a = server(|request| {
        let path = request.split(' ').nth(1).unwrap_or_default();
        let text = b"hello";
        match path {
            "/gzip" => keep(&gzip(text), "content-encoding: gzip\r\n"),
            "/deflate" => keep(&zlib(text), "content-encoding: deflate\r\n"),
            "/raw" => keep(&zlib(text)[2..], "content-encoding: deflate\r\n"),
            "/br" => keep(b"\x0b\x02\x80hello\x03", "content-encoding: br\r\n"),
            "/zstd" => keep(b"\x28\xb5\x2f\xfd\x20\x05\x29\x00\x00hello", "content-encoding: zstd\r\n"),
            "/twice" => keep(&zlib(&gzip(text)), "content-encoding: gzip, deflate\r\n"),
            "/plain" => keep(text, ""),
            "/odd" => keep(text, "content-encoding: odd\r\n"),
            "/broken" => keep(text, "content-encoding: gzip\r\n"),
            "/gzip-bomb" => keep(&gzip(&vec![b'x'; 30 << 20]), "content-encoding: gzip\r\n"),
            "/nested-bomb" => keep(&gzip(&gzip(&vec![b'x'; 30 << 20])), "content-encoding: gzip, gzip\r\n"),
            "/zstd-bomb" => keep(&zstd_bomb(300), "content-encoding: zstd\r\n"),
            "/zstd-fine" => keep(&zstd_bomb(3), "content-encoding: zstd\r\n"),
            // A window of 2 TiB.
            "/zstd-window" => keep(b"\x28\xb5\x2f\xfd\x00\xf8\x29\x00\x00hello", "content-encoding: zstd\r\n"),
            _ => keep(request.as_bytes(), ""),
        }
    })
    .await;
    let get = |path: &str, more: &str| format!("http:\n  url: http://{a}{path}\n  compression: [gzip, br, zstd, deflate]\n  {more}");
    let hello = "expect: {body: [{matches: ^hello$}]}";
    let mut cases = vec![(get("/headers", "expect: {body: [{contains: 'accept-encoding: gzip, br, zstd, deflate'}]}"), Reason::Good)];
    for path in ["/gzip", "/deflate", "/raw", "/br", "/zstd", "/twice", "/plain"] {
        cases.push((get(path, hello), Reason::Good));
    }
    cases.push((get("/zstd-fine", "expect: {size: {min: 300000, max: 300000}}"), Reason::Good));
    for path in ["/odd", "/broken"] {
        cases.push((get(path, hello), Reason::ProtocolError));
    }
    for path in ["/gzip-bomb", "/nested-bomb", "/zstd-bomb", "/zstd-window"] {
        cases.push((get(path, "maxDecompressedBytes: 1MiB"), Reason::DecompressedTooLarge));
    }
    // Not asked for, not decoded.
    cases.push((format!("http: {{url: 'http://{a}/gzip', expect: {{body: [{{notContains: hello}}]}}}}"), Reason::Good));
    check_all(&cases).await;
    let result = probe(&get("/gzip", hello)).await;
    assert_eq!((fact(&result, "http.response.encoding"), fact(&result, "http.response.decoded.size")), ("gzip", "5"));
}

#[tokio::test]
async fn several_requests_with_captured_values() {
    let secrets = tempfile::tempdir().expect("a directory");
    let a = server(|request| {
        let path = request.split(' ').nth(1).unwrap_or_default();
        let authorised = request.contains("authorization: Bearer T-1");
        match path {
            "/login" if request.contains("user=me") => keep(br#"{"token": "T-1", "user": {"id": 42}}"#, "set-cookie: session=abc; path=/\r\n"),
            "/basket/42" if authorised && request.contains("cookie: session=abc") && request.contains(r#"{"item":42,"note":"for T-1"}"#) => {
                status("201 Created", "location: /orders/77\r\n")
            }
            "/orders/77" if authorised => keep(b"<b>order no. 77</b>", ""),
            "/logout?order=77" => status("204 No Content", ""),
            _ => status("400 Bad", ""),
        }
    })
    .await;
    let spec = format!(
        r#"http:
  requests:
    - name: login
      url: http://{a}/login
      form: {{user: me}}
      capture:
        token: {{jsonPath: $.token}}
        id: {{jsonPath: $.user.id}}
        cookie: {{header: set-cookie, matches: '^[^;]+'}}
    - name: basket
      url: http://{a}/basket/$(captures.id)
      json: {{item: $(captures.id), note: for $(captures.token)}}
      headers: {{Authorization: Bearer $(captures.token), Cookie: $(captures.cookie)}}
      expect: {{status: [201]}}
      capture: {{order: {{header: location}}}}
    - name: order
      url: http://{a}$(captures.order)
      headers: {{Authorization: Bearer $(captures.token)}}
      capture: {{number: {{matches: 'no. (\d+)'}}}}
    - name: logout
      url: http://{a}/logout?order=$(captures.number)
"#
    );
    let context = context_with(AddressPolicy::Anywhere, Some(secrets.path().to_owned()));
    let result = probe_in(&context, &spec).await;
    assert_reason(&result, Reason::Good);
    assert_eq!((fact(&result, "http.requests"), phase_names(&result.phases).len()), ("4", 20));
    let result = probe_in(&context, &spec.replace("user: me", "user: you")).await;
    assert_reason(&result, Reason::StatusMismatch);
    assert_eq!(result.message, "login: status 400, want 200-299");
    let result = probe_in(&context, &spec.replace("$.token", "$.nothing")).await;
    assert_reason(&result, Reason::CaptureMissing);
    assert_eq!(result.message, "login: nothing to capture as \"token\": $.nothing selects nothing");
}

#[tokio::test]
async fn kept_connections() {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let a = serve(move |mut stream, _| {
        count.fetch_add(1, Ordering::SeqCst);
        async move {
            // Three requests for a connection, then it is gone without a word.
            for _ in 0..3 {
                if read_request(&mut stream).await.is_empty() {
                    return;
                }
                let _ = stream.write_all(&keep(b"yes", "")).await;
            }
        }
    })
    .await;
    let context = context();
    let spec = format!("target: http://{a}/\nhttp: {{reuse: true}}");
    let mut reused = Vec::new();
    for _ in 0..4 {
        let result = probe_in(&context, &spec).await;
        assert_reason(&result, Reason::Good);
        assert_eq!(result.peer, a.to_string());
        reused.push(fact(&result, "http.connection.reused") == "true");
        if *reused.last().expect("pushed") {
            assert_eq!(phase_names(&result.phases), ["request", "first_byte", "transfer"]);
        }
        // The server's end of a connection is seen.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!((reused, connections.load(Ordering::SeqCst)), (vec![false, true, true, false], 2));
    assert_reason(&probe_in(&context, &spec.replace("true", "false")).await, Reason::Good);
    assert_eq!(connections.load(Ordering::SeqCst), 3, "fresh by default");
}

/// A server that keeps a connection for one request, hears the next one, and then closes without an answer.
#[tokio::test]
async fn a_kept_connection_that_is_closed_under_a_request() {
    let heard = Arc::new(AtomicUsize::new(0));
    let count = heard.clone();
    let a = serve(move |mut stream, _| {
        let count = count.clone();
        async move {
            read_request(&mut stream).await;
            count.fetch_add(1, Ordering::SeqCst);
            let _ = stream.write_all(&keep(b"yes", "")).await;
            if !read_request(&mut stream).await.is_empty() {
                count.fetch_add(1, Ordering::SeqCst);
            }
        }
    })
    .await;
    let context = context();
    let spec = |method: &str| format!("target: http://{a}/\nhttp: {{reuse: true, method: {method}}}");
    assert_reason(&probe_in(&context, &spec("GET")).await, Reason::Good);
    let second = probe_in(&context, &spec("GET")).await;
    assert_reason(&second, Reason::Good);
    assert_eq!((fact(&second, "http.connection.reused"), heard.load(Ordering::SeqCst)), ("false", 3));
    // What may not be done twice is not.
    let third = probe_in(&context, &spec("POST")).await;
    assert!(matches!(third.reason, Reason::ConnectionClosed | Reason::ConnectionReset), "{third:#?}");
    assert_eq!(heard.load(Ordering::SeqCst), 4);
    // A fresh connection that is closed is the target's failure, whatever the method.
    let closing = serve(|mut stream, _| async move { drop(read_request(&mut stream).await) }).await;
    let result = probe_in(&context, &format!("target: http://{closing}/\nhttp: {{reuse: true}}")).await;
    assert!(matches!(result.reason, Reason::ConnectionClosed | Reason::ConnectionReset), "{result:#?}");
}

async fn h2_server(authority: &Authority, alpn: &[&[u8]]) -> SocketAddr {
    let acceptor = authority.acceptor("shop.test", alpn);
    serve(move |stream, _| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            serve_hyper(stream).await;
        }
    })
    .await
}

/// HTTP/1.1 or 2, whichever comes; answers with what it saw.
async fn serve_hyper(stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static) {
    let service = hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async move {
        let text =
            format!("{:?} {} host={:?} connection={:?}", request.version(), request.uri(), request.headers().get("host"), request.headers().get("connection"));
        Ok::<_, hyper::Error>(http::Response::new(http_body_util::Full::new(bytes::Bytes::from(text))))
    });
    let executor = hyper_util::rt::TokioExecutor::new();
    let _ = hyper_util::server::conn::auto::Builder::new(executor).serve_connection(hyper_util::rt::TokioIo::new(stream), service).await;
}

#[tokio::test]
async fn versions() {
    let authority = Authority::new();
    let both = h2_server(&authority, &[b"h2", b"http/1.1"]).await;
    let old = h2_server(&authority, &[b"http/1.1"]).await;
    let plain = serve(|stream, _| serve_hyper(stream)).await;
    let ca = authority.pem().trim_end().replace('\n', "\n      ");
    let spec = |a: SocketAddr, more: &str| {
        format!("hosts: {{shop.test: 127.0.0.1}}\nhttp:\n  url: https://shop.test:{}/x?y\n  tls:\n    ca: |\n      {ca}\n  {more}", a.port())
    };
    let h2 = format!("body: [{{contains: 'HTTP/2.0 https://shop.test:{}/x?y host=None connection=None'}}], version: ['2']", both.port());
    check_all(&[
        (spec(both, &format!("expect: {{{h2}}}")), Reason::Good),
        (spec(both, &format!("reuse: true\n  expect: {{{h2}}}")), Reason::Good),
        (spec(both, "version: '1.1'\n  expect: {version: ['1.1'], body: [{contains: HTTP/1.1}]}"), Reason::Good),
        (spec(old, "expect: {version: ['1.1']}"), Reason::Good),
        (spec(old, "version: 2"), Reason::TlsHandshake),
        (spec(old, "expect: {version: ['2']}"), Reason::VersionMismatch),
        (format!("http: {{url: 'http://{plain}/', version: 2, expect: {{version: ['2'], body: [{{contains: HTTP/2.0}}]}}}}"), Reason::Good),
        (format!("http: {{url: 'http://{plain}/', expect: {{version: ['1.1']}}}}"), Reason::Good),
    ])
    .await;
    let context = context();
    let reuse = spec(both, "reuse: true");
    probe_in(&context, &reuse).await;
    let again = probe_in(&context, &reuse).await;
    assert_reason(&again, Reason::Good);
    assert_eq!(phase_names(&again.phases), ["request", "first_byte", "transfer"]);
}

/// A proxy for CONNECT and for whole URLs, for `me` with `pw`.
async fn http_proxy() -> SocketAddr {
    serve(|mut stream, _| async move {
        let head = read_request(&mut stream).await;
        let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let wanted = format!("Basic {}", STANDARD.encode("me:pw"));
        if !head.contains(&wanted) {
            let _ = stream.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n").await;
        } else if head.starts_with("CONNECT shop.test:") {
            let port = target.rsplit(':').next().unwrap_or_default();
            let Ok(mut upstream) = TcpStream::connect(format!("127.0.0.1:{port}")).await else {
                let _ = stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n").await;
                return;
            };
            let _ = stream.write_all(b"HTTP/1.1 200 Established\r\nx: y\r\n\r\n").await;
            let _ = copy_bidirectional(&mut stream, &mut upstream).await;
        } else {
            let _ = stream.write_all(ok(&format!("proxied {target}")).as_bytes()).await;
        }
    })
    .await
}

/// A SOCKS5 proxy that wants `me` with `pw` when `auth`; `refused.test` is answered with "connection refused".
async fn socks_proxy(auth: bool) -> SocketAddr {
    serve(move |mut stream, _| async move {
        let mut greeting = [0; 3];
        if stream.read_exact(&mut greeting).await.is_err() || greeting != [5, 1, if auth { 2 } else { 0 }] {
            let _ = stream.write_all(&[5, 0xff]).await;
            return;
        }
        let _ = stream.write_all(&[5, greeting[2]]).await;
        if auth {
            let mut login = [0; 7];
            let _ = stream.read_exact(&mut login).await;
            let _ = stream.write_all(&[1, u8::from(&login != b"\x01\x02me\x02pw")]).await;
        }
        let mut head = [0; 5];
        let _ = stream.read_exact(&mut head).await;
        let mut rest = vec![0; usize::from(head[4]) + 2];
        let _ = stream.read_exact(&mut rest).await;
        let (name, port) = rest.split_at(rest.len() - 2);
        if head[3] != 3 || name != b"shop.test" {
            let _ = stream.write_all(&[5, 5, 0, 1, 0, 0, 0, 0, 0, 0]).await;
            return;
        }
        let port = u16::from_be_bytes([port[0], port[1]]);
        let Ok(mut upstream) = TcpStream::connect(("127.0.0.1", port)).await else { return };
        let _ = stream.write_all(&[5, 0, 0, 1, 127, 0, 0, 1, 0, 80]).await;
        let _ = copy_bidirectional(&mut stream, &mut upstream).await;
    })
    .await
}

#[tokio::test]
async fn proxies() {
    let secrets = tempfile::tempdir().expect("a directory");
    std::fs::write(secrets.path().join("pw"), "pw").expect("a file");
    std::fs::write(secrets.path().join("wrong"), "xx").expect("a file");
    let context = context_with(AddressPolicy::Anywhere, Some(secrets.path().to_owned()));
    let authority = Authority::new();
    let secure = h2_server(&authority, &[b"http/1.1"]).await.port();
    let plain = echo().await.port();
    let ca = authority.pem().trim_end().replace('\n', "\n      ");
    let spec =
        |url: &str, proxy: &str, more: &str| format!("timeout: 5s\nhttp:\n  url: {url}\n  proxy: {{url: '{proxy}'{more}}}\n  tls:\n    ca: |\n      {ca}\n");
    let me = ", username: me, password: {secretRef: pw}";
    let http = format!("http://{}", http_proxy().await);
    let (socks, socks_auth) = (format!("socks5://{}", socks_proxy(false).await), format!("socks5://{}", socks_proxy(true).await));
    let gone = closed_port().await;
    let (https, nobody, other) = (format!("https://shop.test:{secure}/"), format!("https://shop.test:{}/", gone.port()), format!("http://other.test:{plain}/"));
    let plain = format!("http://shop.test:{plain}/x");
    let proxied = |spec: String| format!("{spec}  expect: {{body: [{{contains: 'proxied {plain}'}}]}}\n");
    for (spec, reason) in [
        (spec(&https, &http, me), Reason::Good),
        (proxied(spec(&plain, &http, me)), Reason::Good),
        (spec(&https, &http, ""), Reason::ProxyError),
        (spec(&https, &http, &me.replace("pw", "wrong")), Reason::ProxyError),
        (spec(&nobody, &http, me), Reason::ProxyError),
        (spec(&https, &socks, ""), Reason::Good),
        (spec(&plain, &socks, ""), Reason::Good),
        (spec(&https, &socks_auth, me), Reason::Good),
        (spec(&https, &socks_auth, &me.replace("pw", "wrong")), Reason::ProxyError),
        (spec(&https, &socks_auth, ""), Reason::ProxyError),
        // The proxy says that it is the target's failing.
        (spec(&other, &socks, ""), Reason::ConnectRefused),
        (spec(&https, &format!("http://{gone}"), ""), Reason::ProxyError),
        (spec(&https, &format!("socks5://{gone}"), ""), Reason::ProxyError),
        // Inverted: what the proxy says of the target counts, what it says of itself does not.
        (format!("invert: true\n{}", spec(&https, &socks, "")), Reason::Reachable),
        (format!("invert: true\n{}", spec(&other, &socks, "")), Reason::Good),
        (format!("invert: true\n{}", spec(&https, &socks_auth, "")), Reason::ProxyError),
        (format!("invert: true\n{}", spec(&https, &format!("socks5://{gone}"), "")), Reason::ProxyError),
    ] {
        let result = probe_in(&context, &spec).await;
        assert_eq!(result.reason, reason, "{spec}\n{result:#?}");
    }
    let result = probe_in(&context, &spec(&https, &http, me)).await;
    assert_eq!(phase_names(&result.phases), ["proxy", "tls", "request", "first_byte", "transfer"]);
    let (silent, _held, _listener) = blackhole("127.0.0.1:0".parse().expect("an address")).await;
    let result = probe_in(&context, &spec(&https, &format!("http://{silent}"), "").replace("timeout: 5s", "timeout: 200ms")).await;
    assert_reason(&result, Reason::ProxyError);
    assert_eq!(result.message, "no answer within 200ms in proxy");
}

#[tokio::test]
async fn oauth2_tokens_are_cached_and_given_up_when_refused() {
    let secrets = tempfile::tempdir().expect("a directory");
    std::fs::write(secrets.path().join("client"), "s e").expect("a file");
    let context = context_with(AddressPolicy::Anywhere, Some(secrets.path().to_owned()));
    let given = Arc::new(AtomicUsize::new(0));
    let count = given.clone();
    let issuer = server(move |request| {
        let basic = STANDARD.encode("me%40x:s+e");
        let fine = request.contains(&format!("authorization: Basic {basic}")) && request.ends_with("grant_type=client_credentials&scope=a+b&audience=shop");
        if !fine {
            return status("401 Unauthorized", "");
        }
        let n = count.fetch_add(1, Ordering::SeqCst);
        keep(format!(r#"{{"access_token": "tok-{n}", "token_type": "Bearer", "expires_in": 3600}}"#).as_bytes(), "")
    })
    .await;
    // The first token is refused from its third use on.
    let used = Arc::new(AtomicUsize::new(0));
    let target = server(move |request| {
        let first = request.contains("authorization: Bearer tok-0\r\n");
        let revoked = first && used.fetch_add(1, Ordering::SeqCst) >= 2;
        if revoked || !request.contains("authorization: Bearer tok-") { status("401 Unauthorized", "") } else { keep(b"fine", "") }
    })
    .await;
    let spec = |issuer: &str, id: &str| {
        format!(
            "timeout: 2s\nhttp:\n  url: http://{target}/\n  auth:\n    oauth2: {{tokenUrl: '{issuer}', clientId: {id}, clientSecret: {{secretRef: client}}, scopes: [a, b], parameters: {{audience: shop}}}}\n"
        )
    };
    let good = spec(&format!("http://{issuer}/token"), "me@x");
    let mut reasons = Vec::new();
    for _ in 0..5 {
        let result = probe_in(&context, &good).await;
        assert!(!format!("{result:?}").contains("tok-"), "no token in a result");
        reasons.push((result.reason, phase_names(&result.phases).contains(&"auth")));
    }
    use Reason::{Good, StatusMismatch};
    assert_eq!(reasons, [(Good, true), (Good, false), (StatusMismatch, false), (Good, true), (Good, false)]);
    assert_eq!(given.load(Ordering::SeqCst), 2);
    let refused = probe_in(&context, &spec(&format!("http://{issuer}/token"), "you")).await;
    assert_reason(&refused, Reason::AuthError);
    assert_eq!(refused.message, format!("no token from http://{issuer}/token: status 401"));
    let nobody = closed_port().await;
    assert_reason(&probe_in(&context, &spec(&format!("http://{nobody}/"), "me@x")).await, Reason::AuthError);
    let nonsense = server(|_| keep(b"<html>", "")).await;
    assert_reason(&probe_in(&context, &spec(&format!("http://{nonsense}/"), "me@x")).await, Reason::AuthError);
}
