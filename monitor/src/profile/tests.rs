#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod documents;

use std::net::{IpAddr, Ipv4Addr};

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::{
    learning::{Ending, FINDINGS_TIME},
    *,
};
use crate::digest::Digest;

pub(super) fn subject(number: u8) -> Subject {
    let digest = |kind: u8| Digest(Sha256([number.wrapping_add(kind); 32]));
    Subject {
        reference: "example.invalid/web:1".to_owned(),
        repository: "example.invalid/web".to_owned(),
        manifest: digest(0),
        config: digest(1),
        chain_id: digest(2),
    }
}

pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn vector(line: &str) -> Vec<Vec<u8>> {
    line.split_whitespace()
        .map(|word| word.as_bytes().to_vec())
        .collect()
}

/// An act that owns what it is of.
#[derive(Clone, Debug)]
pub(super) enum Done {
    Exec(String, Option<String>, String),
    Open(String, Access),
    Peer(IpAddr, u16),
    Socket(String),
}

#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) container: ContainerNumber,
    pub(super) command: Option<String>,
    pub(super) done: Done,
}

const ENDING: Ending = Ending {
    quiet: std::time::Duration::from_secs(600),
    starts_min: 1,
};

const READ: Access = Access {
    read: true,
    write: false,
};
const WRITE: Access = Access {
    read: false,
    write: true,
};

fn exec(path: &str, parent: &str, line: &str) -> Done {
    Done::Exec(path.to_owned(), Some(parent.to_owned()), line.to_owned())
}

fn open(path: &str) -> Done {
    Done::Open(path.to_owned(), READ)
}

fn peer(address: &str, port: u16) -> Done {
    Done::Peer(address.parse().unwrap(), port)
}

pub(super) fn weigh(profile: &mut Profile, event: &Event, now: Timestamp) -> Weighed {
    let command = event.command.as_deref().map(vector);
    let line = match &event.done {
        Done::Exec(_, _, line) => vector(line),
        _ => Vec::new(),
    };
    let what = match &event.done {
        Done::Exec(path, parent, _) => What::Exec {
            path: path.as_bytes(),
            sha256: Some(Sha256::of(path.as_bytes())),
            parent: parent.as_ref().map(|parent| parent.as_bytes()),
            arguments: &line,
            is_learnable: !path.starts_with("/volume/"),
        },
        Done::Open(path, access) => What::Open {
            path: path.as_bytes(),
            access: *access,
        },
        Done::Peer(address, port) => What::Peer {
            address: *address,
            port: Some(*port),
            protocol: Protocol::Tcp,
        },
        Done::Socket(path) => What::Socket {
            path: path.as_bytes(),
        },
    };
    let act = Act {
        command: command.as_deref(),
        what,
    };
    profile.weigh(event.container, &act, now)
}

fn main(container: ContainerNumber, done: Done) -> Event {
    Event {
        container,
        command: None,
        done,
    }
}

fn put_in(container: ContainerNumber, command: &str, done: Done) -> Event {
    Event {
        container,
        command: Some(command.to_owned()),
        done,
    }
}

pub(super) fn empty() -> Profile {
    Profile::seeded(subject(0), &Seed::default(), at(0))
}

/// A profile that has learned a web server, and is frozen.
pub(super) fn web() -> Profile {
    let mut profile = empty();
    profile.started(1, at(0), false);
    for done in [
        exec("/usr/sbin/nginx", "/bin/sh", "nginx -g daemon"),
        open("/etc/nginx/nginx.conf"),
        Done::Open("/var/log/nginx/access.log".to_owned(), WRITE),
        open("/proc/12/stat"),
        peer("10.0.0.7", 5432),
        Done::Socket("/run/app.sock".to_owned()),
    ] {
        assert_eq!(weigh(&mut profile, &main(1, done), at(1)), Weighed::Learned);
    }
    for _ in 0..3 {
        let probe = exec("/usr/bin/curl", "/bin/sh", "curl -f http://localhost");
        weigh(
            &mut profile,
            &put_in(1, "curl -f http://localhost", probe),
            at(2),
        );
        let reads = put_in(1, "curl -f http://localhost", open("/etc/ssl/openssl.cnf"));
        weigh(&mut profile, &reads, at(2));
    }
    profile.freeze("somebody", at(3));
    profile
}

