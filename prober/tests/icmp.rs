//! Pings of loopback and of a network of this test's own. What needs rights that the host does not give is skipped, and says so.

mod common;

use std::net::Ipv4Addr;
use std::time::Duration;

use common::netns::*;
use common::*;
use probity_proto::v1::Reason;
use socket2::{Domain, Protocol, Socket, Type};

/// Whether this process may ping, and open raw sockets if the test needs one.
fn may_ping(raw: bool) -> bool {
    let open = |ty| Socket::new(Domain::IPV4, ty, Some(Protocol::ICMPV4)).is_ok();
    let may = open(Type::RAW) || !raw && open(Type::DGRAM);
    if !may {
        println!("SKIPPED: no permission for {} sockets", if raw { "raw" } else { "ICMP" });
    }
    may
}

fn number(result: &probity_prober::RunResult, name: &str) -> u64 {
    fact(result, name).parse().unwrap_or_else(|_| panic!("{name}: {result:#?}"))
}

#[tokio::test]
async fn loopback_of_both_families() {
    if !may_ping(false) {
        return;
    }
    let context = context();
    for target in ["127.0.0.1", "::1"] {
        let result = probe_in(&context, &format!("target: '{target}'\nicmp: {{count: 5, packetInterval: 2ms}}")).await;
        assert_reason(&result, Reason::Good);
        assert_eq!((number(&result, "icmp.sent"), number(&result, "icmp.received")), (5, 5));
        assert_eq!(fact(&result, "icmp.stamps"), "kernel", "both ends of the round trip: {result:#?}");
        assert_eq!(fact(&result, "icmp.reply_ttl"), "64");
        let [min, mean, p95, max] = ["min", "mean", "p95", "max"].map(|w| number(&result, &format!("icmp.rtt_{w}_ns")));
        assert!(0 < min && min <= mean && mean <= max && p95 <= max, "{result:#?}");
        assert_eq!(result.duration.as_micros() as u64, result.phases[0].duration_us + mean / 1_000, "the run takes a round trip, not the whole exchange");
    }
}

#[test]
fn a_family_without_a_route_is_passed_over() {
    in_namespace(|| async {
        sh("ip -6 addr flush dev lo");
        let udp = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        let port = udp.local_addr().expect("its address").port();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((n, from)) = udp.recv_from(&mut buffer).await {
                buffer[2] |= 0x80;
                let _ = udp.send_to(&buffer[..n], from).await;
            }
        });
        // IPv6 comes first, as everywhere; and datagrams have no race that would go on to IPv4.
        let context = context();
        for (target, kind) in [
            ("localhost".to_owned(), "icmp: {}"),
            ("localhost".to_owned(), "icmp: {trace: true}"),
            (format!("localhost:{port}"), "udp: {send: hello}"),
            (format!("localhost:{port}"), "dns: {name: a.example}"),
        ] {
            let result = probe_in(&context, &format!("target: {target}\n{kind}")).await;
            assert_reason(&result, Reason::Good);
            assert!(result.peer.starts_with("127.0.0.1"), "{kind}: {result:?}");
        }
        assert_ne!(probe_in(&context, "target: localhost\nicmp: {}\nfamily: 6").await.reason, Reason::Good, "there is no way by IPv6");
    });
}

#[tokio::test]
async fn options_reach_the_packet() {
    if !may_ping(true) {
        return;
    }
    let packet = sent_to([127, 0, 0, 77], "{payloadSize: 1000, ttl: 7, dscp: ef, dontFragment: true}\nsource: {address: 127.0.0.78}").await;
    assert_eq!(packet.len(), 20 + 8 + 1_000);
    assert_eq!((packet[1], packet[8], packet[6] & 0x40), (46 << 2, 7, 0x40), "DSCP, TTL, DF");
    assert_eq!(packet[12..16], [127, 0, 0, 78], "the source");
    // The whole octet, its two bits of congestion notification too.
    let packet = sent_to([127, 0, 0, 79], "{tos: 9}").await;
    assert_eq!((packet[1], packet[8]), (9, 64), "type of service, TTL");
}

