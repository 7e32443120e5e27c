//! Rows that no coordinator has acknowledged: within bytes and age, oldest first (rule R9).

use std::collections::VecDeque;
use std::sync::Arc;

use probity_proto::v1::ReportRow;

use crate::row;

#[derive(Debug)]
struct Spooled {
    row: Arc<ReportRow>,
    /// When it was begun; that of an earlier run counts from the start of this one.
    begun_at: i64,
    bytes: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Spool {
    rows: VecDeque<Spooled>,
    bytes: u64,
    /// All before this one gave up their content.
    emptied: usize,
    /// How many of them went out on the present stream.
    sent: usize,
    dropped_slots: u64,
}

impl Spool {
    pub(crate) fn of(rows: Vec<ReportRow>, now_us: i64) -> Spool {
        let mut spool = Spool::default();
        for row in rows {
            spool.push(Arc::new(row), now_us);
        }
        spool
    }

    pub(crate) fn push(&mut self, row: Arc<ReportRow>, begun_at: i64) {
        let bytes = row::size(&row);
        self.bytes += bytes;
        self.rows.push_back(Spooled { row, begun_at, bytes });
    }

    /// (rows, bytes, slots dropped since the start).
    pub(crate) fn totals(&self) -> (u64, u64, u64) {
        (self.rows.len() as u64, self.bytes, self.dropped_slots)
    }

    /// Nobody wants them any more.
    pub(crate) fn give_up(&mut self) {
        let slots: u64 = self.rows.iter().map(|s| row::slots(&s.row)).sum();
        *self = Spool { dropped_slots: self.dropped_slots + slots, ..Spool::default() };
    }

    /// Keeps within some bytes: the oldest rows give up everything but how many slots they were. Returns what is left of them.
    pub(crate) fn shrink(&mut self, bytes_max: u64) -> Vec<Arc<ReportRow>> {
        let mut shrunk = Vec::new();
        while self.bytes > bytes_max && self.emptied < self.rows.len() {
            shrunk.extend(self.drop_content(self.emptied));
            self.emptied += 1;
        }
        shrunk
    }

    /// The same for rows that were begun before a time.
    pub(crate) fn drop_older(&mut self, than_us: i64) -> Vec<Arc<ReportRow>> {
        let mut shrunk = Vec::new();
        while self.rows.get(self.emptied).is_some_and(|s| s.begun_at < than_us) {
            shrunk.extend(self.drop_content(self.emptied));
            self.emptied += 1;
        }
        shrunk
    }

    /// What is left of a row, if it had more.
    fn drop_content(&mut self, at: usize) -> Option<Arc<ReportRow>> {
        let spooled = self.rows.get_mut(at)?;
        let stub = row::dropped(&spooled.row);
        if stub == *spooled.row {
            return None;
        }
        let bytes = row::size(&stub);
        self.bytes = self.bytes - spooled.bytes + bytes;
        self.dropped_slots += row::slots(&spooled.row);
        (spooled.row, spooled.bytes) = (Arc::new(stub), bytes);
        Some(spooled.row.clone())
    }

    /// A new stream: everything goes out again.
    pub(crate) fn on_connected(&mut self) {
        self.sent = 0;
    }

    /// What goes out next, of rows up to a sequence.
    pub(crate) fn next(&mut self, up_to: u64, count: usize) -> Vec<ReportRow> {
        let waiting = self.rows.range(self.sent.min(self.rows.len())..);
        let rows: Vec<ReportRow> = waiting.take(count).take_while(|s| s.row.sequence <= up_to).map(|s| ReportRow::clone(&s.row)).collect();
        self.sent += rows.len();
        rows
    }

    /// The sequence of the oldest row that is not acknowledged.
    pub(crate) fn first_sequence(&self) -> Option<u64> {
        self.rows.front().map(|s| s.row.sequence)
    }

    /// Rows up to a sequence are committed; which ones those were.
    pub(crate) fn on_ack(&mut self, sequence: u64) -> Option<std::ops::RangeInclusive<u64>> {
        let first = self.rows.front()?.row.sequence;
        let mut last = None;
        while let Some(done) = self.rows.front().filter(|s| s.row.sequence <= sequence) {
            (self.bytes, last) = (self.bytes - done.bytes, Some(done.row.sequence));
            self.rows.pop_front();
            self.sent = self.sent.saturating_sub(1);
            self.emptied = self.emptied.saturating_sub(1);
        }
        last.map(|last| first..=last)
    }
}
