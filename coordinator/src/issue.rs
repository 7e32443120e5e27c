//! The Access service: join tokens, certificates for them, renewals, revocations.
//!
//! Each coordinator signs with its own issuing certificate (`issuer.crt`, `issuer.key` beside its TLS files). Whatever is issued stands in the
//! log first: a token is burnt before its certificate exists.

use std::time::Duration;

use probity_core::access;
use probity_proto::v1::command::Op;
use probity_proto::v1::*;
use probity_rpc::access::{Grant, READ, Role};
use probity_rpc::client::describe;
use probity_rpc::enrol::secret_hash;
use probity_rpc::pki::{Authority, Checked, LIFETIME, LIFETIME_MAX, Subject, new_serial};
use probity_rpc::tls::{Certified, TlsFiles};
use probity_rpc::v1::access_server::Access;
use probity_rpc::v1::*;
use tonic::{Request, Response, Status};

use crate::gate::Admitted;
use crate::listen::Link;
use crate::node::ProposeError;
use crate::operator::{OperatorService, status};

/// A join token is valid for at most a week: it lies about until it is used.
const ENROL_VALID_MAX: Duration = Duration::from_secs(7 * 86_400);
/// A reader's for a bit more than a year.
const READ_VALID_MAX: Duration = Duration::from_secs(400 * 86_400);
/// So long before the end of an issuing certificate it is time to sign another: it takes a person with the root key.
const ISSUER_ENDS_SOON: Duration = Duration::from_secs(7 * 86_400);
/// Roles of one token, hosts of one certificate.
const LIST_MAX: usize = 16;

#[derive(Debug, Clone)]
pub(crate) struct AccessService {
    pub(crate) operator: OperatorService,
}

/// A name as it may stand in a certificate.
fn checked_name(name: &str) -> Result<(), Status> {
    let fine = !name.is_empty() && name.len() <= 63 && !name.starts_with('.') && name.chars().all(|c| c.is_ascii_alphanumeric() || "-._@".contains(c));
    if fine { Ok(()) } else { Err(Status::invalid_argument(format!("{name:?} is no name (want up to 63 letters, digits, dashes, dots, underscores, @)"))) }
}

/// What a token may let in, all mistakes at once.
fn checked(asked: &CreateTokenRequest) -> Result<Vec<Grant>, Status> {
    checked_name(&asked.name)?;
    let mut problems = Vec::new();
    let mut grants = Vec::new();
    for text in &asked.grants {
        match Grant::parse(text) {
            Ok(grant) => grants.push(grant),
            Err(problem) => problems.push(problem),
        }
    }
    let parts = grants.iter().filter(|g| g.role.is_part()).count();
    if grants.is_empty() && problems.is_empty() {
        problems.push("no role is given".to_owned());
    }
    if asked.grants.len() > LIST_MAX || asked.hosts.len() > LIST_MAX {
        problems.push(format!("more than {LIST_MAX} roles or hosts"));
    }
    if parts > 0 && grants.len() > 1 {
        problems.push("a coordinator or prober has that one role".to_owned());
    }
    if asked.r#use() == TokenUse::Read && grants.iter().any(|g| !READ.contains(&g.role)) {
        problems.push("a token that reads is for people and their programs, not for a coordinator or prober".to_owned());
    }
    if grants.contains(&Grant::everywhere(Role::Coordinator)) == asked.hosts.is_empty() {
        problems.push("a coordinator, and nobody else, has hosts: the names and addresses it is dialled by".to_owned());
    }
    let valid_max = if asked.r#use() == TokenUse::Read { READ_VALID_MAX } else { ENROL_VALID_MAX };
    let valid = Duration::from_micros(asked.valid_us);
    if valid < Duration::from_secs(1) || valid > valid_max {
        problems.push(format!("a token is valid for 1 s to {} days", valid_max.as_secs() / 86_400));
    }
    let lifetime = Duration::from_micros(asked.lifetime_us);
    if asked.lifetime_us != 0 && (lifetime < Duration::from_secs(10) || lifetime > LIFETIME_MAX) {
        problems.push(format!("a certificate is valid for 10 s to {} days", LIFETIME_MAX.as_secs() / 86_400));
    }
    if problems.is_empty() { Ok(grants) } else { Err(Status::invalid_argument(problems.join("; "))) }
}

