//! A game day as a trace: its timeline and faults as spans, exported by the leader when it has ended.

use std::borrow::Cow;
use std::collections::BTreeSet;

use opentelemetry::KeyValue;
use probity_core::{Key, Record};
use probity_otel::{Otel, Span};
use probity_proto::v1::*;

use crate::node::Node;

/// Which game days were exported already.
#[derive(Debug)]
pub(crate) struct GameDayTraces {
    otel: Otel,
    /// `None` before the first look: what had ended by then was another leader's.
    done: Option<BTreeSet<Key>>,
}

impl GameDayTraces {
    pub(crate) fn new(otel: Otel) -> GameDayTraces {
        GameDayTraces { otel, done: None }
    }

    pub(crate) async fn look(&mut self, node: &Node) {
        if !self.otel.enabled() {
            return;
        }
        let Ok(ended) = node
            .query(|state, _| {
                let faults = |key: &str| state.faults.iter().filter(|f| f.game_day == key).cloned().collect::<Vec<_>>();
                state
                    .game_days
                    .iter()
                    .filter(|d| d.ended_at_us != 0)
                    .map(|d| {
                        let key = Record::key(d);
                        let faults = faults(&key);
                        (key, d.clone(), faults)
                    })
                    .collect::<Vec<_>>()
            })
            .await
        else {
            return;
        };
        let first = self.done.is_none();
        let done = self.done.get_or_insert_default();
        for (key, day, faults) in ended {
            if done.insert(key) && !first {
                export(&self.otel, &day, &faults);
            }
        }
    }
}

fn export(otel: &Otel, day: &GameDayRecord, faults: &[FaultRecord]) {
    let Some(plan) = &day.plan else { return };
    // Runs link to the span whose id is the first half of the trace id.
    let root_id = day.trace_id.get(..16).unwrap_or_default().to_owned();
    let span = |span_id: String, parent_id: &str, name: String, start_us: i64, end_us: i64, attributes: Vec<KeyValue>| Span {
        trace_id: day.trace_id.clone(),
        span_id,
        parent_id: parent_id.to_owned(),
        name: Cow::Owned(name),
        client: false,
        start_us,
        end_us: end_us.max(start_us),
        attributes,
        links: Vec::new(),
        error: None,
    };
    for fault in faults {
        let attributes = vec![
            KeyValue::new("probity.fault.id", fault.id.clone()),
            KeyValue::new("probity.prober", fault.prober.clone()),
            KeyValue::new("probity.fault.detail", fault.detail.clone()),
        ];
        let kind = fault.spec.as_ref().map_or("?", |s| s.kind.as_str());
        let start = if fault.active_at_us != 0 { fault.active_at_us } else { fault.created_at_us };
        otel.export(span(probity_otel::new_span_id(), &root_id, format!("fault {kind}"), start, fault.ended_at_us, attributes));
    }
    for entry in &day.timeline {
        let attributes = vec![KeyValue::new("probity.detail", entry.detail.clone())];
        otel.export(span(probity_otel::new_span_id(), &root_id, entry.what.clone(), entry.at_us, entry.at_us, attributes));
    }
    let attributes = vec![
        KeyValue::new("probity.gameday", plan.name.clone()),
        KeyValue::new("probity.namespace", plan.namespace.clone()),
        KeyValue::new("probity.scenario", plan.scenario.clone()),
        KeyValue::new("probity.result", day.result().as_str_name().trim_start_matches("GAME_DAY_RESULT_").to_lowercase()),
    ];
    let mut root = span(root_id.clone(), "", format!("gameday {}", plan.name), day.started_at_us, day.ended_at_us, attributes);
    if day.result() != GameDayResult::Passed {
        root.error = Some(day.result_reason.clone());
    }
    otel.export(root);
}
