//! Many consumers of one daemon's alerts, of which some do not read.

use std::{
    fmt::{self, Display},
    fs,
    future::poll_fn,
    path::Path,
    pin::{Pin, pin},
    task::Poll,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use h2::{
    RecvStream, SendStream,
    client::{self, Connection},
};
use monitor_api::v1::{
    AlertsRequest,
    alerts_request::{Now, Start, start::Position},
};
use nix::sys::resource::{UsageWho, getrusage};
use prost::{
    Message as _,
    bytes::{BufMut as _, Bytes, BytesMut},
};
use tokio::{net::UnixStream, runtime, task::JoinSet, time::timeout};
use tonic::codegen::http;

use crate::{
    bench::quantile,
    containerd::{Containerd, Run},
    daemon::Daemon,
    image,
    world::{Alone, BASE},
};

/// Without a message for so long, something hangs; the daemon sends a heartbeat every 10 s.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Most that the daemon may have resident.
pub const MEMORY_BYTES_MAX: u64 = 256 << 20;

/// What a client lets the daemon send ahead, and at once.
const WINDOW_BYTES: u32 = 1 << 20;
const FRAME_BYTES: u32 = 64 << 10;

/// What is looked at of a message. The clients share the machine with the daemon, so they decode no
/// more than what shows that each alert came, once and in order, and when.
#[derive(Clone, PartialEq, prost::Message)]
struct Message {
    #[prost(message, optional, tag = "1")]
    alert: Option<Alert>,
    #[prost(message, optional, tag = "2")]
    heartbeat: Option<()>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Alert {
    #[prost(uint64, tag = "3")]
    cursor: u64,
    #[prost(uint32, tag = "5")]
    revision: u32,
    #[prost(message, optional, tag = "8")]
    observed_time: Option<Time>,
    #[prost(string, tag = "15")]
    kind: String,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Time {
    #[prost(uint64, tag = "1")]
    seconds: u64,
    #[prost(uint32, tag = "2")]
    nanos: u32,
}

/// Who reads, and how much.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Consumers that read all.
    pub reading: usize,
    /// Consumers that begin a stream and read nothing of it.
    pub idle: usize,
    /// Alerts.
    pub alerts: u64,
    /// Of them a second.
    pub per_second: u64,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Figures {
    plan: Plan,
    /// Alerts that each reading consumer got: the fewest of all.
    pub received_min: u64,
    /// Cursors that did not come one after the other, of all consumers.
    pub wrong: u64,
    /// Milliseconds from the judging of an alert, before it is written to the journal, to a client:
    /// p50, p99 and the longest.
    pub delay_ms: [f64; 3],
    /// Alerts a second, from the first to the last.
    pub rate: f64,
    /// Most memory that the daemon had resident.
    pub memory_bytes: u64,
    /// Seconds of processor time of the daemon and of the clients, and how long it all took.
    pub seconds: [f64; 3],
}

impl Display for Figures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan {
            reading,
            idle,
            alerts,
            ..
        } = self.plan;
        let [p50, p99, max] = self.delay_ms;
        let [daemon, clients, took] = self.seconds;
        writeln!(
            formatter,
            "{alerts} alerts at {:.0}/s, {reading} consumers that read and {idle} that do not",
            self.rate
        )?;
        writeln!(
            formatter,
            "  each reader got at least {}, {} cursors not in order",
            self.received_min, self.wrong
        )?;
        writeln!(
            formatter,
            "  milliseconds from judging to a client: p50 {p50:.2}, p99 {p99:.2}, max {max:.2}"
        )?;
        writeln!(
            formatter,
            "  {daemon:.1} s of processor time in the daemon and {clients:.1} s in the clients, of {took:.1} s"
        )?;
        write!(
            formatter,
            "  at most {} MiB resident in the daemon, bound {} MiB",
            self.memory_bytes >> 20,
            MEMORY_BYTES_MAX >> 20
        )
    }
}

impl Figures {
    /// Fails unless every reader got every alert.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.received_min >= self.plan.alerts && self.wrong == 0,
            "not every alert came once and in order:\n{self}"
        );
        Ok(())
    }

    /// Fails if the daemon took more memory than it may.
    pub fn check_memory(&self) -> Result<()> {
        ensure!(self.memory_bytes <= MEMORY_BYTES_MAX, "too much:\n{self}");
        Ok(())
    }
}

