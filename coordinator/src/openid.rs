//! OpenID Connect (Core 1.0, Discovery 1.0): who reads with a token of the user's own identity provider.
//!
//! Only signed JWTs (RFC 7519) by RS256 or ES256 (RFC 7518, sections 3.3 and 3.4) of the configured issuer, for the configured audience, are taken; the
//! algorithm comes from the key, never from the token alone. What a bearer may read follows from one claim and a map in `coordinator.yaml`.
//! Deliberately absent: a login flow, sessions, cookies. A proxy or a program gets the token; here it is judged.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use probity_rpc::access::{Caller, Grant};
use ring::signature::{ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;
use serde_json::Value;

use crate::outside::cause;

/// The longest token, in bytes: a provider puts a person's groups into it.
const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// The longest document of a provider.
const DOCUMENT_BYTES_MAX: usize = 256 * 1024;
/// Keys of one provider: it rotates a few.
const KEYS_MAX: usize = 64;
/// How long keys are used without asking again.
const KEYS_KEPT: Duration = Duration::from_secs(3_600);
/// A key that is not known makes us ask again, but not more often than this: anybody can make up a key's name.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// How long the provider may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How far its clock and ours may differ, in seconds.
const SKEW_S: i64 = 60;

/// Which provider, and what its people may read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenIdConfig {
    /// As it stands in its tokens; its discovery document is below it.
    pub issuer: String,
    /// Whom its tokens must be for.
    pub audience: String,
    /// The claim that names the person.
    pub name_claim: String,
    /// The claim with a word, or a list of words.
    pub roles_claim: String,
    /// What a word in it grants.
    pub roles: BTreeMap<String, Vec<Grant>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct OpenIdFile {
    issuer: String,
    audience: String,
    name_claim: Option<String>,
    roles_claim: Option<String>,
    roles: BTreeMap<String, Vec<String>>,
}

impl OpenIdFile {
    /// Checked; every mistake is added to `problems`.
    pub(crate) fn checked(self, problems: &mut Vec<String>) -> OpenIdConfig {
        let near = self.issuer.strip_prefix("http://").is_some_and(|rest| probity_rpc::tls::is_loopback(rest.split('/').next().unwrap_or_default()));
        if reqwest::Url::parse(&self.issuer).is_err() || !self.issuer.starts_with("https://") && !near {
            problems.push(format!("openid.issuer: {:?} is no https URL", self.issuer));
        }
        if self.audience.is_empty() {
            problems.push("openid.audience is empty: every token of the provider would do".to_owned());
        }
        if self.roles.is_empty() {
            problems.push("openid.roles is empty: nobody could read anything".to_owned());
        }
        let mut roles = BTreeMap::new();
        for (word, grants) in self.roles {
            let mut held = Vec::new();
            for text in grants {
                match Grant::parse(&text) {
                    Ok(grant) if !grant.role.is_part() => held.push(grant),
                    Ok(_) => problems.push(format!("openid.roles.{word}: {text:?} is no role of people")),
                    Err(m) => problems.push(format!("openid.roles.{word}: {m}")),
                }
            }
            roles.insert(word, held);
        }
        OpenIdConfig {
            issuer: self.issuer,
            audience: self.audience,
            name_claim: self.name_claim.unwrap_or_else(|| "sub".to_owned()),
            roles_claim: self.roles_claim.unwrap_or_else(|| "groups".to_owned()),
            roles,
        }
    }
}

/// One of the provider's keys.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Key {
    /// Modulus and exponent.
    Rsa(Vec<u8>, Vec<u8>),
    /// An uncompressed point of P-256.
    P256(Vec<u8>),
}

