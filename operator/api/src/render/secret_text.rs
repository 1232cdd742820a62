//! Texts that an instance's spec names by their Secret: certificates, keys, passwords.
//!
//! Promises: what a Secret holds appears in no problem; a text that can't serve is told here, with the field that
//! names it, rather than found by a connection that fails later.

use super::{ObjectName, Problem, Secrets, secret_value};
use crate::refs::{SecretKeyRef, SecretRef};

/// The keys of a Secret of the type kubernetes.io/tls.
pub const TLS_CERTIFICATE: &str = "tls.crt";
pub const TLS_KEY: &str = "tls.key";
/// The key under which cert-manager puts the CA beside them.
pub const TLS_CA: &str = "ca.crt";

/// One key of a Secret whose keys are known.
pub(super) fn key_of(secret: &SecretRef, key: &str) -> SecretKeyRef {
    SecretKeyRef { name: secret.name.clone(), key: key.into() }
}

/// The Secrets as one instance may name them.
pub(super) struct Lookup<'a> {
    instance: &'a ObjectName,
    secrets: &'a Secrets,
    problems: &'a mut Vec<Problem>,
}

impl<'a> Lookup<'a> {
    pub(super) fn new(
        instance: &'a ObjectName,
        secrets: &'a Secrets,
        problems: &'a mut Vec<Problem>,
    ) -> Self {
        Self { instance, secrets, problems }
    }

    /// The text that the reference in `field` names; none without a reference, or with a problem.
    pub(super) fn text(&mut self, field: &str, named: Option<&SecretKeyRef>, wanted: Text) -> Option<String> {
        let named = named?;
        let namespace = &self.instance.namespace;
        let found = secret_value(self.secrets, namespace, named, wanted.name()).and_then(|bytes| {
            wanted.read(bytes).map_err(|wrong| {
                ("key", format!("the value of {:?} in Secret {namespace}/{} {wrong}", named.key, named.name))
            })
        });
        match found {
            Ok(text) => Some(text),
            Err((part, message)) => {
                // A SecretRef has no key of its own to point at.
                let whole = field.ends_with("certificateSecretRef") || field.ends_with(".secretRef");
                let field = if whole && part == "key" { field.to_owned() } else { format!("{field}.{part}") };
                // Both halves of a pair miss the same Secret.
                let problem = Problem { object: self.instance.clone(), field, message };
                if self.problems.last() != Some(&problem) {
                    self.problems.push(problem);
                }
                None
            }
        }
    }
}

/// What a Secret's value is to be.
#[derive(Clone, Copy)]
pub(super) enum Text {
    Certificate,
    Key,
    Password,
}

impl Text {
    fn name(self) -> &'static str {
        match self {
            Self::Certificate => "a certificate in PEM",
            Self::Key => "a private key in PEM",
            Self::Password => "the password",
        }
    }

    /// The text, or what is wrong and what to do.
    fn read(self, bytes: &[u8]) -> Result<String, &'static str> {
        // Kafka's clients take texts that end at a zero byte.
        let text = std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
        let text = text.ok_or("is no text; put UTF-8 there")?;
        let begins_with = |wanted: fn(&str) -> bool| {
            text.lines()
                .filter_map(|line| line.trim_end().strip_prefix("-----BEGIN ")?.strip_suffix("-----"))
                .any(wanted)
        };
        let encrypted = || {
            begins_with(|label| label == "ENCRYPTED PRIVATE KEY")
                || text.lines().any(|line| line.starts_with("Proc-Type:") && line.contains("ENCRYPTED"))
        };
        match self {
            Self::Certificate if !begins_with(|label| label == "CERTIFICATE") => {
                Err("has no line -----BEGIN CERTIFICATE-----; put certificates in PEM there")
            }
            Self::Key if encrypted() => {
                Err("is an encrypted private key; put the key there without a password")
            }
            Self::Key if !begins_with(|label| label == "PRIVATE KEY" || label.ends_with(" PRIVATE KEY")) => {
                Err("has no line -----BEGIN PRIVATE KEY-----; put a private key in PEM there")
            }
            Self::Certificate | Self::Key | Self::Password => Ok(text.to_owned()),
        }
    }
}
