//! How many watches are open here: so many of each caller, over all its connections, and so many in all. Each looks at the state again whenever
//! something changed, so whoever could open them without an end could keep the coordinator busy with nothing else.

use std::sync::Arc;

use tonic::Status;

use crate::room::{Full, Place, Room};

/// Of one caller: a console that watches everything has some ten.
const CALLER_MAX: usize = 32;
/// Of all together.
const ALL_MAX: usize = 512;

/// The watches that are open, by who opened them.
#[derive(Debug, Clone)]
pub(crate) struct Watches(Arc<Room<String>>);

impl Default for Watches {
    fn default() -> Self {
        Watches(Room::new(ALL_MAX, CALLER_MAX))
    }
}

impl Watches {
    /// Begins one, if there is room; it ends when what is returned is dropped.
    pub(crate) fn begin(&self, caller: &str) -> Result<Place<String>, Status> {
        self.0.take(caller.to_owned()).map_err(|full| {
            Status::resource_exhausted(match full {
                Full::Each(own) => format!("{caller} has {own} watches open at this coordinator, and may have no more: end one (-w keeps it open)"),
                Full::All(all) => format!("{all} watches are open at this coordinator, and no more may be: read without -w, or try again later"),
            })
        })
    }
}
