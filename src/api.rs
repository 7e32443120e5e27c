//! The connection to the coordinators: reads as JSON, changes with a request id.

use std::time::Duration;

use probity_rpc::client::{AddressError, Operator, cause, channel, untrusted};
use probity_rpc::refusal::Refusal;
use probity_rpc::tls::TlsFiles;
use probity_rpc::v1::{ReadReply, ReadRequest};
use serde_json::Value;
use tonic::{Code, Status};

use crate::settings::Settings;
use crate::{Fail, exit};

/// How long a command tries before it says that nobody answers.
const PATIENCE: Duration = Duration::from_secs(5);

/// The coordinators, as one.
pub(crate) struct Api {
    pub(crate) operator: Operator,
    pub(crate) namespace: String,
    /// It was asked for, and is not the default.
    pub(crate) namespace_given: bool,
    servers: String,
    stale: bool,
}

impl Api {
    pub(crate) fn new(settings: &Settings) -> Result<Self, Fail> {
        let tls = settings.tls_dir.as_ref().map(TlsFiles::new);
        // What can never be dialled is the command line's mistake; files that are of no use are told by the call.
        for server in &settings.server {
            if let Err(e @ (AddressError::Invalid(_) | AddressError::PlainText(_))) = channel(server, tls.as_ref()) {
                return Err(Fail::of(exit::MISUSE, &e));
            }
        }
        let mut operator = Operator::new(settings.server.clone(), tls, PATIENCE);
        if let Some(token) = &settings.token {
            operator = operator.with_token(token).map_err(Fail::misuse)?;
        }
        Ok(Api {
            operator,
            namespace: settings.namespace.clone(),
            namespace_given: settings.namespace_given,
            servers: settings.server.join(", "),
            stale: settings.stale,
        })
    }

    /// Whether any member's knowledge will do.
    pub(crate) fn stale(&self) -> bool {
        self.stale
    }

    /// Reads a path of the read API.
    pub(crate) async fn read(&mut self, path: &str) -> Result<Value, Fail> {
        let request = ReadRequest { path: path.to_owned(), stale: self.stale };
        let reply = self.operator.look(async |mut c| c.read(request.clone()).await).await;
        let value = parse(reply.map_err(|s| self.fail(&s))?)?;
        if self.stale {
            eprintln!("{}", staleness(&value["asOf"]));
        }
        Ok(value)
    }

    /// The same, again whenever it changed.
    pub(crate) async fn watch(&mut self, path: &str) -> Result<Watch, Fail> {
        let request = ReadRequest { path: path.to_owned(), stale: true };
        let stream = self.operator.look(async |mut c| c.watch(request.clone()).await).await.map_err(|s| self.fail(&s))?;
        Ok(Watch { stream })
    }

    /// A status as what a person is told, and the exit code.
    pub(crate) fn fail(&self, status: &Status) -> Fail {
        let code = match status.code() {
            Code::Unavailable | Code::DeadlineExceeded => exit::UNREACHABLE,
            _ => exit::NO,
        };
        let refusal = Refusal::of(status);
        let answered = std::error::Error::source(status).is_none();
        let message = match status.code() {
            Code::Unavailable if untrusted(status) => cause(status),
            _ if refusal == Some(Refusal::Unknown) => format!("{} (`probity audit` shows whether it was)", status.message()),
            Code::Unavailable if !answered => {
                format!("no coordinator answers at {} ({}); is it running? (--server or PROBITY_SERVER says where)", self.servers, cause(status))
            }
            _ => status.message().to_owned(),
        };
        Fail::new(code, message)
    }
}

/// How old a reading may be, for a person.
fn staleness(as_of: &Value) -> String {
    let member = as_of["member"].as_str().unwrap_or("?");
    let seconds = as_of["ageSeconds"].as_f64().unwrap_or_default();
    format!("stale: what {member} knew {seconds:.1} s ago, at index {}; it may lack what was committed since", as_of["index"])
}

fn parse(reply: ReadReply) -> Result<Value, Fail> {
    serde_json::from_str(&reply.json).map_err(|e| Fail::no(format!("the coordinator's answer is no JSON: {e}")))
}

/// A stream of readings.
pub(crate) struct Watch {
    stream: tonic::Streaming<ReadReply>,
}

impl Watch {
    /// The next reading; `None` when the coordinator went away.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        let reply = self.stream.message().await.ok()??;
        parse(reply).ok()
    }
}

/// A fresh request id: a retry with the same one is applied once.
pub(crate) fn request_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Percent-encodes what stands in a path or query.
pub(crate) fn encode(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => (b as char).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}
