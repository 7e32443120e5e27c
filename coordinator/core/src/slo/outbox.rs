//! The outbox: the latest desired state of each episode at each receiver. At least once, recognisable as a repeat, and a
//! resolve is never lost (rule R4).

use probity_proto::v1::resource::Spec;
use probity_proto::v1::*;

use crate::pair_key;
use crate::state::State;

/// A new episode, for every receiver of every route that matches its labels.
pub(crate) fn open(state: &mut State, episode: &EpisodeRecord) {
    let prefix = format!("Route/{}/", episode.namespace);
    let mut receivers = std::collections::BTreeSet::new();
    for resource in state.resources.prefix(&prefix) {
        if let Some(Spec::Route(route)) = &resource.spec
            && route.r#match.iter().all(|(k, v)| episode.labels.get(k) == Some(v))
        {
            receivers.extend(route.receivers.iter().cloned());
        }
    }
    let now = state.now();
    for receiver in receivers {
        state.outbox.put(OutboxRecord {
            episode: episode.id.clone(),
            namespace: episode.namespace.clone(),
            receiver,
            revision: 1,
            next_attempt_at_us: now,
            ..OutboxRecord::default()
        });
    }
}

fn of_episode(state: &State, episode: &str) -> Vec<crate::Key> {
    let prefix = format!("{episode}\u{1f}");
    state.outbox.prefix(&prefix).map(crate::Record::key).collect()
}

/// The episode has ended: whoever was told of it, or should have been, is told so.
pub(crate) fn resolve(state: &mut State, episode: &str) {
    let now = state.now();
    for key in of_episode(state, episode) {
        if let Some(row) = state.outbox.get_mut(&key) {
            row.resolved = true;
            row.revision += 1;
            row.attempts = 0;
            row.next_attempt_at_us = now;
        }
    }
}

/// Whether nothing of it is to be told any more.
pub(crate) fn settled(state: &State, episode: &str) -> bool {
    of_episode(state, episode).iter().filter_map(|k| state.outbox.get(k)).all(|row| row.delivered_revision == row.revision)
}

/// Drops its rows.
pub(crate) fn forget(state: &mut State, episode: &str) {
    for key in of_episode(state, episode) {
        state.outbox.remove(&key);
    }
}

/// Whether a row is to be sent at `now`: 0 stands for never again.
pub fn due(row: &OutboxRecord, now: i64) -> bool {
    row.next_attempt_at_us != 0 && row.next_attempt_at_us <= now
}

/// What came of deliveries.
pub(crate) fn on_effects_done(state: &mut State, done: &[EffectDone]) {
    for effect in done {
        let key = pair_key(&effect.episode, &effect.receiver);
        let Some(row) = state.outbox.get_mut(&key) else { continue };
        // The desired state moved on meanwhile: what was sent is old, the newer one is still due.
        if row.revision != effect.revision {
            continue;
        }
        row.last_status = effect.status;
        row.next_attempt_at_us = effect.next_at_us;
        row.last_error = effect.error.clone();
        if !effect.delivered {
            row.attempts = row.attempts.saturating_add(1);
            continue;
        }
        let first = row.delivered_revision != effect.revision;
        row.attempts = 0;
        row.delivered_revision = effect.revision;
        row.delivered_at_us = effect.at_us;
        let (resolved, receiver, status) = (row.resolved, row.receiver.clone(), row.last_status);
        if first {
            crate::gameday::on_delivered(state, &effect.episode, &receiver, status, resolved, effect.at_us);
        }
    }
}
