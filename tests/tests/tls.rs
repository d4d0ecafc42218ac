//! The API by TCP, as an administrator sets it up and `monitorctl` uses it.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{
    alerts::text,
    authority::Authority,
    containerd::{Containerd, Run},
    daemon::{Daemon, program},
    image,
    process::output,
    require,
    world::{Alone, BASE},
};

/// The address by TCP that the daemon's log tells, with the port that was free.
fn listens_at(log: &str) -> Option<String> {
    let lines = log.lines().map(serde_json::from_str::<Value>);
    lines.flatten().find_map(|line| {
        let address = text(&line, "/fields/address")?;
        address.starts_with("https://").then(|| address.to_owned())
    })
}

/// A daemon that listens by TCP, its address, and a directory with certificates.
struct Served {
    daemon: Daemon,
    address: String,
    containerd: Containerd,
    _alone: Alone,
}

impl Served {
    fn start() -> Result<Self> {
        let alone = Alone::wait()?;
        let containerd = Containerd::start()?;
        let directory = containerd.directory();
        let authority = Authority::new()?;
        authority.write(directory)?;
        for name in ["127.0.0.1", "soc.example", "guest.example"] {
            authority.issue(name, directory)?;
        }
        let shown = directory.display();
        let config = directory.join("config.toml");
        fs::write(
            &config,
            format!(
                r#"[tls]
certificate = "{shown}/127.0.0.1.crt"
key = "{shown}/127.0.0.1.key"
client_ca = "{shown}/ca.crt"
[roles]
observer = ["soc.example"]
"#
            ),
        )?;
        let daemon = Daemon::start_with_tcp(&containerd)?;
        let address = listens_at(&daemon.full_log()).context("no address in the log")?;
        Ok(Self {
            daemon,
            address,
            containerd,
            _alone: alone,
        })
    }

    /// What somebody is answered by TCP.
    fn ask(&self, name: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(program("MONITORCTL", "monitorctl")?);
        command.args(["--address", &self.address, "-o", "json"]);
        output(self.call_as(name, command.args(arguments)))
    }

    /// Adds the files that say who calls.
    fn call_as<'a>(&self, name: &str, command: &'a mut Command) -> &'a mut Command {
        let file = |name: String| self.containerd.directory().join(name);
        command
            .arg("--ca")
            .arg(file("ca.crt".to_owned()))
            .arg("--cert")
            .arg(file(format!("{name}.crt")))
            .arg("--key")
            .arg(file(format!("{name}.key")))
    }
}

#[test]
fn who_has_a_role_is_answered_by_tcp_and_nobody_else() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let served = Served::start()?;
    let status: Value = serde_json::from_str(&served.ask("soc.example", &["status"])?)?;
    ensure!(text(&status, "/node").is_some(), "{status:#}");
    let refused = format!(
        "{:#}",
        served
            .ask("guest.example", &["status"])
            .err()
            .context("answered")?
    );
    ensure!(
        refused.contains("exit status: 4") && refused.contains("guest.example has no role"),
        "{refused}"
    );
    ensure!(served.ask("soc.example", &["audit", "list"]).is_err());
    audited(&served)
}

/// Who was refused is in the audit log, which outlives a kill, and whose records cannot be altered unseen.
fn audited(served: &Served) -> Result<()> {
    let list = |daemon: &Daemon| -> Result<Vec<String>> {
        let records = daemon.monitorctl(["audit", "list"])?;
        let said = ["/caller", "/method", "/outcome"];
        let line = |it: &Value| {
            said.map(|at| text(it, at).unwrap_or("-").to_owned())
                .join(" ")
        };
        Ok(records.iter().map(line).collect())
    };
    let mut expect = vec![
        "guest.example Status refused".to_owned(),
        "soc.example ListAudit refused".to_owned(),
    ];
    ensure!(list(&served.daemon)? == expect);
    let report = served.daemon.monitorctl(["audit", "verify"])?;
    let hash = report.first().and_then(|report| text(report, "/last/hash"));
    let head = format!("2/{}", hash.context("no hash")?);

    served.daemon.kill()?;
    let log = served.containerd.directory().join("monitord/state/audit");
    let log = log.join("00000000000000000001.jsonl");
    let whole = fs::read_to_string(&log)?;
    fs::write(&log, format!("{whole}{{\"sequence\":3,"))?;
    let daemon = Daemon::start_with_tcp(&served.containerd)?;
    expect.push("monitord audit failed".to_owned());
    ensure!(list(&daemon)? == expect, "the torn record is told");
    daemon.monitorctl(["audit", "verify", "--head", &head])?;

    let changed = fs::read_to_string(&log)?.replace("guest.example", "ghost.example");
    fs::write(&log, changed)?;
    let broken = daemon.monitorctl(["audit", "verify"]);
    let broken = format!("{:#}", broken.err().context("whole")?);
    ensure!(broken.contains("broken"), "{broken}");
    ensure!(daemon.stop()?.success());
    Ok(())
}

#[test]
fn the_client_for_python_goes_on_where_it_stopped() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf, PythonGrpc);
    let served = Served::start()?;
    let stubs = served.containerd.directory().join("stubs");
    fs::create_dir(&stubs)?;
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let protocol = repository.join("monitor-api/proto");
    let mut make = Command::new("protoc");
    make.arg("-I")
        .arg(&protocol)
        .args(["python_out", "grpc_python_out"].map(|to| format!("--{to}={}", stubs.display())))
        .arg("--plugin=protoc-gen-grpc_python=/usr/bin/grpc_python_plugin");
    for file in fs::read_dir(protocol.join("monitor/v1"))? {
        make.arg(file?.path());
    }
    output(&mut make)?;

    served.containerd.import(&image::base(BASE)?)?;
    let line = "for i in 1 2 3; do probe run-copy /tmp/x$i $i true; done";
    served
        .containerd
        .run_ok(&Run::new(BASE, "three").shell(line))?;
    let read = |count: &str| -> Result<Vec<String>> {
        let mut client = Command::new("/usr/bin/python3");
        client
            .arg(repository.join("docs/clients/alerts.py"))
            .env("PYTHONPATH", &stubs)
            .args(["--address", served.address.trim_start_matches("https://")])
            .args(["--consumer", "python", "--count", count]);
        let lines = output(served.call_as("soc.example", &mut client))?;
        let alerts = lines.lines().map(serde_json::from_str::<Value>);
        let cursors = alerts.map(|alert| Ok(text(&alert?, "/cursor").unwrap_or("none").to_owned()));
        cursors.collect()
    };
    ensure!(read("2")? == ["1", "2"]);
    ensure!(read("1")? == ["3"]);
    ensure!(served.daemon.stop()?.success());
    Ok(())
}
