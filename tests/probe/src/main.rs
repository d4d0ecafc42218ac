//! Runs inside the containers of the tests. Linked statically, so that it runs in an image that
//! holds nothing else.

mod memory;
mod network;
mod opens;
mod paths;
mod rings;

use std::{
    env,
    ffi::{CString, OsStr, OsString},
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _, process::CommandExt as _},
    },
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::{
    fcntl::{AtFlags, OFlag},
    sys::memfd::{MFdFlags, memfd_create},
    unistd::execveat,
};
use rings::How;

const USAGE: &str = "usage: probe COMMAND
  sleep-ms N               sleep, then exit 0
  print NAME               print an environment variable
  exec PATH [ARG]...       execute PATH in this process
  exec-twice PATH [ARG]... execute this program again and from there PATH, all in one process
  memfd-exec PATH [ARG]... copy PATH into a memfd and execute that
  deleted-exec PATH [ARG].. copy this program to PATH, open it, remove it and execute the open file
  tmpfile-exec DIRECTORY [ARG]...
                           copy this program into a file of DIRECTORY that never had a name, and
                           execute that
  run-copy PATH SALT [ARG].. copy this program to PATH, append SALT and execute it
  thread-exec PATH [ARG]... execute PATH from another thread than the first
  exec-at DIRECTORY NAME [ARG]...
                           execute NAME relative to an open descriptor of DIRECTORY
  exec-long COUNT PATH [ARG]...
                           execute PATH with one argument more, of COUNT bytes
  deep-exec COUNT LENGTH [ARG]...
                           copy this program below COUNT directories with names of LENGTH bytes in
                           the current one, append a byte and execute it
  user-overlay SOURCE [ARG]...
                           mount an overlay of /bin in a user namespace, copy SOURCE into it and
                           execute the copy
  map-file PATH            map PATH executable
  map-often PATH COUNT     map PATH executable and unmap it, COUNT times
  map-memfd PATH           copy PATH into a memfd and map that executable
  protect-written PATH     map PATH, write to the private mapping, make it executable
  map-anonymous            write anonymous memory, then make it executable
  flip PATH                change the last byte of PATH through a shared mapping
  open-repeat COUNT PATH   open PATH so often
  open-many FILES ROUNDS DIRECTORY
                           make so many files in DIRECTORY and open each so often
  open-at-rate RATE SECONDS DIRECTORY
                           open files in DIRECTORY for so long, so many a second
  open-credentials COUNT RATE DIRECTORY
                           open the same file under COUNT names that are those of credentials,
                           RATE a second
  openat2 PATH             open PATH by openat2
  creat PATH               cut PATH to nothing by creat
  int80-open PATH          open PATH by a 32-bit system call
  handle-open PATH         open PATH by its handle
  open-ring HOW PATH       open PATH through io_uring
  receive PATH             receive an open file from the socket of AF_UNIX at PATH
  take PID DESCRIPTOR      take a descriptor from another process
  connect ADDRESS PORT     connect by TCP
  connect-itself ADDRESS PORT
                           listen at an address by TCP, and connect to it
  connect-ring HOW ADDRESS PORT
                           the same through io_uring; HOW is `plain`, or words of `openat2`,
                           `async`, `slot`, `skip`, `poll` and `used` with commas between them
  connect-fast ADDRESS PORT
                           send with the first packet of a TCP connection
  send ADDRESS PORT        send by UDP without connecting
  send-often COUNT ADDRESS PORT
                           do so COUNT times
  send-ports ADDRESS       do so to each port
  send-many ADDRESS PORT   send two messages by UDP in one call
  send-bare ADDRESS PORT   send by UDP to an address that names no family
  send-raw ADDRESS         send by a raw socket
  send-raw-ring HOW ADDRESS
                           the same through io_uring
  packet-socket            make a packet socket
  packet-socket-ring HOW   the same through io_uring
  connect-unix PATH        connect to a socket of AF_UNIX
  connect-unix-ring HOW PATH
                           the same through io_uring
  connect-abstract NAME    listen at a name of AF_UNIX that is no path, and connect to it
  time COMMAND [ARG]...    do so and print how many nanoseconds it took
  true [ARG]...            end at once";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("probe: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[OsString]) -> Result<()> {
    let Some((command, rest)) = arguments.split_first() else {
        bail!("{USAGE}");
    };
    match (command.as_bytes(), rest) {
        (b"sleep-ms", [milliseconds]) => {
            let milliseconds = u64::try_from(number(milliseconds)?)?;
            thread::sleep(Duration::from_millis(milliseconds));
            Ok(())
        }
        (b"print", [name]) => {
            let value = env::var_os(name).with_context(|| format!("{name:?} is not set"))?;
            println!("{}", value.display());
            Ok(())
        }
        (b"exec", [path, rest @ ..]) => exec(path, rest),
        (b"exec-twice", [_, ..]) => {
            let mut again = vec![OsString::from("exec")];
            again.extend_from_slice(rest);
            exec(env::current_exe()?.as_os_str(), &again)
        }
        (b"memfd-exec", [path, rest @ ..]) => memfd_exec(path, rest),
        (b"deleted-exec", [path, rest @ ..]) => deleted_exec(path, rest),
        (b"tmpfile-exec", [directory, rest @ ..]) => tmpfile_exec(directory, rest),
        (b"thread-exec", [path, rest @ ..]) => {
            thread::scope(|scope| scope.spawn(|| exec(path, rest)).join())
                .map_err(|_| anyhow!("the thread panicked"))?
        }
        (b"exec-at", [directory, name, rest @ ..]) => exec_at(directory, name, rest),
        (b"exec-long", [count, path, rest @ ..]) => {
            let mut arguments = rest.to_vec();
            arguments.push("x".repeat(number(count)?).into());
            exec(path, &arguments)
        }
        (b"deep-exec", [count, length, rest @ ..]) => {
            paths::enter_deep(number(count)?, number(length)?)?;
            copy_self(OsStr::new("program"), b"x")?;
            exec(OsStr::new("./program"), rest)
        }
        (b"user-overlay", [source, rest @ ..]) => {
            let copy = paths::copy_into_user_overlay(source)?;
            exec(copy.as_os_str(), rest)
        }
        (b"map-file", [path]) => memory::map_executable(&open(path)?),
        (b"map-often", [path, count]) => memory::map_executable_often(&open(path)?, number(count)?),
        (b"map-memfd", [path]) => memory::map_executable(&memfd(path)?),
        (b"protect-written", [path]) => memory::protect_written(&open(path)?),
        (b"map-anonymous", []) => memory::execute_written(),
        (b"flip", [path]) => memory::flip_last_byte(path),
        (b"open-repeat", [count, path]) => opens::repeat(path, number(count)?),
        (b"open-many", [files, rounds, directory]) => {
            opens::many(directory, number(files)?, number(rounds)?)
        }
        (b"open-at-rate", [rate, seconds, directory]) => {
            opens::at_rate(directory, number(rate)?, number(seconds)?)
        }
        (b"open-credentials", [count, rate, directory]) => {
            opens::credentials(directory, number(count)?, number(rate)?)
        }
        (b"openat2", [path]) => opens::openat2(path),
        (b"creat", [path]) => opens::creat(path),
        (b"int80-open", [path]) => opens::int80(path),
        (b"handle-open", [path]) => opens::by_handle(path),
        (b"receive", [path]) => opens::receive(path),
        (b"take", [process, descriptor]) => opens::take(process, descriptor),
        (b"open-ring", [how, path]) => rings::open(How::parse(how)?, path),
        (b"connect", [address, port]) => network::connect_tcp(address, port),
        (b"connect-itself", [address, port]) => network::connect_itself(address, port),
        (b"connect-ring", [how, address, port]) => network::connect_by_ring(how, address, port),
        (b"connect-fast", [address, port]) => network::send_fast_open(address, port),
        (b"send", [address, port]) => network::send_udp(address, port),
        (b"send-often", [count, address, port]) => {
            network::send_often(number(count)?, address, port)
        }
        (b"send-ports", [address]) => network::send_ports(address),
        (b"send-many", [address, port]) => network::send_many(address, port),
        (b"send-bare", [address, port]) => network::send_without_family(address, port),
        (b"send-raw", [address]) => network::send_raw(address),
        (b"send-raw-ring", [how, address]) => network::send_raw_by_ring(how, address),
        (b"packet-socket", []) => network::make_packet_socket(),
        (b"packet-socket-ring", [how]) => rings::packet_socket(How::parse(how)?),
        (b"connect-unix", [path]) => network::connect_unix(path),
        (b"connect-unix-ring", [how, path]) => rings::connect_unix(How::parse(how)?, path),
        (b"connect-abstract", [name]) => network::connect_abstract(name),
        (b"time", rest) => {
            let start = Instant::now();
            run(rest)?;
            println!("{}", start.elapsed().as_nanos());
            Ok(())
        }
        (b"true", _) => Ok(()),
        (b"run-copy", [path, salt, rest @ ..]) => {
            copy_self(path, salt.as_bytes())?;
            exec(path, rest)
        }
        _ => bail!("{USAGE}"),
    }
}

