//! `ca`: an authority whose root key stays with the operator, and how others get in and out.

use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use probity_proto::units;
use probity_proto::v1::TokenUse;
use probity_rpc::access::{Grant, Role};
use probity_rpc::enrol::{self, JoinToken, READ_PREFIX, enrol, new_id, new_secret};
use probity_rpc::pki::{Authority, Checked, LIFETIME_MAX, PkiError, Subject, new_serial, request};
use probity_rpc::tls::{TlsFiles, written};
use probity_rpc::v1::access_client::AccessClient;
use probity_rpc::v1::{CreateTokenRequest, RevokeRequest};
use serde_json::json;

use crate::api::{Api, request_id};
use crate::args::{CaEnrolArgs, CaInitArgs, CaRevokeArgs, CaSignArgs, CaTokenArgs, Format};
use crate::output::print_json;
use crate::settings::Settings;
use crate::{Fail, Outcome, exit};

/// A token, with what an editor puts around it; a file that is longer is something else.
const TOKEN_BYTES_MAX: u64 = 4_096;

/// One certificate to make.
struct Part {
    name: String,
    grants: Vec<Grant>,
    /// What a server is dialled by; empty for clients.
    hosts: Vec<String>,
}

impl Part {
    fn is_coordinator(&self) -> bool {
        self.grants.contains(&Grant::everywhere(Role::Coordinator))
    }

    fn described(&self) -> String {
        self.grants.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }
}

fn cannot(what: &str, error: &PkiError) -> Fail {
    let mut fail = Fail::of(exit::NO, error);
    fail.message = format!("{what}: {}", fail.message);
    fail
}

pub(super) fn init(args: CaInitArgs) -> Outcome {
    let parts = parts(&args)?;
    if args.dir.join("ca.key").exists() {
        let hint = "`probity ca token` lets others into a running cluster; else choose another --dir";
        return Err(Fail::no(format!("{} already holds an authority; it is left as it is ({hint})", args.dir.display())));
    }
    // Whatever exists already is left alone, and nothing is made by halves.
    if let Some(taken) = parts.iter().map(|p| args.dir.join(&p.name).join("tls.crt")).find(|p| p.exists()) {
        return Err(Fail::no(format!("{} exists already; it is left as it is (choose another --dir)", taken.display())));
    }
    let lifetime = days(args.days);
    let (ca_pem, ca_key) = Authority::root(lifetime.saturating_mul(10)).map_err(|e| cannot("cannot make the authority", &e))?;
    let root = Authority::load(&ca_pem, &ca_key).map_err(|e| cannot("cannot make the authority", &e))?;
    write(&args.dir.join("ca.crt"), &ca_pem, 0o644)?;
    write(&args.dir.join("ca.key"), &ca_key, 0o600)?;
    for part in &parts {
        let dir = args.dir.join(&part.name);
        for (file, text, mode) in make(&root, part, lifetime, &args.domain).map_err(|e| cannot(&part.name, &e))? {
            write(&dir.join(file), &text, mode)?;
        }
        write(&dir.join("ca.crt"), &ca_pem, 0o644)?;
        println!("{:<12} {}", part.described(), dir.display());
    }
    println!("keep {} offline: whoever has it can let anybody in", args.dir.join("ca.key").display());
    Ok(ExitCode::SUCCESS)
}

