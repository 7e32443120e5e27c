//! The write-ahead journal: what was intended is on the disk before anything is touched (rule R6).

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// One line of the journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) fault: String,
    pub(crate) kind: String,
    pub(crate) step: Step,
    /// Another boot: whatever lived in the kernel or a process is gone.
    pub(crate) boot: String,
    pub(crate) pid: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Step {
    Intent,
    Applied,
    Undone,
}

/// The journal of one process.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    boot: String,
}

impl Journal {
    /// Opens the journal, and returns what an earlier process left without an end.
    pub(crate) fn open(dir: &Path) -> io::Result<(Journal, Vec<Entry>)> {
        std::fs::create_dir_all(dir)?;
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(dir.join("faults.journal"))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let mut open: BTreeMap<String, Entry> = BTreeMap::new();
        // A torn last line was never acted upon: the intent comes before the deed.
        for entry in text.lines().filter_map(|line| serde_json::from_str::<Entry>(line).ok()) {
            match entry.step {
                Step::Undone => drop(open.remove(&entry.fault)),
                _ => drop(open.insert(entry.fault.clone(), entry)),
            }
        }
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        Ok((Journal { file, boot }, open.into_values().collect()))
    }

    /// Writes a step, and waits until it is on the disk.
    pub(crate) fn write(&mut self, fault: &str, kind: &str, step: Step) -> io::Result<()> {
        let entry = Entry { fault: fault.to_owned(), kind: kind.to_owned(), step, boot: self.boot.clone(), pid: std::process::id() };
        let mut line = serde_json::to_vec(&entry)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.file.sync_data()
    }

    /// Starts afresh once nothing is open, so that the file does not grow for ever.
    pub(crate) fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.sync_data()
    }
}