#[test]
fn a_frozen_profile_tells_what_it_does_not_have() {
    let mut profile = web();
    let mut check = |event: Event, expect: &str, nearby: &[&str]| {
        let weighed = weigh(&mut profile, &event, at(10));
        match (&weighed, expect) {
            (Weighed::Expected, "") | (Weighed::Ignored, "ignored") => {}
            (Weighed::Deviation(deviation), expect) if !expect.is_empty() => {
                assert!(deviation.message.contains(expect), "{deviation:?}");
                assert_eq!(deviation.nearby, nearby);
                assert!(!deviation.is_partial);
            }
            _ => panic!("{event:?}: {weighed:?}"),
        }
    };
    let other = "does not have it";
    check(
        main(2, exec("/usr/sbin/nginx", "/bin/sh", "nginx -g other")),
        "",
        &[],
    );
    check(
        main(2, exec("/usr/bin/wget", "/usr/sbin/nginx", "wget x")),
        other,
        &["/usr/sbin/nginx"],
    );
    check(
        main(2, exec("/usr/sbin/nginx", "/tmp/x", "nginx -g other")),
        "not executed by this one",
        &["/usr/sbin/nginx by /bin/sh", "/usr/sbin/nginx -g *"],
    );
    check(
        main(2, exec("/usr/sbin/nginx", "/bin/sh", "nginx -c /tmp/conf")),
        "not with such arguments",
        &["/usr/sbin/nginx -g *", "/usr/sbin/nginx by /bin/sh"],
    );
    check(main(2, open("/proc/99/stat")), "", &[]);
    check(
        main(2, open("/etc/shadow")),
        other,
        &["/etc/nginx/nginx.conf (read)"],
    );
    check(
        main(2, open("/var/log/nginx/access.log")),
        "opened for reading",
        &["/var/log/nginx/access.log (write)"],
    );
    check(main(2, peer("10.0.0.7", 5432)), "", &[]);
    check(
        main(2, peer("10.0.0.7", 5433)),
        other,
        &["tcp 10.0.0.7/32 port 5432"],
    );
    check(
        main(2, peer("8.8.8.8", 53)),
        other,
        &["tcp 10.0.0.7/32 port 5432"],
    );
    check(main(2, Done::Socket("/run/app.sock".to_owned())), "", &[]);
    check(
        main(2, Done::Socket("/run/containerd.sock".to_owned())),
        other,
        &["/run/app.sock (read)"],
    );
}

#[test]
fn a_probe_is_known_and_a_person_is_not() {
    let mut profile = web();
    let probe = "curl -f http://localhost";
    let mut check = |event: Event, expect: Option<&str>| {
        let weighed = weigh(&mut profile, &event, at(10));
        let seen = match &weighed {
            Weighed::Deviation(deviation) => Some(deviation.message.as_str()),
            Weighed::Expected => None,
            _ => panic!("{weighed:?}"),
        };
        assert_eq!(seen, expect, "{event:?}");
    };
    let curl = || exec("/usr/bin/curl", "/bin/sh", probe);
    check(put_in(1, probe, curl()), None);
    check(put_in(1, probe, open("/etc/ssl/openssl.cnf")), None);
    check(put_in(1, probe, open("/etc/nginx/nginx.conf")), None);
    check(
        main(1, open("/etc/ssl/openssl.cnf")),
        Some(
            "/etc/ssl/openssl.cnf was opened for reading: the profile of the image does not have it",
        ),
    );
    check(
        put_in(1, "sh", exec("/bin/dash", "", "sh")),
        Some("sh was put in from outside, which the profile of the image does not have"),
    );
    check(
        put_in(1, "sh", open("/etc/shadow")),
        Some("/etc/shadow was opened for reading by sh"),
    );
    // Also one that would be expected of the container's own processes.
    check(
        put_in(
            1,
            "nginx -g daemon",
            exec("/usr/sbin/nginx", "/bin/sh", "nginx -g daemon"),
        ),
        Some("nginx -g * was put in from outside, which the profile of the image does not have"),
    );
}

#[test]
fn what_is_put_in_seldom_is_not_learned() {
    let mut profile = empty();
    profile.started(1, at(0), false);
    for _ in 0..2 {
        let shell = put_in(1, "sh", exec("/bin/dash", "", "sh"));
        assert_ne!(weigh(&mut profile, &shell, at(1)), Weighed::Learned);
    }
    profile.freeze("somebody", at(3));
    assert!(profile.document().put_in.is_empty());
}

