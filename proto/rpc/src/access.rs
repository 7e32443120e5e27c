//! Who may call what: roles, grants, and the one table of every gRPC method.
//!
//! Architecture invariant: a method without a row in [`RULES`] is refused to everybody; a test walks the schema and fails when a
//! row is missing. The table decides what the method's name can decide. Where a message names namespaces (scope
//! [`Scope::Namespace`]), the handler asks [`Caller::may`] again with each of them.

use std::fmt;

/// What the bearer of a credential may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Member of the Raft group.
    Coordinator,
    /// Reports runs, under its own name only.
    Prober,
    /// Reads only.
    Viewer,
    /// Reads, and changes resources.
    Operator,
    /// Reads, and runs game days.
    Chaos,
    /// Everything; without a namespace the cluster's membership and its certificates too.
    Admin,
}

/// Every role, in the order of their declaration.
pub const ROLES: [Role; 6] = [Role::Coordinator, Role::Prober, Role::Viewer, Role::Operator, Role::Chaos, Role::Admin];

impl Role {
    /// The word in a certificate's organisational unit.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Coordinator => "coordinator",
            Role::Prober => "prober",
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Chaos => "chaos",
            Role::Admin => "admin",
        }
    }

    /// The role of that word.
    pub fn parse(word: &str) -> Option<Role> {
        ROLES.into_iter().find(|r| r.as_str() == word)
    }

    /// Of a part of the system, not of a person.
    pub fn is_part(self) -> bool {
        matches!(self, Role::Coordinator | Role::Prober)
    }
}

/// A role, everywhere or in one namespace. Written `operator` or `operator:shop`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grant {
    /// What.
    pub role: Role,
    /// Where; absent: in all namespaces, and for what belongs to none.
    pub namespace: Option<String>,
}

impl Grant {
    /// Everywhere.
    pub fn everywhere(role: Role) -> Grant {
        Grant { role, namespace: None }
    }

    /// Reads `ROLE` or `ROLE:NAMESPACE`; the error is for a person.
    pub fn parse(text: &str) -> Result<Grant, String> {
        let (word, namespace) = match text.split_once(':') {
            Some((word, namespace)) => (word, Some(namespace)),
            None => (text, None),
        };
        let Some(role) = Role::parse(word) else {
            return Err(format!("{text:?} is no role (want viewer, operator, chaos or admin, alone or with :NAMESPACE)"));
        };
        match namespace {
            Some(_) if role.is_part() => Err(format!("{text:?}: a {word} belongs to no namespace")),
            Some(n) if n.is_empty() || n.len() > 63 || !n.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') => {
                Err(format!("{text:?}: {n:?} is no namespace (want lower-case letters, digits and dashes)"))
            }
            namespace => Ok(Grant { role, namespace: namespace.map(str::to_owned) }),
        }
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{}:{namespace}", self.role.as_str()),
            None => f.write_str(self.role.as_str()),
        }
    }
}

/// Who calls, after the certificate or token was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Of a person, a prober or a member.
    pub name: String,
    /// What it may do.
    pub grants: Vec<Grant>,
    /// By what it is known, for the audit: `certificate SERIAL`, `token ID`, `openid ISSUER`; `local` for plain text on loopback.
    pub credential: String,
    /// Its address.
    pub origin: String,
}

impl Caller {
    /// Whoever speaks plain text on loopback, where that was asked for: it may do everything.
    pub fn local(origin: String) -> Caller {
        Caller { name: "local".to_owned(), grants: ROLES.into_iter().map(Grant::everywhere).collect(), credential: "local".to_owned(), origin }
    }

    /// Whether one of `roles` is held in `namespace`.
    pub fn may(&self, roles: &[Role], namespace: &str) -> bool {
        self.grants.iter().any(|g| roles.contains(&g.role) && g.namespace.as_deref().is_none_or(|n| n == namespace))
    }

