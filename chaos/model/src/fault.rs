//! Every kind of fault as data: its parameters, their types, and the strongest undo that it has.

use std::collections::BTreeMap;

use probity_proto::units;
use probity_proto::v1::{FaultSpec, UndoClass};

/// How a parameter's text is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParamKind {
    /// `300ms`
    Duration,
    /// Bytes per second: `64KiB`
    Rate,
    /// The name of a fault proxy.
    Proxy,
}

/// A kind of fault.
#[derive(Debug, Clone, Copy)]
pub struct FaultKind {
    /// `proxy.reset`
    pub name: &'static str,
    /// Name, type, default (none: it must be given).
    pub params: &'static [(&'static str, ParamKind, Option<&'static str>)],
    /// How surely it ends.
    pub undo: UndoClass,
    /// What it does, for people.
    pub text: &'static str,
}

const PROXY: (&str, ParamKind, Option<&str>) = ("proxy", ParamKind::Proxy, None);

/// All kinds of this version.
pub const KINDS: &[FaultKind] = &[
    FaultKind {
        name: "proxy.latency",
        params: &[PROXY, ("delay", ParamKind::Duration, None), ("jitter", ParamKind::Duration, Some("0s"))],
        undo: UndoClass::FdLifetime,
        text: "answers through the proxy come later, by delay plus or minus jitter, from the arrival of each piece",
    },
    FaultKind {
        name: "proxy.cut",
        params: &[PROXY],
        undo: UndoClass::FdLifetime,
        text: "connections through the proxy are closed, new ones at once after they were accepted",
    },
    FaultKind {
        name: "proxy.reset",
        params: &[PROXY],
        undo: UndoClass::FdLifetime,
        text: "connections through the proxy are reset (RST), new ones at once after they were accepted",
    },
    FaultKind {
        name: "proxy.blackhole",
        params: &[PROXY],
        undo: UndoClass::FdLifetime,
        text: "connections through the proxy are accepted, and nothing passes",
    },
];

/// The kind of that name.
pub fn kind(name: &str) -> Option<&'static FaultKind> {
    KINDS.iter().find(|k| k.name == name)
}

/// The word for an undo class, as in resources.
pub fn undo_word(class: UndoClass) -> &'static str {
    match class {
        UndoClass::KernelLease => "kernel-lease",
        UndoClass::FdLifetime => "descriptor-lifetime",
        UndoClass::Guardian => "guardian",
        UndoClass::JournalOnly => "journal-only",
        UndoClass::Irreversible => "irreversible",
        UndoClass::Unspecified => "unknown",
    }
}

/// A fault, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// `proxy.latency`
    Latency {
        /// Name of the proxy.
        proxy: String,
        /// Added to each piece of the answer.
        delay_us: u64,
        /// At most this much more or less.
        jitter_us: u64,
    },
    /// `proxy.cut`
    Cut {
        /// Name of the proxy.
        proxy: String,
    },
    /// `proxy.reset`
    Reset {
        /// Name of the proxy.
        proxy: String,
    },
    /// `proxy.blackhole`
    Blackhole {
        /// Name of the proxy.
        proxy: String,
    },
}

/// A fault specification that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    /// No such kind.
    #[error("unknown fault {0:?} (known: {known})", known = names())]
    Unknown(String),
    /// A parameter is missing, unknown or malformed: (its name, what is wrong).
    #[error("{0}: {1}")]
    Parameter(String, String),
}

fn names() -> String {
    KINDS.iter().map(|k| k.name).collect::<Vec<_>>().join(", ")
}

impl Fault {
    /// Reads a specification.
    pub fn parse(spec: &FaultSpec) -> Result<Fault, FaultError> {
        let kind = kind(&spec.kind).ok_or_else(|| FaultError::Unknown(spec.kind.clone()))?;
        if let Some(error) = check_params(kind, &spec.params, |_| false).into_iter().next() {
            return Err(FaultError::Parameter(error.0, error.1));
        }
        let text = |name: &str| {
            let default = kind.params.iter().find(|(n, ..)| *n == name).and_then(|(.., d)| *d).unwrap_or_default();
            spec.params.get(name).map_or(default, String::as_str).to_owned()
        };
        let duration = |name: &str| units::parse_duration(&text(name)).unwrap_or(0);
        let proxy = text("proxy");
        Ok(match kind.name {
            "proxy.latency" => Fault::Latency { proxy, delay_us: duration("delay"), jitter_us: duration("jitter") },
            "proxy.cut" => Fault::Cut { proxy },
            "proxy.reset" => Fault::Reset { proxy },
            _ => Fault::Blackhole { proxy },
        })
    }

    /// The proxy that it disturbs.
    pub fn proxy(&self) -> &str {
        match self {
            Fault::Latency { proxy, .. } | Fault::Cut { proxy } | Fault::Reset { proxy } | Fault::Blackhole { proxy } => proxy,
        }
    }
}

/// What is wrong with the parameters of a kind: (name, message). Values that `open` says are not known yet are left alone.
pub(crate) fn check_params(kind: &FaultKind, params: &BTreeMap<String, String>, open: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    let mut wrong = Vec::new();
    for name in params.keys().filter(|name| !kind.params.iter().any(|(known, ..)| known == name)) {
        let known: Vec<&str> = kind.params.iter().map(|(n, ..)| *n).collect();
        wrong.push((name.clone(), format!("{} has no parameter {name:?} (it has: {})", kind.name, known.join(", "))));
    }
    for (name, ty, default) in kind.params {
        match params.get(*name) {
            None if default.is_none() => wrong.push(((*name).to_owned(), format!("{} needs the parameter {name:?}", kind.name))),
            Some(value) if !open(value) => {
                let result = match ty {
                    ParamKind::Duration => units::parse_duration(value).map(|_| ()),
                    ParamKind::Rate => units::parse_bytes(value).map(|_| ()),
                    ParamKind::Proxy if value.is_empty() => Err("the proxy's name is empty".to_owned()),
                    ParamKind::Proxy => Ok(()),
                };
                if let Err(message) = result {
                    wrong.push(((*name).to_owned(), message));
                }
            }
            _ => {}
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(kind: &str, params: &[(&str, &str)]) -> FaultSpec {
        FaultSpec { kind: kind.to_owned(), params: params.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(), undo: 0 }
    }

    #[test]
    fn faults_parse_or_say_why() {
        let latency = Fault::parse(&spec("proxy.latency", &[("proxy", "p"), ("delay", "300ms")]));
        assert_eq!(latency, Ok(Fault::Latency { proxy: "p".to_owned(), delay_us: 300_000, jitter_us: 0 }));
        type Case = (&'static str, &'static [(&'static str, &'static str)], &'static str);
        let cases: &[Case] = &[
            ("proxy.rest", &[], "unknown fault \"proxy.rest\" (known: proxy.latency, proxy.cut, proxy.reset, proxy.blackhole)"),
            ("proxy.reset", &[], "proxy: proxy.reset needs the parameter \"proxy\""),
            ("proxy.latency", &[("proxy", "p"), ("delay", "fast")], "delay: \"fast\" is no duration (want for example 300ms, 30s, 1h30m, 30d)"),
            ("proxy.reset", &[("proxy", "p"), ("delay", "1s")], "delay: proxy.reset has no parameter \"delay\" (it has: proxy)"),
        ];
        for (kind, params, message) in cases {
            assert_eq!(Fault::parse(&spec(kind, params)).expect_err(kind).to_string(), *message);
        }
    }
}
