//! Members in memory, and a network between them that delivers at once, except where a test cuts it.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its share of it")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use probity_proto::v1::command::Op;
use probity_proto::v1::*;
use probity_replica::{Config, Fatal, Input, Medium, OpenError, Outputs, Replica, Reply, Role};
use prost::Message as _;

/// A disk that a member finds again after its crash, and that a test makes full or broken.
#[derive(Debug, Clone, Default)]
pub struct Disk(Arc<Mutex<DiskState>>);

#[derive(Debug, Default)]
struct DiskState {
    bytes: Vec<u8>,
    /// What may be used at most; 0 = no limit.
    limit: u64,
    sync_fails: bool,
    syncs: u64,
    /// The write after so many, counted from now, finds no room: once.
    full_after: Option<u64>,
}

impl Disk {
    /// May not grow any more; 0 lifts the limit.
    pub fn limit(&self, bytes: u64) {
        self.0.lock().expect("not poisoned").limit = bytes;
    }

    pub fn fail_syncs(&self, on: bool) {
        self.0.lock().expect("not poisoned").sync_fails = on;
    }

    /// One write finds no room, after this many that do.
    pub fn fail_writes(&self, after: u64) {
        self.0.lock().expect("not poisoned").full_after = Some(after);
    }

    pub fn room_again(&self) {
        self.0.lock().expect("not poisoned").full_after = None;
    }

    pub fn len(&self) -> u64 {
        self.0.lock().expect("not poisoned").bytes.len() as u64
    }

    /// What is on it now, as another disk.
    pub fn copy(&self) -> Disk {
        let bytes = self.0.lock().expect("not poisoned").bytes.clone();
        Disk(Arc::new(Mutex::new(DiskState { bytes, ..DiskState::default() })))
    }
}

