//! Tokens and revocations as the log sees them: once, for a time, by their hash.

mod common;

use common::{HOUR, S, World};
use probity_proto::v1::command::Op;
use probity_proto::v1::command_result::Result as Answer;
use probity_proto::v1::*;

fn create(world: &mut World, id: &str, kind: TokenUse, valid_us: i64) -> Answer {
    let token = TokenRecord {
        id: id.to_owned(),
        hash: vec![7; 32],
        r#use: kind as i32,
        name: "e1".to_owned(),
        grants: vec!["prober".to_owned()],
        ..TokenRecord::default()
    };
    world.apply(Op::CreateToken(CreateToken { token: Some(token), valid_us: valid_us as u64 }))
}

fn enrol(world: &mut World, id: &str, hash: u8, key: u8) -> Result<TokenRecord, String> {
    let op = UseToken { id: id.to_owned(), hash: vec![hash; 32], key: vec![key; 32], serial: "5f".to_owned() };
    match world.command(Command { version: 1, origin: "10.0.0.1:5".to_owned(), op: Some(Op::UseToken(op)), ..Command::default() }) {
        Answer::Applied(applied) => Ok(*applied.token.expect("the token")),
        Answer::Refused(refused) => Err(refused.message),
    }
}

fn revoke(world: &mut World, what: &str) -> String {
    revoke_as(world, what, "")
}

fn revoke_as(world: &mut World, what: &str, kind: &str) -> String {
    match world.apply(Op::Revoke(Revoke { what: what.to_owned(), reason: "lost".to_owned(), kind: kind.to_owned() })) {
        Answer::Applied(applied) => applied.name,
        Answer::Refused(refused) => refused.message,
    }
}

#[test]
fn a_token_is_for_one_key_and_for_a_time() {
    let mut world = World::new();
    let Answer::Applied(_) = create(&mut world, "t-1", TokenUse::Enrol, HOUR) else { panic!("made") };
    assert!(enrol(&mut world, "t-1", 8, 1).expect_err("a wrong secret").contains("is not known here, or its secret is wrong"));
    assert!(enrol(&mut world, "t-2", 7, 1).expect_err("never made").contains("is not known here, or its secret is wrong"));
    assert_eq!(enrol(&mut world, "t-1", 7, 1).expect("the first time").name, "e1");
    assert!(enrol(&mut world, "t-1", 7, 1).is_ok(), "the same key after a lost answer");
    let said = enrol(&mut world, "t-1", 7, 2).expect_err("another key");
    assert!(said.contains("token t-1 was used already, from 10.0.0.1:5"), "{said}");
    world.time_us += HOUR;
    assert!(enrol(&mut world, "t-1", 7, 1).expect_err("much later").contains("was used already"));

    // Retries do not keep it alive, and none gets past a revocation.
    create(&mut world, "t-6", TokenUse::Enrol, HOUR);
    for _ in 0..2 {
        assert!(enrol(&mut world, "t-6", 7, 1).is_ok());
        world.time_us += 10 * 60 * S;
    }
    assert!(enrol(&mut world, "t-6", 7, 1).expect_err("20 minutes after the first time").contains("was used already"));
    for what in ["t-7", "e1"] {
        let id = format!("t-{what}");
        create(&mut world, &id, TokenUse::Enrol, HOUR);
        assert!(enrol(&mut world, &id, 7, 1).is_ok());
        world.time_us += S;
        revoke(&mut world, if what == "e1" { what } else { &id });
        assert!(enrol(&mut world, &id, 7, 1).expect_err("revoked since").contains("was revoked"), "{what}");
    }

    create(&mut world, "t-3", TokenUse::Enrol, 60 * S);
    world.time_us += 60 * S;
    assert!(enrol(&mut world, "t-3", 7, 1).expect_err("too late").contains("token t-3 has expired"));
    create(&mut world, "t-4", TokenUse::Read, HOUR);
    assert!(enrol(&mut world, "t-4", 7, 1).expect_err("a reader's").contains("is not known here"));
    create(&mut world, "t-5", TokenUse::Enrol, HOUR);
    assert_eq!(revoke(&mut world, "t-5"), "token");
    assert!(enrol(&mut world, "t-5", 7, 1).expect_err("revoked").contains("token t-5 was revoked"));
    assert!(matches!(create(&mut world, "t-5", TokenUse::Enrol, HOUR), Answer::Refused(_)), "an id is used once");
}

