//! Spans and metrics to OpenTelemetry, for coordinators and probers alike.
//!
//! Spans are handed over finished, with the times that were measured: a run is over before anybody knows whether it is sampled.
//! Off unless `OTEL_EXPORTER_OTLP_ENDPOINT` (or `..._TRACES_ENDPOINT`) is set; `OTEL_EXPORTER_OTLP_PROTOCOL` is `grpc` (default) or
//! `http/protobuf`. A collector that is down costs nothing but the spans: the queue is bounded.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::metrics::{BoundCounter, BoundHistogram, Counter, Histogram, MeterProvider};
use opentelemetry::trace::{Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{MetricExporter, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{Aggregation, Instrument, InstrumentKind, SdkMeterProvider, Stream};
use opentelemetry_sdk::trace::{BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor};

/// How long the last flush may take.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);

/// An attribute of a span.
pub type Attribute = KeyValue;

/// The exporters cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot export to OpenTelemetry (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_PROTOCOL say where and how)")]
pub struct OtelError(#[source] Box<dyn std::error::Error + Send + Sync>);

/// A finished span.
#[derive(Debug, Clone)]
pub struct Span {
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// 16 hexadecimal digits.
    pub span_id: String,
    /// 16 hexadecimal digits; empty for the root.
    pub parent_id: String,
    /// What was done.
    pub name: Cow<'static, str>,
    /// Whether it called somebody.
    pub client: bool,
    /// Unix time.
    pub start_us: i64,
    /// Unix time.
    pub end_us: i64,
    /// Attributes, by the semantic conventions where there are some.
    pub attributes: Vec<KeyValue>,
    /// Trace ids that this span belongs with.
    pub links: Vec<String>,
    /// Why it failed.
    pub error: Option<String>,
}

/// A random trace id.
pub fn new_trace_id() -> String {
    format!("{:032x}", rand::random::<u128>().max(1))
}

/// A span of which nobody knows yet whether it will be exported: its ids are numbers until somebody reads them.
#[derive(Debug, Clone, Copy)]
pub struct SpanIds {
    /// The trace.
    pub trace: u128,
    /// The span.
    pub span: u64,
}

impl SpanIds {
    /// The first span of a new trace.
    pub fn root() -> SpanIds {
        SpanIds { trace: rand::random::<u128>().max(1), span: rand::random::<u64>().max(1) }
    }

    /// Another span of the same trace.
    pub fn child(self) -> SpanIds {
        SpanIds { span: rand::random::<u64>().max(1), ..self }
    }

    /// As a [`Span`] has it.
    pub fn trace_id(self) -> String {
        format!("{:032x}", self.trace)
    }

    /// As a [`Span`] has it.
    pub fn span_id(self) -> String {
        format!("{:016x}", self.span)
    }
}

/// A random span id.
pub fn new_span_id() -> String {
    format!("{:016x}", rand::random::<u64>().max(1))
}

/// The `traceparent` header (W3C Trace Context) of a span.
pub fn traceparent(ids: SpanIds, sampled: bool) -> String {
    format!("00-{:032x}-{:016x}-{}", ids.trace, ids.span, if sampled { "01" } else { "00" })
}

/// Instruments of runs.
#[derive(Debug)]
struct Instruments {
    runs: Counter<u64>,
    duration: Histogram<f64>,
    lag: Histogram<f64>,
    provider: SdkMeterProvider,
}

impl Instruments {
    fn new(exporter: impl PushMetricExporter, resource: Resource) -> Instruments {
        let provider = SdkMeterProvider::builder()
            .with_resource(resource)
            .with_view(|instrument: &Instrument| {
                let exponential = Aggregation::Base2ExponentialHistogram { max_size: 160, max_scale: 20, record_min_max: true };
                (instrument.kind() == InstrumentKind::Histogram).then(|| Stream::builder().with_aggregation(exponential).build().ok())?
            })
            .with_periodic_exporter(exporter)
            .build();
        let meter = provider.meter("probity");
        Instruments {
            runs: meter.u64_counter("probity.runs").with_description("Finished runs, by outcome and reason.").build(),
            duration: meter.f64_histogram("probity.run.duration").with_unit("s").with_description("How long runs took.").build(),
            lag: meter.f64_histogram("probity.run.lag").with_unit("s").with_description("How late runs started.").build(),
            provider,
        }
    }

    fn count(&self, attributes: &[KeyValue], duration_seconds: Option<f64>) {
        self.runs.add(1, attributes);
        if let Some(seconds) = duration_seconds {
            self.duration.record(seconds, attributes);
        }
    }

    fn series(&self, attributes: &[KeyValue]) -> Series {
        Series(Some((self.runs.bind(attributes), self.duration.bind(attributes))))
    }
}

/// Runs of the same attributes: found once, because to find it costs more than to count. Both of its instruments are exported from then on,
/// counted or not: it is for runs that have a duration.
#[derive(Debug)]
pub struct Series(Option<(BoundCounter<u64>, BoundHistogram<f64>)>);

impl Series {
    /// Counts a finished run.
    pub fn count(&self, duration_seconds: f64) {
        let Some((runs, duration)) = &self.0 else { return };
        runs.add(1);
        duration.record(duration_seconds);
    }
}

/// Where spans and metrics go. Cheap to clone; without an endpoint everything is a no-op.
#[derive(Debug, Clone, Default)]
pub struct Otel {
    inner: Option<Arc<Inner>>,
}

#[derive(Debug)]
struct Inner {
    spans: BatchSpanProcessor,
    metrics: Instruments,
}

fn boxed(e: impl std::error::Error + Send + Sync + 'static) -> OtelError {
    OtelError(Box::new(e))
}

fn set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|v| !v.is_empty())
}

impl Otel {
    /// As the environment says. `service` is `service.name` unless `OTEL_SERVICE_NAME` is set. Call it on a tokio runtime.
    pub fn from_env(service: &str, attributes: &[(&'static str, String)]) -> Result<Otel, OtelError> {
        if !set("OTEL_EXPORTER_OTLP_ENDPOINT") && !set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
            return Ok(Otel::default());
        }
        let http = std::env::var("OTEL_EXPORTER_OTLP_PROTOCOL").is_ok_and(|p| p.starts_with("http/"));
        let mut resource = Resource::builder().with_attributes(attributes.iter().map(|(k, v)| KeyValue::new(*k, v.clone())));
        if !set("OTEL_SERVICE_NAME") {
            resource = resource.with_service_name(service.to_owned());
        }
        let resource = resource.build();
        let (spans, metrics) = if http {
            // The blocking client must not be made on a runtime's thread.
            std::thread::spawn(|| {
                let spans = SpanExporter::builder().with_http().build().map_err(boxed)?;
                let metrics = MetricExporter::builder().with_http().build().map_err(boxed)?;
                Ok((spans, metrics))
            })
            .join()
            .unwrap_or_else(|_| Err(boxed(std::io::Error::other("the HTTP exporter could not be made"))))?
        } else {
            let spans = SpanExporter::builder().with_tonic().build().map_err(boxed)?;
            (spans, MetricExporter::builder().with_tonic().build().map_err(boxed)?)
        };
        let mut spans = BatchSpanProcessor::builder(spans).build();
        spans.set_resource(&resource);
        let metrics = Instruments::new(metrics, resource);
        Ok(Otel { inner: Some(Arc::new(Inner { spans, metrics })) })
    }

    /// Whether anything is exported.
    pub fn enabled(&self) -> bool {
        self.inner.is_some()
    }

    /// Hands a span over. A full queue drops it.
    pub fn export(&self, span: Span) {
        let Some(inner) = &self.inner else { return };
        let context = |trace: &str, span: &str| {
            let trace = TraceId::from_hex(trace).unwrap_or(TraceId::INVALID);
            let span = SpanId::from_hex(span).unwrap_or(SpanId::INVALID);
            SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::default())
        };
        let time = |us: i64| SystemTime::UNIX_EPOCH + Duration::from_micros(us.max(0) as u64);
        let mut links = SpanLinks::default();
        // A link needs a span: the first one of a game day bears the first half of its trace id.
        links.links = span.links.iter().filter(|t| t.len() == 32).map(|t| Link::with_context(context(t, &t[..16]))).collect();
        inner.spans.on_end(SpanData {
            span_context: context(&span.trace_id, &span.span_id),
            parent_span_id: SpanId::from_hex(&span.parent_id).unwrap_or(SpanId::INVALID),
            parent_span_is_remote: false,
            span_kind: if span.client { SpanKind::Client } else { SpanKind::Internal },
            name: span.name,
            start_time: time(span.start_us),
            end_time: time(span.end_us),
            attributes: span.attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links,
            status: span.error.map_or(Status::Unset, Status::error),
            instrumentation_scope: InstrumentationScope::builder("probity").with_version(env!("CARGO_PKG_VERSION")).build(),
        });
    }

    /// Counts a finished run; one that was missed has no duration.
    pub fn count(&self, attributes: &[KeyValue], duration_seconds: Option<f64>) {
        if let Some(inner) = &self.inner {
            inner.metrics.count(attributes, duration_seconds);
        }
    }

    /// Where runs of some attributes are counted, for who keeps it.
    pub fn series(&self, attributes: &[KeyValue]) -> Series {
        self.inner.as_ref().map_or(Series(None), |inner| inner.metrics.series(attributes))
    }

    /// Notes how late a run started. The prober's own: no attribute of the check.
    pub fn record_lag(&self, seconds: f64) {
        if let Some(inner) = &self.inner {
            inner.metrics.lag.record(seconds, &[]);
        }
    }

    /// Sends what is left.
    pub async fn shutdown(&self) {
        let Some(inner) = self.inner.clone() else { return };
        let _ = tokio::task::spawn_blocking(move || {
            let _ = inner.spans.shutdown_with_timeout(SHUTDOWN_TIMEOUT);
            let _ = inner.metrics.provider.shutdown_with_timeout(SHUTDOWN_TIMEOUT);
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::metrics::Temporality;
    use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ResourceMetrics};
    use std::sync::{Mutex, PoisonError};

    /// What was exported last: each metric, and of each of its series the word and how many were counted.
    #[derive(Debug, Clone, Default)]
    struct Kept(Arc<Mutex<Vec<(String, String, u64)>>>);

    impl PushMetricExporter for Kept {
        async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.clear();
            let word = |mut of: Box<dyn Iterator<Item = &KeyValue> + '_>| of.next().map(|a| a.value.to_string()).unwrap_or_default();
            for metric in metrics.scope_metrics().flat_map(|scope| scope.metrics()) {
                match metric.data() {
                    AggregatedMetrics::U64(MetricData::Sum(sum)) => {
                        kept.extend(sum.data_points().map(|p| (metric.name().to_owned(), word(Box::new(p.attributes())), p.value())));
                    }
                    AggregatedMetrics::F64(MetricData::ExponentialHistogram(histogram)) => {
                        kept.extend(histogram.data_points().map(|p| (metric.name().to_owned(), word(Box::new(p.attributes())), p.count() as u64)));
                    }
                    other => panic!("{} is {other:?}", metric.name()),
                }
            }
            Ok(())
        }

        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }

        fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
            Ok(())
        }

        fn temporality(&self) -> Temporality {
            Temporality::Cumulative
        }
    }

    #[test]
    fn a_missed_run_has_no_duration() {
        let kept = Kept::default();
        let metrics = Instruments::new(kept.clone(), Resource::builder_empty().build());
        let otel = Otel { inner: Some(Arc::new(Inner { spans: BatchSpanProcessor::builder(NoSpans).build(), metrics })) };
        let outcome = |word: &'static str| [KeyValue::new("probity.outcome", word)];
        let good = otel.series(&outcome("good"));
        good.count(0.25);
        good.count(0.5);
        otel.count(&outcome("bad"), Some(1.0));
        otel.count(&outcome("missed"), None);
        otel.inner.as_ref().expect("it is on").metrics.provider.force_flush().expect("exported");
        let mut found = kept.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        found.sort();
        let found: Vec<(&str, &str, u64)> = found.iter().map(|(name, word, n)| (name.as_str(), word.as_str(), *n)).collect();
        let runs = [("probity.runs", "bad", 1), ("probity.runs", "good", 2), ("probity.runs", "missed", 1)];
        assert_eq!(found, [&[("probity.run.duration", "bad", 1), ("probity.run.duration", "good", 2)], &runs[..]].concat());
    }

    #[derive(Debug)]
    struct NoSpans;

    impl opentelemetry_sdk::trace::SpanExporter for NoSpans {
        async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
            Ok(())
        }
    }
}
