//! Who changed what: a bounded history in the state.

use probity_proto::v1::{AuditRecord, Command};

use crate::number_key;
use crate::state::State;

/// How many records are kept.
pub const AUDIT_KEPT: u64 = 2_000;

/// Records a change that `command` asked for.
pub(crate) fn record(state: &mut State, command: &Command, action: &str, subject: &str, before: &str, after: &str) {
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
        before_json: before.to_owned(),
        after_json: after.to_owned(),
    });
    if let Some(old) = sequence.checked_sub(AUDIT_KEPT) {
        state.audit.remove(&number_key(old));
    }
}
