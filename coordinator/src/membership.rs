//! Members join, leave and hand over: the operator's side, and what members tell each other about it.

use std::collections::BTreeMap;
use std::time::Duration;

use probity_core::{State, members, number_key};
use probity_proto::v1::command::Op;
use probity_proto::v1::*;
use probity_replica::{Progress, Role};
use probity_rpc::client::channel;
use probity_rpc::refusal::Refusal;
use probity_rpc::tls::TlsFiles;
use probity_rpc::v1::peer_client::PeerClient;
use probity_rpc::v1::*;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

use crate::gate::Admitted;
use crate::issue;
use crate::node::{Live, Node, ProposeError};
use crate::operator::{OperatorService, status};
use crate::peer::identify;

/// How often the leader looks after its members.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a call to another member may take.
const CALL: Duration = Duration::from_secs(3);
/// A leader that was asked to hand over waits this long for the new one.
const HANDED_OVER: Duration = Duration::from_secs(3);

/// What a member says of itself is looked at again after this.
const TOLD_AGAIN: Duration = Duration::from_secs(5);

/// A change of voters is over within this, while a quorum answers.
const SETTLED: Duration = Duration::from_secs(10);

/// Parts of a backup that wait for its reader.
const BACKUP_PARTS: usize = 2;

/// The group as the leader sees it.
struct Group {
    own: u64,
    cluster_id: String,
    cluster_name: String,
    version: u32,
    voters: Vec<u64>,
    learners: Vec<u64>,
    last: u64,
    progress: BTreeMap<u64, Progress>,
    members: Vec<MemberRecord>,
}

impl Group {
    /// As its leader knows it: whoever has just ceased to lead knows nothing of who answers.
    async fn of(node: &Node) -> Result<Group, ProposeError> {
        let look = |state: &State, live: &Live<'_>| Group {
            own: live.status.identity.id,
            cluster_id: live.status.identity.cluster_id.clone(),
            cluster_name: state.meta().cluster_name.clone(),
            version: state.meta().version,
            voters: live.status.voters.clone(),
            learners: live.status.learners.clone(),
            last: live.status.last,
            progress: live.status.progress.clone(),
            members: state.members.iter().cloned().collect(),
        };
        let group = node.query(move |state, live| (live.status.role == Role::Leader).then(|| look(state, live))).await?;
        group.ok_or(ProposeError::Refusal(Refusal::NotLeader(None)))
    }

    /// By name, or by hexadecimal id.
    fn find(&self, wanted: &str) -> Result<&MemberRecord, Status> {
        let id = u64::from_str_radix(wanted, 16).ok();
        self.members.iter().find(|m| m.name == wanted).or_else(|| self.members.iter().find(|m| Some(m.id) == id)).ok_or_else(|| {
            let names: Vec<&str> = self.members.iter().map(|m| m.name.as_str()).collect();
            Status::not_found(format!("no member {wanted:?} (there are {})", names.join(", ")))
        })
    }

    fn answers(&self, id: u64) -> bool {
        self.progress.get(&id).is_some_and(|p| p.recent)
    }

    /// The other voter that is furthest.
    fn successor(&self) -> Option<u64> {
        let others = self.voters.iter().copied().filter(|id| *id != self.own && self.answers(*id));
        others.max_by_key(|id| self.progress.get(id).map(|p| (p.matched.min(self.last), *id)))
    }
}

/// What a number of voters means.
fn notes(voters: usize) -> Vec<String> {
    match voters {
        1 => vec!["1 voter: it must not be lost".to_owned()],
        n if n.is_multiple_of(2) => vec![format!("{n} voters bear the loss of {}, as {} do: add or remove one (want 1, 3 or 5)", (n - 1) / 2, n - 1)],
        n if n > 5 => vec![format!("{n} voters: every change waits for {}; want 1, 3 or 5", n / 2 + 1)],
        _ => Vec::new(),
    }
}

fn no(message: String) -> Status {
    Status::failed_precondition(message)
}

