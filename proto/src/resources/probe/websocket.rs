//! `websocket:` of a probe.

use super::super::read::{At, Fields, Mistakes};
use super::assertion::{one, regex};
use super::grpc::headers;
use super::udp::text_or_hex;
use super::{target_or, tls};
use crate::units;
use crate::v1::web_socket_step::Step;
use crate::v1::*;

/// More steps are a program.
const STEPS_MAX: usize = 100;

pub(super) fn websocket(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> WebSocketCheck {
    let (headers, secret_headers) = headers(f, "headers", mistakes);
    let subprotocols = f.get("subprotocols").map(|at| at.items(mistakes)).unwrap_or_default();
    let subprotocols = subprotocols.iter().filter_map(|at| at.parsed(mistakes, token)).collect();
    let mut dialogue: Vec<WebSocketStep> = Vec::new();
    // Short for a dialogue of two steps.
    let (send, expect) = (f.text("send", mistakes), f.get("expect").and_then(|at| at.parsed(mistakes, regex)));
    dialogue.extend(send.map(|text| WebSocketStep { step: Some(Step::Send(text)) }));
    dialogue.extend(expect.map(|pattern| WebSocketStep { step: Some(Step::Expect(pattern)) }));
    if let Some(at) = f.get("dialogue") {
        if !dialogue.is_empty() {
            mistakes.add(&at.path, at.place(), "both a dialogue and send or expect are given", "put them into the dialogue");
        }
        let items = at.items(mistakes);
        if items.len() > STEPS_MAX {
            mistakes.add(&at.path, at.place(), format!("{} steps are given", items.len()), format!("want at most {STEPS_MAX}"));
        }
        dialogue.extend(items.iter().filter_map(|at| step(at, mistakes)));
    }
    WebSocketCheck {
        url: target_or(f, "url", mistakes),
        headers,
        secret_headers,
        subprotocols,
        tls: tls::tls(f, mistakes),
        dialogue,
        max_message_bytes: f.get("maxMessageBytes").and_then(|at| at.parsed(mistakes, units::parse_bytes)).unwrap_or(1 << 20),
    }
}

fn step(at: &At<'_>, mistakes: &mut Mistakes) -> Option<WebSocketStep> {
    let mut f = at.fields(mistakes)?;
    let mut found = Vec::new();
    found.extend(f.text("send", mistakes).map(Step::Send));
    found.extend(text_or_hex(&mut f, "sendBinary", "sendHex", mistakes).map(Step::SendBinary));
    found.extend(f.get("expect").and_then(|at| at.parsed(mistakes, regex)).map(Step::Expect));
    found.extend(f.flag("ping", mistakes).filter(|p| *p).map(Step::Ping));
    f.finish(mistakes);
    one(found, at, "step", "send, sendBinary, sendHex, expect, ping: true", mistakes).map(|step| WebSocketStep { step: Some(step) })
}

/// RFC 9110, section 5.6.2.
fn token(text: &str) -> Result<String, String> {
    let right = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    if !text.is_empty() && text.chars().all(right) { Ok(text.to_owned()) } else { Err(format!("{text:?} is no subprotocol")) }
}
