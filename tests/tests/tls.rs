//! The API by TCP, as an administrator sets it up and `monitorctl` uses it.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::Value;
use tests::{
    alerts::text,
    containerd::{Containerd, output},
    daemon::{Daemon, program},
    require,
    world::Alone,
};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Result<Authority> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

/// Writes `NAME.crt` and `NAME.key`.
fn issue(authority: &Authority, name: &str, directory: &Path) -> Result<()> {
    let key = KeyPair::generate()?;
    let params = CertificateParams::new(vec![name.to_owned()])?;
    let certificate = params.signed_by(&key, authority)?;
    fs::write(directory.join(format!("{name}.crt")), certificate.pem())?;
    fs::write(directory.join(format!("{name}.key")), key.serialize_pem())?;
    Ok(())
}

/// The address by TCP that the daemon's log tells, with the port that was free.
fn listens_at(log: &str) -> Option<String> {
    let lines = log.lines().map(serde_json::from_str::<Value>);
    lines.flatten().find_map(|line| {
        let address = text(&line, "/fields/address")?;
        address.starts_with("https://").then(|| address.to_owned())
    })
}

#[test]
fn who_has_a_role_is_answered_by_tcp_and_nobody_else() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let _alone = Alone::wait();
    let containerd = Containerd::start()?;
    let directory = containerd.directory();
    let ca = authority()?;
    fs::write(directory.join("ca.crt"), ca.pem())?;
    for name in ["127.0.0.1", "soc.example", "guest.example"] {
        issue(&ca, name, directory)?;
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
    let own = directory.join("monitord");
    let mut command = Daemon::command(&containerd.address(), &own)?;
    command
        .arg("--config")
        .arg(&config)
        .args(["--listen", "https://127.0.0.1:0"]);
    let daemon = Daemon::spawn(&mut command, &own)?;
    daemon.wait_ready()?;
    let address = listens_at(&daemon.full_log()).context("no address in the log")?;
    let ask = |name: &str| {
        let mut command = std::process::Command::new(program("MONITORCTL", "monitorctl")?);
        command.args(["--address", &address, "-o", "json", "status"]);
        for (option, file) in [("--ca", "ca.crt".to_owned())].into_iter().chain([
            ("--cert", format!("{name}.crt")),
            ("--key", format!("{name}.key")),
        ]) {
            command.arg(option).arg(directory.join(file));
        }
        output(&mut command)
    };
    let status: Value = serde_json::from_str(&ask("soc.example")?)?;
    ensure!(text(&status, "/node").is_some(), "{status:#}");
    let refused = format!("{:#}", ask("guest.example").err().context("answered")?);
    ensure!(
        refused.contains("exit status: 4") && refused.contains("guest.example has no role"),
        "{refused}"
    );
    ensure!(daemon.stop()?.success());
    Ok(())
}