/// Pings an address, and gives the request as a raw socket sees it arrive: with the IPv4 header.
async fn sent_to(host: [u8; 4], icmp: &str) -> Vec<u8> {
    let sniffer = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).expect("raw");
    sniffer.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
    assert_reason(&probe(&format!("target: {}\nicmp: {icmp}", Ipv4Addr::from(host))).await, Reason::Good);
    let sniff = move || {
        use std::io::Read;
        let mut buffer = [0; 2_048];
        loop {
            let n = (&sniffer).read(&mut buffer).expect("the request is seen");
            if buffer[20] == 8 && buffer[16..20] == host {
                return buffer[..n].to_vec();
            }
        }
    };
    tokio::task::spawn_blocking(sniff).await.expect("it reads")
}

#[tokio::test]
async fn limits_and_the_reasons_they_give() {
    if !may_ping(false) {
        return;
    }
    let context = context();
    for (options, reason) in [
        ("maxRtt: {max: 10s}, maxJitter: 10s, noDuplicates: true, noReordering: true, packetInterval: 1ms", Reason::Good),
        // No round trip is that short.
        ("maxRtt: {min: 0.001ms}, payloadSize: 9000", Reason::IcmpRtt),
    ] {
        let result = probe_in(&context, &format!("target: 127.0.0.1\nicmp: {{count: 4, {options}}}")).await;
        assert_eq!(result.reason, reason, "{result:#?}");
    }
    assert_reason(&probe("target: 127.0.0.1\nicmp: {}\nsource: {interface: nosuch0}").await, Reason::ProberError);
    assert_reason(&probe("target: 127.0.0.1\nicmp: {}\nsource: {address: '::1'}").await, Reason::DnsNoAddress);
}

#[test]
fn what_others_send_is_not_a_reply() {
    in_namespace(|| async {
        silence();
        let to = Ipv4Addr::new(127, 0, 0, 90);
        let other = Ipv4Addr::new(127, 0, 0, 91);
        answer_by_hand(move |request, _| {
            let mut wrong_token = reply(request);
            wrong_token[8] ^= 1;
            let mut wrong_sequence = reply(request);
            wrong_sequence[7] ^= 1;
            let mut wrong_id = reply(request);
            wrong_id[5] ^= 1;
            vec![
                (to, wrong_token),
                (to, wrong_sequence),
                (to, wrong_id),
                // With everything right, but another host's.
                (other, reply(request)),
                // Errors about a packet that was never sent.
                (other, error(3, 1, 0, request, other)),
                (other, error(11, 0, 0, &request[..8], other)),
                (other, vec![3, 1, 0, 0, 0, 0, 0, 0, 0x45]),
                (other, vec![0; 8]),
            ]
        });
        let result = probe("target: 127.0.0.90\nicmp: {}\ntimeout: 600ms").await;
        assert_reason(&result, Reason::IcmpNoReply);
        assert_eq!(result.message, "127.0.0.90: no reply to 1 echo request");
        assert_eq!(number(&result, "icmp.received"), 0);
    });
}

#[test]
fn errors_end_the_run_and_say_who_sent_them() {
    in_namespace(|| async {
        silence();
        let to = Ipv4Addr::new(127, 0, 0, 90);
        let router = Ipv4Addr::new(127, 0, 0, 1);
        answer_by_hand(move |request, before| {
            vec![(
                router,
                match before {
                    0 => error(3, 1, 0, request, to),
                    1 => error(11, 0, 0, request, to),
                    // No more quoted than RFC 792 asks for.
                    2 => error(11, 0, 0, &request[..8], to),
                    3 => error(3, 13, 0, request, to),
                    _ => error(3, 4, 1_280, request, to),
                },
            )]
        });
        let context = context();
        for (reason, text) in [
            (Reason::IcmpUnreachable, "127.0.0.1 says: host unreachable"),
            (Reason::IcmpTtlExceeded, "127.0.0.1 says: time to live exceeded"),
            (Reason::IcmpTtlExceeded, "127.0.0.1 says: time to live exceeded"),
            (Reason::IcmpUnreachable, "127.0.0.1 says: administratively prohibited"),
            (Reason::IcmpTooBig, "127.0.0.1 says: too big for the next link, whose MTU is 1280"),
        ] {
            // At once: the time-out is an hour.
            let result = probe_in(&context, "target: 127.0.0.90\nicmp: {count: 3, packetInterval: 10m}\ntimeout: 1h").await;
            assert_eq!((result.reason, result.message.as_str()), (reason, text), "{result:#?}");
        }
    });
}

