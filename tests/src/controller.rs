//! `monitord controller` as its users have it, and daemons of nodes that tests play.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use monitor_api::v1::{
    self, JoinRequest, JoinResponse,
    cluster_client::ClusterClient,
    join_request::{Hello, Incident, Request, Running},
    join_response::Response,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::{runtime::Runtime, sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Streaming,
    transport::{Certificate, ClientTlsConfig, Endpoint, Identity},
};

use crate::{
    alerts::text,
    authority::Authority,
    daemon::program,
    poll::{Deadline, PATIENCE, until},
    process::{Process, finish},
};

/// Messages of a node that wait to be sent.
const REQUESTS_MAX: usize = 16;
/// Bytes of a log that an error shows.
const LOG_BYTES_MAX: usize = 6000;

/// A controller and the directory that holds its socket, state, certificates and log.
#[derive(Debug)]
pub struct Controller {
    process: Process,
    directory: PathBuf,
    /// Where nodes and other controllers reach it.
    pub address: String,
}

impl Controller {
    /// Starts one for the cluster that a kubeconfig names. `settings` are further lines of its
    /// configuration. It may be that another one leads.
    pub fn start(
        kubeconfig: &Path,
        directory: &Path,
        authority: &Authority,
        settings: &str,
    ) -> Result<Self> {
        fs::create_dir_all(directory)?;
        authority.write(directory)?;
        authority.issue("127.0.0.1", directory)?;
        // Free a moment ago.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let name = directory.file_name().and_then(|name| name.to_str());
        let (name, at) = (name.context("no name")?, directory.display());
        // In one cluster the orders of all tests count.
        let limit = "[rollback]\nper_hour = 64";
        let settings = match settings.contains("[rollback]") {
            true => settings.replace("[rollback]", limit),
            false => format!("{settings}\n{limit}"),
        };
        let config = format!(
            "listen = ['unix://{at}/controller.sock', 'https://{address}']\nstate = '{at}/state'\n\
             kubeconfig = '{}'\nname = '{name}'\n{settings}\n\
             [tls]\ncertificate = '{at}/127.0.0.1.crt'\nkey = '{at}/127.0.0.1.key'\nclient_ca = '{at}/ca.crt'\n\
             [roles]\nobserver = ['observer']\nresponder = ['responder']\nnode = ['node-*', 'test-node']\n",
            kubeconfig.display()
        );
        let file = directory.join("controller.toml");
        fs::write(&file, config)?;
        let controller = Self {
            process: Process::default(),
            directory: directory.to_owned(),
            address: format!("https://{address}"),
        };
        let log = File::create(directory.join("controller.log"))?;
        let child = Command::new(program("MONITORD", "monitord")?)
            .arg("controller")
            .arg("--config")
            .arg(file)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        controller.process.set(child);
        Ok(controller)
    }

    /// Waits until it leads and takes orders.
    pub fn wait_leads(&self) -> Result<()> {
        let deadline = Deadline::after(PATIENCE);
        while !self.log().contains("ready: orders are taken") {
            if let Some(status) = self.process.try_wait()? {
                bail!("the controller ended with {status}:\n{}", self.log());
            }
            ensure!(!deadline.passed(), "it does not lead:\n{}", self.log());
            deadline.pause();
        }
        Ok(())
    }

    /// `monitorctl` at its socket: exit status, JSON lines, and what it said.
    pub fn monitorctl(&self, words: &[&str]) -> Result<(i32, Vec<Value>, String)> {
        let socket = self.directory.join("controller.sock");
        self.monitorctl_at(&format!("unix://{}", socket.display()), words)
    }

    /// The same at an address, and with the certificate of `name` where that has one.
    pub fn monitorctl_as(&self, name: &str, words: &[&str]) -> Result<(i32, Vec<Value>, String)> {
        let file = |name: &str| self.directory.join(name).display().to_string();
        let (ca, certificate) = (file("ca.crt"), file(&format!("{name}.crt")));
        let key = file(&format!("{name}.key"));
        let tls = ["--ca", &ca, "--cert", &certificate, "--key", &key];
        self.monitorctl_at(&self.address, &[&tls, words].concat())
    }

    fn monitorctl_at(&self, address: &str, words: &[&str]) -> Result<(i32, Vec<Value>, String)> {
        let mut command = Command::new(program("MONITORCTL", "monitorctl")?);
        command.args(["--address", address]).args(words);
        let done = finish(command.args(["-o", "json"]).stdin(Stdio::null()))?;
        let printed = String::from_utf8(done.stdout)?;
        let lines = printed.lines().map(serde_json::from_str);
        let status = done.status.code().context("killed")?;
        let said = String::from_utf8(done.stderr)?;
        Ok((status, lines.collect::<Result<_, _>>()?, said))
    }

    /// What `monitorctl` prints, which must be done.
    pub fn done(&self, words: &[&str]) -> Result<Vec<Value>> {
        let (status, lines, said) = self.monitorctl(words)?;
        ensure!(status == 0, "{words:?}: {status}: {said}\n{}", self.log());
        Ok(lines)
    }

