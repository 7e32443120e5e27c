//! What several coordinators answered to one call that found no leader, and which of it a person is told: the last address that refused the
//! connection says less than the one that answered that there is no quorum.

use std::collections::BTreeMap;

use tonic::{Code, ConnectError, Status};

use crate::client::{cause, untrusted};
use crate::refusal::Refusal;

/// What one address said last.
#[derive(Debug)]
enum Answer {
    /// It is a member, and says why not now.
    Member(Status),
    /// It belongs to no cluster.
    Outside(Status),
    /// It cannot be reached.
    Silent(Status),
}

/// The tries of one call.
#[derive(Debug)]
pub(crate) struct Tried {
    /// It may change something.
    changes: bool,
    /// It may have been done by one of the tries.
    unknown: bool,
    answers: BTreeMap<String, Answer>,
    newest: String,
}

impl Tried {
    pub(crate) fn change() -> Tried {
        Tried { changes: true, unknown: false, answers: BTreeMap::new(), newest: String::new() }
    }

    pub(crate) fn look() -> Tried {
        Tried { changes: false, ..Tried::change() }
    }

    /// Takes down what an address said; what asking again does not change is the error.
    pub(crate) fn add(&mut self, address: &str, status: Status) -> Result<(), Status> {
        let refusal = Refusal::of(&status);
        let broke = broken(&status);
        let answer = match &refusal {
            Some(Refusal::NotInitialized | Refusal::Stranger(_)) => Answer::Outside(status),
            Some(_) => Answer::Member(status),
            None if untrusted(&status) => return Err(self.last_word(status)),
            None if broke || (status.code() == Code::Unavailable && has_cause(&status)) => Answer::Silent(status),
            None if status.code() == Code::Unavailable => Answer::Member(status),
            None => return Err(self.last_word(status)),
        };
        self.unknown |= self.changes && (broke || refusal == Some(Refusal::Unknown));
        self.newest = address.to_owned();
        self.answers.insert(self.newest.clone(), answer);
        Ok(())
    }

    /// An error that no other try changes: what was done before it stays.
    fn last_word(&self, status: Status) -> Status {
        if self.unknown { with_note(&status, " (an earlier try of this call may have been done)") } else { status }
    }

    /// Every one of these belongs to no cluster: waiting changes nothing.
    pub(crate) fn all_outside(&self, addresses: &[String]) -> bool {
        addresses.iter().all(|a| matches!(self.answers.get(a), Some(Answer::Outside(_))))
    }

    /// What is told at the end of patience: that it may have been done, else what a member says, else what somebody outside says.
    pub(crate) fn told(self) -> Status {
        let silent = self.silent();
        let Tried { unknown, mut answers, newest, .. } = self;
        let newest = answers.remove(&newest);
        let mut all: Vec<Answer> = newest.into_iter().chain(answers.into_values()).collect();
        all.sort_by_key(|answer| match answer {
            Answer::Member(_) => 0,
            Answer::Outside(_) => 1,
            Answer::Silent(_) => 2,
        });
        let best = match all.into_iter().next() {
            Some(Answer::Member(status) | Answer::Outside(status)) => with_note(&status, &silent),
            Some(Answer::Silent(status)) => status,
            None => Status::internal("nobody was asked"),
        };
        if !unknown || Refusal::of(&best) == Some(Refusal::Unknown) {
            return best;
        }
        let after = if has_cause(&best) { cause(&best) } else { best.message().to_owned() };
        with_note(&Refusal::Unknown.status(), &format!("; then: {after}"))
    }

    /// Who does not answer, to be added to what another says.
    fn silent(&self) -> String {
        let silent = self.answers.iter().filter_map(|(address, answer)| match answer {
            Answer::Silent(status) => Some((address, cause(status))),
            _ => None,
        });
        let mut by_cause: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        silent.for_each(|(address, why)| by_cause.entry(why).or_default().push(address));
        by_cause.into_iter().map(|(why, who)| format!("; no answer from {} ({why})", who.join(", "))).collect()
    }
}

