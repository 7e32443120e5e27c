//! A person's certificate renews itself: on a command that reached a coordinator, when two thirds of its life are over, as a server's does.
//!
//! Deliberately quiet: what cannot be renewed (files that cannot be written, an issuer that ends) is told near the end only, and no command fails for it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use probity_rpc::enrol;
use probity_rpc::tls::{Certified, TlsFiles, written};

use crate::settings::Settings;

/// How long a command waits for it.
const PATIENCE: Duration = Duration::from_secs(5);
/// Who renews holds a lock on it: of two at once one key would be of the other's certificate.
const LOCK: &str = "renewal.lock";
/// What is left of a life, as a share of it, when its bearer is told of what does not work.
const TELL_BELOW: i64 = 6;

/// The lock; none while another command has it. The error says why there is none at all.
fn lock(files: &TlsFiles) -> Result<Option<File>, String> {
    let key = files.path("tls.key");
    let owner = std::fs::metadata(&key).map_err(|e| format!("{}: {e}", key.display()))?.uid();
    let path = files.path(LOCK);
    let file = OpenOptions::new().create(true).append(true).open(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let own = file.metadata().map_err(|e| format!("{}: {e}", path.display()))?.uid();
    // A key that root wrote could be read by nobody else.
    if own != owner {
        return Err(format!("{} is another user's", key.display()));
    }
    Ok(file.try_lock().is_ok().then_some(file))
}

/// Ends what a crash in the middle of a renewal left; before the files are used.
pub(crate) fn mend(settings: &Settings) {
    let Some(files) = settings.tls_dir.as_ref().map(TlsFiles::new) else { return };
    if files.path("tls.crt.new").exists()
        && let Ok(Some(_lock)) = lock(&files)
    {
        // What cannot be mended is told by whoever uses the files.
        let _ = enrol::mend(&files);
    }
}

/// After a command that `reached` a coordinator.
pub(crate) async fn look(settings: &Settings, reached: Option<&str>) {
    let (Some(files), Some(reached)) = (settings.tls_dir.as_ref().map(TlsFiles::new), reached) else { return };
    // Who reads with a token has no certificate.
    let Ok(own) = files.own() else { return };
    let now_s = jiff::Timestamp::now().as_second();
    if !enrol::due(&own, now_s) || own.grants.iter().any(|g| g.role.is_part()) {
        return;
    }
    match renew(settings, &files, reached).await {
        Ok(Some(own)) => eprintln!("the certificate of {} was renewed: it is valid until {}", own.name, written(own.not_after_s)),
        Ok(None) => {}
        Err(why) if own.not_after_s - now_s < (own.not_after_s - own.not_before_s) / TELL_BELOW => eprintln!(
            "warning: the certificate of {} ends at {} and was not renewed: {why} (a token lets it in again: `probity ca token`, `probity ca enrol`)",
            own.name,
            written(own.not_after_s)
        ),
        Err(_) => {}
    }
}

async fn renew(settings: &Settings, files: &TlsFiles, reached: &str) -> Result<Option<Certified>, String> {
    // First: nothing is asked for that could not be kept.
    let Some(_lock) = lock(files)? else { return Ok(None) };
    let others = settings.server.iter().filter(|s| *s != reached).cloned();
    let addresses: Vec<String> = std::iter::once(reached.to_owned()).chain(others).collect();
    match tokio::time::timeout(PATIENCE, enrol::renew(&addresses, files)).await {
        Ok(renewed) => renewed.map(Some).map_err(|e| probity_rpc::client::describe(&e)),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_renews_at_a_time_and_nobody_where_it_cannot_be_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let files = TlsFiles::new(dir.path());
        assert!(lock(&files).is_err_and(|why| why.contains("tls.key")), "no key: nothing to renew");
        assert!(!files.path(LOCK).exists());
        std::fs::write(files.path("tls.key"), "").expect("a file");
        let held = lock(&files).expect("writable");
        assert!(held.is_some());
        assert!(lock(&files).expect("writable").is_none(), "another has it");
        drop(held);
        assert!(lock(&files).expect("writable").is_some());
    }
}