#[test]
fn learning_ends_when_nothing_new_came() {
    let mut profile = empty();
    let span = SignedDuration::try_from(ENDING.quiet).unwrap();
    assert_eq!(profile.state(), State::Seeded);
    assert!(
        !profile.tick(Some(&ENDING), at(0) + span + span),
        "nothing has run yet"
    );
    profile.started(1, at(10), false);
    assert_eq!(profile.state(), State::Learning);
    weigh(&mut profile, &main(1, open("/a/b")), at(20));
    weigh(&mut profile, &main(1, open("/a/b")), at(300));
    assert!(!profile.tick(Some(&ENDING), at(19) + span));
    assert!(profile.tick(Some(&ENDING), at(20) + span));
    assert!(!profile.tick(Some(&ENDING), at(21) + span));
    let document = profile.document();
    assert_eq!(document.state, State::Frozen);
    assert_eq!(document.frozen.unwrap().by, "quiet time");
    assert_eq!(document.reasons, Vec::<String>::new());
    profile.learn(at(1000));
    assert_eq!(
        weigh(&mut profile, &main(1, open("/a/c")), at(1001)),
        Weighed::Learned
    );
}

#[test]
fn a_profile_says_why_it_is_partial() {
    let reasons = |profile: &Profile| profile.document().reasons;
    let mut profile = empty();
    assert_eq!(reasons(&profile), ["no container has run yet"]);
    profile.started(1, at(0), true);
    assert_eq!(
        reasons(&profile),
        [
            "containers that started before the daemon",
            "learning goes on"
        ]
    );
    profile.events_lost(at(1));
    profile.started(2, at(2), false);
    assert_eq!(
        reasons(&profile),
        ["events lost at 2027-01-15T08:00:01Z", "learning goes on"]
    );
    for second in 0..100 {
        profile.events_lost(at(second));
    }
    assert!(reasons(&profile).len() < 20);
    assert!(reasons(&profile).contains(&"further losses of events".to_owned()));
    profile.freeze("somebody", at(200));
    let unknown = weigh(&mut profile, &main(1, open("/a")), at(201));
    assert!(matches!(unknown, Weighed::Deviation(deviation) if deviation.is_partial));
    let mut unseen = empty();
    unseen.freeze("somebody", at(0));
    assert_eq!(reasons(&unseen), ["no container has run yet"]);
}

#[test]
fn a_container_with_a_finding_leaves_no_trace() {
    let mut profile = empty();
    profile.started(1, at(0), false);
    profile.started(2, at(0), false);
    weigh(&mut profile, &main(1, open("/app/config")), at(1));
    weigh(&mut profile, &main(2, open("/app/config")), at(1));
    weigh(&mut profile, &main(2, peer("203.0.113.9", 4444)), at(1));
    profile.stopped(2, at(2));
    profile.tick(Some(&ENDING), at(3));
    // It comes late.
    profile.content_finding(2, at(4));
    profile.tick(
        Some(&ENDING),
        at(5) + SignedDuration::try_from(FINDINGS_TIME).unwrap(),
    );
    let later = weigh(&mut profile, &main(2, open("/tmp/loot")), at(100));
    assert_eq!(later, Weighed::Ignored);
    let document = profile.document();
    assert_eq!(document.main.files.len(), 1);
    assert!(document.main.peers.is_empty());
}

#[test]
fn a_successor_has_what_is_the_same() {
    let old = web().document();
    let mut is_same = |path: &[u8], _: Sha256| path != b"/usr/bin/curl";
    let mut new = Profile::seeded(subject(9), &Seed::default(), at(0));
    new.started(7, at(0), false);
    new.inherit(&old, &mut is_same);
    let document = new.document();
    assert_eq!(document.state, State::Learning);
    assert_eq!(document.inherited_from, Some(old.image.manifest));
    let changes: Vec<String> = difference(&old, &document)
        .iter()
        .map(Change::to_string)
        .collect();
    assert_eq!(
        changes,
        ["no more executable /usr/bin/curl by curl -f *".to_owned()]
    );
}

/// Bytes and patterns that a process can make at will.
#[test]
fn whatever_is_done_the_profile_stays_small() {
    let mut profile = empty();
    profile.started(1, at(0), false);
    let word = |number: u32| -> String {
        number
            .to_string()
            .bytes()
            .map(|it| char::from(it + 49))
            .collect()
    };
    for number in 0..50_000u32 {
        weigh(
            &mut profile,
            &main(1, open(&format!("/data/{}", word(number)))),
            at(1),
        );
        let address = IpAddr::V4(Ipv4Addr::from_bits(number.wrapping_mul(0x9e37_79b9)));
        weigh(&mut profile, &main(1, Done::Peer(address, 443)), at(1));
        if number < 2000 {
            let path = format!("/bin/{}", word(number));
            weigh(
                &mut profile,
                &main(1, exec(&path, &path, &format!("x --{}", word(number)))),
                at(1),
            );
        }
    }
    assert!(profile.bytes() < 1 << 20, "{}", profile.bytes());
    let document = profile.document();
    assert!(document.main.collapsed.contains(&"/data".to_owned()));
    assert!(
        document.main.overflowed.contains(&"executables".to_owned()),
        "{:?}",
        document.main.overflowed
    );
    assert!(
        document
            .main
            .overflowed
            .contains(&"peers tcp 443 0.0.0.0/0".to_owned())
    );
    assert!(document.to_yaml().len() < 1 << 20);
}

