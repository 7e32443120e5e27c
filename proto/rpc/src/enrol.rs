//! How a host gets its certificate, and keeps having one: a join token once, and a renewal before each end.
//!
//! Private keys are made here and stay here. Files are written beside the old ones and renamed: a reader sees the old or the new, and one that
//! catches the key of one with the certificate of the other finds that they do not fit, and looks again.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tonic::Code;

use crate::access::{Grant, Role};
use crate::client::{AddressError, cause, channel_with, describe};
use crate::connect::Trust;
use crate::pki::{self, PkiError};
use crate::refusal::Refusal;
use crate::tls::{Certified, TlsError, TlsFiles};
use crate::v1::access_client::AccessClient;
use crate::v1::{EnrolReply, EnrolRequest, RenewRequest};

/// What stands before a token that enrols.
const PREFIX: &str = "probity-join-";
/// What stands before a token that reads.
pub const READ_PREFIX: &str = "probity-read-";
/// How often the own certificate's age is looked at. Short-lived certificates are for tests and for the very careful.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often coordinators are asked, one after the other: an election is over by then.
const TRIES: usize = 10;
/// How long one of them may take.
const TRY: Duration = Duration::from_secs(10);
/// The pause before the next.
const PAUSE: Duration = Duration::from_millis(500);
/// The wait after files that cannot be used.
const RETRY_EVERY: Duration = Duration::from_secs(60);
/// The longest wait after a renewal that failed.
const RENEW_AGAIN_MAX: Duration = Duration::from_secs(900);

/// A join token as a person carries it: who may enrol is the cluster's to know, whom to believe stands in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// `ID.SECRET`: what the cluster is shown.
    pub token: String,
    /// SHA-256 of the root's certificate, hexadecimal.
    pub root_fingerprint: String,
}