#[test]
fn revocations_are_by_name_or_serial_and_can_be_seen_to_grow() {
    let mut world = World::new();
    let before = world.state.meta().access_revision;
    assert_eq!(revoke(&mut world, "edge-1"), "name");
    assert_eq!(revoke(&mut world, "5f0c5f0c5f0c5f0c5f0c"), "serial");
    assert_eq!(revoke(&mut world, ""), "want a name, a serial number or the id of a token");
    assert_eq!(world.state.meta().access_revision, before + 2);
    // Serial numbers of other authorities may be short, and names may look like long ones.
    assert_eq!(revoke_as(&mut world, "01", "serial"), "serial");
    assert_eq!(revoke_as(&mut world, "deadbeefdeadbeef", "name"), "name");
    let subjects: Vec<&str> = world.state.revocations.iter().map(|r| r.subject.as_str()).collect();
    assert_eq!(subjects, ["name/deadbeefdeadbeef", "name/edge-1", "serial/01", "serial/5f0c5f0c5f0c5f0c5f0c"]);
    let audit: Vec<(String, String)> = world.state.audit.iter().map(|a| (a.action.clone(), a.subject.clone())).collect();
    assert!(audit.contains(&("revoke".to_owned(), "Certificate/edge-1".to_owned())), "{audit:?}");
}

/// A renewal is let in, and before it is in the log the certificate is revoked; or right after it: nothing that comes of it survives.
#[test]
fn a_renewal_does_not_outrun_a_revocation() {
    let renew = |world: &mut World, serial: &str, not_before_s: i64| {
        let shown_issuers = vec!["1551".to_owned()];
        let op = RecordIssue {
            name: "e1".to_owned(),
            serial: "60".to_owned(),
            shown_serial: serial.to_owned(),
            shown_issuers,
            shown_not_before_s: not_before_s,
            ..RecordIssue::default()
        };
        match world.apply(Op::RecordIssue(op)) {
            Answer::Applied(applied) => Ok((applied.owed_since_us, applied.name_revoked_us)),
            Answer::Refused(refused) => Err(refused.message),
        }
    };
    let mut world = World::new();
    let early = world.time_us / S;
    // Owed from the moment of its entry on: a certificate that begins then is of what is revoked later.
    assert_eq!(renew(&mut world, "5f", early), Ok((world.state.now(), 0)));
    world.time_us += 10 * S;
    let revoked_at = world.time_us;
    assert_eq!(revoke(&mut world, "e1"), "name");
    for not_before in [early, revoked_at / S] {
        assert!(renew(&mut world, "5f", not_before).expect_err("revoked since").contains("was revoked"));
    }
    world.time_us += 10 * S;
    assert_eq!(renew(&mut world, "61", revoked_at / S + 1), Ok((world.state.now(), revoked_at)), "enrolled anew after it");
    for serial in ["61", "1551"] {
        revoke_as(&mut world, serial, "serial");
        let now_s = world.time_us / S;
        assert!(renew(&mut world, "61", now_s).expect_err("revoked since").contains("was revoked"), "{serial}");
    }
    let renewals = world.state.audit.iter().filter(|a| a.action == "renew").count();
    assert_eq!(renewals, 2, "what was refused is in no audit as done");
}

#[test]
fn the_audit_says_who_by_what_and_from_where() {
    let mut world = World::new();
    let base_revision = world.state.meta().resource_revision;
    let put = vec![common::probe("a", S)];
    world.command(Command {
        version: 1,
        actor: "me".to_owned(),
        origin: "10.0.0.9:1234".to_owned(),
        credential: "certificate 5f".to_owned(),
        op: Some(Op::ApplyResources(ApplyResources { base_revision, put, ..ApplyResources::default() })),
        ..Command::default()
    });
    let last = world.state.audit.iter().next_back().expect("a record");
    assert_eq!((last.actor.as_str(), last.origin.as_str(), last.credential.as_str()), ("me", "10.0.0.9:1234", "certificate 5f"));
    assert_eq!((last.namespace.as_str(), last.action.as_str(), last.subject.as_str()), ("default", "created", "Probe/a"));
    assert!(last.before_json.is_empty() && !last.after_json.is_empty());

    create(&mut world, "t-1", TokenUse::Enrol, HOUR);
    enrol(&mut world, "t-1", 7, 1).expect("enrolled");
    let last = world.state.audit.iter().next_back().expect("a record");
    assert_eq!((last.actor.as_str(), last.action.as_str(), last.subject.as_str()), ("e1", "enrol", "Certificate/e1"));
    // Neither the secret nor its hash stands in what people read.
    assert!(world.state.audit.iter().all(|a| !a.after_json.contains("0707")));

    let huge = Resource { document_json: "ä".repeat(40_000), ..common::probe("b", S) };
    world.put(vec![huge]);
    let last = world.state.audit.iter().next_back().expect("a record");
    assert!(last.after_json.ends_with("... (80000 bytes)") && last.after_json.len() < 33_000, "{}", last.after_json.len());
}
