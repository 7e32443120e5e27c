//! `tcp:` of a probe.

use super::super::read::{At, Fields, Mistakes};
use super::assertion::{one, regex};
use super::{target_or, tls, undefined_captures};
use crate::v1::*;

/// Steps of one dialogue.
const STEPS_MAX: usize = 100;

pub(super) fn tcp(f: &mut Fields<'_>, mistakes: &mut Mistakes) -> TcpCheck {
    let check = TcpCheck {
        address: target_or(f, "address", mistakes),
        tls: tls::tls(f, mistakes),
        send: f.text("send", mistakes).unwrap_or_default().into_bytes(),
        expect: f.get("expect").and_then(|at| at.parsed(mistakes, regex)).unwrap_or_default(),
        starttls: tls::starttls(f, mistakes),
        dialogue: f.get("dialogue").map(|at| dialogue(&at, mistakes)).unwrap_or_default(),
        lines: f.get("lines").map(|at| lines(&at, mistakes)).unwrap_or_default(),
    };
    if !check.lines.is_empty() && (f.has("send") || f.has("expect") || f.has("dialogue")) {
        mistakes.add(&f.path_of("lines"), f.place(), "lines are given, and something else to say", "keep one of lines, dialogue, or send and expect");
    }
    if !check.dialogue.is_empty() && (f.has("send") || f.has("expect")) {
        mistakes.add(&f.path_of("dialogue"), f.place(), "both a dialogue and send or expect are given", "put them into the dialogue");
    }
    let later = check.dialogue.iter().any(|s| matches!(s.step, Some(tcp_step::Step::StartTls(_)))) || check.lines.iter().any(|s| s.start_tls);
    if !check.starttls.is_empty() && later {
        mistakes.add(&f.path_of("starttls"), f.place(), "both starttls and a startTls step are given", "keep one");
    }
    check
}

/// A conversation line by line: `[{expect, send}]`.
fn lines(at: &At<'_>, mistakes: &mut Mistakes) -> Vec<LineStep> {
    let items = at.items(mistakes);
    if items.len() > STEPS_MAX {
        mistakes.add(&at.path, at.place(), format!("{} steps are given", items.len()), format!("want at most {STEPS_MAX}"));
    }
    let mut steps = Vec::new();
    for item in items {
        let Some(mut f) = item.fields(mistakes) else { continue };
        let expect = f.get("expect").and_then(|at| at.parsed(mistakes, regex)).unwrap_or_default();
        let send = f.text("send", mistakes).unwrap_or_default();
        let start_tls = f.flag("startTls", mistakes).unwrap_or(false);
        if !f.has("expect") && !f.has("send") && !start_tls {
            mistakes.add(&item.path, item.place(), "a step says nothing", "want expect, send, both, or startTls: true");
        }
        f.finish(mistakes);
        steps.push(LineStep { expect, send, start_tls, labels: Vec::new() });
    }
    steps
}

fn dialogue(at: &At<'_>, mistakes: &mut Mistakes) -> Vec<TcpStep> {
    let items = at.items(mistakes);
    if items.len() > STEPS_MAX {
        mistakes.add(&at.path, at.place(), format!("{} steps are given", items.len()), format!("want at most {STEPS_MAX}"));
    }
    let mut captured: Vec<String> = Vec::new();
    let mut steps = Vec::new();
    for item in items {
        let Some(step) = step(&item, mistakes) else { continue };
        match &step {
            tcp_step::Step::Send(bytes) => undefined_captures(&item, &String::from_utf8_lossy(bytes), &captured, mistakes),
            tcp_step::Step::Expect(pattern) => {
                captured.extend(regex::Regex::new(pattern).iter().flat_map(|r| r.capture_names().flatten()).map(str::to_owned));
            }
            tcp_step::Step::StartTls(_) => {}
        }
        steps.push(TcpStep { step: Some(step) });
    }
    steps
}

fn step(at: &At<'_>, mistakes: &mut Mistakes) -> Option<tcp_step::Step> {
    use tcp_step::Step;
    let mut f = at.fields(mistakes)?;
    let mut found = Vec::new();
    found.extend(f.text("send", mistakes).map(|text| Step::Send(text.into_bytes())));
    found.extend(f.get("expect").and_then(|at| at.parsed(mistakes, regex)).map(Step::Expect));
    found.extend(f.flag("startTls", mistakes).filter(|s| *s).map(Step::StartTls));
    f.finish(mistakes);
    one(found, at, "step", "send, expect, startTls: true", mistakes)
}
