//! What containers execute, against what their image holds.

use std::{
    fs,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::{
    alerts::{summary, text},
    containerd::Run,
    daemon::NODE,
    image::{self, BUSYBOX, Config, Image, PROBE, PROBE_PATH},
    layer::{Attributes, Layer, sha256},
    poll::{PATIENCE, until},
    require,
    world::{BASE, World, shared},
};

/// An image of several layers: a program with hard and symbolic links, a path that a whiteout
/// removes, and a directory that an opaque marker empties.
fn tools(world: &World, reference: &str) -> Result<Image> {
    let lower = Layer::new()
        .dir("opt")
        .program("opt/tool", PROBE)
        .hard_link("opt/second", "opt/tool")
        .symlink("opt/link", "tool")
        .program("opt/gone", PROBE)
        .program("opt/script", b"#!/bin/sh -e\nexec /opt/tool sleep-ms 0\n")
        .dir("full")
        .program("full/below", PROBE)
        .file("opt/set-id", PROBE, mode(0o4755))
        .file("opt/capable", PROBE, capable()?);
    let upper = Layer::new()
        .plain()
        .whiteout("opt/gone")
        .dir("full")
        .opaque("full")
        .program("full/above", PROBE);
    let top = Layer::new().zstd().program("opt/zstd", PROBE);
    let layers = [image::base_layer()?, lower, upper, top];
    let image = Image::build(reference, &layers, &image::base_config())?;
    world.containerd.import(&image)?;
    // The layers are the same in all of them.
    let mut is_read = LAYERS_READ.lock().unwrap_or_else(PoisonError::into_inner);
    if !*is_read {
        world.have_read(reference)?;
        *is_read = true;
    }
    Ok(image)
}

static LAYERS_READ: Mutex<bool> = Mutex::new(false);

fn mode(mode: u32) -> Attributes {
    Attributes {
        mode,
        ..Attributes::default()
    }
}

/// With `cap_net_raw=ep`.
fn capable() -> Result<Attributes> {
    let value = hex::decode("0100000200200000000000000000000000000000")?;
    Ok(Attributes {
        xattrs: vec![("security.capability".to_owned(), value)],
        ..Attributes::default()
    })
}

/// Runs a line in a container of [`tools`] and expects exactly these alerts, as kind and path.
fn check(name: &str, line: &str, expect: &[(&str, &str)]) -> Result<()> {
    let world = shared()?;
    let reference = format!("example.invalid/{name}:1");
    tools(&world, &reference)?;
    world.check_once_known(&reference, line, "verified", expect)
}

/// One test per behaviour, so that a failure names it.
macro_rules! behaviours {
    ($($name:ident: $line:expr => $expect:expr;)+) => {$(
        #[test]
        fn $name() -> Result<()> {
            require!(Root, Containerd, Busybox, Btf);
            check(stringify!($name), $line, &$expect)
        }
    )+};
}

behaviours! {
    the_images_own_programs_raise_nothing:
        "ls / > /dev/null; cat /bin/probe > /dev/null; /opt/tool sleep-ms 0; /opt/second sleep-ms 0;
         /opt/link sleep-ms 0; /full/above sleep-ms 0; probe exec-twice /opt/tool sleep-ms 0"
        => [];
    set_user_id_and_capabilities_of_the_image_raise_nothing:
        "/opt/set-id sleep-ms 0; /opt/capable sleep-ms 0; chmod 4711 /opt/set-id; chmod 700 /opt/capable;
         /opt/set-id sleep-ms 0; /opt/capable sleep-ms 0"
        => [];
    a_program_that_lost_privilege_raises_nothing:
        "chown 1:1 /opt/set-id /opt/capable; /opt/set-id sleep-ms 0; /opt/capable sleep-ms 0"
        => [];
    a_set_user_id_bit_that_the_image_does_not_give_is_modified:
        "chmod u+s /opt/tool; /opt/tool sleep-ms 0"
        => [("exec_modified", "/opt/tool")];
    capabilities_that_the_image_does_not_give_are_modified:
        "mv /opt/capable /opt/tool; /opt/tool sleep-ms 0"
        => [("exec_modified", "/opt/tool"), ("image_file_modified", "/opt/capable")];
    a_layer_compressed_by_zstd_is_compared:
        "/opt/zstd sleep-ms 0; echo salt >> /opt/zstd; /opt/zstd sleep-ms 0"
        => [("exec_modified", "/opt/zstd"), ("image_file_modified", "/opt/zstd")];
    a_new_file_is_added:
        "cp /bin/probe /tmp/x; echo salt >> /tmp/x; /tmp/x sleep-ms 0"
        => [("exec_added", "/tmp/x")];
    an_overwritten_file_is_modified:
        "cp /opt/tool /tmp/x; echo salt >> /tmp/x; cat /tmp/x > /opt/tool; /opt/tool sleep-ms 0"
        => [("exec_modified", "/opt/tool"), ("image_file_modified", "/opt/tool")];
    a_file_replaced_by_renaming_is_modified:
        "cp /opt/tool /tmp/x; echo salt >> /tmp/x; mv /tmp/x /opt/tool; /opt/tool sleep-ms 0"
        => [("exec_modified", "/opt/tool"), ("image_file_modified", "/opt/tool")];
    a_program_behind_a_hard_link_of_the_image_is_compared:
        "echo salt >> /opt/second; /opt/tool sleep-ms 0; /opt/second sleep-ms 0"
        => [("exec_modified", "/opt/second"), ("image_file_modified", "/opt/second")];
    a_renamed_program_of_the_image_is_added:
        "mv /opt/tool /opt/moved; /opt/moved sleep-ms 0"
        => [("exec_added", "/opt/moved"), ("image_file_modified", "/opt/tool")];
    chmod_alone_raises_nothing:
        "chmod 700 /opt/tool; /opt/tool sleep-ms 0; chown 1:1 /full/above; /full/above sleep-ms 0"
        => [];
    the_same_bytes_written_again_raise_nothing:
        "cp /opt/tool /tmp/same; cat /tmp/same > /opt/tool; /opt/tool sleep-ms 1000"
        => [];
    a_file_removed_by_a_whiteout_is_not_in_the_image:
        "cp /opt/tool /opt/gone; /opt/gone sleep-ms 0"
        => [("exec_added", "/opt/gone")];
    a_file_below_an_opaque_directory_is_not_in_the_image:
        "cp /opt/tool /full/below; /full/below sleep-ms 0"
        => [("exec_added", "/full/below")];
    a_name_of_any_bytes_is_told:
        "x=$(printf '/tmp/a\\nb\\377c'); cp /bin/probe \"$x\"; echo salt >> \"$x\"; \"$x\" sleep-ms 0"
        => [("exec_added", "/tmp/a\nb\\xffc")];
    scripts_of_the_image_raise_nothing:
        "/opt/script; chmod 700 /opt/script; /opt/script; sh /opt/script" => [];
    a_new_script_is_added:
        "printf '#!/bin/sh -e\\ntrue\\n' > /tmp/s; chmod +x /tmp/s; /tmp/s arguments"
        => [("script_added", "/tmp/s")];
    a_changed_script_is_modified:
        "echo true >> /opt/script; /opt/script" => [("image_file_modified", "/opt/script"), ("script_modified", "/opt/script")];
    each_script_of_a_chain_is_judged:
        "printf '#!/bin/sh\\n' > /tmp/in; printf '#!/tmp/in\\n' > /tmp/out; chmod +x /tmp/in /tmp/out; /tmp/out"
        => [("script_added", "/tmp/in"), ("script_added", "/tmp/out")];
    an_interpreter_is_judged_as_a_program:
        "cp /bin/probe /tmp/i; echo salt >> /tmp/i; printf '#!/tmp/i print\\n' > /tmp/s; chmod +x /tmp/s; /tmp/s || true"
        => [("exec_added", "/tmp/i"), ("script_added", "/tmp/s")];
    several_files_of_one_process_are_all_judged:
        "cp /bin/probe /tmp/a; echo a >> /tmp/a; cp /bin/probe /tmp/b; echo b >> /tmp/b;
         exec /tmp/a exec /tmp/b sleep-ms 0"
        => [("exec_added", "/tmp/a"), ("exec_added", "/tmp/b")];
}

fn only<'a>(alerts: &'a [Value], kind: &str) -> Result<&'a Value> {
    let [alert] = alerts else {
        anyhow::bail!(
            "not one alert: {:?}",
            alerts.iter().map(summary).collect::<Vec<_>>()
        );
    };
    ensure!(text(alert, "/kind") == Some(kind), "not {kind}: {alert:#}");
    Ok(alert)
}

