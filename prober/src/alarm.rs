//! A sleep that ends when it is asked to: tokio's timers count whole milliseconds, which is more than a slot may be late.
//!
//! A timerfd(2), awaited like any other descriptor.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// One timer; one sleep at a time.
#[derive(Debug)]
pub(crate) struct Alarm {
    timer: TimerFd,
    /// The same, as tokio waits for it.
    ready: AsyncFd<OwnedFd>,
    /// That it failed was told: it sleeps hundreds of times a second.
    told: AtomicBool,
}

impl Alarm {
    #[expect(deprecated, reason = "the safe constructor is unsound for types that change or close their descriptor, which an OwnedFd cannot")]
    pub(crate) fn new() -> io::Result<Alarm> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        let ready = AsyncFd::with_interest(timer.as_fd().try_clone_to_owned()?, Interest::READABLE)?;
        Ok(Alarm { timer, ready, told: AtomicBool::new(false) })
    }

    /// Sleeps until then. One that is dropped before its end is forgotten by the next. Should the timer fail, tokio's is late but there.
    pub(crate) async fn sleep_until(&self, end: Instant) {
        if let Err(error) = self.sleep(end).await {
            if !self.told.swap(true, Ordering::Relaxed) {
                tracing::error!(%error, "a timer failed: slots start up to a millisecond late");
            }
            tokio::time::sleep_until(end.into()).await;
        }
    }

    async fn sleep(&self, end: Instant) -> io::Result<()> {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        // Each time that it runs out is an edge, whether or not the one before was read: nothing is read.
        self.timer.set(Expiration::OneShot(TimeSpec::from_duration(left)), TimerSetTimeFlags::empty())?;
        while Instant::now() < end {
            // The clock is what tells an end from the memory of an earlier one.
            self.ready.readable().await?.clear_ready();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn it_sleeps_as_long_as_it_is_told_and_forgets_what_was_given_up() {
        let alarm = Alarm::new().expect("a timer");
        for us in [0, 1, 300, 5_000] {
            let end = Instant::now() + Duration::from_micros(us);
            alarm.sleep_until(end).await;
            assert!(Instant::now() >= end);
        }
        // Given up, unless the machine is so slow that it ended first: then there is nothing to forget.
        let soon = Instant::now() + Duration::from_millis(5);
        let _ = tokio::time::timeout(Duration::from_millis(1), alarm.sleep_until(soon)).await;
        std::thread::sleep(Duration::from_millis(10));
        let end = Instant::now() + Duration::from_millis(30);
        alarm.sleep_until(end).await;
        assert!(Instant::now() >= end, "the one before had ended meanwhile");
    }
}
