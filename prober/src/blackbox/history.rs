//! What was probed of late: so many of all, and as many that failed, so that a failure is still there when somebody comes to look.

use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use crate::kinds::RunResult;

/// A finished probe. Its text for people is only made when somebody asks for it.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) id: u64,
    pub(super) module: String,
    pub(super) target: String,
    pub(super) timeout_us: u64,
    pub(super) started_at_us: i64,
    pub(super) success: bool,
    pub(super) why_not: String,
    pub(super) shown: Arc<Value>,
    pub(super) metrics: Bytes,
    pub(super) result: RunResult,
}

/// Bounded by its limit, twice.
#[derive(Debug)]
pub(super) struct History {
    limit: usize,
    next_id: u64,
    recent: VecDeque<Arc<Record>>,
    /// Failed ones that are no longer among the recent.
    failed: VecDeque<Arc<Record>>,
}

impl History {
    pub(super) fn new(limit: usize) -> History {
        History { limit, next_id: 0, recent: VecDeque::new(), failed: VecDeque::new() }
    }

    pub(super) fn add(&mut self, mut record: Record) -> Arc<Record> {
        record.id = self.next_id;
        self.next_id += 1;
        let record = Arc::new(record);
        self.recent.push_back(record.clone());
        while self.recent.len() > self.limit {
            self.failed.extend(self.recent.pop_front().filter(|r| !r.success));
        }
        while self.failed.len() > self.limit {
            self.failed.pop_front();
        }
        record
    }

    /// The newest first.
    pub(super) fn list(&self) -> Vec<Arc<Record>> {
        self.recent.iter().rev().chain(self.failed.iter().rev()).cloned().collect()
    }

    pub(super) fn by_id(&self, id: u64) -> Option<Arc<Record>> {
        self.recent.iter().chain(&self.failed).find(|r| r.id == id).cloned()
    }

    /// The newest of a module and target.
    pub(super) fn newest(&self, module: &str, target: &str) -> Option<Arc<Record>> {
        self.recent.iter().rev().chain(self.failed.iter().rev()).find(|r| r.module == module && r.target == target).cloned()
    }
}

impl Record {
    /// The report of `debug=true` and `/logs`.
    pub(super) fn report(&self) -> String {
        let mut out = "Logs for the probe:\n".to_owned();
        let mut line = |at_us: u64, level: &str, message: &str, rest: String| {
            let at = jiff::Timestamp::from_microsecond(self.started_at_us + at_us as i64).unwrap_or_default();
            let _ = writeln!(out, "ts={at} module={} target={} level={level} msg={message:?}{rest}", self.module, self.target);
        };
        line(0, "info", "Beginning probe", format!(" timeout_seconds={}", self.timeout_us as f64 / 1e6));
        for phase in &self.result.phases {
            line(phase.start_us, "info", "Phase", format!(" phase={} duration_seconds={}", phase.name, phase.duration_us as f64 / 1e6));
        }
        let end_us = self.result.duration.as_micros() as u64;
        let peer = format!(" peer={:?}", self.result.peer);
        line(end_us, "info", "Peer", peer);
        for (name, value) in &self.result.facts {
            line(end_us, "info", "Fact", format!(" {name}={value:?}"));
        }
        let duration = format!(" duration_seconds={}", self.result.duration.as_secs_f64());
        if self.success {
            line(end_us, "info", "Probe succeeded", duration);
        } else {
            line(end_us, "error", "Probe failed", format!("{duration} reason={} err={:?}", self.result.reason.label(), self.why_not));
        }
        let module = serde_saphyr::to_string(&*self.shown).unwrap_or_default();
        format!("{out}\n\n\nMetrics that would have been returned:\n{}\n\n\nModule configuration:\n{module}", String::from_utf8_lossy(&self.metrics))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(target: usize, success: bool) -> Record {
        Record {
            id: 0,
            module: "m".to_owned(),
            target: target.to_string(),
            timeout_us: 1,
            started_at_us: 0,
            success,
            why_not: String::new(),
            shown: Arc::default(),
            metrics: Bytes::new(),
            result: RunResult::default(),
        }
    }

    #[test]
    fn failures_outlive_the_recent_and_both_are_bounded() {
        let mut history = History::new(3);
        for i in 0..20 {
            history.add(record(i, i % 2 == 0));
        }
        let ids: Vec<u64> = history.list().iter().map(|r| r.id).collect();
        assert_eq!(ids, [19, 18, 17, 15, 13, 11]);
        assert!(history.by_id(15).is_some() && history.by_id(16).is_none());
        assert_eq!(history.newest("m", "13").map(|r| r.id), Some(13));
        assert!(history.newest("m", "2").is_none());
    }
}
