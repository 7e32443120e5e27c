//! A small disk that fills up: a file system in memory. Mounting one needs root.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system of its own; unmounted when dropped.
#[derive(Debug)]
pub struct Small(PathBuf);

impl Small {
    pub fn mount(at: &Path, size: &str) -> Option<Small> {
        std::fs::create_dir_all(at).expect("a directory");
        let mounted = nix::unistd::geteuid().is_root()
            && Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(at).status().is_ok_and(|s| s.success());
        if !mounted {
            eprintln!("SKIPPED: a small file system cannot be mounted here (it needs root and a kernel that lets it)");
        }
        mounted.then(|| Small(at.to_owned()))
    }

    /// Takes all that is left.
    pub fn fill(&self) {
        use std::io::Write;
        let mut file = std::fs::File::create(self.ballast()).expect("a file");
        let block = vec![0xa5u8; 64 * 1024];
        while file.write_all(&block).is_ok() {}
    }

    pub fn free(&self) {
        std::fs::remove_file(self.ballast()).expect("removed");
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
