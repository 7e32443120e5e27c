//! The threads that runs live on: each run stays on one from its first step to its last.
//!
//! A lane keeps the time of the slots that it was given: it sleeps until the next is due, starts it, and drives the sockets of all its
//! runs by itself. So no step of a run wakes another thread, and the thread that plans is woken some fifty times a second, however many
//! slots there are. What blocks (files, codings) is for the threads that tokio keeps for it.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;

use crate::alarm::Alarm;

/// Batches that wait for a lane: one comes with each turn of the driver, so this is more than a second of them.
const BATCHES: usize = 256;
/// Slots that are due within so long belong to one lane while the others sleep: what several runs do at once is done at one waking, by a
/// processor that has the code at hand. Above what one processor can do a lane goes on with its slots in the next slice.
const SLICE_US: i64 = 20_000;
/// Between two wakings of a lane for a slot: those that are due within this start together.
const TURN_GAP: Duration = Duration::from_micros(200);
/// While slots start, a timer ends within so long. tokio tells a runtime by a system call of each timer that ends before all others, also
/// the runtime's own: without this one, of nearly every run's time-out.
const PULSE: Duration = Duration::from_millis(50);

/// What starts at a time.
pub(crate) trait Timed: Send + 'static {
    /// When.
    fn at(&self) -> Instant;

    /// Starts it, on the lane.
    fn start(self);
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Lanes<T> {
    queues: Vec<mpsc::Sender<Vec<T>>>,
}

impl<T: Timed> Lanes<T> {
    /// As many as there are processors.
    pub(crate) fn open() -> io::Result<Lanes<T>> {
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Lanes { queues: (0..count).map(lane).collect::<io::Result<_>>()? })
    }

    pub(crate) fn count(&self) -> usize {
        self.queues.len()
    }

    /// The lane of a slot that is due then: of a check that runs each second always the same, if there are two.
    pub(crate) fn of(&self, due_us: i64) -> usize {
        (due_us.max(0) / SLICE_US) as usize % self.queues.len()
    }

    /// Hands a lane what it is to start; what it has no room for comes back.
    pub(crate) fn give(&self, lane: usize, batch: Vec<T>) -> Vec<T> {
        match self.queues[lane].try_send(batch) {
            Ok(()) => Vec::new(),
            Err(mpsc::error::TrySendError::Full(batch) | mpsc::error::TrySendError::Closed(batch)) => batch,
        }
    }
}

/// A lane ends when nobody can give it anything any more, with whatever runs on it.
fn lane<T: Timed>(number: usize) -> io::Result<mpsc::Sender<Vec<T>>> {
    let (queue, batches) = mpsc::channel(BATCHES);
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let alarm = {
        let _on_it = runtime.enter();
        Alarm::new()?
    };
    std::thread::Builder::new().name(format!("runs-{number}")).spawn(move || drive(runtime, batches, &alarm))?;
    Ok(queue)
}

fn drive<T: Timed>(runtime: Runtime, batches: mpsc::Receiver<Vec<T>>, alarm: &Alarm) {
    runtime.block_on(keep_time(batches, alarm));
    // What blocks must not hold the end.
    runtime.shutdown_background();
}

async fn keep_time<T: Timed>(mut batches: mpsc::Receiver<Vec<T>>, alarm: &Alarm) {
    let mut waiting: VecDeque<T> = VecDeque::new();
    let mut last_turn = Instant::now();
    let mut pulse = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
    loop {
        let next = waiting.front().map(|first| first.at().max(last_turn + TURN_GAP));
        tokio::select! {
            () = alarm.sleep_until(next.unwrap_or(last_turn)), if next.is_some() => {}
            () = &mut pulse, if !pulse.is_elapsed() => {}
            batch = batches.recv() => match batch {
                Some(batch) => batch.into_iter().for_each(|one| insert(&mut waiting, one)),
                None => return,
            },
        }
        last_turn = Instant::now();
        while waiting.front().is_some_and(|first| first.at() <= last_turn) {
            if pulse.is_elapsed() {
                pulse.as_mut().reset((last_turn + PULSE).into());
            }
            if let Some(due) = waiting.pop_front() {
                due.start();
            }
        }
    }
}

/// In the order in which they are due; they mostly come in it.
fn insert<T: Timed>(waiting: &mut VecDeque<T>, one: T) {
    let place = waiting.iter().rposition(|before| before.at() <= one.at()).map_or(0, |last| last + 1);
    waiting.insert(place, one);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc as std_mpsc;

    struct Tick(Instant, u32, std_mpsc::Sender<(u32, Instant)>);

    impl Timed for Tick {
        fn at(&self) -> Instant {
            self.0
        }

        fn start(self) {
            tokio::spawn(async move { self.2.send((self.1, Instant::now())) });
        }
    }

    #[test]
    fn it_starts_in_order_and_never_early_whatever_the_order_of_what_it_is_given() {
        let lanes = Lanes::open().expect("threads");
        let (tx, rx) = std_mpsc::channel();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert!(lanes.give(0, vec![Tick(at(60), 60, tx.clone()), Tick(at(20), 20, tx.clone())]).is_empty());
        assert!(lanes.give(0, vec![Tick(at(40), 40, tx.clone()), Tick(at(0), 0, tx.clone())]).is_empty());
        for wanted in [0, 20, 40, 60] {
            let (number, began) = rx.recv_timeout(Duration::from_secs(10)).expect("it starts");
            assert!(began >= at(u64::from(number)), "{number} is early");
            assert_eq!(number, wanted);
        }
    }

    #[test]
    fn what_was_given_to_a_lane_that_ends_is_dropped() {
        let lanes = Lanes::open().expect("threads");
        let (tx, rx) = std_mpsc::channel();
        lanes.give(0, vec![Tick(Instant::now() + Duration::from_secs(3_600), 1, tx)]);
        drop(lanes);
        assert_eq!(rx.recv_timeout(Duration::from_secs(10)), Err(std_mpsc::RecvTimeoutError::Disconnected));
    }
}
