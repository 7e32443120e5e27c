//! Readings that grow with the fleet, in pieces: the state is raft's thread's, and whoever looks at 100,000 checks at a stroke keeps the cluster waiting
//! for longer than an election takes. A piece takes some milliseconds; between two of them raft does whatever there is to do.
//!
//! Nothing in such a reading is older than its `asOf.index`, that of its first piece; what came in since may be in it. Each check, and each part of an
//! account, is as of one moment, so an account adds up all the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use probity_core::State;
use serde_json::Value;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{Asked, Scope, ViewError, listing, sums};
use crate::node::{Live, Node, ProposeError};

/// How long one look may take, about: a tick of raft is 50 ms.
const PIECE: Duration = Duration::from_millis(4);
/// Where a look waits long for its turn, raft's thread is behind: fewer and longer looks then, or a reading would have no end. It adds this share of
/// what was waited for, and no more than a tick.
const SHARE: u32 = 8;
const PIECE_MAX: Duration = Duration::from_millis(40);
/// The clock is asked after so many rows.
const ROWS: usize = 16;
/// Readings of this sort at a time, whoever asks: the others wait for their turn.
const READINGS: usize = 4;

static ROOM: Semaphore = Semaphore::const_new(READINGS);

/// A place for one.
pub(crate) async fn room() -> Option<SemaphorePermit<'static>> {
    ROOM.acquire().await.ok()
}

/// Whatever can be looked at, a piece at a time.
pub(crate) trait Look {
    /// Looks at the state where it lives.
    fn look<T: Send + 'static>(&self, look: impl FnOnce(&State, &Live<'_>) -> T + Send + 'static) -> impl Future<Output = Result<T, ProposeError>> + Send;
}

impl Look for Node {
    fn look<T: Send + 'static>(&self, look: impl FnOnce(&State, &Live<'_>) -> T + Send + 'static) -> impl Future<Output = Result<T, ProposeError>> + Send {
        self.query(look)
    }
}

/// An answer, and as of when it is.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) value: Value,
    pub(crate) index: u64,
    pub(crate) as_of_us: i64,
}

/// When a piece is over.
pub(super) struct Turn {
    until: Instant,
    rows: usize,
}

impl Turn {
    /// Of a look that was asked for then.
    pub(super) fn begin(asked: Instant) -> Turn {
        let piece = (asked.elapsed() / SHARE).clamp(PIECE, PIECE_MAX);
        Turn { until: Instant::now() + piece, rows: 0 }
    }

    /// The shortest there is.
    #[cfg(test)]
    pub(super) fn short() -> Turn {
        Turn { until: Instant::now(), rows: 0 }
    }

    /// Another row was looked at: whether there is time for one more.
    pub(super) fn more(&mut self) -> bool {
        self.rows += 1;
        !self.rows.is_multiple_of(ROWS) || Instant::now() < self.until
    }
}

/// Something that is done in pieces: whether it is over.
pub(super) trait Pass: Send + Sized + 'static {
    fn go_on(&mut self, state: &State, turn: &mut Turn) -> bool;

    /// What is done with a piece where nobody waits.
    fn between(&mut self) {}
}

pub(super) async fn run<P: Pass>(node: &impl Look, mut pass: P) -> Result<P, ProposeError> {
    loop {
        let asked = Instant::now();
        let over;
        (pass, over) = node
            .look(move |state, _| {
                let over = pass.go_on(state, &mut Turn::begin(asked));
                (pass, over)
            })
            .await?;
        pass.between();
        if over {
            return Ok(pass);
        }
    }
}

/// Answers a path such as `/api/v1/probes?namespace=shop`, with what `scope` may see.
pub(crate) async fn answer(node: &impl Look, path: &str, scope: &Scope) -> Result<Result<Answer, ViewError>, ProposeError> {
    let asked = match super::ask(path, scope) {
        Ok(asked) => asked,
        Err(e) => return Ok(Err(e)),
    };
    // What is a short look waits for no long ones.
    let _room = match asked {
        Asked::Other(..) => None,
        _ => room().await,
    };
    match asked {
        Asked::Status => sums::status(node, scope).await.map(Ok),
        Asked::Probers(query) => listing::probers(node, Arc::new(query)).await.map(Ok),
        Asked::Probes(query) => listing::probes(node, Arc::new(query), None).await,
        Asked::Probe(query, namespace, name) => listing::probes(node, Arc::new(query), Some((namespace, name))).await,
        Asked::Other(..) => {
            let look = move |state: &State, live: &Live<'_>| {
                let value = super::small(state, live, &asked)?;
                Ok(Answer { value, index: live.status.applied, as_of_us: state.now() })
            };
            node.look(look).await
        }
    }
}
