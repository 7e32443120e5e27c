//! Whether blackbox would call a run a success, and whether a regular expression was what failed it.
//!
//! A status outside of the valid ones does not end a run here: blackbox reads such an answer to its end, and reports its length.

use probity_proto::reason::Class;
use probity_proto::resources::blackbox::{Http, Prober};
use probity_proto::v1::Reason;

use crate::kinds::RunResult;

/// What blackbox would say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) success: bool,
    pub(super) failed_due_to_regex: bool,
    pub(super) why_not: String,
}

pub(super) fn of(prober: &Prober, result: &RunResult) -> Verdict {
    let regex = match prober {
        Prober::Http(http) => {
            if let Err(why_not) = http_holds(http, result) {
                return Verdict { success: false, failed_due_to_regex: false, why_not };
            }
            matches!(result.reason, Reason::BodyMismatch | Reason::HeaderMismatch)
        }
        Prober::Tcp(_) => result.reason == Reason::ExpectMismatch,
        _ => false,
    };
    Verdict { success: result.reason.class() == Class::Good, failed_due_to_regex: regex, why_not: result.message.clone() }
}

fn http_holds(http: &Http, result: &RunResult) -> Result<(), String> {
    let Some(status) = fact(result, "http.response.status_code").and_then(|s| s.parse::<u32>().ok()) else { return Ok(()) };
    let valid = if http.valid_status_codes.is_empty() { (200..300).contains(&status) } else { http.valid_status_codes.contains(&status) };
    if !valid {
        return Err(format!("invalid HTTP response status code {status}"));
    }
    let ssl = fact(result, "url.scheme") == Some("https");
    if http.fail_if_ssl && ssl {
        return Err("the final request was over TLS".to_owned());
    }
    if http.fail_if_not_ssl && !ssl {
        return Err("the final request was not over TLS".to_owned());
    }
    Ok(())
}

pub(super) fn fact<'r>(result: &'r RunResult, name: &str) -> Option<&'r str> {
    result.facts.iter().find(|(n, _)| *n == name).map(|(_, value)| value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_http() {
        let run = |reason, status: &str, scheme: &str| RunResult {
            reason,
            facts: vec![("http.response.status_code", status.to_owned()), ("url.scheme", scheme.to_owned())],
            ..RunResult::default()
        };
        let plain = Http::default();
        let only_404 = Http { valid_status_codes: vec![404], ..Http::default() };
        let no_tls = Http { fail_if_ssl: true, ..Http::default() };
        let tls = Http { fail_if_not_ssl: true, ..Http::default() };
        for (http, result, success, regex) in [
            (&plain, run(Reason::Good, "200", "http"), true, false),
            (&plain, run(Reason::Good, "299", "https"), true, false),
            (&plain, run(Reason::Good, "404", "http"), false, false),
            (&plain, run(Reason::BodyMismatch, "200", "http"), false, true),
            (&plain, run(Reason::HeaderMismatch, "200", "http"), false, true),
            // With a bad status blackbox does not look at the body.
            (&plain, run(Reason::BodyMismatch, "500", "http"), false, false),
            (&plain, RunResult { reason: Reason::ConnectRefused, ..RunResult::default() }, false, false),
            (&only_404, run(Reason::Good, "404", "http"), true, false),
            (&only_404, run(Reason::Good, "200", "http"), false, false),
            (&no_tls, run(Reason::Good, "200", "https"), false, false),
            (&no_tls, run(Reason::Good, "200", "http"), true, false),
            (&tls, run(Reason::Good, "200", "http"), false, false),
        ] {
            let found = of(&Prober::Http(Box::new(http.clone())), &result);
            assert_eq!((found.success, found.failed_due_to_regex), (success, regex), "{result:?}");
        }
    }
}
