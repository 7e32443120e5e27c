//! How many watches are open here: so many of each caller, over all its connections, and so many in all. Each looks at the state again whenever
//! something changed, so whoever could open them without an end could keep the coordinator busy with nothing else.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tonic::Status;

/// Of one caller: a console that watches everything has some ten.
const CALLER_MAX: usize = 32;
/// Of all together.
const ALL_MAX: usize = 512;

/// The watches that are open, by who opened them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watches(Arc<Mutex<BTreeMap<String, usize>>>);

impl Watches {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins one, if there is room; it ends when what is returned is dropped.
    pub(crate) fn begin(&self, caller: &str) -> Result<Open, Status> {
        let mut open = self.lock();
        let own = open.get(caller).copied().unwrap_or(0);
        if own >= CALLER_MAX {
            return Err(Status::resource_exhausted(format!(
                "{caller} has {own} watches open at this coordinator, and may have no more: end one (-w keeps it open)"
            )));
        }
        let all: usize = open.values().sum();
        if all >= ALL_MAX {
            return Err(Status::resource_exhausted(format!(
                "{all} watches are open at this coordinator, and no more may be: read without -w, or try again later"
            )));
        }
        *open.entry(caller.to_owned()).or_default() += 1;
        Ok(Open { all: self.clone(), caller: caller.to_owned() })
    }
}

/// One that is open.
#[derive(Debug)]
pub(crate) struct Open {
    all: Watches,
    caller: String,
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut open = self.all.lock();
        if let Some(count) = open.get_mut(&self.caller) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_more_than_a_share_and_all_no_more_than_the_bound() {
        let watches = Watches::default();
        let mut open: Vec<Open> = (0..CALLER_MAX).map(|_| watches.begin("anna").expect("room")).collect();
        let refused = watches.begin("anna").expect_err("no more");
        assert!(refused.message().contains("anna has 32 watches open"), "{refused:?}");
        drop(open.pop());
        open.push(watches.begin("anna").expect("room again"));
        for n in 0..ALL_MAX / CALLER_MAX - 1 {
            open.extend((0..CALLER_MAX).map(|_| watches.begin(&n.to_string()).expect("room")));
        }
        let refused = watches.begin("bob").expect_err("full");
        assert!(refused.message().contains("512 watches are open"), "{refused:?}");
        drop(open);
        assert!(watches.lock().is_empty());
    }
}
