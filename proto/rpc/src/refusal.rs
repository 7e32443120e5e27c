//! Refusals as they travel: a gRPC status with a code of ours beside it, so that a client can act without reading prose.

use tonic::{Code, Status};

const CODE_KEY: &str = "probity-code";
/// Where the leader is: with a refusal, and with the answer to what was handed on to it.
pub const LEADER_KEY: &str = "probity-leader";

/// A refusal that a client acts on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Only the leader answers this; its address, when known.
    #[error("this coordinator is not the leader{}", hint(.0))]
    NotLeader(Option<String>),
    /// No majority can be reached now: nothing was changed.
    #[error("no quorum: a majority of the coordinators cannot be reached")]
    NoQuorum,
    /// This one can write nothing; another member may.
    #[error("the disk of this coordinator is full: it takes no part until there is room, and answers --stale reads")]
    DiskFull,
    /// `probity cluster init` was never run here.
    #[error("the cluster is not initialised (`probity cluster init` forms it)")]
    NotInitialized,
    /// It may or may not have been done; asking again with the same request id is safe.
    #[error("the outcome is unknown: it may have been applied, and no answer came in time; asked again with the same request id it is applied once")]
    Unknown,
    /// This one belongs to no cluster, and may not join one by itself; why.
    #[error("{0}")]
    Stranger(String),
}

fn hint(leader: &Option<String>) -> String {
    match leader {
        Some(address) => format!(" (the leader is {address})"),
        None => " and knows none: there is no quorum now (--stale shows what it knows)".to_owned(),
    }
}

impl Refusal {
    /// As a status.
    pub fn status(&self) -> Status {
        let (code, word) = match self {
            Refusal::NotLeader(_) => (Code::Unavailable, "not_leader"),
            Refusal::NoQuorum => (Code::Unavailable, "no_quorum"),
            Refusal::DiskFull => (Code::Unavailable, "disk_full"),
            Refusal::NotInitialized => (Code::FailedPrecondition, "not_initialized"),
            Refusal::Unknown => (Code::DeadlineExceeded, "unknown"),
            Refusal::Stranger(_) => (Code::FailedPrecondition, "stranger"),
        };
        let mut status = Status::new(code, self.to_string());
        status.metadata_mut().insert(CODE_KEY, tonic::metadata::MetadataValue::from_static(word));
        if let Refusal::NotLeader(Some(address)) = self
            && let Ok(value) = address.parse()
        {
            status.metadata_mut().insert(LEADER_KEY, value);
        }
        status
    }

    /// Back from a status; `None` when it is another error.
    pub fn of(status: &Status) -> Option<Refusal> {
        match status.metadata().get(CODE_KEY)?.to_str().ok()? {
            "not_leader" => {
                let leader = status.metadata().get(LEADER_KEY).and_then(|v| v.to_str().ok()).map(str::to_owned);
                Some(Refusal::NotLeader(leader))
            }
            "no_quorum" => Some(Refusal::NoQuorum),
            "disk_full" => Some(Refusal::DiskFull),
            "not_initialized" => Some(Refusal::NotInitialized),
            "unknown" => Some(Refusal::Unknown),
            "stranger" => Some(Refusal::Stranger(status.message().to_owned())),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_survives_the_wire() {
        for refusal in [
            Refusal::NotLeader(None),
            Refusal::NotLeader(Some("127.0.0.1:7601".to_owned())),
            Refusal::NoQuorum,
            Refusal::DiskFull,
            Refusal::NotInitialized,
            Refusal::Unknown,
            Refusal::Stranger("the name \"c3\" is taken".to_owned()),
        ] {
            assert_eq!(Refusal::of(&refusal.status()), Some(refusal));
        }
        assert_eq!(Refusal::of(&Status::internal("other")), None);
    }
}
