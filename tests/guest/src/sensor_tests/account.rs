//! What the sensor must say of itself.
use anyhow::{Result, ensure};
use monitor::sensor::{account::Account, hooks::KINDS};
use monitor_common::{CgroupFacts, CgroupState, Hook, HookCounters};

use super::{BUSYBOX, exec_of, execs, namespace, run_in};
use crate::{container::Container, inside::Entry, observer::Observer, prototypes};

pub fn hooks_have_the_prototypes_they_name(_observer: &Observer) -> Result<()> {
    prototypes::check_all()
}

pub fn a_host_cgroup_is_watched_in_another_namespace_only(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let run = |entry, mark| run_in(&container, entry, &["run", BUSYBOX, "true", mark]);
    let unwatched = || {
        let account = observer.sensor().account();
        account.hook(Hook::Exec).counters.unwatched
    };

    // Tests that themselves run in a container are in another namespace than the host's.
    let own = namespace("/proc/self/ns/mnt")?;
    let is_host = own == u64::from(observer.sensor().host_mount_namespace());
    let host = container.cgroup_id();
    let facts = CgroupFacts {
        state: CgroupState::Host as u32,
        root_device: 0,
    };
    observer.sensor().set_cgroup(host, facts)?;
    let before = unwatched();
    equal!(exec_of(&run(Entry::Host, "one")?, "one").is_err(), is_host);
    ensure!(unwatched() > before || !is_host, "the exec is not counted");
    exec_of(&run(Entry::Direct, "two")?, "two")?;

    observer.sensor().forget_cgroup(host)?;
    exec_of(&run(Entry::Host, "three")?, "three")?;
    Ok(())
}

pub fn every_run_of_the_hook_is_accounted_for(observer: &Observer) -> Result<()> {
    const RUNS: u64 = 50;
    let container = Container::new(observer)?;
    let before = observer.sensor().account();
    let line = format!("i=0; while [ $i -lt {RUNS} ]; do i=$((i+1)); /bin/busybox true run; done");
    let events = container.shell(&line)?;
    let seen = execs(&events)
        .filter(|exec| exec.arguments.last().is_some_and(|last| last == b"run"))
        .count();
    equal!(u64::try_from(seen)?, RUNS);

    let account = observer.account_when(|account| {
        let balances = |hook: &HookCounters| {
            let became = [
                hook.unwatched,
                hook.remembered,
                hook.submitted,
                hook.ring_full,
                hook.map_full,
                hook.unreadable,
            ];
            hook.seen == became.into_iter().sum::<u64>()
        };
        let hooks = account.hooks.map(|hook| hook.counters);
        let submitted: u64 = hooks.iter().map(|hook| hook.submitted).sum();
        hooks.iter().all(balances) && submitted == account.received
    })?;
    for kind in [Hook::Exec, Hook::Fork, Hook::Exit] {
        let submitted = |account: &Account| account.hook(kind).counters.submitted;
        let grown = submitted(&account) - submitted(&before);
        ensure!(
            grown >= RUNS,
            "only {grown} more of {kind:?} are accounted for"
        );
    }
    for kind in KINDS {
        let hook = account.hook(kind);
        let lost = [
            hook.counters.ring_full,
            hook.counters.map_full,
            hook.counters.unreadable,
            hook.recursion_misses,
        ];
        ensure!(lost == [0; 4], "{kind:?} lost {lost:?}: {hook:?}");
    }
    equal!(account.undecodable, 0);
    Ok(())
}

pub fn the_verifier_is_far_from_its_limit(observer: &Observer) -> Result<()> {
    // Of a million that the kernel allows: a compiler that does worse is seen before it is refused.
    const INSTRUCTIONS_MAX: u32 = 500_000;
    let programs = observer.sensor().verified_instructions();
    ensure!(!programs.is_empty(), "no program is loaded");
    for (name, instructions) in programs {
        ensure!(
            instructions > 0 && instructions <= INSTRUCTIONS_MAX,
            "the verifier looked at {instructions} instructions of {name}"
        );
    }
    Ok(())
}
