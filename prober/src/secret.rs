//! Secrets: files of the host's secrets directory, read where they are used (rule R11). Their values are in no message.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// Where a host's secrets are.
#[derive(Clone, Default)]
pub(crate) struct Secrets {
    pub(crate) dir: Option<PathBuf>,
    /// Those that need no file.
    pub(crate) given: BTreeMap<String, String>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secrets").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Secrets {
    /// The value of a secret, without the line's end. The error names it, never its content.
    pub(crate) async fn read(&self, name: &str) -> Result<String, String> {
        if let Some(given) = self.given.get(name) {
            return Ok(given.clone());
        }
        let fine = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        let dir = self.dir.as_ref().filter(|_| fine).ok_or_else(|| format!("secret {name:?} is not there: no secretsDir on this host"))?;
        match tokio::fs::read_to_string(dir.join(name)).await {
            Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
            Err(e) => Err(format!("secret {name:?} cannot be read: {}", e.kind())),
        }
    }
}
