//! Assertions on an answer.

use hickory_proto::op::{Message, Metadata};
use hickory_proto::rr::{Record, RecordType};
use probity_proto::resources::rcode_name;
use probity_proto::v1::{DnsExpect, DnsSectionExpect, Reason, RecordPatterns};

use super::super::Failure;
use super::super::patterns::Patterns;
use super::answer::{Answer, alias_loop, text};

/// The code as dig prints it, its extension by EDNS included.
pub(super) fn rcode(message: &Message) -> String {
    rcode_name(u16::from(message.metadata.response_code))
}

/// The flags that are set, as dig prints them.
pub(super) fn flags(metadata: &Metadata) -> Vec<&'static str> {
    let all = [
        ("aa", metadata.authoritative),
        ("tc", metadata.truncation),
        ("rd", metadata.recursion_desired),
        ("ra", metadata.recursion_available),
        ("ad", metadata.authentic_data),
        ("cd", metadata.checking_disabled),
    ];
    all.into_iter().filter(|(_, set)| *set).map(|(name, _)| name).collect()
}

pub(super) fn judge(patterns: &Patterns, answer: &Answer, query: &Message, expect: &DnsExpect) -> Result<(), Failure> {
    let message = &answer.message;
    code(&rcode(message), expect)?;
    let set = flags(&message.metadata);
    if let Some(flag) = expect.flags_set.iter().find(|f| !set.contains(&f.as_str())) {
        return Err(Failure::new(Reason::DnsFlagsMismatch, format!("flag {flag} is not set (flags are {})", set.join(" "))));
    }
    if let Some(flag) = expect.flags_clear.iter().find(|f| set.contains(&f.as_str())) {
        return Err(Failure::new(Reason::DnsFlagsMismatch, format!("flag {flag} is set (flags are {})", set.join(" "))));
    }
    if expect.max_bytes > 0 && answer.bytes > expect.max_bytes as usize {
        return Err(Failure::new(Reason::DnsTooLarge, format!("the answer has {} bytes, want at most {}", answer.bytes, expect.max_bytes)));
    }
    if query.queries.first().is_some_and(|q| alias_loop(q.name(), &message.answers)) {
        return Err(Failure::new(Reason::DnsAliasLoop, "the aliases of the answer go in a circle"));
    }
    let answers = DnsSectionExpect { min_count: expect.min_answers, contains: expect.answers.clone(), ..DnsSectionExpect::default() };
    section(patterns, "answer", &message.answers, &answers)?;
    for (name, records, expect) in [
        ("answer", &message.answers, &expect.answer),
        ("authority", &message.authorities, &expect.authority),
        ("additional", &message.additionals, &expect.additional),
    ] {
        expect.as_ref().map_or(Ok(()), |expect| section(patterns, name, records, expect))?;
    }
    Ok(())
}

fn code(found: &str, expect: &DnsExpect) -> Result<(), Failure> {
    if !expect.rcodes.is_empty() {
        if expect.rcodes.iter().any(|r| r == found) {
            return Ok(());
        }
        return Err(Failure::new(Reason::DnsRcodeMismatch, format!("the server answered {found}, want {}", expect.rcodes.join(" or "))));
    }
    let reason = match found {
        "NOERROR" => return Ok(()),
        "NXDOMAIN" => Reason::DnsNxdomain,
        "SERVFAIL" => Reason::DnsServfail,
        "REFUSED" => Reason::DnsRefused,
        _ => Reason::DnsRcodeMismatch,
    };
    Err(Failure::new(reason, format!("the server answered {found}")))
}

/// Names are equal with or without their last dot, in upper and lower case; text is not.
fn same(record: &Record, found: &str, wanted: &str) -> bool {
    if found == wanted {
        return true;
    }
    !matches!(record.record_type(), RecordType::TXT) && found.trim_end_matches('.').eq_ignore_ascii_case(wanted.trim_end_matches('.'))
}