/// Fails unless every pointer has that value.
fn has(alert: &Value, expect: &[(&str, Value)]) -> Result<()> {
    for (pointer, value) in expect {
        let found = alert.pointer(pointer).unwrap_or(&Value::Null);
        ensure!(
            found == value,
            "{pointer} is {found}, not {value}, in {alert:#}"
        );
    }
    Ok(())
}

#[test]
fn an_added_file_is_told_in_full() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = shared()?;
    let run = Run::new(BASE, world.unique("full"))
        .arguments([PROBE_PATH, "run-copy", "/tmp/x", "salt", "sleep-ms", "0"]);
    let alerts = world.raised_by_run(&run)?;
    let alert = only(&alerts, "exec_added")?;
    has(
        alert,
        &[
            ("/schema", json!("monitor.v1/1")),
            ("/node", json!(NODE)),
            ("/severity", json!("critical")),
            ("/rule/id", json!("content.exec_added")),
            ("/count", json!(1)),
            ("/container/id", json!(run.id)),
            (
                "/container/runtime_namespace",
                json!(world.containerd.namespace()),
            ),
            ("/container/kind", json!("container")),
            ("/container/pod", Value::Null),
            ("/image/reference", json!(BASE)),
            ("/image/identity", json!("proven")),
            ("/image/manifest_digest", json!(world.base.manifest_digest)),
            ("/image/config_digest", json!(world.base.config_digest)),
            ("/image/chain_id", json!(world.base.chain_id)),
            ("/image/evidence", json!("verified")),
            ("/process/uid", json!(0)),
            ("/process/origin", json!("init")),
            ("/process/executable", json!("/tmp/x")),
            ("/process/arguments", json!(["/tmp/x", "sleep-ms", "0"])),
            ("/process/arguments_truncated", json!(false)),
            ("/file/path", json!("/tmp/x")),
            ("/file/path_truncated", json!(false)),
            ("/file/verdict", json!("added")),
            ("/file/layer", Value::Null),
            ("/file/expected_sha256", Value::Null),
            (
                "/file/seen_sha256",
                json!(sha256(&[PROBE, b"salt"].concat())),
            ),
            ("/file/hash_state", json!("done")),
            ("/file/same_bytes_as", Value::Null),
            ("/connection", Value::Null),
        ],
    )
}

