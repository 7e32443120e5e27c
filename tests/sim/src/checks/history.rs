//! Linearizability of reads and writes, key by key: a search for one order of all operations that explains every answer
//! (Wing and Gong 1993, with Lowe's memory of configurations seen). It knows nothing of raft.

use std::collections::{BTreeMap, BTreeSet};

/// Configurations that a search may look at; beyond, a key stays undecided.
const CONFIGURATIONS_MAX: usize = 400_000;

/// What was done to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Set, or removed.
    Write(Option<String>),
    /// What was read.
    Read(Option<String>),
}

/// One operation.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) kind: Kind,
    pub(crate) from: u64,
    /// When the answer came; none: perhaps it never took effect, perhaps it will.
    pub(crate) to: Option<u64>,
}

/// All operations of a run.
#[derive(Debug, Default)]
pub(crate) struct History {
    entries: Vec<Option<Entry>>,
}

impl History {
    pub(crate) fn begin(&mut self, entry: Entry) -> usize {
        self.entries.push(Some(entry));
        self.entries.len() - 1
    }

    pub(crate) fn read(&mut self, entry: usize, value: Option<String>, now: u64) {
        if let Some(entry) = &mut self.entries[entry] {
            entry.kind = Kind::Read(value);
            entry.to = Some(now);
        }
    }

    pub(crate) fn written(&mut self, entry: usize, now: u64) {
        if let Some(entry) = &mut self.entries[entry] {
            entry.to = Some(now);
        }
    }

    /// It had no effect.
    pub(crate) fn nothing(&mut self, entry: usize) {
        self.entries[entry] = None;
    }

    /// The first key whose history no order explains; and how many keys stayed undecided.
    pub(crate) fn judge(&self) -> (Option<String>, u64) {
        let mut keys: BTreeMap<&str, Vec<Entry>> = BTreeMap::new();
        for entry in self.entries.iter().flatten() {
            // A read without an answer says nothing.
            if entry.to.is_some() || matches!(entry.kind, Kind::Write(_)) {
                keys.entry(&entry.key).or_default().push(entry.clone());
            }
        }
        let mut undecided = 0;
        for (key, entries) in keys {
            match linearizable(entries) {
                Some(true) => {}
                Some(false) => return (Some(key.to_owned()), undecided),
                None => undecided += 1,
            }
        }
        (None, undecided)
    }
}

type Configuration = (Vec<u64>, Option<String>);

/// Whether some order explains a key's history; none when the search was cut off.
pub(crate) fn linearizable(mut entries: Vec<Entry>) -> Option<bool> {
    let read: BTreeSet<Option<String>> = entries.iter().filter_map(|e| if let Kind::Read(v) = &e.kind { Some(v.clone()) } else { None }).collect();
    // A write of unknown outcome whose value nobody saw might as well not have been.
    entries.retain(|e| e.to.is_some() || matches!(&e.kind, Kind::Write(v) if read.contains(v)));
    entries.sort_by_key(|e| e.from);
    let mut seen: BTreeSet<Configuration> = BTreeSet::new();
    let mut stack: Vec<Configuration> = vec![(vec![0; entries.len().div_ceil(64)], None)];
    while let Some((done, value)) = stack.pop() {
        let is_done = |i: usize| done[i / 64] >> (i % 64) & 1 == 1;
        // Whatever is next began before the first of the others ended.
        let Some(first_end) = (0..entries.len()).filter(|i| !is_done(*i)).filter_map(|i| entries[i].to).min() else { return Some(true) };
        for (i, entry) in entries.iter().enumerate().take_while(|(_, e)| e.from <= first_end) {
            if is_done(i) {
                continue;
            }
            let after = match &entry.kind {
                Kind::Write(v) => v.clone(),
                Kind::Read(v) if *v == value => value.clone(),
                Kind::Read(_) => continue,
            };
            let mut next = done.clone();
            next[i / 64] |= 1 << (i % 64);
            let configuration = (next, after);
            if !seen.contains(&configuration) {
                if seen.len() >= CONFIGURATIONS_MAX {
                    return None;
                }
                seen.insert(configuration.clone());
                stack.push(configuration);
            }
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(ops: &[(&str, u64, u64)]) -> Option<bool> {
        let entries = ops.iter().map(|(what, from, to)| {
            let (kind, value) = what.split_at(1);
            let value = (!value.is_empty()).then(|| value.to_owned());
            let kind = if kind == "w" { Kind::Write(value) } else { Kind::Read(value) };
            Entry { key: "k".to_owned(), kind, from: *from, to: (*to > 0).then_some(*to) }
        });
        linearizable(entries.collect())
    }

    #[test]
    fn orders_that_explain_and_that_do_not() {
        // (what, from, to); 0 = no answer came.
        assert_eq!(check(&[("r", 1, 2), ("w1", 3, 4), ("r1", 5, 6)]), Some(true));
        assert_eq!(check(&[("w1", 1, 2), ("r", 3, 4)]), Some(false), "a stale read");
        assert_eq!(check(&[("w1", 1, 4), ("r", 2, 3)]), Some(true), "it may come before");
        assert_eq!(check(&[("w1", 1, 9), ("r1", 2, 3), ("r", 4, 5)]), Some(false), "seen, then not");
        assert_eq!(check(&[("w1", 1, 2), ("w2", 3, 0), ("r2", 9, 10), ("r2", 11, 12)]), Some(true), "an unknown outcome took effect");
        assert_eq!(check(&[("w1", 1, 2), ("w2", 3, 0), ("r2", 9, 10), ("r1", 11, 12)]), Some(false));
        assert_eq!(check(&[("w1", 1, 2), ("w", 3, 0), ("r", 5, 6), ("r1", 7, 8)]), Some(false));
        assert_eq!(check(&[("r1", 1, 2)]), Some(false), "a value that nobody wrote");
    }
}
