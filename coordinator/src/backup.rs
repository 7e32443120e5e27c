//! Backup files: parts of a backup, each with its length and checksum; and the data directory of a cluster made of one.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use probity_proto::v1::{BackupHeader, BackupPart, MemberRecord};
use probity_replica::{BackupError, Checked};
use prost::Message;

use crate::config::CoordinatorConfig;

const MAGIC: &[u8] = b"probity backup 1\n";
/// A part is a chunk of rows: half a MiB, and its last row.
const PART_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What went wrong with a backup file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read or written.
    #[error("cannot use {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is none of ours, or damaged.
    #[error("{}: {what}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Its content.
    #[error("{}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: BackupError,
    },
    /// There is something already.
    #[error("{} exists already; it is left as it is (move it away, or set another dataDir)", .0.display())]
    Exists(PathBuf),
    /// The new store.
    #[error("cannot make the store in {}", path.display())]
    Store {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: redb::DatabaseError,
    },
}

/// A backup file that is being written: it has its name only when it is whole.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    partial: PathBuf,
    file: BufWriter<File>,
    checked: Checked,
    bytes: u64,
}

impl Writer {
    /// Begins `path`, which must not exist; it is for its owner alone, since it holds all that the cluster knows.
    pub fn create(path: &Path) -> Result<Writer, FileError> {
        if path.exists() {
            return Err(FileError::Exists(path.to_owned()));
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let partial = path.with_file_name(name);
        let io = |source| FileError::Io { path: partial.clone(), source };
        let mut file = BufWriter::new(OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial).map_err(io)?);
        file.write_all(MAGIC).map_err(|source| FileError::Io { path: partial.clone(), source })?;
        Ok(Writer { path: path.to_owned(), partial, file, checked: Checked::default(), bytes: MAGIC.len() as u64 })
    }

    /// Adds a part, as it came from the cluster.
    pub fn part(&mut self, part: BackupPart) -> Result<(), FileError> {
        let bytes = part.encode_to_vec();
        let io = |source| FileError::Io { path: self.partial.clone(), source };
        self.file.write_all(&(bytes.len() as u32).to_le_bytes()).map_err(io)?;
        self.file.write_all(&crc32c::crc32c(&bytes).to_le_bytes()).map_err(io)?;
        self.file.write_all(&bytes).map_err(io)?;
        self.bytes += 8 + bytes.len() as u64;
        self.checked.part(part).map_err(|source| FileError::Content { path: self.path.clone(), source })
    }

    /// Checks that it is whole, and gives it its name. Header, rows, bytes.
    pub fn finish(self) -> Result<(BackupHeader, u64, u64), FileError> {
        let (header, rows) = self.checked.whole().map_err(|source| FileError::Content { path: self.path.clone(), source })?;
        let header = header.clone();
        let io = |source| FileError::Io { path: self.path.clone(), source };
        let file = self.file.into_inner().map_err(|e| io(e.into_error()))?;
        file.sync_all().map_err(io)?;
        std::fs::rename(&self.partial, &self.path).map_err(io)?;
        let dir = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir).and_then(|d| d.sync_all()).map_err(io)?;
        Ok((header, rows, self.bytes))
    }
}

/// Reads a backup file, and checks it whole.
pub fn read(path: &Path) -> Result<Checked, FileError> {
    let io = |source| FileError::Io { path: path.to_owned(), source };
    let damaged = |what: String| FileError::Damaged { path: path.to_owned(), what };
    let mut file = BufReader::new(File::open(path).map_err(io)?);
    let mut magic = [0; MAGIC.len()];
    let named = file.read_exact(&mut magic).is_ok() && magic == MAGIC;
    if !named {
        return Err(damaged("is no backup of probity (`probity cluster backup` writes one)".to_owned()));
    }
    let mut checked = Checked::default();
    let mut at = MAGIC.len() as u64;
    loop {
        let mut head = [0; 8];
        match file.read(&mut head[..1]).map_err(io)? {
            0 => break,
            _ => file.read_exact(&mut head[1..]).map_err(|_| damaged(format!("ends in the middle of a part, at byte {at}")))?,
        }
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let crc = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        if length > PART_BYTES_MAX {
            return Err(damaged(format!("has a part of impossible length at byte {at}")));
        }
        let mut bytes = vec![0; length];
        file.read_exact(&mut bytes).map_err(|_| damaged(format!("ends in the middle of a part, at byte {at}")))?;
        if crc32c::crc32c(&bytes) != crc {
            return Err(damaged(format!("has a wrong checksum at byte {at}")));
        }
        let part = BackupPart::decode(bytes.as_slice()).map_err(|_| damaged(format!("has no part of a backup at byte {at}")))?;
        checked.part(part).map_err(|source| FileError::Content { path: path.to_owned(), source })?;
        at += 8 + length as u64;
    }
    checked.whole().map_err(|source| FileError::Content { path: path.to_owned(), source })?;
    Ok(checked)
}

