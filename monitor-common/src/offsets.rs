//! Where the running kernel keeps what the programs read.
//!
//! rustc emits no CO-RE relocations, so the agent reads the offsets from the kernel's BTF and sets
//! them as one read-only global before loading; the verifier then treats them as constants.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! kernel_offsets {
    ($($field:ident = $type:literal $($member:literal)|+ $(, $optional:ident)?;)*) => {
        /// Byte offsets into structs of the running kernel.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
        pub struct KernelOffsets {
            $(
                #[doc = concat!("Offset in `struct ", $type, "`, newest kernel first: ", $("`", $member, "` "),+)]
                pub $field: u32,
            )*
            /// From overlayfs's inode to the pointer to its upper dentry: `__upperdentry` minus
            /// `vfs_inode` of `struct ovl_inode`.
            pub ovl_upper_dentry: u32,
            /// From overlayfs's inode to the pointer to its lower dentry: `lowerpath.dentry` minus
            /// `vfs_inode` of `struct ovl_inode`; 0 since 6.5, where `ovl_entry` leads there.
            pub ovl_lower_dentry: u32,
            /// From overlayfs's inode to the pointer to its `struct ovl_entry`: `oe` minus
            /// `vfs_inode` of `struct ovl_inode`; 0 before 6.5.
            pub ovl_entry: u32,
            /// How many lower layers have the file: `__numlower` of `struct ovl_entry`.
            pub ovl_entry_count: u32,
            /// The uppermost of them: `__lowerstack` of `struct ovl_entry` plus `dentry` of
            /// `struct ovl_path`.
            pub ovl_entry_dentry: u32,
            /// The path a user opened, of the file in which a stacked filesystem keeps the real
            /// one: `user_path` of `struct backing_file`; 0 before 6.5.
            pub backing_user_path: u32,
            /// The flags of which a request of io_uring has one until what it carries is released:
            /// `REQ_F_NEED_CLEANUP_BIT` and `REQ_F_ASYNC_DATA_BIT`, as a mask; 0 if they are not
            /// known.
            pub ring_unfinished: u32,
            /// Inode number of the host's mount namespace.
            pub host_mount_namespace: u32,
        }

        impl KernelOffsets {
            /// For each offset its name, the struct and the member paths it may go by, newest
            /// kernel first; a path descends with `.`.
            pub const MEMBERS: &'static [Member] = &[
                $(Member {
                    field: stringify!($field),
                    structure: $type,
                    paths: &[$($member),+],
                    is_optional: is_optional!($($optional)?),
                },)*
            ];

            /// Zeros, to be filled in.
            pub const ZERO: Self = Self {
                $($field: 0,)*
                ovl_upper_dentry: 0,
                ovl_lower_dentry: 0,
                ovl_entry: 0,
                ovl_entry_count: 0,
                ovl_entry_dentry: 0,
                backing_user_path: 0,
                ring_unfinished: 0,
                host_mount_namespace: 0,
            };

            /// Sets the offset that [`Self::MEMBERS`] lists at `index`; false if there is none.
            pub fn set(&mut self, index: usize, offset: u32) -> bool {
                let fields = [$(&mut self.$field),*];
                match fields.into_iter().nth(index) {
                    Some(field) => { *field = offset; true }
                    None => false,
                }
            }
        }
    };
}

/// One member of a kernel struct.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// The field of [`KernelOffsets`].
    pub field: &'static str,
    /// The kernel's struct.
    pub structure: &'static str,
    /// The member, by each name it has had.
    pub paths: &'static [&'static str],
    /// Programs that a kernel can do without use it: 0 where the kernel does not have it.
    pub is_optional: bool,
}

macro_rules! is_optional {
    () => {
        false
    };
    (optional) => {
        true
    };
}

