//! The ways in which a file becomes code: what each is called, and how bad it is when the image does
//! not account for the file (the contract's table of kinds).

use super::{Kind, Severity};

/// How a file became code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Executed.
    Program,
    /// Named by an executed program's `PT_INTERP` (`ld.so`).
    ElfInterpreter,
    /// Mapped executable.
    Code {
        /// After pages of the mapping were written.
        written: bool,
    },
    /// Memory without a file that was written and then made executable.
    Anonymous,
    /// Run by an interpreter.
    Script,
    /// Read by a shell, so that it may have been sourced.
    Sourced,
}

impl Role {
    /// What happened to the file, as the beginning of a sentence.
    pub(super) fn used(self) -> &'static str {
        match self {
            Self::Program => "was executed",
            Self::ElfInterpreter => "was loaded as the program's ELF interpreter",
            Self::Code { .. } => "was mapped executable",
            Self::Anonymous => "memory was written and then made executable",
            Self::Script => "was run as a script",
            Self::Sourced => "was read by a shell, which may have run it,",
        }
    }

    /// The image has nothing at the path.
    pub(super) fn added(self) -> (Kind, Severity) {
        match self {
            Self::Program => (Kind::ExecAdded, Severity::Critical),
            Self::ElfInterpreter | Self::Code { .. } | Self::Anonymous => {
                (Kind::CodeAdded, Severity::High)
            }
            Self::Script => (Kind::ScriptAdded, Severity::High),
            Self::Sourced => (Kind::ScriptAdded, Severity::Medium),
        }
    }

    /// The same, with the bytes of another file of the image.
    pub(super) fn copied(self) -> (Kind, Severity) {
        match self {
            Self::Program => (Kind::ExecAdded, Severity::Medium),
            other => other.added(),
        }
    }

    /// The image has something else at the path.
    pub(super) fn modified(self) -> (Kind, Severity) {
        match self {
            Self::Program => (Kind::ExecModified, Severity::Critical),
            Self::ElfInterpreter | Self::Code { .. } | Self::Anonymous => {
                (Kind::CodeModified, Severity::Critical)
            }
            Self::Script => (Kind::ScriptModified, Severity::Critical),
            Self::Sourced => (Kind::ScriptModified, Severity::High),
        }
    }

    /// From another filesystem than the container's root.
    pub(super) fn volume(self) -> (Kind, Severity) {
        match self {
            Self::Program => (Kind::ExecVolume, Severity::Low),
            Self::ElfInterpreter | Self::Code { .. } | Self::Anonymous => {
                (Kind::CodeVolume, Severity::Low)
            }
            Self::Script | Self::Sourced => (Kind::ScriptVolume, Severity::Info),
        }
    }

    /// Without a name.
    pub(super) fn memory(self) -> (Kind, Severity) {
        match self {
            Self::Program => (Kind::ExecMemory, Severity::Critical),
            Self::ElfInterpreter | Self::Code { .. } | Self::Anonymous => {
                (Kind::CodeMemory, Severity::High)
            }
            Self::Script | Self::Sourced => self.added(),
        }
    }

    /// It could not be compared.
    pub(super) fn unverifiable(self) -> (Kind, Severity) {
        let severity = match self {
            Self::Sourced => Severity::Low,
            _ => Severity::Medium,
        };
        (Kind::ContentUnverifiable, severity)
    }

    pub(super) fn is_code(self) -> bool {
        matches!(self, Self::Code { .. })
    }

    pub(super) fn is_written(self) -> bool {
        self == Self::Code { written: true }
    }
}
