//! SHA-256 values: of a file's bytes, and as the digest that names an OCI object.

use std::{fmt, fs::File, io, os::unix::fs::FileExt as _, str::FromStr};

use ring::digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Bytes read at once.
const CHUNK_BYTES: usize = 128 << 10;

/// The SHA-256 of some bytes; shown as lowercase hex without a prefix.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256(pub [u8; 32]);

/// A file could not be hashed.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// It could not be read.
    #[error("it could not be read: {0}")]
    Read(#[from] io::Error),
    /// It has more bytes than are hashed.
    #[error("it grew above {0} bytes while it was hashed")]
    TooLong(u64),
}

/// Hashes bytes that come in pieces. The only place that names the library which does it.
#[derive(Clone)]
pub struct Hasher(digest::Context);

impl Hasher {
    /// Of no bytes yet.
    pub fn new() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }

    /// Adds what follows.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all of it.
    pub fn finish(self) -> Sha256 {
        Sha256::from_ring(&self.0.finish())
    }
}

impl Default for Hasher {
    fn default() -> Self {
        Self::new()
    }
}

impl Sha256 {
    /// The hash of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_ring(&digest::digest(&digest::SHA256, bytes))
    }

    fn from_ring(digest: &digest::Digest) -> Self {
        let mut bytes = [0; digest::SHA256_OUTPUT_LEN];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }

    /// The hash of what a file holds, of at most `bytes_max` bytes, wherever its descriptor stands:
    /// others may read by a copy of the same one. Blocks.
    pub fn of_file(file: &File, bytes_max: u64) -> Result<Self, HashError> {
        let mut hasher = Hasher::new();
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut total: u64 = 0;
        loop {
            let read = file.read_at(&mut chunk, total)?;
            let Some(bytes) = chunk.get(..read).filter(|bytes| !bytes.is_empty()) else {
                return Ok(hasher.finish());
            };
            total += bytes.len() as u64;
            if total > bytes_max {
                return Err(HashError::TooLong(bytes_max));
            }
            hasher.update(bytes);
        }
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 64];
        // 32 bytes are 64 digits, so neither step can fail.
        hex::encode_to_slice(self.0, &mut text).map_err(|_| fmt::Error)?;
        f.write_str(str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The digest of an OCI object (index, manifest, config, layer) or a chain ID; shown as
/// `sha256:…`. That its bytes were checked is said by the type that holds it, not by this one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub Sha256);

/// A text is not a digest this program can check.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("digest {0:?} is not sha256: followed by 64 lowercase hex digits")]
pub struct DigestError(String);

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || DigestError(text.chars().take(100).collect());
        let digits = text.strip_prefix("sha256:").ok_or_else(refused)?;
        // `hex` takes capitals as well; a digest has one spelling.
        if digits.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(refused());
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| refused())?;
        Ok(Self(Sha256(bytes)))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_digest_has_one_spelling() {
        let hex = "ab".repeat(32);
        let check = |text: &str, expect: bool| {
            assert_eq!(text.parse::<Digest>().is_ok(), expect, "{text}");
        };
        check(&format!("sha256:{hex}"), true);
        check(&hex, false);
        check(&format!("sha512:{hex}"), false);
        check(&format!("sha256:{}", hex.to_uppercase()), false);
        check(&format!("sha256:{hex}00"), false);
        check("sha256:", false);
        let digest: Digest = format!("sha256:{hex}")
            .parse()
            .unwrap_or(Digest(Sha256([0; 32])));
        assert_eq!(digest.to_string(), format!("sha256:{hex}"));
    }

    #[test]
    fn copies_of_a_descriptor_give_the_same_hash() -> io::Result<()> {
        let mut file = tempfile::tempfile()?;
        file.write_all(b"abc")?;
        let copy = file.try_clone()?;
        let hashes =
            [&file, &copy].map(|file| Sha256::of_file(file, 3).map(|hash| hash.to_string()));
        let expect = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        for hash in hashes {
            assert_eq!(hash.map_err(io::Error::other)?, expect);
        }
        Ok(())
    }
}
