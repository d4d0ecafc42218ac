//! Profiles as YAML. What is not as it is to be is told with line and column.

use std::marker::PhantomData;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    convert,
    document::{
        DOCUMENT_BYTES_MAX, Document, DocumentError, Executable, FileRule, Frozen, Library, Part,
        PeerRule, PutIn, State, Subject,
    },
    learning::BY_BYTES_MAX,
    pattern::PATH_BYTES_MAX,
    peers::Network,
    reasons::REASON_BYTES_MAX,
    tree::{READ, WRITE},
    whole::COMMAND_STARTS_MIN,
    written::{
        AnyOr, FileAccess, Fixed, Kind, Line, Overflow, Path, Pattern, ProtocolName, Shape,
        Version, Written,
    },
};
use crate::digest::{Digest, Sha256};

/// Characters of a parser's message.
const MESSAGE_CHARS_MAX: usize = 500;

impl Document {
    /// Reads a document. Lists may come in any order.
    pub fn parse(text: &str) -> Result<Self, DocumentError> {
        if text.len() > DOCUMENT_BYTES_MAX {
            return Err(DocumentError::TooLong(text.len()));
        }
        let options = serde_saphyr::options! { with_snippet: false };
        let raw: Raw = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            let message: String = error.to_string().chars().take(MESSAGE_CHARS_MAX).collect();
            match error.location() {
                Some(at) => DocumentError::At {
                    line: at.line(),
                    column: at.column(),
                    message,
                },
                None => DocumentError::Invalid(message),
            }
        })?;
        convert::canonical(&raw.into())
    }

    /// Writes it as JSON, with the same names.
    pub fn to_json(&self) -> serde_json::Value {
        // As with YAML.
        serde_json::to_value(Raw::from(self)).unwrap_or_default()
    }

    /// Writes it as YAML.
    pub fn to_yaml(&self) -> String {
        // What is written is made of texts, numbers and lists, all of which YAML has.
        serde_saphyr::to_string(&Raw::from(self)).unwrap_or_default()
    }
}