    /// Whether one of `roles` is held in all namespaces.
    pub fn may_everywhere(&self, roles: &[Role]) -> bool {
        self.grants.iter().any(|g| roles.contains(&g.role) && g.namespace.is_none())
    }

    /// The namespaces in which one of `roles` is held; `None`: in all.
    pub fn namespaces(&self, roles: &[Role]) -> Option<std::collections::BTreeSet<String>> {
        if self.may_everywhere(roles) {
            return None;
        }
        Some(self.grants.iter().filter(|g| roles.contains(&g.role)).filter_map(|g| g.namespace.clone()).collect())
    }

    /// Its grants, for a message: `operator:shop, viewer`.
    pub fn described(&self) -> String {
        let grants: Vec<String> = self.grants.iter().map(ToString::to_string).collect();
        format!("{} ({})", self.name, if grants.is_empty() { "no role".to_owned() } else { grants.join(", ") })
    }

    /// Whether the method may be called at all; the error is for a person.
    pub fn admitted(&self, rule: &Rule) -> Result<(), String> {
        let held = match rule.scope {
            Scope::Open => return Ok(()),
            Scope::Cluster => self.may_everywhere(rule.roles),
            Scope::Namespace | Scope::Any => self.grants.iter().any(|g| rule.roles.contains(&g.role)),
        };
        if held { Ok(()) } else { Err(self.refusal(rule, None)) }
    }

    /// Whether the method may be called for `namespace`.
    pub fn admitted_in(&self, rule: &Rule, namespace: &str) -> Result<(), String> {
        if self.may(rule.roles, namespace) { Ok(()) } else { Err(self.refusal(rule, Some(namespace))) }
    }

    fn refusal(&self, rule: &Rule, namespace: Option<&str>) -> String {
        let words: Vec<&str> = rule.roles.iter().map(|r| r.as_str()).collect();
        let place = match (namespace, rule.scope) {
            (Some(namespace), _) => format!(" in namespace {namespace:?}"),
            (None, Scope::Cluster) if rule.roles.iter().all(|r| !r.is_part()) => " of the whole cluster".to_owned(),
            _ => String::new(),
        };
        format!("{} may not do this: it needs {}{place}", self.described(), words.join(" or "))
    }
}

/// Where a role must be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Nowhere: what is asked proves itself.
    Open,
    /// Everywhere: what is asked belongs to no namespace.
    Cluster,
    /// In the namespaces that the message names; the handler checks them.
    Namespace,
    /// In any one namespace: it is of the whole cluster, and harmless.
    Any,
}

/// A row: what a method needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// As in the request's path, without the slash and the package: `Operator/Apply`.
    pub method: &'static str,
    /// One of these.
    pub roles: &'static [Role],
    /// Held where.
    pub scope: Scope,
    /// Only the leader can do it: any other member hands it on, with who asked.
    pub handed_on: bool,
}

/// Whoever may read.
pub const READ: &[Role] = &[Role::Viewer, Role::Operator, Role::Chaos, Role::Admin];
/// Whoever may change resources.
pub const CHANGE: &[Role] = &[Role::Operator, Role::Admin];
/// Whoever may disturb.
pub const DISTURB: &[Role] = &[Role::Chaos, Role::Admin];
/// Whoever may end a disturbance: ending is always safe.
pub const CALM: &[Role] = &[Role::Operator, Role::Chaos, Role::Admin];
/// Whoever may change who is let in, and the group itself.
pub const ADMINISTER: &[Role] = &[Role::Admin];

const fn rule(method: &'static str, roles: &'static [Role], scope: Scope) -> Rule {
    Rule { method, roles, scope, handed_on: false }
}

const fn write(method: &'static str, roles: &'static [Role], scope: Scope) -> Rule {
    Rule { method, roles, scope, handed_on: true }
}

