//! How long a new program of one container waits for its alert while another container floods the
//! daemon with findings.

use std::{
    fmt::{self, Display},
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use monitor_api::v1::{
    AlertsRequest,
    alerts_request::{Oldest, Start, start::Position},
    alerts_response::Response,
    monitor_client::MonitorClient,
};
use tokio::runtime;

use crate::{
    bench::quantile,
    containerd::{Containerd, Run},
    daemon::Daemon,
    image,
    poll::PATIENCE,
    world::{Alone, BASE},
};

/// Opens of the flood, each of another file and a finding of its own, as fast as it can: more than
/// it comes to.
const OPENS: &str = "2000000";
const UNBOUNDED: &str = "1000000000";

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// New programs that were executed.
    pub execs: usize,
    /// Milliseconds from an exec to a client, beside nothing: p50, p99 and the longest.
    pub idle_ms: [f64; 3],
    /// The same beside the flood.
    pub flooded_ms: [f64; 3],
    /// Alerts that came of the flood meanwhile.
    pub alerts: u64,
    /// Opens lost in the kernel's ring meanwhile, which are told.
    pub lost: u64,
}

impl Display for Figures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cases = [("nothing", self.idle_ms), ("a flood", self.flooded_ms)];
        writeln!(
            formatter,
            "milliseconds from the exec of a new program to its alert, {} execs",
            self.execs
        )?;
        for (name, [p50, p99, max]) in cases {
            writeln!(
                formatter,
                "  beside {name}: p50 {p50:.2}, p99 {p99:.2}, max {max:.2}"
            )?;
        }
        write!(
            formatter,
            "  of the flood: {} alerts and an alert_storm, {} opens lost and told",
            self.alerts, self.lost
        )
    }
}

/// Measures with so many new programs.
///
/// # Errors
///
/// An alert does not come, or something that it needs does not do its work.
pub fn run(execs: usize) -> Result<Figures> {
    let _alone = Alone::wait()?;
    let containerd = Containerd::start()?;
    containerd.import(&image::base(BASE)?)?;
    let directory = containerd.directory().join("monitord");
    let daemon = Daemon::start(&containerd.address(), &directory)?;
    let address = format!("unix://{}", daemon.socket().display());
    let (send, alerts) = channel();
    // Ends with the daemon.
    thread::spawn(move || {
        if let Err(error) = follow(address, &send) {
            eprintln!("reading alerts: {error:#}");
        }
    });

    let idle_ms = measure(&containerd, &alerts, "idle", execs)?;
    let flood = ["probe", "open-credentials", OPENS, UNBOUNDED, "/dev/shm"];
    containerd.start_container(&Run::new(BASE, "flood").arguments(flood))?;
    let storm = alerts.recv_timeout(PATIENCE).context("no alert_storm")?;
    ensure!(
        (&*storm.kind, &*storm.container) == ("alert_storm", "flood"),
        "{storm:?}"
    );
    let before = (daemon.newest_cursor()?, daemon.lost("open")?);
    let flooded_ms = measure(&containerd, &alerts, "beside", execs)?;
    let after = (daemon.newest_cursor()?, daemon.lost("open")?);
    containerd.delete("flood")?;
    ensure!(daemon.stop()?.success());
    Ok(Figures {
        execs,
        idle_ms,
        flooded_ms,
        alerts: after.0 - before.0,
        lost: after.1 - before.1,
    })
}

/// An alert that is no part of the flood.
#[derive(Debug)]
struct Came {
    kind: String,
    container: String,
    /// From what it is about.
    delay: Duration,
}

/// Tells of the alerts as they come.
fn follow(address: String, tell: &Sender<Came>) -> Result<()> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let start = Start {
            position: Some(Position::Oldest(Oldest {})),
            ..Start::default()
        };
        let request = tokio_stream::once(AlertsRequest {
            start: Some(start),
            ..AlertsRequest::default()
        });
        let mut client = MonitorClient::connect(address).await?;
        let mut stream = client.alerts(request).await?.into_inner();
        while let Some(message) = stream.message().await? {
            let Some(Response::Alert(alert)) = message.response else {
                continue;
            };
            if alert.kind == "open_sensitive" || alert.kind == "coverage_gap" {
                continue;
            }
            let at = alert.time.context("an alert without a time")?;
            let at = Duration::new(at.seconds.try_into()?, at.nanos.try_into()?);
            let came = Came {
                delay: SystemTime::now()
                    .duration_since(SystemTime::UNIX_EPOCH + at)
                    .unwrap_or_default(),
                kind: alert.kind,
                container: alert.container.unwrap_or_default().id,
            };
            if tell.send(came).is_err() {
                break;
            }
        }
        Ok(())
    })
}

fn measure(
    containerd: &Containerd,
    alerts: &Receiver<Came>,
    id: &str,
    execs: usize,
) -> Result<[f64; 3]> {
    let line = format!(
        "i=0; while [ $i -lt {execs} ]; do
            probe run-copy /tmp/x$i $i true; probe sleep-ms 20; i=$((i+1))
        done"
    );
    containerd.run_ok(&Run::new(BASE, id).shell(&line))?;
    let mut delays = Vec::new();
    for _ in 0..execs {
        let came = alerts.recv_timeout(PATIENCE).context("an exec's alert")?;
        ensure!(
            (&*came.kind, &*came.container) == ("exec_added", id),
            "{came:?}"
        );
        delays.push(came.delay.as_secs_f64() * 1000.0);
    }
    Ok([0.5, 0.99, 1.0].map(|part| quantile(&mut delays, part)))
}