/// What a restore made.
#[derive(Debug)]
pub struct Restored {
    /// The new cluster.
    pub cluster_id: String,
    /// Of the backup.
    pub header: BackupHeader,
}

/// Makes the data directory of `config` from a backup: the first member of a new cluster.
pub fn restore(path: &Path, config: &CoordinatorConfig) -> Result<Restored, FileError> {
    let dir = &config.data_dir;
    let io = |source| FileError::Io { path: dir.clone(), source };
    std::fs::create_dir_all(dir).map_err(io)?;
    if std::fs::read_dir(dir).map_err(io)?.next().is_some() {
        return Err(FileError::Exists(dir.clone()));
    }
    let checked = read(path)?;
    let member = MemberRecord {
        id: crate::start::new_member_id(),
        name: config.name.clone(),
        address: config.advertise.clone(),
        http_address: config.http.to_string(),
        software_version: env!("CARGO_PKG_VERSION").to_owned(),
        max_command_version: crate::start::command_version(),
        ..MemberRecord::default()
    };
    let cluster_id = format!("{:016x}", rand::random::<u64>());
    // Under its name only when it is whole: a restore that was cut short leaves no store that would start.
    let (partial, store) = (dir.join("coordinator.redb.partial"), dir.join("coordinator.redb"));
    let db = redb::Database::create(&partial).map_err(|source| FileError::Store { path: dir.clone(), source })?;
    let header = checked.restore(db, &cluster_id, member).map_err(|source| FileError::Content { path: path.to_owned(), source })?;
    std::fs::rename(&partial, &store).map_err(io)?;
    File::open(dir).and_then(|d| d.sync_all()).map_err(io)?;
    Ok(Restored { cluster_id, header })
}

#[cfg(test)]
mod tests {
    use super::*;
    use probity_proto::v1::backup_part::Part;
    use probity_proto::v1::{BackupEnd, StateRows};

    fn small() -> Vec<BackupPart> {
        let parts = [Part::Header(BackupHeader::default()), Part::Rows(StateRows::default()), Part::End(BackupEnd::default())];
        parts.into_iter().map(|part| BackupPart { part: Some(part) }).collect()
    }

    fn written(dir: &Path) -> PathBuf {
        let path = dir.join("b");
        let mut writer = Writer::create(&path).expect("begun");
        small().into_iter().for_each(|part| writer.part(part).expect("taken"));
        assert!(!path.exists(), "not before it is whole");
        writer.finish().expect("whole");
        path
    }

    #[test]
    fn every_byte_of_a_file_is_checked() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = written(dir.path());
        assert!(read(&path).is_ok());
        let whole = std::fs::read(&path).expect("bytes");
        let changed = dir.path().join("changed");
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x41;
            std::fs::write(&changed, &bytes).expect("written");
            assert!(read(&changed).is_err(), "byte {at}");
            std::fs::write(&changed, &whole[..at]).expect("written");
            assert!(read(&changed).is_err(), "cut at {at}");
        }
        let mut longer = whole;
        longer.push(0);
        std::fs::write(&changed, longer).expect("written");
        assert!(read(&changed).is_err(), "longer");
    }

    #[test]
    fn nothing_is_written_over() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = written(dir.path());
        assert!(matches!(Writer::create(&path), Err(FileError::Exists(_))));
    }
}