#[test]
fn loss_duplicates_and_reordering_are_noticed() {
    in_namespace(|| async {
        silence();
        let held = std::sync::Mutex::new(Vec::new());
        let to = Ipv4Addr::new(127, 0, 0, 90);
        answer_by_hand(move |request, before| match before % 4 {
            // Once; never; twice; the last one before the one held back.
            0 => vec![(to, reply(request))],
            1 => Vec::new(),
            2 => {
                held.lock().expect("a lock").push((to, reply(request)));
                Vec::new()
            }
            _ => {
                let last = held.lock().expect("a lock").pop().expect("one is held");
                vec![(to, reply(request)), last.clone(), last]
            }
        });
        let context = context();
        for (options, reason, text) in [
            ("", Reason::IcmpLoss, "127.0.0.90: 1 of 4 echo requests lost, want at most 0%"),
            ("maxLoss: 25%", Reason::Good, ""),
            ("maxLoss: 25%, noDuplicates: true", Reason::IcmpDuplicate, "127.0.0.90: 1 duplicate replies"),
            ("maxLoss: 25%, noReordering: true", Reason::IcmpReordered, "127.0.0.90: 1 replies came after later ones"),
        ] {
            let result = probe_in(&context, &format!("target: 127.0.0.90\nicmp: {{count: 4, packetInterval: 30ms, {options}}}\ntimeout: 800ms")).await;
            assert_eq!((result.reason, result.message.as_str()), (reason, text), "{options}: {result:#?}");
            assert_eq!(fact(&result, "icmp.reordered"), "1");
            assert_eq!(fact(&result, "icmp.duplicates"), "1");
        }
    });
}

#[test]
fn routers_on_the_way() {
    in_namespace(|| async {
        let _way = Way::new();
        let context = context();
        for (spec, reason, text) in [
            (format!("target: {FAR}\nicmp: {{}}"), Reason::Good, String::new()),
            ("target: 'fd99:2::2'\nicmp: {count: 2, packetInterval: 1ms}".to_owned(), Reason::Good, String::new()),
            (format!("target: {FAR}\nicmp: {{ttl: 1}}"), Reason::IcmpTtlExceeded, format!("{ROUTER} says: time to live exceeded")),
            ("target: 'fd99:2::2'\nicmp: {ttl: 1}".to_owned(), Reason::IcmpTtlExceeded, "fd99:1::2 says: time to live exceeded".to_owned()),
            ("target: 10.99.10.1\nicmp: {}".to_owned(), Reason::IcmpUnreachable, format!("{ROUTER} says: host unreachable")),
            ("target: 10.99.11.1\nicmp: {}".to_owned(), Reason::IcmpUnreachable, format!("{ROUTER} says: administratively prohibited")),
            ("target: 10.99.12.1\nicmp: {}\ntimeout: 500ms".to_owned(), Reason::IcmpNoReply, "10.99.12.1: no reply to 1 echo request".to_owned()),
            ("target: 10.250.0.1\nicmp: {}".to_owned(), Reason::IcmpUnreachable, "10.250.0.1: Network is unreachable (os error 101)".to_owned()),
            // 1272 + 28 bytes is the second link's MTU.
            (format!("target: {FAR}\nicmp: {{dontFragment: true, payloadSize: 1272}}"), Reason::Good, String::new()),
            (
                format!("target: {FAR}\nicmp: {{dontFragment: true, payloadSize: 1273}}"),
                Reason::IcmpTooBig,
                format!("{ROUTER} says: too big for the next link, whose MTU is 1300"),
            ),
            (format!("target: {FAR}\nicmp: {{dontFragment: true, payloadSize: 1473}}"), Reason::IcmpTooBig, format!("{FAR}: Message too long (os error 90)")),
            (
                "target: 'fd99:2::2'\nicmp: {dontFragment: true, payloadSize: 1400}".to_owned(),
                Reason::IcmpTooBig,
                "fd99:1::2 says: too big for the next link, whose MTU is 1300".to_owned(),
            ),
            (format!("target: {FAR}\nicmp: {{payloadSize: 9000}}"), Reason::Good, String::new()),
        ] {
            let result = probe_in(&context, &spec).await;
            assert_eq!((result.reason, &result.message), (reason, &text), "{spec}: {result:#?}");
        }
    });
}

