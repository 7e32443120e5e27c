//! What operators do to the group itself: members join, are replaced and removed, leadership is handed over, builds and the cluster's
//! version go up. One change of members at a time, asked for again until it is done, as a person would.

use probity_proto::v1::command::Op;
use probity_proto::v1::*;
use probity_replica::Status;

use crate::member::{Request, Waiter, command};
use crate::world::{Event, World};

/// How often the operator looks.
const LOOK_US: u64 = 500_000;

/// A change of members that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// A host joins, in the place of a member or of nobody (0).
    Join { m: usize, replaces: u64 },
    /// A member goes.
    Remove { m: usize },
}

impl Change {
    pub(crate) fn host(self) -> usize {
        match self {
            Change::Join { m, .. } | Change::Remove { m } => m,
        }
    }
}

impl World {
    /// The leader's view of the group.
    pub(crate) fn group(&self) -> Option<(usize, Status)> {
        let leader = self.leader()?;
        Some((leader, self.members[leader].node.as_ref()?.replica.status()))
    }

    /// The member whose disk may be damaged, found out or not: until it is replaced no other one may lose its disk.
    pub(crate) fn fragile(&self) -> Option<usize> {
        self.members.iter().position(|member| !member.gone && (member.damaged || member.disk.is_rotten()))
    }

    /// A change of members, or of who leads.
    pub(crate) fn change_members(&mut self, turn: u64) {
        let Some((leader, status)) = self.group() else { return };
        let in_group = |m: &usize| status.voters.contains(&self.members[*m].id);
        let voters: Vec<usize> = (0..self.members.len()).filter(in_group).collect();
        let others: Vec<usize> = voters.iter().copied().filter(|m| *m != leader).collect();
        let spare = self.members.iter().position(|member| member.gone);
        if others.is_empty() && spare.is_none() {
            return;
        }
        let other = others.get(turn as usize % others.len().max(1)).copied();
        match (turn / 8 % 4, other, spare) {
            (0, Some(to), _) => {
                let to = self.members[to].id;
                self.counts.add("leadership handed over by an operator");
                self.request(leader, Request::Transfer(to));
            }
            _ if self.change.is_some() => {}
            (1, _, Some(m)) if voters.len() < 5 && self.fragile().is_none() => {
                self.members[m].renew(m);
                self.checks.renewed(m);
                self.begin(Change::Join { m, replaces: 0 });
            }
            (2, Some(m), _) if voters.len() > 3 => self.begin(Change::Remove { m }),
            // A replacement has only those who stay for a quorum.
            (_, Some(m), _) if voters.len() >= 3 => {
                let m = self.fragile().unwrap_or(m);
                if in_group_ids(&status, self.members[m].id) {
                    self.replace(m);
                }
            }
            _ => {}
        }
    }

    /// A member's disk is given up: another member takes its place, on the same host.
    pub(crate) fn replace(&mut self, m: usize) {
        if self.change.is_some_and(|c| c != Change::Remove { m }) && !matches!(self.change, Some(Change::Join { m: joining, .. }) if joining == m) {
            // Its turn comes: see `operator_turn`.
            return;
        }
        let replaces = match self.change {
            // It had not taken the place yet: the next one tries.
            Some(Change::Join { replaces, .. }) if !self.is_known(self.members[m].id) => replaces,
            _ => self.members[m].id,
        };
        if self.members[m].node.is_some() {
            self.end_member(m, false);
        }
        self.members[m].renew(m);
        self.checks.renewed(m);
        self.begin(Change::Join { m, replaces });
    }

    /// Whether the leader knows a member of this id.
    fn is_known(&self, id: u64) -> bool {
        self.group().is_some_and(|(_, status)| in_group_ids(&status, id))
    }

    fn begin(&mut self, change: Change) {
        (self.change, self.settled_at) = (Some(change), None);
        self.counts.add(match change {
            Change::Join { replaces: 0, .. } => "join begun",
            Change::Join { .. } => "replacement begun",
            Change::Remove { .. } => "removal begun",
        });
        if let Change::Join { m, .. } = change {
            self.at(self.now, Event::StartMember { m });
        }
        self.at(self.now, Event::Operator);
    }

    pub(crate) fn operator_turn(&mut self) {
        let Some(change) = self.change else {
            // Somebody whose damage was found while another change was under way.
            if let Some(m) = self.members.iter().position(|member| member.damaged && !member.gone) {
                self.replace(m);
            }
            return;
        };
        if let Some((leader, status)) = self.group() {
            self.pursue(change, leader, &status);
        }
        // Once more after the end, for those who wait.
        self.after(LOOK_US, Event::Operator);
    }

