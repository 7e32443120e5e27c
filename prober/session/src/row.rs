//! A row in the making: a contiguous range of slots, run-length encoded.

use probity_proto::reason::Class;
use probity_proto::v1::*;
use prost::Message;

use crate::RunDone;

/// Details of runs in one row.
const DETAILS_MAX: usize = 4;
/// A pair is unsteady while its newest outcomes are not all good.
const STEADY_AFTER: u32 = 5;

#[derive(Debug, Default)]
pub(crate) struct OpenRow {
    /// In a box: of a hundred thousand assignments nearly all have none.
    open: Option<Box<Open>>,
    /// Good runs in a row, over rows.
    good_streak: u32,
}

#[derive(Debug)]
struct Open {
    row: ReportRow,
    opened_at_us: i64,
    /// Of the good runs one becomes a detail; which, is known only when the row is closed.
    newest_good: Option<(u64, RunDone)>,
}

impl OpenRow {
    pub(crate) fn add(&mut self, n: u64, count: u64, slower_than: u32, run: RunDone, now_us: i64) {
        let good = run.reason == Reason::Good;
        let open = || Box::new(Open { row: ReportRow { first_n: n, ..ReportRow::default() }, opened_at_us: now_us, newest_good: None });
        let Open { row, newest_good, .. } = &mut **self.open.get_or_insert_with(open);
        self.good_streak = if good { self.good_streak.saturating_add(1) } else { 0 };
        let mut left = count;
        while left > 0 {
            let part = u32::try_from(left).unwrap_or(u32::MAX);
            match row.outcomes.last_mut() {
                Some(last) if last.reason == run.reason as i32 && last.slower_than == slower_than && last.count.checked_add(part).is_some() => {
                    last.count += part
                }
                _ => row.outcomes.push(OutcomeRun { count: part, reason: run.reason as i32, slower_than }),
            }
            left -= u64::from(part);
        }
        if good && !run.failed_attempts.is_empty() {
            row.retried += count;
        }
        if run.reason.class() != Class::Missed {
            sketch(row.latency.get_or_insert_default(), run.duration_us);
        }
        if run.started_at_us == 0 && run.message.is_empty() {
            return;
        }
        if !good {
            row.details.push(detail(n, run));
            if row.details.len() > DETAILS_MAX {
                // Of bad ones the newest, so that the run that turns a verdict is among them; and the first, which is what people ask for.
                row.details.remove(1);
            }
            return;
        }
        *newest_good = Some((n, run));
    }

    /// Its first slot, if it has any.
    pub(crate) fn first_n(&self) -> Option<u64> {
        self.open.as_ref().map(|open| open.row.first_n)
    }

    /// When its first outcome came in.
    pub(crate) fn begun_at_us(&self) -> i64 {
        self.open.as_ref().map_or(0, |open| open.opened_at_us)
    }

    pub(crate) fn take(&mut self) -> Option<ReportRow> {
        let Open { mut row, newest_good, .. } = *self.open.take()?;
        if let Some((n, run)) = newest_good {
            if row.details.len() == DETAILS_MAX {
                row.details.remove(1);
            }
            let place = row.details.partition_point(|d| d.n < n);
            row.details.insert(place, detail(n, run));
        }
        Some(row)
    }

    /// When it is to be sent.
    pub(crate) fn due_at(&self, flush_us: u64, unsteady_us: u64) -> Option<i64> {
        let open = self.open.as_ref()?;
        let only_missed = open.row.outcomes.iter().all(|o| probity_proto::reason::from_number(o.reason).class() == Class::Missed);
        let wait = if self.good_streak < STEADY_AFTER && !only_missed { unsteady_us } else { flush_us };
        Some(open.opened_at_us + wait as i64)
    }
}

fn detail(n: u64, run: RunDone) -> RunDetail {
    let phase = |p: crate::Phase| Phase { name: p.name.to_owned(), start_us: p.start_us, duration_us: p.duration_us };
    RunDetail {
        n,
        started_at_us: run.started_at_us,
        duration_us: run.duration_us,
        reason: run.reason as i32,
        phases: run.phases.into_iter().map(phase).collect(),
        message: truncate(run.message),
        trace_id: if run.trace_id == 0 { String::new() } else { format!("{:032x}", run.trace_id) },
        peer: run.peer,
        lag_us: run.lag_us,
        failed_attempts: run.failed_attempts.into_iter().map(|a| FailedAttempt { message: truncate(a.message), ..a }).collect(),
    }
}

fn truncate(mut text: String) -> String {
    if text.len() > 256 {
        let end = (0..=256).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

/// Log-linear: 16 buckets to a power of two.
fn sketch(sketch: &mut LatencySketch, us: u64) {
    let us = us.max(1);
    let exponent = us.ilog2();
    let fraction = if exponent >= 4 { us >> (exponent - 4) } else { us << (4 - exponent) } & 15;
    let index = 16 * exponent + fraction as u32;
    match sketch.index.binary_search(&index) {
        Ok(i) => sketch.count[i] += 1,
        Err(i) => {
            sketch.index.insert(i, index);
            sketch.count.insert(i, 1);
        }
    }
}

/// Bytes of a row in the spool.
pub(crate) fn size(row: &ReportRow) -> u64 {
    row.encoded_len() as u64
}

/// Slots of a row.
pub(crate) fn slots(row: &ReportRow) -> u64 {
    row.outcomes.iter().map(|o| u64::from(o.count)).sum()
}

/// The same row without its content: its slots are missed(spool_dropped).
pub(crate) fn dropped(row: &ReportRow) -> ReportRow {
    let count = u32::try_from(slots(row)).unwrap_or(u32::MAX);
    ReportRow {
        outcomes: vec![OutcomeRun { count, reason: Reason::SpoolDropped as i32, slower_than: 0 }],
        latency: None,
        details: Vec::new(),
        retried: 0,
        ..row.clone()
    }
}