impl Key {
    /// Of a JSON Web Key (RFC 7517); `None` for what is not for signatures of ours.
    fn read(jwk: &Value) -> Option<(String, Key)> {
        if jwk["use"].as_str().is_some_and(|u| u != "sig") {
            return None;
        }
        let bytes = |name: &str| URL_SAFE_NO_PAD.decode(jwk[name].as_str()?).ok();
        let key = match jwk["kty"].as_str()? {
            "RSA" => Key::Rsa(bytes("n")?, bytes("e")?),
            "EC" if jwk["crv"] == "P-256" => {
                let (x, y) = (bytes("x")?, bytes("y")?);
                if x.len() != 32 || y.len() != 32 {
                    return None;
                }
                Key::P256([vec![4], x, y].concat())
            }
            _ => return None,
        };
        Some((jwk["kid"].as_str().unwrap_or_default().to_owned(), key))
    }

    fn algorithm(&self) -> &'static str {
        match self {
            Key::Rsa(..) => "RS256",
            Key::P256(_) => "ES256",
        }
    }

    fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Key::Rsa(n, e) => RsaPublicKeyComponents { n, e }.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature).is_ok(),
            Key::P256(point) => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature).is_ok(),
        }
    }
}

/// A token, taken apart and not judged yet.
struct Parts<'a> {
    algorithm: String,
    key_id: String,
    message: &'a str,
    signature: Vec<u8>,
    claims: Value,
}

/// Whether a credential has the form of a JWT.
pub(crate) fn looks_like_jwt(token: &str) -> bool {
    token.len() <= TOKEN_BYTES_MAX && token.split('.').count() == 3
}

fn parts(token: &str) -> Option<Parts<'_>> {
    if token.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let (message, signature) = token.rsplit_once('.')?;
    let (header, claims) = message.split_once('.')?;
    let json = |part: &str| serde_json::from_slice::<Value>(&URL_SAFE_NO_PAD.decode(part).ok()?).ok();
    let header = json(header)?;
    // Extensions that must be understood (RFC 7515, section 4.1.11): none is.
    if header.get("crit").is_some() {
        return None;
    }
    Some(Parts {
        algorithm: header["alg"].as_str()?.to_owned(),
        key_id: header["kid"].as_str().unwrap_or_default().to_owned(),
        message,
        signature: URL_SAFE_NO_PAD.decode(signature).ok()?,
        claims: json(claims)?,
    })
}