impl JoinToken {
    /// Reads what [`JoinToken::written`] wrote; the error never shows the secret.
    pub fn parse(text: &str) -> Result<JoinToken, String> {
        let wrong = || format!("not a join token (want {PREFIX}ID.SECRET.FINGERPRINT, as `probity ca token` prints it)");
        let rest = text.trim().strip_prefix(PREFIX).ok_or_else(wrong)?;
        let mut parts = rest.split('.');
        let (Some(id), Some(secret), Some(root), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else { return Err(wrong()) };
        let fine = !id.is_empty() && !secret.is_empty() && root.len() == 64 && root.bytes().all(|b| b.is_ascii_hexdigit());
        if !fine {
            return Err(wrong());
        }
        Ok(JoinToken { token: format!("{id}.{secret}"), root_fingerprint: root.to_ascii_lowercase() })
    }

    /// As one word.
    pub fn written(&self) -> String {
        format!("{PREFIX}{}.{}", self.token, self.root_fingerprint)
    }
}

/// A fresh token's id, which is no secret.
pub fn new_id() -> String {
    format!("t-{}", crate::tls::hex(&rand::random::<[u8; 4]>()))
}

/// A fresh secret of 256 bits, and its hash.
pub fn new_secret() -> (String, Vec<u8>) {
    let secret = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
    let hash = secret_hash(&secret);
    (secret, hash)
}

/// What the cluster keeps of a secret. It is as random as a key: no slow hash is needed.
pub fn secret_hash(secret: &str) -> Vec<u8> {
    ring::digest::digest(&ring::digest::SHA256, secret.as_bytes()).as_ref().to_vec()
}

/// A host cannot enrol or renew.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// A file.
    #[error("cannot write {path}")]
    Write {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The key or the request.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The files that are there.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// An address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The coordinators say no.
    #[error("{0}")]
    Refused(String),
    /// None of them answers.
    #[error("no coordinator answers: {0}")]
    Unreachable(String),
    /// What came back is not for us.
    #[error("the coordinator sent a certificate of {0}")]
    Other(String),
}

/// Gets a certificate for a token from one of `addresses`, and writes ca.crt, tls.crt and tls.key.
pub async fn enrol(addresses: &[String], token: &JoinToken, files: &TlsFiles) -> Result<EnrolReply, EnrolError> {
    let request = pki::request("enrols")?;
    // The key first: a certificate whose key was lost would have burnt the token.
    write(&files.path("tls.key.new"), &request.key_pem, 0o600)?;
    let asked = Asked::Enrol(EnrolRequest { token: token.token.clone(), csr_pem: request.csr_pem });
    let reply = ask(addresses, &Trust::Pinned(token.root_fingerprint.clone()), &asked).await?;
    install(files, &reply)?;
    if reply.grants.iter().any(|g| g == Role::Coordinator.as_str()) {
        // It can issue as soon as the root's keeper signed this: `probity ca sign`.
        let issuer = pki::request(&reply.name)?;
        write(&files.path("issuer.key"), &issuer.key_pem, 0o600)?;
        write(&files.path("issuer.csr"), &issuer.csr_pem, 0o644)?;
    }
    Ok(reply)
}

enum Asked {
    Enrol(EnrolRequest),
    Renew(RenewRequest),
}

/// Asks one coordinator after the other, following the leader, until one answers.
async fn ask(addresses: &[String], trust: &Trust, asked: &Asked) -> Result<EnrolReply, EnrolError> {
    let mut last = String::new();
    let mut queue: Vec<String> = addresses.to_vec();
    for _ in 0..TRIES {
        let Some(address) = queue.first().cloned() else { break };
        queue.rotate_left(1);
        let mut client = AccessClient::new(channel_with(&address, trust.clone())?);
        let call = async {
            match asked {
                Asked::Enrol(message) => client.enrol(message.clone()).await,
                Asked::Renew(message) => client.renew(message.clone()).await,
            }
        };
        match tokio::time::timeout(TRY, call).await {
            Ok(Ok(reply)) => return Ok(reply.into_inner()),
            Ok(Err(status)) => match Refusal::of(&status) {
                Some(Refusal::NotLeader(Some(leader))) => {
                    queue.retain(|a| *a != leader);
                    queue.insert(0, leader);
                }
                None if status.code() != Code::Unavailable => return Err(EnrolError::Refused(status.message().to_owned())),
                Some(_) => {
                    last = format!("{address}: {}", status.message());
                    tokio::time::sleep(PAUSE).await;
                }
                None => {
                    last = cause(&status);
                    tokio::time::sleep(PAUSE).await;
                }
            },
            Err(_) => last = format!("{address}: no answer within {} s", TRY.as_secs()),
        }
    }
    Err(EnrolError::Unreachable(last))
}

fn install(files: &TlsFiles, reply: &EnrolReply) -> Result<(), EnrolError> {
    write(&files.path("ca.crt"), &reply.ca_pem, 0o644)?;
    write(&files.path("tls.crt.new"), &reply.certificate_pem, 0o644)?;
    put(files, "tls.key")?;
    put(files, "tls.crt")
}

/// Puts a new file in the place of the old one, for good.
fn put(files: &TlsFiles, name: &str) -> Result<(), EnrolError> {
    let (from, to) = (files.path(&format!("{name}.new")), files.path(name));
    let done = std::fs::rename(&from, &to).and_then(|()| std::fs::File::open(&files.dir)?.sync_all());
    done.map_err(|source| EnrolError::Write { path: to.display().to_string(), source })
}

/// Ends what a crash in the middle of a renewal left: the new key with the old certificate, or both new files beside the old ones. To be called
/// before the files are used, by whoever renews them; whether there was anything to do.
pub fn mend(files: &TlsFiles) -> Result<bool, EnrolError> {
    if !files.path("tls.crt.new").exists() {
        return Ok(false);
    }
    if files.fit("tls.crt.new", "tls.key.new") {
        put(files, "tls.key")?;
    } else if !files.fit("tls.crt.new", "tls.key") {
        // Of neither key: it is of no use to anybody.
        let path = files.path("tls.crt.new");
        std::fs::remove_file(&path).map_err(|source| EnrolError::Write { path: path.display().to_string(), source })?;
        return Ok(false);
    }
    put(files, "tls.crt")?;
    Ok(true)
}

/// Writes a file as a whole, with its mode from the start.
pub fn write(path: &Path, text: &str, mode: u32) -> Result<(), EnrolError> {
    let failed = |source: std::io::Error| EnrolError::Write { path: path.display().to_string(), source };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    let beside = path.with_extension(format!("{}.tmp", path.extension().and_then(|e| e.to_str()).unwrap_or("file")));
    let _ = std::fs::remove_file(&beside);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&beside, path).map_err(failed)
}

/// Asks for a fresh certificate with the one that holds, and puts it in its place.
pub async fn renew(addresses: &[String], files: &TlsFiles) -> Result<Certified, EnrolError> {
    let own = files.own()?;
    let request = pki::request(&own.name)?;
    // A connection of its own: it must not be one that is bound to the old certificate.
    let reply = ask(addresses, &Trust::Files(files.clone()), &Asked::Renew(RenewRequest { csr_pem: request.csr_pem })).await?;
    if reply.name != own.name {
        return Err(EnrolError::Other(reply.name));
    }
    write(&files.path("tls.key.new"), &request.key_pem, 0o600)?;
    // The authority stays the one that is believed here: a renewal is no way to bring another.
    let reply = EnrolReply { ca_pem: std::fs::read_to_string(files.path("ca.crt")).unwrap_or(reply.ca_pem), ..reply };
    install(files, &reply)?;
    Ok(files.own()?)
}

/// Whether it is time for a new certificate.
pub fn due(own: &Certified, now_s: i64) -> bool {
    now_s >= own.renew_at_s()
}

