//! Whether bytes are the answer to a query. Pure; what a stranger or a liar sends is told apart from what the server did wrong.

use std::collections::BTreeSet;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::{Name, RData, Record};

/// Bytes of a message before its first question (RFC 1035, section 4.1.1).
const HEADER_BYTES: usize = 12;

/// An answer, and how many bytes it had.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) message: Message,
    pub(super) bytes: usize,
}

/// What bytes are to us.
#[derive(Debug)]
pub(super) enum Read {
    /// An answer to our query.
    Ours(Box<Answer>),
    /// To another query, or no answer: somebody else's, late, or forged.
    Foreign,
    /// It bears our query's identifier, but is no DNS message.
    Malformed(String),
}

/// Reads what came.
pub(super) fn read(bytes: &[u8], query: &Message) -> Read {
    let Some(header) = bytes.get(..HEADER_BYTES) else { return Read::Foreign };
    if u16::from_be_bytes([header[0], header[1]]) != query.metadata.id || header[2] & 0x80 == 0 {
        return Read::Foreign;
    }
    let message = match Message::from_vec(bytes) {
        Ok(message) => message,
        Err(e) => return Read::Malformed(e.to_string()),
    };
    // A server that could not read the question need not repeat it.
    let repeated = message.queries == query.queries || message.queries.is_empty() && message.metadata.response_code != ResponseCode::NoError;
    if repeated && message.metadata.message_type == MessageType::Response {
        Read::Ours(Box::new(Answer { message, bytes: bytes.len() }))
    } else {
        Read::Foreign
    }
}

/// A record's data as dig prints it; of a type that is not known, as in RFC 3597.
pub(super) fn text(record: &Record) -> String {
    match &record.data {
        RData::Unknown { rdata, .. } => {
            let bytes = &rdata.anything;
            let hex: String = bytes.iter().map(|b| format!("{b:02X}")).collect();
            format!("\\# {} {hex}", bytes.len()).trim_end().to_owned()
        }
        data => data.to_string(),
    }
}

/// Whether the aliases that begin at a name come back to one of them.
pub(super) fn alias_loop(start: &Name, answers: &[Record]) -> bool {
    let mut here = start.to_lowercase();
    let mut seen = BTreeSet::new();
    loop {
        if !seen.insert(here.clone()) {
            return true;
        }
        let next = answers.iter().find_map(|r| match &r.data {
            RData::CNAME(target) if r.name.to_lowercase() == here => Some(target.0.to_lowercase()),
            _ => None,
        });
        match next {
            Some(next) => here = next,
            None => return false,
        }
    }
}

/// For tests/fuzz: the bytes as an answer to its seeds' query.
#[cfg(feature = "fuzz")]
pub(super) fn fuzz(bytes: &[u8]) {
    let mut query = Message::query();
    query.metadata.id = 0x1234;
    let Ok(name) = "shop.example.".parse::<Name>() else { return };
    query.add_query(hickory_proto::op::Query::query(name.clone(), hickory_proto::rr::RecordType::A));
    if let Read::Ours(answer) = read(bytes, &query) {
        let _ = alias_loop(&name, &answer.message.answers);
        let sections = [&answer.message.answers, &answer.message.authorities, &answer.message.additionals];
        sections.into_iter().flatten().for_each(|r| drop(text(r)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Query;
    use hickory_proto::rr::RecordType;
    use hickory_proto::rr::rdata::CNAME;
    use proptest::prelude::*;

    fn query() -> Message {
        let mut query = Message::query();
        query.metadata.id = 0x1234;
        query.add_query(Query::query("shop.example.".parse().expect("a name"), RecordType::A));
        query
    }

    fn alias(from: &str, to: &str) -> Record {
        Record::from_rdata(from.parse().expect("a name"), 60, RData::CNAME(CNAME(to.parse().expect("a name"))))
    }

    #[test]
    fn aliases_in_a_circle() {
        let start: Name = "a.".parse().expect("a name");
        assert!(!alias_loop(&start, &[alias("a.", "b."), alias("b.", "c.")]));
        assert!(alias_loop(&start, &[alias("a.", "b."), alias("B.", "A.")]));
        assert!(alias_loop(&start, &[alias("a.", "a.")]));
        assert!(!alias_loop(&start, &[alias("x.", "y."), alias("y.", "x.")]), "not those of this name");
    }

    #[test]
    fn a_compression_pointer_to_itself_is_malformed() {
        let mut bytes = vec![0x12, 0x34, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
        bytes.extend_from_slice(b"\x04shop\x07example\x00\x00\x01\x00\x01");
        let at = bytes.len() as u16;
        bytes.extend_from_slice(&(0xc000 | at).to_be_bytes());
        bytes.extend_from_slice(b"\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\x7f\x00\x00\x01");
        assert!(matches!(read(&bytes, &query()), Read::Malformed(_)));
    }

    proptest! {
        #[test]
        fn nothing_from_outside_panics(tail in proptest::collection::vec(any::<u8>(), 0..256), header in any::<[u8; 10]>()) {
            let bytes = [&[0x12, 0x34][..], &header, &tail].concat();
            if let Read::Ours(answer) = read(&bytes, &query()) {
                let _ = alias_loop(&answer.message.queries.first().map(|q| q.name().clone()).unwrap_or_default(), &answer.message.answers);
                answer.message.answers.iter().for_each(|r| { let _ = text(r); });
            }
        }
    }
}
