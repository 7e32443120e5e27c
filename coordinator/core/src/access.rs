//! Who gets in (rule R13): tokens by their hashes, and revocations. Nothing here checks a signature: that is done before a command is proposed.

use probity_proto::v1::*;

use crate::apply::refused;
use crate::audit;
use crate::state::State;

/// How many tokens are kept at most: one for each host that is being added, and the readers'.
pub const TOKENS_KEPT: usize = 10_000;
/// How many revocations are kept at most. They are never forgotten by themselves.
pub const REVOCATIONS_KEPT: usize = 10_000;
/// A token that nobody can use any more is remembered for this long, to say why it is refused.
const REMEMBERED_US: i64 = 30 * 86_400 * 1_000_000;
/// The key that a token was used for may ask again for this long: the first answer may have been lost.
const RETRY_US: i64 = 15 * 60 * 1_000_000;

/// Takes a new token.
pub(crate) fn create(state: &mut State, command: &Command, op: &CreateToken) -> Result<TokenRecord, Refused> {
    let Some(asked) = &op.token else { return Err(refused(RefusalCode::Invalid, "no token is given")) };
    let now = state.now();
    let token = TokenRecord {
        created_at_us: now,
        created_by: command.actor.clone(),
        expires_at_us: now.saturating_add(i64::try_from(op.valid_us).unwrap_or(i64::MAX)),
        used_at_us: 0,
        used_from: String::new(),
        used_key: Vec::new(),
        revoked_at_us: 0,
        ..asked.clone()
    };
    if token.id.is_empty() || token.hash.len() != 32 || state.tokens.get(&token.id).is_some() {
        return Err(refused(RefusalCode::Invalid, "a token needs a fresh id and a hash"));
    }
    forget(state);
    if state.tokens.len() >= TOKENS_KEPT {
        return Err(refused(RefusalCode::Invalid, format!("there are {TOKENS_KEPT} tokens already; revoke some (`probity ca revoke ID`)")));
    }
    let kind = if token.r#use() == TokenUse::Read { "read" } else { "enrol" };
    let after = format!("{kind} as {} ({}) until {}", token.name, token.grants.join(", "), token.expires_at_us);
    audit::record(state, command, "create", &format!("Token/{}", token.id), "", &after);
    state.tokens.put(token.clone());
    state.meta_mut().access_revision += 1;
    Ok(token)
}

/// Tokens that have been of no use for long.
fn forget(state: &mut State) {
    let now = state.now();
    let old = |t: &&TokenRecord| now.saturating_sub(t.expires_at_us.max(t.used_at_us)) > REMEMBERED_US;
    let gone: Vec<String> = state.tokens.iter().filter(old).map(|t| t.id.clone()).collect();
    for id in gone {
        state.tokens.remove(&id);
    }
}

/// Why a token is of no use now, if it is of none.
pub fn unusable(token: &TokenRecord, now: i64) -> Option<String> {
    if token.revoked_at_us != 0 {
        Some(format!("token {} was revoked", token.id))
    } else if now >= token.expires_at_us {
        Some(format!("token {} has expired", token.id))
    } else {
        None
    }
}

