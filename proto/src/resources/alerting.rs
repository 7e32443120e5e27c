//! `kind: BurnRatePolicy`, `Receiver` and `Route`.

use super::probe::secret_ref;
use super::read::{At, Fields, Mistakes};
use crate::units;
use crate::v1::*;

const SEVERITIES: &[(&str, Severity)] = &[("page", Severity::Page), ("ticket", Severity::Ticket)];
/// Twelve buckets to a short window: a narrower one has no use.
const SHORT_MIN_US: u64 = 1_200_000;
/// Buckets kept for one rule: long / (short / 12).
const BUCKETS_MAX: u64 = 10_000;

pub(super) fn policy(mut f: Fields<'_>, mistakes: &mut Mistakes) -> BurnRatePolicySpec {
    let items = f.need("rules", mistakes).map(|at| at.items(mistakes)).unwrap_or_default();
    let mut rules: Vec<BurnRateRule> = Vec::new();
    for item in &items {
        let Some(rule) = rule(item, mistakes) else { continue };
        if rules.iter().any(|r| r.name == rule.name) {
            mistakes.add(&format!("{}.name", item.path), item.place(), format!("rule {:?} is given twice", rule.name), "");
        }
        rules.push(rule);
    }
    let evidence = f.get("evidence").and_then(|at| at.fields(mistakes)).map(|mut e| {
        let evidence = Evidence {
            bad_runs: e.int("badRuns", 1..=1_000, mistakes).unwrap_or(2) as u32,
            probers: e.int("probers", 1..=1_000, mistakes).unwrap_or(2) as u32,
        };
        e.finish(mistakes);
        evidence
    });
    let no_data = f.get("noData").and_then(|at| at.fields(mistakes)).map(|mut n| {
        let rule = NoDataRule {
            severity: n.choice("severity", SEVERITIES, mistakes).unwrap_or(Severity::Ticket) as i32,
            missing_ppm: n.int("missingPercent", 1..=100, mistakes).unwrap_or(50) as u32 * 10_000,
            for_us: n.duration("for", mistakes).unwrap_or(300_000_000),
        };
        n.finish(mistakes);
        rule
    });
    let labels = f.map("labels", mistakes);
    for own in ["alertname", "severity", "namespace", "service", "slo", "rule"] {
        if labels.contains_key(own) {
            mistakes.add(&f.path_of("labels"), f.place(), format!("label {own:?} is set by Probity"), "choose another name");
        }
    }
    let annotations = f.map("annotations", mistakes);
    f.finish(mistakes);
    BurnRatePolicySpec {
        rules,
        evidence: Some(evidence.unwrap_or(Evidence { bad_runs: 2, probers: 2 })),
        no_data: Some(no_data.unwrap_or(NoDataRule { severity: Severity::Ticket as i32, missing_ppm: 500_000, for_us: 300_000_000 })),
        labels,
        annotations,
    }
}

fn rule(at: &At<'_>, mistakes: &mut Mistakes) -> Option<BurnRateRule> {
    let mut f = at.fields(mistakes)?;
    let name = f.need("name", mistakes).and_then(|at| at.parsed(mistakes, super::name)).unwrap_or_default();
    let severity = f.choice("severity", SEVERITIES, mistakes).unwrap_or(Severity::Page) as i32;
    let burn_rate_milli = f.need("burnRate", mistakes).and_then(|at| at.parsed(mistakes, units::parse_milli));
    let long_us = f.need("long", mistakes).and_then(|at| at.parsed(mistakes, units::parse_duration));
    let short_us = f.need("short", mistakes).and_then(|at| at.parsed(mistakes, units::parse_duration));
    let place = f.place();
    let path = f.path_of("short");
    f.finish(mistakes);
    let (burn_rate_milli, long_us, short_us) = (burn_rate_milli?, long_us?, short_us?);
    if name == "no-data" {
        mistakes.add(&at.path, place, "the name no-data is taken by the rule for missing data", "choose another name");
    }
    if burn_rate_milli == 0 {
        mistakes.add(&at.path, place, "a burn rate of 0 always fires", "want for example 14.4");
    }
    if short_us < SHORT_MIN_US || short_us >= long_us {
        mistakes.add(&path, place, "the short window must be at least 1.2s and shorter than the long one", "the workbook's is a twelfth of the long one");
    } else if long_us / (short_us / 12) > BUCKETS_MAX {
        mistakes.add(
            &path,
            place,
            "the short window is too short for this long one",
            format!("at least {}", units::format_duration(long_us / BUCKETS_MAX * 12)),
        );
    }
    Some(BurnRateRule { name, severity, burn_rate_milli, long_us, short_us })
}

