//! Who changed what: a bounded history in the state.

use probity_proto::v1::{AuditRecord, Command};

use crate::number_key;
use crate::state::State;

/// How many records are kept.
pub const AUDIT_KEPT: u64 = 2_000;

/// The longest text before or after a change that is kept, in bytes: documents are smaller, and a huge one must not fill the state.
pub const TEXT_BYTES_KEPT: usize = 32 * 1024;

/// Records a change of the whole cluster that `command` asked for.
pub(crate) fn record(state: &mut State, command: &Command, action: &str, subject: &str, before: &str, after: &str) {
    record_in(state, command, "", action, subject, before, after);
}

/// Records a change in a namespace.
pub(crate) fn record_in(state: &mut State, command: &Command, namespace: &str, action: &str, subject: &str, before: &str, after: &str) {
    let at_us = state.now();
    let meta = state.meta_mut();
    let sequence = meta.next_audit;
    meta.next_audit += 1;
    state.audit.put(AuditRecord {
        sequence,
        at_us,
        actor: command.actor.clone(),
        origin: command.origin.clone(),
        action: action.to_owned(),
        subject: subject.to_owned(),
        before_json: cut(before),
        after_json: cut(after),
        namespace: namespace.to_owned(),
        credential: command.credential.clone(),
    });
    if let Some(old) = sequence.checked_sub(AUDIT_KEPT) {
        state.audit.remove(&number_key(old));
    }
}

fn cut(text: &str) -> String {
    if text.len() <= TEXT_BYTES_KEPT {
        return text.to_owned();
    }
    let mut end = TEXT_BYTES_KEPT;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}... ({} bytes)", &text[..end], text.len())
}
