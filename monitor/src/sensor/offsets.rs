//! The running kernel's offsets, all of them or an error that names the missing one.

use std::{fs, io, os::unix::fs::MetadataExt};

use monitor_common::offsets::KernelOffsets;

use super::btf::{Btf, BtfError};

/// The kernel's BTF.
pub const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";
/// overlayfs's own, where it is a module.
pub const OVERLAY_BTF: &str = "/sys/kernel/btf/overlay";

/// The offsets could not be found, so that no hook that needs them may be loaded.
#[derive(Debug, thiserror::Error)]
pub enum OffsetsError {
    /// No BTF, or no access to it.
    #[error(
        "cannot read the kernel's type information at {path}: {source}; monitord needs a kernel built with CONFIG_DEBUG_INFO_BTF (5.17 or later) and /sys mounted"
    )]
    Read {
        /// The file.
        path: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The kernel lacks something.
    #[error(
        "exec hook refused, offset {field}: {source}; this kernel is not supported yet, report its version"
    )]
    Missing {
        /// The field of [`KernelOffsets`].
        field: &'static str,
        /// What is missing.
        source: BtfError,
    },
    /// BTF is damaged.
    #[error("cannot use {path}: {source}")]
    Malformed {
        /// The file.
        path: &'static str,
        /// Why.
        source: BtfError,
    },
    /// The host's mount namespace could not be told.
    #[error(
        "cannot stat /proc/1/ns/mnt to know the host's mount namespace: {0}; monitord must run as root in the host's pid namespace"
    )]
    HostNamespace(io::Error),
}

/// What the programs need to know of the running kernel.
#[derive(Debug)]
pub struct Offsets {
    /// The offsets; those of members that the kernel can do without are zero where it does.
    pub kernel: KernelOffsets,
    /// The first of these that it does not have, so that no program that uses them may be loaded.
    pub lacks: Option<BtfError>,
}

/// Reads the offsets of the running kernel (about 10 ms).
pub fn read() -> Result<Offsets, OffsetsError> {
    let load = |path| fs::read(path).map_err(|source| OffsetsError::Read { path, source });
    let malformed = |path| move |source| OffsetsError::Malformed { path, source };
    let kernel_bytes = load(KERNEL_BTF)?;
    let kernel = Btf::parse(&kernel_bytes, None).map_err(malformed(KERNEL_BTF))?;
    let (mut offsets, mut lacks) = find(&kernel)?;
    match find_overlay(&kernel, &mut offsets) {
        Ok(()) => {}
        // Built as a module: its types are in its own BTF, once it is loaded.
        Err(_) => {
            let overlay_bytes = load(OVERLAY_BTF)?;
            let overlay =
                Btf::parse(&overlay_bytes, Some(&kernel)).map_err(malformed(OVERLAY_BTF))?;
            find_overlay(&overlay, &mut offsets).map_err(|source| OffsetsError::Missing {
                field: "ovl_inode",
                source,
            })?;
        }
    }
    // Without it the file itself has the path that the user opened.
    offsets.backing_user_path = kernel
        .member_offset("backing_file", "user_path")
        .unwrap_or(0);
    for bit in ["REQ_F_NEED_CLEANUP_BIT", "REQ_F_ASYNC_DATA_BIT"] {
        match kernel.enumerator(bit) {
            Ok(bit) => offsets.ring_unfinished |= 1_u32.checked_shl(bit).unwrap_or(0),
            Err(error) => lacks = lacks.or(Some(error)),
        }
    }
    let namespace = host_mount_namespace().map_err(OffsetsError::HostNamespace)?;
    offsets.host_mount_namespace = u32::try_from(namespace).map_err(|_| {
        OffsetsError::HostNamespace(io::Error::other("its inode number exceeds 32 bits"))
    })?;
    Ok(Offsets {
        kernel: offsets,
        lacks,
    })
}

/// Of init, or where init has capabilities that this process lacks, of the kernel's threads.
fn host_mount_namespace() -> io::Result<u64> {
    let of_init = fs::metadata("/proc/1/ns/mnt");
    of_init
        .or_else(|error| fs::metadata("/proc/2/ns/mnt").map_err(|_| error))
        .map(|file| file.ino())
}

fn find_overlay(btf: &Btf<'_>, offsets: &mut KernelOffsets) -> Result<(), BtfError> {
    let inode = btf.member_offset("ovl_inode", "vfs_inode")?;
    let from_inode = |member| {
        let offset = btf.member_offset("ovl_inode", member)?;
        offset.checked_sub(inode).ok_or(BtfError::Malformed(
            "ovl_inode keeps its own members before its inode",
        ))
    };
    offsets.ovl_upper_dentry = from_inode("__upperdentry")?;
    match from_inode("oe") {
        Ok(entry) => {
            offsets.ovl_entry = entry;
            offsets.ovl_entry_count = btf.member_offset("ovl_entry", "__numlower")?;
            offsets.ovl_entry_dentry = btf.member_offset("ovl_entry", "__lowerstack")?
                + btf.member_offset("ovl_path", "dentry")?;
        }
        Err(_) => offsets.ovl_lower_dentry = from_inode("lowerpath.dentry")?,
    }
    Ok(())
}

/// Looks up every member, by the first of its names that the kernel knows; says as well which of
/// those that it can do without it lacks first.
fn find(btf: &Btf<'_>) -> Result<(KernelOffsets, Option<BtfError>), OffsetsError> {
    let mut offsets = KernelOffsets::ZERO;
    let mut lacks = None;
    for (index, member) in KernelOffsets::MEMBERS.iter().enumerate() {
        let missing = |source| OffsetsError::Missing {
            field: member.field,
            source,
        };
        let found = member
            .paths
            .iter()
            .find_map(|path| btf.member_offset(member.structure, path).ok());
        let Some(found) = found else {
            let source = BtfError::NoMember {
                structure: member.structure.to_owned(),
                member: member.paths.join(" or "),
            };
            if member.is_optional {
                lacks = lacks.or(Some(source));
                continue;
            }
            return Err(missing(source));
        };
        if !offsets.set(index, found) {
            return Err(missing(BtfError::Malformed(
                "the list of offsets and the struct disagree",
            )));
        }
    }
    Ok((offsets, lacks))
}
