//! What was not seen is said: losses become gaps, and coverage can be asked for.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{
    alerts::text,
    cgroup::v2_hierarchy,
    containerd::{Containerd, Run},
    daemon::{Daemon, check_balance},
    image::PROBE_PATH,
    poll::{PATIENCE, until},
    require,
    world::{Alone, BASE, World},
};

/// Several times what the ring holds of records of mappings.
const MAPPINGS: &str = "100000";

fn number(value: &Value, pointer: &str) -> Result<u64> {
    let found = value.pointer(pointer);
    found
        .and_then(Value::as_u64)
        .with_context(|| format!("no number {pointer} in {value}"))
}

fn hooks(status: &Value) -> Result<&Vec<Value>> {
    let hooks = status.pointer("/hooks").and_then(Value::as_array);
    hooks.context("no hooks")
}

/// The equations of the account, of a moment at which nothing is on its way.
fn check_account(status: &Value) -> Result<()> {
    let mut submitted = 0;
    for hook in hooks(status)? {
        check_balance(hook)?;
        submitted += number(hook, "/submitted")?;
    }
    let events = status.pointer("/events").context("no events")?;
    let received = number(events, "/received")?;
    ensure!(received == submitted, "{submitted} submitted: {events:#}");
    let judged = [
        "/judged",
        "/waiting",
        "/expired_unknown",
        "/before_coverage",
        "/failed",
    ];
    let judged = judged.iter().map(|name| number(events, name));
    let judged = judged.sum::<Result<u64>>()?;
    ensure!(
        received + number(events, "/running")? == judged,
        "{events:#}"
    );
    Ok(())
}

/// What the kernel side lost, by the status.
fn lost(status: &Value) -> Result<u64> {
    let causes = [
        "/ring_full",
        "/map_full",
        "/unreadable",
        "/recursion_misses",
    ];
    let all = hooks(status)?
        .iter()
        .flat_map(|hook| causes.map(|name| number(hook, name)));
    all.sum()
}

/// What gaps say was lost in the kernel.
fn told<'a>(gaps: impl IntoIterator<Item = &'a Value>) -> u64 {
    let causes = ["ring_full", "map_full", "unreadable", "recursion_misses"];
    let of = |gap: &Value| {
        let counts = causes.map(|cause| {
            let count = gap.pointer(&format!("/details/causes/{cause}"));
            count.and_then(Value::as_u64).unwrap_or(0)
        });
        counts.iter().sum::<u64>()
    };
    gaps.into_iter().map(of).sum()
}

fn is_gap(alert: &Value) -> bool {
    text(alert, "/kind") == Some("coverage_gap")
}

#[test]
fn a_flood_that_overruns_the_ring_is_told_with_its_container() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = World::start()?;
    let id = world.unique("flood");
    let line = format!("echo code > /tmp/code; {PROBE_PATH} map-often /tmp/code {MAPPINGS}");
    world.daemon.pause()?;
    let flood = world.containerd.run_ok(&Run::new(BASE, &id).shell(&line));
    world.daemon.go_on()?;
    flood?;
    world.settle()?;

    let gaps = until("a gap for all that was lost", PATIENCE, || {
        let status = world.daemon.status()?;
        check_account(&status)?;
        let mut gaps = world.alerts.all();
        gaps.retain(is_gap);
        let (lost, told) = (lost(&status)?, told(&gaps));
        ensure!(lost == told, "{lost} lost, {told} told by {gaps:#?}");
        Ok(gaps)
    })?;
    let own: Vec<&Value> = gaps
        .iter()
        .filter(|gap| text(gap, "/container/id") == Some(&id))
        .collect();
    let gap = own
        .first()
        .with_context(|| format!("no gap of {id}: {gaps:#?}"))?;
    ensure!(text(gap, "/severity") == Some("medium"), "{gap:#}");
    ensure!(text(gap, "/rule/id") == Some("coverage.gap"), "{gap:#}");
    let named = gap.pointer("/details/containers/0").and_then(Value::as_str);
    ensure!(named == Some(&id), "{gap:#}");
    let code_of = |is_it: &dyn Fn(Option<&str>) -> bool| -> u64 {
        gaps.iter()
            .filter(|gap| is_it(text(gap, "/container/id")))
            .filter_map(|gap| gap.pointer("/details/hooks/code")?.as_u64())
            .sum()
    };
    let code = code_of(&|of| of == Some(&id));
    // What the ring holds of 8 MiB was seen.
    ensure!(code > 10_000 && code < 100_000, "{code} lost: {own:#?}");

    let covered = world.daemon.monitorctl(["container", "coverage", &id])?;
    let of_gaps: u64 = covered
        .iter()
        .filter(|span| text(span, "/reason") == Some("lost"))
        .filter_map(|span| span.pointer("/hooks/code")?.as_u64())
        .sum();
    // And what may be anybody's.
    let expect = code + code_of(&|of| of.is_none());
    ensure!(of_gaps == expect, "not {expect}: {covered:#?}");
    Ok(())
}

