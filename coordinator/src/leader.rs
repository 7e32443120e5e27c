//! The leader's duties outside the log: who fell silent, and what receivers must be told.

use std::time::{Duration, Instant};

use probity_core::State;
use probity_proto::v1::command::Op;
use probity_proto::v1::{FleetChange, ProberSickness};
use tokio_util::sync::CancellationToken;

use crate::effects::Effects;
use crate::fleet::{Heard, SILENT};
use crate::node::{Live, Node};
use crate::telemetry::GameDayTraces;

/// How often duties are looked at when nothing changes.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Departures within this time go in one command.
const DEPARTURES_WITHIN: Duration = Duration::from_millis(500);
/// Departures of one command: more follow in the next ones.
const DEPARTURES_AT_ONCE: usize = 64;
/// A leader whose own questions wait longer than this cannot tell who is silent.
const LATE: Duration = Duration::from_millis(500);
/// It calls nobody silent for so long at most: who is really gone must not keep checks for as long as the leader is slow.
const LATE_MAX: Duration = Duration::from_secs(30);
/// A reason is for people, and in the log.
const SICK_REASON_CHARS_MAX: usize = 256;

/// Does the duties while this member leads.
pub(crate) async fn run(node: Node, effects: Effects, mut traces: GameDayTraces, stop: CancellationToken) {
    let mut changed = node.changed();
    let mut fleet = FleetDuties::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = changed.changed() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        if !node.leadership.borrow().leading {
            continue;
        }
        fleet.look(&node).await;
        effects.deliver_due(&node).await;
        traces.look(&node).await;
    }
    effects.finish().await;
}

/// What the leader hears of the fleet, and turns into commands.
#[derive(Debug, Default)]
struct FleetDuties {
    /// The first of those who are silent now was noticed then.
    silent_since: Option<Instant>,
    /// Its own questions wait since then.
    late_since: Option<Instant>,
}

impl FleetDuties {
    /// Departures and sicknesses go in one command, or in few: checks move once, mostly.
    async fn look(&mut self, node: &Node) {
        let alive = |state: &State| state.probers.iter().filter(|p| p.alive).map(|p| p.name.clone()).collect::<Vec<_>>();
        let asked = Instant::now();
        let Ok((alive, sickness)) = node.query(move |state, live| (alive(state), changed_sickness(state, live))).await else { return };
        self.late_since = (asked.elapsed() > LATE).then(|| self.late_since.unwrap_or(asked));
        let late = self.late_since.is_some_and(|since| since.elapsed() < LATE_MAX);
        let mut left: Vec<String> = alive.into_iter().filter(|p| node.shared.fleet.silent_for(p) > SILENT).collect();
        // What ends one prober often ends others: they are waited for, briefly.
        match self.silent_since {
            _ if left.is_empty() => self.silent_since = None,
            // What they said may still wait here. Moving their checks would be more work for whoever has too much of it already.
            _ if late => left.clear(),
            Some(since) if since.elapsed() >= DEPARTURES_WITHIN => self.silent_since = None,
            since => {
                self.silent_since = since.or_else(|| Some(Instant::now()));
                left.clear();
            }
        }
        if left.is_empty() && sickness.is_empty() {
            return;
        }
        if !left.is_empty() {
            tracing::warn!(?left, "probers fell silent");
        }
        let mut changes: Vec<FleetChange> = left.chunks(DEPARTURES_AT_ONCE).map(|left| FleetChange { left: left.to_vec(), ..FleetChange::default() }).collect();
        if changes.is_empty() {
            changes.push(FleetChange::default());
        }
        changes[0].sickness = sickness;
        for change in changes {
            // What is not committed is seen again.
            if node.propose(Node::command(Op::FleetChange(change))).await.is_err() {
                return;
            }
        }
    }
}

/// Whose self-check says something else than what is known.
fn changed_sickness(state: &State, live: &Live<'_>) -> Vec<ProberSickness> {
    let heard = live.fleet.iter().filter(|(name, heard)| {
        // Before its first heartbeat on a stream a prober has said nothing.
        heard.heartbeat.sent_us != 0 && state.probers.get(name).is_some_and(|p| p.alive && p.self_sick != heard.heartbeat.sick)
    });
    heard
        .map(|(name, Heard { heartbeat, .. })| ProberSickness {
            prober: name.clone(),
            sick: heartbeat.sick,
            since_us: heartbeat.sick_since_us,
            reason: heartbeat.sick_reason.chars().take(SICK_REASON_CHARS_MAX).collect(),
        })
        .collect()
}