    fn pursue(&mut self, change: Change, leader: usize, status: &Status) {
        let settled = status.voters_outgoing.is_empty();
        match change {
            Change::Join { m, replaces } => {
                let id = self.members[m].id;
                if status.voters.contains(&id) && settled && !status.voters.contains(&replaces) {
                    if self.is_over(leader, status) {
                        self.counts.add(if replaces == 0 { "member joined" } else { "member replaced" });
                        self.change = None;
                    }
                    return;
                }
                self.settled_at = None;
                if in_group_ids(status, id) {
                    self.request(m, Request::Join);
                } else if replaces != 0 && settled && !in_group_ids(status, replaces) {
                    // A removal was faster: the answer says that there is nobody to replace, and so it joins.
                    self.change = Some(Change::Join { m, replaces: 0 });
                } else {
                    let runs = self.members[leader].node.as_ref().map_or(1, |n| n.replica.state().meta().version);
                    if self.members[m].build < runs {
                        // It is told to be upgraded first.
                        self.counts.add("join refused for an older build");
                        self.members[m].build = runs;
                        if self.members[m].node.is_some() {
                            self.crash_member(m, false);
                        }
                    }
                    let member = MemberRecord { replaces, ..self.members[m].record(m) };
                    self.configure(leader, Op::AddMember(AddMember { member: Some(member) }));
                }
            }
            Change::Remove { m } if m == leader => {
                if let Some(to) = status.voters.iter().find(|id| **id != self.members[m].id) {
                    self.request(leader, Request::Transfer(*to));
                }
            }
            Change::Remove { m } => {
                let id = self.members[m].id;
                if in_group_ids(status, id) || !settled {
                    self.settled_at = None;
                    self.configure(leader, Op::RemoveMember(RemoveMember { id }));
                } else if self.is_over(leader, status) {
                    self.counts.add("member removed");
                    self.change = None;
                    self.retire(m);
                }
            }
        }
    }

    /// Whether a quorum knows that a change is over: an entry from after it is committed, as `cluster join`, `replace` and `remove` wait for one.
    fn is_over(&mut self, leader: usize, status: &Status) -> bool {
        if self.settled_at.is_none() {
            self.settled_at = Some(status.last);
            self.request(leader, Request::Propose(command(Op::Tick(Tick {})), Waiter::Operator));
        }
        let over = self.settled_at.is_some_and(|at| status.commit > at);
        if over {
            self.settled_at = None;
        }
        over
    }

    fn configure(&mut self, leader: usize, op: Op) {
        self.changes_asked += 1;
        let command = Command { request_id: format!("operator-{}", self.changes_asked), ..*command(op) };
        self.request(leader, Request::Configure(Box::new(command)));
    }

    /// A member gets another build; or the cluster's version is raised, if all are ready. Once it is, somebody goes back.
    pub(crate) fn upgrade(&mut self, turn: u64) {
        let m = turn as usize % self.members.len();
        let raised = self.members.iter().filter_map(|m| m.node.as_ref()).any(|n| n.replica.state().meta().version >= 2);
        match turn / 8 % 5 {
            0 | 1 if !raised => {
                if let Some((leader, _)) = self.group() {
                    self.counts.add("new cluster version asked for");
                    self.request(leader, Request::Propose(command(Op::SetClusterVersion(SetClusterVersion { version: 2 })), Waiter::Operator));
                }
            }
            step => {
                let build = if step == 4 || raised && step < 3 { 1 } else { 2 };
                let member = &mut self.members[m];
                if member.node.is_some() && member.build != build {
                    member.build = build;
                    self.counts.add(if build == 2 { "member started with a newer build" } else { "member started with an older build" });
                    self.crash_member(m, false);
                }
            }
        }
    }

    /// Members say which build they are, as `keep_own_record` does.
    pub(crate) fn announce(&mut self, leader: usize) {
        let Some(node) = &self.members[leader].node else { return };
        let records = node.replica.state().members.iter();
        let stale = records.filter_map(|record| {
            let m = self.member_of(record.id)?;
            let member = &self.members[m];
            (member.node.is_some() && record.max_command_version != member.build).then(|| member.record(m))
        });
        let stale: Vec<MemberRecord> = stale.collect();
        for member in stale {
            self.request(leader, Request::Propose(command(Op::PutMember(PutMember { member: Some(member) })), Waiter::Operator));
        }
    }
}

fn in_group_ids(status: &Status, id: u64) -> bool {
    [&status.voters, &status.voters_outgoing, &status.learners].iter().any(|ids| ids.contains(&id))
}
