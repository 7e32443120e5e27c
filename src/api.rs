//! The connection to the coordinators: reads as JSON, changes with a request id.

use std::time::Duration;

pub(crate) use probity_rpc::client::request_id;
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

    /// Reads a path of the read API, page by page where it comes so.
    pub(crate) async fn read(&mut self, path: &str) -> Result<Value, Fail> {
        let mut value = self.page(path).await?;
        while let Some(next) = value.as_object_mut().and_then(|o| o.remove("continue")) {
            let (from, joint) = (encode(next.as_str().unwrap_or_default()), if path.contains('?') { '&' } else { '?' });
            let more = self.page(&format!("{path}{joint}from={from}")).await?;
            append(&mut value, more);
        }
        if self.stale {
            eprintln!("{}", staleness(&value["asOf"]));
        }
        Ok(value)
    }

    async fn page(&mut self, path: &str) -> Result<Value, Fail> {
        let request = ReadRequest { path: path.to_owned(), stale: self.stale };
        let reply = self.operator.look(async |mut c| c.read(request.clone()).await).await;
        parse(reply.map_err(|s| self.fail(&s))?)
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

/// Adds a page to those before it: its first item may be the rest of their last one, whose checks went on.
fn append(value: &mut Value, mut more: Value) {
    if let Some(next) = more.as_object_mut().and_then(|o| o.remove("continue")) {
        value["continue"] = next;
    }
    let checks = |item: &mut Value| item["status"]["checks"].as_array_mut().map(std::mem::take).unwrap_or_default();
    let Some(items) = more["items"].as_array_mut() else {
        let rest = checks(&mut more);
        value["status"]["checks"].as_array_mut().into_iter().for_each(|all| all.extend(rest.iter().cloned()));
        return;
    };
    let Some(all) = value["items"].as_array_mut() else { return };
    for mut item in items.drain(..) {
        let of = |item: &Value| (item["metadata"]["namespace"].clone(), item["metadata"]["name"].clone());
        match all.last_mut().filter(|last| of(last) == of(&item)) {
            Some(last) => {
                let rest = checks(&mut item);
                last["status"]["checks"].as_array_mut().into_iter().for_each(|all| all.extend(rest.iter().cloned()));
            }
            None => all.push(item),
        }
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

/// Percent-encodes what stands in a path or query.
pub(crate) fn encode(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => (b as char).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pages_become_one_list_again() {
        let probe = |name: &str, checks: &[u32]| json!({"metadata": {"namespace": "shop", "name": name}, "status": {"checks": checks}});
        let mut value = json!({"items": [probe("a", &[1]), probe("b", &[2, 3])]});
        append(&mut value, json!({"items": [probe("b", &[4]), probe("c", &[5])], "continue": "c"}));
        assert_eq!(value, json!({"items": [probe("a", &[1]), probe("b", &[2, 3, 4]), probe("c", &[5])], "continue": "c"}));
        let mut one = probe("b", &[1]);
        append(&mut one, probe("b", &[2]));
        assert_eq!(one, probe("b", &[1, 2]));
    }
}
