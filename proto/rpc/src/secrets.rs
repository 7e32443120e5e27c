//! For whom a host's secrets are: `NAME.allow` beside the file `NAME` of its `secretsDir`.
//!
//! Whoever may apply a resource may name any secret in it, so the host that has the secret says who may: `namespaces` (whose resources may
//! name it) and `hosts` (where it may be sent; `*.example.com` for all below it). Where there is no such file, any resource may, unless the host's
//! `secretsNeedAllow` is set: then none may. What a host's own configuration names is no resource's, and is not judged here.

use std::io::ErrorKind;
use std::path::Path;

use serde::Deserialize;

/// Behind a secret's name and a dot; a secret's own name has no dot.
const ALLOW: &str = "allow";

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Allowed {
    #[serde(default, deserialize_with = "present")]
    namespaces: Option<Vec<String>>,
    #[serde(default, deserialize_with = "present")]
    hosts: Option<Vec<String>>,
}

/// A key that is there limits, even if nothing stands behind it: lines that are commented out must not open what they closed.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    Option::<Vec<String>>::deserialize(deserializer).map(|all| Some(all.unwrap_or_default()))
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
    let plain = |text: &str| text.trim_end_matches('.').trim_matches(['[', ']']).to_ascii_lowercase();
    let (pattern, host) = (plain(pattern), plain(host));
    match pattern.strip_prefix("*.") {
        Some(above) => host.strip_suffix(above).is_some_and(|below| below.len() > 1 && below.ends_with('.')),
        None => pattern == host,
    }
}

/// Whether a secret of `dir` is for a resource of `namespace`, to be sent to `host`; without one it is itself where to send. The error is for a person.
pub async fn allowed(dir: &Path, need_allow: bool, name: &str, namespace: &str, host: Option<&str>) -> Result<(), String> {
    let allowed = match tokio::fs::read_to_string(dir.join(format!("{name}.{ALLOW}"))).await {
        Ok(text) => serde_saphyr::from_str::<Allowed>(&text).map_err(|_| format!("secret {name:?}: {name}.{ALLOW} on this host cannot be read"))?,
        Err(e) if e.kind() == ErrorKind::NotFound && need_allow => {
            let hint = format!("put {name}.{ALLOW} beside it, such as {{namespaces: [{namespace}]}}");
            return Err(format!("secret {name:?} is allowed to nobody, and this host's secretsNeedAllow is set ({hint})"));
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Allowed::default(),
        Err(e) => return Err(format!("secret {name:?}: {name}.{ALLOW} on this host cannot be read: {}", e.kind())),
    };
    allowed.check(namespace, host).map_err(|why| format!("secret {name:?} {why} ({name}.{ALLOW} beside it says so)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_secret_is_for_whom_its_host_says() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("a file");
        write("shop.allow", "namespaces: [shop]\nhosts: [hooks.example.com, '*.example.org', '2001:db8::1']\n");
        write("nobody.allow", "namespaces: []\n");
        write("emptied.allow", "namespaces:\n#  - shop\nhosts:\n");
        write("broken.allow", "namespace: shop\n");
        let read = async |name: &str, namespace: &str, host: Option<&str>| allowed(dir.path(), false, name, namespace, host).await;
        assert_eq!(read("open", "search", Some("evil.example")).await, Ok(()));
        for host in [Some("hooks.example.com"), Some("Hooks.Example.Com."), Some("a.example.org"), Some("a.b.example.org"), Some("[2001:DB8::1]"), None] {
            assert_eq!(read("shop", "shop", host).await, Ok(()), "{host:?}");
        }
        for (name, namespace, host, why) in [
            ("shop", "search", Some("hooks.example.com"), "is not for this namespace"),
            ("shop", "", None, "is not for this namespace"),
            ("shop", "shop", Some(""), "may not be sent to this host"),
            ("shop", "shop", Some("example.org"), "may not be sent to this host"),
            ("shop", "shop", Some(".example.org"), "may not be sent to this host"),
            ("shop", "shop", Some("evilexample.org"), "may not be sent to this host"),
            ("nobody", "shop", None, "is not for this namespace"),
            ("emptied", "shop", None, "is not for this namespace"),
            ("broken", "shop", None, "cannot be read"),
        ] {
            assert!(read(name, namespace, host).await.is_err_and(|said| said.contains(why)), "{name} {host:?}");
        }
        let refused = allowed(dir.path(), true, "open", "search", None).await.expect_err("nobody allowed it");
        assert!(refused.contains("put open.allow beside it, such as {namespaces: [search]}"), "{refused}");
        assert_eq!(allowed(dir.path(), true, "shop", "shop", Some("hooks.example.com")).await, Ok(()));
    }
}
