//! Sensitive files that containers open.

use std::fs;

use anyhow::{Result, bail, ensure};
use tests::{
    alerts::text,
    behaviours,
    containerd::Run,
    require,
    world::{BASE, shared},
};

behaviours! {
    a_sensitive_file_is_told_once:
        "mkdir /root /root/.aws; probe creat /root/.aws/credentials;
         probe open-repeat 1000 /root/.aws/credentials"
        => [("open_sensitive", "/root/.aws/credentials")];
    other_files_raise_nothing:
        "echo x > /tmp/x; cat /tmp/x /bin/busybox > /dev/null" => [];
}

#[test]
fn the_file_that_is_opened_counts_and_not_its_name() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = shared()?;
    let id = world.unique("other-name");
    let host = world.containerd.directory().join(format!("{id}-host"));
    fs::create_dir_all(host.join(".ssh"))?;
    fs::write(host.join(".ssh/id_rsa"), "key\n")?;
    let mount = format!(
        "type=bind,src={}/.ssh/id_rsa,dst=/data/notes,options=rbind:ro",
        host.display()
    );
    let run = Run::new(BASE, &id)
        .shell("cat /data/notes")
        .flags(["--mount", &mount]);
    let raised = world.raised_by_run(&run)?;
    let [alert] = raised.as_slice() else {
        bail!("not one alert: {raised:#?}");
    };
    ensure!(text(alert, "/kind") == Some("open_sensitive"), "{alert:#}");
    ensure!(
        text(alert, "/file/path") == Some("/data/notes"),
        "{alert:#}"
    );
    Ok(())
}