fn done() -> impl Strategy<Value = Done> {
    let path = || "/(tmp|etc|proc|app)(/([a-c]|[0-9]|self|token)){1,3}";
    prop_oneof![
        (path(), proptest::option::of(path()), "x( -[a-c]){0,2}( y)?")
            .prop_map(|(path, parent, line)| Done::Exec(path, parent, line)),
        (path(), any::<bool>(), any::<bool>())
            .prop_map(|(path, read, write)| Done::Open(path, Access { read, write })),
        (0u32..400, 0u16..3).prop_map(|(address, port)| {
            Done::Peer(
                Ipv4Addr::from_bits(address.wrapping_mul(0x0123_4567)).into(),
                port,
            )
        }),
        path().prop_map(Done::Socket),
    ]
}

/// What up to three containers do.
pub(super) fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = (
        1u64..4,
        proptest::option::weighted(0.3, "x( -[ab])?"),
        done(),
        any::<bool>(),
    );
    let event = event.prop_map(|(container, command, done, is_beginning)| {
        let done = match (&command, is_beginning) {
            (Some(command), true) => Done::Exec("/bin/x".to_owned(), None, command.clone()),
            _ => done,
        };
        Event {
            container,
            command,
            done,
        }
    });
    proptest::collection::vec(event, 0..120)
}

pub(super) fn learned(events: &[Event]) -> Profile {
    let mut profile = empty();
    for container in 1..4 {
        profile.started(container, at(0), container == 3);
    }
    for event in events {
        weigh(&mut profile, event, at(1));
    }
    profile
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_order_makes_no_difference(
        (events, shuffled) in events().prop_flat_map(|events| {
            (Just(events.clone()), Just(events).prop_shuffle())
        }),
        ended in any::<bool>(),
    ) {
        let one = learned(&events);
        let mut other = learned(&shuffled);
        if ended {
            // Also when one container ends in between.
            other = empty();
            for container in 1..4 {
                other.started(container, at(0), container == 3);
            }
            let (first, others): (Vec<_>, Vec<_>) =
                shuffled.into_iter().partition(|event| event.container == 1);
            for event in first {
                weigh(&mut other, &event, at(1));
            }
            other.stopped(1, at(1));
            other.tick(Some(&ENDING), at(100));
            for event in others {
                weigh(&mut other, &event, at(101));
            }
        }
        prop_assert_eq!(one.document().to_yaml(), other.document().to_yaml());
    }

    #[test]
    fn what_was_learned_is_expected(events in events()) {
        let mut profile = learned(&events);
        profile.freeze("somebody", at(2));
        let document = profile.document();
        for event in &events {
            let weighed = weigh(&mut profile, event, at(3));
            let is_known = event.command.as_ref().is_none_or(|command| {
                document.put_in.iter().any(|it| it.command == *command)
            });
            let is_secret = matches!(&event.done, Done::Open(path, _) | Done::Socket(path) if path.contains("token"));
            if is_known && !is_secret {
                prop_assert_eq!(weighed, Weighed::Expected, "{:?}", event);
            }
        }
    }

    #[test]
    fn a_retracted_container_was_never_there(events in events(), at_event in 0usize..100) {
        let mut profile = empty();
        for container in 1..4 {
            profile.started(container, at(0), container == 3);
        }
        for (number, event) in events.iter().enumerate() {
            if number == at_event {
                profile.content_finding(2, at(1));
            }
            weigh(&mut profile, event, at(1));
        }
        profile.content_finding(2, at(2));
        let others: Vec<Event> = events.into_iter().filter(|event| event.container != 2).collect();
        let mut never = empty();
        for container in [1, 3] {
            never.started(container, at(0), container == 3);
        }
        for event in &others {
            weigh(&mut never, event, at(1));
        }
        prop_assert_eq!(profile.document(), never.document());
    }
}
