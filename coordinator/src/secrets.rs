//! Secrets of this host: files of `secretsDir`, read where they are used (rule R11). Their values are in no message.
//!
//! Who may apply a receiver or a probe may name any of them, so the host says for whom each is: `NAME.allow` beside `NAME`, YAML with
//! `namespaces` (whose resources may name it) and `hosts` (where it may be sent; `*.example.com` for all below it). Where there is none, any
//! resource may. What the coordinator's own configuration names is no resource's.

use std::path::PathBuf;

use serde::Deserialize;

/// A namespace's directory of secrets would need another name; this file cannot be one, for its dot.
const ALLOW: &str = "allow";

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Allowed {
    namespaces: Option<Vec<String>>,
    hosts: Option<Vec<String>>,
}

impl Allowed {
    fn check(&self, namespace: &str, host: Option<&str>) -> Result<(), &'static str> {
        if self.namespaces.as_ref().is_some_and(|all| !all.iter().any(|n| n == namespace)) {
            return Err("is not for this namespace");
        }
        match (&self.hosts, host) {
            (Some(hosts), Some(host)) if !hosts.iter().any(|h| names(h, host)) => Err("may not be sent to this host"),
            _ => Ok(()),
        }
    }
}

/// Whether a host is meant by `pattern`: itself, or for `*.` whatever is below.
fn names(pattern: &str, host: &str) -> bool {
    let (pattern, host) = (pattern.to_ascii_lowercase(), host.trim_end_matches('.').to_ascii_lowercase());
    match pattern.strip_prefix("*.") {
        Some(above) => host.strip_suffix(above).is_some_and(|below| below.len() > 1 && below.ends_with('.')),
        None => pattern == host,
    }
}

/// The secrets of a host.
#[derive(Debug, Clone, Default)]
pub(crate) struct Secrets {
    dir: Option<PathBuf>,
    /// Of the coordinator's own configuration.
    own: Option<String>,
}

impl Secrets {
    pub(crate) fn new(dir: Option<PathBuf>, own: Option<String>) -> Secrets {
        Secrets { dir, own }
    }

    /// For a resource of `namespace`, to be sent to `host`; without one it is itself where to send.
    pub(crate) async fn read_for(&self, name: &str, namespace: &str, host: Option<&str>) -> Result<String, String> {
        if self.own.as_deref() == Some(name) {
            return Err(format!("secret {name:?} is the coordinator's own"));
        }
        if let Some(dir) = &self.dir {
            let allowed = match tokio::fs::read_to_string(dir.join(format!("{name}.{ALLOW}"))).await {
                Ok(text) => serde_saphyr::from_str::<Allowed>(&text).map_err(|_| format!("secret {name:?}: {name}.{ALLOW} on this host cannot be read"))?,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Allowed::default(),
                Err(e) => return Err(format!("secret {name:?}: {name}.{ALLOW} on this host cannot be read: {}", e.kind())),
            };
            allowed.check(namespace, host).map_err(|why| format!("secret {name:?} {why} ({name}.{ALLOW} beside it says so)"))?;
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
    async fn a_secret_is_for_whom_its_host_says() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("a file");
        write("open", "o\n");
        write("shop", "s\r\n");
        write("shop.allow", "namespaces: [shop]\nhosts: [hooks.example.com, '*.example.org']\n");
        write("nobody", "n");
        write("nobody.allow", "namespaces: []\n");
        write("broken", "b");
        write("broken.allow", "namespace: shop\n");
        write("deadman", "https://example.com");
        let secrets = Secrets::new(Some(dir.path().to_owned()), Some("deadman".to_owned()));
        let read = async |name: &str, namespace: &str, host: Option<&str>| secrets.read_for(name, namespace, host).await;
        assert_eq!(read("open", "search", Some("evil.example")).await, Ok("o".to_owned()));
        for host in [Some("hooks.example.com"), Some("Hooks.Example.Com."), Some("a.example.org"), Some("a.b.example.org"), None] {
            assert_eq!(read("shop", "shop", host).await, Ok("s".to_owned()), "{host:?}");
        }
        for (name, namespace, host, why) in [
            ("shop", "search", Some("hooks.example.com"), "is not for this namespace"),
            ("shop", "shop", Some("example.org"), "may not be sent to this host"),
            ("shop", "shop", Some(".example.org"), "may not be sent to this host"),
            ("shop", "shop", Some("evilexample.org"), "may not be sent to this host"),
            ("nobody", "shop", None, "is not for this namespace"),
            ("broken", "shop", None, "cannot be read"),
            ("deadman", "shop", None, "is the coordinator's own"),
            ("absent", "shop", None, "cannot be read"),
            ("shop.allow", "shop", None, "is no name"),
            ("../shop", "shop", None, "is no name"),
        ] {
            assert!(read(name, namespace, host).await.is_err_and(|said| said.contains(why)), "{name} {host:?}");
        }
        assert_eq!(secrets.read("deadman").await, Ok("https://example.com".to_owned()));
    }
}
