//! Files of images that containers write, replace and remove.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{
    alerts::text,
    containerd::Run,
    image::{self, Image},
    layer::{Attributes, Layer},
    require,
    world::{World, shared},
};

const IMAGE: &str = "example.invalid/modified:1";
const DATA: Attributes = Attributes {
    mode: 0o644,
    uid: 0,
    gid: 0,
    xattrs: Vec::new(),
};
/// What a file written or replaced raises, of the file alone.
const KIND: &str = "image_file_modified";

static IMPORTED: Mutex<bool> = Mutex::new(false);

/// The shared world with an image of data, a library and a program.
fn world() -> Result<Arc<World>> {
    let world = shared()?;
    let mut imported = IMPORTED.lock().unwrap_or_else(PoisonError::into_inner);
    if !*imported {
        let layer = Layer::new()
            .dir("data")
            .file("data/a", b"a\n", DATA)
            .file("data/b", b"b\n", DATA)
            .file("data/sub/c", b"c\n", DATA)
            .file("data/sub/library.so.1", b"library\n", DATA)
            .program("data/tool", image::PROBE)
            .symlink("data/link", "tool")
            .hard_link("data/second", "data/b");
        let layers = [image::base_layer()?, layer];
        let image = Image::build(IMAGE, &layers, &image::base_config())?;
        world.containerd.import(&image)?;
        world.have_read(IMAGE)?;
        *imported = true;
    }
    Ok(world)
}

fn check(line: &str, expect: &[&str]) -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let expect: Vec<_> = expect.iter().map(|path| (KIND, *path)).collect();
    world()?.check(IMAGE, line, &expect)
}

macro_rules! changes {
    ($($name:ident: $line:expr => $expect:expr;)+) => {$(
        #[test]
        fn $name() -> Result<()> {
            check($line, &$expect)
        }
    )+};
}

changes! {
    written_in_place: "echo x >> /data/a" => ["/data/a"];
    cut_by_its_name: "busybox truncate -s 0 /data/a" => ["/data/a"];
    renamed_over: "echo x > /data/new; mv /data/new /data/a" => ["/data/a"];
    a_file_of_the_image_renamed_over_another: "mv /data/b /data/a" => ["/data/a", "/data/b"];
    removed: "rm /data/a" => ["/data/a"];
    removed_and_made_anew_with_other_bytes: "rm /data/a; echo x > /data/a" => ["/data/a"];
    removed_and_made_anew_with_the_same_bytes: "rm /data/a; echo a > /data/a" => [];
    written_through_another_name_of_it: "ln /data/a /tmp/other; echo x >> /tmp/other" => ["/data/a"];
    written_through_a_shared_mapping: "probe flip /data/a" => ["/data/a"];
    one_of_two_links_of_the_image: "echo x >> /data/second" => ["/data/second"];
    mode_owner_and_times: "chmod 600 /data/a; chown 1:1 /data/b; touch /data/tool" => [];
    same_bytes: "busybox cp /data/a /tmp/a; cat /tmp/a > /data/a" => [];
    added_files: "echo x > /data/new; mkdir /data/more; echo x > /data/more/a" => [];
    a_directory_removed: "rm -r /data/sub" => ["/data/sub"];
    a_directory_made_anew: "rm -r /data/sub; mkdir /data/sub; echo c > /data/sub/c" => ["/data/sub"];
    a_directory_made_anew_with_all_that_was_in_it:
        "cp -a /data/sub /tmp/sub; rm -r /data/sub; cp -a /tmp/sub /data/sub" => [];
    a_link_that_leads_elsewhere: "busybox ln -sf /tmp/x /data/link" => ["/data/link"];
    replaced_by_a_pipe: "rm /data/a; busybox mkfifo /data/a" => ["/data/a"];
    many_times_told_once: "for n in 1 2 3 4 5 6; do echo $n >> /data/a; busybox usleep 300000; done"
        => ["/data/a"];
}

/// The alert that a line raises.
fn alert_of(line: &str) -> Result<Value> {
    let world = world()?;
    world.have_read(IMAGE)?;
    let mut raised = world.raised_by(IMAGE, line)?;
    ensure!(raised.len() == 1, "{raised:#?}");
    raised.pop().context("no alert")
}

#[test]
fn the_alert_says_what_was_done() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let check = |line: &str, expect: [(&str, &str); 5]| -> Result<()> {
        let alert = alert_of(line)?;
        for (pointer, expect) in expect {
            let said = text(&alert, pointer).unwrap_or("null");
            ensure!(said == expect, "{pointer} is {said:?}: {alert:#}");
        }
        Ok(())
    };
    let b = "0263829989b6fd954f72baaf2fc64bc2e2f01d692d4de72986ea808f6e99813f";
    check(
        "cat /data/b > /data/a",
        [
            ("/severity", "info"),
            ("/file/seen_sha256", b),
            ("/file/same_bytes_as", "/data/b"),
            ("/attack/0", "T1565.001"),
            (
                "/message",
                "/data/a was overwritten: its bytes are no longer the image's",
            ),
        ],
    )?;
    check(
        "rm /data/a",
        [
            ("/severity", "info"),
            ("/file/seen_sha256", "null"),
            ("/file/hash_state", "null"),
            ("/attack/0", "T1070.004"),
            ("/message", "/data/a was removed"),
        ],
    )?;
    check(
        "echo x > /tmp/x; mv /tmp/x /data/tool",
        [
            ("/severity", "high"),
            ("/file/verdict", "modified"),
            ("/file/hash_state", "done"),
            ("/attack/0", "T1554"),
            (
                "/message",
                "/data/tool was replaced by another file: its bytes are no longer the image's",
            ),
        ],
    )?;
    check(
        "echo x >> /data/sub/library.so.1",
        [
            ("/severity", "high"),
            ("/file/verdict", "modified"),
            ("/file/hash_state", "done"),
            ("/hook", "overlay"),
            (
                "/message",
                "/data/sub/library.so.1 was overwritten: its bytes are no longer the image's",
            ),
        ],
    )
}

#[test]
fn the_alert_names_who_opened_the_file_for_writing_last() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let check = |line: &str, expect: Option<&str>| -> Result<()> {
        let alert = alert_of(line)?;
        let last = alert.pointer("/process/arguments");
        let last = last.and_then(|arguments| arguments.as_array()?.last()?.as_str());
        ensure!(last == expect, "{line}: {last:?}: {alert:#}");
        Ok(())
    };
    check("/bin/busybox dd if=/data/b of=/data/a", Some("of=/data/a"))?;
    // What the shell itself opened; and of two the one that came last.
    check("echo x >> /data/a", Some("echo x >> /data/a"))?;
    let twice = "/bin/busybox dd if=/data/b of=/data/a; /bin/busybox tee -a /data/a < /data/b";
    check(twice, Some("/data/a"))?;
    // Nobody opened it.
    check("rm /data/a", None)
}

/// Nothing tells of what a process writes before it closes the file.
#[test]
fn a_file_that_stays_open_is_looked_at_again() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = world()?;
    let id = world.unique("stays-open");
    let line = "exec 9>> /data/a; sleep 3; echo x >&9; sleep 3600";
    let run = Run::new(IMAGE, &id).shell(line);
    world.containerd.start_container(&run)?;
    let alert = world.alerts.wait_for("of the open file", |alert| {
        text(alert, "/container/id") == Some(id.as_str())
    });
    world.containerd.delete(&id)?;
    let alert = alert?;
    ensure!(text(&alert, "/kind") == Some(KIND), "{alert:#}");
    ensure!(text(&alert, "/file/path") == Some("/data/a"), "{alert:#}");
    Ok(())
}