fn with_note(status: &Status, note: &str) -> Status {
    Status::with_metadata(status.code(), format!("{}{note}", status.message()), status.metadata().clone())
}

/// It comes from our side of the connection: what a server says itself has no cause here.
fn has_cause(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// Whether the connection broke under a call. The outcome is unknown then, and the same request id makes a second try safe.
pub fn broken(status: &Status) -> bool {
    let mut inner = std::error::Error::source(status);
    let begun = inner.is_some() && matches!(status.code(), Code::Unknown | Code::Internal | Code::Cancelled | Code::Unavailable);
    while let Some(error) = inner {
        // Nothing was sent.
        if error.is::<ConnectError>() {
            return false;
        }
        inner = error.source();
    }
    begun
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use super::*;

    fn refused() -> Status {
        Status::from_error(Box::new(ConnectError(Box::new(Error::from(ErrorKind::ConnectionRefused)))))
    }

    fn reset() -> Status {
        Status::from_error(Box::new(Error::from(ErrorKind::ConnectionReset)))
    }

    fn told(mut tried: Tried, answers: Vec<(&str, Status)>) -> Status {
        for (address, status) in answers {
            tried.add(address, status).expect("worth another try");
        }
        tried.told()
    }

    #[test]
    fn only_a_broken_connection_leaves_the_outcome_open() {
        assert!(broken(&reset()) && !broken(&refused()));
        assert!(!broken(&Status::internal("a bug")) && !broken(&Status::unknown("no idea")) && !broken(&Status::unavailable("stopping")));
        for last in [Status::internal("a bug"), Status::permission_denied("no"), Status::invalid_argument("what?")] {
            assert!(Tried::change().add("a:1", last).is_err());
        }
    }

    #[test]
    fn who_answers_is_told_before_who_does_not() {
        let status = told(Tried::look(), vec![("a:1", refused()), ("b:1", Refusal::NotLeader(None).status()), ("c:1", refused())]);
        assert_eq!(Refusal::of(&status), Some(Refusal::NotLeader(None)));
        assert!(status.message().ends_with("; no answer from a:1, c:1 (connection refused)"), "{status:?}");
        let status = told(Tried::look(), vec![("a:1", Refusal::NotInitialized.status()), ("b:1", Refusal::NoQuorum.status())]);
        assert_eq!(Refusal::of(&status), Some(Refusal::NoQuorum));
        // What it said before it went away says nothing now.
        let status = told(Tried::look(), vec![("a:1", Refusal::NotLeader(Some("b:1".to_owned())).status()), ("a:1", refused())]);
        assert_eq!((Refusal::of(&status), cause(&status).as_str()), (None, "connection refused"));
    }

    #[test]
    fn a_change_that_may_have_been_done_is_never_called_not_done() {
        for after in [Refusal::NoQuorum.status(), refused(), Status::unavailable("stopping")] {
            let status = told(Tried::change(), vec![("a:1", reset()), ("b:1", after)]);
            assert_eq!(Refusal::of(&status), Some(Refusal::Unknown), "{status:?}");
            assert!(status.message().contains("; then: "), "{status:?}");
        }
        let status = told(Tried::change(), vec![("a:1", Refusal::Unknown.status()), ("a:1", refused())]);
        assert_eq!(Refusal::of(&status), Some(Refusal::Unknown));
        // Nothing that only looks can have been done.
        let status = told(Tried::look(), vec![("a:1", reset()), ("b:1", Refusal::NoQuorum.status())]);
        assert_eq!(Refusal::of(&status), Some(Refusal::NoQuorum));
    }

    #[test]
    fn whoever_belongs_to_no_cluster_is_passed_over_while_there_are_others() {
        let all = ["a:1".to_owned(), "b:1".to_owned()];
        let mut tried = Tried::change();
        tried.add("a:1", Refusal::Stranger("its data was lost".to_owned()).status()).expect("the others are asked");
        assert!(!tried.all_outside(&all));
        tried.add("b:1", Refusal::NotInitialized.status()).expect("the others are asked");
        assert!(tried.all_outside(&all));
    }
}
