//! `dns:` of a probe.

use super::super::read::{Fields, Mistakes};
use super::target_or;
use crate::v1::*;

pub(super) fn dns(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> DnsCheck {
    let types = ["A", "AAAA", "CAA", "CNAME", "MX", "NS", "PTR", "SOA", "SRV", "TXT"];
    let record_type = f.get("type").and_then(|at| {
        at.parsed(mistakes, |t| if types.contains(&t) { Ok(t.to_owned()) } else { Err(format!("{t:?} is no record type (want {})", types.join(", "))) })
    });
    let tcp = f.choice("transport", &[("udp", false), ("tcp", true)], mistakes).unwrap_or(false);
    let expect = f.get("expect").and_then(|at| at.fields(mistakes)).map(|mut e| {
        let mut list = |key, mistakes: &mut Mistakes| -> Vec<String> {
            e.get(key).map(|at| at.items(mistakes)).unwrap_or_default().iter().filter_map(|at| at.text(mistakes)).collect()
        };
        let expect = DnsExpect { rcodes: list("rcodes", mistakes), answers: list("answers", mistakes), min_answers: 0 };
        let min_answers = e.int("minAnswers", 0..=1_000, mistakes).unwrap_or(0) as u32;
        e.finish(mistakes);
        DnsExpect { min_answers, ..expect }
    });
    DnsCheck {
        server: target_or(f, "server", mistakes),
        name: f.need_text("name", mistakes),
        record_type: record_type.unwrap_or_else(|| "A".to_owned()),
        tcp,
        expect,
    }
}
