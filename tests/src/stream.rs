//! A client that must get every alert of a daemon, once and in order, whatever is killed or
//! replaced meanwhile.

use std::{
    collections::HashSet,
    fmt::{self, Display},
    fs::{self, File, OpenOptions},
    hash::{DefaultHasher, Hasher as _},
    io::{BufRead as _, BufReader, Read},
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde_json::Value;

use crate::{
    authority::Authority,
    bpffs::Bpffs,
    containerd::{Containerd, Run},
    daemon::{Daemon, program},
    http, image,
    poll::{Deadline, PATIENCE, until},
    process::Process,
    world::{Alone, BASE},
};

/// The container that raises the alerts.
const SOURCE: &str = "source";
/// What it says when it has raised them.
const DONE: &str = "all were opened";
/// Who reads them.
const CLIENT: &str = "soc.example";
/// Before a client whose daemon is away tries again.
const RETRY: Duration = Duration::from_millis(50);
/// Without an alert for so long, something hangs.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Without an alert for so long after the source has ended, the rest of them was lost.
const SILENCE_AT_END: Duration = Duration::from_secs(5);

/// What is done to the stream.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Opens, each of a file name of its own and so an alert, unless it is lost.
    pub alerts: u64,
    /// Of them a second, if the machine can.
    pub per_second: u64,
    /// How often the client is killed with -9.
    pub client_kills: u64,
    /// How often the daemon is killed with -9, and started again.
    pub daemon_kills: u64,
    /// How often authority and certificates of both sides are replaced by new ones.
    pub renewals: u64,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Figures {
    plan: Plan,
    /// Alerts that the client got.
    pub received: u64,
    /// Alerts in the journal, as a daemon that was started afterwards reads them.
    pub journal: u64,
    /// Of the alerts of the source, different file names.
    pub names: u64,
    /// Opens that the hooks counted as lost, since their ring was full while no daemon read it.
    pub lost: u64,
    /// Opens that gaps in the journal tell of: those, and what a daemon had taken and not judged.
    pub told: u64,
    /// Cursors that were not greater than the one before, and alerts that are not the journal's.
    pub wrong: u64,
    /// Clients, one after the other, that received any.
    pub connects: u64,
    /// Times that it was told of cursors that are missing.
    pub told_missing: u64,
    /// Seconds until the last alert was received.
    pub seconds: f64,
}

impl Display for Figures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            plan,
            received,
            journal,
            names,
            lost,
            told,
            wrong,
            connects,
            told_missing,
            seconds,
        } = self;
        #[expect(clippy::cast_precision_loss, reason = "far below 2 to the power of 52")]
        let rate = *received as f64 / seconds;
        writeln!(
            formatter,
            "client killed {} times, daemon killed with -9 {} times, authority and certificates replaced {} times",
            plan.client_kills, plan.daemon_kills, plan.renewals
        )?;
        writeln!(
            formatter,
            "  {} opens of new names; {names} of them in alerts, {told} told by gaps ({lost} lost by the hooks)",
            plan.alerts
        )?;
        writeln!(
            formatter,
            "  {journal} alerts in the journal, {received} received by {connects} clients in {seconds:.0} s ({rate:.0}/s)"
        )?;
        write!(
            formatter,
            "  {wrong} not in order, twice or not as in the journal; {told_missing} notices of missing cursors"
        )
    }
}

impl Figures {
    /// Fails unless the client got exactly the journal's content.
    pub fn check(&self) -> Result<()> {
        let is_exact = self.wrong == 0 && self.received == self.journal && self.told_missing == 0;
        // Other opens may be lost too. A storm and gaps come beside the alerts of names.
        let is_complete = self.names + self.told >= self.plan.alerts && self.journal >= self.names;
        ensure!(
            is_exact && is_complete,
            "not every alert came once and in order:\n{self}"
        );
        Ok(())
    }
}

