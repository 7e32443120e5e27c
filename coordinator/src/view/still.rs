//! A state that nobody changes, to look at in tests.

use std::time::{Duration, Instant};

use probity_core::State;
use serde_json::Value;

use super::pieces::{Look, answer};
use super::{Scope, ViewError};
use crate::node::{Live, ProposeError};

/// The state, as of a member that follows.
pub(crate) struct Still {
    pub(crate) state: State,
    pub(crate) status: probity_replica::Status,
    /// How long the looks took.
    pub(crate) looks: std::sync::Mutex<Vec<Duration>>,
}

impl Look for Still {
    fn look<T: Send + 'static>(&self, look: impl FnOnce(&State, &Live<'_>) -> T + Send + 'static) -> impl Future<Output = Result<T, ProposeError>> + Send {
        let (conditions, fleet) = (Default::default(), Default::default());
        let live = Live { status: &self.status, now_us: self.state.now(), age_us: 0, conditions: &conditions, fleet: &fleet, violations: 0 };
        let began = Instant::now();
        let seen = look(&self.state, &live);
        self.looks.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(began.elapsed());
        std::future::ready(Ok(seen))
    }
}

impl Still {
    pub(crate) fn of(state: State) -> Still {
        let status = probity_replica::Status {
            identity: probity_replica::Identity { id: 1, cluster_id: "c".to_owned() },
            role: probity_replica::Role::Follower,
            term: 1,
            leader: None,
            commit: 1,
            applied: 1,
            hashed: 1,
            last: 1,
            voters: Vec::new(),
            voters_outgoing: Vec::new(),
            learners: Vec::new(),
            disk_full: false,
            progress: Default::default(),
        };
        Still { state, status, looks: Default::default() }
    }

    /// Nobody is waited for here.
    pub(crate) fn read(&self, path: &str, scope: &Scope) -> Result<Value, ViewError> {
        Still::done(answer(self, path, scope)).map(|answer| answer.value)
    }

    pub(crate) fn done<T>(what: impl Future<Output = Result<T, ProposeError>>) -> T {
        let mut what = std::pin::pin!(what);
        loop {
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            match what.as_mut().poll(&mut context) {
                std::task::Poll::Ready(done) => return done.unwrap_or_else(|e| unreachable!("{e}")),
                // Another test has the room.
                std::task::Poll::Pending => std::thread::yield_now(),
            }
        }
    }
}
