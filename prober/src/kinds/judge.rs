//! What holds for every kind once an attempt is over: inversion, and limits on its phases.

use std::time::Duration;

use probity_proto::units::format_duration;
use probity_proto::v1::{PhaseLimit, Reason};
use probity_session::Phase;

use super::Failure;

/// An inverted probe is good when its target cannot be reached. Whatever else went wrong (a name that does not resolve, a certificate
/// that is not trusted) says nothing of that, and stays as it is, or shows that the target was reached.
///
/// Of what is asked by datagrams (`datagrams`) silence is all that an unreachable target gives; of a DNS server every answer (`answered`),
/// whatever its code, shows that it was reached.
pub(super) fn inverted(invert: bool, peer: &str, datagrams: bool, answered: bool, outcome: Result<(), Failure>) -> Result<(), Failure> {
    if !invert {
        return outcome;
    }
    let Err(failure) = outcome else { return Err(Failure::new(Reason::Reachable, format!("{peer} can be reached, and must not"))) };
    match failure.reason {
        Reason::ConnectTimeout | Reason::ConnectRefused | Reason::ConnectUnreachable | Reason::IcmpNoReply | Reason::IcmpUnreachable => Ok(()),
        Reason::ResponseTimeout if datagrams => Ok(()),
        // Short of the target, or on this side of it.
        reason if reason as i32 >= 100 => Err(failure),
        Reason::DnsTimeout | Reason::DnsNxdomain | Reason::DnsServfail | Reason::DnsRefused | Reason::DnsError | Reason::DnsNoAddress if !answered => {
            Err(failure)
        }
        // Whoever stands before the target, or gives out its tokens, was met; not the target.
        Reason::ConnectError | Reason::IcmpTtlExceeded | Reason::ProxyError | Reason::AuthError => Err(failure),
        _ => Err(Failure::new(Reason::Reachable, format!("{peer} can be reached, and must not: {}", failure.message))),
    }
}

/// Phases of one name count together: a redirect connects twice.
pub(super) fn limits(limits: &[PhaseLimit], duration: Duration, phases: &[Phase]) -> Result<(), Failure> {
    for limit in limits {
        let us = match limit.phase.as_str() {
            "total" => duration.as_micros() as u64,
            name => phases.iter().filter(|p| p.name == name).map(|p| p.duration_us).sum(),
        };
        if us > limit.max_us {
            let message = format!("{} took {}, want at most {}", limit.phase, format_duration(us), format_duration(limit.max_us));
            return Err(Failure::new(Reason::TooSlow, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(outcome: Result<(), Failure>) -> Reason {
        outcome.err().map_or(Reason::Good, |f| f.reason)
    }

    #[test]
    fn an_inverted_probe_wants_no_answer() {
        for (found, inverted_to) in [
            (Reason::Good, Reason::Reachable),
            (Reason::ConnectTimeout, Reason::Good),
            (Reason::ProxyError, Reason::ProxyError),
            (Reason::AuthError, Reason::AuthError),
            (Reason::ConnectRefused, Reason::Good),
            (Reason::ConnectUnreachable, Reason::Good),
            (Reason::IcmpNoReply, Reason::Good),
            (Reason::DnsTimeout, Reason::DnsTimeout),
            (Reason::NoPermission, Reason::NoPermission),
            (Reason::StatusMismatch, Reason::Reachable),
            (Reason::TlsUntrusted, Reason::Reachable),
            (Reason::ConnectionReset, Reason::Reachable),
        ] {
            let outcome = || if found == Reason::Good { Ok(()) } else { Err(Failure::new(found, "")) };
            assert_eq!(reason(inverted(true, "h", false, false, outcome())), inverted_to, "{found:?}");
            assert_eq!(reason(inverted(false, "h", true, true, outcome())), found);
        }
    }

    #[test]
    fn of_datagrams_silence_is_unreachable_and_every_answer_is_not() {
        let found = |datagrams, answered, reason| super::tests::reason(inverted(true, "h", datagrams, answered, Err(Failure::new(reason, ""))));
        assert_eq!(found(true, false, Reason::ResponseTimeout), Reason::Good);
        assert_eq!(found(false, false, Reason::ResponseTimeout), Reason::Reachable, "over a connection it was reached");
        assert_eq!(found(true, true, Reason::DnsRefused), Reason::Reachable, "the server itself refuses");
        assert_eq!(found(true, false, Reason::DnsRefused), Reason::DnsRefused, "the resolver does");
        assert_eq!(found(true, false, Reason::ExpectMismatch), Reason::Reachable);
    }

    #[test]
    fn limits_add_up_phases_of_one_name() {
        let phase = |name, duration_us| Phase { name, start_us: 0, duration_us };
        let phases = [phase("connect", 30), phase("tls", 50), phase("connect", 30)];
        let limit = |name: &str, max_us| vec![PhaseLimit { phase: name.to_owned(), max_us }];
        let check = |l: Vec<PhaseLimit>| reason(limits(&l, Duration::from_micros(110), &phases));
        assert_eq!(check(limit("connect", 60)), Reason::Good);
        assert_eq!(check(limit("connect", 59)), Reason::TooSlow);
        assert_eq!(check(limit("total", 109)), Reason::TooSlow);
        assert_eq!(check(limit("transfer", 1)), Reason::Good);
    }
}