type Files = Vec<(&'static str, String, u32)>;

/// The files of one part, but for ca.crt.
fn make(root: &Authority, part: &Part, lifetime: Duration, domains: &[String]) -> Result<Files, PkiError> {
    let keys = request(&part.name)?;
    let subject = Subject { name: part.name.clone(), grants: part.grants.clone(), hosts: part.hosts.clone(), lifetime, after_s: 0, owed_s: i64::MAX };
    let issued = root.issue(Checked::read(&keys.csr_pem)?, &subject, &new_serial())?;
    let mut files = vec![("tls.crt", issued.chain_pem, 0o644), ("tls.key", keys.key_pem, 0o600)];
    if part.is_coordinator() {
        let keys = request(&part.name)?;
        let issuer = root.intermediate(Checked::read(&keys.csr_pem)?, &part.name, domains, lifetime.saturating_mul(5))?;
        files.extend([("issuer.crt", issuer.chain_pem, 0o644), ("issuer.key", keys.key_pem, 0o600)]);
    }
    Ok(files)
}

fn days(days: u32) -> Duration {
    Duration::from_secs(u64::from(days) * 86_400).min(LIFETIME_MAX)
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), Fail> {
    enrol::write(path, text, mode).map_err(|e| Fail::of(exit::NO, &e))
}

/// `NAME=ROLE[:NAMESPACE][,...]`
fn client(text: &str) -> Result<Part, String> {
    let Some((name, roles)) = text.split_once('=').filter(|(_, roles)| !roles.is_empty()) else {
        return Err(format!("{text:?} (want NAME=ROLE[:NAMESPACE][,ROLE...], for example anna=operator:shop,viewer)"));
    };
    let grants: Result<Vec<Grant>, String> = roles.split(',').map(Grant::parse).collect();
    let grants = grants?;
    match grants.iter().find(|g| g.role.is_part()) {
        Some(part) => Err(format!("{text:?}: {} is no role of people", part.role.as_str())),
        None => Ok(Part { name: name.to_owned(), grants, hosts: Vec::new() }),
    }
}

/// `NAME=HOST[,HOST...]`
fn coordinator(text: &str) -> Result<Part, String> {
    match text.split_once('=').filter(|(_, hosts)| !hosts.is_empty()) {
        Some((name, hosts)) => {
            Ok(Part { name: name.to_owned(), grants: vec![Grant::everywhere(Role::Coordinator)], hosts: hosts.split(',').map(str::to_owned).collect() })
        }
        None => Err(format!("{text:?} (want NAME=HOST[,HOST...], the names it is dialled by)")),
    }
}

/// The validated list of parts; all mistakes at once.
fn parts(args: &CaInitArgs) -> Result<Vec<Part>, Fail> {
    let mut parts = Vec::new();
    let mut problems = Vec::new();
    let mut take = |flag: &str, found: Result<Part, String>| match found {
        Ok(part) => parts.push(part),
        Err(problem) => problems.push(format!("{flag} {problem}")),
    };
    args.coordinator.iter().for_each(|text| take("--coordinator", coordinator(text)));
    let of_role =
        [(&args.prober, Role::Prober), (&args.admin, Role::Admin), (&args.operator, Role::Operator), (&args.chaos, Role::Chaos), (&args.viewer, Role::Viewer)];
    for (names, role) in of_role {
        names.iter().for_each(|name| take("", Ok(Part { name: name.clone(), grants: vec![Grant::everywhere(role)], hosts: Vec::new() })));
    }
    args.client.iter().for_each(|text| take("--client", client(text)));
    let mut names = std::collections::BTreeSet::new();
    for part in &parts {
        let fine = !part.name.is_empty() && part.name.chars().all(|c| c.is_ascii_alphanumeric() || "-._@".contains(c)) && !part.name.starts_with('.');
        if !fine {
            problems.push(format!("name {:?} (want letters, digits, - . _ @)", part.name));
        }
        if !names.insert(&part.name) {
            problems.push(format!("name {:?} is given twice", part.name));
        }
    }
    if parts.is_empty() && problems.is_empty() {
        problems.push("nothing to make (give --coordinator, --prober, --admin, --operator, --chaos, --viewer or --client)".to_owned());
    }
    if problems.is_empty() { Ok(parts) } else { Err(Fail::misuse(problems.join("; "))) }
}

fn duration_us(flag: &str, text: &str) -> Result<u64, Fail> {
    // As in resources, and days: a certificate's life is counted in them.
    let days = text.strip_suffix('d').and_then(|n| n.parse::<u64>().ok()).map(|n| n.saturating_mul(86_400_000_000));
    match days {
        Some(us) => Ok(us),
        None => units::parse_duration(text).map_err(|m| Fail::misuse(format!("{flag}: {m}"))),
    }
}

pub(super) async fn token(api: &mut Api, settings: &Settings, args: CaTokenArgs, format: Format) -> Outcome {
    let prober = |name: &String| Ok(Part { name: name.clone(), grants: vec![Grant::everywhere(Role::Prober)], hosts: Vec::new() });
    let (kind, part) = match (&args.prober, &args.coordinator, &args.client, &args.read) {
        (Some(name), ..) => (TokenUse::Enrol, prober(name)),
        (_, Some(text), ..) => (TokenUse::Enrol, coordinator(text)),
        (_, _, Some(text), _) => (TokenUse::Enrol, client(text)),
        (_, _, _, Some(text)) => (TokenUse::Read, if text.contains('=') { client(text) } else { client(&format!("{text}=viewer")) }),
        _ => return Err(Fail::misuse("for whom is the token? (--prober, --coordinator, --client or --read)")),
    };
    let part = part.map_err(Fail::misuse)?;
    let valid = args.valid.as_deref().unwrap_or(if kind == TokenUse::Read { "90d" } else { "1h" });
    let files = settings.tls_dir.as_ref().map(TlsFiles::new).ok_or_else(|| Fail::misuse("--tls-dir is not set: a cluster in plain text has no tokens"))?;
    let (id, (secret, hash)) = (new_id(), new_secret());
    // The secret is made here: the cluster learns its hash.
    let shown = match kind {
        TokenUse::Read => format!("{READ_PREFIX}{id}.{secret}"),
        _ => {
            let root_fingerprint = files.root_fingerprint().map_err(|e| Fail::of(exit::MISUSE, &e))?;
            JoinToken { token: format!("{id}.{secret}"), root_fingerprint }.written()
        }
    };
    let message = CreateTokenRequest {
        request_id: request_id(),
        r#use: kind as i32,
        name: part.name.clone(),
        grants: part.grants.iter().map(ToString::to_string).collect(),
        hosts: part.hosts.clone(),
        valid_us: duration_us("--valid", valid)?,
        lifetime_us: args.lifetime.as_deref().map(|t| duration_us("--lifetime", t)).transpose()?.unwrap_or(0),
        id: id.clone(),
        hash,
    };
    let reply = api.operator.call_via(async |via| AccessClient::new(via).create_token(message.clone()).await).await.map_err(|s| api.fail(&s))?;
    let until = written(reply.expires_at_us / 1_000_000);
    if format == Format::Json {
        print_json(&json!({"id": id, "token": shown, "for": part.name, "roles": message.grants, "expiresAt": until}));
        return Ok(ExitCode::SUCCESS);
    }
    // The token alone on standard output, for a pipe.
    println!("{shown}");
    let how = match kind {
        TokenUse::Read => "shown as `Authorization: Bearer TOKEN`, as a browser's password, or in PROBITY_TOKEN".to_owned(),
        _ if part.grants == [Grant::everywhere(Role::Prober)] => "on its host: probity prober --config FILE --token-file FILE".to_owned(),
        _ => "on its host: probity ca enrol --token-file FILE --dir DIR --server ADDRESS".to_owned(),
    };
    eprintln!(
        "token {id} for {} ({}), valid {} until {until}; shown this once",
        part.name,
        part.described(),
        if kind == TokenUse::Read { "" } else { "once," }
    );
    eprintln!("{how}");
    Ok(ExitCode::SUCCESS)
}

/// A token from a file or standard input: on a command line it would be seen by everybody on the host.
pub(super) fn read_token(path: &Path) -> Result<String, Fail> {
    let cannot = |e: std::io::Error| Fail::misuse(format!("cannot read the token from {}: {e}", path.display()));
    let mut text = String::new();
    if path.as_os_str() == "-" {
        std::io::stdin().take(TOKEN_BYTES_MAX).read_to_string(&mut text).map_err(cannot)?;
    } else {
        std::fs::File::open(path).map_err(cannot)?.take(TOKEN_BYTES_MAX).read_to_string(&mut text).map_err(cannot)?;
    }
    match text.trim() {
        "" => Err(Fail::misuse(format!("{} holds no token", path.display()))),
        token => Ok(token.to_owned()),
    }
}

/// Enrols a host: asks `servers`, writes the files.
pub(super) async fn enrol_with(servers: &[String], token_file: &Path, files: &TlsFiles) -> Result<String, Fail> {
    let token = JoinToken::parse(&read_token(token_file)?).map_err(|m| Fail::misuse(format!("{}: {m}", token_file.display())))?;
    let reply = enrol(servers, &token, files).await.map_err(|e| {
        let code = if matches!(e, enrol::EnrolError::Unreachable(_)) { exit::UNREACHABLE } else { exit::NO };
        Fail::of(code, &e)
    })?;
    Ok(enrol::described(&reply))
}

pub(super) async fn enrol_here(settings: &Settings, args: CaEnrolArgs) -> Outcome {
    let files = TlsFiles::new(&args.dir);
    if files.has_own() {
        return Err(Fail::no(format!("{} exists already; it is left as it is (choose another --dir)", files.path("tls.crt").display())));
    }
    let who = enrol_with(&settings.server, &args.token_file, &files).await?;
    println!("enrolled {who}: {}", args.dir.display());
    if files.path("issuer.csr").exists() {
        println!("to let it issue too, sign {} with the root key: probity ca sign", files.path("issuer.csr").display());
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn sign(args: CaSignArgs) -> Outcome {
    let read = |path: &Path| std::fs::read_to_string(path).map_err(|e| Fail::misuse(format!("cannot read {}: {e}", path.display())));
    let root = Authority::load(&read(&args.dir.join("ca.crt"))?, &read(&args.dir.join("ca.key"))?).map_err(|e| cannot("the authority is of no use", &e))?;
    let csr = Checked::read(&read(&args.csr)?).map_err(|e| cannot(&args.csr.display().to_string(), &e))?;
    let issued = root.intermediate(csr, &args.name, &args.domain, days(args.days)).map_err(|e| cannot("cannot sign", &e))?;
    write(&args.out, &issued.chain_pem, 0o644)?;
    println!("{}: put it beside issuer.key of {} as issuer.crt; valid until {}", args.out.display(), args.name, written(issued.not_after_s));
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn revoke(api: &mut Api, args: CaRevokeArgs) -> Outcome {
    let kind = match (args.serial, args.name) {
        (true, _) => "serial",
        (_, true) => "name",
        _ => "",
    };
    let message = RevokeRequest { request_id: request_id(), what: args.what.clone(), reason: args.reason, kind: kind.to_owned() };
    let reply = api.operator.call_via(async |via| AccessClient::new(via).revoke(message.clone()).await).await.map_err(|s| api.fail(&s))?;
    match reply.kind.as_str() {
        "token" => println!("token {} is revoked", args.what),
        "serial" => println!("certificate {} is revoked, and whatever it issued", args.what),
        _ => println!("every certificate of {:?} until now is revoked; a new token lets it in again", args.what),
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_described_in_one_word() {
        let anna = client("anna=operator:shop,viewer").map_err(Fail::no).expect("a part");
        assert_eq!((anna.name.as_str(), anna.described().as_str()), ("anna", "operator:shop,viewer"));
        for (bad, why) in [("anna", "want NAME=ROLE"), ("anna=", "want NAME=ROLE"), ("anna=root", "is no role"), ("anna=prober", "no role of people")] {
            assert!(client(bad).err().is_some_and(|said| said.contains(why)), "{bad}");
        }
        assert!(probity_rpc::access::ROLES.iter().filter(|r| !r.is_part()).all(|r| client(&format!("a={}", r.as_str())).is_ok()));
        assert_eq!(duration_us("--valid", "2d").ok(), Some(2 * 86_400_000_000));
        assert_eq!(duration_us("--valid", "90s").ok(), Some(90_000_000));
        assert!(duration_us("--valid", "soon").is_err());
    }
}
