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
    Ok(run(node, Total::at(t)).await?.view.finish())
}

/// What was of probes that are gone may grow meanwhile, by checks that are counted already: then all is counted again, so often at most.
const WALKS: usize = 4;

/// By the names of checks, whatever has become of them: one whose target goes or comes back meanwhile is neither missing nor there twice.
pub(super) struct Total {
    t: i64,
    after: Option<String>,
    /// What was of probes that are gone when this walk began.
    gone: Option<Account>,
    walks: usize,
    pub(super) view: AccountView,
}

impl Total {
    pub(super) fn at(t: i64) -> Total {
        Total { t, after: None, gone: None, walks: 0, view: AccountView::default() }
    }
}

impl Pass for Total {
    fn go_on(&mut self, state: &State, turn: &mut Turn) -> bool {
        let after = self.after.take().unwrap_or_else(|| {
            (self.view, self.gone, self.walks) = (AccountView::default(), state.meta().closed.clone(), self.walks + 1);
            String::new()
        });
        for check in names_after(state, &after) {
            let closed = state.checks.get(check).and_then(|c| c.closed.as_ref());
            let retired = state.retired_checks.get(check).and_then(|c| c.closed.as_ref());
            closed.into_iter().chain(retired).for_each(|closed| self.view.add_closed(closed));
            assign::of_check(state, check).for_each(|a| self.view.add(a, self.t));
            if !turn.more() {
                self.after = Some(check.clone());
                return false;
            }
        }
        if self.gone != state.meta().closed && self.walks < WALKS {
            return false;
        }
        self.gone.iter().for_each(|closed| self.view.add_closed(closed));
        true
    }
}

/// The names of checks after one, in order: of those that are there, of those whose target is gone, and of those that only have assignments left.
fn names_after<'a>(state: &'a State, after: &str) -> impl Iterator<Item = &'a String> + use<'a> {
    let mut checks = state.checks.after(after).map(|c| &c.check).peekable();
    let mut retired = state.retired_checks.after(after).map(|c| &c.check).peekable();
    let mut assigned = assign::checks_after(state, after).peekable();
    std::iter::from_fn(move || {
        let next = [checks.peek(), retired.peek(), assigned.peek()].into_iter().flatten().copied().min()?;
        checks.next_if(|name| *name == next);
        retired.next_if(|name| *name == next);
        assigned.next_if(|name| *name == next);
        Some(next)
    })
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
