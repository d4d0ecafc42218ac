//! Debian's NATS server on loopback with JetStream, and as much of a client as reads a stream back.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    authority::Authority,
    poll::{PATIENCE, until},
    process::Process,
    skip::server,
};

/// The stream.
pub const STREAM: &str = "ALERTS";
/// Whom the server with TLS lets in, as a file of credentials says it.
pub const CREDENTIALS: &str = "node:sesame-4711";

/// Without a byte for so long, something hangs.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// A server that can be ended and started again with what it had stored.
#[derive(Debug)]
pub struct Nats {
    process: Process,
    address: SocketAddr,
    directory: TempDir,
}

/// A message of the stream.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its place there.
    pub sequence: u64,
    /// What it was published under.
    pub subject: String,
    /// Its `Nats-Msg-Id`.
    pub id: String,
    /// What it holds.
    pub payload: Value,
}

impl Nats {
    /// Starts it without TLS, and without the stream.
    pub fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path();
        let authority = Authority::new()?;
        authority.write(path)?;
        authority.issue("127.0.0.1", path)?;
        fs::write(path.join("credentials"), CREDENTIALS)?;
        let nats = Self {
            process: Process::default(),
            address: TcpListener::bind("127.0.0.1:0")?.local_addr()?,
            directory,
        };
        nats.run(false)?;
        Ok(nats)
    }

    /// Starts it again, with TLS and asking for a password, or without both.
    pub fn run(&self, is_safe: bool) -> Result<()> {
        let path = self.directory.path();
        let mut command = Command::new(server("nats-server").context("there is no nats-server")?);
        command
            .args(["--addr", "127.0.0.1", "--jetstream", "--port"])
            .arg(self.address.port().to_string())
            .arg("--store_dir")
            .arg(path.join("store"));
        if is_safe {
            let (user, password) = CREDENTIALS.split_once(':').context("no password")?;
            command.args(["--user", user, "--pass", password, "--tls"]);
            for (option, file) in [
                ("--tlscert", "127.0.0.1.crt"),
                ("--tlskey", "127.0.0.1.key"),
            ] {
                command.arg(option).arg(path.join(file));
            }
        }
        let log = path.join("log");
        let log = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().context("cannot start nats-server")?;
        self.process.set(child);
        until("the NATS server to answer", PATIENCE, || {
            let stream = TcpStream::connect(self.address)?;
            stream.set_read_timeout(Some(SILENCE_MAX))?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line)?;
            ensure!(line.starts_with("INFO"), "{line}");
            Ok(())
        })
    }

    /// Where files of the server are: `ca.crt`, `credentials`.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// `IP:PORT`.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it without a chance to clean up.
    pub fn kill(&self) -> Result<()> {
        self.process.kill()
    }

    /// Ends it as a service manager does.
    pub fn stop(&self) -> Result<()> {
        let pid = self.process.id().context("nats-server has ended")?;
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM)?;
        self.process.wait().map(drop)
    }

    /// Makes the stream, or changes it, with what `change` adds to its configuration.
    pub fn stream(&self, verb: &str, window: Duration, change: &Value) -> Result<()> {
        let mut config = json!({
            "name": STREAM,
            "subjects": ["monitord.alerts.>"],
            "retention": "limits",
            "storage": "file",
            "duplicate_window": u64::try_from(window.as_nanos())?,
        });
        if let (Some(config), Some(change)) = (config.as_object_mut(), change.as_object()) {
            config.extend(change.clone());
        }
        let mut client = Client::connect(self.address)?;
        client
            .ask(&format!("STREAM.{verb}.{STREAM}"), &config)
            .map(drop)
    }

    /// Removes a message.
    pub fn delete(&self, sequence: u64) -> Result<()> {
        let mut client = Client::connect(self.address)?;
        let subject = format!("STREAM.MSG.DELETE.{STREAM}");
        client.ask(&subject, &json!({"seq": sequence})).map(drop)
    }

    /// All that the stream has, in its order.
    pub fn stored(&self) -> Result<Vec<Stored>> {
        let mut client = Client::connect(self.address)?;
        let subject = format!("STREAM.MSG.GET.{STREAM}");
        let mut found: Vec<Stored> = Vec::new();
        loop {
            let from = found.last().map_or(1, |last| last.sequence + 1);
            let asked = json!({"seq": from, "next_by_subj": ">"});
            match client.ask(&subject, &asked) {
                Ok(answer) => found.push(Stored::read(&answer).context(answer.to_string())?),
                Err(error) if error.to_string().contains("no message found") => return Ok(found),
                Err(error) => return Err(error),
            }
        }
    }
}

impl Stored {
    fn read(answer: &Value) -> Option<Self> {
        let message = answer.get("message")?;
        let text = |key: &str| message.get(key).and_then(Value::as_str);
        let header = String::from_utf8(STANDARD.decode(text("hdrs")?).ok()?).ok()?;
        let mut lines = header.lines();
        let id = lines.find_map(|line| line.strip_prefix("Nats-Msg-Id: "))?;
        Some(Self {
            sequence: message.get("seq")?.as_u64()?,
            subject: text("subject")?.to_owned(),
            id: id.to_owned(),
            payload: serde_json::from_slice(&STANDARD.decode(text("data")?).ok()?).ok()?,
        })
    }
}

struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(address: SocketAddr) -> Result<Self> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        stream.write_all(b"CONNECT {\"verbose\":false}\r\nSUB answers 1\r\n")?;
        Ok(Self(BufReader::new(stream)))
    }

    fn ask(&mut self, subject: &str, question: &Value) -> Result<Value> {
        let question = question.to_string();
        let length = question.len();
        let text = format!("PUB $JS.API.{subject} answers {length}\r\n{question}\r\n");
        self.0.get_mut().write_all(text.as_bytes())?;
        loop {
            let mut line = String::new();
            ensure!(self.0.read_line(&mut line)? > 0, "the server is gone");
            if let Some(rest) = line.strip_prefix("MSG ") {
                let length: usize = rest.trim().rsplit(' ').next().unwrap_or_default().parse()?;
                let mut bytes = vec![0; length + 2];
                self.0.read_exact(&mut bytes)?;
                let answer: Value = serde_json::from_slice(&bytes)?;
                if let Some(error) = answer.get("error") {
                    bail!("{subject}: {error}");
                }
                return Ok(answer);
            }
            ensure!(!line.starts_with("-ERR"), "{line}");
        }
    }
}