type LongLine = Line<PATH_BYTES_MAX>;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Raw {
    api_version: Written<Fixed<Version>>,
    kind: Written<Fixed<Kind>>,
    image: RawImage,
    state: Written<State>,
    completeness: RawCompleteness,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inherited_from: Option<Written<Digest>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    frozen: Option<RawFrozen>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<Written<LongLine>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    exposed_ports: Vec<Written<Line<64>>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    executables: Vec<RawExecutable>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    files: Vec<RawFile>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    collapsed: Vec<Written<Pattern>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    peers: Vec<RawPeer>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sockets: Vec<Written<Pattern>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    overflowed: Vec<Written<Overflow>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    libraries: Vec<RawLibrary>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    put_in: Vec<RawPutIn>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawImage {
    reference: Written<LongLine>,
    repository: Written<LongLine>,
    manifest_digest: Written<Digest>,
    config_digest: Written<Digest>,
    chain_id: Written<Digest>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawCompleteness {
    complete: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<Written<Line<REASON_BYTES_MAX>>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawFrozen {
    by: Written<Line<BY_BYTES_MAX>>,
    at: Written<Timestamp>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawExecutable {
    path: Written<Path>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<Written<Sha256>>,
    #[serde(default)]
    parents: AnyOr<Written<Path>>,
    #[serde(default)]
    arguments: AnyOr<Written<Shape>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawFile {
    path: Written<Pattern>,
    access: Written<FileAccess>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawPeer {
    cidr: Written<Network>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    protocol: Written<ProtocolName>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawLibrary {
    path: Written<Path>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<Written<Sha256>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawPutIn {
    command: Written<Shape>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seen: Option<u8>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    executables: Vec<RawExecutable>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    files: Vec<RawFile>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    collapsed: Vec<Written<Pattern>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    peers: Vec<RawPeer>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sockets: Vec<Written<Pattern>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    overflowed: Vec<Written<Overflow>>,
}

/// The lists of a part, which stand in two places.
struct RawPart {
    executables: Vec<RawExecutable>,
    files: Vec<RawFile>,
    collapsed: Vec<Written<Pattern>>,
    peers: Vec<RawPeer>,
    sockets: Vec<Written<Pattern>>,
    overflowed: Vec<Written<Overflow>>,
}

impl From<&Document> for Raw {
    fn from(document: &Document) -> Self {
        let line = |text: &String| Written(Line(text.clone()));
        let image = &document.image;
        let main = RawPart::from(&document.main);
        Self {
            api_version: Written(Fixed(PhantomData)),
            kind: Written(Fixed(PhantomData)),
            image: RawImage {
                reference: line(&image.reference),
                repository: line(&image.repository),
                manifest_digest: Written(image.manifest),
                config_digest: Written(image.config),
                chain_id: Written(image.chain_id),
            },
            state: Written(document.state),
            completeness: RawCompleteness {
                complete: document.reasons.is_empty(),
                reasons: document
                    .reasons
                    .iter()
                    .map(|text| Written(Line(text.clone())))
                    .collect(),
            },
            inherited_from: document.inherited_from.map(Written),
            frozen: document.frozen.as_ref().map(|frozen| RawFrozen {
                by: Written(Line(frozen.by.clone())),
                at: Written(frozen.at),
            }),
            user: (!document.user.is_empty()).then(|| line(&document.user)),
            exposed_ports: document
                .exposed_ports
                .iter()
                .map(|it| Written(Line(it.clone())))
                .collect(),
            executables: main.executables,
            files: main.files,
            collapsed: main.collapsed,
            peers: main.peers,
            sockets: main.sockets,
            overflowed: main.overflowed,
            libraries: document
                .libraries
                .iter()
                .map(|it| RawLibrary {
                    path: Written(Path(it.path.clone())),
                    sha256: it.sha256.map(Written),
                })
                .collect(),
            put_in: document.put_in.iter().map(RawPutIn::from).collect(),
        }
    }
}

impl From<&PutIn> for RawPutIn {
    fn from(put_in: &PutIn) -> Self {
        let part = RawPart::from(&put_in.part);
        Self {
            command: Written(Shape(put_in.command.clone())),
            seen: put_in.seen,
            executables: part.executables,
            files: part.files,
            collapsed: part.collapsed,
            peers: part.peers,
            sockets: part.sockets,
            overflowed: part.overflowed,
        }
    }
}

impl From<&Part> for RawPart {
    fn from(part: &Part) -> Self {
        let pattern = |text: &String| Written(Pattern(text.clone()));
        let path = |bytes: &Vec<u8>| Written(Path(bytes.clone()));
        let executables = part.executables.iter().map(|it| RawExecutable {
            path: path(&it.path),
            sha256: it.sha256.map(Written),
            parents: AnyOr::of(it.parents.as_ref(), path),
            arguments: AnyOr::of(it.arguments.as_ref(), |text| Written(Shape(text.clone()))),
        });
        let files = part.files.iter().map(|it| {
            let read = if it.read { READ } else { 0 };
            let write = if it.write { WRITE } else { 0 };
            RawFile {
                path: pattern(&it.pattern),
                access: Written(FileAccess(read | write)),
            }
        });
        let peers = part.peers.iter().filter_map(|it| {
            Some(RawPeer {
                cidr: Written(Network::new(it.address, it.prefix)?),
                port: it.port,
                protocol: Written(ProtocolName(it.protocol.clone())),
            })
        });
        Self {
            executables: executables.collect(),
            files: files.collect(),
            collapsed: part.collapsed.iter().map(pattern).collect(),
            peers: peers.collect(),
            sockets: part.sockets.iter().map(pattern).collect(),
            overflowed: part
                .overflowed
                .iter()
                .map(|it| Written(Overflow(it.clone())))
                .collect(),
        }
    }
}

impl From<Raw> for Document {
    fn from(raw: Raw) -> Self {
        let image = raw.image;
        let reasons = raw.completeness.reasons.into_iter().map(|it| it.0.0);
        let mut reasons: Vec<String> = reasons.collect();
        if !raw.completeness.complete && reasons.is_empty() {
            reasons.push("its document says so".to_owned());
        }
        Self {
            image: Subject {
                reference: image.reference.0.0,
                repository: image.repository.0.0,
                manifest: image.manifest_digest.0,
                config: image.config_digest.0,
                chain_id: image.chain_id.0,
            },
            state: raw.state.0,
            reasons,
            inherited_from: raw.inherited_from.map(|it| it.0),
            frozen: raw.frozen.map(|frozen| Frozen {
                at: frozen.at.0,
                by: frozen.by.0.0,
            }),
            user: raw.user.map(|it| it.0.0).unwrap_or_default(),
            exposed_ports: raw.exposed_ports.into_iter().map(|it| it.0.0).collect(),
            main: RawPart {
                executables: raw.executables,
                files: raw.files,
                collapsed: raw.collapsed,
                peers: raw.peers,
                sockets: raw.sockets,
                overflowed: raw.overflowed,
            }
            .into(),
            libraries: raw
                .libraries
                .into_iter()
                .map(|it| Library {
                    path: it.path.0.0,
                    sha256: it.sha256.map(|it| it.0),
                })
                .collect(),
            put_in: raw.put_in.into_iter().map(PutIn::from).collect(),
        }
    }
}

impl From<RawPutIn> for PutIn {
    fn from(raw: RawPutIn) -> Self {
        Self {
            command: raw.command.0.0,
            seen: raw.seen.map(|seen| seen.min(COMMAND_STARTS_MIN)),
            part: RawPart {
                executables: raw.executables,
                files: raw.files,
                collapsed: raw.collapsed,
                peers: raw.peers,
                sockets: raw.sockets,
                overflowed: raw.overflowed,
            }
            .into(),
        }
    }
}

impl From<RawPart> for Part {
    fn from(raw: RawPart) -> Self {
        let executables = raw.executables.into_iter().map(|it| Executable {
            path: it.path.0.0,
            sha256: it.sha256.map(|it| it.0),
            parents: it.parents.these(|path| path.0.0),
            arguments: it.arguments.these(|shape| shape.0.0),
        });
        let files = raw.files.into_iter().map(|it| FileRule {
            pattern: it.path.0.0,
            read: it.access.0.0 & READ != 0,
            write: it.access.0.0 & WRITE != 0,
        });
        let peers = raw.peers.into_iter().map(|it| PeerRule {
            address: it.cidr.0.address(),
            prefix: it.cidr.0.prefix(),
            port: it.port,
            protocol: it.protocol.0.0,
        });
        Self {
            executables: executables.collect(),
            files: files.collect(),
            collapsed: raw.collapsed.into_iter().map(|it| it.0.0).collect(),
            peers: peers.collect(),
            sockets: raw.sockets.into_iter().map(|it| it.0.0).collect(),
            overflowed: raw.overflowed.into_iter().map(|it| it.0.0).collect(),
        }
    }
}
