//! What containers map executable, against what their image holds.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{
    behaviours, require,
    world::{BASE, World, shared},
};

behaviours! {
    a_file_of_the_image_raises_nothing:
        "probe map-file /bin/probe; probe map-file /bin/busybox; probe map-file /bin/busybox" => [];
    a_file_of_the_image_with_another_mode_raises_nothing:
        "chmod 700 /bin/busybox; probe map-file /bin/busybox" => [];
    a_new_file_is_added:
        "cp /bin/probe /tmp/x; echo salt >> /tmp/x; probe map-file /tmp/x"
        => [("code_added", "/tmp/x")];
    a_new_file_that_is_no_program_is_added:
        "echo data > /tmp/x; probe map-file /tmp/x" => [("code_added", "/tmp/x")];
    an_overwritten_file_is_modified:
        "cp /bin/busybox /tmp/b; echo salt >> /tmp/b; mv /tmp/b /bin/busybox;
         probe map-file /bin/busybox" => [("code_modified", "/bin/busybox"), ("image_file_modified", "/bin/busybox")];
    a_file_in_memory_is_told: "probe map-memfd /bin/probe" => [("code_memory", "/memfd:probe")];
    memory_that_was_written_is_told:
        "probe protect-written /bin/busybox" => [("code_memory", "/bin/busybox")];
}

/// How often the kernel side answered a mapping from what it remembers.
fn remembered(world: &World) -> Result<u64> {
    let code = world.daemon.hook("code")?;
    let count = code.get("remembered").and_then(Value::as_u64);
    count.with_context(|| format!("code.remembered: {code:#}"))
}

#[test]
fn a_library_of_the_image_is_told_once_and_then_remembered() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = shared()?;
    world.check(BASE, "probe map-file /bin/busybox", &[])?;
    let before = remembered(&world)?;
    // Another container of the same image. The kernel side answers for it once it was told whose its
    // cgroup is, which takes the daemon a moment from the first exec on.
    let repeats = "i=0; while [ $i -lt 200 ]; do probe map-file /bin/busybox; i=$((i+1)); done";
    world.check(BASE, repeats, &[])?;
    let after = remembered(&world)?;
    ensure!(after >= before + 100, "{before} before, {after} after");
    Ok(())
}