fn exec(path: &OsStr, arguments: &[OsString]) -> Result<()> {
    let error = Command::new(path).args(arguments).exec();
    Err(error).with_context(|| format!("cannot execute {path:?}"))
}

/// Executes an open file. Its first argument is `name`.
fn exec_file(file: &impl AsFd, name: &OsStr, arguments: &[OsString]) -> Result<()> {
    let mut argv = vec![CString::new(name.as_bytes())?];
    for argument in arguments {
        argv.push(CString::new(argument.as_bytes())?);
    }
    let environment = env::vars_os()
        .map(|(key, value)| CString::new([key.as_bytes(), b"=", value.as_bytes()].concat()))
        .collect::<Result<Vec<_>, _>>()?;
    match execveat(file, c"", &argv, &environment, AtFlags::AT_EMPTY_PATH)
        .with_context(|| format!("cannot execute the open file of {name:?}"))? {}
}

fn memfd_exec(path: &OsStr, arguments: &[OsString]) -> Result<()> {
    exec_file(&memfd(path)?, path, arguments)
}

/// A file in memory with the bytes of `path`.
fn memfd(path: &OsStr) -> Result<File> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {path:?}"))?;
    let descriptor: OwnedFd = memfd_create(c"probe", MFdFlags::MFD_CLOEXEC)?;
    let mut file = File::from(descriptor);
    file.write_all(&bytes)?;
    Ok(file)
}

