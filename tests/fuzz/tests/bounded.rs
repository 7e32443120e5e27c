//! Every entry on its seeds, on what once broke it, and on neighbours of its seeds: bounded, and the same in every run.
//!
//! `PROBITY_FUZZ_INPUTS` sets how many (2,000 for each), `PROBITY_FUZZ_SEED` which, `PROBITY_FUZZ_ENTRY` of which entry alone. An input that
//! breaks an entry is printed; put it into `tests/fuzz/regressions/NAME/`. What ends the whole process (a stack that overflows) prints
//! nothing: `PROBITY_FUZZ_KEEP=FILE` writes each input there first.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use probity_fuzz::mutate::{Random, mutated};
use probity_fuzz::{ENTRIES, Entry};

const INPUTS: usize = 2_000;
/// One input takes microseconds; one that takes this long never ends.
const PATIENCE: Duration = Duration::from_secs(60);

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn inputs(entry: &Entry) -> Vec<Vec<u8>> {
    let seeds = (entry.seeds)();
    assert!(!seeds.is_empty(), "{}: it begins from nothing", entry.name);
    let mut all = seeds.clone();
    all.push(Vec::new());
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions").join(entry.name);
    all.extend(std::fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|e| std::fs::read(e.path()).ok()));
    // One stream of numbers for each entry: another entry's inputs do not shift with it.
    let name = entry.name.bytes().fold(0u64, |n, b| n.wrapping_mul(31).wrapping_add(u64::from(b)));
    let mut random = Random::new(name ^ setting("PROBITY_FUZZ_SEED", 1) as u64);
    all.extend((0..setting("PROBITY_FUZZ_INPUTS", INPUTS) * entry.per_mille / 1_000).map(|_| mutated(&seeds, &mut random)));
    all
}

/// On a thread of its own, watched: what neither ends nor panics is a bug too.
fn all_of(entry: &'static Entry) -> Option<String> {
    let (told, tells) = mpsc::channel::<Vec<u8>>();
    let run = std::thread::spawn(move || {
        let keep = std::env::var_os("PROBITY_FUZZ_KEEP");
        for input in inputs(entry) {
            if let Some(file) = &keep {
                std::fs::write(file, &input).expect("the input is kept");
            }
            if told.send(input.clone()).is_err() {
                return;
            }
            (entry.run)(&input);
        }
    });
    let mut last = Vec::new();
    loop {
        match tells.recv_timeout(PATIENCE) {
            Ok(input) => last = input,
            Err(mpsc::RecvTimeoutError::Timeout) => return Some(format!("{}: no end with {}", entry.name, hex(&last))),
            Err(mpsc::RecvTimeoutError::Disconnected) => return run.join().is_err().then(|| format!("{}: a panic with {}", entry.name, hex(&last))),
        }
    }
}

#[test]
fn nothing_from_outside_breaks_a_parser() {
    let only = std::env::var("PROBITY_FUZZ_ENTRY").ok();
    let broken: Vec<String> = ENTRIES.iter().filter(|e| only.as_ref().is_none_or(|name| name == e.name)).filter_map(all_of).collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_entry_has_its_target() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/fuzz_targets");
    let targets: BTreeSet<String> = std::fs::read_dir(dir)
        .expect("fuzz_targets")
        .map(|e| e.expect("an entry").path().file_stem().expect("a name").to_string_lossy().into_owned())
        .collect();
    let entries: BTreeSet<String> = ENTRIES.iter().map(|e| e.name.to_owned()).collect();
    assert_eq!(targets, entries, "fuzz/fuzz_targets has one file for each row of ENTRIES (fuzz/targets makes them)");
}
