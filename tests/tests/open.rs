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
    opens_through_io_uring_are_told_each_once:
        "for how in plain async slot poll skip async,skip slot,skip poll,slot,skip; do
         mkdir -p /tmp/$how/.ssh; echo key > /tmp/$how/x; busybox mv /tmp/$how/x /tmp/$how/.ssh/id_rsa;
         probe open-ring $how /tmp/$how/.ssh/id_rsa; done"
        => [
            ("open_sensitive", "/tmp/async,skip/.ssh/id_rsa"),
            ("open_sensitive", "/tmp/async/.ssh/id_rsa"),
            ("open_sensitive", "/tmp/plain/.ssh/id_rsa"),
            ("open_sensitive", "/tmp/poll,slot,skip/.ssh/id_rsa"),
            ("open_sensitive", "/tmp/poll/.ssh/id_rsa"),
            ("open_sensitive", "/tmp/skip/.ssh/id_rsa"),
            ("open_sensitive", "/tmp/slot,skip/.ssh/id_rsa"),
            ("open_sensitive", "/tmp/slot/.ssh/id_rsa"),
        ];
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
