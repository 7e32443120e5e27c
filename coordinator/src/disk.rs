//! The coordinator's file: its syncs are timed, a failed one is told from a full disk, and it can be opened again.

use std::collections::VecDeque;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use probity_replica::Medium;
use redb::backends::FileBackend;
use redb::{BackendError, Database, DatabaseError, StorageBackend};

/// The percentile is of the syncs of this long...
const WINDOW: Duration = Duration::from_secs(10);
/// ...or of so many, the newest.
const KEPT: usize = 4_096;
/// Pages of the file in memory: the state is there already, so that only writes look at them. redb's own default is 1 GiB.
const CACHE_BYTES: usize = 64 << 20;
/// Of fewer there is none.
const ENOUGH: usize = 5;

/// How long the newest syncs took.
#[derive(Debug, Clone, Default)]
pub(crate) struct SyncTimes(Arc<Mutex<VecDeque<(Instant, u64)>>>);

impl SyncTimes {
    fn record(&self, began: Instant) {
        let took_us = began.elapsed().as_micros() as u64;
        if let Ok(mut times) = self.0.lock() {
            times.push_back((Instant::now(), took_us));
            if times.len() > KEPT {
                times.pop_front();
            }
        }
    }

    /// The 99th percentile of the last seconds, in microseconds.
    pub(crate) fn p99_us(&self) -> Option<u64> {
        let mut times = self.0.lock().ok()?;
        while times.front().is_some_and(|(at, _)| at.elapsed() > WINDOW) {
            times.pop_front();
        }
        percentile_99(times.iter().map(|(_, us)| *us).collect())
    }
}

fn percentile_99(mut times: Vec<u64>) -> Option<u64> {
    if times.len() < ENOUGH {
        return None;
    }
    times.sort_unstable();
    Some(times[(times.len() * 99).div_ceil(100) - 1])
}

#[derive(Debug)]
struct Metered {
    file: FileBackend,
    times: SyncTimes,
}

impl StorageBackend for Metered {
    fn len(&self) -> Result<u64, io::Error> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        let began = Instant::now();
        let result = self.file.sync_data();
        self.times.record(began);
        // Whatever its kind: what was written before may be gone, and a second try would not say so.
        result.map_err(|e| io::Error::other(format!("a sync failed, so what was written may be lost: {e}")))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.file.write(offset, data)
    }

    fn close(&self) -> Result<(), io::Error> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}

/// The file, for whoever has to open it again.
#[derive(Debug, Clone)]
pub(crate) struct DataFile {
    path: PathBuf,
    pub(crate) times: SyncTimes,
}

impl DataFile {
    pub(crate) fn new(path: &Path) -> DataFile {
        DataFile { path: path.to_owned(), times: SyncTimes::default() }
    }
}

/// Makes a new store under another name first: one whose making was cut short would be taken for none of ours for ever.
pub(crate) fn make_whole(path: &Path) -> Result<(), DatabaseError> {
    if path.exists() {
        return Ok(());
    }
    let unfinished = path.with_extension("redb.new");
    match std::fs::remove_file(&unfinished) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    drop(DataFile::new(&unfinished).open()?);
    std::fs::rename(&unfinished, path)?;
    // The name is on the disk too before anything is promised under it.
    path.parent().map_or(Ok(()), |dir| std::fs::File::open(dir)?.sync_all())?;
    Ok(())
}

impl Medium for DataFile {
    fn open(&mut self) -> Result<Database, DatabaseError> {
        let file = std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&self.path)?;
        redb::Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(Metered { file: FileBackend::new(file)?, times: self.times.clone() })
    }

    fn bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map(|m| m.len()).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_percentile_is_one_that_was_measured() {
        assert_eq!(percentile_99(vec![1; ENOUGH - 1]), None);
        assert_eq!(percentile_99(vec![5, 1, 4, 2, 3]), Some(5));
        assert_eq!(percentile_99((1..=100).collect()), Some(99));
        assert_eq!(percentile_99((1..=1_000).rev().collect()), Some(990));
    }

    #[test]
    fn a_store_whose_making_was_cut_short_is_made_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("f.redb");
        // What is left of a first start that a loss of power ended.
        std::fs::write(dir.path().join("f.redb.new"), [0; 4_096]).expect("written");
        make_whole(&path).expect("made");
        assert!(DataFile::new(&path).open().is_ok());
        assert!(!dir.path().join("f.redb.new").exists());
        std::fs::write(&path, b"of somebody else").expect("written");
        make_whole(&path).expect("nothing to make");
        assert_eq!(std::fs::read(&path).expect("read"), b"of somebody else", "what is there is left as it is");
    }

    #[test]
    fn a_file_has_one_owner_and_its_syncs_are_timed() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut file = DataFile::new(&dir.path().join("f.redb"));
        let db = file.open().expect("opened");
        assert!(matches!(file.open(), Err(DatabaseError::DatabaseAlreadyOpen)));
        for _ in 0..ENOUGH {
            db.begin_write().expect("begun").commit().expect("committed");
        }
        assert!(file.times.p99_us().is_some());
        drop(db);
        assert!(file.open().is_ok());
    }
}