/// The words of a claim: one, or a list.
fn words(claim: &Value) -> Vec<&str> {
    match claim {
        Value::String(word) => vec![word],
        Value::Array(list) => list.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// Judges the claims of a token whose signature holds.
fn judge(config: &OpenIdConfig, claims: &Value, now_s: i64, origin: String) -> Result<Caller, String> {
    if claims["iss"].as_str() != Some(&config.issuer) {
        return Err(format!("the token is not of {}", config.issuer));
    }
    if !words(&claims["aud"]).contains(&config.audience.as_str()) {
        return Err(format!("the token is not for {:?}", config.audience));
    }
    // Times may have fractions (RFC 7519, section 2).
    let seconds = |name: &str| claims[name].as_f64().map(|s| s as i64);
    match seconds("exp") {
        Some(end) if now_s < end.saturating_add(SKEW_S) => {}
        Some(end) => return Err(format!("the token has expired at {}", probity_rpc::tls::written(end))),
        None => return Err("the token has no end".to_owned()),
    }
    if seconds("nbf").is_some_and(|from| now_s < from.saturating_sub(SKEW_S)) {
        return Err("the token is not valid yet; is the clock right?".to_owned());
    }
    let name = claims[&config.name_claim].as_str().or(claims["sub"].as_str()).filter(|n| !n.is_empty()).ok_or("the token names nobody")?;
    let mut grants: Vec<Grant> = words(&claims[&config.roles_claim]).into_iter().filter_map(|word| config.roles.get(word)).flatten().cloned().collect();
    grants.sort();
    grants.dedup();
    Ok(Caller { name: name.chars().take(253).collect(), grants, credential: format!("openid {}", config.issuer), origin })
}

#[derive(Debug, Default)]
struct Keys {
    keys: Vec<(String, Key)>,
    /// When they were asked for, and when they were had.
    asked_at: Option<Instant>,
    got_at: Option<Instant>,
}

impl Keys {
    /// The key of that name, or the only one for a token that names none; and whether it is time to ask again.
    fn find(&self, id: &str) -> (Option<Key>, bool) {
        let found = match self.keys.as_slice() {
            [(_, only)] if id.is_empty() => Some(only.clone()),
            keys => keys.iter().find(|(kid, _)| kid == id && !id.is_empty()).map(|(_, key)| key.clone()),
        };
        (found, self.got_at.is_none_or(|at| at.elapsed() >= KEYS_KEPT))
    }
}

/// The provider, with its keys at hand.
#[derive(Debug)]
pub(crate) struct OpenId {
    config: OpenIdConfig,
    client: reqwest::Client,
    keys: Mutex<Keys>,
    /// Whoever asks the provider holds this: one at a time, and nobody whose key is known waits for it.
    asking: tokio::sync::Mutex<()>,
}

impl OpenId {
    pub(crate) fn new(config: OpenIdConfig) -> Result<OpenId, reqwest::Error> {
        let client = reqwest::Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none()).build()?;
        Ok(OpenId { config, client, keys: Mutex::default(), asking: tokio::sync::Mutex::default() })
    }

    /// Who bears a token; the error is for a person, and has nothing of the token in it.
    pub(crate) async fn caller(&self, token: &str, now_s: i64, origin: String) -> Result<Caller, String> {
        let parts = parts(token).ok_or("the token is no signed JWT")?;
        let key = self.key(&parts.key_id).await?;
        // The key says how it signs: a token that says otherwise (none, HS256 with a public key) is a forgery.
        if parts.algorithm != key.algorithm() {
            return Err(format!("the token says {:?}, its key signs by {}", parts.algorithm, key.algorithm()));
        }
        if !key.signed(parts.message.as_bytes(), &parts.signature) {
            return Err("the token's signature is wrong".to_owned());
        }
        judge(&self.config, &parts.claims, now_s, origin)
    }

    fn known(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn key(&self, id: &str) -> Result<Key, String> {
        let (found, old) = self.known().find(id);
        let asking = match (&found, old) {
            (Some(key), false) => return Ok(key.clone()),
            // An old key is better than none: one asks for a new one, the others go on.
            (Some(key), true) => match self.asking.try_lock() {
                Ok(asking) => asking,
                Err(_) => return Ok(key.clone()),
            },
            // One asks, the others wait for what it learns.
            (None, _) => self.asking.lock().await,
        };
        if self.known().asked_at.is_none_or(|at| at.elapsed() >= ASK_AGAIN) {
            let fetched = self.fetch().await;
            let mut known = self.known();
            // Said only now: a caller that went away meanwhile has learnt nothing for the others.
            known.asked_at = Some(Instant::now());
            match fetched {
                Ok(keys) => (known.keys, known.got_at) = (keys, Some(Instant::now())),
                // The provider may be down for a while.
                Err(why) if found.is_none() => return Err(format!("the keys of {} cannot be had: {why}", self.config.issuer)),
                Err(why) => tracing::warn!(issuer = self.config.issuer, why, "the provider's keys cannot be had; the old ones are used"),
            }
        }
        drop(asking);
        self.known().find(id).0.ok_or_else(|| format!("{} has no key {id:?}", self.config.issuer))
    }

    /// Discovery, then the keys.
    async fn fetch(&self) -> Result<Vec<(String, Key)>, String> {
        let issuer = self.config.issuer.trim_end_matches('/');
        let discovery = self.document(&format!("{issuer}/.well-known/openid-configuration")).await?;
        if discovery["issuer"].as_str() != Some(&self.config.issuer) {
            return Err(format!("its discovery document is of {}", discovery["issuer"]));
        }
        let uri = discovery["jwks_uri"].as_str().ok_or("its discovery document names no jwks_uri")?;
        // What is asked for over TLS is not answered in plain text.
        if self.config.issuer.starts_with("https://") && !uri.starts_with("https://") {
            return Err(format!("its jwks_uri {uri:?} is no https URL"));
        }
        let document = self.document(uri).await?;
        let keys = document["keys"].as_array().ok_or("its keys are no JSON Web Key Set")?;
        Ok(keys.iter().filter_map(Key::read).take(KEYS_MAX).collect())
    }

    async fn document(&self, url: &str) -> Result<Value, String> {
        let mut response = self.client.get(url).send().await.map_err(|e| cause(&e))?;
        if !response.status().is_success() {
            return Err(format!("{url} answered {}", response.status()));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| cause(&e))? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > DOCUMENT_BYTES_MAX {
                return Err(format!("{url} has more than {DOCUMENT_BYTES_MAX} bytes"));
            }
        }
        serde_json::from_slice(&bytes).map_err(|e| format!("{url}: {e}"))
    }
}

/// For tests/fuzz: a key or claims as JSON, or a token.
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz(bytes: &[u8]) {
    let config = OpenIdConfig {
        issuer: "https://a.test".to_owned(),
        audience: "probity".to_owned(),
        name_claim: "email".to_owned(),
        roles_claim: "groups".to_owned(),
        roles: BTreeMap::from([("sre".to_owned(), Vec::new())]),
    };
    if let Ok(json) = serde_json::from_slice::<Value>(bytes) {
        if let Some((_, key)) = Key::read(&json) {
            let _ = (key.algorithm(), key.signed(b"message", bytes));
        }
        let _ = judge(&config, &json, 1_780_000_000, String::new());
    }
    let token = String::from_utf8_lossy(bytes);
    if looks_like_jwt(&token)
        && let Some(parts) = parts(&token)
    {
        let _ = (parts.algorithm, parts.key_id, parts.message, parts.signature);
        let _ = judge(&config, &parts.claims, 1_780_000_000, String::new());
    }
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const NOW: i64 = 1_780_000_100;

    fn config(issuer: &str) -> OpenIdConfig {
        let grants = |texts: &[&str]| texts.iter().map(|t| Grant::parse(t).expect("a grant")).collect();
        OpenIdConfig {
            issuer: issuer.to_owned(),
            audience: "probity".to_owned(),
            name_claim: "email".to_owned(),
            roles_claim: "groups".to_owned(),
            roles: [("sre".to_owned(), grants(&["viewer"])), ("payments".to_owned(), grants(&["viewer:payments", "operator:payments"]))].into(),
        }
    }

    /// Made once by another implementation, its private key thrown away.
    #[test]
    fn a_signature_of_another_implementation_holds() {
        let jwk = json!({"kty": "RSA", "kid": "r1", "use": "sig", "alg": "RS256", "e": "AQAB", "n": "qgegl-TsQ4q2k4_Uz4a7gV2mBF0Uo5-l-SMCUVF2WPigZpmnmqsU7_KCDHJd1EZC1lYhiPWDQbox5fHQW-9YZV_puGYnc9e5iNhlfVBpUfGAuzMIMWZvhZz9PDYbcOO0qDEFGw3Li-ENlWSIozRJE5GKpfxREYJKUm2KPdtjXznC8XItIvm0zsN7Keuzp8WJFTSsEjZFNx76d_z-4qSGTWmbXVLNPA8_IUz2roc46qDjt4cn-tj4wb7HwT9Xkz-ZT6OrsCfjEkAFZ_XEN-V-boV58JEcigmZQ1BM58zcfqF3rjhJSFDrpkgmsJ6Vy_yXUWuWTL1hEi4OwiWy3UuoXw"});
        let token = "eyJhbGciOiAiUlMyNTYiLCAia2lkIjogInIxIiwgInR5cCI6ICJKV1QifQ.eyJpc3MiOiAiaHR0cHM6Ly9pZC5leGFtcGxlLmNvbSIsICJhdWQiOiBbIm90aGVyIiwgInByb2JpdHkiXSwgInN1YiI6ICJ1MSIsICJlbWFpbCI6ICJhbm5hQGV4YW1wbGUuY29tIiwgImdyb3VwcyI6IFsicGF5bWVudHMiLCAic3JlIl0sICJpYXQiOiAxNzgwMDAwMDAwLCAiZXhwIjogMTc4MDAwMzYwMH0.X8Ij2LXvJsNoTDHZALBKmdk-GdLOtx5-ykSZV_0zld_dVJ0rTvg_8SysgVm4fNv-iFQ-Drtgyz4EslWFvbf4sC8byokDBSJ7VjDj-s9ptS6fqj8JeDIXEJEALlgtjE7I4MhMuTepKmz9eC4Z6dh6na9Tf66SnYzA1X3lCTIqNCwSfhahEMwJvY33MO3_CJDcKzJMAICTUlbakIN0sXm8GT1Gk1mihh5weuD_c1p3-3M73PPKvICARWJg2Q5Hx-QbsjQilGHA49QptJODNmnEdqGJAEQ8tWXAi0NoFSNqow2GzxmCmaZLDO8GnNEmEhLRSkJx9cJ6M2nCEFOlNyEJaQ";
        let (kid, key) = Key::read(&jwk).expect("a key");
        let parts = parts(token).expect("a token");
        assert_eq!((kid.as_str(), parts.key_id.as_str(), key.algorithm()), ("r1", "r1", "RS256"));
        assert!(key.signed(parts.message.as_bytes(), &parts.signature));
        assert!(!key.signed(&parts.message.as_bytes()[1..], &parts.signature));
        let caller = judge(&config("https://id.example.com"), &parts.claims, NOW, String::new()).expect("known");
        assert_eq!(caller.described(), "anna@example.com (viewer, viewer:payments, operator:payments)");
    }

    /// A provider: discovery and keys over HTTP, and a key that signs.
    struct Provider {
        issuer: String,
        key: EcdsaKeyPair,
        asked: std::sync::Arc<std::sync::atomic::AtomicUsize>,
    }

    impl Provider {
        async fn start() -> Provider {
            let random = SystemRandom::new();
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("a key");
            let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).expect("the key");
            let point = key.public_key().as_ref().to_vec();
            let part = |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(&point[range]);
            let jwks = json!({"keys": [
                {"kty": "oct", "kid": "symmetric", "k": "AAAA"},
                {"kty": "EC", "crv": "P-256", "kid": "e1", "use": "enc", "x": part(1..33), "y": part(33..65)},
                {"kty": "EC", "crv": "P-256", "kid": "e1", "x": part(1..33), "y": part(33..65)},
            ]});
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let issuer = format!("http://{}", listener.local_addr().expect("its address"));
            let asked: std::sync::Arc<std::sync::atomic::AtomicUsize> = Default::default();
            let (known, counted) = (issuer.clone(), asked.clone());
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    let mut buffer = vec![0; 4_096];
                    let n = stream.read(&mut buffer).await.unwrap_or(0);
                    let body = if buffer[..n].starts_with(b"GET /.well-known/openid-configuration ") {
                        json!({"issuer": known, "jwks_uri": format!("{known}/keys")})
                    } else {
                        counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        jwks.clone()
                    };
                    let body = body.to_string();
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                    let _ = stream.write_all((head + &body).as_bytes()).await;
                }
            });
            Provider { issuer, key, asked }
        }

        fn token(&self, header: Value, claims: Value) -> String {
            let part = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
            let message = format!("{}.{}", part(&header), part(&claims));
            let signature = self.key.sign(&SystemRandom::new(), message.as_bytes()).expect("signed");
            format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
        }
    }

    #[tokio::test]
    async fn a_provider_vouches_for_its_people_and_for_nobody_else() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let provider = Provider::start().await;
        let openid = OpenId::new(config(&provider.issuer)).expect("a client");
        let header = || json!({"alg": "ES256", "kid": "e1"});
        let claims = || json!({"iss": provider.issuer, "aud": "probity", "sub": "u1", "email": "anna@example.com", "groups": "payments", "exp": NOW + 60});
        let with = |key: &str, value: Value| {
            let mut changed = claims();
            changed[key] = value;
            provider.token(header(), changed)
        };
        let judged = async |token: &str| openid.caller(token, NOW, "10.0.0.1:5".to_owned()).await;

        let anna = judged(&provider.token(header(), claims())).await.expect("known");
        assert_eq!(anna.described(), "anna@example.com (viewer:payments, operator:payments)");
        assert_eq!(anna.credential, format!("openid {}", provider.issuer));
        assert_eq!(judged(&with("groups", json!(["cleaning"]))).await.expect("known, without a role").grants, []);
        assert_eq!(judged(&with("email", Value::Null)).await.expect("known").name, "u1");

        let good = provider.token(header(), claims());
        let (message, signature) = good.rsplit_once('.').expect("a signature");
        let forged = format!("{}.{signature}", message.replace('a', "b"));
        let unsigned = format!("{}.", message);
        for (token, why) in [
            (with("iss", json!("https://evil.example")), "the token is not of"),
            (with("aud", json!(["other"])), "is not for \"probity\""),
            (with("aud", Value::Null), "is not for \"probity\""),
            (with("exp", json!(NOW - 61)), "has expired at 2026-"),
            (with("exp", Value::Null), "has no end"),
            (with("nbf", json!(NOW + 120)), "not valid yet"),
            (provider.token(json!({"alg": "none", "kid": "e1"}), claims()), "says \"none\""),
            (provider.token(json!({"alg": "HS256", "kid": "e1"}), claims()), "says \"HS256\""),
            (provider.token(json!({"alg": "RS256", "kid": "e1"}), claims()), "says \"RS256\""),
            (provider.token(json!({"alg": "ES256", "kid": "e1", "crit": ["x"]}), claims()), "is no signed JWT"),
            (provider.token(json!({"alg": "ES256", "kid": "nobody"}), claims()), "has no key \"nobody\""),
            (provider.token(json!({"alg": "ES256", "kid": "symmetric"}), claims()), "has no key \"symmetric\""),
            (forged, "the token"),
            (unsigned, "the token"),
            ("a.b.c".to_owned(), "is no signed JWT"),
            ("x".repeat(TOKEN_BYTES_MAX + 1), "is no signed JWT"),
        ] {
            let said = judged(&token).await.expect_err(why);
            assert!(said.contains(why), "{said:?} has no {why:?}");
        }
        assert_eq!(provider.asked.load(std::sync::atomic::Ordering::SeqCst), 1, "made-up keys do not make us ask");
    }

    #[tokio::test]
    async fn without_its_provider_nobody_is_known() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let provider = Provider::start().await;
        let token = provider.token(json!({"alg": "ES256", "kid": "e1"}), json!({"iss": "x"}));
        let gone = OpenId::new(config("http://127.0.0.1:1")).expect("a client");
        let said = gone.caller(&token, NOW, String::new()).await.expect_err("nobody answers");
        assert!(said.contains("the keys of http://127.0.0.1:1 cannot be had"), "{said}");
    }

    #[test]
    fn mistakes_in_the_configuration_are_all_told() {
        let file = |issuer: &str, audience: &str, roles: &[(&str, &str)]| OpenIdFile {
            issuer: issuer.to_owned(),
            audience: audience.to_owned(),
            name_claim: None,
            roles_claim: None,
            roles: roles.iter().map(|(word, grant)| ((*word).to_owned(), vec![(*grant).to_owned()])).collect(),
        };
        let mut problems = Vec::new();
        file("https://id.example.com/realms/a", "probity", &[("sre", "viewer")]).checked(&mut problems);
        file("http://127.0.0.1:8080", "probity", &[("sre", "viewer:shop")]).checked(&mut problems);
        assert_eq!(problems, Vec::<String>::new());
        file("http://id.example.com", "", &[("a", "root"), ("b", "prober")]).checked(&mut problems);
        file("nonsense", "probity", &[]).checked(&mut problems);
        let all = problems.join("\n");
        for why in [
            "is no https URL",
            "openid.audience is empty",
            "openid.roles.a: \"root\" is no role",
            "openid.roles.b: \"prober\" is no role of people",
            "roles is empty",
        ] {
            assert!(all.contains(why), "{why}: {all}");
        }
    }
}
