//! What weighing an event by a profile takes, and how large a profile becomes whatever a process does.

use std::{
    hint,
    net::{IpAddr, Ipv4Addr},
    time::Instant,
};

use anyhow::{Result, ensure};
use jiff::Timestamp;
use monitor::{
    digest::{Digest, Sha256},
    profile::{Act, Profile, Seed, Subject, Weighed, What},
    sensor::event::{Access, Protocol},
};

use super::figures::median;

/// Patterns of the profile that is weighed by.
const PATTERNS: usize = 2_000;
/// Of these, programs; the others are files.
const PROGRAMS: usize = 400;
const TURNS: usize = 5;
const EVENTS: usize = 1_000_000;
/// How long weighing one may take.
const NANOSECONDS_MAX: f64 = 1_000.0;
/// What a process does to make a profile grow, and how large that may become.
const PATHS: u32 = 1_000_000;
const PEERS: u32 = 100_000;
const BYTES_MAX: usize = 1 << 20;

const CONTAINER: u64 = 1;
const ACCESS: Access = Access {
    read: true,
    write: false,
};

pub(super) fn run() -> Result<()> {
    let files: Vec<String> = (0..PATTERNS - PROGRAMS).map(file).collect();
    let programs: Vec<String> = (0..PROGRAMS)
        .map(|it| format!("/usr/bin/{}", word(it)))
        .collect();
    let arguments: Vec<Vec<u8>> = ["x", "--port", "80", "-v"].map(|it| it.into()).into();
    let opens = files.iter().map(|path| What::Open {
        path: path.as_bytes(),
        access: ACCESS,
    });
    let execs = programs.iter().map(|path| What::Exec {
        path: path.as_bytes(),
        sha256: None,
        parent: Some(b"/bin/sh"),
        arguments: &arguments,
        is_learnable: true,
    });
    let acts: Vec<Act<'_>> = opens
        .chain(execs)
        .map(|what| Act {
            command: None,
            what,
        })
        .collect();
    let mut profile = learning()?;
    for act in &acts {
        profile.weigh(CONTAINER, act, Timestamp::UNIX_EPOCH);
    }
    let document = profile.document();
    let patterns = document.main.files.len() + document.main.executables.len();
    ensure!(patterns == PATTERNS, "{patterns} patterns were learned");
    let learning = weighing(&mut profile, &acts)?;
    profile.freeze("bench", Timestamp::UNIX_EPOCH);
    let frozen = weighing(&mut profile, &acts)?;
    println!(
        "profile of {PATTERNS} patterns, {} KiB: {learning:.0} ns per event while it learns, {frozen:.0} ns when it is frozen",
        profile.bytes() >> 10
    );
    ensure!(
        learning.max(frozen) < NANOSECONDS_MAX,
        "weighing takes too long"
    );
    growing()
}

/// Nanoseconds to weigh one expected event.
fn weighing(profile: &mut Profile, acts: &[Act<'_>]) -> Result<f64> {
    let mut turns = Vec::new();
    for _ in 0..TURNS {
        let start = Instant::now();
        for act in acts.iter().cycle().take(EVENTS) {
            let weighed = profile.weigh(CONTAINER, hint::black_box(act), Timestamp::UNIX_EPOCH);
            ensure!(weighed == Weighed::Expected, "{act:?}: {weighed:?}");
        }
        turns.push(start.elapsed().as_secs_f64() * 1e9 / EVENTS as f64);
    }
    Ok(median(&mut turns))
}

/// How large a profile becomes.
fn growing() -> Result<()> {
    let weigh = |profile: &mut Profile, what: What<'_>| {
        let act = Act {
            command: None,
            what,
        };
        profile.weigh(CONTAINER, &act, Timestamp::UNIX_EPOCH);
    };
    type Path = fn(usize) -> String;
    let forms: [(&str, Path); 3] = [
        ("one directory", |it| format!("/srv/data/{}", word(it))),
        ("a deep tree", |it| {
            let (a, b, c) = (it % 30, it / 30 % 30, it / 900 % 30);
            format!("/srv/{}/{}/{}/{}", word(a), word(b), word(c), word(it))
        }),
        ("everywhere", |it| {
            let (a, b) = (it % 1000, it / 1000 % 30);
            format!("/{}/{}/{}", word(a), word(b), word(it))
        }),
    ];
    for (name, path) in forms {
        let mut profile = learning()?;
        for it in 0..PATHS as usize {
            let path = path(it);
            let what = What::Open {
                path: path.as_bytes(),
                access: ACCESS,
            };
            weigh(&mut profile, what);
        }
        shown(&profile, &format!("{PATHS} paths in {name}"))?;
    }
    let mut profile = learning()?;
    for it in 0..PEERS {
        // An odd factor makes each a different address.
        let address = IpAddr::V4(Ipv4Addr::from_bits(it.wrapping_mul(0x9e37_79b9)));
        let what = What::Peer {
            address,
            port: u16::try_from(it % 5_000).ok(),
            protocol: Protocol::Tcp,
        };
        weigh(&mut profile, what);
    }
    shown(&profile, &format!("{PEERS} peers"))
}

fn shown(profile: &Profile, what: &str) -> Result<()> {
    let document = profile.document();
    println!(
        "{what}: {} KiB, {} bytes as a document, {} entries of what overflowed",
        profile.bytes() >> 10,
        document.to_yaml().len(),
        document.main.overflowed.len()
    );
    ensure!(
        profile.bytes() < BYTES_MAX,
        "{what} make a profile too large"
    );
    Ok(())
}

fn learning() -> Result<Profile> {
    let digest = Digest(Sha256::of(b"bench"));
    let subject = Subject {
        reference: "example.invalid/bench:1".to_owned(),
        repository: "example.invalid/bench".to_owned(),
        manifest: digest,
        config: digest,
        chain_id: digest,
    };
    let mut profile = Profile::seeded(subject, &Seed::default(), Timestamp::UNIX_EPOCH);
    profile.started(CONTAINER, Timestamp::UNIX_EPOCH, false);
    Ok(profile)
}

/// A file of a tree in which no directory is collapsed.
fn file(it: usize) -> String {
    let top = ["usr", "opt", "srv", "lib"]
        .get(it % 4)
        .copied()
        .unwrap_or_default();
    let (a, b) = (it / 4 % 20, it / 80);
    format!("/{top}/share/{}/{}.conf", word(a), word(b))
}

/// A number in letters: no pattern is made of it.
fn word(number: usize) -> String {
    number
        .to_string()
        .bytes()
        .map(|digit| char::from(digit + 49))
        .collect()
}
