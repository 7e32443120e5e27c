//! Durations, percentages and numbers as people write them, to integers and back.

const UNITS: &[(&str, u64)] =
    &[("us", 1), ("µs", 1), ("ms", 1_000), ("s", 1_000_000), ("m", 60_000_000), ("h", 3_600_000_000), ("d", 86_400_000_000), ("w", 7 * 86_400_000_000)];

/// Microseconds of `300ms`, `1h30m`, `1.5s`, `30d`. Units: us, ms, s, m, h, d, w.
pub fn parse_duration(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no duration (want for example 300ms, 30s, 1h30m, 30d)");
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut total = 0u64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, after) = rest.split_at(digits);
        let unit_end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        let part = scaled(number, *scale).ok_or_else(wrong)?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = next;
    }
    Ok(total)
}

/// `number` (decimal digits, perhaps a fraction) times `scale`, exactly; digits beyond the scale are refused.
fn scaled(number: &str, scale: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || fraction.len() > 9 {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let part = if fraction.is_empty() {
        0
    } else {
        let value = fraction.parse::<u64>().ok()?.checked_mul(scale)?;
        let base = 10u64.pow(fraction.len() as u32);
        if value % base != 0 {
            return None;
        }
        value / base
    };
    whole.checked_mul(scale)?.checked_add(part)
}

/// The shortest exact text: 90 s is `1m30s`, 864 s is `14m24s`, 8.6 s is `8.6s`.
pub fn format_duration(us: u64) -> String {
    if us == 0 {
        return "0s".to_owned();
    }
    if us < 60_000_000 {
        let (unit, scale) = if us >= 1_000_000 {
            ("s", 1_000_000)
        } else if us >= 1_000 {
            ("ms", 1_000)
        } else {
            ("us", 1)
        };
        return format!("{}{unit}", decimal(us, scale));
    }
    let mut text = String::new();
    let mut rest = us;
    for (unit, scale) in [("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000)] {
        if rest >= scale {
            text.push_str(&format!("{}{unit}", rest / scale));
            rest %= scale;
        }
    }
    if rest > 0 {
        text.push_str(&format!("{}s", decimal(rest, 1_000_000)));
    }
    text
}

/// `value / scale` as a decimal number without trailing zeros.
pub fn decimal(value: u64, scale: u64) -> String {
    let digits = scale.ilog10() as usize;
    if digits == 0 {
        return value.to_string();
    }
    let text = format!("{}.{:0digits$}", value / scale, value % scale);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Parts per million of `50%`, `0.5 %`.
pub fn parse_percent_ppm(text: &str) -> Result<u32, String> {
    let wrong = || format!("{text:?} is no percentage (want for example 50%)");
    let number = text.trim().strip_suffix('%').ok_or_else(wrong)?.trim_end();
    let ppm = scaled(number, 10_000).ok_or_else(wrong)?;
    u32::try_from(ppm).ok().filter(|p| *p <= 1_000_000).ok_or_else(wrong)
}

/// Parts per million of a ratio such as `0.999`.
pub fn parse_ratio_ppm(text: &str) -> Result<u32, String> {
    let wrong = || format!("{text:?} is no ratio (want a number between 0 and 1 with at most six decimals, for example 0.999)");
    let ppm = scaled(text.trim(), 1_000_000).ok_or_else(wrong)?;
    u32::try_from(ppm).ok().filter(|p| *p <= 1_000_000).ok_or_else(wrong)
}

/// Thousandths of a number such as `14.4`.
pub fn parse_milli(text: &str) -> Result<u64, String> {
    scaled(text.trim(), 1_000).ok_or_else(|| format!("{text:?} is no number with at most three decimals (want for example 14.4)"))
}

/// Bytes of `256MiB`, `10kB`, `512`.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size (want for example 512, 64KiB, 256MiB)");
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale = match unit.trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    scaled(number, scale).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_both_ways() {
        let cases = [
            ("300ms", 300_000),
            ("8.6s", 8_600_000),
            ("1m30s", 90_000_000),
            ("14m24s", 864_000_000),
            ("30d", 2_592_000_000_000),
            ("1d12h", 129_600_000_000),
            ("45us", 45),
        ];
        for (text, us) in cases {
            assert_eq!(parse_duration(text), Ok(us), "{text}");
            assert_eq!(format_duration(us), text);
        }
        assert_eq!(parse_duration("1.5h"), Ok(5_400_000_000));
        for wrong in ["", "5", "s", "1x", "-1s", "1.s.", "0.0000001s", "99999999999999999999d", "5 s s"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ratios_are_exact() {
        assert_eq!(parse_ratio_ppm("0.999"), Ok(999_000));
        assert_eq!(parse_ratio_ppm("0.99999"), Ok(999_990));
        assert!(parse_ratio_ppm("99.9").is_err());
        assert_eq!(parse_percent_ppm("0.5%"), Ok(5_000));
        assert!(parse_percent_ppm("101%").is_err());
        assert_eq!(parse_milli("14.4"), Ok(14_400));
        assert_eq!(parse_bytes("256MiB"), Ok(256 << 20));
    }
}
