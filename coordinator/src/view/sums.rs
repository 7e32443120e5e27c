//! What is counted over all checks, in pieces: verdicts for `status` and `/metrics`, and the account of everything.

use probity_core::account::AccountView;
use probity_core::verdict::{self, Finding};
use probity_core::{State, assign};
use probity_proto::v1::*;

use super::pieces::{Answer, Look, Pass, Turn, run};
use super::status::{Seen, TOLD};
use super::{Scope, items};
use crate::node::ProposeError;

pub(super) async fn status(node: &impl Look, scope: &Scope) -> Result<Answer, ProposeError> {
    let (of, whose) = (scope.clone(), scope.clone());
    let (mut head, t) = node.look(move |state, live| (super::status::head(state, live, &of), live.now_us)).await?;
    let seen = run(node, Seen::new(whose)).await?;
    let total = total(node, t).await?;
    let value = super::status::whole(&mut head, seen, &total);
    Ok(Answer { value, index: head.index, as_of_us: head.as_of_us })
}

impl Pass for Seen {
    fn go_on(&mut self, state: &State, turn: &mut Turn) -> bool {
        for check in state.checks.after(&self.after) {
            if self.scope.sees(&check.namespace) {
                self.look_at(state, check);
            }
            if !turn.more() {
                self.after = check.check.clone();
                return false;
            }
        }
        true
    }
}

impl Seen {
    fn look_at(&mut self, state: &State, check: &CheckRecord) {
        match check.verdict() {
            Verdict::Up => self.up += 1,
            Verdict::Unknown => self.unknown += 1,
            Verdict::Down => {
                self.down += 1;
                if self.first_down.len() < TOLD {
                    self.first_down.push(check.check.clone());
                }
            }
        }
        if !assign::of_check(state, &check.check).any(|a| a.until_us == 0) {
            // The checks of a probe stand together.
            let of = format!("{}/{}", check.namespace, check.probe);
            match self.unwatched.last_mut().filter(|(last, ..)| *last == of) {
                Some((_, checks, _)) => *checks += 1,
                None => {
                    let why = if self.unwatched.len() < TOLD { items::why_nobody(state, check) } else { String::new() };
                    self.unwatched.push((of, 1, why));
                }
            }
        } else if check.verdict() != Verdict::Down {
            for finding in verdict::findings(state, &check.check) {
                if let Finding::PathBroken { zones, probers } = finding {
                    self.broken += 1;
                    if self.first_broken.len() < TOLD {
                        self.first_broken.push((check.check.clone(), zones, probers));
                    }
                }
            }
        }
    }
}

/// The account of everything, as of `t`.
pub(crate) async fn total(node: &impl Look, t: i64) -> Result<AccountView, ProposeError> {
    let total = run(node, Total { t, part: Part::Checks, after: String::new(), view: AccountView::default() }).await?;
    Ok(total.view.finish())
}

struct Total {
    t: i64,
    part: Part,
    after: String,
    view: AccountView,
}

/// Which checks it is at.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Checks,
    Retired,
    /// Of a probe that is gone: assignments are all that is left of them.
    Orphans,
}

impl Part {
    /// Its checks after one, and what is kept of their assignments that are over.
    fn after<'a>(self, state: &'a State, check: &str) -> Box<dyn Iterator<Item = (&'a String, Option<&'a Account>)> + 'a> {
        match self {
            Part::Checks => Box::new(state.checks.after(check).map(|c| (&c.check, c.closed.as_ref()))),
            Part::Retired => Box::new(state.retired_checks.after(check).map(|c| (&c.check, c.closed.as_ref()))),
            Part::Orphans => Box::new(assign::checks_after(state, check).map(|c| (c, None))),
        }
    }
}

/// A check at a time, with its assignments: what is over goes from them to it, and would be missing or there twice else.
impl Pass for Total {
    fn go_on(&mut self, state: &State, turn: &mut Turn) -> bool {
        loop {
            let after = std::mem::take(&mut self.after);
            for (check, closed) in self.part.after(state, &after) {
                closed.into_iter().for_each(|closed| self.view.add_closed(closed));
                if self.part != Part::Orphans || state.checks.get(check).is_none() && state.retired_checks.get(check).is_none() {
                    assign::of_check(state, check).for_each(|a| self.view.add(a, self.t));
                }
                if !turn.more() {
                    self.after = check.clone();
                    return false;
                }
            }
            self.part = match self.part {
                Part::Checks => Part::Retired,
                Part::Retired => Part::Orphans,
                Part::Orphans => {
                    state.meta().closed.iter().for_each(|closed| self.view.add_closed(closed));
                    return true;
                }
            };
        }
    }
}

/// The verdicts of all checks, by namespace, probe and target.
pub(crate) async fn verdicts(node: &impl Look) -> Result<Vec<(String, String, String, Verdict)>, ProposeError> {
    run(node, Verdicts::default()).await.map(|pass| pass.all)
}

#[derive(Default)]
struct Verdicts {
    after: String,
    all: Vec<(String, String, String, Verdict)>,
}

impl Pass for Verdicts {
    fn go_on(&mut self, state: &State, turn: &mut Turn) -> bool {
        for c in state.checks.after(&self.after) {
            self.all.push((c.namespace.clone(), c.probe.clone(), c.target_key.clone(), c.verdict()));
            if !turn.more() {
                self.after = c.check.clone();
                return false;
            }
        }
        true
    }
}
