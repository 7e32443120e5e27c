//! `ca init`: an authority, and a directory of TLS files for each part. The root key stays with the operator.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;

use probity_rpc::tls::Role;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};

use crate::args::CaInitArgs;
use crate::{Fail, Outcome};

/// One certificate to make.
struct Part {
    name: String,
    role: Role,
    /// What a server is dialled by; empty for clients.
    hosts: Vec<String>,
}

pub(super) fn init(args: CaInitArgs) -> Outcome {
    let parts = parts(&args)?;
    if args.dir.join("ca.key").exists() {
        return Err(Fail::no(format!("{} already holds an authority; it is left as it is (choose another --dir)", args.dir.display())));
    }
    let ca = authority(args.days).map_err(|e| Fail::no(format!("cannot make the authority: {e}")))?;
    write(&args.dir.join("ca.crt"), &ca.pem(), 0o644)?;
    write(&args.dir.join("ca.key"), &ca.key().serialize_pem(), 0o600)?;
    for part in &parts {
        let (certificate, key) = issue(&ca, part, args.days).map_err(|e| Fail::misuse(format!("{}: {e}", part.name)))?;
        let dir = args.dir.join(&part.name);
        write(&dir.join("ca.crt"), &ca.pem(), 0o644)?;
        write(&dir.join("tls.crt"), &certificate, 0o644)?;
        write(&dir.join("tls.key"), &key, 0o600)?;
        println!("{:<12} {}", part.role.as_str(), dir.display());
    }
    println!("keep {} offline: whoever has it can let anybody in", args.dir.join("ca.key").display());
    Ok(ExitCode::SUCCESS)
}

/// The validated list of parts; all mistakes at once.
fn parts(args: &CaInitArgs) -> Result<Vec<Part>, Fail> {
    let mut parts = Vec::new();
    let mut problems = Vec::new();
    for text in &args.coordinator {
        match text.split_once('=') {
            Some((name, hosts)) if !hosts.is_empty() => {
                parts.push(Part { name: name.to_owned(), role: Role::Coordinator, hosts: hosts.split(',').map(str::to_owned).collect() })
            }
            _ => problems.push(format!("--coordinator {text:?} (want NAME=HOST[,HOST...], the names it is dialled by)")),
        }
    }
    let clients = [(&args.prober, Role::Prober), (&args.admin, Role::Admin), (&args.operator, Role::Operator), (&args.viewer, Role::Viewer)];
    for (names, role) in clients {
        parts.extend(names.iter().map(|name| Part { name: name.clone(), role, hosts: Vec::new() }));
    }
    let mut names = std::collections::BTreeSet::new();
    for part in &parts {
        let fine = !part.name.is_empty() && part.name.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)) && !part.name.starts_with('.');
        if !fine {
            problems.push(format!("name {:?} (want letters, digits, - . _)", part.name));
        }
        if !names.insert(&part.name) {
            problems.push(format!("name {:?} is given twice", part.name));
        }
    }
    if parts.is_empty() {
        problems.push("nothing to make (give --coordinator, --prober, --admin, --operator or --viewer)".to_owned());
    }
    if problems.is_empty() { Ok(parts) } else { Err(Fail::misuse(problems.join("; "))) }
}

/// Sets how long a certificate is valid: from an hour ago, for clocks that differ.
fn validity(params: &mut CertificateParams, days: u32) {
    let now = std::time::SystemTime::now();
    params.not_before = (now - std::time::Duration::from_secs(3_600)).into();
    params.not_after = (now + std::time::Duration::from_secs(u64::from(days) * 86_400)).into();
}

fn authority(days: u32) -> Result<CertifiedIssuer<'static, KeyPair>, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "probity authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, days.saturating_mul(10));
    CertifiedIssuer::self_signed(params, KeyPair::generate()?)
}

fn issue(ca: &CertifiedIssuer<'static, KeyPair>, part: &Part, days: u32) -> Result<(String, String), rcgen::Error> {
    let mut params = CertificateParams::new(part.hosts.clone())?;
    params.distinguished_name.push(DnType::CommonName, part.name.as_str());
    params.distinguished_name.push(DnType::OrganizationalUnitName, part.role.as_str());
    params.use_authority_key_identifier_extension = true;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if part.role == Role::Coordinator {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    validity(&mut params, days);
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, ca)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), Fail> {
    let failed = |e: std::io::Error| Fail::no(format!("cannot write {}: {e}", path.display()));
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)
}
