//! Who calls, and what a caller may do.

use rustls::pki_types::CertificateDer;
use serde::Deserialize;

use crate::audit::Who;

/// What a caller may do. People may also do what an observer may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Reads alerts, inventory and status, and acknowledges alerts.
    Observer,
    /// Changes profiles, policies and exceptions.
    Operator,
    /// Approves images and orders rollbacks.
    Responder,
    /// Tells the controller what runs on the node of this name, and nothing else: it is no observer.
    Node,
}

/// Who has which role, by a name in the certificate: a DNS name or URI of its subject alternative
/// names, exactly as it stands there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Roles {
    /// See [`Role::Observer`].
    pub observer: Vec<String>,
    /// See [`Role::Operator`].
    pub operator: Vec<String>,
    /// See [`Role::Responder`].
    pub responder: Vec<String>,
    /// See [`Role::Node`]. A `*` at the end of a name stands for any rest.
    pub node: Vec<String>,
}

impl Role {
    /// As it stands in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Observer => "observer",
            Self::Operator => "operator",
            Self::Responder => "responder",
            Self::Node => "node",
        }
    }
}

impl Roles {
    /// Whether nobody has any.
    pub fn is_empty(&self) -> bool {
        [&self.observer, &self.operator, &self.responder, &self.node]
            .iter()
            .all(|names| names.is_empty())
    }

    fn of(&self, names: &[String]) -> Vec<Role> {
        let lists = [
            (Role::Observer, &self.observer),
            (Role::Operator, &self.operator),
            (Role::Responder, &self.responder),
        ];
        let has = |list: &[String]| names.iter().any(|name| list.contains(name));
        let held = lists.into_iter().filter(|(_, list)| has(list));
        let is_node = names.iter().any(|name| self.is_node(name));
        (held.map(|(role, _)| role))
            .chain(is_node.then_some(Role::Node))
            .collect()
    }

    fn is_node(&self, name: &str) -> bool {
        let fits = |pattern: &String| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == pattern,
        };
        self.node.iter().any(fits)
    }
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    /// For messages and the audit log.
    pub(super) name: String,
    /// The names in the certificate.
    pub(super) names: Vec<String>,
    pub(super) roles: Vec<Role>,
    /// From where: a process of this node or an address.
    peer: String,
}

impl Caller {
    /// The user of a process on this node; `None` if it may do nothing. Only the daemon's own user
    /// and root can open the socket; this holds even where somebody changed its mode.
    pub(super) fn of_user(uid: u32, pid: Option<i32>) -> Option<Self> {
        let own = nix::unistd::geteuid().as_raw();
        (uid == 0 || uid == own).then(|| Self {
            name: format!("user {uid}"),
            names: Vec::new(),
            peer: pid.map_or_else(String::new, |pid| format!("pid {pid}")),
            roles: vec![Role::Observer, Role::Operator, Role::Responder],
        })
    }

    /// Whom a certificate names that was verified.
    pub(super) fn of_certificate(
        certificate: &CertificateDer<'_>,
        roles: &Roles,
        peer: String,
    ) -> Self {
        let names: Vec<String> = webpki::EndEntityCert::try_from(certificate)
            .map(|certificate| {
                let dns = certificate.valid_dns_names();
                let names = dns.chain(certificate.valid_uri_names());
                names.map(str::to_owned).collect()
            })
            .unwrap_or_default();
        Self {
            peer,
            roles: roles.of(&names),
            name: if names.is_empty() {
                "a certificate without a name".to_owned()
            } else {
                names.join(", ")
            },
            names,
        }
    }

    /// As the audit log has it.
    pub(super) fn who(&self) -> Who {
        let roles = self.roles.iter().map(|role| role.name().to_owned());
        Who {
            name: self.name.clone(),
            roles: roles.collect(),
            peer: self.peer.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_the_roles_that_list_it() {
        let list = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let roles = Roles {
            observer: list(&["soc", "both"]),
            operator: list(&["both"]),
            responder: list(&["spiffe://a/b"]),
            node: list(&["worker-*", "edge"]),
        };
        let check = |names: &[&str], expect: &[Role]| {
            let names: Vec<String> = list(names);
            assert_eq!(roles.of(&names), expect, "{names:?}");
        };
        check(&["soc"], &[Role::Observer]);
        check(&["both"], &[Role::Observer, Role::Operator]);
        check(&["other", "spiffe://a/b"], &[Role::Responder]);
        check(&["worker-7"], &[Role::Node]);
        check(&["edge"], &[Role::Node]);
        check(&["edge-2"], &[]);
        check(&["SOC"], &[]);
        check(&["*"], &[]);
        check(&[], &[]);
    }
}
