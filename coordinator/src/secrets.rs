//! Secrets of this host: files of `secretsDir`, read where they are used (rule R11). Their values are in no message.
//!
//! For whom each is, `NAME.allow` beside it says (see [`probity_rpc::secrets`]). What the coordinator's own configuration names is no resource's.

use std::collections::BTreeSet;
use std::path::PathBuf;

use probity_rpc::secrets::allowed;

/// The secrets of a host.
#[derive(Debug, Clone, Default)]
pub(crate) struct Secrets {
    dir: Option<PathBuf>,
    /// Of the coordinator's own configuration.
    own: BTreeSet<String>,
    /// What nobody allowed is for no resource.
    need_allow: bool,
}

impl Secrets {
    pub(crate) fn new(dir: Option<PathBuf>, own: BTreeSet<String>, need_allow: bool) -> Secrets {
        Secrets { dir, own, need_allow }
    }

    /// For a resource of `namespace`, to be sent to `host`; without one it is itself where to send.
    pub(crate) async fn read_for(&self, name: &str, namespace: &str, host: Option<&str>) -> Result<String, String> {
        if self.own.contains(name) {
            return Err(format!("secret {name:?} is the coordinator's own"));
        }
        if let Some(dir) = &self.dir {
            allowed(dir, self.need_allow, name, namespace, host).await?;
        }
        self.read(name).await
    }

    /// For the coordinator itself.
    pub(crate) async fn read(&self, name: &str) -> Result<String, String> {
        let fine = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        if !fine {
            return Err(format!("secret {name:?} is no name (want letters, digits and dashes)"));
        }
        let dir = self.dir.as_ref().ok_or_else(|| format!("secret {name:?} is not there: no secretsDir on this host"))?;
        let read = tokio::fs::read_to_string(dir.join(name)).await;
        read.map(|t| t.trim_end().to_owned()).map_err(|e| format!("secret {name:?} cannot be read: {}", e.kind()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_resource_gets_what_it_may_and_never_the_coordinators_own() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("a file");
        write("open", "o\n");
        write("shop", "s\r\n");
        write("shop.allow", "namespaces: [shop]\nhosts: [hooks.example.com]\n");
        write("deadman", "https://example.com");
        let secrets = Secrets::new(Some(dir.path().to_owned()), BTreeSet::from(["deadman".to_owned()]), false);
        let read = async |name: &str, namespace: &str, host: Option<&str>| secrets.read_for(name, namespace, host).await;
        assert_eq!(read("open", "search", Some("evil.example")).await, Ok("o".to_owned()));
        assert_eq!(read("shop", "shop", Some("hooks.example.com")).await, Ok("s".to_owned()));
        for (name, namespace, host, why) in [
            ("shop", "search", Some("hooks.example.com"), "is not for this namespace"),
            ("deadman", "shop", None, "is the coordinator's own"),
            ("absent", "shop", None, "cannot be read"),
            ("shop.allow", "shop", None, "is no name"),
            ("../shop", "shop", None, "is no name"),
        ] {
            assert!(read(name, namespace, host).await.is_err_and(|said| said.contains(why)), "{name} {host:?}");
        }
        assert_eq!(secrets.read("deadman").await, Ok("https://example.com".to_owned()));
        let strict = Secrets::new(Some(dir.path().to_owned()), BTreeSet::from(["deadman".to_owned()]), true);
        assert!(strict.read_for("open", "search", None).await.is_err_and(|said| said.contains("is allowed to nobody")));
        assert_eq!(strict.read_for("shop", "shop", Some("hooks.example.com")).await, Ok("s".to_owned()));
        assert_eq!(strict.read("deadman").await, Ok("https://example.com".to_owned()), "the coordinator's own needs none");
    }
}
