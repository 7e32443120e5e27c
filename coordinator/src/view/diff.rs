//! A line diff of two documents, for people: what `probity diff` shows.

use probity_proto::v1::ResourceKey;
use serde_json::Value;

/// What is compared line by line: so many lines of one with so many of the other, multiplied. A document may have 100,000 lines and their square would
/// fill the memory; where more differs, all of it is shown as gone and come.
const CELLS_MAX: usize = 1_000_000;

/// A line diff of two documents, as pretty JSON.
pub(crate) fn diff(key: &ResourceKey, old: &str, new: &str) -> String {
    let pretty = |text: &str| -> Vec<String> {
        let value: Value = serde_json::from_str(text).unwrap_or_default();
        if text.is_empty() { Vec::new() } else { serde_json::to_string_pretty(&value).unwrap_or_default().lines().map(str::to_owned).collect() }
    };
    let (old, new) = (pretty(old), pretty(new));
    let mut out = format!("--- {}/{} (live)\n+++ {}/{} (files)\n", key.kind, key.name, key.kind, key.name);
    // Most of two documents is the same, at both ends.
    let before = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let (old_rest, new_rest) = (&old[before..], &new[before..]);
    let after = old_rest.iter().rev().zip(new_rest.iter().rev()).take_while(|(a, b)| a == b).count();
    let mut say = |mark: char, lines: &[String]| lines.iter().for_each(|line| out.extend([mark.to_string().as_str(), line, "\n"]));
    say(' ', &old[..before]);
    middle(&old_rest[..old_rest.len() - after], &new_rest[..new_rest.len() - after], &mut say);
    say(' ', &old_rest[old_rest.len() - after..]);
    out
}

/// By their longest common subsequence.
fn middle(old: &[String], new: &[String], say: &mut impl FnMut(char, &[String])) {
    if old.len().saturating_mul(new.len()) > CELLS_MAX {
        say('-', old);
        say('+', new);
        return;
    }
    let mut lcs = vec![vec![0u32; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            lcs[i][j] = if old[i] == new[j] { lcs[i + 1][j + 1] + 1 } else { lcs[i + 1][j].max(lcs[i][j + 1]) };
        }
    }
    let (mut i, mut j) = (0, 0);
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            say(' ', &old[i..=i]);
            (i, j) = (i + 1, j + 1);
        } else if j < new.len() && (i == old.len() || lcs[i][j + 1] > lcs[i + 1][j]) {
            say('+', &new[j..=j]);
            j += 1;
        } else {
            say('-', &old[i..=i]);
            i += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(old: &Value, new: &Value) -> String {
        diff(&ResourceKey { kind: "Probe".to_owned(), name: "p".to_owned(), ..ResourceKey::default() }, &old.to_string(), &new.to_string())
    }

    #[test]
    fn what_differs_is_marked_and_what_does_not_is_there() {
        let said = changed(&serde_json::json!({"a": 1, "b": [1, 2, 3], "c": 1}), &serde_json::json!({"a": 1, "b": [1, 3, 4], "c": 1}));
        let body: Vec<&str> = said.lines().skip(2).collect();
        assert_eq!(body, [" {", "   \"a\": 1,", "   \"b\": [", "     1,", "-    2,", "-    3", "+    3,", "+    4", "   ],", "   \"c\": 1", " }"]);
        assert_eq!(diff(&ResourceKey::default(), "", "1").lines().last(), Some("+1"), "a new one");
    }

    /// Its square would be 10,000,000,000 numbers.
    #[test]
    fn a_long_document_does_not_fill_the_memory() {
        let list = |from: u32| Value::Array((from..from + 100_000).map(Value::from).collect());
        let said = changed(&list(0), &list(200_000));
        assert_eq!((said.lines().filter(|l| l.starts_with('-')).count(), said.lines().filter(|l| l.starts_with('+')).count()), (100_001, 100_001));
        let mut one = list(0);
        one[50_000] = Value::from("other");
        assert_eq!(changed(&list(0), &one).lines().filter(|l| !l.starts_with(' ')).collect::<Vec<_>>().len(), 4, "what is alike at both ends costs nothing");
    }
}