kernel_offsets! {
    task_pid = "task_struct" "pid";
    task_tgid = "task_struct" "tgid";
    task_personality = "task_struct" "personality";
    task_status = "task_struct" "thread_info.status";
    task_files = "task_struct" "files";
    task_real_parent = "task_struct" "real_parent";
    task_group_leader = "task_struct" "group_leader";
    task_start_boottime = "task_struct" "start_boottime" | "real_start_time";
    task_cred = "task_struct" "cred";
    task_nsproxy = "task_struct" "nsproxy";
    task_fs = "task_struct" "fs";
    task_mm = "task_struct" "mm";
    task_cgroups = "task_struct" "cgroups";
    cred_uid = "cred" "uid";
    nsproxy_mnt_ns = "nsproxy" "mnt_ns";
    nsproxy_pid_ns = "nsproxy" "pid_ns_for_children";
    mnt_namespace_inum = "mnt_namespace" "ns.inum";
    pid_namespace_inum = "pid_namespace" "ns.inum";
    fs_root_mnt = "fs_struct" "root.mnt";
    files_fdt = "files_struct" "fdt";
    fdtable_max = "fdtable" "max_fds";
    fdtable_fd = "fdtable" "fd";
    mm_exe_file = "mm_struct" "exe_file";
    mm_arg_start = "mm_struct" "arg_start";
    mm_arg_end = "mm_struct" "arg_end";
    css_set_dfl_cgrp = "css_set" "dfl_cgrp";
    cgroup_kn = "cgroup" "kn";
    kernfs_node_name = "kernfs_node" "name";
    kernfs_node_parent = "kernfs_node" "__parent" | "parent";
    binprm_file = "linux_binprm" "file";
    binprm_filename = "linux_binprm" "filename";
    binprm_interp = "linux_binprm" "interp";
    binprm_p = "linux_binprm" "p";
    binprm_exec = "linux_binprm" "exec";
    binprm_argc = "linux_binprm" "argc";
    vma_start = "vm_area_struct" "vm_start";
    vma_end = "vm_area_struct" "vm_end";
    vma_flags = "vm_area_struct" "vm_flags";
    vma_file = "vm_area_struct" "vm_file";
    vma_anon = "vm_area_struct" "anon_vma";
    regs_number = "pt_regs" "orig_ax";
    regs_di = "pt_regs" "di";
    regs_si = "pt_regs" "si";
    regs_dx = "pt_regs" "dx";
    regs_r10 = "pt_regs" "r10";
    regs_r8 = "pt_regs" "r8";
    regs_r9 = "pt_regs" "r9";
    regs_bp = "pt_regs" "bp";
    regs_bx = "pt_regs" "bx";
    regs_cx = "pt_regs" "cx";
    file_flags = "file" "f_flags";
    file_mode = "file" "f_mode";
    path_mnt = "path" "mnt";
    path_dentry = "path" "dentry";
    file_path_mnt = "file" "f_path.mnt";
    file_path_dentry = "file" "f_path.dentry";
    file_inode = "file" "f_inode";
    dentry_parent = "dentry" "d_parent";
    dentry_name = "dentry" "d_name.name";
    dentry_name_hash = "dentry" "d_name.hash";
    dentry_inode = "dentry" "d_inode";
    dentry_hash_pprev = "dentry" "d_hash.pprev";
    vfsmount_root = "vfsmount" "mnt_root";
    vfsmount_sb = "vfsmount" "mnt_sb";
    mount_vfsmount = "mount" "mnt";
    mount_parent = "mount" "mnt_parent";
    mount_mountpoint = "mount" "mnt_mountpoint";
    mount_ns = "mount" "mnt_ns";
    inode_ino = "inode" "i_ino";
    inode_mode = "inode" "i_mode";
    inode_size_bytes = "inode" "i_size";
    inode_sb = "inode" "i_sb";
    inode_nlink = "inode" "i_nlink" | "__i_nlink";
    inode_generation = "inode" "i_generation";
    inode_mtime_s = "inode" "i_mtime_sec" | "__i_mtime.tv_sec" | "i_mtime.tv_sec";
    inode_mtime_ns = "inode" "i_mtime_nsec" | "__i_mtime.tv_nsec" | "i_mtime.tv_nsec";
    inode_ctime_s = "inode" "i_ctime_sec" | "__i_ctime.tv_sec" | "i_ctime.tv_sec";
    inode_ctime_ns = "inode" "i_ctime_nsec" | "__i_ctime.tv_nsec" | "i_ctime.tv_nsec";
    super_block_dev = "super_block" "s_dev";
    super_block_magic = "super_block" "s_magic";
    file_private_data = "file" "private_data";
    socket_type = "socket" "type";
    socket_sk = "socket" "sk";
    sock_family = "sock" "__sk_common.skc_family";
    sock_protocol = "sock" "sk_protocol";
    sock_error = "sock" "sk_err";
    unix_sock_peer = "unix_sock" "peer";
    unix_sock_address = "unix_sock" "addr";
    unix_sock_path = "unix_sock" "path";
    unix_address_length = "unix_address" "len";
    unix_address_name = "unix_address" "name";
    msghdr_name = "msghdr" "msg_name";
    task_ring = "task_struct" "io_uring", optional;
    ring_command = "io_kiocb" "cmd", optional;
    ring_opcode = "io_kiocb" "opcode", optional;
    ring_flags = "io_kiocb" "flags", optional;
    ring_result = "io_kiocb" "cqe.res", optional;
    ring_context = "io_kiocb" "ctx", optional;
    ring_submitter = "io_kiocb" "tctx", optional;
    ring_descriptor = "io_kiocb" "cqe.fd", optional;
    ring_file = "io_kiocb" "file", optional;
    ring_message = "io_kiocb" "async_data", optional;
    ring_open_slot = "io_open" "file_slot", optional;
    ring_socket_family = "io_socket" "domain", optional;
    ring_socket_type = "io_socket" "type", optional;
    ring_message_header = "io_async_msghdr" "msg", optional;
    ring_message_address = "io_async_msghdr" "addr", optional;
    msghdr_name_length = "msghdr" "msg_namelen", optional;
    sock_peer_ipv4 = "sock_common" "skc_daddr", optional;
    sock_peer_ipv6 = "sock_common" "skc_v6_daddr", optional;
    ring_slots = "io_ring_ctx" "file_table.data.nodes", optional;
    ring_slots_count = "io_ring_ctx" "file_table.data.nr", optional;
    ring_slot_file = "io_rsrc_node" "file_ptr", optional;
}