fn tmpfile_exec(directory: &OsStr, arguments: &[OsString]) -> Result<()> {
    let bytes = fs::read(env::current_exe()?).context("cannot read this program")?;
    let mut writable = OpenOptions::new()
        .write(true)
        .mode(0o755)
        .custom_flags(OFlag::O_TMPFILE.bits())
        .open(directory)
        .with_context(|| format!("cannot make a file without a name in {directory:?}"))?;
    writable.write_all(&bytes)?;
    // What is open for writing cannot be executed.
    let file = File::open(format!("/proc/self/fd/{}", writable.as_raw_fd()))
        .context("cannot open the file without a name")?;
    drop(writable);
    exec_file(&file, directory, arguments)
}

fn exec_at(directory: &OsStr, name: &OsStr, arguments: &[OsString]) -> Result<()> {
    let directory = open(directory)?;
    let name = CString::new(name.as_bytes())?;
    let mut argv = vec![name.clone()];
    for argument in arguments {
        argv.push(CString::new(argument.as_bytes())?);
    }
    let environment: [CString; 0] = [];
    match execveat(&directory, &name, &argv, &environment, AtFlags::empty())
        .with_context(|| format!("cannot execute {name:?}"))? {}
}

fn open(path: &OsStr) -> Result<File> {
    File::open(path).with_context(|| format!("cannot open {path:?}"))
}

fn number(text: &OsStr) -> Result<usize> {
    text.to_str()
        .and_then(|text| text.parse().ok())
        .with_context(|| format!("not a number: {text:?}"))
}

fn deleted_exec(path: &OsStr, arguments: &[OsString]) -> Result<()> {
    copy_self(path, b"")?;
    let file = File::open(path).with_context(|| format!("cannot open {path:?}"))?;
    fs::remove_file(path).with_context(|| format!("cannot remove {path:?}"))?;
    exec_file(&file, path, arguments)
}

/// Bytes after the end of an ELF file change its hash and nothing else.
fn copy_self(path: &OsStr, salt: &[u8]) -> Result<()> {
    let mut bytes = fs::read(env::current_exe()?).context("cannot read this program")?;
    bytes.extend_from_slice(salt);
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o755)
        .open(path)
        .and_then(|mut file| file.write_all(&bytes))
        .with_context(|| format!("cannot write {path:?}"))
}
