//! One assignment as the prober sees it: which slots were started, and what became of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use probity_proto::reason::Class;
use probity_proto::slots::Schedule;
use probity_proto::v1::*;
use prost::Message;

use crate::agenda::Place;
use crate::row::OpenRow;
use crate::{RunDone, SlotStart};

/// A slot that is later than this is missed, not run: after a pause no more runs begin at once than were planned in this time.
const PATIENCE_US: i64 = 1_000_000;

/// Some slots of one outcome that wait for their predecessors.
#[derive(Debug)]
pub(crate) struct Piece {
    count: u64,
    pub(crate) run: RunDone,
    /// Held back since, and until when at most: a self-check has yet to say whether it is to be believed.
    pub(crate) doubted: Option<(i64, i64)>,
}

impl Piece {
    pub(crate) fn of(count: u64, run: RunDone) -> Piece {
        Piece { count, run, doubted: None }
    }

    fn may_go(&self, now_us: i64) -> bool {
        self.doubted.is_none_or(|(_, until)| until <= now_us)
    }
}

/// An assignment as it is encoded.
pub(crate) type Packed = Arc<[u8]>;

pub(crate) fn pack(spec: &AssignmentSpec) -> Packed {
    spec.encode_to_vec().into()
}

#[derive(Debug)]
pub(crate) struct Running {
    id: u64,
    schedule: Schedule,
    /// Slots due at or after this are not planned.
    until_us: i64,
    thresholds_us: Box<[u64]>,
    /// The whole of it. It is decoded when a run begins and not kept so: of a hundred thousand probes nearly all wait, and decoded each is
    /// six times its size.
    packed: Packed,
    /// The slot that it begins with.
    first_n: u64,
    /// The next slot to start.
    next_n: u64,
    /// The next slot to go into a row: everything before is in a row.
    pub(crate) row_n: u64,
    /// What waits; mostly nothing does.
    pub(crate) finished: BTreeMap<u64, Piece>,
    pub(crate) row: OpenRow,
    /// Slots due before this were never to be run here: (time, why).
    not_before: (i64, Reason),
    /// Where it stands in the two agendas of the session.
    pub(crate) slot_at: Place,
    pub(crate) row_at: Place,
}

impl Running {
    pub(crate) fn new(spec: &AssignmentSpec, not_before: (i64, Reason)) -> Running {
        Running {
            id: spec.id,
            schedule: schedule(spec),
            until_us: until_us(spec),
            thresholds_us: spec.thresholds_us.clone().into(),
            packed: pack(spec),
            first_n: spec.next_n,
            next_n: spec.next_n,
            row_n: spec.next_n,
            finished: BTreeMap::new(),
            row: OpenRow::default(),
            not_before,
            slot_at: None,
            row_at: None,
        }
    }

    pub(crate) fn packed(&self) -> &Packed {
        &self.packed
    }

    /// Takes up the assignment as it is now, which begins where it began; what is to be stored of it, if it changed.
    pub(crate) fn follow(&mut self, spec: AssignmentSpec) -> Option<Packed> {
        let new = AssignmentSpec { next_n: self.first_n, ..spec };
        let packed = pack(&new);
        if packed == self.packed {
            return None;
        }
        (self.schedule, self.until_us, self.thresholds_us, self.packed) = (schedule(&new), until_us(&new), new.thresholds_us.clone().into(), packed);
        // What is in the open row is not on the disk yet: after a crash it must be owned up to.
        Some(pack(&AssignmentSpec { next_n: self.row.first_n().unwrap_or(self.row_n), ..new }))
    }

    /// When the next slot is due, if there is one.
    pub(crate) fn next_slot_at(&self) -> Place {
        Some(self.schedule.due(self.next_n)).filter(|due| *due < self.until_us)
    }

    /// When its row is to be closed, or what is held back goes into it.
    pub(crate) fn next_row_at(&self, flush_us: u64, unsteady_flush_us: u64) -> Place {
        let doubted = self.finished.get(&self.row_n).and_then(|p| p.doubted).map(|(_, until)| until);
        doubted.into_iter().chain(self.row.due_at(flush_us, unsteady_flush_us)).min()
    }

    /// Starts what is due at a time; what was overslept then is missed.
    pub(crate) fn start(&mut self, now_us: i64, starts: &mut Vec<SlotStart>) {
        let (schedule, until) = (self.schedule, self.until_us);
        let (not_before, why) = self.not_before;
        self.miss_until(schedule.first_at_or_after(not_before.min(now_us).min(until)), why);
        self.miss_until(schedule.first_at_or_after((now_us - PATIENCE_US).min(until)), Reason::Overloaded);
        // Of several that are due the newest: the others would only crowd it.
        let after = schedule.first_at_or_after((now_us + 1).min(until));
        self.miss_until(after.saturating_sub(1), Reason::Overloaded);
        if self.next_n < after {
            let n = self.next_n;
            self.next_n += 1;
            starts.push(SlotStart { assignment: self.id, n, due_us: schedule.due(n), packed: self.packed.clone() });
        }
        if !self.finished.is_empty() {
            self.collect(now_us);
        }
    }

    /// Counts the slots before `n` that were not started as missed.
    fn miss_until(&mut self, n: u64, why: Reason) {
        if n > self.next_n {
            let run = RunDone { reason: why, ..RunDone::default() };
            self.finished.insert(self.next_n, Piece::of(n - self.next_n, run));
            self.next_n = n;
        }
    }

    /// Whether slot `n` was started, and has not ended yet.
    pub(crate) fn waits_for(&self, n: u64) -> bool {
        n >= self.row_n && n < self.next_n
    }

    /// A run has ended; whether it is held back.
    pub(crate) fn finish(&mut self, n: u64, piece: Piece, now_us: i64) -> bool {
        let held = piece.doubted.is_some();
        if n == self.row_n && piece.may_go(now_us) && self.finished.is_empty() {
            self.take(piece, now_us);
        } else {
            self.finished.insert(n, piece);
            self.collect(now_us);
        }
        held
    }

    /// Moves finished slots into the row as far as they are contiguous.
    pub(crate) fn collect(&mut self, now_us: i64) {
        while let Some(next) = self.finished.first_entry().filter(|e| *e.key() == self.row_n && e.get().may_go(now_us)) {
            let piece = next.remove();
            self.take(piece, now_us);
        }
    }

    fn take(&mut self, piece: Piece, now_us: i64) {
        let level = match piece.run.reason.class() {
            Class::Good => self.thresholds_us.iter().filter(|t| piece.run.duration_us > **t).count() as u32,
            _ => 0,
        };
        self.row.add(self.row_n, piece.count, level, piece.run, now_us);
        self.row_n += piece.count;
    }
}

fn schedule(spec: &AssignmentSpec) -> Schedule {
    Schedule { interval_us: spec.interval_us.max(1), phase_us: spec.phase_us }
}

fn until_us(spec: &AssignmentSpec) -> i64 {
    if spec.until_us == 0 { i64::MAX } else { spec.until_us }
}