#[test]
fn a_modified_file_is_told_with_both_hashes_and_its_layer() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = shared()?;
    let reference = "example.invalid/both-hashes:1";
    let image = tools(&world, reference)?;
    let alerts = world.raised_by(reference, "echo -n salt >> /opt/tool; /opt/tool sleep-ms 0")?;
    let layer = image.layers.get(1).context("a second layer")?;
    // The file itself is told too.
    let executed = alerts
        .iter()
        .filter(|alert| text(alert, "/kind") != Some("image_file_modified"));
    has(
        only(&executed.cloned().collect::<Vec<_>>(), "exec_modified")?,
        &[
            ("/severity", json!("critical")),
            ("/image/manifest_digest", json!(image.manifest_digest)),
            ("/file/verdict", json!("modified")),
            ("/file/layer", json!(layer.diff_id)),
            ("/file/expected_sha256", json!(sha256(PROBE))),
            (
                "/file/seen_sha256",
                json!(sha256(&[PROBE, b"salt"].concat())),
            ),
            ("/file/hash_state", json!("done")),
        ],
    )
}

#[test]
fn a_copy_of_a_program_of_the_image_is_less_severe() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = shared()?;
    let alerts = world.raised_by(BASE, "cp /bin/busybox /tmp/true; /tmp/true")?;
    has(
        only(&alerts, "exec_added")?,
        &[
            ("/severity", json!("medium")),
            ("/file/path", json!("/tmp/true")),
            ("/file/seen_sha256", json!(sha256(&fs::read(BUSYBOX)?))),
            ("/file/same_bytes_as", json!("/bin/busybox")),
        ],
    )
}

#[test]
fn memory_is_told_also_when_its_bytes_are_the_images() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = shared()?;
    for line in [
        "probe memfd-exec /bin/probe sleep-ms 0",
        "probe deleted-exec /tmp/x sleep-ms 0",
    ] {
        let alerts = world.raised_by(BASE, line)?;
        has(
            only(&alerts, "exec_memory")?,
            &[
                ("/severity", json!("critical")),
                ("/file/verdict", json!("memory")),
            ],
        )
        .with_context(|| line.to_owned())?;
    }
    Ok(())
}

#[test]
fn another_mount_is_a_volume() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = shared()?;
    let shared_directory = world.containerd.directory().join("volume");
    fs::create_dir_all(&shared_directory)?;
    let bind = format!(
        "type=bind,src={},dst=/volume,options=rbind:rw",
        shared_directory.display()
    );
    let line = "cp /bin/probe /volume/x; echo salt >> /volume/x; /volume/x sleep-ms 0";
    for mount in ["type=tmpfs,src=tmpfs,dst=/volume,options=rw", bind.as_str()] {
        let run = Run::new(BASE, world.unique("volume"))
            .flags(["--mount", mount])
            .shell(line);
        let alerts = world.raised_by_run(&run)?;
        has(
            only(&alerts, "exec_volume")?,
            &[
                ("/severity", json!("low")),
                ("/file/path", json!("/volume/x")),
                ("/file/verdict", json!("volume")),
            ],
        )
        .with_context(|| mount.to_owned())?;
    }
    Ok(())
}