#[test]
fn coverage_begins_with_the_daemon_and_other_containers_are_not_affected() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let id = "before";
    let world = World::start_after(|containerd| {
        let sleep = [PROBE_PATH, "sleep-ms", "600000"];
        containerd.start_container(&Run::new(BASE, id).arguments(sleep))
    })?;
    let states = |covered: &[Value]| {
        let state = |span: &Value| {
            text(span, "/reason")
                .or(text(span, "/state"))
                .map(str::to_owned)
        };
        covered.iter().filter_map(state).collect::<Vec<_>>()
    };
    let covered = world.daemon.monitorctl(["container", "coverage", id])?;
    ensure!(
        states(&covered) == ["not_watching", "watched"],
        "{covered:#?}"
    );
    let begin = text(covered.last().context("a span")?, "/begin").context("a begin")?;
    let of = ["container", "coverage", id, "--from", begin];
    let covered = world.daemon.monitorctl(of)?;
    ensure!(states(&covered) == ["watched"], "{covered:#?}");

    world.containerd.kill()?;
    until("the lost containerd to be a gap", PATIENCE, || {
        let covered = world.daemon.monitorctl(["container", "coverage", id])?;
        let expect = ["not_watching", "watched", "containerd_lost"];
        ensure!(
            states(&covered).starts_with(&expect.map(str::to_owned)),
            "{covered:#?}"
        );
        Ok(())
    })?;
    let unknown = world.daemon.monitorctl(["container", "coverage", "nobody"]);
    ensure!(unknown.is_err(), "{unknown:?}");
    Ok(())
}

#[test]
fn the_daemon_sees_what_it_executes_itself() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let _alone = Alone::wait()?;
    let containerd = Containerd::start()?;
    let daemon = Daemon::start(
        &containerd.address(),
        &containerd.directory().join("monitord"),
    )?;
    until("a check of itself", PATIENCE, || {
        let status = daemon.status()?;
        let check = status.pointer("/coverage/self_check").context("no check")?;
        ensure!(number(check, "/succeeded")? == 1, "{check}");
        ensure!(number(check, "/missed")? == 0, "{check}");
        text(check, "/last_success").map(drop).context("no time")
    })?;
    let probe = format!("monitord-self-check-{}", daemon.pid()?);
    let own = fs::read_to_string(format!("/proc/{}/cgroup", daemon.pid()?))?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
    let place = v2_hierarchy()?.join(own.context("no cgroup")?);
    ensure!(
        place.join(&probe).is_dir(),
        "no {probe} in {}",
        place.display()
    );
    let alerts = daemon.follow()?;
    ensure!(alerts.all().is_empty(), "{:#?}", alerts.all());
    ensure!(daemon.stop()?.success());
    let left = place.join(probe);
    ensure!(!left.exists(), "{} is left", left.display());
    Ok(())
}
