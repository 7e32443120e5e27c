//! Proposals that wait for those under way. A step that proposes costs each member a write to its disk and a message or two, however much is in it: many
//! callers should share it. So what comes while proposals are under way goes when it is as many as they are, or when they are answered; a caller alone
//! never waits, and nobody for longer than a tick.

/// So many are enough for a step.
const ENOUGH: usize = 512;

/// What waits, in the order in which it came.
#[derive(Debug)]
pub(crate) struct Held<T>(Vec<T>);

impl<T> Default for Held<T> {
    fn default() -> Self {
        Held(Vec::new())
    }
}

impl<T> Held<T> {
    pub(crate) fn push(&mut self, proposal: T) {
        self.0.push(proposal);
    }

    /// Whether what waits should go, with so many under way.
    pub(crate) fn due(&self, under_way: usize) -> bool {
        !self.0.is_empty() && self.0.len() >= under_way.min(ENOUGH)
    }

    /// What goes now: nothing, unless it is due or time is `up`.
    pub(crate) fn take(&mut self, under_way: usize, up: bool) -> Vec<T> {
        if up || self.due(under_way) { std::mem::take(&mut self.0) } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_alone_goes_at_once_and_who_is_not_waits_for_as_many_or_for_time() {
        let mut held: Held<u32> = Held::default();
        assert!(!held.due(0), "nothing is never due");
        held.push(1);
        assert_eq!(held.take(0, false), [1]);
        held.push(2);
        assert_eq!(held.take(2, false), Vec::<u32>::new(), "two are under way");
        held.push(3);
        assert!(held.due(2));
        assert_eq!(held.take(2, false), [2, 3], "as many, in their order");
        held.push(4);
        assert_eq!(held.take(9, false), Vec::<u32>::new());
        assert_eq!(held.take(9, true), [4], "time is up");
        (0..ENOUGH as u32).for_each(|n| held.push(n));
        assert!(held.due(usize::MAX), "they are enough");
    }
}
