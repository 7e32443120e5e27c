//! Room for so many at a time, and for so many of each who takes it: connections of an address, watches of a caller. Nobody waits for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Room for so many, whoever they are.
#[derive(Debug)]
pub(crate) struct Room<K> {
    all: usize,
    each: usize,
    taken: Mutex<Taken<K>>,
}

#[derive(Debug)]
struct Taken<K> {
    all: usize,
    /// As many entries as there are places at most.
    each: BTreeMap<K, usize>,
}

/// A place in it, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place<K: Ord> {
    room: Arc<Room<K>>,
    who: K,
}

/// Why there is none.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// Whoever asked has so many.
    Each(usize),
    /// All together have so many.
    All(usize),
}

impl<K: Ord + Clone> Room<K> {
    pub(crate) fn new(all: usize, each: usize) -> Arc<Room<K>> {
        Arc::new(Room { all, each, taken: Mutex::new(Taken { all: 0, each: BTreeMap::new() }) })
    }

    pub(crate) fn take(self: &Arc<Self>, who: K) -> Result<Place<K>, Full> {
        let mut taken = self.taken();
        let own = taken.each.get(&who).copied().unwrap_or(0);
        if own >= self.each {
            return Err(Full::Each(own));
        }
        if taken.all >= self.all {
            return Err(Full::All(taken.all));
        }
        taken.all += 1;
        *taken.each.entry(who.clone()).or_default() += 1;
        drop(taken);
        Ok(Place { room: self.clone(), who })
    }
}

impl<K> Room<K> {
    fn taken(&self) -> MutexGuard<'_, Taken<K>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Ord> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.room.taken();
        taken.all -= 1;
        if let Some(own) = taken.each.get_mut(&self.who) {
            *own -= 1;
            if *own == 0 {
                taken.each.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_more_than_a_share_and_all_no_more_than_the_bound() {
        let room = Room::new(5, 2);
        let mut anna: Vec<_> = (0..2).map(|_| room.take("anna").expect("room")).collect();
        assert_eq!(room.take("anna").expect_err("no more"), Full::Each(2));
        drop(anna.pop());
        anna.push(room.take("anna").expect("room again"));
        let others: Vec<_> = ["bob", "bob", "carl"].map(|who| room.take(who).expect("room")).into();
        assert_eq!(room.take("dora").expect_err("full"), Full::All(5));
        drop((anna, others));
        let taken = room.taken();
        assert!(taken.all == 0 && taken.each.is_empty(), "{taken:?}");
    }
}
