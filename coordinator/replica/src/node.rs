//! The member itself: inputs, raft's Ready, persistence, apply, outputs. The order is raft's contract; see its crate docs.

use std::collections::BTreeMap;

use probity_core::State;
use probity_proto::bugs::{self, Bug};
use probity_proto::v1::peer_message::Message as Peer;
use probity_proto::v1::*;
use prost::Message as _;
use raft::{RawNode, StateRole, eraftpb};

use crate::Fatal;
use crate::agree::{Council, HostTime};
use crate::convert;
use crate::disk::{Full, Medium, is_full};
use crate::interface::{Config, Input, Outputs, Progress, Reply, Role, Status};
use crate::log::bytes;
use crate::pieces;
use crate::slow::Disks;
use crate::snapshot::{Source, Staging};
use crate::store::{FormError, Identity, OpenError, RoundEnd, Store};

/// Bytes of the entries in one message, about.
pub(crate) const MESSAGE_BYTES: usize = 1 << 20;
/// A follower that waits for a snapshot is offered it again after this many ticks: the first offer may be lost.
const SNAPSHOT_RETRY_TICKS: u64 = 100;
/// A log so many times longer than it may be has the state written with every step.
const LONG: u64 = 2;

/// Takes messages that need not wait for the disk.
struct Early(Box<dyn FnMut(PeerMessage) + Send>);

/// Takes index, term and data of what is applied.
type Watch = dyn FnMut(u64, u64, &[u8]) + Send;

/// The state as of one entry on its way to the disk, a piece in each tick.
struct Round {
    index: u64,
    term: u64,
    conf_state: ConfStateRecord,
    /// Of every row.
    whole: bool,
    /// A follower is to start from it.
    snapshot: bool,
}

