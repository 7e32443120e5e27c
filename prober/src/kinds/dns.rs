//! DNS: one query straight to a server; over TCP when asked for, or when the answer was truncated.

use std::net::SocketAddr;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use probity_proto::v1::{DnsCheck, DnsExpect, Reason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Attempt, Failure, net};

pub(crate) async fn run(attempt: &mut Attempt<'_>, check: &DnsCheck) -> Result<(), Failure> {
    let unsupported = |m: String| Failure::new(Reason::Unsupported, m);
    let mut name = Name::from_utf8(&check.name).map_err(|e| unsupported(format!("{:?} is no name: {e}", check.name)))?;
    name.set_fqdn(true);
    let record_type: RecordType = check.record_type.parse().map_err(|_| unsupported(format!("{:?} is no record type", check.record_type)))?;
    let (host, port) = match net::host_port(&check.server) {
        Ok(found) => found,
        Err(_) => (check.server.as_str(), 53),
    };
    let addresses = attempt.resolve(host).await?;
    let Some(ip) = addresses.first() else { return Err(Failure::new(Reason::DnsNoAddress, format!("{host} has no address"))) };
    let server = SocketAddr::new(*ip, port);
    attempt.peer = server.to_string();
    let mut query = Message::query();
    query.metadata.id = rand::random();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name, record_type));
    let bytes = query.to_vec().map_err(|e| unsupported(e.to_string()))?;
    let mut answer = if check.tcp { tcp(attempt, server, &bytes, &query).await? } else { udp(attempt, server, &bytes, &query).await? };
    if answer.metadata.truncation && !check.tcp {
        answer = tcp(attempt, server, &bytes, &query).await?;
    }
    judge(attempt, &answer, check.expect.as_ref())
}

/// Whether an answer is to our very query: anything else is somebody else's, or a forgery.
fn belongs(answer: &Message, query: &Message) -> bool {
    answer.metadata.id == query.metadata.id && answer.queries == query.queries
}

async fn udp(attempt: &mut Attempt<'_>, server: SocketAddr, bytes: &[u8], query: &Message) -> Result<Message, Failure> {
    attempt.phases.next("first_byte");
    let io = |e: std::io::Error| Failure::new(net::io_reason(&e, Reason::ConnectError), format!("{server}: {e}"));
    let socket = attempt.udp(server).await?;
    socket.send(bytes).await.map_err(io)?;
    let mut buffer = vec![0; 4_096];
    loop {
        let n = socket.recv(&mut buffer).await.map_err(io)?;
        if let Ok(answer) = Message::from_vec(&buffer[..n])
            && belongs(&answer, query)
        {
            return Ok(answer);
        }
    }
}

async fn tcp(attempt: &mut Attempt<'_>, server: SocketAddr, bytes: &[u8], query: &Message) -> Result<Message, Failure> {
    let mut stream = attempt.connect(&[server.ip()], server.port()).await?;
    attempt.phases.next("first_byte");
    let io = |e: std::io::Error| Failure::new(net::io_reason(&e, Reason::ConnectionReset), format!("{server}: {e}"));
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await.map_err(io)?;
    let length = stream.read_u16().await.map_err(io)?;
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await.map_err(io)?;
    match Message::from_vec(&buffer) {
        Ok(answer) if belongs(&answer, query) => Ok(answer),
        Ok(_) => Err(Failure::new(Reason::DnsError, "the answer is to another query")),
        Err(e) => Err(Failure::new(Reason::DnsError, format!("the answer is no DNS message: {e}"))),
    }
}

fn judge(attempt: &mut Attempt<'_>, answer: &Message, expect: Option<&DnsExpect>) -> Result<(), Failure> {
    let rcode = answer.metadata.response_code;
    let word = rcode_word(rcode);
    attempt.facts.push(("dns.response_code", word.clone()));
    let default = DnsExpect::default();
    let expect = expect.unwrap_or(&default);
    if expect.rcodes.is_empty() {
        let reason = match rcode {
            ResponseCode::NoError => None,
            ResponseCode::NXDomain => Some(Reason::DnsNxdomain),
            ResponseCode::ServFail => Some(Reason::DnsServfail),
            ResponseCode::Refused => Some(Reason::DnsRefused),
            _ => Some(Reason::DnsRcodeMismatch),
        };
        if let Some(reason) = reason {
            return Err(Failure::new(reason, format!("the server answered {word}")));
        }
    } else if !expect.rcodes.contains(&word) {
        return Err(Failure::new(Reason::DnsRcodeMismatch, format!("the server answered {word}, want {}", expect.rcodes.join(" or "))));
    }
    let answers: Vec<String> = answer.answers.iter().map(|r| r.data.to_string()).collect();
    attempt.facts.push(("dns.answers", answers.join(" ")));
    if answers.len() < expect.min_answers as usize {
        return Err(Failure::new(Reason::DnsAnswerMismatch, format!("{} answers, want at least {}", answers.len(), expect.min_answers)));
    }
    match expect.answers.iter().find(|wanted| !answers.contains(wanted)) {
        Some(missing) => Err(Failure::new(Reason::DnsAnswerMismatch, format!("{missing:?} is not among {answers:?}"))),
        None => Ok(()),
    }
}

/// The code as in RFC 1035 and dig.
fn rcode_word(code: ResponseCode) -> String {
    match code {
        ResponseCode::NoError => "NOERROR".to_owned(),
        ResponseCode::FormErr => "FORMERR".to_owned(),
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::NXDomain => "NXDOMAIN".to_owned(),
        ResponseCode::NotImp => "NOTIMP".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        other => format!("RCODE{}", u16::from(other)),
    }
}
