//! The unix socket: made without a moment in which others may connect, never over something that
//! is not a dead socket of ours, and removed at the end.

use std::{
    fs::{self, DirBuilder, Metadata},
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{
            fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _},
            net::UnixListener as StdUnixListener,
        },
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket,
        },
        stat::{Mode, fchmod},
    },
};
use tokio::net::{UnixListener, UnixStream};

use super::BindError;

/// Connections that wait to be accepted; beyond, the kernel makes the client wait.
const BACKLOG: i32 = 128;

/// A bound socket. Dropping it removes its file.
#[derive(Debug)]
pub(super) struct UnixSocket {
    socket: UnixListener,
    file: SocketFile,
}

impl UnixSocket {
    /// Listens at `path`, mode 0600. Its directory is made, mode 0755, if it is missing; a
    /// socket that nobody listens at any more is replaced.
    ///
    /// # Errors
    ///
    /// See [`BindError`]. What was at the path is still there then, but for a dead socket.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub(super) fn bind(path: &Path) -> Result<Self, BindError> {
        let failed = |what| {
            move |source: io::Error| BindError::System {
                path: path.to_owned(),
                what,
                source,
            }
        };
        if let Some(directory) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(directory)
                .map_err(|source| BindError::Directory {
                    path: directory.to_owned(),
                    source,
                })?;
        }
        remove_dead(path)?;

        let socket = stream_socket().map_err(failed("making the socket"))?;
        // The kernel gives the file the socket's own mode, less the umask, as it makes it: so there
        // is no moment with another one, no umask to set for the whole process, and bind never
        // replaces what is there.
        fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(io::Error::from)
            .map_err(failed("setting its mode"))?;
        let name = UnixAddr::new(path)
            .map_err(io::Error::from)
            .map_err(failed("naming it"))?;
        bind(socket.as_raw_fd(), &name).map_err(|errno| match errno {
            Errno::EADDRINUSE => BindError::InUse {
                path: path.to_owned(),
            },
            errno => failed("binding")(errno.into()),
        })?;
        let file = SocketFile::of(path).map_err(failed("reading its file back"))?;
        Backlog::new(BACKLOG)
            .and_then(|backlog| listen(&socket, backlog))
            .map_err(io::Error::from)
            .map_err(failed("listening"))?;
        let socket = UnixListener::from_std(StdUnixListener::from(socket))
            .map_err(failed("handing it to the runtime"))?;
        Ok(Self { socket, file })
    }

    /// Where it listens.
    pub(super) fn path(&self) -> &Path {
        &self.file.path
    }

    /// The next connection.
    ///
    /// # Errors
    ///
    /// The system's: out of descriptors or memory, mostly.
    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        self.socket.accept().await.map(|(stream, _)| stream)
    }
}

fn stream_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Unix, SockType::Stream, flags, None)?)
}

/// Removes the socket at `path` if nobody listens at it; anything else there is an error.
fn remove_dead(path: &Path) -> Result<(), BindError> {
    let failed = |what| {
        move |source: io::Error| BindError::System {
            path: path.to_owned(),
            what,
            source,
        }
    };
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(failed("looking at what is there"))?,
    };
    if !found.file_type().is_socket() {
        return Err(BindError::NotASocket {
            path: path.to_owned(),
        });
    }
    let probe = stream_socket().map_err(failed("making a socket"))?;
    let name = UnixAddr::new(path)
        .map_err(io::Error::from)
        .map_err(failed("naming it"))?;
    match connect(probe.as_raw_fd(), &name) {
        Err(Errno::ECONNREFUSED) => {
            fs::remove_file(path).map_err(failed("removing the dead socket there"))
        }
        // EAGAIN: so many wait to be accepted that there is no room for one more.
        Ok(()) | Err(Errno::EAGAIN) => Err(BindError::InUse {
            path: path.to_owned(),
        }),
        Err(errno) => Err(failed("asking whether somebody listens there")(
            errno.into(),
        )),
    }
}

/// The file of a socket, removed when dropped unless another one has taken its name.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let found = fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            device: found.dev(),
            inode: found.ino(),
        })
    }

    fn is(&self, found: &Metadata) -> bool {
        (found.dev(), found.ino()) == (self.device, self.inode)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| self.is(&found)) {
            // A file that stays is dead, and replaced at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use tempfile::TempDir;

    use super::*;

    fn path(directory: &TempDir, name: &str) -> PathBuf {
        directory.path().join(name)
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[tokio::test]
    async fn a_socket_is_for_its_owner_alone_and_goes_with_its_listener() {
        let directory = TempDir::new().unwrap();
        let path = path(&directory, "new/monitord.sock");
        let listener = UnixSocket::bind(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o755);
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_is_no_socket_is_refused_and_left_alone() {
        let directory = TempDir::new().unwrap();
        let path = path(&directory, "monitord.sock");
        fs::write(&path, "mine").unwrap();
        let error = UnixSocket::bind(&path).unwrap_err();
        assert!(matches!(error, BindError::NotASocket { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"mine");

        let link = directory.path().join("link.sock");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(
            UnixSocket::bind(&path),
            Err(BindError::NotASocket { .. })
        ));
    }

    #[tokio::test]
    async fn a_directory_that_is_a_file_is_named() {
        let directory = TempDir::new().unwrap();
        fs::write(directory.path().join("file"), "").unwrap();
        let error = UnixSocket::bind(&path(&directory, "file/monitord.sock")).unwrap_err();
        assert!(matches!(error, BindError::Directory { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let directory = TempDir::new().unwrap();
        let path = path(&directory, "monitord.sock");
        // std leaves the file behind, as a killed daemon does.
        drop(StdUnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let live = UnixSocket::bind(&path).unwrap();
        let error = UnixSocket::bind(&path).unwrap_err();
        assert!(matches!(error, BindError::InUse { .. }), "{error}");
        assert!(
            UnixStream::connect(live.path()).await.is_ok(),
            "the live one still answers"
        );
    }

    #[tokio::test]
    async fn the_file_of_another_is_not_removed() {
        let directory = TempDir::new().unwrap();
        let path = path(&directory, "monitord.sock");
        let listener = UnixSocket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another").unwrap();
        drop(listener);
        assert!(path.exists());
    }
}
