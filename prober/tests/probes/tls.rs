//! TLS: what is verified, what is asked for beyond, what is told; the certificate watch.

use std::net::SocketAddr;
use std::sync::Arc;

use super::common::ocsp::{der, response};
use super::common::tls::{Authority, Identity, acceptor};
use super::common::*;
use probity_prober::policy::AddressPolicy;
use probity_proto::v1::Reason;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsAcceptor;

/// A server that shakes hands, answers one HTTP request, and closes.
async fn https(acceptor: TlsAcceptor) -> SocketAddr {
    serve(move |stream, _| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            read_request(&mut stream).await;
            let _ = stream.write_all(ok("secure").as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    })
    .await
}

/// A certificate watch of a server that is `shop.test`.
fn watch(address: SocketAddr, ca: &str, more: &str) -> String {
    let ca = if ca.is_empty() { String::new() } else { format!("  ca: |\n    {}\n", ca.trim_end().replace('\n', "\n    ")) };
    format!("target: shop.test:{}\nhosts: {{shop.test: 127.0.0.1}}\ntimeout: 5s\ntls:\n  minDays: 1\n{ca}{}", address.port(), indent(more))
}

fn indent(text: &str) -> String {
    text.lines().map(|l| format!("  {l}\n")).collect()
}

#[tokio::test]
async fn trust_names_and_validity() {
    let authority = Authority::new();
    let ca = authority.pem();
    let good = https(authority.acceptor("shop.test", &[])).await;
    let result = probe(&watch(good, &ca, "")).await;
    assert_reason(&result, Reason::Good);
    assert_eq!(phase_names(&result.phases), ["resolve", "connect", "tls"]);
    for (name, value) in [
        ("tls.server.subject", "CN=shop.test"),
        ("tls.server.issuer", "CN=test authority"),
        ("tls.server.names", "shop.test"),
        ("tls.server.chain", "CN=shop.test < CN=test authority"),
        ("tls.protocol.version", "1.3"),
        ("tls.server.ocsp", "none"),
    ] {
        assert_eq!(fact(&result, name), value, "{name}");
    }
    let untrusted = probe(&watch(good, "", "")).await;
    assert_reason(&untrusted, Reason::TlsUntrusted);
    assert_eq!(fact(&untrusted, "tls.server.subject"), "CN=shop.test", "told even when it is not trusted");
    let other = https(authority.acceptor("other.test", &[])).await;
    assert_reason(&probe(&watch(other, &ca, "")).await, Reason::TlsNameMismatch);
    assert_reason(&probe(&watch(other, &ca, "serverName: other.test")).await, Reason::Good);
    let key = rcgen::KeyPair::generate().expect("a key");
    let own = rcgen::CertificateParams::new(vec!["shop.test".to_owned()]).expect("a name").self_signed(&key).expect("a certificate");
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let self_signed = https(acceptor(Identity { chain: vec![own.der().clone()], key, pem: String::new() }, &[])).await;
    assert_reason(&probe(&watch(self_signed, &ca, "")).await, Reason::TlsUntrusted);
    let day = |year| move |p: &mut rcgen::CertificateParams| p.not_after = rcgen::date_time_ymd(year, 1, 1);
    let expired = https(acceptor(authority.issue_with("shop.test", day(2020)), &[])).await;
    assert_reason(&probe(&watch(expired, &ca, "")).await, Reason::TlsExpired);
    let loud = probe(&watch(expired, &ca, "skipVerify: true\nminDays: 0").replace("  minDays: 1\n", "")).await;
    assert!(fact(&loud, "tls.verification").starts_with("skipped: invalid peer certificate: certificate expired"), "{loud:?}");
}

#[tokio::test]
async fn days_left() {
    let authority = Authority::new();
    let soon = |days: u64| {
        move |p: &mut rcgen::CertificateParams| {
            p.not_after = (std::time::SystemTime::now() + std::time::Duration::from_secs(86_400 * days + 3_600)).into();
        }
    };
    let server = https(acceptor(authority.issue_with("shop.test", soon(10)), &[])).await;
    let at = |days: u32| watch(server, &authority.pem(), "").replace("minDays: 1", &format!("minDays: {days}"));
    let good = probe(&at(10)).await;
    assert_reason(&good, Reason::Good);
    assert_eq!(fact(&good, "tls.server.days_left"), "10");
    let result = probe(&at(11)).await;
    assert_reason(&result, Reason::TlsExpiresSoon);
    assert!(result.message.starts_with("a certificate of the chain expires in 10d") && result.message.ends_with("want at least 11d"), "{}", result.message);
    // A watch that says nothing wants 14 days.
    assert_reason(&probe(&at(11).replace("  minDays: 11\n", "")).await, Reason::TlsExpiresSoon);
}

