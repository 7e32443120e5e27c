//! What a rule can do, by arithmetic: when it fires in a full outage, how many failures it takes, whether it can fire at all.
//! (SRE workbook, chapter 5.)

use probity_proto::v1::BurnRateRule;

/// The error ratio at which a rule fires, in parts per million: burn rate x (1 - objective).
pub fn firing_ratio_ppm(target_ppm: u32, rule: &BurnRateRule) -> u64 {
    u64::from(1_000_000u32.saturating_sub(target_ppm)) * rule.burn_rate_milli / 1_000
}

/// How long a full outage lasts before the rule fires: (1 - objective) x burn rate x long window, in microseconds.
pub fn full_outage_us(target_ppm: u32, rule: &BurnRateRule) -> u64 {
    (u128::from(firing_ratio_ppm(target_ppm, rule)) * u128::from(rule.long_us) / 1_000_000) as u64
}

/// How many bad runs in the long window make the rule fire, given the runs planned in it.
pub fn failures_to_fire(target_ppm: u32, rule: &BurnRateRule, planned_in_long: u64, bad_runs_evidence: u32) -> u64 {
    let by_rate = (u128::from(firing_ratio_ppm(target_ppm, rule)) * u128::from(planned_in_long)).div_ceil(1_000_000) as u64;
    by_rate.max(u64::from(bad_runs_evidence)).max(1)
}

/// Why a rule can never fire for an objective, and what would help: (message, hint).
pub fn never_fires(target_ppm: u32, rule: &BurnRateRule) -> Option<(String, String)> {
    if firing_ratio_ppm(target_ppm, rule) <= 1_000_000 {
        return None;
    }
    let milli = |v: u64| {
        let text = format!("{}.{:03}", v / 1_000, v % 1_000);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    let largest = 1_000_000_000 / u64::from(1_000_000u32.saturating_sub(target_ppm).max(1));
    let percent = milli(u64::from(target_ppm) / 10);
    Some((
        format!("can never fire: a burn rate of {} at an objective of {percent}% needs more than all runs bad", milli(rule.burn_rate_milli)),
        format!("at most {} for this objective (1 / (1 - objective))", milli(largest)),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page_1h() -> BurnRateRule {
        super::super::policy::workbook().rules[0].clone()
    }

    #[test]
    fn the_workbook_table_of_detection_times() {
        for (target_ppm, seconds) in [(990_000, 518), (995_000, 259), (999_000, 51), (999_900, 5)] {
            assert_eq!(full_outage_us(target_ppm, &page_1h()) / 1_000_000, seconds, "{target_ppm}");
        }
    }

    #[test]
    fn failures_in_one_hour_that_page() {
        // (objective, interval in seconds, failures): compat table, one location, no evidence rule.
        let table = [
            (990_000, 10, 52),
            (990_000, 30, 18),
            (990_000, 60, 9),
            (990_000, 300, 2),
            (999_000, 10, 6),
            (999_000, 30, 2),
            (999_000, 60, 1),
            (999_000, 300, 1),
            (999_900, 10, 1),
            (999_900, 60, 1),
        ];
        for (target_ppm, interval, failures) in table {
            assert_eq!(failures_to_fire(target_ppm, &page_1h(), 3_600 / interval, 1), failures, "{target_ppm} every {interval} s");
        }
    }

    #[test]
    fn impossible_rules_are_named() {
        assert!(never_fires(930_000, &page_1h()).is_some());
        assert!(never_fires(931_000, &page_1h()).is_none());
        let (message, hint) = never_fires(900_000, &page_1h()).expect("14.4 x 10% is more than all");
        assert_eq!(message, "can never fire: a burn rate of 14.4 at an objective of 90% needs more than all runs bad");
        assert_eq!(hint, "at most 10 for this objective (1 / (1 - objective))");
    }
}