/// A daemon with TLS whose hooks are pinned, and its containerd.
struct Stage {
    // Before containerd, which removes the directory that it is mounted in.
    bpffs: Bpffs,
    containerd: Containerd,
    directory: PathBuf,
    address: String,
    metrics: SocketAddr,
    _alone: Alone,
}

impl Stage {
    fn new() -> Result<Self> {
        let alone = Alone::wait()?;
        let containerd = Containerd::start()?;
        containerd.import(&image::base(BASE)?)?;
        let directory = containerd.directory().to_owned();
        let bpffs = Bpffs::mount(directory.join("bpffs"))?;
        let stage = Self {
            bpffs,
            address: format!("https://{}", free_address()?),
            metrics: free_address()?,
            directory,
            containerd,
            _alone: alone,
        };
        stage.renew()?;
        let shown = stage.directory.display();
        fs::write(
            stage.directory.join("config.toml"),
            format!(
                r#"metrics = "{metrics}"
[tls]
certificate = "{shown}/127.0.0.1.crt"
key = "{shown}/127.0.0.1.key"
client_ca = "{shown}/ca.crt"
[roles]
observer = ["{CLIENT}"]
[journal]
bytes_max = {bytes_max}
"#,
                metrics = stage.metrics,
                bytes_max = 16_u64 << 30
            ),
        )?;
        Ok(stage)
    }

    /// Replaces the authority and every certificate: who knows only the old ones is refused.
    fn renew(&self) -> Result<()> {
        let authority = Authority::new()?;
        authority.write(&self.directory)?;
        for name in ["127.0.0.1", CLIENT] {
            authority.issue(name, &self.directory)?;
        }
        Ok(())
    }

    fn daemon(&self) -> Result<Daemon> {
        let own = self.directory.join("monitord");
        let mut command = Daemon::pinned_command(
            &self.containerd.address(),
            &own,
            &self.bpffs.path().join("monitord"),
        )?;
        command
            .arg("--config")
            .arg(self.directory.join("config.toml"))
            .args(["--listen", &self.address]);
        let daemon = Daemon::spawn(&mut command, &own)?;
        daemon.wait_ready()?;
        Ok(daemon)
    }

    fn is_source_done(&self) -> bool {
        self.containerd.said(SOURCE).contains(DONE)
    }

    /// The client.
    fn client(&self, arguments: &[&str]) -> Result<Command> {
        let file = |name: String| self.directory.join(name);
        let mut command = Command::new(program("MONITORCTL", "monitorctl")?);
        command
            .args(["--address", &self.address, "-o", "json"])
            .arg("--ca")
            .arg(file("ca.crt".to_owned()))
            .arg("--cert")
            .arg(file(format!("{CLIENT}.crt")))
            .arg("--key")
            .arg(file(format!("{CLIENT}.key")))
            .arg("alerts")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        Ok(command)
    }
}

/// The same for each daemon, and free now.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// An alert as it was received: its cursor, and what it was.
type Received = (u64, u64);

/// What a client read, until its output ended. What the kill has cut is not read.
fn read(output: impl Read, mut take: impl FnMut(&str) -> Result<()>) -> Result<()> {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    loop {
        line.clear();
        output.read_until(b'\n', &mut line)?;
        let Some(text) = line.strip_suffix(b"\n") else {
            return Ok(());
        };
        take(std::str::from_utf8(text)?)?;
    }
}

/// The text of a field that comes early in the line. Parsing whole lines would be most of the load.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(&format!("\"{name}\":\""))?;
    rest.split_once('"').map(|(value, _)| value)
}

fn received(line: &str) -> Result<Received> {
    let cursor = field(line, "cursor").with_context(|| format!("no cursor: {line}"))?;
    let mut hasher = DefaultHasher::new();
    hasher.write(line.as_bytes());
    Ok((cursor.parse()?, hasher.finish()))
}

/// Reads all alerts, and connects again whenever its client ends.
struct Follower {
    stage: Arc<Stage>,
    client: Process,
    ends: AtomicBool,
    connects: AtomicU64,
    newest: AtomicU64,
    alerts: Mutex<Vec<Received>>,
}