/// Renews the certificate in `files` whenever it is [`due`], for ever. `told` hears what happened, for the log.
pub async fn keep_renewed(addresses: Vec<String>, files: TlsFiles, told: impl Fn(Result<&Certified, &str>) + Send) {
    loop {
        let now_s = jiff::Timestamp::now().as_second();
        match files.own() {
            Ok(own) if due(&own, now_s) => {
                match renew(&addresses, &files).await {
                    Ok(own) => told(Ok(&own)),
                    Err(e) => {
                        told(Err(&describe(&e)));
                        // The nearer the end, the sooner again: a fleet whose issuer ends, or has no leader, asks in good time and not all the time.
                        let left = u64::try_from(own.not_after_s - now_s).unwrap_or(0);
                        tokio::time::sleep(RENEW_AGAIN_MAX.min(Duration::from_secs((left / 20).max(1)))).await;
                    }
                }
            }
            Ok(own) => {
                let wait = u64::try_from(own.renew_at_s() - now_s).unwrap_or(0).max(1);
                tokio::time::sleep(LOOK_EVERY.min(Duration::from_secs(wait))).await;
            }
            Err(e) => {
                told(Err(&describe(&e)));
                tokio::time::sleep(RETRY_EVERY).await;
            }
        }
    }
}

/// The roles in a reply, for a person.
pub fn described(reply: &EnrolReply) -> String {
    let grants: Vec<String> = reply.grants.iter().filter_map(|g| Grant::parse(g).ok()).map(|g| g.to_string()).collect();
    format!("{} ({}), valid until {}", reply.name, grants.join(", "), crate::tls::written(reply.not_after_us / 1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_word() {
        let root_fingerprint = "ab".repeat(32);
        let token = JoinToken { token: "t-12345678.c2VjcmV0".to_owned(), root_fingerprint };
        assert_eq!(JoinToken::parse(&format!("  {}\n", token.written())), Ok(token));
        for bad in ["", "secret-secret", "probity-join-t-1.secret-secret", "probity-join-t-1.secret-secret.abc", "probity-join-..", "probity-join-a.b.c.d"] {
            let said = JoinToken::parse(bad).expect_err(bad);
            assert!(!said.contains("secret-secret"), "{said}");
        }
    }

    #[test]
    fn secrets_differ_and_their_hash_is_what_is_kept() {
        let ((a, hash_a), (b, _)) = (new_secret(), new_secret());
        assert_ne!(a, b);
        assert_eq!(hash_a, secret_hash(&a));
        assert_eq!(hash_a.len(), 32);
    }

    /// A crash before, between and after the renames of a renewal, and what is of no use.
    #[test]
    fn a_renewal_that_a_crash_cut_short_is_ended() {
        use crate::pki::{Authority, Checked, LIFETIME, Subject, new_serial};
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (root_pem, root_key) = Authority::root(LIFETIME).expect("a root");
        let root = Authority::load(&root_pem, &root_key).expect("the root");
        let pair = || {
            let keys = pki::request("e1").expect("a key");
            let subject = Subject { name: "e1".to_owned(), grants: Vec::new(), hosts: Vec::new(), lifetime: LIFETIME, after_s: 0, owed_s: i64::MAX };
            let issued = root.issue(Checked::read(&keys.csr_pem).expect("a request"), &subject, &new_serial()).expect("issued");
            (issued.chain_pem, keys.key_pem)
        };
        let ((old_crt, old_key), (new_crt, new_key)) = (pair(), pair());
        for (key, key_new, crt_new, mended, now) in [
            (&old_key, None, None, false, &old_crt),
            (&old_key, Some(&new_key), None, false, &old_crt),
            (&old_key, Some(&new_key), Some(&new_crt), true, &new_crt),
            (&new_key, None, Some(&new_crt), true, &new_crt),
            (&old_key, None, Some(&new_crt), false, &old_crt),
        ] {
            let dir = tempfile::tempdir().expect("a directory");
            let files = TlsFiles::new(dir.path());
            let put = |name: &str, text: &str| std::fs::write(files.path(name), text).expect("a file");
            put("ca.crt", &root_pem);
            put("tls.crt", &old_crt);
            put("tls.key", key);
            for (name, text) in [("tls.key.new", key_new), ("tls.crt.new", crt_new)] {
                text.into_iter().for_each(|text| put(name, text));
            }
            assert_eq!(mend(&files).expect("mended"), mended);
            assert!(files.client().is_ok() && !files.path("tls.crt.new").exists());
            assert_eq!(&std::fs::read_to_string(files.path("tls.crt")).expect("it"), now);
        }
    }

    #[test]
    fn files_are_replaced_as_a_whole() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("deep/tls.key");
        write(&path, "one", 0o600).expect("written");
        write(&path, "two", 0o600).expect("written again");
        assert_eq!(std::fs::read_to_string(&path).expect("it"), "two");
        assert_eq!(std::fs::metadata(&path).expect("it").permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path().join("deep")).expect("it").count(), 1, "nothing is left beside it");
    }
}
