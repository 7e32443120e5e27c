//! A disk below redb: what was written and not synced may be lost or torn by sectors when the power goes.
//!
//! The whole simulation is one thread; the lock is only what redb's trait asks for.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::rng::Rng;

/// The unit that a disk writes whole or not at all.
const SECTOR: usize = 512;

/// What so many syncs wrote is spared by bit rot: a commit is up to two.
const SYNCS_SPARED: usize = 4;

/// Where in the life of an operation the host dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Before,
    After,
}

/// What the operation is that the host dies at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    Write,
    Sync,
    Any,
}

#[derive(Debug, Clone, Copy)]
struct Trap {
    left: u64,
    at: At,
    when: When,
}

#[derive(Debug)]
enum Pending {
    Write(u64, Vec<u8>),
    Len(u64),
}

#[derive(Debug, Default)]
struct Inner {
    /// What the host sees.
    current: Vec<u8>,
    /// What survives the loss of power.
    durable: Vec<u8>,
    pending: Vec<Pending>,
    trap: Option<Trap>,
    /// The host has died in the middle of an operation.
    dead: bool,
    /// Handles of an earlier life are refused.
    life: u64,
    writes: u64,
    syncs: u64,
    /// Bytes that may still be written; none = no limit.
    room: Option<u64>,
    /// The next sync fails.
    sync_fails: bool,
    sync_failed: bool,
    /// The ranges that the last syncs were for, newest first.
    recent: VecDeque<Vec<(u64, u64)>>,
    /// Some bit is not as it was written.
    rotten: bool,
    /// There is a whole database on it.
    created: bool,
}

/// A disk; clones are the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk(Arc<Mutex<Inner>>);

/// What redb holds of a disk.
#[derive(Debug)]
struct Handle {
    disk: Disk,
    life: u64,
}

fn apply(image: &mut Vec<u8>, op: &Pending) {
    match op {
        Pending::Write(offset, data) => {
            let (from, to) = (*offset as usize, *offset as usize + data.len());
            if image.len() < to {
                image.resize(to, 0);
            }
            image[from..to].copy_from_slice(data);
        }
        Pending::Len(len) => image.resize(*len as usize, 0),
    }
}

/// What may be left of a write when the power went: some of its sectors.
fn tear(op: &Pending, rng: &mut Rng, image: &mut Vec<u8>) {
    let Pending::Write(offset, data) = op else { return };
    for (i, sector) in data.chunks(SECTOR).enumerate() {
        if rng.percent(50) {
            apply(image, &Pending::Write(offset + (i * SECTOR) as u64, sector.to_vec()));
        }
    }
}

impl Disk {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A database on it, for one life of its host.
    pub(crate) fn open(&self) -> Result<redb::Database, redb::DatabaseError> {
        let life = {
            let mut inner = self.inner();
            // A file that was never whole has another name until it is: the next start begins anew.
            if !inner.created {
                inner.current.clear();
                inner.durable.clear();
                inner.pending.clear();
            }
            inner.life
        };
        let opened = redb::Builder::new().set_cache_size(8 << 20).create_with_backend(Handle { disk: self.clone(), life })?;
        self.inner().created = true;
        Ok(opened)
    }

    /// The host will die at the `n`th operation from here.
    pub(crate) fn set_trap(&self, n: u64, at: At, when: When) {
        self.inner().trap = Some(Trap { left: n, at, when });
    }

    /// No trap any more.
    pub(crate) fn clear_trap(&self) {
        self.inner().trap = None;
    }

    /// Whether the host died in an operation.
    pub(crate) fn is_dead(&self) -> bool {
        self.inner().dead
    }

    /// There is room for so many more bytes, and then no more.
    pub(crate) fn set_room(&self, room: Option<u64>) {
        self.inner().room = room;
    }

    pub(crate) fn has_limit(&self) -> bool {
        self.inner().room.is_some()
    }

    /// The next sync will fail, once.
    pub(crate) fn fail_next_sync(&self) {
        self.inner().sync_fails = true;
    }

    /// No sync fails any more.
    pub(crate) fn mend_syncs(&self) {
        self.inner().sync_fails = false;
    }

    /// Whether a sync has failed since this was asked last.
    pub(crate) fn take_sync_failed(&self) -> bool {
        std::mem::take(&mut self.inner().sync_failed)
    }

    /// Another disk in its place.
    pub(crate) fn wipe(&self) {
        let mut inner = self.inner();
        let life = inner.life + 1;
        *inner = Inner { life, ..Inner::default() };
    }

    pub(crate) fn is_rotten(&self) -> bool {
        self.inner().rotten
    }

    /// Some bits change by themselves, while nobody uses the disk. What the last commits wrote is spared: damage there cannot be told
    /// from a commit that a loss of power has torn.
    pub(crate) fn rot(&self, bits: u64, rng: &mut Rng) -> u64 {
        let mut inner = self.inner();
        let mut done = 0;
        for _ in 0..bits {
            let len = inner.current.len() as u64;
            let at = rng.below(len);
            let bit = 1u8 << rng.below(8);
            let spared = inner.recent.iter().flatten().any(|(from, to)| (*from..*to).contains(&at));
            if len == 0 || spared || inner.current[at as usize] == 0 {
                continue;
            }
            inner.current[at as usize] ^= bit;
            inner.durable[at as usize] ^= bit;
            inner.rotten = true;
            done += 1;
        }
        done
    }

    /// Syncs and writes so far.
    pub(crate) fn work(&self) -> (u64, u64) {
        let inner = self.inner();
        (inner.syncs, inner.writes)
    }

    /// The process is gone: what it wrote is still in the host's memory, and arrives.
    pub(crate) fn kill(&self) {
        let mut inner = self.inner();
        inner.durable = inner.current.clone();
        inner.next_life();
    }

