//! `kind: SLO`: OpenSLO v1 documents whose metric source is a probe.

use super::read::{At, Fields, Mistakes};
use crate::units;
use crate::v1::*;

pub(super) fn read(mut f: Fields<'_>, mistakes: &mut Mistakes) -> Option<SloSpec> {
    f.not_yet(&["indicatorRef"], mistakes);
    let mut spec =
        SloSpec { service: f.need_text("service", mistakes), description: f.text("description", mistakes).unwrap_or_default(), ..SloSpec::default() };
    if let Some(at) = f.need("indicator", mistakes) {
        indicator(&at, &mut spec, mistakes);
    }
    if let Some(at) = f.need("timeWindow", mistakes) {
        window(&at, &mut spec, mistakes);
    }
    f.choice("budgetingMethod", &[("Occurrences", ())], mistakes);
    if let Some(at) = f.need("objectives", mistakes) {
        objective(&at, &mut spec, mistakes);
    }
    if let Some(at) = f.get("alertPolicies") {
        policies(&at, &mut spec, mistakes);
    }
    f.finish(mistakes);
    Some(spec)
}

fn indicator(at: &At<'_>, spec: &mut SloSpec, mistakes: &mut Mistakes) {
    let Some(mut indicator) = at.fields(mistakes) else { return };
    indicator.get("metadata");
    let inner = indicator.need("spec", mistakes).and_then(|at| at.fields(mistakes));
    indicator.finish(mistakes);
    let Some(mut inner) = inner else { return };
    inner.get("description");
    inner.not_yet(&["thresholdMetric"], mistakes);
    let ratio = inner.need("ratioMetric", mistakes).and_then(|at| at.fields(mistakes));
    inner.finish(mistakes);
    let Some(mut ratio) = ratio else { return };
    ratio.flag("counter", mistakes);
    ratio.not_yet(&["bad", "raw", "rawType"], mistakes);
    let good = source(&mut ratio, "good", mistakes);
    let total = source(&mut ratio, "total", mistakes);
    ratio.finish(mistakes);
    if let Some(mut good) = good {
        spec.probe = good.need_text("probe", mistakes);
        good.choice("outcome", &[("good", ())], mistakes);
        spec.max_duration_us = good.duration("maxDuration", mistakes).unwrap_or(0);
        good.finish(mistakes);
    }
    if let Some(mut total) = total {
        let place = total.place();
        let path = total.path_of("probe");
        let probe = total.need_text("probe", mistakes);
        if probe != spec.probe && !probe.is_empty() {
            mistakes.add(&path, place, format!("good is of probe {:?}, total of {probe:?}", spec.probe), "both must be of one probe");
        }
        if let Some(at) = total.get("unit") {
            at.parsed(mistakes, |unit| match unit {
                "run" => Ok(()),
                "round" => Err("unit round is not supported by this version (want run)".to_owned()),
                _ => Err(format!("{unit:?} is unknown (want run)")),
            });
        }
        total.finish(mistakes);
    }
}

/// The inner spec of good or total.
fn source<'t>(ratio: &mut Fields<'t>, key: &'static str, mistakes: &mut Mistakes) -> Option<Fields<'t>> {
    let mut outer = ratio.need(key, mistakes)?.fields(mistakes)?;
    let metric = outer.need("metricSource", mistakes);
    outer.finish(mistakes);
    let mut metric = metric?.fields(mistakes)?;
    metric.get("metricSourceRef");
    let kind = metric.need("type", mistakes);
    let spec = metric.need("spec", mistakes);
    metric.finish(mistakes);
    kind?.parsed(mistakes, |t| match t {
        "probity" => Ok(()),
        _ => Err(format!("metric source type {t:?} is not supported (want probity)")),
    });
    spec?.fields(mistakes)
}

fn window(at: &At<'_>, spec: &mut SloSpec, mistakes: &mut Mistakes) {
    let items = at.items(mistakes);
    let [item] = items.as_slice() else {
        mistakes.add(&at.path, at.place(), format!("has {} windows, want one", items.len()), "OpenSLO: exactly one time window");
        return;
    };
    let Some(mut f) = item.fields(mistakes) else { return };
    f.not_yet(&["calendar"], mistakes);
    let rolling = f.flag("isRolling", mistakes).unwrap_or(false);
    if !rolling {
        mistakes.add(&format!("{}.isRolling", item.path), f.place(), "calendar windows are not supported by this version", "isRolling: true");
    }
    if let Some(at) = f.need("duration", mistakes) {
        spec.window_us = at.parsed(mistakes, openslo_duration).unwrap_or(0);
    }
    f.finish(mistakes);
}

/// OpenSLO's units: m, h, d, w, M (30 days), Q (90 days), Y (365 days); at least an hour, at most 400 days.
fn openslo_duration(text: &str) -> Result<u64, String> {
    let day = 86_400_000_000u64;
    let long = [('M', 30), ('Q', 90), ('Y', 365)].iter().find_map(|(unit, days)| {
        let count: u64 = text.strip_suffix(*unit)?.parse().ok()?;
        count.checked_mul(days * day)
    });
    let us = match long {
        Some(us) => us,
        None => units::parse_duration(text)?,
    };
    if (3_600_000_000..=400 * day).contains(&us) { Ok(us) } else { Err(format!("{text} is out of range (want 1h to 400d)")) }
}

fn objective(at: &At<'_>, spec: &mut SloSpec, mistakes: &mut Mistakes) {
    let items = at.items(mistakes);
    let [item] = items.as_slice() else {
        mistakes.add(&at.path, at.place(), format!("has {} objectives, want one", items.len()), "write one SLO document for each objective");
        return;
    };
    let Some(mut f) = item.fields(mistakes) else { return };
    spec.objective = f.text("displayName", mistakes).unwrap_or_default();
    f.not_yet(&["op", "value", "timeSliceTarget", "timeSliceWindow", "compositeWeight"], mistakes);
    let ratio = f.get("target").and_then(|at| at.parsed(mistakes, units::parse_ratio_ppm));
    let percent = f.get("targetPercent").and_then(|at| at.parsed(mistakes, |t| units::parse_percent_ppm(&format!("{t}%"))));
    let given = f.has("target") || f.has("targetPercent");
    let place = f.place();
    f.finish(mistakes);
    match ratio.or(percent) {
        Some(ppm) if ppm > 0 && ppm < 1_000_000 => spec.target_ppm = ppm,
        Some(_) => mistakes.add(&format!("{}.target", item.path), place, "an objective of 0 or 1 leaves no budget to work with", "want for example 0.999"),
        None if !given => mistakes.add(&format!("{}.target", item.path), place, "is missing", "want for example target: 0.999"),
        None => {}
    }
}

fn policies(at: &At<'_>, spec: &mut SloSpec, mistakes: &mut Mistakes) {
    let items = at.items(mistakes);
    spec.no_alerts = items.is_empty();
    if let [_, second, ..] = items.as_slice() {
        mistakes.add(&second.path, second.place(), "one policy is wanted", "put all rules into one BurnRatePolicy");
    }
    let Some(mut f) = items.first().and_then(|at| at.fields(mistakes)) else { return };
    spec.policy = f.need_text("alertPolicyRef", mistakes);
    f.finish(mistakes);
}
