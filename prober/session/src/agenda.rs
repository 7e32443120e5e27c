//! What is to be done when, by assignment: one entry for each, so that a turn costs what is due in it, however many wait.

use std::collections::BTreeSet;

/// Times of assignments, the earliest first.
#[derive(Debug, Default)]
pub(crate) struct Agenda(BTreeSet<(i64, u64)>);

/// Where an assignment stands in an agenda; `None`: nowhere.
pub(crate) type Place = Option<i64>;

impl Agenda {
    /// Moves an assignment to another time, or out.
    pub(crate) fn set(&mut self, id: u64, place: &mut Place, at: Place) {
        if *place == at {
            return;
        }
        if let Some(old) = *place {
            self.0.remove(&(old, id));
        }
        if let Some(new) = at {
            self.0.insert((new, id));
        }
        *place = at;
    }

    /// The earliest time of all.
    pub(crate) fn first(&self) -> Option<i64> {
        self.0.first().map(|(at, _)| *at)
    }

    /// The assignments whose time has come, the earliest first.
    pub(crate) fn due(&self, now_us: i64) -> impl Iterator<Item = u64> + '_ {
        self.0.range(..=(now_us, u64::MAX)).map(|(_, id)| *id)
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}
