//! A sleep that ends when it is asked to: tokio's timers count whole milliseconds, which is more than a slot may be late.
//!
//! A timerfd(2), awaited like any other descriptor.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

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
}

impl Alarm {
    #[expect(deprecated, reason = "the safe constructor is unsound for types that change or close their descriptor, which an OwnedFd cannot")]
    pub(crate) fn new() -> io::Result<Alarm> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        let ready = AsyncFd::with_interest(timer.as_fd().try_clone_to_owned()?, Interest::READABLE)?;
        Ok(Alarm { timer, ready })
    }

    /// Sleeps for so long. One that is dropped before its end is forgotten by the next.
    pub(crate) async fn sleep(&self, duration: Duration) -> io::Result<()> {
        // Zero would disarm it.
        let wait = TimeSpec::from_duration(duration.max(Duration::from_nanos(1)));
        self.timer.set(Expiration::OneShot(wait), TimerSetTimeFlags::empty())?;
        loop {
            let mut ready = self.ready.readable().await?;
            // The read is what tells an end from the memory of an earlier one.
            match ready.try_io(|fd| read(fd.get_ref())) {
                Ok(ended) => return ended,
                Err(_would_block) => continue,
            }
        }
    }
}

fn read(timer: &OwnedFd) -> io::Result<()> {
    let mut expirations = [0; 8];
    nix::unistd::read(timer, &mut expirations)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[tokio::test]
    async fn it_sleeps_as_long_as_it_is_told_and_forgets_what_was_given_up() {
        let alarm = Alarm::new().expect("a timer");
        for us in [0, 1, 300, 5_000] {
            let start = Instant::now();
            alarm.sleep(Duration::from_micros(us)).await.expect("sleeps");
            assert!(start.elapsed() >= Duration::from_micros(us));
        }
        // Given up, unless the machine is so slow that it ended first: then there is nothing to forget.
        let _ = tokio::time::timeout(Duration::from_millis(1), alarm.sleep(Duration::from_millis(5))).await;
        std::thread::sleep(Duration::from_millis(10));
        let start = Instant::now();
        alarm.sleep(Duration::from_millis(30)).await.expect("sleeps");
        assert!(start.elapsed() >= Duration::from_millis(30), "the one before had ended meanwhile");
    }
}