impl OperatorService {
    /// `cluster join` and `cluster replace`.
    pub(crate) async fn add(&self, request: Request<JoinMemberRequest>) -> Result<MembershipReply, Status> {
        let admitted = Admitted::of(&request)?;
        self.must_lead_or_hint().await?;
        let asked = request.get_ref().clone();
        let found = identify(&asked.address, self.config.tls.as_ref(), None)
            .await
            .map_err(|e| no(format!("{e} (start it first: `probity coordinator --config FILE`, with an empty data directory)")))?;
        let group = Group::of(&self.node).await.map_err(status)?;
        let replaced = if asked.replaces.is_empty() { None } else { Some(group.find(&asked.replaces)?.clone()) };
        let added = found.id;
        let record = MemberRecord {
            id: found.id,
            name: found.name.clone(),
            address: found.address.clone(),
            http_address: found.http_address.clone(),
            software_version: found.software_version.clone(),
            max_command_version: found.max_command_version,
            replaces: replaced.as_ref().map_or(0, |m| m.id),
            ..MemberRecord::default()
        };
        let is_new = !group.voters.contains(&found.id) && !group.learners.contains(&found.id);
        if is_new {
            check_newcomer(&group, &found, replaced.as_ref())?;
            let command = Self::command(&admitted, &asked.request_id, Op::AddMember(AddMember { member: Some(record.clone()) }));
            self.node.configure(command).await.map_err(status)?;
        } else if replaced.as_ref().is_some_and(|m| m.id == found.id) {
            return Err(no(format!("{} answers at {} itself: there is nobody to replace it", found.name, asked.address)));
        }
        // Whoever asks again when it votes is answered when a quorum knows it: from then on another one may be lost.
        let votes = move |live: &crate::node::Live<'_>| live.status.voters.contains(&added);
        if group.voters.contains(&added) && !self.settled(votes).await {
            return Err(Status::unavailable("a quorum does not know yet that it votes: ask again"));
        }
        let counted = replaced.is_some_and(|m| group.voters.contains(&m.id)) || group.voters.contains(&found.id);
        let voters = group.voters.len() + usize::from(!counted);
        Ok(MembershipReply { member: Some(record), voters: voters as u32, notes: notes(voters) })
    }

    /// `cluster remove`.
    pub(crate) async fn remove(&self, request: Request<RemoveMemberRequest>) -> Result<MembershipReply, Status> {
        let admitted = Admitted::of(&request)?;
        self.must_lead_or_hint().await?;
        let asked = request.get_ref().clone();
        let group = Group::of(&self.node).await.map_err(status)?;
        let member = match group.find(&asked.member) {
            Ok(member) => member.clone(),
            // Perhaps the answer to the first try was lost.
            Err(unknown) => match self.answered(&asked.request_id).await? {
                true => MemberRecord { name: asked.member.clone(), ..MemberRecord::default() },
                false => return Err(unknown),
            },
        };
        let left: Vec<u64> = group.voters.iter().copied().filter(|id| *id != member.id).collect();
        if left.is_empty() {
            return Err(no(format!("{} is the only voter: without it there is no cluster", member.name)));
        }
        let answering = left.iter().filter(|id| group.answers(**id)).count();
        if group.voters.contains(&member.id) && answering * 2 <= left.len() {
            return Err(no(format!(
                "of the {} voters that are left only {answering} answer: that is no quorum (bring one back, or replace it first)",
                left.len()
            )));
        }
        if member.id == group.own {
            // Another one leads, and is asked again.
            let Some(to) = group.successor() else { return Err(no(format!("{} leads, and no other voter can take over", member.name))) };
            self.node.transfer(to).await.map_err(status)?;
            return Err(Refusal::NotLeader(None).status());
        }
        if member.id != 0 {
            let command = Self::command(&admitted, &asked.request_id, Op::RemoveMember(RemoveMember { id: member.id }));
            self.node.configure(command).await.map_err(status)?;
        }
        let mut notes = notes(left.len());
        let id = member.id;
        if !self.settled(move |live| !live.status.voters.contains(&id)).await {
            notes.push(format!("the others do not all know it yet: leave {} running until `probity cluster status` shows a quorum without it", member.name));
        }
        Ok(MembershipReply { member: Some(member), voters: left.len() as u32, notes })
    }