/// Every method of every service. A new method gets its row here. What changes the state is a [`write`], but for what each member does by
/// itself: the first group is formed by whoever is asked, and a halt is taken by anybody before it is handed on.
pub const RULES: &[Rule] = &[
    rule("Fleet/Session", &[Role::Prober], Scope::Cluster),
    rule("Peer/Deliver", &[Role::Coordinator], Scope::Cluster),
    rule("Peer/Identify", &[Role::Coordinator, Role::Admin], Scope::Cluster),
    rule("Peer/Form", &[Role::Coordinator], Scope::Cluster),
    rule("Peer/Join", &[Role::Coordinator], Scope::Cluster),
    rule("Peer/Announce", &[Role::Coordinator], Scope::Cluster),
    write("Operator/Apply", CHANGE, Scope::Namespace),
    write("Operator/Delete", CHANGE, Scope::Namespace),
    rule("Operator/Read", READ, Scope::Namespace),
    rule("Operator/Watch", READ, Scope::Namespace),
    write("Operator/StartGameDay", DISTURB, Scope::Namespace),
    write("Operator/AbortGameDay", CALM, Scope::Namespace),
    rule("Operator/Halt", CALM, Scope::Any),
    write("Operator/LiftHalt", DISTURB, Scope::Cluster),
    rule("Operator/InitCluster", ADMINISTER, Scope::Cluster),
    write("Operator/JoinMember", ADMINISTER, Scope::Cluster),
    write("Operator/RemoveMember", ADMINISTER, Scope::Cluster),
    write("Operator/TransferLeader", ADMINISTER, Scope::Cluster),
    write("Operator/AcceptTargets", CHANGE, Scope::Namespace),
    write("Operator/RemoveProber", CHANGE, Scope::Cluster),
    rule("Operator/Backup", ADMINISTER, Scope::Cluster),
    write("Access/Enrol", &[], Scope::Open),
    write("Access/Renew", &ROLES, Scope::Any),
    write("Access/CreateToken", ADMINISTER, Scope::Cluster),
    write("Access/Revoke", ADMINISTER, Scope::Cluster),
];

