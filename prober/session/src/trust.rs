//! Whether this prober trusts its own network: while its self-check fails, its runs are missed(prober_sick), not bad.
//!
//! A prober whose uplink breaks sees every target fail, and often can tell nobody until it is over. So it judges by itself: a bad
//! outcome is held back until a self-check that began after it has said something, briefly; where that check fails, everything
//! held, and every run from the first of them on, says nothing of its target.

use std::collections::BTreeSet;

use probity_proto::reason::Class;
use probity_proto::v1::Reason;

use crate::{Piece, Session};

/// How long an outcome is held back at most; a self-check that says nothing for so long is no reason to doubt.
const DOUBT_US: i64 = 6_000_000;

/// What the self-check said last.
#[derive(Debug, Default)]
pub(crate) struct Trust {
    /// There is a self-check.
    checked: bool,
    sick: Option<(i64, String)>,
    /// The assignments of which something may be held back.
    doubted: BTreeSet<u64>,
}

impl Trust {
    /// Looks at a finished run before it is taken for an outcome.
    pub(crate) fn judge(&self, piece: &mut Piece, now_us: i64) {
        match &self.sick {
            Some((since, _)) if piece.run.started_at_us >= *since => disbelieve(piece),
            None if self.checked && piece.run.reason.class() == Class::Bad => piece.doubted = Some((now_us, now_us + DOUBT_US)),
            _ => {}
        }
    }

    /// Something of an assignment is held back.
    pub(crate) fn doubts(&mut self, assignment: u64) {
        self.doubted.insert(assignment);
    }
}

/// The run happened; what it found stays in its message.
fn disbelieve(piece: &mut Piece) {
    if piece.run.reason.class() == Class::Missed {
        return;
    }
    let found = piece.run.reason.label();
    let message = std::mem::take(&mut piece.run.message);
    piece.run.message = if message.is_empty() { format!("found while sick: {found}") } else { format!("found while sick: {found}: {message}") };
    piece.run.reason = Reason::ProberSick;
}

impl Session {
    /// A self-check exists, and will speak through [`Session::on_self_check`].
    pub fn expect_self_checks(&mut self) {
        self.trust.checked = true;
    }

    /// A self-check that began at `began_us` is over: nothing failed, or this did.
    pub fn on_self_check(&mut self, began_us: i64, failed: Option<&str>, now_us: i64) {
        let held = std::mem::take(&mut self.trust.doubted);
        let mut since = began_us;
        for id in &held {
            let Some(running) = self.assignments.get_mut(id) else { continue };
            for piece in running.finished.values_mut() {
                match (piece.doubted, failed) {
                    (Some((ended, _)), None) if ended > began_us => {
                        self.trust.doubted.insert(*id);
                    }
                    (Some(_), None) => piece.doubted = None,
                    (Some(_), Some(_)) => {
                        since = since.min(piece.run.started_at_us);
                        piece.doubted = None;
                        disbelieve(piece);
                    }
                    (None, _) => {}
                }
            }
            running.collect(now_us);
            self.plan(*id);
        }
        match failed {
            None => self.trust.sick = None,
            Some(why) => self.trust.sick.get_or_insert((since, String::new())).1 = why.to_owned(),
        }
    }

    /// Since when this prober does not trust its network, and why.
    pub fn sick(&self) -> Option<(i64, &str)> {
        self.trust.sick.as_ref().map(|(since, why)| (*since, why.as_str()))
    }
}
