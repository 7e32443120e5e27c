//! What must hold, by the names of the design's rules. Everything here is judged from outside: from what hosts said and did,
//! and from the states of the replicas side by side.

mod discovery;
pub(crate) mod history;
mod progress;
mod rows;

use std::collections::{BTreeMap, BTreeSet};

use probity_core::{State, invariants};
use probity_proto::v1::peer_message::Message as Peer;
use probity_proto::v1::*;
use probity_replica::{Outputs, Replica, Role};
use prost::Message as _;

use crate::report::Violation;
use history::History;
use rows::Rows;

/// The state is looked at whole at each index that this divides: a look costs as much as the state is large.
const LOOK_AT: u64 = 8;

/// raft's message types, by their numbers on the wire.
const REQUEST_VOTE: u32 = 5;
const REQUEST_VOTE_RESPONSE: u32 = 6;
const PRE_VOTES: [u32; 2] = [17, 18];

#[derive(Debug, Default)]
struct Seen {
    applied: u64,
    /// The highest term that it told anybody.
    term: u64,
    /// What it knew of the discovered targets there.
    found: DiscoveryRecord,
}

#[derive(Debug, PartialEq, Eq)]
struct Committed {
    term: u64,
    checksum: u32,
    request_id: String,
}

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    pub(crate) violation: Option<Violation>,
    members: Vec<Seen>,
    leaders: BTreeMap<u64, u64>,
    votes: BTreeMap<(u64, u64), u64>,
    committed: BTreeMap<u64, Committed>,
    hashes: BTreeMap<u64, u32>,
    acked_changes: Vec<(u64, String)>,
    delivered: BTreeMap<(String, String), Vec<bool>>,
    /// What each revision of a notification said.
    said: BTreeMap<(String, String, u32), bool>,
    pub(crate) rows: Rows,
    pub(crate) discovered: discovery::Discovered,
    pub(crate) history: History,
    progress: progress::Wait,
}

/// Whom this message votes for, and in which term: (voter, term, candidate).
fn vote(message: &PeerMessage) -> Option<(u64, u64, u64)> {
    let Some(Peer::Raft(m)) = &message.message else { return None };
    match m.msg_type {
        REQUEST_VOTE => Some((message.from, m.term, message.from)),
        REQUEST_VOTE_RESPONSE if !m.reject => Some((message.from, m.term, message.to)),
        _ => None,
    }
}

pub(crate) fn is_vote(message: &PeerMessage) -> bool {
    vote(message).is_some()
}

/// What a state knows of discovered targets.
fn found(state: &State) -> DiscoveryRecord {
    probity_core::discovery::of_probe(state, "default", crate::inventory::PROBE).cloned().unwrap_or_default()
}

/// A checksum of everything in a state.
fn checksum(state: &State) -> u32 {
    state.rows().fold(0, |crc, (table, key, value)| {
        let crc = crc32c::crc32c_append(crc, &table.to_le_bytes());
        let crc = crc32c::crc32c_append(crc, key.as_bytes());
        crc32c::crc32c_append(crc, &value)
    })
}

/// An entry that a member applied.
#[derive(Debug)]
pub(crate) struct Applied {
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) data: Vec<u8>,
}

impl Checks {
    pub(crate) fn new() -> Checks {
        Checks::default()
    }

    /// Another member, on a disk of its own, runs on this host.
    pub(crate) fn renewed(&mut self, m: usize) {
        self.members[m] = Seen::default();
    }

    pub(crate) fn add_member(&mut self) {
        self.members.push(Seen::default());
    }

    fn broken(&mut self, now: u64, rule: &'static str, detail: String) {
        self.violation.get_or_insert(Violation { rule, detail, at_us: now });
    }

    /// A member's process is there again.
    pub(crate) fn started(&mut self, m: usize, replica: &Replica, now: u64) {
        let status = replica.status();
        let seen = &mut self.members[m];
        seen.applied = status.applied;
        seen.found = found(replica.state());
        let promised = seen.term;
        if status.term < promised {
            self.broken(now, "raft: a term is never forgotten", format!("member {m} starts in term {} and had told of term {promised}", status.term));
        }
    }

    /// A member took a step.
    pub(crate) fn stepped(&mut self, m: usize, replica: &Replica, outputs: &Outputs, entries: &[Applied], now: u64) {
        self.elections(m, replica, outputs, now);
        self.log(m, replica, entries, now);
    }

    fn elections(&mut self, m: usize, replica: &Replica, outputs: &Outputs, now: u64) {
        let status = replica.status();
        if status.role == Role::Leader {
            let leader = *self.leaders.entry(status.term).or_insert(status.identity.id);
            if leader != status.identity.id {
                self.broken(now, "raft: one leader per term", format!("{leader} and {} lead in term {}", status.identity.id, status.term));
            }
        }
        for message in &outputs.messages {
            if let Some((voter, term, candidate)) = vote(message) {
                let first = *self.votes.entry((voter, term)).or_insert(candidate);
                if first != candidate {
                    self.broken(now, "raft: one vote per term", format!("{voter} voted for {first} and {candidate} in term {term}"));
                }
            }
            if let Some(Peer::Raft(raft)) = &message.message
                && !PRE_VOTES.contains(&raft.msg_type)
            {
                self.members[m].term = self.members[m].term.max(raft.term);
            }
        }
    }