#[test]
fn a_bind_mount_inside_hides_nothing() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = shared()?;
    let reference = "example.invalid/bind-inside:1";
    tools(&world, reference)?;
    // `/opt/tool` is then a path of the image by name, and another file of the same filesystem.
    let line = "mkdir /tmp/o; cp /bin/probe /tmp/o/tool; echo salt >> /tmp/o/tool;
                mount -o bind /tmp/o /opt && /opt/tool sleep-ms 0";
    let run = Run::new(reference, world.unique("bind"))
        .flags(["--privileged"])
        .shell(line);
    let alerts = world.raised_by_run(&run)?;
    has(
        only(&alerts, "exec_added")?,
        &[("/file/path", json!("/opt/tool"))],
    )
}

#[test]
fn a_process_put_in_from_outside_is_told_as_such() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = shared()?;
    let id = world.unique("outside");
    let sleeper = Run::new(BASE, &id).arguments(["/bin/sleep", "600"]);
    world.containerd.start_container(&sleeper)?;
    world.containerd.exec(&id, "clean", ["/bin/true"])?;
    let copy = [PROBE_PATH, "run-copy", "/tmp/x", "salt", "sleep-ms", "0"];
    world.containerd.exec(&id, "added", copy)?;
    world.settle()?;
    let alerts = world.alerts.of(&id);
    world.containerd.delete(&id)?;
    has(
        only(&alerts, "exec_added")?,
        &[
            ("/process/origin", json!("exec")),
            ("/image/manifest_digest", json!(world.base.manifest_digest)),
        ],
    )
}

#[test]
fn a_container_of_20_ms_is_attributed() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = shared()?;
    let config = Config {
        entrypoint: [PROBE_PATH, "run-copy", "/tmp/x", "short", "sleep-ms", "20"]
            .map(str::to_owned)
            .to_vec(),
        ..Config::default()
    };
    let reference = "example.invalid/short:1";
    let image = Image::build(reference, &[image::base_layer()?], &config)?;
    world.containerd.import(&image)?;
    let run = Run::new(reference, world.unique("short"));
    let alerts = world.raised_by_run(&run)?;
    has(
        only(&alerts, "exec_added")?,
        &[
            ("/image/chain_id", json!(image.chain_id)),
            ("/image/manifest_digest", json!(image.manifest_digest)),
            (
                "/file/seen_sha256",
                json!(sha256(&[PROBE, b"short"].concat())),
            ),
        ],
    )
}

#[test]
fn the_runtimes_own_steps_raise_nothing() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = shared()?;
    let mut ids = Vec::new();
    for _ in 0..20 {
        let id = world.unique("start");
        world
            .containerd
            .run_ok(&Run::new(BASE, &id).arguments(["/bin/true"]))?;
        ids.push(id);
    }
    world.settle()?;
    let raised: Vec<String> = world
        .alerts
        .all()
        .iter()
        .filter(|alert| {
            let id = text(alert, "/container/id");
            id.is_none_or(|id| ids.iter().any(|own| own == id))
        })
        .map(summary)
        .collect();
    ensure!(raised.is_empty(), "{raised:?}");
    Ok(())
}

#[test]
fn an_alert_comes_while_the_file_still_runs() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = shared()?;
    let id = world.unique("runs");
    let copy = [
        PROBE_PATH, "run-copy", "/tmp/x", "salt", "sleep-ms", "600000",
    ];
    world
        .containerd
        .start_container(&Run::new(BASE, &id).arguments(copy))?;
    let alert = world.alerts.wait_for("of it", |alert| {
        text(alert, "/container/id") == Some(id.as_str())
    })?;
    let pid = world.containerd.task_pid(&id)?;
    let known = world
        .daemon
        .monitorctl(["container", "show", id.as_str()])?;
    world.containerd.delete(&id)?;
    has(
        &alert,
        &[("/kind", json!("exec_added")), ("/process/pid", json!(pid))],
    )?;
    let known = known
        .first()
        .context("monitorctl container show said nothing")?
        .to_string();
    ensure!(known.contains(&world.base.manifest_digest), "{known}");
    // What is gone is forgotten.
    until("the container to go from the list", PATIENCE, || {
        let list = world.daemon.monitorctl(["container", "list"])?;
        ensure!(
            !list
                .iter()
                .any(|line| line.to_string().contains(&format!("\"{id}\"")))
        );
        Ok(())
    })
}
