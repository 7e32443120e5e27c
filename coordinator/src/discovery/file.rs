//! Targets from files of the coordinator's own directory. Whoever applies a probe names files there, and nothing else of the host.

use std::path::Path;

use probity_proto::discovery::{Found, TARGETS_MAX, parse_groups};
use probity_proto::v1::FileDiscovery;
use tokio::io::AsyncReadExt;

use super::BODY_BYTES_MAX;

/// Files that one probe reads.
const FILES_MAX: usize = 1_000;
/// Entries of the directory that are looked at.
const ENTRIES_MAX: usize = 100_000;

/// Every file must be read whole, or none counts: a half is what a writer leaves that was stopped.
pub(super) async fn ask(dir: Option<&Path>, file: &FileDiscovery) -> Result<Vec<Found>, String> {
    let dir = dir.ok_or("no targetsDir is configured on this coordinator")?;
    let mut found = Vec::new();
    for name in matching(dir, &file.files).await? {
        let path = dir.join(&name);
        let unreadable = |e: std::io::Error| format!("{name} cannot be read: {}", e.kind());
        let handle = tokio::fs::File::open(&path).await.map_err(unreadable)?;
        let mut text = String::new();
        handle.take(BODY_BYTES_MAX as u64 + 1).read_to_string(&mut text).await.map_err(unreadable)?;
        if text.len() > BODY_BYTES_MAX {
            return Err(format!("{name} has more than {} MiB", BODY_BYTES_MAX >> 20));
        }
        let mut groups = parse_groups(&text).map_err(|e| format!("{name}: {e}"))?;
        for target in &mut groups {
            target.insert("__meta_filepath".to_owned(), name.clone());
        }
        found.append(&mut groups);
        if found.len() > TARGETS_MAX {
            return Err(format!("more than {TARGETS_MAX} targets"));
        }
    }
    Ok(found)
}

/// The names that are given, and those that patterns match, each once.
async fn matching(dir: &Path, patterns: &[String]) -> Result<Vec<String>, String> {
    let mut names: std::collections::BTreeSet<String> = patterns.iter().filter(|p| !p.contains('*')).cloned().collect();
    if patterns.iter().any(|p| p.contains('*')) {
        let unreadable = |e: std::io::Error| format!("targetsDir cannot be read: {}", e.kind());
        let mut entries = tokio::fs::read_dir(dir).await.map_err(unreadable)?;
        let mut seen = 0;
        while let Some(entry) = entries.next_entry().await.map_err(unreadable)? {
            seen += 1;
            if seen > ENTRIES_MAX {
                return Err(format!("targetsDir has more than {ENTRIES_MAX} entries"));
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with('.') && patterns.iter().any(|p| matches(p, &name)) {
                names.insert(name);
            }
        }
    }
    match names.len() {
        0 => Err(format!("no file of targetsDir matches {}", patterns.join(", "))),
        n if n > FILES_MAX => Err(format!("{n} files match, at most {FILES_MAX} are read")),
        _ => Ok(names.into_iter().collect()),
    }
}

/// Whether a name is as a pattern says, in which `*` stands for any text. Linear in each part.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("a.json", "a.json", true),
            ("a.json", "a.jsonx", false),
            ("*.json", "eu.json", true),
            ("*.json", ".json", true),
            ("eu-*.yml", "eu-1.yml", true),
            ("eu-*.yml", "us-1.yml", false),
            ("a*b*c.yml", "a1b2c.yml", true),
            ("a*b*c.yml", "a1c2b.yml", false),
            ("ab*b.yml", "ab.yml", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
