//! Runs inside the containers of the tests. Linked statically, so that it runs in an image that
//! holds nothing else.

use std::{
    env,
    ffi::{CString, OsStr, OsString},
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _, process::CommandExt as _},
    },
    process::{Command, ExitCode},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    fcntl::AtFlags,
    sys::memfd::{MFdFlags, memfd_create},
    unistd::execveat,
};

const USAGE: &str = "usage: probe COMMAND
  sleep-ms N               sleep, then exit 0
  print NAME               print an environment variable
  exec PATH [ARG]...       execute PATH in this process
  exec-twice PATH [ARG]... execute this program again and from there PATH, all in one process
  memfd-exec PATH [ARG]... copy PATH into a memfd and execute that
  deleted-exec PATH [ARG].. copy this program to PATH, open it, remove it and execute the open file
  run-copy PATH SALT [ARG].. copy this program to PATH, append SALT and execute it";

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
            let milliseconds = milliseconds
                .to_str()
                .and_then(|text| text.parse().ok())
                .with_context(|| format!("not a number of milliseconds: {milliseconds:?}"))?;
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
    let bytes = fs::read(path).with_context(|| format!("cannot read {path:?}"))?;
    let descriptor: OwnedFd = memfd_create(c"probe", MFdFlags::MFD_CLOEXEC)?;
    let mut file = File::from(descriptor);
    file.write_all(&bytes)?;
    exec_file(&file, path, arguments)
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
