//! Facts to findings: every rule, and no I/O.

pub mod approval;
pub mod connect;
pub mod container;
pub mod draft;
pub mod file;
pub mod jit;
pub mod modified;
pub mod open;
pub mod participant;
pub mod posture;
pub mod role;
pub mod script;
pub mod unexpected;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    containers::{Container, processes::Origin},
    digest::{Digest, Sha256},
    sensor::event::Process,
};

/// Kinds of alert, named as in the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An executed file has no path in the image.
    ExecAdded,
    /// An executed file has a path in the image but other bytes or another type.
    ExecModified,
    /// Executed from memory or deleted.
    ExecMemory,
    /// Executed from another mount than the root filesystem.
    ExecVolume,
    /// A script has no path in the image.
    ScriptAdded,
    /// A script has a path in the image but other bytes.
    ScriptModified,
    /// A script lies on another mount than the root filesystem.
    ScriptVolume,
    /// A file that was mapped executable has no path in the image.
    CodeAdded,
    /// A file that was mapped executable has a path in the image but other bytes.
    CodeModified,
    /// A file without a name, or memory that was written, was mapped executable.
    CodeMemory,
    /// A file that was mapped executable lies on another mount than the root filesystem.
    CodeVolume,
    /// A file of the list of sensitive ones was opened.
    OpenSensitive,
    /// A file of the image was written, replaced or removed.
    ImageFileModified,
    /// No image accounts for the container.
    ImageUnknown,
    /// The image of a container is not approved.
    ImageUnapproved,
    /// The image of a container needs a signature and has none that is valid.
    ImageUnsigned,
    /// The image of a container comes from a registry that is not trusted.
    ImageRegistryUntrusted,
    /// The image of a container is built on one that is denied.
    ImageBaseDenied,
    /// The reference of a container's image stands for another image now.
    ImageReferenceMoved,
    /// A container is started with what a policy does not allow.
    Posture,
    /// Bytes could not be compared.
    ContentUnverifiable,
    /// A peer was reached for that hands out credentials or rules over containers.
    ConnectSensitive,
    /// A program was executed that the profile of the image does not have.
    ExecUnexpected,
    /// A file was opened that the profile of the image does not have.
    OpenUnexpected,
    /// A peer was reached for that the profile of the image does not have.
    ConnectUnexpected,
}

impl Kind {
    /// The contract's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::ExecAdded => "exec_added",
            Self::ExecModified => "exec_modified",
            Self::ExecMemory => "exec_memory",
            Self::ExecVolume => "exec_volume",
            Self::ScriptAdded => "script_added",
            Self::ScriptModified => "script_modified",
            Self::ScriptVolume => "script_volume",
            Self::CodeAdded => "code_added",
            Self::CodeModified => "code_modified",
            Self::CodeMemory => "code_memory",
            Self::CodeVolume => "code_volume",
            Self::OpenSensitive => "open_sensitive",
            Self::ImageFileModified => "image_file_modified",
            Self::ImageUnknown => "image_unknown",
            Self::ImageUnapproved => "image_unapproved",
            Self::ImageUnsigned => "image_unsigned",
            Self::ImageRegistryUntrusted => "image_registry_untrusted",
            Self::ImageBaseDenied => "image_base_denied",
            Self::ImageReferenceMoved => "image_reference_moved",
            Self::Posture => "posture",
            Self::ContentUnverifiable => "content_unverifiable",
            Self::ConnectSensitive => "connect_sensitive",
            Self::ExecUnexpected => "exec_unexpected",
            Self::OpenUnexpected => "open_unexpected",
            Self::ConnectUnexpected => "connect_unexpected",
        }
    }
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Probably harmless.
    Low,
    /// Look at it.
    Medium,
    /// Look at it now.
    High,
    /// Act now.
    Critical,
}

impl Severity {
    /// Its name in alerts and in policies.
    pub fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

/// The verdict on a file (design, promise 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileVerdict {
    /// Same path, same bytes.
    Image,
    /// Same bytes, copied up by chmod or chown.
    MetadataChanged,
    /// A path of the image, other bytes or another type.
    Modified,
    /// No such path in the image.
    Added,
    /// From another superblock than the container's root.
    Volume,
    /// memfd, deleted, no path.
    Memory,
    /// Could not be compared.
    Unverifiable,
}

impl FileVerdict {
    /// Its name in alerts and in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::MetadataChanged => "metadata_changed",
            Self::Modified => "modified",
            Self::Added => "added",
            Self::Volume => "volume",
            Self::Memory => "memory",
            Self::Unverifiable => "unverifiable",
        }
    }
}

/// Whether the bytes were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HashState {
    /// Hashed.
    Done,
    /// Still being hashed: a later revision tells.
    Pending,
    /// Gone before they could be read.
    Gone,
    /// The finding does not depend on them.
    NotRead,
}

/// What an alert says of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFinding {
    /// The path the process sees.
    pub path: Vec<u8>,
    /// The path was cut.
    pub path_truncated: bool,
    /// The verdict.
    pub verdict: FileVerdict,
    /// Diff ID of the layer that holds the expected file.
    pub layer: Option<Digest>,
    /// What the image holds at this path.
    pub expected: Option<Sha256>,
    /// What was seen.
    pub seen: Option<Sha256>,
    /// Whether the bytes were read.
    pub hash_state: HashState,
    /// Another path of the image that holds the same bytes.
    pub same_bytes_as: Option<Vec<u8>>,
}

/// What an alert says of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessFinding {
    /// The process when the hook ran.
    pub process: Process,
    /// How it came to be: `init`, `exec` or `unknown`.
    pub origin: Origin,
    /// The executed file, as the process sees it.
    pub executable: Vec<u8>,
    /// Redacted arguments.
    pub arguments: Vec<Vec<u8>>,
    /// Arguments were cut.
    pub arguments_truncated: bool,
    /// Executables of the ancestors, nearest first.
    pub ancestors: Vec<Vec<u8>>,
}

/// Something that the image does not account for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub kind: Kind,
    /// How bad.
    pub severity: Severity,
    /// When it happened, in nanoseconds since boot.
    pub time_boot_ns: u64,
    /// In which container, as it was known then.
    pub container: Arc<Container>,
    /// The name of the [`Evidence`](crate::image::contents::Evidence) of the expected contents;
    /// `None` without contents.
    pub evidence: Option<&'static str>,
    /// One sentence for people.
    pub message: String,
    /// The process, for findings about one.
    pub process: Option<ProcessFinding>,
    /// The file, for findings about one.
    pub file: Option<FileFinding>,
    /// The peer, for findings about one.
    pub connection: Option<connect::ConnectionFinding>,
    /// What more there is to say (why unverifiable, what contradicts).
    pub details: Option<String>,
    /// Which hook saw it (`tracepoint`).
    pub hook: Option<&'static str>,
    /// The rule of a policy that raised it or changed it (`POLICY.RULE`).
    pub rule: Option<String>,
}