/// What the log refuses of who enrols or renews, it refuses to a stranger.
fn refused_as_stranger(error: ProposeError) -> Status {
    match error {
        ProposeError::Refused(refused) => Status::permission_denied(refused.message),
        other => status(other),
    }
}

fn request_of(csr_pem: &str) -> Result<Checked, Status> {
    Checked::read(csr_pem).map_err(|e| Status::invalid_argument(e.to_string()))
}

impl AccessService {
    fn files(&self) -> Result<&TlsFiles, Status> {
        self.operator.config.tls.as_ref().ok_or_else(|| Status::failed_precondition("this cluster runs in plain text: there are no certificates"))
    }

    /// The authority of this coordinator, as its files are now.
    fn authority(&self) -> Result<Authority, Status> {
        let files = self.files()?;
        let name = &self.operator.config.name;
        let read = |file: &str| {
            std::fs::read_to_string(files.path(file)).map_err(|e| {
                let hint = "`probity ca init` or `probity ca sign` makes one; with certificates of your own authority there is none";
                Status::failed_precondition(format!("coordinator {name} has no issuing certificate ({file}: {e}; {hint})"))
            })
        };
        let (certificate, key) = (read("issuer.crt")?, read("issuer.key")?);
        Authority::load(&certificate, &key).map_err(|e| Status::failed_precondition(format!("coordinator {name} cannot issue: {}", describe(&e))))
    }

    async fn issue(&self, authority: &Authority, request: Checked, subject: &Subject, serial: &str) -> Result<EnrolReply, Status> {
        if subject.after_s >= subject.owed_s {
            // Certificates count seconds: one of this second would be of what was revoked in it.
            return Err(Status::unavailable(format!("{:?} was revoked this very second; try again", subject.name)));
        }
        let issued = authority.issue(request, subject, serial).map_err(|e| Status::failed_precondition(describe(&e)))?;
        let ca_pem = std::fs::read_to_string(self.files()?.path("ca.crt")).map_err(|e| Status::failed_precondition(format!("ca.crt: {e}")))?;
        tracing::info!(name = subject.name, serial = issued.serial, "issued a certificate");
        Ok(EnrolReply {
            certificate_pem: issued.chain_pem,
            ca_pem,
            serial: issued.serial,
            not_after_us: issued.not_after_s.saturating_mul(1_000_000),
            name: subject.name.clone(),
            grants: subject.grants.iter().map(ToString::to_string).collect(),
        })
    }
}

/// Why a coordinator could issue nothing if it led, and what mends it; empty: it can, or was never given the means (certificates of another authority).
pub(crate) fn cannot_issue(files: Option<&TlsFiles>, name: &str) -> String {
    let Some(files) = files else { return String::new() };
    let dir = files.dir.display();
    let sign = format!("`probity ca sign --name {name} --csr {dir}/issuer.csr --out {dir}/issuer.crt`, where the root key is");
    let read = |file: &str| std::fs::read_to_string(files.path(file));
    let (certificate, key) = match (read("issuer.crt"), read("issuer.key")) {
        (Ok(certificate), Ok(key)) => (certificate, key),
        (Ok(_), Err(e)) => return format!("cannot issue certificates while it leads: {dir}/issuer.key, which belongs to issuer.crt: {e}"),
        (Err(_), Err(_)) if !files.path("issuer.csr").exists() => return String::new(),
        (Err(_), _) => return format!("cannot issue certificates while it leads: its request is not signed ({sign})"),
    };
    match Authority::load(&certificate, &key) {
        Err(e) => format!("cannot issue certificates while it leads: {}", describe(&e)),
        Ok(authority) if authority.not_after_s() < jiff::Timestamp::now().as_second() + ISSUER_ENDS_SOON.as_secs() as i64 => {
            format!("can issue certificates until {} only: it needs another issuer.crt ({sign})", probity_rpc::tls::written(authority.not_after_s()))
        }
        Ok(_) => String::new(),
    }
}

/// When what was committed is owed from, and after which revocation: both in seconds.
fn owed(applied: &Applied) -> (i64, i64) {
    (applied.owed_since_us / 1_000_000, applied.name_revoked_us / 1_000_000)
}

