//! Reasons as classes and labels. The closed set itself is [`Reason`] in `schema/report.proto`.

use crate::v1::Reason;

/// How a slot counts: rule R10 keeps missing apart from bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// The run met what the probe expects.
    Good,
    /// The run found the target wanting.
    Bad,
    /// There was no run that says anything of the target.
    Missed,
}

impl Reason {
    /// Good, bad or missed, by the number's range.
    pub fn class(self) -> Class {
        match self as i32 {
            0 => Class::Good,
            1..=99 => Class::Bad,
            _ => Class::Missed,
        }
    }

    /// The label for people and metrics: `connect_refused`.
    pub fn label(self) -> String {
        let name = self.as_str_name();
        name.strip_prefix("REASON_").unwrap_or(name).to_ascii_lowercase()
    }
}

/// The reason of that number; one that this version does not know is kept apart from good ones.
pub fn from_number(number: i32) -> Reason {
    Reason::try_from(number).unwrap_or(match number {
        1..=99 => Reason::ProtocolError,
        _ => Reason::Unsupported,
    })
}