/// An http or https URL.
fn url(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    match rest {
        Some(rest) if !rest.is_empty() && !rest.starts_with('/') && !text.contains(char::is_whitespace) => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is no URL (want http://... or https://...)")),
    }
}

pub(super) fn receiver(mut f: Fields<'_>, mistakes: &mut Mistakes) -> Option<ReceiverSpec> {
    use receiver_spec::Receiver;
    let mut found = Vec::new();
    if let Some(mut a) = f.get("alertmanager").and_then(|at| at.fields(mistakes)) {
        let urls = a.need("urls", mistakes).map(|at| at.items(mistakes)).unwrap_or_default();
        let urls = urls.iter().filter_map(|at| at.parsed(mistakes, url)).collect();
        a.finish(mistakes);
        found.push(Receiver::Alertmanager(AlertmanagerReceiver { urls }));
    }
    if let Some(mut w) = f.get("webhook").and_then(|at| at.fields(mistakes)) {
        let mut webhook = WebhookReceiver::default();
        if let Some(at) = w.need("url", mistakes) {
            match at.node.json() {
                serde_json::Value::Object(_) => webhook.url_secret_ref = nested_secret(&at, mistakes),
                _ => webhook.url = at.parsed(mistakes, url).unwrap_or_default(),
            }
        }
        if let Some(at) = w.get("token") {
            webhook.token_secret_ref = nested_secret(&at, mistakes);
        }
        w.finish(mistakes);
        found.push(Receiver::Webhook(webhook));
    }
    if let Some(mut p) = f.get("pagerduty").and_then(|at| at.fields(mistakes)) {
        let routing_key_secret_ref = p.need("routingKey", mistakes).map(|at| nested_secret(&at, mistakes)).unwrap_or_default();
        p.finish(mistakes);
        found.push(Receiver::Pagerduty(PagerDutyReceiver { routing_key_secret_ref }));
    }
    if let Some(mut s) = f.get("slack").and_then(|at| at.fields(mistakes)) {
        let url_secret_ref = s.need("url", mistakes).map(|at| nested_secret(&at, mistakes)).unwrap_or_default();
        s.finish(mistakes);
        found.push(Receiver::Slack(SlackReceiver { url_secret_ref }));
    }
    if found.len() != 1 {
        mistakes.add(&f.path, f.place(), "one kind of receiver is wanted", "one of alertmanager, webhook, pagerduty, slack");
    }
    f.finish(mistakes);
    Some(ReceiverSpec { receiver: found.pop() })
}

/// `{secretRef: NAME}`
fn nested_secret(at: &At<'_>, mistakes: &mut Mistakes) -> String {
    let Some(mut f) = at.fields(mistakes) else { return String::new() };
    let secret = secret_ref(&mut f, "secretRef", mistakes);
    f.finish(mistakes);
    secret
}

pub(super) fn route(mut f: Fields<'_>, mistakes: &mut Mistakes) -> RouteSpec {
    let r#match = f.map("match", mistakes);
    let items = f.need("receivers", mistakes).map(|at| at.items(mistakes)).unwrap_or_default();
    let receivers: Vec<String> = items.iter().filter_map(|at| at.parsed(mistakes, super::name)).collect();
    if receivers.is_empty() && f.has("receivers") {
        mistakes.add(&f.path_of("receivers"), f.place(), "is empty", "name at least one Receiver");
    }
    f.finish(mistakes);
    RouteSpec { r#match, receivers }
}