#[tokio::test]
async fn pins() {
    let authority = Authority::new();
    let server = https(authority.acceptor("shop.test", &[])).await;
    let pin = fact(&probe(&watch(server, &authority.pem(), "")).await, "tls.server.spki_sha256").to_owned();
    assert_reason(&probe(&watch(server, &authority.pem(), &format!("pins: [sha256/{pin}]"))).await, Reason::Good);
    let result = probe(&watch(server, &authority.pem(), "pins: ['47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=']")).await;
    assert_reason(&result, Reason::TlsPinMismatch);
    assert!(result.message.contains(&pin), "{}", result.message);
    // A pinned certificate that somebody else's server merely sends along proves nothing.
    let mut identity = Authority::new().issue("shop.test");
    identity.chain.truncate(1);
    let other = Authority::new();
    let impostor = other.issue("shop.test");
    let server_of = |chain, key| ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).expect("a configuration");
    let server = https(TlsAcceptor::from(Arc::new(server_of(identity.chain.clone(), identity.key)))).await;
    let pinned = fact(&probe(&watch(server, "", "skipVerify: true")).await, "tls.server.spki_sha256").to_owned();
    let chain = [impostor.chain, identity.chain].concat();
    let server = https(TlsAcceptor::from(Arc::new(server_of(chain, impostor.key)))).await;
    assert_reason(&probe(&watch(server, &other.pem(), &format!("pins: [sha256/{pinned}]"))).await, Reason::TlsPinMismatch);
}

#[tokio::test]
async fn a_staple_by_an_issuer_of_the_same_name_does_not_hold() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let identity = authority.issue("shop.test");
    let chain = vec![identity.chain[0].clone(), stranger.issue("other.test").chain[1].clone()];
    let response = response(&chain, &der(0x80, &[]), "20990101000000Z", &[], |bytes| stranger.sign(bytes));
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert_with_ocsp(chain, identity.key, response).expect("a configuration");
    let server = https(TlsAcceptor::from(Arc::new(config))).await;
    let result = probe(&watch(server, &authority.pem(), "requireStaple: true")).await;
    assert_reason(&result, Reason::TlsNotStapled);
    assert!(result.message.contains("no certificate of its issuer"), "{}", result.message);
}

#[tokio::test]
async fn versions() {
    let authority = Authority::new();
    let only = |version: &'static rustls::SupportedProtocolVersion| {
        let Identity { chain, key, .. } = authority.issue("shop.test");
        let config = ServerConfig::builder_with_protocol_versions(&[version]).with_no_client_auth().with_single_cert(chain, key);
        TlsAcceptor::from(Arc::new(config.expect("a configuration")))
    };
    let old = https(only(&rustls::version::TLS12)).await;
    let new = https(only(&rustls::version::TLS13)).await;
    let ca = authority.pem();
    let result = probe(&watch(old, &ca, "")).await;
    assert_reason(&result, Reason::Good);
    assert_eq!(fact(&result, "tls.protocol.version"), "1.2");
    assert_reason(&probe(&watch(old, &ca, "minVersion: '1.3'")).await, Reason::TlsHandshake);
    assert_reason(&probe(&watch(new, &ca, "maxVersion: '1.2'")).await, Reason::TlsHandshake);
    assert_reason(&probe(&watch(new, &ca, "minVersion: '1.3'")).await, Reason::Good);
}

