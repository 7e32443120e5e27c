//! What people read: tables, colours on a terminal only, times and durations in words.

use std::io::{IsTerminal, Write};

use serde_json::Value;

/// Whether standard output may be coloured.
pub(crate) fn coloured() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}

/// Colours a word that says how something is; others stay as they are.
pub(crate) fn paint(word: &str) -> String {
    let code = match word.trim() {
        "up" | "good" | "ok" | "passed" | "PASSED" | "inactive" | "resolved" | "yes" | "leader" => "32",
        "down" | "bad" | "firing" | "failed" | "FAILED" | "missed" | "INJECTED" | "DOWN" | "FIRING" => "31",
        "unknown" | "pending" | "aborted" | "ABORTED" | "inconclusive" | "INCONCLUSIVE" | "no" => "33",
        "UNDONE" | "RECOVERED" | "RESOLVED" => "32",
        _ => return word.to_owned(),
    };
    if coloured() { format!("\u{1b}[{code}m{word}\u{1b}[0m") } else { word.to_owned() }
}

/// Aligned columns; the last one is not padded.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(header: &[&str]) -> Self {
        Table { rows: vec![header.iter().map(|h| (*h).to_owned()).collect()] }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(|c| self.rows.iter().filter_map(|r| r.get(c)).map(|cell| cell.chars().count()).max().unwrap_or(0)).collect();
        self.rows
            .iter()
            .map(|row| {
                let mut line = String::new();
                for (c, cell) in row.iter().enumerate() {
                    line.push_str(&paint(cell));
                    if c + 1 < row.len() {
                        let pad = widths[c].saturating_sub(cell.chars().count()) + 2;
                        line.extend(std::iter::repeat_n(' ', pad));
                    }
                }
                line
            })
            .collect()
    }
}

/// Prints lines; a reader that went away (`| head`) is no error.
pub(crate) fn print_lines(lines: &[String]) {
    let mut out = std::io::stdout().lock();
    for line in lines {
        if writeln!(out, "{line}").is_err() {
            return;
        }
    }
    let _ = out.flush();
}

pub(crate) fn print_json(value: &Value) {
    print_lines(&[serde_json::to_string_pretty(value).unwrap_or_default()]);
}

pub(crate) fn print_yaml(value: &Value) {
    let text = serde_saphyr::to_string(value).unwrap_or_default();
    print_lines(&[text.trim_end().to_owned()]);
}

/// The value at a path of keys; null when any is absent.
pub(crate) fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(value, |v, key| &v[key])
}

/// A cell: text as it is, numbers as written, absent as a dash.
pub(crate) fn cell(value: &Value, path: &str) -> String {
    match at(value, path) {
        Value::Null => "-".to_owned(),
        Value::String(s) if s.is_empty() => "-".to_owned(),
        Value::String(s) => s.clone(),
        Value::Bool(b) => if *b { "yes" } else { "no" }.to_owned(),
        other => other.to_string(),
    }
}

/// Seconds in words, for a person: 1.2 ms, 3.4 s, 14m24s, 2d3h.
pub(crate) fn seconds(s: f64) -> String {
    let magnitude = s.abs();
    if magnitude < 0.0005 {
        format!("{:.0} us", s * 1e6)
    } else if magnitude < 1.0 {
        format!("{:.1} ms", s * 1e3)
    } else if magnitude < 100.0 {
        let text = format!("{s:.1}");
        format!("{} s", text.strip_suffix(".0").unwrap_or(&text))
    } else {
        let mut rest = magnitude.round() as u64;
        let mut parts = Vec::new();
        for (unit, size) in [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)] {
            if rest >= size {
                parts.push(format!("{}{unit}", rest / size));
                rest %= size;
            }
        }
        parts.truncate(2);
        format!("{}{}", if s < 0.0 { "-" } else { "" }, parts.concat())
    }
}

/// The seconds at a path, in words.
pub(crate) fn duration(value: &Value, path: &str) -> String {
    at(value, path).as_f64().map_or("-".to_owned(), seconds)
}

/// How long ago the time at a path was.
pub(crate) fn age(value: &Value, path: &str) -> String {
    let Some(text) = at(value, path).as_str() else { return "-".to_owned() };
    let Ok(then) = text.parse::<jiff::Timestamp>() else { return text.to_owned() };
    let passed = jiff::Timestamp::now().duration_since(then).as_secs_f64();
    if passed < 1.0 { "now".to_owned() } else { seconds(passed.floor()) }
}

/// Parts per million as a percentage.
pub(crate) fn percent(ppm: f64) -> String {
    let text = format!("{:.3}", ppm / 10_000.0);
    format!("{}%", text.trim_end_matches('0').trim_end_matches('.'))
}

/// `key=value` pairs of an object, comma-separated.
pub(crate) fn pairs(value: &Value) -> String {
    let Some(map) = value.as_object() else { return "-".to_owned() };
    let text: Vec<String> = map.iter().map(|(k, v)| format!("{k}={}", v.as_str().map_or(v.to_string(), str::to_owned))).collect();
    if text.is_empty() { "-".to_owned() } else { text.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_like_speech() {
        let cases = [(0.0000451, "45 us"), (0.0012, "1.2 ms"), (0.5, "500.0 ms"), (8.64, "8.6 s"), (30.0, "30 s"), (864.0, "14m24s"), (90_061.0, "1d1h")];
        for (value, text) in cases {
            assert_eq!(seconds(value), text);
        }
        assert_eq!(percent(990_000.0), "99%");
        assert_eq!(percent(999_500.0), "99.95%");
        assert_eq!(percent(34_722.0), "3.472%");
    }

    #[test]
    fn columns_align() {
        let mut table = Table::new(&["A", "LONGER"]);
        table.row(["xyz".to_owned(), "1".to_owned()]);
        assert_eq!(table.lines(), ["A    LONGER", "xyz  1"]);
    }
}