/// A stream of alerts by a connection of its own. What it takes is that of a consumer elsewhere: no
/// more than HTTP/2 and the frames of gRPC, all in one task.
struct Consumer {
    connection: Connection<UnixStream, Bytes>,
    stream: RecvStream,
    /// The beginning of a message.
    cut: BytesMut,
    /// Keeps the stream open.
    _requests: SendStream<Bytes>,
}

impl Consumer {
    /// Begins at the next alert.
    async fn begin(socket: &Path) -> Result<Self> {
        let (client, mut connection) = client::Builder::new()
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES)
            .handshake(UnixStream::connect(socket).await?)
            .await?;
        let request = http::Request::post("http://localhost/monitor.v1.Monitor/Alerts")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let mut client = drive(&mut connection, client.ready()).await??;
        let (response, mut requests) = client.send_request(request, false)?;
        let start = Start {
            position: Some(Position::Now(Now {})),
            ..Start::default()
        };
        let message = AlertsRequest {
            start: Some(start),
            ..AlertsRequest::default()
        };
        let mut frame = BytesMut::new();
        frame.put_u8(0);
        frame.put_u32(message.encoded_len().try_into()?);
        message.encode(&mut frame)?;
        requests.send_data(frame.freeze(), false)?;
        let stream = drive(&mut connection, response).await??.into_body();
        let mut consumer = Self {
            connection,
            stream,
            cut: BytesMut::new(),
            _requests: requests,
        };
        // The first heartbeat says that the reader has its place.
        consumer.messages().await?;
        Ok(consumer)
    }

    /// Whole messages, as soon as there are some.
    async fn messages(&mut self) -> Result<Vec<Message>> {
        let mut messages = Vec::new();
        while messages.is_empty() {
            let data = poll_fn(|waker| self.stream.poll_data(waker));
            let data = drive(&mut self.connection, data).await?;
            let mut data = data.context("the stream ended")??;
            self.stream.flow_control().release_capacity(data.len())?;
            // Hardly ever is one cut.
            if !self.cut.is_empty() {
                self.cut.extend_from_slice(&data);
                data = self.cut.split().freeze();
            }
            let mut left = &*data;
            while let Some(message) = decode(&mut left)? {
                messages.push(message);
            }
            self.cut.extend_from_slice(left);
        }
        Ok(messages)
    }

    /// Reads up to so many alerts of credentials.
    async fn read(mut self, alerts: u64) -> Result<Read> {
        let mut read = Read::default();
        while read.alerts < alerts {
            for message in timeout(SILENCE_MAX, self.messages()).await?? {
                match message {
                    Message {
                        alert: Some(alert), ..
                    } => read.take(&alert)?,
                    Message {
                        heartbeat: Some(()),
                        ..
                    } => {}
                    Message { .. } => bail!("alerts expired or are missing"),
                }
            }
        }
        Ok(read)
    }
}

/// Takes a message, if there is a whole one.
fn decode(left: &mut &[u8]) -> Result<Option<Message>> {
    let Some((&[is_compressed, length @ ..], rest)) = left.split_first_chunk::<5>() else {
        return Ok(None);
    };
    ensure!(is_compressed == 0, "it is compressed");
    let Some((message, rest)) = rest.split_at_checked(u32::from_be_bytes(length) as usize) else {
        return Ok(None);
    };
    *left = rest;
    Ok(Some(Message::decode(message)?))
}

/// Waits for something of a connection, which has to be polled for it.
async fn drive<T>(
    connection: &mut Connection<UnixStream, Bytes>,
    something: impl Future<Output = T>,
) -> Result<T> {
    let mut something = pin!(something);
    poll_fn(|waker| {
        let ended = Pin::new(&mut *connection).poll(waker);
        match (something.as_mut().poll(waker), ended) {
            (Poll::Ready(given), _) => Poll::Ready(Ok(given)),
            (Poll::Pending, Poll::Ready(ended)) => Poll::Ready(ended.map_or_else(
                |error| Err(error.into()),
                |()| Err(anyhow!("the connection ended")),
            )),
            (Poll::Pending, Poll::Pending) => Poll::Pending,
        }
    })
    .await
}

