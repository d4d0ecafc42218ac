//! What an image says of its containers before anything runs, read from its config and its files.

use std::{path::PathBuf, sync::Arc};

use crate::{
    containers::{Container, ImageId},
    digest::Sha256,
    image::{contents::Contents, layer::EntryKind, lower, manifest},
    profile::{FileKind, ImageConfig, ImageFiles, Seed, seed::seed},
};

use super::super::contents::ContentsReader;

/// What was read of an image for its profile.
pub(in super::super) struct Seeded {
    pub(super) image: ImageId,
    /// The seed, or why there is none.
    pub(super) seed: Result<Seed, String>,
    pub(super) contents: Arc<Contents>,
}

/// Reads what `image`, the image of `container`, says.
pub(in super::super) async fn read(
    reader: Arc<ContentsReader>,
    container: Arc<Container>,
    image: ImageId,
    contents: Arc<Contents>,
) -> Seeded {
    let config = reader
        .images()
        .read_config(&container.runtime_namespace, &image)
        .await;
    let seed = match config {
        Err(error) => Err(error.to_string()),
        Ok(config) => {
            // Without them the seed has what the config says, and no libraries.
            let directories = reader.directories(&container).await.unwrap_or_else(|error| {
                tracing::info!(id = container.id, error, "a profile is seeded without libraries: the layers of the container cannot be read");
                Vec::new()
            });
            let files = Files {
                contents: Arc::clone(&contents),
                directories,
            };
            tokio::task::spawn_blocking(move || of(&config, files))
                .await
                .map_err(|error| error.to_string())
        }
    };
    Seeded {
        image,
        seed,
        contents,
    }
}

fn of(config: &manifest::Config, mut files: Files) -> Seed {
    let path = config.env.iter().find_map(|it| it.strip_prefix("PATH="));
    let config = ImageConfig {
        entrypoint: config.entrypoint.clone(),
        command: config.cmd.clone(),
        path: path.map(str::to_owned),
        working_dir: config.working_dir.clone(),
        exposed_ports: config.exposed_ports.clone(),
        volumes: config.volumes.clone(),
        user: config.user.clone(),
        healthcheck: config.healthcheck.clone(),
    };
    seed(&config, &mut files)
}

/// The files of an image, as they were unpacked for a container.
struct Files {
    contents: Arc<Contents>,
    /// From bottom to top, and perhaps one more on top that only shifts owners.
    directories: Vec<PathBuf>,
}

impl ImageFiles for Files {
    fn kind(&mut self, path: &[u8]) -> Option<FileKind> {
        Some(match self.contents.lookup(path)?.kind {
            EntryKind::File { .. } => FileKind::Regular,
            EntryKind::Directory => FileKind::Directory,
            EntryKind::Symlink { target } => FileKind::Symlink(target.to_vec()),
            EntryKind::CharDevice { .. } | EntryKind::BlockDevice { .. } | EntryKind::Fifo => {
                FileKind::Other
            }
        })
    }

    fn read(&mut self, path: &[u8], max: usize) -> Option<Vec<u8>> {
        lower::read_file(&self.contents, &self.directories, path, max)
    }

    fn sha256(&mut self, path: &[u8]) -> Option<Sha256> {
        self.contents.read(path);
        match self.contents.lookup(path)?.kind {
            EntryKind::File { sha256, .. } => sha256,
            _ => None,
        }
    }
}