fn section(patterns: &Patterns, name: &str, records: &[Record], expect: &DnsSectionExpect) -> Result<(), Failure> {
    let read = expect.equals_given
        || expect.records.is_some()
        || [&expect.contains, &expect.equals, &expect.matches, &expect.not_matches].iter().any(|wanted| !wanted.is_empty());
    let texts: Vec<String> = if read { records.iter().map(text).collect() } else { Vec::new() };
    let mismatch = |message: String| Err(Failure::new(Reason::DnsAnswerMismatch, message));
    let has = |wanted: &String| records.iter().zip(&texts).any(|(r, found)| same(r, found, wanted));
    let count = records.len();
    let in_section = if name == "answer" { String::new() } else { format!(" in the {name} section") };
    if count < expect.min_count as usize {
        return mismatch(format!("{count} records{in_section}, want at least {}", expect.min_count));
    }
    if expect.count_below > 0 && count >= expect.count_below as usize {
        return mismatch(format!("{count} records{in_section}, want at most {}", expect.count_below - 1));
    }
    if let Some(missing) = expect.contains.iter().chain(&expect.equals).find(|wanted| !has(wanted)) {
        return mismatch(format!("{missing:?} is not among {texts:?}{in_section}"));
    }
    if expect.equals_given
        && let Some((_, extra)) = records.iter().zip(&texts).find(|(r, found)| !expect.equals.iter().any(|wanted| same(r, found, wanted)))
    {
        return mismatch(format!("{extra:?}{in_section} is not among {:?}", expect.equals));
    }
    for pattern in &expect.matches {
        let regex = patterns.regex(pattern)?;
        if !texts.iter().any(|t| regex.is_match(t.as_bytes())) {
            return mismatch(format!("no record{in_section} matches {pattern:?}: {texts:?}"));
        }
    }
    for pattern in &expect.not_matches {
        let regex = patterns.regex(pattern)?;
        if let Some(found) = texts.iter().find(|t| regex.is_match(t.as_bytes())) {
            return mismatch(format!("{found:?}{in_section} matches {pattern:?}"));
        }
    }
    if let Some(whole) = &expect.records
        && let Some(why) = whole_records(patterns, records, &texts, whole)?
    {
        return mismatch(format!("{why}{in_section}"));
    }
    let ttl = |message: String| Err(Failure::new(Reason::DnsTtlMismatch, message));
    match (records.iter().map(|r| r.ttl).min(), records.iter().map(|r| r.ttl).max()) {
        (Some(least), _) if least < expect.ttl_min_s => ttl(format!("a TTL of {least} s{in_section}, want at least {} s", expect.ttl_min_s)),
        (_, Some(most)) if expect.ttl_max_s > 0 && most > expect.ttl_max_s => {
            ttl(format!("a TTL of {most} s{in_section}, want at most {} s", expect.ttl_max_s))
        }
        _ => Ok(()),
    }
}

/// What speaks against records by patterns of the whole of them; nothing when they hold.
fn whole_records(cache: &Patterns, records: &[Record], texts: &[String], patterns: &RecordPatterns) -> Result<Option<String>, Failure> {
    let line = |(r, data): (&Record, &String)| format!("{}\t{}\t{}\t{}\t{data}", r.name, r.ttl, r.dns_class, r.record_type());
    let lines: Vec<String> = records.iter().zip(texts).map(line).collect();
    let compiled = |patterns: &[String]| patterns.iter().map(|p| cache.regex(p).map(|r| (p.clone(), r))).collect::<Result<Vec<_>, _>>();
    for (pattern, regex) in compiled(&patterns.fail_if_matches)? {
        if let Some(found) = lines.iter().find(|l| regex.is_match(l.as_bytes())) {
            return Ok(Some(format!("{found:?} matches {pattern:?}")));
        }
    }
    for (pattern, regex) in compiled(&patterns.fail_if_not_matches)? {
        match lines.iter().find(|l| !regex.is_match(l.as_bytes())) {
            Some(found) => return Ok(Some(format!("{found:?} does not match {pattern:?}"))),
            None if lines.is_empty() => return Ok(Some(format!("there is no record to match {pattern:?}"))),
            None => {}
        }
    }
    let all = compiled(&patterns.fail_if_all_match)?;
    if !all.is_empty() && !lines.is_empty() && lines.iter().all(|l| all.iter().all(|(_, r)| r.is_match(l.as_bytes()))) {
        return Ok(Some(format!("all records match {:?}", patterns.fail_if_all_match)));
    }
    let none = compiled(&patterns.fail_if_none_matches)?;
    if !none.is_empty() && !lines.iter().any(|l| none.iter().any(|(_, r)| r.is_match(l.as_bytes()))) {
        return Ok(Some(format!("no record matches {:?}", patterns.fail_if_none_matches)));
    }
    Ok(None)
}