/// What a consumer has read.
#[derive(Default)]
struct Read {
    alerts: u64,
    wrong: u64,
    cursor: Option<u64>,
    delays_ms: Vec<f64>,
    first_last: Option<(SystemTime, SystemTime)>,
}

impl Read {
    fn take(&mut self, alert: &Alert) -> Result<()> {
        let now = SystemTime::now();
        let is_next = self.cursor.is_none_or(|cursor| alert.cursor == cursor + 1);
        self.wrong += u64::from(!is_next);
        self.cursor = Some(alert.cursor);
        if alert.kind == "open_sensitive" && alert.revision == 1 {
            self.alerts += 1;
        }
        let judged = alert.observed_time.context("an alert without a time")?;
        let judged = SystemTime::UNIX_EPOCH + Duration::new(judged.seconds, judged.nanos);
        let delay = now.duration_since(judged).unwrap_or_default();
        self.delays_ms.push(delay.as_secs_f64() * 1000.0);
        let first = self.first_last.map_or(judged, |(first, _)| first);
        self.first_last = Some((first, judged));
        Ok(())
    }
}

/// Carries out a plan.
///
/// # Errors
///
/// A stream ends or is silent, or something else does not work.
pub fn run(plan: Plan) -> Result<Figures> {
    let _alone = Alone::wait()?;
    let containerd = Containerd::start()?;
    containerd.import(&image::base(BASE)?)?;
    let directory = containerd.directory().join("monitord");
    let daemon = Daemon::start(&containerd.address(), &directory)?;
    let socket = daemon.socket();
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let pid = daemon.pid()?;
    let (read, seconds) = runtime.block_on(async {
        let mut idle = Vec::new();
        for _ in 0..plan.idle {
            idle.push(Consumer::begin(&socket).await?);
        }
        let mut reading = JoinSet::new();
        for _ in 0..plan.reading {
            let consumer = Consumer::begin(&socket).await?;
            reading.spawn(consumer.read(plan.alerts));
        }
        let (count, rate) = (plan.alerts.to_string(), plan.per_second.to_string());
        let open = ["probe", "open-credentials", &count, &rate, "/dev/shm"];
        containerd.start_container(&Run::new(BASE, "source").arguments(open))?;
        let began = Instant::now();
        let before = [daemon_busy(pid)?, clients_busy()?];
        let mut read = Vec::new();
        while let Some(consumer) = reading.join_next().await {
            read.push(consumer??);
        }
        let took = began.elapsed().as_secs_f64();
        let [daemon, clients] = before;
        let seconds = [daemon_busy(pid)? - daemon, clients_busy()? - clients, took];
        drop(idle);
        anyhow::Ok((read, seconds))
    })?;
    let memory_bytes = most_resident_bytes(pid)?;
    ensure!(daemon.stop()?.success());
    containerd.delete("source")?;

    let one = read.first().context("nobody reads")?;
    let (first, last) = one.first_last.context("no alerts")?;
    #[expect(clippy::cast_precision_loss, reason = "far below 2 to the power of 52")]
    let rate = plan.alerts as f64 / last.duration_since(first)?.as_secs_f64();
    let mut delays: Vec<f64> = read
        .iter()
        .flat_map(|read| read.delays_ms.clone())
        .collect();
    Ok(Figures {
        plan,
        received_min: read.iter().map(|read| read.alerts).min().unwrap_or(0),
        wrong: read.iter().map(|read| read.wrong).sum(),
        delay_ms: [0.5, 0.99, 1.0].map(|part| quantile(&mut delays, part)),
        rate,
        memory_bytes,
        seconds,
    })
}

/// Seconds that the daemon has computed.
fn daemon_busy(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
    let ticks: u32 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse().unwrap_or(0))
        .sum();
    Ok(f64::from(ticks) / 100.0)
}

/// Seconds that this process has computed.
fn clients_busy() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let times = [usage.user_time(), usage.system_time()];
    let micros: i64 = times
        .iter()
        .map(|time| time.tv_sec() * 1_000_000 + time.tv_usec())
        .sum();
    Ok(Duration::from_micros(micros.try_into()?).as_secs_f64())
}

fn most_resident_bytes(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.context("no VmHWM")? << 10)
}
