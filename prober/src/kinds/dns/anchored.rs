//! The keys of a zone that has a trust anchor (RFC 4035, section 5): those that a signature by the anchor proves.
//!
//! The validator that goes on from there takes a zone's keys when each is an anchor, or when the parent's DS record has one. A zone with a
//! signing key beside the one that is the anchor has neither: its server need not know its parent. So its keys are proven here, and are anchors then.

use hickory_proto::dnssec::rdata::{DNSKEY, DNSSECRData, RRSIG};
use hickory_proto::dnssec::{TrustAnchors, Verifier};
use hickory_proto::rr::{DNSClass, LowerName, Name, RData, Record, RecordType, SerialNumber};

/// The keys of a zone among the answers to a query for them; none, when no anchor signed them. A revoked one (RFC 5011, section 2.1) is among
/// them: the validator needs all of a set, and takes no signature by that one.
pub(super) fn proven<'m>(zone: &Name, answers: &'m [Record], anchors: &TrustAnchors, now_s: u32) -> Vec<&'m DNSKEY> {
    let of_zone = || answers.iter().filter(|r| r.name == *zone && r.dns_class == DNSClass::IN);
    let records: Vec<&Record> = of_zone().filter(|r| r.record_type() == RecordType::DNSKEY).collect();
    let keys: Vec<&DNSKEY> = records.iter().filter_map(|r| if let RData::DNSSEC(DNSSECRData::DNSKEY(key)) = &r.data { Some(key) } else { None }).collect();
    let usable = |key: &&DNSKEY| key.zone_key() && !key.revoke();
    let name = LowerName::from(zone);
    let anchored: Vec<&DNSKEY> = keys.iter().copied().filter(usable).filter(|key| anchors.contains_with_name(key.public_key(), &name)).collect();
    let mut signatures = of_zone().filter_map(|r| if let RData::DNSSEC(DNSSECRData::RRSIG(signature)) = &r.data { Some(signature) } else { None });
    let holds = |signature: &RRSIG| applies(signature, zone, now_s) && anchored.iter().any(|key| signed_by(signature, key, zone, &records));
    if signatures.any(holds) { keys } else { Vec::new() }
}

/// RFC 4035, section 5.3.1
fn applies(signature: &RRSIG, zone: &Name, now_s: u32) -> bool {
    let (input, now) = (signature.input(), SerialNumber::new(now_s));
    input.type_covered == RecordType::DNSKEY
        && input.signer_name == *zone
        && input.num_labels == zone.num_labels()
        && now >= input.sig_inception
        && now <= input.sig_expiration
}

fn signed_by(signature: &RRSIG, key: &DNSKEY, zone: &Name, records: &[&Record]) -> bool {
    let input = signature.input();
    Verifier::algorithm(key) == input.algorithm
        && key.calculate_key_tag().is_ok_and(|tag| tag == input.key_tag)
        && key.verify_rrsig(zone, DNSClass::IN, signature, records.iter().copied()).is_ok()
}
