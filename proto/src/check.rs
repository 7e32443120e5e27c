//! The name of a check: `namespace/probe`, or `namespace/probe/target key`.

use std::fmt;

/// A check's identity, in parts. The target key may hold slashes; namespace and probe may not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckName<'a> {
    /// Namespace of the probe.
    pub namespace: &'a str,
    /// Name of the probe.
    pub probe: &'a str,
    /// Key of the target; empty for a probe with one unnamed target.
    pub target: &'a str,
}

impl<'a> CheckName<'a> {
    /// Splits a name; `None` when it has no slash.
    pub fn parse(name: &'a str) -> Option<Self> {
        let (namespace, rest) = name.split_once('/')?;
        let (probe, target) = rest.split_once('/').unwrap_or((rest, ""));
        Some(CheckName { namespace, probe, target })
    }
}

impl fmt::Display for CheckName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.probe)?;
        if !self.target.is_empty() {
            write!(f, "/{}", self.target)?;
        }
        Ok(())
    }
}