    /// What `monitorctl` says of what is refused with `expect` in it.
    pub fn refused(&self, words: &[&str], expect: &str) -> Result<()> {
        let (status, lines, said) = self.monitorctl(words)?;
        let is_refused = status == 4 && said.contains(expect) && said.lines().count() == 1;
        ensure!(is_refused, "{words:?}: {status} {lines:?} {said}");
        Ok(())
    }

    /// An order, by its id.
    pub fn order(&self, id: &str) -> Result<Value> {
        let all = self.done(&["rollback", "status"])?;
        let found = all.into_iter().find(|it| text(it, "/id") == Some(id));
        found.with_context(|| format!("no order {id}"))
    }

    /// Waits until an order has ended in a state; gives it.
    pub fn wait_ended(&self, id: &str, state: &str) -> Result<Value> {
        let found = until(&format!("order {id} to end"), PATIENCE, || {
            let order = self.order(id)?;
            let is_open = ["planned", "running"]
                .map(Some)
                .contains(&text(&order, "/state"));
            ensure!(!is_open, "{order}");
            Ok(order)
        })?;
        ensure!(
            text(&found, "/state") == Some(state),
            "{found}\n{}",
            self.log()
        );
        Ok(found)
    }

    /// SIGTERM, and its end.
    pub fn stop(&self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.process.wait()
    }

    /// SIGKILL, and its end.
    pub fn kill(&self) -> Result<()> {
        self.process.kill()
    }

    /// Has it stand still, or go on.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.process.id().context("it does not run")?;
        Ok(kill(Pid::from_raw(i32::try_from(pid)?), signal)?)
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        let log = fs::read(self.directory.join("controller.log")).unwrap_or_default();
        let start = log.len().saturating_sub(LOG_BYTES_MAX);
        String::from_utf8_lossy(log.get(start..).unwrap_or_default()).into_owned()
    }

    /// Its directory, with its certificates.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

/// A conversation with a controller as the daemon of a node has it.
pub struct Node {
    runtime: Runtime,
    requests: mpsc::Sender<JoinRequest>,
    responses: Streaming<JoinResponse>,
    name: String,
}

impl Node {
    /// Joins as `name`, with the certificate of `name` that `authority` issues.
    pub fn join(controller: &Controller, authority: &Authority, name: &str) -> Result<Self> {
        Self::join_as(controller, authority, name, name)
    }

    /// The same with the certificate of another one.
    pub fn join_as(
        controller: &Controller,
        authority: &Authority,
        name: &str,
        certificate: &str,
    ) -> Result<Self> {
        let directory = controller.directory();
        authority.issue(certificate, directory)?;
        let read = |name: &str| fs::read(directory.join(name));
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read("ca.crt")?))
            .identity(Identity::from_pem(
                read(&format!("{certificate}.crt"))?,
                read(&format!("{certificate}.key"))?,
            ));
        let endpoint = Endpoint::from_shared(controller.address.clone())?.tls_config(tls)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let (requests, waiting) = mpsc::channel(REQUESTS_MAX);
        let hello = Request::Hello(Hello {
            node: name.to_owned(),
        });
        requests.try_send(JoinRequest {
            request: Some(hello),
        })?;
        let responses = runtime.block_on(async {
            let mut client = ClusterClient::new(endpoint.connect().await?);
            let joined = client.join(ReceiverStream::new(waiting)).await?;
            anyhow::Ok(joined.into_inner())
        })?;
        Ok(Self {
            runtime,
            requests,
            responses,
            name: name.to_owned(),
        })
    }

    fn say(&self, request: Request) -> Result<()> {
        let request = JoinRequest {
            request: Some(request),
        };
        Ok(self.runtime.block_on(self.requests.send(request))?)
    }

    /// Reports all that runs.
    pub fn report(&self, containers: Vec<v1::Container>) -> Result<()> {
        self.say(Request::Running(Running {
            containers,
            more: false,
            left_out: 0,
        }))
    }

    /// Reports an alert whose policy asks for a response.
    pub fn incident(&self, alert: v1::Alert, respond: &str) -> Result<()> {
        self.say(Request::Incident(Box::new(Incident {
            alert: Some(alert),
            respond: respond.to_owned(),
            rule: "shop.drift".to_owned(),
        })))
    }

    /// The next thing that the controller says.
    pub fn hear(&mut self) -> Result<Response> {
        let Self {
            runtime, responses, ..
        } = self;
        let next = runtime.block_on(async { timeout(PATIENCE, responses.message()).await });
        let said = next.with_context(|| format!("{} is told nothing", self.name))??;
        said.and_then(|it| it.response)
            .context("the conversation ended")
    }

    /// Waits for approvals that `is_it` takes.
    pub fn wait_approvals(&mut self, is_it: impl Fn(&[v1::Approval]) -> bool) -> Result<()> {
        let deadline = Deadline::after(PATIENCE);
        while !deadline.passed() {
            if let Response::Approvals(told) = self.hear()?
                && is_it(&told.approvals)
            {
                return Ok(());
            }
        }
        bail!(
            "no such approvals within {} s",
            Duration::as_secs(&PATIENCE)
        )
    }
}
