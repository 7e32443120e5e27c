//! TCP: exchanges, dialogues with captures, STARTTLS of six protocols.

use std::net::SocketAddr;

use super::common::tls::Authority;
use super::common::*;
use probity_proto::v1::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What a server does next.
#[derive(Clone)]
enum Act {
    Say(&'static [u8]),
    /// These bytes must come.
    Hear(&'static [u8]),
}

async fn play(stream: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin), acts: &[Act]) -> bool {
    for act in acts {
        match act {
            Act::Say(bytes) => drop(stream.write_all(bytes).await),
            Act::Hear(wanted) => {
                let mut heard = vec![0; wanted.len()];
                if stream.read_exact(&mut heard).await.is_err() || heard != *wanted {
                    return false;
                }
            }
        }
    }
    true
}

/// A server that plays its part, then speaks TLS as `mail.test`.
async fn upgrading(authority: &Authority, acts: &'static [Act]) -> SocketAddr {
    let acceptor = authority.acceptor("mail.test", &[]);
    serve(move |mut stream: TcpStream, _| {
        let acceptor = acceptor.clone();
        async move {
            if play(&mut stream, acts).await
                && let Ok(mut stream) = acceptor.accept(stream).await
            {
                play(&mut stream, &[Act::Say(b"220 secure\r\n")]).await;
                let _ = stream.read(&mut [0; 100]).await;
            }
        }
    })
    .await
}

fn spec(server: SocketAddr, ca: &str, tcp: &str) -> String {
    let ca = ca.trim_end().replace('\n', "\n      ");
    format!("target: mail.test:{}\nhosts: {{mail.test: 127.0.0.1}}\ntimeout: 3s\ntcp:\n  tls:\n    ca: |\n      {ca}\n{tcp}", server.port())
}

#[tokio::test]
async fn starttls() {
    use Act::{Hear, Say};
    const LDAP: &[u8] = b"\x30\x1d\x02\x01\x01\x77\x18\x80\x161.3.6.1.4.1.1466.20037";
    const SMTP: [Act; 5] = [
        Say(b"220-mail.test\r\n220 ready\r\n"),
        Hear(b"EHLO probity.invalid\r\n"),
        Say(b"250-mail.test\r\n250-SIZE 1\r\n250 STARTTLS\r\n"),
        Hear(b"STARTTLS\r\n"),
        Say(b"220 go\r\n"),
    ];
    let authority = Authority::new();
    let cases: [(&str, &'static [Act]); 6] = [
        ("smtp", &SMTP),
        ("imap", &[Say(b"* OK ready\r\n"), Hear(b"a1 STARTTLS\r\n"), Say(b"* note\r\na1 OK go\r\n")]),
        ("pop3", &[Say(b"+OK ready\r\n"), Hear(b"STLS\r\n"), Say(b"+OK go\r\n")]),
        ("ftp", &[Say(b"220 ready\r\n"), Hear(b"AUTH TLS\r\n"), Say(b"234 go\r\n")]),
        ("ldap", &[Hear(LDAP), Say(b"\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x00\x04\x00\x04\x00")]),
        ("postgres", &[Hear(&[0, 0, 0, 8, 4, 210, 22, 47]), Say(b"S")]),
    ];
    for (protocol, acts) in cases {
        let server = upgrading(&authority, acts).await;
        let result = probe(&spec(server, &authority.pem(), &format!("  starttls: {protocol}\n  expect: ^220 secure"))).await;
        assert_reason(&result, Reason::Good);
        assert_eq!(phase_names(&result.phases)[..4], ["resolve", "connect", "starttls", "tls"], "{protocol}");
        assert_eq!(fact(&result, "tls.server.subject"), "CN=mail.test");
        // The watch does the same.
        let watch = spec(server, &authority.pem(), &format!("  starttls: {protocol}"))
            .replace("tcp:\n  tls:\n", "tls:\n")
            .replace("\n      ", "\n    ")
            .replace("\n    ca:", "\n  ca:");
        assert_reason(&probe(&watch).await, Reason::Good);
    }
}

#[tokio::test]
async fn starttls_that_is_refused_or_injected_into() {
    use Act::{Hear, Say};
    let authority = Authority::new();
    let cases: [(&str, &'static [Act], Reason); 9] = [
        ("smtp", &[Say(b"220 x\r\n"), Hear(b"EHLO probity.invalid\r\n"), Say(b"250 SIZE\r\n"), Hear(b"!")], Reason::StarttlsRefused),
        ("smtp", &[Say(b"554 no\r\n"), Hear(b"!")], Reason::StarttlsRefused),
        ("smtp", &[Say(b"220-x\r\n250 y\r\n220 x\r\n"), Hear(b"!")], Reason::ProtocolError),
        ("ftp", &[Say(b"220-x\r\n Welcome\r\n220 x\r\n"), Hear(b"AUTH TLS\r\n"), Say(b"234 go\r\n230 injected\r\n"), Hear(b"!")], Reason::ProtocolError),
        ("imap", &[Say(b"* OK x\r\n"), Hear(b"a1 STARTTLS\r\n"), Say(b"a1 NO\r\n"), Hear(b"!")], Reason::StarttlsRefused),
        ("pop3", &[Say(b"-ERR\r\n"), Hear(b"!")], Reason::StarttlsRefused),
        ("ldap", &[Say(b"\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x02\x04\x00\x04\x00"), Hear(b"!")], Reason::StarttlsRefused),
        ("postgres", &[Say(b"N"), Hear(b"!!!!!!!!!")], Reason::StarttlsRefused),
        ("postgres", &[Say(b"E"), Hear(b"!!!!!!!!!")], Reason::ProtocolError),
    ];
    for (protocol, acts, reason) in cases {
        let server = upgrading(&authority, acts).await;
        let result = probe(&spec(server, &authority.pem(), &format!("  starttls: {protocol}"))).await;
        assert_eq!(result.reason, reason, "{protocol}: {result:?}");
    }
    let silent = serve(|stream, _| async move {
        let _held = stream;
        tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    })
    .await;
    let result = probe(&spec(silent, &authority.pem(), "  starttls: smtp").replace("timeout: 3s", "timeout: 200ms")).await;
    assert_reason(&result, Reason::ResponseTimeout);
    assert_eq!(result.message, "no answer within 200ms in starttls");
}

#[tokio::test]
async fn dialogues_capture_and_secure() {
    use Act::{Hear, Say};
    let authority = Authority::new();
    let server = upgrading(&authority, &[Say(b"220 id=4711 hello\r\n220 again\r\n"), Hear(b"TOKEN 4711 please\r\n"), Say(b"250 fine\r\n")]).await;
    let dialogue = r#"  dialogue:
    - {expect: '^220 id=(?P<id>\d+)'}
    - {expect: again}
    - {send: "TOKEN $(captures.id) please\r\n"}
    - {expect: ^250}
    - {startTls: true}
    - {expect: ^220 secure}
"#;
    let result = probe(&spec(server, &authority.pem(), dialogue)).await;
    assert_reason(&result, Reason::Good);
    let names = phase_names(&result.phases);
    assert!(names.contains(&"tls") && names.contains(&"request"), "{names:?}");
    let result = probe(&spec(server, &authority.pem(), &dialogue.replace("secure", "insecure")).replace("timeout: 3s", "timeout: 500ms")).await;
    assert_reason(&result, Reason::TransferTimeout);
}

#[tokio::test]
async fn line_by_line() {
    use Act::{Hear, Say};
    let authority = Authority::new();
    let server = upgrading(&authority, &[Say(b"220-mail\r\n220 id=4711 hello\r\n"), Hear(b"TOKEN 4711 please\r\n"), Say(b"250 fine\r\n")]).await;
    // A line that does not fit is passed over; what an expression takes ends with its line.
    let lines = r#"  lines:
    - {expect: '^220 id=(\d+) hello\r?$', send: "TOKEN ${1} please\r"}
    - {expect: '^250', startTls: true}
    - {expect: '^220 secure\r?$'}
"#;
    let result = probe(&spec(server, &authority.pem(), lines)).await;
    assert_reason(&result, Reason::Good);
    assert!(phase_names(&result.phases).contains(&"tls"), "{result:?}");
    let result = probe(&spec(server, &authority.pem(), &lines.replace("secure", "insecure")).replace("timeout: 3s", "timeout: 500ms")).await;
    assert_reason(&result, Reason::ResponseTimeout);
}

#[tokio::test]
async fn exchanges_that_fail() {
    let noisy = serve(|mut stream, _| async move {
        let chunk = [b'x'; 16 * 1024];
        while stream.write_all(&chunk).await.is_ok() {}
    })
    .await;
    let result = probe(&format!("target: {noisy}\ntcp: {{expect: hello}}")).await;
    assert_reason(&result, Reason::ExpectMismatch);
    let short = answer("only this").await;
    let result = probe(&format!("target: {short}\ntcp: {{send: \"x\\r\\n\\r\\n\", expect: hello}}")).await;
    assert_reason(&result, Reason::ExpectMismatch);
    assert_eq!(result.message, "closed after 9 bytes without \"hello\"");
    let closing = serve(|_, _| async {}).await;
    let result = probe(&format!("target: {closing}\ntcp: {{expect: hello}}")).await;
    assert_reason(&result, Reason::ConnectionClosed);
}
