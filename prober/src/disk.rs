//! The way of the session's changes to the disk: one batch at a time, on a thread that may block.

use std::time::Duration;

use probity_session::{Session, StoreError, Written};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Between the starts of two batches: each costs a flush of the disk, however much is in it. What faults wait for does not wait for this.
const GAP: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(crate) struct Disk {
    writing: Option<JoinHandle<Result<Written, StoreError>>>,
    /// When the next batch may begin.
    next: Instant,
}

impl Disk {
    pub(crate) fn new() -> Disk {
        Disk { writing: None, next: Instant::now() }
    }

    /// Begins to write what is to be written, unless a batch is under way. How long to wait for the next, if there is more.
    pub(crate) fn write(&mut self, session: &mut Session) -> Option<Duration> {
        let (some, urgent) = session.unwritten();
        if self.writing.is_some() || !some {
            return None;
        }
        let wait = self.next.saturating_duration_since(Instant::now());
        if !urgent && !wait.is_zero() {
            return Some(wait);
        }
        if let Some(batch) = session.take_batch() {
            self.writing = Some(tokio::task::spawn_blocking(|| batch.commit()));
            self.next = Instant::now() + GAP;
        }
        None
    }

    /// The end of the batch under way; never, if there is none.
    pub(crate) async fn written(&mut self) -> Result<Written, StoreError> {
        let Some(writing) = &mut self.writing else { return std::future::pending().await };
        let ended = writing.await;
        self.writing = None;
        ended.unwrap_or_else(|e| Err(StoreError::Damaged(format!("writing stopped: {e}"))))
    }

    /// Waits until everything is on the disk.
    pub(crate) async fn write_all(&mut self, session: &mut Session) -> Result<(), StoreError> {
        loop {
            if self.writing.is_some() {
                session.on_written(self.written().await?);
            }
            self.next = Instant::now();
            self.write(session);
            if self.writing.is_none() {
                return Ok(());
            }
        }
    }
}
