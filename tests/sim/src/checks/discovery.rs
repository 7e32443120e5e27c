//! Discovered targets, judged from the log alone: a set becomes a probe's only if it was found and is not much smaller, or was accepted; one that
//! failed or was empty changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use probity_proto::v1::command::Op;
use probity_proto::v1::*;

use crate::report::Counts;

type Keys = Vec<String>;

/// What may change the set, by the index of its command.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Found(Keys),
    Accepted,
}

/// Everything that was committed about it.
#[derive(Debug, Default)]
pub(crate) struct Discovered {
    steps: BTreeMap<u64, Step>,
    ever: BTreeSet<Keys>,
    /// Targets that were a probe's once.
    known: BTreeSet<String>,
    /// The newest index that was judged.
    judged: u64,
    pub(crate) counts: Counts,
}

fn keys(targets: &[Target]) -> Keys {
    targets.iter().map(|t| t.key.clone()).collect()
}

impl Discovered {
    pub(crate) fn committed(&mut self, index: u64, op: Option<&Op>) {
        match op {
            Some(Op::DiscoverTargets(op)) if op.error.is_empty() && !op.targets.is_empty() => {
                self.ever.insert(keys(&op.targets));
                self.steps.insert(index, Step::Found(keys(&op.targets)));
            }
            Some(Op::DiscoverTargets(_)) => self.counts.add("discovery that gave nothing"),
            Some(Op::AcceptTargets(_)) => {
                self.steps.insert(index, Step::Accepted);
            }
            _ => {}
        }
    }

    /// A member went from one index to another; what nothing in between explains. Which commands were refused is not known here: any may be.
    pub(crate) fn judge(&mut self, (from, before): (u64, &DiscoveryRecord), (to, after): (u64, &DiscoveryRecord)) -> Option<String> {
        let (was, is) = (keys(&before.targets), keys(&after.targets));
        if to > self.judged {
            self.judged = to;
            self.counts.add_n("targets held", u64::from(before.held_since_us == 0 && after.held_since_us != 0));
            self.counts.add_n("targets changed", u64::from(was != is));
            let back = is.iter().filter(|key| !was.contains(key) && self.known.contains(*key)).count();
            self.counts.add_n("target came back", back as u64);
            self.known.extend(is.iter().cloned());
        }
        let mut possible = BTreeSet::from([was.clone()]);
        for step in self.steps.range(from + 1..=to).map(|(_, step)| step) {
            match step {
                Step::Found(found) => {
                    // Three in ten may go at once.
                    if possible.iter().any(|set| found.len() * 10 >= set.len() * 7) {
                        possible.insert(found.clone());
                    }
                }
                Step::Accepted => possible.extend(self.ever.iter().cloned()),
            }
        }
        (!possible.contains(&is)).then(|| format!("the targets {was:?} at index {from} became {is:?} at index {to}, and nothing in between makes them so"))
    }
}