#[test]
fn the_path_hop_by_hop() {
    in_namespace(|| async {
        let _way = Way::new();
        let context = context();
        let far: std::net::IpAddr = FAR.parse().expect("an address");
        let router: std::net::IpAddr = ROUTER.parse().expect("an address");
        let traced = async |target: &str, query: &str| {
            let options = probity_prober::oneshot::Options { timeout_us: 10_000_000, ..Default::default() };
            let check = probity_prober::oneshot::check(&format!("trace://{target}?{query}"), &options).expect("a target");
            probity_prober::kinds::run(&context, &check, &probity_prober::RunInfo::default()).await
        };
        for query in ["", "protocol=udp", "protocol=tcp&port=80", "queries=1&maxHops=2"] {
            let result = traced(FAR, query).await;
            assert_reason(&result, Reason::Good);
            let hops: Vec<_> = result.path.iter().map(|h| (h.ttl, h.hosts.clone(), h.target)).collect();
            assert_eq!(hops, [(1, vec![router], false), (2, vec![far], true)], "{query}");
            let sent = if query.starts_with("queries") { 1 } else { 3 };
            assert!(result.path.iter().all(|h| h.sent == sent && h.received == sent && 0 < h.rtt_min_ns && h.rtt_min_ns <= h.rtt_max_ns), "{:?}", result.path);
        }
        for query in ["", "protocol=udp", "protocol=tcp"] {
            let result = traced("[fd99:2::2]", query).await;
            assert_reason(&result, Reason::Good);
            let hosts: Vec<String> = result.path.iter().flat_map(|h| &h.hosts).map(ToString::to_string).collect();
            assert_eq!(hosts, ["fd99:1::2", "fd99:2::2"], "{query}");
        }
        let result = traced("10.99.11.1", "").await;
        assert_eq!((result.reason, result.message), (Reason::IcmpUnreachable, format!("{ROUTER} says: administratively prohibited")));
        let result = traced("10.99.12.1", "wait=200ms").await;
        assert_eq!((result.reason, result.message.as_str()), (Reason::IcmpNoReply, "10.99.12.1 is not reached"));
        assert_eq!(result.path.len(), 1, "of the silence one line: {:?}", result.path);
        assert_eq!(traced(FAR, "maxHops=1").await.reason, Reason::IcmpNoReply);
    });
}

#[test]
fn a_run_that_turns_bad_shows_the_path_once() {
    in_namespace(|| async {
        let _way = Way::new();
        let context = context();
        let check = check("target: 10.99.12.1\nicmp: {trace: {wait: 100ms}}\ntimeout: 200ms");
        let info = probity_prober::RunInfo { check: "default/test/", ..Default::default() };
        let first = probity_prober::kinds::run(&context, &check, &info).await;
        assert_reason(&first, Reason::IcmpNoReply);
        // The router swallows what goes there: the whole way is silent.
        assert_eq!((first.path.len(), fact(&first, "icmp.path")), (1, "1 *"));
        assert!(first.duration.as_millis() < 1_000, "the trace is in no time of the run");
        let second = probity_prober::kinds::run(&context, &check, &info).await;
        assert_eq!((second.path.len(), fact(&second, "icmp.path")), (0, ""));
        let refused = common::check("target: 10.99.11.1\nicmp: {trace: true}");
        let result = probity_prober::kinds::run(&context, &refused, &probity_prober::RunInfo::default()).await;
        assert!(fact(&result, "icmp.path").starts_with(&format!("1 {ROUTER} ")), "{result:#?}");
        assert!(fact(&result, "icmp.path").ends_with(" administratively prohibited"), "{result:#?}");
    });
}