/// Whether a join token could be used so now. Asked before anything is proposed too: whoever guesses must not fill the log.
pub fn check_use(state: &State, op: &UseToken, now: i64) -> Result<TokenRecord, Refused> {
    // The same words for a wrong secret: who guesses ids learns nothing.
    let known = state.tokens.get(&op.id).filter(|t| t.hash == op.hash && t.r#use() == TokenUse::Enrol);
    let Some(token) = known else {
        return Err(refused(RefusalCode::NotFound, format!("token {:?} is not known here, or its secret is wrong (`probity ca token` makes one)", op.id)));
    };
    let again = token.used_at_us != 0 && token.used_key == op.key && now <= token.used_at_us + RETRY_US;
    if token.used_at_us != 0 && !again {
        let message = format!("token {} was used already, from {} (a token is valid once; `probity ca token` makes another)", token.id, token.used_from);
        return Err(refused(RefusalCode::Invalid, message));
    }
    // A retry may come after the token's time, never after a revocation.
    if let Some(why) = unusable(token, if again { token.used_at_us } else { now }) {
        return Err(refused(RefusalCode::Invalid, format!("{why} (`probity ca token` makes another)")));
    }
    if again && state.revocations.get(&format!("name/{}", token.name)).is_some_and(|r| r.at_us >= token.used_at_us) {
        return Err(refused(
            RefusalCode::Invalid,
            format!("{:?} was revoked since token {} was used (`probity ca token` makes another)", token.name, token.id),
        ));
    }
    Ok(token.clone())
}

/// Burns a join token for one key.
pub(crate) fn use_token(state: &mut State, command: &Command, op: &UseToken) -> Result<TokenRecord, Refused> {
    let now = state.now();
    let token = check_use(state, op, now)?;
    // The time of its first use stays: a retry that set it anew could go on for ever.
    let used_at_us = if token.used_at_us == 0 { now } else { token.used_at_us };
    let used = TokenRecord { used_at_us, used_from: command.origin.clone(), used_key: op.key.clone(), ..token };
    let after = format!("certificate {} ({})", op.serial, used.grants.join(", "));
    let by = Command { actor: used.name.clone(), ..command.clone() };
    audit::record(state, &by, "enrol", &format!("Certificate/{}", used.name), "", &after);
    state.tokens.put(used.clone());
    state.meta_mut().access_revision += 1;
    Ok(used)
}

/// Whether a word looks like a serial number: few names are that long and hexadecimal. Who means something else says so.
fn is_serial(what: &str) -> bool {
    what.len() >= 16 && what.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Revokes a token by its id, a certificate by its serial number, or whatever was issued to a name; answers which it was.
pub(crate) fn revoke(state: &mut State, command: &Command, op: &Revoke) -> Result<&'static str, Refused> {
    let now = state.now();
    if op.what.is_empty() || op.what.len() > 253 {
        return Err(refused(RefusalCode::Invalid, "want a name, a serial number or the id of a token"));
    }
    if op.kind.is_empty()
        && let Some(token) = state.tokens.get_mut(&op.what)
    {
        token.revoked_at_us = now;
        state.meta_mut().access_revision += 1;
        audit::record(state, command, "revoke", &format!("Token/{}", op.what), "", &op.reason);
        return Ok("token");
    }
    let kind = match op.kind.as_str() {
        "serial" => "serial",
        "name" => "name",
        _ if is_serial(&op.what) => "serial",
        _ => "name",
    };
    let subject = format!("{kind}/{}", op.what);
    let before = state.revocations.get(&subject).map(|r| r.at_us.to_string()).unwrap_or_default();
    if before.is_empty() && state.revocations.len() >= REVOCATIONS_KEPT {
        return Err(refused(RefusalCode::Invalid, format!("there are {REVOCATIONS_KEPT} revocations already: time for a new root")));
    }
    state.revocations.put(RevocationRecord { subject, at_us: now, actor: command.actor.clone(), reason: op.reason.clone() });
    state.meta_mut().access_revision += 1;
    audit::record(state, command, "revoke", &format!("Certificate/{}", op.what), &before, &op.reason);
    Ok(kind)
}

/// When a name was revoked last: its certificates from before it, or from that second, are refused. 0 = never.
pub(crate) fn name_revoked_us(state: &State, name: &str) -> i64 {
    state.revocations.get(&format!("name/{name}")).map_or(0, |r| r.at_us)
}

/// A renewal, by whoever shows a certificate. It was let in before; in between it may have been revoked, and the log has the last word.
pub(crate) fn record_issue(state: &mut State, command: &Command, op: &RecordIssue) -> Result<(), Refused> {
    let by_name = state.revocations.get(&format!("name/{}", op.name)).is_some_and(|r| op.shown_not_before_s <= r.at_us / 1_000_000);
    let by_serial = |serial: &String| state.revocations.get(&format!("serial/{serial}")).is_some();
    if by_name || by_serial(&op.shown_serial) || op.shown_issuers.iter().any(by_serial) {
        return Err(refused(RefusalCode::Invalid, format!("the certificate of {:?} ({}) was revoked", op.name, op.shown_serial)));
    }
    audit::record(state, command, "renew", &format!("Certificate/{}", op.name), &op.before, &op.after);
    Ok(())
}
