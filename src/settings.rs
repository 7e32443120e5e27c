//! How the coordinators are reached: the flag before the environment before the context of the user's file.
//!
//! A context is a name for servers, TLS files, a namespace and a token, kept in `contexts.yaml` below the user's configuration directory. It may hold a
//! token, so it is for its owner alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Fail;
use crate::args::Global;

/// Where a coordinator is looked for when nobody says.
const SERVER: &str = "127.0.0.1:7601";
const NAMESPACE: &str = "default";

/// What a command works with.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) server: Vec<String>,
    pub(crate) tls_dir: Option<PathBuf>,
    pub(crate) namespace: String,
    pub(crate) namespace_given: bool,
    pub(crate) stale: bool,
    pub(crate) token: Option<String>,
}

/// One context.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Context {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) server: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tls_dir: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
}

/// The user's file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Contexts {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    #[serde(default)]
    pub(crate) contexts: BTreeMap<String, Context>,
}

impl Contexts {
    /// Where the file is.
    pub(crate) fn path() -> Option<PathBuf> {
        let dir = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let config = dir("XDG_CONFIG_HOME").or_else(|| dir("HOME").map(|home| home.join(".config")))?;
        Some(config.join("probity/contexts.yaml"))
    }

    /// Reads the file; without one there are no contexts.
    pub(crate) fn load() -> Result<Contexts, Fail> {
        match Contexts::path() {
            Some(path) => Contexts::read(&path),
            None => Ok(Contexts::default()),
        }
    }

    fn read(path: &Path) -> Result<Contexts, Fail> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Contexts::default()),
            Err(e) => return Err(Fail::misuse(format!("cannot read {}: {e}", path.display()))),
        };
        serde_saphyr::from_str(&text).map_err(|e| {
            let place = e.location().map(|l| format!("{}:{}", l.line(), l.column())).unwrap_or_else(|| "1:1".to_owned());
            Fail::misuse(format!("{}:{place}: {}", path.display(), e.without_snippet()))
        })
    }

    /// Writes the file, for its owner alone.
    pub(crate) fn save(&self) -> Result<PathBuf, Fail> {
        let path = Contexts::path().ok_or_else(|| Fail::misuse("neither XDG_CONFIG_HOME nor HOME is set: there is no place for contexts"))?;
        let text = serde_saphyr::to_string(self).map_err(|e| Fail::no(format!("cannot write {}: {e}", path.display())))?;
        probity_rpc::enrol::write(&path, &text, 0o600).map_err(|e| Fail::of(crate::exit::NO, &e))?;
        Ok(path)
    }

    /// The context of a name; every name when there is none.
    pub(crate) fn get(&self, name: &str) -> Result<&Context, Fail> {
        self.contexts.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.contexts.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "there are none; `probity context add` makes one".to_owned() } else { format!("known: {}", known.join(", ")) };
            Fail::misuse(format!("no context {name:?} ({known})"))
        })
    }
}

impl Settings {
    /// Of the flags and the environment (clap has put the two in their order), and the user's file.
    pub(crate) fn resolve(global: &Global) -> Result<Settings, Fail> {
        let contexts = Contexts::load()?;
        let token = std::env::var("PROBITY_TOKEN").ok().filter(|t| !t.is_empty());
        Settings::merge(global, &contexts, token)
    }

    fn merge(global: &Global, contexts: &Contexts, token: Option<String>) -> Result<Settings, Fail> {
        let context = match global.context.as_ref().or(contexts.current.as_ref()) {
            Some(name) => contexts.get(name)?.clone(),
            None => Context::default(),
        };
        // Another server than the context's is not shown the context's token, nor trusted by its files.
        let elsewhere = !global.server.is_empty();
        let of_context = |elsewhere: bool| if elsewhere { Context::default() } else { context.clone() };
        let server = [global.server.clone(), context.server.clone(), vec![SERVER.to_owned()]].into_iter().find(|s| !s.is_empty()).unwrap_or_default();
        let namespace = global.namespace.clone().or(context.namespace.clone());
        Ok(Settings {
            server,
            tls_dir: global.tls_dir.clone().or(of_context(elsewhere).tls_dir),
            namespace_given: global.namespace.is_some(),
            stale: global.stale,
            namespace: namespace.unwrap_or_else(|| NAMESPACE.to_owned()),
            token: token.or(of_context(elsewhere).token),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Format;

    fn global() -> Global {
        Global { server: Vec::new(), tls_dir: None, namespace: None, context: None, stale: false, output: Format::Table }
    }

    fn contexts() -> Contexts {
        let context = |server: &str, token: Option<&str>| Context {
            server: vec![server.to_owned()],
            tls_dir: Some("/tls".into()),
            namespace: Some("shop".to_owned()),
            token: token.map(str::to_owned),
        };
        let contexts = [("prod".to_owned(), context("prod:7601", Some("t"))), ("test".to_owned(), context("test:7601", None))].into();
        Contexts { current: Some("prod".to_owned()), contexts }
    }

    #[test]
    fn the_nearer_setting_wins() {
        let merge = |global: &Global, token: Option<&str>| Settings::merge(global, &contexts(), token.map(str::to_owned));
        let prod = merge(&global(), None).expect("settings");
        assert_eq!((prod.server[0].as_str(), prod.namespace.as_str(), prod.token.as_deref()), ("prod:7601", "shop", Some("t")));
        assert!(!prod.namespace_given);
        let test = merge(&Global { context: Some("test".to_owned()), namespace: Some("x".to_owned()), ..global() }, Some("env")).expect("settings");
        assert_eq!((test.server[0].as_str(), test.namespace.as_str(), test.token.as_deref()), ("test:7601", "x", Some("env")));
        let elsewhere = merge(&Global { server: vec!["other:1".to_owned()], ..global() }, None).expect("settings");
        assert_eq!((elsewhere.server[0].as_str(), elsewhere.token, elsewhere.tls_dir), ("other:1", None, None));
        let none = Settings::merge(&global(), &Contexts::default(), None).expect("settings");
        assert_eq!((none.server[0].as_str(), none.namespace.as_str()), (SERVER, NAMESPACE));
        let unknown = merge(&Global { context: Some("nope".to_owned()), ..global() }, None).expect_err("unknown");
        assert!(unknown.message.contains("no context \"nope\" (known: prod, test)"), "{}", unknown.message);
    }

    #[test]
    fn the_file_is_read_as_it_is_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("contexts.yaml");
        assert_eq!(Contexts::read(&path).expect("none yet"), Contexts::default());
        std::fs::write(&path, serde_saphyr::to_string(&contexts()).expect("YAML")).expect("a file");
        assert_eq!(Contexts::read(&path).expect("contexts"), contexts());
        std::fs::write(&path, "contexts:\n  a: {sever: [x]}\n").expect("a file");
        let said = Contexts::read(&path).expect_err("a typo").message;
        assert!(said.contains("contexts.yaml:2:") && said.contains("sever"), "{said}");
    }
}
