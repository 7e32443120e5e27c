#![no_main]
//! Written by fuzz/targets.
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (probity_fuzz::entry("blackbox_query").run)(bytes));