/// Whether a renewal by an issuer that ends soon would gain (nearly) nothing: it would be asked for again and again.
fn gains_nothing(own: &Certified, issuer_not_after_s: i64, now_s: i64) -> bool {
    issuer_not_after_s < now_s.saturating_add(own.lifetime_s) && issuer_not_after_s - own.not_after_s < own.lifetime_s / 10
}

/// A serial number as certificates are known here: `5F:0C` and `5F0C`, as openssl prints them, are `5f0c`; zeros before it do not count.
fn serial_of(text: &str) -> Option<String> {
    let digits = text.replace(':', "").to_ascii_lowercase();
    let digits = digits.trim_start_matches('0');
    let fine = !text.is_empty() && digits.len() <= 40 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let padded = if digits.is_empty() { "00".to_owned() } else { format!("{}{digits}", if digits.len() % 2 == 1 { "0" } else { "" }) };
    fine.then_some(padded)
}

/// Digits of a serial number that nobody marked as one: shorter, or without colons, it may be a name.
const SERIAL_DIGITS_MIN: usize = 16;

/// What is to be revoked, and as what: as whoever asked says, or by its look.
fn revoked(asked: RevokeRequest) -> Result<Revoke, Status> {
    let RevokeRequest { what, reason, kind, .. } = asked;
    let serial = serial_of(&what);
    let looks_so = what.contains(':') || what.len() >= SERIAL_DIGITS_MIN;
    match (kind.as_str(), serial) {
        ("serial", None) => Err(Status::invalid_argument(format!("{what:?} is no serial number (want hexadecimal digits, with or without colons)"))),
        ("serial", Some(serial)) => Ok(Revoke { what: serial, reason, kind }),
        ("name", _) => Ok(Revoke { what, reason, kind }),
        ("", Some(serial)) if looks_so => Ok(Revoke { what: serial, reason, kind: "serial".to_owned() }),
        ("", _) => Ok(Revoke { what, reason, kind }),
        _ => Err(Status::invalid_argument(format!("{kind:?} is no kind (want serial or name)"))),
    }
}

#[tonic::async_trait]
impl Access for AccessService {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<EnrolReply>, Status> {
        let admitted = Admitted::of(&request)?;
        self.files()?;
        self.operator.must_lead_or_hint().await?;
        let asked = request.into_inner();
        let csr = request_of(&asked.csr_pem)?;
        let (id, secret) = asked.token.split_once('.').ok_or_else(|| Status::invalid_argument("the token is not of the form ID.SECRET"))?;
        let serial = new_serial();
        let op = UseToken { id: id.to_owned(), hash: secret_hash(secret), key: csr.key_hash(), serial: serial.clone() };
        // Whoever guesses is refused here: the log takes only what is right, and no file is read for him.
        let (wanted, now_us) = (op.clone(), self.operator.node.now_us());
        let usable = self.operator.node.query(move |state, _| access::check_use(state, &wanted, now_us)).await.map_err(status)?;
        usable.map_err(|refused| Status::permission_denied(refused.message))?;
        let authority = self.authority()?;
        let command = Command { origin: admitted.caller.origin, credential: format!("token {id}"), op: Some(Op::UseToken(op)), ..Command::default() };
        let applied = self.operator.node.propose(command).await.map_err(refused_as_stranger)?;
        let (owed_s, after_s) = owed(&applied);
        let token = applied.token.unwrap_or_default();
        let lifetime = if token.lifetime_us == 0 { LIFETIME } else { Duration::from_micros(token.lifetime_us) };
        let grants = token.grants.iter().filter_map(|g| Grant::parse(g).ok()).collect();
        let subject = Subject { name: token.name, grants, hosts: token.hosts, lifetime, after_s, owed_s };
        self.issue(&authority, csr, &subject, &serial).await.map(Response::new)
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<EnrolReply>, Status> {
        let admitted = Admitted::of(&request)?;
        let Some(own) = request.extensions().get::<Link>().and_then(|link| link.certified.clone()) else {
            return Err(Status::permission_denied("only a certificate can be renewed"));
        };
        self.operator.must_lead_or_hint().await?;
        let csr = request_of(&request.get_ref().csr_pem)?;
        let authority = self.authority()?;
        if gains_nothing(&own, authority.not_after_s(), jiff::Timestamp::now().as_second()) {
            return Err(Status::failed_precondition(format!(
                "the issuing certificate of coordinator {} ends at {}: a renewal would gain nothing (`probity ca sign` makes another)",
                self.operator.config.name,
                probity_rpc::tls::written(authority.not_after_s()),
            )));
        }
        let serial = new_serial();
        let op = RecordIssue {
            name: own.name.clone(),
            serial: serial.clone(),
            before: format!("certificate {} until {}", own.serial, probity_rpc::tls::written(own.not_after_s)),
            after: format!("certificate {serial}"),
            shown_serial: own.serial.clone(),
            shown_issuers: own.issuer_serials.clone(),
            shown_not_before_s: own.not_before_s,
        };
        let applied = self.operator.node.propose(OperatorService::command(&admitted, "", Op::RecordIssue(op))).await.map_err(refused_as_stranger)?;
        let (owed_s, after_s) = owed(&applied);
        let lifetime = Duration::from_secs(u64::try_from(own.lifetime_s).unwrap_or(0));
        let subject = Subject { name: own.name.clone(), grants: own.grants.clone(), hosts: own.hosts.clone(), lifetime, after_s, owed_s };
        self.issue(&authority, csr, &subject, &serial).await.map(Response::new)
    }