    /// Waits until a quorum knows that a change is over, and the voters `are` as it wanted them: from then on the member that left may be switched off,
    /// and another one lost. They know it when an entry is committed that was proposed after the end of the change, since that came with the word of it.
    async fn settled(&self, are: impl Fn(&crate::node::Live<'_>) -> bool + Copy + Send + 'static) -> bool {
        let over = move |_: &State, live: &crate::node::Live<'_>| live.status.voters_outgoing.is_empty() && are(live);
        let known = async {
            while !self.node.query(over).await.is_ok_and(|over| over) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            self.node.propose(Node::command(Op::Tick(Tick {}))).await.is_ok()
        };
        tokio::time::timeout(SETTLED, known).await.is_ok_and(|known| known)
    }

    /// `cluster backup`: from the leader, so that everything acknowledged before is in it, unless a stale one is asked for.
    pub(crate) async fn back_up(&self, request: Request<BackupRequest>) -> Result<ReceiverStream<Result<BackupPart, Status>>, Status> {
        let admitted = Admitted::of(&request)?;
        if !request.get_ref().stale {
            self.must_lead_or_hint().await?;
            self.node.read_index().await.map_err(status)?;
        }
        let mut backup = self.node.backup().await.map_err(status)?.map_err(|e| no(e.to_string()))?;
        tracing::info!(actor = admitted.caller.name, origin = admitted.caller.origin, "backup");
        let (tx, rx) = tokio::sync::mpsc::channel(BACKUP_PARTS);
        tokio::task::spawn_blocking(move || {
            // Until the reader goes away, or has everything.
            while let Some(part) = backup.next_part().map_err(|e| Status::data_loss(e.to_string())).transpose() {
                let broken = part.is_err();
                if tx.blocking_send(part).is_err() || broken {
                    return;
                }
            }
        });
        Ok(ReceiverStream::new(rx))
    }

    async fn answered(&self, request_id: &str) -> Result<bool, Status> {
        let id = request_id.to_owned();
        self.node.query(move |state, _| probity_core::requests::find(state, &id).is_some()).await.map_err(status)
    }

    /// `cluster transfer`.
    pub(crate) async fn transfer(&self, request: Request<TransferLeaderRequest>) -> Result<TransferLeaderReply, Status> {
        self.must_lead_or_hint().await?;
        let group = Group::of(&self.node).await.map_err(status)?;
        let wanted = &request.get_ref().member;
        let to = if wanted.is_empty() {
            group.successor().ok_or_else(|| no("no other voter has caught up and answers".to_owned()))?
        } else {
            group.find(wanted)?.id
        };
        let name = group.members.iter().find(|m| m.id == to).map_or_else(|| format!("{to:x}"), |m| m.name.clone());
        if to == group.own {
            return Ok(TransferLeaderReply { leader: name });
        }
        if !group.voters.contains(&to) {
            return Err(no(format!("{name} does not vote yet: only a voter that has caught up can lead")));
        }
        if !group.answers(to) {
            return Err(no(format!("{name} cannot take over: it does not answer")));
        }
        let mut leadership = self.node.leadership();
        self.node.transfer(to).await.map_err(status)?;
        match tokio::time::timeout(HANDED_OVER, leadership.wait_for(|l| l.leader == Some(to))).await {
            Ok(Ok(_)) => Ok(TransferLeaderReply { leader: name }),
            _ => Err(no(format!("{name} did not take over within {} s; the leader may be the same as before", HANDED_OVER.as_secs()))),
        }
    }
}

/// Whether a coordinator may become a member.
fn check_newcomer(group: &Group, found: &IdentifyReply, replaced: Option<&MemberRecord>) -> Result<(), Status> {
    let same = found.cluster_id == group.cluster_id;
    if found.initialized && same && !found.joining {
        return Err(no(format!(
            "{} ({:x}) was a member before, and its log may lack what it promised then: stop it, delete its data directory, start it, and ask again",
            found.name, found.id
        )));
    }
    if found.initialized && !same {
        return Err(no(format!("{} belongs to cluster {} already, this is {}", found.name, found.cluster_id, group.cluster_id)));
    }
    if found.cluster_name != group.cluster_name {
        return Err(no(format!("the configuration of {} names cluster {:?}, this is {:?}", found.name, found.cluster_name, group.cluster_name)));
    }
    match group.members.iter().find(|m| m.name == found.name) {
        Some(holder) if replaced.is_none_or(|m| m.id != holder.id) => Err(Status::already_exists(members::name_taken(holder))),
        _ => Ok(()),
    }
}

/// What the leader does for its members, each second: it invites learners until they answer, asks those that are silent what is wrong
/// with them, and raises the cluster's version when every member understands the next one.
pub(crate) async fn look_after(node: Node, tls: Option<TlsFiles>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        if !node.leadership.borrow().leading {
            continue;
        }
        let group = match Group::of(&node).await {
            Ok(group) => group,
            Err(ProposeError::Stopping) => return,
            Err(_) => continue,
        };
        ask_the_silent(&node, &group, tls.as_ref()).await;
        let understood = group.members.iter().map(|m| m.max_command_version).min().unwrap_or(0);
        if understood > group.version && group.version != 0 {
            tracing::info!(from = group.version, to = understood, "raises the cluster's command version");
            let _ = node.propose(Node::command(Op::SetClusterVersion(SetClusterVersion { version: understood }))).await;
        }
        let silent = group.learners.iter().filter(|id| group.progress.get(id).is_none_or(|p| p.matched == 0));
        for member in silent.filter_map(|id| group.members.iter().find(|m| m.id == *id)) {
            let request = JoinRequest { cluster_id: group.cluster_id.clone(), id: member.id, version: group.version, members: group.members.clone() };
            let Ok(channel) = channel(&member.address, tls.as_ref()) else { continue };
            match tokio::time::timeout(CALL, PeerClient::new(channel).join(request)).await {
                Ok(Ok(_)) => {}
                Ok(Err(e)) => tracing::warn!(member = member.name, address = member.address, error = e.message(), "a learner does not join"),
                Err(_) => tracing::warn!(member = member.name, address = member.address, "a learner does not answer"),
            }
        }
    }
}

