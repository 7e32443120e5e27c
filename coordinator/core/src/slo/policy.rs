//! Which rules an SLO has: its policy's, or those of the SRE workbook, chapter 5.

use probity_proto::v1::resource::Spec;
use probity_proto::v1::*;

use crate::state::State;

const MINUTE: u64 = 60 * 1_000_000;
const HOUR: u64 = 60 * MINUTE;

/// Name of the rule that fires when too much is missing.
pub const NO_DATA: &str = "no-data";

/// The workbook's three rules, for an SLO that names no policy.
pub fn workbook() -> BurnRatePolicySpec {
    let rule = |name: &str, severity: Severity, burn_rate_milli, long_us, short_us| BurnRateRule {
        name: name.to_owned(),
        severity: severity as i32,
        burn_rate_milli,
        long_us,
        short_us,
    };
    BurnRatePolicySpec {
        rules: vec![
            rule("page-1h", Severity::Page, 14_400, HOUR, 5 * MINUTE),
            rule("page-6h", Severity::Page, 6_000, 6 * HOUR, 30 * MINUTE),
            rule("ticket-3d", Severity::Ticket, 1_000, 72 * HOUR, 6 * HOUR),
        ],
        evidence: Some(Evidence { bad_runs: 2, probers: 2 }),
        no_data: Some(NoDataRule { severity: Severity::Ticket as i32, missing_ppm: 500_000, for_us: 5 * MINUTE }),
        ..BurnRatePolicySpec::default()
    }
}

/// The policy of an SLO; `None` when it wants no alerts.
pub fn of(state: &State, namespace: &str, slo: &SloSpec) -> Option<BurnRatePolicySpec> {
    if slo.no_alerts {
        return None;
    }
    let named = state.resources.get(&crate::resource_key("BurnRatePolicy", namespace, &slo.policy)).and_then(|r| r.spec.as_ref());
    match named {
        Some(Spec::BurnRatePolicy(spec)) => Some(spec.clone()),
        _ => Some(workbook()),
    }
}