/// One member.
pub struct Replica {
    early: Option<Early>,
    watch: Option<Box<Watch>>,
    pub(crate) config: Config,
    /// Before the group is formed there is only a store.
    pub(crate) unformed: Option<Store>,
    pub(crate) raft: Option<RawNode<Store>>,
    pub(crate) state: State,
    pub(crate) applied: u64,
    /// Tells our proposals from those before a restart.
    pub(crate) incarnation: u64,
    ticks_since_flush: u64,
    /// The state is being written.
    round: Option<Round>,
    /// A snapshot is asked for, of the state as it is now or later.
    snapshot_due: bool,
    pub(crate) ticks: u64,
    pub(crate) staging: Option<Staging>,
    /// A whole snapshot that raft is about to accept.
    pub(crate) staged: Option<(SnapshotManifest, Box<State>, Vec<Vec<u8>>)>,
    pub(crate) reads: Vec<(u64, u64)>,
    snapshots_made: u64,
    /// Opens the file again; without it a full disk ends the member like any other error.
    pub(crate) medium: Option<Box<dyn Medium>>,
    /// While the disk is full there is no raft.
    pub(crate) full: Option<Full>,
    pub(crate) compactions: u64,
    /// The last turn in which the file was looked at.
    pub(crate) looked_in_turn: i64,
    pub(crate) disks: Disks,
    /// When each member was last heard of, in ticks.
    pub(crate) heard: BTreeMap<u64, u64>,
    pub(crate) handed_over: u64,
    /// Its own removal was applied: at which entry, and in which tick.
    pub(crate) removed_at: Option<(u64, u64)>,
    /// This host's clocks, as it was told last.
    pub(crate) host: Option<HostTime>,
    pub(crate) council: Council,
    pub(crate) clock_handovers: u64,
    /// Up to here a known bug has applied what may never be committed.
    #[cfg(feature = "sim-bugs")]
    pub(crate) rash: u64,
}

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replica").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Replica {
    /// Opens a member on its store. `incarnation` is a number that no run of any member had: it tells the own proposals from
    /// all others in the log.
    pub fn open(config: Config, db: redb::Database, incarnation: u64) -> Result<Replica, OpenError> {
        let (store, state) = Store::open(db, config.new_id)?;
        let (cluster, build) = (state.meta().version, config.command_version);
        if cluster > build {
            return Err(OpenError::Version { cluster, build });
        }
        let mut replica = Replica {
            early: None,
            watch: None,
            config,
            unformed: Some(store),
            raft: None,
            state,
            applied: 0,
            incarnation,
            ticks_since_flush: 0,
            round: None,
            snapshot_due: false,
            ticks: 0,
            staging: None,
            staged: None,
            reads: Vec::new(),
            snapshots_made: 0,
            medium: None,
            full: None,
            compactions: 0,
            looked_in_turn: -1,
            disks: Disks::default(),
            heard: BTreeMap::new(),
            handed_over: 0,
            removed_at: None,
            host: None,
            council: Council::default(),
            clock_handovers: 0,
            #[cfg(feature = "sim-bugs")]
            rash: 0,
        };
        replica.start()?;
        Ok(replica)
    }

    /// Messages that promise nothing of this member's disk (a leader's entries to its followers) go to `tell` while the disk still writes, instead
    /// of into [`Outputs`]: the disks of a group work at the same time.
    pub fn send_early(&mut self, tell: impl FnMut(PeerMessage) + Send + 'static) {
        self.early = Some(Early(Box::new(tell)));
    }

    /// Each entry that is applied is shown to `tell`, as (index, term, data): for whoever compares the logs of a group.
    pub fn watch_applied(&mut self, tell: impl FnMut(u64, u64, &[u8]) + Send + 'static) {
        self.watch = Some(Box::new(tell));
    }

    /// Starts raft, once the store belongs to a group.
    pub(crate) fn start(&mut self) -> Result<(), OpenError> {
        let Some(store) = self.unformed.take_if(|s| !s.identity.cluster_id.is_empty()) else { return Ok(()) };
        if !store.joining() && !store.is_member(store.identity.id) {
            return Err(OpenError::Removed { id: store.identity.id, cluster_id: store.identity.cluster_id.clone() });
        }
        self.applied = store.flushed;
        let config = raft::Config {
            id: store.identity.id,
            election_tick: self.config.election_ticks,
            heartbeat_tick: self.config.heartbeat_ticks,
            applied: self.applied,
            max_size_per_msg: MESSAGE_BYTES as u64,
            max_inflight_msgs: 256,
            max_uncommitted_size: 64 << 20,
            max_committed_size_per_ready: self.config.apply_bytes,
            check_quorum: true,
            pre_vote: true,
            ..raft::Config::default()
        };
        let alone = store.conf_state.voters == [store.identity.id];
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let mut raft = RawNode::new(&config, store, &logger)?;
        if alone {
            raft.campaign()?;
        }
        self.raft = Some(raft);
        Ok(())
    }

    /// Becomes a voter of a new group, once. Asking again for the same one is fine.
    pub fn form(&mut self, cluster_id: &str, voters: &[u64]) -> Result<(), FormError> {
        let identity = self.identity();
        if identity.cluster_id == cluster_id {
            return Ok(());
        }
        let Some(store) = &mut self.unformed else { return Err(FormError::Belongs(identity.cluster_id)) };
        if !voters.contains(&identity.id) {
            return Err(FormError::NotAmong(identity.id));
        }
        store.form(cluster_id, voters).map_err(Fatal::Store)?;
        self.start()?;
        Ok(())
    }

    /// Starts an election now: for whoever just formed the group.
    pub fn campaign(&mut self) -> Result<(), Fatal> {
        if let Some(raft) = &mut self.raft {
            raft.campaign()?;
        }
        Ok(())
    }

    /// Sets when the next election would start, for a simulation that must not depend on the thread's generator.
    pub fn set_election_timeout(&mut self, ticks: usize) {
        if let Some(raft) = &mut self.raft {
            raft.raft.set_randomized_election_timeout(ticks.clamp(self.config.election_ticks, 2 * self.config.election_ticks - 1));
        }
    }

    /// Who this member is.
    pub fn identity(&self) -> Identity {
        if let Some(full) = &self.full {
            return full.status.identity.clone();
        }
        match (&self.raft, &self.unformed) {
            (Some(raft), _) => raft.store().identity.clone(),
            (None, Some(store)) => store.identity.clone(),
            (None, None) => Identity { id: self.config.new_id, cluster_id: String::new() },
        }
    }

    /// The replicated state, as of [`Status::applied`].
    pub fn state(&self) -> &State {
        &self.state
    }

    /// A look at it.
    pub fn status(&self) -> Status {
        if let Some(full) = &self.full {
            return full.status.clone();
        }
        let identity = self.identity();
        let Some(raft) = &self.raft else {
            let progress = BTreeMap::new();
            return Status {
                identity,
                role: Role::Unformed,
                term: 0,
                leader: None,
                commit: 0,
                applied: 0,
                hashed: 0,
                last: 0,
                voters: Vec::new(),
                voters_outgoing: Vec::new(),
                learners: Vec::new(),
                disk_full: false,
                progress,
            };
        };
        let inner = &raft.raft;
        let role = match inner.state {
            StateRole::Leader => Role::Leader,
            StateRole::Follower => Role::Follower,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
        };
        let progress = if role == Role::Leader {
            inner.prs().iter().map(|(id, p)| (*id, Progress { matched: p.matched, recent: *id == identity.id || self.answers(*id) })).collect()
        } else {
            BTreeMap::new()
        };
        Status {
            role,
            term: inner.term,
            leader: (inner.leader_id != 0).then_some(inner.leader_id),
            commit: inner.raft_log.committed,
            applied: self.applied,
            hashed: raft.store().flushed,
            last: raft.store().log.last().0,
            voters: raft.store().conf_state.voters.clone(),
            voters_outgoing: raft.store().conf_state.voters_outgoing.clone(),
            learners: raft.store().conf_state.learners.clone(),
            disk_full: false,
            progress,
            identity,
        }
    }

    /// For how many ticks at most nothing was heard of the leader, or of a quorum by the leader; none while no leader is known.
    pub fn silent_ticks(&self) -> Option<u64> {
        let inner = &self.raft.as_ref()?.raft;
        (inner.leader_id != 0).then_some(inner.election_elapsed as u64)
    }

    /// Takes inputs, persists what follows, and says what to send and to whom to reply.
    pub fn step(&mut self, inputs: impl IntoIterator<Item = Input>) -> Result<Outputs, Fatal> {
        let mut out = Outputs::default();
        if self.full.is_some() {
            self.step_full(inputs, &mut out)?;
            return Ok(out);
        }
        match self.step_whole(inputs, &mut out) {
            Err(error) if self.medium.is_some() && is_full(&error) => self.on_full(&mut out),
            other => other?,
        }
        Ok(out)
    }

    fn step_whole(&mut self, inputs: impl IntoIterator<Item = Input>, out: &mut Outputs) -> Result<(), Fatal> {
        let mut proposals = Vec::new();
        let ticks = self.ticks;
        for input in inputs {
            match input {
                Input::Propose { tag, command } => proposals.push((tag, command)),
                input => self.input(input, out)?,
            }
        }
        self.propose(proposals, out);
        self.drain(out)?;
        self.answer_reads(out);
        self.tend_clocks(out);
        if self.ticks > ticks || self.log_is_long() {
            self.maybe_flush()?;
        }
        self.pull(out);
        Ok(())
    }

    fn input(&mut self, input: Input, out: &mut Outputs) -> Result<(), Fatal> {
        if let Input::Clock { mono_us, wall_us } = input {
            self.host = Some(HostTime { mono_us, wall_us });
            return Ok(());
        }
        let (incarnation, clocks_agree) = (self.incarnation, self.clocks_agree());
        let Some(raft) = &mut self.raft else {
            if let Input::Read { tag } | Input::Configure { tag, .. } | Input::Transfer { tag, .. } = input {
                out.replies.push((tag, Reply::NotLeader { leader: None }));
            }
            return Ok(());
        };
        match input {
            Input::Clock { .. } | Input::Propose { .. } => {}
            // Whatever a leader proposes bears a time.
            Input::Configure { tag, .. } if raft.raft.state == StateRole::Leader && !clocks_agree => {
                out.replies.push((tag, Reply::Busy));
            }
            Input::Tick => {
                raft.tick();
                self.ticks_since_flush += 1;
                self.ticks += 1;
                if self.ticks.is_multiple_of(SNAPSHOT_RETRY_TICKS) {
                    retry_snapshots(raft);
                }
                if let Some(staging) = &mut self.staging {
                    staging.tick();
                }
                let source = &mut raft.mut_store().source;
                if source.as_mut().is_some_and(|s| !s.tick()) {
                    *source = None;
                }
                self.tend_removal()?;
                self.tend_members()?;
                self.tend_file()?;
            }
            Input::Peer(message) => self.peer(message, out)?,
            Input::Read { tag } if bugs::on(Bug::ReadWithoutQuorum) => self.reads.push((0, tag)),
            Input::Read { tag } => raft.read_index([incarnation.to_le_bytes(), tag.to_le_bytes()].concat()),
            Input::Configure { tag, command } => self.configure(tag, command, out),
            Input::Transfer { tag, to } => self.transfer(tag, to, out),
            Input::Persistence { p99_us } => self.on_persistence(p99_us, out),
            Input::Unreachable(id) => raft.report_unreachable(id),
        }
        Ok(())
    }

    /// Handles every Ready, until it has applied enough for one step.
    fn drain(&mut self, out: &mut Outputs) -> Result<(), Fatal> {
        let mut applied_bytes = 0;
        loop {
            let Some(raft) = &mut self.raft else { return Ok(()) };
            if !raft.has_ready() {
                return Ok(());
            }
            if applied_bytes >= self.config.apply_bytes {
                out.more = true;
                return Ok(());
            }
            let cluster_id = raft.store().identity.cluster_id.clone();
            let mut ready = raft.ready();
            let early = ready.take_messages();
            match &mut self.early {
                Some(Early(tell)) => early.into_iter().filter_map(|m| convert::to_peer(&cluster_id, m)).for_each(tell),
                None => send(&cluster_id, early, out),
            }
            let Some(raft) = &mut self.raft else { return Ok(()) };
            if !ready.snapshot().is_empty() {
                // The hard state is written with the snapshot: neither without the other.
                let hs = ready.hs().cloned().unwrap_or_else(|| raft.store().hard_state().clone());
                let Some((manifest, state, pieces)) = self.staged.take_if(|(m, ..)| m.index == ready.snapshot().get_metadata().index) else {
                    return Err(Fatal::Raft(raft::Error::Store(raft::StorageError::SnapshotOutOfDate)));
                };
                let (cluster, build) = (state.meta().version, self.config.command_version);
                if cluster > build {
                    return Err(Fatal::Version { cluster, build });
                }
                raft.mut_store().install(&manifest, pieces, &hs)?;
                self.state = *state;
                self.round = None;
                self.applied = manifest.index;
                out.applied = true;
            }
            let hs = ready.hs().cloned();
            raft.mut_store().append(ready.take_entries(), hs.as_ref())?;
            self.collect_reads(ready.take_read_states());
            send(&cluster_id, ready.take_persisted_messages(), out);
            let committed = ready.take_committed_entries();
            applied_bytes += bytes(&committed);
            self.apply(committed, out)?;
            let Some(raft) = &mut self.raft else { return Ok(()) };
            let mut light = raft.advance(ready);
            if let Some(commit) = light.commit_index() {
                raft.mut_store().set_commit(commit);
            }
            send(&cluster_id, light.take_messages(), out);
            let committed = light.take_committed_entries();
            applied_bytes += bytes(&committed);
            self.apply(committed, out)?;
            if let Some(raft) = &mut self.raft {
                raft.advance_apply();
            }
        }
    }

    fn apply(&mut self, entries: Vec<eraftpb::Entry>, out: &mut Outputs) -> Result<(), Fatal> {
        for entry in entries {
            if let Some(tell) = &mut self.watch {
                tell(entry.index, entry.term, &entry.data);
            }
            if entry.entry_type == eraftpb::EntryType::EntryConfChangeV2 {
                self.apply_conf_change(&entry, out)?;
            } else if !entry.data.is_empty() {
                let command = Command::decode(&entry.data[..]).map_err(|_| Fatal::Entry { index: entry.index })?;
                let result = self.apply_command(entry.index, &command);
                self.check_version()?;
                if let Some(tag) = self.own_tag(&entry.context) {
                    out.replies.push((tag, Reply::Applied { index: entry.index, result }));
                }
            }
            self.applied = entry.index;
            out.applied = true;
        }
        Ok(())
    }

    fn apply_command(&mut self, index: u64, command: &Command) -> CommandResult {
        #[cfg(feature = "sim-bugs")]
        if bugs::on(Bug::ApplyBeforeCommit) && index <= self.rash {
            let applied = Applied { index, ..Applied::default() };
            return CommandResult { result: Some(command_result::Result::Applied(applied)) };
        }
        probity_core::apply(&mut self.state, index, command)
    }

    /// The tag of a proposal or read of this very run.
    pub(crate) fn own_tag(&self, context: &[u8]) -> Option<u64> {
        let (incarnation, tag) = context.split_first_chunk::<8>()?;
        (u64::from_le_bytes(*incarnation) == self.incarnation).then(|| tag.try_into().ok().map(u64::from_le_bytes))?
    }

    fn collect_reads(&mut self, states: Vec<raft::ReadState>) {
        for read in states {
            if let Some(tag) = self.own_tag(&read.request_ctx) {
                self.reads.push((read.index, tag));
            }
        }
    }

    fn answer_reads(&mut self, out: &mut Outputs) {
        let applied = self.applied;
        self.reads.retain(|(index, tag)| {
            let ready = *index <= applied;
            if ready {
                out.replies.push((*tag, Reply::ReadReady));
            }
            !ready
        });
    }

    /// The log grows faster than rounds of writing at the pace of ticks can cut it.
    fn log_is_long(&self) -> bool {
        self.raft.as_ref().is_some_and(|raft| raft.store().log.is_longer(LONG * self.config.log_entries_max, LONG * self.config.log_bytes_max))
    }

    /// Begins to write the state when it is time, and writes a piece of it. With each tick, not with each step: a busy member has many steps, and a round
    /// that takes longer writes a row once that changed several times.
    fn maybe_flush(&mut self) -> Result<(), Fatal> {
        let Some(raft) = &self.raft else { return Ok(()) };
        let store = raft.store();
        // Whoever takes part in a round that ends before its own change of members would not find itself in the snapshot.
        self.snapshot_due |= store.snapshot_wanted.replace(false) && !self.round.as_ref().is_some_and(|r| r.snapshot);
        let behind = self.applied - store.flushed;
        let due = behind >= self.config.flush_entries || behind > 0 && self.ticks_since_flush >= self.config.flush_ticks;
        if self.round.is_none() && (due || self.snapshot_due) {
            self.begin_round();
        }
        if self.round.is_some() {
            return self.write_piece();
        }
        match raft_store(&mut self.raft) {
            Some(store) if store.has_useless_pieces() => Ok(store.write_piece(Vec::new(), None)?),
            _ => Ok(()),
        }
    }

    fn begin_round(&mut self) {
        let Some(store) = raft_store(&mut self.raft) else { return };
        let round = Round {
            index: self.applied,
            term: store.log.term_of(self.applied).unwrap_or(0),
            conf_state: store.conf_state.clone(),
            whole: store.pieces.outgrown(self.config.changes_bytes_min),
            snapshot: std::mem::take(&mut self.snapshot_due),
        };
        self.state.freeze(round.whole);
        self.ticks_since_flush = 0;
        self.round = Some(round);
    }

    /// The next piece of the state; the last one cuts the log, when it is long.
    fn write_piece(&mut self) -> Result<(), Fatal> {
        let Some(store) = raft_store(&mut self.raft) else { return Ok(()) };
        let Config { log_entries_max, log_bytes_max, piece_bytes, .. } = self.config;
        let (changes, last) = self.state.drain(piece_bytes);
        let piece = pieces::encode(changes);
        let Some(round) = self.round.take_if(|_| last) else { return Ok(store.write_piece(piece, None)?) };
        let end = RoundEnd {
            index: round.index,
            term: round.term,
            conf_state: round.conf_state,
            state_hash: self.state.hash(),
            whole: round.whole,
            keep_from: store.log.keep_from(self.applied, log_entries_max, log_bytes_max).unwrap_or(0),
        };
        store.write_piece(piece, Some(&end))?;
        if store.source.as_ref().is_some_and(|s| s.manifest.index < end.keep_from.saturating_sub(1)) {
            store.source = None;
        }
        if round.snapshot {
            self.snapshots_made += 1;
            let manifest = SnapshotManifest {
                index: end.index,
                term: end.term,
                conf_state: Some(end.conf_state),
                state_hash: end.state_hash,
                chunk_crc32c: store.crcs(),
                id: self.incarnation.wrapping_mul(1_000_003).wrapping_add(self.snapshots_made),
            };
            store.source = Some(Source::new(store.read()?, store.pieces.live.start, manifest));
        }
        Ok(())
    }

    /// Writes the state as it is to the disk now, all of it.
    pub fn flush(&mut self) -> Result<(), Fatal> {
        self.finish_round()?;
        self.begin_round();
        self.finish_round()
    }

    /// The disk is full: what was under way is forgotten.
    pub(crate) fn stop_writing(&mut self) {
        self.round = None;
    }

    fn finish_round(&mut self) -> Result<(), Fatal> {
        while self.round.is_some() && self.raft.is_some() {
            self.write_piece()?;
        }
        Ok(())
    }

    /// Who belongs to the group has changed: a snapshot from before it is of no use to whoever came.
    pub(crate) fn outdate_snapshots(&mut self) {
        if let Some(round) = &mut self.round {
            round.snapshot = false;
        }
        if let Some(store) = raft_store(&mut self.raft) {
            store.source = None;
        }
    }

    fn pull(&mut self, out: &mut Outputs) {
        let Some(staging) = &mut self.staging else { return };
        let m = &staging.message;
        let (cluster_id, from, to) = (m.cluster_id.clone(), m.to, m.from);
        for pull in staging.pulls() {
            out.messages.push(PeerMessage { cluster_id: cluster_id.clone(), from, to, message: Some(Peer::Pull(pull)) });
        }
    }

    /// A member that does not understand the cluster's commands any more stops before it would disagree.
    pub(crate) fn check_version(&self) -> Result<(), Fatal> {
        let (cluster, build) = (self.state.meta().version, self.config.command_version);
        if cluster > build { Err(Fatal::Version { cluster, build }) } else { Ok(()) }
    }

    /// The bytes of the entries in its log.
    pub fn log_bytes(&self) -> u64 {
        self.raft.as_ref().map_or(0, |raft| raft.store().log.bytes)
    }

    /// The command set that this build understands.
    pub fn command_version(&self) -> u32 {
        self.config.command_version
    }
}

fn raft_store(raft: &mut Option<RawNode<Store>>) -> Option<&mut Store> {
    raft.as_mut().map(|raft| raft.mut_store())
}

fn send(cluster_id: &str, messages: Vec<eraftpb::Message>, out: &mut Outputs) {
    out.messages.extend(messages.into_iter().filter_map(|m| convert::to_peer(cluster_id, m)));
}

/// Lets raft probe the followers whose snapshot has not arrived: a lost offer would leave them stuck.
fn retry_snapshots(raft: &mut RawNode<Store>) {
    let waiting: Vec<u64> = raft.raft.prs().iter().filter(|(_, p)| p.state == raft::ProgressState::Snapshot).map(|(id, _)| *id).collect();
    for id in waiting {
        raft.report_snapshot(id, raft::SnapshotStatus::Failure);
    }
}
