//! Secrets: files of the host's secrets directory, read where they are used (rule R11). Their values are in no message.
//! For whom each is, `NAME.allow` beside it says (see [`probity_rpc::secrets`]): whoever may apply a probe could have them sent to himself.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use probity_rpc::secrets::allowed;

use crate::cache::Cache;

/// Secrets that are lent at a time: those of a configuration's modules.
const LENT_MAX: usize = 1_024;

/// Where a host's secrets are.
#[derive(Clone)]
pub(crate) struct Secrets {
    dir: Option<PathBuf>,
    /// What nobody allowed is for no resource.
    need_allow: bool,
    /// Those that need no file.
    given: BTreeMap<String, String>,
    lent: Arc<Cache<String, Arc<str>>>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secrets").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Secrets {
    pub(crate) fn new(dir: Option<PathBuf>, need_allow: bool, given: BTreeMap<String, String>) -> Secrets {
        Secrets { dir, need_allow, given, lent: Arc::new(Cache::new(LENT_MAX)) }
    }

    /// A name by which a value can be read for a while: for what has its secrets in a configuration of its own. The name tells nothing of it,
    /// and is the same for the same value.
    pub(crate) fn lend(&self, value: &str) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, value.as_bytes());
        let name = format!("lent-{}", digest.as_ref().iter().map(|b| format!("{b:02x}")).collect::<String>());
        self.lent.put(name.clone(), value.into());
        name
    }

    /// The value of a secret, without the line's end, for a probe of `namespace`, to be sent to `host`. The error names it, never its content.
    pub(crate) async fn read_for(&self, name: &str, namespace: &str, host: &str) -> Result<String, String> {
        if let Some(given) = self.given.get(name) {
            return Ok(given.clone());
        }
        if let Some(lent) = self.lent.get(name) {
            return Ok(lent.to_string());
        }
        let fine = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        let dir = self.dir.as_ref().filter(|_| fine).ok_or_else(|| format!("secret {name:?} is not there: no secretsDir on this host"))?;
        allowed(dir, self.need_allow, name, namespace, Some(host)).await?;
        match tokio::fs::read_to_string(dir.join(name)).await {
            Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
            Err(e) => Err(format!("secret {name:?} cannot be read: {}", e.kind())),
        }
    }
}