/// The row of a request's path, such as `/probity.v1.Operator/Apply`.
pub fn rule_of(path: &str) -> Option<&'static Rule> {
    let method = path.strip_prefix("/probity.v1.")?;
    RULES.iter().find(|r| r.method == method)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(grants: &[&str]) -> Caller {
        let grants = grants.iter().map(|g| Grant::parse(g).expect("a grant")).collect();
        Caller { name: "me".to_owned(), grants, credential: String::new(), origin: String::new() }
    }

    /// The methods of the schema itself: one that was added and forgotten here is found.
    fn methods() -> Vec<String> {
        let dir = env!("CARGO_MANIFEST_DIR");
        let set = protox::compile([format!("{dir}/schema/api.proto")], [format!("{dir}/schema"), format!("{dir}/../schema")]).expect("the schema");
        let services = set.file.into_iter().flat_map(|f| f.service);
        services.flat_map(|s| s.method.iter().map(|m| format!("{}/{}", s.name.clone().unwrap_or_default(), m.name())).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn every_method_has_one_row() {
        let mut methods = methods();
        let mut rows: Vec<String> = RULES.iter().map(|r| r.method.to_owned()).collect();
        methods.sort();
        rows.sort();
        assert_eq!(rows, methods, "RULES in access.rs must have one row for each method of api.proto");
    }

    /// Method x role, written out by hand: what a reader of docs/security.md expects.
    #[test]
    fn every_method_with_every_role() {
        let roles = ["coordinator", "prober", "viewer", "operator", "chaos", "admin", "viewer:shop", "operator:shop", "chaos:shop", "admin:shop"];
        let table = [
            //                        coord prob view oper chaos admin | v:s o:s c:s a:s
            ("Fleet/Session", "        .     y    .    .    .     .       .   .   .   . "),
            ("Peer/Deliver", "         y     .    .    .    .     .       .   .   .   . "),
            ("Peer/Identify", "        y     .    .    .    .     y       .   .   .   . "),
            ("Peer/Form", "            y     .    .    .    .     .       .   .   .   . "),
            ("Operator/Apply", "       .     .    .    y    .     y       .   y   .   y "),
            ("Operator/Delete", "      .     .    .    y    .     y       .   y   .   y "),
            ("Operator/Read", "        .     .    y    y    y     y       y   y   y   y "),
            ("Operator/Watch", "       .     .    y    y    y     y       y   y   y   y "),
            ("Operator/StartGameDay", ".     .    .    .    y     y       .   .   y   y "),
            ("Operator/AbortGameDay", ".     .    .    y    y     y       .   y   y   y "),
            ("Operator/Halt", "        .     .    .    y    y     y       .   y   y   y "),
            ("Operator/LiftHalt", "    .     .    .    .    y     y       .   .   .   . "),
            ("Operator/InitCluster", " .     .    .    .    .     y       .   .   .   . "),
            ("Operator/RemoveProber", ".     .    .    y    .     y       .   .   .   . "),
            ("Access/Enrol", "         y     y    y    y    y     y       y   y   y   y "),
            ("Access/Renew", "         y     y    y    y    y     y       y   y   y   y "),
            ("Access/CreateToken", "   .     .    .    .    .     y       .   .   .   . "),
            ("Access/Revoke", "        .     .    .    .    .     y       .   .   .   . "),
        ];
        for (method, row) in table {
            let rule = rule_of(&format!("/probity.v1.{method}")).expect("a row");
            let wanted: Vec<&str> = row.split_whitespace().collect();
            assert_eq!(wanted.len(), roles.len(), "{method}");
            for (role, wanted) in roles.iter().zip(wanted) {
                assert_eq!(caller(&[role]).admitted(rule).is_ok(), wanted == "y", "{method} by {role}");
                // In a namespace of somebody else nobody with a grant for one namespace may do anything.
                if rule.scope == Scope::Namespace {
                    let elsewhere = wanted == "y" && !role.contains(':');
                    assert_eq!(caller(&[role]).admitted_in(rule, "search").is_ok(), elsewhere, "{method} by {role} in search");
                    assert_eq!(caller(&[role]).admitted_in(rule, "shop").is_ok(), wanted == "y", "{method} by {role} in shop");
                }
            }
        }
        // Rows that others add need no line above, but never let nobody in, and never everybody.
        for rule in RULES.iter().filter(|r| r.scope != Scope::Open) {
            assert!(caller(&[]).admitted(rule).is_err(), "{} by nobody", rule.method);
            assert!(!rule.roles.is_empty(), "{}", rule.method);
        }
    }

    #[test]
    fn refusals_say_what_is_missing() {
        let apply = rule_of("/probity.v1.Operator/Apply").expect("a row");
        let said = caller(&["viewer", "operator:shop"]).admitted_in(apply, "search").expect_err("not there");
        assert_eq!(said, "me (viewer, operator:shop) may not do this: it needs operator or admin in namespace \"search\"");
        assert_eq!(rule_of("/probity.v1.Operator/Nonsense"), None);
        assert_eq!(rule_of("/grpc.health.v1.Health/Check"), None);
    }

    #[test]
    fn grants_are_read_as_they_are_written() {
        for text in ["viewer", "operator:shop", "admin", "chaos:a-1", "prober"] {
            assert_eq!(Grant::parse(text).expect(text).to_string(), text);
        }
        for bad in ["", "root", "operator:", "prober:shop", "viewer:Shop", "viewer:a b", ":shop"] {
            assert!(Grant::parse(bad).is_err(), "{bad}");
        }
        let mixed = caller(&["viewer:a", "operator:b", "chaos:c"]);
        assert_eq!(mixed.namespaces(READ), Some(["a", "b", "c"].map(str::to_owned).into()));
        assert_eq!(mixed.namespaces(CHANGE), Some(["b".to_owned()].into()));
        assert_eq!(caller(&["viewer", "operator:b"]).namespaces(READ), None);
    }
}