    async fn create_token(&self, request: Request<CreateTokenRequest>) -> Result<Response<CreateTokenReply>, Status> {
        let admitted = Admitted::of(&request)?;
        self.operator.must_lead_or_hint().await?;
        let asked = request.into_inner();
        let grants = checked(&asked)?;
        if asked.r#use() != TokenUse::Read {
            // Told now, not to whoever comes with the token.
            self.authority()?;
        }
        let token = TokenRecord {
            id: asked.id.clone(),
            hash: asked.hash.clone(),
            r#use: asked.r#use,
            name: asked.name.clone(),
            grants: grants.iter().map(ToString::to_string).collect(),
            hosts: asked.hosts.clone(),
            lifetime_us: asked.lifetime_us,
            ..TokenRecord::default()
        };
        let op = Op::CreateToken(CreateToken { token: Some(token), valid_us: asked.valid_us });
        let applied = self.operator.node.propose(OperatorService::command(&admitted, &asked.request_id, op)).await.map_err(status)?;
        Ok(Response::new(CreateTokenReply { expires_at_us: applied.token.unwrap_or_default().expires_at_us }))
    }

    async fn revoke(&self, request: Request<RevokeRequest>) -> Result<Response<RevokeReply>, Status> {
        let admitted = Admitted::of(&request)?;
        self.operator.must_lead_or_hint().await?;
        let asked = request.into_inner();
        let request_id = asked.request_id.clone();
        let op = Op::Revoke(revoked(asked)?);
        let applied = self.operator.node.propose(OperatorService::command(&admitted, &request_id, op)).await.map_err(status)?;
        Ok(Response::new(RevokeReply { kind: applied.name }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_revoked_is_known_by_its_look_unless_it_is_said() {
        let read = |what: &str, kind: &str| {
            revoked(RevokeRequest { what: what.to_owned(), kind: kind.to_owned(), ..RevokeRequest::default() })
                .map(|r| (r.what, r.kind))
                .map_err(|s| s.message().to_owned())
        };
        let long = "5f0c5f0c5f0c5f0c";
        for (what, kind, wanted) in [
            ("e1", "", ("e1", "")),
            ("t-12345678", "", ("t-12345678", "")),
            ("5F:0C", "", ("5f0c", "serial")),
            ("5F0C5F0C5F0C5F0C", "", (long, "serial")),
            (&format!("00{long}"), "", (long, "serial")),
            ("1", "serial", ("01", "serial")),
            ("0A1", "serial", ("a1", "serial")),
            (long, "name", (long, "name")),
            ("cafe", "", ("cafe", "")),
        ] {
            assert_eq!(read(what, kind), Ok((wanted.0.to_owned(), wanted.1.to_owned())), "{what} {kind}");
        }
        assert!(read("edge-1", "serial").is_err_and(|m| m.contains("is no serial number")));
        assert!(read("e1", "prober").is_err_and(|m| m.contains("is no kind")));
    }

    #[test]
    fn who_cannot_issue_says_why_and_what_mends_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let files = TlsFiles::new(dir.path());
        let said = || cannot_issue(Some(&files), "c4");
        assert_eq!((said(), cannot_issue(None, "c4")), (String::new(), String::new()), "it was never given the means");
        let put = |name: &str, text: &str| std::fs::write(files.path(name), text).expect("a file");
        let (root_pem, root_key) = Authority::root(LIFETIME_MAX).expect("a root");
        let root = Authority::load(&root_pem, &root_key).expect("the root");
        let request = probity_rpc::pki::request("c4").expect("a request");
        let signed = |lifetime| root.intermediate(Checked::read(&request.csr_pem).expect("a request"), "c4", &[], lifetime).expect("signed").chain_pem;
        put("issuer.csr", &request.csr_pem);
        put("issuer.key", &request.key_pem);
        assert!(said().contains("its request is not signed (`probity ca sign --name c4 --csr "), "{}", said());
        put("issuer.crt", &signed(LIFETIME_MAX));
        assert_eq!(said(), "");
        put("issuer.crt", &signed(ISSUER_ENDS_SOON / 2));
        assert!(said().starts_with("can issue certificates until ") && said().contains("probity ca sign"), "{}", said());
        std::fs::remove_file(files.path("issuer.key")).expect("gone");
        assert!(said().contains("issuer.key, which belongs to issuer.crt"), "{}", said());
    }

    #[test]
    fn a_renewal_that_gains_nothing_is_not_made() {
        let own = |not_after_s: i64, lifetime_s: i64| Certified {
            name: "e1".to_owned(),
            grants: Vec::new(),
            hosts: Vec::new(),
            serial: String::new(),
            issuer_serials: Vec::new(),
            not_before_s: 0,
            not_after_s,
            lifetime_s,
        };
        assert!(!gains_nothing(&own(1_000, 1_000), 100_000, 700), "an issuer that lasts");
        assert!(!gains_nothing(&own(1_000, 1_000), 1_200, 700), "it ends soon, and there is something to gain");
        assert!(gains_nothing(&own(1_200, 1_000), 1_200, 800), "it ends with the certificate");
        assert!(!gains_nothing(&own(1_000, 1_000), 2_000, 10), "asked for early");
    }

    #[test]
    fn a_token_lets_in_what_makes_sense() {
        let asked = |name: &str, kind: TokenUse, grants: &[&str], hosts: &[&str], valid_s: u64| {
            checked(&CreateTokenRequest {
                r#use: kind as i32,
                name: name.to_owned(),
                grants: grants.iter().map(|g| (*g).to_owned()).collect(),
                hosts: hosts.iter().map(|h| (*h).to_owned()).collect(),
                valid_us: valid_s * 1_000_000,
                ..CreateTokenRequest::default()
            })
            .map_err(|s| s.message().to_owned())
        };
        use TokenUse::{Enrol, Read};
        for fine in [
            asked("e1", Enrol, &["prober"], &[], 60),
            asked("c4", Enrol, &["coordinator"], &["c4.example.com", "10.0.0.4"], 60),
            asked("me@example.com", Enrol, &["viewer", "operator:shop", "chaos:shop"], &[], 60),
            asked("grafana", Read, &["viewer:shop"], &[], 86_400 * 365),
        ] {
            assert!(fine.is_ok(), "{fine:?}");
        }
        for (bad, why) in [
            (asked("", Enrol, &["prober"], &[], 60), "is no name"),
            (asked("../x", Enrol, &["prober"], &[], 60), "is no name"),
            (asked("e1", Enrol, &[], &[], 60), "no role"),
            (asked("e1", Enrol, &["root"], &[], 60), "is no role"),
            (asked("e1", Enrol, &["prober", "admin"], &[], 60), "has that one role"),
            (asked("e1", Read, &["prober"], &[], 60), "for people"),
            (asked("e1", Enrol, &["prober"], &["h"], 60), "has hosts"),
            (asked("c4", Enrol, &["coordinator"], &[], 60), "has hosts"),
            (asked("e1", Enrol, &["prober"], &[], 0), "1 s to 7 days"),
            (asked("e1", Enrol, &["prober"], &[], 86_400 * 8), "1 s to 7 days"),
        ] {
            let said = bad.expect_err(why);
            assert!(said.contains(why), "{said:?} has no {why:?}");
        }
    }
}