    /// What a member applied is what every other one applied there.
    fn log(&mut self, m: usize, replica: &Replica, entries: &[Applied], now: u64) {
        let (before, applied) = (self.members[m].applied, replica.status().applied);
        if applied < before {
            return self.broken(now, "R3", format!("member {m} applied up to {before}, then up to {applied}"));
        }
        if applied == before {
            return;
        }
        self.members[m].applied = applied;
        for Applied { index, term, data } in entries {
            let (index, term, checksum) = (*index, *term, crc32c::crc32c(data));
            if let Some(known) = self.committed.get(&index) {
                if (known.term, known.checksum) != (term, checksum) {
                    let detail = format!("index {index}: member {m} applied an entry of term {term}, another one applied one of term {}", known.term);
                    return self.broken(now, "raft: log matching", detail);
                }
                continue;
            }
            let command = Command::decode(&data[..]).unwrap_or_default();
            self.discovered.committed(index, command.op.as_ref());
            self.committed.insert(index, Committed { term, checksum, request_id: command.request_id });
        }
        let now_known = probity_core::discovery::of_probe(replica.state(), "default", crate::inventory::PROBE);
        if now_known.is_some_and(|known| *known != self.members[m].found) {
            let (was, is) = (std::mem::take(&mut self.members[m].found), found(replica.state()));
            if let Some(detail) = self.discovered.judge((before, &was), (applied, &is)) {
                self.broken(now, "discovery", format!("member {m}: {detail}"));
            }
            self.members[m].found = is;
        }
        if applied.is_multiple_of(LOOK_AT) {
            self.state(m, replica, now);
        }
    }

    /// R3: equal state at equal index; and what can be seen in one state alone.
    fn state(&mut self, m: usize, replica: &Replica, now: u64) {
        let (state, applied) = (replica.state(), replica.status().applied);
        let sum = checksum(state);
        match self.hashes.get(&applied) {
            Some(known) if *known != sum => {
                self.broken(now, "R3", format!("at index {applied} the state of member {m} is another one than that of the others"))
            }
            Some(_) => {}
            None => {
                self.hashes.insert(applied, sum);
                if let Some(first) = invariants::check(state).first() {
                    self.broken(now, first.rule, format!("at index {applied}: {}", first.detail));
                }
                if let Some(detail) = self.rows.counted_once(state) {
                    self.broken(now, "R2", format!("at index {applied}: {detail}"));
                }
            }
        }
    }

    /// A client was told that its change is done.
    pub(crate) fn change_acked(&mut self, index: u64, request_id: String) {
        self.acked_changes.push((index, request_id));
    }

    /// R2: what was acknowledged is what was committed there.
    fn lost_change(&self) -> Option<String> {
        self.acked_changes.iter().find_map(|(index, request_id)| match self.committed.get(index) {
            Some(c) if c.request_id == *request_id => None,
            Some(c) => Some(format!("the change {request_id:?} was acknowledged at index {index}, where {:?} was committed", c.request_id)),
            None => Some(format!("the change {request_id:?} was acknowledged at index {index}, where nothing was ever committed")),
        })
    }

    /// R2: a request that came twice, by whatever way, took effect once: each value is of one request.
    fn done_twice(&self, state: &State) -> Option<String> {
        let mut seen = BTreeSet::new();
        let mut writes = state.audit.iter().filter(|a| a.subject.starts_with("Receiver/key") && !a.after_json.is_empty());
        let twice = writes.find(|a| !seen.insert((&a.subject, &a.after_json)));
        twice.map(|a| format!("{} was made {} twice by one request of {}", a.subject, a.after_json, a.actor))
    }

    /// A receiver was told.
    pub(crate) fn delivered(&mut self, row: &OutboxRecord, now: u64) {
        let key = (row.episode.clone(), row.receiver.clone(), row.revision);
        if *self.said.entry(key).or_insert(row.resolved) != row.resolved {
            self.broken(now, "R4", format!("{} was told two things under revision {} of {}", row.receiver, row.revision, row.episode));
        }
        self.delivered.entry((row.episode.clone(), row.receiver.clone())).or_default().push(row.resolved);
    }

    /// R4: at least once, and a resolve is never lost.
    fn untold(&self, state: &State) -> Option<String> {
        state.outbox.iter().find_map(|row| {
            let told = self.delivered.get(&(row.episode.clone(), row.receiver.clone()));
            let so = told.is_some_and(|t| t.contains(&row.resolved));
            (!so).then(|| format!("{} was never told that {} is {}", row.receiver, row.episode, if row.resolved { "resolved" } else { "firing" }))
        })
    }

    pub(crate) fn ran(&mut self, life: (usize, u64), assignment: u64, n: u64) -> Option<String> {
        self.rows.ran(life, assignment, n)
    }

    pub(crate) fn sent(&mut self, rows: &[ReportRow]) {
        self.rows.sent(rows);
    }

    pub(crate) fn acked(&mut self, ack: &RowsAck) {
        self.rows.acked(ack);
    }
}
