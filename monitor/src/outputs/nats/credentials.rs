//! As whom a server knows this node, from a file.

use std::path::Path;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::signature::Ed25519KeyPair;
use serde::Serialize;

/// Bytes of a seed of a user: two of a prefix, the key's, and two of a checksum.
const SEED_BYTES: usize = 36;

/// Whom it is said to be, and what proves it. Never shown.
#[derive(Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(Debug))]
pub(super) struct Proof {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pass: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jwt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sig: Option<String>,
}

/// Answers a server's `nonce` by what the text of a file holds: a JWT and a seed, as NATS writes them
/// to a `.creds` file, or a line `USER:PASSWORD`.
///
/// # Errors
///
/// The file holds neither.
pub(super) fn prove(path: &Path, text: &str, nonce: &str) -> Result<Proof, String> {
    let refused = || {
        format!(
            "{} holds neither the JWT and seed of a NATS .creds file nor a line USER:PASSWORD",
            path.display()
        )
    };
    if let Some(jwt) = section(text, "NATS USER JWT") {
        let pair = section(text, "USER NKEY SEED").and_then(key_pair);
        let signature = pair.ok_or_else(refused)?.sign(nonce.as_bytes());
        return Ok(Proof {
            jwt: Some(jwt.to_owned()),
            sig: Some(URL_SAFE_NO_PAD.encode(signature)),
            ..Proof::default()
        });
    }
    let line = text.trim();
    match line.split_once(':') {
        Some((user, password)) if !user.is_empty() && !line.contains('\n') => Ok(Proof {
            user: Some(user.to_owned()),
            pass: Some(password.to_owned()),
            ..Proof::default()
        }),
        _ => Err(refused()),
    }
}

/// The line after the one that begins a section.
fn section<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let begin = format!("BEGIN {name}");
    let mut lines = text.lines().skip_while(|line| !line.contains(&begin));
    lines.nth(1).map(str::trim)
}

fn key_pair(seed: &str) -> Option<Ed25519KeyPair> {
    let bytes = base32(seed)?;
    let key = (bytes.len() == SEED_BYTES && seed.starts_with("SU")).then(|| bytes.get(2..34))??;
    Ed25519KeyPair::from_seed_unchecked(key).ok()
}

/// Of RFC 4648, without padding.
fn base32(text: &str) -> Option<Vec<u8>> {
    let (mut bits, mut count) = (0_u32, 0_u32);
    let mut bytes = Vec::new();
    for letter in text.bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'2'..=b'7' => letter - b'2' + 26,
            _ => return None,
        };
        bits = (bits << 5) | u32::from(value);
        count += 5;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from((bits >> count) & 0xff).ok()?);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use ring::signature::KeyPair as _;

    use super::*;

    /// Of the documentation of NATS.
    const SEED: &str = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
    const USER: &str = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";

    fn proof(text: &str) -> Result<Proof, String> {
        prove(Path::new("/x.creds"), text, "nonce")
    }

    #[test]
    fn a_seed_gives_the_key_of_its_user() {
        let pair = key_pair(SEED).unwrap();
        let user = base32(USER).unwrap();
        assert_eq!(pair.public_key().as_ref(), user.get(1..33).unwrap());
        // An account's.
        assert!(key_pair(&SEED.replacen("SU", "SA", 1)).is_none());
        assert!(key_pair("SU").is_none());
    }

    #[test]
    fn a_file_holds_a_jwt_and_a_seed_or_a_password() {
        let creds = format!(
            "-----BEGIN NATS USER JWT-----\r\neyJ0\r\n------END NATS USER JWT------\r\n\r\n\
             -----BEGIN USER NKEY SEED-----\n{SEED}\n------END USER NKEY SEED------\n"
        );
        let sig = URL_SAFE_NO_PAD.encode(key_pair(SEED).unwrap().sign(b"nonce"));
        let expect = Proof {
            jwt: Some("eyJ0".to_owned()),
            sig: Some(sig),
            ..Proof::default()
        };
        assert_eq!(proof(&creds), Ok(expect));
        let expect = Proof {
            user: Some("node".to_owned()),
            pass: Some("a:b c".to_owned()),
            ..Proof::default()
        };
        assert_eq!(proof("node:a:b c\n"), Ok(expect));
        for wrong in ["", "node", ":x", "a:b\nc:d", &creds.replace(SEED, "SUAX")] {
            assert!(proof(wrong).unwrap_err().contains("/x.creds"), "{wrong}");
        }
    }
}