#[tokio::test]
async fn client_certificates() {
    let authority = Authority::new();
    let secrets = tempfile::tempdir().expect("a directory");
    let client = authority.issue("prober.test");
    let (chain, key) = client.pem.split_at(client.pem.find("-----BEGIN PRIVATE KEY").expect("a key"));
    for (name, content) in [("whole", client.pem.as_str()), ("chain", chain), ("key", key), ("broken", "nothing")] {
        std::fs::write(secrets.path().join(name), content).expect("a file");
    }
    let mut roots = rustls::RootCertStore::empty();
    let der: Vec<CertificateDer<'static>> = client.chain.clone();
    roots.add(der[1].clone()).expect("an authority");
    let Identity { chain, key, .. } = authority.issue("shop.test");
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().expect("a verifier");
    let config = ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(chain, key).expect("a configuration");
    let server = https(TlsAcceptor::from(Arc::new(config))).await;
    let context = context_with(AddressPolicy::Anywhere, Some(secrets.path().to_owned()));
    let spec = |more: &str| {
        let watch = watch(server, &authority.pem(), more).replace("  minDays: 1\n", "");
        let (head, options) = watch.split_once("tls:\n").expect("its options");
        format!("{}http:\n  url: https://shop.test:{}/\n  tls:\n{}", head.replace("target: ", "# "), server.port(), indent(options))
    };
    assert_reason(&probe_in(&context, &spec("clientCertificate: {secretRef: whole}")).await, Reason::Good);
    assert_reason(&probe_in(&context, &spec("clientCertificate: {secretRef: chain}\nclientKey: {secretRef: key}")).await, Reason::Good);
    // Under TLS 1.3 the server refuses after our side of the handshake: its alert may be overtaken by the end of the connection.
    let refused = probe_in(&context, &spec("")).await;
    assert!([Reason::TlsHandshake, Reason::ConnectionClosed, Reason::ConnectionReset].contains(&refused.reason), "{refused:?}");
    // Who we are, and whom the target must be, go no further than the target: not to another host that it redirects to.
    let port = server.port();
    let from = super::common::answer(format!("HTTP/1.1 302 Found\r\nlocation: https://shop.test:{port}/\r\ncontent-length: 0\r\n\r\n")).await;
    let redirected = |host: &str| {
        let options = spec("clientCertificate: {secretRef: whole}");
        let url = format!("http://{host}:{}/\n  followRedirects: 1", from.port());
        options.replace(&format!("https://shop.test:{port}/"), &url).replace("hosts: {", "hosts: {www.test: 127.0.0.1, ")
    };
    assert_reason(&probe_in(&context, &redirected("shop.test")).await, Reason::Good);
    let elsewhere = probe_in(&context, &redirected("www.test")).await;
    assert!([Reason::TlsHandshake, Reason::ConnectionClosed, Reason::ConnectionReset].contains(&elsewhere.reason), "{elsewhere:?}");
    for secret in ["broken", "chain", "nosuch"] {
        let result = probe_in(&context, &spec(&format!("clientCertificate: {{secretRef: {secret}}}"))).await;
        assert_eq!(result.reason, Reason::SecretMissing, "{result:?}");
        assert!(!result.message.contains("nothing"), "{}", result.message);
    }
}

#[tokio::test]
async fn stapled_status() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let ca = authority.pem();
    let (good, later, past) = (der(0x80, &[]), "20990101000000Z", "20260102000000Z");
    let revoked = der(0xa1, &[der(0x18, &[b"20260101000000Z".to_vec()])]);
    type Made<'a> = Box<dyn Fn(&Identity) -> Vec<u8> + 'a>;
    let by = |status: &Vec<u8>, until: &'static str, signer: &'static str| -> Made<'_> {
        let (status, authority, stranger) = (status.clone(), &authority, &stranger);
        Box::new(move |identity| {
            let signing = if signer == "issuer" { authority } else { stranger };
            response(&identity.chain, &status, until, &[], |bytes| signing.sign(bytes))
        })
    };
    let other = authority.issue("other.test");
    let of_another: Made<'_> = Box::new(|_| response(&other.chain, &der(0x80, &[]), later, &[], |bytes| authority.sign(bytes)));
    let cases: [(Made<'_>, &str, &str, Reason, Reason); 7] = [
        (by(&good, later, "issuer"), "good", "valid", Reason::Good, Reason::Good),
        (by(&good, later, "stranger"), "good", "invalid: its signature is not of the certificate's issuer", Reason::Good, Reason::TlsNotStapled),
        (by(&good, past, "issuer"), "good", "invalid: its time is over", Reason::Good, Reason::TlsNotStapled),
        (of_another, "good", "invalid: it is about another certificate", Reason::Good, Reason::TlsNotStapled),
        (by(&revoked, later, "issuer"), "revoked", "valid", Reason::TlsRevoked, Reason::TlsRevoked),
        (Box::new(|_| b"no response".to_vec()), "unknown", "invalid: it is no successful OCSP response", Reason::Good, Reason::TlsNotStapled),
        (Box::new(|_| Vec::new()), "none", "", Reason::Good, Reason::TlsNotStapled),
    ];
    for (made, word, signature, plain, required) in cases {
        let identity = authority.issue("shop.test");
        let response = made(&identity);
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert_with_ocsp(identity.chain, identity.key, response);
        let server = https(TlsAcceptor::from(Arc::new(config.expect("a configuration")))).await;
        let result = probe(&watch(server, &ca, "")).await;
        assert_reason(&result, plain);
        assert_eq!(fact(&result, "tls.server.ocsp"), word);
        if !signature.is_empty() {
            assert_eq!(fact(&result, "tls.server.ocsp_signature"), signature, "{word}");
        }
        assert_reason(&probe(&watch(server, &ca, "requireStaple: true")).await, required);
    }
}