async fn ask_the_silent(node: &Node, group: &Group, tls: Option<&TlsFiles>) {
    let mut found = BTreeMap::new();
    for member in group.members.iter().filter(|m| m.id != group.own && !group.answers(m.id)) {
        match identify(&member.address, tls, None).await {
            Ok(reply) if reply.id == member.id && !reply.condition.is_empty() => drop(found.insert(member.id, reply.condition)),
            _ => {}
        }
    }
    if let Ok(mut conditions) = node.shared.conditions.lock() {
        *conditions = found;
    }
}

/// What a member without a group is told whose name another one bears: its data directory was lost, and it may not return as if nothing had happened.
pub(crate) fn name_is_taken(own: &MemberRecord, cluster_id: &str, holder: &MemberRecord) -> String {
    format!(
        "in cluster {cluster_id} the name {:?} belongs to member {:x}, and this data directory is of {:x}: a member whose data is lost does not come back by itself (`probity cluster replace {} {}` puts this one in its place)",
        own.name, holder.id, own.id, own.name, own.address
    )
}

/// The leader takes down what a member says of itself.
pub(crate) async fn put_record(node: &Node, member: MemberRecord) -> Result<(), ProposeError> {
    let wanted = member.clone();
    let differs =
        node.query(move |state, _| state.members.get(&number_key(wanted.id)).is_some_and(|m| MemberRecord { replaces: m.replaces, ..wanted } != *m)).await?;
    if differs {
        node.propose(Node::command(Op::PutMember(PutMember { member: Some(member) }))).await?;
    }
    Ok(())
}

/// Each new leader is told this member's addresses and version, until it has them.
pub(crate) async fn keep_own_record(node: Node, own: MemberRecord, tls: Option<TlsFiles>, stop: CancellationToken) {
    let mut leadership = node.leadership();
    loop {
        let leader = leadership.borrow_and_update().clone();
        // As its files are now: a signed issuer.crt needs no restart.
        let own = MemberRecord { cannot_issue: issue::cannot_issue(tls.as_ref(), &own.name), ..own.clone() };
        let told = if leader.leading {
            put_record(&node, own).await.is_ok()
        } else {
            match leader.leader {
                Some(id) if id != own.id => announce(&node, &own, id, tls.as_ref()).await,
                _ => true,
            }
        };
        let again = if told { TOLD_AGAIN } else { Duration::from_secs(1) };
        tokio::select! {
            () = stop.cancelled() => return,
            end = leadership.changed() => if end.is_err() { return },
            () = tokio::time::sleep(again) => {}
        }
    }
}

async fn announce(node: &Node, own: &MemberRecord, leader: u64, tls: Option<&TlsFiles>) -> bool {
    let mine = own.clone();
    let look = move |state: &State, _: &crate::node::Live<'_>| {
        let known = state.members.get(&number_key(mine.id)).is_some_and(|m| MemberRecord { replaces: m.replaces, ..mine } == *m);
        (known, state.members.get(&number_key(leader)).map(|m| m.address.clone()))
    };
    match node.query(look).await {
        Ok((true, _)) => true,
        Ok((false, Some(address))) => {
            let Ok(channel) = channel(&address, tls) else { return false };
            let mut client = PeerClient::new(channel);
            // Not told until it is seen in the state.
            let _ = tokio::time::timeout(CALL, client.announce(AnnounceRequest { member: Some(own.clone()) })).await;
            false
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_numbers_and_large_ones_are_warned_about() {
        for (voters, warned) in [(1, true), (2, true), (3, false), (4, true), (5, false), (6, true), (7, true)] {
            assert_eq!(!notes(voters).is_empty(), warned, "{voters}");
        }
        assert_eq!(notes(4)[0], "4 voters bear the loss of 1, as 3 do: add or remove one (want 1, 3 or 5)");
    }
}
