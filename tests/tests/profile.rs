//! Behaviour profiles: learned from real software, frozen, inherited, and closed to attackers.

use std::{env, fs::File, io::Write as _, process::Command, thread, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde_json::Value;
use tests::{
    alerts::{Arrival, summary, text},
    containerd::Run,
    image::{self, Config, Image, PROBE, PROBE_PATH},
    layer::{Attributes, Layer},
    poll::{PATIENCE, until},
    process::{finish, output},
    programs::{self, NGINX, POSTGRES, PYTHON, Program, REDIS, SECRET},
    require,
    world::World,
};

/// Freezes nothing by itself.
const BY_HAND: &str = "[profile]\nquiet_seconds = 0\n";
/// How long a program is put under load, in seconds; more where somebody wants to know.
const LOAD_SECONDS: &str = "MONITOR_LOAD_SECONDS";
const LOAD_SECONDS_DEFAULT: u64 = 3;
/// The longest that an alert of something unexpected may take beside the load of the other programs.
/// The goal is 50 ms, which `cargo xtask bench latency` measures; here it tells an alert that came by
/// itself from one that came with the next look at something, every second.
const DELAY_MS_MAX: f64 = 500.0;

fn load_seconds() -> Result<u64> {
    match env::var(LOAD_SECONDS) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{LOAD_SECONDS}={text}")),
        Err(_) => Ok(LOAD_SECONDS_DEFAULT),
    }
}

/// What puts a program under load from outside of its container.
fn load(program: &Program, seconds: u64) -> Result<String> {
    Ok(match program.name {
        "nginx" => format!("wrk -t1 -c8 -d{seconds} http://127.0.0.1:8080/file"),
        "python" => format!("wrk -t1 -c4 -d{seconds} http://127.0.0.1:8000/"),
        "redis" => format!(
            "export REDISCLI_AUTH={SECRET}; end=$(($(date +%s) + {seconds})); while [ $(date +%s) -lt $end ]; do redis-benchmark -q -n 2000 -c 8 -t set,get,incr,lpush,zadd,mset; redis-cli bgsave; done"
        ),
        "postgres" => format!(
            "export PGHOST=127.0.0.1 PGUSER=postgres PGPASSWORD={SECRET} PATH=$PATH:/usr/lib/postgresql/15/bin; pgbench -i -q -s 1 app && pgbench -n -c 4 -T {seconds} app && psql -d app -c 'vacuum analyze' -c 'checkpoint' -c 'select pg_switch_wal()' -c 'checkpoint'"
        ),
        other => bail!("no load for {other}"),
    })
}

/// An image of a program's packages alone, whose containers put the program's under load.
fn import_loader(world: &World, program: &Program) -> Result<String> {
    let packages = match program.name {
        "nginx" | "python" => "wrk",
        name => name,
    };
    let reference = format!("example.invalid/load-{}:1", program.name);
    let layers = [image::debian_layer("base")?, image::debian_layer(packages)?];
    let config = Config {
        env: vec!["PATH=/usr/local/bin:/usr/bin:/bin".to_owned()],
        ..Config::default()
    };
    world
        .containerd
        .import(&Image::build(&reference, &layers, &config)?)?;
    Ok(reference)
}

/// Loads the program in `container` for a while, by a container that shares its network; its health
/// is asked meanwhile, as an orchestrator does.
fn put_under_load(world: &World, program: &Program, container: &str, seconds: u64) -> Result<()> {
    let containerd = &world.containerd;
    let network = format!("network:/proc/{}/ns/net", containerd.task_pid(container)?);
    let loader = format!("example.invalid/load-{}:1", program.name);
    let run = Run::new(loader, world.unique("load"))
        .flags(["--with-ns", &network])
        .shell(&load(program, seconds)?);
    thread::scope(|scope| {
        let loading = scope.spawn(|| containerd.run_ok(&run));
        while !loading.is_finished() {
            programs::wait_healthy(containerd, container, || world.unique("probe"))?;
            thread::sleep(Duration::from_millis(500));
        }
        let said = loading.join().map_err(|_| anyhow!("the load panicked"))??;
        println!("{}: {}", program.name, said.lines().last().unwrap_or("-"));
        Ok(())
    })
}

fn start(world: &World, program: &Program, reference: &str) -> Result<String> {
    let id = world.unique(program.name);
    program.start(&world.containerd, reference, &id)?;
    programs::wait_healthy(&world.containerd, &id, || world.unique("probe"))?;
    Ok(id)
}

