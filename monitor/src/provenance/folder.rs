//! A folder as a source. In `sha256-HEX`, named by the digest of a manifest or an index, lies what
//! `cosign sign` writes to files, `NAME.payload` with `NAME.sig` and bundles, `NAME.json`, or what
//! `cosign save` does.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use tokio::task::spawn_blocking;

use super::{
    document::SIGNED_BYTES_MAX,
    gather::{self, Gathered},
    judge::Signed,
    layout::Layout,
    signature::{Signature, Target},
};
use crate::{digest::Digest, files, image::manifest::digest_of};

/// Files of one image; further ones are not read, which is logged.
const FILES_MAX: usize = 128;

/// What the folder has of an image by these digests.
///
/// # Errors
///
/// It cannot be read, and why.
pub(super) async fn gather(
    folder: PathBuf,
    images: &[(Target, Digest)],
) -> Result<Gathered, String> {
    let mut gathered = Gathered::default();
    for (target, digest) in images {
        let (folder, target, digest) = (folder.clone(), *target, *digest);
        let read = spawn_blocking(move || read(&folder, target, &digest));
        let ended = |_| Err("monitord is ending".to_owned());
        let (found, layout) = read.await.unwrap_or_else(ended)?;
        gathered.append(found);
        if let Some(layout) = layout {
            gathered.append(gather::gather(&layout, &[(target, digest)]).await?);
        }
    }
    Ok(gathered)
}

/// The files of an image, and its layout if there is one. Blocks.
fn read(
    folder: &Path,
    target: Target,
    digest: &Digest,
) -> Result<(Gathered, Option<Layout>), String> {
    let failed = |error: io::Error| format!("{}: {error}", folder.display());
    // One without signatures of this image is not one that is not there.
    fs::read_dir(folder).map_err(failed)?;
    let mut gathered = Gathered::default();
    let directory = folder.join(format!("sha256-{}", digest.0));
    match fs::read_dir(&directory) {
        Ok(entries) => image(entries, target, &mut gathered).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((gathered, None)),
        Err(error) => return Err(failed(error)),
    }
    Ok((gathered, Layout::of(directory)))
}

/// What lies beside each other under one name.
#[derive(Default)]
struct Named {
    payload: Option<Vec<u8>>,
    signature: Option<Vec<u8>>,
}

fn image(entries: fs::ReadDir, target: Target, gathered: &mut Gathered) -> io::Result<()> {
    let mut paths = Vec::new();
    for entry in entries {
        if paths.len() >= FILES_MAX {
            tracing::warn!(
                limit = FILES_MAX,
                "the folder has more files of an image than are read"
            );
            break;
        }
        paths.push(entry?.path());
    }
    paths.sort();
    let mut named = BTreeMap::<_, Named>::new();
    for path in paths {
        let ending = path.extension().and_then(OsStr::to_str).unwrap_or_default();
        // That of a layout is no bundle.
        let is_list = path.file_name() == Some(OsStr::new("index.json"));
        if is_list || !["json", "payload", "sig"].contains(&ending) {
            continue;
        }
        let bytes = match files::read(&path, SIGNED_BYTES_MAX as u64) {
            Ok(bytes) => bytes,
            Err(error) => {
                let what = format!("{} {error}", path.display());
                gathered.sign(Signed::Refused(Signature::unusable(what)));
                continue;
            }
        };
        let stem = path.with_extension("");
        match ending {
            "json" => gathered.bundle(digest_of(&bytes), target, bytes),
            "payload" => named.entry(stem).or_default().payload = Some(bytes),
            _ => named.entry(stem).or_default().signature = Some(bytes),
        }
    }
    for (stem, named) in named {
        let signed = match (named.payload, named.signature.map(String::from_utf8)) {
            (Some(payload), Some(Ok(signature))) => Signed::Simple { payload, signature },
            (Some(_), None) => refused(&stem, "has a payload and no .sig"),
            (None, _) => refused(&stem, "has a signature and no .payload"),
            (Some(_), Some(Err(_))) => refused(&stem, "has a signature that is not base64"),
        };
        gathered.sign(signed);
    }
    Ok(())
}

fn refused(stem: &Path, what: &str) -> Signed {
    Signed::Refused(Signature::unusable(format!("{} {what}", stem.display())))
}