    /// The power is gone. Returns how many unsynced operations were lost and torn.
    pub(crate) fn cut_power(&self, rng: &mut Rng) -> (u64, u64) {
        let mut inner = self.inner();
        let pending = std::mem::take(&mut inner.pending);
        let mut image = std::mem::take(&mut inner.durable);
        // Nothing arrived, or any part of it, in any order.
        let everything_lost = rng.percent(30);
        let (mut lost, mut torn) = (0, 0);
        for op in &pending {
            match if everything_lost { 0 } else { rng.below(3) } {
                0 => lost += 1,
                1 => apply(&mut image, op),
                _ => {
                    torn += 1;
                    tear(op, rng, &mut image);
                }
            }
        }
        inner.current = image.clone();
        inner.durable = image;
        inner.next_life();
        (lost, torn)
    }
}

impl Inner {
    fn next_life(&mut self) {
        self.pending.clear();
        self.trap = None;
        self.dead = false;
        self.sync_fails = false;
        self.life += 1;
    }

    /// Whether the host dies at this operation, and when.
    fn trapped(&mut self, at: At) -> Option<When> {
        let trap = self.trap.as_mut().filter(|t| t.at == At::Any || t.at == at)?;
        if trap.left > 0 {
            trap.left -= 1;
            return None;
        }
        let when = trap.when;
        self.trap = None;
        self.dead = true;
        Some(when)
    }
}

fn died() -> io::Error {
    io::Error::other("the simulated host is dead")
}

impl Handle {
    fn alive(&self) -> io::Result<MutexGuard<'_, Inner>> {
        let inner = self.disk.inner();
        if inner.dead || inner.life != self.life { Err(died()) } else { Ok(inner) }
    }

    fn change(&self, op: Pending) -> io::Result<()> {
        let mut inner = self.alive()?;
        let bytes = match &op {
            Pending::Write(_, data) => data.len() as u64,
            Pending::Len(len) => len.saturating_sub(inner.current.len() as u64),
        };
        match &mut inner.room {
            Some(room) if *room < bytes => return Err(io::ErrorKind::StorageFull.into()),
            Some(room) => *room -= bytes,
            None => {}
        }
        let trapped = inner.trapped(At::Write);
        if trapped != Some(When::Before) {
            inner.writes += 1;
            apply(&mut inner.current, &op);
            inner.pending.push(op);
        }
        if trapped.is_some() { Err(died()) } else { Ok(()) }
    }
}

impl redb::StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.alive()?.current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let inner = self.alive()?;
        let from = offset as usize;
        let found = inner.current.get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Pending::Len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut inner = self.alive()?;
        if std::mem::take(&mut inner.sync_fails) {
            inner.sync_failed = true;
            return Err(io::Error::other("the simulated medium is broken"));
        }
        let trapped = inner.trapped(At::Sync);
        if trapped != Some(When::Before) {
            inner.syncs += 1;
            let pending = std::mem::take(&mut inner.pending);
            let mut image = std::mem::take(&mut inner.durable);
            pending.iter().for_each(|op| apply(&mut image, op));
            inner.durable = image;
            let range = |op: &Pending| if let Pending::Write(at, data) = op { Some((*at, at + data.len() as u64)) } else { None };
            inner.recent.push_front(pending.iter().filter_map(range).collect());
            inner.recent.truncate(SYNCS_SPARED);
        }
        if trapped.is_some() { Err(died()) } else { Ok(()) }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Pending::Write(offset, data.to_vec()))
    }
}

impl probity_replica::Medium for Disk {
    fn open(&mut self) -> Result<redb::Database, redb::DatabaseError> {
        Disk::open(self)
    }

    fn bytes(&self) -> u64 {
        self.inner().current.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redb::{ReadableDatabase, TableDefinition};

    const TABLE: TableDefinition<'_, u64, u64> = TableDefinition::new("t");

    fn put(db: &redb::Database, n: u64) -> Result<(), redb::Error> {
        let mut txn = db.begin_write()?;
        txn.set_quick_repair(true);
        txn.open_table(TABLE)?.insert(n, n)?;
        txn.commit()?;
        Ok(())
    }

    fn count(db: &redb::Database) -> u64 {
        let read = db.begin_read().expect("reads");
        let Ok(table) = read.open_table(TABLE) else { return 0 };
        (0..).take_while(|n| table.get(n).expect("reads").is_some()).count() as u64
    }

    #[test]
    fn what_was_committed_survives_every_loss_of_power() {
        for seed in 0..60 {
            let mut rng = Rng::new(seed, "disk test");
            let disk = Disk::default();
            let mut committed = 0;
            for _ in 0..4 {
                let Ok(db) = disk.open() else {
                    assert!(disk.is_dead(), "an image that cannot be opened");
                    disk.cut_power(&mut rng);
                    continue;
                };
                let found = count(&db);
                // A commit that failed half-way may be there or not.
                assert!(found == committed || found == committed + 1, "{found} of {committed}");
                committed = found;
                let when = if rng.percent(50) { When::Before } else { When::After };
                disk.set_trap(rng.below(60), *rng.pick(&[At::Write, At::Sync, At::Any]), when);
                while committed < 40 && put(&db, committed).is_ok() {
                    committed += 1;
                }
                drop(db);
                disk.cut_power(&mut rng);
            }
        }
    }

    #[test]
    fn an_earlier_life_cannot_write() {
        let disk = Disk::default();
        let db = disk.open().expect("opens");
        put(&db, 0).expect("writes");
        disk.kill();
        assert!(put(&db, 1).is_err());
        drop(db);
        assert_eq!(count(&disk.open().expect("opens")), 1);
    }
}