/// Alerts of a container that were told after `cursor`.
fn told_after(world: &World, container: &str, cursor: u64) -> Vec<Arrival> {
    let is_of = |it: &Arrival| text(&it.alert, "/container/id") == Some(container);
    let mut arrivals = world.alerts.arrivals();
    arrivals.retain(|it| is_of(it) && it.cursor > Some(cursor));
    arrivals
}

fn shown(arrivals: &[Arrival]) -> String {
    let lines = arrivals.iter().map(|it| {
        let details = it.alert.pointer("/details/reason");
        let details = details.and_then(Value::as_str).unwrap_or("");
        let by = text(&it.alert, "/process/executable").unwrap_or("-");
        format!("  {} by {by}: {details}", summary(&it.alert))
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// What the daemon says it may have missed.
fn gaps(world: &World) -> String {
    let mut arrivals = world.alerts.arrivals();
    arrivals.retain(|it| text(&it.alert, "/kind") == Some("coverage_gap"));
    let lines = arrivals.iter().map(|it| {
        let said = text(&it.alert, "/message").unwrap_or("-");
        let hooks = it.alert.pointer("/details/hooks").unwrap_or(&Value::Null);
        format!("  until cursor {:?}: {said}: {hooks}", it.cursor)
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Does something in a container and expects one alert of it that is wanted, soon.
fn expect_one(
    world: &World,
    container: &str,
    what: &str,
    act: impl FnOnce() -> Result<()>,
    is_wanted: impl Fn(&Value) -> bool,
) -> Result<()> {
    let before = world.daemon.newest_cursor()?;
    act().with_context(|| what.to_owned())?;
    world.settle()?;
    let told = told_after(world, container, before);
    let wanted: Vec<&Arrival> = told.iter().filter(|it| is_wanted(&it.alert)).collect();
    let [one] = wanted.as_slice() else {
        bail!(
            "{what}: {} alerts instead of one after cursor {before}, of\n{}\nwith gaps\n{}",
            wanted.len(),
            shown(&told),
            gaps(world)
        );
    };
    let delay = one.delay_ms()?;
    println!(
        "{container}: {what}: {} after {delay:.1} ms",
        summary(&one.alert)
    );
    ensure!(delay < DELAY_MS_MAX, "{what}: told after {delay:.1} ms");
    Ok(())
}

fn is_kind(kind: &'static str) -> impl Fn(&Value) -> bool {
    move |alert| text(alert, "/kind") == Some(kind)
}

/// Learns a program, freezes its profile, and has it do the same again; gives its container.
fn learn(world: &World, program: &Program) -> Result<String> {
    let seconds = load_seconds()?;
    let containerd = &world.containerd;
    let reference = program.import(containerd)?;
    import_loader(world, program)?;
    let first = start(world, program, &reference)?;
    // As often as it takes for a probe to be known as one.
    for _ in 0..3 {
        programs::wait_healthy(containerd, &first, || world.unique("probe"))?;
    }
    put_under_load(world, program, &first, LOAD_SECONDS_DEFAULT)?;
    // What starting and stopping takes is learned as well, once more than once.
    let second = start(world, program, &reference)?;
    programs::stop(containerd, &second)?;
    containerd.delete(&second)?;
    world.settle()?;
    let frozen = world.daemon.monitorctl(["profile", "freeze", &reference])?;
    let frozen = frozen.first().context("no profile")?;
    ensure!(text(frozen, "/state") == Some("frozen"), "{frozen}");
    // Partial is what may lack something, which was told.
    let has_gaps = world.alerts.all().iter().any(is_kind("coverage_gap"));
    let is_complete = frozen.pointer("/complete") == Some(&Value::Bool(true));
    ensure!(is_complete || has_gaps, "{frozen}");
    println!("{}: {frozen}", program.name);

    let cursor = world.daemon.newest_cursor()?;
    put_under_load(world, program, &first, seconds)?;
    world.settle()?;
    let told = told_after(world, &first, cursor);
    ensure!(
        told.is_empty(),
        "{}: the same load raised\n{}",
        program.name,
        shown(&told)
    );
    let third = start(world, program, &reference)?;
    programs::stop(containerd, &third)?;
    world.settle()?;
    let unexpected =
        |it: &Arrival| text(&it.alert, "/kind").is_some_and(|kind| kind.ends_with("_unexpected"));
    let mut told = told_after(world, &third, cursor);
    told.retain(unexpected);
    ensure!(
        told.is_empty(),
        "{}: another container raised\n{}",
        program.name,
        shown(&told)
    );
    containerd.delete(&third)?;
    Ok(first)
}

/// A person, or whoever got in, does what the program never does.
fn attack(world: &World, program: &Program, id: &str) -> Result<()> {
    if program.name == "python" {
        return attack_within(world, id);
    }
    let put_in = |words: &[&str]| {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        move || {
            // Whatever comes of it.
            let _ = world.containerd.exec(id, &world.unique("attack"), &words);
            Ok(())
        }
    };
    let unexpected = is_kind("exec_unexpected");
    expect_one(
        world,
        id,
        "a shell",
        put_in(&["/bin/sh", "-c", ":"]),
        &unexpected,
    )?;
    expect_one(
        world,
        id,
        "wget",
        put_in(&["/usr/bin/wget", "--version"]),
        &unexpected,
    )?;
    let shadow = |alert: &Value| text(alert, "/file/path") == Some("/etc/shadow");
    expect_one(
        world,
        id,
        "shadow",
        put_in(&["/bin/cat", "/etc/shadow"]),
        shadow,
    )?;
    let elsewhere = put_in(&["/bin/bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9"]);
    expect_one(
        world,
        id,
        "a peer",
        elsewhere,
        is_kind("connect_unexpected"),
    )?;
    Ok(())
}

/// The same by the application itself, which has holes.
fn attack_within(world: &World, id: &str) -> Result<()> {
    let pid = world.containerd.task_pid(id)?.to_string();
    let ask = |path: &str| {
        let (pid, url) = (pid.clone(), format!("http://127.0.0.1:8000/{path}"));
        move || {
            let mut command = Command::new("nsenter");
            let asked = command.args([
                "--target",
                &pid,
                "--net",
                "curl",
                "-sS",
                "-o",
                "/dev/null",
                &url,
            ]);
            output(asked).map(drop)
        }
    };
    let any = |_: &Value| true;
    expect_one(
        world,
        id,
        "a shell by the application",
        ask("run/sh%20-c%20:"),
        any,
    )?;
    expect_one(
        world,
        id,
        "wget by the application",
        ask("run/wget%20--version"),
        any,
    )?;
    expect_one(
        world,
        id,
        "shadow by the application",
        ask("read/etc/shadow"),
        any,
    )?;
    expect_one(
        world,
        id,
        "a file by the application",
        ask("read/etc/fstab"),
        is_kind("open_unexpected"),
    )?;
    expect_one(
        world,
        id,
        "a peer by the application",
        ask("connect/9"),
        is_kind("connect_unexpected"),
    )
}

/// One test for all, which load the machine side by side; the attacks come when that is over.
#[test]
fn what_real_software_does_is_learned_and_what_it_never_did_is_told() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf, DebianLayers);
    let world = World::start_configured(BY_HAND, |_| Ok(()))?;
    let programs = [&NGINX, &REDIS, &POSTGRES, &PYTHON];
    let learned = thread::scope(|scope| {
        let learning = programs.map(|program| scope.spawn(|| learn(&world, program)));
        learning.map(|one| {
            let learned = one.join().map_err(|_| anyhow!("learning panicked"));
            learned.and_then(|learned| learned)
        })
    });
    let mut failed = Vec::new();
    for (program, container) in programs.into_iter().zip(learned) {
        let attacked = container.and_then(|container| {
            attack(&world, program, &container)?;
            world.containerd.delete(&container)
        });
        failed.extend(
            attacked
                .err()
                .map(|error| format!("{}: {error:#}", program.name)),
        );
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// An image whose entrypoint runs all programs of a directory and reads all libraries of another.
fn build_upgradable(reference: &str, more: Option<Layer>) -> Result<Image> {
    let run = "for p in /opt/bin/*; do $p sleep-ms 0; done; for l in /opt/lib/*; do read -r x < $l; done; while :; do sleep 1; done";
    let first = image::base_layer()?
        .program("opt/bin/one", PROBE)
        .file("opt/lib/one.so", b"one\n", Attributes::default())
        .file("opt/before", b"before\n", Attributes::default())
        .file("opt/after", b"after\n", Attributes::default());
    let layers: Vec<Layer> = [first].into_iter().chain(more).collect();
    let config = Config {
        entrypoint: ["/bin/sh", "-c", run].map(str::to_owned).to_vec(),
        ..Config::default()
    };
    Image::build(reference, &layers, &config)
}

fn lines(world: &World, words: &[&str]) -> Result<Vec<String>> {
    let said = output(world.daemon.monitorctl_command()?.args(words))?;
    Ok(said.lines().map(str::to_owned).collect())
}

/// Waits until a profile has what a container does once it idles.
fn wait_learned(world: &World, reference: &str, path: &str) -> Result<()> {
    until("the profile to have it", PATIENCE, || {
        let exported = lines(world, &["profile", "export", reference])?.join("\n");
        ensure!(exported.contains(path), "no {path} in\n{exported}");
        Ok(())
    })
}

#[test]
fn the_next_image_inherits_and_only_what_is_new_differs() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = World::start_configured(BY_HAND, |_| Ok(()))?;
    let containerd = &world.containerd;
    let (one, two) = ("example.invalid/app:1", "example.invalid/app:2");
    containerd.import(&build_upgradable(one, None)?)?;
    containerd.start_container(&Run::new(one, "first"))?;
    wait_learned(&world, one, "/opt/lib/one.so")?;
    world.daemon.monitorctl(["profile", "freeze", one])?;

    let more = Layer::new().program("opt/bin/two", PROBE).file(
        "opt/lib/two.so",
        b"two\n",
        Attributes::default(),
    );
    containerd.import(&build_upgradable(two, Some(more))?)?;
    let cursor = world.daemon.newest_cursor()?;
    containerd.start_container(&Run::new(two, "second"))?;
    wait_learned(&world, two, "/opt/lib/two.so")?;
    world.settle()?;
    let told = told_after(&world, "second", cursor);
    ensure!(told.is_empty(), "the upgrade raised\n{}", shown(&told));
    let listed = world.daemon.monitorctl(["profile", "list"])?;
    let second = listed.iter().find(|it| text(it, "/reference") == Some(two));
    ensure!(
        second.and_then(|it| text(it, "/state")) == Some("learning"),
        "{listed:?}"
    );
    let differences = lines(&world, &["profile", "diff", one, two])?;
    println!("{}", differences.join("\n"));
    ensure!(
        differences.len() == 2
            && differences.iter().any(|it| it.contains("/opt/bin/two"))
            && differences.iter().any(|it| it.contains("/opt/lib/two.so")),
        "{differences:?}"
    );
    containerd.delete("first")?;
    containerd.delete("second")
}

#[test]
fn who_was_there_during_learning_leaves_no_trace() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = World::start_configured(BY_HAND, |_| Ok(()))?;
    let containerd = &world.containerd;
    let image = "example.invalid/app:1";
    containerd.import(&build_upgradable(image, None)?)?;
    containerd.start_container(&Run::new(image, "clean"))?;
    containerd.start_container(&Run::new(image, "attacked"))?;
    wait_learned(&world, image, "/opt/lib/one.so")?;
    // As the container's own, before it is known to be attacked.
    let script = format!(
        "cat /opt/before; {PROBE_PATH} connect 127.0.0.1 4443; cp {PROBE_PATH} /tmp/tool; echo >> /tmp/tool; /tmp/tool connect 127.0.0.1 4444; cat /opt/after"
    );
    containerd.run_ok(&Run::new(image, "attacked-too").shell(&script))?;
    containerd.exec("attacked", "attack", ["/bin/sh", "-c", &script])?;
    world.settle()?;
    let drift = world.alerts.of("attacked-too");
    ensure!(drift.iter().any(is_kind("exec_added")), "{drift:?}");
    world.daemon.monitorctl(["profile", "freeze", image])?;
    let exported = lines(&world, &["profile", "export", image])?.join("\n");
    for trace in [
        "/tmp/tool",
        "/opt/before",
        "/opt/after",
        "4443",
        "4444",
        "bin/cat",
    ] {
        ensure!(!exported.contains(trace), "{trace} in\n{exported}");
    }
    ensure!(exported.contains("/opt/bin/one"), "{exported}");
    containerd.delete("clean")?;
    containerd.delete("attacked")
}

#[test]
fn profiles_are_kept_exported_and_put_in_force() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = World::start_configured(BY_HAND, |_| Ok(()))?;
    let containerd = &world.containerd;
    let image = "example.invalid/app:1";
    containerd.import(&build_upgradable(image, None)?)?;
    containerd.start_container(&Run::new(image, "first"))?;
    wait_learned(&world, image, "/opt/lib/one.so")?;
    let learning = lines(&world, &["profile", "export", image])?.join("\n");
    world.daemon.monitorctl(["profile", "freeze", image])?;
    let frozen = lines(&world, &["profile", "export", image])?.join("\n");
    ensure!(frozen.contains("state: frozen"), "{frozen}");

    // Merged with itself it is itself.
    let file = containerd.directory().join("frozen.yaml");
    File::create(&file)?.write_all(frozen.as_bytes())?;
    let file = file.display().to_string();
    let merged = lines(&world, &["profile", "merge", &file, &file])?.join("\n");
    ensure!(merged == frozen, "{merged}\n---\n{frozen}");
    ensure!(lines(&world, &["profile", "diff", &file, image])?.is_empty());

    // Without one of its files it is refused with its place, or tells of that file.
    let broken = containerd.directory().join("broken.yaml");
    File::create(&broken)?.write_all(frozen.replace("state:", "stat:").as_bytes())?;
    let mut import = world.daemon.monitorctl_command()?;
    let refused = finish(import.args(["profile", "import"]).arg(&broken))?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        refused.status.code() == Some(1) && said.contains("line") && said.contains("stat"),
        "{said}"
    );
    let less: Vec<&str> = frozen
        .lines()
        .filter(|it| !it.contains("/opt/bin/one"))
        .collect();
    ensure!(less.len() < frozen.lines().count());

    let listed = world.daemon.monitorctl(["profile", "list"])?;
    ensure!(
        listed
            .iter()
            .any(|it| text(it, "/source") == Some("learned")),
        "{listed:?}"
    );
    let imported = world.daemon.monitorctl(["profile", "import", &file])?;
    let imported = imported.first().context("nothing")?;
    ensure!(text(imported, "/source") == Some("imported"), "{imported}");
    let audit = lines(&world, &["audit", "list"])?.join("\n");
    ensure!(
        audit.contains("FreezeProfile") && audit.contains("ImportProfile"),
        "{audit}"
    );
    ensure!(learning.contains("state: learning"), "{learning}");

    let cursor = world.daemon.newest_cursor()?;
    containerd.exec("first", "person", ["/bin/ls", "/"])?;
    world.settle()?;
    let told = told_after(&world, "first", cursor);
    ensure!(
        told.iter().any(|it| is_kind("exec_unexpected")(&it.alert)),
        "{}",
        shown(&told)
    );
    world.daemon.monitorctl(["profile", "learn", image])?;
    let cursor = world.daemon.newest_cursor()?;
    containerd.exec("first", "again", ["/bin/ls", "/"])?;
    world.settle()?;
    ensure!(told_after(&world, "first", cursor).is_empty());
    containerd.delete("first")
}

/// Opens so many files and sends to so many addresses, each under a name or an address of its own.
const EVERYTHING: &str = "
import os, socket, sys
files, peers, word = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
def name(number):
    letters = ''
    while number:
        number, digit = divmod(number, 26)
        letters += chr(97 + digit)
    return word + letters
for number in range(files):
    folder = '/tmp/' + name(number % 997)
    os.makedirs(folder, exist_ok=True)
    path = folder + '/' + name(number)
    open(path, 'w').close()
    os.unlink(path)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(peers):
    address = number * 2654435761 % (1 << 24)
    udp.sendto(b'x', ('127.%d.%d.%d' % (address >> 16, address >> 8 & 255, address & 255 or 1), 9))
";
/// What a process may make the daemon grow by.
const GROWTH_BYTES_MAX: u64 = 8 << 20;

#[test]
fn who_opens_and_reaches_for_everything_makes_nothing_grow() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf, DebianLayers);
    let world = World::start_configured(BY_HAND, |_| Ok(()))?;
    let containerd = &world.containerd;
    let reference = PYTHON.import(containerd)?;
    let (files, peers) = match env::var_os(LOAD_SECONDS) {
        Some(_) => ("1000000", "100000"),
        None => ("20000", "10000"),
    };
    let flood = |id: &str, files: &str, peers: &str, word: &str| {
        // In place of its entrypoint, as its own.
        let arguments = ["python3", "-c", EVERYTHING, files, peers, word];
        containerd.run_ok(&Run::new(&reference, id).arguments(arguments))?;
        world.daemon.wait_nothing_waiting()?;
        let status = world.daemon.status()?;
        let resident = status.pointer("/memory_resident_bytes");
        resident.and_then(Value::as_u64).context("no memory")
    };
    // What queues and buffers grow to under such a load.
    let before = flood("first", "20000", "10000", "a")?;
    let after = flood("second", files, peers, "b")?;
    let listed = world.daemon.monitorctl(["profile", "list"])?;
    println!("{files} files, {peers} peers: {before} bytes before, {after} after: {listed:?}");
    ensure!(after < before + GROWTH_BYTES_MAX, "{before} {after}");
    let exported = lines(&world, &["profile", "export", &reference])?.join("\n");
    ensure!(
        exported.len() < 1 << 20,
        "a profile of {} bytes",
        exported.len()
    );
    Ok(())
}
