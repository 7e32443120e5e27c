//! The records of the coordinators. Who votes is raft's configuration; these commands travel with its changes.

use probity_proto::v1::*;

use crate::apply::refused;
use crate::state::State;
use crate::table::number_key;
use crate::{audit, events};

/// How many ids of removed members are remembered.
const RETIRED_KEPT: usize = 64;

/// The member of that name.
pub fn by_name<'s>(state: &'s State, name: &str) -> Option<&'s MemberRecord> {
    state.members.iter().find(|m| m.name == name)
}

/// What a member says of itself; what the cluster says of it stays.
pub(crate) fn put(state: &mut State, command: &Command, op: &PutMember) -> Result<(), Refused> {
    let Some(member) = &op.member else { return Ok(()) };
    let Some(known) = state.members.get(&number_key(member.id)) else {
        return Err(refused(RefusalCode::NotFound, format!("{:x} is no member", member.id)));
    };
    let replaces = known.replaces;
    let news = (known.cannot_issue != member.cannot_issue).then(|| match member.cannot_issue.as_str() {
        "" => "can issue certificates again".to_owned(),
        why => why.to_owned(),
    });
    let line = |m: &MemberRecord| format!("{} {} {}", m.address, m.http_address, m.software_version);
    let (before, after) = (line(known), line(member));
    if before != after {
        audit::record(state, command, "put", &format!("Member/{}", member.name), &before, &after);
    }
    state.members.put(MemberRecord { replaces, ..member.clone() });
    if let Some(text) = news {
        events::record(state, "member", "", &format!("Member/{}", member.name), text);
    }
    Ok(())
}

pub(crate) fn add(state: &mut State, command: &Command, op: &AddMember) -> Result<(), Refused> {
    let Some(member) = &op.member else { return Err(refused(RefusalCode::Invalid, "no member is named")) };
    if state.meta().retired_members.contains(&member.id) || state.members.get(&number_key(member.id)).is_some() {
        let text = format!("{} ({:x}) is or was a member: a member comes back with an empty data directory only", member.name, member.id);
        return Err(refused(RefusalCode::AlreadyExists, text));
    }
    if member.max_command_version < state.meta().version {
        let (can, runs) = (member.max_command_version, state.meta().version);
        let text = format!("{} understands command version {can}, the cluster runs {runs}: upgrade it first", member.name);
        return Err(refused(RefusalCode::Version, text));
    }
    if member.replaces != 0 && state.members.get(&number_key(member.replaces)).is_none() {
        return Err(refused(RefusalCode::NotFound, format!("{:x}, which is to be replaced, is no member", member.replaces)));
    }
    if let Some(other) = by_name(state, &member.name).filter(|m| m.id != member.replaces) {
        return Err(refused(RefusalCode::AlreadyExists, name_taken(other)));
    }
    state.members.put(member.clone());
    audit::record(state, command, "join", &format!("Member/{}", member.name), "", &member.address);
    events::record(state, "member", "", &format!("Member/{}", member.name), format!("joins as a learner, at {}", member.address));
    Ok(())
}

/// Why a name cannot be used, and the command that mends it.
pub fn name_taken(holder: &MemberRecord) -> String {
    format!(
        "the name {:?} belongs to member {:x} at {} (if that one is lost: `probity cluster replace {} ADDRESS`)",
        holder.name, holder.id, holder.address, holder.name
    )
}

pub(crate) fn promote(state: &mut State, command: &Command, id: u64) -> Result<(), Refused> {
    let Some(member) = state.members.get_mut(&number_key(id)) else {
        return Err(refused(RefusalCode::NotFound, format!("{id:x} is no member")));
    };
    let replaces = std::mem::take(&mut member.replaces);
    let subject = format!("Member/{}", member.name);
    audit::record(state, command, "promote", &subject, "learner", "voter");
    events::record(state, "member", "", &subject, "has caught up, and votes".to_owned());
    if replaces != 0 {
        retire(state, command, replaces);
    }
    Ok(())
}

pub(crate) fn remove(state: &mut State, command: &Command, id: u64) -> Result<(), Refused> {
    if state.members.get(&number_key(id)).is_none() {
        return Err(refused(RefusalCode::NotFound, format!("{id:x} is no member")));
    }
    retire(state, command, id);
    Ok(())
}

fn retire(state: &mut State, command: &Command, id: u64) {
    let Some(gone) = state.members.remove(&number_key(id)) else { return };
    let retired = &mut state.meta_mut().retired_members;
    retired.push(id);
    if retired.len() > RETIRED_KEPT {
        retired.remove(0);
    }
    // A replacement of who is gone replaces nobody.
    for key in state.members.keys() {
        if state.members.get(&key).is_some_and(|m| m.replaces == id)
            && let Some(m) = state.members.get_mut(&key)
        {
            m.replaces = 0;
        }
    }
    audit::record(state, command, "remove", &format!("Member/{}", gone.name), &gone.address, "");
    events::record(state, "member", "", &format!("Member/{}", gone.name), format!("was removed ({id:x})"));
}