/// RFC 6960, section 4.2.2.2: the issuer lets another sign, by a certificate with that purpose.
#[tokio::test]
async fn a_staple_by_a_delegate() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let ca = authority.pem();
    let for_ocsp = |p: &mut rcgen::CertificateParams| p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::OcspSigning];
    let expired = |p: &mut rcgen::CertificateParams| {
        for_ocsp(p);
        p.not_before = rcgen::date_time_ymd(2020, 1, 1);
        p.not_after = rcgen::date_time_ymd(2021, 1, 1);
    };
    let refused = "invalid: its signature is not of the certificate's issuer";
    for (name, delegate, shown, told) in [
        ("by the issuer", authority.issue_with("ocsp.test", for_ocsp), true, "valid"),
        ("for another purpose", authority.issue("ocsp.test"), true, refused),
        ("whose time is over", authority.issue_with("ocsp.test", expired), true, refused),
        ("by another issuer of that name", stranger.issue_with("ocsp.test", for_ocsp), true, refused),
        ("who is not shown", authority.issue_with("ocsp.test", for_ocsp), false, refused),
    ] {
        let identity = authority.issue("shop.test");
        let shown = if shown { vec![delegate.chain[0].clone()] } else { Vec::new() };
        let made = response(&identity.chain, &der(0x80, &[]), "20990101000000Z", &shown, |bytes| delegate.sign(bytes));
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert_with_ocsp(identity.chain, identity.key, made);
        let server = https(TlsAcceptor::from(Arc::new(config.expect("a configuration")))).await;
        let result = probe(&watch(server, &ca, "requireStaple: true")).await;
        assert_eq!(fact(&result, "tls.server.ocsp_signature"), told, "{name}");
        assert_reason(&result, if told == "valid" { Reason::Good } else { Reason::TlsNotStapled });
    }
    // Another's signature under a delegate's certificate is nobody's.
    let (delegate, identity) = (authority.issue_with("ocsp.test", for_ocsp), authority.issue("shop.test"));
    let made = response(&identity.chain, &der(0x80, &[]), "20990101000000Z", &[delegate.chain[0].clone()], |bytes| stranger.sign(bytes));
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert_with_ocsp(identity.chain, identity.key, made);
    let server = https(TlsAcceptor::from(Arc::new(config.expect("a configuration")))).await;
    assert_reason(&probe(&watch(server, &ca, "requireStaple: true")).await, Reason::TlsNotStapled);
}

#[tokio::test]
async fn many_handshakes_at_once_do_not_mix_up_what_they_see() {
    let authority = Authority::new();
    let context = context();
    let mut specs = Vec::new();
    for i in 0..8 {
        let name = format!("s{i}.test");
        let server = https(authority.acceptor(&name, &[])).await;
        // One configuration for all: only the name differs, and that is no part of it here.
        specs.push((name.clone(), watch(server, &authority.pem(), "").replace("shop.test", &name)));
    }
    let runs = (0..40).map(|i| {
        let (name, spec) = &specs[i % specs.len()];
        let context = &context;
        async move { (name, probe_in(context, spec).await) }
    });
    for (name, result) in futures_util::future::join_all(runs).await {
        assert_reason(&result, Reason::Good);
        assert_eq!(fact(&result, "tls.server.subject"), format!("CN={name}"));
    }
}