impl Follower {
    fn start(stage: &Arc<Stage>) -> (Arc<Self>, JoinHandle<Result<()>>) {
        let follower = Arc::new(Self {
            stage: Arc::clone(stage),
            client: Process::default(),
            ends: AtomicBool::new(false),
            connects: AtomicU64::new(0),
            newest: AtomicU64::new(0),
            alerts: Mutex::default(),
        });
        let reader = Arc::clone(&follower);
        let thread = thread::spawn(move || reader.follow());
        (follower, thread)
    }

    fn follow(&self) -> Result<()> {
        let mut journal = None;
        let errors = self.stage.directory.join("client.log");
        while !self.ends.load(Ordering::SeqCst) {
            let since = match &journal {
                None => "0".to_owned(),
                Some(journal) => format!("{journal}/{}", self.newest.load(Ordering::SeqCst)),
            };
            let log = OpenOptions::new().create(true).append(true).open(&errors)?;
            let mut client = self.stage.client(&["--follow", "--since", &since])?;
            let mut child = client.stderr(log).spawn()?;
            let output = child.stdout.take().context("its output is not piped")?;
            self.client.set(child);
            let before = self.received();
            read(output, |line| {
                let alert = received(line)?;
                self.newest.store(alert.0, Ordering::SeqCst);
                if journal.is_none() {
                    journal = field(line, "journal").map(str::to_owned);
                }
                self.lock().push(alert);
                Ok(())
            })?;
            if self.received() == before {
                thread::sleep(RETRY);
            } else {
                self.connects.fetch_add(1, Ordering::SeqCst);
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Received>> {
        self.alerts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn received(&self) -> u64 {
        self.lock().len() as u64
    }

    /// Waits until so many alerts were received, or all of a source that has ended.
    fn wait_for(&self, count: u64) -> Result<()> {
        let begin = |received| {
            let [end, hang] = [SILENCE_AT_END, SILENCE_MAX].map(Deadline::after);
            (received, end, hang)
        };
        let mut last = begin(self.received());
        loop {
            let received = self.received();
            if received != last.0 {
                last = begin(received);
            }
            if received >= count || (last.1.passed() && self.stage.is_source_done()) {
                return Ok(());
            }
            if last.2.passed() {
                let log = fs::read_to_string(self.stage.directory.join("client.log"));
                let log = log.unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(5).collect();
                bail!("no alert after {received} of {count}; the client said last {last:?}");
            }
            last.2.pause();
        }
    }

    fn end(&self) -> Result<()> {
        self.ends.store(true, Ordering::SeqCst);
        self.client.kill()
    }
}

/// What is to happen once so many alerts were received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    KillClient,
    KillDaemon,
    Renew,
}

/// The steps in their order, each kind spread evenly.
fn steps(plan: &Plan) -> Vec<(u64, Step)> {
    let spread = |count: u64, step: Step| {
        (1..=count).map(move |number| (plan.alerts * number / (count + 1), step))
    };
    let mut steps: Vec<(u64, Step)> = spread(plan.client_kills, Step::KillClient)
        .chain(spread(plan.daemon_kills, Step::KillDaemon))
        .chain(spread(plan.renewals, Step::Renew))
        .collect();
    steps.sort_unstable();
    steps
}

/// Carries out a plan.
///
/// # Errors
///
/// Something of it does not work, or alerts cease to come. What is wrong with the alerts that came
/// is in the [`Figures`].
pub fn run(plan: Plan) -> Result<Figures> {
    let stage = Arc::new(Stage::new()?);
    let mut daemon = stage.daemon()?;
    let (follower, thread) = Follower::start(&stage);
    let start = Instant::now();
    start_source(&stage, &plan)?;
    for (at, step) in steps(&plan) {
        follower.wait_for(at)?;
        match step {
            Step::KillClient => follower.client.kill()?,
            Step::Renew => stage.renew()?,
            Step::KillDaemon => {
                daemon.kill()?;
                daemon = stage.daemon()?;
            }
        }
    }
    follower.wait_for(plan.alerts)?;
    daemon.wait_all_judged()?;
    // At its end it tells what it has not told yet of losses.
    ensure!(daemon.stop()?.success());
    let seconds = start.elapsed().as_secs_f64();
    // By another daemon, which has most of it on disk alone.
    let daemon = stage.daemon()?;
    let newest = format!("monitor_journal_newest_cursor {}", daemon.newest_cursor()?);
    let metrics = http::get(stage.metrics, "/metrics")?;
    ensure!(metrics.contains(&newest), "no {newest} in {metrics}");
    let mut child = stage.client(&["--since", "0"])?.spawn()?;
    let output = child.stdout.take().context("its output is not piped")?;
    let reader = Process::default();
    reader.set(child);
    let (mut journal, mut names) = (Vec::new(), NameCount::default());
    read(output, |line| {
        journal.push(received(line)?);
        names.add(line)
    })?;
    ensure!(reader.wait()?.success(), "the journal could not be read");
    let last = journal.last().map_or(0, |alert| alert.0);
    until("every alert to arrive", PATIENCE, || {
        let arrived = follower.newest.load(Ordering::SeqCst);
        ensure!(arrived >= last, "{arrived} of {last} arrived");
        Ok(())
    })?;
    follower.end()?;
    thread
        .join()
        .map_err(|_| anyhow!("the client's thread panicked"))??;
    let mut got = follower.lock();
    // What was raised after the journal was read.
    got.retain(|alert| alert.0 <= last);
    let differing = got.iter().zip(&journal).filter(|(got, kept)| got != kept);
    let figures = Figures {
        plan,
        received: got.len() as u64,
        journal: journal.len() as u64,
        names: names.numbers.len() as u64,
        lost: daemon.lost("open")?,
        told: names.told,
        wrong: disorder(&got) + differing.count() as u64,
        connects: follower.connects.load(Ordering::SeqCst),
        told_missing: told_missing(&stage)?,
        seconds,
    };
    ensure!(daemon.stop()?.success());
    stage.containerd.delete(SOURCE)?;
    Ok(figures)
}

/// How often a cursor is not greater than the one before.
fn disorder(alerts: &[Received]) -> u64 {
    let pairs = alerts.iter().zip(alerts.iter().skip(1));
    pairs.filter(|(one, next)| one.0 >= next.0).count() as u64
}

/// Starts the container that raises the alerts. It stays when it is done: of one that is gone, a
/// daemon that is started then could not tell whose its opens were.
fn start_source(stage: &Stage, plan: &Plan) -> Result<()> {
    let Plan {
        alerts, per_second, ..
    } = plan;
    let line =
        format!("probe open-credentials {alerts} {per_second} /dev/shm && echo {DONE}; sleep 3600");
    let run = Run::new(BASE, SOURCE).shell(&line);
    stage.containerd.start_container(&run)
}

/// What became of the opens, as the alerts tell it.
#[derive(Default)]
struct NameCount {
    /// The numbers of the opened names.
    numbers: HashSet<u64>,
    /// How many opens were lost by what gaps say.
    told: u64,
}

impl NameCount {
    fn add(&mut self, line: &str) -> Result<()> {
        let number: Option<u64> = line
            .split_once("\"path\":\"/dev/shm/home")
            .and_then(|(_, rest)| rest.split_once('/'))
            .and_then(|(number, _)| number.parse().ok());
        self.numbers.extend(number);
        if field(line, "kind") == Some("coverage_gap") {
            let alert: Value = serde_json::from_str(line)?;
            let opens = alert.pointer("/details/hooks/open");
            self.told += opens.and_then(Value::as_u64).unwrap_or(0);
        }
        Ok(())
    }
}

/// How often the client said that cursors are missing.
fn told_missing(stage: &Stage) -> Result<u64> {
    let log = BufReader::new(File::open(stage.directory.join("client.log"))?);
    let mut count = 0;
    for line in log.lines() {
        count += u64::from(line?.starts_with("monitorctl: alerts "));
    }
    Ok(count)
}