impl redb::StorageBackend for Disk {
    fn len(&self) -> std::io::Result<u64> {
        Ok(Disk::len(self))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let disk = self.0.lock().expect("not poisoned");
        let from = offset as usize;
        let found = disk.bytes.get(from..from + out.len()).ok_or(std::io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        let mut disk = self.0.lock().expect("not poisoned");
        if disk.limit != 0 && len > disk.limit && len > disk.bytes.len() as u64 {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        disk.bytes.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> std::io::Result<()> {
        let mut disk = self.0.lock().expect("not poisoned");
        disk.syncs += 1;
        if disk.sync_fails { Err(std::io::Error::other("the medium is broken")) } else { Ok(()) }
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        let mut disk = self.0.lock().expect("not poisoned");
        match &mut disk.full_after {
            Some(0) => {
                disk.full_after = None;
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            Some(left) => *left -= 1,
            None => {}
        }
        let from = offset as usize;
        disk.bytes.get_mut(from..from + data.len()).ok_or(std::io::ErrorKind::UnexpectedEof)?.copy_from_slice(data);
        Ok(())
    }
}

/// The group.
pub struct Net {
    pub config: Config,
    pub members: BTreeMap<u64, Replica>,
    pub disks: BTreeMap<u64, Disk>,
    /// (from, to) pairs that get nothing.
    pub cut: BTreeSet<(u64, u64)>,
    /// What ended a member.
    pub ended: BTreeMap<u64, Fatal>,
    pub replies: Vec<(u64, u64, Reply)>,
    /// Members can open their files again.
    pub media: bool,
    /// Of the next command.
    pub time_us: i64,
    next_tag: u64,
    incarnation: u64,
}

/// A disk as what a member opens again.
struct OnDisk(Disk);

impl Medium for OnDisk {
    fn open(&mut self) -> Result<redb::Database, redb::DatabaseError> {
        redb::Builder::new().create_with_backend(self.0.clone())
    }

    fn bytes(&self) -> u64 {
        self.0.len()
    }
}

pub const CLUSTER: &str = "test";

impl Net {
    /// A group that has elected its leader and is initialised.
    pub fn formed(ids: &[u64]) -> Net {
        Net::with(Config { log_entries_max: 200, flush_entries: 50, piece_bytes: 1_000, changes_bytes_min: 20_000, ..Config::default() }, ids)
    }

    pub fn empty(config: Config) -> Net {
        Net {
            config,
            members: BTreeMap::new(),
            disks: BTreeMap::new(),
            cut: BTreeSet::new(),
            ended: BTreeMap::new(),
            replies: Vec::new(),
            media: false,
            time_us: 0,
            next_tag: 1,
            incarnation: 1,
        }
    }

    pub fn with(config: Config, ids: &[u64]) -> Net {
        let mut net = Net::empty(config);
        net.form(ids);
        net
    }

    /// A group whose members outlive a full disk.
    pub fn on_media(ids: &[u64]) -> Net {
        let mut net = Net::empty(Config { log_entries_max: 200, flush_entries: 50, piece_bytes: 1_000, changes_bytes_min: 20_000, ..Config::default() });
        net.media = true;
        net.form(ids);
        net
    }

    pub fn form(&mut self, ids: &[u64]) {
        for id in ids {
            self.start(*id).expect("it opens");
            self.members.get_mut(id).expect("it runs").form(CLUSTER, ids).expect("it forms");
        }
        self.until("a leader", |net| net.leader().is_some());
        let members = ids.iter().map(|id| record(*id, &format!("c{id}"))).collect();
        let op = Op::InitCluster(InitCluster { cluster_id: CLUSTER.to_owned(), version: 1, members, ..InitCluster::default() });
        self.change(op).expect("initialised");
    }

    /// Starts a member on its disk, which is new the first time.
    pub fn start(&mut self, id: u64) -> Result<(), OpenError> {
        let disk = self.disks.entry(id).or_default().clone();
        let db = redb::Builder::new().create_with_backend(disk.clone()).map_err(|e| OpenError::Store(e.into()))?;
        self.incarnation += 1;
        let config = Config { new_id: id, ..self.config.clone() };
        let replica = match self.media {
            true => Replica::open_on(config, db, Box::new(OnDisk(disk)), self.incarnation)?,
            false => Replica::open(config, db, self.incarnation)?,
        };
        self.members.insert(id, replica);
        self.ended.remove(&id);
        Ok(())
    }

    pub fn crash(&mut self, id: u64) {
        self.members.remove(&id);
    }

    pub fn member(&self, id: u64) -> &Replica {
        self.members.get(&id).unwrap_or_else(|| panic!("{id} does not run: {:?}", self.ended.get(&id)))
    }

    /// Cuts a member off from all others, or heals it.
    pub fn isolate(&mut self, id: u64, on: bool) {
        for other in self.disks.keys().filter(|other| **other != id) {
            for pair in [(id, *other), (*other, id)] {
                if on {
                    self.cut.insert(pair)
                } else {
                    self.cut.remove(&pair)
                };
            }
        }
    }

    /// Steps one member, and delivers until all is quiet.
    pub fn step(&mut self, id: u64, input: Input) {
        let mut todo = VecDeque::from([(id, input)]);
        while let Some((to, input)) = todo.pop_front() {
            let Some(replica) = self.members.get_mut(&to) else { continue };
            let outputs: Outputs = match replica.step([input]) {
                Ok(outputs) => outputs,
                Err(fatal) => {
                    self.members.remove(&to);
                    self.ended.insert(to, fatal);
                    continue;
                }
            };
            self.replies.extend(outputs.replies.into_iter().map(|(tag, reply)| (to, tag, reply)));
            for message in outputs.messages {
                if !self.cut.contains(&(message.from, message.to)) {
                    todo.push_back((message.to, Input::Peer(message)));
                }
            }
        }
    }

    pub fn tick(&mut self) {
        for id in self.members.keys().copied().collect::<Vec<_>>() {
            // Seeded by the id, so that a run is always the same.
            if let Some(member) = self.members.get_mut(&id) {
                member.set_election_timeout(10 + (id as usize * 3) % 10);
            }
            self.step(id, Input::Tick);
        }
    }

    pub fn until(&mut self, what: &str, done: impl Fn(&Net) -> bool) {
        for _ in 0..2_000 {
            if done(self) {
                return;
            }
            self.tick();
        }
        panic!("never: {what}; {:#?} {:?}", self.members.values().map(Replica::status).collect::<Vec<_>>(), self.ended);
    }

    pub fn ticks(&mut self, n: usize) {
        (0..n).for_each(|_| self.tick());
    }

    /// The one leader of the newest term.
    pub fn leader(&self) -> Option<u64> {
        let statuses = self.members.values().map(Replica::status);
        statuses.filter(|s| s.role == Role::Leader).max_by_key(|s| s.term).map(|s| s.identity.id)
    }

    pub fn ask(&mut self, id: u64, input: impl FnOnce(u64) -> Input) -> Option<Reply> {
        let tag = self.next_tag;
        self.next_tag += 1;
        self.step(id, input(tag));
        for _ in 0..100 {
            if let Some(at) = self.replies.iter().position(|(from, t, _)| (*from, *t) == (id, tag)) {
                return Some(self.replies.remove(at).2);
            }
            self.tick();
        }
        None
    }

    fn answer(&mut self, input: impl Fn(u64, Command) -> Input, op: Op) -> Result<Applied, String> {
        let leader = self.leader().ok_or("no leader")?;
        let command = Command { version: 1, time_us: self.time_us, op: Some(op), ..Command::default() };
        match self.ask(leader, |tag| input(tag, command)) {
            Some(Reply::Applied { result: CommandResult { result: Some(command_result::Result::Applied(applied)) }, .. }) => Ok(applied),
            Some(Reply::Applied { result: CommandResult { result: Some(command_result::Result::Refused(refused)) }, .. }) => Err(refused.message),
            other => Err(format!("{other:?}")),
        }
    }

    /// A change at the leader.
    pub fn change(&mut self, op: Op) -> Result<Applied, String> {
        self.answer(|tag, command| Input::Propose { tag, command: command.encode_to_vec() }, op)
    }

    pub fn configure(&mut self, op: Op) -> Result<Applied, String> {
        self.answer(|tag, command| Input::Configure { tag, command }, op)
    }

    /// A new member, as `probity cluster join` does it.
    pub fn join(&mut self, member: MemberRecord) -> Result<(), String> {
        let id = member.id;
        self.configure(Op::AddMember(AddMember { member: Some(member) }))?;
        self.members.get_mut(&id).expect("it runs").join(CLUSTER).expect("it joins");
        Ok(())
    }

    /// Writes something.
    pub fn write(&mut self, reason: &str) {
        self.change(Op::SetHalt(SetHalt { reason: reason.to_owned() })).expect("applied");
    }

    pub fn fill(&mut self, entries: usize) {
        (0..entries).for_each(|i| self.write(&format!("{i}")));
    }

    pub fn voters(&self) -> Vec<u64> {
        self.leader().map(|l| self.member(l).status().voters).unwrap_or_default()
    }

    /// Waits until these are the voters, and no change is under way.
    pub fn settled(&mut self, voters: &[u64]) {
        let is = |s: &probity_replica::Status| s.voters == voters && s.voters_outgoing.is_empty();
        self.until(&format!("voters {voters:?}"), |net| net.leader().is_some_and(|l| is(&net.member(l).status())));
        self.ticks(2);
    }

    /// Everybody has applied the same, and all have the same state.
    pub fn assert_equal(&mut self) {
        self.ticks(40);
        let members: Vec<u64> = self.members.keys().copied().collect();
        let mut seen = BTreeSet::new();
        for id in members {
            let member = self.members.get_mut(&id).expect("it runs");
            member.flush().expect("it is written");
            seen.insert((member.status().applied, member.state().hash(), member.status().voters));
        }
        assert_eq!(seen.len(), 1, "{seen:?}");
    }
}

pub fn record(id: u64, name: &str) -> MemberRecord {
    MemberRecord { id, name: name.to_owned(), address: format!("127.0.0.1:{id}"), max_command_version: 1, ..MemberRecord::default() }
}
